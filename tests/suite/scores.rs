//! Scores and tests against scikit-learn and statsmodels (tests/golden/scores.json says which; tools/reference_scores.py
//! wrote it), the comparison of two evaluations, the folder that they are read from.

use crate::support::close::assert_within;
use crate::support::tiny;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use vlm::classify::compare::{Group, OnDifferent, compare};
use vlm::classify::evaluate::Classes;
use vlm::classify::folder::{Folder, Start, write_records};
use vlm::classify::metrics::{Metrics, metrics};
use vlm::classify::records::{Evaluation, Record};
use vlm::classify::statistics::mcnemar_exact;
use vlm::data::dataset::{OnBad, read_dataset};
use vlm::io::json::write as write_json;

/// Sums of at most 200 numbers in another order.
const BOUND: f64 = 1e-13;

fn golden() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/scores.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn cases(kind: &str) -> Vec<Value> {
    golden()[kind].as_array().unwrap().clone()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap_or(f64::INFINITY)).collect()
}

fn names(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|x| x.as_str().unwrap().into()).collect()
}

/// Each class's value; what has none is infinite, here and in [`numbers`].
fn per_class(
    m: &Metrics,
    classes: &[String],
    of: impl Fn(&vlm::classify::metrics::ClassScore) -> Option<f64>,
) -> Vec<f64> {
    classes.iter().map(|c| of(&m.per_class[c]).unwrap_or(f64::INFINITY)).collect()
}

fn close(what: &str, got: &[f64], want: &Value) {
    assert_within(what, got, &numbers(want), |_| BOUND);
}

#[test]
fn one_label_a_photo_as_scikit_learn() {
    for (i, case) in cases("single").iter().enumerate() {
        let classes = names(&case["classes"]);
        let pairs = numbers(&case["truth"]).into_iter().zip(numbers(&case["said"]));
        let records: Vec<Record> = pairs
            .map(|(t, s)| Record {
                label: classes[t as usize].clone(),
                prediction: classes[s as usize].clone(),
                right: t == s,
                ..Record::default()
            })
            .collect();
        let m = metrics(&classes, &records);
        let what = |name: &str| format!("set {i}, {name} ");
        close(&what("accuracy"), &[m.accuracy], &Value::from(vec![case["accuracy"].clone()]));
        close(&what("interval"), &m.interval, &case["interval"]);
        close(&what("precision"), &per_class(&m, &classes, |c| c.precision), &case["precision"]);
        close(&what("recall"), &per_class(&m, &classes, |c| c.recall), &case["recall"]);
        close(&what("f1"), &per_class(&m, &classes, |c| c.f1), &case["f1"]);
        close(&what("support"), &per_class(&m, &classes, |c| Some(c.n as f64)), &case["support"]);
        close(&what("macro"), &[m.macro_precision, m.macro_recall, m.macro_f1], &case["macro"]);
        let majority = Value::from(vec![case["majority_macro_f1"].clone()]);
        close(&what("majority"), &[m.baselines.majority.macro_f1], &majority);
        let confusion = m.confusion.unwrap();
        assert_eq!(confusion.labels, classes);
        assert_eq!(serde_json::json!(confusion.counts), case["confusion"], "set {i}");
    }
}

