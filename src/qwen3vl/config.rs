//! `config.json` of a dense Qwen3-VL checkpoint, in both spellings: 4.57's and 5.x's of transformers.
//!
//! Defaults of missing keys are those of transformers 5.17 (`models/qwen3_vl/configuration_qwen3_vl.py`), but for the
//! rotary base: its default there, 500000, is no model's, so a config without one is refused. Keys that would change
//! what is computed must hold the value that this program computes with; keys that nobody here knows are refused.

use super::config_keys::{at_most, nothing_else, positive, same, size};
use crate::base::{Error, Result};
use crate::io::folder_kind::{self, Wanted};
use crate::io::json::Fields;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Sizes are elements, ids are rows of the embedding. Every product of sizes that makes a tensor fits in 50 bits.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub text: TextConfig,
    pub vision: VisionConfig,
    pub image_token_id: u32,
    pub video_token_id: u32,
    pub vision_start_token_id: u32,
    pub vision_end_token_id: u32,
    /// The head uses the embedding's weight; the checkpoint then needs no `lm_head.weight`.
    pub tie_word_embeddings: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct TextConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub n_layers: usize,
    pub n_heads: usize,
    pub n_kv_heads: usize,
    /// Even. Not hidden_size / n_heads: 4B and 32B have more.
    pub head_dim: usize,
    pub rms_norm_eps: f32,
    pub rope_theta: f64,
    /// Frequency j takes the height where j % 3 == 1 and j < 3 * section\[1\], the width where j % 3 == 2 and
    /// j < 3 * section\[2\], else the time; section\[0\] plays no part. transformers asks for no sum.
    pub mrope_section: [usize; 3],
    pub max_position_embeddings: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    pub depth: usize,
    pub hidden_size: usize,
    pub n_heads: usize,
    pub intermediate_size: usize,
    /// Equal to the text's hidden_size.
    pub out_hidden_size: usize,
    /// Blocks whose output is tapped, the k-th by merger k; distinct, in the order of the file.
    pub deepstack_indexes: Vec<usize>,
    /// A square: the table of positions has its root in rows and columns.
    pub n_positions: usize,
    pub patch_size: usize,
    pub temporal_patch_size: usize,
    pub merge_size: usize,
    pub in_channels: usize,
}

impl VisionConfig {
    /// Width of one head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.n_heads
    }

    /// Width of merge_size x merge_size patches side by side.
    pub fn merged_size(&self) -> usize {
        self.hidden_size * self.merge_size * self.merge_size
    }
}

/// Bounds on what a config may claim, far above any model, so that sizes multiply without overflow.
pub(super) const MAX_SIZE: usize = 1 << 24;
const MAX_LAYERS: usize = 1 << 10;
/// The base of the vision tower's rotary angles: fixed in the reference, and checked where a configuration names it.
pub(super) const VISION_ROPE_THETA: f64 = 10_000.0;

/// Errors: `dir` is no folder; says how to get one where it is a repository's name of Hugging Face.
pub fn folder(dir: &Path) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if dir.exists() {
        return Err(Error::file(dir, "is a file; wanted the folder of a checkpoint"));
    }
    // a path that was made whole since it was given
    let here = std::env::current_dir().unwrap_or_default();
    let given = dir.strip_prefix(&here).unwrap_or(dir);
    let parts: Vec<&str> = given.iter().filter_map(|part| part.to_str()).collect();
    let hint = match parts[..] {
        [owner, name] if !owner.starts_with(['.', '/']) => {
            format!(
                "; if it is a repository of Hugging Face: hf download {owner}/{name} --local-dir {name}, and give {name}"
            )
        }
        _ => "; hf download OWNER/NAME --local-dir NAME makes one of a repository of Hugging Face".into(),
    };
    Err(Error::file(dir, format!("there is no such folder{hint}")))
}

