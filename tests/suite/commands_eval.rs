//! Evaluations as their user meets them: scores, refusals, going on, comparisons and the page.

use crate::commands::{copy, fails, image, json_of, misused, single, vlm, works};
use crate::commands_refused::png;
use crate::folders::change_tensors;
use crate::golden_cases::cases;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

#[test]
fn an_evaluation_that_is_finished_is_shown_again() {
    let (model, dir, data) = (single(), tempfile::tempdir().unwrap(), cases().join("train.jsonl"));
    let out = dir.path().join("out");
    let paths: &[&Path] = &[&model, &data, &out];
    let line = "eval --model {} --data {} --out {}";
    let first = works(line, paths);
    let files = ["summary.json", "predictions.jsonl"].map(|name| fs::read(out.join(name)).unwrap());
    let again = vlm(&format!("{line} --resume"), paths);
    assert_eq!((again.code, again.stdout), (Some(0), first));
    assert!(again.stderr.contains("this evaluation is finished; --overwrite"), "{}", again.stderr);
    let said = json_of(&format!("{line} --resume --json"), paths);
    assert_eq!(said, serde_json::from_slice::<Value>(&files[0]).unwrap());
    assert_eq!(files, ["summary.json", "predictions.jsonl"].map(|name| fs::read(out.join(name)).unwrap()));
    // another question is not answered by it
    fails(
        &format!("{line} --resume --max-pixels 4096"),
        paths,
        &["cannot go on: ", "--max-pixels was ", " and is 4096"],
    );
    fails(&format!("{line} --resume --batch-size 2"), paths, &["cannot go on: --batch-size was 4 and is 2"]);
    let other = copy("single");
    let template = other.path().join("chat_template.jinja");
    fs::write(&template, fs::read_to_string(&template).unwrap() + "{# the same #}").unwrap();
    let words = ["cannot go on: the tokenizer, templates or processor changed;", "--overwrite"];
    fails(&format!("{line} --resume"), &[other.path(), &data, &out], &words);
    let written = format!("{line} --resume --generate --max-new-tokens 2 --temperature");
    fails(&format!("{written} 0.5"), paths, &["cannot go on: there was no sampling, and now there is;"]);
    let out = dir.path().join("written");
    let paths: &[&Path] = &[&model, &data, &out];
    works(&format!("{written} 0.5"), paths);
    let again = vlm(&format!("{written} 0.5"), paths);
    assert!(again.stderr.contains("this evaluation is finished; --overwrite"), "{}", again.stderr);
    fails(&format!("{written} 0.7"), paths, &["cannot go on: --temperature was 0.5 and is 0.7;"]);
}