#[test]
fn several_labels_a_photo_as_scikit_learn() {
    for (i, case) in cases("several").iter().enumerate() {
        let classes = names(&case["classes"]);
        let rows = |key: &str| -> Vec<Vec<f64>> { case[key].as_array().unwrap().iter().map(numbers).collect() };
        let named = |row: &[f64]| -> Vec<String> {
            classes.iter().zip(row).filter(|(_, is)| **is > 0.0).map(|(c, _)| c.clone()).collect()
        };
        let records: Vec<Record> = rows("truth")
            .iter()
            .zip(rows("said"))
            .zip(rows("score"))
            .map(|((truth, said), score)| Record {
                labels: Some(named(truth)),
                predictions: Some(named(&said)),
                right: *truth == said,
                probabilities: Some(classes.iter().cloned().zip(score).collect()),
                ..Record::default()
            })
            .collect();
        let m = metrics(&classes, &records);
        let what = |name: &str| format!("set {i}, {name} ");
        let one = |key: &str| Value::from(vec![case[key].clone()]);
        close(&what("accuracy"), &[m.accuracy], &one("accuracy"));
        close(&what("precision"), &per_class(&m, &classes, |c| c.precision), &case["precision"]);
        close(&what("recall"), &per_class(&m, &classes, |c| c.recall), &case["recall"]);
        close(&what("f1"), &per_class(&m, &classes, |c| c.f1), &case["f1"]);
        close(&what("support"), &per_class(&m, &classes, |c| Some(c.n as f64)), &case["support"]);
        close(&what("AP"), &per_class(&m, &classes, |c| c.average_precision), &case["average_precision"]);
        close(&what("mAP"), &[m.mean_average_precision.unwrap()], &one("mean_average_precision"));
        close(&what("micro"), &[m.micro_f1.unwrap()], &one("micro_f1"));
        close(&what("macro"), &[m.macro_f1], &one("macro_f1"));
        close(&what("constant"), &[m.baselines.random.mean_average_precision.unwrap()], &one("constant_map"));
        assert_eq!(m.confusion, None);
    }
}

/// Whatever an answer is right by, the rows and the matrix count by too: case, outer spaces and a final full stop do not
/// matter.
#[test]
fn labels_that_are_compared_as_one_are_counted_as_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("set.jsonl");
    let line = |label: &str| {
        let turns =
            [("user", "Which?"), ("assistant", label)].map(|(r, t)| serde_json::json!({"role": r, "content": t}));
        serde_json::json!({"messages": turns}).to_string()
    };
    fs::write(&file, ["a", "A", " a", "a.", "b", "B", "a", "b"].map(line).join("\n")).unwrap();
    let samples = read_dataset(&file, None, OnBad::Fail).unwrap().samples;
    let classes = Classes::of(&file, &samples, false).unwrap();
    assert_eq!(classes.names, ["a", "b"]);
    for (answer, correct, right) in [("A.", 5, [5, 0]), (" b", 3, [0, 3]), ("c", 0, [0, 0])] {
        let records: Vec<Record> =
            samples.iter().map(|s| classes.judge(s, answer.into())).collect::<Result<_, _>>().unwrap();
        let m = metrics(&classes.names, &records);
        let rows: Vec<usize> = classes.names.iter().map(|c| m.per_class[c].correct).collect();
        assert_eq!((m.correct, rows), (correct, right.to_vec()), "{answer}");
        let confusion = m.confusion.unwrap();
        assert_eq!([confusion.counts[0][0], confusion.counts[1][1]], right, "{answer}");
        assert_eq!(confusion.labels[..2], classes.names);
        assert_eq!(m.per_class.len(), 2);
    }
}

/// A model writes composed Unicode, and whoever serves one elsewhere what he likes; labels of a Mac's folders are decomposed.
#[test]
fn an_answer_is_right_in_any_form_of_unicode() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("set.jsonl");
    let turns = [("user", "Which?"), ("assistant", "gru\u{308}n")];
    let turns = turns.map(|(role, text)| serde_json::json!({"role": role, "content": text}));
    fs::write(&file, serde_json::json!({"messages": turns}).to_string()).unwrap();
    let samples = read_dataset(&file, None, OnBad::Fail).unwrap().samples;
    let classes = Classes::of(&file, &samples, false).unwrap();
    assert_eq!(classes.names, ["gr\u{fc}n"]);
    for answer in ["gr\u{fc}n", "Gru\u{308}n."] {
        let record = classes.judge(&samples[0], answer.into()).unwrap();
        assert!(record.right && record.label == "gr\u{fc}n" && record.prediction == record.label, "{record:?}");
    }
}

#[test]
fn mcnemar_as_statsmodels() {
    for case in cases("mcnemar") {
        let count = |key: &str| case[key].as_u64().unwrap() as usize;
        let (got, want) = (mcnemar_exact(count("fixed"), count("broken")), case["p"].as_f64().unwrap());
        // thousands of logarithms are added
        assert!((got - want).abs() <= 1e-10 * want, "{case}: {got}");
    }
}

