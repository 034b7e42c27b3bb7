//! Folders of class folders as datasets: through the program, and read back as it reads datasets.

use crate::folders::shared;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use vlm::data::dataset::{OnBad, read_dataset};
use vlm::data::import::folders::class_folders;
use vlm::data::import::{Options, import as import_source, lines};
use vlm::data::messages::ImageSource;

/// A JPEG of one by five pixels: what a photo is, is found from the content.
const PHOTO: &[u8] = include_bytes!("../golden/images/1x5.jpg");

fn import(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vlm")).args(["data", "import"]).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn photo(root: &Path, name: &str) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, PHOTO).unwrap();
}

fn values(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_photos_of_the_benchmark_are_417_lines() {
    let Some(photos) = shared("the_photos_of_the_benchmark_are_417_lines", "data/photos") else { return };
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("all.jsonl");
    let done =
        import(&[photos.to_str().unwrap(), "--out", out.to_str().unwrap(), "--prompt", "Which material?", "--json"]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let said: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!((&said["photos"], &said["left_out"]), (&json!(417), &json!(1)));
    assert_eq!(said["classes"], json!({"glass": 139, "metal": 139, "plastic": 139}));
    assert!(text(&done.stderr).contains("LICENSE: lies in no class folder"), "{}", text(&done.stderr));
    let set = read_dataset(&out, None, OnBad::Fail).unwrap();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for sample in &set.samples {
        *counts.entry(sample.label.clone().unwrap()).or_default() += 1;
        let [ImageSource::File(path)] = sample.images().collect::<Vec<_>>()[..] else { panic!("one file") };
        assert_eq!(path.parent().unwrap().file_name().unwrap().to_str(), sample.label.as_deref());
    }
    assert_eq!(counts, BTreeMap::from(["glass", "metal", "plastic"].map(|name| (name.to_string(), 139))));
}

#[test]
fn lines_are_sorted_and_paths_relative_to_the_file() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["src/b/2.png", "src/b/10.png", "src/Ärger 日本/ü\"quote.png", "src/a/x.jpg", "src/.git/y.png"] {
        photo(dir.path(), name);
    }
    let arguments = |out: &str| [dir.path().join("src"), "--out".into(), dir.path().join(out)];
    for (out, before) in [("all.jsonl", "src/"), ("src/all.jsonl", ""), ("deep/er/all.jsonl", "../../src/")] {
        let arguments = arguments(out).map(|a: PathBuf| a.to_str().unwrap().to_string());
        let done = import(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(done.status.success(), "{}", text(&done.stderr));
        let want = [("a/x.jpg", "a"), ("b/10.png", "b"), ("b/2.png", "b"), ("Ärger 日本/ü\"quote.png", "Ärger 日本")];
        let want = want.map(|(path, label)| json!({"image": format!("{before}{path}"), "label": label}));
        assert_eq!(values(&dir.path().join(out)), want);
        assert_eq!(read_dataset(&dir.path().join(out), Some("What?"), OnBad::Fail).unwrap().samples.len(), 4);
        assert!(text(&done.stdout).starts_with("4 photos of 3 classes in"), "{}", text(&done.stdout));
        assert!(text(&done.stdout).contains(": a 1, b 2, Ärger 日本 1\n"), "{}", text(&done.stdout));
    }
}

/// A folder's name from a Mac is decomposed Unicode: the path keeps that, the label does not.
#[test]
fn folders_whose_names_are_one_text_are_one_class() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["src/gru\u{308}n/1.png", "src/gr\u{fc}n/2.png"] {
        photo(dir.path(), name);
    }
    let (source, out) = (dir.path().join("src"), dir.path().join("all.jsonl"));
    let done = import(&[source.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    assert!(text(&done.stdout).starts_with("2 photos of 1 class in"), "{}", text(&done.stdout));
    let want = ["src/gru\u{308}n/1.png", "src/gr\u{fc}n/2.png"];
    assert_eq!(values(&out), want.map(|path| json!({"image": path, "label": "gr\u{fc}n"})));
}

#[test]
fn paths_that_share_nothing_but_the_root_are_absolute() {
    let dir = tempfile::tempdir().unwrap();
    photo(dir.path(), "a/1.png");
    let found = class_folders(dir.path()).unwrap();
    let line: Value = serde_json::from_str(&lines(&found.photos, None, Path::new("/usr")).unwrap()[0]).unwrap();
    assert_eq!(line["image"], dir.path().canonicalize().unwrap().join("a/1.png").to_str().unwrap());
    let error = lines(&found.photos, None, Path::new("/nowhere")).unwrap_err().to_string();
    assert!(error.starts_with("cannot use as a folder /nowhere"), "{error}");
}

#[test]
fn a_prompt_makes_conversations_with_the_image_where_it_says() {
    let dir = tempfile::tempdir().unwrap();
    photo(dir.path(), "dent/1.png");
    let out = dir.path().join("x.jsonl");
    let content = |prompt: &str| {
        let found = class_folders(dir.path()).unwrap();
        fs::write(&out, lines(&found.photos, Some(prompt), dir.path()).unwrap().join("\n")).unwrap();
        let mut line = values(&out).remove(0);
        assert_eq!(line["messages"][1], json!({"role": "assistant", "content": "dent"}));
        assert_eq!(line["messages"][0]["role"], "user");
        // The two ways to give a prompt are the same conversation.
        let direct = read_dataset(&out, None, OnBad::Fail).unwrap().samples;
        fs::write(&out, lines(&found.photos, None, dir.path()).unwrap().join("\n")).unwrap();
        let later = read_dataset(&out, Some(prompt), OnBad::Fail).unwrap().samples;
        assert_eq!(direct, later);
        line["messages"][0]["content"].take()
    };
    let (image, text) = (json!({"type": "image", "image": "dent/1.png"}), |t| json!({"type": "text", "text": t}));
    assert_eq!(content("Which?"), json!([image, text("Which?")]));
    assert_eq!(content("See <image> here"), json!([text("See "), image, text(" here")]));
    assert_eq!(content("Which? <image>"), json!([text("Which? "), image]));
    let found = class_folders(dir.path()).unwrap();
    let error = lines(&found.photos, Some("<image><image>"), dir.path()).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("more than one <image>"), "{error}");
}

#[test]
fn what_is_no_photo_of_a_class_is_listed_and_counted() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    for name in ["a/1.png", "loose.png", "a/inner/2.png"] {
        photo(dir.path(), name);
    }
    fs::write(dir.path().join("a/notes.txt"), "x").unwrap();
    fs::write(dir.path().join("a/cut.png"), &PHOTO[..20]).unwrap();
    fs::write(dir.path().join("a/phone.HEIC"), "").unwrap();
    std::os::unix::fs::symlink("nowhere", dir.path().join("a/gone")).unwrap();
    fs::create_dir(dir.path().join("empty")).unwrap();
    let odd = |bytes| dir.path().join(std::ffi::OsStr::from_bytes(bytes));
    fs::write(odd(b"a/\xff.png"), PHOTO).unwrap();
    fs::create_dir(odd(b"\xff")).unwrap();
    let found = class_folders(dir.path()).unwrap();
    assert_eq!(found.photos.len(), 1);
    let said: Vec<String> = found.left_out.iter().chain(&found.bad).map(ToString::to_string).collect();
    assert_eq!(found.bad.len(), 4, "{said:#?}");
    let wanted = [
        "a/inner: is a folder inside a class folder",
        "a/notes.txt: ",
        "empty: holds no photo, so it is no class",
        "loose.png: lies in no class folder",
        "\u{fffd}: the folder's name is not UTF-8",
        "a/cut.png: ",
        "a/gone: No such file",
        "a/phone.HEIC: the file is empty",
        "a/\u{fffd}.png: the path is not UTF-8",
    ];
    assert_eq!(said.len(), wanted.len(), "{said:#?}");
    for (said, wanted) in said.iter().zip(wanted) {
        assert!(said.contains(wanted), "{said} {wanted}");
    }
}

#[test]
fn what_cannot_be_imported_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |source: &Path, wanted: &str| {
        let error = import_source(source, &Options::default()).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    };
    for (name, wanted) in
        [("x.jsonl", "this is a dataset already"), ("x.png", "wanted a folder with a folder of photos per class")]
    {
        let path = dir.path().join(name);
        fs::write(&path, PHOTO).unwrap();
        refused(&path, wanted);
    }
    refused(&dir.path().join("nowhere"), "there is no such folder or file");
    let sub = |name: &str| dir.path().join(name);
    fs::create_dir(sub("none")).unwrap();
    refused(&sub("none"), "found no photo in one; it is empty");
    photo(&sub("flat"), "1.png");
    refused(&sub("flat"), "flat/1.png: lies in no class folder");
    photo(&sub("deep"), "train/dent/1.png");
    let hint = format!("import each of them, such as {}", sub("deep").canonicalize().unwrap().join("train").display());
    refused(&sub("deep"), &hint);
}

