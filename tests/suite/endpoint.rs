//! Evaluations of a model that is served elsewhere: against a real server on loopback that answers, refuses, stalls and
//! breaks off.

use crate::golden_cases::cases;
use crate::support::server::{Reply, Server, said};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use vlm::base::Result;
use vlm::classify::endpoint::{Endpoint, Said};
use vlm::classify::evaluate::Classes;
use vlm::classify::records::Record;
use vlm::data::dataset::{OnBad, Sample, read_dataset};

const KEY: &str = "sk-very-secret-0123456789";

pub fn endpoint(server: &Server) -> Endpoint {
    Endpoint {
        url: server.url.clone(),
        model: "some-model".into(),
        key: Some(KEY.into()),
        options: serde_json::from_value(json!({"temperature": 0.0, "max_tokens": 9})).unwrap(),
        flags: BTreeMap::new(),
        suffix: None,
        timeout: Duration::from_secs(20),
        retries: 3,
        certificates: None,
        first_wait: Duration::from_millis(2),
        concurrency: 1,
        requests_per_minute: None,
        skip_refused: false,
    }
}

/// A set of `labels`, all of one photo.
pub fn set(dir: &Path, labels: &[&str]) -> Vec<Sample> {
    let image = cases().join("images/wide.png");
    let line = |label: &&str| json!({"image": image, "label": label}).to_string();
    let file = dir.join("set.jsonl");
    fs::write(&file, labels.iter().map(line).collect::<Vec<_>>().join("\n")).unwrap();
    read_dataset(&file, Some("Which damage?"), OnBad::Fail).unwrap().samples
}

/// What was answered, what was noted, and how it ended.
pub fn ask(endpoint: &Endpoint, samples: &[Sample]) -> (Vec<Record>, Vec<String>, Result<()>) {
    let classes = Classes::of(Path::new("set.jsonl"), samples, false).unwrap();
    let (mut records, mut notes) = (Vec::new(), Vec::new());
    let end = endpoint.ask(Path::new("set.jsonl"), samples, &classes, false, &|| false, &mut |said| {
        match said {
            Said::Note(text) => notes.push(text),
            Said::Changed(_) => (),
            Said::Answer(record) => records.push(*record),
        }
        Ok(())
    });
    (records, notes, end)
}

