//! Whole runs on a small model: what they leave, what they refuse, and that a run that was stopped ends as the one that
//! was not.

use crate::support::json_lines;
use crate::support::tiny::cases;
use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use vlm::base::{Precision, Result};
use vlm::device::Device;
use vlm::train::plan::Roof;
use vlm::train::run_folder::Start;
use vlm::train::session::{Begin, End, Said, Watch, dry_run, train};
use vlm::train::settings::Settings;

/// A folder with a training set of its own.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        let bench = Bench { dir: tempfile::tempdir().unwrap() };
        bench.write("train.jsonl", &fs::read_to_string(cases().join("train.jsonl")).unwrap());
        fs::create_dir(bench.path("images")).unwrap();
        for name in ["wide.png", "glass.png"] {
            fs::copy(cases().join("images").join(name), bench.path("images").join(name)).unwrap();
        }
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// Six steps of two samples or one, a checkpoint after each second.
    fn settings(&self, change: impl FnOnce(&mut Settings)) -> Settings {
        let mut settings = Settings {
            model: cases().join("single"),
            data: self.path("train.jsonl"),
            out: self.path("run"),
            rank: Some(2),
            learning_rate: 1e-3,
            batch_size: 2,
            epochs: Some(3),
            save_every: Some(2),
            seed: 5,
            ..Settings::default()
        };
        change(&mut settings);
        settings.finish().unwrap()
    }

    fn run(&self, settings: &Settings, start: Start, interrupt_after: Option<u64>) -> Result<End> {
        let at = Cell::new(0);
        let mut said = |said: Said| {
            if let Said::Step(m, _) = said {
                at.set(m.step);
            }
        };
        let interrupted = || interrupt_after.is_some_and(|n| at.get() >= n);
        let mut watch = Watch { said: &mut said, interrupted: &interrupted };
        let begin = Begin { start, first_gradients: None, dollars_per_hour: Some(3.6) };
        train(settings, Device::host(), Precision::F32, &begin, &mut watch)
    }

    fn refusal(&self, settings: &Settings) -> String {
        self.run(settings, Start::New, None).expect_err("a refusal").to_string()
    }
}

fn adapter(out: &Path) -> Vec<u8> {
    fs::read(out.join("adapter_model.safetensors")).unwrap()
}

/// The log without the clock's numbers.
fn log(out: &Path) -> Vec<String> {
    let timeless = |mut line: serde_json::Map<String, serde_json::Value>| {
        ["seconds", "tokens_per_second", "eval_seconds"].iter().for_each(|key| _ = line.remove(*key));
        serde_json::Value::Object(line).to_string()
    };
    json_lines(&out.join("metrics.jsonl")).into_iter().map(timeless).collect()
}

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

#[test]
fn seconds_and_dollars_stand_in_run_json() {
    let bench = Bench::new();
    let settings = bench.settings(|s| (s.epochs, s.max_steps) = (None, Some(1)));
    bench.run(&settings, Start::New, None).unwrap();
    let summary: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(settings.out.join("run.json")).unwrap()).unwrap();
    let seconds = summary["seconds"].as_f64().unwrap();
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
        (s.learning_rate, s.batch_size) = (0.0, 3);
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
    let End::Done { loss: Some(loss), .. } = bench.run(&settings, Start::New, None).unwrap() else { panic!() };
    assert!(loss < 0.01, "{loss}");
    // every sample's last step, not one alone
    let lines = json_lines(&settings.out.join("metrics.jsonl"));
    assert!(lines[lines.len() - 3..].iter().all(|l| l["loss"].as_f64().unwrap() < 0.01));
    let settings = bench.settings(|s| {
        (s.overfit, s.epochs, s.max_steps, s.out) = (Some(3), None, Some(2), bench.path("short"));
    });
    let said = bench.refusal(&settings);
    assert!(said.contains("overfit check failed: after 2 steps") && said.contains("of 3 answers right"), "{said}");
}

