//! Options that a served model does not take: what is sent instead, who is told, and what a resumed evaluation knows.

use crate::endpoint::{ask, endpoint, eval, set};
use crate::support::server::{Reply, Request, Server, said};
use serde_json::{Map, Value, json};
use std::fs;
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use vlm::classify::endpoint::Endpoint;

/// As OpenAI's models refuse, word for word; None where they do not.
fn refused(request: &Request) -> Option<Reply> {
    let about = |param: &str, code: &str, message: &str| {
        let error = json!({"message": message, "type": "invalid_request_error", "param": param, "code": code});
        Some(Reply::Http(400, "", json!({"error": error}).to_string()))
    };
    if request.body.get("max_tokens").is_some() {
        let said = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' \
                    instead.";
        return about("max_tokens", "unsupported_parameter", said);
    }
    if request.body.get("temperature").is_some_and(|t| t.as_f64() != Some(1.0)) {
        let said = "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is \
                    supported.";
        return about("temperature", "unsupported_value", said);
    }
    None
}

fn thinker() -> Server {
    Server::start(|_, request| refused(request).unwrap_or_else(|| Reply::Http(200, "", said("dent"))))
}

/// The fields of a request beside the question.
fn options(request: &Request) -> Value {
    let mut body = request.body.clone();
    ["model", "messages"].iter().for_each(|name| _ = body.as_object_mut().unwrap().remove(*name));
    body
}

fn stderr(done: &Output) -> String {
    String::from_utf8_lossy(&done.stderr).into_owned()
}

#[test]
fn options_that_a_server_does_not_take_are_changed_for_all_that_follows() {
    let dir = tempfile::tempdir().unwrap();
    let samples = set(dir.path(), &["dent"; 9]);
    for concurrency in [1, 4] {
        let server = thinker();
        let (records, notes, end) = ask(&Endpoint { concurrency, ..endpoint(&server) }, &samples);
        end.unwrap();
        assert!(records.len() == 9 && records.iter().all(|r| r.right && r.tags.is_empty()), "{records:?}");
        assert_eq!(notes.len(), 2, "{notes:?}");
        assert!(notes[0].contains("does not take max_tokens: from here on max_completion_tokens"), "{notes:?}");
        assert!(notes[1].contains("does not take temperature: from here on its own default"), "{notes:?}");
        let seen = server.seen();
        let taken = seen.iter().filter(|r| options(r) == json!({"max_completion_tokens": 9})).count();
        assert_eq!(taken, 9);
        // each worker meets a refusal at most once
        assert!(seen.len() <= 9 + 2 * concurrency, "{}", seen.len());
    }
    // who has named the new option already keeps that number
    let server = thinker();
    let mut asked = endpoint(&server);
    asked.options.insert("max_completion_tokens".into(), json!(700));
    asked.flags.insert("max_completion_tokens".into(), "--endpoint-options");
    ask(&asked, &samples[..1]).2.unwrap();
    assert_eq!(options(server.seen().last().unwrap()), json!({"max_completion_tokens": 700}));
    // a server that goes on complaining is not asked for ever
    let server = Server::start(|_, _| {
        Reply::Http(400, "", json!({"error": "max_tokens? Not supported, use max_completion_tokens"}).to_string())
    });
    let said = ask(&endpoint(&server), &samples[..1]).2.unwrap_err().to_string();
    assert!(said.contains("max_tokens?") && server.seen().len() == 2, "{said}");
}