/// An evaluation of photos that need not exist: (photo, label, prediction).
fn evaluation(dir: &Path, photos: &[(&str, &str, &str)]) -> PathBuf {
    fs::create_dir_all(dir).unwrap();
    let record = |(i, (image, label, prediction)): (usize, &(&str, &str, &str))| Record {
        line: i + 1,
        image: Some(image.to_string()),
        label: label.to_string(),
        prediction: prediction.to_string(),
        right: label == prediction,
        ..Record::default()
    };
    let records: Vec<Record> = photos.iter().enumerate().map(record).collect();
    write_records(&dir.join("predictions.jsonl"), &records).unwrap();
    write_json(&dir.join("summary.json"), &serde_json::json!({"metrics": metrics(&[], &records)})).unwrap();
    dir.into()
}

#[test]
fn two_evaluations_are_paired_by_photo() {
    let dir = tempfile::tempdir().unwrap();
    let a = evaluation(
        &dir.path().join("a"),
        &[("../p/1.jpg", "x", "x"), ("../p/2.jpg", "x", "y"), ("../p/3.jpg", "y", "y"), ("../p/4.jpg", "y", "x")],
    );
    // in another order, from a folder elsewhere
    let b = evaluation(
        &dir.path().join("deep/b"),
        &[
            ("../../p/4.jpg", "y", "x"),
            ("../../p/3.jpg", "y", "x"),
            ("../../p/2.jpg", "x", "x"),
            ("../../p/1.jpg", "x", "x"),
        ],
    );
    let (a, b) = (Evaluation::read(&a).unwrap(), Evaluation::read(&b).unwrap());
    let c = compare(&a, &b, OnDifferent::Fail).unwrap();
    let groups: Vec<Group> = c.pairs.iter().map(|p| p.group).collect();
    assert_eq!(groups, [Group::BothWrong, Group::Broken, Group::Fixed, Group::BothRight]);
    assert_eq!(c.pairs[1].after.tags, ["broken"]);
    assert_eq!(c.pairs[2].after.before.as_deref(), Some("y"));
    assert_eq!((c.p, c.before.correct, c.after.correct), (1.0, 2, 2));
    let y = &c.per_class["y"];
    assert_eq!((y.n, y.before, y.after, y.fixed, y.broken), (2, 1, 0, 0, 1));
}

/// Two evaluations of one set, whose classes one of them spelt as its choices were typed.
#[test]
fn classes_that_are_spelt_differently_are_one() {
    let dir = tempfile::tempdir().unwrap();
    let photos = |label: &str, second: &str| {
        [("1.jpg", label, label), ("2.jpg", label, second), ("3.jpg", second, label)].map(|(name, label, said)| {
            (dir.path().join(name).to_str().unwrap().to_owned(), label.to_owned(), said.to_owned())
        })
    };
    let read = |name: &str, several: bool, photos: &[(String, String, String)]| {
        let plain: Vec<(&str, &str, &str)> =
            photos.iter().map(|(photo, label, said)| (photo.as_str(), label.as_str(), said.as_str())).collect();
        let folder = evaluation(&dir.path().join(name), &plain);
        if several {
            let mut read = Evaluation::read(&folder).unwrap();
            for record in &mut read.records {
                record.labels = Some(vec![record.label.clone()]);
                record.predictions = Some(vec![record.prediction.clone()]);
            }
            return read;
        }
        Evaluation::read(&folder).unwrap()
    };
    for several in [false, true] {
        let (one, other) =
            (read("a", several, &photos("Dent", "Scratch.")), read("b", several, &photos("dent", "scratch")));
        let c = compare(&one, &other, OnDifferent::Fail).unwrap();
        assert_eq!(
            c.counts,
            BTreeMap::from([(Group::BothRight, 1), (Group::Fixed, 0), (Group::Broken, 0), (Group::BothWrong, 2)])
        );
        assert_eq!(c.before.per_class, c.after.per_class);
        assert_eq!(c.per_class.keys().collect::<Vec<_>>(), ["dent", "scratch"]);
        let dent = &c.per_class["dent"];
        assert_eq!((dent.n, dent.before, dent.after), (2, 1, 1));
        assert_eq!(
            (&c.pairs[1].before.prediction, c.pairs[1].after.before.as_deref()),
            (&"scratch".into(), Some("scratch"))
        );
    }
}

