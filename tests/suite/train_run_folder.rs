//! The folder of a run: a toy run is killed at every moment that there is, and must end as the one that was not.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use vlm::base::{Precision, Result};
use vlm::train::checkpoint::{Checkpoint, Identity, Position, list};
use vlm::train::events;
use vlm::train::metrics::{self, EvalMetrics, StepMetrics};
use vlm::train::run_folder::{Opened, RunFolder, Start, failure, identity_of};
use vlm::train::settings::Settings;

const STEPS: u64 = 11;
const START_TIME: f64 = 1.7e9;

fn settings(dir: &Path) -> Settings {
    let path = |name: &str| dir.join(name);
    Settings { model: "/m".into(), data: "/d".into(), out: path("run"), epochs: Some(2), ..Settings::default() }
}

fn identity(settings: &Settings) -> Identity {
    let inputs = BTreeMap::from([("the training set".to_string(), "abc".to_string())]);
    identity_of(settings, Precision::F32, inputs).unwrap()
}

fn open(dir: &Path, start: Start) -> Result<Opened> {
    let settings = settings(dir);
    RunFolder::open(&settings, identity(&settings), start, START_TIME)
}

/// Values and moments of a pretended optimiser, whose steps depend on all that came before.
#[derive(Debug, Clone, PartialEq)]
struct Toy {
    values: Vec<f32>,
    moments: Vec<f32>,
    best: f64,
}

impl Toy {
    fn step(&mut self, k: u64) -> StepMetrics {
        for (i, (v, m)) in self.values.iter_mut().zip(&mut self.moments).enumerate() {
            *m = 0.9 * *m + (*v + i as f32 + k as f32).sin();
            *v -= 0.1 * *m;
        }
        let loss = f64::from(self.values.iter().map(|v| v * v).sum::<f32>());
        let (step, epoch) = (k, k as f64 / 4.0);
        let (lr, grad_norm) = (1e-4, loss.sqrt());
        StepMetrics {
            step,
            epoch,
            loss,
            lr,
            grad_norm,
            label_tokens: 2 * k,
            tokens: 100 + k,
            seconds: 0.5,
            tokens_per_second: 200.0,
            mfu: None,
            word_seconds: Default::default(),
        }
    }

    fn evaluation(&mut self, k: u64) -> EvalMetrics {
        let eval_accuracy = f64::from(self.values[0].abs().fract());
        self.best = self.best.max(eval_accuracy);
        let epoch = k as f64 / 4.0;
        EvalMetrics {
            step: k,
            epoch,
            eval_accuracy,
            eval_correct: k,
            eval_samples: 20,
            eval_loss: 0.5,
            eval_seconds: 1.0,
        }
    }
}

/// Opens the folder and trains to the end; `after` is called after everything that changes the folder.
fn run(dir: &Path, start: Start, mut after: impl FnMut(&Path)) -> Result<(Toy, u64, Vec<String>)> {
    let Opened { mut folder, resumed, warnings } = open(dir, start)?;
    after(dir);
    let mut toy = Toy { values: vec![1.0, -2.0, 0.5], moments: vec![0.0; 3], best: 0.0 };
    let mut done = 0;
    if let Some(checkpoint) = resumed {
        let Toy { values, moments, best } = &mut toy;
        checkpoint.read_into(&mut [("values", values), ("moments", moments)])?;
        *best = checkpoint.about.state["best"].as_f64().unwrap();
        done = checkpoint.about.position.step;
    }
    let from = done;
    for k in done + 1..=STEPS {
        let wall_time = START_TIME + k as f64;
        folder.log(&toy.step(k), wall_time)?;
        after(dir);
        if k % 4 == 0 {
            folder.log(&toy.evaluation(k), wall_time)?;
            after(dir);
        }
        if k % 3 == 0 || k == STEPS {
            let position = Position { step: k, epoch: (k - 1) / 4, in_epoch: (k - 1) % 4 };
            let arrays = vec![("values", toy.values.clone()), ("moments", toy.moments.clone())];
            folder.save(position, json!({"best": toy.best}), arrays)?;
            folder.saved()?;
            after(dir);
        }
    }
    Ok((toy, from, warnings))
}

/// All files of a folder.
type Snapshot = BTreeMap<PathBuf, Vec<u8>>;

