//! Tokenizers as they lie in a folder: ids, decoding, those that cannot be used and those that belong to another model.

use crate::prompt::{folder_with, golden, read_json};
use serde_json::{Map, Value, json};
use std::path::Path;
use vlm::qwen3vl::config::Config;
use vlm::qwen3vl::prepare::Preparer;
use vlm::qwen3vl::processor::read_patch_spec;
use vlm::qwen3vl::prompt::{IMAGE_PAD, PromptBuilder};
use vlm::qwen3vl::tokenizer::{Specials, Tokenizer};

#[test]
fn a_tokenizer_that_cannot_be_used_is_an_error() {
    let folder = folder_with("");
    let fails = |content: &str, wanted: &str| {
        std::fs::write(folder.path().join("tokenizer.json"), content).unwrap();
        let error = PromptBuilder::from_folder(folder.path()).err().unwrap().to_string();
        assert!(error.contains("tokenizer.json") && error.contains(wanted), "{error}");
    };
    fails("{}", "is not a tokenizer of Hugging Face's tokenizers");
    let whole = std::fs::read_to_string(golden().join("tokenizer.json")).unwrap();
    let damaged = whole.replace("\"decoder\":", "\"decoder\": \"\\ud800\", \"was\":");
    assert_ne!(damaged, whole);
    fails(&damaged, "is not a tokenizer of Hugging Face's tokenizers: unexpected end of hex escape");
    let mut tokenizer = read_json(&golden().join("tokenizer.json"));
    // the next one would get its id
    tokenizer["added_tokens"].as_array_mut().unwrap().retain(|token| token["content"] != IMAGE_PAD);
    fails(&tokenizer.to_string(), "lists the added token <|video_pad|> with the id 434, and its vocabulary and");
    fails(&tokenizer.to_string(), "give it 433; take the file of the original checkpoint");
    tokenizer["added_tokens"].as_array_mut().unwrap().retain(|token| token["content"] != "<|video_pad|>");
    fails(&tokenizer.to_string(), "has no token <|image_pad|>");
    tokenizer["added_tokens"] = json!([]);
    tokenizer["model"]["vocab"] = json!({});
    tokenizer["model"]["merges"] = json!([]);
    fails(&tokenizer.to_string(), "holds no tokens");
    std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    assert!(PromptBuilder::from_folder(folder.path()).err().unwrap().to_string().contains("cannot read"));
}

/// Each of these gives other ids in transformers 5.17 than tokenizer.json and its library alone.
#[test]
fn settings_of_which_transformers_makes_other_ids_are_refused() {
    let whole = read_json(&golden().join("tokenizer.json"));
    let folder = folder_with("");
    let refused = |name: &str, content: &Value, wanted: &str| {
        std::fs::write(folder.path().join(name), content.to_string()).unwrap();
        let error = Tokenizer::from_folder(folder.path()).err().unwrap().to_string();
        assert!(error.contains(&format!("/{name}: {wanted}")), "{error}");
    };
    let template = json!({"type": "TemplateProcessing", "single": [
        {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [421], "tokens": ["<|endoftext|>"]}}});
    for (pointer, value, wanted) in [
        ("/normalizer", json!(null), "normalizer: it is null"),
        ("/normalizer", json!({"type": "NFKC"}), "normalizer: it is {\"type\":\"NFKC\"}"),
        ("/pre_tokenizer/pretokenizers/0/pattern/Regex", json!("a"), "pre_tokenizer: it is {\"type\":\"Sequence\""),
        ("/pre_tokenizer/pretokenizers/1/add_prefix_space", json!(true), "pre_tokenizer: it is"),
        ("/post_processor", template, "post_processor: it adds <|endoftext|> to every text"),
    ] {
        let mut other = whole.clone();
        *other.pointer_mut(pointer).unwrap() = value;
        refused("tokenizer.json", &other, wanted);
    }
    std::fs::write(folder.path().join("tokenizer.json"), whole.to_string()).unwrap();
    let mut decoder = Map::new();
    for token in whole["added_tokens"].as_array().unwrap() {
        decoder.insert(token["id"].to_string(), json!({"content": token["content"], "special": true}));
    }
    let mut more = decoder.clone();
    more.insert("435".into(), json!({"content": "<tool>"}));
    let mut fewer = decoder.clone();
    fewer.shift_remove("434");
    for (config, wanted) in [
        (json!({"split_special_tokens": true}), "split_special_tokens: it is true"),
        (json!({"add_prefix_space": true}), "add_prefix_space: it is true"),
        (
            json!({"additional_special_tokens": ["<|im_end|>", "<tool>"]}),
            "additional_special_tokens: tokenizer.json does",
        ),
        (
            json!({"extra_special_tokens": {"tool": {"content": "<tool>"}}}),
            "extra_special_tokens: tokenizer.json does not list <tool>",
        ),
        (json!({"extra_special_tokens": ["dent"]}), "extra_special_tokens: tokenizer.json does not list dent as"),
        (json!({"eos_token": "<end>"}), "eos_token: tokenizer.json does not list <end>"),
        (
            json!({"added_tokens_decoder": more}),
            "added_tokens_decoder: it has the token <tool> with the id 435, and tokenizer.json has not",
        ),
        (
            json!({"added_tokens_decoder": fewer}),
            "added_tokens_decoder: tokenizer.json has the token <|video_pad|> with the id 434, and it",
        ),
    ] {
        refused("tokenizer_config.json", &config, wanted);
    }
    let fine = json!({"added_tokens_decoder": decoder, "additional_special_tokens": ["<|im_end|>"], "bos_token": null,
        "split_special_tokens": false, "add_prefix_space": null, "add_bos_token": true});
    std::fs::write(folder.path().join("tokenizer_config.json"), fine.to_string()).unwrap();
    Tokenizer::from_folder(folder.path()).unwrap();
}

