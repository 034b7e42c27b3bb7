//! The host's part of what a GPU does: everything but the driver's calls, over a device that does nothing. A step of the
//! 8B model in which the host takes longer than its kernels leaves the GPU idle, however fast these are.
//!
//! `cargo bench --bench host [-- FILTER]`

use criterion::{Criterion, criterion_group, criterion_main};
use serde_json::{Map, Value, json};
use std::ffi::c_void;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use vlm::base::rng::Stream;
use vlm::base::{DType, Precision, Result};
use vlm::cli::bench::shapes::Shape;
use vlm::device::launcher::{Mark, TensorMap, TensorMapShape};
use vlm::device::recording::Recorded;
use vlm::device::{Device, Facts, Launch, Launcher};
use vlm::infer::engine::{Engine, Read};
use vlm::ops::sample::Choice;
use vlm::qwen3vl::checkpoint::Checkpoint;
use vlm::qwen3vl::config::Config;
use vlm::qwen3vl::model::{Model, Sampling};
use vlm::qwen3vl::names;
use vlm::qwen3vl::pack::Sequence;
use vlm::qwen3vl::trainable::Trainable;
use vlm::train::features::{Room, Store};
use vlm::train::step::{Example, Optimizer, Trainer};

/// A photo of 1000 x 667 in patches, and the tokens around it.
const GRID: [usize; 3] = [1, 42, 62];
const TEXT: usize = 40;
const ANSWER: usize = 64;

/// A GPU with 132 multiprocessors that does nothing.
struct Idle {
    facts: Facts,
    next: AtomicU64,
    /// Whether launches can be recorded.
    records: bool,
}

impl Idle {
    fn device(records: bool) -> Device {
        let facts = Facts {
            name: "no GPU".into(),
            capability: (9, 0),
            multiprocessors: 132,
            shared_bytes: 227 << 10,
            guarded: false,
            profiled: false,
        };
        Device::of(Arc::new(Idle { facts, next: AtomicU64::new(1 << 30), records })).expect("a device")
    }
}

struct Nothing;

impl Recorded for Nothing {
    unsafe fn replay(&self) -> Result<()> {
        Ok(())
    }
}

impl Launcher for Idle {
    fn facts(&self) -> &Facts {
        &self.facts
    }
    fn memory_bytes(&self) -> Option<(usize, usize)> {
        Some((140 << 30, 141 << 30))
    }
    fn allocate(&self, bytes: usize) -> Result<u64> {
        Ok(self.next.fetch_add((bytes as u64).next_multiple_of(1 << 20), Ordering::Relaxed))
    }
    unsafe fn free(&self, _: u64) {}
    unsafe fn write(&self, _: u64, _: &[u8]) -> Result<()> {
        Ok(())
    }
    unsafe fn read(&self, _: u64, bytes: &mut [u8]) -> Result<()> {
        bytes.fill(0);
        Ok(())
    }
    unsafe fn copy(&self, _: u64, _: u64, _: usize) -> Result<()> {
        Ok(())
    }
    unsafe fn fill(&self, _: u64, _: u8, _: usize) -> Result<()> {
        Ok(())
    }
    fn tensor_map(&self, _: &TensorMapShape) -> Result<TensorMap> {
        Ok(TensorMap([0; 16]))
    }
    unsafe fn launch(&self, _: &'static str, _: &Launch, _: *const c_void, _: usize) -> Result<()> {
        Ok(())
    }
    fn begin_recording(&self) -> Result<bool> {
        Ok(self.records)
    }
    fn end_recording(&self) -> Result<Option<Box<dyn Recorded>>> {
        Ok(self.records.then(|| Box::new(Nothing) as Box<dyn Recorded>))
    }
    fn synchronise(&self) -> Result<()> {
        Ok(())
    }
    fn mark(&self) -> Result<Mark> {
        Ok(Mark::now())
    }
}

