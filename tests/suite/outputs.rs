//! What a command writes: over nothing of anybody's, over nothing that it reads; and stderr may go nowhere.

use crate::commands::{arguments, fails, image, program, single, works};
use crate::folders::entries;
use crate::golden_cases::cases;
use serde_json::json;
use std::fs::{self, File};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// A folder with a photo in it, a dataset of this photo, and a place for results.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let place = Place { dir: tempfile::tempdir().unwrap() };
        fs::copy(image(), place.at("photo.png")).unwrap();
        place.write("set.jsonl", &format!("{}\n", json!({"image": "photo.png", "label": "dent"})));
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.at(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.at(name)).unwrap()
    }
}

/// A line that fails with `words` and leaves `file` as it was.
#[track_caller]
fn spares(file: &Path, line: &str, paths: &[&Path], words: &[&str]) {
    let before = fs::read(file).unwrap();
    fails(line, paths, words);
    assert_eq!(fs::read(file).unwrap(), before, "{line}");
}

#[test]
fn files_of_somebody_are_not_replaced() {
    let (place, model) = (Place::new(), single());
    let messages = cases().join("one_image.json");
    let (photo, set) = (place.at("photo.png"), place.at("set.jsonl"));
    let mine = place.write("mine.jpg", "a photo that was not backed up");
    let taken = ["mine.jpg", "is there already", "--overwrite"];
    spares(&mine, "preprocess --image {} --out {}", &[&photo, &mine], &taken);
    spares(&mine, "dump --model {} --messages {} --out {}", &[&model, &messages, &mine], &taken);
    spares(&mine, "data show {} --sheet {}", &[&set, &mine], &taken);
    let train = "train --model {} --data {} --out {} --prompt Which? --rank 1 --max-steps 1 --dump-first-gradients {}";
    let run = place.at("run");
    spares(&mine, train, &[&model, &set, &run, &mine], &taken);
    spares(&mine, &format!("{train} --resume"), &[&model, &set, &run, &mine], &taken);
    assert!(!run.exists());
    // one picture after another to the same file
    let patches = place.at("patches.safetensors");
    works("preprocess --image {} --out {}", &[&photo, &patches]);
    works("preprocess --image {} --out {}", &[&photo, &patches]);
    // another command's tensors may have cost more
    let tensors = place.at("tensors.safetensors");
    works("dump --model {} --messages {} --out {}", &[&model, &messages, &tensors]);
    spares(&tensors, "preprocess --image {} --out {}", &[&photo, &tensors], &["tensors.safetensors", "--overwrite"]);
    works("dump --model {} --messages {} --out {}", &[&model, &messages, &tensors]);
    spares(&patches, "dump --model {} --messages {} --out {}", &[&model, &messages, &patches], &["--overwrite"]);
    // tensors of the same names that another program wrote, as vlm verify reads them
    let reference = place.at("reference.safetensors");
    fs::copy(cases().join("single.one_image.safetensors"), &reference).unwrap();
    spares(&reference, "dump --model {} --messages {} --out {}", &[&model, &messages, &reference], &["--overwrite"]);
    // gradients of a run that was stopped in its first step are written again
    let gradients = place.at("gradients.safetensors");
    works(train, &[&model, &set, &run, &gradients]);
    let first = place.read("gradients.safetensors");
    spares(&gradients, train, &[&model, &set, &place.at("other"), &gradients], &["--overwrite"]);
    let begun = format!("{train} --resume");
    works(&begun, &[&model, &set, &place.at("begun"), &gradients]);
    assert_eq!(place.read("gradients.safetensors"), first);
    // told to, all of them do
    for (line, paths) in [
        ("preprocess --image {} --overwrite --out {}", &[&photo, &mine][..]),
        ("dump --model {} --messages {} --overwrite --out {}", &[&model, &messages, &mine]),
        ("data show {} --overwrite --sheet {}", &[&set, &mine]),
    ] {
        fs::write(&mine, "mine").unwrap();
        works(line, &paths.iter().map(|p| p.as_path()).collect::<Vec<_>>());
        assert_ne!(place.read("mine.jpg"), b"mine", "{line}");
    }
    works(&format!("{train} --overwrite"), &[&model, &set, &run, &mine]);
    assert_eq!(place.read("mine.jpg"), first);
}

