//! A checkpoint of random weights in a config's shapes: for benches, and for training from nothing.

use super::config::Config;
use super::names::{self, Kind};
use super::save::{self, Pieces, Progress, narrow};
use crate::base::rng::Stream;
use crate::base::{DType, Error, Result};
use crate::io::atomic;
use crate::io::safetensors::{TensorOutput, TensorSpec};
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

/// The standard deviation of linear maps, embeddings and the convolution (transformers' `initializer_range`).
const DEVIATION: f32 = 0.02;
/// Elements drawn at a time: they stay in the fastest cache until they are rounded.
const DRAWN: usize = 1 << 11;

#[derive(Debug, Clone, Copy)]
enum Start {
    Normal,
    Constant(f32),
}

/// Writes a checkpoint of the config in `config_dir` into the folder `out`, with the tokenizer, processor and template
/// files of `config_dir`; `tokenizer` replaces its tokenizer.json. Weights are normal with deviation 0.02, norms 1,
/// biases 0; a tensor's numbers depend on the seed and its name only.
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
    let mut specs = Vec::new();
    let mut starts = HashMap::new();
    for module in names::modules(&config) {
        let weight_start = match module.kind {
            Kind::Norm { .. } => Start::Constant(1.0),
            Kind::Linear { .. } | Kind::Embedding { .. } | Kind::Convolution { .. } => Start::Normal,
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
            let start = starts.get(&spec.name).copied().unwrap_or(Start::Normal);
            write_tensor(Stream::new(options.seed, &[fnv1a(&spec.name)]), start, spec, &mut pieces, output)
        })
    })
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
                Start::Normal => {
                    stream.fill_normal(first as u64, values);
                    values.iter_mut().for_each(|x| *x *= DEVIATION);
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

/// The 64-bit FNV-1a hash: a tensor's stream then survives any change of the order of tensors.
fn fnv1a(name: &str) -> u64 {
    name.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
}
