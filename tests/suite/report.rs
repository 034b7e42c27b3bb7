//! The page: what stands in it, that text of the data stays text, and, in a real Chromium, that it works.

use crate::support::random::Random;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use vlm::base::Result;
use vlm::classify::folder::write_records;
use vlm::classify::metrics::metrics;
use vlm::classify::records::Record;
use vlm::io::json::write as write_json;
use vlm::report::{Built, Report};

/// What somebody could call a class or a file to break the page.
const HOSTILE: [&str; 4] = [
    "</script><script>window.hacked=1</script>",
    "\"><img src=x onerror=window.hacked=2>",
    "<!--<script>&lt;b&gt;",
    "' onclick='window.hacked=3' x='\u{2028}",
];

/// A small photo, another for each number.
fn photo(path: &Path, number: usize) {
    let shade = |x: u32, y: u32| image::Rgb([(x * 7 + number as u32 * 31) as u8, (y * 9) as u8, (number * 53) as u8]);
    // every third stands upright
    let (w, h) = if number % 3 == 1 { (18, 32) } else { (24, 18) };
    let picture = image::RgbImage::from_fn(w, h, shade);
    picture.save_with_format(path, image::ImageFormat::Png).unwrap();
}

/// An evaluation folder of `n` photos with the names that `names` gives.
fn evaluation(dir: &Path, classes: &[String], photos: &[(String, usize)], seed: u64, right: usize) {
    fs::create_dir_all(dir).unwrap();
    let mut random = Random::new(seed);
    let record = |(i, (image, class)): (usize, &(String, usize))| {
        let said = if random.below(100) < right { *class } else { random.below(classes.len()) };
        // the widest share that there is
        let sure = if i == 0 { 1.0 } else { 0.6 };
        let odds: BTreeMap<String, f64> = classes
            .iter()
            .enumerate()
            .map(|(c, name)| (name.clone(), if c == said { sure } else { (1.0 - sure) / 3.0 }))
            .collect();
        Record {
            line: i + 1,
            image: Some(image.clone()),
            label: classes[*class].clone(),
            prediction: classes[said].clone(),
            right: said == *class,
            probabilities: Some(odds),
            answer: (i % 5 == 0).then(|| format!("{} {}", HOSTILE[i % 4], classes[said])),
            ..Record::default()
        }
    };
    let records: Vec<Record> = photos.iter().enumerate().map(record).collect();
    write_records(&dir.join("predictions.jsonl"), &records).unwrap();
    let summary = json!({"model": HOSTILE[0], "data": "set.jsonl", "metrics": metrics(classes, &records), "seconds": 3.5,
        "images_per_second": 7.0, "training_samples": seed * 100});
    write_json(&dir.join("summary.json"), &summary).unwrap();
}

/// Two evaluations, a run and pairs, all with hostile names; the sources of a page.
fn everything(dir: &Path, n: usize) -> Vec<PathBuf> {
    named(dir, n, &HOSTILE.map(String::from))
}

/// The same with other classes.
fn named(dir: &Path, n: usize, classes: &[String]) -> Vec<PathBuf> {
    fs::create_dir_all(dir.join("photos")).unwrap();
    let photos: Vec<(String, usize)> = (0..n)
        .map(|i| {
            // a slash would be a folder
            let name = format!("{i:03} {}.png", HOSTILE[i % 4].replace('/', "|"));
            photo(&dir.join("photos").join(&name), i);
            (format!("../photos/{name}"), i % classes.len())
        })
        .collect();
    evaluation(&dir.join("base"), classes, &photos, 1, 20);
    evaluation(&dir.join("tuned"), classes, &photos, 2, 85);
    let run = dir.join("run <b>");
    fs::create_dir_all(&run).unwrap();
    let step = |k: usize| {
        let loss = 2.0 / (k as f64) + 0.1;
        json!({"step": k, "epoch": 0.1, "loss": loss, "lr": 1e-4 * (1.0 - k as f64 / 50.0), "grad_norm": 1.0, "seconds": 0.5})
    };
    let mut lines: Vec<Value> = (1..=50).map(step).collect();
    lines.push(json!({"step": 50, "epoch": 1.0, "eval_accuracy": 0.8, "eval_correct": 8, "eval_samples": 10}));
    lines.push(json!({"step": 51, "loss": null, "lr": 0.0}));
    let text: Vec<String> = lines.iter().map(Value::to_string).collect();
    fs::write(run.join("metrics.jsonl"), text.join("\n")).unwrap();
    let member = |set: &str, i: usize| json!({"set": set, "line": i, "image": photos[i].0.replacen("../", "", 1), "label": HOSTILE[1]});
    let pair = json!({"cosine": 0.98, "a": member("train", 0), "b": member("test", 1), "removed": true});
    fs::write(dir.join("pairs.jsonl"), pair.to_string()).unwrap();
    ["base", "tuned", "run <b>", "pairs.jsonl"].map(|name| dir.join(name)).to_vec()
}

