//! Checkpoint folders: whole and sharded, old names, and every way in which tensors can fail to add up.

use crate::folders::{
    Tensor, change_tensors, entries, model, set, sharded_model, shared, small_config, write_json, write_tensors,
};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use vlm::base::DType;
use vlm::qwen3vl::checkpoint::Checkpoint;
use vlm::qwen3vl::names::expected;

const Q0: &str = "model.language_model.layers.0.self_attn.q_proj.weight";

#[track_caller]
fn refused(dir: &Path, wanted: &str) -> String {
    let error = Checkpoint::open(dir).expect_err(wanted).to_string();
    assert!(error.contains(wanted), "{error}");
    error
}

/// A small model after a change to its tensors.
#[track_caller]
fn refused_after(change: impl FnOnce(&mut Vec<Tensor>), wanted: &str) {
    let dir = model(&small_config(), DType::F32);
    change_tensors(&dir.path().join("model.safetensors"), change);
    refused(dir.path(), wanted);
}

#[test]
fn the_checkpoint_that_transformers_saved_is_opened() {
    let Some(dir) = shared("the_checkpoint_that_transformers_saved_is_opened", "reference/tiny") else { return };
    let checkpoint = Checkpoint::open(&dir).unwrap();
    assert_eq!(checkpoint.tensors().count(), 93);
    let head = checkpoint.tensor("lm_head.weight").unwrap();
    assert_eq!((head.entry.dtype, &*head.entry.shape, head.bytes().len()), (DType::F32, &[512, 64][..], 131_072));
    assert!(checkpoint.tensor("lm_head.bias").is_none());
}

#[test]
fn shards_hold_what_one_file_holds() {
    let whole = model(&small_config(), DType::Bf16);
    let parts = sharded_model(&small_config(), DType::Bf16, 3000);
    let (whole, parts) = (Checkpoint::open(whole.path()).unwrap(), Checkpoint::open(parts.path()).unwrap());
    assert!(parts.files().len() > 2, "{}", parts.files().len());
    assert_eq!(whole.files().len(), 1);
    for ((name, a), (other, b)) in whole.tensors().zip(parts.tensors()) {
        assert_eq!((&name, a.bytes()), (&other, b.bytes()));
    }
    assert_eq!(whole.tensors().count(), expected(&whole.config).len());
}

#[test]
fn older_names_are_found_under_the_published_ones() {
    let dir = model(&small_config(), DType::F32);
    let want = Checkpoint::open(dir.path()).unwrap().tensor(Q0).unwrap().bytes().to_vec();
    change_tensors(&dir.path().join("model.safetensors"), |tensors| {
        for tensor in tensors {
            tensor.name = tensor.name.replace("model.language_model.", "model.").replace("model.visual.", "visual.");
        }
    });
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.tensor(Q0).unwrap().bytes(), want);
}

#[test]
fn tensors_that_do_not_add_up_are_listed_together() {
    refused_after(|t| t.retain(|t| t.name != Q0), &format!("missing: {Q0}"));
    refused_after(|t| t.retain(|t| !t.name.contains("language_model")), "(24 in all)");
    refused_after(|t| t.push(Tensor::f32("rotary.inv_freq", &[1], &[0.0])), "unexpected: rotary.inv_freq");
    let wrong_shape = |t: &mut Vec<Tensor>| t.iter_mut().find(|t| t.name == Q0).unwrap().shape = vec![16, 32];
    refused_after(wrong_shape, &format!("{Q0} has [16, 32] where config.json needs [32, 16]"));
    let wrong_type = |t: &mut Vec<Tensor>| t.iter_mut().find(|t| t.name == Q0).unwrap().dtype = DType::I32;
    refused_after(wrong_type, &format!("of a type other than f32, bf16 and f16: {Q0} is i32"));
    let both = |t: &mut Vec<Tensor>| t.push(Tensor::f32("visual.pos_embed.weight", &[1], &[0.0]));
    refused_after(both, "has model.visual.pos_embed.weight too");
    refused_after(
        |t| t.retain(|t| t.name != "lm_head.weight"),
        "there is no head and config.json does not say tie_word_embeddings",
    );
}

