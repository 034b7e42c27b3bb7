//! What is said of a dataset: counts, histograms, odd photos and labels, the contact sheet.

use crate::data_split::picture;
use ::image::{ImageFormat, RgbaImage};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;
use vlm::data::census::{Bin, SheetSize, census};
use vlm::data::dataset::{OnBad, read_dataset};
use vlm::data::image::{self, PatchSpec, Rgb, to_jpeg, to_png};
use vlm::data::sheet::{SIDE, contact_sheet};

fn write(dir: &Path, name: &str, picture: &Rgb) {
    fs::write(dir.join(name), to_png(picture).unwrap()).unwrap();
}

/// The same as a file that could be transparent and is not.
fn write_opaque(dir: &Path, name: &str, picture: &Rgb, format: ImageFormat) {
    let pixels = picture.pixels.as_chunks::<3>().0.iter().flat_map(|[r, g, b]| [*r, *g, *b, 255]).collect();
    let opaque = RgbaImage::from_raw(picture.width as u32, picture.height as u32, pixels).unwrap();
    opaque.save_with_format(dir.join(name), format).unwrap();
}

/// A set with one of everything that is odd.
fn odd_set(dir: &Path) -> std::path::PathBuf {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/images");
    let mut lines = Vec::new();
    let mut add = |name: &str, label: &str| lines.push(json!({"image": name, "label": label}).to_string());
    for i in 0..12 {
        write(dir, &format!("{i}.png"), &picture(i, 128, 96));
        add(&format!("{i}.png"), "dent");
    }
    write_opaque(dir, "5.png", &picture(5, 128, 96), ImageFormat::Png);
    write_opaque(dir, "6.png", &picture(6, 128, 96), ImageFormat::Gif);
    write(dir, "long.png", &picture(20, 640, 128));
    add("long.png", "Dent");
    write(dir, "tiny.png", &picture(21, 40, 40));
    add("tiny.png", "paint  chip");
    let gray = picture(22, 128, 96);
    let gray = Rgb { pixels: gray.pixels.as_chunks::<3>().0.iter().flat_map(|p| [p[0]; 3]).collect(), ..gray };
    write(dir, "gray.png", &gray);
    add("gray.png", "paint_chip");
    fs::copy(golden.join("rgba8.png"), dir.join("alpha.png")).unwrap();
    add("alpha.png", "dent");
    fs::copy(dir.join("3.png"), dir.join("copy.png")).unwrap();
    add("copy.png", "scratch");
    let bytes = fs::read(dir.join("4.png")).unwrap();
    fs::write(dir.join("cut.png"), &bytes[..bytes.len() - 40]).unwrap();
    add("cut.png", "dent");
    fs::write(dir.join("photo.jpg"), to_jpeg(&picture(30, 200, 150), 80).unwrap()).unwrap();
    add("photo.jpg", "dent");
    add("missing.png", "dent");
    let file = dir.join("set.jsonl");
    fs::write(&file, lines.join("\n")).unwrap();
    file
}