fn snapshot(dir: &Path) -> Snapshot {
    let mut files = Snapshot::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.insert(path.strip_prefix(dir).unwrap().into(), without_place(fs::read(&path).unwrap(), dir));
            }
        }
    }
    files
}

/// The run's own place stands in what it writes: the same length of other bytes takes it, so that runs in two folders
/// compare.
fn without_place(mut bytes: Vec<u8>, dir: &Path) -> Vec<u8> {
    let place = dir.to_str().unwrap().as_bytes();
    for at in 0..bytes.len().saturating_sub(place.len() - 1) {
        if bytes[at..].starts_with(place) {
            bytes[at + 1..at + place.len()].fill(b'x');
        }
    }
    bytes
}

fn restore(files: &Snapshot) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, bytes) in files {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    dir
}

/// Every folder that a process killed between `before` and `after` can leave: files are changed in the order metrics,
/// events, then checkpoints (appearing whole, after a partial one beside), then removals.
fn between(before: &Snapshot, after: &Snapshot) -> Vec<Snapshot> {
    let mut states = Vec::new();
    let mut now = before.clone();
    let order = |path: &&PathBuf| {
        let text = path.to_str().unwrap();
        ["metrics", "events", "checkpoints", "config"].iter().position(|part| text.contains(part))
    };
    let mut changed: Vec<&PathBuf> = after.keys().filter(|path| before.get(*path) != after.get(*path)).collect();
    changed.sort_by_key(order);
    for path in changed {
        let new = &after[path];
        if path.extension().is_some_and(|e| e == "jsonl" || e == "vlm") {
            let old = before.get(path).map_or(0, Vec::len);
            for cut in [old, old + 1, (old + new.len()) / 2, new.len().saturating_sub(1)].map(|cut| cut.min(new.len()))
            {
                now.insert(path.clone(), new[..cut].to_vec());
                states.push(now.clone());
            }
        } else {
            let partial = path.with_file_name(format!(".{}.partial-1-2", path.file_name().unwrap().to_str().unwrap()));
            for cut in [0, new.len() / 2, new.len()] {
                now.insert(partial.clone(), new[..cut].to_vec());
                states.push(now.clone());
            }
            now.remove(&partial);
        }
        now.insert(path.clone(), new.clone());
        states.push(now.clone());
    }
    for path in before.keys().filter(|path| !after.contains_key(*path)) {
        now.remove(path);
        states.push(now.clone());
    }
    assert_eq!(states.last(), Some(after));
    states
}

/// The run that nobody killed: every state of its folder, and how it ended.
fn whole() -> (Vec<Snapshot>, Toy) {
    let dir = tempfile::tempdir().unwrap();
    let mut states = vec![Snapshot::new()];
    let (toy, ..) = run(dir.path(), Start::New, |dir| states.push(snapshot(dir))).unwrap();
    (states, toy)
}

/// config.toml holds the folder's own path.
fn without_config(mut files: Snapshot) -> Snapshot {
    files.remove(Path::new("run/config.toml"));
    files
}

#[test]
fn a_run_killed_at_any_moment_ends_as_if_it_had_not_been() {
    let (states, toy) = whole();
    let end = without_config(states.last().unwrap().clone());
    let mut tried = 0;
    let mut starts = BTreeMap::new();
    for pair in states.windows(2) {
        for state in between(&pair[0], &pair[1]) {
            let dir = restore(&state);
            let (got, from, warnings) = run(dir.path(), Start::Resume, |_| ()).unwrap();
            assert_eq!(got, toy);
            assert_eq!(warnings, [""; 0]);
            assert_eq!(without_config(snapshot(dir.path())), end);
            *starts.entry(from).or_insert(0) += 1;
            tried += 1;
        }
    }
    assert!(tried > 150, "{tried}");
    assert_eq!(starts.into_keys().collect::<Vec<_>>(), [0, 3, 6, 9, 11]);
    assert_eq!(list(Path::new("/nowhere")).unwrap(), []);
}

