//! A base checkpoint and an adapter become one plain checkpoint: W + scale B A in f32, rounded once.

use super::adapter::{Adapter, AdapterModule};
use super::checkpoint::{Checkpoint, StoredTensor};
use super::names;
use super::save::{self, Progress, narrow};
use crate::base::{DType, Error, Result, dtype};
use crate::io::atomic;
use crate::io::safetensors::TensorSpec;
use rayon::prelude::*;
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

/// Elements that one thread works on at a time.
const PIECE: usize = 1 << 18;

/// Writes `base` with `adapter` (none: only the type changes) into the folder `out`: published tensor names, config,
/// tokenizer, processor, templates. Errors: `out` holds anything or cannot be written; the adapter names a module
/// that the base lacks; a value is too large for the type.
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
    atomic::write_folder(out, |dir| {
        save::write_config(&base.dir, dir, options.dtype)?;
        save::copy_companions(&base.dir, dir)?;
        save::write_weights(dir, &specs, options.shard_bytes, progress, |spec, output| {
            let Some(stored) = base.tensor(&spec.name) else {
                return Err(Error::tensor(&base.dir, &spec.name, "it is missing"));
            };
            let module = spec.name.strip_suffix(".weight").and_then(|path| modules?.get(path));
            if module.is_none() && spec.dtype == stored.entry.dtype {
                return output.write(stored.bytes());
            }
            // A width of 1 where there is no adapter: any split of the elements will do.
            let width = module.map_or(1, |module| module.inputs);
            let rows = (PIECE / width).max(1);
            let batch = rows * rayon::current_num_threads();
            let total_rows = stored.entry.elements() / width;
            for first in (0..total_rows).step_by(batch) {
                let starts: Vec<usize> = (first..total_rows.min(first + batch)).step_by(rows).collect();
                let pieces = starts.par_iter().map(|&start| {
                    let end = total_rows.min(start + rows);
                    merged_rows(stored, module, width, start..end, spec.dtype).ok_or_else(|| too_large(&stored, spec))
                });
                for piece in pieces.collect::<Result<Vec<Vec<u8>>>>()? {
                    output.write(&piece)?;
                }
            }
            Ok(())
        })
    })
}

fn too_large(stored: &StoredTensor, spec: &TensorSpec) -> Error {
    Error::tensor(
        &stored.file.path,
        &spec.name,
        format!("it has values that {} cannot hold; choose bf16 or f32", spec.dtype),
    )
}

/// Rows of W + scale B A as bytes of `to`: for each element the sum over the rank, in order, in f32.
fn merged_rows(
    stored: StoredTensor,
    module: Option<&AdapterModule>,
    width: usize,
    rows: std::ops::Range<usize>,
    to: DType,
) -> Option<Vec<u8>> {
    let from = stored.entry.dtype;
    let mut values = vec![0.0; rows.len() * width];
    let bytes = &stored.bytes()[rows.start * width * from.bytes()..rows.end * width * from.bytes()];
    dtype::widen(from, bytes, &mut values)?;
    if let Some(module) = module {
        let mut delta = vec![0.0_f32; width];
        for (row, weights) in rows.zip(values.chunks_exact_mut(width)) {
            delta.fill(0.0);
            let b = &module.b[row * module.rank..(row + 1) * module.rank];
            for (b, a) in b.iter().zip(module.a.chunks_exact(width)) {
                for (sum, a) in delta.iter_mut().zip(a) {
                    *sum += b * a;
                }
            }
            for (weight, delta) in weights.iter_mut().zip(&delta) {
                *weight += module.scale * delta;
            }
        }
    }
    narrow(to, &values)
}