#[test]
fn everything_odd_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let file = odd_set(dir.path());
    let set = read_dataset(&file, Some(""), OnBad::Skip).unwrap();
    let spec = PatchSpec { min_pixels: 32 * 32, ..PatchSpec::default() };
    let seen = census(&file, &set, &spec, Some(SheetSize { per_class: 4, side: SIDE }), &|_| ()).unwrap();
    assert_eq!((seen.samples, seen.photos), (19, 19));
    assert_eq!(seen.classes["dent"], 15);
    let unreadable = seen.unreadable.join("\n");
    assert_eq!(seen.unreadable.len(), 2, "{unreadable}");
    assert!(unreadable.contains("line 20: ") && unreadable.contains("missing.png"), "{unreadable}");
    assert!(unreadable.contains("line 18: ") && unreadable.contains("cut.png"), "{unreadable}");
    let what = |name: &str| {
        let odd = seen.odd.iter().find(|o| o.image.ends_with(name));
        odd.map_or(String::new(), |o| o.what.join("; "))
    };
    assert_eq!(what("long.png"), "long: 640 x 128");
    assert_eq!(what("tiny.png"), "tiny: 40 x 40");
    assert_eq!(what("gray.png"), "without colour");
    assert!(what("alpha.png").contains("with transparency"), "{}", what("alpha.png"));
    for ordinary in ["5.png", "6.png", "7.png"] {
        assert_eq!(what(ordinary), "");
    }
    assert_eq!(seen.same.len(), 1);
    assert_eq!((&seen.same[0].lines, &seen.same[0].labels), (&vec![4, 17], &vec!["dent".into(), "scratch".into()]));
    let labels = seen.labels.join("\n");
    assert!(labels.contains("\"Dent\" (1) and \"dent\" (15) differ only in case, in spaces"), "{labels}");
    assert!(labels.contains("\"paint  chip\" (1) and \"paint_chip\" (1) differ only"), "{labels}");
    assert!(labels.contains("\"scratch\" has only 1 photo;"), "{labels}");
    assert!(labels.contains("\"dent\" has 15 photos and \"Dent\" 1; accuracy alone hides the small one"), "{labels}");
    assert_eq!([seen.formats["JPEG"], seen.formats["GIF"]], [1, 1]);
    // 128 x 96 is 4 x 3 tokens, 640 x 128 is 20 x 4, 40 x 40 is 1 (40 / 32 rounds to 1), 200 x 150 is 6 x 5
    let tokens = seen.tokens.unwrap();
    assert_eq!((tokens.min, tokens.median, tokens.max), (1, 12, 80));
    assert!(tokens.bins.contains(&Bin { from: 12, to: 12, n: 14 }), "{tokens:?}");
    assert_eq!(tokens.bins.iter().map(|b| b.n).sum::<usize>(), 18);
    // of each class at most four, evenly spread
    let dents = seen.sheet.iter().find(|s| s.class == "dent").unwrap();
    assert_eq!((dents.photos, seen.sheet.len()), (15, 5));
    assert!((3..=4).contains(&dents.thumbnails.len()), "{}", dents.thumbnails.len());
}

#[test]
fn many_values_fall_into_ten_bars() {
    let dir = tempfile::tempdir().unwrap();
    let mut lines = String::new();
    for i in 0..30 {
        write(dir.path(), &format!("{i}.png"), &picture(i, 64 + i, 64));
        lines += &(json!({"image": format!("{i}.png"), "label": "a"}).to_string() + "\n");
    }
    let file = dir.path().join("s.jsonl");
    fs::write(&file, lines).unwrap();
    let set = read_dataset(&file, Some(""), OnBad::Skip).unwrap();
    let width = census(&file, &set, &PatchSpec::default(), None, &|_| ()).unwrap().width.unwrap();
    assert_eq!((width.min, width.median, width.max), (64, 79, 93));
    let bars: Vec<Bin> = (0..10).map(|i| Bin { from: 64 + 3 * i, to: 66 + 3 * i, n: 3 }).collect();
    assert_eq!(width.bins, bars);
}

#[test]
fn the_sheet_shows_titles_and_photos() {
    let dir = tempfile::tempdir().unwrap();
    let file = odd_set(dir.path());
    let out = dir.path().join("deep/sheet.png");
    let done = Command::new(env!("CARGO_BIN_EXE_vlm"))
        .args(["data", "show"])
        .arg(&file)
        .args(["--per-class", "10", "--json", "--sheet"])
        .arg(&out)
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let said: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!((&said["samples"], said["odd"].as_array().unwrap().len()), (&json!(19), 4));
    let sheet = image::load(&out).unwrap();
    // eight photos of 128 in a row, gaps of 8; five classes, of which one has two rows, titles of 32
    assert_eq!((sheet.width, sheet.height), (8 * 136 + 8, 8 + 5 * 32 + 6 * 136));
    let ink = sheet.pixels.as_chunks::<3>().0[..sheet.width * 24].iter().filter(|p| **p == [30; 3]).count();
    assert!(ink > 200, "the first title is written: {ink}");
    // a photo of 128 x 96 lies in the middle of its place, unchanged
    let set = read_dataset(&file, Some(""), OnBad::Skip).unwrap();
    let seen =
        census(&file, &set, &PatchSpec::default(), Some(SheetSize { per_class: 10, side: SIDE }), &|_| ()).unwrap();
    let drawn = contact_sheet(&seen.sheet);
    assert_eq!(drawn, sheet);
    let dents = seen.sheet.iter().position(|s| s.class == "dent").unwrap();
    let (x, y) = (8, 8 + 32 + dents * (32 + 136) + 16);
    let row = &drawn.pixels[((y + 50) * drawn.width + x) * 3..][..128 * 3];
    assert_eq!(row, &seen.sheet[dents].thumbnails[0].pixels[50 * 128 * 3..51 * 128 * 3]);
}

