//! Which keys of a config may be there, and with what values: the checks behind [`super::config`].

use super::config::MAX_SIZE;
use crate::base::Result;
use crate::io::json::{Fields, brief};
use serde_json::Value;

pub(super) fn size(fields: &mut Fields, key: &str, default: usize) -> Result<usize> {
    at_most(fields, key, default, MAX_SIZE)
}

pub(super) fn at_most(fields: &mut Fields, key: &str, default: usize, limit: usize) -> Result<usize> {
    match fields.usize(key)?.unwrap_or(default) {
        n if (1..=limit).contains(&n) => Ok(n),
        n => Err(fields.error(key, format!("wanted a number from 1 to {limit}, got {n}"))),
    }
}

pub(super) fn positive(fields: &mut Fields, key: &str, default: f64) -> Result<f64> {
    match fields.f64(key)?.unwrap_or(default) {
        // As f32, which it becomes, it must be neither 0 nor infinite.
        x if x as f32 > 0.0 && (x as f32).is_finite() => Ok(x),
        x => Err(fields.error(key, format!("wanted a number above 0, got {x}"))),
    }
}

/// `key` must be absent or one of `values`: this program computes nothing else.
pub(super) fn same(fields: &mut Fields, key: &str, values: &[Value]) -> Result<()> {
    match fields.take(key) {
        Some(value) if !values.contains(&value) => {
            let supported = values.first().map(brief).unwrap_or_default();
            Err(fields.error(key, format!("it is {}, and this program computes with {supported} only", brief(&value))))
        }
        _ => Ok(()),
    }
}

/// Keys that change what is computed, with the only value that they may have.
fn must_be(key: &str) -> Option<Value> {
    Some(match key {
        "attention_bias" | "use_sliding_window" | "is_encoder_decoder" | "add_cross_attention" => false.into(),
        "attention_dropout" | "num_experts" | "num_local_experts" => 0.into(),
        "mlp_only_layers" => Value::Array(Vec::new()),
        _ => return None,
    })
}

/// Keys that say nothing about what this program computes: names, notes, training, ids of tokens that the tokenizer
/// knows better, and options of generation, which [`super::generation_config`] reads here where they have no file of
/// their own.
const HARMLESS: &[&str] = &[
    "architectures",
    "auto_map",
    "begin_suppress_tokens",
    "bos_token_id",
    "chunk_size_feed_forward",
    "decoder_start_token_id",
    "do_sample",
    "dtype",
    "early_stopping",
    "eos_token_id",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "id2label",
    "initializer_range",
    "is_decoder",
    "label2id",
    "length_penalty",
    "max_length",
    "max_window_layers",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pad_token_id",
    "prefix",
    "problem_type",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "typical_p",
    "use_bfloat16",
    "use_cache",
];

/// Whatever was not read must be harmless, or hold the value that this program computes with.
pub(super) fn nothing_else(fields: &mut Fields) -> Result<()> {
    let left: Vec<(String, Value)> = fields.left().map(|(key, value)| (key.into(), value.clone())).collect();
    for (key, value) in left {
        if HARMLESS.contains(&key.as_str()) || key.starts_with('_') || key.starts_with("unsloth_") {
            continue;
        }
        match must_be(&key) {
            Some(Value::Number(n)) if value.as_f64() == n.as_f64() => {}
            Some(wanted) => same(fields, &key, &[wanted])?,
            None if key == "layer_types" && full_attention_only(&value) => {}
            None if key == "quantization_config" => {
                return Err(fields.error(&key, "quantised checkpoints are not supported; use the bf16 one"));
            }
            None => {
                let reason = format!(
                    "it is {}, a key that this program does not know and cannot ignore safely; \
                     remove it if it changes nothing",
                    brief(&value)
                );
                return Err(fields.error(&key, reason));
            }
        }
    }
    Ok(())
}

fn full_attention_only(value: &Value) -> bool {
    value.as_array().is_some_and(|layers| layers.iter().all(|layer| layer == "full_attention"))
}
