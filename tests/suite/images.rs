//! Pixels to patches: sizes, the resize filter, patch order and normalisation, the constants' file; and the whole way
//! against what transformers computes.

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use vlm::data::image::{PatchSpec, Rgb, load, resize};
use vlm::qwen3vl::processor::read_patch_spec;

#[test]
fn sizes_are_those_of_smart_resize() {
    let spec = PatchSpec::default();
    // (height, width), (height, width) after, tokens: made with transformers' smart_resize. 48 / 32 = 1.5,
    // 80 / 32 = 2.5 and 720 / 32 = 22.5 lie between two multiples and go to the even one.
    for (input, want, tokens) in [
        ((1, 1), (256, 256), 64),
        ((16, 16), (256, 256), 64),
        ((48, 48), (256, 256), 64),
        ((80, 80), (256, 256), 64),
        ((224, 224), (256, 256), 64),
        ((256, 256), (256, 256), 64),
        ((10, 2000), (32, 3648), 114),
        ((300, 200), (320, 224), 70),
        ((480, 640), (480, 640), 300),
        ((720, 1280), (704, 1280), 880),
        ((1024, 1024), (1024, 1024), 1024),
        ((1365, 2048), (1376, 2048), 2752),
        ((3000, 4000), (3008, 4000), 11750),
        ((4096, 4096), (4096, 4096), 16384),
        ((4100, 4100), (4096, 4096), 16384),
        ((5000, 200), (4992, 192), 936),
        ((8000, 6000), (4704, 3520), 16170),
        ((100, 19999), (96, 20000), 1875),
        ((1080, 1920), (1088, 1920), 2040),
    ] {
        assert_eq!(spec.target_size(input.0, input.1).unwrap(), want, "{input:?}");
        assert_eq!(spec.tokens(input.0, input.1).unwrap(), tokens, "{input:?}");
    }
}

#[test]
fn sizes_that_cannot_be_brought_into_form_are_refused() {
    let spec = PatchSpec::default();
    for (height, width, word) in [(10, 2001, "200 times"), (2001, 10, "200 times"), (0, 5, "one pixel"), (5, 0, "one")]
    {
        let said = spec.target_size(height, width).unwrap_err().to_string();
        assert!(said.contains(word) && said.contains(&format!("{height} x {width}")), "{said}");
        assert!(spec.tokens(height, width).is_err());
        assert!(spec.patches(&Rgb { width, height, pixels: vec![0; height * width * 3] }).is_err());
    }
    let said = PatchSpec { min_pixels: 0, ..spec.clone() }.target_size(10, 100).unwrap_err().to_string();
    assert!(said.contains("at least 32 pixels"), "{said}");
    let said = spec.patches(&Rgb { width: 4, height: 4, pixels: vec![0; 47] }).unwrap_err().to_string();
    assert!(said.contains("4 x 4 x 3") && said.contains("47"), "{said}");
}

#[test]
fn one_row_is_resized_as_torchvision_does() {
    let pattern: Vec<u8> = (0..16).map(|i| ((37 * i * i + 11 * i) % 256) as u8).collect();
    // Made with torchvision 0.26 and with Pillow, which agree here.
    for (input, want) in [
        (&[0, 255, 10, 200, 90][..], &[0, 113, 253, 71, 47, 196, 143, 82][..]),
        (&[0, 255, 10, 200, 90, 60, 250, 3, 128], &[111, 120, 124, 98]),
        (&[255, 0, 0, 255, 0, 255, 17], &[99, 119]),
        (&pattern, &[75, 151, 114, 178, 174]),
    ] {
        let gray = |values: &[u8]| values.iter().flat_map(|&v| [v; 3]).collect::<Vec<u8>>();
        let row = Rgb { width: input.len(), height: 3, pixels: gray(input).repeat(3) };
        let resized = resize(&row, 3, want.len());
        assert_eq!(resized, Rgb { width: want.len(), height: 3, pixels: gray(want).repeat(3) });
        // The same as a column.
        let column = Rgb { width: 1, height: input.len(), pixels: gray(input) };
        assert_eq!(resize(&column, want.len(), 1).pixels, gray(want));
    }
}

