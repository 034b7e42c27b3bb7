//! Writing a checkpoint folder: weights in shards with their index, the config, and the files that go along.

use super::checkpoint::{INDEX_FILE, SINGLE_FILE};
use crate::base::{DType, Error, Result};
use crate::io::safetensors::{self, TensorOutput, TensorSpec};
use crate::io::{atomic, json};
use half::{bf16, f16};
use serde_json::{Map, Value, json};
use std::fs::File;
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
        write_json(&dir.join(INDEX_FILE), &json!({"metadata": {"total_size": total}, "weight_map": weight_map}))?;
    }
    Ok(())
}

/// Copies `config.json`, with the type that the weights now have; None keeps what it says.
pub(super) fn write_config(from: &Path, to: &Path, dtype: Option<DType>) -> Result<()> {
    let path = from.join("config.json");
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
    write_json(&to.join("config.json"), &config)
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

fn write_json(path: &Path, value: &Value) -> Result<()> {
    atomic::write_file(path, |out| out.write(format!("{value:#}\n").as_bytes()))
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
    let mut source = File::open(from).map_err(|e| Error::io("open", from, e))?;
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

/// Rounds `values` to `dtype` and gives their little-endian bytes. None where a finite value is beyond what `dtype` can
/// hold, and for types that hold no fractions.
pub(super) fn narrow(dtype: DType, values: &[f32]) -> Option<Vec<u8>> {
    match dtype {
        DType::F32 => rounded(values, |x| (x, true), f32::to_le_bytes),
        DType::Bf16 => rounded(
            values,
            |x| {
                let y = bf16::from_f32(x);
                (y, y.is_finite())
            },
            bf16::to_le_bytes,
        ),
        DType::F16 => rounded(
            values,
            |x| {
                let y = f16::from_f32(x);
                (y, y.is_finite())
            },
            f16::to_le_bytes,
        ),
        DType::F64 | DType::I32 | DType::I64 | DType::U8 => None,
    }
}

fn rounded<T, const N: usize>(
    values: &[f32],
    round: impl Fn(f32) -> (T, bool),
    bytes: impl Fn(T) -> [u8; N],
) -> Option<Vec<u8>> {
    let mut out = vec![0; N * values.len()];
    let mut fits = true;
    for (slot, &x) in out.as_chunks_mut::<N>().0.iter_mut().zip(values) {
        let (y, is_finite) = round(x);
        fits &= is_finite || !x.is_finite();
        *slot = bytes(y);
    }
    fits.then_some(out)
}
