//! Both spellings of config.json, the defaults, and everything that must be refused.

use crate::folders::{config_folder, set, shared, small_config};
use serde_json::{Value, json};
use vlm::qwen3vl::config::Config;

fn read(config: &Value) -> vlm::base::Result<Config> {
    Config::read(config_folder(config).path())
}

/// The small config with one change must be refused with a sentence that has `wanted` in it.
#[track_caller]
fn refused(pointer: &str, value: Value, wanted: &str) {
    let mut config = small_config();
    set(&mut config, pointer, value);
    let error = read(&config).expect_err(pointer).to_string();
    assert!(error.contains("config.json: "), "{error}");
    assert!(error.contains(wanted), "{error}");
}

#[track_caller]
fn accepted(pointer: &str, value: Value) -> Config {
    let mut config = small_config();
    set(&mut config, pointer, value);
    read(&config).unwrap()
}

#[test]
fn the_published_2b_config_is_read() {
    let Some(dir) = shared("the_published_2b_config_is_read", "data/configs/Qwen3-VL-2B-Instruct") else { return };
    let config = Config::read(&dir).unwrap();
    assert_eq!((config.text.hidden_size, config.text.n_layers, config.text.intermediate_size), (2048, 28, 6144));
    assert_eq!((config.text.n_heads, config.text.n_kv_heads, config.text.head_dim), (16, 8, 128));
    assert_eq!((config.text.rope_theta, config.text.rms_norm_eps), (5e6, 1e-6));
    assert_eq!((config.text.mrope_section, config.text.max_position_embeddings), ([24, 20, 20], 262_144));
    assert_eq!((config.vision.depth, config.vision.hidden_size, config.vision.n_heads), (24, 1024, 16));
    assert_eq!((config.vision.head_dim(), config.vision.merged_size()), (64, 4096));
    assert_eq!((config.vision.in_channels, config.vision.temporal_patch_size, config.vision.patch_size), (3, 2, 16));
    assert_eq!(config.vision.deepstack_indexes, [5, 11, 17]);
    assert_eq!((config.image_token_id, config.video_token_id), (151_655, 151_656));
    assert_eq!((config.vision_start_token_id, config.vision_end_token_id), (151_652, 151_653));
    assert!(config.tie_word_embeddings);
}

#[test]
fn a_config_saved_by_transformers_5_is_read() {
    let Some(dir) = shared("a_config_saved_by_transformers_5_is_read", "reference/tiny") else { return };
    let config = Config::read(&dir).unwrap();
    assert_eq!((config.text.rope_theta, config.text.mrope_section), (5e6, [6, 5, 5]));
    assert_eq!((config.text.n_heads, config.text.head_dim, config.text.hidden_size), (4, 32, 64));
    assert!(!config.tie_word_embeddings);
}

#[test]
fn the_spellings_of_4_57_and_5_mean_the_same() {
    let mut new = small_config();
    set(&mut new, "/text_config/rope_theta", Value::Null);
    set(&mut new, "/text_config/rope_scaling", Value::Null);
    set(
        &mut new,
        "/text_config/rope_parameters",
        json!({"rope_theta": 5e6, "rope_type": "default", "mrope_section": [2, 1, 1]}),
    );
    set(&mut new, "/vision_config/rope_parameters", json!({"rope_theta": 10000.0, "rope_type": "axial"}));
    set(&mut new, "/vision_config/model_type", "qwen3_vl_vision".into());
    assert_eq!(read(&new).unwrap(), read(&small_config()).unwrap());
    // the one that is there twice
    let equal = new["text_config"]["rope_parameters"].clone();
    set(&mut new, "/text_config/rope_scaling", equal);
    assert_eq!(read(&new).unwrap(), read(&small_config()).unwrap());
}