fn build(sources: &[PathBuf], title: Option<&str>, out: &Path) -> Result<Built> {
    Report::read(sources)?.write(title, out, &mut |_, _| ())
}

#[test]
fn a_page_holds_everything_and_nothing_of_the_data_as_markup() {
    let dir = tempfile::tempdir().unwrap();
    let sources = everything(dir.path(), 12);
    let out = dir.path().join("page.html");
    let built = build(&sources, Some(HOSTILE[0]), &out).unwrap();
    assert_eq!((built.evaluations, built.runs, built.photos, built.missing.len()), (2, 1, 12, 0));
    let page = fs::read_to_string(&out).unwrap();
    assert_eq!(page.len() as u64, built.bytes);
    for id in ["summary", "comparison", "confusion", "classes", "training", "curve", "leaks", "gallery"] {
        assert!(page.contains(&format!("<section id=\"{id}\"")), "{id}");
    }
    // the page's own three kinds of script, each closed once
    assert_eq!(page.matches("<script").count(), page.matches("</script>").count());
    assert_eq!(page.matches("<script>").count(), 1);
    for hostile in HOSTILE {
        assert!(!page.contains(hostile), "{hostile}");
    }
    // nothing from elsewhere
    for address in ["http://", "https://", "src=\"//", "@import", "url("] {
        assert!(!page.contains(address), "{address}");
    }
    let data = page.split("id=\"data\">").nth(1).unwrap().split("</script>").next().unwrap();
    let data: Value = serde_json::from_str(data).unwrap();
    assert_eq!(data["evals"], json!(["base", "tuned"]));
    assert_eq!(data["photos"][3]["l"], HOSTILE[3]);
    // a comparison's groups and a near-duplicate's mark are tags
    let tags = data["photos"][1]["t"].as_array().unwrap();
    assert!(tags.contains(&json!("near_duplicate")) && tags.len() == 2, "{tags:?}");
}

/// Two pairs of one removed photo are one photo; the axis has room for the uncertainty of what a law predicts.
#[test]
fn what_was_removed_is_counted_by_photo_and_the_curve_shows_its_whole_band() {
    let dir = tempfile::tempdir().unwrap();
    let mut sources = everything(dir.path(), 8);
    let pairs = dir.path().join("pairs.jsonl");
    let pair = fs::read_to_string(&pairs).unwrap();
    let mut second: Value = serde_json::from_str(&pair).unwrap();
    second["a"]["line"] = 3.into();
    fs::write(&pairs, format!("{pair}\n{second}\n")).unwrap();
    let size = |n: usize, mean: f64| json!({"samples": n, "runs": 2, "mean": mean, "lowest": mean - 0.01, "highest": mean + 0.01});
    let curve = json!({"sizes": [size(50, 0.42), size(100, 0.48)], "fit": {"law": {"a": 1.0, "b": 0.2, "c": 0.1}},
        "predictions": [{"samples": 100, "accuracy": 0.5, "interval": [0.45, 0.87]}], "warnings": []});
    sources.push(dir.path().join("curve.json"));
    write_json(sources.last().unwrap(), &curve).unwrap();
    let out = dir.path().join("page.html");
    build(&sources, None, &out).unwrap();
    let page = fs::read_to_string(&out).unwrap();
    assert!(page.contains("show the same: 2, of these across sets: 2."), "pairs");
    assert!(page.contains("Photos removed: 1."), "removed");
    let chart = page.split("aria-labelledby=\"learning-wide-t").nth(1).unwrap().split("</svg>").next().unwrap();
    assert!(chart.contains(">90 %</text>") && !chart.contains(">100 %</text>"), "{chart}");
}

