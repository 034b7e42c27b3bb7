//! Sets in parts: counts, classes, groups, and what stays when a set grows.

use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;
use vlm::classify::evaluate::Classes;
use vlm::classify::records::written;
use vlm::data::alike;
use vlm::data::dataset::{OnBad, read_dataset};
use vlm::data::image::{Rgb, to_jpeg, to_png};
use vlm::data::import::{self, Photo};
use vlm::data::look::sha256;
use vlm::data::messages::ImageSource;
use vlm::data::rewrite::Lines;
use vlm::data::split::{Amount, Item, Part, Sizes, split};

/// `n` items of each label, alone unless `group` says otherwise.
fn items<'a>(labels: &[(&'a str, usize)], group: impl Fn(usize) -> usize) -> Vec<Item<'a>> {
    let all = labels.iter().flat_map(|(label, n)| std::iter::repeat_n(*label, *n)).enumerate();
    all.map(|(i, label)| Item {
        label: Some(label),
        content: sha256(format!("{label} {i}").as_bytes()),
        group: group(i),
    })
    .collect()
}

fn sizes(train: Option<Amount>, validation: Option<Amount>, test: Option<Amount>) -> Sizes {
    Sizes { train, validation, test }
}

/// Samples of each label in each part.
fn counts(items: &[Item], parts: &[Option<Part>]) -> BTreeMap<String, [usize; 3]> {
    let mut counts: BTreeMap<String, [usize; 3]> = BTreeMap::new();
    for (item, part) in items.iter().zip(parts) {
        if let Some(part) = part {
            counts.entry(item.label.unwrap().to_string()).or_default()[*part as usize] += 1;
        }
    }
    counts
}

#[test]
fn counts_are_exact_and_classes_in_proportion() {
    let items = items(&[("glass", 139), ("metal", 139), ("plastic", 139)], |i| i);
    let wanted = sizes(Some(Amount::Count(319)), None, Some(Amount::Count(98)));
    let parts = split(&items, &wanted, 0).unwrap();
    let got = counts(&items, &parts);
    // 98 / 3 = 32.67 by largest remainders: 33, 33, 32
    let tests: Vec<usize> = got.values().map(|c| c[Part::Test as usize]).collect();
    assert_eq!(tests.iter().sum::<usize>(), 98);
    assert!(tests.iter().all(|n| [32, 33].contains(n)), "{got:?}");
    assert!(got.values().all(|c| c.iter().sum::<usize>() == 139), "{got:?}");
    let uneven = self::items(&[("a", 700), ("b", 200), ("c", 90), ("d", 10)], |i| i);
    let wanted = sizes(None, Some(Amount::Share(0.1)), Some(Amount::Share(0.2)));
    let got = counts(&uneven, &split(&uneven, &wanted, 3).unwrap());
    let want = [("a", [490, 70, 140]), ("b", [140, 20, 40]), ("c", [63, 9, 18]), ("d", [7, 1, 2])];
    assert_eq!(got, want.map(|(l, c)| (l.to_string(), c)).into());
    // nothing said: 0.8, 0.1, 0.1
    let got = counts(&uneven, &split(&uneven, &Sizes::default(), 3).unwrap());
    assert_eq!(got["a"], [560, 70, 70]);
    // fewer asked for than there are
    let few = sizes(Some(Amount::Count(10)), None, Some(Amount::Count(5)));
    let parts = split(&uneven, &few, 3).unwrap();
    assert_eq!(parts.iter().filter(|p| p.is_none()).count(), 985);
}

#[test]
fn the_seed_and_the_content_decide_and_nothing_else() {
    let all = items(&[("a", 60), ("b", 40)], |i| i);
    let by_content = |items: &[Item], seed| -> BTreeMap<[u8; 32], Option<Part>> {
        let parts = split(items, &Sizes::default(), seed).unwrap();
        items.iter().map(|i| i.content).zip(parts).collect()
    };
    let first = by_content(&all, 0);
    let mut turned = all.clone();
    turned.reverse();
    assert_eq!(first, by_content(&turned, 0), "the order of the file does not matter");
    let differ = first.iter().filter(|(k, v)| by_content(&all, 1)[*k] != **v).count();
    assert!(differ > 10, "{differ}");
}

