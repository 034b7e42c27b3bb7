//! `vlm data dedupe`: cleaned splits, what an earlier result leaves, lines that cannot be read, runs cut short.

use crate::data_split::picture;
use crate::dedupe::write_set;
use crate::support::tiny::cases;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use vlm::data::image::{to_jpeg, to_png};
use vlm::data::pairs::read_pairs;

fn vlm(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vlm"));
    command.args(["data", "dedupe", "--model"]).arg(cases().join("single")).args(arguments);
    command
}

fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let done = vlm(arguments).output().unwrap();
    (done.status.code(), String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr).unwrap())
}

#[test]
fn the_program_cleans_a_split() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let names: Vec<String> = (0..14).map(|i| format!("{i}.png")).collect();
    for (i, name) in names.iter().enumerate() {
        fs::write(root.join(name), to_png(&picture(i, 96, 72)).unwrap()).unwrap();
    }
    // test has three copies of train's photos: the same bytes, and saved again twice
    fs::copy(root.join("1.png"), root.join("same.png")).unwrap();
    for i in [2, 3] {
        fs::write(root.join(format!("{i}.jpg")), to_jpeg(&picture(i, 96, 72), 90).unwrap()).unwrap();
    }
    let of = |range: std::ops::Range<usize>| names[range].iter().map(String::as_str).collect::<Vec<_>>();
    let train = write_set(root, "train", &of(0..10));
    let test = write_set(root, "test", &[&of(10..14)[..], &["same.png", "2.jpg", "3.jpg"]].concat());
    let (train, test, out) = (train.to_str().unwrap(), test.to_str().unwrap(), root.join("clean"));
    let arguments = [test, train, "--out", out.to_str().unwrap(), "--threshold", "0.9999", "--json"];
    let (code, said, stderr) = run(&arguments);
    assert_eq!(code, Some(0), "{stderr}");
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["threshold"], 0.9999);
    let pairs = read_pairs(&out.join("pairs.jsonl")).unwrap();
    let same = pairs.iter().find(|p| p.b.image == "../same.png").unwrap();
    assert!(same.cosine > 0.999999 && same.a.image == "../1.png" && same.removed && same.crosses(), "{same:?}");
    assert_eq!((same.a.set.as_str(), same.a.line, same.b.set.as_str(), same.b.line), ("train", 2, "test", 5));
    assert_eq!(said["pairs"], pairs.len());
    let kept = fs::read_to_string(out.join("test.jsonl")).unwrap();
    assert!(!kept.contains("same.png") && kept.contains(r#""image":"../13.png""#), "{kept}");
    let removed = 7 - kept.lines().count();
    assert_eq!(said["sets"][1], json!({"name": "test", "samples": 7, "removed": removed, "skipped": 0}));
    assert_eq!(fs::read_to_string(out.join("train.jsonl")).unwrap().lines().count(), 10);
    let summary: Value = serde_json::from_str(&fs::read_to_string(out.join("summary.json")).unwrap()).unwrap();
    assert_eq!(summary["pairs"], said["pairs"]);

    let (code, _, said) = run(&arguments);
    assert!(code == Some(1) && said.contains("holds an earlier result"), "{said}");
    // calibrated, and said so
    let (code, said, stderr) = run(&[test, train, "--out", out.to_str().unwrap(), "--overwrite", "--plant", "8"]);
    assert_eq!(code, Some(0), "{stderr}");
    for wanted in [
        "calibrated on 24 changed copies of 8 photos",
        "precision ",
        "recall ",
        "crops ",
        " * ",
        "across sets",
        "test: ",
    ] {
        assert!(said.contains(wanted) || (wanted == " * " && said.contains(" *\n")), "{wanted}\n{said}");
    }
    // one file: pairs inside it, and nothing is cleaned unless asked
    let alone = root.join("alone");
    let arguments = [test, "--out", alone.to_str().unwrap(), "--threshold", "0.5", "--json"];
    let (code, said, stderr) = run(&arguments);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(!alone.join("test.jsonl").exists());
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&said["pairs_across_sets"], &said["sets"][0]["removed"]), (&json!(0), &json!(0)));
    let (code, _, _) = run(&[&arguments[..], &["--overwrite", "--within"]].concat());
    assert!(code == Some(0) && alone.join("test.jsonl").exists());

    let (code, _, said) = run(&[test, "--out", "x", "--threshold", "1.5"]);
    assert!(code == Some(2) && said.contains("--threshold 1.5"), "{said}");
    let (code, _, said) = run(&["--out", "x"]);
    assert!(code == Some(2) && said.contains("<FILE>"), "{said}");
    let few = write_set(root, "few", &["0.png", "1.png"]);
    let (code, _, said) = run(&[few.to_str().unwrap(), "--out", root.join("f").to_str().unwrap()]);
    let wanted = "calibrated on four different photos or more; give one with --threshold";
    assert!(code == Some(1) && said.contains(wanted), "{said}");
    // one photo under many names, and saved again and again
    let copies: Vec<String> = (0..12).map(|i| format!("copy-{i}.png")).collect();
    copies.iter().for_each(|name| _ = fs::copy(root.join("1.png"), root.join(name)).unwrap());
    let again: Vec<String> = (0..12).map(|i| format!("again-{i}.jpg")).collect();
    for (i, name) in again.iter().enumerate() {
        fs::write(root.join(name), to_jpeg(&picture(1, 96, 72), 80 + i as u8).unwrap()).unwrap();
    }
    for (name, photos, wanted) in
        [("copies", copies, wanted), ("again", again, "too many of the photos look the same to calibrate a threshold")]
    {
        let set = write_set(root, name, &photos.iter().map(String::as_str).collect::<Vec<_>>());
        let (code, _, said) = run(&[set.to_str().unwrap(), "--out", root.join("one").to_str().unwrap()]);
        assert!(code == Some(1) && said.contains(wanted), "{name}: {said}");
    }
}

