//! Adapters that are written: what is in the files, and that they read back as they were.

use crate::folders::{config_folder, read_tensors, shared, small_config};
use serde_json::{Value, json};
use std::path::Path;
use vlm::data::image::Limits;
use vlm::io::safetensors::SafetensorsFile;
use vlm::qwen3vl::adapter::{Adapter, AdapterConfig};
use vlm::qwen3vl::adapter_write::{Base, Pair, write_adapter};
use vlm::qwen3vl::config::Config;
use vlm::qwen3vl::targets::{Layers, Targets, select_targets};

fn model() -> Config {
    Config::read(config_folder(&small_config()).path()).unwrap()
}

fn config_of(dir: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(dir.join("adapter_config.json")).unwrap()).unwrap()
}

const Q: [&str; 2] =
    ["model.language_model.layers.0.self_attn.q_proj", "model.language_model.layers.1.self_attn.q_proj"];

/// A on 16 inputs, B on 32 outputs, rank 2.
fn q_pairs<'a>(a: &'a [f32], b: &'a [f32]) -> [Pair<'a>; 2] {
    Q.map(|path| Pair { path, rank: 2, inputs: 16, outputs: 32, a, b })
}

fn q_config() -> AdapterConfig {
    AdapterConfig::new(2, 6.0, 0.25, false, Targets::parse("q_proj").unwrap())
}

#[test]
fn the_config_is_the_one_that_old_and_new_readers_take() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b): (Vec<f32>, Vec<f32>) = ((0..32).map(|i| i as f32).collect(), (0..64).map(|i| -(i as f32)).collect());
    let base =
        Base { name: "Qwen/Qwen3-VL-2B-Instruct", fingerprint: Some("0a1b"), limits: Limits::new(1024, 500_000) };
    write_adapter(dir.path(), &q_config(), base, &q_pairs(&a, &b)).unwrap();
    let want = json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "Qwen/Qwen3-VL-2B-Instruct",
        "inference_mode": true, "r": 2, "lora_alpha": 6, "lora_dropout": 0.25, "bias": "none", "fan_in_fan_out": false,
        "init_lora_weights": true, "use_rslora": false, "use_dora": false, "modules_to_save": null, "rank_pattern": {},
        "alpha_pattern": {}, "target_modules": ["q_proj"]
    });
    assert_eq!(config_of(dir.path()), want);
    let file = SafetensorsFile::open(&dir.path().join("adapter_model.safetensors")).unwrap();
    let wanted =
        [("base_model_fingerprint", "0a1b"), ("format", "pt"), ("max_pixels", "500000"), ("min_pixels", "1024")]
            .map(|(key, value)| (key.into(), value.into()));
    assert_eq!(file.metadata.clone().into_iter().collect::<Vec<(String, String)>>(), wanted);
    let tensors = read_tensors(&file.path);
    let names: Vec<String> = Q
        .iter()
        .flat_map(|path| ["A", "B"].map(|side| format!("base_model.model.{path}.lora_{side}.weight")))
        .collect();
    assert_eq!(tensors.iter().map(|t| t.name.clone()).collect::<Vec<_>>(), names);
    assert_eq!(tensors.iter().map(|t| t.shape.clone()).collect::<Vec<_>>(), [[2, 16], [32, 2], [2, 16], [32, 2]]);
    let adapter = Adapter::open(dir.path(), &model()).unwrap();
    assert_eq!(adapter.base_fingerprint.as_deref(), base.fingerprint);
    assert_eq!((adapter.limits, base.limits.is_some()), (base.limits, true));
    assert_eq!(adapter.modules[Q[1]].a, a);
    assert_eq!(adapter.modules[Q[1]].b, b);
    assert_eq!(adapter.modules[Q[0]].scale, 3.0);
}

#[test]
fn an_alpha_that_is_no_whole_number_and_rslora_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let config = AdapterConfig::new(2, 0.5, 0.0, true, Targets::parse(r".*\.q_proj").unwrap());
    write_adapter(dir.path(), &config, Base::default(), &q_pairs(&[1.0; 32], &[1.0; 64])).unwrap();
    let said = config_of(dir.path());
    assert_eq!((&said["lora_alpha"], &said["use_rslora"]), (&json!(0.5), &json!(true)));
    assert_eq!(said["target_modules"], r".*\.q_proj");
    let read = AdapterConfig::read(dir.path()).unwrap();
    assert_eq!((read.alpha, read.use_rslora), (0.5, true));
}

#[test]
fn excluded_modules_and_layers_become_a_regex_of_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = q_config();
    config.selection.layers = Some(Layers::new(vec![1], &[]).unwrap());
    let pairs = q_pairs(&[1.0; 32], &[1.0; 64]);
    write_adapter(dir.path(), &config, Base::default(), &pairs[1..]).unwrap();
    assert_eq!(config_of(dir.path())["target_modules"], r"model\.language_model\.layers\.1\.self_attn\.q_proj");
    assert_eq!(Adapter::open(dir.path(), &model()).unwrap().modules.len(), 1);
    config.selection.layers = None;
    config.selection.exclude = Some(Targets::parse("layers.0.self_attn.q_proj").unwrap());
    write_adapter(dir.path(), &config, Base::default(), &pairs[1..]).unwrap();
    assert_eq!(Adapter::open(dir.path(), &model()).unwrap().modules.len(), 1);
}