#[test]
fn other_photos_are_refused_or_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let read = |name: &str, photos: &[(&str, &str, &str)]| {
        Evaluation::read(&evaluation(&dir.path().join(name), photos)).unwrap()
    };
    let a = read("a", &[("1.jpg", "x", "x"), ("2.jpg", "x", "y"), ("2.jpg", "x", "x")]);
    let same = |image: &str| dir.path().join("a").join(image).to_str().unwrap().to_owned();
    let (one, two, other) = (same("1.jpg"), same("2.jpg"), same("3.jpg"));
    let b = read("b", &[(&one, "x", "x"), (&two, "x", "x"), (&other, "x", "x")]);
    let error = compare(&a, &b, OnDifferent::Fail).unwrap_err().to_string();
    assert!(error.contains("1 only in") && error.contains("3.jpg") && error.contains("--common"), "{error}");
    let c = compare(&a, &b, OnDifferent::Intersect).unwrap();
    assert_eq!((c.pairs.len(), c.alone), (2, [1, 1]));
    let b = read("c", &[(&one, "z", "x"), (&two, "x", "x"), (&two, "x", "x")]);
    let error = compare(&a, &b, OnDifferent::Fail).unwrap_err().to_string();
    assert!(error.contains("1.jpg") && error.contains("\"x\"") && error.contains("\"z\""), "{error}");
    let b = read("d", &[(&other, "x", "x")]);
    let error = compare(&a, &b, OnDifferent::Intersect).unwrap_err().to_string();
    assert!(error.contains("no photo in common"), "{error}");
}

#[test]
fn an_evaluation_goes_on_with_the_same_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let identity =
        |model: &str| serde_json::from_value(serde_json::json!({"the model": model, "the set": "d"})).unwrap();
    let record = |line| Record { line, label: "x".into(), ..Record::default() };
    let mut folder = Folder::open(&out, identity("m"), Start::New).unwrap();
    folder.append(record(2)).unwrap();
    folder.append(record(1)).unwrap();
    folder.stop(2.5).unwrap();
    // killed while it wrote the next
    let predictions = out.join("predictions.jsonl");
    let whole = fs::read(&predictions).unwrap();
    fs::write(&predictions, [&whole[..], b"{\"line\": 3, \"la"].concat()).unwrap();
    let said = |result: vlm::base::Result<Folder>| result.err().unwrap().to_string();
    let error = said(Folder::open(&out, identity("m"), Start::New));
    assert!(error.contains("unfinished") && error.contains("--resume"), "{error}");
    let error = said(Folder::open(&out, identity("n"), Start::Resume));
    assert!(error.contains("cannot go on: the model changed; take back"), "{error}");
    assert_eq!(
        Evaluation::read(&out).unwrap_err().to_string().split(": ").nth(1).unwrap(),
        "holds an unfinished evaluation; the same vlm eval with --resume finishes it"
    );
    let mut folder = Folder::open(&out, identity("m"), Start::Resume).unwrap();
    assert_eq!((folder.done().into_iter().collect::<Vec<_>>(), folder.seconds), (vec![1, 2], 2.5));
    assert_eq!(fs::read(&predictions).unwrap(), whole, "what was cut short is gone");
    folder.append(record(3)).unwrap();
    // an error ended it: its seconds are kept, and what is written
    std::thread::sleep(Duration::from_millis(20));
    drop(folder);
    let mut folder = Folder::open(&out, identity("m"), Start::Resume).unwrap();
    assert!(folder.done().len() == 3 && folder.seconds > 2.52, "{}", folder.seconds);
    let m = metrics(&[], folder.records());
    folder.finish(&serde_json::json!({"metrics": m})).unwrap();
    let lines: Vec<usize> = Evaluation::read(&out).unwrap().records.iter().map(|r| r.line).collect();
    assert_eq!(lines, [1, 2, 3]);
    let error = said(Folder::open(&out, identity("n"), Start::Resume));
    assert!(error.contains("cannot go on: the model changed; take back"), "{error}");
    let mut folder = Folder::open(&out, identity("m"), Start::Resume).unwrap();
    let summary = folder.finished(&[1, 2, 3].into()).unwrap();
    assert_eq!((folder.done().len(), summary), (3, Some(serde_json::json!({"metrics": m}))));
    let seconds = folder.seconds;
    drop(folder);
    // to look at a result takes none of its time
    assert_eq!(Folder::open(&out, identity("m"), Start::Resume).unwrap().seconds, seconds);
    let mut folder = Folder::open(&out, identity("n"), Start::Overwrite).unwrap();
    assert_eq!(folder.finished(&[].into()).unwrap(), None);
    assert!(folder.done().is_empty() && !out.join("summary.json").exists());
    for start in [Start::New, Start::Resume, Start::Overwrite] {
        let error = said(Folder::open(&out, identity("n"), start));
        assert!(error.starts_with("another vlm is writing into ") && error.contains("out: wait for it"), "{error}");
    }
    drop(folder);
    fs::write(&predictions, "{}\n").unwrap();
    let error = said(Folder::open(&out, identity("n"), Start::Resume));
    assert!(error.contains("predictions.jsonl, line 1"), "{error}");
}