/// A label that would paint a terminal and clear it.
const PAINT: &str = "\u{1b}[31mred\r\u{9b}2J\nand on";

/// Both streams of a line that works, without any control character but ends of lines.
#[track_caller]
fn tame(line: &str, paths: &[&Path]) -> [String; 2] {
    let done = program().args(arguments(line, paths)).output().unwrap();
    assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
    [done.stdout, done.stderr].map(|bytes| {
        let text = String::from_utf8(bytes).unwrap();
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{line}: {text:?}");
        text
    })
}

#[test]
fn escape_codes_of_a_file_reach_no_terminal() {
    let (place, model) = (Place::new(), single());
    let lines = [("photo.png", PAINT), ("photo.png", "dent"), ("gone\u{1b}[2J.png", "dent")];
    let lines = lines.map(|(image, label)| json!({"image": image, "label": label}).to_string());
    let set = place.write("set.jsonl", &lines.join("\n"));
    let shown = "\\u001b[31mred\\r\\u009b2J\\nand on";
    let [said, _] = tame("data show {}", &[&set]);
    assert!(said.contains(&format!("\n{shown}  ")) && said.contains("gone\\u001b[2J.png"), "{said}");
    // what a program reads is exact
    let json = works("data show {} --json", &[&set]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["classes"][PAINT], 1);
    let [said, notices] = tame("data split {} --out {} --train 2 --skip-bad", &[&set, &place.at("split")]);
    assert!(said.contains(&format!("\n{shown}  ")) && notices.contains("gone\\u001b[2J.png"), "{said}{notices}");
    let train = String::from_utf8(place.read("split/train.jsonl")).unwrap();
    let label = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["label"].clone();
    assert!(train.lines().any(|line| label(line) == PAINT), "{train}");
    let pairs = "data dedupe --model {} {} --out {} --threshold 1 --skip-bad";
    let [said, _] = tame(pairs, &[&model, &set, &place.at("clean")]);
    assert!(said.contains(&format!("called {shown} and dent\n")), "{said}");
    let score = "eval --model {} --data {} --out {} --prompt Which? --skip-bad";
    let [said, _] = tame(score, &[&model, &set, &place.at("scores")]);
    assert!(said.contains(&format!("\n{shown}  ")), "{said}");
}

#[test]
fn a_sentence_quotes_no_more_than_one_can_read() {
    let place = Place::new();
    let path = format!("\u{1b}[2J{}.png", "x".repeat(5_000_000));
    let table = place.write("table.csv", &format!("image,label\nphoto.png,dent\n{path},dent\n"));
    let out = place.at("out.jsonl");
    fails(
        "data import {} --out {}",
        &[&table, &out],
        &["table.csv, line 3: ", "\\u001b[2Jxxx", "xx…xx", "--images names"],
    );
    let lines = [("photo.png", "dent"), (&path, "dent")];
    let lines = lines.map(|(image, label)| json!({"image": image, "label": label}).to_string());
    let set = place.write("long.jsonl", &lines.join("\n"));
    let both = [
        tame("data import {} --out {} --skip-bad", &[&table, &out]),
        tame("data show {}", &[&set]),
        tame("data split {} --out {} --skip-bad", &[&set, &place.at("split")]),
    ];
    for text in both.iter().flatten() {
        assert!(text.len() < 10_000, "{} bytes", text.len());
    }
    let refused = program().args(arguments("data import {} --out {} --overwrite", &[&table, &out])).output().unwrap();
    assert!(refused.stderr.len() < 10_000, "{} bytes", refused.stderr.len());
}