#[test]
fn sources_that_are_none() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("page.html");
    let refused = |source: &Path| build(&[source.into()], None, &out).unwrap_err().to_string();
    assert!(refused(dir.path()).contains("holds no evaluation, run or comparison"));
    assert!(refused(&dir.path().join("absent.json")).contains("absent.json"));
    let odd = dir.path().join("odd.json");
    fs::write(&odd, "{}").unwrap();
    assert!(refused(&odd).contains("neither a file of pairs"));
    fs::create_dir(dir.path().join("begun")).unwrap();
    fs::write(dir.path().join("begun/predictions.jsonl"), "").unwrap();
    assert!(refused(&dir.path().join("begun")).contains("unfinished"));
    assert!(!out.exists());
}

#[test]
fn a_run_that_was_scored_in_its_own_folder_is_both() {
    let dir = tempfile::tempdir().unwrap();
    let sources = everything(dir.path(), 6);
    let (tuned, run) = (&sources[1], &sources[2]);
    for name in ["predictions.jsonl", "summary.json"] {
        fs::copy(tuned.join(name), run.join(name)).unwrap();
    }
    write_json(&run.join("run.json"), &json!({"steps": 50, "seconds": 25.0})).unwrap();
    let out = dir.path().join("page.html");
    let built = build(&[run.into()], None, &out).unwrap();
    assert_eq!((built.evaluations, built.runs, built.photos), (1, 1, 6));
    // what dedupe leaves is neither
    fs::remove_file(run.join("predictions.jsonl")).unwrap();
    fs::remove_file(run.join("metrics.jsonl")).unwrap();
    let refused = build(&[run.into()], None, &out).unwrap_err().to_string();
    assert!(refused.contains("holds no evaluation, run or comparison"), "{refused}");
}

#[test]
fn a_comparison_in_a_runs_own_folder_is_both() {
    let dir = tempfile::tempdir().unwrap();
    let sources = everything(dir.path(), 6);
    let (base, tuned, run) = (&sources[0], &sources[1], &sources[2]);
    // as vlm compare --out leaves it: the second's records, tagged, and no summary.json
    fs::copy(tuned.join("predictions.jsonl"), run.join("predictions.jsonl")).unwrap();
    write_json(&run.join("comparison.json"), &json!({"before": {"dir": base}, "after": {"dir": tuned}})).unwrap();
    let out = dir.path().join("page.html");
    let built = build(&[run.into()], None, &out).unwrap();
    assert_eq!((built.evaluations, built.runs, built.photos), (2, 1, 6));
}

#[test]
fn a_photo_that_is_gone_leaves_a_gap_and_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let sources = everything(dir.path(), 6);
    let lost = fs::read_dir(dir.path().join("photos")).unwrap().next().unwrap().unwrap().path();
    fs::remove_file(&lost).unwrap();
    let out = dir.path().join("page.html");
    // a folder of folders will do
    let all = build(&[dir.path().into()], None, &out).unwrap();
    assert_eq!((all.evaluations, all.runs, all.photos, all.missing.len()), (2, 1, 6, 1));
    assert!(all.missing[0].contains(lost.file_name().unwrap().to_str().unwrap()), "{:?}", all.missing);
    let run = build(&sources[2..3], None, &out).unwrap();
    assert_eq!((run.evaluations, run.photos), (0, 0));
}