#[test]
fn two_checkpoints_stay_and_the_log_has_a_line_for_each_step_and_evaluation() {
    let (states, _) = whole();
    let dir = restore(states.last().unwrap());
    let run = dir.path().join("run");
    let steps: Vec<u64> = list(&run.join("checkpoints")).unwrap().into_iter().map(|(step, _)| step).collect();
    assert_eq!(steps, [9, 11]);
    let lines = crate::support::json_lines(&run.join("metrics.jsonl"));
    let kind = |line: &serde_json::Map<String, Value>| (line["step"].as_u64().unwrap(), line.contains_key("loss"));
    let mut want: Vec<(u64, bool)> = (1..=STEPS).map(|k| (k, true)).collect();
    want.extend([(4, false), (8, false)]);
    want.sort_by_key(|(step, is_step)| (*step, !is_step));
    assert_eq!(lines.iter().map(kind).collect::<Vec<_>>(), want);
    let read = metrics::read(&run).unwrap();
    assert_eq!(read.steps.iter().map(|s| s.step).collect::<Vec<_>>(), (1..=STEPS).collect::<Vec<_>>());
    let of = |s: &metrics::LoggedStep| (s.loss, s.lr, s.tokens, s.epoch, s.seconds);
    assert_eq!(of(&read.steps[4]), (lines[5]["loss"].as_f64().unwrap(), 1e-4, 105, 1.25, 0.5));
    let of = |e: &metrics::LoggedEvaluation| (e.step, e.correct, e.samples, e.seconds);
    assert_eq!(read.evaluations.iter().map(of).collect::<Vec<_>>(), [(4, 4, 20, 1.0), (8, 8, 20, 1.0)]);
    assert_eq!(Some(read.evaluations[0].accuracy), lines[4]["eval_accuracy"].as_f64());
    let keys: Vec<&str> = lines[0].keys().map(String::as_str).collect();
    let documented = "step epoch loss lr grad_norm label_tokens tokens seconds tokens_per_second";
    assert_eq!(keys, documented.split(' ').collect::<Vec<_>>());
    assert!(
        lines[4].keys().all(|k| ["step", "epoch"].contains(&k.as_str()) || k.starts_with("eval_")),
        "{:?}",
        lines[4]
    );
}

#[test]
fn a_damaged_checkpoint_is_left_out_with_a_warning() {
    let (states, toy) = whole();
    let last = states.last().unwrap();
    let newest = PathBuf::from("run/checkpoints/step-00000011.safetensors");
    let good = &last[&newest];
    let mut damaged: Vec<Vec<u8>> = [0, 7, 100, good.len() / 2, good.len() - 1].map(|n| good[..n].to_vec()).into();
    for at in [good.len() - 1, 20] {
        let mut flipped = good.clone();
        flipped[at] ^= 1;
        damaged.push(flipped);
    }
    for bytes in damaged {
        let mut state = last.clone();
        state.insert(newest.clone(), bytes);
        let dir = restore(&state);
        let (got, from, warnings) = run(dir.path(), Start::Resume, |_| ()).unwrap();
        assert_eq!((got, from), (toy.clone(), 9));
        assert!(warnings.len() == 1 && warnings[0].contains("step-00000011.safetensors"), "{warnings:?}");
        assert_eq!(without_config(snapshot(dir.path())), without_config(last.clone()));
    }
}

#[test]
fn without_one_whole_checkpoint_nothing_is_thrown_away() {
    let (states, _) = whole();
    let mut state = states.last().unwrap().clone();
    for (path, bytes) in &mut state {
        if path.extension().is_some_and(|e| e == "safetensors") {
            bytes.truncate(50);
        }
    }
    let dir = restore(&state);
    let error = open(dir.path(), Start::Resume).unwrap_err().to_string();
    assert!(error.contains("of its 2 checkpoints none can be read") && error.contains("--overwrite"), "{error}");
    assert_eq!(snapshot(dir.path()), state);
}

#[test]
fn checkpoints_of_a_future_that_was_left_are_removed() {
    let (states, _) = whole();
    let dir = restore(states.last().unwrap());
    let checkpoints = dir.path().join("run/checkpoints");
    fs::write(checkpoints.join("step-00000011.safetensors"), "damaged").unwrap();
    let Opened { mut folder, resumed, .. } = open(dir.path(), Start::Resume).unwrap();
    assert_eq!(resumed.unwrap().about.position, Position { step: 9, epoch: 2, in_epoch: 0 });
    folder.save(Position { step: 10, epoch: 2, in_epoch: 1 }, Value::Null, Vec::new()).unwrap();
    folder.saved().unwrap();
    assert_eq!(list(&checkpoints).unwrap().iter().map(|c| c.0).collect::<Vec<_>>(), [9, 10]);
}