/// A person can read what a flag was and is; of what has a fingerprint, that it changed.
#[test]
fn what_differs_is_said_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let open = |identity: &Value, start| {
        Folder::open(dir.path(), identity.as_object().unwrap().clone(), start).map_err(|e| e.to_string())
    };
    let long = |end: &str| "which? ".repeat(20) + end;
    let was = serde_json::json!({"the set": "c0279e1e", "--prompt": null, "--batch-size": 4, "the sampling": {"--seed": 0, "--top-k": 1}});
    open(&was, Start::New).unwrap().stop(0.0).unwrap();
    for (changed, said) in [
        (serde_json::json!({"the set": "0a72f5"}), "the set changed"),
        (serde_json::json!({"the adapter": ["ab"]}), "there was no adapter, and now there is"),
        (serde_json::json!({"--prompt": "Which?"}), "--prompt was not given and is \"Which?\""),
        (serde_json::json!({"the sampling": {"--seed": 0, "--top-k": 5}}), "--top-k was 1 and is 5"),
        (serde_json::json!({"the sampling": null}), "there is no sampling any more"),
    ] {
        let mut is = was.clone();
        is.as_object_mut().unwrap().extend(changed.as_object().unwrap().clone());
        let error = open(&is, Start::Resume).err().unwrap();
        let want = format!("cannot go on: {said}; take back the change, or give --overwrite to begin again");
        assert!(error.ends_with(&want), "{error}\n{want}");
    }
    open(&serde_json::json!({"--prompt": long("a")}), Start::Overwrite).unwrap().stop(0.0).unwrap();
    let error = open(&serde_json::json!({"--prompt": long("b")}), Start::Resume).err().unwrap();
    assert!(error.contains("cannot go on: --prompt changed; take back"), "{error}");
}

