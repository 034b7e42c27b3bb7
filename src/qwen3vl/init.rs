//! A checkpoint of random weights in a config's shapes: for benches, and for training from nothing.

use super::config::Config;
use super::names::{self, Kind, Part};
use super::save::{self, Pieces, Progress, narrow};
use crate::base::rng::Stream;
use crate::base::{DType, Error, Result};
use crate::io::folder_kind;
use crate::io::safetensors::{TensorOutput, TensorSpec};
use crate::io::{atomic, json};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

/// How a new checkpoint is written.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub seed: u64,
    /// bf16 or f32. The numbers are drawn in f32: a bf16 checkpoint is the f32 one of the same seed, rounded.
    pub dtype: DType,
    pub shard_bytes: u64,
}

/// The standard deviation of linear maps, embeddings and the convolution where the config has no `initializer_range`.
const DEVIATION: f32 = 0.02;
/// Elements drawn at a time: they stay in the fastest cache until they are rounded.
const DRAWN: usize = 1 << 11;

#[derive(Debug, Clone, Copy)]
enum Start {
    /// With this deviation.
    Normal(f32),
    Constant(f32),
}

/// Writes a checkpoint of the config in `config_dir` into the folder `out`, with the tokenizer, processor and template
/// files of `config_dir`; `tokenizer` replaces its tokenizer.json. Weights are normal with the config's
/// `initializer_range` as deviation (0.02 where it has none), norms 1, biases 0; a tensor's numbers depend on the seed and its name only.
/// Errors: those of [`Config::read`]; `out` holds anything or cannot be written; another type than bf16 and f32.
pub fn init(
    config_dir: &Path,
    tokenizer: Option<&Path>,
    out: &Path,
    options: Options,
    progress: Progress,
) -> Result<()> {
    let dtype = options.dtype;
    if !matches!(dtype, DType::Bf16 | DType::F32) {
        return Err(unsupported(dtype));
    }
    let config = Config::read(config_dir)?;
    let deviations = deviations(&config_dir.join(folder_kind::CONFIG))?;
    let mut specs = Vec::new();
    let mut starts = HashMap::new();
    for module in names::modules(&config) {
        let weight_start = match module.kind {
            Kind::Norm { .. } => Start::Constant(1.0),
            Kind::Linear { .. } | Kind::Embedding { .. } | Kind::Convolution { .. } => {
                Start::Normal(if module.part == Part::Text { deviations.text } else { deviations.vision })
            }
        };
        // The weight comes first, a bias after it.
        for ((name, shape), start) in module.tensors().into_iter().zip([weight_start, Start::Constant(0.0)]) {
            starts.insert(name.clone(), start);
            specs.push(TensorSpec { name, dtype, shape });
        }
    }
    let mut pieces = Pieces::new();
    atomic::write_folder(out, |dir| {
        save::write_config(config_dir, dir, Some(dtype))?;
        save::copy_companions(config_dir, dir)?;
        if let Some(tokenizer) = tokenizer {
            save::copy(tokenizer, &dir.join("tokenizer.json"))?;
        }
        save::write_weights(dir, &specs, options.shard_bytes, progress, |spec, output| {
            let start = starts.get(&spec.name).copied().unwrap_or(Start::Constant(0.0));
            write_tensor(Stream::new(options.seed, &[fnv1a(&spec.name)]), start, spec, &mut pieces, output)
        })
    })
}

struct Deviations {
    text: f32,
    vision: f32,
}

/// `initializer_range` of both parts. Errors: it is no number, or none above 0 that f32 holds.
fn deviations(path: &Path) -> Result<Deviations> {
    let config = json::read(path)?;
    let of = |section: &str| match &config[section]["initializer_range"] {
        Value::Null => Ok(DEVIATION),
        value => value.as_f64().map(|x| x as f32).filter(|x| x.is_finite() && *x > 0.0).ok_or_else(|| {
            Error::file(path, format!("{section}.initializer_range: wanted a number above 0, got {value}"))
        }),
    };
    Ok(Deviations { text: of("text_config")?, vision: of("vision_config")? })
}

fn write_tensor(
    stream: Stream,
    start: Start,
    spec: &TensorSpec,
    pieces: &mut Pieces,
    output: &mut TensorOutput,
) -> Result<()> {
    let size = spec.dtype.bytes();
    let elements = spec.bytes()? / size;
    pieces.write(elements.div_ceil(Pieces::ELEMENTS), output, |i, out| {
        let first = i * Pieces::ELEMENTS;
        out.resize(Pieces::ELEMENTS.min(elements - first) * size, 0);
        for (out, first) in out.chunks_mut(DRAWN * size).zip((first..).step_by(DRAWN)) {
            let mut values = [0.0; DRAWN];
            let values = &mut values[..out.len() / size];
            match start {
                Start::Constant(constant) => values.fill(constant),
                Start::Normal(deviation) => {
                    stream.fill_normal(first as u64, values);
                    values.iter_mut().for_each(|x| *x *= deviation);
                }
            }
            narrow(spec.dtype, values, out).ok_or_else(|| unsupported(spec.dtype))?;
        }
        Ok(())
    })
}

fn unsupported(dtype: DType) -> Error {
    Error::Usage(format!("a new checkpoint is bf16 or f32, not {dtype}"))
}

/// The 64-bit FNV-1a hash: a tensor's stream then survives any change of the order of tensors. Not `rng::id`: it would give
/// other weights to a seed than those that assets/base was trained from.
fn fnv1a(name: &str) -> u64 {
    name.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
}