#[test]
fn a_folder_that_is_not_empty_is_refused_or_replaced_as_asked() {
    let (states, toy) = whole();
    let mut state = states.last().unwrap().clone();
    state.insert("run/notes.txt".into(), b"mine".to_vec());
    state.insert("run/adapter_config.json".into(), b"old".to_vec());
    let dir = restore(&state);
    let error = open(dir.path(), Start::New).unwrap_err().to_string();
    assert!(error.contains("the folder is not empty; give --resume to go on with a run in it, --overwrite"), "{error}");
    assert_eq!(snapshot(dir.path()), state);
    let (got, from, _) = run(dir.path(), Start::Overwrite, |_| ()).unwrap();
    assert_eq!((got, from), (toy, 0));
    let mut now = without_config(snapshot(dir.path()));
    assert_eq!(now.remove(Path::new("run/notes.txt")), Some(b"mine".to_vec()));
    assert_eq!(now, without_config(states.last().unwrap().clone()));

    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("run")).unwrap();
    fs::write(dir.path().join("run/thesis.tex"), "mine").unwrap();
    let error = open(dir.path(), Start::Resume).unwrap_err().to_string();
    assert!(error.contains("holds no run to resume, and is not empty"), "{error}");
    // a run would come to it at its end
    let dir = restore(&states[2]);
    fs::create_dir(dir.path().join("run/run.json")).unwrap();
    fs::write(dir.path().join("run/run.json/thesis.tex"), "mine").unwrap();
    for start in [Start::Resume, Start::Overwrite] {
        let error = open(dir.path(), start).unwrap_err().to_string();
        assert!(error.contains("run.json: a folder stands where a run writes a file; move it away"), "{error}");
    }
    assert!(dir.path().join("run/run.json/thesis.tex").exists());
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("run"), "a file").unwrap();
    let error = open(dir.path(), Start::New).unwrap_err().to_string();
    assert!(error.starts_with("cannot use as a folder"), "{error}");
}

#[test]
fn an_open_folder_is_opened_by_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open(dir.path(), Start::New).unwrap();
    let before = snapshot(dir.path());
    for start in [Start::New, Start::Resume, Start::Overwrite] {
        let error = open(dir.path(), start).unwrap_err().to_string();
        assert!(error.starts_with("another vlm is writing into ") && error.contains("run: wait for it"), "{error}");
    }
    assert_eq!(snapshot(dir.path()), before);
    drop(opened);
    open(dir.path(), Start::Resume).unwrap();
}

