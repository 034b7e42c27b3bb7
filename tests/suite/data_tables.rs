//! CSV tables and COCO annotations as datasets, whole and broken.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use vlm::data::import::{Imported, Options, import, lines};

const PHOTO: &[u8] = include_bytes!("../golden/images/1x5.jpg");

fn folder(photos: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in photos {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, PHOTO).unwrap();
    }
    dir
}

fn skipping() -> Options {
    Options { skip_bad: true, ..Options::default() }
}

/// Image (relative to `dir`) and class of each photo.
fn photos(found: &Imported, dir: &Path) -> Vec<(String, String)> {
    let root = dir.canonicalize().unwrap();
    let of = |p: &vlm::data::import::Photo| {
        (p.path.strip_prefix(&root).unwrap().to_str().unwrap().to_string(), p.class.clone())
    };
    found.photos.iter().map(of).collect()
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect()
}

fn table(dir: &Path, text: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.join("labels.csv");
    fs::write(&path, text).unwrap();
    path
}

#[track_caller]
fn refused(path: &Path, options: &Options, wanted: &[&str]) {
    let error = import(path, options).unwrap_err().to_string();
    for wanted in wanted {
        assert!(error.contains(wanted), "{error}\nand not {wanted}");
    }
}

/// What each wrong entry is said to be.
#[track_caller]
fn listed(found: &[vlm::base::Error], wanted: &[&str]) {
    let said: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(said.len(), wanted.len(), "{said:#?}");
    for wanted in wanted {
        assert!(said.iter().any(|s| s.contains(wanted)), "{wanted}\n{said:#?}");
    }
}

#[test]
fn tables_as_spreadsheets_write_them() {
    let dir = folder(&["a.jpg", "b,c.jpg", "Ärger 日本/ü \"q\".jpg", "in/d.jpg"]);
    let want = pairs(&[
        ("a.jpg", "dent"),
        ("b,c.jpg", "scratch, deep"),
        ("Ärger 日本/ü \"q\".jpg", "Gr\u{fc}n"),
        ("in/d.jpg", "dent"),
    ]);
    let plain = "image,label\na.jpg,dent\n\"b,c.jpg\",\"scratch, deep\"\n\"Ärger 日本/ü \"\"q\"\".jpg\",Gru\u{308}n\n./x/../in/d.jpg, dent \n";
    let variants = [
        plain.to_string(),
        format!("\u{feff}{plain}"),
        plain.replace('\n', "\r\n"),
        plain.trim_end().to_string(),
        plain.replace("image,label", "Image , LABEL"),
        plain.replacen("image,label\n", "image,label\n\n", 1),
    ];
    for text in variants {
        let found = import(&table(dir.path(), &text), &Options::default()).unwrap();
        assert_eq!(photos(&found, dir.path()), want, "{text}");
    }
    for delimiter in [";", "\t"] {
        let text = format!("id{delimiter}label{delimiter}image\n1{delimiter}dent{delimiter}a.jpg\n");
        let found = import(&table(dir.path(), text), &Options::default()).unwrap();
        assert_eq!(photos(&found, dir.path()), pairs(&[("a.jpg", "dent")]));
    }
    let options = Options { columns: Some(["file".into(), "class".into()]), ..Options::default() };
    let found = import(&table(dir.path(), "file,class\na.jpg,dent\n"), &options).unwrap();
    assert_eq!(found.photos.len(), 1);
}

#[test]
fn tables_that_cannot_be_read_are_named_with_what_is_wrong() {
    let dir = folder(&["a.jpg"]);
    let none = Options::default();
    for (text, wanted) in [
        (&b""[..], &["labels.csv: is empty"][..]),
        (b" \n\n", &["is empty"]),
        (b"\xef\xbb\xbf", &["is empty"]),
        (b"image,label\n", &["has a header and no rows"]),
        (
            b"a.jpg,dent\n",
            &["line 1: wanted a header with the columns image and label, found a.jpg, dent", "--columns"],
        ),
        (b"image,label,image\na.jpg,dent,a.jpg\n", &["has two columns image"]),
        (b"\xff\xfei\0m\0", &["is UTF-16"]),
        (b"image,label\na.jpg,d\xe9nt\n", &["line 2: ", "is not UTF-8"]),
    ] {
        refused(&table(dir.path(), text), &none, wanted);
    }
    refused(&dir.path().join("missing.csv"), &none, &["missing.csv: there is no such folder or file"]);
    let good = table(dir.path(), "image,label\na.jpg,dent\n");
    let majority = Options { majority: true, ..Options::default() };
    assert!(import(&good, &majority).unwrap_err().is_usage());
    let elsewhere = Options { images: Some(dir.path().join("nowhere")), ..Options::default() };
    refused(&good, &elsewhere, &["cannot use as a folder", "nowhere"]);
}