impl Config {
    /// Reads `config.json` in `dir`. Errors name file, key, what was wanted and what was found.
    pub fn read(dir: &Path) -> Result<Self> {
        folder(dir)?;
        folder_kind::check(dir, Wanted::Model)?;
        let path = dir.join(folder_kind::CONFIG);
        let mut top = Fields::read(&path)?;
        check_model_type(&path, &mut top)?;
        let mut text = top.section("text_config")?;
        let mut vision = top.section("vision_config")?;

        let tied = top.bool("tie_word_embeddings")?;
        let text_tied = text.bool("tie_word_embeddings")?;
        if let (Some(a), Some(b)) = (tied, text_tied)
            && a != b
        {
            let reason = format!(
                "it is {a}, and {b} in text_config; versions of transformers read one or the other, make them equal"
            );
            return Err(top.error("tie_word_embeddings", reason));
        }
        let config = Config {
            image_token_id: top.u32("image_token_id")?.unwrap_or(151_655),
            video_token_id: top.u32("video_token_id")?.unwrap_or(151_656),
            vision_start_token_id: top.u32("vision_start_token_id")?.unwrap_or(151_652),
            vision_end_token_id: top.u32("vision_end_token_id")?.unwrap_or(151_653),
            tie_word_embeddings: tied.or(text_tied).unwrap_or(false),
            text: read_text(&mut text)?,
            vision: read_vision(&mut vision)?,
        };
        nothing_else(&mut top)?;
        if config.image_token_id as usize >= config.text.vocab_size {
            let reason =
                format!("it is {}, the vocabulary has {} tokens", config.image_token_id, config.text.vocab_size);
            return Err(top.error("image_token_id", reason));
        }
        if config.vision.out_hidden_size != config.text.hidden_size {
            let (out, hidden) = (config.vision.out_hidden_size, config.text.hidden_size);
            return Err(vision.error("out_hidden_size", format!("wanted the text's hidden_size {hidden}, got {out}")));
        }
        if config.vision.deepstack_indexes.len() > config.text.n_layers {
            let reason = format!("it has more entries than the text has layers, {}", config.text.n_layers);
            return Err(vision.error("deepstack_visual_indexes", reason));
        }
        Ok(config)
    }
}

fn check_model_type(path: &Path, top: &mut Fields) -> Result<()> {
    match top.string("model_type")?.as_deref() {
        Some("qwen3_vl") => Ok(()),
        Some(name) if name.ends_with("_moe") => Err(Error::Unsupported(format!(
            "{}: model_type is {name}: mixtures of experts are not supported; use a dense Qwen3-VL (2B, 4B, 8B or 32B)",
            path.display()
        ))),
        Some(other) => {
            Err(top.error("model_type", format!("wanted qwen3_vl, got {other}; this program runs Qwen3-VL only")))
        }
        None => Err(top.error("model_type", "it is missing; wanted qwen3_vl")),
    }
}

fn read_text(text: &mut Fields) -> Result<TextConfig> {
    same(text, "model_type", &["qwen3_vl_text".into()])?;
    same(text, "hidden_act", &["silu".into()])?;
    let rope = rope(text)?;
    let n_heads = size(text, "num_attention_heads", 32)?;
    // a missing key is the default, and null as many as there are query heads (configuration_qwen3_vl.py)
    let kv_heads_are_null = text.is_null("num_key_value_heads");
    let config = TextConfig {
        vocab_size: size(text, "vocab_size", 151_936)?,
        hidden_size: size(text, "hidden_size", 4096)?,
        intermediate_size: size(text, "intermediate_size", 22_016)?,
        n_layers: at_most(text, "num_hidden_layers", 32, MAX_LAYERS)?,
        n_heads,
        n_kv_heads: size(text, "num_key_value_heads", if kv_heads_are_null { n_heads } else { 32 })?,
        head_dim: size(text, "head_dim", 128)?,
        rms_norm_eps: positive(text, "rms_norm_eps", 1e-6)? as f32,
        rope_theta: rope.theta,
        mrope_section: rope.section,
        max_position_embeddings: size(text, "max_position_embeddings", 128_000)?,
    };
    nothing_else(text)?;
    if !config.n_heads.is_multiple_of(config.n_kv_heads) {
        let reason = format!("wanted a divisor of num_attention_heads {}, got {}", config.n_heads, config.n_kv_heads);
        return Err(text.error("num_key_value_heads", reason));
    }
    if !config.head_dim.is_multiple_of(2) {
        return Err(text.error("head_dim", format!("wanted an even number, got {}", config.head_dim)));
    }
    if config.n_heads.saturating_mul(config.head_dim) > MAX_SIZE {
        return Err(text.error("head_dim", format!("with {} heads it makes more than {MAX_SIZE}", config.n_heads)));
    }
    Ok(config)
}

struct Rope {
    theta: f64,
    section: [usize; 3],
}

