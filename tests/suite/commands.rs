//! The program as its user meets it: exit codes, one sentence where something is wrong, JSON that parses.

use crate::folders::shared;
use crate::golden_cases::cases;
use serde_json::{Value, json};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use vlm::io::lock::FolderLock;

pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vlm"));
    command.env_remove("VLM_LOG").env("RUST_BACKTRACE", "1");
    command
}

/// Arguments separated by spaces; `{}` stands for the paths given.
pub fn arguments(line: &str, paths: &[&Path]) -> Vec<String> {
    let mut paths = paths.iter();
    let path = |word: &str| match word {
        "{}" => paths.next().expect("a path for each {}").to_str().unwrap().to_owned(),
        word => word.to_owned(),
    };
    let words = line.split_whitespace().map(path).collect();
    assert!(paths.next().is_none(), "a path too many for {line}");
    words
}

#[derive(Debug)]
pub struct Done {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

pub fn vlm(line: &str, paths: &[&Path]) -> Done {
    let done = program().args(arguments(line, paths)).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Done { code: done.status.code(), stdout: text(done.stdout), stderr: text(done.stderr) }
}

/// Runs and expects success; what was printed.
pub fn works(line: &str, paths: &[&Path]) -> String {
    let done = vlm(line, paths);
    assert_eq!(done.code, Some(0), "{line}\n{}", done.stderr);
    done.stdout
}

pub fn json_of(line: &str, paths: &[&Path]) -> Value {
    let said = works(line, paths);
    serde_json::from_str(&said).unwrap_or_else(|e| panic!("{line}: {e}\n{said}"))
}

/// Expects exit code 1 and on stderr one sentence that says each of `words`.
#[track_caller]
pub fn fails(line: &str, paths: &[&Path], words: &[&str]) {
    let done = vlm(line, paths);
    assert_eq!(done.code, Some(1), "{line}\n{}{}", done.stdout, done.stderr);
    let said = done.stderr.trim_end();
    assert!(said.starts_with("vlm: ") && !said.contains("panicked"), "{line}\n{said}");
    // notices of eval come before the one message
    let last = said.lines().last().unwrap();
    assert!(words.iter().all(|w| last.contains(w)), "{line}\n{last}\nand not {words:?}");
    let messages =
        said.lines().filter(|l| !l.starts_with("vlm: left out:") && !l.starts_with("vlm: answers are")).count();
    assert_eq!(messages, 1, "{line}\n{said}");
}

/// Expects exit code 2 and a message that says each of `words`.
#[track_caller]
pub fn misused(line: &str, paths: &[&Path], words: &[&str]) {
    let done = vlm(line, paths);
    assert_eq!(done.code, Some(2), "{line}\n{}{}", done.stdout, done.stderr);
    assert!(words.iter().all(|w| done.stderr.contains(w)), "{line}\n{}\nand not {words:?}", done.stderr);
    assert!(!done.stderr.contains("panicked") && done.stdout.is_empty(), "{line}\n{}", done.stderr);
}

pub fn single() -> PathBuf {
    cases().join("single")
}

pub fn image() -> PathBuf {
    cases().join("images/wide.png")
}

/// A copy of a model of the cases, to be broken.
pub fn copy(model: &str) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(cases().join(model)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.path().join(entry.file_name())).unwrap();
    }
    to
}

