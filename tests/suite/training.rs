//! The training step against a run of PEFT (tests/golden/cases/uneven.train.mixed: text, vision, merger and deepstack
//! targets, rsLoRA, weight decay): first gradients, then loss and norm of every step, then the final adapter.

use crate::batches::text;
use crate::support::tiny::{What, cases, step, trainer};
use std::path::Path;
use vlm::base::Precision;
use vlm::base::rng::Stream;
use vlm::data::dataset::{OnBad, read_dataset};
use vlm::device::Device;
use vlm::host::adamw;
use vlm::infer::engine::Engine;
use vlm::io::safetensors::SafetensorsFile;
use vlm::io::{HostData, HostTensor};
use vlm::qwen3vl::adapter::Adapter;
use vlm::qwen3vl::checkpoint::Checkpoint;
use vlm::qwen3vl::model::Model;
use vlm::qwen3vl::names;
use vlm::qwen3vl::prepare::Preparer;
use vlm::qwen3vl::processor::read_patch_spec;
use vlm::qwen3vl::template::Ending;
use vlm::qwen3vl::trainable::{Group, Trainable};
use vlm::train::step::{Example, Optimizer, Trainer};

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn numbers(tensor: &HostTensor) -> &[f32] {
    match &tensor.data {
        HostData::F32(values) => values,
        HostData::I64(_) => panic!("whole numbers"),
    }
}

/// Relative L2 distance; infinite where shapes differ or anything is not finite.
fn distance(got: &HostTensor, want: &HostTensor) -> f64 {
    let (got_values, want_values) = (numbers(got), numbers(want));
    if got.shape != want.shape || got_values.iter().any(|x| !x.is_finite()) {
        return f64::INFINITY;
    }
    let square: f64 = got_values.iter().zip(want_values).map(|(g, w)| (*g as f64 - *w as f64).powi(2)).sum();
    let norm: f64 = want_values.iter().map(|w| (*w as f64).powi(2)).sum();
    (square / norm.max(1e-300)).sqrt()
}

/// What was trained, in bits, and the device that did it.
pub fn follow(mut device: Device, precision: Precision, bounds: [f64; 4]) -> (Vec<Vec<u32>>, Device) {
    let run = cases().join("uneven.train.mixed");
    let checkpoint = Checkpoint::open(&cases().join("uneven")).unwrap();
    let spec = json(&run.join("spec.json"));
    let init = Adapter::open(&run.join("init_adapter"), &checkpoint.config).unwrap();
    let modules: Vec<_> =
        names::linear_modules(&checkpoint.config).into_iter().filter(|m| init.modules.contains_key(&m.path)).collect();
    let first = init.modules.values().next().unwrap();
    let trainable = Trainable::lora(&modules, first.rank, first.scale);
    trainable.allocate(&mut device).unwrap();
    trainable.start_from(&mut device, &init).unwrap();
    let model = Model::training(&checkpoint, &trainable).unwrap();
    let mut trainer = Trainer::new(Engine::new(model, device, precision), trainable, None);
    let patches = read_patch_spec(&checkpoint.dir).unwrap();
    let preparer = Preparer::open(&checkpoint.dir, &checkpoint.config, patches).unwrap();
    let data = read_dataset(&cases().join("train.jsonl"), None, OnBad::Fail).unwrap();
    let examples: Vec<Example> = data
        .samples
        .iter()
        .map(|s| {
            let id = s.line as u64;
            let prepared = preparer.prepare(&s.conversation, Ending::Complete).unwrap();
            Example { id, sequence: prepared.sequence, labels: prepared.labels, features: None }
        })
        .collect();
    let metrics: Vec<serde_json::Value> = std::fs::read_to_string(run.join("metrics.jsonl"))
        .unwrap()
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let batch = spec["batch_size"].as_u64().unwrap() as usize;
    let batches = std::iter::repeat_with(|| examples.chunks(batch)).flatten();
    let mut steps = 0;
    for (row, batch) in metrics.iter().zip(batches) {
        let step = row["step"].as_u64().unwrap();
        let n: usize = batch.iter().map(Example::label_tokens).sum();
        trainer.zero_gradients().unwrap();
        let batch: Vec<&Example> = batch.iter().collect();
        let loss: f64 =
            trainer.micro_batch(&batch, 1.0 / n as f32, Stream::new(0, &[step])).unwrap().iter().sum::<f64>()
                / n as f64;
        let norm = trainer.gradient_norm().unwrap();
        if step == 1 {
            let want = SafetensorsFile::open(&run.join("first_gradients.safetensors")).unwrap();
            let got = trainer.gradients().unwrap();
            assert_eq!(got.len(), want.tensors().len());
            for (name, got) in &got {
                let want = HostTensor::read(&want, &format!("base_model.model.{name}")).unwrap();
                let d = distance(got, &want);
                assert!(d <= bounds[0], "gradient of {name}: {d:.2e}");
            }
        }
        let near = |what: &str, got: f64, bound: f64| {
            let want = row[what].as_f64().unwrap();
            let d = (got - want).abs() / want.abs();
            assert!(d <= bound, "{what} of step {step}: {got}, wanted {want} ({d:.2e})");
        };
        near("loss", loss, bounds[1]);
        near("grad_norm", norm, bounds[2]);
        let lr = row["lr"].as_f64().unwrap();
        let optimizer = Optimizer {
            number: step as u32,
            vision_number: Some(step as u32),
            learning_rate: lr,
            vision_learning_rate: lr,
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: spec["weight_decay"].as_f64().unwrap(),
            max_norm: spec["max_grad_norm"].as_f64(),
        };
        trainer.update(&optimizer).unwrap();
        steps += 1;
    }
    assert_eq!(steps, metrics.len());
    let want = SafetensorsFile::open(&run.join("final_adapter/adapter_model.safetensors")).unwrap();
    let trained = trainer.values().unwrap();
    for (name, got) in &trained {
        let want = HostTensor::read(&want, &format!("base_model.model.{name}")).unwrap();
        let d = distance(got, &want);
        assert!(d <= bounds[3], "final {name}: {d:.2e}");
    }
    let bits = trained.iter().map(|(_, t)| numbers(t).iter().map(|x| x.to_bits()).collect());
    (bits.collect(), trainer.engine.device)
}

