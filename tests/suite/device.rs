//! Devices that run kernels: what is said where something is missing, and what memory refuses.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use vlm::base::{DType, Precision, Result};
use vlm::device::launcher::{Mark, TensorMap, TensorMapShape};
use vlm::device::probe::{Built, Gpu, Probe};
use vlm::device::recording::Recorded;
use vlm::device::{Device, Facts, Launch, Launcher};
use vlm::ops::embed::Embed;
use vlm::ops::sample::{Choice, Sample};
use vlm::tape::Tape;
use vlm::tensor::{Tensor, Weight};

/// What is said of a machine; None where it can compute on its GPU.
fn said(probe: &Probe, built: &Built) -> Option<String> {
    probe.cuda_problem(built)
}

fn gpu(capability: (i32, i32)) -> Gpu {
    Gpu { name: "NVIDIA Test".into(), memory_bytes: 1 << 34, capability }
}

#[test]
fn each_missing_part_has_its_sentence() {
    let built = Built { sm_80: true, sm_90a: true, ptx: true, cuda_version: Some(13) };
    let works = Probe { driver_cuda_version: Some(13000), driver_error: None, gpus: vec![gpu((9, 0))] };
    assert_eq!(said(&works, &built), None);
    let cases = [
        (Probe::default(), "no CUDA driver (libcuda.so.1 is not there)"),
        (Probe { driver_error: Some("cuInit failed: no device".into()), ..works.clone() }, "cuInit failed"),
        (Probe { gpus: vec![], ..works.clone() }, "the driver finds no GPU"),
        (Probe { gpus: vec![gpu((7, 5))], ..works.clone() }, "NVIDIA Test has compute capability 7.5"),
        (Probe { driver_cuda_version: Some(12040), ..works.clone() }, "serves CUDA 12.4"),
    ];
    for (probe, wanted) in cases {
        let got = said(&probe, &built).expect("a sentence");
        assert!(got.contains(wanted), "{got}");
        assert!(!got.contains('\n') && got.contains("use --device cpu"), "{got}");
    }
    assert!(
        said(&Probe { driver_cuda_version: Some(12040), ..works.clone() }, &built).unwrap().contains("580 or newer")
    );
    let none = said(&works, &Built::default()).expect("a sentence");
    assert!(none.contains("this build of vlm has no GPU kernels"), "{none}");
    let hopper = Built { sm_80: false, ptx: false, ..built };
    let other = Probe { gpus: vec![gpu((8, 6))], ..works };
    assert!(said(&other, &hopper).expect("a sentence").contains("no kernels for compute capability 8.6"));
}

/// A device with little memory and no kernels.
struct Small {
    facts: Facts,
    total: usize,
    used: AtomicUsize,
}

impl Small {
    fn device(total: usize) -> Device {
        let facts = Facts {
            name: "small".into(),
            capability: (9, 0),
            multiprocessors: 1,
            shared_bytes: 1 << 16,
            guarded: false,
            profiled: false,
        };
        Device::of(Arc::new(Small { facts, total, used: AtomicUsize::new(0) })).expect("a device")
    }
}

impl Launcher for Small {
    fn facts(&self) -> &Facts {
        &self.facts
    }
    fn memory_bytes(&self) -> Option<(usize, usize)> {
        Some((self.total - self.used.load(Ordering::Relaxed), self.total))
    }
    fn allocate(&self, bytes: usize) -> Result<u64> {
        Ok(1 << 20 | self.used.fetch_add(bytes, Ordering::Relaxed) as u64)
    }
    unsafe fn free(&self, _: u64) {}
    unsafe fn write(&self, _: u64, _: &[u8]) -> Result<()> {
        Ok(())
    }
    unsafe fn read(&self, _: u64, _: &mut [u8]) -> Result<()> {
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
        Ok(false)
    }
    fn end_recording(&self) -> Result<Option<Box<dyn Recorded>>> {
        Ok(None)
    }
    fn synchronise(&self) -> Result<()> {
        Ok(())
    }
    fn mark(&self) -> Result<Mark> {
        Ok(Mark::now())
    }
}