#[test]
fn wrong_rows_stop_the_import_or_are_listed() {
    let dir = folder(&["a.jpg", "b.jpg", "c.jpg", "d.jpg", "folder/e.jpg"]);
    fs::write(dir.path().join("notes.txt"), "x").unwrap();
    fs::write(dir.path().join("empty.jpg"), "").unwrap();
    fs::write(dir.path().join("cut.jpg"), &PHOTO[..20]).unwrap();
    let text = "image,label\na.jpg,dent\nmissing.jpg,dent\nb.jpg,\n,dent\nc.jpg,dent,deep\n../a.jpg,dent\n\
                x/../../a.jpg,dent\nhttps://a.org/a.jpg,dent\nfolder,dent\nfolder\\e.jpg,dent\nnotes.txt,dent\n\
                empty.jpg,dent\ncut.jpg,dent\na.jpg,dent\nd.jpg,dent\nd.jpg,scratch\n";
    let path = table(dir.path(), text);
    refused(
        &path,
        &Options::default(),
        &["15 of 16 entries are wrong (--skip-bad leaves them out and lists them)", "labels.csv, line 3: cannot find"],
    );
    let found = import(&path, &skipping()).unwrap();
    assert_eq!(photos(&found, dir.path()), pairs(&[("a.jpg", "dent")]));
    listed(
        &found.bad,
        &[
            "line 3: cannot find the image",
            "line 4: the label is empty",
            "line 5: the image's path is empty",
            "line 6: has 3 values where the header has 2",
            "line 7: the path ../a.jpg leads out of the images' folder",
            "line 8: the path x/../../a.jpg leads out",
            "line 9: https://a.org/a.jpg is on the network",
            "is not a file",
            "separated by / here, not by \\",
            "notes.txt: is no image file",
            "empty.jpg: the file is empty",
            "line 14: ",
            "line 15: the photo is there already, in line 2",
            "line 16: the photo is called \"dent\" here and \"scratch\" in line 17",
            "line 17: the photo is called \"scratch\" here and \"dent\" in line 16",
        ],
    );
    let all_wrong = table(dir.path(), "image,label\nx.jpg,dent\ny.jpg,dent\n");
    refused(&all_wrong, &skipping(), &["all 2 entries are wrong, the first: ", "x.jpg"]);
    let open = table(dir.path(), "image,label\na.jpg,\"dent\nb.jpg,dent\nc.jpg,dent\n");
    refused(&open, &Options::default(), &["line 2: a value goes over several lines: is a quote not closed?"]);
}

#[test]
fn whole_paths_are_taken_and_images_may_lie_elsewhere() {
    let (dir, other) = (folder(&[]), folder(&["a.jpg", "deep/b.jpg"]));
    let other_path = other.path().canonicalize().unwrap();
    let path = table(dir.path(), format!("image,label\n{}/deep/../a.jpg,dent\n", other_path.display()));
    let found = import(&path, &Options::default()).unwrap();
    assert_eq!(found.photos[0].path, other_path.join("a.jpg"));
    let path = table(dir.path(), "image,label\ndeep/b.jpg,dent\n");
    let options = Options { images: Some(other.path().join("deep/..")), ..Options::default() };
    let found = import(&path, &options).unwrap();
    let line: Value = serde_json::from_str(&lines(&found.photos, None, dir.path()).unwrap()[0]).unwrap();
    let name = other_path.file_name().unwrap().to_str().unwrap();
    assert_eq!(line, json!({"image": format!("../{name}/deep/b.jpg"), "label": "dent"}));
}