/// Writes a checkpoint of the 8B model whose weights are a hole in their file.
fn write_checkpoint(dir: &Path) {
    Shape::B8.write(dir).expect("a folder");
    let (mut header, mut at) = (Map::new(), 0);
    for (name, shape) in names::expected(&Config::read(dir).expect("a config")) {
        let end = at + 2 * shape.iter().product::<usize>();
        header.insert(name, json!({"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}));
        at = end;
    }
    let mut text = Value::Object(header).to_string();
    text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
    let mut file = std::fs::File::create(dir.join("model.safetensors")).expect("a file");
    file.write_all(&(text.len() as u64).to_le_bytes()).and_then(|()| file.write_all(text.as_bytes())).expect("room");
    file.set_len((8 + text.len() + at) as u64).expect("a hole");
}

fn sequence() -> Sequence {
    let patches = GRID.iter().product::<usize>();
    let image = patches / 4;
    let is_image: Vec<bool> = (0..image + TEXT).map(|i| (4..4 + image).contains(&i)).collect();
    Sequence { ids: vec![5; is_image.len()], is_image, grids: vec![GRID], pixels: vec![0.5; patches * 1536] }
}

/// A trainer of rank 64 on q, k, v and o, as the one-dollar job has it.
fn trainer(dir: &Path) -> Trainer {
    let checkpoint = Checkpoint::open(dir).expect("a checkpoint");
    let wanted = ["q_proj", "k_proj", "v_proj", "o_proj"];
    let modules: Vec<_> = names::linear_modules(&checkpoint.config)
        .into_iter()
        .filter(|m| wanted.iter().any(|name| m.path.ends_with(name)))
        .collect();
    let trainable = Trainable::lora(&modules, 64, 1.0);
    let model = Model::training(&checkpoint, &trainable).expect("a model");
    let mut device = Idle::device(false);
    trainable.allocate(&mut device).expect("room");
    Trainer::new(Engine::new(model, device, Precision::Bf16), trainable, None)
}

fn training(c: &mut Criterion, dir: &Path) {
    let mut trainer = trainer(dir);
    let rows = GRID.iter().product::<usize>() / 4;
    let room = Room { dtype: DType::Bf16, width: 4096, tensors: 4, kept: vec![rows; 4], spare: 0, spare_rows: 0 };
    let mut store = Store::new(&mut trainer.engine.device, room).expect("room");
    let mut take = |trainer: &mut Trainer, sample: usize, sequence: &Sequence| {
        let made = trainer.features(sequence).expect("a pass").expect("features");
        store.take(&mut trainer.engine.device, sample, &made).expect("a place")
    };
    let photo = sequence();
    c.bench_function("tower of a photo", |b| b.iter(|| take(&mut trainer, 0, &photo)));
    let examples: Vec<Example> = (0..4)
        .map(|i| {
            let features = Some(take(&mut trainer, i, &photo));
            let sequence = Sequence { pixels: Vec::new(), ..photo.clone() };
            let labels = (0..sequence.ids.len()).map(|t| t + 3 > sequence.ids.len()).collect();
            Example { id: i as u64, sequence, labels, features }
        })
        .collect();
    let batch: Vec<&Example> = examples.iter().collect();
    let mut number = 0;
    c.bench_function("training step of 4 photos", |b| {
        b.iter(|| {
            number += 1;
            trainer.zero_gradients().expect("gradients");
            trainer.micro_batch(&batch, 1.0, Stream::new(0, &[u64::from(number)])).expect("a pass");
            trainer.gradient_norm().expect("a norm");
            let optimizer = Optimizer {
                number,
                vision_number: Some(number),
                learning_rate: 1e-4,
                vision_learning_rate: 1e-4,
                betas: [0.9, 0.999],
                eps: 1e-8,
                weight_decay: 0.0,
                max_norm: Some(1.0),
            };
            trainer.update(&optimizer).expect("an update");
        })
    });
}

fn decoding(c: &mut Criterion, dir: &Path) {
    for (name, records) in [("prompt and 64 tokens, launch by launch", false), ("prompt and 64 tokens, replayed", true)]
    {
        let checkpoint = Checkpoint::open(dir).expect("a checkpoint");
        let model = Model::load(&checkpoint, None).expect("a model");
        let mut engine = Engine::new(model, Idle::device(records), Precision::Bf16);
        let prompt = Sequence { ids: vec![5; TEXT], is_image: vec![false; TEXT], ..Sequence::default() };
        let sampling = Sampling {
            choice: Choice::GREEDY,
            n_valid: 151_936,
            seen: vec![Vec::new()],
            answers: vec![0],
            uniform: vec![0.5],
            capacity: 1,
        };
        c.bench_function(name, |b| {
            b.iter(|| {
                engine.reserve([TEXT + ANSWER]).expect("room");
                let read = Read::Tokens(&sampling);
                let (mut cached, _) = engine.prefill(&[&prompt], read, &mut |_, _| ()).expect("a prompt");
                for _ in 0..ANSWER {
                    let mut sequences: Vec<_> = cached.iter_mut().collect();
                    engine.extend(&mut sequences, &[&[7]], Read::Tokens(&sampling)).expect("a token");
                }
            })
        });
    }
}

fn host(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path().join("8b");
    write_checkpoint(&dir);
    training(c, &dir);
    decoding(c, &dir);
}

criterion_group!(benches, host);
criterion_main!(benches);
