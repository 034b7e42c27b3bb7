//! Whole runs on a small model, each in a folder of its own.

use super::json_lines;
use super::tiny::cases;
use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use vlm::base::{Precision, Result};
use vlm::device::Device;
use vlm::train::run_folder::Start;
use vlm::train::session::{Begin, End, Said, Watch, train};
use vlm::train::sets::Sets;
use vlm::train::settings::Settings;

/// A folder with a training set of its own.
pub struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    pub fn new() -> Bench {
        let bench = Bench { dir: tempfile::tempdir().unwrap() };
        bench.write("train.jsonl", &fs::read_to_string(cases().join("train.jsonl")).unwrap());
        fs::create_dir(bench.path("images")).unwrap();
        for name in ["wide.png", "glass.png"] {
            fs::copy(cases().join("images").join(name), bench.path("images").join(name)).unwrap();
        }
        bench
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// Six steps of two samples or one, a checkpoint after each second.
    pub fn settings(&self, change: impl FnOnce(&mut Settings)) -> Settings {
        let mut settings = Settings {
            model: cases().join("single"),
            data: self.path("train.jsonl"),
            out: self.path("run"),
            rank: Some(2),
            learning_rate: 1e-3,
            batch_size: 2,
            epochs: Some(3),
            save_every: Some(2),
            seed: 5,
            ..Settings::default()
        };
        change(&mut settings);
        settings.finish().unwrap()
    }

    /// On the host, in f32.
    pub fn run(&self, settings: &Settings, start: Start, interrupt_after: Option<u64>) -> Result<End> {
        self.run_on(Device::host(), Precision::F32, settings, start, interrupt_after)
    }

    pub fn run_on(
        &self,
        device: Device,
        precision: Precision,
        settings: &Settings,
        start: Start,
        interrupt_after: Option<u64>,
    ) -> Result<End> {
        let at = Cell::new(0);
        let mut said = |said: Said| {
            if let Said::Step(m, _) = said {
                at.set(m.step);
            }
        };
        let interrupted = || interrupt_after.is_some_and(|n| at.get() >= n);
        let mut watch = Watch { said: &mut said, interrupted: &interrupted };
        let begin = Begin { start, first_gradients: None, dollars_per_hour: Some(3.6) };
        train(settings, device, precision, &begin, &mut Sets::default(), &mut watch)
    }

    pub fn refusal(&self, settings: &Settings) -> String {
        self.run(settings, Start::New, None).expect_err("a refusal").to_string()
    }
}

pub fn adapter(out: &Path) -> Vec<u8> {
    fs::read(out.join("adapter_model.safetensors")).unwrap()
}

/// The log without the clock's numbers.
pub fn log(out: &Path) -> Vec<String> {
    let timeless = |mut line: serde_json::Map<String, serde_json::Value>| {
        ["seconds", "tokens_per_second", "word_seconds", "eval_seconds"].iter().for_each(|key| _ = line.remove(*key));
        serde_json::Value::Object(line).to_string()
    };
    json_lines(&out.join("metrics.jsonl")).into_iter().map(timeless).collect()
}
