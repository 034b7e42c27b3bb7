//! `vlm demo` at a small size: every step runs, and what it says is what its files hold.

use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

fn demo(out: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vlm"));
    command.args(["demo", "--photos", "36", "--test", "24", "--device", "cpu", "--out"]).arg(out).args(more);
    command.output().unwrap()
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn goes_from_folders_of_photos_to_a_page() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("demo");
    let done = demo(&out, &[]);
    let (said, errors) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{errors}");

    // three of the 24 are copies; the tables are those of the files
    assert!(
        said.contains("drew 36 photos of cracks, dents and scratches to train on and 24 to score; 3 of these"),
        "{said}"
    );
    let before = json(&out.join("scores/base/summary.json"));
    let after = json(&out.join("scores/tuned/summary.json"));
    for (row, summary) in [("base model", &before), ("tuned on all", &after)] {
        let line = said.lines().find(|l| l.starts_with(row)).unwrap();
        let m = &summary["metrics"];
        assert!(line.contains(&format!("({} of {};", m["correct"], m["n"])), "{line}");
    }
    let left = std::fs::read_to_string(out.join("clean/test.jsonl")).unwrap().lines().count() as u64;
    assert_eq!(before["metrics"]["n"], left);
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("<html") && page.contains("scratch"));
    assert!(out.join("run/adapter_model.safetensors").exists() && out.join("merged/model.safetensors").exists());
    assert!(out.join("sheet.png").exists());

    // a second one does not write over the first unless told to, and never over other files
    let again = demo(&out, &[]);
    let errors = String::from_utf8_lossy(&again.stderr).into_owned();
    assert_eq!(again.status.code(), Some(1));
    assert!(errors.contains("holds an earlier demo") && errors.contains("--overwrite"), "{errors}");
    let other = dir.path().join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("letter.txt"), "dear").unwrap();
    let refused = demo(&other, &["--overwrite"]);
    let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(errors.contains("holds files that are no demo's"), "{errors}");
    assert!(other.join("letter.txt").exists());
}

/// A device that is not there is said before anything is drawn.
#[test]
fn a_device_that_is_not_there_is_said_first() {
    let dir = tempfile::tempdir().unwrap();
    for line in [&["demo"][..], &["bench", "one-dollar", "--shape", "tiny"]] {
        let out = dir.path().join(line[0]);
        let mut command = Command::new(env!("CARGO_BIN_EXE_vlm"));
        command.args(line).args(["--device", "cuda", "--out"]).arg(&out);
        let done = command.env("CUDA_VISIBLE_DEVICES", "").output().unwrap();
        if done.status.success() {
            println!("skipped: a device that is not there: cuda works here");
            return;
        }
        let errors = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(1), "{errors}");
        assert!(errors.starts_with("vlm: --device cuda: "), "{errors}");
        assert!(!out.exists(), "{line:?}");
    }
}

/// A demo in a process group of its own, once it has printed a line that begins with `line`.
fn demo_until(out: &Path, photos: &str, line: &str) -> (Child, BufReader<ChildStdout>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vlm"));
    command.args(["demo", "--photos", photos, "--test", "12", "--device", "cpu", "--out"]).arg(out);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut read = String::new();
    while !read.starts_with(line) {
        read.clear();
        assert!(lines.read_line(&mut read).unwrap() > 0, "no {line}");
    }
    (child, lines)
}

#[test]
fn a_step_that_fails_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("demo");
    // while it draws: something in the place of what the first step writes
    let (child, _lines) = demo_until(&out, "600", "== Photos");
    std::fs::create_dir(out.join("train.jsonl")).unwrap();
    let done = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(1), "{errors}");
    assert!(errors.contains("train.jsonl: is a folder") && errors.contains("vlm data failed"), "{errors}");
}

/// Ctrl-C reaches the demo and the command that it runs, as in a terminal; wherever it comes, it ends both, with what is
/// true of the demo.
#[test]
fn ctrl_c_ends_it_wherever_it_comes() {
    for (photos, line) in
        [("9999", "== Photos"), ("30", "$ vlm data import"), ("300", "$ vlm data dedupe"), ("30", "$ vlm train")]
    {
        let dir = tempfile::tempdir().unwrap();
        let (mut child, mut lines) = demo_until(&dir.path().join("demo"), photos, line);
        let group = format!("-{}", child.id());
        assert!(Command::new("kill").args(["-INT", "--", &group]).status().unwrap().success());
        let mut rest = String::new();
        lines.read_to_string(&mut rest).unwrap();
        let mut errors = String::new();
        child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130), "{line}\n{errors}");
        let last = errors.lines().last().unwrap();
        assert!(last.starts_with("vlm: interrupted") && last.contains("--overwrite"), "{line}\n{errors}");
        assert!(!rest.contains("== What came out") && rest.matches("$ vlm").count() == 0, "{line}\n{rest}");
    }
}
