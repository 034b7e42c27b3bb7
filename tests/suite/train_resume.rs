//! What `--resume` and `--overwrite` make of a run that was stopped anywhere, is over, or whose inputs changed since.

use crate::commands::copy;
use crate::support::run::{Bench, adapter, log};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use vlm::base::{Error, Precision};
use vlm::device::Device;
use vlm::qwen3vl::processor::read_patch_spec;
use vlm::train::run_folder::{RunFolder, Start, failure, identity_of, training_samples};
use vlm::train::session::{Begin, End, Said, Watch, Why, train};
use vlm::train::sets::Sets;
use vlm::train::settings::Settings;

/// A run that is over stays over: what is resumed says how it ended, and takes no step more.
#[test]
fn a_run_that_has_ended_takes_no_step_when_it_is_resumed() {
    let bench = Bench::new();
    bench.write("eval.jsonl", &fs::read_to_string(bench.path("train.jsonl")).unwrap());
    let early = bench.settings(|s| {
        (s.eval_data, s.eval_every, s.early_stop) = (Some(bench.path("eval.jsonl")), Some(1), Some(1));
        (s.learning_rate, s.save_every, s.out) = (1e-30, None, bench.path("early"));
    });
    let passed = bench.settings(|s| {
        (s.overfit, s.epochs, s.learning_rate, s.rank, s.batch_size) = (Some(3), None, 1e-2, Some(8), 1);
        s.out = bench.path("passed");
    });
    let whole = bench.settings(|s| s.out = bench.path("whole"));
    for settings in [&early, &passed, &whole] {
        let end = bench.run(settings, Start::New, None).unwrap();
        let (log_before, adapter_before) = (log(&settings.out), adapter(&settings.out));
        // killed after the last checkpoint, before the end
        fs::remove_file(settings.out.join("run.json")).unwrap();
        assert_eq!(bench.run(settings, Start::Resume, None).unwrap(), end);
        assert!(log(&settings.out) == log_before && adapter(&settings.out) == adapter_before);
        let End::Done { steps, loss, .. } = end else { panic!("{end:?}") };
        let result = fs::read_to_string(settings.out.join("run.json")).unwrap();
        let result: serde_json::Value = serde_json::from_str(&result).unwrap();
        assert_eq!((result["steps"].as_u64(), result["loss"].as_f64()), (Some(steps), loss), "{result}");
        // a look at a run that is over changes nothing of what it took and cost
        let before = fs::read(settings.out.join("run.json")).unwrap();
        bench.run(settings, Start::Resume, None).unwrap();
        assert!(fs::read(settings.out.join("run.json")).unwrap() == before);
    }
    let ended = bench.run(&early, Start::Resume, None).unwrap();
    assert!(matches!(ended, End::Done { steps: 2, why: Why::Early { evaluations: 1 }, .. }), "{ended:?}");
    // a check that failed says so again
    let failed = bench.settings(|s| (s.overfit, s.epochs, s.max_steps) = (Some(3), None, Some(2)));
    let said = bench.refusal(&failed);
    let before = fs::read(failed.out.join("run.json")).unwrap();
    assert_eq!(bench.run(&failed, Start::Resume, None).unwrap_err().to_string(), said);
    assert!(fs::read(failed.out.join("run.json")).unwrap() == before);
    // a look at one whose adapter is elsewhere does not lose what it took
    let (here, elsewhere) = (early.out.join("adapter_model.safetensors"), bench.path("elsewhere"));
    let before = fs::read(early.out.join("run.json")).unwrap();
    fs::rename(&here, &elsewhere).unwrap();
    bench.run(&early, Start::Resume, None).unwrap_err();
    assert!(failure(&early.out).unwrap().contains("was removed or changed"));
    fs::rename(&elsewhere, &here).unwrap();
    bench.run(&early, Start::Resume, None).unwrap();
    assert!(fs::read(early.out.join("run.json")).unwrap() == before);
}

