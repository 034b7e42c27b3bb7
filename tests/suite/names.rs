//! Names, shapes and counts against those of the published checkpoints and of transformers.

use crate::folders::{read_tensors, shared};
use std::collections::BTreeMap;
use vlm::qwen3vl::config::Config;
use vlm::qwen3vl::names::{Counts, Kind, LinearModule, Part, canonical, expected, linear_modules, modules};

/// Parameters were counted by instantiating transformers' model on the meta device.
#[test]
fn parameters_and_tensors_are_as_many_as_in_the_published_models() {
    for (size, parameters, vision, tensors) in [
        ("2B", 2_127_532_032, 406_957_056, 625),
        ("4B", 4_437_815_808, 415_347_712, 713),
        ("8B", 8_767_123_696, 576_388_336, 750),
        ("32B", 33_357_390_064, 595_266_800, 1058),
    ] {
        let test = "parameters_and_tensors_are_as_many_as_in_the_published_models";
        let Some(dir) = shared(test, &format!("data/configs/Qwen3-VL-{size}-Instruct")) else { return };
        let config = Config::read(&dir).unwrap();
        let counts = Counts::of(&config);
        assert_eq!(counts, Counts { vision, text: parameters - vision, tensors }, "{size}");
        assert_eq!(counts.parameters(), parameters);
        assert_eq!(expected(&config).len(), tensors);
    }
}

#[test]
fn names_and_shapes_are_those_that_transformers_saved() {
    let Some(dir) = shared("names_and_shapes_are_those_that_transformers_saved", "reference/tiny") else { return };
    let theirs: BTreeMap<_, _> =
        read_tensors(&dir.join("model.safetensors")).into_iter().map(|t| (t.name, t.shape)).collect();
    let ours: BTreeMap<_, _> = expected(&Config::read(&dir).unwrap()).into_iter().collect();
    assert_eq!(ours, theirs);
}

/// The counts of section 4 of PEFT's format as run with the 8B model: A and B for every projection.
#[test]
fn the_8b_model_has_as_many_linear_modules_as_peft_finds() {
    let test = "the_8b_model_has_as_many_linear_modules_as_peft_finds";
    let Some(dir) = shared(test, "data/configs/Qwen3-VL-8B-Instruct") else { return };
    let linear = linear_modules(&Config::read(&dir).unwrap());
    let of = |part: Part| linear.iter().filter(|m| m.part == part && m.path != "lm_head").collect::<Vec<_>>();
    assert_eq!([Part::Text, Part::Vision, Part::Merger].map(|part| 2 * of(part).len()), [504, 216, 16]);
    let lora = |part: Part| of(part).iter().map(|m| 64 * (m.inputs + m.outputs)).sum::<usize>() as f64 / 1e6;
    assert!(
        (lora(Part::Text) - 174.6).abs() < 0.05 && (lora(Part::Vision) - 30.8).abs() < 0.05,
        "{}",
        lora(Part::Text)
    );
    assert!((lora(Part::Merger) - 4.6).abs() < 0.05);
    let down = linear.iter().find(|m| m.path == "model.language_model.layers.35.mlp.down_proj").unwrap();
    assert_eq!(*down, LinearModule { path: down.path.clone(), inputs: 12288, outputs: 4096, part: Part::Text });
    assert_eq!(linear.last().unwrap().path, "lm_head");
}

#[test]
fn norms_have_a_bias_in_the_vision_tower_only() {
    let config = Config::read(crate::folders::config_folder(&crate::folders::small_config()).path()).unwrap();
    for module in modules(&config) {
        if let Kind::Norm { has_bias, .. } = module.kind {
            assert_eq!(has_bias, module.part != Part::Text, "{}", module.path);
        }
    }
}

#[test]
fn older_spellings_become_the_published_ones() {
    for (older, published) in [
        ("visual.blocks.0.attn.qkv.weight", "model.visual.blocks.0.attn.qkv.weight"),
        ("model.layers.3.mlp.up_proj.weight", "model.language_model.layers.3.mlp.up_proj.weight"),
        ("model.embed_tokens.weight", "model.language_model.embed_tokens.weight"),
        ("model.norm.weight", "model.language_model.norm.weight"),
        ("language_model.model.norm.weight", "model.language_model.norm.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("language_model.layers.0.input_layernorm.weight", "model.language_model.layers.0.input_layernorm.weight"),
        ("model.visual.merger.norm.bias", "model.visual.merger.norm.bias"),
        ("model.language_model.norm.weight", "model.language_model.norm.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("something.else", "something.else"),
    ] {
        assert_eq!(canonical(older), published);
    }
}
