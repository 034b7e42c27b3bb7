//! Fingerprints: the same for the same contents anywhere, another for each change.

use crate::folders::{entries, model, sharded_model, small_config};
use std::collections::HashSet;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;
use vlm::base::DType;
use vlm::data::dataset::{OnBad, read_dataset};
use vlm::train::fingerprint::{of_adapter, of_file, of_model, of_photos, of_processing};

#[test]
fn files_have_their_sha_256() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    // FIPS 180-2, B.1 and B.3.
    fs::write(&path, "abc").unwrap();
    assert_eq!(of_file(&path).unwrap(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    fs::write(&path, "a".repeat(1_000_000)).unwrap();
    assert_eq!(of_file(&path).unwrap(), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    let error = of_file(Path::new("/nowhere")).unwrap_err().to_string();
    assert!(error.starts_with("cannot open /nowhere"), "{error}");
    // what a shell pipes in gives its bytes once, and whoever reads the set had them
    let (reader, _writer) = std::io::pipe().unwrap();
    let error = of_file(Path::new(&format!("/proc/self/fd/{}", reader.as_raw_fd()))).unwrap_err().to_string();
    assert!(error.contains("has to be read twice here"), "{error}");
}

/// A set of two photos in files and one within the line, and its fingerprint.
fn photos(first: &[u8], second: &[u8], third: &str, names: [&str; 2]) -> String {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in names.iter().zip([first, second]) {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    let third = format!("data:image/png;base64,{third}");
    let lines = [names[0], names[1], &third].map(|image| format!(r#"{{"image": "{image}", "label": "x"}}"#));
    let path = dir.path().join("set.jsonl");
    fs::write(&path, lines.join("\n")).unwrap();
    of_photos(&read_dataset(&path, Some("?"), OnBad::Fail).unwrap().samples).unwrap()
}

#[test]
fn photos_count_by_content_and_order() {
    let first = photos(b"one", b"two", "AAAA", ["a", "b"]);
    assert_eq!(photos(b"one", b"two", "AAAA", ["c", "d"]), first);
    let others = [
        photos(b"onf", b"two", "AAAA", ["a", "b"]),
        photos(b"two", b"one", "AAAA", ["a", "b"]),
        photos(b"onet", b"wo", "AAAA", ["a", "b"]),
        photos(b"one", b"two", "AAAB", ["a", "b"]),
    ];
    assert_eq!(others.iter().chain([&first]).collect::<HashSet<_>>().len(), 5);
}

#[test]
fn a_photo_that_went_missing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (image, set) = (dir.path().join("a.png"), dir.path().join("set.jsonl"));
    fs::write(&image, "x").unwrap();
    fs::write(&set, r#"{"image": "a.png", "label": "x"}"#).unwrap();
    let samples = read_dataset(&set, Some("?"), OnBad::Fail).unwrap().samples;
    fs::remove_file(&image).unwrap();
    let error = of_photos(&samples).unwrap_err().to_string();
    assert!(error.contains("a.png"), "{error}");
}

#[test]
fn models_differ_by_config_names_and_weights() {
    let folder = model(&small_config(), DType::F32);
    let path = folder.path().join("model.safetensors");
    let first = of_model(folder.path()).unwrap();
    let (weights, config) = (fs::read(&path).unwrap(), fs::read(folder.path().join("config.json")).unwrap());
    let copy = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(copy.path().join(name), bytes).unwrap();
    write("model.safetensors", &weights);
    write("config.json", &config);
    write("README.md", b"not of it");
    assert_eq!(of_model(copy.path()).unwrap(), first);
    let mut changed = weights.clone();
    *changed.last_mut().unwrap() ^= 1;
    write("model.safetensors", &changed);
    let second = of_model(copy.path()).unwrap();
    write("model.safetensors", &weights);
    write("config.json", &[&config[..], b" "].concat());
    let third = of_model(copy.path()).unwrap();
    assert_eq!(HashSet::from([first, second, third]).len(), 3);
    let error = of_model(&copy.path().join("nowhere")).unwrap_err().to_string();
    assert!(error.contains("nowhere"), "{error}");
}

/// Of one file or of many, and of nothing that is not opened.
#[test]
fn files_that_are_no_weights_of_the_model_have_no_say() {
    let single = model(&small_config(), DType::F32);
    let sharded = sharded_model(&small_config(), DType::F32, 1 << 12);
    let shards: Vec<String> = entries(sharded.path()).into_iter().filter(|n| n.ends_with(".safetensors")).collect();
    assert!(shards.len() > 1, "{shards:?}");
    for (folder, files) in [(single.path(), vec!["model.safetensors".to_string()]), (sharded.path(), shards)] {
        let first = of_model(folder).unwrap();
        fs::write(folder.join("notes.safetensors"), "not of it").unwrap();
        fs::write(folder.join("adapter_model.safetensors"), "not of it").unwrap();
        assert_eq!(of_model(folder).unwrap(), first);
        for file in files {
            let path = folder.join(&file);
            let bytes = fs::read(&path).unwrap();
            let mut changed = bytes.clone();
            *changed.last_mut().unwrap() ^= 1;
            fs::write(&path, changed).unwrap();
            assert_ne!(of_model(folder).unwrap(), first, "{file}");
            fs::write(&path, bytes).unwrap();
        }
        assert_eq!(of_model(folder).unwrap(), first);
    }
}

/// Whatever is read of a folder beside weights and config has a say in the result.
#[test]
fn tokenizer_templates_and_configurations_count() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    let mut seen = vec![of_processing(dir.path()).unwrap()];
    let names = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json"];
    let more = ["processor_config.json", "preprocessor_config.json", "generation_config.json"];
    let more = more.into_iter().chain(["additional_chat_templates/default.jinja"]);
    fs::create_dir(dir.path().join("additional_chat_templates")).unwrap();
    for name in names.into_iter().chain(more) {
        for text in ["", "a", "b"] {
            write(name, text);
            seen.push(of_processing(dir.path()).unwrap());
        }
    }
    assert_eq!(seen.iter().collect::<HashSet<_>>().len(), 25);
    write("README.md", "not of it");
    assert_eq!(of_processing(dir.path()).unwrap(), seen[24]);

    let error = of_adapter(dir.path()).unwrap_err().to_string();
    assert!(error.contains("adapter_config.json"), "{error}");
    let adapter = |config: &str, weights: &str| {
        write("adapter_config.json", config);
        write("adapter_model.safetensors", weights);
        of_adapter(dir.path()).unwrap()
    };
    let (first, second, third) = (adapter("a", "b"), adapter("c", "b"), adapter("a", "c"));
    assert_eq!(adapter("a", "b"), first);
    assert_eq!(HashSet::from([first, second, third]).len(), 3);
}
