//! New checkpoints: the same for the same seed, of the right distribution, complete.

use crate::folders::{config_folder, entries, model, small_config, values};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use vlm::base::{DType, Result};
use vlm::qwen3vl::checkpoint::Checkpoint;
use vlm::qwen3vl::init::{Options, init};

fn make(config: &Value, out: &Path, options: Options) -> Result<()> {
    init(config_folder(config).path(), None, out, options, &mut |_, _| {})
}

const PLAIN: Options = Options { seed: 1, dtype: DType::F32, shard_bytes: u64::MAX };

#[test]
fn the_seed_decides_every_bit_and_shards_and_types_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let open = |name: &str, options: Options| {
        make(&small_config(), &dir.path().join(name), options).unwrap();
        Checkpoint::open(&dir.path().join(name)).unwrap()
    };
    let first = open("first", PLAIN);
    let again = open("again", Options { shard_bytes: 5000, ..PLAIN });
    let other = open("other", Options { seed: 2, ..PLAIN });
    let half = open("half", Options { dtype: DType::Bf16, ..PLAIN });
    assert!(again.files().len() > 2);
    for (name, tensor) in first.tensors() {
        assert_eq!(tensor.bytes(), again.tensor(&name).unwrap().bytes(), "{name}");
        let exact = values(DType::F32, tensor.bytes());
        let rounded = values(DType::Bf16, half.tensor(&name).unwrap().bytes());
        // bf16 keeps 8 bits: half a unit is at most 2^-8 of the number.
        assert!(exact.iter().zip(&rounded).all(|(x, y)| (x - y).abs() <= x.abs() / 256.0), "{name}");
        let constant = name.contains("norm") || name.ends_with(".bias");
        assert_eq!(tensor.bytes() == other.tensor(&name).unwrap().bytes(), constant, "{name}");
    }
}

#[test]
fn weights_are_normal_and_differ_norms_are_one_biases_zero() {
    let mut config = small_config();
    config["text_config"]["vocab_size"] = json!(40_000);
    let dir = model(&config, DType::F32);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let mut firsts = Vec::new();
    for (name, tensor) in checkpoint.tensors() {
        let x = values(DType::F32, tensor.bytes());
        let n = x.len() as f64;
        if name.ends_with(".bias") {
            assert!(x.iter().all(|&x| x == 0.0), "{name}");
        } else if name.contains("norm") {
            assert!(x.iter().all(|&x| x == 1.0), "{name}");
        } else {
            let mean = x.iter().sum::<f64>() / n;
            let variance = x.iter().map(|x| x * x).sum::<f64>() / n;
            // Five standard errors of a mean of 0 and of a variance of 0.02^2, which are s / sqrt(n), s^2 sqrt(2 / n).
            assert!(mean.abs() < 5.0 * 0.02 / n.sqrt(), "{name}: {mean}");
            assert!((variance / 4e-4 - 1.0).abs() < 5.0 * (2.0 / n).sqrt(), "{name}: {variance}");
            firsts.push(x[0].to_bits());
        }
    }
    let distinct: std::collections::HashSet<_> = firsts.iter().collect();
    assert_eq!(distinct.len(), firsts.len(), "tensors are drawn from streams of their own");
    // 640,000 numbers: more than the pieces that threads draw, whose seams must not repeat.
    let embedding = values(DType::F32, checkpoint.tensor("lm_head.weight").unwrap().bytes());
    let rows: std::collections::HashSet<Vec<u64>> =
        embedding.chunks(16).map(|row| row.iter().map(|x| x.to_bits()).collect()).collect();
    assert_eq!(rows.len(), 40_000);
}

#[test]
fn the_folder_has_the_files_that_go_along_and_the_type() {
    let source = config_folder(&small_config());
    for name in ["preprocessor_config.json", "chat_template.json", "tokenizer.json", "training_args.bin"] {
        fs::write(source.path().join(name), name).unwrap();
    }
    let tokenizer = source.path().join("other.json");
    fs::write(&tokenizer, "other").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("new");
    let mut heard = Vec::new();
    init(source.path(), Some(&tokenizer), &out, PLAIN, &mut |done, total| heard.push((done, total))).unwrap();
    assert_eq!(
        entries(&out),
        ["chat_template.json", "config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"]
    );
    assert_eq!(fs::read_to_string(out.join("tokenizer.json")).unwrap(), "other");
    let config: Value = serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
    assert_eq!((&config["dtype"], &config["text_config"]["dtype"]), (&json!("float32"), &json!("float32")));
    assert!(heard.windows(2).all(|pair| pair[0].0 < pair[1].0));
    let (done, total) = *heard.last().unwrap();
    assert_eq!(done, total);
    let bytes: usize = Checkpoint::open(&out).unwrap().tensors().map(|(_, t)| t.bytes().len()).sum();
    assert_eq!(total, bytes as u64);
}

#[test]
fn what_cannot_be_made_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("new");
    let error = make(&small_config(), &out, Options { dtype: DType::F16, ..PLAIN }).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("bf16 or f32, not f16"), "{error}");
    let mut config = small_config();
    config["text_config"]["head_dim"] = json!(7);
    assert!(make(&config, &out, PLAIN).unwrap_err().to_string().contains("head_dim"));
    let missing = dir.path().join("no-tokenizer.json");
    let error = init(config_folder(&small_config()).path(), Some(&missing), &out, PLAIN, &mut |_, _| {}).unwrap_err();
    assert!(error.to_string().contains("no-tokenizer.json"), "{error}");
    assert!(entries(dir.path()).is_empty());
    fs::create_dir(&out).unwrap();
    fs::write(out.join("precious"), "").unwrap();
    assert!(make(&small_config(), &out, PLAIN).unwrap_err().to_string().contains("not empty"));
    assert_eq!(entries(&out), ["precious"]);
}

#[test]
fn the_config_says_how_far_weights_spread() {
    let mut config = small_config();
    config["text_config"]["initializer_range"] = json!(0.08);
    config["vision_config"]["initializer_range"] = json!(0.01);
    let dir = tempfile::tempdir().unwrap();
    make(&config, &dir.path().join("wide"), PLAIN).unwrap();
    make(&small_config(), &dir.path().join("plain"), PLAIN).unwrap();
    let [wide, plain] = ["wide", "plain"].map(|name| Checkpoint::open(&dir.path().join(name)).unwrap());
    for (name, tensor) in wide.tensors().filter(|(name, _)| !name.contains("norm") && !name.ends_with(".bias")) {
        // small_config has 0.02 or nothing: the same numbers, four times and half as large
        let factor = if name.contains("visual") { 0.5 } else { 4.0 };
        let (got, base) =
            (values(DType::F32, tensor.bytes()), values(DType::F32, plain.tensor(&name).unwrap().bytes()));
        assert!(got.iter().zip(&base).all(|(x, y)| (x - factor * y).abs() <= 1e-6 * y.abs()), "{name}");
    }
    for wrong in [json!("wide"), json!(0.0), json!(-1.0), json!(1e300)] {
        config["text_config"]["initializer_range"] = wrong;
        let error = make(&config, &dir.path().join("wrong"), PLAIN).unwrap_err().to_string();
        assert!(error.contains("text_config.initializer_range"), "{error}");
    }
}
