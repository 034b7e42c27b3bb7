//! A base checkpoint and an adapter become one plain checkpoint: W + scale B A in f32, rounded once.

use super::adapter::{Adapter, AdapterModule};
use super::checkpoint::{Checkpoint, StoredTensor};
use super::names;
use super::processor::write_limits;
use super::save::{self, Pieces, Progress, narrow};
use crate::base::{DType, Error, Result, dtype};
use crate::io::atomic;
use crate::io::safetensors::TensorSpec;
use multiversion::multiversion;
use std::ops::Range;
use std::path::Path;

/// How a merged checkpoint is written.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The type of every tensor; None keeps each as it is in the base.
    pub dtype: Option<DType>,
    pub shard_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options { dtype: None, shard_bytes: save::SHARD_BYTES }
    }
}

/// Writes `base` with `adapter` (none: only the type changes) into the folder `out`: published tensor names, config,
/// tokenizer, processor (with the limits to photos that the adapter was trained with), templates. Errors: `out` holds anything or cannot be written; the adapter names a module
/// that the base lacks; a value is too large for the type, or a sum with the adapter for any.
pub fn merge(
    base: &Checkpoint,
    adapter: Option<&Adapter>,
    out: &Path,
    options: Options,
    progress: Progress,
) -> Result<()> {
    let modules = adapter.map(|adapter| &adapter.modules);
    for (path, module) in modules.into_iter().flatten() {
        let shape = base.tensor(&names::weight(path)).map(|stored| stored.entry.shape.as_slice());
        if shape != Some(&[module.outputs, module.inputs]) {
            return Err(Error::Contract {
                op: "merge",
                argument: "adapter",
                wanted: "an adapter read for the base's config".into(),
                got: format!("{path} of {} by {}", module.outputs, module.inputs),
            });
        }
    }
    let specs: Vec<TensorSpec> = base
        .tensors()
        .map(|(name, stored)| TensorSpec {
            name,
            dtype: options.dtype.unwrap_or(stored.entry.dtype),
            shape: stored.entry.shape.clone(),
        })
        .collect();
    let mut pieces = Pieces::new();
    atomic::write_folder(out, |dir| {
        save::write_config(&base.dir, dir, options.dtype)?;
        save::copy_companions(&base.dir, dir)?;
        if let Some(limits) = adapter.and_then(|adapter| adapter.limits) {
            write_limits(dir, limits)?;
        }
        save::write_weights(dir, &specs, options.shard_bytes, progress, |spec, output| {
            let Some(stored) = base.tensor(&spec.name) else {
                return Err(Error::tensor(&base.dir, &spec.name, "it is missing"));
            };
            let module = spec.name.strip_suffix(".weight").and_then(|path| modules?.get(path));
            if module.is_none() && spec.dtype == stored.entry.dtype {
                return output.write(stored.bytes());
            }
            let elements = stored.entry.elements();
            // Whole rows where there is an adapter; else any split will do.
            let width = module.map_or(1 << 12, |module| module.inputs);
            let piece = (Pieces::ELEMENTS / width).max(1) * width;
            pieces.write(elements.div_ceil(piece), output, |i, out| {
                let range = i * piece..elements.min((i + 1) * piece);
                out.resize(range.len() * spec.dtype.bytes(), 0);
                merge_rows(stored, module, width, range, spec.dtype, out)
                    .map_err(|reason| Error::tensor(&stored.file.path, &spec.name, reason))
            })
        })
    })
}

fn too_large(dtype: DType) -> String {
    let others = if dtype == DType::F16 { "bf16 or f32" } else { "f32" };
    format!("it has values that {dtype} cannot hold; choose {others}")
}

/// Elements `range` of W + scale B A, rows of `width` each, as bytes of `to`: for each the sum over the rank, in order,
/// in f32. Errors, the reason only: a finite value that `to` cannot hold; a sum that is not finite. What no adapter
/// touches stays as it is.
fn merge_rows(
    stored: StoredTensor,
    module: Option<&AdapterModule>,
    width: usize,
    range: Range<usize>,
    to: DType,
    out: &mut [u8],
) -> Result<(), String> {
    let from = stored.entry.dtype;
    let bytes = &stored.bytes()[range.start * from.bytes()..range.end * from.bytes()];
    let mut values = vec![0.0; width];
    let mut delta = vec![0.0; width];
    let rows = bytes.chunks(width * from.bytes()).zip(out.chunks_mut(width * to.bytes()));
    for ((bytes, out), row) in rows.zip(range.start / width..) {
        let values = &mut values[..bytes.len() / from.bytes()];
        dtype::widen(from, bytes, values).ok_or_else(|| too_large(to))?;
        if let Some(module) = module {
            delta.fill(0.0);
            let b = &module.b[row * module.rank..(row + 1) * module.rank];
            for (b, a) in b.iter().zip(module.a.chunks_exact(width)) {
                add_scaled(*b, a, &mut delta);
            }
            add_scaled(module.scale, &delta, values);
            if dtype::not_finite(values).is_some() {
                return Err(match dtype::stored_not_finite(from, bytes) {
                    Some(value) => format!("it holds {value}, to which no adapter can be added; copy the base again"),
                    None => "its sum with the adapter's scale B A is beyond what f32 can hold; train the adapter again"
                        .into(),
                });
            }
        }
        narrow(to, values, out).ok_or_else(|| too_large(to))?;
    }
    Ok(())
}

/// y += factor x, product and sum rounded each: the same on every processor.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "aarch64+neon"))]
fn add_scaled(factor: f32, x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += factor * x;
    }
}
