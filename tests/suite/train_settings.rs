//! Settings: flags over a recipe over defaults, what is refused, and what a run writes so that it can be done again.

use clap::Parser;
use std::path::{Path, PathBuf};
use vlm::base::{Error, Precision, Result};
use vlm::cli::train::Train;
use vlm::train::config_file;
use vlm::train::order::{Length, Sequence};
use vlm::train::schedule::Decay;
use vlm::train::settings::{DeviceChoice, Settings};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    train: Train,
}

const NEEDED: [&str; 6] = ["--model", "/m", "--data", "/d.jsonl", "--out", "/o"];

fn settings(flags: &[&str]) -> Result<Settings> {
    let flags: Vec<&str> = ["train"].iter().chain(&NEEDED).chain(flags).copied().collect();
    Cli::try_parse_from(flags).map_err(|e| Error::Usage(e.to_string()))?.train.settings()
}

/// With a recipe of this text.
fn recipe(text: &str, flags: &[&str]) -> Result<Settings> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.toml");
    std::fs::write(&path, text).unwrap();
    settings(&[&["--config", path.to_str().unwrap()], flags].concat())
}

#[track_caller]
fn refused(flags: &[&str], wanted: &str) {
    let error = settings(flags).expect_err(wanted);
    assert!(error.is_usage() && error.to_string().contains(wanted), "{error}");
}

#[test]
fn defaults_are_those_of_the_documents() {
    let s = settings(&[]).unwrap();
    assert_eq!((&s.model, &s.data, &s.out), (&"/m".into(), &"/d.jsonl".into(), &"/o".into()));
    assert_eq!((s.rank, s.alpha, &s.target_modules, s.dropout), (None, None, &None, 0.0));
    assert_eq!((s.learning_rate, s.weight_decay, s.betas, s.max_grad_norm), (2e-4, 0.0, [0.9, 0.999], 1.0));
    assert_eq!((s.schedule, s.warmup_steps, s.warmup_ratio), (Decay::Cosine, None, None));
    assert_eq!((s.batch_size, s.grad_accumulation, s.seed), (4, 1, 0));
    assert_eq!((s.length(), s.sequence()), (Length::Epochs(3), Sequence::Shuffled { seed: 0 }));
    assert_eq!((s.device, s.precision, s.max_norm()), (DeviceChoice::Auto, None, Some(1.0)));
    assert_eq!(s.schedule(10).lr(1), 2e-4);
}

#[test]
fn flags_become_settings() {
    let flags = "--rank 8 --alpha 16 --dropout 0.1 --target-modules q_proj,k_proj --lora-vision --lora-merger --rslora \
                 --init-adapter /a --learning-rate 1e-3 --vision-learning-rate 1e-4 --weight-decay 0.5 --betas 0.8,0.95 \
                 --schedule linear --warmup-ratio 0.25 --max-grad-norm 0 --batch-size 2 --grad-accumulation 3 --max-steps 8 \
                 --seed 7 --no-shuffle --min-pixels 1000 --max-pixels 2000 --eval-data /e.jsonl --eval-every 5 \
                 --early-stop 2 --save-every 4 --subset 20 --memory 1000000000 --device cpu --precision bf16 --skip-bad \
                 --prompt What?";
    let s = settings(&flags.split_whitespace().collect::<Vec<_>>()).unwrap();
    let want = Settings {
        model: "/m".into(),
        data: "/d.jsonl".into(),
        out: "/o".into(),
        prompt: Some("What?".into()),
        skip_bad: true,
        device: DeviceChoice::Cpu,
        precision: Some(Precision::Bf16),
        memory: Some(1_000_000_000),
        min_pixels: Some(1000),
        max_pixels: Some(2000),
        full: false,
        rank: Some(8),
        alpha: Some(16.0),
        rslora: Some(true),
        target_modules: Some("q_proj,k_proj".into()),
        dropout: 0.1,
        lora_vision: true,
        lora_merger: true,
        init_adapter: Some("/a".into()),
        learning_rate: 1e-3,
        vision_learning_rate: Some(1e-4),
        weight_decay: 0.5,
        betas: [0.8, 0.95],
        schedule: Decay::Linear,
        warmup_steps: None,
        warmup_ratio: Some(0.25),
        max_grad_norm: 0.0,
        batch_size: 2,
        grad_accumulation: 3,
        epochs: None,
        max_steps: Some(8),
        seed: 7,
        no_shuffle: true,
        subset: Some(20),
        overfit: None,
        eval_data: Some("/e.jsonl".into()),
        eval_every: Some(5),
        early_stop: Some(2),
        save_every: Some(4),
    };
    assert_eq!(s, want);
    assert_eq!((s.max_norm(), s.sequence(), s.length()), (None, Sequence::File, Length::Steps(8)));
    assert_eq!((s.schedule(8).lr(2), s.vision_schedule(8).lr(2)), (5e-4, 5e-5));
    assert_eq!(s.precision, Some(Precision::Bf16));
    // what the reference checks pass
    let s = settings(&["--max-grad-norm", "1000000000.0", "--weight-decay", "1.0", "--warmup-steps", "0"]).unwrap();
    assert_eq!((s.max_norm(), s.weight_decay), (Some(1e9), 1.0));
}

