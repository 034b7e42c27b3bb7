//! How generation_config.json is read, and which of its options are refused.

use crate::folders::{config_folder, shared, small_config, write_json};
use serde_json::{Value, json};
use vlm::base::Result;
use vlm::qwen3vl::config::Config;
use vlm::qwen3vl::generation_config::GenerationConfig;

fn read(file: Option<Value>) -> Result<GenerationConfig> {
    let mut config = small_config();
    config["text_config"]["eos_token_id"] = json!(7);
    let dir = config_folder(&config);
    if let Some(file) = file {
        write_json(&dir.path().join("generation_config.json"), &file);
    }
    GenerationConfig::read(dir.path(), &Config::read(dir.path()).unwrap())
}

#[test]
fn the_published_options_are_read() {
    let Some(dir) = shared("the_published_options_are_read", "data/configs/Qwen3-VL-2B-Instruct") else { return };
    let config = GenerationConfig::read(&dir, &Config::read(&dir).unwrap()).unwrap();
    let want = GenerationConfig {
        do_sample: true,
        temperature: 0.7,
        top_p: 0.8,
        top_k: 20,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        eos_token_ids: vec![151_645, 151_643],
    };
    assert_eq!(config, want);
}

#[test]
fn without_a_file_the_answer_is_greedy_and_stops_where_the_config_says() {
    let config = read(None).unwrap();
    assert!(!config.do_sample);
    assert_eq!((config.temperature, config.top_p, config.top_k, config.repetition_penalty), (1.0, 1.0, 50, 1.0));
    assert_eq!(config.eos_token_ids, [7]);
    assert_eq!(read(Some(json!({"eos_token_id": null, "_from_model_config": true}))).unwrap(), config);
    assert_eq!(read(Some(json!({"eos_token_id": 3, "presence_penalty": 1.5}))).unwrap().eos_token_ids, [3]);
    assert_eq!(read(Some(json!({"presence_penalty": 1.5}))).unwrap().presence_penalty, 1.5);
}

#[test]
fn values_and_methods_that_cannot_be_used_are_refused() {
    for (file, wanted) in [
        (json!({"temperature": -1}), "generation_config.json: temperature: wanted a number from 0 up, got -1"),
        (json!({"top_p": 0}), "top_p: wanted"),
        (json!({"top_p": 1.5}), "top_p: wanted"),
        (json!({"top_k": -1}), "top_k: wanted"),
        (json!({"repetition_penalty": 0}), "repetition_penalty: wanted"),
        (json!({"presence_penalty": "x"}), "presence_penalty: wanted a number"),
        (json!({"eos_token_id": "x"}), "eos_token_id: wanted a token id"),
        (json!({"do_sample": 1}), "do_sample: wanted true or false"),
        (json!({"num_beams": 4}), "num_beams: it is 4, a way of choosing tokens that is not supported"),
        (json!({"min_p": 0.1}), "min_p: it is 0.1"),
        (json!({"suppress_tokens": [1]}), "suppress_tokens: it is [1]"),
        (json!([]), "wanted a JSON object"),
    ] {
        let error = read(Some(file)).expect_err(wanted).to_string();
        assert!(error.contains(wanted), "{error}");
    }
    read(Some(json!({"num_beams": 1, "min_p": null, "typical_p": 1.0, "epsilon_cutoff": 0.0}))).unwrap();
}