/// A step without photos gives the tower and its mergers no gradients, as in PyTorch: they and their moments stay as they
/// are, undecayed, and the step after it is their second.
#[test]
fn a_step_without_photos_leaves_the_tower_alone() {
    let (mut trainer, examples) = trainer("uneven", What::Lora(0.0), Precision::F32);
    let sequence = text(9);
    let labels = vec![true; sequence.ids.len()];
    let written = Example { id: 9, sequence, labels, features: None };
    let mut number = 0;
    let mut update = |trainer: &mut Trainer, example: &Example, vision_number: Option<u32>| {
        number += 1;
        step(trainer, &[example], Stream::new(0, &[]));
        trainer.gradient_norm().unwrap();
        let optimizer = Optimizer {
            number,
            vision_number,
            learning_rate: 1e-2,
            vision_learning_rate: 1e-2,
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 0.3,
            max_norm: None,
        };
        trainer.update(&optimizer).unwrap();
    };
    // values, gradients and moments, of the tower's groups and of the others
    let state = |trainer: &mut Trainer, vision: bool| -> Vec<[Vec<f32>; 4]> {
        let groups: Vec<_> = trainer.trainable.groups.iter().filter(|g| g.vision == vision).copied().collect();
        let memory = trainer.engine.device.memory();
        let read = |g: &Group| [g.value, g.gradient, g.first, g.second].map(|t| memory.read_f32(t).unwrap());
        groups.iter().map(read).collect()
    };
    update(&mut trainer, &examples[0], Some(1));
    let (before, others) = (state(&mut trainer, true), state(&mut trainer, false));
    update(&mut trainer, &written, None);
    let between = state(&mut trainer, true);
    assert!(!before.is_empty() && between.iter().all(|[_, gradient, ..]| gradient.iter().all(|g| *g == 0.0)));
    for (before, after) in before.iter().zip(&between) {
        assert!(before[0] == after[0] && before[2..] == after[2..], "a value or a moment has moved");
    }
    assert!(others[0][0] != state(&mut trainer, false)[0][0], "the language model has learnt");
    update(&mut trainer, &examples[1], Some(2));
    for ([value, _, first, second], after) in between.iter().zip(&state(&mut trainer, true)) {
        let second_step = adamw::Step {
            number: 2,
            learning_rate: 1e-2,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.3,
            gradient_scale: 1.0,
        };
        let (mut value, mut first, mut second) = (value.clone(), first.clone(), second.clone());
        adamw::adamw(&second_step, &mut value, &after[1], &mut first, &mut second);
        assert!(value == after[0] && first == after[2] && second == after[3], "not its second step");
    }
}

#[test]
fn follows_peft_in_f32() {
    follow(Device::host(), Precision::F32, [1e-4, 5e-5, 1e-4, 1e-3]);
}

/// Of gradients, losses, norms and the adapter. transformers' own bf16 run of this case (base and activations in bf16,
/// adapters in f32) is off by up to 6.3e-3 in its losses and 4.0e-2 in its norms. Of losses half as much again is allowed
/// here; of norms twice, since where sums fall on the other side of a tie moves their worst step from 3e-2 to 6.5e-2 and
/// back, however exactly attention is computed. Gradients and adapter: within what it loses on cases of this size.
pub const BF16: [f64; 4] = [1.2e-1, 9.5e-3, 8e-2, 3e-2];

#[test]
fn follows_peft_in_bf16() {
    follow(Device::host(), Precision::Bf16, BF16);
}