/// The sheet's font has letters of Europe and kana: another name is a number there, and in the output both.
#[test]
fn a_name_that_the_sheet_cannot_write_is_a_number_there() {
    let dir = tempfile::tempdir().unwrap();
    let long = "a very long name of a class ".repeat(4);
    let classes = ["cat", "é dent", "猫", long.trim()];
    let lines = classes.iter().enumerate().map(|(i, class)| {
        let name = format!("{i}.png");
        write(dir.path(), &name, &picture(i, 40, 30));
        json!({"image": name, "label": class}).to_string()
    });
    let file = dir.path().join("set.jsonl");
    fs::write(&file, lines.collect::<Vec<_>>().join("\n")).unwrap();
    let show = |more: &[&str]| {
        let out = dir.path().join("sheet.png");
        _ = fs::remove_file(&out);
        let done = Command::new(env!("CARGO_BIN_EXE_vlm"))
            .args(["data", "show"])
            .arg(&file)
            .arg("--sheet")
            .arg(&out)
            .args(more)
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    };
    let said = show(&[]);
    assert!(said.contains("sheet.png\n  class 4 there is 猫\n"), "{said}");
    // the number that it has in the table, where a wide letter takes two columns: one space less follows it
    assert!(said.contains(&format!("\n4 猫{}       1 ", " ".repeat(40 - 2))), "{said}");
    let said: Value = serde_json::from_str(&show(&["--json"])).unwrap();
    assert_eq!(said["on_sheet"], json!({"class 4": "猫"}));
    // the count of a long name is on the sheet too: ink in the last three of 67 letters
    let sheet = image::load(&dir.path().join("sheet.png")).unwrap();
    let ink = |section: usize, from: usize, to: usize| {
        let rows = 8 + section * (32 + 136)..24 + section * (32 + 136);
        let of_row = |y: usize| &sheet.pixels.as_chunks::<3>().0[y * sheet.width + from..y * sheet.width + to];
        rows.flat_map(of_row).filter(|p| **p == [30; 3]).count()
    };
    assert!(ink(0, 8 + 66 * 16, 8 + 67 * 16) > 20, "a count");
    assert_eq!(ink(0, 8 + 64 * 16, 8 + 66 * 16), 0, "a space before it");
    assert!(ink(3, 8, 8 + 5 * 16) > 100, "class 4");
}

#[test]
fn the_table_says_it_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let file = odd_set(dir.path());
    let run = |arguments: &[&str]| {
        let done = Command::new(env!("CARGO_BIN_EXE_vlm")).args(["data", "show"]).args(arguments).output().unwrap();
        (done.status.code(), String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr).unwrap())
    };
    let file = file.to_str().unwrap();
    let (code, said, _) = run(&[file]);
    assert_eq!(code, Some(0));
    for wanted in [
        "19 samples, 19 photos, 5 classes",
        "dent             15  78.9 % ####",
        "width: 13 to 640, median 128",
        "tokens per photo: ",
        "cannot be read: 2",
        "photos of the same bytes: 1\n  lines 4, 17: ",
        "called dent and scratch",
        "labels: ",
    ] {
        assert!(said.contains(wanted), "{wanted}\n{said}");
    }
    let (code, _, said) = run(&["nowhere.jsonl"]);
    assert!(code == Some(1) && said.contains("cannot read nowhere.jsonl"), "{said}");
    let (code, _, said) = run(&[file, "--sheet", "sheet.png", "--per-class", "0"]);
    assert!(code == Some(2) && said.contains("--per-class 0"), "{said}");
    let empty = dir.path().join("empty.jsonl");
    fs::write(&empty, "").unwrap();
    let (code, _, said) = run(&[empty.to_str().unwrap()]);
    assert!(code == Some(1) && said.contains("holds no samples"), "{said}");
}
