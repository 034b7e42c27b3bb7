//! Which modules a run trains, and how its adapter says so.

use crate::folders::{config_folder, small_config};
use std::collections::BTreeSet;
use vlm::qwen3vl::adapter::AdapterConfig;
use vlm::qwen3vl::config::Config;
use vlm::qwen3vl::names::{self, Part};
use vlm::qwen3vl::targets::{Layers, Selection, Targets};
use vlm::train::lora::Lora;
use vlm::train::settings::Settings;

fn model() -> Config {
    Config::read(config_folder(&small_config()).path()).unwrap()
}

fn with(change: impl FnOnce(&mut Settings)) -> Settings {
    let mut settings = Settings::default();
    change(&mut settings);
    settings
}

/// What adapter_config.json's targets select must be what is trained.
#[track_caller]
fn resolve(settings: &Settings, init: Option<&AdapterConfig>) -> Lora {
    let lora = Lora::resolve(settings, init, &model()).unwrap();
    assert_eq!(lora.config.selection.modules(&model()).unwrap(), lora.modules);
    lora
}

#[track_caller]
fn refused(settings: &Settings, init: Option<&AdapterConfig>, wanted: &str) {
    let error = Lora::resolve(settings, init, &model()).expect_err(wanted);
    assert!(error.is_usage() && error.to_string().contains(wanted), "{error}");
}

#[test]
fn the_default_is_every_linear_map_of_the_language_model_but_the_head() {
    let lora = resolve(&Settings::default(), None);
    assert_eq!((lora.config.rank, lora.config.alpha, lora.scale), (16, 32.0, 2.0));
    assert_eq!(lora.modules.len(), 2 * 7);
    assert!(lora.modules.iter().all(|m| m.part == Part::Text && m.path != "lm_head"));
    let names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    assert_eq!(lora.config.selection.targets.to_json(), serde_json::json!(names));
    let lora = resolve(&with(|s| (s.rank, s.alpha, s.rslora) = (Some(4), Some(6.0), Some(true))), None);
    assert_eq!(lora.scale, 3.0);
}

#[test]
fn vision_and_mergers_are_added_and_described_by_a_regex() {
    let count = |lora: &Lora, part| lora.modules.iter().filter(|m| m.part == part).count();
    let lora = resolve(&with(|s| (s.lora_vision, s.lora_merger) = (true, true)), None);
    assert_eq!([Part::Text, Part::Vision, Part::Merger].map(|part| count(&lora, part)), [14, 2 * 4, 2 * 2]);
    let lora = resolve(&with(|s| s.lora_merger = true), None);
    assert_eq!([Part::Text, Part::Vision, Part::Merger].map(|part| count(&lora, part)), [14, 0, 4]);
    let lora = resolve(&with(|s| (s.lora_vision, s.target_modules) = (true, Some("q_proj,lm_head".into()))), None);
    let wanted = r"lm_head|model\.language_model\.layers\.(?:0|1)\.self_attn\.q_proj|model\.visual\.blocks\.(?:0|1)\.(?:attn\.proj|attn\.qkv|mlp\.linear_fc1|mlp\.linear_fc2)";
    assert_eq!(lora.config.selection.targets.to_json(), wanted);
    // They are among the targets already: what was asked for says it all.
    let lora = resolve(&with(|s| (s.lora_vision, s.target_modules) = (true, Some("all-linear".into()))), None);
    assert_eq!(lora.config.selection.targets.to_json(), "all-linear");
    let regex = r".*\.(q_proj|attn\.qkv)";
    let lora = resolve(&with(|s| s.target_modules = Some(regex.into())), None);
    assert_eq!(lora.config.selection.targets.to_json(), regex);
}

#[test]
fn an_exact_regex_selects_exactly_any_set_of_modules() {
    let config = model();
    let all: Vec<String> = names::linear_modules(&config).into_iter().map(|m| m.path).collect();
    let mut sets: Vec<BTreeSet<&str>> = all.iter().map(|path| BTreeSet::from([path.as_str()])).collect();
    for step in 2..7 {
        sets.push(all.iter().step_by(step).map(String::as_str).collect());
    }
    sets.push(all.iter().map(String::as_str).collect());
    for set in sets {
        let targets = Targets::exactly(set.iter().copied()).unwrap();
        let selection = Selection { targets, exclude: None, layers: None };
        let selected: BTreeSet<String> = selection.modules(&config).unwrap().into_iter().map(|m| m.path).collect();
        assert!(selected.iter().map(String::as_str).eq(set.iter().copied()), "{set:?}");
    }
}