fn pattern(height: usize, width: usize) -> Rgb {
    let mut pixels = Vec::new();
    for i in 0..height {
        for j in 0..width {
            pixels.extend((0..3).map(|c| ((7 * i * i + 13 * j * j + 5 * i * j + 97 * c) % 256) as u8));
        }
    }
    Rgb { width, height, pixels }
}

#[test]
fn pictures_are_resized_as_torchvision_does() {
    // CRC-32 of what torchvision 0.26 gives on the CPU: [height, width, 3] in bytes.
    for (from, to, sum, crc, first, last) in [
        ((50, 70), (32, 64), 784_712, 0xcbbf_9498u32, [1, 98, 201], [117, 223, 55]),
        ((33, 20), (64, 32), 774_704, 0x26c6_acaa, [0, 95, 192], [46, 161, 255]),
        ((100, 100), (64, 64), 1_566_838, 0x398c_261a, [4, 101, 209], [110, 101, 213]),
        ((90, 300), (128, 416), 20_353_694, 0x38d8_4858, [0, 96, 193], [55, 152, 255]),
        ((480, 640), (480, 640), 117_504_768, 0xf5f1_4a42, [0, 97, 194], [0, 0, 0]),
    ] {
        let picture = pattern(from.0, from.1);
        let resized = resize(&picture, to.0, to.1);
        assert_eq!((resized.height, resized.width), to);
        assert_eq!(&resized.pixels[..3], first, "{from:?}");
        if from == to {
            assert_eq!(resized, picture);
        } else {
            assert_eq!(&resized.pixels[resized.pixels.len() - 3..], last, "{from:?}");
        }
        assert_eq!(resized.pixels.iter().map(|&v| u64::from(v)).sum::<u64>(), sum, "{from:?}");
        assert_eq!(crc32fast::hash(&resized.pixels), crc, "{from:?}");
    }
}

#[test]
fn patches_are_in_the_order_of_the_formula() {
    // Sizes that are kept, odd counts of blocks, a mean and deviation of their own for each channel.
    for (patch, temporal, merge, height, width) in [(16, 2, 2, 96, 160), (4, 3, 1, 12, 20), (2, 1, 3, 18, 30)] {
        let spec = PatchSpec {
            patch,
            temporal,
            merge,
            min_pixels: 1,
            mean: [0.5, 0.25, 0.481_454_66],
            std: [0.5, 0.125, 0.275_777_1],
            ..PatchSpec::default()
        };
        let picture = pattern(height, width);
        let got = spec.patches(&picture).unwrap();
        let (h, w) = (height / patch, width / patch);
        assert_eq!(got.grid, [1, h, w]);
        let mut want = Vec::new();
        for row in 0..h * w {
            let (in_col, rest) = (row % merge, row / merge);
            let (in_row, rest) = (rest % merge, rest / merge);
            let (block_col, block_row) = (rest % (w / merge), rest / (w / merge));
            for k in 0..3 * temporal * patch * patch {
                let (x, y) = (k % patch, k / patch % patch);
                let c = k / (patch * patch * temporal);
                let y = (block_row * merge + in_row) * patch + y;
                let x = (block_col * merge + in_col) * patch + x;
                let value = f32::from(picture.pixels[(y * width + x) * 3 + c]);
                want.push((value - spec.mean[c] * 255.0) / (spec.std[c] * 255.0));
            }
        }
        assert!(got.values == want, "patch {patch}, temporal {temporal}, merge {merge}");
    }
    let level = |value| PatchSpec::default().patches(&Rgb { width: 256, height: 256, pixels: vec![value; 196_608] });
    assert!(level(255).unwrap().values.iter().all(|&v| v == 1.0));
    assert!(level(0).unwrap().values.iter().all(|&v| v == -1.0));
    assert!(level(128).unwrap().values.iter().all(|&v| v == 0.5 / 127.5));
}

/// The folder that lies beside this one on machines that have the reference; None where it is absent.
fn shared(test: &str, inside: &str) -> Option<PathBuf> {
    let root = std::env::var_os("VLM_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"), PathBuf::from);
    let found = root.join(inside);
    if !found.exists() {
        println!("skipped: {test}: ../shared is absent");
        return None;
    }
    Some(found)
}

