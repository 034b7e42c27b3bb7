//! Merged checkpoints: every number recomputed in f64, every file in its place, and nothing half done.

use crate::commands::{arguments, program, works};
use crate::folders::{
    Tensor, change_tensors, entries, model, read_tensors, set, shared, small_config, values, write_json, write_tensors,
};
use crate::golden_cases::cases;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;
use vlm::base::DType;
use vlm::qwen3vl::adapter::Adapter;
use vlm::qwen3vl::checkpoint::Checkpoint;
use vlm::qwen3vl::config::Config;
use vlm::qwen3vl::merge::{Options, merge};

fn tensors(path: PathBuf) -> HashMap<String, Tensor> {
    read_tensors(&path).into_iter().map(|t| (t.name.clone(), t)).collect()
}

/// Half a unit in the last place of `x` in `dtype`, for normal numbers.
fn half_unit(dtype: DType, x: f64) -> f64 {
    let (digits, least) = match dtype {
        DType::F32 => (24, -126),
        DType::Bf16 => (8, -126),
        _ => (11, -14),
    };
    2_f64.powi((x.abs().log2().floor() as i32).max(least) - digits)
}

/// Every tensor of `out` is the base's, or W + scale B A within f32's rounding errors and one rounding to its type.
#[track_caller]
fn check_merged(base: &Path, adapter: &Path, scale: f64, out: &Path) -> usize {
    let base = Checkpoint::open(base).unwrap();
    let adapter = tensors(adapter.join("adapter_model.safetensors"));
    let merged = Checkpoint::open(out).unwrap();
    let mut changed = 0;
    for (name, tensor) in merged.tensors() {
        let dtype = tensor.entry.dtype;
        let got = values(dtype, tensor.bytes());
        let before = base.tensor(&name).unwrap();
        let mut want = values(before.entry.dtype, before.bytes());
        let mut error = vec![0.0; want.len()];
        let path = name.trim_end_matches(".weight");
        if let Some(a) = adapter.get(&format!("base_model.model.{path}.lora_A.weight")) {
            let b = &adapter[&format!("base_model.model.{path}.lora_B.weight")];
            let (rank, inputs) = (a.shape[0], a.shape[1]);
            let (a, b) = (values(a.dtype, &a.bytes), values(b.dtype, &b.bytes));
            for (i, (w, error)) in want.iter_mut().zip(&mut error).enumerate() {
                let terms = || (0..rank).map(|r| b[i / inputs * rank + r] * a[r * inputs + i % inputs]);
                let delta: f64 = scale * terms().sum::<f64>();
                // A sum of n f32 terms, a product and a sum: at most n + 2 roundings of 2^-24 of what is summed.
                *error = (rank + 2) as f64 * 2_f64.powi(-24) * (scale * terms().map(f64::abs).sum::<f64>() + w.abs());
                *w += delta;
            }
            changed += 1;
        }
        for ((got, want), error) in got.iter().zip(&want).zip(&error) {
            let allowed = error + half_unit(dtype, want.abs() + error);
            assert!((got - want).abs() <= allowed, "{name}: {got} {want} {allowed}");
        }
    }
    changed
}

fn run(base: &Path, adapter: Option<&Path>, out: &Path, options: Options) -> vlm::base::Result<()> {
    let base = Checkpoint::open(base)?;
    let adapter = adapter.map(|dir| Adapter::open(dir, &base.config)).transpose()?;
    merge(&base, adapter.as_ref(), out, options, &mut |_, _| {})
}