/// A signal ends an evaluation, which is done again from its start.
#[test]
fn a_run_that_is_stopped_within_an_evaluation_goes_on_to_the_same_bits() {
    let bench = Bench::new();
    bench.write("eval.jsonl", &fs::read_to_string(bench.path("train.jsonl")).unwrap());
    let settings = |out: &str| {
        bench.settings(|s| {
            (s.eval_data, s.eval_every, s.save_every) = (Some(bench.path("eval.jsonl")), Some(2), Some(5));
            (s.learning_rate, s.out) = (1e-2, bench.path(out));
        })
    };
    let whole = settings("whole");
    let end = bench.run(&whole, Start::New, None).unwrap();
    for (name, at, evaluations) in [("second", 2, 0), ("last", 6, 2)] {
        let parts = settings(name);
        assert_eq!(bench.run(&parts, Start::New, Some(at)).unwrap(), End::Interrupted { steps: at });
        let evaluated = log(&parts.out).iter().filter(|line| line.contains("eval_accuracy")).count();
        assert_eq!(evaluated, evaluations, "{name}");
        assert_eq!(bench.run(&parts, Start::Resume, None).unwrap(), end, "{name}");
        assert!(adapter(&whole.out) == adapter(&parts.out), "{name}");
        assert_eq!(log(&whole.out), log(&parts.out), "{name}");
    }
    // the answers of an overfit check, too
    let check = |out: &str| {
        bench.settings(|s| {
            (s.overfit, s.epochs, s.learning_rate, s.rank, s.batch_size) = (Some(3), None, 1e-2, Some(8), 1);
            s.out = bench.path(out);
        })
    };
    let end = bench.run(&check("check"), Start::New, None).unwrap();
    let End::Done { steps, .. } = end else { panic!("{end:?}") };
    let parts = check("check-parts");
    assert_eq!(bench.run(&parts, Start::New, Some(steps)).unwrap(), End::Interrupted { steps });
    assert_eq!(bench.run(&parts, Start::Resume, None).unwrap(), end);
    assert_eq!(log(&bench.path("check")), log(&parts.out));
}

/// The best evaluation's adapter lies in the run's folder alone: whoever removes or changes it while the run is stopped is
/// told, and gets no other for it.
#[test]
fn a_best_adapter_that_is_gone_is_not_said_to_be_there() {
    let bench = Bench::new();
    bench.write("eval.jsonl", &fs::read_to_string(bench.path("train.jsonl")).unwrap());
    let settings = |rate: f32, out: &str| {
        bench.settings(|s| {
            (s.eval_data, s.eval_every, s.save_every) = (Some(bench.path("eval.jsonl")), Some(1), Some(1));
            (s.learning_rate, s.out) = (rate.into(), bench.path(out));
        })
    };
    let notes = |settings: &Settings| {
        let mut notes = Vec::new();
        let mut said = |said: Said| {
            if let Said::Note(text) = said {
                notes.push(text);
            }
        };
        let mut watch = Watch { said: &mut said, interrupted: &|| false };
        let begin = Begin { start: Start::Resume, first_gradients: None, dollars_per_hour: None };
        let end = train(settings, Device::host(), Precision::F32, &begin, &mut Sets::default(), &mut watch);
        (end.map_err(|e| e.to_string()), notes.join("\n"))
    };
    // the first evaluation stays the best of a run that learns nothing
    let still = settings(1e-30, "still");
    assert_eq!(bench.run(&still, Start::New, Some(3)).unwrap(), End::Interrupted { steps: 3 });
    let file = still.out.join("adapter_model.safetensors");
    let before = fs::read(&file).unwrap();
    let mut flipped = before.clone();
    flipped[before.len() - 1] ^= 1;
    let ended = Cell::new(false);
    let damages: [&dyn Fn(); 2] = [&|| fs::remove_file(&file).unwrap(), &|| fs::write(&file, &flipped).unwrap()];
    for damage in damages {
        damage();
        let (end, notes) = notes(&still);
        let wanted =
            "was removed or changed since it was written at step 1, the best evaluation; put it back and give --resume";
        assert!(end.unwrap_err().contains(wanted));
        // before the steps that are left
        let told = "is not that of step 1, the best evaluation so far: unless a later one is better";
        assert_eq!(notes.contains(told), !ended.replace(true), "{notes}");
    }
    fs::write(&file, before).unwrap();
    let (end, notes_now) = notes(&still);
    assert!(matches!(end, Ok(End::Done { steps: 6, best: Some(1), .. })), "{end:?}");
    assert!(!notes_now.contains("best evaluation"), "{notes_now}");
    // a kill after a better evaluation, before the checkpoint that knows of it, leaves that one's adapter
    let whole = settings(3e-2, "whole");
    let end = bench.run(&whole, Start::New, None).unwrap();
    let End::Done { best: Some(best), .. } = end else { panic!("{end:?}") };
    assert!(best > 2, "{best}");
    let parts = settings(3e-2, "parts");
    assert_eq!(bench.run(&parts, Start::New, Some(best - 1)).unwrap(), End::Interrupted { steps: best - 1 });
    fs::write(parts.out.join("adapter_model.safetensors"), adapter(&whole.out)).unwrap();
    let (again, notes_now) = notes(&parts);
    assert!(again == Ok(end) && notes_now.contains("the best evaluation so far"), "{again:?} {notes_now}");
    assert!(adapter(&parts.out) == adapter(&whole.out) && log(&parts.out) == log(&whole.out));
    // that of the last step is in the checkpoint
    for full in [false, true] {
        let last =
            Settings { full, rank: (!full).then_some(2), epochs: None, max_steps: Some(1), ..settings(1e-3, "last") };
        let end = bench.run(&last, Start::Overwrite, None).unwrap();
        let (folder, file) = match full {
            true => (last.out.join("model"), last.out.join("model/model.safetensors")),
            false => (last.out.clone(), last.out.join("adapter_model.safetensors")),
        };
        let before = fs::read(&file).unwrap();
        fs::remove_file(&file).unwrap();
        let (again, notes) = notes(&last);
        assert_eq!(again, Ok(end));
        let wanted =
            format!("in {} was not that of step 1, the best evaluation; it is written again", folder.display());
        assert!(notes.contains(&wanted) && fs::read(&file).unwrap() == before, "{notes}");
    }
}

