//! The whole model through the kernels, in the emulator: against transformers and PEFT, every word by its kernel, the same
//! bits twice.

use crate::golden_cases::{CASES, Opened, cases, compare, floats, greedy, reference, relative, tolerance};
use crate::support::repository;
use crate::support::tiny::{What, step, trainer_on};
use crate::training::{BF16, follow};
use std::collections::BTreeMap;
use vlm::base::Precision;
use vlm::base::rng::Stream;
use vlm::device::{Device, emulated};
use vlm::infer::generate::generate;
use vlm::infer::trace;
use vlm::io::HostTensor;
use vlm::train::step::{Example, Optimizer};

fn device() -> Device {
    Device::emulated((9, 0)).expect("an emulator")
}

fn open(model: &str) -> Opened {
    Opened::on(device(), &cases().join(model), None, Precision::Bf16)
}

/// Panics unless a kernel of each of these words ran.
#[track_caller]
fn ran(launches: &BTreeMap<&'static str, u64>, words: &[&str]) {
    for word in words {
        assert!(launches.keys().any(|k| k.starts_with(word)), "no kernel {word}…: {:?}", launches.keys());
    }
}

/// The words of a prompt with a picture.
const PROMPT: [&str; 7] =
    ["patch_embed_fwd", "norm_fwd", "linear_fwd", "qk_rope_fwd", "attention_fwd", "swiglu_fwd", "embed_fwd"];

#[test]
fn every_tensor_of_every_case() {
    for (model, case) in CASES {
        let mut opened = open(model);
        let got = opened.trace(case);
        compare(&format!("{model}.{case} emulated"), &got, &reference(&format!("{model}.{case}")), Precision::Bf16);
        if case != "text_only" {
            let launches = opened.engine.device.launches();
            ran(&launches, &PROMPT);
            if !opened.engine.model.config.vision.deepstack_indexes.is_empty() {
                ran(&launches, &["deepstack_add_fwd"]);
            }
        }
    }
}

#[test]
fn logits_one_token_at_a_time_through_the_cache() {
    let (model, case) = CASES[0];
    let mut opened = open(model);
    let sequence = opened.prompt(case);
    let got = trace::through_cache(&mut opened.engine, &sequence, &mut |_, _| ()).expect("logits");
    let want = HostTensor::read(&reference(&format!("{model}.{case}")), "logits").expect("logits");
    let (error, bound) = (relative(floats(&got[0].1), floats(&want)), tolerance("logits", Precision::Bf16));
    assert!(error <= bound, "{error:.2e}");
    ran(&opened.engine.device.launches(), &["attention_cached_fwd"]);
}

/// The host in bf16 rounds at the same points: its answer is the same, and so is that of another order of threads.
#[test]
fn answers_are_the_hosts_and_the_same_twice() {
    let (model, case) = CASES[0];
    let answer = |mut opened: Opened| {
        let (sequence, settings) = (opened.prompt(case), greedy(&opened, 8));
        let (answers, _) =
            generate(&mut opened.engine, &[&sequence], &settings, &mut |_, _| (), &mut |_, _| true).expect("an answer");
        (answers[0].tokens.clone(), opened)
    };
    let (host, _) = answer(Opened::golden(model, Precision::Bf16));
    for seed in [1, 2] {
        emulated::configure("seed", seed).expect("an emulator");
        let (tokens, opened) = answer(open(model));
        assert_eq!(tokens, host);
        ran(&opened.engine.device.launches(), &["sample_fwd", "attention_cached_fwd"]);
    }
}

#[test]
fn an_adapter() {
    let run = cases().join("uneven.train.mixed");
    let adapter = run.join("final_adapter");
    let got = Opened::on(device(), &cases().join("uneven"), Some(&adapter), Precision::Bf16).trace("one_image");
    compare("adapter emulated", &got, &reference("uneven.train.mixed/merged.one_image"), Precision::Bf16);
}

