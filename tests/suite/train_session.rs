//! Whole runs on a small model: what they leave, what they refuse, and that a run that was stopped ends as the one that
//! was not.

use crate::commands::copy;
use crate::folders::{change_tensors, write_json};
use crate::support::json_lines;
use crate::support::run::{Bench, adapter, log};
use crate::support::tiny::cases;
use serde_json::Value;
use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use vlm::base::{Error, Precision};
use vlm::device::Device;
use vlm::io::lock::FolderLock;
use vlm::qwen3vl::checkpoint::Checkpoint;
use vlm::train::run_folder::{Start, failure, training_samples};
use vlm::train::session::{Begin, End, Said, Watch, Why, dry_run, train};
use vlm::train::sets::Sets;

#[test]
fn a_run_with_dropout_that_is_stopped_goes_on_to_the_same_bits() {
    let bench = Bench::new();
    let whole = bench.settings(|s| s.dropout = 0.2);
    assert!(matches!(bench.run(&whole, Start::New, None), Ok(End::Done { steps: 6, .. })));
    let parts = bench.settings(|s| {
        s.dropout = 0.2;
        s.out = bench.path("parts");
        // another plan computes other values twice, and changes nothing
        s.memory = Some(1 << 33);
    });
    assert_eq!(bench.run(&parts, Start::New, Some(3)).unwrap(), End::Interrupted { steps: 3 });
    // what a kill leaves: a line beyond the checkpoint, half a line, a file half written
    let metrics = parts.out.join("metrics.jsonl");
    let text = fs::read_to_string(&metrics).unwrap();
    fs::write(&metrics, format!("{text}{text}{{\"step\"")).unwrap();
    fs::write(parts.out.join("checkpoints/.step-00000005.safetensors.partial-1-1"), b"half").unwrap();
    assert!(matches!(bench.run(&parts, Start::Resume, None), Ok(End::Done { steps: 6, .. })));
    assert!(adapter(&whole.out) == adapter(&parts.out));
    assert_eq!(log(&whole.out), log(&parts.out));
    let config = fs::read_to_string(whole.out.join("adapter_config.json")).unwrap();
    assert!(config.contains("\"lora_dropout\": 0.2"), "{config}");
    // without the dropout it is another run
    let without = bench.settings(|s| s.out = bench.path("without"));
    bench.run(&without, Start::New, None).unwrap();
    assert_ne!(log(&whole.out), log(&without.out));
}

/// The tower's own count of steps is known again after a stop: it follows from the order of the samples.
#[test]
fn a_run_over_lines_without_photos_goes_on_to_the_same_bits() {
    let bench = Bench::new();
    let lines = fs::read_to_string(bench.path("train.jsonl")).unwrap();
    let written = r#"{"messages": [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "none"}]}"#;
    bench.write("train.jsonl", &format!("{written}\n{lines}{written}\n"));
    let settings = |out: &str| {
        bench.settings(|s| {
            (s.lora_vision, s.lora_merger, s.batch_size, s.epochs) = (true, true, 1, Some(2));
            (s.weight_decay, s.learning_rate, s.out) = (0.3, 1e-2, bench.path(out));
        })
    };
    let (whole, parts) = (settings("whole"), settings("parts"));
    assert!(matches!(bench.run(&whole, Start::New, None), Ok(End::Done { steps: 10, .. })));
    assert_eq!(bench.run(&parts, Start::New, Some(7)).unwrap(), End::Interrupted { steps: 7 });
    assert!(matches!(bench.run(&parts, Start::Resume, None), Ok(End::Done { steps: 10, .. })));
    assert!(adapter(&whole.out) == adapter(&parts.out));
    assert_eq!(log(&whole.out), log(&parts.out));
}

#[test]
fn seconds_and_dollars_stand_in_run_json() {
    let bench = Bench::new();
    let settings = bench.settings(|s| (s.epochs, s.max_steps) = (None, Some(1)));
    bench.run(&settings, Start::New, None).unwrap();
    let summary: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(settings.out.join("run.json")).unwrap()).unwrap();
    let seconds = summary["seconds"].as_f64().unwrap();
    assert_eq!(summary["training_samples"], 3);
    // what a set holds later is no matter of the run
    bench.write("train.jsonl", "");
    assert_eq!(training_samples(&settings.out), Some(3));
    assert!(seconds > 0.0 && summary["steps"] == 1, "{summary}");
    assert!((summary["dollars"].as_f64().unwrap() - seconds * 3.6 / 3600.0).abs() <= 1e-12 * seconds, "{summary}");
}

