//! Inputs, outputs and devices that are no good: what is wrong is said in one sentence, and nothing is left behind.

use crate::commands::{arguments, copy, fails, image, json_of, program, single};
use crate::folders::write_json;
use crate::golden_cases::cases;
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Expects exit code 1 within a minute, and a last sentence that `path` is `what`.
#[track_caller]
fn not_waited_for(line: &str, paths: &[&Path], path: &Path, what: &str) {
    let mut command = Command::new("timeout");
    command.arg("60").arg(program().get_program()).args(arguments(line, paths));
    let done = command.output().unwrap();
    let said = String::from_utf8(done.stderr).unwrap();
    let wanted = format!("{}: is {what}, and a plain file is wanted; write what it gives to one", path.display());
    let last = said.lines().last().unwrap_or_default();
    assert!(done.status.code() == Some(1) && last.contains(&wanted), "{line}: {:?}\n{said}", done.status);
}

/// What has no end, or waits for a writer, is not read.
#[test]
fn pipes_and_devices_are_no_files() {
    let (model, dir) = (single(), tempfile::tempdir().unwrap());
    let at = |name: &str| dir.path().join(name);
    let pipe_at = |path: &Path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    let (data, out, null) = (cases().join("train.jsonl"), at("out"), Path::new("/dev/null"));
    fs::create_dir(at("dent")).unwrap();
    let photo = at("dent/pipe.jpg");
    pipe_at(&photo);
    let ask = "generate --model {} --image {} --prompt hi";
    not_waited_for(ask, &[&model, &photo], &photo, "a pipe");
    not_waited_for(ask, &[&model, Path::new("/dev/zero")], Path::new("/dev/zero"), "a device");
    fails("data import {} --out o", &[dir.path()], &["pipe.jpg", "is a pipe, and a plain file is wanted"]);
    for ending in ["jsonl", "json", "toml", "csv", "safetensors"] {
        pipe_at(&at(&format!("pipe.{ending}")));
    }
    let lines = at("pipe.jsonl");
    for (set, what) in [(lines.as_path(), "a pipe"), (null, "a device")] {
        not_waited_for("eval --model {} --data {} --out {}", &[&model, set, &out], set, what);
        not_waited_for("train --model {} --data {} --out {}", &[&model, set, &out], set, what);
        let validate = "train --model {} --data {} --out {} --eval-data {}";
        not_waited_for(validate, &[&model, &data, &out, set], set, what);
        not_waited_for("data show {}", &[set], set, what);
        not_waited_for("data split {} --out {}", &[set, &out], set, what);
        not_waited_for("data dedupe --model {} {} --out {}", &[&model, set, &out], set, what);
        not_waited_for("data split {} --out {} --pairs {}", &[&data, &out, set], set, what);
        not_waited_for("generate --model {} --messages {}", &[&model, set], set, what);
        not_waited_for("train --config {}", &[set], set, what);
        not_waited_for("sweep --config {}", &[set], set, what);
        let cached = "data dedupe --model {} {} --out {} --cache {}";
        not_waited_for(cached, &[&model, &data, &at("clean"), set], set, what);
    }
    let (table, json, tensors) = (at("pipe.csv"), at("pipe.json"), at("pipe.safetensors"));
    not_waited_for("data import {} --out {}", &[&table, &out], &table, "a pipe");
    not_waited_for("data import {} --out {}", &[&json, &out], &json, "a pipe");
    let verify = "verify --model {} --reference {} --messages {}";
    not_waited_for(verify, &[&model, &tensors, &cases().join("one_image.json")], &tensors, "a pipe");
    for name in ["config.json", "tokenizer.json", "chat_template.jinja", "processor_config.json", "model.safetensors"] {
        let broken = copy("single");
        let path = broken.path().join(name);
        fs::remove_file(&path).unwrap();
        pipe_at(&path);
        not_waited_for("generate --model {} --prompt hi", &[broken.path()], &path, "a pipe");
    }
    let adapter = at("adapter");
    fs::create_dir(&adapter).unwrap();
    let config = adapter.join("adapter_config.json");
    pipe_at(&config);
    not_waited_for("generate --model {} --adapter {} --prompt hi", &[&model, &adapter], &config, "a pipe");
}