/// A pair names its photos; scores are called as the terminal calls them; a matrix of long names has numbers.
#[test]
fn names_are_those_that_a_reader_can_find_again() {
    let dir = tempfile::tempdir().unwrap();
    let long: Vec<String> = (0..3).map(|i| format!("{} {i}", "猫 scratch ".repeat(6))).collect();
    let out = dir.path().join("page.html");
    build(&named(dir.path(), 6, &long), None, &out).unwrap();
    let page = fs::read_to_string(&out).unwrap();
    let leaks = page.split("<section id=\"leaks\"").nth(1).unwrap().split("</section>").next().unwrap();
    assert!(leaks.contains("<figcaption><b>000 ") && leaks.contains(".png</b><br>train, line 0<br>"), "{leaks}");
    assert!(page.contains(">majority class<") && !page.contains("commonest"));
    let title = format!("title=\"{0}\" aria-label=\"{0}\">3</th>", long[2]);
    assert!(
        page.contains(&title) && page.contains(&format!("<span><i>3</i><span>{}</span></span>", long[2])),
        "{title}"
    );
    // what is no label has no row, and no number
    let file = dir.path().join("tuned/summary.json");
    let mut summary: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    let confusion = &mut summary["metrics"]["confusion"];
    confusion["labels"].as_array_mut().unwrap().push("(other)".into());
    confusion["counts"].as_array_mut().unwrap().iter_mut().for_each(|row| row.as_array_mut().unwrap().push(2.into()));
    write_json(&file, &summary).unwrap();
    build(&[dir.path().join("tuned")], None, &out).unwrap();
    let page = fs::read_to_string(&out).unwrap();
    assert!(page.contains(">3</th><th scope=\"col\" class=\"n\">(other)</th></tr>"), "{title}");
}

/// What guessing gets is one line of the chart where it is one number, and a cost that is not all known is the least.
#[test]
fn baselines_of_other_sets_and_costs_without_all_counts_are_not_told_as_one() {
    let dir = tempfile::tempdir().unwrap();
    let sources = everything(dir.path(), 8);
    let out = dir.path().join("page.html");
    let summary = || {
        build(&sources[..2], None, &out).unwrap();
        let page = fs::read_to_string(&out).unwrap();
        page.split("<section id=\"summary\"").nth(1).unwrap().split("</section>").next().unwrap().to_owned()
    };
    let row = |name: &str| format!("{name}<title>{name}</title></text>");
    let both = summary();
    assert!(both.contains(&row("majority class")) && both.contains(&row("random guess")), "{both}");
    assert!(both.contains("95 % interval, and what one gets without a look at the photos.<"), "{both}");
    let file = sources[0].join("summary.json");
    let mut about: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    about["metrics"]["baselines"]["majority"]["accuracy"] = 0.375.into();
    (about["dollars"], about["dollars_are_incomplete"]) = (0.0.into(), true.into());
    write_json(&file, &about).unwrap();
    let other = summary();
    assert!(!other.contains(&row("majority class")) && other.contains(&row("random guess")), "{other}");
    assert!(other.contains(">37.5 %</td>") && other.contains(">at least 0</td>"), "{other}");
    about["metrics"]["baselines"]["random"]["accuracy"] = 0.125.into();
    write_json(&file, &about).unwrap();
    let none = summary();
    assert!(!none.contains(&row("random guess")) && none.contains("with its 95 % interval.<"), "{none}");
}

/// What the terminal said of a trial that failed, the page says too; of a run that left nothing, that it did.
#[test]
fn a_run_that_failed_is_said_to_have() {
    let dir = tempfile::tempdir().unwrap();
    let run = &everything(dir.path(), 6)[2];
    let out = dir.path().join("page.html");
    let training = || {
        build(std::slice::from_ref(run), None, &out).unwrap();
        let page = fs::read_to_string(&out).unwrap();
        page.split("<section id=\"training\"").nth(1).unwrap().split("</section>").next().unwrap().to_owned()
    };
    let note = |said: &str| format!("<p class=\"note\">run &lt;b&gt; {said}.</p>");
    let nothing = note("has left neither an adapter nor a model: it was killed, or has not ended");
    assert!(training().contains(&nothing), "{}", training());
    // a run of its own says it, whatever it left
    write_json(&run.join("run.json"), &json!({"steps": 50, "failed": "the disk is full"})).unwrap();
    assert!(training().contains(&note("failed: the disk is full")), "{}", training());
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::write(run.join(name), "").unwrap();
    }
    assert!(training().contains(&note("failed: the disk is full")), "{}", training());
    fs::remove_file(run.join("run.json")).unwrap();
    assert!(!training().contains("<p class=\"note\">"), "{}", training());
    let failed =
        json!({"trial": 5, "folder": run, "varied": {}, "status": "failed", "reason": "a loss of NaN & no more"});
    write_json(&run.join("trial.json"), &failed).unwrap();
    assert!(training().contains(&note("failed: a loss of NaN &amp; no more")), "{}", training());
    // before its first step, too
    fs::remove_file(run.join("metrics.jsonl")).unwrap();
    assert!(training().contains(&note("failed: a loss of NaN &amp; no more")), "{}", training());
}