#[test]
fn only_plain_files_are_replaced_and_links_stay() {
    let (place, photo) = (Place::new(), image());
    let pipe = place.at("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for more in ["", " --overwrite"] {
        let line = format!("preprocess --image {{}} --out {{}}{more}");
        fails(&line, &[&photo, &pipe], &["pipe: is a pipe, and only a plain file can be written"]);
        assert!(fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo(), "{line}");
        fails(&line, &[&photo, place.dir.path()], &["is a folder, and only a plain file"]);
    }
    fails("data show {} --sheet {} --overwrite", &[&place.at("set.jsonl"), &pipe], &["is a pipe"]);
    // a folder that is a pipe is not waited for
    let train = "train --model {} --data {} --out {} --prompt Which? --rank 1 --max-steps 1";
    for how in ["", " --resume", " --overwrite"] {
        let paths: &[&Path] = &[&single(), &place.at("set.jsonl"), &pipe];
        fails(&format!("{train}{how}"), paths, &["cannot use as a folder", "pipe: not a directory"]);
    }
    let (file, link) = (place.write("deep/mine", "mine"), place.at("link"));
    std::os::unix::fs::symlink("deep/mine", &link).unwrap();
    spares(&file, "preprocess --image {} --out {}", &[&photo, &link], &["is there already"]);
    works("preprocess --image {} --out {} --overwrite", &[&photo, &link]);
    assert!(link.is_symlink());
    assert_ne!(place.read("deep/mine"), b"mine");
    assert_eq!(entries(&place.at("deep")), ["mine"]);
}

#[test]
fn what_is_read_is_not_replaced_under_any_name() {
    let (place, model) = (Place::new(), single());
    let (photo, set) = (place.at("photo.png"), place.at("set.jsonl"));
    std::os::unix::fs::symlink(place.dir.path(), place.at("link")).unwrap();
    let (linked_photo, linked_set) = (place.at("link/photo.png"), place.at("link/set.jsonl"));
    let read = ["is read by this command"];
    spares(&photo, "preprocess --image {} --overwrite --out {}", &[&photo, &linked_photo], &read);
    spares(&set, "data show {} --overwrite --sheet {}", &[&set, &linked_set], &read);
    spares(&photo, "data show {} --overwrite --sheet {}", &[&set, &linked_photo], &read);
    let chat = json!({"messages": [{"role": "user", "content": [{"type": "image", "image": "photo.png"}]}]});
    let chat = place.write("chat.json", &chat.to_string());
    let dump = "dump --model {} --messages {} --overwrite --out {}";
    spares(&chat, dump, &[&model, &chat, &place.at("link/chat.json")], &read);
    spares(&photo, dump, &[&model, &chat, &photo], &read);
    let weights = model.join("model.safetensors");
    spares(&weights, dump, &[&model, &chat, &weights], &["is part of", "which this command reads"]);

    let table = place.write("table.csv", "image,label\nphoto.png,dent\n");
    spares(&table, "data import {} --overwrite --out {}", &[&table, &place.at("link/table.csv")], &read);
    spares(&photo, "data import {} --overwrite --out {}", &[&table, &photo], &read);
    for name in ["train", "validation", "test"] {
        let part =
            place.write(&format!("s/{name}.jsonl"), &fs::read_to_string(&set).unwrap().replace("photo", "../photo"));
        spares(&part, "data split {} --out {} --test 1 --overwrite", &[&part, &place.at("link/s")], &read);
    }
    let pairs = place.write("p/test.jsonl", "");
    let split = "data split {} --pairs {} --out {} --test 1 --overwrite";
    spares(&pairs, split, &[&set, &pairs, &place.at("p")], &read);
    let other = place.write("s/other.jsonl", &fs::read_to_string(&set).unwrap().replace("photo", "../photo"));
    let train = place.at("s/train.jsonl");
    let dedupe = "data dedupe --model {} {} {} --out {} --threshold 0.9";
    spares(&train, &format!("{dedupe} --overwrite"), &[&model, &train, &other, &place.at("link/s")], &read);
    // a cleaned set would take the place of a file that no search left there
    let there = place.write("clean/other.jsonl", "mine");
    spares(&there, dedupe, &[&model, &train, &other, &place.at("clean")], &["is there already", "--overwrite"]);
    assert_eq!(entries(&place.at("clean")), ["other.jsonl"]);

    let predictions = place.write("scores/predictions.jsonl", &fs::read_to_string(&set).unwrap());
    let eval = "eval --model {} --data {} --out {} --prompt Which? --overwrite";
    spares(&predictions, eval, &[&model, &predictions, &place.at("link/scores")], &read);
    works("eval --model {} --data {} --out {} --prompt Which?", &[&model, &set, &place.at("base")]);
    let summary = place.at("base/summary.json");
    spares(&summary, "report {} --overwrite --out {}", &[&place.at("base"), &summary], &["is part of"]);
    // what lies in no source, under any ending: a photo, and what a comparison names
    works("eval --model {} --data {} --out {} --prompt Which?", &[&model, &set, &place.at("other")]);
    works("compare {} {} --out {}", &[&place.at("base"), &place.at("other"), &place.at("compared")]);
    let page = place.at("photo.html");
    std::os::unix::fs::symlink(&photo, &page).unwrap();
    for photo in [&photo, &linked_photo, &page] {
        spares(photo, "report {} --overwrite --out {}", &[&place.at("base"), photo], &read);
    }
    spares(&summary, "report {} --overwrite --out {}", &[&place.at("compared"), &summary], &read);
    // a page may lie among what it shows
    for line in ["report {} --out {}", "report {} --overwrite --out {}"] {
        works(line, &[&place.at("base"), &place.at("base/page.html")]);
    }

    let run = place.at("run");
    let train = "train --model {} --data {} --out {} --prompt Which? --max-steps 1";
    works(&format!("{train} --rank 1"), &[&model, &set, &run]);
    let adapter = run.join("adapter_model.safetensors");
    spares(&adapter, &format!("{train} --overwrite --init-adapter {{}}"), &[&model, &set, &run, &run], &read);
    let gradients = format!("{train} --overwrite --dump-first-gradients {{}}");
    spares(&set, &gradients, &[&model, &set, &run, &linked_set], &read);
    let full = place.at("full");
    works(&format!("{train} --full"), &[&model, &set, &full]);
    let trained = full.join("model");
    spares(&trained.join("config.json"), &format!("{train} --full --overwrite"), &[&trained, &set, &full], &read);
    let inner = place.write("full/model/set.jsonl", &fs::read_to_string(&set).unwrap());
    let within = ["set.jsonl: is read by this command, and lies in", "full/model, which it fills"];
    spares(&inner, &format!("{train} --rank 1 --overwrite"), &[&model, &inner, &full], &within);
}

