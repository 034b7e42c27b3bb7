//! What a run's log says of time: each word's seconds, and the part of the device's peak.

use crate::support::json_lines;
use crate::support::run::Bench;
use crate::support::tiny::cases;
use serde_json::{Map, Value};
use vlm::base::Precision;
use vlm::device::{Clock, Device};
use vlm::qwen3vl::config::Config;
use vlm::train::mfu;
use vlm::train::run_folder::Start;

/// The words of a step of LoRA whose photos the tower sees for the first time: in the order of the alphabet, as in the log.
const WORDS: [&str; 15] = [
    "adamw",
    "attention",
    "attention_backward",
    "embed",
    "grad_norm",
    "linear",
    "linear_backward",
    "linear_loss",
    "norm",
    "norm_backward",
    "patch_embed",
    "qk_rope",
    "qk_rope_backward",
    "swiglu",
    "swiglu_backward",
];

/// The words that a step's line names, their seconds summed, and those of the step.
fn times(line: &Map<String, Value>) -> (Vec<&str>, f64, f64) {
    let words = line["word_seconds"].as_object().expect("seconds by word");
    let seconds: Vec<f64> = words.values().map(|s| s.as_f64().expect("seconds")).collect();
    assert!(seconds.iter().all(|s| *s > 0.0), "{words:?}");
    (words.keys().map(String::as_str).collect(), seconds.iter().sum(), line["seconds"].as_f64().unwrap())
}

/// Every word of a step is timed once: together they take no longer than the step, and on a model of this size most of it.
#[test]
fn words_share_the_time_of_a_step() {
    for (device, precision) in [
        (Device::host(), Precision::F32),
        (Device::emulated((9, 0)).expect("an emulator"), Precision::Bf16),
        (Device::emulated((8, 0)).expect("an emulator"), Precision::Bf16),
    ] {
        let (bench, name) = (Bench::new(), device.name());
        let settings = bench.settings(|s| (s.epochs, s.max_steps, s.batch_size) = (None, Some(1), 3));
        bench.run_on(device, precision, &settings, Start::New, None).unwrap();
        let lines = json_lines(&settings.out.join("metrics.jsonl"));
        let (words, in_words, seconds) = times(&lines[0]);
        assert_eq!(words, WORDS, "{name}");
        assert!(in_words <= seconds && in_words > 0.1 * seconds, "{name}: {in_words} of {seconds}");
        assert!(!lines[0].contains_key("mfu"), "{name}: no peak is known");
    }
}

#[test]
fn the_first_ten_steps_are_timed_and_every_tenth() {
    let bench = Bench::new();
    let settings = bench.settings(|s| (s.epochs, s.max_steps, s.batch_size) = (None, Some(20), 1));
    bench.run(&settings, Start::New, None).unwrap();
    let lines = json_lines(&settings.out.join("metrics.jsonl"));
    let timed = lines.iter().filter(|l| l.contains_key("word_seconds")).map(|l| l["step"].as_u64().unwrap());
    assert_eq!(timed.collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20]);
    // the tower's features are kept: it runs in the first epoch alone
    assert!(!times(&lines[9]).0.contains(&"patch_embed"));
}

#[test]
fn a_clock_counts_from_its_start_to_its_stop() {
    let (mut clock, mut device) = (Clock::default(), Device::host());
    let pause = |seconds: f64| {
        move |_: &mut Device| {
            std::thread::sleep(std::time::Duration::from_secs_f64(seconds));
            Ok(())
        }
    };
    clock.time(&mut device, "before", pause(0.0)).unwrap();
    assert!(clock.stop().unwrap().is_empty());
    clock.start();
    for seconds in [0.02, 0.01] {
        clock.time(&mut device, "twice", pause(seconds)).unwrap();
    }
    clock.time(&mut device, "once", pause(0.01)).unwrap();
    let seconds = clock.stop().unwrap();
    assert_eq!(seconds.keys().copied().collect::<Vec<_>>(), ["once", "twice"]);
    assert!(seconds["twice"] >= 0.03 && seconds["once"] >= 0.01, "{seconds:?}");
    assert!(clock.stop().unwrap().is_empty());
}

/// Width 52, two heads of 64 and one for keys, 41 in the MLP, two layers: q and o have 52 x 128 weights, k and v 52 x 64,
/// gate, up and down 52 x 41.
#[test]
fn mfu_counts_the_language_models_linear_layers() {
    let config = Config::read(&cases().join("single")).unwrap();
    let n = 2 * (2 * 52 * 128 + 2 * 52 * 64 + 3 * 52 * 41);
    assert_eq!(mfu::flops_per_token(&config, false), 4.0 * n as f64);
    assert_eq!(mfu::flops_per_token(&config, true), 6.0 * n as f64);
    // Qwen3-VL-8B: 36 layers of 192,937,984 weights; 17,808 tokens a second are half of 989.5 TFLOP/s
    let half = mfu::mfu(4.0 * 36.0 * 192_937_984.0, 17_808.0, 989.5e12);
    assert!((half - 0.5).abs() < 1e-4, "{half}");
}