#[test]
fn a_set_that_grows_keeps_its_photos_where_they_were() {
    let (small, large) = (items(&[("a", 400)], |i| i), items(&[("a", 500)], |i| i));
    let wanted = sizes(None, Some(Amount::Share(0.15)), Some(Amount::Share(0.2)));
    let (before, after) = (split(&small, &wanted, 5).unwrap(), split(&large, &wanted, 5).unwrap());
    let moved = before.iter().zip(&after).filter(|(a, b)| a != b).count();
    // a random split again would move 52 %: 1 - (0.65^2 + 0.15^2 + 0.2^2)
    assert!(moved <= 20, "{moved} of 400");
}

#[test]
fn groups_stay_together_and_are_not_all_in_one_part() {
    // groups of three, some across classes
    let all = items(&[("a", 300), ("b", 300)], |i| if i % 5 < 3 { i / 5 * 5 } else { i });
    let wanted = sizes(None, Some(Amount::Share(0.2)), Some(Amount::Share(0.2)));
    let parts = split(&all, &wanted, 1).unwrap();
    let mut of_group: BTreeMap<usize, BTreeSet<Option<Part>>> = BTreeMap::new();
    all.iter().zip(&parts).for_each(|(item, part)| _ = of_group.entry(item.group).or_default().insert(*part));
    assert!(of_group.values().all(|parts| parts.len() == 1));
    let got = counts(&all, &parts);
    assert_eq!(got["a"], [180, 60, 60]);
    assert_eq!(got["b"], [180, 60, 60]);
    let grouped = |part: Part| {
        let in_group = |i: usize| i % 5 < 3;
        (0..600).filter(|i| in_group(*i) && parts[*i] == Some(part)).count()
    };
    let shares = Part::ALL.map(grouped);
    assert_eq!(shares.iter().sum::<usize>(), 360);
    assert!(shares[0] > 150 && shares[1] > 30 && shares[2] > 30, "{shares:?}");
    // a group larger than the test set is learnt from, whatever the order
    let large = items(&[("a", 10)], |i| if i < 8 { 0 } else { i });
    let parts = split(&large, &sizes(None, None, Some(Amount::Count(4))), 0).unwrap();
    assert!(parts[..8].iter().all(|p| *p == Some(Part::Train)), "{parts:?}");
    assert_eq!(parts[8..], [Some(Part::Test), Some(Part::Test)]);
}

#[test]
fn amounts_that_cannot_be_are_refused() {
    let all = items(&[("a", 10)], |i| i);
    for (wanted, said) in [
        (
            sizes(Some(Amount::Count(8)), None, Some(Amount::Count(3))),
            "8, 0 and 3 samples, 11 in all, and the set has 10",
        ),
        (sizes(None, None, Some(Amount::Share(1.5))), "--test 1.5: wanted a share from 0.0 to 1.0"),
        (sizes(None, Some(Amount::Share(f64::NAN)), None), "--validation NaN"),
        (sizes(None, Some(Amount::Share(0.7)), Some(Amount::Share(0.7))), "14 in all"),
        (
            sizes(None, Some(Amount::Count(usize::MAX)), Some(Amount::Count(2))),
            "0, 18446744073709551615 and 2 samples, 18446744073709551617 in all",
        ),
    ] {
        let error = split(&all, &wanted, 0).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains(said), "{error}");
    }
    assert!(split(&[], &Sizes::default(), 0).unwrap_err().to_string().contains("no samples"));
}