/// What somebody writes into is read, as of a shell's `<(…)`.
#[test]
fn what_a_shell_pipes_in_is_read() {
    let (model, data) = (single(), cases().join("train.jsonl"));
    let piped = |line: &str, paths: &[&Path], text: &str| {
        let mut command = program();
        command.args(arguments(line, paths)).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let json = |done: Output| serde_json::from_slice::<Value>(&done.stdout).unwrap();
    let whole = |text: String| text.replace("images/", &format!("{}/images/", cases().display()));
    let lines = whole(fs::read_to_string(&data).unwrap());
    let said = json(piped("data show /dev/stdin --json", &[], &lines));
    let wanted = json_of("data show {} --json", &[&data]);
    assert_eq!(said["samples"], wanted["samples"]);
    let messages = cases().join("one_image.json");
    let ask = "generate --model {} --temperature 0 --max-new-tokens 3 --json --messages";
    let text = whole(fs::read_to_string(&messages).unwrap());
    let said = json(piped(&format!("{ask} /dev/stdin"), &[&model], &text));
    assert_eq!(said["token_ids"], json_of(&format!("{ask} {{}}"), &[&model, &messages])["token_ids"]);
    // a set that a run has to know again, or whose lines are written elsewhere
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    for (line, paths) in [
        ("eval --model {} --data /dev/stdin --out {}", &[model.as_path(), &out][..]),
        ("train --model {} --data /dev/stdin --out {}", &[&model, &out]),
        ("data split /dev/stdin --out {} --test 1", &[&out]),
    ] {
        let done = piped(line, paths, &lines);
        let said = String::from_utf8(done.stderr).unwrap();
        let wanted =
            "vlm: /dev/stdin: has to be read twice here, which only a plain file can be: write its lines to one\n";
        assert!(done.status.code() == Some(1) && said.ends_with(wanted), "{line}: {said}");
    }
}

#[test]
fn folders_and_files_that_are_not_there() {
    let (model, image, dir) = (single(), image(), tempfile::tempdir().unwrap());
    let (absent, out) = (dir.path().join("absent"), dir.path().join("out"));
    let shown = absent.to_str().unwrap();
    fails("generate --model {} --prompt hi", &[&absent], &[shown]);
    fails("generate --model {} --image {} --prompt hi", &[&model, &absent], &[shown]);
    fails("generate --model {} --messages {}", &[&model, &absent], &[shown]);
    fails("generate --model {} --adapter {} --prompt hi", &[&model, &absent], &[shown]);
    fails("eval --model {} --data {} --out {}", &[&model, &absent, &out], &[shown]);
    fails("merge --model {} --adapter {} --out {}", &[&model, &absent, &out], &[shown]);
    fails("preprocess --image {} --out {}", &[&absent, &out], &[shown]);
    fails("preprocess --image {} --model {} --out {}", &[&image, &absent, &out], &[shown]);
    fails("init --config {} --out {}", &[&absent, &out], &[shown]);
    fails("verify --model {} --reference {} --messages {}", &[&model, &absent, &absent], &[shown]);
    fails("inspect {}", &[&absent], &[shown, "no such folder"]);
    fails("inspect {}", &[dir.path()], &["neither config.json", "adapter_config.json"]);
    assert!(!out.exists(), "what fails leaves nothing behind");
}

#[test]
fn outputs_that_cannot_be_written() {
    let (model, image, dir) = (single(), image(), tempfile::tempdir().unwrap());
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let inside = file.join("out");
    let messages = cases().join("one_image.json");
    let (uneven, adapter) = (cases().join("uneven"), cases().join("uneven.train.mixed/final_adapter"));
    let shown = [file.to_str().unwrap()];
    fails("preprocess --image {} --out {}", &[&image, &inside], &shown);
    fails("dump --model {} --messages {} --out {}", &[&model, &messages, &inside], &shown);
    fails("init --config {} --out {}", &[&model, &inside], &shown);
    fails("merge --model {} --adapter {} --out {}", &[&uneven, &adapter, &inside], &shown);
    fails("eval --model {} --data {} --out {}", &[&model, &cases().join("train.jsonl"), &inside], &shown);
    let full = dir.path().join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("precious"), "").unwrap();
    fails("merge --model {} --adapter {} --out {}", &[&uneven, &adapter, &full], &["not empty"]);
    assert_eq!(crate::folders::entries(&full), ["precious"]);
}