#[test]
fn what_peft_saved_is_written_with_the_same_bits() {
    let test = "what_peft_saved_is_written_with_the_same_bits";
    for name in ["attention_llm", "attention_everywhere"] {
        let Some(base) = shared(test, "reference/tiny") else { return };
        let Some(from) = shared(test, &format!("reference/tiny.train.{name}/final_adapter")) else { return };
        let adapter = Adapter::open(&from, &Config::read(&base).unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        adapter.write(dir.path()).unwrap();
        let [mut was, mut is] = [&from, dir.path()].map(|dir| read_tensors(&dir.join("adapter_model.safetensors")));
        for tensors in [&mut was, &mut is] {
            tensors.sort_by(|a, b| a.name.cmp(&b.name));
        }
        let same = |(a, b): (&crate::folders::Tensor, &crate::folders::Tensor)| {
            (&a.name, a.dtype, &a.shape, &a.bytes) == (&b.name, b.dtype, &b.shape, &b.bytes)
        };
        assert!(was.len() == is.len() && was.iter().zip(&is).all(same), "{name}");
        let [was, is] = [&from, dir.path()].map(config_of);
        for key in ["r", "lora_alpha", "target_modules", "base_model_name_or_path", "use_rslora", "peft_type", "bias"] {
            assert_eq!(was[key], is[key], "{name} {key}");
        }
    }
}

#[test]
fn patterns_are_written_as_they_were_read() {
    let dir = tempfile::tempdir().unwrap();
    let patterns = r#""rank_pattern": {"layers.1.self_attn.q_proj": 1}, "alpha_pattern": {"q_proj": 1.5}"#;
    let text = format!(r#"{{"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], {patterns}}}"#);
    std::fs::write(dir.path().join("adapter_config.json"), text).unwrap();
    let config = AdapterConfig::read(dir.path()).unwrap();
    let mut pairs = q_pairs(&[1.0; 32], &[1.0; 64]);
    (pairs[1].rank, pairs[1].a, pairs[1].b) = (1, &[2.0; 16], &[2.0; 32]);
    write_adapter(dir.path(), &config, Base::default(), &pairs).unwrap();
    let said = config_of(dir.path());
    assert_eq!(said["rank_pattern"], json!({"layers.1.self_attn.q_proj": 1}));
    assert_eq!(said["alpha_pattern"], json!({"q_proj": 1.5}));
    let adapter = Adapter::open(dir.path(), &model()).unwrap();
    assert_eq!((adapter.modules[Q[0]].scale, adapter.modules[Q[1]].scale), (0.75, 1.5));
}

#[test]
fn pairs_that_do_not_fit_are_refused_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = ([1.0; 32], [1.0; 64]);
    let refused = |pairs: &[Pair], wanted: &str| {
        let error = write_adapter(dir.path(), &q_config(), Base::default(), pairs).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    };
    refused(&[], "wanted one or more, got none");
    let [mut pair, _] = q_pairs(&a, &b);
    pair.a = &a[1..];
    refused(&[pair], &format!("wanted [2, 16], got 31 numbers for {}.lora_A", Q[0]));
    let [mut pair, _] = q_pairs(&a, &b);
    pair.b = &b[1..];
    refused(&[pair], "wanted [32, 2], got 63 numbers");
    let [mut pair, _] = q_pairs(&a, &b);
    pair.rank = 3;
    refused(&[pair], "rank: wanted that of the config, got 3 for");
    let error =
        write_adapter(Path::new("/nowhere"), &q_config(), Base::default(), &q_pairs(&a, &b)).unwrap_err().to_string();
    assert!(error.contains("/nowhere/adapter_model.safetensors"), "{error}");
}

#[test]
fn an_adapter_of_every_module_reads_back() {
    let config = model();
    let modules = select_targets(&Targets::AllLinear, &config).unwrap();
    let numbers: Vec<(Vec<f32>, Vec<f32>)> =
        modules.iter().map(|m| (vec![0.5; 2 * m.inputs], vec![0.25; 2 * m.outputs])).collect();
    let pairs: Vec<Pair> = modules
        .iter()
        .zip(&numbers)
        .map(|(m, (a, b))| Pair { path: &m.path, rank: 2, inputs: m.inputs, outputs: m.outputs, a, b })
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let targets = Targets::exactly(pairs.iter().map(|p| p.path)).unwrap();
    write_adapter(dir.path(), &AdapterConfig::new(2, 4.0, 0.0, false, targets), Base::default(), &pairs).unwrap();
    assert_eq!(Adapter::open(dir.path(), &config).unwrap().modules.len(), modules.len());
}