/// A picture of blobs that depend on the seed.
pub fn picture(seed: usize, width: usize, height: usize) -> Rgb {
    let mut pixels = vec![0; width * height * 3];
    let wave = |k: usize, x: f64| ((seed * (2 * k + 3) % 17) as f64 * 0.37 + x * (1 + (seed >> k) % 5) as f64).sin();
    for (i, pixel) in pixels.as_chunks_mut::<3>().0.iter_mut().enumerate() {
        let (x, y) = ((i % width) as f64 / width as f64 * 6.0, (i / width) as f64 / height as f64 * 6.0);
        *pixel = [wave(0, x) + wave(1, y), wave(2, x) * wave(3, y), wave(1, x) - wave(2, y)]
            .map(|v| (127.0 + 60.0 * v).clamp(0.0, 255.0) as u8);
    }
    Rgb { width, height, pixels }
}

#[test]
fn a_glance_finds_what_was_saved_again_and_nothing_else() {
    let of = |p: &Rgb| alike::Print::of(p);
    let prints: Vec<_> = (0..40).map(|i| of(&picture(i, 96, 64))).collect();
    assert_eq!(alike::pairs(&prints.iter().collect::<Vec<_>>()), BTreeSet::new());
    for (i, print) in prints.iter().enumerate() {
        let original = picture(i, 96, 64);
        let again = vlm::data::image::decode(&to_jpeg(&original, 60).unwrap(), Path::new("x")).unwrap();
        let smaller = vlm::data::image::resize(&original, 40, 60);
        let brighter =
            Rgb { pixels: original.pixels.iter().map(|v| v.saturating_add(20)).collect(), ..original.clone() };
        for (name, changed) in [("jpeg", again), ("smaller", smaller), ("brighter", brighter)] {
            assert!(print.is_like(&of(&changed)), "{i} {name}");
        }
    }
    let flat = |v: u8| of(&Rgb { width: 20, height: 20, pixels: vec![v; 1200] });
    assert!(flat(100).is_like(&flat(101)) && !flat(100).is_like(&flat(120)) && !flat(100).is_like(&prints[0]));
    assert_eq!(alike::groups(6, [(4, 2), (2, 5), (1, 3)]), [0, 1, 2, 1, 2, 2]);
}

fn vlm(arguments: &[&str]) -> (Option<i32>, String, String) {
    let done = Command::new(env!("CARGO_BIN_EXE_vlm")).arg("data").args(arguments).output().unwrap();
    (done.status.code(), String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr).unwrap())
}