#[test]
fn missing_keys_take_the_defaults_of_transformers() {
    let config = read(&json!({
        "model_type": "qwen3_vl",
        "text_config": {"rope_theta": 5e6, "hidden_size": 3584, "num_attention_heads": 32}
    }))
    .unwrap();
    let text = &config.text;
    assert_eq!((text.vocab_size, text.intermediate_size, text.n_layers, text.n_kv_heads), (151_936, 22_016, 32, 32));
    assert_eq!((text.head_dim, text.mrope_section, text.max_position_embeddings), (128, [24, 20, 20], 128_000));
    let vision = &config.vision;
    assert_eq!((vision.depth, vision.hidden_size, vision.n_heads, vision.intermediate_size), (27, 1152, 16, 4304));
    assert_eq!((vision.out_hidden_size, vision.n_positions, vision.patch_size), (3584, 2304, 16));
    assert_eq!((vision.temporal_patch_size, vision.merge_size, vision.in_channels), (2, 2, 3));
    assert_eq!(vision.deepstack_indexes, [8, 16, 24]);
    assert_eq!(
        (config.image_token_id, config.vision_end_token_id, config.tie_word_embeddings),
        (151_655, 151_653, false)
    );
}

#[test]
fn the_tie_may_stand_in_either_place_and_not_differ() {
    assert!(accepted("/tie_word_embeddings", true.into()).tie_word_embeddings);
    let mut inner = small_config();
    set(&mut inner, "/tie_word_embeddings", Value::Null);
    set(&mut inner, "/text_config/tie_word_embeddings", true.into());
    assert!(read(&inner).unwrap().tie_word_embeddings);
    refused(
        "/text_config/tie_word_embeddings",
        true.into(),
        "tie_word_embeddings: it is false, and true in text_config",
    );
}

#[test]
fn the_rotary_base_is_never_guessed() {
    refused("/text_config/rope_theta", Value::Null, "text_config.rope_theta: it is missing");
    refused("/text_config/rope_theta", 0.into(), "wanted a number above 0");
    refused(
        "/text_config/rope_parameters",
        json!({"rope_theta": 5e6}),
        "rope_scaling is there too, and says something else",
    );
    refused("/text_config/rope_scaling/rope_theta", 1e4.into(), "make them equal");
    refused("/text_config/rope_scaling/rope_type", "yarn".into(), "text_config.rope_scaling.rope_type: it is \"yarn\"");
    refused("/text_config/rope_scaling/type", "mrope".into(), "rope_scaling.type");
    refused("/text_config/rope_scaling/mrope_interleaved", false.into(), "mrope_interleaved: it is false");
    refused(
        "/text_config/rope_scaling/factor",
        4.into(),
        "rope_scaling.factor: it is 4, a key that this program does not know",
    );
    refused("/text_config/rope_scaling/mrope_section", json!([2, 1]), "mrope_section: wanted three whole numbers");
    refused("/text_config/rope_scaling/partial_rotary_factor", 0.5.into(), "partial_rotary_factor");
    refused("/vision_config/rope_parameters", json!({"rope_theta": 5e6}), "vision_config.rope_parameters.rope_theta");
    refused("/vision_config/rope_parameters", json!({"rope_type": "yarn"}), "vision_config.rope_parameters.rope_type");
}

#[test]
fn other_models_are_refused_by_name() {
    refused("/model_type", "qwen3_vl_moe".into(), "mixtures of experts are not supported");
    refused("/model_type", "qwen2_5_vl".into(), "wanted qwen3_vl, got qwen2_5_vl");
    refused("/model_type", Value::Null, "model_type: it is missing");
    refused("/text_config/model_type", "qwen3_vl_moe_text".into(), "text_config.model_type");
    refused("/vision_config/model_type", "qwen2_5_vl".into(), "vision_config.model_type");
    refused("/quantization_config", json!({"quant_method": "fp8"}), "quantised checkpoints are not supported");
}