#[test]
fn training_follows_peft_and_gives_the_same_bits_twice() {
    let runs = [1, 2].map(|seed| {
        emulated::configure("seed", seed).expect("an emulator");
        follow(device(), Precision::Bf16, BF16)
    });
    assert!(runs[0].0 == runs[1].0, "two runs differ in what they trained");
    let words = [
        "attention_bwd",
        "deepstack_add_bwd",
        "embed_bwd",
        "linear_bwd",
        "norm_bwd",
        "qk_rope_bwd",
        "swiglu_bwd",
        "linear_loss",
        "grad_norm_fwd",
        "adamw_fwd",
        "cast_fwd",
    ];
    ran(&runs[0].1.launches(), &PROMPT);
    ran(&runs[0].1.launches(), &words);
}

/// A rank of 2 is held as one of 8, so that no product of the layers runs number by number; what fills it up stays zero.
#[test]
fn a_rank_that_is_no_multiple_of_8_leaves_products_their_kernels() {
    for capability in [(8, 0), (9, 0)] {
        let gpu = Device::emulated(capability).expect("an emulator");
        // of the models at hand, the one whose own widths are multiples
        let base = repository().join("assets/base");
        let (mut trainer, examples) = trainer_on(gpu, base.to_str().unwrap(), What::Lora(0.0), Precision::Bf16);
        step(&mut trainer, &[&examples[0]], Stream::new(4, &[2]));
        trainer.gradient_norm().unwrap();
        let optimizer = Optimizer {
            number: 1,
            vision_number: Some(1),
            learning_rate: 1e-2,
            vision_learning_rate: 1e-2,
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 0.1,
            max_norm: Some(1.0),
        };
        trainer.update(&optimizer).unwrap();
        let launches = trainer.engine.device.launches();
        ran(&launches, &["linear_fwd", "linear_bwd"]);
        let slow: Vec<_> = launches.keys().filter(|k| k.starts_with("linear_") && k.contains("_any_")).collect();
        assert!(slow.is_empty(), "{slow:?}");
        for (entry, (name, value)) in trainer.trainable.entries.clone().iter().zip(trainer.values().unwrap()) {
            let held = trainer.engine.device.memory().read_f32(entry.trained.value).unwrap();
            let nonzero = held.iter().filter(|x| **x != 0.0).count();
            assert_eq!(
                (value.shape, nonzero, held.len()),
                (entry.shape.clone(), held.len() / 4, 4 * nonzero),
                "{name}"
            );
        }
    }
}

/// What drops out is what drops out on the host: the gradients are as near to the host's as those of a step without, where
/// sums run in another order and round another way, and far from that step's.
#[test]
fn a_step_with_dropout_is_the_hosts() {
    for model in ["single", "uneven"] {
        let run = |device: Device, p: f64| {
            let (mut trainer, examples) = trainer_on(device, model, What::Lora(p), Precision::Bf16);
            let batch: Vec<&Example> = examples.iter().collect();
            let (losses, gradients) = step(&mut trainer, &batch, Stream::new(4, &[2]));
            (losses, gradients, trainer.engine.device)
        };
        let (want_losses, want, _) = run(Device::host(), 0.3);
        let (_, without, _) = run(Device::host(), 0.0);
        // by how much is a matter of which few numbers lie beside a tie
        let bound = (3.0 * relative(&run(device(), 0.0).1, &without)).max(5e-3);
        let runs = [1, 2].map(|seed| {
            emulated::configure("seed", seed).expect("an emulator");
            run(device(), 0.3)
        });
        assert!(runs[0].0 == runs[1].0 && runs[0].1 == runs[1].1, "{model}: two runs differ");
        let (losses, gradients, device) = &runs[0];
        let error = relative(gradients, &want);
        assert!(error <= bound && bound <= 6e-2, "{model}: gradients are off by {error:.2e}, allowed {bound:.2e}");
        assert!(relative(&without, &want) >= 0.3, "{model}: nothing drops out");
        for (got, want) in losses.iter().zip(&want_losses) {
            assert!((got - want).abs() <= 5e-3 * want, "{model}: {losses:?}, wanted {want_losses:?}");
        }
        ran(&device.launches(), &["linear_fwd_dropout", "linear_bwd_dx_dropout", "linear_bwd_dw_dropout"]);
    }
}
