//! How generation_config.json is read, and which of its options are refused.

use crate::folders::{config_folder, shared, small_config, write_json};
use serde_json::{Value, json};
use vlm::base::Result;
use vlm::qwen3vl::generation_config::GenerationConfig;

/// Of a model that stops at 7, beside this file.
fn read(file: Option<Value>) -> Result<GenerationConfig> {
    let mut config = small_config();
    config["text_config"]["eos_token_id"] = json!(7);
    beside(config, file)
}

fn beside(config: Value, file: Option<Value>) -> Result<GenerationConfig> {
    let dir = config_folder(&config);
    if let Some(file) = file {
        write_json(&dir.path().join("generation_config.json"), &file);
    }
    GenerationConfig::read(dir.path())
}

#[test]
fn the_published_options_are_read() {
    let Some(dir) = shared("the_published_options_are_read", "data/configs/Qwen3-VL-2B-Instruct") else { return };
    let config = GenerationConfig::read(&dir).unwrap();
    let want = GenerationConfig {
        do_sample: true,
        temperature: 0.7,
        top_p: 0.8,
        top_k: 20,
        repetition_penalty: 1.0,
        eos_token_ids: vec![151_645, 151_643],
        greedy_only: None,
    };
    assert_eq!(config, want);
}

#[test]
fn without_a_file_the_answer_is_greedy_and_stops_where_the_config_says() {
    let config = read(None).unwrap();
    assert!(!config.do_sample);
    assert_eq!((config.temperature, config.top_p, config.top_k, config.repetition_penalty), (1.0, 1.0, 50, 1.0));
    assert_eq!(config.eos_token_ids, [7]);
    // a file that names none lets the answer run on
    for file in [json!({"eos_token_id": null, "_from_model_config": true}), json!({})] {
        let want = GenerationConfig { eos_token_ids: Vec::new(), ..config.clone() };
        assert_eq!(read(Some(file)).unwrap(), want);
    }
    assert_eq!(read(Some(json!({"eos_token_id": 3}))).unwrap().eos_token_ids, [3]);
}

/// As `GenerationConfig.from_model_config` of transformers: the text's options count where the model's are missing.
#[test]
fn without_a_file_the_options_in_the_config_count() {
    let mut config = small_config();
    config["repetition_penalty"] = json!(1.5);
    config["temperature"] = json!(null);
    config["text_config"]["repetition_penalty"] = json!(1.2);
    config["text_config"]["temperature"] = json!(0.3);
    config["text_config"]["do_sample"] = json!(true);
    let got = beside(config.clone(), None).unwrap();
    assert_eq!((got.do_sample, got.temperature, got.repetition_penalty), (true, 0.3, 1.5));
    let got = beside(config.clone(), Some(json!({"eos_token_id": 7}))).unwrap();
    assert_eq!((got.do_sample, got.temperature, got.repetition_penalty), (false, 1.0, 1.0));
    config["text_config"]["num_beams"] = json!(4);
    let error = beside(config, None).unwrap_err().to_string();
    assert!(error.contains("/config.json: num_beams: it is 4, a way of choosing tokens"), "{error}");
}

/// What has a part in draws alone is no matter for greedy choices.
#[test]
fn ways_of_drawing_are_refused_where_a_token_is_drawn() {
    for (key, value) in
        [("min_p", 0.1), ("typical_p", 0.9), ("epsilon_cutoff", 0.1), ("eta_cutoff", 0.1), ("top_h", 0.5)]
    {
        let said = read(Some(json!({key: value}))).unwrap().greedy_only.unwrap();
        let wanted = format!("generation_config.json: {key}: it is {value}, a way of choosing tokens that is not");
        assert!(said.contains(&wanted), "{said}");
    }
}