/// As many lines as can be told from each other are drawn, and it is said where there are more.
#[test]
fn more_runs_than_are_drawn_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let run = &everything(dir.path(), 6)[2];
    let runs: Vec<PathBuf> = (1..=7).map(|n| dir.path().join(format!("run-{n}"))).collect();
    for copy in &runs {
        fs::create_dir(copy).unwrap();
        fs::copy(run.join("metrics.jsonl"), copy.join("metrics.jsonl")).unwrap();
    }
    let out = dir.path().join("page.html");
    let note = "Drawn are the first 6 of 7 runs; name others for theirs.";
    for (given, said) in [(&runs[..], true), (&runs[1..], false)] {
        build(given, None, &out).unwrap();
        assert_eq!(fs::read_to_string(&out).unwrap().contains(note), said);
    }
}

/// Two folders of one name are told apart by their paths, runs as evaluations are; one that is alone keeps its name.
#[test]
fn folders_of_one_name_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
    let (mut sources, others) = (everything(&a, 6), everything(&b, 6));
    sources.pop();
    fs::rename(&sources[1], b.join("other")).unwrap();
    sources[1] = b.join("other");
    sources.extend([others[0].clone(), others[2].clone()]);
    let out = dir.path().join("page.html");
    build(&sources, None, &out).unwrap();
    let page = fs::read_to_string(&out).unwrap();
    let data = page.split("id=\"data\">").nth(1).unwrap().split("</script>").next().unwrap();
    let data: Value = serde_json::from_str(data).unwrap();
    assert_eq!(data["evals"], json!([a.join("base"), "other", b.join("base")]));
    let training = page.split("<section id=\"training\"").nth(1).unwrap().split("</section>").next().unwrap();
    for run in [&a, &b].map(|of| of.join("run <b>").display().to_string().replace("<b>", "&lt;b&gt;")) {
        assert!(training.contains(&format!("{run}: ")), "{run}\n{training}");
    }
    build(&sources[..3], None, &out).unwrap();
    let page = fs::read_to_string(&out).unwrap();
    let training = page.split("<section id=\"training\"").nth(1).unwrap().split("</section>").next().unwrap();
    assert!(training.contains(". run &lt;b&gt;: "), "{training}");
}