/// A PNG whose header promises `width` x `height` pixels, and which has hardly any.
pub fn png(width: u32, height: u32) -> Vec<u8> {
    let chunk = |name: &[u8; 4], data: &[u8]| {
        let body = [name.as_slice(), data].concat();
        [&(data.len() as u32).to_be_bytes()[..], &body, &crc32fast::hash(&body).to_be_bytes()].concat()
    };
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    [b"\x89PNG\r\n\x1a\n".to_vec(), chunk(b"IHDR", &header), chunk(b"IDAT", &[]), chunk(b"IEND", &[])].concat()
}

#[test]
fn pictures_that_are_no_good() {
    let (model, dir) = (single(), tempfile::tempdir().unwrap());
    let jpeg = fs::read(cases().join("../images/420.jpg")).unwrap();
    let out = dir.path().join("out");
    for (name, bytes, words) in [
        ("half.jpg", jpeg[..jpeg.len() / 2].to_vec(), ["half.jpg", ""]),
        ("bomb.png", png(100_000, 100_000), ["bomb.png", "178956970"]),
        ("long.png", png(100_000, 100), ["long.png", "200"]),
        ("empty.png", Vec::new(), ["empty.png", ""]),
        ("text.jpg", b"not a picture".to_vec(), ["text.jpg", "JPEG, PNG, WebP and GIF"]),
    ] {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        fails("generate --model {} --image {} --prompt hi", &[&model, &path], &words);
        fails("preprocess --image {} --out {}", &[&path, &out], &words);
    }
    fails("preprocess --image {} --out {}", &[dir.path(), &out], &[dir.path().to_str().unwrap()]);
    let messages = dir.path().join("chat.json");
    let ask = |image: &str, role: &str| {
        let content = json!([{"type": "image", "image": image}, {"type": "text", "text": "hi"}]);
        write_json(&messages, &json!({"messages": [{"role": role, "content": content}]}));
    };
    ask("http://example.org/a.jpg", "user");
    fails("generate --model {} --messages {}", &[&model, &messages], &["on the network", "curl"]);
    ask(image().to_str().unwrap(), "system");
    fails("generate --model {} --messages {}", &[&model, &messages], &["message 1 (system)", "user message"]);
    fs::write(&messages, "{\"messages\": [\n}").unwrap();
    fails("generate --model {} --messages {}", &[&model, &messages], &["chat.json, line 2"]);
}