#[test]
fn a_tied_head_may_be_absent_or_the_embedding_again() {
    let mut config = small_config();
    set(&mut config, "/tie_word_embeddings", true.into());
    let dir = model(&config, DType::F32);
    let file = dir.path().join("model.safetensors");
    let absent = Checkpoint::open(dir.path()).unwrap();
    assert!(absent.tensor("lm_head.weight").is_none());
    change_tensors(&file, |tensors| {
        let embedding = tensors.iter().find(|t| t.name.ends_with("embed_tokens.weight")).unwrap().clone();
        tensors.push(Tensor { name: "lm_head.weight".into(), ..embedding });
    });
    assert!(Checkpoint::open(dir.path()).unwrap().tensor("lm_head.weight").is_none());
    change_tensors(&file, |tensors| tensors.iter_mut().find(|t| t.name == "lm_head.weight").unwrap().bytes[5] ^= 1);
    refused(dir.path(), "tensor lm_head.weight: config.json says tie_word_embeddings, but it differs");
}

#[test]
fn a_folder_without_weights_is_told_from_an_adapter_and_pickles() {
    let dir = crate::folders::config_folder(&small_config());
    refused(dir.path(), "there is neither model.safetensors nor model.safetensors.index.json");
    fs::write(dir.path().join("pytorch_model.bin"), "").unwrap();
    refused(dir.path(), "pickled weights are not read");
    fs::write(dir.path().join("adapter_model.safetensors"), "").unwrap();
    refused(dir.path(), "this folder holds an adapter");
}

#[test]
fn an_index_must_agree_with_its_shards() {
    let dir = sharded_model(&small_config(), DType::Bf16, 3000);
    let index_path = dir.path().join("model.safetensors.index.json");
    let good: Value = serde_json::from_slice(&fs::read(&index_path).unwrap()).unwrap();
    let shards: Vec<String> = entries(dir.path()).into_iter().filter(|name| name.ends_with(".safetensors")).collect();
    let with = |change: &dyn Fn(&mut Value)| {
        let mut index = good.clone();
        change(&mut index);
        write_json(&index_path, &index);
    };
    with(&|index| index["weight_map"][Q0] = json!("../model.safetensors"));
    refused(dir.path(), "wanted the name of a file beside the index, got \"../model.safetensors\"");
    with(&|index| index["weight_map"][Q0] = json!(3));
    refused(dir.path(), &format!("tensor {Q0}: wanted the name of a file"));
    with(&|index| index["weight_map"]["extra.weight"] = json!(shards[0]));
    refused(dir.path(), &format!("{} does not hold what the index says: extra.weight", shards[0]));
    with(&|index| drop(index["weight_map"].as_object_mut().unwrap().remove(Q0)));
    refused(dir.path(), &format!("holds what the index does not put there: {Q0}"));
    with(&|index| index["weight_map"] = json!({}));
    refused(dir.path(), "weight_map: it is empty");
    with(&|index| index["weight_map"] = json!([]));
    refused(dir.path(), "weight_map: wanted a table");
    with(&|index| index["weight_map"][Q0] = json!("gone.safetensors"));
    refused(dir.path(), "these are missing: gone.safetensors");
    write_json(&index_path, &good);
    Checkpoint::open(dir.path()).unwrap();

    // One tensor in two shards: the index can name only one of them.
    change_tensors(&dir.path().join(&shards[0]), |tensors| tensors.push(Tensor::f32(Q0, &[1], &[0.0])));
    refused(dir.path(), &format!("{} holds what the index does not put there: {Q0}", shards[0]));
    fs::remove_file(dir.path().join(&shards[1])).unwrap();
    refused(dir.path(), &format!("these are missing: {}; download them again", shards[1]));
}

#[test]
fn one_tensor_under_two_spellings_in_two_shards_is_refused() {
    let dir = sharded_model(&small_config(), DType::Bf16, 3000);
    let index_path = dir.path().join("model.safetensors.index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&index_path).unwrap()).unwrap();
    index["weight_map"]["model.norm.weight"] = json!("more.safetensors");
    write_json(&index_path, &index);
    write_tensors(&dir.path().join("more.safetensors"), &[Tensor::f32("model.norm.weight", &[16], &[1.0; 16])]);
    refused(dir.path(), "has model.language_model.norm.weight too");
}