#[test]
fn decoding_skips_special_tokens_and_unknown_ids() {
    let tokenizer = Tokenizer::from_folder(&golden()).unwrap();
    assert_eq!(tokenizer.n_tokens(), 435);
    let end = tokenizer.token_id("<|im_end|>").unwrap();
    assert_eq!((end, tokenizer.token_id("<|nothing|>")), (423, None));
    let mut ids = tokenizer.encode("naïve 東京<|im_end|>").unwrap();
    ids.push(511);
    assert_eq!(tokenizer.decode(&ids, Specials::Keep).unwrap(), "naïve 東京<|im_end|>");
    assert_eq!(tokenizer.decode(&ids, Specials::Skip).unwrap(), "naïve 東京");
    // The first of the bytes of 東 alone.
    assert_eq!(tokenizer.decode(&tokenizer.encode("東").unwrap()[..1], Specials::Keep).unwrap(), "\u{fffd}");
}

#[test]
fn a_configuration_of_another_tokenizer_is_refused() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/cases/single");
    let builder = PromptBuilder::from_folder(&cases).unwrap();
    let config = Config::read(&cases).unwrap();
    builder.check_ids(&config).unwrap();
    for (key, token, id) in [
        ("image_token_id", "<|image_pad|>", 433),
        ("vision_start_token_id", "<|vision_start|>", 430),
        ("vision_end_token_id", "<|vision_end|>", 431),
    ] {
        let mut json = read_json(&cases.join("config.json"));
        json[key] = json!(7);
        let folder = folder_with("");
        std::fs::write(folder.path().join("config.json"), json.to_string()).unwrap();
        let other = Config::read(folder.path()).unwrap();
        let spec = read_patch_spec(&cases).unwrap();
        let wanted = format!("tokenizer.json: {token} has the id {id}, and config.json says {key} 7;");
        for error in [builder.check_ids(&other).err(), Preparer::open(&cases, &other, spec).err()] {
            assert!(error.as_ref().is_some_and(|e| e.to_string().contains(&wanted)), "{error:?}");
        }
        // a tokenizer without the token does not contradict it; others keep their ids
        let mut tokenizer = read_json(&cases.join("tokenizer.json"));
        for added in tokenizer["added_tokens"].as_array_mut().unwrap() {
            if added["content"] == token {
                added["content"] = json!("<|another|>");
            }
        }
        if token != IMAGE_PAD {
            std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
            PromptBuilder::from_folder(folder.path()).unwrap().check_ids(&other).unwrap();
        }
    }
}

#[test]
fn a_truncation_in_the_file_is_not_applied() {
    let mut tokenizer = read_json(&golden().join("tokenizer.json"));
    tokenizer["truncation"] = json!({"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0});
    tokenizer["padding"] = json!({"strategy": {"Fixed": 900}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "!"});
    let folder = folder_with("");
    let file = folder.path().join("tokenizer.json");
    std::fs::write(&file, tokenizer.to_string()).unwrap();
    let text = "What damage does this photo show?";
    let wanted = Tokenizer::from_folder(&golden()).unwrap().encode(text).unwrap();
    assert_eq!(Tokenizer::from_file(&file).unwrap().encode(text).unwrap(), wanted);
}