#[test]
fn odd_photos_come_out_as_in_the_reference() {
    let Some(folder) = shared("odd_photos_come_out_as_in_the_reference", "reference") else { return };
    let file = std::fs::read(folder.join("preprocess.safetensors")).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&file).unwrap();
    let about = header.metadata().clone().unwrap();
    let spec = PatchSpec {
        min_pixels: about["min_pixels"].parse().unwrap(),
        max_pixels: about["max_pixels"].parse().unwrap(),
        ..PatchSpec::default()
    };
    let wanted = safetensors::SafeTensors::deserialize(&file).unwrap();
    assert!(wanted.len() >= 15);
    for (name, want) in wanted.tensors() {
        let picture = load(&folder.join("preprocess").join(&name)).unwrap();
        let (height, width) = spec.target_size(picture.height, picture.width).unwrap();
        assert_eq!([3, height, width], want.shape(), "{name}");
        let got = resize(&picture, height, width);
        let plane = height * width;
        // The reference is [3, height, width]. All of them are equal, the lossy formats too.
        let equal = (0..3 * plane).all(|i| got.pixels[i % plane * 3 + i / plane] == want.data()[i]);
        assert!(equal, "{name}");
    }
    let refused: Vec<String> = serde_json::from_str(&about["refused"]).unwrap();
    assert!(!refused.is_empty());
    for name in refused {
        let said = load(&folder.join("preprocess").join(&name)).map(|_| ()).unwrap_err().to_string();
        assert!(said.contains(&name), "{said}");
    }
}

#[test]
fn pixel_values_equal_those_of_transformers() {
    let Some(folder) = shared("pixel_values_equal_those_of_transformers", "reference") else { return };
    let spec = read_patch_spec(&folder.join("tiny")).unwrap();
    for case in ["one_image", "two_images", "many_turns"] {
        let file = std::fs::read(folder.join(format!("tiny.{case}.safetensors"))).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
        let messages: Value =
            serde_json::from_slice(&std::fs::read(folder.join(format!("{case}.json"))).unwrap()).unwrap();
        let (mut values, mut grids) = (Vec::new(), Vec::new());
        for part in messages["messages"].as_array().unwrap().iter().filter_map(|m| m["content"].as_array()).flatten() {
            if let Some(image) = part["image"].as_str() {
                let patches = spec.patches(&load(&folder.join(image)).unwrap()).unwrap();
                values.extend(patches.values);
                grids.extend(patches.grid.map(|n| n as i64));
            }
        }
        let want = tensors.tensor("pixel_values").unwrap();
        let floats: Vec<f32> = want.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        assert!(!values.is_empty() && values == floats, "{case}");
        let want = tensors.tensor("image_grid_thw").unwrap();
        let numbers: Vec<i64> = want.data().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
        assert_eq!(grids, numbers, "{case}");
    }
}

fn published() -> Value {
    json!({
        "size": {"longest_edge": 16_777_216, "shortest_edge": 65_536},
        "patch_size": 16, "temporal_patch_size": 2, "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor", "image_processor_type": "Qwen2VLImageProcessorFast",
    })
}

fn written(name: &str, value: &Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(name), value.to_string()).unwrap();
    folder
}

#[test]
fn constants_are_read_from_either_file() {
    let folder = written("preprocessor_config.json", &published());
    assert_eq!(read_patch_spec(folder.path()).unwrap(), PatchSpec::default());
    let mut all = published();
    for (key, value) in [
        ("do_resize", json!(true)),
        ("do_rescale", json!(true)),
        ("do_normalize", json!(true)),
        ("do_convert_rgb", json!(true)),
        ("do_center_crop", json!(false)),
        ("do_pad", Value::Null),
        ("resample", json!(3)),
        ("rescale_factor", json!(0.00392156862745098)),
        ("data_format", json!("channels_first")),
        ("image_processor_type", json!("Qwen2VLImageProcessor")),
        ("crop_size", Value::Null),
        ("something_unset", Value::Null),
        ("min_pixels", json!(1024.0)),
        ("max_pixels", json!(4096)),
        ("image_std", json!([0.25, 0.5, 1])),
    ] {
        all[key] = value;
    }
    let want = PatchSpec { min_pixels: 1024, max_pixels: 4096, std: [0.25, 0.5, 1.0], ..PatchSpec::default() };
    let folder = written("processor_config.json", &json!({"image_processor": all, "video_processor": {"fps": 2}}));
    assert_eq!(read_patch_spec(folder.path()).unwrap(), want);
    // Where both are there the nested object counts, unless there is none.
    std::fs::write(folder.path().join("preprocessor_config.json"), published().to_string()).unwrap();
    assert_eq!(read_patch_spec(folder.path()).unwrap(), want);
    for other in [json!({"processor_class": "Qwen3VLProcessor"}), json!({"image_processor": null})] {
        std::fs::write(folder.path().join("processor_config.json"), other.to_string()).unwrap();
        assert_eq!(read_patch_spec(folder.path()).unwrap(), PatchSpec::default());
    }
}