/// The validation loss is the training loss of the same samples where nothing has been learnt.
#[test]
fn the_validation_loss_is_a_mean_over_label_tokens() {
    let bench = Bench::new();
    bench.write("eval.jsonl", &fs::read_to_string(bench.path("train.jsonl")).unwrap());
    let settings = bench.settings(|s| {
        s.eval_data = Some(bench.path("eval.jsonl"));
        (s.learning_rate, s.batch_size) = (1e-30, 3);
    });
    bench.run(&settings, Start::New, None).unwrap();
    let lines = json_lines(&settings.out.join("metrics.jsonl"));
    let [step, evaluation] = [0, 1].map(|i| &lines[i]);
    let (loss, eval_loss) = (step["loss"].as_f64().unwrap(), evaluation["eval_loss"].as_f64().unwrap());
    assert!((loss - eval_loss).abs() <= 1e-5 * loss, "{loss} {eval_loss}");
    assert_eq!(evaluation["eval_samples"], 3);
}

#[test]
fn an_overfit_check_ends_when_every_answer_is_right_or_says_why_not() {
    let bench = Bench::new();
    let settings = bench.settings(|s| {
        (s.overfit, s.epochs, s.learning_rate, s.rank, s.batch_size) = (Some(3), None, 1e-2, Some(8), 1);
    });
    let End::Done { loss: Some(loss), why, .. } = bench.run(&settings, Start::New, None).unwrap() else { panic!() };
    assert!(loss < 0.01, "{loss}");
    assert_eq!(why, Why::Passed { samples: 3, answered: true });
    // every sample's last step, not one alone
    let lines = json_lines(&settings.out.join("metrics.jsonl"));
    assert!(lines[lines.len() - 3..].iter().all(|l| l["loss"].as_f64().unwrap() < 0.01));
    let settings = bench.settings(|s| {
        (s.overfit, s.epochs, s.max_steps, s.out) = (Some(3), None, Some(2), bench.path("short"));
    });
    let said = bench.refusal(&settings);
    assert!(said.contains("overfit check failed: after 2 steps") && said.contains("of 3 answers right"), "{said}");
    assert_eq!(failure(&settings.out), Some(said));
}

/// A damaged photo shows itself where it is decoded, and a run begins with that. Without its sample the run is that of the
/// set without it.
#[test]
fn a_damaged_photo_is_found_before_the_first_step_or_left_out() {
    let bench = Bench::new();
    let good = fs::read_to_string(bench.path("train.jsonl")).unwrap();
    let photo = fs::read(bench.path("images/wide.png")).unwrap();
    fs::write(bench.path("images/cut.png"), &photo[..photo.len() / 2]).unwrap();
    let lines: Vec<&str> = good.lines().collect();
    let bad = lines[0].replace("wide.png", "cut.png");
    // --dry-run, and a run
    bench.write("train.jsonl", &[lines[0], &bad, lines[1], lines[2]].join("\n"));
    let settings = bench.settings(|_| ());
    let mut watch = Watch { said: &mut |_| (), interrupted: &|| false };
    let planned = dry_run(&settings, &mut Device::host(), Precision::F32, None, &mut watch);
    for said in [planned.expect_err("a refusal").to_string(), bench.refusal(&settings)] {
        let wanted = ["train.jsonl, line 2: ", "cut.png", "mend or replace this photo", "--skip-bad"];
        assert!(wanted.iter().all(|w| said.contains(w)), "{said}");
        assert!(!bench.path("run").exists());
    }
    // the same of what it is evaluated on
    bench.write("eval.jsonl", &bad);
    let settings =
        bench.settings(|s| (s.data, s.eval_data) = (bench.path("good.jsonl"), Some(bench.path("eval.jsonl"))));
    bench.write("good.jsonl", &good);
    let said = bench.refusal(&settings);
    assert!(said.contains("eval.jsonl, line 1: ") && said.contains("cut.png"), "{said}");

    let settings = bench.settings(|s| (s.skip_bad, s.out) = (true, bench.path("skipped")));
    let (mut notes, mut checked) = (Vec::new(), Vec::new());
    let stepped = Cell::new(false);
    let mut said = |said: Said| match said {
        Said::Note(text) => notes.push(text),
        Said::Checked(n, all) => checked.push((n, all)),
        _ => stepped.set(true),
    };
    let mut watch = Watch { said: &mut said, interrupted: &|| stepped.get() };
    let begin = Begin { start: Start::New, first_gradients: None, dollars_per_hour: None };
    let end = train(&settings, Device::host(), Precision::F32, &begin, &mut Sets::default(), &mut watch).unwrap();
    assert_eq!(end, End::Interrupted { steps: 1 });
    let left_out: Vec<_> = notes.iter().filter(|n| n.starts_with("left out: ")).collect();
    assert!(left_out.len() == 1 && left_out[0].contains("line 2: ") && left_out[0].contains("cut.png"), "{notes:?}");
    assert_eq!(checked.last(), Some(&(4, 4)));
    assert!(matches!(bench.run(&settings, Start::Resume, None), Ok(End::Done { steps: 6, .. })));
    let whole = bench.settings(|s| (s.data, s.out) = (bench.path("good.jsonl"), bench.path("whole")));
    bench.run(&whole, Start::New, None).unwrap();
    assert!(adapter(&whole.out) == adapter(&settings.out));
    assert_eq!(log(&whole.out), log(&settings.out));
}

