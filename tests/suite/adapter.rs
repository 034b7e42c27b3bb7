//! Adapters: those that PEFT saved, variants of names and scales, and all that must not load silently.

use crate::folders::{
    Tensor, change_tensors, config_folder, set, shared, small_config, values, write_json, write_tensors,
};
use serde_json::{Value, json};
use std::fs;
use tempfile::TempDir;
use vlm::base::DType;
use vlm::io::safetensors::SafetensorsFile;
use vlm::qwen3vl::adapter::Adapter;
use vlm::qwen3vl::config::Config;
use vlm::qwen3vl::targets::{Targets, select_targets};

fn model() -> Config {
    Config::read(config_folder(&small_config()).path()).unwrap()
}

fn plain_config() -> Value {
    json!({"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["q_proj"]})
}

fn matrix(module: &str, side: &str, shape: [usize; 2]) -> Tensor {
    let values: Vec<f32> = (0..shape[0] * shape[1]).map(|i| i as f32 - 3.0).collect();
    Tensor::f32(&format!("base_model.model.{module}.lora_{side}.weight"), &shape, &values)
}

/// A on 16 inputs and B on 32 outputs for both layers' q_proj.
fn plain_tensors() -> Vec<Tensor> {
    let paths = ["model.language_model.layers.0.self_attn.q_proj", "model.language_model.layers.1.self_attn.q_proj"];
    paths.iter().flat_map(|path| [matrix(path, "A", [2, 16]), matrix(path, "B", [32, 2])]).collect()
}

fn folder(config: &Value, tensors: &[Tensor]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_json(&dir.path().join("adapter_config.json"), config);
    write_tensors(&dir.path().join("adapter_model.safetensors"), tensors);
    dir
}

#[track_caller]
fn refused(config: &Value, tensors: &[Tensor], wanted: &str) {
    let error = Adapter::open(folder(config, tensors).path(), &model()).expect_err(wanted).to_string();
    assert!(error.contains(wanted), "{error}");
}

#[track_caller]
fn refused_key(key: &str, value: Value, wanted: &str) {
    let mut config = plain_config();
    config[key] = value;
    refused(&config, &plain_tensors(), &format!("adapter_config.json: {key}: {wanted}"));
}

#[test]
fn adapters_that_peft_saved_are_read() {
    for (name, modules) in [("attention_llm", 12), ("attention_everywhere", 18)] {
        let test = "adapters_that_peft_saved_are_read";
        let Some(base) = shared(test, "reference/tiny") else { return };
        let Some(dir) = shared(test, &format!("reference/tiny.train.{name}/final_adapter")) else { return };
        let adapter = Adapter::open(&dir, &Config::read(&base).unwrap()).unwrap();
        let config: Value = serde_json::from_slice(&fs::read(dir.join("adapter_config.json")).unwrap()).unwrap();
        assert_eq!(adapter.modules.len(), modules, "{name}");
        let scale = (config["lora_alpha"].as_f64().unwrap() / config["r"].as_f64().unwrap()) as f32;
        let file = SafetensorsFile::open(&dir.join("adapter_model.safetensors")).unwrap();
        let mut numbers = 0;
        for (path, module) in &adapter.modules {
            assert_eq!(module.scale, scale);
            for (side, got) in [("A", &module.a), ("B", &module.b)] {
                let want =
                    values(DType::F32, file.bytes(&format!("base_model.model.{path}.lora_{side}.weight")).unwrap());
                assert!(want.iter().zip(got).all(|(x, y)| *x == f64::from(*y)) && want.len() == got.len());
                numbers += want.len() as u64;
            }
        }
        assert_eq!(adapter.parameters(), numbers);
    }
}

#[test]
fn the_adapters_name_may_stand_in_the_tensors_and_types_are_widened() {
    let mut tensors = plain_tensors();
    for tensor in &mut tensors {
        tensor.name = tensor.name.replace(".weight", ".default.weight");
        // Small whole numbers: their bf16 is the upper half of their f32.
        tensor.bytes = tensor.bytes.chunks(4).flat_map(|b| [b[2], b[3]]).collect();
        tensor.dtype = DType::Bf16;
    }
    let adapter = Adapter::open(folder(&plain_config(), &tensors).path(), &model()).unwrap();
    let module = &adapter.modules["model.language_model.layers.1.self_attn.q_proj"];
    assert_eq!((module.rank, module.inputs, module.outputs, module.scale), (2, 16, 32, 3.0));
    assert_eq!(module.a, (0..32).map(|i| i as f32 - 3.0).collect::<Vec<_>>());
    assert_eq!(module.b.len(), 64);
}

#[test]
fn scales_follow_rslora_and_patterns() {
    let mut config = plain_config();
    config["use_rslora"] = true.into();
    let scale_of = |config: &Value, tensors: &[Tensor], layer: usize| {
        let adapter = Adapter::open(folder(config, tensors).path(), &model()).unwrap();
        adapter.modules[&format!("model.language_model.layers.{layer}.self_attn.q_proj")].scale
    };
    assert_eq!(scale_of(&config, &plain_tensors(), 0), (6.0 / 2_f64.sqrt()) as f32);
    let mut config = plain_config();
    config["alpha_pattern"] = json!({"layers.1.self_attn.q_proj": 10, "q_proj": 1});
    assert_eq!(scale_of(&config, &plain_tensors(), 0), 0.5);
    assert_eq!(scale_of(&config, &plain_tensors(), 1), 5.0);
    config["rank_pattern"] = json!({r"^model\.language_model\.layers\.[^0]\..*": 4, "j": 9});
    let mut tensors = plain_tensors();
    let second = "model.language_model.layers.1.self_attn.q_proj";
    tensors.splice(2.., [matrix(second, "A", [4, 16]), matrix(second, "B", [32, 4])]);
    assert_eq!(scale_of(&config, &tensors, 0), 0.5);
    assert_eq!(scale_of(&config, &tensors, 1), 2.5);
    config["rank_pattern"] = json!({"q_proj": 0});
    refused(&config, &tensors, "rank_pattern: q_proj: wanted a rank of at least 1, got 0");
    config["rank_pattern"] = json!({"(": 1});
    refused(&config, &tensors, "rank_pattern: ( is no valid regex");
}

/// One such number would be in every answer, and in every weight that it is merged into.
#[test]
fn numbers_that_are_not_finite_are_refused_with_their_tensor() {
    let name = "base_model.model.model.language_model.layers.1.self_attn.q_proj.lora_B.weight";
    for (value, said) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        let mut tensors = plain_tensors();
        let tensor = tensors.iter_mut().find(|t| t.name == name).unwrap();
        tensor.bytes[60..64].copy_from_slice(&value.to_le_bytes());
        let wanted = format!("adapter_model.safetensors: tensor {name}: it holds {said}: the training that wrote it");
        refused(&plain_config(), &tensors, &wanted);
    }
    let mut config = plain_config();
    config["alpha_pattern"] = json!({"layers.1.self_attn.q_proj": 1e300});
    refused(&config, &plain_tensors(), "adapter_config.json: lora_alpha: the scale of model.language_model.layers.1.");
}

#[test]
fn names_regexes_exclusions_and_layers_select_as_peft_does() {
    let first = &plain_tensors()[..2];
    let open = |changes: Value| {
        let mut config = plain_config();
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        Adapter::open(folder(&config, first).path(), &model())
    };
    for changes in [
        json!({"target_modules": ["model.language_model.layers.0.self_attn.q_proj"]}),
        json!({"target_modules": ["layers.0.self_attn.q_proj"]}),
        json!({"target_modules": r".*\.0\.(?!mlp)[a-z_]+\.q_proj"}),
        json!({"exclude_modules": ["1.self_attn.q_proj"]}),
        json!({"exclude_modules": r".*layers\.1\..*"}),
        json!({"layers_to_transform": 0}),
        json!({"layers_to_transform": [0, 7], "layers_pattern": "layers"}),
        json!({"layers_to_transform": [0], "layers_pattern": ["blocks", "layers"]}),
    ] {
        let adapter = open(changes.clone()).unwrap_or_else(|e| panic!("{changes}: {e}"));
        assert_eq!(adapter.modules.len(), 1, "{changes}");
    }
    for (changes, wanted) in [
        (
            json!({}),
            "has no tensors for modules that its config selects: model.language_model.layers.1.self_attn.q_proj",
        ),
        (json!({"target_modules": ["k_proj"]}), "has no tensors for modules that its config selects"),
        (json!({"layers_to_transform": [1]}), "has no tensors for modules that its config selects"),
        (
            json!({"layers_to_transform": [0], "layers_pattern": "blocks"}),
            "has tensors for modules that its config does not select",
        ),
        (json!({"target_modules": "q_proj"}), "has tensors for modules that its config does not select"),
        (json!({"target_modules": ["oj"]}), "has tensors for modules that its config does not select"),
        (json!({"target_modules": "("}), "target_modules: ( is no valid regex"),
        (json!({"target_modules": 3}), "target_modules: wanted a list of names or a regex, got 3"),
        (json!({"target_modules": null}), "target_modules: it is missing"),
        (json!({"target_modules": ["proj", "q_proj"]}), "patch_embed.proj is matched too, which is a convolution"),
        (json!({"target_modules": ".*"}), "matched too, which is"),
        (json!({"layers_to_transform": "x"}), "layers_to_transform: wanted a layer"),
    ] {
        let error = open(changes).expect_err(wanted).to_string();
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn variants_that_compute_something_else_are_refused_by_name() {
    refused_key("use_dora", true.into(), "it is true: DoRA is not supported");
    refused_key("bias", "lora_only".into(), "it is \"lora_only\": a trained bias");
    refused_key("lora_bias", true.into(), "it is true: a bias on the adapter");
    refused_key("modules_to_save", json!(["lm_head"]), "it is [\"lm_head\"]: modules trained in full");
    refused_key("layer_replication", json!([[0, 4]]), "it is [[0,4]]: replicated layers");
    refused_key("alora_invocation_tokens", json!([1]), "it is [1]: activated LoRA");
    refused_key("target_parameters", json!(["x"]), "it is [\"x\"]: LoRA on bare parameters");
    refused_key("trainable_token_indices", json!([1]), "it is [1]: trained tokens");
    refused_key("fan_in_fan_out", true.into(), "it is true: transposed weights");
    refused_key("init_lora_weights", "pissa_niter_4".into(), "it is \"pissa_niter_4\": a start that changes the base");
    refused_key("some_new_switch", true.into(), "it is true, a key that this program does not know");
    refused_key("peft_type", "IA3".into(), "wanted LORA, got IA3");
    refused_key("peft_type", Value::Null, "it is missing");
    refused_key("r", 0.into(), "wanted a rank of at least 1");
    refused_key("lora_alpha", "x".into(), "wanted a number");
    refused_key("rank_pattern", 3.into(), "wanted a table, got 3");
    let mut harmless = plain_config();
    for (key, value) in [
        ("use_dora", json!(false)),
        ("modules_to_save", json!([])),
        ("loftq_config", json!({})),
        ("init_lora_weights", json!("gaussian")),
        ("inference_mode", json!(true)),
        ("qalora_group_size", json!(16)),
        ("auto_mapping", json!({"base_model_class": "x"})),
        ("bias", json!("none")),
    ] {
        harmless[key] = value;
    }
    Adapter::open(folder(&harmless, &plain_tensors()).path(), &model()).unwrap();
}

#[test]
fn tensors_that_do_not_belong_are_refused() {
    let config = plain_config();
    let with = |tensor: Tensor| [plain_tensors(), vec![tensor]].concat();
    let named = |name: &str| Tensor::f32(name, &[1], &[0.0]);
    refused(&config, &with(named("x.weight")), "tensor x.weight: wanted a name that begins with base_model.model.");
    refused(&config, &with(named("base_model.model.lm_head.weight")), "it is no LoRA matrix");
    let q = "base_model.model.model.language_model.layers.0.self_attn.q_proj";
    refused(&config, &with(named(&format!("{q}.lora_magnitude_vector"))), "DoRA is not supported");
    refused(
        &config,
        &with(named("base_model.model.model.language_model.embed_tokens.lora_embedding_A")),
        "LoRA on embeddings",
    );
    refused(&config, &with(named(&format!("{q}.lora_A.bias"))), "wanted a matrix, a name that ends with .weight");
    refused(&config, &with(named(&format!("{q}.lora_A.default.weight"))), "stands for the same matrix");
    refused(&config, &plain_tensors()[..3], "layers.1.self_attn.q_proj.lora_B: it is missing, its partner is there");
    refused(&config, &[], "has no tensors for modules that its config selects");
    refused(&json!({"peft_type": "LORA", "target_modules": ["nothing"]}), &[], "the adapter has no tensors");
    let mut integers = plain_tensors();
    integers[0].dtype = DType::I32;
    refused(&config, &integers, "is i32, wanted a floating type");
}

#[test]
fn an_adapter_of_another_model_says_so() {
    let mut larger = small_config();
    set(&mut larger, "/text_config/hidden_size", 32.into());
    set(&mut larger, "/vision_config/out_hidden_size", 32.into());
    let larger = Config::read(config_folder(&larger).path()).unwrap();
    let dir = folder(&plain_config(), &plain_tensors());
    let error = Adapter::open(dir.path(), &larger).unwrap_err().to_string();
    assert!(error.contains("the adapter is of another model, or of another rank"), "{error}");
    assert!(
        error.contains("layers.0.self_attn.q_proj.lora_A.weight has shape [2, 16] where [2, 32] is needed"),
        "{error}"
    );

    let deep = matrix("model.language_model.layers.2.self_attn.q_proj", "A", [2, 16]);
    refused(
        &plain_config(),
        std::slice::from_ref(&deep),
        "the adapter is of another model: no linear module has the names of",
    );
    refused(&plain_config(), &[plain_tensors(), vec![deep]].concat(), "the adapter does not fit this model");
    let old = matrix("model.layers.0.self_attn.q_proj", "A", [2, 16]);
    refused(&plain_config(), &[old], "the first would be model.language_model.layers.0.self_attn.q_proj here");
    let mut rank = plain_config();
    rank["r"] = 4.into();
    refused(&rank, &plain_tensors(), "where [4, 16] is needed");
}

#[test]
fn a_pickled_adapter_is_said() {
    let dir = folder(&plain_config(), &plain_tensors());
    change_tensors(&dir.path().join("adapter_model.safetensors"), |_| ());
    fs::rename(dir.path().join("adapter_model.safetensors"), dir.path().join("adapter_model.bin")).unwrap();
    let error = Adapter::open(dir.path(), &model()).unwrap_err().to_string();
    assert!(error.contains("pickled adapters are not read"), "{error}");
    fs::remove_file(dir.path().join("adapter_model.bin")).unwrap();
    assert!(Adapter::open(dir.path(), &model()).unwrap_err().to_string().starts_with("cannot open"));
}

#[track_caller]
fn selected(targets: &str, tied: bool) -> Vec<String> {
    let mut config = small_config();
    config["tie_word_embeddings"] = tied.into();
    let config = Config::read(config_folder(&config).path()).unwrap();
    select_targets(&Targets::parse(targets).unwrap(), &config).unwrap().into_iter().map(|m| m.path).collect()
}

#[test]
fn targets_are_names_where_they_look_like_names_and_else_a_regex() {
    let q = |layer| format!("model.language_model.layers.{layer}.self_attn.q_proj");
    assert_eq!(selected("q_proj", false), [q(0), q(1)]);
    assert_eq!(selected("0.self_attn.q_proj, attn.proj", false).len(), 3);
    assert_eq!(selected(&q(1), false), [q(1)]);
    assert_eq!(selected("lm_head", false), ["lm_head"]);
    assert_eq!(selected(r".*language_model.*\.q_proj", false), [q(0), q(1)]);
    assert_eq!(selected(r"(?!.*visual).*layers\.1.*q_proj", false), [q(1)]);
    assert_eq!(selected("linear_fc1", false).len(), 4);
    // 14 projections, 2 x 4 in vision blocks, 2 x 2 in mergers; never the head.
    for name in ["all-linear", "ALL-LINEAR"] {
        assert_eq!(selected(name, false).len(), 26);
        assert_eq!(selected(name, true), selected(name, false));
    }
    assert_eq!(selected(r".*(_proj|lm_head)", false).len(), 15);
}

#[test]
fn targets_that_cannot_be_meant_are_wrong_usage() {
    let config = model();
    let mut tied = small_config();
    tied["tie_word_embeddings"] = true.into();
    let tied = Config::read(config_folder(&tied).path()).unwrap();
    for (targets, config, wanted) in [
        (
            "proj",
            &config,
            "model.visual.patch_embed.proj is matched too, which is a convolution; adapters are for linear modules; \
             for the output projection of attention write attn.proj",
        ),
        ("q_proj,norm", &config, "which is a norm"),
        ("mlp", &config, "which is a group of modules"),
        ("embed_tokens", &config, "which is an embedding"),
        ("lm_head", &tied, "lm_head is matched too, which is the embedding itself"),
        ("q_proj,q_prjo", &config, "q_prjo matches no module of this model; its linear modules end with down_proj, "),
        ("_proj", &config, "_proj matches no module"),
        (".*_prjo", &config, "the regex matches no module"),
    ] {
        let error = select_targets(&Targets::parse(targets).unwrap(), config).expect_err(targets);
        assert!(error.is_usage() && error.to_string().contains(wanted), "{error}");
    }
    for (targets, wanted) in [("q_proj,,k_proj", "empty name"), ("", "empty name"), ("(q_proj", "no valid regex")] {
        let error = Targets::parse(targets).expect_err(targets);
        assert!(error.is_usage() && error.to_string().contains(wanted), "{error}");
    }
    // References need backtracking, and a regex that needs too much of it is an error and no endless wait.
    let slow = select_targets(&Targets::parse(r"(([a-z._0-9]+)+)+\2!").unwrap(), &config).unwrap_err();
    assert!(slow.to_string().contains("cannot be tried on"), "{slow}");
}