#[test]
fn a_resumed_run_must_be_the_same_run() {
    let (states, _) = whole();
    let dir = restore(states.last().unwrap());
    let was = settings(dir.path());
    let resume_in = |precision: Precision, settings: &Settings, inputs: &[(&str, &str)]| {
        let inputs = inputs.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect();
        RunFolder::open(settings, identity_of(settings, precision, inputs).unwrap(), Start::Resume, 0.0).map(|_| ())
    };
    let resume = |settings: &Settings, inputs: &[(&str, &str)]| resume_in(Precision::F32, settings, inputs);
    let same = [("the training set", "abc")];
    // Where it lies and what computes it may change; what paths name is compared by content.
    let moved = Settings { memory: Some(5), model: "/elsewhere".into(), data: "/other".into(), ..was.clone() };
    resume(&moved, &same).unwrap();
    // the precision that is computed in counts, whether it was asked for or the device's own
    resume(&Settings { precision: Some(Precision::F32), ..was.clone() }, &same).unwrap();
    let error = resume_in(Precision::Bf16, &was, &same).unwrap_err().to_string();
    assert!(error.contains(r#"precision was "f32" and is "bf16"; take back"#), "{error}");
    let changed = Settings { rank: Some(8), learning_rate: 1e-3, ..was.clone() };
    let error = resume(&changed, &same).unwrap_err().to_string();
    assert!(error.contains("rank was not given and is 8; learning-rate was 0.0002 and is 0.001; take back"), "{error}");
    for (inputs, wanted) in [
        (&[("the training set", "abd")][..], "same run: the training set changed; take"),
        (&[], "there was the training set, and now is none"),
        (&[same[0], ("the validation set", "x")], "there was not the validation set, and now is"),
    ] {
        let error = resume(&was, inputs).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn logs_that_someone_cut_are_said_and_go_on_with_the_lines_that_are_whole() {
    let (states, _) = whole();
    let mut state = states.last().unwrap().clone();
    let metrics = state.get_mut(Path::new("run/metrics.jsonl")).unwrap();
    let first = metrics.iter().position(|b| *b == b'\n').unwrap() + 1;
    metrics.truncate(first + 9);
    state.remove(Path::new("run/events.out.tfevents.run.vlm"));
    let dir = restore(&state);
    let Opened { mut folder, warnings, .. } = open(dir.path(), Start::Resume).unwrap();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("metrics.jsonl has") && warnings[0].contains("someone cut it"), "{warnings:?}");
    assert!(warnings[1].contains("it is begun again"), "{warnings:?}");
    let mut toy = Toy { values: vec![1.0], moments: vec![0.0], best: 0.0 };
    folder.log(&toy.step(12), 1.0).unwrap();
    let text = fs::read_to_string(folder.dir().join("metrics.jsonl")).unwrap();
    let steps: Vec<u64> = metrics::read(folder.dir()).unwrap().steps.iter().map(|s| s.step).collect();
    assert!(steps == [1, 12] && text.lines().count() == 2, "{text}");
    // one byte is told as one byte
    let mut state = states.last().unwrap().clone();
    let metrics = state.get_mut(Path::new("run/metrics.jsonl")).unwrap();
    let n = metrics.len();
    metrics.truncate(n - 1);
    let dir = restore(&state);
    let Opened { folder, warnings, .. } = open(dir.path(), Start::Resume).unwrap();
    let wanted = format!("metrics.jsonl has {} bytes and had {n} when", n - 1);
    assert!(warnings.len() == 1 && warnings[0].starts_with(&wanted), "{warnings:?}");
    assert_eq!(metrics::read(folder.dir()).unwrap().steps.len() as u64, STEPS - 1);
    // All gone is no line to keep.
    let mut state = states.last().unwrap().clone();
    state.insert("run/metrics.jsonl".into(), Vec::new());
    let dir = restore(&state);
    let Opened { warnings, .. } = open(dir.path(), Start::Resume).unwrap();
    assert!(warnings.len() == 1 && warnings[0].contains("metrics.jsonl has 0 bytes"), "{warnings:?}");
}

#[test]
fn arrays_of_another_run_are_refused() {
    let (states, _) = whole();
    let dir = restore(states.last().unwrap());
    let checkpoint = open(dir.path(), Start::Resume).unwrap().resumed.unwrap();
    let refused = |arrays: &mut [(&str, &mut [f32])], wanted: &str| {
        let error = checkpoint.read_into(arrays).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    };
    let [mut a, mut b, mut c] = [[0.0; 3]; 3];
    refused(&mut [("values", &mut a)], "tensor moments: the run has no array of this name");
    refused(
        &mut [("values", &mut a), ("moments", &mut b), ("x", &mut c)],
        "tensor x: the run needs it, and it is missing",
    );
    refused(&mut [("values", &mut a[1..]), ("moments", &mut b)], "tensor values: has 3 numbers, the run 2");
}

#[test]
fn files_that_are_no_checkpoint_are_named() {
    let (states, _) = whole();
    let good = &states.last().unwrap()[Path::new("run/checkpoints/step-00000011.safetensors")];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.safetensors");
    let refused = |from: &str, to: &str, wanted: &str| {
        let at = good.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
        let mut bytes = good.clone();
        bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
        fs::write(&path, bytes).unwrap();
        let error = Checkpoint::open(&path).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    };
    refused("vlm_run", "vlm_ran", "is no checkpoint of a run");
    refused(r#"\"version\":5"#, r#"\"version\":4"#, "its version is 4, this program reads 5; resume with the one");
    refused(r#"\"version\""#, r#"\"varsion\""#, "its version is none");
    refused(r#"\"position\""#, r#"\"pasition\""#, "its metadata is wrong: missing field `position`");
    refused(r#"\"moments\":"#, r#"\"momenta\":"#, "tensor momenta: it is missing");
    refused(r#""F32""#, r#""I32""#, "its numbers are not those that were written");
}

/// What tensorboard 2.21.0 (protobuf 7.36.2) writes for the same two events through its `RecordWriter`.
#[test]
fn event_files_are_byte_for_byte_those_of_tensorboard() {
    let want = "1800000000000000a37f4b220900001040fc54d9411a0d627261696e2e4576656e743a32338d2fe93800000000000000a3797d57090000\
                6040fc54d94110ac022a2a0a0b0a046c6f7373150000a03f0a090a026c721517b751390a100a09677261645f6e6f726d150000784176e5\
                342d";
    let scalars = [("loss", 1.25), ("lr", 2e-4), ("grad_norm", 15.5)];
    let got = [events::version(1_700_000_000.25), events::scalars(1_700_000_001.5, 300, &scalars)].concat();
    assert_eq!(got.iter().map(|b| format!("{b:02x}")).collect::<String>(), want);
}

/// A checkpoint is written beside the steps that follow: what went wrong with it is said at the next, or at the end.
#[test]
fn a_checkpoint_that_cannot_be_written_is_said_and_one_that_was_begun_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let Opened { mut folder, .. } = open(dir.path(), Start::New).unwrap();
    let position = |step| Position { step, epoch: 0, in_epoch: step - 1 };
    let arrays = || vec![("values", vec![0.5; 1 << 16])];
    let checkpoints = dir.path().join("run/checkpoints");
    let steps = |dir: &Path| list(dir).unwrap().iter().map(|c| c.0).collect::<Vec<_>>();
    // dropped without a wait
    folder.save(position(1), Value::Null, arrays()).unwrap();
    drop(folder);
    assert_eq!(steps(&checkpoints), [1]);
    let Opened { mut folder, .. } = open(dir.path(), Start::Resume).unwrap();
    fs::rename(&checkpoints, dir.path().join("elsewhere")).unwrap();
    fs::write(&checkpoints, "no folder").unwrap();
    folder.save(position(2), Value::Null, arrays()).unwrap();
    let said = folder.save(position(3), Value::Null, arrays()).unwrap_err().to_string();
    assert!(said.contains("step-00000002.safetensors"), "{said}");
    fs::remove_file(&checkpoints).unwrap();
    fs::rename(dir.path().join("elsewhere"), &checkpoints).unwrap();
    folder.save(position(3), Value::Null, arrays()).unwrap();
    folder.saved().unwrap();
    assert_eq!(steps(&checkpoints), [1, 3]);
}

/// A run that goes on may come to another end than the one that it failed by; what it took stays.
#[test]
fn a_failure_is_forgotten_when_the_run_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path(), Start::New).unwrap());
    let result = dir.path().join("run/run.json");
    fs::write(&result, r#"{"steps": 3, "failed": "the disk is full"}"#).unwrap();
    assert_eq!(failure(&dir.path().join("run")).as_deref(), Some("the disk is full"));
    drop(open(dir.path(), Start::Resume).unwrap());
    assert!(failure(&dir.path().join("run")).is_none());
    let left: serde_json::Value = serde_json::from_str(&fs::read_to_string(&result).unwrap()).unwrap();
    assert_eq!(left, serde_json::json!({"steps": 3}));
    // where it does not go on, it stays what it was
    let (states, _) = whole();
    for (path, bytes) in states.last().unwrap() {
        fs::create_dir_all(dir.path().join(path).parent().unwrap()).unwrap();
        fs::write(dir.path().join(path), bytes).unwrap();
    }
    fs::write(&result, r#"{"steps": 11, "failed": "the disk is full"}"#).unwrap();
    let changed = Settings { learning_rate: 7.0, ..settings(dir.path()) };
    let said = RunFolder::open(&changed, identity(&changed), Start::Resume, 0.0).unwrap_err().to_string();
    assert!(said.contains("the run cannot go on"), "{said}");
    assert_eq!(failure(&dir.path().join("run")).as_deref(), Some("the disk is full"));
}