#[test]
fn a_prompt_that_lines_have_no_use_for_is_said_once() {
    let bench = Bench::new();
    let settings = bench.settings(|s| s.prompt = Some("Which?".into()));
    let mut notes = Vec::new();
    let mut said = |said: Said| {
        if let Said::Note(text) = said {
            notes.push(text);
        }
    };
    let mut watch = Watch { said: &mut said, interrupted: &|| false };
    let mut sets = Sets::default();
    for _ in 0..2 {
        sets.samples(&settings.data, &settings, &mut watch).unwrap();
    }
    let wanted = "train.jsonl: --prompt is for lines with image and label; all 3 lines bring their own question";
    assert!(notes.len() == 1 && notes[0].ends_with(wanted), "{notes:?}");
}

/// Two runs in one folder would mix their logs and checkpoints.
#[test]
fn a_run_leaves_the_folder_of_another_alone() {
    let bench = Bench::new();
    let settings = bench.settings(|_| ());
    assert_eq!(bench.run(&settings, Start::New, Some(2)).unwrap(), End::Interrupted { steps: 2 });
    let before = log(&settings.out);
    let lock = FolderLock::take(&settings.out).unwrap();
    for start in [Start::New, Start::Resume, Start::Overwrite] {
        let said = bench.run(&settings, start, None).expect_err("a refusal").to_string();
        assert!(said.starts_with("another vlm is writing into ") && said.contains("run: wait for it"), "{said}");
    }
    assert_eq!(log(&settings.out), before);
    drop(lock);
    assert!(matches!(bench.run(&settings, Start::Resume, None), Ok(End::Done { steps: 6, .. })));
}

#[test]
fn a_loss_that_is_not_finite_stops_with_step_and_sample_and_keeps_the_checkpoint() {
    let bench = Bench::new();
    let settings = bench.settings(|s| (s.learning_rate, s.max_grad_norm, s.save_every) = (1e30, 0.0, Some(1)));
    let error = bench.run(&settings, Start::New, None).unwrap_err();
    assert!(matches!(error.cause(), Error::Diverged { .. }), "{error:?}");
    let said = error.to_string();
    let named = said.contains("train.jsonl, line") && said.contains("at step ") && said.contains("--learning-rate");
    assert!(named, "{said}");
    let Error::Diverged { step, .. } = error.cause() else { panic!("{error:?}") };
    assert!(said.ends_with(&format!("; the last checkpoint, of step {}, is kept", step - 1)), "{said}");
    assert!(fs::read_dir(settings.out.join("checkpoints")).unwrap().count() > 0);
    // which it stays known by
    assert_eq!(failure(&settings.out).as_deref(), Some(&said[..]));
    let result = fs::read_to_string(settings.out.join("run.json")).unwrap();
    assert!(result.contains("\"training_samples\": 3"), "{result}");
    // what is not there is not said to be
    let settings = bench.settings(|s| {
        (s.learning_rate, s.max_grad_norm, s.save_every) = (1e30, 0.0, Some(100));
        s.out = bench.path("unsaved");
    });
    let said = bench.refusal(&settings);
    assert!(said.ends_with(": lower --learning-rate, or look at the sample"), "{said}");
}

