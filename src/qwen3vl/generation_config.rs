//! `generation_config.json`: how a checkpoint wants its next token chosen, and where it stops.
//!
//! Where there is no such file, `config.json` and its `text_config` say it, as in transformers 5.17 (generation/utils.py,
//! `adjust_generation_fn`). Missing keys take the defaults there (generation/configuration_utils.py): greedy, temperature
//! 1, top_k 50, top_p 1, no penalties, no stop. Options that would choose other tokens and that this program lacks are
//! refused.

use crate::base::Result;
use crate::io::folder_kind;
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
    /// Any of them ends the answer; may be empty.
    pub eos_token_ids: Vec<u32>,
    /// Why tokens cannot be drawn as the file wants it, where that is so; greedy choices have no part in it.
    pub greedy_only: Option<String>,
}

impl GenerationConfig {
    /// Reads the file in `dir`, or the model's config where there is none.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("generation_config.json");
        let own = path.exists();
        let mut fields = if own {
            Fields::read(&path)?
        } else {
            let mut top = Fields::read(&dir.join(folder_kind::CONFIG))?;
            let text = top.section("text_config")?;
            top.or(text)
        };
        for (key, neutral) in OTHER_METHODS {
            refuse_unless(&mut fields, key, |value| value.as_f64() == Some(neutral))?;
        }
        for key in ABSENT {
            refuse_unless(&mut fields, key, |value| value == &Value::Bool(false))?;
        }
        let mut greedy_only = None;
        for (key, neutral) in OTHER_DRAWS {
            let refused = refuse_unless(&mut fields, key, |value| value.as_f64() == Some(neutral)).err();
            greedy_only = greedy_only.or(refused.map(|refused| refused.to_string()));
        }
        let do_sample = fields.bool("do_sample")?.unwrap_or(false);
        let top_k = fields.usize("top_k")?.unwrap_or(50);
        let eos_token_ids = fields.one_or_more_u32("eos_token_id")?.unwrap_or_default();
        let mut number = |key: &str, default: f64, wanted: &str, allowed: fn(f64) -> bool| {
            let got = fields.f64(key)?.unwrap_or(default);
            if allowed(got) { Ok(got) } else { Err(fields.error(key, format!("wanted {wanted}, got {got}"))) }
        };
        let config = GenerationConfig {
            do_sample,
            temperature: number("temperature", 1.0, "a number from 0 up", |x| x >= 0.0)?,
            top_p: number("top_p", 1.0, "a number above 0 and up to 1", |x| x > 0.0 && x <= 1.0)?,
            top_k,
            repetition_penalty: number("repetition_penalty", 1.0, "a number above 0", |x| x > 0.0)?,
            eos_token_ids,
            greedy_only,
        };
        if let Some(value) = fields.take("presence_penalty").filter(|value| value.as_f64() != Some(0.0)) {
            let reason = format!(
                "it is {}, and no option of transformers, which does without it; remove the key and give \
                 --presence-penalty",
                brief(&value)
            );
            return Err(fields.error("presence_penalty", reason));
        }
        NO_SAY.iter().for_each(|key| _ = fields.take(key));
        match fields.left().next() {
            Some((key, _)) if own => {
                Err(fields.error(key, "is not known, and may change which tokens are chosen; remove the key"))
            }
            _ => Ok(config),
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
const OTHER_METHODS: [(&str, f64); 10] = [
    ("num_beams", 1.0),
    ("num_beam_groups", 1.0),
    ("num_return_sequences", 1.0),
    ("diversity_penalty", 0.0),
    ("encoder_no_repeat_ngram_size", 0.0),
    ("encoder_repetition_penalty", 1.0),
    ("min_length", 0.0),
    ("min_new_tokens", 0.0),
    ("no_repeat_ngram_size", 0.0),
    ("frequency_penalty", 0.0),
];

/// The same where tokens are drawn.
const OTHER_DRAWS: [(&str, f64); 5] =
    [("epsilon_cutoff", 0.0), ("eta_cutoff", 0.0), ("min_p", 0.0), ("top_h", 0.0), ("typical_p", 1.0)];

/// The same; false is as good as null.
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

fn refuse_unless(fields: &mut Fields, key: &str, is_neutral: impl Fn(&Value) -> bool) -> Result<()> {
    match fields.take(key) {
        Some(value) if !is_neutral(&value) => {
            let reason =
                format!("it is {}, a way of choosing tokens that is not supported; remove the key", brief(&value));
            Err(fields.error(key, reason))
        }
        _ => Ok(()),
    }
}