#[test]
fn evaluation_and_its_refusals() {
    let (model, dir) = (single(), tempfile::tempdir().unwrap());
    let (data, out) = (dir.path().join("set.jsonl"), dir.path().join("out"));
    let image = image();
    let line = |label: &str| json!({"image": image, "label": label}).to_string();
    let write = |lines: &[&str]| fs::write(&data, lines.join("\n")).unwrap();
    let score = "eval --model {} --data {} --out {}";
    let paths = [model.as_path(), &data, &out];
    write(&[&line("dent"), "{\"image\": 5", &line("scratch")]);
    fails(&format!("{score} --prompt Which?"), &paths, &["set.jsonl, line 2"]);
    assert!(!out.exists());
    let said = json_of(&format!("{score} --prompt Which? --skip-bad --json"), &paths);
    assert_eq!((&said["skipped"], &said["metrics"]["n"], &said["method"]), (&json!(1), &json!(2), &json!("choices")));
    assert_eq!(said["choices"], json!(["dent", "scratch"]));
    let shown = works(&format!("{score} --prompt Which? --skip-bad --resume"), &paths);
    assert!(shown.contains("\n1 sample that cannot be read is left out\n"), "{shown}");
    let predictions = fs::read_to_string(out.join("predictions.jsonl")).unwrap();
    let predictions: Vec<Value> = predictions.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(predictions.iter().map(|p| p["line"].clone()).collect::<Vec<_>>(), [1, 3]);
    for p in &predictions {
        let probabilities = p["probabilities"].as_object().unwrap();
        assert!((probabilities.values().map(|v| v.as_f64().unwrap()).sum::<f64>() - 1.0).abs() < 1e-9);
        assert_eq!(p["right"], json!(p["label"] == p["prediction"]));
        assert_eq!(out.join(p["image"].as_str().unwrap()).canonicalize().unwrap(), image.canonicalize().unwrap());
    }
    let summary: Value = serde_json::from_slice(&fs::read(out.join("summary.json")).unwrap()).unwrap();
    assert_eq!(summary["metrics"], said["metrics"]);
    write(&[&line("dent"), &line("scratch")]);
    fails(&format!("{score} --prompt Which?"), &paths, &["earlier run", "--overwrite"]);
    let again = format!("{score} --prompt Which? --overwrite");
    fails(&format!("{again} --choices dent,rust"), &paths, &["set.jsonl, line 2", "\"scratch\"", "--choices"]);
    let said = json_of(&format!("{again} --choices dent,rust,scratch --batch-size 1 --json"), &paths);
    assert_eq!(said["choices"], json!(["dent", "rust", "scratch"]));
    // a photo that cannot be decoded stops it before anything is done, and leaves an earlier result alone
    let (broken, good) = (dir.path().join("broken.png"), line("dent"));
    fs::write(&broken, png(100_000, 100_000)).unwrap();
    write(&[&good, &json!({"image": broken, "label": "dent"}).to_string()]);
    let before = fs::read(out.join("summary.json")).unwrap();
    fails(&format!("{again} --batch-size 1"), &paths, &["set.jsonl, line 2", "broken.png", "--skip-bad"]);
    assert_eq!(fs::read(out.join("summary.json")).unwrap(), before);
    let done = vlm(&format!("{again} --skip-bad --json"), &paths);
    let said: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!((&said["skipped"], &said["metrics"]["n"]), (&json!(1), &json!(1)));
    let left_out = done.stderr.lines().find(|l| l.starts_with("vlm: left out: ")).unwrap();
    assert!(left_out.contains("set.jsonl, line 2: ") && left_out.contains("broken.png"), "{left_out}");
    write(&[&json!({"image": broken, "label": "dent"}).to_string()]);
    fails(&format!("{again} --skip-bad"), &paths, &["set.jsonl: of its 1 sample none has whole photos"]);
    // labels that are compared as one are one class
    write(&[&line("dent"), &line("Dent."), &line("scratch")]);
    let done = vlm(&format!("{again} --json"), &paths);
    let said: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(said["choices"], json!(["Dent.", "scratch"]));
    assert!(done.stderr.contains("the set has 3 labels of 2 classes: "), "{}", done.stderr);
    misused(&format!("{again} --choices dent,DENT,scratch"), &paths, &["--choices", "are one answer"]);
    write(&[&line("dent"), &line("scratch")]);
    let said = json_of(&format!("{again} --generate --max-new-tokens 2 --temperature 0 --json"), &paths);
    assert_eq!((&said["method"], &said["choices"]), (&json!("generate"), &Value::Null));
    fails(&format!("{score} --overwrite"), &paths, &["set.jsonl, line 1"]);
    write(&[]);
    fails(&again, &paths, &["no samples"]);
    let asks = json!({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "dent"}]});
    write(&[&asks.to_string(), &line("scratch")]);
    let done = vlm(&again, &paths);
    assert!(done.code == Some(0) && done.stderr.contains("1 of 2 lines brings its own question\n"), "{}", done.stderr);
    let again = format!("{score} --overwrite");
    write(&[&json!({"messages": [{"role": "user", "content": "hi"}]}).to_string()]);
    fails(&again, &paths, &["set.jsonl, line 1", "no label"]);
    // an answer to nothing
    write(&[&json!({"messages": [{"role": "assistant", "content": "dent"}]}).to_string()]);
    fails(&again, &paths, &["set.jsonl, line 1", "failed on no messages (nothing comes before the answer; begin with"]);
}

