//! Writing a checkpoint folder: weights in shards with their index, the config, and the files that go along.

use super::checkpoint::{Checkpoint, INDEX_FILE, SINGLE_FILE, StoredTensor};
use super::processor::write_limits;
use crate::base::{DType, Error, Result, input};
use crate::data::image::Limits;
use crate::io::folder_kind;
use crate::io::safetensors::{self, TensorOutput, TensorSpec};
use crate::io::{atomic, json};
use half::{bf16, f16};
use rayon::prelude::*;
use serde_json::{Map, Value, json};
use std::io::Read;
use std::path::Path;

/// What transformers calls 5GB, its default.
pub const SHARD_BYTES: u64 = 5_000_000_000;

/// Told of bytes written and bytes in all.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// Writes `specs` in their order into files of at most `shard_bytes` (but at least one tensor each): a single
/// `model.safetensors`, or numbered shards and an index.
pub(super) fn write_weights(
    dir: &Path,
    specs: &[TensorSpec],
    shard_bytes: u64,
    progress: Progress,
    mut fill: impl FnMut(&TensorSpec, &mut TensorOutput) -> Result<()>,
) -> Result<()> {
    let mut shards: Vec<(u64, Vec<TensorSpec>)> = Vec::new();
    let mut total = 0;
    for spec in specs {
        let bytes = spec.bytes()? as u64;
        total += bytes;
        match shards.last_mut() {
            Some((held, shard)) if *held + bytes <= shard_bytes => {
                *held += bytes;
                shard.push(spec.clone());
            }
            _ => shards.push((bytes, vec![spec.clone()])),
        }
    }
    let count = shards.len();
    let mut weight_map = Vec::with_capacity(specs.len());
    let mut done = 0;
    for (i, (_, shard)) in shards.iter().enumerate() {
        let name = match count {
            1 => SINGLE_FILE.to_string(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
        };
        safetensors::write(&dir.join(&name), shard, &[("format", "pt")], |spec, out| {
            fill(spec, out)?;
            done += spec.bytes()? as u64;
            progress(done, total);
            Ok(())
        })?;
        weight_map.extend(shard.iter().map(|spec| (spec.name.clone(), Value::from(name.clone()))));
    }
    if count > 1 {
        weight_map.sort_by(|(a, _), (b, _)| a.cmp(b));
        let weight_map = Value::Object(weight_map.into_iter().collect());
        json::write(&dir.join(INDEX_FILE), &json!({"metadata": {"total_size": total}, "weight_map": weight_map}))?;
    }
    Ok(())
}

/// Writes a folder like that of `base` with other numbers, each in the type that it has there; replaces an earlier such
/// folder. `values` gives the numbers of a tensor by its published name; one that it lacks keeps its own.
///
/// `limits` are those that photos were brought between in training; the folder's processor has them then.
pub fn save_trained<'v>(
    base: &Checkpoint,
    out: &Path,
    limits: Limits,
    values: &dyn Fn(&str) -> Option<&'v [f32]>,
) -> Result<()> {
    let io = |doing, path: &Path| {
        let path = path.to_path_buf();
        move |e| Error::io(doing, path, e)
    };
    let beside = out.with_extension("new");
    if beside.exists() {
        std::fs::remove_dir_all(&beside).map_err(io("remove", &beside))?;
    }
    let spec = |(name, stored): (String, StoredTensor)| TensorSpec {
        name,
        dtype: stored.entry.dtype,
        shape: stored.entry.shape.clone(),
    };
    let specs: Vec<TensorSpec> = base.tensors().map(spec).collect();
    atomic::write_folder(&beside, |dir| {
        write_weights(dir, &specs, SHARD_BYTES, &mut |_, _| (), |spec, out| {
            let Some(stored) = base.tensor(&spec.name) else { return Ok(()) };
            let Some(values) = values(&spec.name) else { return out.write(stored.bytes()) };
            let mut bytes = vec![0; spec.bytes()?];
            if narrow(spec.dtype, values, &mut bytes).is_none() {
                let reason = format!("holds a number that {} cannot: training has run away", spec.dtype);
                return Err(Error::tensor(dir, &spec.name, reason));
            }
            out.write(&bytes)
        })?;
        write_config(&base.dir, dir, None)?;
        copy_companions(&base.dir, dir)?;
        write_limits(dir, limits)
    })?;
    if out.exists() {
        std::fs::remove_dir_all(out).map_err(io("remove", out))?;
    }
    std::fs::rename(&beside, out).map_err(io("rename into place", out))
}

