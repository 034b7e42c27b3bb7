//! Limits to pictures: one meaning in every command, and none that asks for more memory than there is.

use crate::commands::{copy, fails, image, json_of, misused, single, vlm, works};
use crate::folders::write_json;
use crate::golden_cases::cases;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use vlm::data::image::PatchSpec;
use vlm::io::json::read;
use vlm::qwen3vl::processor::{patch_spec_file, read_patch_spec};

#[test]
fn a_limit_that_was_asked_for_moves_the_other_and_two_have_to_fit() {
    let spec = PatchSpec { min_pixels: 1000, max_pixels: 2000, ..PatchSpec::default() };
    for ((min, max), want) in [
        ((None, None), [1000, 2000]),
        ((Some(1500), None), [1500, 2000]),
        ((None, Some(1500)), [1000, 1500]),
        ((Some(3000), None), [3000, 3000]),
        ((None, Some(10)), [10, 10]),
        ((Some(1), Some(1 << 32)), [1, 1 << 32]),
    ] {
        let limited = spec.clone().limited(min, max).unwrap();
        assert_eq!([limited.min_pixels, limited.max_pixels], want, "{min:?} {max:?}");
        assert_eq!(limited, PatchSpec { min_pixels: want[0], max_pixels: want[1], ..spec.clone() });
    }
    for ((min, max), wanted) in [
        ((Some(9), Some(8)), "--min-pixels 9 is above --max-pixels 8"),
        ((Some(0), None), "--min-pixels 0: wanted a number of pixels from 1 to 2^32"),
        ((None, Some((1 << 32) + 1)), "--max-pixels 4294967297: wanted a number of pixels from 1 to 2^32"),
    ] {
        let error = spec.clone().limited(min, max).unwrap_err();
        assert!(error.is_usage() && error.to_string() == wanted, "{error}");
    }
}

#[test]
fn no_picture_is_enlarged_beyond_what_can_be_held() {
    // as large as any that is read, rounded up
    let spec = PatchSpec { min_pixels: 1, max_pixels: 1 << 32, ..PatchSpec::default() };
    assert_eq!(spec.target_size(13_370, 13_370).unwrap(), (13_376, 13_376));
    let most = PatchSpec { min_pixels: 1 << 28, ..spec.clone() };
    assert_eq!(most.target_size(512, 512).unwrap(), (1 << 14, 1 << 14));
    let more = PatchSpec { min_pixels: (1 << 28) + 1, ..spec };
    let said = more.target_size(512, 512).unwrap_err().to_string();
    let want = "--min-pixels 268435457 enlarges a picture of 512 x 512 to more than 268435456 pixels, which is too much; lower it";
    assert_eq!(said, want);
}

#[test]
fn every_command_takes_the_same_limits() {
    let (model, image, data) = (single(), image(), cases().join("train.jsonl"));
    let dir = tempfile::tempdir().unwrap();
    let (out, run, scores) = (dir.path().join("out"), dir.path().join("run"), dir.path().join("scores"));
    for value in ["0", "4294967297", "100000000000000", "1e6"] {
        let lines: [(&str, &[&Path]); 5] = [
            ("preprocess --image {} --out {}", &[&image, &out]),
            ("generate --model {} --image {} --prompt hi", &[&model, &image]),
            ("eval --model {} --data {} --out {}", &[&model, &data, &out]),
            ("train --model {} --data {} --out {}", &[&model, &data, &out]),
            ("data dedupe --model {} {} --out {}", &[&model, &data, &out]),
        ];
        for (line, paths) in lines {
            misused(&format!("{line} --max-pixels {value}"), paths, &["--max-pixels", "from 1 to 2^32"]);
        }
    }
    let words = ["--min-pixels 4294967296 enlarges a picture of ", " to more than 268435456 pixels"];
    fails("preprocess --image {} --out {} --min-pixels 4294967296", &[&image, &out], &words);
    fails("data show {} --min-pixels 4294967296", &[&data], &[&words[..], &["train.jsonl, line 1: "]].concat());
    assert!(!out.exists());
    // below the model's own least area: what is trained with it is scored with it
    works("train --model {} --data {} --out {} --rank 1 --max-steps 1 --max-pixels 1024", &[&model, &data, &run]);
    let line = "eval --model {} --adapter {} --data {} --out {} --max-pixels 1024 --json";
    assert_eq!(json_of(line, &[&model, &run, &data, &scores])["metrics"]["n"], json!(3));
    let said = json_of("preprocess --image {} --model {} --out {} --max-pixels 1024 --json", &[&image, &model, &out]);
    assert_eq!(said["tokens"], json!(1));
}

