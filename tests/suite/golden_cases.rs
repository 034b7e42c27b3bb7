//! The whole model against transformers and PEFT: two small checkpoints and what those computed for them.
//! tests/golden/README.md says where the values come from and how far they are from float64.

use std::path::Path;
use vlm::base::Precision;
use vlm::data::messages::read_messages;
use vlm::device::Device;
use vlm::infer::engine::Engine;
use vlm::infer::generate::{Finish, Settings, generate};
use vlm::infer::trace;
use vlm::io::safetensors::SafetensorsFile;
use vlm::io::{HostData, HostTensor};
use vlm::ops::sample::Choice;
use vlm::qwen3vl::adapter::Adapter;
use vlm::qwen3vl::checkpoint::Checkpoint;
use vlm::qwen3vl::merge;
use vlm::qwen3vl::model::Model;
use vlm::qwen3vl::pack::Sequence;
use vlm::qwen3vl::prepare::Preparer;
use vlm::qwen3vl::processor::read_patch_spec;
use vlm::qwen3vl::template::Ending;

pub const CASES: [(&str, &str); 4] =
    [("uneven", "one_image"), ("uneven", "turns"), ("single", "one_image"), ("single", "text_only")];
const BOTH: [Precision; 2] = [Precision::F32, Precision::Bf16];

pub use crate::support::tiny::cases;

/// A model of the cases, ready to run.
pub struct Opened {
    pub engine: Engine,
    pub preparer: Preparer,
}

impl Opened {
    pub fn new(dir: &Path, adapter: Option<&Path>, precision: Precision) -> Opened {
        Opened::on(Device::host(), dir, adapter, precision)
    }

    pub fn on(device: Device, dir: &Path, adapter: Option<&Path>, precision: Precision) -> Opened {
        let checkpoint = Checkpoint::open(dir).unwrap();
        let adapter = adapter.map(|a| Adapter::open(a, &checkpoint.config).unwrap());
        let model = Model::load(&checkpoint, adapter.as_ref()).unwrap();
        let preparer = Preparer::open(dir, &checkpoint.config, read_patch_spec(dir).unwrap()).unwrap();
        Opened { engine: Engine::new(model, device, precision), preparer }
    }

    pub fn golden(model: &str, precision: Precision) -> Opened {
        Opened::new(&cases().join(model), None, precision)
    }

    pub fn prompt(&self, case: &str) -> Sequence {
        let conversation = read_messages(&cases().join(format!("{case}.json"))).unwrap();
        self.preparer.prepare(&conversation, Ending::GenerationPrompt).unwrap().sequence
    }

    pub fn trace(&mut self, case: &str) -> Vec<(String, HostTensor)> {
        let sequence = self.prompt(case);
        trace::trace(&mut self.engine, &sequence, &mut |_, _| ()).unwrap()
    }
}

pub fn reference(name: &str) -> SafetensorsFile {
    SafetensorsFile::open(&cases().join(format!("{name}.safetensors"))).unwrap()
}

pub fn floats(tensor: &HostTensor) -> &[f32] {
    match &tensor.data {
        HostData::F32(values) => values,
        HostData::I64(_) => panic!("whole numbers"),
    }
}

/// |got - want| / |want|, both L2. NaN where either holds one.
pub fn relative(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    assert!(!want.is_empty());
    let square = |x: f64| x * x;
    let difference: f64 = got.iter().zip(want).map(|(g, w)| square(*g as f64 - *w as f64)).sum();
    let norm: f64 = want.iter().map(|w| square(*w as f64)).sum();
    if norm > 0.0 { (difference / norm).sqrt() } else { difference.sqrt() }
}

#[test]
fn the_comparison_itself() {
    assert_eq!(relative(&[3.0, 4.0], &[3.0, 4.0]), 0.0);
    assert_eq!(relative(&[0.0, 0.0], &[3.0, 4.0]), 1.0);
    assert_eq!(relative(&[0.5], &[0.0]), 0.5);
    assert!(relative(&[f32::NAN], &[1.0]).is_nan());
}

/// Relative L2 errors that are allowed. f32: the references are themselves within 1.3e-6 of float64, and a sum of some
/// hundred products in another order differs by about as much again. bf16: about what transformers' own bf16 loses on
/// models of this kind (features 0.008, hidden states and logits 0.016) and a half more.
pub fn tolerance(name: &str, precision: Precision) -> f64 {
    match (name.split('.').next().unwrap(), precision) {
        ("pixel_values", Precision::F32) => 2e-6,
        ("pixel_values", Precision::Bf16) => 4e-3,
        (_, Precision::F32) => 2e-5,
        ("image_embeds" | "deepstack", Precision::Bf16) => 1.2e-2,
        ("hidden", Precision::Bf16) => 2e-2,
        ("logits", Precision::Bf16) => 2.2e-2,
        (other, _) => panic!("{other}"),
    }
}

/// Holds tensors against all of a reference file but the generated ids.
pub fn compare(place: &str, got: &[(String, HostTensor)], file: &SafetensorsFile, precision: Precision) {
    let mut compared = 0;
    for (name, _) in file.tensors().filter(|(name, _)| *name != "generated_ids") {
        let want = HostTensor::read(file, name).unwrap();
        let (_, got) = got.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("{place}: no {name}"));
        assert_eq!(got.shape, want.shape, "{place} {name}");
        match (&got.data, &want.data) {
            (HostData::I64(got), HostData::I64(want)) => assert_eq!(got, want, "{place} {name}"),
            (HostData::F32(got), HostData::F32(want)) => {
                let (error, bound) = (relative(got, want), tolerance(name, precision));
                assert!(error <= bound, "{place} {name}: relative error {error:.2e}, at most {bound:.0e}");
            }
            _ => panic!("{place} {name}: another type"),
        }
        compared += 1;
    }
    assert!(compared >= 2, "{place}: {compared} tensors");
}