#[test]
fn constants_that_change_the_maths_are_refused() {
    for (key, value) in [
        ("do_resize", json!(false)),
        ("do_rescale", json!(false)),
        ("do_normalize", json!(false)),
        ("do_convert_rgb", json!(false)),
        ("do_center_crop", json!(true)),
        ("do_pad", json!(true)),
        ("resample", json!(2)),
        ("rescale_factor", json!(0.0039)),
        ("rescale_factor", json!("1/255")),
        ("data_format", json!("channels_last")),
        ("image_processor_type", json!("SiglipImageProcessor")),
        ("sharpen", json!(1.5)),
        ("patch_size", json!(0)),
        ("patch_size", json!(16.5)),
        ("patch_size", Value::Null),
        ("temporal_patch_size", json!(17)),
        ("merge_size", json!(-2)),
        ("image_mean", json!([0.5, 0.5])),
        ("image_mean", json!(0.5)),
        ("image_std", json!([0.5, 0.0, 0.5])),
        ("image_std", json!([0.5, "a", 0.5])),
        ("image_mean", json!([0.5, "0.3", 0.5, 0.5])),
        ("size", Value::Null),
        ("size", json!({"shortest_edge": 65_536})),
        ("size", json!({"shortest_edge": 65_536, "longest_edge": 65_535})),
        ("size", json!({"shortest_edge": 0, "longest_edge": 65_535})),
        ("max_pixels", json!("many")),
        ("max_pixels", json!(70000.5)),
        ("max_pixels", json!(1e300)),
    ] {
        let mut config = published();
        config[key] = value.clone();
        let said = read_patch_spec(written("preprocessor_config.json", &config).path()).unwrap_err().to_string();
        assert!(said.contains(&format!("preprocessor_config.json: {key}")), "{key} {value}: {said}");
        let config = json!({"image_processor": config});
        let said = read_patch_spec(written("processor_config.json", &config).path()).unwrap_err().to_string();
        assert!(said.contains(&format!("processor_config.json: image_processor.{key}")), "{key} {value}: {said}");
    }
}

#[test]
fn a_folder_without_constants_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let said = read_patch_spec(folder.path()).unwrap_err().to_string();
    assert!(said.contains("neither preprocessor_config.json nor processor_config.json"), "{said}");
    for (text, word) in
        [("{\"image_processor\": ", "not valid JSON"), ("{}", "image_processor object"), ("[]", "wanted a JSON")]
    {
        std::fs::write(folder.path().join("processor_config.json"), text).unwrap();
        let said = read_patch_spec(folder.path()).unwrap_err().to_string();
        assert!(said.contains(word) && said.contains("processor_config.json"), "{said}");
    }
    std::fs::write(folder.path().join("preprocessor_config.json"), "[1]").unwrap();
    let said = read_patch_spec(folder.path()).unwrap_err().to_string();
    assert!(said.ends_with("processor_config.json: wanted a JSON object, got []"), "{said}");
    std::fs::remove_file(folder.path().join("processor_config.json")).unwrap();
    let said = read_patch_spec(folder.path()).unwrap_err().to_string();
    assert!(said.ends_with("preprocessor_config.json: wanted a JSON object, got [1]"), "{said}");
    std::fs::remove_file(folder.path().join("preprocessor_config.json")).unwrap();
    std::fs::create_dir(folder.path().join("preprocessor_config.json")).unwrap();
    assert!(read_patch_spec(folder.path()).unwrap_err().to_string().contains("cannot open"));
}