/// 4.57 writes `rope_theta` beside `rope_scaling`, 5.x `rope_parameters` with all of it.
fn rope(text: &mut Fields) -> Result<Rope> {
    let outer = text.f64("rope_theta")?;
    let mut rope = text.section("rope_parameters")?;
    let mut scaling = text.section("rope_scaling")?;
    let (old, new) = (scaling.left().next().is_some(), rope.left().next().is_some());
    let all = |fields: &Fields| -> BTreeMap<String, Value> {
        fields.left().map(|(key, value)| (key.into(), value.clone())).collect()
    };
    if old && new && all(&scaling) != all(&rope) {
        return Err(text.error("rope_parameters", "rope_scaling is there too, and says something else; remove one"));
    }
    let table = if old { &mut scaling } else { &mut rope };
    let theta = table.f64("rope_theta")?;
    if let (Some(a), Some(b)) = (theta, outer)
        && a != b
    {
        return Err(table.error("rope_theta", format!("it is {a}, and {b} beside it in text_config; make them equal")));
    }
    let Some(theta) = theta.or(outer) else {
        let reason = "it is missing, here and in rope_parameters; the published models have 5000000, \
                      and a guess would be wrong silently";
        return Err(text.error("rope_theta", reason));
    };
    if !(theta.is_finite() && theta > 0.0) {
        return Err(text.error("rope_theta", format!("wanted a number above 0, got {theta}")));
    }
    for key in ["rope_type", "type"] {
        same(table, key, &["default".into()])?;
    }
    same(table, "mrope_interleaved", &[true.into()])?;
    same(table, "partial_rotary_factor", &[1.0.into(), 1.into()])?;
    let section = table.typed("mrope_section", "three whole numbers", |value| {
        let list = value.as_array()?.iter().map(|n| n.as_u64().and_then(|n| usize::try_from(n).ok()));
        let list: Vec<usize> = list.collect::<Option<_>>()?;
        list.try_into().ok().filter(|section: &[usize; 3]| section.iter().all(|&n| n <= MAX_SIZE))
    })?;
    nothing_else(table)?;
    Ok(Rope { theta, section: section.unwrap_or([24, 20, 20]) })
}

fn read_vision(vision: &mut Fields) -> Result<VisionConfig> {
    same(vision, "model_type", &["qwen3_vl".into(), "qwen3_vl_vision".into()])?;
    same(vision, "hidden_act", &["gelu_pytorch_tanh".into()])?;
    let mut rope = vision.section("rope_parameters")?;
    same(&mut rope, "rope_theta", &[VISION_ROPE_THETA.into(), 10_000.into()])?;
    same(&mut rope, "rope_type", &["axial".into(), "default".into()])?;
    nothing_else(&mut rope)?;
    let config = VisionConfig {
        depth: at_most(vision, "depth", 27, MAX_LAYERS)?,
        hidden_size: size(vision, "hidden_size", 1152)?,
        n_heads: size(vision, "num_heads", 16)?,
        intermediate_size: size(vision, "intermediate_size", 4304)?,
        out_hidden_size: size(vision, "out_hidden_size", 3584)?,
        deepstack_indexes: vision.usizes("deepstack_visual_indexes")?.unwrap_or_else(|| vec![8, 16, 24]),
        n_positions: size(vision, "num_position_embeddings", 2304)?,
        patch_size: at_most(vision, "patch_size", 16, 1 << 10)?,
        temporal_patch_size: at_most(vision, "temporal_patch_size", 2, 1 << 6)?,
        merge_size: at_most(vision, "spatial_merge_size", 2, 1 << 6)?,
        in_channels: at_most(vision, "in_channels", 3, 3)?,
    };
    nothing_else(vision)?;
    let VisionConfig { hidden_size, n_heads, .. } = config;
    if !hidden_size.is_multiple_of(n_heads) || !(hidden_size / n_heads).is_multiple_of(4) {
        let reason = format!(
            "wanted a divisor of hidden_size {hidden_size} that leaves heads of a multiple of 4, got {n_heads}"
        );
        return Err(vision.error("num_heads", reason));
    }
    if config.in_channels != 3 {
        return Err(vision.error("in_channels", format!("wanted 3 (red, green, blue), got {}", config.in_channels)));
    }
    if config.merged_size() > MAX_SIZE {
        return Err(vision.error("spatial_merge_size", format!("with hidden_size it makes more than {MAX_SIZE}")));
    }
    if config.n_positions.isqrt().pow(2) != config.n_positions {
        return Err(vision.error("num_position_embeddings", format!("wanted a square, got {}", config.n_positions)));
    }
    for (k, &index) in config.deepstack_indexes.iter().enumerate() {
        if index >= config.depth {
            let reason = format!("{index} is no block; there are {}, counted from 0", config.depth);
            return Err(vision.error("deepstack_visual_indexes", reason));
        }
        if config.deepstack_indexes[..k].contains(&index) {
            return Err(vision.error("deepstack_visual_indexes", format!("{index} stands twice")));
        }
    }
    Ok(config)
}