#[test]
fn what_a_run_writes_reads_back_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    let many = [
        "--rank",
        "8",
        "--learning-rate",
        "1e-5",
        "--betas",
        "0.9,0.95",
        "--max-steps",
        "7",
        "--rslora",
        "--alpha",
        "3",
    ];
    for flags in [&[][..], &many, &["--full", "--seed", "9223372036854775807"], &["--overfit", "4"]] {
        let first = settings(flags).unwrap();
        config_file::write(&path, &first).unwrap();
        let train = Cli::try_parse_from(["train", "--config", path.to_str().unwrap()]).unwrap().train;
        assert_eq!(train.settings().unwrap(), first, "{flags:?}");
    }
    assert!(std::fs::read_to_string(&path).unwrap().starts_with("# The settings of this run."));
}

/// A recipe takes what the flag takes, beside TOML's own numbers, and a run writes these down whatever it was given.
#[test]
fn a_recipe_spells_bytes_and_betas_as_the_flags_do() {
    let dir = tempfile::tempdir().unwrap();
    for (memory, betas, flags) in [
        ("25769803776", "[0.9, 0.95]", ["--memory", "24G", "--betas", "0.9,0.95"]),
        ("\"24G\"", "\"0.9,0.95\"", ["--memory", "25769803776", "--betas", "0.9, 0.95"]),
        ("\"24 GiB\"", "\"0.9, 0.95\"", ["--memory", "24GiB", "--betas", "0.9,0.95"]),
        ("\"1000000\"", "[0, 0.5]", ["--memory", "1MB", "--betas", "0,0.5"]),
    ] {
        let said = recipe(&format!("memory = {memory}\nbetas = {betas}\n"), &[]).unwrap();
        assert_eq!(said, settings(&flags).unwrap(), "{memory} {betas}");
        let path = dir.path().join("config.toml");
        config_file::write(&path, &said).unwrap();
        let written = std::fs::read_to_string(&path).unwrap();
        let number = format!("memory = {}\n", said.memory.unwrap());
        assert!(written.contains(&number) && written.contains("betas = ["), "{written}");
    }
    // the flag wins over either form
    let said = recipe("memory = \"24G\"\nbetas = \"0.9,0.95\"\n", &["--memory", "1K", "--betas", "0,0"]).unwrap();
    assert_eq!((said.memory, said.betas), (Some(1024), [0.0, 0.0]));
}

#[test]
fn flags_win_over_a_recipe_and_displace_its_alternatives() {
    let text = "rank = 4\nepochs = 9\nwarmup-ratio = 0.5\nlearning-rate = 1\n";
    let s = recipe(text, &[]).unwrap();
    assert_eq!((s.rank, s.length(), s.warmup_ratio, s.learning_rate), (Some(4), Length::Epochs(9), Some(0.5), 1.0));
    let s = recipe(text, &["--rank", "2", "--max-steps", "5", "--warmup-steps", "1"]).unwrap();
    assert_eq!((s.rank, s.length(), s.warmup_ratio, s.warmup_steps), (Some(2), Length::Steps(5), None, Some(1)));
    let s = recipe("schedule = \"linear\"\nepochs = 3\neval-data = \"e\"\nsubset = 9\n", &["--overfit", "8"]).unwrap();
    assert_eq!((s.schedule, s.epochs, &s.eval_data, s.subset), (Decay::Constant, None, &None, None));
    assert!(matches!(s.length(), Length::Steps(200)));
}

