//! Sweeps: what a file means, trials that are done once, runs cut short, sets that may not choose.

use crate::data_split::picture;
use serde_json::{Map, Value, json};
use std::cell::{Cell, RefCell};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use vlm::base::{Precision, Result};
use vlm::data::image::to_png;
use vlm::device::Device;
use vlm::train::session::Said;
use vlm::train::sweep::board::{Outcome, Row, sort};
use vlm::train::sweep::space::{self, Sweep};
use vlm::train::sweep::{Host, run};

/// A folder with three sets of two photos each.
fn sets() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (s, set) in ["train", "validation", "test"].iter().enumerate() {
        let mut lines = String::new();
        for (i, label) in ["dent", "no"].iter().enumerate() {
            let name = format!("{set}{i}.png");
            fs::write(dir.path().join(&name), to_png(&picture(2 * s + i, 40, 30)).unwrap()).unwrap();
            lines += &(json!({"image": name, "label": label}).to_string() + "\n");
        }
        fs::write(dir.path().join(format!("{set}.jsonl")), lines).unwrap();
    }
    dir
}

fn write(dir: &Path, head: &str, train: &str, vary: &str) -> PathBuf {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/cases/single");
    let text = format!(
        "out = \"runs\"\n{head}\n[train]\nmodel = {model:?}\ndata = \"train.jsonl\"\nprompt = \"Which?\"\nbatch-size = 1\n\
         max-steps = 2\ndevice = \"cpu\"\n{train}\n[vary]\n{vary}\n"
    );
    let file = dir.join("sweep.toml");
    fs::write(&file, text).unwrap();
    file
}

const EVAL: &str = "eval-data = \"validation.jsonl\"";

fn read(dir: &Path, head: &str, vary: &str) -> Sweep {
    space::read(&write(dir, head, EVAL, vary), None).unwrap()
}