#[test]
fn trouble_that_passes_is_waited_out() {
    let server = Server::start(|n, _| match n {
        0 => Reply::Http(429, "Retry-After: 1\r\n", r#"{"error": {"message": "slow down"}}"#.into()),
        1 => Reply::Http(500, "", "<html>oops</html>".into()),
        2 => Reply::Cut,
        3 => Reply::Noise,
        4 => Reply::Http(200, "", "{\"choices\": [".into()),
        5 => Reply::Http(200, "", "{\"choices\": []}".into()),
        6 => Reply::Silence(Duration::ZERO),
        7 => Reply::Http(503, "retry-after-ms: 30\r\n", String::new()),
        _ => Reply::Http(200, "", said(" Dent.\n")),
    });
    let dir = tempfile::tempdir().unwrap();
    let (records, notes, end) = ask(&Endpoint { retries: 8, ..endpoint(&server) }, &set(dir.path(), &["dent"]));
    end.unwrap();
    assert_eq!((records.len(), records[0].right, records[0].prediction.as_str()), (1, true, "dent"));
    assert_eq!(records[0].answer.as_deref(), Some(" Dent.\n"));
    assert_eq!(records[0].usage.unwrap().prompt_tokens, 1000);
    assert_eq!(notes.len(), 8, "{notes:?}");
    assert!(notes[0].contains("429: slow down; again in 1.0 s"), "{notes:?}");
    assert!(notes[4].contains("not JSON") && notes[5].contains("no choices"), "{notes:?}");
    let seen = server.seen();
    assert!(seen[1].at - seen[0].at >= Duration::from_secs(1), "Retry-After was not kept");
    assert!(seen.iter().all(|r| r.header("authorization") == Some(&format!("Bearer {KEY}"))));
}

#[test]
fn a_server_that_stalls_is_given_up_and_asked_again() {
    let server = Server::start(|n, _| match n {
        0 => Reply::Silence(Duration::from_secs(30)),
        _ => Reply::Http(200, "", said("dent")),
    });
    let dir = tempfile::tempdir().unwrap();
    let impatient = Endpoint { timeout: Duration::from_millis(500), ..endpoint(&server) };
    let (records, notes, end) = ask(&impatient, &set(dir.path(), &["dent"]));
    end.unwrap();
    assert_eq!((records.len(), notes.len()), (1, 1));
    assert!(notes[0].contains("timeout"), "{notes:?}");
}

#[test]
fn what_is_sent() {
    let server = Server::start(|_, _| Reply::Http(200, "", said("dent")));
    let dir = tempfile::tempdir().unwrap();
    let mut asked = endpoint(&server);
    asked.url += "/";
    asked.suffix = Some("One word.".into());
    asked.options.insert("max_tokens".into(), Value::Null);
    asked.options.insert("max_completion_tokens".into(), json!(7));
    ask(&asked, &set(dir.path(), &["dent"])).2.unwrap();
    let seen = server.seen();
    assert_eq!(seen[0].path, "/v1/chat/completions");
    let body = &seen[0].body;
    assert_eq!((&body["model"], &body["temperature"]), (&json!("some-model"), &json!(0.0)));
    assert_eq!((&body["max_tokens"], &body["max_completion_tokens"]), (&Value::Null, &json!(7)));
    // the answer is not sent along with the question
    assert_eq!(body["messages"].as_array().unwrap().len(), 1);
    let content = &body["messages"][0]["content"];
    use base64::Engine;
    let photo = fs::read(cases().join("images/wide.png")).unwrap();
    let photo = base64::engine::general_purpose::STANDARD.encode(photo);
    assert_eq!(content[0]["image_url"]["url"], json!(format!("data:image/png;base64,{photo}")));
    assert_eq!(content[1], json!({"type": "text", "text": "Which damage?"}));
    assert_eq!(content[2]["text"], "\nOne word.");
}

#[test]
fn what_never_works_ends_with_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let samples = set(dir.path(), &["dent"]);
    let error = |status, headers, body: &str, change: &dyn Fn(&mut Endpoint)| {
        let body = body.to_owned();
        let server = Server::start(move |_, _| Reply::Http(status, headers, body.clone()));
        let mut endpoint = endpoint(&server);
        change(&mut endpoint);
        let (records, _, end) = ask(&endpoint, &samples);
        assert!(records.is_empty());
        (end.unwrap_err().to_string(), server.seen().len())
    };
    let (said, tries) = error(500, "", r#"{"error": "broken"}"#, &|_| ());
    assert!(said.contains("line 1") && said.contains("500: broken; gave up after 4 tries"), "{said}");
    assert_eq!(tries, 4);
    let (said, tries) = error(401, "", r#"{"error": {"message": "who?"}}"#, &|e| e.key = None);
    assert!(said.contains("401: who?") && said.contains("no key was sent") && said.contains("VLM_API_KEY"), "{said}");
    assert_eq!(tries, 1);
    // a server that repeats the key
    let (said, _) = error(403, "", &format!("Bearer {KEY} is unknown"), &|_| ());
    assert!(said.contains("(key) is unknown") && !said.contains(KEY), "{said}");
    let (said, _) = error(404, "", "no such model", &|_| ());
    assert!(said.contains("--endpoint-model"), "{said}");
    let (said, _) = error(302, "Location: http://127.0.0.1:1/\r\n", "", &|_| ());
    assert!(said.contains("302") && said.contains("give that URL"), "{said}");
    let (said, _) = error(400, "", r#"{"error": {"message": "too large"}}"#, &|_| ());
    assert!(said.contains("400: too large") && said.contains("--skip-bad"), "{said}");
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let server = Server::start(|_, _| Reply::Cut);
    let gone = Endpoint { url: format!("http://{nobody}/v1"), retries: 1, ..endpoint(&server) };
    let said = ask(&gone, &samples).2.unwrap_err().to_string();
    assert!(said.contains(&nobody.to_string()) && said.contains("after 2 tries"), "{said}");
    for (url, words) in [
        ("localhost:8000", "give a URL"),
        ("ftp://a.org", "give a URL"),
        ("https://", "give a URL"),
        ("https://me:word@a.org/v1", "VLM_API_KEY"),
        ("https://a.org/v1?key=5", "VLM_API_KEY"),
    ] {
        let error = Endpoint { url: url.into(), ..endpoint(&server) }.address().unwrap_err();
        assert!(error.is_usage() && error.to_string().contains(words), "{url}: {error}");
    }
    assert_eq!(
        Endpoint { url: "https://a.org/v1".into(), ..endpoint(&server) }.address().unwrap(),
        "https://a.org/v1/chat/completions"
    );
}

#[test]
fn what_is_refused_can_count_as_wrong() {
    let server = Server::start(|n, _| match n {
        0 => Reply::Http(400, "", r#"{"error": {"message": "not this photo"}}"#.into()),
        _ => Reply::Http(200, "", said("crack")),
    });
    let dir = tempfile::tempdir().unwrap();
    let lenient = Endpoint { skip_refused: true, ..endpoint(&server) };
    let (records, _, end) = ask(&lenient, &set(dir.path(), &["dent", "crack"]));
    end.unwrap();
    assert_eq!((records[0].prediction.as_str(), records[0].right), ("(other)", false));
    assert_eq!(records[0].tags, ["refused"]);
    assert!(records[0].answer.as_deref().unwrap().contains("not this photo"));
    assert!(records[1].right);
}

#[test]
fn requests_keep_the_rate_and_run_side_by_side() {
    static RUNNING: AtomicUsize = AtomicUsize::new(0);
    static MOST: AtomicUsize = AtomicUsize::new(0);
    let server = Server::start(|_, _| {
        MOST.fetch_max(RUNNING.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(150));
        RUNNING.fetch_sub(1, Ordering::SeqCst);
        Reply::Http(200, "", said("dent"))
    });
    let dir = tempfile::tempdir().unwrap();
    let samples = set(dir.path(), &["dent"; 9]);
    let (records, _, end) = ask(&Endpoint { concurrency: 3, ..endpoint(&server) }, &samples);
    end.unwrap();
    let mut lines: Vec<usize> = records.iter().map(|r| r.line).collect();
    lines.sort();
    assert_eq!(lines, (1..=9).collect::<Vec<_>>());
    let most = MOST.load(Ordering::SeqCst);
    assert!((2..=3).contains(&most), "{most} at once");
    // 50 ms apart, whoever sends
    let start = Instant::now();
    let steady = Endpoint { concurrency: 4, requests_per_minute: Some(1200.0), ..endpoint(&server) };
    ask(&steady, &samples[..5]).2.unwrap();
    assert!(start.elapsed() >= Duration::from_millis(200), "{:?}", start.elapsed());
}

/// By https to whom a trusted authority vouches for, and to nobody else: the key stays here.
#[test]
fn https_asks_only_whom_it_trusts() {
    let server = Server::start_tls(|_, _| Reply::Http(200, "", said("dent")));
    let dir = tempfile::tempdir().unwrap();
    let samples = set(dir.path(), &["dent"]);
    let trusting = |file: &Path| Endpoint { certificates: Some(file.into()), ..endpoint(&server) };
    let tls = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tls");
    let (records, notes, end) = ask(&trusting(&tls.join("authority.pem")), &samples);
    end.unwrap();
    assert_eq!((records.len(), records[0].right, notes.len()), (1, true, 0), "{notes:?}");
    assert_eq!(server.seen()[0].header("authorization"), Some(&*format!("Bearer {KEY}")));
    // Mozilla's list has no such authority
    let (records, _, end) = ask(&endpoint(&server), &samples);
    let said = end.unwrap_err().to_string();
    assert!(said.contains("certificate") && said.contains("SSL_CERT_FILE"), "{said}");
    assert_eq!((records.len(), server.seen().len()), (0, 1));
    let said = ask(&trusting(&tls.join("server.key")), &samples).2.unwrap_err().to_string();
    assert!(said.contains("server.key") && said.contains("has no certificate"), "{said}");
    let said = ask(&trusting(Path::new("absent.pem")), &samples).2.unwrap_err().to_string();
    assert!(said.contains("absent.pem"), "{said}");
    // the program takes the file from the environment
    let done = eval(dir.path(), &server, &[]).env("SSL_CERT_FILE", tls.join("authority.pem")).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    no_key(dir.path(), &done);
    assert_eq!(server.seen().len(), 2);
}

/// `vlm eval` with the key in the environment.
pub fn eval(dir: &Path, server: &Server, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vlm"));
    for proxy in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
        command.env_remove(proxy);
    }
    command.env("VLM_API_KEY", KEY).env("VLM_LOG", "trace").current_dir(dir);
    let asked = ["eval", "--endpoint", &server.url, "--endpoint-model", "m", "--data", "set.jsonl", "--out", "out"];
    command.args(asked).args(["--prompt", "Which?"]).args(more);
    command
}

/// The key stands nowhere: not in what was printed, not in a file.
fn no_key(dir: &Path, done: &Output) {
    let printed = [&done.stdout[..], &done.stderr].concat();
    assert!(!String::from_utf8_lossy(&printed).contains(KEY), "{}", String::from_utf8_lossy(&printed));
    for entry in fs::read_dir(dir.join("out")).unwrap() {
        let path = entry.unwrap().path();
        assert!(!fs::read_to_string(&path).unwrap().contains(KEY), "{}", path.display());
    }
}

#[test]
fn a_stopped_evaluation_asks_only_what_is_left() {
    let dir = tempfile::tempdir().unwrap();
    set(dir.path(), &["dent", "crack", "dent", "dent"]);
    let broken = Server::start(|n, _| match n {
        0 | 1 => Reply::Http(200, "", said(&format!("dent, says {KEY}"))),
        _ => Reply::Http(401, "", format!("{KEY} has no money left")),
    });
    let done = eval(dir.path(), &broken, &["--concurrency", "1"]).output().unwrap();
    assert_eq!(done.status.code(), Some(1));
    let error = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(error.contains("(key) has no money left"), "{error}");
    no_key(dir.path(), &done);
    assert!(!dir.path().join("out/summary.json").exists());
    let server = Server::start(|_, _| Reply::Http(200, "", said("Dent.")));
    // another address is another evaluation
    let done = eval(dir.path(), &server, &["--resume"]).output().unwrap();
    let error = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.code() == Some(1) && error.contains("endpoint was"), "{error}");
    let kept = fs::read_to_string(dir.path().join("out/identity.json")).unwrap();
    fs::write(dir.path().join("out/identity.json"), kept.replace(&broken.url, &server.url)).unwrap();
    let prices = ["--resume", "--price-in", "2", "--price-out", "10", "--json"];
    let done = eval(dir.path(), &server, &prices).output().unwrap();
    assert_eq!(done.status.code(), Some(0), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(server.seen().len(), 2);
    no_key(dir.path(), &done);
    let summary: Value = serde_json::from_slice(&done.stdout).unwrap();
    // the first two said more than a label
    assert_eq!((&summary["metrics"]["n"], &summary["metrics"]["correct"]), (&json!(4), &json!(2)));
    assert_eq!(summary["usage"]["prompt_tokens"], 4000);
    let dollars = summary["dollars"].as_f64().unwrap();
    assert!((dollars - (4000.0 * 2.0 + 80.0 * 10.0) / 1e6).abs() <= 1e-12, "{dollars}");
    let predictions = fs::read_to_string(dir.path().join("out/predictions.jsonl")).unwrap();
    let lines: Vec<u64> =
        predictions.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["line"].as_u64().unwrap()).collect();
    assert_eq!(lines, [1, 2, 3, 4]);
}

/// What an answer without a count cost nobody knows: the sum of the others is the least.
#[test]
fn a_cost_without_all_counts_is_the_least() {
    let without = said("dent").replace("\"usage\"", "\"other\"");
    for (first, wanted) in [(said("dent"), ", 0.0044 dollars; "), (without, ", at least 0.0022 dollars; ")] {
        let dir = tempfile::tempdir().unwrap();
        set(dir.path(), &["dent", "dent"]);
        let server = Server::start(move |n, _| Reply::Http(200, "", if n == 0 { first.clone() } else { said("dent") }));
        let prices = ["--price-in", "2", "--price-out", "10"];
        let done = eval(dir.path(), &server, &prices).output().unwrap();
        let printed = String::from_utf8_lossy(&done.stdout).into_owned();
        assert!(done.status.success() && printed.contains(wanted), "{printed}");
        // and so it stands in what an evaluation that is finished says again
        let done = eval(dir.path(), &server, &[&prices[..], &["--resume"]].concat()).output().unwrap();
        let printed = String::from_utf8_lossy(&done.stdout).into_owned();
        assert!(printed.contains(wanted), "{printed}");
    }
}

#[test]
fn ctrl_c_keeps_what_was_answered() {
    let dir = tempfile::tempdir().unwrap();
    set(dir.path(), &["dent"; 40]);
    let server = Server::start(|_, _| Reply::Slow(Duration::from_millis(100), said("dent")));
    let quiet = |more: &[&str]| {
        let mut command = eval(dir.path(), &server, more);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let child = quiet(&["--concurrency", "2"]).spawn().unwrap();
    let predictions = dir.path().join("out/predictions.jsonl");
    let answered = || fs::read_to_string(&predictions).map_or(0, |text| text.lines().count());
    while answered() < 2 {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let done = child.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(130), "{error}");
    assert!(error.contains("of 40 photos") && error.contains("--resume"), "{error}");
    let before = answered();
    assert!((2..40).contains(&before), "{before}");
    let asked = server.seen().len();
    let done = quiet(&["--concurrency", "20", "--resume", "--json"]).output().unwrap();
    assert_eq!(done.status.code(), Some(0), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(server.seen().len() - asked, 40 - before);
    let summary: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(summary["metrics"]["accuracy"], 1.0);
}