/// Lines of photos with labels, and what the program says of them: several labels a photo, a comparison, a page.
#[test]
fn scores_are_compared_and_shown() {
    let (model, dir) = (single(), tempfile::tempdir().unwrap());
    let (data, base, generated) = (dir.path().join("set.jsonl"), dir.path().join("base"), dir.path().join("written"));
    let line = |label: Value| json!({"image": image(), "label": label}).to_string();
    let labels = [json!("dent"), json!(["scratch", "dent"]), json!("crack, dent"), json!(["crack"])];
    fs::write(&data, labels.map(line).join("\n")).unwrap();
    let score = "eval --model {} --data {} --out {} --prompt Which? --multi-label --json --dollars-per-hour 36";
    let said = json_of(score, &[&model, &data, &base]);
    assert_eq!((&said["method"], &said["choices"]), (&json!("lists"), &json!(["crack", "dent", "scratch"])));
    let metrics = &said["metrics"];
    assert_eq!((&metrics["per_class"]["dent"]["n"], &metrics["confusion"]), (&json!(3), &Value::Null));
    let map = metrics["mean_average_precision"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&map) && metrics["baselines"]["random"]["accuracy"] == 0.125, "{metrics}");
    let (dollars, seconds) = (said["dollars"].as_f64().unwrap(), said["seconds"].as_f64().unwrap());
    assert!((dollars - seconds / 100.0).abs() <= 1e-9, "{dollars} {seconds}");
    let first: Value =
        serde_json::from_str(fs::read_to_string(base.join("predictions.jsonl")).unwrap().lines().nth(1).unwrap())
            .unwrap();
    assert_eq!((&first["label"], &first["labels"]), (&json!("dent, scratch"), &json!(["dent", "scratch"])));
    assert!(
        first["predictions"].as_array().unwrap().len() == first["prediction"].as_str().unwrap().split(", ").count()
    );
    let written = format!("{score} --generate --temperature 0 --max-new-tokens 3");
    let said = json_of(&written, &[&model, &data, &generated]);
    assert_eq!((&said["method"], &said["metrics"]["mean_average_precision"]), (&json!("generate"), &Value::Null));
    let out = dir.path().join("compared");
    let said = json_of("compare {} {} --out {} --json", &[&base, &generated, &out]);
    assert_eq!((&said["n"], said["groups"].as_object().unwrap().len()), (&json!(4), 4));
    let tagged = fs::read_to_string(out.join("predictions.jsonl")).unwrap();
    for line in tagged.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        // behind those of the answer itself
        let tag = record["tags"].as_array().unwrap().last().unwrap().as_str().unwrap();
        assert!(said["groups"][tag]["n"].as_u64() > Some(0), "{line}");
        assert!(out.join(record["image"].as_str().unwrap()).exists(), "{line}");
    }
    fails("compare {} {} --out {}", &[&base, &generated, &out], &["earlier comparison", "--overwrite"]);
    assert!(works("compare {} {}", &[&base, &generated]).contains("McNemar's exact test: p = "));
    fails("compare {} {}", &[&base, dir.path()], &["summary.json", "vlm eval"]);
    let page = dir.path().join("page.html");
    // the comparison's folder brings both evaluations
    let said = json_of("report {} --out {} --json", &[&out, &page]);
    assert_eq!((&said["photos"], &said["evaluations"]), (&json!(4), &json!(2)));
    fails("report {} --out {}", &[&out, &page], &["--overwrite"]);
    fails("report {} --out {}", &[&model, &dir.path().join("no.html")], &["holds no evaluation"]);
}

/// What the model has no positions for, in a prompt, in a label and in both together, is told by its line before anything
/// is computed or made.
#[test]
fn what_is_too_long_for_the_model_is_refused_with_its_line() {
    let (model, dir) = (single(), tempfile::tempdir().unwrap());
    let (data, out) = (dir.path().join("set.jsonl"), dir.path().join("out"));
    let line = |question: &str, label: &str| {
        let question = json!({"role": "user", "content": question});
        json!({"messages": [question, {"role": "assistant", "content": label}]}).to_string()
    };
    let write = |lines: &[String]| fs::write(&data, lines.join("\n")).unwrap();
    let (score, paths) = ("eval --model {} --data {} --out {}", [model.as_path(), &data, &out]);
    let long = "word after word ".repeat(3000);
    let wanted = ["the conversation has ", " tokens, and the model positions for 4096: lower --max-pixels"];
    write(&[line("Hm?", "no"), line(&long, "no"), line("Hm?", "yes")]);
    for flags in ["", " --generate --batch-size 1", " --multi-label"] {
        fails(&format!("{score}{flags}"), &paths, &["set.jsonl, line 2: ", wanted[0], wanted[1]]);
    }
    write(&[line("Hm?", "no"), line("Hm?", "yes"), line("Hm?", &long)]);
    let label = "set.jsonl, line 3: the label \"word after word ";
    for flags in ["", " --multi-label"] {
        fails(&format!("{score}{flags}"), &paths, &[label, "…: the conversation has ", wanted[1]]);
    }
    assert!(!out.exists());
    // pictures of which only the headers are whole: nothing is decoded for what cannot be asked
    fs::write(dir.path().join("header.png"), png(64, 64)).unwrap();
    let images = vec![json!({"type": "image", "image": "header.png"}); 2100];
    let messages = dir.path().join("chat.json");
    fs::write(&messages, json!({"messages": [{"role": "user", "content": images}]}).to_string()).unwrap();
    fails("generate --model {} --messages {}", &[&model, &messages], &wanted);
    fails("dump --model {} --messages {} --out {}", &[&model, &messages, &out], &wanted);
    // a prompt that just fits, and no answer after it
    let asked = json_of("generate --model {} --prompt Hm? --max-new-tokens 1 --temperature 0 --json", &[&model]);
    let small = copy("single");
    let config = small.path().join("config.json");
    let mut changed: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    changed["text_config"]["max_position_embeddings"] = asked["prompt_tokens"].clone();
    fs::write(&config, changed.to_string()).unwrap();
    works("generate --model {} --prompt Hm? --max-new-tokens 1 --temperature 0", &[small.path()]);
    fails("generate --model {} --prompt Hm? --choices no,yes", &[small.path()], &["the model positions for "]);
    write(&[line("Hm?", "no"), line("Hm?", "yes")]);
    fails(score, &[small.path(), &data, &out], &["set.jsonl, line 1: ", "the model positions for "]);
    assert!(!out.exists());
}