/// What a run calls the files in its folder.
const RUN_FILES: [&str; 6] = [
    "metrics.jsonl",
    "run.json",
    "config.toml",
    "events.out.tfevents.run.vlm",
    "adapter_config.json",
    "adapter_model.safetensors",
];

/// A set, a recipe or an adapter may be called as a run calls its own files, and then lies in no run's folder.
#[test]
fn a_run_replaces_no_set_recipe_or_adapter_that_it_reads() {
    let (place, model) = (Place::new(), single());
    let (set, lines) = (place.at("set.jsonl"), fs::read_to_string(place.at("set.jsonl")).unwrap());
    std::os::unix::fs::symlink(place.dir.path(), place.at("link")).unwrap();
    let train = "train --model {} --data {} --out {} --prompt Which? --rank 1 --max-steps 1";
    let read = "is read by this command";
    let below = ["checkpoints/step-00000001.safetensors", "checkpoints/set.jsonl"];
    for (i, name) in RUN_FILES.into_iter().chain(below).enumerate() {
        let (folder, linked) = (format!("sets{i}"), place.at(&format!("link/sets{i}")));
        let taken = place.write(&format!("{folder}/{name}"), &lines.replace("photo.png", "../photo.png"));
        for how in ["", " --resume", " --overwrite"] {
            spares(&taken, &format!("{train}{how}"), &[&model, &taken, &linked], &[name, read]);
            let line = format!("{train} --eval-data {{}}{how}");
            spares(&taken, &line, &[&model, &set, &linked, &taken], &[name, read]);
        }
        assert_eq!(entries(&place.at(&folder)).len(), 1, "{name}");
    }
    let recipe = place.write("recipe/config.toml", "# what worked last week\nrank = 1\n");
    let line = "train --config {} --model {} --data {} --out {} --prompt Which? --max-steps 1";
    for how in [" --resume", " --overwrite"] {
        let paths: &[&Path] = &[&recipe, &model, &set, &place.at("link/recipe")];
        spares(&recipe, &format!("{line}{how}"), paths, &["config.toml", read]);
    }
    let (first, second) = (place.at("first"), place.at("second"));
    works(train, &[&model, &set, &first]);
    fs::create_dir(&second).unwrap();
    fs::copy(first.join("adapter_config.json"), second.join("adapter_config.json")).unwrap();
    let from = "train --model {} --data {} --out {} --prompt Which? --max-steps 1 --overwrite --init-adapter {}";
    spares(&second.join("adapter_config.json"), from, &[&model, &set, &second, &second], &[read]);
    // of its own settings a run is done again, in its place too
    let config = first.join("config.toml");
    let before = fs::read(&config).unwrap();
    works("train --config {} --out {} --resume", &[&config, &first]);
    works("train --config {} --out {} --overwrite", &[&config, &first]);
    assert_eq!(fs::read(&config).unwrap(), before);
}