#[test]
fn an_option_that_a_person_asked_for_is_not_changed() {
    let dir = tempfile::tempdir().unwrap();
    set(dir.path(), &["dent", "dent"]);
    let server = thinker();
    for (flags, words) in [
        (
            vec!["--temperature", "0"],
            ["'temperature' does not support 0", "temperature is what --temperature asks for"],
        ),
        (
            vec!["--endpoint-options", r#"{"max_tokens": 5}"#],
            ["Use 'max_completion_tokens' instead", "max_tokens is what --endpoint-options asks for"],
        ),
        (
            vec!["--endpoint-options", r#"{"max_tokens": null, "temperature": 0.5}"#],
            ["'temperature' does not support", "temperature is what --endpoint-options asks for"],
        ),
    ] {
        let done = eval(dir.path(), &server, &[&flags[..], &["--skip-bad", "--overwrite"]].concat()).output().unwrap();
        let error = stderr(&done);
        let last = error.lines().last().unwrap();
        assert!(done.status.code() == Some(1) && words.iter().all(|w| last.contains(w)), "{error}");
        assert!(last.contains(": leave it out") && last.contains("set.jsonl, line "), "{error}");
        assert!(!dir.path().join("out/summary.json").exists());
    }
    // one that the server takes is sent
    let done = eval(dir.path(), &server, &["--temperature", "1", "--overwrite", "--json"]).output().unwrap();
    let summary: Value = serde_json::from_slice(&done.stdout).unwrap();
    let wanted = json!({"max_completion_tokens": 512, "temperature": 1.0});
    assert_eq!((&summary["endpoint_options"], options(server.seen().last().unwrap())), (&wanted, wanted.clone()));
}

/// The identity is what was asked for, so that the same command goes on; what was sent is kept beside it.
#[test]
fn a_resumed_evaluation_sends_what_the_first_sitting_came_to() {
    static BROKE: AtomicBool = AtomicBool::new(true);
    let dir = tempfile::tempdir().unwrap();
    set(dir.path(), &["dent"; 4]);
    let server = Server::start(|n, request| match refused(request) {
        Some(reply) => reply,
        None if n > 3 && BROKE.load(Ordering::SeqCst) => Reply::Http(401, "", "no money left".into()),
        None => Reply::Http(200, "", said("dent")),
    });
    let one = ["--concurrency", "1"];
    let done = eval(dir.path(), &server, &one).output().unwrap();
    assert!(done.status.code() == Some(1) && stderr(&done).contains("no money left"), "{}", stderr(&done));
    assert_eq!(stderr(&done).matches("the endpoint does not take").count(), 2, "{}", stderr(&done));
    let file = dir.path().join("out/identity.json");
    let kept: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(kept["identity"]["the options"], json!({"max_tokens": 512, "temperature": 0.0}));
    assert_eq!(kept["sent"], json!({"max_completion_tokens": 512}));
    BROKE.store(false, Ordering::SeqCst);
    let before = server.seen().len();
    // the same options, but now somebody asks for one
    let done = eval(dir.path(), &server, &[&one[..], &["--resume", "--temperature", "0"]].concat()).output().unwrap();
    assert!(stderr(&done).contains("temperature is what --temperature asks for"), "{}", stderr(&done));
    assert_eq!(server.seen().len(), before + 1);
    let done = eval(dir.path(), &server, &[&one[..], &["--resume", "--json"]].concat()).output().unwrap();
    assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
    assert!(!stderr(&done).contains("does not take"), "{}", stderr(&done));
    let summary: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!((&summary["metrics"]["correct"], &summary["refused"]), (&json!(4), &json!(0)));
    assert_eq!(summary["endpoint_options"], json!({"max_completion_tokens": 512}));
    let seen = server.seen();
    assert_eq!(seen.len(), before + 3);
    assert!(seen[before + 1..].iter().all(|r| options(r) == json!({"max_completion_tokens": 512})));
    // a folder of before such options were kept goes on, too
    let mut old: Map<String, Value> = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    old.remove("sent");
    fs::write(&file, Value::Object(old).to_string()).unwrap();
    fs::remove_file(dir.path().join("out/summary.json")).unwrap();
    let predictions = dir.path().join("out/predictions.jsonl");
    let first = fs::read_to_string(&predictions).unwrap().lines().next().unwrap().to_owned() + "\n";
    fs::write(&predictions, first).unwrap();
    let done = eval(dir.path(), &server, &[&one[..], &["--resume"]].concat()).output().unwrap();
    assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
    assert_eq!(server.seen().len(), before + 3 + 5);
}
