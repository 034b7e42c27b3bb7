//! A small model of `tests/golden/cases` in training.

use super::repository;
use std::path::PathBuf;
use vlm::base::Precision;
use vlm::base::rng::Stream;
use vlm::data::dataset::{OnBad, read_dataset};
use vlm::device::Device;
use vlm::infer::engine::Engine;
use vlm::qwen3vl::checkpoint::Checkpoint;
use vlm::qwen3vl::model::Model;
use vlm::qwen3vl::names;
use vlm::qwen3vl::prepare::Preparer;
use vlm::qwen3vl::processor::read_patch_spec;
use vlm::qwen3vl::template::Ending;
use vlm::qwen3vl::trainable::Trainable;
use vlm::train::step::{Example, Trainer};

pub fn cases() -> PathBuf {
    repository().join("tests/golden/cases")
}

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum What {
    /// Rank 2 on every linear map but the head, with this dropout.
    Lora(f64),
    Full,
}

/// The trainer of one of the models, and the three samples of train.jsonl. Adapters begin with numbers everywhere.
pub fn trainer(model: &str, what: What, precision: Precision) -> (Trainer, Vec<Example>) {
    trainer_on(Device::host(), model, what, precision)
}

/// The same on another device.
pub fn trainer_on(mut device: Device, model: &str, what: What, precision: Precision) -> (Trainer, Vec<Example>) {
    let checkpoint = Checkpoint::open(&cases().join(model)).unwrap();
    let trainable = match what {
        What::Full => Trainable::full(&checkpoint),
        What::Lora(dropout) => {
            let modules = names::linear_modules(&checkpoint.config);
            let modules: Vec<_> = modules.into_iter().filter(|m| m.path != names::LM_HEAD).collect();
            Trainable::lora(&modules, 2, 1.5).with_dropout(dropout)
        }
    };
    trainable.allocate(&mut device).unwrap();
    match what {
        What::Full => trainable.start_full(&mut device, &checkpoint).unwrap(),
        What::Lora(_) => {
            for (i, entry) in trainable.entries.iter().enumerate() {
                let mut values = vec![0.0; entry.shape.iter().product()];
                Stream::new(3, &[i as u64]).fill_normal(0, &mut values);
                values.iter_mut().for_each(|v| *v *= 0.2);
                entry.write(device.memory(), &values).unwrap();
            }
        }
    }
    let model = Model::training(&checkpoint, &trainable).unwrap();
    let preparer =
        Preparer::open(&checkpoint.dir, &checkpoint.config, read_patch_spec(&checkpoint.dir).unwrap()).unwrap();
    let data = read_dataset(&cases().join("train.jsonl"), None, OnBad::Fail).unwrap();
    let example = |s: &vlm::data::dataset::Sample| {
        let prepared = preparer.prepare(&s.conversation, Ending::Complete).unwrap();
        Example { id: s.line as u64, sequence: prepared.sequence, labels: prepared.labels, features: None }
    };
    let examples = data.samples.iter().map(example).collect();
    (Trainer::new(Engine::new(model, device, precision), trainable, None), examples)
}

/// Losses and all gradients of one batch.
pub fn step(trainer: &mut Trainer, examples: &[&Example], random: Stream) -> (Vec<f64>, Vec<f32>) {
    trainer.zero_gradients().unwrap();
    let losses = trainer.micro_batch(examples, 0.25, random).unwrap();
    let gradients = trainer.trainable.gradients;
    (losses, trainer.engine.device.memory().read_f32(gradients).unwrap())
}