/// Photos are shown to an adapter as it was trained, wherever it goes: asked with the model, trained further, merged, or a
/// whole model of its own.
#[test]
fn what_was_trained_keeps_the_limits_of_its_training() {
    let (model, data) = (single(), cases().join("train.jsonl"));
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let [run, full, merged] = ["run", "full", "merged"].map(at);
    let own = read_patch_spec(&model).unwrap();
    assert!(own.min_pixels > 1024);
    let train = "train --model {} --data {} --out {} --max-steps 1";
    works(&format!("{train} --rank 1 --max-pixels 1024"), &[&model, &data, &run]);
    let told = format!(
        "photos are brought to 1024 to 1024 pixels, as the adapter was trained, and not to the {} to {} of the model; \
         --min-pixels and --max-pixels ask for others",
        own.min_pixels, own.max_pixels
    );
    let scored = |name: &str, flags: &str| {
        let line = format!("eval --model {{}} --adapter {{}} --data {{}} --out {{}}{flags}");
        let done = vlm(&line, &[&model, &run, &data, &at(name)]);
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        assert_eq!(done.stderr.contains(&told), flags.is_empty(), "{flags}: {}", done.stderr);
        fs::read_to_string(at(name).join("predictions.jsonl")).unwrap()
    };
    let said = scored("as trained", "");
    assert_eq!(said, scored("asked for", " --max-pixels 1024"));
    assert_eq!(said, scored("both asked for", " --min-pixels 1024 --max-pixels 1024"));
    let own = format!(" --min-pixels {} --max-pixels {}", own.min_pixels, own.max_pixels);
    assert!(said != scored("the model's own", &own), "other pictures, and the same probabilities");
    // with one limit of the two, the other stays that of the training
    let both = scored("a larger least area", " --min-pixels 2048");
    assert_eq!(both, scored("and its largest", " --min-pixels 2048 --max-pixels 2048"));

    let line = format!("{train} --init-adapter {{}}");
    let done = vlm(&line, &[&model, &data, &at("on"), &run]);
    assert!(done.code == Some(0) && done.stderr.contains(&told), "{}", done.stderr);
    let settings = fs::read_to_string(at("on/config.toml")).unwrap();
    assert!(!settings.contains("max-pixels"), "what the adapter brings need not be asked for: {settings}");
    works("merge --model {} --adapter {} --out {}", &[&model, &run, &merged]);
    works(&format!("{train} --full --max-pixels 1024"), &[&model, &data, &full]);
    for folder in [&merged, &full.join("model")] {
        let spec = read_patch_spec(folder).unwrap();
        assert_eq!([spec.min_pixels, spec.max_pixels], [1024; 2], "{}", folder.display());
        assert_eq!(spec, PatchSpec { min_pixels: 1024, max_pixels: 1024, ..read_patch_spec(&model).unwrap() });
    }
}

/// Limits stand in one file of two, in one of two spellings; whichever it is, others are as they were.
#[test]
fn limits_are_written_where_they_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let data = cases().join("train.jsonl");
    works("train --model {} --data {} --out {} --rank 1 --max-steps 1 --max-pixels 1024", &[&single(), &data, &run]);
    let own: Value = read(&patch_spec_file(&single()).unwrap()).unwrap();
    let own = own.get("image_processor").unwrap_or(&own).clone();
    for (shared, spelling) in [(false, true), (true, false), (true, true)] {
        let model = copy("single");
        fs::remove_file(patch_spec_file(model.path()).unwrap()).unwrap();
        let mut constants = own.clone();
        if spelling {
            (constants["min_pixels"], constants["max_pixels"]) = (json!(4096), json!(8192.0));
        }
        let whole = json!({"image_processor": constants, "processor_class": "Qwen3VLProcessor"});
        let (name, holds) = if shared { ("processor", whole) } else { ("preprocessor", constants) };
        write_json(&model.path().join(format!("{name}_config.json")), &holds);
        let merged = model.path().join("merged");
        works("merge --model {} --adapter {} --out {}", &[model.path(), &run, &merged]);
        let spec = read_patch_spec(&merged).unwrap();
        assert_eq!([spec.min_pixels, spec.max_pixels], [1024; 2], "{name}, {spelling}");
        assert_eq!(spec, PatchSpec { min_pixels: 1024, max_pixels: 1024, ..read_patch_spec(model.path()).unwrap() });
    }
}

#[test]
fn limits_that_are_none_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    works(
        "train --model {} --data {} --out {} --rank 1 --max-steps 1",
        &[&single(), &cases().join("train.jsonl"), &run],
    );
    let weights = run.join("adapter_model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    let spec = read_patch_spec(&single()).unwrap();
    let (max, digits) = (format!("\"max_pixels\":\"{}\"", spec.max_pixels), spec.max_pixels.to_string().len());
    let at = bytes.windows(max.len()).position(|w| w == max.as_bytes()).expect("its limits") + max.len() - 1 - digits;
    for wrong in ["x", "0", "1"].map(|digit| digit.repeat(digits)) {
        let mut changed = bytes.clone();
        changed[at..at + digits].copy_from_slice(wrong.as_bytes());
        fs::write(&weights, changed).unwrap();
        let said = format!("max_pixels = {wrong}, wanted are two areas");
        let words = ["adapter_model.safetensors: its metadata says min_pixels = ", &said];
        fails("generate --model {} --adapter {} --prompt hi", &[&single(), &run], &words);
    }
}