/// Gradients are written when a step is computed: what they cannot be written to is said before.
#[test]
fn first_gradients_have_a_file_of_their_own() {
    let (place, model) = (Place::new(), single());
    let (photo, set) = (place.at("photo.png"), place.at("set.jsonl"));
    std::os::unix::fs::symlink(place.dir.path(), place.at("link")).unwrap();
    let train = "train --model {} --data {} --out {} --prompt Which? --rank 1 --max-steps 1 --dump-first-gradients {}";
    let run = place.at("run");
    let below = ["checkpoints/x.safetensors", "model/x.safetensors", "model.new"];
    let refused = |file: &str, wanted: &str| {
        let file = place.at(file);
        for how in ["", " --resume", " --overwrite"] {
            fails(&format!("{train}{how}"), &[&model, &set, &run, &file], &[wanted]);
            assert!(!run.exists(), "{file:?}");
        }
    };
    for name in RUN_FILES.into_iter().chain(below) {
        refused(&format!("run/{name}"), "is a name that the run itself uses");
        refused(&format!("link/run/{name}"), "is a name that the run itself uses");
    }
    for name in ["none/x.safetensors", "run/none/x.safetensors", "set.jsonl/x.safetensors"] {
        refused(name, "there is no folder to write it into");
    }
    for name in ["run", "link/run", "x.safetensors/", "x.safetensors/.", "link/", "link"] {
        refused(name, "is a folder");
    }
    // of either set
    let plain = place.write("plain.jsonl", "{\"image\": \"plain.png\", \"label\": \"dent\"}\n");
    let second = place.at("plain.png");
    fs::copy(image(), &second).unwrap();
    let both = format!("{train} --overwrite --eval-data {{}}");
    for photo in [&photo, &second, &place.at("link/photo.png")] {
        spares(photo, &both, &[&model, &set, &run, photo, &plain], &["is read by this command"]);
    }
    assert!(!run.exists());
    // in the run's folder they may lie
    works(train, &[&model, &set, &run, &run.join("gradients.safetensors")]);
    assert!(run.join("gradients.safetensors").is_file());
}

/// A sweep fills a folder of its own, with nothing in it that it reads.
#[test]
fn a_sweep_replaces_nothing_that_it_reads() {
    let (place, model) = (Place::new(), single());
    let set = fs::read_to_string(place.at("set.jsonl")).unwrap();
    place.write("validation.jsonl", &set);
    let config = |file: &str, train: &Path, out: &str| {
        let validation = place.at("validation.jsonl");
        let text = format!(
            "out = {:?}\nsearch = \"grid\"\n[train]\nmodel = {model:?}\ndata = {train:?}\neval-data = {validation:?}\n\
             [vary]\nrank = [1, 2]\n",
            place.at(out)
        );
        place.write(file, &text)
    };
    std::os::unix::fs::symlink(place.dir.path(), place.at("link")).unwrap();
    let mine = place.write("mine/leaderboard.csv", "mine");
    let apart = config("sweep.toml", &place.at("set.jsonl"), "mine");
    spares(&mine, "sweep --config {}", &[&apart], &["mine: holds files that are no sweep's"]);
    assert_eq!(entries(&place.at("mine")), ["leaderboard.csv"]);
    let board = place.write("a/leaderboard.json", &set);
    place.write("a/trials.json", "{}");
    let file = config("sweep.toml", &board, "link/a");
    spares(&board, "sweep --config {}", &[&file], &["leaderboard.json: is read by this command"]);
    let itself = config("b/trials.json", &place.at("set.jsonl"), "b");
    spares(&itself, "sweep --config {}", &[&itself], &["trials.json: is read by this command"]);
    let log = place.write("c/trial-002/metrics.jsonl", &set);
    place.write("c/trials.json", "{}");
    let within = ["metrics.jsonl: is read by this command, and lies in", "trial-002, which it fills"];
    let file = config("sweep.toml", &log, "link/c");
    spares(&log, "sweep --config {}", &[&file], &within);
}