/// Copies `config.json`, with the type that the weights now have; None keeps what it says.
pub(super) fn write_config(from: &Path, to: &Path, dtype: Option<DType>) -> Result<()> {
    let path = from.join(folder_kind::CONFIG);
    let mut config = json::read(&path)?;
    if let Some(dtype) = dtype {
        let name = match dtype {
            DType::F32 => "float32",
            DType::Bf16 => "bfloat16",
            DType::F16 => "float16",
            other => {
                return Err(Error::Unsupported(format!(
                    "weights of type {other} are not written; use bf16, f16 or f32"
                )));
            }
        };
        let Value::Object(top) = &mut config else { return Err(Error::file(path, "wanted a JSON object")) };
        if !set_dtype(top, name) {
            top.insert("dtype".into(), name.into());
        }
        for section in ["text_config", "vision_config"] {
            if let Some(Value::Object(fields)) = top.get_mut(section) {
                set_dtype(fields, name);
            }
        }
    }
    json::write(&to.join(folder_kind::CONFIG), &config)
}

/// Sets the type where one stands, in the older spelling and the newer; whether one stood there.
fn set_dtype(fields: &mut Map<String, Value>, name: &str) -> bool {
    let mut found = false;
    for key in ["dtype", "torch_dtype"] {
        if let Some(value) = fields.get_mut(key) {
            *value = name.into();
            found = true;
        }
    }
    found
}

/// What belongs to a checkpoint beside weights and config. Each is optional.
const COMPANIONS: [&str; 17] = [
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "merges.txt",
    "NOTICE",
    "NOTICE.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
];
/// A folder of more templates.
const TEMPLATES: &str = "additional_chat_templates";

pub(super) fn copy_companions(from: &Path, to: &Path) -> Result<()> {
    for name in COMPANIONS {
        if from.join(name).exists() {
            copy(&from.join(name), &to.join(name))?;
        }
    }
    let templates = from.join(TEMPLATES);
    if templates.is_dir() {
        let target = to.join(TEMPLATES);
        std::fs::create_dir(&target).map_err(|e| Error::io("create", &target, e))?;
        for entry in std::fs::read_dir(&templates).map_err(|e| Error::io("list", &templates, e))? {
            let name = entry.map_err(|e| Error::io("list", &templates, e))?.file_name();
            if name.to_string_lossy().ends_with(".jinja") {
                copy(&templates.join(&name), &target.join(&name))?;
            }
        }
    }
    Ok(())
}

/// The content only: a copy of a read-only file or of a link into a download cache is an ordinary file.
pub(super) fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut source = input::open(from)?;
    atomic::write_file(to, |out| {
        let mut buffer = vec![0; 1 << 16];
        loop {
            match source.read(&mut buffer).map_err(|e| Error::io("read", from, e))? {
                0 => return Ok(()),
                n => out.write(&buffer[..n])?,
            }
        }
    })
}

/// Makes the bytes of tensors piece by piece on all threads, while the pieces before are written. Its buffers are used
/// again and again: fresh memory would cost more than the arithmetic.
pub(super) struct Pieces {
    making: Vec<Vec<u8>>,
    writing: Vec<Vec<u8>>,
}

impl Pieces {
    /// How many elements a piece should have, so that it is worth a thread's while and a batch fits in memory easily.
    pub const ELEMENTS: usize = 1 << 17;