#[test]
fn the_program_writes_parts_whose_photos_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    fs::create_dir_all(root.join("sets/photos")).unwrap();
    let mut lines = Vec::new();
    for i in 0..24 {
        let bytes = match i {
            // 20 to 23 are 0 to 3 saved again
            20.. => to_jpeg(&picture(i - 20, 64, 48), 70).unwrap(),
            _ => to_png(&picture(i, 64, 48)).unwrap(),
        };
        let name = format!("photos/{i}");
        fs::write(root.join("sets").join(&name), bytes).unwrap();
        let label = ["dent", "scratch"][i % 2];
        lines.push(match i % 4 {
            0 => json!({"image": name, "label": label, "note": "kept"}),
            1 => json!({"messages": [
                {"role": "user", "content": [{"type": "image", "image": name}, {"type": "text", "text": "photos/0?"}]},
                {"role": "assistant", "content": label}]}),
            2 => json!({"images": [{"path": name}], "messages": [
                {"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": label}]}),
            _ => json!({"image": root.join("sets").join(&name), "conversations": [
                {"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": label}]}),
        });
    }
    let set = root.join("sets/all.jsonl");
    fs::write(&set, lines.iter().map(|l| format!("{l}\n")).collect::<String>()).unwrap();
    let (set, out) = (set.to_str().unwrap(), root.join("deep/er/split"));
    let out_text = out.to_str().unwrap();
    let arguments = ["split", set, "--out", out_text, "--train", "14", "--validation", "4", "--test", "25%", "--json"];
    let (code, said, stderr) = vlm(&arguments);
    assert_eq!(code, Some(0), "{stderr}");
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["groups"], json!({"groups": 4, "samples": 8}));
    assert_eq!(said["test"]["samples"], 6);
    assert_eq!(said["train"]["classes"], json!({"dent": 7, "scratch": 7}));
    let mut part_of: BTreeMap<String, &str> = BTreeMap::new();
    for part in ["train", "validation", "test"] {
        let file = out.join(format!("{part}.jsonl"));
        for sample in read_dataset(&file, Some("What?"), OnBad::Fail).unwrap().samples {
            let [ImageSource::File(path)] = sample.images().collect::<Vec<_>>()[..] else { panic!() };
            part_of.insert(path.file_name().unwrap().to_str().unwrap().into(), part);
        }
    }
    assert_eq!(part_of.len(), 24);
    for i in 0..4 {
        assert_eq!(part_of[&i.to_string()], part_of[&(i + 20).to_string()], "{i} and its copy");
    }
    let all =
        ["train", "validation", "test"].map(|p| fs::read_to_string(out.join(format!("{p}.jsonl"))).unwrap()).concat();
    assert!(all.contains(r#""note":"kept""#) && all.contains("photos/0?") && all.contains("../../../sets/photos/4"));
    // again: refused, unless asked
    let (code, _, said) = vlm(&arguments);
    assert!(code == Some(1) && said.contains("holds a split already"), "{said}");
    let (code, said, _) = vlm(&["split", set, "--out", out_text, "--test", "6", "--overwrite"]);
    assert!(code == Some(0) && !out.join("validation.jsonl").exists(), "{said}");
    assert!(said.contains("groups of photos that look the same, each on one side: 4, of 8 photos in all"), "{said}");
    // pairs that someone names
    let pairs = root.join("deep/pairs.jsonl");
    let member = |i: usize| json!({"set": "all", "line": i + 1, "image": format!("../sets/photos/{i}"), "label": null});
    let pair = |a, b| json!({"cosine": 0.9, "a": member(a), "b": member(b), "removed": false}).to_string();
    fs::write(&pairs, [pair(4, 5), pair(5, 6), pair(6, 7)].join("\n")).unwrap();
    let more = ["split", set, "--out", out_text, "--overwrite", "--json", "--pairs", pairs.to_str().unwrap()];
    let (_, said, stderr) = vlm(&more);
    let said: Value = serde_json::from_str(&said).unwrap_or_else(|_| panic!("{stderr}"));
    assert_eq!(said["groups"], json!({"groups": 5, "samples": 12}));
    fs::write(&pairs, "{\"cosine\": 1}\n").unwrap();
    let (code, _, said) = vlm(&more);
    let wanted = "pairs.jsonl, line 1: is no pair of photos as vlm data dedupe writes them: missing field `a`\n";
    assert!(code == Some(1) && said.ends_with(wanted), "{said}");
    fs::write(&pairs, "cosine\n").unwrap();
    let (_, _, said) = vlm(&more);
    assert!(said.contains("writes them: not valid JSON: expected value (column 1)"), "{said}");
    let (code, _, said) = vlm(&["split", set, "--out", "x", "--test", "much"]);
    assert!(code == Some(2) && said.contains("wanted a share such as 0.2 or 20%"), "{said}");
}

#[test]
fn photos_that_cannot_be_read_stop_a_split_or_are_left_out() {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..6 {
        fs::write(dir.path().join(format!("{i}.png")), to_png(&picture(i, 40, 30)).unwrap()).unwrap();
    }
    let whole = fs::read(dir.path().join("3.png")).unwrap();
    fs::write(dir.path().join("3.png"), &whole[..whole.len() / 2]).unwrap();
    let line = |i| json!({"image": format!("{i}.png"), "label": "a"}).to_string() + "\n";
    let set = dir.path().join("s.jsonl");
    let lines = (0..6).map(line).collect::<String>();
    fs::write(&set, &lines).unwrap();
    let out = dir.path().join("o");
    let arguments = ["split", set.to_str().unwrap(), "--out", out.to_str().unwrap(), "--test", "2"];
    let (code, _, said) = vlm(&arguments);
    assert!(code == Some(1) && said.contains("s.jsonl, line 4: ") && said.contains("3.png"), "{said}");
    let (code, said, stderr) = vlm(&[&arguments[..], &["--skip-bad", "--json"]].concat());
    assert_eq!(code, Some(0), "{stderr}");
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&said["train"]["samples"], &said["left_out"]), (&json!(3), &json!(1)));
    assert!(stderr.starts_with("vlm: left out: ") && stderr.contains("3.png"), "{stderr}");
    // a line that is no UTF-8 is named, or left out as others are
    fs::write(&set, [lines.as_bytes(), b"{\"image\": \"0.png\", \"label\": \"d\xe9\"}\n"].concat()).unwrap();
    let (code, _, said) = vlm(&[&arguments[..], &["--overwrite"]].concat());
    assert!(code == Some(1) && said.contains("s.jsonl, line 7: not UTF-8"), "{said}");
    let (code, said, stderr) = vlm(&[&arguments[..], &["--overwrite", "--skip-bad", "--json"]].concat());
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(serde_json::from_str::<Value>(&said).unwrap()["left_out"], 2);
    let (_, said, _) = vlm(&[&arguments[..], &["--overwrite", "--skip-bad"]].concat());
    assert!(said.contains("\n2 samples that cannot be read are left out\nin "), "{said}");
}