/// An adapter of rank 2 and scale 1.5 on q_proj, the vision blocks' qkv and the head.
fn small_adapter() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let config =
        json!({"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "attn.qkv", "lm_head"]});
    write_json(&dir.path().join("adapter_config.json"), &config);
    let mut all = Vec::new();
    let mut add = |path: &str, inputs: usize, outputs: usize| {
        for (side, shape) in [("A", [2, inputs]), ("B", [outputs, 2])] {
            let values: Vec<f32> =
                (0..shape[0] * shape[1]).map(|i| ((i * 37 + outputs) % 101) as f32 / 700.0 - 0.07).collect();
            all.push(Tensor::f32(&format!("base_model.model.{path}.lora_{side}.weight"), &shape, &values));
        }
    };
    for i in 0..2 {
        add(&format!("model.language_model.layers.{i}.self_attn.q_proj"), 16, 32);
        add(&format!("model.visual.blocks.{i}.attn.qkv"), 8, 24);
    }
    add("lm_head", 16, 48);
    write_tensors(&dir.path().join("adapter_model.safetensors"), &all);
    dir
}

#[test]
fn the_tiny_model_merges_with_what_peft_trained() {
    for (name, modules) in [("attention_llm", 12), ("attention_everywhere", 18)] {
        let test = "the_tiny_model_merges_with_what_peft_trained";
        let Some(base) = shared(test, "reference/tiny") else { return };
        let Some(adapter) = shared(test, &format!("reference/tiny.train.{name}/final_adapter")) else { return };
        let dir = tempfile::tempdir().unwrap();
        let config: Value = serde_json::from_slice(&fs::read(adapter.join("adapter_config.json")).unwrap()).unwrap();
        let scale = config["lora_alpha"].as_f64().unwrap() / config["r"].as_f64().unwrap();
        for (dtype, out) in [(None, "f32"), (Some(DType::Bf16), "bf16"), (Some(DType::F16), "f16")] {
            let out = dir.path().join(out);
            run(&base, Some(&adapter), &out, Options { dtype, ..Options::default() }).unwrap();
            assert_eq!(check_merged(&base, &adapter, scale, &out), modules);
            assert_eq!(entries(&out), entries(&base), "every file of the base belongs to the merged model");
        }
    }
}

#[test]
fn small_models_merge_in_every_type_and_in_shards() {
    let dir = tempfile::tempdir().unwrap();
    let adapter = small_adapter();
    let base = model(&small_config(), DType::Bf16);
    for (dtype, shard_bytes, files) in [(None, u64::MAX, 1), (Some(DType::F32), 6000, 11), (Some(DType::F16), 1, 64)] {
        let out = dir.path().join(format!("{shard_bytes}"));
        run(base.path(), Some(adapter.path()), &out, Options { dtype, shard_bytes }).unwrap();
        assert_eq!(check_merged(base.path(), adapter.path(), 1.5, &out), 5);
        let merged = Checkpoint::open(&out).unwrap();
        assert_eq!(merged.files().len(), files, "{shard_bytes}");
        let want = dtype.unwrap_or(DType::Bf16);
        assert!(merged.tensors().all(|(_, t)| t.entry.dtype == want));
        let sizes: Vec<Vec<usize>> =
            merged.files().iter().map(|file| file.tensors().map(|(_, t)| t.range.len()).collect()).collect();
        for (file, next) in sizes.iter().zip(sizes.iter().skip(1)) {
            let held = file.iter().sum::<usize>() as u64;
            assert!(held <= shard_bytes || file.len() == 1, "{held} bytes are too many for a shard");
            assert!(held + next[0] as u64 > shard_bytes, "the next tensor had room in a shard of {held} bytes");
        }
    }
    // As transformers writes it.
    let index: Value =
        serde_json::from_slice(&fs::read(dir.path().join("6000/model.safetensors.index.json")).unwrap()).unwrap();
    let elements: usize = Checkpoint::open(base.path()).unwrap().tensors().map(|(_, t)| t.entry.elements()).sum();
    assert_eq!(index["metadata"]["total_size"], json!(4 * elements));
    assert_eq!(index["weight_map"]["lm_head.weight"], json!("model-00011-of-00011.safetensors"));
    assert_eq!(index["weight_map"].as_object().unwrap().len(), 64);
}

#[test]
fn without_an_adapter_and_type_every_byte_stays_and_names_become_the_published_ones() {
    let base = model(&small_config(), DType::Bf16);
    let want = tensors(base.path().join("model.safetensors"));
    change_tensors(&base.path().join("model.safetensors"), |tensors| {
        for tensor in tensors {
            tensor.name = tensor.name.replace("model.language_model.", "language_model.model.");
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    run(base.path(), None, &out, Options::default()).unwrap();
    let got = tensors(out.join("model.safetensors"));
    assert_eq!(got.len(), want.len());
    assert!(want.iter().all(|(name, tensor)| got[name].bytes == tensor.bytes));
}

#[test]
fn a_tied_head_is_not_written_and_the_config_says_the_new_type() {
    let mut config = small_config();
    set(&mut config, "/tie_word_embeddings", true.into());
    set(&mut config, "/torch_dtype", "bfloat16".into());
    let base = model(&config, DType::Bf16);
    change_tensors(&base.path().join("model.safetensors"), |tensors| {
        let embedding = tensors.iter().find(|t| t.name.ends_with("embed_tokens.weight")).unwrap().clone();
        tensors.push(Tensor { name: "lm_head.weight".into(), ..embedding });
    });
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    run(base.path(), None, &out, Options { dtype: Some(DType::F16), ..Options::default() }).unwrap();
    assert!(!tensors(out.join("model.safetensors")).contains_key("lm_head.weight"));
    let written: Value = serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
    assert_eq!(written["torch_dtype"], json!("float16"));
    assert_eq!(written["text_config"]["dtype"], json!("float16"));
    assert!(written.get("dtype").is_none(), "the spelling of the base is kept");
    assert_eq!(Config::read(&out).unwrap(), Config::read(base.path()).unwrap());
}

#[test]
fn files_that_belong_go_along_and_others_stay() {
    let base = model(&small_config(), DType::Bf16);
    let put = |name: &str| fs::write(base.path().join(name), format!("content of {name}")).unwrap();
    for name in
        ["tokenizer.json", "chat_template.jinja", "generation_config.json", "optimizer.pt", "README.md", "LICENSE"]
    {
        put(name);
    }
    fs::create_dir(base.path().join("additional_chat_templates")).unwrap();
    put("additional_chat_templates/tools.jinja");
    put("additional_chat_templates/notes.txt");
    // As a download cache has it: a read-only file behind a link.
    put("blob");
    std::os::unix::fs::symlink("blob", base.path().join("vocab.json")).unwrap();
    let mut permissions = fs::metadata(base.path().join("blob")).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(base.path().join("blob"), permissions).unwrap();

    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    run(base.path(), None, &out, Options::default()).unwrap();
    let want = [
        "LICENSE",
        "additional_chat_templates",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "vocab.json",
    ];
    assert_eq!(entries(&out), want);
    assert_eq!(entries(&out.join("additional_chat_templates")), ["tools.jinja"]);
    assert_eq!(fs::read_to_string(out.join("vocab.json")).unwrap(), "content of blob");
    let vocab = fs::symlink_metadata(out.join("vocab.json")).unwrap();
    assert!(vocab.is_file() && !vocab.permissions().readonly());
}

#[test]
fn what_cannot_be_merged_leaves_nothing() {
    let base = model(&small_config(), DType::F32);
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let f16 = Options { dtype: Some(DType::F16), ..Options::default() };
    change_tensors(&base.path().join("model.safetensors"), |tensors| {
        let norm = tensors.iter_mut().find(|t| t.name == "model.language_model.norm.weight").unwrap();
        norm.bytes[..4].copy_from_slice(&70_000_f32.to_le_bytes());
    });
    let error = run(base.path(), None, &out, f16).unwrap_err().to_string();
    assert!(error.contains("tensor model.language_model.norm.weight: it has values that f16 cannot hold"), "{error}");
    let error = run(base.path(), None, &out, Options { dtype: Some(DType::I32), ..Options::default() })
        .unwrap_err()
        .to_string();
    assert!(error.contains("weights of type i32 are not written"), "{error}");

    // Sums with the adapter: of what is no number already, and beyond f32 or bf16.
    let q_proj = |adapter: &Path, value: f32| {
        change_tensors(&adapter.join("adapter_model.safetensors"), |tensors| {
            let of = |side: &str| format!("layers.1.self_attn.q_proj.lora_{side}.weight");
            for side in ["A", "B"] {
                let tensor = tensors.iter_mut().find(|t| t.name.ends_with(&of(side))).unwrap();
                tensor.bytes.chunks_mut(4).for_each(|x| x.copy_from_slice(&value.to_le_bytes()));
            }
        });
    };
    let refused = |base: &Path, adapter: &Path, wanted: &str| {
        let error = run(base, Some(adapter), &out, Options::default()).unwrap_err().to_string();
        let tensor = "model.safetensors: tensor model.language_model.layers.1.self_attn.q_proj.weight: ";
        assert!(error.contains(&format!("{tensor}{wanted}")), "{error}");
    };
    let adapter = small_adapter();
    q_proj(adapter.path(), 1e20);
    refused(base.path(), adapter.path(), "its sum with the adapter's scale B A is beyond what f32 can hold");
    // 1.5 times two products of 1.0646e19 squared are 3.4e38: below f32's largest number, above bf16's
    q_proj(adapter.path(), 1.064_6e19);
    refused(
        model(&small_config(), DType::Bf16).path(),
        adapter.path(),
        "it has values that bf16 cannot hold; choose f32",
    );
    let no_number = model(&small_config(), DType::F32);
    let set_nan = |name: &str| {
        change_tensors(&no_number.path().join("model.safetensors"), |tensors| {
            let tensor = tensors.iter_mut().find(|t| t.name == name).unwrap();
            tensor.bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
        });
    };
    set_nan("model.language_model.norm.weight");
    let copied = dir.path().join("copied");
    let untouched = run(no_number.path(), Some(small_adapter().path()), &copied, Options::default());
    assert!(untouched.is_ok(), "what no adapter touches is copied: {untouched:?}");
    fs::remove_dir_all(&copied).unwrap();
    set_nan("model.language_model.layers.1.self_attn.q_proj.weight");
    refused(no_number.path(), small_adapter().path(), "it holds NaN, to which no adapter can be added");

    // An adapter read for another model.
    let mut larger = small_config();
    set(&mut larger, "/text_config/num_attention_heads", 8.into());
    let larger = model(&larger, DType::F32);
    let adapter = Adapter::open(small_adapter().path(), &Config::read(base.path()).unwrap()).unwrap();
    let larger = Checkpoint::open(larger.path()).unwrap();
    let error = merge(&larger, Some(&adapter), &out, Options::default(), &mut |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("wanted an adapter read for the base's config"), "{error}");
    assert!(entries(dir.path()).is_empty(), "{:?}", entries(dir.path()));

    let error = run(base.path(), None, base.path(), Options::default()).unwrap_err().to_string();
    assert!(error.contains("the folder is not empty"), "{error}");
    let error = run(base.path(), None, Path::new("/proc/nowhere/out"), Options::default()).unwrap_err().to_string();
    assert!(error.starts_with("cannot create /proc/nowhere"), "{error}");
}

/// Killed on the way, as by SIGKILL: by the signal of a file that gets longer than the shell lets it.
#[test]
fn what_a_killed_merge_left_goes_with_the_next_to_the_same_place() {
    let dir = tempfile::tempdir().unwrap();
    let (base, out) = (cases().join("uneven"), dir.path().join("out"));
    let (adapter, line) = (cases().join("uneven.train.mixed/final_adapter"), "merge --model {} --adapter {} --out {}");
    let paths: &[&Path] = &[&base, &adapter, &out];
    for folder_is_there in [false, true] {
        let left_in = if folder_is_there { &out } else { dir.path() };
        if folder_is_there {
            fs::create_dir(&out).unwrap();
        }
        let mut shell = Command::new("sh");
        shell.args(["-c", "ulimit -c 0; ulimit -f 16; exec \"$0\" \"$@\""]).arg(program().get_program());
        let killed = shell.args(arguments(line, paths)).output().unwrap();
        assert!(killed.status.signal().is_some(), "{killed:?}");
        let left = entries(left_in);
        assert!(left.len() == 1 && left[0].contains(".partial-"), "{left:?}");
        let half = left_in.join(&left[0]);
        assert!(!entries(&half).is_empty());
        // to another place it is somebody's
        let other = dir.path().join("other");
        works(line, &[&base, &adapter, &other]);
        assert!(half.exists());
        works(line, paths);
        assert_eq!(entries(dir.path()), ["other", "out"]);
        assert_eq!(entries(&out), entries(&other));
        fs::remove_dir_all(&out).unwrap();
        fs::remove_dir_all(&other).unwrap();
    }
}
