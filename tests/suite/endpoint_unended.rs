//! Answers that a served model has not ended itself: refused, cut off, stopped by a filter. None counts in silence.

use crate::endpoint::{ask, endpoint, eval, set};
use crate::support::server::{Reply, Server, ended, said};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use vlm::classify::endpoint::{Endpoint, Said};
use vlm::classify::evaluate::Classes;

fn no() -> Reply {
    Reply::Http(400, "", json!({"error": {"message": "not this photo, dent"}}).to_string())
}

fn tags(dir: &Path) -> Vec<Value> {
    let text = fs::read_to_string(dir.join("out/predictions.jsonl")).unwrap();
    text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["tags"].clone()).collect()
}

#[test]
fn refusals_are_counted_and_told() {
    let dir = tempfile::tempdir().unwrap();
    set(dir.path(), &["dent", "dent", "dent"]);
    let server = Server::start(|n, _| if n < 2 { no() } else { Reply::Http(200, "", said("dent")) });
    let done = eval(dir.path(), &server, &["--skip-bad", "--concurrency", "1"]).output().unwrap();
    let printed = String::from_utf8_lossy(&done.stdout).into_owned();
    assert_eq!(done.status.code(), Some(0), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(printed.contains("\n2 of 3 questions were refused by the endpoint, and count as wrong\n"), "{printed}");
    let summary: Value = serde_json::from_slice(&fs::read(dir.path().join("out/summary.json")).unwrap()).unwrap();
    let counts = ["refused", "cut_off", "content_filter"].map(|tag| summary[tag].as_u64());
    assert_eq!((counts, &summary["metrics"]["correct"]), ([Some(2), Some(0), Some(0)], &json!(1)));
    assert_eq!(tags(dir.path()), [json!(["refused"]), json!(["refused"]), json!([])]);
}

/// Where nothing is answered there is no score, and nothing that a resumed evaluation would take for an answer.
#[test]
fn refusals_alone_are_an_error() {
    static STRICT: AtomicBool = AtomicBool::new(true);
    let dir = tempfile::tempdir().unwrap();
    set(dir.path(), &["dent", "dent", "dent"]);
    let server = Server::start(|n, _| match n {
        _ if STRICT.load(Ordering::SeqCst) => no(),
        3 => Reply::Http(200, "", said("dent")),
        4 => Reply::Http(401, "", "no money left".into()),
        _ => no(),
    });
    let flags = ["--skip-bad", "--concurrency", "1"];
    let resumed = [&flags[..], &["--resume"]].concat();
    let done = eval(dir.path(), &server, &flags).output().unwrap();
    let error = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.code() == Some(1) && done.stdout.is_empty(), "{error}");
    let wanted =
        "3 questions were refused and none answered, the last (line 3) so: the endpoint answered 400: not this";
    assert!(error.contains(wanted) && error.contains("--endpoint-options"), "{error}");
    assert!(!dir.path().join("out/summary.json").exists() && tags(dir.path()).is_empty());
    STRICT.store(false, Ordering::SeqCst);
    let done = eval(dir.path(), &server, &resumed).output().unwrap();
    assert_eq!((done.status.code(), tags(dir.path()).len()), (Some(1), 1));
    // the other two are refused, and one was answered in the sitting before
    let done = eval(dir.path(), &server, &resumed).output().unwrap();
    let printed = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.code() == Some(0) && printed.contains("2 of 3 questions were refused"), "{printed}");
    // a long set is not asked to its end
    let server = Server::start(|_, _| no());
    let lenient = Endpoint { skip_refused: true, concurrency: 4, ..endpoint(&server) };
    let (records, _, end) = ask(&lenient, &set(dir.path(), &["dent"; 90]));
    let said = end.unwrap_err().to_string();
    assert!(said.starts_with("32 questions were refused and none answered") && records.is_empty(), "{said}");
    assert!((32..90).contains(&server.seen().len()), "{}", server.seen().len());
}

#[test]
fn a_refusal_names_no_label_whatever_its_reason_says() {
    let dir = tempfile::tempdir().unwrap();
    let samples = set(dir.path(), &["dent, crack", "dent"]);
    let server = Server::start(|n, _| if n == 0 { no() } else { Reply::Http(200, "", said("dent")) });
    let lenient = Endpoint { skip_refused: true, ..endpoint(&server) };
    let classes = Classes::of(Path::new("set.jsonl"), &samples, true).unwrap();
    let mut records = Vec::new();
    let mut keep = |said: Said| {
        if let Said::Answer(record) = said {
            records.push(*record);
        }
        Ok(())
    };
    lenient.ask(Path::new("set.jsonl"), &samples, &classes, false, &|| false, &mut keep).unwrap();
    let refused = &records[0];
    assert_eq!(refused.labels.as_deref().unwrap(), ["crack", "dent"]);
    assert_eq!(refused.predictions.as_deref().unwrap(), ["(other)"]);
    assert_eq!((refused.prediction.as_str(), refused.right), ("(other)", false));
    assert!(records[1].right && records[1].tags.is_empty());
}

#[test]
fn answers_that_were_cut_off_are_counted_and_told() {
    let dir = tempfile::tempdir().unwrap();
    set(dir.path(), &["dent", "dent", "dent", "dent"]);
    let server = Server::start(|n, _| match n % 4 {
        0 => Reply::Http(200, "", ended("", "length")),
        1 => Reply::Http(200, "", ended("The dent is", "length")),
        2 => Reply::Http(200, "", ended("", "content_filter")),
        _ => Reply::Http(200, "", said("dent")),
    });
    for (flags, limit) in [
        (vec![], "--max-new-tokens 512"),
        (vec!["--max-new-tokens", "7"], "--max-new-tokens 7"),
        (vec!["--endpoint-options", r#"{"max_tokens": 5}"#], "the max_tokens 5 of --endpoint-options"),
        (vec!["--endpoint-options", r#"{"max_tokens": null}"#], "the endpoint's own limit"),
    ] {
        let flags = [&flags[..], &["--concurrency", "1"]].concat();
        let done = eval(dir.path(), &server, &[&flags[..], &["--overwrite"]].concat()).output().unwrap();
        let printed = String::from_utf8_lossy(&done.stdout).into_owned();
        let wanted = format!("\n2 of 4 answers were cut off at {limit}: raise it\n");
        assert!(done.status.code() == Some(0) && printed.contains(&wanted), "{printed}");
        assert!(printed.contains("\n1 of 4 answers were stopped by the endpoint's content filter\n"), "{printed}");
        let wanted = [json!(["cut_off"]), json!(["cut_off"]), json!(["content_filter"]), json!([])];
        assert_eq!(tags(dir.path()), wanted);
        // a finished one says it again
        let done = eval(dir.path(), &server, &[&flags[..], &["--resume"]].concat()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&done.stdout), printed);
    }
    let file = dir.path().join("out/summary.json");
    let summary: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(
        (&summary["refused"], &summary["cut_off"], &summary["content_filter"]),
        (&json!(0), &json!(2), &json!(1))
    );
    // records of before there were such tags
    let predictions = dir.path().join("out/predictions.jsonl");
    let text = fs::read_to_string(&predictions).unwrap();
    fs::write(&predictions, text.replace("\"cut_off\"", "").replace("\"content_filter\"", "")).unwrap();
    let flags = ["--endpoint-options", r#"{"max_tokens": null}"#, "--resume"];
    let done = eval(dir.path(), &server, &flags).output().unwrap();
    let printed = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.code() == Some(0) && !printed.contains("cut off"), "{printed}");
}