/// Of classes of one photo each the first by name are put into the test, since every class has its share of it: 14 of 24
/// photos are 7 of the 12 dents and 7 of the 12 other classes.
#[test]
fn classes_that_no_model_can_learn_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let line = |i: usize| {
        fs::write(dir.path().join(format!("{i}.png")), to_png(&picture(i, 64, 48)).unwrap()).unwrap();
        let label = if i < 12 { "dent".into() } else { format!("k{i}") };
        json!({"image": format!("{i}.png"), "label": label}).to_string() + "\n"
    };
    let (set, out) = (dir.path().join("s.jsonl"), dir.path().join("o"));
    let lines: Vec<String> = (0..24).map(line).collect();
    fs::write(&set, lines.concat()).unwrap();
    let arguments =
        |test| ["split", set.to_str().unwrap(), "--out", out.to_str().unwrap(), "--overwrite", "--test", test];
    let (code, _, said) = vlm(&arguments("14"));
    let wanted = "7 classes are in validation or test and not in train, where no model can learn them: \"k12\", \"k13\", \
                  \"k14\", \"k15\", \"k16\" and 2 more\n";
    assert!(code == Some(0) && said.contains(wanted), "{said}");
    // of 13 photos 7 are 6 of the 12 dents and the other
    fs::write(&set, lines[..13].concat()).unwrap();
    let (_, _, said) = vlm(&arguments("7"));
    assert!(
        said.contains("1 class is in validation or test and not in train, where no model can learn it: \"k12\"\n"),
        "{said}"
    );
    // where nothing is to learn from, nothing is missing there
    let (_, _, said) = vlm(&arguments("13"));
    assert!(!said.contains("not in train"), "{said}");
}