#[test]
fn a_hundred_thousand_rows() {
    // links to few files, so that the test writes no hundred thousand photos
    let dir = folder(&["0.jpg"]);
    let mut text = String::from("image,label\n");
    for folder in 0..100 {
        fs::create_dir(dir.path().join(format!("{folder}"))).unwrap();
        for i in 0..1000 {
            if i % 100 == 0 {
                fs::hard_link(dir.path().join("0.jpg"), dir.path().join(format!("{folder}/{i}.jpg"))).unwrap();
            }
            text += &format!("{folder}/{i}.jpg,class {}\n", i % 3);
        }
    }
    let found = import(&table(dir.path(), text), &skipping()).unwrap();
    assert_eq!((found.photos.len(), found.bad.len()), (1000, 99_000));
    assert_eq!(found.photos[999].class, "class 0");
    assert!(found.bad[98_999].to_string().contains("labels.csv, line 100001: cannot find the image"));
}

/// A COCO file of these parts.
fn coco(dir: &Path, images: Value, annotations: Value) -> PathBuf {
    let path = dir.join("annotations.json");
    let categories =
        json!([{"id": 1, "name": "dent"}, {"id": 2, "name": "scratch"}, {"id": 7, "name": "O\u{308}l 日本"}]);
    let all = json!({"info": {}, "images": images, "annotations": annotations, "categories": categories});
    fs::write(&path, all.to_string()).unwrap();
    path
}

fn images(names: &[&str]) -> Value {
    names.iter().enumerate().map(|(i, name)| json!({"id": i + 1, "file_name": name, "width": 5, "height": 1})).collect()
}

/// (photo, category, area) each.
fn annotations(list: &[(usize, i64, f64)]) -> Value {
    let one = |(i, (image, category, area)): (usize, &(usize, i64, f64))| json!({"id": i + 1, "image_id": image, "category_id": category, "area": area, "segmentation": [[1, 2, 3, 4]]});
    list.iter().enumerate().map(one).collect()
}

#[test]
fn photos_of_a_single_category_or_by_area() {
    let names = ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "in/ü 日本.jpg"];
    let dir = folder(&names);
    let marks =
        [(1, 1, 9.0), (1, 1, 4.0), (2, 1, 10.0), (2, 2, 6.0), (2, 2, 5.0), (3, 1, 3.0), (3, 2, 3.0), (5, 7, 1.0)];
    let path = coco(dir.path(), images(&names), annotations(&marks));
    let found = import(&path, &Options::default()).unwrap();
    assert_eq!(photos(&found, dir.path()), pairs(&[("a.jpg", "dent"), ("in/ü 日本.jpg", "Öl 日本")]));
    assert_eq!(found.bad.len(), 0);
    listed(
        &found.left_out,
        &[
            "image 2 (b.jpg): shows dent, scratch; --majority takes that with the largest area",
            "image 3 (c.jpg): shows dent, scratch; --majority",
            "image 4 (d.jpg): has no annotation",
        ],
    );
    let majority = Options { majority: true, ..Options::default() };
    let found = import(&path, &majority).unwrap();
    assert_eq!(photos(&found, dir.path())[1], ("b.jpg".to_string(), "scratch".to_string()));
    listed(&found.left_out, &["image 3 (c.jpg): shows dent, scratch with the same area", "image 4 (d.jpg)"]);
    // without areas those of the boxes count: 2 x 2 of dents, 1 x 3 of scratches
    let boxes = json!([
        {"id": "x", "image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2]},
        {"id": "y", "image_id": 1, "category_id": 2, "bbox": [0, 0, 1, 3]},
    ]);
    let found = import(&coco(dir.path(), images(&names[..1]), boxes), &majority).unwrap();
    assert_eq!(photos(&found, dir.path()), pairs(&[("a.jpg", "dent")]));
}