    pub fn new() -> Self {
        let batch = 8 * rayon::current_num_threads();
        Pieces { making: vec![Vec::new(); batch], writing: vec![Vec::new(); batch] }
    }

    /// Writes pieces 0 to n - 1 in order. `make` replaces the content of the buffer by that of the piece.
    pub fn write<F>(&mut self, n: usize, output: &mut TensorOutput, make: F) -> Result<()>
    where
        F: Fn(usize, &mut Vec<u8>) -> Result<()> + Sync,
    {
        let batch = self.making.len();
        let mut ready = 0;
        for first in (0..n + batch).step_by(batch) {
            let (making, writing) = (&mut self.making, &self.writing[..ready]);
            let count = batch.min(n.saturating_sub(first));
            let (made, written) = rayon::join(
                || making[..count].par_iter_mut().enumerate().try_for_each(|(i, buffer)| make(first + i, buffer)),
                || writing.iter().try_for_each(|piece| output.write(piece)),
            );
            written.and(made)?;
            std::mem::swap(&mut self.making, &mut self.writing);
            ready = count;
        }
        Ok(())
    }
}

/// Rounds `values` to `dtype`, little-endian, into `out` of as many elements. None where a finite value is beyond what
/// `dtype` can hold, and for types that hold no fractions.
pub(super) fn narrow(dtype: DType, values: &[f32], out: &mut [u8]) -> Option<()> {
    debug_assert_eq!(out.len(), values.len() * dtype.bytes());
    match dtype {
        DType::F32 => round_into(values, out, |x| (x.to_le_bytes(), true)),
        DType::Bf16 => round_into(values, out, |x| {
            let rounded = bf16::from_f32(x);
            (rounded.to_le_bytes(), rounded.is_finite())
        }),
        DType::F16 => round_into(values, out, |x| {
            let rounded = f16::from_f32(x);
            (rounded.to_le_bytes(), rounded.is_finite())
        }),
        DType::F64 | DType::I32 | DType::I64 | DType::U8 => None,
    }
}

fn round_into<const N: usize>(values: &[f32], out: &mut [u8], round: impl Fn(f32) -> ([u8; N], bool)) -> Option<()> {
    let mut fits = true;
    for (slot, &x) in out.as_chunks_mut::<N>().0.iter_mut().zip(values) {
        let (bytes, is_finite) = round(x);
        fits &= is_finite | !x.is_finite();
        *slot = bytes;
    }
    fits.then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_written_in_order_however_many_there_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let mut pieces = Pieces::new();
        let batch = pieces.making.len();
        for n in [0, 1, batch - 1, batch, batch + 1, 3 * batch + 2] {
            let want: Vec<u8> = (0..n).flat_map(|i| vec![i as u8; i % 3 + 1]).collect();
            let spec = TensorSpec { name: "t".into(), dtype: DType::U8, shape: vec![want.len()] };
            safetensors::write(&path, &[spec], &[], |_, output| {
                pieces.write(n, output, |i, out| {
                    out.clear();
                    out.resize(i % 3 + 1, i as u8);
                    Ok(())
                })
            })
            .unwrap();
            let file = safetensors::SafetensorsFile::open(&path).unwrap();
            assert_eq!(file.bytes("t").unwrap(), want, "{n} pieces");
        }
    }

    #[test]
    fn an_error_in_a_piece_is_the_result() {
        let dir = tempfile::tempdir().unwrap();
        let spec = TensorSpec { name: "t".into(), dtype: DType::U8, shape: vec![100] };
        let error = safetensors::write(&dir.path().join("x"), &[spec], &[], |_, output| {
            Pieces::new().write(100, output, |i, out| {
                out.resize(1, 0);
                if i == 57 { Err(Error::Usage("piece 57".into())) } else { Ok(()) }
            })
        });
        assert_eq!(error.unwrap_err().to_string(), "piece 57");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