/// 猫 takes two columns of a terminal.
#[test]
fn counts_stand_below_each_other_whatever_the_labels() {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..4 {
        fs::write(dir.path().join(format!("{i}.png")), to_png(&picture(i, 40, 30)).unwrap()).unwrap();
    }
    let line = |i: usize| {
        let label = if i.is_multiple_of(2) { "猫猫猫猫" } else { "a" };
        json!({"image": format!("{i}.png"), "label": label}).to_string() + "\n"
    };
    let set = dir.path().join("s.jsonl");
    fs::write(&set, (0..4).map(line).collect::<String>()).unwrap();
    let out = dir.path().join("o");
    let (code, said, stderr) = vlm(&["split", set.to_str().unwrap(), "--out", out.to_str().unwrap(), "--test", "2"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(said.lines().next(), Some("              train validation       test"));
    for row in ["a                 1          0          1", "猫猫猫猫          1          0          1"] {
        assert!(said.contains(&format!("\n{row}\n")), "{said}");
    }
}

/// It is shortened there, and stands below the table as far as a sentence goes.
#[test]
fn a_label_as_long_as_a_book_leaves_the_tables_narrow() {
    let dir = tempfile::tempdir().unwrap();
    let line = |i: usize| {
        fs::write(dir.path().join(format!("{i}.png")), to_png(&picture(i, 40, 30)).unwrap()).unwrap();
        let label = if i.is_multiple_of(2) { "a scratch ".repeat(10_000) } else { "a".into() };
        json!({"image": format!("{i}.png"), "label": label}).to_string() + "\n"
    };
    let set = dir.path().join("s.jsonl");
    fs::write(&set, (0..4).map(line).collect::<String>()).unwrap();
    let (set, out) = (set.to_str().unwrap(), dir.path().join("o"));
    for arguments in [&["split", set, "--out", out.to_str().unwrap(), "--test", "2"][..], &["show", set]] {
        let (code, said, stderr) = vlm(arguments);
        assert_eq!(code, Some(0), "{stderr}");
        let (table, legend) = said.split_once("\nnames in full:\n").expect("a legend");
        assert!(table.lines().all(|line| line.chars().count() < 100), "{table}");
        assert!(table.contains("\n1 a ") && table.contains("\n2 a scratch a scratch "), "{table}");
        let name = legend.lines().next().unwrap();
        assert!(name.starts_with("2 a scratch ") && (4000..4100).contains(&name.chars().count()), "{name}");
    }
}

/// A path that JSON cannot hold is said, and not written as another one.
#[test]
fn paths_that_are_no_utf_8_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let odd = dir.path().join(std::ffi::OsStr::from_bytes(b"\xff"));
    fs::create_dir(&odd).unwrap();
    fs::write(odd.join("a.png"), to_png(&picture(1, 40, 30)).unwrap()).unwrap();
    let set = odd.join("s.jsonl");
    fs::write(&set, json!({"image": "a.png", "label": "a"}).to_string()).unwrap();
    let [here, there] = [&odd, dir.path()].map(|folder| folder.canonicalize().unwrap());
    let said = "\u{fffd}/a.png: the path is not UTF-8, which JSON cannot hold; rename it";
    let lines = Lines::read(&set).unwrap();
    assert_eq!(lines.moved(1, &here).unwrap(), fs::read_to_string(&set).unwrap());
    assert!(lines.moved(1, &there).unwrap_err().to_string().ends_with(said));
    let photos = [Photo { path: here.join("a.png"), class: "a".into() }];
    assert_eq!(import::lines(&photos, None, &here).unwrap(), [r#"{"image":"a.png","label":"a"}"#]);
    assert!(import::lines(&photos, None, &there).unwrap_err().to_string().ends_with(said));
    let set = read_dataset(&set, Some("What?"), OnBad::Fail).unwrap();
    let classes = Classes { names: vec!["a".into()], several: false };
    assert!(classes.judge(&set.samples[0], "a".into()).unwrap_err().to_string().ends_with(said));
    assert!(written(&here.join("a.png"), &there).unwrap_err().to_string().ends_with(said));
    assert_eq!(written(&here.join("a.png"), &here).unwrap(), "a.png");
    assert_eq!(written(Path::new("data:0123"), &here).unwrap(), "data:0123");
}

/// What gives its lines once has given them to whoever read the set.
#[test]
fn what_is_no_plain_file_is_not_read_again() {
    let error = Lines::read(Path::new("/dev/null")).err().unwrap().to_string();
    assert_eq!(error, "/dev/null: has to be read twice here, which only a plain file can be: write its lines to one");
}