#[test]
fn a_loss_that_is_not_finite_stops_with_step_and_sample_and_keeps_the_checkpoint() {
    let bench = Bench::new();
    let settings = bench.settings(|s| (s.learning_rate, s.max_grad_norm, s.save_every) = (1e30, 0.0, Some(1)));
    let said = bench.refusal(&settings);
    let named = said.contains("train.jsonl, line ") && said.contains("at step ") && said.contains("--learning-rate");
    assert!(named, "{said}");
    assert!(fs::read_dir(settings.out.join("checkpoints")).unwrap().count() > 0);
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
    says(&["train.jsonl, line 4", "tokens, and the model positions for 4096", "cut off"]);
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

#[test]
fn a_budget_is_kept_by_computing_twice_and_refused_with_a_table() {
    let bench = Bench::new();
    let roof = Roof { flops_per_second: 1e9, bytes_per_second: 1e9, seconds_per_operation: 0.0 };
    let plan_under = |memory: Option<u64>, roof: Roof| {
        let settings = bench.settings(|s| (s.lora_vision, s.memory) = (true, memory));
        let mut watch = Watch { said: &mut |_| (), interrupted: &|| false };
        dry_run(&settings, &mut Device::host(), Precision::F32, Some(roof), &mut watch)
    };
    let plan = |memory| plan_under(memory, roof);
    let whole = plan(None).unwrap();
    assert_eq!((whole.recompute_level, whole.steps, whole.samples, whole.largest_samples), (0, 6, 3, 2));
    assert_eq!(whole.step_bytes, whole.step_bytes_without_recompute);
    // every sample three times
    assert!(whole.tokens.is_multiple_of(3) && whole.tokens > 0);
    assert!(whole.seconds.unwrap() >= whole.flops / 1e9 && whole.flops > 0.0);
    // an operation takes a second: more than 20 of them in each of 6 steps of a model of 2 layers
    let slow = plan_under(None, Roof { seconds_per_operation: 1.0, ..roof }).unwrap();
    let operations = slow.seconds.unwrap() - whole.seconds.unwrap();
    assert!(operations > 120.0 && (operations - operations.round()).abs() < 1e-6, "{operations}");
    let least = whole.trained_bytes + whole.step_bytes_at_least.max(whole.tower_bytes);
    let tight = plan(Some(least as u64)).unwrap();
    assert!(tight.recompute_level > 0 && tight.bytes() <= least && tight.flops > whole.flops);
    let said = plan(Some(least as u64 - 1)).unwrap_err().to_string();
    for wanted in [
        format!("--memory {}: this run needs more", least - 1),
        format!("{}  what is trained", whole.trained_bytes),
        format!(
            "it would fit with --memory {least}, or --batch-size 1 --grad-accumulation 2, or a smaller --max-pixels"
        ),
    ] {
        assert!(said.contains(&wanted), "{said}\nwanted {wanted}");
    }
    // the run itself refuses before it makes anything, and keeps to a budget to the same bits
    let settings =
        |out: &str, memory| bench.settings(|s| (s.lora_vision, s.memory, s.out) = (true, memory, bench.path(out)));
    let said = bench.refusal(&settings("none", Some(least as u64 - 1)));
    assert!(said.contains("this run needs more") && !bench.path("none").exists(), "{said}");
    let (free, kept) = (settings("free", None), settings("kept", Some(least as u64)));
    bench.run(&free, Start::New, None).unwrap();
    bench.run(&kept, Start::New, None).unwrap();
    assert!(adapter(&free.out) == adapter(&kept.out));
    assert_eq!(log(&free.out), log(&kept.out));
}

/// A device with kernels holds the weights, a copy of what is trained, and intermediate results: a plan counts them.
#[test]
fn what_only_a_device_with_kernels_holds_is_planned() {
    let bench = Bench::new();
    let roof = Roof { flops_per_second: 1e9, bytes_per_second: 1e9, seconds_per_operation: 0.0 };
    let plan = |memory, device: &mut Device, precision| {
        let settings = bench.settings(|s| s.memory = memory);
        let mut watch = Watch { said: &mut |_| (), interrupted: &|| false };
        dry_run(&settings, device, precision, Some(roof), &mut watch)
    };
    let host = plan(None, &mut Device::host(), Precision::Bf16).unwrap();
    assert_eq!((host.weight_bytes, host.scratch_bytes), (0, 0));
    let emulated = || Device::emulated((9, 0)).expect("an emulator");
    let there = plan(None, &mut emulated(), Precision::Bf16).unwrap();
    // values, gradients and two moments of 4 bytes each, and what rounding up to 256 bytes adds; the copy has 2 a number
    let numbers = (there.trained_bytes - host.trained_bytes) / 2;
    assert!((numbers..numbers + 80).contains(&(host.trained_bytes / 16)) && numbers > 100, "{host:?}");
    assert!(there.weight_bytes > 0 && there.scratch_bytes > 0, "{there:?}");
    let all = there.weight_bytes + there.trained_bytes + there.scratch_bytes + there.features_bytes;
    assert_eq!(there.bytes(), all + there.step_bytes.max(there.tower_bytes));
    let said = plan(Some(1), &mut emulated(), Precision::Bf16).unwrap_err().to_string();
    assert!(said.contains(&format!("{}  intermediate results of one operation", there.scratch_bytes)), "{said}");
}

/// With a budget too small for the features of all samples, the tower runs again, to the same bits.
#[test]
fn features_that_do_not_fit_are_computed_again() {
    let bench = Bench::new();
    let plan = |memory: Option<u64>| {
        let settings = bench.settings(|s| s.memory = memory);
        let mut watch = Watch { said: &mut |_| (), interrupted: &|| false };
        let roof = Roof { flops_per_second: 1e9, bytes_per_second: 1e9, seconds_per_operation: 0.0 };
        dry_run(&settings, &mut Device::host(), Precision::F32, Some(roof), &mut watch).unwrap()
    };
    let whole = plan(None);
    assert_eq!(whole.features_kept, 3);
    let least = whole.trained_bytes + whole.step_bytes_at_least.max(whole.tower_bytes);
    let memory = (least + whole.features_bytes / 2) as u64;
    let some = plan(Some(memory));
    assert!(some.features_kept < 3 && some.bytes() as u64 <= memory && some.flops > whole.flops);
    let free = bench.settings(|s| s.out = bench.path("free"));
    let tight = bench.settings(|s| (s.out, s.memory) = (bench.path("tight"), Some(memory)));
    bench.run(&free, Start::New, None).unwrap();
    bench.run(&tight, Start::New, None).unwrap();
    assert!(adapter(&free.out) == adapter(&tight.out));
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
        assert!(said.contains("No space left on device") && said.contains(".safetensors"), "{said}");
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