/// A table of 2 MB in bf16 and 1 MB of activations; counters take 32 KiB besides.
fn tape() -> Tape {
    let mut tape = Tape::new(Precision::Bf16);
    let table = Weight::from_f32("table", [1000, 1000], &vec![0.0; 1_000_000]).expect("a weight");
    let ids = tape.input(DType::I32, [500]);
    let y = tape.activation([500, 1000]);
    tape.push(Embed { ids, table, image: None, precision: Precision::Bf16, y }).expect("an embedding");
    tape
}

#[test]
fn too_little_memory_is_said_before_the_first_step() {
    let tape = tape();
    let said = tape.begin(&mut Small::device(2_500_000)).expect_err("3 MB in 2.5").to_string();
    let rows = ["weights", "2.00 MB", "activations", "1.00 MB", "cache of keys and values", "--batch-size"];
    for row in
        [&["out of memory on small: 3.04 MB more are needed and 2.50 MB of 2.50 MB are free"], &rows[..]].concat()
    {
        assert!(said.contains(row), "{row} in\n{said}");
    }
    let mut device = Small::device(4_000_000);
    tape.begin(&mut device).expect("3 MB in 4");
    // what is there already is not counted again
    tape.begin(&mut device).expect("the same tape again");
}

#[test]
fn intermediate_results_have_their_memory_before_the_first_step() {
    // 1 MB of logits, two lists of as many 4-byte numbers to draw from, 32 KiB of counters, and what chunks leave
    let (mut tape, v) = (Tape::new(Precision::Bf16), 250_000);
    let choice = Choice { temperature: Some(1.0), ..Choice::GREEDY };
    let [seen, generated, y] = [0, 0, 1].map(|n| tape.input(DType::I32, [1, n]));
    let (logits, uniform) = (tape.input(DType::F32, [1, v]), tape.input(DType::F32, [1]));
    let y = Tensor { shape: [1].into(), ..y };
    tape.push(Sample { logits, seen, generated, uniform, choice, n_valid: v, y }).expect("a choice");
    let said = tape.begin(&mut Small::device(2_500_000)).expect_err("3 MB in 2.5").to_string();
    assert!(said.contains("intermediate results of a kernel") && said.contains("2.04 MB"), "{said}");
    let mut device = Small::device(4_000_000);
    tape.begin(&mut device).expect("3 MB in 4");
    let Device::Launch(gpu) = &mut device else { panic!("a device that runs kernels") };
    let (free, sizes) = (gpu.free_bytes(), tape.records()[0].op().scratch(gpu.facts()).expect("sizes"));
    let [keys, ids, _] = gpu.scratch(&sizes).expect("what was reserved");
    assert!(ids - keys >= 4 * v as u64 && gpu.free_bytes() == free, "{free:?}");
    let said = gpu.scratch::<2>(&sizes).expect_err("three ranges").to_string();
    assert!(said.contains("2 ranges"), "{said}");
}

#[test]
fn a_device_has_addresses_and_no_loans() {
    let (tape, mut device) = (tape(), Small::device(4_000_000));
    tape.begin(&mut device).expect("room");
    let y = tape.records()[0].op().outputs()[0];
    let memory = device.memory();
    let said = memory.borrow(&[y], &[], &[]).err().expect("no loan").to_string();
    assert!(said.contains("an arena of the host"), "{said}");
    let Device::Launch(gpu) = &mut device else { panic!("a device that runs kernels") };
    let said = gpu.addresses(&[y], &[], &[y]).err().expect("an overlap").to_string();
    assert!(said.contains("inputs and outputs apart"), "{said}");
    let stale = vlm::tensor::Tensor { generation: y.generation + 1000, ..y };
    let said = gpu.addresses(&[stale], &[], &[]).err().expect("a stale handle").to_string();
    assert!(said.contains("stale"), "{said}");
    let other = Weight::from_f32("other", [1], &[1.0]).expect("a weight");
    let addresses = gpu.addresses(&[], &[], &[y]).expect("an output");
    assert!(addresses.of(&y).is_ok() && addresses.weight(&other).is_err());
}