/// Before the first step there is nothing to save, and what lies in the folder is not touched.
#[test]
fn a_signal_before_the_first_step_leaves_the_folder_as_it_is() {
    let bench = Bench::new();
    let settings = bench.settings(|_| ());
    bench.run(&settings, Start::New, None).unwrap();
    let before = (log(&settings.out), adapter(&settings.out));
    let lines = fs::read_to_string(bench.path("train.jsonl")).unwrap();
    bench.write("train.jsonl", &lines.repeat(3 * rayon::current_num_threads()));
    let mut checked = Vec::new();
    let mut said = |said: Said| {
        if let Said::Checked(n, all) = said {
            checked.push((n, all));
        }
    };
    let mut watch = Watch { said: &mut said, interrupted: &|| true };
    let begin = Begin { start: Start::Overwrite, first_gradients: None, dollars_per_hour: None };
    let end = train(&settings, Device::host(), Precision::F32, &begin, &mut Sets::default(), &mut watch);
    assert!(matches!(end, Err(Error::Interrupted)), "{end:?}");
    assert!(checked.len() == 1 && checked[0].0 < checked[0].1, "{checked:?}");
    assert_eq!((log(&settings.out), adapter(&settings.out)), before);
}

/// What is not the model's weights, and what nobody asked for, changes a run as well.
#[test]
fn a_run_goes_on_with_the_same_tokenizer_adapter_and_precision_alone() {
    let bench = Bench::new();
    let copied = copy("single");
    let model = copied.path().to_path_buf();
    let first = bench.settings(|s| (s.model, s.epochs, s.max_steps) = (model.clone(), None, Some(1)));
    bench.run(&first, Start::New, None).unwrap();
    let settings = bench.settings(|s| {
        (s.model, s.init_adapter, s.out) = (model.clone(), Some(first.out.clone()), bench.path("second"));
        s.rank = None;
    });
    assert_eq!(bench.run(&settings, Start::New, Some(2)).unwrap(), End::Interrupted { steps: 2 });
    let said = bench.run_on(Device::host(), Precision::Bf16, &settings, Start::Resume, None).unwrap_err().to_string();
    assert!(said.contains(r#"not be the same run: precision was "f32" and is "bf16"; take back"#), "{said}");
    for (file, more, wanted) in [
        (
            model.join("chat_template.jinja"),
            "{# the same #}",
            "not be the same run: the model's tokenizer, templates or processor changed; ",
        ),
        (first.out.join("adapter_config.json"), " ", "not be the same run: the adapter to start from changed; "),
    ] {
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, format!("{text}{more}")).unwrap();
        let said = bench.run(&settings, Start::Resume, None).unwrap_err().to_string();
        assert!(said.contains(wanted), "{said}");
        fs::write(&file, text).unwrap();
    }
    assert!(matches!(bench.run(&settings, Start::Resume, None), Ok(End::Done { steps: 6, .. })));
}

/// A default that is spelled out is no change, and a change is told beside the default that was used.
#[test]
fn a_run_goes_on_with_its_defaults_spelled_out() {
    let bench = Bench::new();
    bench.write("eval.jsonl", &fs::read_to_string(bench.path("train.jsonl")).unwrap());
    let short = |s: &mut Settings| {
        (s.rank, s.save_every, s.eval_data, s.lora_vision) = (None, None, Some(bench.path("eval.jsonl")), true);
    };
    let whole = |s: &mut Settings| {
        let pixels = read_patch_spec(&s.model).unwrap();
        (s.rank, s.alpha, s.rslora) = (Some(16), Some(32.0), Some(false));
        s.target_modules = Some("q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj".into());
        (s.min_pixels, s.max_pixels) = (Some(pixels.min_pixels), Some(pixels.max_pixels));
        (s.vision_learning_rate, s.warmup_steps) = (Some(1e-3), Some(0));
        // an epoch has two steps
        (s.eval_every, s.save_every) = (Some(2), Some(2));
    };
    let first = bench.settings(short);
    assert_eq!(bench.run(&first, Start::New, Some(2)).unwrap(), End::Interrupted { steps: 2 });
    let refused = |change: &dyn Fn(&mut Settings), wanted: &str| {
        let changed = bench.settings(|s| {
            short(s);
            change(s);
        });
        let said = bench.run(&changed, Start::Resume, None).unwrap_err().to_string();
        assert!(said.contains(&format!("{wanted}; take back the change")), "{said}");
    };
    refused(&|s| s.rank = Some(8), "rank was 16 and is 8");
    refused(&|s| s.target_modules = Some("q_proj".into()), "gate_proj,up_proj,down_proj\" and is \"q_proj\"");
    refused(&|s| s.save_every = Some(3), "save-every was 2 and is 3");
    refused(&|s| s.prompt = Some("Which?".into()), "prompt was not given and is \"Which?\"");
    let spelled = bench.settings(|s| {
        short(s);
        whole(s);
    });
    assert!(matches!(bench.run(&spelled, Start::Resume, None), Ok(End::Done { steps: 6, .. })));
    // where an adapter is trained on, its own are the defaults
    let on = |s: &mut Settings| {
        (s.rank, s.init_adapter, s.out) = (None, Some(first.out.clone()), bench.path("second"));
    };
    assert_eq!(bench.run(&bench.settings(on), Start::New, Some(2)).unwrap(), End::Interrupted { steps: 2 });
    let spelled = bench.settings(|s| {
        on(s);
        (s.rank, s.alpha, s.rslora, s.lora_vision) = (Some(16), Some(32.0), Some(false), true);
    });
    assert!(matches!(bench.run(&spelled, Start::Resume, None), Ok(End::Done { steps: 6, .. })));
}

/// An adapter beside the weights that it was trained on does not make another model of them.
#[test]
fn a_run_in_its_models_own_folder_goes_on_to_the_same_bits() {
    let bench = Bench::new();
    bench.write("eval.jsonl", &fs::read_to_string(bench.path("train.jsonl")).unwrap());
    let copied = copy("single");
    let model = copied.path().to_path_buf();
    let settings = |out: &Path| {
        bench.settings(|s| {
            (s.eval_data, s.eval_every) = (Some(bench.path("eval.jsonl")), Some(1));
            (s.model, s.out) = (model.clone(), out.into());
        })
    };
    let (whole, within) = (settings(&bench.path("whole")), settings(&model));
    let end = bench.run(&whole, Start::New, None).unwrap();
    let weights = fs::read(model.join("model.safetensors")).unwrap();
    assert_eq!(bench.run(&within, Start::Overwrite, Some(3)).unwrap(), End::Interrupted { steps: 3 });
    assert!(model.join("adapter_model.safetensors").exists());
    assert_eq!(bench.run(&within, Start::Resume, None).unwrap(), end);
    assert!(adapter(&whole.out) == adapter(&within.out));
    assert_eq!(log(&whole.out), log(&within.out));
    assert!(fs::read(model.join("model.safetensors")).unwrap() == weights);
}

/// What a checkpoint says of the run beside its numbers is not guessed.
#[test]
fn a_state_that_cannot_be_read_is_an_error() {
    let bench = Bench::new();
    let settings = bench.settings(|_| ());
    assert_eq!(bench.run(&settings, Start::New, Some(2)).unwrap(), End::Interrupted { steps: 2 });
    let file = settings.out.join("checkpoints/step-00000002.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let name = br#"\"best\":"#;
    let at = bytes.windows(name.len()).position(|w| w == name).unwrap();
    bytes[at + 2] = b'r';
    fs::write(&file, bytes).unwrap();
    let said = bench.run(&settings, Start::Resume, None).unwrap_err().to_string();
    assert!(said.contains("step-00000002.safetensors: its state cannot be read: unknown field `rest`"), "{said}");
}

/// A model is a folder, and so is what a kill leaves of one that was being written. It goes with its run; one that is no
/// run's stays.
#[test]
fn what_is_left_of_a_model_is_removed_and_the_model_goes_with_its_run() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let lora = Settings { model: "/m".into(), data: "/d".into(), out: path("run"), ..Settings::default() };
    let full = Settings { full: true, ..lora.clone() };
    let open = |settings: &Settings, start| {
        let identity = identity_of(settings, Precision::F32, BTreeMap::new()).unwrap();
        RunFolder::open(settings, identity, start, 0.0).map(drop)
    };
    let run = path("run");
    let left = [".model.new.partial-1-2/a/b", "model.new/config.json", "checkpoints/.c.partial-1-3/d"];
    let write = |paths: &[&str]| {
        for path in paths.iter().map(|path| run.join(path)) {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
    };
    let there = |paths: &[&str]| paths.iter().filter(|path| run.join(path).exists()).count();
    open(&full, Start::New).unwrap();
    write(&left);
    write(&["model/config.json"]);
    open(&full, Start::Resume).unwrap();
    assert_eq!((there(&left), there(&["model/config.json"])), (0, 1));
    write(&left);
    open(&lora, Start::Overwrite).unwrap();
    assert_eq!((there(&left), there(&["model"])), (0, 0));
    // of a run that leaves an adapter it is somebody's
    write(&left);
    write(&["model/thesis.tex"]);
    open(&lora, Start::Resume).unwrap();
    open(&full, Start::Overwrite).unwrap();
    assert_eq!((there(&left[1..2]), there(&["model/thesis.tex"]), there(&[left[0], left[2]])), (1, 1, 0));
    // and so is what only looks as if a killed process had left it
    let alike = [".my.partial-notes/a.txt", ".todo.partial-list.md", ".x.partial-1", "checkpoints/.x.partial-1-2-3"];
    write(&alike);
    open(&lora, Start::Resume).unwrap();
    open(&full, Start::Overwrite).unwrap();
    assert_eq!(there(&alike), 4);
    write(&["model/thesis.tex"]);
    // of a link the link goes
    fs::rename(run.join("model"), path("mine")).unwrap();
    std::os::unix::fs::symlink(path("mine"), run.join("model")).unwrap();
    open(&full, Start::Overwrite).unwrap();
    assert!(there(&["model"]) == 0 && path("mine/thesis.tex").exists());
}

#[test]
fn a_run_knows_of_how_many_samples_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path();
    assert_eq!(training_samples(run), None);
    fs::write(run.join("config.toml"), "data = \"/d\"\nepochs = 2\n").unwrap();
    assert_eq!(training_samples(run), None);
    fs::write(run.join("config.toml"), "data = \"/d\"\nsubset = 9\n").unwrap();
    assert_eq!(training_samples(run), Some(9));
    fs::write(run.join("run.json"), r#"{"steps": 3}"#).unwrap();
    assert_eq!(training_samples(run), Some(9));
    fs::write(run.join("run.json"), r#"{"steps": 3, "training_samples": 8}"#).unwrap();
    assert_eq!(training_samples(run), Some(8));
}

/// What a kill leaves while the trained model is written: a folder beside it, half full, or whole and not yet in its place.
#[test]
fn a_full_run_that_was_killed_at_its_end_writes_its_model_again() {
    let bench = Bench::new();
    let settings = bench.settings(|s| (s.full, s.rank, s.epochs, s.max_steps) = (true, None, None, Some(2)));
    let end = bench.run(&settings, Start::New, None).unwrap();
    let (model, aside) = (settings.out.join("model"), settings.out.join("model.new"));
    let weights = || fs::read(model.join("model.safetensors")).unwrap();
    let before = weights();
    for left in [settings.out.join(".model.new.partial-1-2"), aside.clone()] {
        fs::rename(&model, &left).unwrap();
        fs::write(left.join("model.safetensors"), "half").unwrap();
        assert_eq!(bench.run(&settings, Start::Resume, None).unwrap(), end);
        assert!(weights() == before && !left.exists() && !aside.exists());
    }
}