#[test]
fn checkpoints_that_are_no_good() {
    let ask = "generate --model {} --prompt hi";
    let broken = copy("single");
    let weights = broken.path().join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() - 10]).unwrap();
    fails(ask, &[broken.path()], &["model.safetensors"]);
    fs::write(&weights, [&u64::MAX.to_le_bytes()[..], &bytes[8..]].concat()).unwrap();
    fails(ask, &[broken.path()], &["model.safetensors"]);
    fs::write(&weights, b"{}").unwrap();
    fails(ask, &[broken.path()], &["model.safetensors"]);
    fails("inspect {}", &[broken.path()], &["model.safetensors"]);
    let shards = copy("uneven");
    fs::remove_file(shards.path().join("model-00002-of-00003.safetensors")).unwrap();
    fails(ask, &[shards.path()], &["model-00002-of-00003.safetensors"]);
    let config = copy("single");
    let path = config.path().join("config.json");
    let with = |key: &str, value: Value| {
        let mut changed: Value = serde_json::from_slice(&fs::read(single().join("config.json")).unwrap()).unwrap();
        changed["text_config"][key] = value;
        write_json(&path, &changed);
    };
    with("logit_cap", json!(30));
    fails(ask, &[config.path()], &["config.json", "logit_cap", "does not know"]);
    with("hidden_act", json!("relu"));
    fails(ask, &[config.path()], &["hidden_act", "relu"]);
    with("intermediate_size", json!(64));
    fails(ask, &[config.path()], &["the tensors are not those of config.json", "gate_proj.weight has [41, 52]"]);
    // the library has its own say about it, and only the sentence is shown
    let tokens = copy("single");
    let path = tokens.path().join("tokenizer.json");
    let mut changed: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let added = changed["added_tokens"].as_array_mut().unwrap();
    added.push(added[0].clone());
    added.last_mut().unwrap()["content"] = json!("!");
    write_json(&path, &changed);
    fails(ask, &[tokens.path()], &["tokenizer.json: lists the added token ! with the id 421", "give it 0"]);
    for name in ["tokenizer.json", "processor_config.json", "chat_template.jinja"] {
        let without = copy("single");
        fs::remove_file(without.path().join(name)).unwrap();
        fails(ask, &[without.path()], &[without.path().to_str().unwrap()]);
    }
}

/// A way of drawing that this program lacks is no matter where the likeliest token is taken.
#[test]
fn draws_that_are_not_supported() {
    let model = copy("single");
    let path = model.path().join("generation_config.json");
    write_json(&path, &json!({"eos_token_id": 423, "do_sample": true, "min_p": 0.1}));
    let wanted = "generation_config.json: min_p: it is 0.1, a way of choosing tokens that is not supported; remove the key, or \
                  give --temperature 0";
    fails("generate --model {} --prompt hi", &[model.path()], &[wanted]);
    write_json(&path, &json!({"eos_token_id": 423, "min_p": 0.1}));
    fails("generate --model {} --prompt hi --temperature 0.5", &[model.path()], &[wanted]);
    json_of("generate --model {} --prompt hi --max-new-tokens 1 --json", &[model.path()]);
}

#[test]
fn adapters_of_another_model() {
    let (model, dir) = (single(), tempfile::tempdir().unwrap());
    let adapter = cases().join("uneven.train.mixed/final_adapter");
    fails("generate --model {} --adapter {} --prompt hi", &[&model, &adapter], &["does not fit this model"]);
    let out = dir.path().join("out");
    fails("merge --model {} --adapter {} --out {}", &[&model, &adapter, &out], &["does not fit this model"]);
    assert!(!out.exists());
    fails("inspect {}", &[dir.path()], &["adapter_config.json"]);
}

#[test]
fn devices_that_are_not_there_and_what_they_compute_in() {
    let ask = "generate --model {} --prompt hi";
    for device in ["cuda", "emulated"] {
        let line = format!("{ask} --device {device} --precision f32");
        fails(&line, &[&single()], &["--precision f32", "bf16", "use --device cpu"]);
    }
    let problem = &json_of("doctor --json", &[])["cuda_problem"];
    if let Some(problem) = problem.as_str() {
        fails(&format!("{ask} --device cuda"), &[&single()], &[&format!("--device cuda: {problem}")]);
    }
    let said =
        json_of("generate --model {} --prompt hi --device cpu --temperature 0 --json --max-new-tokens 3", &[&single()]);
    assert!(said["device"]["name"].as_str().unwrap().starts_with("cpu"));
    assert_eq!(said["token_ids"].as_array().unwrap().len(), 3);
    assert_eq!(said["finish_reason"], "length");
}