#[test]
fn wrong_annotations_stop_the_import_or_are_listed() {
    let names = ["a.jpg", "b.jpg", "gone.jpg", "../a.jpg", "c.jpg", "a.jpg", "d.jpg"];
    let dir = folder(&["a.jpg", "b.jpg", "c.jpg", "d.jpg"]);
    let mut list = images(&names);
    let extra = [json!({"id": 7, "file_name": "d.jpg"}), json!({"file_name": "d.jpg"}), json!({"id": 9})];
    list.as_array_mut().unwrap().extend(extra);
    let marks = [
        (1, 1, 1.0),
        (2, 99, 1.0),
        (2, 1, 1.0),
        (3, 1, 1.0),
        (4, 1, 1.0),
        (5, 1, 1.0),
        (6, 2, 1.0),
        (44, 1, 1.0),
        (9, 1, 1.0),
    ];
    let mut marks = annotations(&marks);
    marks.as_array_mut().unwrap().push(json!({"id": 6, "image_id": 5, "category_id": 1}));
    let path = coco(dir.path(), list, marks);
    refused(
        &path,
        &Options::default(),
        &["all 10 entries are wrong", "annotations.json: image 7: the id is there twice"],
    );
    refused(&path, &skipping(), &["all 10 entries are wrong, the first: ", "image 7: the id is there twice"]);
    let more = coco(
        dir.path(),
        json!([{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}, {"id": 3}]),
        json!([{"id": 1, "image_id": 1, "category_id": 1}, {"id": 2, "image_id": 2, "category_id": 99},
               {"id": 3, "image_id": 3, "category_id": 1}, {"id": 4, "image_id": 4, "category_id": 1}]),
    );
    let found = import(&more, &skipping()).unwrap();
    assert_eq!(photos(&found, dir.path()), pairs(&[("a.jpg", "dent")]));
    listed(
        &found.bad,
        &[
            "annotation 4: no image has its image_id 4",
            "image 2 (b.jpg): annotation 2 is of the unknown category 99",
            "image 3 (without a name): has no file_name",
        ],
    );
}

#[test]
fn json_that_is_no_annotations_is_said() {
    let dir = folder(&["a.jpg"]);
    let path = dir.path().join("x.json");
    for (text, wanted) in [
        ("", "is empty; wanted COCO annotations"),
        ("{\"images\": [,\n", "x.json, line 1: not valid JSON: expected value"),
        ("{\"images\": [],\n\n \"annotations\"", "x.json, line 3: not valid JSON: EOF"),
        ("[1]", "is not COCO annotations"),
        ("{\"images\": 3}", "x.json, line 1: is not COCO annotations"),
        ("{}", "there is no list \"images\""),
        ("{\"images\": [], \"annotations\": []}", "there is no list \"categories\""),
        ("{\"images\": [], \"annotations\": [], \"categories\": []}", "names no photo"),
    ] {
        fs::write(&path, text).unwrap();
        refused(&path, &Options::default(), &[wanted]);
    }
    let only_left_out = coco(dir.path(), images(&["a.jpg"]), json!([]));
    refused(&only_left_out, &Options::default(), &["no photo is left: 1 was left out", "has no annotation"]);
}

#[test]
fn the_program_lists_what_it_skips() {
    let dir = folder(&["a.jpg", "b.jpg"]);
    let path = table(dir.path(), "image,label\na.jpg,dent\nmissing.jpg,dent\nb.jpg,scratch\n");
    let out = dir.path().join("o.jsonl");
    let run = |flags: &[&str]| {
        let mut vlm = Command::new(env!("CARGO_BIN_EXE_vlm"));
        let done = vlm.args(["data", "import"]).arg(&path).arg("--out").arg(&out).args(flags).output().unwrap();
        (done.status.code(), String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr).unwrap())
    };
    let (code, _, said) = run(&[]);
    assert_eq!(code, Some(1));
    assert!(said.starts_with("vlm: 1 of 3 entries is wrong") && said.lines().count() == 1, "{said}");
    assert!(!out.exists());
    let (code, stdout, said) = run(&["--skip-bad", "--json"]);
    assert_eq!(code, Some(0), "{said}");
    let said_json: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&said_json["photos"], &said_json["bad"]), (&json!(2), &json!(1)));
    assert!(said.starts_with("vlm: left out, wrong: ") && said.contains("line 3: cannot find the image"), "{said}");
    let counts: BTreeMap<String, usize> = serde_json::from_value(said_json["classes"].clone()).unwrap();
    assert_eq!(counts, BTreeMap::from([("dent".into(), 1), ("scratch".into(), 1)]));
    let (code, _, said) = run(&["--columns", "image", "--overwrite"]);
    assert!(code == Some(2) && said.contains("wanted two names"), "{said}");
}