#[test]
fn every_tensor_of_every_case() {
    for precision in BOTH {
        for (model, case) in CASES {
            let got = Opened::golden(model, precision).trace(case);
            compare(&format!("{model}.{case} {precision:?}"), &got, &reference(&format!("{model}.{case}")), precision);
        }
    }
}

/// Where the reference is sure (margins as large as the precision resolves), the likeliest token is the same.
#[test]
fn the_likeliest_token_of_every_position() {
    for (precision, margin) in [(Precision::F32, 1e-4), (Precision::Bf16, 0.1)] {
        for (model, case) in CASES {
            let got = Opened::golden(model, precision).trace(case);
            let (_, got) = got.iter().find(|(name, _)| name == "logits").unwrap();
            let want = HostTensor::read(&reference(&format!("{model}.{case}")), "logits").unwrap();
            let best = |row: &[f32]| (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best });
            let mut sure = 0;
            for (got, want) in floats(got).chunks(got.shape[1]).zip(floats(&want).chunks(want.shape[1])) {
                let first = best(want);
                let second =
                    want.iter().enumerate().filter(|(i, _)| *i != first).map(|(_, x)| *x).fold(f32::MIN, f32::max);
                let size = (want.iter().map(|x| x * x).sum::<f32>() / want.len() as f32).sqrt();
                if want[first] - second > margin * size {
                    assert_eq!(best(got), first, "{model}.{case} {precision:?}");
                    sure += 1;
                }
            }
            assert!(sure > 5, "{model}.{case} {precision:?}: {sure}");
        }
    }
}

#[test]
fn logits_one_token_at_a_time_through_the_cache() {
    for precision in BOTH {
        for (model, case) in CASES {
            let mut opened = Opened::golden(model, precision);
            let sequence = opened.prompt(case);
            let got = trace::through_cache(&mut opened.engine, &sequence, &mut |_, _| ()).unwrap();
            let want = HostTensor::read(&reference(&format!("{model}.{case}")), "logits").unwrap();
            assert_eq!(got[0].1.shape, want.shape);
            let (error, bound) = (relative(floats(&got[0].1), floats(&want)), tolerance("logits", precision));
            assert!(error <= bound, "{model}.{case} {precision:?}: {error:.2e}");
        }
    }
}

/// Greedy, as the references were made: ids without text are never chosen, nothing stops it early.
pub fn greedy(opened: &Opened, n: usize) -> Settings {
    let n_valid = opened.preparer.prompts.tokenizer().n_tokens();
    Settings { choice: Choice::GREEDY, seed: 0, max_new_tokens: n, stop: Vec::new(), n_valid }
}

#[test]
fn greedy_answers() {
    for (model, case) in CASES {
        let HostData::I64(want) =
            HostTensor::read(&reference(&format!("{model}.{case}")), "generated_ids").unwrap().data
        else {
            panic!("generated_ids are whole numbers")
        };
        let mut opened = Opened::golden(model, Precision::F32);
        let (sequence, settings) = (opened.prompt(case), greedy(&opened, want.len()));
        let (answers, _) =
            generate(&mut opened.engine, &[&sequence], &settings, &mut |_, _| (), &mut |_, _| true).unwrap();
        let got: Vec<i64> = answers[0].tokens.iter().map(|t| *t as i64).collect();
        assert_eq!(got, want, "{model}.{case}");
        assert_eq!(answers[0].finish, Finish::Length);
    }
}

#[test]
fn an_adapter_applied_and_merged() {
    let run = cases().join("uneven.train.mixed");
    let (base, adapter) = (cases().join("uneven"), run.join("final_adapter"));
    let file = reference("uneven.train.mixed/merged.one_image");
    for precision in BOTH {
        let got = Opened::new(&base, Some(&adapter), precision).trace("one_image");
        compare(&format!("adapter {precision:?}"), &got, &file, precision);
    }
    let want = HostTensor::read(&file, "logits").unwrap();
    let logits = |tensors: Vec<(String, HostTensor)>| tensors.into_iter().find(|(n, _)| n == "logits").unwrap().1;
    let plain = logits(Opened::golden("uneven", Precision::F32).trace("one_image"));
    assert!(relative(floats(&plain), floats(&want)) > 1e-2, "the adapter changes the logits, or nothing was tested");
    let folder = tempfile::tempdir().unwrap();
    let merged = folder.path().join("merged");
    let checkpoint = Checkpoint::open(&base).unwrap();
    let adapter = Adapter::open(&adapter, &checkpoint.config).unwrap();
    let options = merge::Options { dtype: Some(vlm::base::DType::F32), ..Default::default() };
    merge::merge(&checkpoint, Some(&adapter), &merged, options, &mut |_, _| ()).unwrap();
    let got = logits(Opened::new(&merged, None, Precision::F32).trace("one_image"));
    let error = relative(floats(&got), floats(&want));
    assert!(error <= tolerance("logits", Precision::F32), "{error:.2e}");
}