#[test]
fn paths_of_a_recipe_are_relative_to_it_and_all_become_absolute() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.toml");
    std::fs::write(
        &path,
        "model = \"m\"\ndata = \"/abs/d\"\nout = \"../o\"\neval-data = \"e\"\ninit-adapter = \"a\"\n",
    )
    .unwrap();
    let train = Cli::try_parse_from(["train", "--config", path.to_str().unwrap(), "--data", "here"]).unwrap().train;
    let s = train.settings().unwrap();
    let here = std::env::current_dir().unwrap();
    assert_eq!((s.model, s.data, s.out), (dir.path().join("m"), here.join("here"), dir.path().join("../o")));
    assert_eq!((s.eval_data, s.init_adapter), (Some(dir.path().join("e")), Some(dir.path().join("a"))));
}

#[test]
fn the_articles_recipe_parses() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/one-dollar.toml");
    let s = settings(&["--config", path.to_str().unwrap()]).unwrap();
    assert_eq!(
        (s.rank, s.alpha, s.target_modules.as_deref()),
        (Some(64), Some(16.0), Some("q_proj,k_proj,v_proj,o_proj"))
    );
    assert_eq!((s.learning_rate, s.batch_size, s.length()), (2e-4, 4, Length::Epochs(3)));
}

#[test]
fn values_that_cannot_be_used_are_refused_with_their_flag() {
    for flag in [
        "rank",
        "batch-size",
        "grad-accumulation",
        "epochs",
        "max-steps",
        "subset",
        "overfit",
        "eval-every",
        "early-stop",
        "save-every",
        "memory",
    ] {
        refused(&[&format!("--{flag}"), "0"], &format!("--{flag} 0: wanted 1 or more"));
    }
    for (flag, value) in [("min", "0"), ("max", "0"), ("min", "4294967297"), ("max", "100000000000000"), ("min", "1e6")]
    {
        refused(&[&format!("--{flag}-pixels={value}")], "wanted a number of pixels from 1 to 2^32");
    }
    refused(&["--alpha=0"], "--alpha 0: wanted a number above 0");
    refused(&["--alpha=inf"], "--alpha inf: wanted a number above 0");
    refused(&["--dropout=1"], "--dropout 1: wanted from 0 to below 1");
    refused(&["--dropout=-0.1"], "--dropout -0.1: wanted from 0 to below 1");
    refused(&["--learning-rate=-1"], "--learning-rate -1: wanted a number above 0");
    refused(&["--learning-rate=nan"], "--learning-rate NaN: wanted a number above 0");
    refused(&["--vision-learning-rate=-1"], "--vision-learning-rate -1: wanted 0 or more");
    refused(&["--weight-decay=-1"], "--weight-decay -1: wanted 0 or more");
    refused(&["--betas=0.9,1"], "--betas 1: wanted two numbers from 0 to below 1");
    refused(&["--betas=-1,0.9"], "--betas -1: wanted two numbers");
    refused(&["--betas=0.9"], "wanted two numbers, such as 0.9,0.999");
    refused(&["--warmup-ratio=1.5"], "--warmup-ratio 1.5: wanted from 0 to 1");
    refused(&["--max-grad-norm=-1"], "--max-grad-norm -1: wanted 0 (no clipping) or more");
    refused(&["--seed=9223372036854775808"], "--seed 9223372036854775808: wanted at most 9223372036854775807");
    refused(
        &["--max-steps=18446744073709551615"],
        "--max-steps 18446744073709551615: wanted at most 9223372036854775807",
    );
    refused(&["--schedule=cosin"], "cosin");
    refused(&["--device=tpu"], "tpu");
}

#[test]
fn settings_that_exclude_each_other_are_refused() {
    refused(&["--epochs=1", "--max-steps=1"], "--epochs and --max-steps: both say how long the run is; keep one");
    refused(&["--warmup-steps=1", "--warmup-ratio=0.1"], "--warmup-steps and --warmup-ratio: both say");
    for other in ["--rank=1", "--alpha=1", "--dropout=0.5", "--rslora", "--target-modules=q_proj", "--lora-vision"] {
        let name = other.split('=').next().unwrap();
        refused(&["--full", other], &format!("--full and {name}: every tensor is trained itself"));
    }
    refused(&["--full", "--lora-merger"], "--full and --lora-merger");
    refused(&["--full", "--init-adapter=a"], "--full and --init-adapter");
    for other in ["--subset=1", "--eval-data=x", "--epochs=1", "--warmup-steps=1", "--warmup-ratio=0.1"] {
        refused(&["--overfit=1", other], &format!("--overfit and {}", other.split('=').next().unwrap()));
    }
    refused(&["--overfit=1", "--schedule=cosine"], "--overfit and --schedule cosine: the check has no schedule");
    refused(&["--eval-every=1"], "--eval-every without --eval-data");
    refused(&["--early-stop=1"], "--early-stop without --eval-data");
    refused(&["--eval-data=/d.jsonl"], "--eval-data is the training data");
    refused(&["--min-pixels=2", "--max-pixels=1"], "--min-pixels 2 is above --max-pixels 1");
    refused(&["--resume", "--overwrite"], "--overwrite");
    let train = Cli::try_parse_from(["train", "--model", "m", "--out", "o"]).unwrap().train;
    let error = train.settings().unwrap_err().to_string();
    assert_eq!(error, "--data is missing: give the flag, or `data` in the file of --config");
}