#[test]
fn an_adapter_to_start_from_says_what_the_flags_do_not() {
    let init = AdapterConfig::new(3, 12.0, 0.5, false, Targets::parse("v_proj").unwrap());
    let lora = resolve(&with(|s| s.dropout = 0.25), Some(&init));
    assert_eq!((lora.config.rank, lora.config.alpha, lora.config.dropout, lora.scale), (3, 12.0, 0.25, 4.0));
    assert_eq!(lora.modules.len(), 2);
    // Equal is fine, in another spelling too.
    let same = |s: &mut Settings| {
        (s.rank, s.alpha, s.rslora) = (Some(3), Some(12.0), Some(false));
        s.target_modules = Some(r".*\.self_attn\.v_proj".into());
    };
    assert_eq!(resolve(&with(same), Some(&init)).modules.len(), 2);
    refused(&with(|s| s.rank = Some(4)), Some(&init), "--rank 4: the adapter of --init-adapter has 3");
    refused(&with(|s| s.alpha = Some(4.0)), Some(&init), "--alpha 4: the adapter of --init-adapter has 12");
    refused(&with(|s| s.rslora = Some(true)), Some(&init), "--rslora true: the adapter of --init-adapter has false");
    let more = with(|s| s.target_modules = Some("v_proj,q_proj".into()));
    let said = "the flags select modules that the adapter of --init-adapter has not: model.language_model.layers.0.self_attn.q_proj";
    refused(&more, Some(&init), said);
    refused(&with(|s| s.lora_vision = true), Some(&init), "the flags select modules that");
    let fewer = with(|s| s.target_modules = Some("layers.0.self_attn.v_proj".into()));
    refused(
        &fewer,
        Some(&init),
        "has modules that the flags do not select: model.language_model.layers.1.self_attn.v_proj",
    );
}

#[test]
fn what_cannot_be_trained_is_refused() {
    refused(&with(|s| s.target_modules = Some("x_proj".into())), None, "x_proj matches no module");
    refused(&with(|s| s.target_modules = Some("proj".into())), None, "write attn.proj");
    refused(
        &with(|s| s.vision_learning_rate = Some(1e-5)),
        None,
        "--vision-learning-rate 0.00001: nothing of the vision",
    );
    resolve(&with(|s| (s.vision_learning_rate, s.lora_merger) = (Some(1e-5), true)), None);
    let nothing = AdapterConfig::new(3, 12.0, 0.5, false, Targets::parse("x_proj").unwrap());
    refused(&Settings::default(), Some(&nothing), "--init-adapter: it selects no module of this model");
    let convolution = AdapterConfig::new(3, 12.0, 0.5, false, Targets::parse("proj").unwrap());
    refused(&Settings::default(), Some(&convolution), "--init-adapter: target_modules: model.visual.patch_embed.proj");
}

#[test]
fn adapters_of_mixed_ranks_are_refused() {
    let read = |patterns: &str| {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(r#"{{"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"], {patterns}}}"#);
        std::fs::write(dir.path().join("adapter_config.json"), text).unwrap();
        AdapterConfig::read(dir.path()).unwrap()
    };
    let mixed = read(r#""rank_pattern": {"layers.1.self_attn.q_proj": 8}"#);
    refused(&Settings::default(), Some(&mixed), "its ranks or alphas differ between modules");
    let mixed = read(r#""alpha_pattern": {"layers.1.self_attn.q_proj": 2}"#);
    refused(&Settings::default(), Some(&mixed), "model.language_model.layers.1.self_attn.q_proj");
    let all = read(r#""rank_pattern": {"q_proj": 8}"#);
    refused(&Settings::default(), Some(&all), "its rank_pattern makes every rank 8, and r is 4");
}

#[test]
fn layers_of_an_adapter_to_start_from_are_kept() {
    let mut init = AdapterConfig::new(3, 12.0, 0.0, false, Targets::parse("q_proj").unwrap());
    init.selection.layers = Some(Layers::new(vec![1], &[]).unwrap());
    let lora = resolve(&Settings::default(), Some(&init));
    assert_eq!(
        lora.modules.iter().map(|m| m.path.as_str()).collect::<Vec<_>>(),
        ["model.language_model.layers.1.self_attn.q_proj"]
    );
}
