//! Limits to pictures: one meaning in every command, and none that asks for more memory than there is.

use crate::commands::{fails, image, json_of, misused, single, works};
use crate::golden_cases::cases;
use serde_json::json;
use std::path::Path;
use vlm::data::image::PatchSpec;

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