#[test]
fn wrong_usage_is_2() {
    let (model, image) = (single(), image());
    misused("", &[], &["Usage: vlm"]);
    misused("paint", &[], &["paint"]);
    misused("generate --prompt hi", &[], &["--model"]);
    // of two flags that exclude each other one is asked for
    let one = "\n  <--messages <FILE>|--prompt <TEXT>>\n\nUsage:";
    misused("generate --model {}", &[&model], &[one]);
    misused("generate --model {} --image {}", &[&model, &image], &[one]);
    misused("generate --model {} --image {} --messages a.json", &[&model, &image], &["cannot be used with"]);
    misused("generate --model {} --messages a.json --prompt hi", &[&model], &["cannot be used with"]);
    for x in ["-1", "nan", "inf", "1e39"] {
        let flag = format!("'{x}' for '--temperature <X>'");
        misused(&format!("generate --model {{}} --prompt hi --temperature {x}"), &[&model], &[&flag, "0 or more"]);
    }
    for x in ["-1", "nan", "inf"] {
        let line = format!("verify --model m --reference r --messages f --tolerance {x}");
        misused(&line, &[], &[x, "--tolerance <X>", "0 or more"]);
        let ask = "eval --endpoint http://127.0.0.1:1 --endpoint-model m --data d --out o";
        for (flag, wanted) in [
            ("--temperature", "0 or more"),
            ("--price-out 1 --price-in", "0 or more"),
            ("--price-in 1 --price-out", "0 or more"),
            ("--timeout", "above 0"),
            ("--requests-per-minute", "above 0"),
        ] {
            misused(&format!("{ask} {flag} {x}"), &[], &[flag.split(' ').next_back().unwrap(), x, wanted]);
        }
    }
    misused("generate --model {} --prompt hi --top-p 0", &[&model], &["--top-p 0", "above 0, at most 1"]);
    misused("generate --model {} --prompt hi --repetition-penalty 0", &[&model], &["--repetition-penalty 0"]);
    misused("generate --model {} --prompt hi --presence-penalty inf", &[&model], &["--presence-penalty inf"]);
    misused("generate --model {} --prompt hi --seed=-1", &[&model], &["--seed"]);
    misused("generate --model {} --prompt hi --max-new-tokens 18446744073709551615", &[&model], &["1 to 1000000"]);
    misused("generate --model {} --prompt hi --max-new-tokens 0", &[&model], &["1 to 1000000"]);
    misused("generate --model {} --prompt hi --choices a,,b", &[&model], &["label 2 of the choices is empty"]);
    misused("generate --model {} --prompt hi --choices a,b,a", &[&model], &["labels 1 and 3", r#""a" and "a""#]);
    misused("generate --model {} --prompt hi --min-pixels 9 --max-pixels 8", &[&model], &["--min-pixels 9 is above"]);
    misused("generate --model {} --prompt hi --precision f8", &[&model], &["f8", "bf16"]);
    misused("generate --model {} --image HTTPS://a.org/b.jpg --prompt hi", &[&model], &["from files only", "curl"]);
    misused("preprocess --image http://a.org/b.jpg --out o", &[], &["from files only"]);
    misused("preprocess --image {}", &[&image], &["--out"]);
    misused("eval --model {} --data d --out o --choices a --generate", &[&model], &["cannot be used with"]);
    misused("eval --model {} --data d --out o --batch-size 0", &[&model], &["--batch-size 0"]);
    misused("eval --data d --out o", &[], &["--model", "--endpoint"]);
    misused(
        "eval --model {} --endpoint http://a/v1 --endpoint-model m --data d --out o",
        &[&model],
        &["cannot be used"],
    );
    misused("eval --endpoint http://a/v1 --data d --out o", &[], &["--endpoint-model"]);
    for x in ["-1", "0"] {
        let line = format!("eval --model {{}} --data d --out o --dollars-per-hour {x}");
        misused(&line, &[&model], &["--dollars-per-hour", "above 0"]);
    }
    misused("compare a", &[], &["<B>"]);
    misused("report --out o", &[], &["<DIR>"]);
    misused("init --config {} --out o --dtype f16", &[&model], &["f16", "bf16"]);
    misused("inspect {} --image 0x5", &[&model], &["640x480"]);
    misused("inspect {} --prompt-tokens 99999999999999", &[&model], &["0 to 1000000"]);
    misused("inspect {} --new-tokens 18446744073709551615", &[&model], &["0 to 1000000"]);
}

/// A number below 0 is a flag's value, which the flag has something to say about, and no flag that nobody knows.
#[test]
fn negative_numbers_are_values() {
    for (line, words) in [
        ("train --model m --data d --out o --learning-rate -1", "--learning-rate -1: wanted a number above 0"),
        ("train --model m --data d --out o --learning-rate 0", "--learning-rate 0: wanted a number above 0"),
        ("train --model m --data d --out o --alpha -0.5", "--alpha -0.5"),
        ("train --model m --data d --out o --betas -1,0.9", "--betas -1: wanted two numbers"),
        ("train --model m --data d --out o --dollars-per-hour -1", "wanted a number above 0"),
        ("train --model m --data d --out o --seed -1", "invalid value '-1' for '--seed <N>'"),
        ("train --model m --data d --out o --memory -1", "invalid value '-1' for '--memory <BYTES>': wanted bytes"),
        ("train --model m --data d --out o --memory 24Q", "such as 24G"),
        ("data split f --out o --test -1", "'--test <N|X>'"),
        ("data dedupe --model m f --out o --threshold -2", "--threshold -2: wanted a cosine"),
        ("curve e --target -1", "--target -1"),
        ("train --model m --data d --out o --learning-rate -1e-3", "--learning-rate -0.001: wanted a number above 0"),
        ("train --model m --data d --out o --learning-rate=-1e-3", "--learning-rate -0.001: wanted a number above 0"),
        ("train --model m --data d --out o --weight-decay -.5", "--weight-decay -0.5: wanted 0 or more"),
        ("train --model m --data d --out o --alpha -1E+3", "--alpha -1000"),
        ("train --model m --data d --out o --max-grad-norm -inf", "--max-grad-norm -inf: wanted 0"),
        ("train --model m --data d --out o --dollars-per-hour -1e3", "wanted a number above 0"),
        // no number, and so a flag; and a flag that takes none
        ("train --model m --data d --out o --learning-rate -e3", "unexpected argument '-e'"),
        ("doctor --json -1e3", "unexpected value '-1e3' for '--json'"),
    ] {
        misused(line, &[], &[words]);
    }
    // values that are read, and what comes after them is said
    fails("data dedupe --model m f --out o --threshold -0.5", &[], &["f"]);
    fails("train --model m --data d --out o --memory 24G", &[], &["m: there is no such folder"]);
}

/// A flag without a say is refused: who gave it believes that it does something.
#[test]
fn flags_that_have_no_say() {
    let (model, data) = (single(), cases().join("train.jsonl"));
    let set: &[&Path] = &[&model, &data];
    for flag in ["--temperature 1", "--max-new-tokens 3", "--top-k 3", "--seed 3", "--presence-penalty -1"] {
        let name = flag.split(' ').next().unwrap();
        misused(&format!("eval --model {{}} --data {{}} --out o {flag}"), set, &[name, "probability", "--generate"]);
        misused(&format!("generate --model {{}} --prompt hi --choices a,b {flag}"), &[&model], &[name, "probability"]);
    }
    for flag in ["--top-p 0.5", "--top-k 3", "--seed 3", "--seed 3 --temperature 0"] {
        let name = flag.split(' ').next().unwrap();
        misused(
            &format!("eval --model {{}} --data {{}} --out o --generate {flag}"),
            set,
            &[name, "--temperature above 0"],
        );
    }
    for flag in
        ["--endpoint-model m", "--endpoint-options {}", "--concurrency 2", "--timeout 3", "--retries 1", "--price-in 1"]
    {
        // a path would be expected in the place of braces
        let flag = flag.replace("{}", "{\"a\":1}");
        let name = flag.split(' ').next().unwrap();
        misused(&format!("eval --model {{}} --data {{}} --out o {flag}"), set, &[name, "cannot be used with"]);
    }
    for flag in ["--device cpu", "--precision f32", "--batch-size 2", "--top-p 0.5", "--max-pixels 9", "--adapter a"] {
        let line = format!("eval --endpoint http://127.0.0.1:1 --endpoint-model m --data {{}} --out o {flag}");
        misused(&line, &[&data], &[flag.split(' ').next().unwrap(), "cannot be used with"]);
    }
    for flag in ["--threshold 0.9", "--plant 3", "--device cpu", "--precision f32", "--cache c"] {
        misused(&format!("data split {{}} --out o {flag}"), &[&data], &["--model"]);
    }
    let rate = "--endpoint http://127.0.0.1:1 --endpoint-model m --requests-per-minute 1e-300";
    misused(&format!("eval {rate} --data {{}} --out o"), &[&data], &["--requests-per-minute 1e-300", "0.0007 or more"]);
    misused("data show {} --per-class 3", &[&data], &["--sheet"]);
    misused("data split {} --out o --train 0 --test 0", &[&data], &["ask for no sample at all"]);
    misused("inspect {} --trace --json", &[&model], &["--trace", "--json"]);
    let adapter = cases().join("uneven.train.mixed/final_adapter");
    misused("inspect {} --trace", &[&adapter], &["--trace", "adapter"]);
    misused("bench one-dollar --out o --epochs 0", &[], &["--epochs"]);
    for flag in ["--photos", "--epochs", "--rank", "--batch-size"] {
        let line = format!("bench one-dollar --out o {flag} 9223372036854775808");
        misused(&line, &[], &[flag, "give a whole number from 1 to 4294967295"]);
    }
}

/// The flags of an endpoint stand under its heading, and no other flag does.
#[test]
fn the_help_of_eval_files_flags_where_they_belong() {
    let help = works("eval --help", &[]);
    let usage = help.lines().find(|l| l.starts_with("Usage:")).unwrap();
    assert!(usage.contains("--model <DIR>|--endpoint <URL>"), "{usage}");
    let (_, below) = help.split_once("A model that is served elsewhere:\n").unwrap();
    let flags = |text: &str| {
        let names = text.lines().filter_map(|l| l.trim_start().strip_prefix("--"));
        names.map(|l| l.split(' ').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let below = below.split("\n\nExample").next().unwrap();
    let want =
        "endpoint endpoint-model endpoint-options concurrency requests-per-minute timeout retries price-in price-out";
    assert_eq!(flags(below).join(" "), want);
    assert!(flags(&help).contains(&"data".to_string()));
}

/// Somebody who took one thing for another is told how to get the other.
#[test]
fn messages_say_what_to_do_next() {
    let (model, dir) = (single(), tempfile::tempdir().unwrap());
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let table = file("labels.csv", "image,label\na.jpg,dent\n");
    let wide = file("wide.json", "{\"images\": [], \"categories\": [], \"annotations\": []}\n");
    let long = file("long.json", "{\n  \"images\": []\n}\n");
    for data in [dir.path(), &table, &wide, &long] {
        for line in ["train --model {} --data {} --out o", "eval --model {} --data {} --out o"] {
            fails(line, &[&model, data], &[data.to_str().unwrap(), "vlm data import"]);
        }
        fails("data split {} --out o", &[data], &["vlm data import"]);
        fails("data show {}", &[data], &["vlm data import"]);
    }
    let hub = "hf download Qwen/Qwen3-VL-8B-Instruct --local-dir Qwen3-VL-8B-Instruct";
    for line in [
        "train --model Qwen/Qwen3-VL-8B-Instruct --data d --out o",
        "generate --model Qwen/Qwen3-VL-8B-Instruct --prompt hi",
        "inspect Qwen/Qwen3-VL-8B-Instruct",
    ] {
        fails(line, &[], &["there is no such folder", hub]);
    }
    fails("generate --model {} --prompt hi", &[&table], &["labels.csv: is a file; wanted the folder"]);
    // a picture that the template would drop
    let content = json!([{"type": "image", "image": image()}, {"type": "text", "text": "hi"}]);
    let turns = json!([{"role": "system", "content": content}, {"role": "user", "content": "Which?"},
        {"role": "assistant", "content": "dent"}]);
    let data = file("set.jsonl", &format!("\n{}\n", json!({"messages": turns})));
    let out = dir.path().join("scores");
    fails("eval --model {} --data {} --out {}", &[&model, &data, &out], &["set.jsonl, line 2", "message 1 (system)"]);
    // one line, and nothing after it
    let sweep = file(
        "sweep.toml",
        "search = \"grid\"\nout = \"o\"\n[train]\nmodel = \"m\"\ndata = \"d\"\neval-data = \"e\"\n[vary]\nrank = [\"many\"]\n",
    );
    let done = vlm("sweep --config {}", &[&sweep]);
    assert_eq!((done.code, done.stderr.lines().count()), (Some(1), 1), "{}", done.stderr);
    assert!(done.stderr.contains("trial 1") && done.stderr.contains("rank"), "{}", done.stderr);
}

#[test]
fn a_warm_up_as_long_as_the_run_is_said() {
    let (model, dir, data) = (single(), tempfile::tempdir().unwrap(), cases().join("train.jsonl"));
    let said = |flags: &str, out: &str| {
        let line = format!("train --model {{}} --data {{}} --out {{}} --rank 1 --max-steps 2 {flags}");
        let done = vlm(&line, &[&model, &data, &dir.path().join(out)]);
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        done.stderr.matches("the warm-up is as long as the run").count()
    };
    assert_eq!(said("--warmup-steps 2", "a"), 1);
    assert_eq!(said("--warmup-ratio 1 --dry-run --peak-tflops 1 --peak-gbs 1", "b"), 1);
    assert_eq!(said("--warmup-steps 1", "c"), 0);
    assert_eq!(said("", "d"), 0);
}

#[test]
fn what_is_json_parses_and_says_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let said = json_of("inspect {} --json", &[&single()]);
    assert_eq!((&said["parameters"], &said["tensors"]), (&json!(226_526), &json!(58)));
    assert!(said["memory"]["bf16"]["activation_bytes"].as_u64() < said["memory"]["f32"]["activation_bytes"].as_u64());
    assert!(works("inspect {}", &[&single()]).contains("226,526"));
    let adapter = cases().join("uneven.train.mixed/final_adapter");
    let said = json_of("inspect {} --json", &[&adapter]);
    assert_eq!((&said["rank"], &said["parameters"]), (&json!(2), &json!(2554)));
    assert!(works("inspect {}", &[&adapter]).contains("2,554 in 18 tensors"));
    let said = json_of("doctor --json", &[]);
    assert!(said["cpu"]["threads"].as_u64() > Some(0) && said["gpus"].is_array(), "{said}");
    assert!(works("doctor", &[]).contains("memory"));
    let out = dir.path().join("p.safetensors");
    let said = json_of("preprocess --image {} --out {} --json", &[&image(), &out]);
    let grid: Vec<u64> = said["image_grid_thw"].as_array().unwrap().iter().map(|g| g.as_u64().unwrap()).collect();
    assert_eq!(said["patches"], json!(grid.iter().product::<u64>()));
    assert_eq!(said["tokens"], json!(grid.iter().product::<u64>() / 4));
    assert_eq!((&said["resized_height"], &said["resized_width"]), (&json!(grid[1] * 16), &json!(grid[2] * 16)));
    let line = "generate --model {} --image {} --prompt Sure? --choices scratch,dent --json";
    let said = json_of(line, &[&single(), &image()]);
    assert!(said["choices"]["scratch"].as_f64() > said["choices"]["dent"].as_f64());
    assert_eq!(said["text"], "scratch");
    // spaces around an answer are not part of it
    let mut spaced = arguments(line, &[&single(), &image()]);
    *spaced.iter_mut().find(|a| a.contains(',')).unwrap() = "scratch, dent".into();
    let again: Value = serde_json::from_slice(&program().args(spaced).output().unwrap().stdout).unwrap();
    assert_eq!(again["choices"], said["choices"]);
    for time in ["load_seconds", "preprocess_seconds", "prefill_seconds", "decode_seconds"] {
        assert!(said["timings"][time].as_f64() >= Some(0.0), "{said}");
    }
}

#[test]
fn answers_are_the_same_on_any_number_of_threads_and_for_a_seed() {
    let messages = cases().join("one_image.json");
    let ask = |threads: &str, seed: &str| {
        let line =
            format!("generate --model {{}} --messages {{}} --max-new-tokens 30 --temperature 3 --seed {seed} --json");
        let mut command = program();
        let done = command.args(arguments(&line, &[&single(), &messages])).env("RAYON_NUM_THREADS", threads).output();
        let said: Value = serde_json::from_slice(&done.unwrap().stdout).unwrap();
        said["token_ids"].clone()
    };
    assert_eq!(ask("1", "5"), ask("3", "5"));
    assert_ne!(ask("1", "5"), ask("1", "6"));
}

#[test]
fn published_configurations_have_the_published_sizes() {
    let Some(configs) = shared("published_configurations_have_the_published_sizes", "data/configs") else { return };
    for (name, parameters) in
        [("2B", 2_127_532_032_u64), ("4B", 4_437_815_808), ("8B", 8_767_123_696), ("32B", 33_357_390_064)]
    {
        let dir = configs.join(format!("Qwen3-VL-{name}-Instruct"));
        assert_eq!(json_of("inspect {} --json", &[&dir])["parameters"], json!(parameters), "{name}");
    }
}

#[test]
fn verify_passes_and_names_the_first_that_differs() {
    let messages = cases().join("one_image.json");
    let reference = cases().join("single.one_image.safetensors");
    let line = "verify --model {} --reference {} --messages {}";
    let said = works(line, &[&single(), &reference, &messages]);
    assert!(said.contains("hidden.2") && !said.contains("<-"), "{said}");
    // another model's tensors: positions agree, the first of another shape or value is named
    let other = cases().join("uneven.one_image.safetensors");
    fails(line, &[&single(), &other, &messages], &["tensor image_embeds", "first that differs"]);
    let strict = vlm(&format!("{line} --tolerance 1e-9"), &[&single(), &reference, &messages]);
    assert_eq!(strict.code, Some(1));
    assert!(strict.stdout.contains("<-") && strict.stderr.contains("image_embeds"), "{}", strict.stderr);
    let unrelated = cases().join("single/model.safetensors");
    fails(line, &[&single(), &unrelated, &messages], &["holds no tensor", "vlm dump"]);
    // what dump writes is what verify compares
    let dir = tempfile::tempdir().unwrap();
    let ours = dir.path().join("ours.safetensors");
    works("dump --model {} --messages {} --out {}", &[&single(), &messages, &ours]);
    works(&format!("{line} --tolerance 0"), &[&single(), &ours, &messages]);
    let cached = dir.path().join("cached.safetensors");
    works("dump --model {} --messages {} --through-cache --out {}", &[&single(), &messages, &cached]);
    works(line, &[&single(), &cached, &messages]);
}

#[test]
fn merged_and_new_checkpoints_can_be_asked() {
    let dir = tempfile::tempdir().unwrap();
    let (merged, random) = (dir.path().join("merged"), dir.path().join("random"));
    let (base, adapter) = (cases().join("uneven"), cases().join("uneven.train.mixed/final_adapter"));
    works("merge --model {} --adapter {} --out {} --dtype f32", &[&base, &adapter, &merged]);
    let ask = "generate --messages {} --temperature 0 --max-new-tokens 24 --json --model {}";
    let messages = cases().join("one_image.json");
    let applied = json_of(&format!("{ask} --adapter {{}}"), &[&messages, &base, &adapter]);
    let tokens = json_of(ask, &[&messages, &merged])["token_ids"].clone();
    assert_eq!(tokens, applied["token_ids"]);
    assert_ne!(tokens, json_of(ask, &[&messages, &base])["token_ids"]);
    works("init --config {} --out {} --seed 3 --dtype f32", &[&single(), &random]);
    json_of(ask, &[&messages, &random]);
}

/// A reader that goes away is no failure, and no panic.
#[test]
fn a_closed_pipe_is_fine() {
    for line in ["inspect {} --trace", "doctor", "doctor --json"] {
        let model = single();
        let paths: &[&Path] = if line.contains("{}") { &[&model] } else { &[] };
        let mut child =
            program().args(arguments(line, paths)).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!((child.wait().unwrap().code(), said.as_str()), (Some(0), ""), "{line}");
    }
}

/// Whoever keeps a folder open for long has it alone, and one that has ended holds it no more, however it ended.
#[test]
fn a_folder_that_another_vlm_writes_into_is_left_alone() {
    let (model, data, dir) = (single(), cases().join("train.jsonl"), tempfile::tempdir().unwrap());
    let (sweep, out) = (cases().join("sweep.toml"), dir.path().join("out"));
    fs::create_dir(&out).unwrap();
    let busy = format!("vlm: another vlm is writing into {}: wait for it, or choose another --out", out.display());
    let lines: [(&str, &[&Path]); 7] = [
        ("train --model {} --data {} --out {} --device cpu --resume", &[&model, &data, &out]),
        ("train --model {} --data {} --out {} --device cpu --overwrite", &[&model, &data, &out]),
        ("eval --model {} --data {} --out {} --device cpu --overwrite", &[&model, &data, &out]),
        ("sweep --config {} --out {}", &[&sweep, &out]),
        ("data dedupe --model {} {} --out {}", &[&model, &data, &out]),
        ("data split {} --out {}", &[&data, &out]),
        ("bench one-dollar --shape tiny --out {}", &[&out]),
    ];
    let lock = FolderLock::take(&out).unwrap();
    for (line, paths) in lines {
        fails(line, paths, &[&busy]);
    }
    fails("demo --out {} --overwrite", &[&out], &[&busy]);
    assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
    drop(lock);
    works("train --model {} --data {} --out {} --device cpu --max-steps 1 --resume", &[&model, &data, &out]);
}

/// What a run that is done says of itself.
#[test]
fn a_run_says_why_it_ended() {
    let (model, data, dir) = (single(), cases().join("train.jsonl"), tempfile::tempdir().unwrap());
    let validation = dir.path().join("validation.jsonl");
    let text = fs::read_to_string(&data).unwrap();
    fs::write(&validation, text.replace("images/", &format!("{}/images/", cases().display()))).unwrap();
    let (check, early, whole) = (dir.path().join("check"), dir.path().join("early"), dir.path().join("whole"));
    let train = "train --model {} --data {} --out {} --device cpu";
    let flags = "--overfit 3 --learning-rate 1e-2 --rank 8 --batch-size 1";
    let said = works(&format!("{train} {flags}"), &[&model, &data, &check]);
    assert!(said.starts_with("the overfit check is passed: 3 samples are learnt by heart after "), "{said}");
    assert!(said.contains(", every answer right; data and settings can work; the result is in "), "{said}");
    let flags = "--learning-rate 1e-30 --epochs 9 --eval-data {} --early-stop 2";
    let said = works(&format!("{train} {flags}"), &[&model, &data, &early, &validation]);
    let ended = format!(
        ", stopped early by --early-stop 2; the result is in {}, as it was at step 1, the best evaluation\n",
        early.display()
    );
    assert!(said.starts_with("3 steps, loss ") && said.contains(&ended), "{said}");
    let said = works(&format!("{train} --max-steps 1"), &[&model, &data, &whole]);
    assert!(said.contains(&format!("; the result is in {}\n", whole.display())), "{said}");
}