#[test]
fn a_file_is_replaced_only_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    photo(dir.path(), "src/a/1.png");
    let (source, out) = (dir.path().join("src"), dir.path().join("o.jsonl"));
    fs::write(&out, "mine").unwrap();
    let arguments = [source.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let done = import(&arguments);
    assert_eq!(done.status.code(), Some(1));
    assert!(text(&done.stderr).contains("is there already; name another file or give --overwrite"));
    assert_eq!(fs::read_to_string(&out).unwrap(), "mine");
    assert!(import(&[&arguments[..], &["--overwrite"]].concat()).status.success());
    assert_eq!(values(&out).len(), 1);
}

/// A file that was put there as a photo and is none is an error; one that never claimed to be is only listed.
#[test]
fn photos_that_are_none_are_an_error_unless_skipped() {
    let dir = tempfile::tempdir().unwrap();
    photo(dir.path(), "src/dent/1.png");
    fs::write(dir.path().join("src/dent/notes.txt"), "x").unwrap();
    let out = dir.path().join("o.jsonl");
    let arguments = [dir.path().join("src"), "--out".into(), out.clone()].map(|a| a.to_str().unwrap().to_owned());
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    for (name, text_of) in [("letter.jpg", "dear"), ("empty.png", "")] {
        let path = dir.path().join("src/dent").join(name);
        fs::write(&path, text_of).unwrap();
        let done = import(&arguments);
        let said = text(&done.stderr);
        assert_eq!(done.status.code(), Some(1), "{said}");
        assert!(said.contains("1 of 3 entries is wrong (--skip-bad") && said.contains(name), "{said}");
        assert!(!out.exists());
        let done = import(&[&arguments[..], &["--skip-bad"]].concat());
        assert!(done.status.success() && text(&done.stderr).contains("left out, wrong: "), "{}", text(&done.stderr));
        assert!(text(&done.stdout).starts_with("1 photo of 1 class in "), "{}", text(&done.stdout));
        assert!(text(&done.stdout).contains("left out: 1, and 1 that is wrong"), "{}", text(&done.stdout));
        fs::remove_file(&path).unwrap();
        fs::remove_file(&out).unwrap();
    }
    assert!(import(&arguments).status.success());
}
