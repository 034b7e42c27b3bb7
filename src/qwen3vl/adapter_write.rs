//! Writing a LoRA adapter as PEFT 0.21.2 does: f32, the names of the base model's modules, a config that older PEFTs,
//! vLLM and SGLang read too.

use super::adapter::{Adapter, AdapterConfig, BASE_FINGERPRINT, LIMITS, PREFIX};
use super::targets::{Pattern, Targets};
use crate::base::{DType, Error, Result};
use crate::data::image::Limits;
use crate::io::atomic;
use crate::io::folder_kind::{ADAPTER_CONFIG, ADAPTER_WEIGHTS};
use crate::io::safetensors::{self, TensorSpec};
use serde_json::{Map, Number, Value, json};
use std::path::Path;

/// The trained pair of one module.
#[derive(Debug, Clone, Copy)]
pub struct Pair<'a> {
    /// The module's path.
    pub path: &'a str,
    pub rank: usize,
    pub inputs: usize,
    pub outputs: usize,
    /// `[rank, inputs]`
    pub a: &'a [f32],
    /// `[outputs, rank]`
    pub b: &'a [f32],
}

/// What an adapter says of how it was trained.
#[derive(Debug, Clone, Copy, Default)]
pub struct Base<'a> {
    /// A name or a path, for adapter_config.json.
    pub name: &'a str,
    /// Which weights they are, for the metadata of the adapter's own.
    pub fingerprint: Option<&'a str>,
    /// Between what areas photos were brought, for there too.
    pub limits: Option<Limits>,
}

impl Adapter {
    /// Writes the adapter into the folder `dir`; see [`write_adapter`].
    pub fn write(&self, dir: &Path) -> Result<()> {
        let pairs: Vec<Pair> = self
            .modules
            .iter()
            .map(|(path, m)| Pair { path, rank: m.rank, inputs: m.inputs, outputs: m.outputs, a: &m.a, b: &m.b })
            .collect();
        let base = Base {
            name: self.config.base_model.as_deref().unwrap_or_default(),
            fingerprint: self.base_fingerprint.as_deref(),
            limits: self.limits,
        };
        write_adapter(dir, &self.config, base, &pairs)
    }
}

/// Writes adapter_model.safetensors and adapter_config.json into the existing folder `dir`, each whole or not at all.
///
/// The config's targets are written as they are where names or one regex say it all; where modules or layers are
/// excluded, as a regex of exactly the modules of `pairs`. Errors: no pairs, a pair whose numbers do not fit its shape or
/// whose rank is not the config's; those of writing.
pub fn write_adapter(dir: &Path, config: &AdapterConfig, base: Base, pairs: &[Pair]) -> Result<()> {
    let contract = |argument, wanted: &str, got: String| {
        Err(Error::Contract { op: "write_adapter", argument, wanted: wanted.into(), got })
    };
    if pairs.is_empty() {
        return contract("pairs", "one or more", "none".into());
    }
    let mut specs = Vec::with_capacity(2 * pairs.len());
    let mut values = Vec::with_capacity(2 * pairs.len());
    for pair in pairs {
        let Pair { path, rank, inputs, outputs, a, b } = *pair;
        if config.rank_of(path) != Ok(rank) {
            return contract("rank", "that of the config", format!("{rank} for {path}"));
        }
        for (side, shape, numbers) in [("lora_A", [rank, inputs], a), ("lora_B", [outputs, rank], b)] {
            if shape[0].checked_mul(shape[1]) != Some(numbers.len()) {
                let got = format!("{} numbers for {path}.{side}", numbers.len());
                return contract("pairs", &format!("{shape:?}"), got);
            }
            let name = format!("{PREFIX}{path}.{side}.weight");
            specs.push(TensorSpec { name, dtype: DType::F32, shape: shape.to_vec() });
            values.push(numbers);
        }
    }
    let text = format!("{:#}\n", config_json(config, base.name, pairs)?);
    // All are of one type, so they are asked for in this order.
    let mut next = values.into_iter();
    let fingerprint = base.fingerprint.map(|fingerprint| (BASE_FINGERPRINT, fingerprint));
    let limits = base.limits.map(|limits| [limits.min_pixels, limits.max_pixels].map(|area| area.to_string()));
    let limits = limits.iter().flat_map(|areas| LIMITS.into_iter().zip(areas.iter().map(String::as_str)));
    let metadata: Vec<_> = fingerprint.into_iter().chain([("format", "pt")]).chain(limits).collect();
    safetensors::write(&dir.join(ADAPTER_WEIGHTS), &specs, &metadata, |_, out| {
        out.write(bytemuck::cast_slice(next.next().unwrap_or_default()))
    })?;
    atomic::write_file(&dir.join(ADAPTER_CONFIG), |out| out.write(text.as_bytes()))
}

fn config_json(config: &AdapterConfig, base_model: &str, pairs: &[Pair]) -> Result<Value> {
    let selection = &config.selection;
    let targets = if selection.exclude.is_some() || selection.layers.is_some() {
        let exactly = Targets::exactly(pairs.iter().map(|p| p.path));
        exactly.map_err(|e| Error::Unsupported(format!("the adapter's modules cannot be described: {e}")))?.to_json()
    } else {
        selection.targets.to_json()
    };
    Ok(json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": true,
        "r": config.rank,
        "lora_alpha": number(config.alpha),
        "lora_dropout": config.dropout,
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "use_rslora": config.use_rslora,
        "use_dora": false,
        "modules_to_save": null,
        "rank_pattern": patterns(&config.rank_pattern, |rank| rank.into()),
        "alpha_pattern": patterns(&config.alpha_pattern, number),
        "target_modules": targets,
    }))
}

fn patterns<T: Copy>(patterns: &[(Pattern, T)], value: impl Fn(T) -> Value) -> Value {
    Value::Object(patterns.iter().map(|(p, x)| (p.text().to_string(), value(*x))).collect::<Map<_, _>>())
}

/// A whole number without a point: PEFT's alpha is an integer by its type.
fn number(x: f64) -> Value {
    // Whole and below 2^53, so the conversion is exact.
    if x.fract() == 0.0 && x.abs() < (1_u64 << 53) as f64 {
        return (x as i64).into();
    }
    Number::from_f64(x).map_or(Value::Null, Value::Number)
}