/// All labels are made tokens after the first line's prompt; what is wrong with one is its own line's fault.
#[test]
fn a_label_that_cannot_be_tokenised_is_told_with_its_line() {
    let (model, dir) = (single(), tempfile::tempdir().unwrap());
    let (data, out) = (dir.path().join("set.jsonl"), dir.path().join("out"));
    let line = |label: &str| json!({"image": image(), "label": label}).to_string();
    let score = "eval --model {} --data {} --out {} --prompt Which?";
    let paths = [model.as_path(), &data, &out];
    fs::write(&data, ["dent", "crack", "dent", "a <|image_pad|>", "crack"].map(line).join("\n")).unwrap();
    let wanted = ["set.jsonl, line 4: the label \"a <|image_pad|>\": message 2 (assistant) has the text <|image_pad|>"];
    fails(score, &paths, &wanted);
    fails(&format!("{score} --multi-label"), &paths, &wanted);
    // a prompt that cannot be built is not the labels' fault
    fs::write(&data, ["dent", "crack"].map(line).join("\n")).unwrap();
    let said = ["set.jsonl, line 1: message 1 (user) has the text <|image_pad|>"];
    fails(&score.replace("Which?", "<|image_pad|>"), &paths, &said);
    let ask = "generate --model {} --image {} --prompt Which? --choices dent,<|image_pad|>";
    fails(ask, &[&model, &image()], &["vlm: the label \"<|image_pad|>\": message 2 (assistant) has the text"]);
    assert!(!out.exists());
    // what fails in a batch is told with its lines
    let broken = copy("single");
    change_tensors(&broken.path().join("model.safetensors"), |tensors| {
        let norm = tensors.iter_mut().find(|t| t.name == "model.language_model.norm.weight").unwrap();
        norm.bytes[..2].copy_from_slice(&[0xc0, 0x7f]);
    });
    let wanted = ["set.jsonl, lines 1, 2: ", "tensor model.language_model.norm.weight: it holds NaN"];
    fails(score, &[broken.path(), &data, &out], &wanted);
}

/// A score has no luck in it, though the model's generation_config.json draws; and an answer that was cut off is told.
#[test]
fn answers_are_greedy_and_cut_off_ones_are_counted() {
    let (model, dir) = (single(), tempfile::tempdir().unwrap());
    let data = dir.path().join("set.jsonl");
    let line = |label: &str| json!({"image": image(), "label": label}).to_string();
    fs::write(&data, ["dent", "scratch"].map(line).join("\n")).unwrap();
    let score = "eval --model {} --data {} --out {} --prompt Which? --generate --max-new-tokens 3";
    let answers = |name: &str, flags: &str| {
        let out = dir.path().join(name);
        let printed = works(&format!("{score}{flags}"), &[&model, &data, &out]);
        let read = |file: &str| fs::read_to_string(out.join(file)).unwrap();
        let records: Vec<Value> = read("predictions.jsonl").lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let [summary, identity] = ["summary.json", "identity.json"].map(|f| serde_json::from_str(&read(f)).unwrap());
        (records, printed, summary, identity)
    };
    let (plain, printed, summary, identity): (_, _, Value, Value) = answers("plain", "");
    let (greedy, ..) = answers("greedy", " --temperature 0");
    assert_eq!(plain, greedy);
    assert_eq!(identity["identity"]["the sampling"]["--temperature"], 0.0);
    let (drawn, _, _, identity) = answers("drawn", " --temperature 50 --top-p 1 --top-k 0 --seed 1");
    assert_ne!(plain, drawn);
    assert_eq!(identity["identity"]["the sampling"]["--temperature"], 50.0);
    // this model has learnt nothing, and never ends an answer
    let said = "2 of 2 answers were cut off at --max-new-tokens 3: raise it\n";
    assert!(printed.contains(said) && summary["cut_off"] == 2 && plain[0]["tags"] == json!(["cut_off"]), "{printed}");
    let again = works(&format!("{score} --resume"), &[&model, &data, &dir.path().join("plain")]);
    assert_eq!(again, printed);
    // one that ends them: whatever it says closes the answer
    let closing = copy("single");
    let config = closing.path().join("generation_config.json");
    fs::write(&config, json!({"eos_token_id": (0..400).collect::<Vec<u32>>()}).to_string()).unwrap();
    let out = dir.path().join("closing");
    let said = json_of(&format!("{score} --json"), &[closing.path(), &data, &out]);
    assert_eq!(said["cut_off"], 0, "{said}");
}