/// Cleaned sets of two results say nothing about each other; what the earlier one only read, or did not write, stays.
#[test]
fn an_earlier_result_goes_with_its_cleaned_sets() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    for i in 0..4 {
        fs::write(root.join(format!("{i}.png")), to_png(&picture(i, 96, 72)).unwrap()).unwrap();
    }
    let sets = [("train", "0.png"), ("test", "1.png"), ("train9", "2.png"), ("test9", "3.png")];
    let [train, test, train9, test9] =
        sets.map(|(name, image)| write_set(root, name, &[image]).to_str().unwrap().to_string());
    let out = root.join("out");
    let to = ["--out", out.to_str().unwrap(), "--threshold", "1"];
    let there = || {
        let names = fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".jsonl") && name != "pairs.jsonl").collect::<BTreeSet<_>>()
    };
    let works = |sets: &[&str], more: &[&str]| {
        let (code, _, stderr) = run(&[sets, &to, more].concat());
        assert_eq!(code, Some(0), "{stderr}");
        there()
    };
    let files = |names: &[&str]| names.iter().map(|name| format!("{name}.jsonl")).collect::<BTreeSet<_>>();
    assert_eq!(works(&[&train, &test], &[]), files(&["train", "test"]));
    fs::write(out.join("mine.jsonl"), "mine").unwrap();
    // one of them is read: it is not removed
    let cleaned = out.join("test.jsonl");
    let (code, _, said) = run(&[&[cleaned.to_str().unwrap()][..], &to, &["--overwrite"]].concat());
    assert!(code == Some(1) && said.contains("test.jsonl: is read by this command"), "{said}");
    assert_eq!(there(), files(&["train", "test", "mine"]));
    assert_eq!(works(&[&train9, &test9], &["--overwrite"]), files(&["train9", "test9", "mine"]));
    // names that lead elsewhere, and a search that cleaned nothing
    let summary = out.join("summary.json");
    let mut said: Value = serde_json::from_str(&fs::read_to_string(&summary).unwrap()).unwrap();
    said["sets"][0]["name"] = "../train".into();
    fs::write(&summary, said.to_string()).unwrap();
    assert_eq!(works(&[&train], &["--overwrite"]), files(&["train9", "mine"]));
    assert!(Path::new(&train).exists());
    assert_eq!(works(&[&test], &["--overwrite"]), files(&["train9", "mine"]));
    fs::write(out.join("test.jsonl"), "mine too").unwrap();
    assert_eq!(works(&[&train], &["--overwrite"]), files(&["train9", "mine", "test"]));
}