#[test]
fn a_wrong_recipe_is_named_with_line_and_key() {
    let error = |text: &str| recipe(text, &[]).unwrap_err().to_string();
    let said = error("rank = 4\nlerning-rate = 1e-4\n");
    assert!(said.contains("r.toml, line 2: lerning-rate = 1e-4: unknown field `lerning-rate`"), "{said}");
    let said = error("rank = 4\n\nalpha = \"x\"\n");
    assert!(said.contains("r.toml, line 3: alpha = \"x\": invalid type: string"), "{said}");
    let said = error("schedule = \"cosin\"\n");
    assert!(said.contains("line 1") && said.contains("unknown variant `cosin`, expected one of `cosine`"), "{said}");
    let said = error("betas = [0.9]\n");
    assert!(said.contains("r.toml, line 1: betas = [0.9]"), "{said}");
    for value in ["[0.9]", "[0.9, 0.99, 0.5]", "0.9", "\"0.9\"", "\"0.9;0.99\"", "[\"0.9\", \"0.99\"]", "{ a = 1 }"] {
        let said = error(&format!("rank = 4\nbetas = {value}\n"));
        let wanted = format!("r.toml, line 2: betas = {value}: wanted two numbers, such as 0.9,0.999");
        assert!(said.ends_with(&wanted), "{said}");
    }
    for value in ["\"24Q\"", "\"\"", "-1", "1.5", "true", "[24]"] {
        let said = error(&format!("memory = {value}\n"));
        let wanted =
            format!("r.toml, line 1: memory = {value}: wanted bytes, or a number with K, M, G or T such as 24G");
        assert!(said.contains(&wanted), "{said}");
    }
    let said = error("memory = \"0\"\n");
    assert_eq!(said, "--memory 0: wanted 1 or more");
    let said = error("rank = = 4\n");
    assert!(said.contains("r.toml, line 1: rank = = 4: "), "{said}");
    let said = error("rank = -4\n");
    assert!(said.contains("r.toml, line 1: rank = -4: invalid value"), "{said}");
    let said = error("use-dora = true\n");
    assert!(said.contains("unknown field `use-dora`"), "{said}");
    let said = settings(&["--config", "/nowhere.toml"]).unwrap_err().to_string();
    assert!(said.starts_with("cannot read /nowhere.toml"), "{said}");
}

#[test]
fn a_path_that_toml_cannot_hold_is_said() {
    use std::ffi::{OsStr, OsString};
    use std::os::unix::ffi::OsStrExt;
    for flag in ["--model", "--data", "--out", "--eval-data", "--init-adapter"] {
        let mut words: Vec<OsString> = ["train"].iter().chain(&NEEDED).map(OsString::from).collect();
        match words.iter().position(|word| word == flag) {
            Some(at) => words[at + 1] = OsStr::from_bytes(b"a\xff").into(),
            None => words.extend([flag.into(), OsStr::from_bytes(b"a\xff").into()]),
        }
        let error = Cli::try_parse_from(words).unwrap().train.settings().unwrap_err();
        let said = error.to_string();
        assert!(error.is_usage() && said.starts_with(&format!("{flag} a")), "{said}");
        assert!(said.contains("config.toml cannot hold this path") && said.contains("UTF-8; rename it"), "{said}");
    }
    let dir = tempfile::tempdir().unwrap();
    let odd = PathBuf::from(std::ffi::OsStr::from_bytes(b"/\xff"));
    let settings = Settings { model: odd, ..settings(&[]).unwrap() };
    let error = config_file::write(&dir.path().join("config.toml"), &settings).unwrap_err().to_string();
    assert!(error.contains("config.toml: the settings cannot be written"), "{error}");
}