#[test]
fn a_grid_is_every_combination() {
    let dir = sets();
    let sweep = read(dir.path(), "search = \"grid\"", "rank = [4, 8]\nlearning-rate = [1e-3, 2e-3, 3e-3]");
    let of = |t: &space::Trial| (t.number, t.settings.rank.unwrap(), t.settings.learning_rate);
    let got: Vec<_> = sweep.trials.iter().map(of).collect();
    let want = [(1, 4, 1e-3), (2, 8, 1e-3), (3, 4, 2e-3), (4, 8, 2e-3), (5, 4, 3e-3), (6, 8, 3e-3)];
    let mut sorted = got.clone();
    sorted.sort_by(|a, b| a.2.total_cmp(&b.2).then(a.1.cmp(&b.1)));
    assert_eq!(sorted.iter().map(|t| (t.1, t.2)).collect::<Vec<_>>(), want.map(|t| (t.1, t.2)));
    assert_eq!(got.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    assert_eq!(sweep.trials[2].settings.out, dir.path().join("runs/trial-003"));
    assert_eq!(sweep.trials[0].settings.data, dir.path().join("train.jsonl"));
    assert_eq!(sweep.trials[0].varied.len(), 2);
    // in the flags' forms too
    let spelt = "memory = [\"24G\", 1000]\nbetas = [\"0.9,0.95\", [0.9, 0.95]]";
    let sweep = read(dir.path(), "search = \"grid\"", spelt);
    let got = sweep.trials.iter().map(|t| (t.settings.memory, t.settings.betas));
    let want = [24 << 30, 24 << 30, 1000, 1000].map(|bytes| (Some(bytes), [0.9, 0.95]));
    let mut got: Vec<_> = got.collect();
    got.sort_by_key(|(memory, _)| std::cmp::Reverse(*memory));
    assert_eq!(got, want);
}

#[test]
fn random_trials_follow_from_the_seed_and_more_leave_the_first() {
    let dir = sets();
    let vary =
        "rank = { from = 2, to = 5 }\nlearning-rate = { from = 1e-5, to = 1e-1, scale = \"log\" }\nalpha = [8, 16]";
    let of = |head: &str| -> Vec<(usize, f64, f64)> {
        let sweep = read(dir.path(), head, vary);
        let one = |t: &space::Trial| (t.settings.rank.unwrap(), t.settings.learning_rate, t.settings.alpha.unwrap());
        sweep.trials.iter().map(one).collect()
    };
    let few = of("search = \"random\"\ntrials = 5\nseed = 1");
    let many = of("search = \"random\"\ntrials = 200\nseed = 1");
    assert_eq!(few, many[..5]);
    assert_ne!(few, of("search = \"random\"\ntrials = 5\nseed = 2"));
    for rank in 2..=5 {
        // 200 draws of four values: 50 each, standard deviation 6
        let n = many.iter().filter(|t| t.0 == rank).count();
        assert!((25..=75).contains(&n), "{rank}: {n}");
    }
    for decade in -5..-1 {
        let n = many.iter().filter(|t| t.1.log10().floor() as i32 == decade).count();
        assert!((25..=75).contains(&n), "{decade}: {n}");
    }
    assert!(many.iter().all(|t| t.2 == 8.0 || t.2 == 16.0));
}

#[test]
fn files_that_mean_no_sweep_are_refused() {
    let dir = sets();
    let grid = "search = \"grid\"";
    let random = "search = \"random\"\ntrials = 3";
    let refused = |head: &str, train: &str, vary: &str, wanted: &str| {
        let error = space::read(&write(dir.path(), head, train, vary), None).unwrap_err().to_string();
        assert!(error.contains("sweep.toml") && error.contains(wanted), "{error}\nand not {wanted}");
    };
    refused(grid, "", "rank = [4]", "[train] has no eval-data");
    refused(grid, EVAL, "", "[vary] names no setting");
    refused(grid, EVAL, "rank = []", "vary.rank: the list is empty");
    refused(grid, EVAL, "rank = 4", "vary.rank: wanted a list of values");
    refused(grid, EVAL, "rank = { from = 1, to = 2 }", "a range is for search = \"random\"");
    refused(grid, EVAL, "rang = [4]", "rang");
    refused(
        grid,
        EVAL,
        "memory = [\"24Q\"]",
        "trial 1: the settings do not fit together: wanted bytes, or a number with",
    );
    refused(grid, EVAL, "memory = [\"24Q\"]", "in `memory`");
    refused(grid, EVAL, "rank = [0]", "trial 1: --rank 0: wanted 1 or more");
    refused(grid, EVAL, "batch-size = [1]", "batch-size is in [train] and in [vary]");
    refused(grid, EVAL, "eval-data = [\"test.jsonl\"]", "[vary] has eval-data");
    refused(grid, &format!("{EVAL}\nout = \"x\""), "rank = [4]", "[train] has out");
    refused(&format!("{grid}\ntrials = 3"), EVAL, "rank = [4]", "trials is for search");
    refused("search = \"random\"", EVAL, "rank = [4]", "needs trials = N");
    refused(random, EVAL, "rank = { from = 5, to = 2 }", "vary.rank: wanted from below to");
    refused(random, EVAL, "alpha = { from = 0.0, to = 2.0, scale = \"log\" }", "above 0 with scale");
    refused(random, EVAL, "alpha = { from = 1, upto = 2 }", "vary.alpha: ");
    refused("search = \"best\"", EVAL, "rank = [4]", "line 2: ");
    let many = format!("rank = [{}]\nalpha = [{}]", "1,".repeat(200), "1,".repeat(200));
    refused(grid, EVAL, &many, "more than 10000 combinations");
    let missing = space::read(&dir.path().join("nowhere.toml"), None).unwrap_err().to_string();
    assert!(missing.contains("cannot read") && missing.contains("nowhere.toml"), "{missing}");
}

/// What a sweep did.
#[derive(Default)]
struct Seen {
    begun: RefCell<Vec<usize>>,
    steps: Cell<usize>,
    checked: Cell<usize>,
}

fn sweep(sweep: &Sweep, seen: &Seen, stop_after: usize) -> Result<Option<Vec<Row>>> {
    let mut begins = |number: usize, _: usize, _: &Map<String, Value>| seen.begun.borrow_mut().push(number);
    let mut said = |said: Said| {
        let count = match said {
            Said::Step(..) => &seen.steps,
            Said::Checked(n, all) if n == all => &seen.checked,
            _ => return,
        };
        count.set(count.get() + 1);
    };
    let mut host = Host {
        open: &|_, _| Ok((Device::host(), Precision::F32)),
        begins: &mut begins,
        said: &mut said,
        done: &mut |_| (),
        interrupted: &|| seen.steps.get() >= stop_after,
    };
    run(sweep, &mut host)
}

/// No other settings would mend it: the sweep ends, and once the photo is whole it begins.
#[test]
fn a_damaged_photo_is_no_trial_that_failed() {
    let dir = sets();
    let photo = dir.path().join("train1.png");
    let whole = fs::read(&photo).unwrap();
    fs::write(&photo, &whole[..whole.len() / 2]).unwrap();
    let of = || read(dir.path(), "search = \"grid\"", "rank = [2, 4]");
    let said = sweep(&of(), &Seen::default(), usize::MAX).unwrap_err().to_string();
    assert!(said.contains("train.jsonl, line 2: ") && said.contains("train1.png"), "{said}");
    fs::write(&photo, &whole).unwrap();
    let rows = sweep(&of(), &Seen::default(), usize::MAX).unwrap().unwrap();
    assert_eq!(rows.iter().map(result).map(|r| r.3).collect::<Vec<_>>(), [2, 2]);
}

/// What a trial's result says, the clock apart.
fn result(row: &Row) -> (usize, u64, u64, u64, String) {
    match &row.outcome {
        Outcome::Done { correct, step, steps, loss, .. } => (row.trial, *correct, *step, *steps, format!("{loss:?}")),
        Outcome::Failed { reason, .. } => panic!("{reason}"),
    }
}

#[test]
fn trials_are_done_once_and_go_on_where_they_stopped() {
    let dir = sets();
    let grid = "search = \"grid\"\ntest = \"test.jsonl\"";
    let file = |vary: &str| read(dir.path(), grid, vary);
    let whole = file("learning-rate = [1e-3, 2e-2]");
    let seen = Seen::default();
    let rows = sweep(&whole, &seen, usize::MAX).unwrap().unwrap();
    assert_eq!((seen.begun.borrow().clone(), seen.steps.get()), (vec![1, 2], 4));
    // of the training set and of the validation set, for both trials
    assert_eq!(seen.checked.get(), 2, "sets whose photos were decoded before a trial");
    let results: Vec<_> = rows.iter().map(result).collect();
    assert!(results[0].1 >= results[1].1);
    let board: Value =
        serde_json::from_str(&fs::read_to_string(dir.path().join("runs/leaderboard.json")).unwrap()).unwrap();
    assert_eq!(board.as_array().unwrap().len(), 2);
    assert_eq!(board[0]["status"], "done");
    let csv = fs::read_to_string(dir.path().join("runs/leaderboard.csv")).unwrap();
    assert!(
        csv.starts_with("trial,status,accuracy,low,high,correct,samples,step,eval_loss,loss,seconds,learning-rate\n"),
        "{csv}"
    );
    assert_eq!(csv.lines().count(), 3);
    assert!(dir.path().join("runs/trial-001/adapter_model.safetensors").exists());

    // again: nothing is trained, the same board
    let seen = Seen::default();
    let again = sweep(&whole, &seen, usize::MAX).unwrap().unwrap();
    assert_eq!((seen.begun.borrow().len(), seen.steps.get()), (0, 0));
    assert_eq!(again, rows);
    // more trials after the first are fine
    let more = file("learning-rate = [1e-3, 2e-2, 3e-3]");
    let seen = Seen::default();
    assert_eq!(sweep(&more, &seen, usize::MAX).unwrap().unwrap().len(), 3);
    assert_eq!(*seen.begun.borrow(), [3]);
    // others are not
    let error = sweep(&file("learning-rate = [1e-3, 5e-2]"), &Seen::default(), usize::MAX).unwrap_err().to_string();
    assert!(error.contains("trial 2 was another: learning-rate is 0.05 now"), "{error}");

    // cut short in the second trial, elsewhere: goes on there, to the same results
    let there = Some(dir.path().join("cut"));
    let cut_file = || {
        write(dir.path(), grid, EVAL, "learning-rate = [1e-3, 2e-2]");
        space::read(&dir.path().join("sweep.toml"), there.as_deref()).unwrap()
    };
    let seen = Seen::default();
    assert!(sweep(&cut_file(), &seen, 3).unwrap().is_none());
    assert_eq!((seen.begun.borrow().clone(), seen.steps.get()), (vec![1, 2], 3));
    let seen = Seen::default();
    let rows = sweep(&cut_file(), &seen, usize::MAX).unwrap().unwrap();
    assert_eq!((seen.begun.borrow().clone(), seen.steps.get()), (vec![2], 1));
    assert_eq!(rows.iter().map(result).collect::<Vec<_>>(), results);

    // the training set has changed since
    fs::write(dir.path().join("train.jsonl"), fs::read_to_string(dir.path().join("train.jsonl")).unwrap() + "\n")
        .unwrap();
    let error = sweep(&cut_file(), &Seen::default(), usize::MAX).unwrap_err().to_string();
    assert!(error.contains("the training set") && error.contains("has changed"), "{error}");
}

#[test]
fn a_set_that_is_learnt_or_reported_does_not_choose() {
    let dir = sets();
    let refused = |head: &str, eval: &str, wanted: &[&str]| {
        let file = write(dir.path(), head, &format!("eval-data = {eval:?}"), "rank = [4]");
        let error =
            space::read(&file, None).and_then(|s| sweep(&s, &Seen::default(), usize::MAX)).unwrap_err().to_string();
        assert!(wanted.iter().all(|w| error.contains(w)), "{error}\nand not {wanted:?}");
        assert!(!dir.path().join("runs").exists());
    };
    let (grid, with_test) = ("search = \"grid\"", "search = \"grid\"\ntest = \"test.jsonl\"");
    refused(grid, "train.jsonl", &["--eval-data is the training data"]);
    refused(with_test, "test.jsonl", &["test.jsonl: 2 of its samples have photos or text in common with the test set"]);
    fs::copy(dir.path().join("test.jsonl"), dir.path().join("other.jsonl")).unwrap();
    refused(
        with_test,
        "other.jsonl",
        &["other.jsonl: 2 of its samples have photos or text in common with the test set"],
    );
    // the same photo under another name
    fs::copy(dir.path().join("train1.png"), dir.path().join("validation1.png")).unwrap();
    refused(
        grid,
        "validation.jsonl",
        &[
            "validation.jsonl: 1 of its samples has a photo or its text in common with the training set",
            "vlm data dedupe",
        ],
    );
    // one photo of two
    let two = json!({"images": ["validation0.png", "train1.png"], "label": "no",
        "messages": [{"role": "user", "content": "<image><image>Which?"}]});
    fs::write(dir.path().join("pair.jsonl"), two.to_string()).unwrap();
    refused(
        grid,
        "pair.jsonl",
        &["pair.jsonl: 1 of its samples has a photo or its text in common with the training set"],
    );
    // the set under another path
    refused(grid, "./train.jsonl", &["--eval-data is the training data"]);
}

#[test]
fn a_trial_that_fails_leaves_the_others() {
    let dir = sets();
    let sweep_file = read(dir.path(), "search = \"grid\"", "memory = [1000000000, 1]");
    let rows = sweep(&sweep_file, &Seen::default(), usize::MAX).unwrap().unwrap();
    let Outcome::Failed { reason, .. } = &rows[1].outcome else { panic!("{rows:?}") };
    assert!(rows[1].trial == 2 && reason.contains("--memory"), "{reason}");
    assert!(matches!(rows[0].outcome, Outcome::Done { .. }));
    let seen = Seen::default();
    assert_eq!(sweep(&sweep_file, &seen, usize::MAX).unwrap().unwrap(), rows);
    assert!(seen.begun.borrow().is_empty(), "what failed is not tried again");
}

/// What no other settings would mend is no trial's failure, and none is kept of it.
#[test]
fn a_set_that_nothing_can_be_learnt_of_ends_the_sweep() {
    let dir = sets();
    fs::write(dir.path().join("train.jsonl"), r#"{"messages": [{"role": "user", "content": "Hm?"}]}"#).unwrap();
    let sweep_file = read(dir.path(), "search = \"grid\"", "rank = [2, 4]");
    let said = sweep(&sweep_file, &Seen::default(), usize::MAX).unwrap_err().to_string();
    assert!(said.contains("train.jsonl, line 1: ") && said.contains("no token to learn"), "{said}");
    assert!(!dir.path().join("runs/trial-001/trial.json").exists());
    assert!(!dir.path().join("runs/leaderboard.json").exists());
}

#[test]
fn a_trial_whose_training_runs_away_has_failed() {
    let dir = sets();
    let file =
        write(dir.path(), "search = \"grid\"", &format!("{EVAL}\nmax-grad-norm = 0"), "learning-rate = [1e30, 1e-3]");
    fs::write(&file, fs::read_to_string(&file).unwrap().replace("max-steps = 2", "max-steps = 6")).unwrap();
    let rows = sweep(&space::read(&file, None).unwrap(), &Seen::default(), usize::MAX).unwrap().unwrap();
    assert_eq!(rows.iter().map(|row| row.trial).collect::<Vec<_>>(), [2, 1]);
    let Outcome::Failed { reason, .. } = &rows[1].outcome else { panic!("{rows:?}") };
    assert!(reason.contains("the loss of this sample is ") && reason.contains("lower --learning-rate"), "{reason}");
}

/// A signal while the photos are checked ends the sweep before a trial has a folder.
#[test]
fn a_sweep_is_stopped_before_its_first_step() {
    let dir = sets();
    let sweep_file = read(dir.path(), "search = \"grid\"", "rank = [2, 4]");
    let polls = Cell::new(0);
    let mut host = Host {
        open: &|_, _| Ok((Device::host(), Precision::F32)),
        begins: &mut |_, _, _| (),
        said: &mut |_| (),
        done: &mut |_| (),
        // asked before the trial, and then within
        interrupted: &|| polls.replace(polls.get() + 1) > 0,
    };
    assert!(run(&sweep_file, &mut host).unwrap().is_none());
    assert!(!dir.path().join("runs/trial-001").exists());
}

#[test]
fn boards_are_sorted_by_accuracy_then_loss_on_the_validation_set() {
    let row = |trial: usize, correct: Option<u64>, loss: Option<f64>| Row {
        trial,
        folder: PathBuf::new(),
        varied: Map::new(),
        outcome: match correct {
            Some(correct) => Outcome::Done {
                accuracy: correct as f64 / 10.0,
                interval: [0.0, 1.0],
                correct,
                samples: 10,
                step: 1,
                eval_loss: loss,
                steps: 1,
                // what was learnt by heart decides nothing
                loss: Some(-(trial as f64)),
                seconds: 0.0,
            },
            None => Outcome::Failed { reason: "x".into(), out_of_memory: false },
        },
    };
    let mut rows = vec![
        row(1, None, None),
        row(2, Some(5), Some(0.1)),
        row(3, Some(7), Some(0.3)),
        row(4, Some(7), Some(0.2)),
        row(5, Some(7), Some(0.2)),
        row(6, Some(7), None),
    ];
    sort(&mut rows);
    assert_eq!(rows.iter().map(|r| r.trial).collect::<Vec<_>>(), [4, 5, 3, 6, 2, 1]);
}

#[test]
fn the_program_prints_the_board() {
    let dir = sets();
    let file = write(dir.path(), "search = \"grid\"", EVAL, "learning-rate = [1e-3, 2e-2]");
    let run = |arguments: &[&str]| {
        let done = Command::new(env!("CARGO_BIN_EXE_vlm"))
            .args(["sweep", "--config"])
            .arg(&file)
            .args(arguments)
            .output()
            .unwrap();
        (done.status.code(), String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr).unwrap())
    };
    let (code, said, stderr) = run(&[]);
    assert_eq!(code, Some(0), "{stderr}");
    for wanted in ["trial  accuracy", "learning-rate", "best: ", "leaderboard.csv in ", "may be chance"] {
        assert!(said.contains(wanted), "{wanted}\n{said}");
    }
    assert!(stderr.contains("trial 2 of 2: learning-rate 0.02"), "{stderr}");
    let (_, said, _) = run(&["--json"]);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["trials"].as_array().unwrap().len(), 2);
    // what a trial leaves out is said, as training says it
    let set = dir.path().join("train.jsonl");
    fs::write(&set, fs::read_to_string(&set).unwrap() + "{\n").unwrap();
    write(dir.path(), "search = \"grid\"", &format!("{EVAL}\nskip-bad = true"), "learning-rate = [1e-3]");
    let skips = dir.path().join("skips");
    let (code, _, stderr) = run(&["--out", skips.to_str().unwrap()]);
    assert!(code == Some(0) && stderr.contains("left out: ") && stderr.contains("line 3: not valid JSON"), "{stderr}");
    fs::write(&set, fs::read_to_string(&set).unwrap().trim_end_matches("{\n")).unwrap();
    // nothing was found where every trial failed
    write(dir.path(), "search = \"grid\"", EVAL, "memory = [1, 2]");
    let none = dir.path().join("none");
    for json in [&["--json"][..], &[]] {
        let (code, said, stderr) = run(&[&["--out", none.to_str().unwrap()], json].concat());
        assert_eq!(code, Some(1), "{stderr}");
        assert!(stderr.contains("vlm: every trial failed; trial 1: --memory 1: "), "{stderr}");
        assert!(said.contains("failed"), "{said}");
    }
}
