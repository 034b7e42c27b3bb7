//! Folders for tests: a small model made here, changed as a test needs, and what lies outside the repository.

use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use vlm::base::DType;
use vlm::io::safetensors::{SafetensorsFile, TensorSpec, write};
use vlm::qwen3vl::init;

/// `path` below the reference material, or None and a line that says so.
pub fn shared(test: &str, path: &str) -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let root = std::env::var_os("VLM_SHARED").map_or_else(beside, PathBuf::from);
    if root.is_dir() {
        return Some(root.join(path));
    }
    println!("skipped: {test}: ../shared is absent");
    None
}

/// A config of two text layers and two vision blocks, in the spelling of transformers 4.57.
pub fn small_config() -> Value {
    json!({
        "model_type": "qwen3_vl",
        "tie_word_embeddings": false,
        "image_token_id": 40, "video_token_id": 41, "vision_start_token_id": 42, "vision_end_token_id": 43,
        "text_config": {
            "model_type": "qwen3_vl_text", "vocab_size": 48, "hidden_size": 16, "intermediate_size": 24,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
            "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 5000000, "dtype": "bfloat16",
            "rope_scaling": {"rope_type": "default", "mrope_interleaved": true, "mrope_section": [2, 1, 1]},
            "max_position_embeddings": 64
        },
        "vision_config": {
            "model_type": "qwen3_vl", "depth": 2, "hidden_size": 8, "num_heads": 2, "intermediate_size": 12,
            "out_hidden_size": 16, "deepstack_visual_indexes": [1], "num_position_embeddings": 16, "patch_size": 4,
            "temporal_patch_size": 2, "spatial_merge_size": 2, "in_channels": 3, "hidden_act": "gelu_pytorch_tanh"
        }
    })
}

/// Puts `value` where `pointer` says ("/text_config/head_dim"), or removes the key where it is null.
pub fn set(config: &mut Value, pointer: &str, value: Value) {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let fields = config.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    match value {
        Value::Null => fields.shift_remove(key),
        value => fields.insert(key.into(), value),
    };
}

pub fn write_json(path: &Path, value: &Value) {
    fs::write(path, serde_json::to_vec_pretty(value).unwrap()).unwrap();
}

/// A folder with that config.json and nothing else.
pub fn config_folder(config: &Value) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_json(&dir.path().join("config.json"), config);
    dir
}

/// A checkpoint folder of random weights for that config.
pub fn model(config: &Value, dtype: DType) -> TempDir {
    sharded_model(config, dtype, u64::MAX)
}

pub fn sharded_model(config: &Value, dtype: DType, shard_bytes: u64) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let source = config_folder(config);
    init::init(source.path(), None, dir.path(), init::Options { seed: 1, dtype, shard_bytes }, &mut |_, _| {}).unwrap();
    dir
}

/// A tensor in memory.
#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Tensor {
    pub fn f32(name: &str, shape: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        Tensor { name: name.into(), dtype: DType::F32, shape: shape.into(), bytes }
    }
}

pub fn write_tensors(path: &Path, tensors: &[Tensor]) {
    let specs: Vec<TensorSpec> =
        tensors.iter().map(|t| TensorSpec { name: t.name.clone(), dtype: t.dtype, shape: t.shape.clone() }).collect();
    write(path, &specs, &[("format", "pt")], |spec, out| {
        out.write(&tensors.iter().find(|t| t.name == spec.name).unwrap().bytes)
    })
    .unwrap();
}

pub fn read_tensors(path: &Path) -> Vec<Tensor> {
    let file = SafetensorsFile::open(path).unwrap();
    let read = file.tensors().map(|(name, entry)| Tensor {
        name: name.into(),
        dtype: entry.dtype,
        shape: entry.shape.clone(),
        bytes: file.bytes(name).unwrap().to_vec(),
    });
    read.collect()
}

/// Rewrites a file of tensors after `change`.
pub fn change_tensors(path: &Path, change: impl FnOnce(&mut Vec<Tensor>)) {
    let mut tensors = read_tensors(path);
    change(&mut tensors);
    write_tensors(path, &tensors);
}

/// The elements of a tensor as f64, read without the program's own conversions.
pub fn values(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    match dtype {
        DType::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()) as f64).collect(),
        DType::Bf16 => {
            bytes.chunks_exact(2).map(|b| f32::from_bits((b[0] as u32) << 16 | (b[1] as u32) << 24) as f64).collect()
        }
        DType::F16 => bytes.chunks_exact(2).map(|b| f16_value(u16::from_le_bytes([b[0], b[1]]))).collect(),
        other => panic!("{other} is no floating type"),
    }
}

fn f16_value(bits: u16) -> f64 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = ((bits >> 10 & 31) as i32, (bits & 1023) as f64 / 1024.0);
    match exponent {
        0 => sign * fraction * 2_f64.powi(-14),
        31 => panic!("infinite or not a number"),
        e => sign * (1.0 + fraction) * 2_f64.powi(e - 15),
    }
}

/// The names of what a folder holds, sorted.
pub fn entries(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