#[test]
fn keys_that_change_the_maths_are_refused_and_others_pass() {
    refused("/text_config/attention_bias", true.into(), "text_config.attention_bias: it is true");
    refused("/text_config/attention_dropout", 0.1.into(), "attention_dropout: it is 0.1");
    refused("/text_config/hidden_act", "gelu".into(), "computes with \"silu\" only");
    refused("/vision_config/hidden_act", "quick_gelu".into(), "vision_config.hidden_act");
    refused("/text_config/sliding_window", 4096.into(), "text_config.sliding_window: it is 4096");
    refused("/text_config/use_sliding_window", true.into(), "use_sliding_window");
    refused("/text_config/mlp_only_layers", json!([3]), "mlp_only_layers");
    refused("/text_config/num_experts", 128.into(), "num_experts");
    refused("/text_config/layer_types", json!(["sliding_attention"]), "layer_types");
    refused("/vision_config/window_size", 112.into(), "vision_config.window_size: it is 112, a key");
    refused("/logit_scale", 2.into(), "logit_scale: it is 2, a key");
    let plain = read(&small_config()).unwrap();
    for (pointer, value) in [
        ("/text_config/attention_bias", json!(false)),
        ("/text_config/attention_dropout", json!(0.0)),
        ("/text_config/mlp_only_layers", json!([])),
        ("/text_config/layer_types", json!(["full_attention", "full_attention"])),
        ("/text_config/initializer_range", json!(0.5)),
        ("/text_config/_anything", json!(1)),
        ("/torch_dtype", json!("float16")),
        ("/transformers_version", json!("9")),
        ("/unsloth_version", json!("2026.1")),
    ] {
        assert_eq!(accepted(pointer, value), plain, "{pointer}");
    }
    let mut null = small_config();
    null["text_config"]["sliding_window"] = Value::Null;
    assert_eq!(read(&null).unwrap(), plain);
    // null is as many as there are query heads, no mention 32
    null["text_config"]["num_key_value_heads"] = Value::Null;
    let read_heads = read(&null).unwrap().text;
    assert_eq!((read_heads.n_heads, read_heads.n_kv_heads), (4, 4));
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    refused("/text_config/num_key_value_heads", 3.into(), "wanted a divisor of num_attention_heads 4, got 3");
    refused("/text_config/head_dim", 7.into(), "head_dim: wanted an even number, got 7");
    refused("/text_config/head_dim", (1 << 23).into(), "with 4 heads it makes more than");
    refused("/text_config/hidden_size", 0.into(), "hidden_size: wanted a number from 1 to");
    refused("/text_config/vocab_size", u64::MAX.into(), "vocab_size: wanted a number from 1 to");
    refused("/text_config/max_position_embeddings", 0.into(), "max_position_embeddings: wanted a number from 1 to");
    refused("/text_config/num_hidden_layers", 5000.into(), "num_hidden_layers: wanted a number from 1 to 1024");
    refused("/text_config/hidden_size", "16".into(), "hidden_size: wanted a whole number");
    refused("/text_config/rms_norm_eps", 0.into(), "rms_norm_eps: wanted a number above 0");
    refused("/text_config/rms_norm_eps", 1e-60.into(), "rms_norm_eps: wanted a number above 0");
    refused("/vision_config/num_heads", 3.into(), "vision_config.num_heads: wanted a divisor of hidden_size 8");
    refused("/vision_config/num_heads", 4.into(), "heads of a multiple of 4");
    refused("/vision_config/in_channels", 1.into(), "wanted 3 (red, green, blue)");
    refused("/vision_config/num_position_embeddings", 15.into(), "wanted a square, got 15");
    refused("/vision_config/hidden_size", (1 << 23).into(), "spatial_merge_size: with hidden_size it makes more");
    refused("/vision_config/patch_size", 0.into(), "patch_size");
    refused("/vision_config/spatial_merge_size", 0.into(), "spatial_merge_size");
    refused("/vision_config/out_hidden_size", 8.into(), "out_hidden_size: wanted the text's hidden_size 16, got 8");
    refused("/vision_config/deepstack_visual_indexes", json!([2]), "2 is no block; there are 2");
    refused("/vision_config/deepstack_visual_indexes", json!([1, 1]), "1 stands twice");
    refused("/image_token_id", 48.into(), "image_token_id: it is 48, the vocabulary has 48 tokens");
    let mut shallow = small_config();
    set(&mut shallow, "/text_config/num_hidden_layers", 1.into());
    set(&mut shallow, "/vision_config/deepstack_visual_indexes", json!([1, 0]));
    let error = read(&shallow).unwrap_err().to_string();
    assert!(error.contains("more entries than the text has layers, 1"), "{error}");
}

#[test]
fn a_folder_without_a_config_is_said() {
    let error = Config::read(std::path::Path::new("/nowhere")).unwrap_err().to_string();
    assert!(error.starts_with("/nowhere: there is no such folder; hf download"), "{error}");
    let empty = tempfile::tempdir().unwrap();
    let error = Config::read(empty.path()).unwrap_err().to_string();
    assert!(error.contains("config.json"), "{error}");
}