/// Finished is what has a record of each line of the set, once. Of anything else what is missing is answered, and no summary
/// of other records is left meanwhile.
#[test]
fn an_evaluation_whose_records_were_changed_is_not_finished() {
    let dir = tempfile::tempdir().unwrap();
    let (out, lines) = (dir.path().join("out"), [1, 2, 3].into());
    let record = |line, label: &str| Record { line, label: label.into(), ..Record::default() };
    let open = |start| Folder::open(&out, serde_json::Map::new(), start).unwrap();
    for (changed, kept) in [(&[1, 3][..], &[1, 3][..]), (&[1, 2, 2, 3], &[1, 2, 3]), (&[2, 3, 4], &[2, 3]), (&[], &[])]
    {
        let mut folder = open(Start::Overwrite);
        (1..=3).for_each(|line| _ = folder.append(record(line, "x")).unwrap());
        folder.finish(&serde_json::json!({"seconds": 7.5})).unwrap();
        let mut twice = 0;
        let records = changed.iter().map(|line| {
            let label = if *line == twice { "again" } else { "x" };
            twice = *line;
            record(*line, label)
        });
        write_records(&out.join("predictions.jsonl"), &records.collect::<Vec<_>>()).unwrap();
        let mut folder = open(Start::Resume);
        assert_eq!(folder.finished(&lines).unwrap(), None, "{changed:?}");
        assert!(!out.join("summary.json").exists(), "{changed:?}");
        assert_eq!(folder.records().iter().map(|r| r.line).collect::<Vec<_>>(), kept);
        assert!(folder.records().iter().all(|r| r.label == "x") && folder.seconds == 7.5, "{changed:?}");
        // stopped again, with what is missing written but for the summary
        let missing: Vec<usize> = (1..=3).filter(|line| !kept.contains(line)).collect();
        missing.into_iter().for_each(|line| _ = folder.append(record(line, "x")).unwrap());
        drop(folder);
        let mut folder = open(Start::Resume);
        assert_eq!(folder.finished(&lines).unwrap(), None, "{changed:?}");
        assert!((7.5..60.0).contains(&folder.seconds), "{changed:?}: {}", folder.seconds);
        folder.finish(&serde_json::json!({"seconds": 8.0})).unwrap();
        let read = Evaluation::read(&out);
        assert!(read.unwrap_err().to_string().contains("metrics"), "this summary has none");
        assert_eq!(open(Start::Resume).finished(&lines).unwrap(), Some(serde_json::json!({"seconds": 8.0})));
    }
}

/// What a photo's batch is has a say in the last digits of its probabilities. Stopped within a batch, and by a kill within a
/// line, an evaluation goes on to the numbers of one that ran through.
#[test]
fn an_evaluation_that_was_stopped_ends_with_the_same_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let eval = |name: &str, batch: &str, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vlm"));
        command.arg("eval").arg("--model").arg(tiny::cases().join("uneven")).arg("--data");
        command.arg(tiny::cases().join("train.jsonl")).arg("--out").arg(dir.path().join(name));
        let done = command.args(["--device=cpu", "--batch-size", batch]).args(more).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    let predictions = |name: &str| fs::read_to_string(dir.path().join(name).join("predictions.jsonl")).unwrap();
    let summary = |name: &str| {
        let text = fs::read_to_string(dir.path().join(name).join("summary.json")).unwrap();
        let mut summary: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
        ["seconds", "images_per_second"].iter().for_each(|key| assert!(summary.remove(*key).is_some(), "{key}"));
        summary
    };
    eval("whole", "2", &[]);
    eval("alone", "1", &[]);
    assert_ne!(predictions("whole"), predictions("alone"), "batches have no say, and this test could not fail");
    for n_kept in 0..=3 {
        let whole = predictions("whole");
        let kept: String = whole.split_inclusive('\n').take(n_kept).chain(["{\"line\": "]).collect();
        let parts = dir.path().join(format!("parts-{n_kept}"));
        fs::create_dir(&parts).unwrap();
        fs::copy(dir.path().join("whole/identity.json"), parts.join("identity.json")).unwrap();
        fs::write(parts.join("predictions.jsonl"), kept).unwrap();
        eval(&format!("parts-{n_kept}"), "2", &["--resume"]);
        assert_eq!(predictions(&format!("parts-{n_kept}")), whole, "{n_kept} kept");
        assert_eq!(summary(&format!("parts-{n_kept}")), summary("whole"), "{n_kept} kept");
    }
    // nor does a finished one whose records somebody changed say that it is finished
    let whole = predictions("whole");
    let lines: Vec<&str> = whole.split_inclusive('\n').collect();
    for changed in [vec![lines[0], lines[2]], vec![lines[0], lines[1], lines[1], lines[2]]] {
        fs::write(dir.path().join("parts-3/predictions.jsonl"), changed.concat()).unwrap();
        eval("parts-3", "2", &["--resume"]);
        assert_eq!((predictions("parts-3"), summary("parts-3")), (whole.clone(), summary("whole")));
    }
}