/// A bench fills a folder of its own, and uses again what it left there.
#[test]
fn a_bench_writes_into_no_folder_of_others() {
    let place = Place::new();
    let mine = place.write("mine/train.jsonl", "mine");
    let tiny =
        "bench one-dollar --shape tiny --photos 3 --test 3 --size 64x48 --epochs 1 --rank 1 --device cpu --out {}";
    spares(&mine, tiny, &[&place.at("mine")], &["holds files that are no bench one-dollar's"]);
    assert_eq!(entries(&place.at("mine")), ["train.jsonl"]);
    let (photo, out) = (place.at("photo.png"), place.at("bench"));
    spares(&photo, &format!("{tiny} --csv {{}}"), &[&out, &photo], &["is no table of this bench"]);
    assert!(!out.exists());
    let line = format!("{tiny} --csv {{}}");
    let table = place.at("bench.csv");
    works(&line, &[&out, &table]);
    let made = || {
        ["random-tiny/model.safetensors", "photos-64x48-3-3"]
            .map(|name| fs::metadata(out.join(name)).unwrap().modified().unwrap())
    };
    let first = made();
    works(&line, &[&out, &table]);
    assert_eq!(made(), first);
    let lines = fs::read_to_string(&table).unwrap();
    let heads = lines.lines().filter(|l| l.starts_with("date,device,")).count();
    assert_eq!((heads, lines.lines().count()), (1, 5), "{lines}");
}

/// Where stderr takes nothing (a full disk, a reader that has gone), what would be said is lost and nothing else.
#[test]
fn nothing_hangs_on_stderr() {
    let (place, model) = (Place::new(), cases().join("uneven"));
    let data = cases().join("train.jsonl");
    let run = |line: &str, paths: &[&Path], stderr: Stdio| {
        let mut command = program();
        command.args(arguments(line, paths)).env("VLM_LOG", "trace").stdout(Stdio::piped()).stderr(stderr);
        let mut child = command.spawn().unwrap();
        // the other end of a pipe
        drop(child.stderr.take());
        let done = child.wait_with_output().unwrap();
        (done.status.code(), String::from_utf8(done.stdout).unwrap())
    };
    let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    let train = "train --model {} --data {} --out {} --epochs 3 --batch-size 2 --rank 2 --warmup-steps 9";
    let adapter = |out: &Path| fs::read(out.join("adapter_model.safetensors")).unwrap();
    let outs = ["null", "full", "pipe"].map(|name| place.at(name));
    for (out, stderr) in outs.iter().zip([Stdio::null(), full(), Stdio::piped()]) {
        let (code, said) = run(train, &[&model, &data, out], stderr);
        assert_eq!(code, Some(0), "{out:?} {said}");
        assert!(said.starts_with("6 steps, loss"), "{said}");
        assert_eq!(adapter(out), adapter(&outs[0]));
        assert_eq!(fs::read_to_string(out.join("metrics.jsonl")).unwrap().lines().count(), 6);
    }
    // what fails, fails with its own code
    let absent = place.at("absent");
    let scores = place.at("scores");
    for (line, paths, want) in [
        ("eval --model {} --data {} --out {}", &[&model, &data, &scores][..], 0),
        ("inspect {}", &[&absent], 1),
        ("train --model {} --data {} --out {} --learning-rate -1", &[&model, &data, &absent], 2),
        ("paint", &[], 2),
    ] {
        let paths: Vec<&Path> = paths.iter().map(|p| p.as_path()).collect();
        assert_eq!(run(line, &paths, full()).0, Some(want), "{line}");
    }
}