/// Before a step is taken no learning rate is at fault.
#[test]
fn a_loss_that_is_not_finite_at_the_first_step_is_the_weights_or_the_samples() {
    let bench = Bench::new();
    let copied = copy("single");
    let model = copied.path().to_path_buf();
    let file = model.join("model.safetensors");
    let norm =
        Checkpoint::open(&model).unwrap().tensor("model.language_model.norm.weight").unwrap().entry.range.clone();
    let mut bytes = fs::read(&file).unwrap();
    // NaN in every float type
    bytes[norm].fill(0xff);
    fs::write(&file, bytes).unwrap();
    let said = bench.refusal(&bench.settings(|s| s.model = model.clone()));
    let wanted = "model.safetensors: tensor model.language_model.norm.weight: it holds NaN, ";
    assert!(said.contains(wanted), "{said}");
    // numbers all of them, and what they make of a sample is none
    change_tensors(&file, |tensors| {
        let norm = tensors.iter_mut().find(|t| t.name == "model.language_model.norm.weight").unwrap();
        norm.bytes.chunks_mut(2).for_each(|x| x.copy_from_slice(&[0x7f, 0x7f]));
    });
    let said = bench.refusal(&bench.settings(|s| (s.model, s.out) = (model.clone(), bench.path("overflows"))));
    let wanted =
        ["train.jsonl, line ", "is NaN at step 1: ", "look at the weights that it starts from, and at the sample"];
    assert!(wanted.iter().all(|w| said.contains(w)), "{said}");
    assert!(!said.contains("--learning-rate") && !said.contains("checkpoint"), "{said}");
}

/// What is no number is never saved: a checkpoint of it would push a good one out, and nobody could go on from it.
#[test]
fn gradients_and_parameters_that_are_not_finite_stop_a_run_before_they_are_kept() {
    let bench = Bench::new();
    let checkpoints = |out: &Path| fs::read_dir(out.join("checkpoints")).map_or(0, |files| files.count());
    let settings = bench.settings(|s| (s.learning_rate, s.save_every) = (1e300, Some(1)));
    let said = bench.refusal(&settings);
    let wanted = ["a parameter or a moment of the optimiser is ", " at step 1: lower --learning-rate"];
    assert!(wanted.iter().all(|w| said.contains(w)) && !said.contains("is kept"), "{said}");
    assert_eq!(checkpoints(&settings.out), 0);

    // an adapter to start from: B is zero, so the loss is a number, and its gradient scale dy (A x) is none
    let made = bench.settings(|s| (s.out, s.max_steps, s.epochs) = (bench.path("made"), Some(1), None));
    bench.run(&made, Start::New, None).unwrap();
    let (tensors, config) = (made.out.join("adapter_model.safetensors"), made.out.join("adapter_config.json"));
    let fill = |a: f32, b: f32| {
        change_tensors(&tensors, |all| {
            for tensor in all {
                let value = if tensor.name.contains("lora_A") { a } else { b };
                tensor.bytes.chunks_mut(4).for_each(|x| x.copy_from_slice(&value.to_le_bytes()));
            }
        });
    };
    let mut changed: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    changed["lora_alpha"] = 1_000_000_000.into();
    write_json(&config, &changed);
    fill(1e36, 0.0);
    let settings = bench.settings(|s| {
        (s.init_adapter, s.out, s.save_every) = (Some(made.out.clone()), bench.path("steep"), Some(1));
    });
    let said = bench.refusal(&settings);
    assert!(said.contains("train.jsonl, lines ") && said.contains(": the norm of the gradients is "), "{said}");
    assert!(said.contains(" at step 1: ") && !said.contains("is kept"), "{said}");
    assert_eq!(checkpoints(&settings.out), 0);
    fill(f32::NAN, 0.0);
    let settings = bench.settings(|s| (s.init_adapter, s.out) = (Some(made.out.clone()), bench.path("none")));
    let said = bench.refusal(&settings);
    assert!(
        said.contains("adapter_model.safetensors: tensor ") && said.contains("lora_A.weight: it holds NaN"),
        "{said}"
    );
}