#[test]
fn values_and_methods_that_cannot_be_used_are_refused() {
    for (file, wanted) in [
        (json!({"temperature": -1}), "generation_config.json: temperature: wanted a number from 0 up, got -1"),
        (json!({"top_p": 0}), "top_p: wanted"),
        (json!({"top_p": 1.5}), "top_p: wanted"),
        (json!({"top_k": -1}), "top_k: wanted"),
        (json!({"repetition_penalty": 0}), "repetition_penalty: wanted"),
        (json!({"presence_penalty": 1.5}), "presence_penalty: it is 1.5, and no option of transformers"),
        (json!({"frequency_penalty": 0.5}), "frequency_penalty: it is 0.5"),
        (json!({"eos_token_id": "x"}), "eos_token_id: wanted a token id"),
        (json!({"do_sample": 1}), "do_sample: wanted true or false"),
        (json!({"num_beams": 4}), "num_beams: it is 4, a way of choosing tokens that is not supported"),
        (json!({"suppress_tokens": [1]}), "suppress_tokens: it is [1]"),
        (json!({"encoder_no_repeat_ngram_size": 2}), "encoder_no_repeat_ngram_size: it is 2"),
        (json!({"stop_strings": ["."]}), "stop_strings: it is [\".\"]"),
        (json!({"dola_layers": "high"}), "dola_layers: it is \"high\""),
        (json!({"token_healing": true}), "token_healing: it is true"),
        (json!({"temprature": 0.1}), "generation_config.json: temprature: is not known"),
        (json!([]), "wanted a JSON object"),
    ] {
        let error = read(Some(file)).expect_err(wanted).to_string();
        assert!(error.contains(wanted), "{error}");
    }
    let neutral =
        json!({"num_beams": 1, "min_p": null, "typical_p": 1.0, "epsilon_cutoff": 0.0, "presence_penalty": 0});
    assert_eq!(read(Some(neutral)).unwrap().greedy_only, None);
}

/// What `GenerationConfig().to_diff_dict()` and `to_dict()` of transformers hold where nothing was asked for, and what
/// checkpoints often say beside it.
#[test]
fn honest_files_of_transformers_are_read() {
    let all = r#"{
        "_from_model_config": true, "assistant_confidence_threshold": 0.4, "assistant_early_exit": null,
        "assistant_lookbehind": 10, "bad_words_ids": null, "begin_suppress_tokens": null, "bos_token_id": 151643,
        "cache_config": null, "cache_implementation": null, "compile_config": null, "constraints": null,
        "decoder_start_token_id": null, "disable_compile": false, "diversity_penalty": 0.0, "do_sample": false,
        "dola_layers": null, "early_stopping": false, "encoder_no_repeat_ngram_size": 0,
        "encoder_repetition_penalty": 1.0, "eos_token_id": [7], "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
        "exponential_decay_length_penalty": null, "force_words_ids": null, "forced_bos_token_id": null,
        "forced_decoder_ids": null, "forced_eos_token_id": null, "guidance_scale": null, "is_assistant": false,
        "length_penalty": 1.0, "low_memory": null, "max_length": 262144, "max_matching_ngram_size": null,
        "max_new_tokens": 2048, "max_time": null, "min_length": 0, "min_new_tokens": null, "min_p": null,
        "no_repeat_ngram_size": 0, "num_assistant_tokens": 20, "num_assistant_tokens_schedule": "constant",
        "num_beam_groups": 1, "num_beams": 1, "num_return_sequences": 1, "output_attentions": false,
        "output_hidden_states": false, "output_logits": null, "output_scores": false, "pad_token_id": 151643,
        "penalty_alpha": null, "prefill_chunk_size": null, "prompt_lookup_num_tokens": null,
        "remove_invalid_values": false, "renormalize_logits": false, "repetition_penalty": 1.0,
        "return_dict_in_generate": false, "return_legacy_cache": null, "sequence_bias": null, "stop_strings": null,
        "suppress_tokens": null, "target_lookbehind": 10, "temperature": 1.0, "token_healing": false, "top_k": 50,
        "top_p": 1.0, "transformers_version": "5.17.0", "trust_remote_code": true, "typical_p": 1.0, "use_cache": true,
        "watermarking_config": null
    }"#;
    let all = serde_json::from_str(all).unwrap();
    assert_eq!(read(Some(all)).unwrap(), read(None).unwrap());
}
