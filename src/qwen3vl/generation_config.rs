//! `generation_config.json`: how a checkpoint wants its next token chosen, and where it stops.
//!
//! Missing keys take the defaults of transformers 5.17 (`generation/configuration_utils.py`): greedy, temperature 1,
//! top_k 50, top_p 1, no penalties. Options that would choose other tokens and that this program lacks are refused.

use super::config::Config;
use crate::base::Result;
use crate::io::json::{Fields, brief};
use serde_json::Value;
use std::path::Path;

#[derive(Debug, Clone, PartialEq)]
pub struct GenerationConfig {
    /// Draw, rather than take the likeliest token.
    pub do_sample: bool,
    /// 0 is greedy.
    pub temperature: f64,
    /// In (0, 1]; 1 keeps all.
    pub top_p: f64,
    /// 0 keeps all.
    pub top_k: usize,
    /// 1 changes nothing.
    pub repetition_penalty: f64,
    /// Subtracted from the logit of every token already generated. No option of transformers; vLLM's meaning.
    pub presence_penalty: f64,
    /// Any of them ends the answer; may be empty.
    pub eos_token_ids: Vec<u32>,
}

impl GenerationConfig {
    /// Reads the file in `dir`, or takes the defaults where there is none; stops that it does not name are `model`'s.
    pub fn read(dir: &Path, model: &Config) -> Result<Self> {
        let path = dir.join("generation_config.json");
        let mut config = GenerationConfig {
            do_sample: false,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 50,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            eos_token_ids: model.eos_token_ids.clone(),
        };
        if !path.exists() {
            return Ok(config);
        }
        let mut fields = Fields::read(&path)?;
        refuse_other_methods(&mut fields)?;
        config.do_sample = fields.bool("do_sample")?.unwrap_or(config.do_sample);
        config.top_k = fields.usize("top_k")?.unwrap_or(config.top_k);
        config.eos_token_ids = fields.one_or_more_u32("eos_token_id")?.unwrap_or(config.eos_token_ids);
        let mut number = |key: &str, default: f64, wanted: &str, allowed: fn(f64) -> bool| {
            let got = fields.f64(key)?.unwrap_or(default);
            if allowed(got) { Ok(got) } else { Err(fields.error(key, format!("wanted {wanted}, got {got}"))) }
        };
        config.temperature = number("temperature", 1.0, "a number from 0 up", |x| x >= 0.0)?;
        config.top_p = number("top_p", 1.0, "a number above 0 and up to 1", |x| x > 0.0 && x <= 1.0)?;
        config.repetition_penalty = number("repetition_penalty", 1.0, "a number above 0", |x| x > 0.0)?;
        config.presence_penalty = number("presence_penalty", 0.0, "a number", f64::is_finite)?;
        NO_SAY.iter().for_each(|key| _ = fields.take(key));
        match fields.left().next() {
            Some((key, _)) => {
                Err(fields.error(key, "is not known, and may change which tokens are chosen; remove the key"))
            }
            None => Ok(config),
        }
    }
}

/// What transformers writes and reads that does not choose among tokens here: how long an answer may be, which the command
/// says; what only beams, drafts, caches, outputs and compilers ask for; ids that stand for nothing in a prompt; where the
/// file came from.
const NO_SAY: [&str; 39] = [
    "max_length",
    "max_new_tokens",
    "max_time",
    "early_stopping",
    "length_penalty",
    "low_memory",
    "renormalize_logits",
    "remove_invalid_values",
    "use_cache",
    "cache_implementation",
    "cache_config",
    "return_legacy_cache",
    "prefill_chunk_size",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "return_dict_in_generate",
    "pad_token_id",
    "bos_token_id",
    "decoder_start_token_id",
    "is_assistant",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "assistant_confidence_threshold",
    "assistant_early_exit",
    "assistant_lookbehind",
    "target_lookbehind",
    "prompt_lookup_num_tokens",
    "max_matching_ngram_size",
    "compile_config",
    "disable_compile",
    "continuous_batching_config",
    "attn_implementation",
    "trust_remote_code",
    "transformers_version",
    "_from_model_config",
    "_commit_hash",
    "_name_or_path",
];

/// Each of these, unless it has this neutral value (or is null), would choose other tokens.
fn refuse_other_methods(fields: &mut Fields) -> Result<()> {
    const NEUTRAL: [(&str, f64); 15] = [
        ("num_beams", 1.0),
        ("num_beam_groups", 1.0),
        ("num_return_sequences", 1.0),
        ("diversity_penalty", 0.0),
        ("encoder_no_repeat_ngram_size", 0.0),
        ("encoder_repetition_penalty", 1.0),
        ("epsilon_cutoff", 0.0),
        ("eta_cutoff", 0.0),
        ("min_length", 0.0),
        ("min_new_tokens", 0.0),
        ("min_p", 0.0),
        ("no_repeat_ngram_size", 0.0),
        ("top_h", 0.0),
        ("typical_p", 1.0),
        ("frequency_penalty", 0.0),
    ];
    const ABSENT: [&str; 16] = [
        "bad_words_ids",
        "begin_suppress_tokens",
        "constraints",
        "dola_layers",
        "exponential_decay_length_penalty",
        "force_words_ids",
        "forced_bos_token_id",
        "forced_decoder_ids",
        "forced_eos_token_id",
        "guidance_scale",
        "penalty_alpha",
        "sequence_bias",
        "stop_strings",
        "suppress_tokens",
        "token_healing",
        "watermarking_config",
    ];
    let numbers = NEUTRAL.iter().map(|&(key, neutral)| (key, Some(neutral)));
    for (key, neutral) in numbers.chain(ABSENT.iter().map(|&key| (key, None))) {
        if let Some(value) = fields.take(key)
            && !neutral.map_or(value == Value::Bool(false), |neutral| value.as_f64() == Some(neutral))
        {
            let reason =
                format!("it is {}, a way of choosing tokens that is not supported; remove the key", brief(&value));
            return Err(fields.error(key, reason));
        }
    }
    Ok(())
}