#[test]
fn what_cannot_be_learnt_is_refused_with_its_line() {
    let bench = Bench::new();
    let good = fs::read_to_string(bench.path("train.jsonl")).unwrap();
    let with = |line: &str| bench.write("train.jsonl", &format!("{good}{line}\n"));
    let says = |wanted: &[&str]| {
        let said = bench.refusal(&bench.settings(|_| ()));
        assert!(wanted.iter().all(|w| said.contains(w)), "{said}, wanted {wanted:?}");
        assert!(!bench.path("run").exists());
    };
    with("{\"messages\": 7}");
    says(&["train.jsonl, line 4"]);
    with(&good.lines().next().unwrap().replace("wide.png", "none.png"));
    says(&["train.jsonl, line 4", "none.png"]);
    with(r#"{"messages": [{"role": "user", "content": "Hm?"}, {"role": "assistant", "content": ""}]}"#);
    bench.settings(|_| ());
    // an empty answer still has the token that closes it; a question alone has nothing
    with(r#"{"messages": [{"role": "user", "content": "Hm?"}]}"#);
    says(&["train.jsonl, line 4", "no token to learn"]);
    with(&format!(
        r#"{{"messages": [{{"role": "user", "content": "{}"}}, {{"role": "assistant", "content": "no"}}]}}"#,
        "word after word ".repeat(3000)
    ));
    says(&["train.jsonl, line 4", "the conversation has ", " tokens, and the model positions for 4096: lower"]);
}

#[test]
fn an_adapter_tensor_without_a_gradient_is_named() {
    let bench = Bench::new();
    let line = r#"{"messages": [{"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "no"}]}"#;
    bench.write("train.jsonl", &format!("{line}\n"));
    let said = bench.refusal(&bench.settings(|s| s.lora_vision = true));
    assert!(said.contains("would get no gradient, because no sample has a picture"), "{said}");
    assert!(said.contains("visual.blocks.0.attn.qkv.lora_A") && said.contains("--lora-vision"), "{said}");
    bench.run(&bench.settings(|_| ()), Start::New, None).unwrap();
}

/// Where a checkpoint cannot be put into its place, the one before it stays whole, and the run goes on from it later.
#[test]
fn a_blocked_checkpoint_leaves_the_one_before() {
    let bench = Bench::new();
    let whole = bench.settings(|s| s.out = bench.path("whole"));
    bench.run(&whole, Start::New, None).unwrap();
    // a folder that takes the place of the file that the next checkpoint would be renamed to
    let settings = bench.settings(|s| s.out = bench.path("full"));
    assert_eq!(bench.run(&settings, Start::New, Some(2)).unwrap(), End::Interrupted { steps: 2 });
    let blocked = settings.out.join("checkpoints/step-00000004.safetensors");
    fs::create_dir_all(blocked.join("in the way")).unwrap();
    let said = bench.run(&settings, Start::Resume, None).expect_err("a refusal").to_string();
    assert!(said.contains("step-00000004.safetensors"), "{said}");
    fs::remove_dir_all(&blocked).unwrap();
    bench.run(&settings, Start::Resume, None).unwrap();
    assert!(adapter(&whole.out) == adapter(&settings.out));
    assert_eq!(log(&whole.out), log(&settings.out));
}

/// A file system of its own for the run, too small by turns for the first checkpoint, the second, the third and the
/// adapter; then there is room, and the run goes on to the same bits.
#[test]
fn a_full_disk_leaves_the_last_good_checkpoint() {
    let bench = Bench::new();
    let train = |out: &Path| {
        let model = cases().join("single");
        let parts = [("--model", model), ("--data", bench.path("train.jsonl")), ("--out", out.to_path_buf())];
        let mut words = vec![env!("CARGO_BIN_EXE_vlm").to_string(), "train".into()];
        words.extend(["--rank=16", "--batch-size=2", "--epochs=3", "--save-every=2", "--device=cpu"].map(String::from));
        words.extend(parts.into_iter().flat_map(|(flag, path)| [flag.to_string(), path.display().to_string()]));
        words
    };
    let whole = bench.path("whole");
    let words = train(&whole);
    assert!(Command::new(&words[0]).args(&words[1..]).stderr(Stdio::null()).status().unwrap().success());
    let checkpoint = fs::metadata(whole.join("checkpoints/step-00000006.safetensors")).unwrap().len();
    let disk = bench.path("disk");
    fs::create_dir(&disk).unwrap();
    // as the user of a namespace of one's own one may mount; there is no disk any more when the script ends
    let script = "mount -t tmpfs -o size=$1 none $2 || exit 77; disk=$2; left=$3; shift 3; \"$@\"; echo $? >$left/rc; \
                  ls $disk/run/checkpoints >$left/checkpoints; mount -o remount,size=64m $disk; \"$@\" --resume && \
                  cp -r $disk/run $left/";
    // blocks that hold names, and the small files, take room as well
    let small = 64 * 1024;
    for (size, kept) in
        [(checkpoint / 2, None), (checkpoint * 3 / 2 + small, Some(2)), (checkpoint * 5 / 2 + small, Some(4))]
    {
        let left = bench.path(&format!("left-{size}"));
        fs::create_dir(&left).unwrap();
        let mut command = Command::new("unshare");
        command
            .args(["-rm", "sh", "-c", script, "sh"])
            .arg(size.to_string())
            .args([&disk, &left])
            .args(train(&disk.join("run")));
        let done = match command.output() {
            Ok(done)
                if done.status.code() != Some(77) && !String::from_utf8_lossy(&done.stderr).contains("unshare") =>
            {
                done
            }
            _ => return eprintln!("skipped: a full disk: this machine lets nobody mount one"),
        };
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success(), "{said}");
        let read = |name: &str| fs::read_to_string(left.join(name)).unwrap();
        assert_eq!(read("rc").trim(), "1", "{size} bytes: {said}");
        // the last checkpoint and the result are written at the same time: either may be what does not fit
        assert!(said.contains("No space left on device") && said.contains("disk/run/"), "{said}");
        let newest = read("checkpoints").lines().last().map(String::from);
        assert_eq!(newest, kept.map(|step| format!("step-{step:08}.safetensors")), "{size} bytes: {said}");
        assert!(adapter(&whole) == adapter(&left.join("run")));
        assert_eq!(log(&whole), log(&left.join("run")));
    }
}

/// The program itself, killed at three moments: at the start, after a step, while a file is written beside its place. Of
/// `tools/kills.py` the short form.
#[test]
fn a_program_that_is_killed_goes_on_to_the_same_bits() {
    let bench = Bench::new();
    let start = |out: &str, resume: bool| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vlm"));
        command.args(["train", "--rank=2", "--batch-size=1", "--epochs=4", "--save-every=1", "--device=cpu"]);
        command.arg("--model").arg(cases().join("single")).arg("--data").arg(bench.path("train.jsonl"));
        command.arg("--out").arg(bench.path(out)).args(resume.then_some("--resume"));
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    assert!(start("whole", false).wait().unwrap().success());
    let killed = bench.path("killed");
    let lines = |n: usize| fs::read_to_string(killed.join("metrics.jsonl")).is_ok_and(|text| text.lines().count() >= n);
    let partial = || {
        let names = fs::read_dir(killed.join("checkpoints")).into_iter().flatten().flatten();
        names.map(|e| e.file_name()).any(|name| name.to_string_lossy().contains(".partial-"))
    };
    let moments: [&dyn Fn() -> bool; 3] = [&|| lines(1), &|| lines(4), &partial];
    for (i, moment) in moments.iter().enumerate() {
        let mut running = start("killed", i > 0);
        while !moment() && running.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        running.kill().unwrap();
        running.wait().unwrap();
    }
    assert!(start("killed", true).wait().unwrap().success());
    assert!(adapter(&bench.path("whole")) == adapter(&killed));
    assert_eq!(log(&bench.path("whole")), log(&killed));
}

/// A disk that takes no more: here a limit on the size of files, which the checkpoint exceeds.
#[test]
fn a_write_that_fails_names_the_file_and_leaves_nothing_half_written() {
    let bench = Bench::new();
    let run = |limit: &str, resume: bool| {
        let vlm = env!("CARGO_BIN_EXE_vlm");
        let resume = if resume { "--resume" } else { "" };
        let line = format!(
            "trap '' XFSZ; {limit} exec {vlm} train --rank=16 --batch-size=2 --epochs=2 --device=cpu {resume} \
             --model {} --data {} --out {}",
            cases().join("single").display(),
            bench.path("train.jsonl").display(),
            bench.path("run").display()
        );
        Command::new("bash").args(["-c", &line]).output().unwrap()
    };
    let failed = run("ulimit -f 64;", false);
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert_eq!(failed.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot write") && said.contains("step-00000002.safetensors"), "{said}");
    assert_eq!(fs::read_dir(bench.path("run/checkpoints")).unwrap().count(), 0);
    assert!(run("", true).status.success());
    assert!(bench.path("run/adapter_model.safetensors").exists());
}