/// What is said to be left out is: a line that is no UTF-8, and the sample of a damaged photo with its other photo too.
#[test]
fn what_cannot_be_read_is_in_no_cleaned_set() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    for i in 0..5 {
        fs::write(root.join(format!("{i}.png")), to_png(&picture(i, 96, 72)).unwrap()).unwrap();
    }
    let whole = fs::read(root.join("4.png")).unwrap();
    fs::write(root.join("cut.png"), &whole[..whole.len() / 2]).unwrap();
    let train = root.join("train.jsonl");
    let two = json!({"images": ["2.png", "cut.png"], "messages": [
        {"role": "user", "content": "<image><image>"}, {"role": "assistant", "content": "a"}]});
    let one = |image: &str| json!({"image": image, "label": "a"}).to_string();
    fs::write(&train, [one("0.png"), two.to_string(), one("1.png")].join("\n")).unwrap();
    let test = root.join("test.jsonl");
    let lines = [one("3.png"), one("2.png"), one("cut.png"), one("0.png")].join("\n");
    fs::write(&test, [lines.as_bytes(), b"\n{\"image\": \"0.png\", \"label\": \"d\xe9\"}\n"].concat()).unwrap();
    let (train, test, out) = (train.to_str().unwrap(), test.to_str().unwrap(), root.join("clean"));
    let arguments = [train, test, "--out", out.to_str().unwrap(), "--threshold", "1"];
    let (code, _, said) = run(&arguments);
    assert!(code == Some(1) && said.contains("test.jsonl, line 5: not UTF-8"), "{said}");
    let (code, said, stderr) = run(&[&arguments[..], &["--skip-bad"]].concat());
    assert_eq!(code, Some(0), "{stderr}");
    for line in ["train.jsonl, line 2: ", "test.jsonl, line 3: ", "test.jsonl, line 5: not UTF-8"] {
        assert!(stderr.contains(line), "{stderr}");
    }
    assert!(said.contains("train: 0 of 2 samples removed; 1 sample that cannot be read is left out\n"), "{said}");
    assert!(said.contains("test: 1 of 3 samples removed; 2 samples that cannot be read are left out\n"), "{said}");
    let kept = |name: &str| fs::read_to_string(out.join(name)).unwrap();
    assert_eq!(kept("train.jsonl").lines().count(), 2);
    // 0.png is in train; 2.png is not, since its sample went
    assert_eq!(kept("test.jsonl").matches(".png").count(), 2, "{}", kept("test.jsonl"));
    assert!(kept("test.jsonl").contains("3.png") && kept("test.jsonl").contains("2.png"));
    let summary: Value = serde_json::from_str(&kept("summary.json")).unwrap();
    assert_eq!(summary["sets"][1], json!({"name": "test", "samples": 3, "removed": 1, "skipped": 2}));
    assert_eq!(summary["skipped"], 3);
    let damaged = write_set(root, "damaged", &["cut.png"]);
    let (code, _, said) = run(&[
        train,
        damaged.to_str().unwrap(),
        "--out",
        out.to_str().unwrap(),
        "--threshold",
        "1",
        "--overwrite",
        "--skip-bad",
    ]);
    assert!(code == Some(1) && said.contains("damaged.jsonl: of its 1 sample none has whole photos"), "{said}");
}

#[test]
fn ctrl_c_keeps_what_was_computed() {
    let dir = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..400).map(|i| format!("{i}.png")).collect();
    for (i, name) in names.iter().enumerate() {
        let mut photo = picture(i, 192, 160);
        photo.pixels[0] = (i % 256) as u8;
        photo.pixels[1] = (i / 256) as u8;
        fs::write(dir.path().join(name), to_png(&photo).unwrap()).unwrap();
    }
    let set = write_set(dir.path(), "set", &names.iter().map(String::as_str).collect::<Vec<_>>());
    let out = dir.path().join("out");
    let arguments = [set.to_str().unwrap(), "--out", out.to_str().unwrap(), "--threshold", "0.99"];
    let mut child = vlm(&arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let cache = out.join("embeddings.bin");
    let start = Instant::now();
    while fs::metadata(&cache).map_or(0, |m| m.len()) < 1000 {
        assert!(start.elapsed() < Duration::from_secs(120), "nothing is computed");
        std::thread::sleep(Duration::from_millis(5));
    }
    let sent = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    assert!(fs::metadata(&cache).unwrap().len() >= 1000);
    assert!(!out.join("pairs.jsonl").exists());
}
