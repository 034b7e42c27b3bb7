//! A folder of one kind where another is wanted, and an adapter on weights that it was not trained on: what is said then.

use crate::commands::{copy, fails, single, vlm, works};
use crate::golden_cases::cases;
use std::fs;
use std::path::Path;
use vlm::qwen3vl::adapter::Adapter;
use vlm::qwen3vl::checkpoint::Checkpoint;

#[test]
fn a_folder_of_another_kind_is_named_with_what_to_give() {
    let (model, data, dir) = (single(), cases().join("train.jsonl"), tempfile::tempdir().unwrap());
    let at = |name: &str| dir.path().join(name);
    let (run, full, out) = (at("run"), at("full"), at("out"));
    let train = "train --model {} --data {} --out {} --max-steps 1";
    works(&format!("{train} --rank 1"), &[&model, &data, &run]);
    works(&format!("{train} --full"), &[&model, &data, &full]);
    for (name, file) in [
        ("stopped/checkpoints", "c"),
        ("sweep", "leaderboard.json"),
        ("begun", "trials.json"),
        ("scores", "summary.json"),
    ] {
        fs::create_dir_all(at(name)).unwrap();
        fs::write(at(name).join(file), "{}").unwrap();
    }
    let (stopped, sweep, begun, scores) = (at("stopped"), at("sweep"), at("begun"), at("scores"));
    let trained = format!("give its model with --model {}/model, without an adapter", full.display());
    let resume =
        "holds a run that has no result yet, and an adapter is wanted; the same vlm train with --resume goes on";
    for (adapter, words) in [
        (&full, ["full: holds a run of train --full, and an adapter is wanted; ", &trained]),
        (&model, ["single: holds a model, and an adapter is wanted; ", "give it with --model, without an adapter"]),
        (&stopped, ["stopped: ", resume]),
        (&sweep, ["sweep: holds a sweep, and an adapter is wanted; ", "leaderboard.json names them, the best first"]),
        (&begun, ["begun: holds a sweep of which no trial is done, ", "the same vlm sweep goes on with it"]),
        (&scores, ["scores: holds an evaluation, and an adapter is wanted; ", "names the model and the adapter"]),
    ] {
        fails("eval --model {} --adapter {} --data {} --out {}", &[&model, adapter, &data, &out], &words);
        fails("merge --model {} --adapter {} --out {}", &[&model, adapter, &out], &words);
    }
    let adapter =
        "run: holds an adapter, and a model is wanted; give it with --adapter, and with --model the model that";
    fails("generate --model {} --prompt hi", &[&run], &[adapter]);
    fails("train --model {} --data {} --out {}", &[&run, &data, &out], &[adapter]);
    for line in ["generate --model {} --prompt hi", "inspect {}"] {
        fails(line, &[&full], &["full: holds a run of train --full, and a model is wanted; ", &trained]);
        fails(line, &[&scores], &["scores: holds an evaluation, and a model is wanted; "]);
    }
    for (folder, flags) in [
        (&run, format!("--adapter {}", run.display())),
        (&full, format!("--model {}/model", full.display())),
        (&model, format!("--model {}", model.display())),
    ] {
        let words = ["and an evaluation is wanted; ", &format!("vlm eval {flags} makes an evaluation of it")];
        fails("curve {}", &[folder], &words);
        fails("compare {} {}", &[folder, folder], &words);
    }
    // what nobody knows is opened, and has not what it should
    fails("generate --model {} --prompt hi", &[dir.path()], &["cannot open", "config.json"]);
    assert!(!out.exists());
}

/// A merge holds its adapter, and would get it a second time.
#[test]
fn an_adapter_on_weights_that_it_was_not_trained_on_is_said() {
    let (model, data, dir) = (copy("single"), cases().join("train.jsonl"), tempfile::tempdir().unwrap());
    let at = |name: &str| dir.path().join(name);
    let (run, merged, moved) = (at("run"), at("merged"), copy("single"));
    let train = "train --model {} --data {} --out {} --max-steps 1 --learning-rate 0.1";
    works(&format!("{train} --rank 1"), &[model.path(), &data, &run]);
    let said = |line: &str, paths: &[&Path]| {
        let done = vlm(line, paths);
        assert_eq!(done.code, Some(0), "{line}\n{}", done.stderr);
        done.stderr
            .lines()
            .filter(|l| l.contains("was not trained on the weights in"))
            .map(String::from)
            .collect::<Vec<_>>()
    };
    assert!(said("merge --model {} --adapter {} --out {}", &[model.path(), &run, &merged]).is_empty());
    let wanted = format!(
        "the adapter in {} was not trained on the weights in {}: where these hold it already, as those of vlm merge do, \
         leave it out; else give the model that it was trained on ({})",
        run.display(),
        merged.display(),
        model.path().display()
    );
    let lines = [
        "generate --model {} --adapter {} --max-new-tokens 1 --prompt hi",
        &format!("eval --model {{}} --adapter {{}} --data {} --out {}", data.display(), at("scores").display()),
        &format!("merge --model {{}} --adapter {{}} --out {}", at("again").display()),
        &format!(
            "train --model {{}} --init-adapter {{}} --data {} --max-steps 1 --out {}",
            data.display(),
            at("on").display()
        ),
    ];
    for line in lines {
        let told = said(line, &[&merged, &run]);
        assert!(told.len() == 1 && told[0].contains(&wanted), "{line}: {told:?}");
    }
    // the same weights elsewhere, an adapter out of its run's folder, and one that does not say what it was trained on
    assert!(said(lines[0], &[moved.path(), &run]).is_empty());
    let alone = at("alone");
    fs::create_dir(&alone).unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(run.join(name), alone.join(name)).unwrap();
    }
    assert_eq!(said(lines[0], &[&merged, &alone]).len(), 1);
    let adapter = Adapter::open(&alone, &Checkpoint::open(model.path()).unwrap().config).unwrap();
    Adapter { base_fingerprint: None, ..adapter }.write(&alone).unwrap();
    assert!(said(lines[0], &[&merged, &alone]).is_empty());
}