/// Nobody gives the folders in a folder an order: the untrained model is first, the rest stand as they were written.
#[test]
fn folders_in_a_folder_stand_in_the_order_of_the_work() {
    let dir = tempfile::tempdir().unwrap();
    let scores = dir.path().join("scores");
    let sources = everything(dir.path(), 6);
    // (folder, model, adapter, when it was written)
    let folders =
        [("319", "m", Some("r"), 3), ("78", "m", Some("r"), 2), ("base", "m", None, 5), ("merged", "n", None, 4)];
    for (name, model, adapter, hour) in folders {
        let folder = scores.join(name);
        fs::create_dir_all(&folder).unwrap();
        fs::copy(sources[1].join("predictions.jsonl"), folder.join("predictions.jsonl")).unwrap();
        let text = fs::read_to_string(sources[1].join("summary.json")).unwrap();
        let mut summary: Value = serde_json::from_str(&text).unwrap();
        summary["model"] = model.into();
        summary["adapter"] = adapter.into();
        write_json(&folder.join("summary.json"), &summary).unwrap();
        let when = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000 + 3600 * hour);
        fs::File::open(folder.join("summary.json")).unwrap().set_modified(when).unwrap();
    }
    let compared = json!({"before": {"dir": scores.join("base")}, "after": {"dir": scores.join("319")}});
    fs::create_dir_all(scores.join("comparison")).unwrap();
    write_json(&scores.join("comparison/comparison.json"), &compared).unwrap();
    let out = dir.path().join("page.html");
    let built = build(std::slice::from_ref(&scores), None, &out).unwrap();
    assert_eq!(built.evaluations, 4);
    assert!(built.notes[0].contains("stand in this order: base, 78, 319, merged. An untrained"), "{:?}", built.notes);
    let page = fs::read_to_string(&out).unwrap();
    assert!(page.contains("From <b>base</b> to <b>merged</b>") && page.contains("stand in this order"));
    // named one by one they stay as they are
    let named = ["merged", "78", "base"].map(|name| scores.join(name));
    let built = build(&named, None, &out).unwrap();
    assert_eq!(built.notes, Vec::<String>::new());
    assert!(fs::read_to_string(&out).unwrap().contains("From <b>merged</b> to <b>base</b>"));
}

/// The whole use of it, in a browser: `tools/check_page.py` says what.
#[test]
fn it_works_in_chromium() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("page.html");
    build(&everything(dir.path(), 70), None, &out).unwrap();
    let Some(said) = in_chromium(&out) else { return };
    assert!(said["checks"].as_u64() > Some(60) && said["photos"] == 70, "{said}");
}

/// Twenty classes with names as long as a line, runs with such names, and cards of 0: everything has room on a phone.
#[test]
fn long_names_and_many_classes_have_room_in_chromium() {
    let dir = tempfile::tempdir().unwrap();
    let long: Vec<String> = (0..20)
        .map(|i| {
            format!("{} {i}", ["猫の引っ掻き傷", "a_deep_scratch_on_the_left_front_door_below_the_window_line"][i % 2])
        })
        .collect();
    let mut sources = named(dir.path(), 40, &long);
    // two evaluations that say the same: nothing is fixed, nothing is broken
    fs::copy(sources[0].join("predictions.jsonl"), sources[1].join("predictions.jsonl")).unwrap();
    let log = fs::read_to_string(sources[2].join("metrics.jsonl")).unwrap();
    for name in ["a-run-with-a-name-that-says-every-one-of-its-settings-lr-0.0015-rank-64-alpha-16", "r1"] {
        let run = dir.path().join(name);
        fs::create_dir_all(&run).unwrap();
        fs::write(run.join("metrics.jsonl"), log.replace("e-5", "e-3").replace("0.0000", "0.00")).unwrap();
        sources.push(run);
    }
    let size = |n: usize, mean: f64| json!({"samples": n, "runs": 2, "mean": mean, "lowest": mean - 0.01, "highest": mean + 0.01});
    write_json(
        &dir.path().join("curve.json"),
        &json!({"sizes": [size(300, 0.76), size(320, 0.77), size(480, 0.8)], "warnings": []}),
    )
    .unwrap();
    sources.push(dir.path().join("curve.json"));
    let out = dir.path().join("page.html");
    build(&sources, None, &out).unwrap();
    assert!(
        fs::read_to_string(&out).unwrap().contains("<span class=\"count\">0</span> <span class=\"name\">fixed</span>")
    );
    let Some(said) = in_chromium(&out) else { return };
    assert_eq!(said["photos"], 40, "{said}");
}

/// What `tools/check_page.py` says of a page that it finds nothing wrong with; None where it cannot run.
fn in_chromium(page: &Path) -> Option<Value> {
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/check_page.py");
    let done = match Command::new("python3").arg("-B").arg(tool).arg(page).output() {
        Ok(done) if done.status.code() != Some(77) => done,
        _ => {
            println!("skipped: a page in Chromium: there is no python3 or no chromium");
            return None;
        }
    };
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{said}{}", String::from_utf8_lossy(&done.stderr));
    Some(serde_json::from_str(said.lines().last().unwrap()).unwrap())
}
