//! Kernels against the host: one operation, run by the host in bf16 and by the emulator, over the same numbers.

use super::random::Random;
use std::cell::RefCell;
use std::collections::BTreeMap;
use vlm::base::{DType, Result, Shape};
use vlm::device::probe::{built, probe};
use vlm::device::{Device, Layout, Place, emulated, layout::ALIGNMENT};
use vlm::ops::Op;
use vlm::tensor::{Arena, Tensor, Trained, Weight, new_generation};

/// The largest error of a row beside the row's length: sums run in another order.
pub const ROW: f64 = 1e-3;

/// Operations with rounding points within. Where f32 sums of another order lead to the other side of a tie, a weight of a
/// row's mean changes by up to 2^-8 of it, and the row by up to half as much: so much may [`tied_rows`] be off.
const ROUND_WITHIN: [&str; 3] = ["attention", "attention_backward", "attention_cached"];
const TIED_ROW: f64 = 1.0 / 256.0;

/// How many of a tensor's rows may hold such a number: they are one in thousands.
fn tied_rows(rows: usize) -> usize {
    1 + rows / 500
}

/// What a canary holds: a number of bf16 that no test computes; behind whole numbers an index that would be followed, were
/// it read.
const CANARY: f32 = -3072.0;
const CANARY_INDEX: i32 = 1;

/// How many seeds of the emulator each case runs under: `VLM_EMULATOR_SEEDS`, or 3; tools/soak-emulator asks for 100. Of 0
/// seeds what runs on this machine's GPU too runs there alone.
pub fn seeds() -> i64 {
    std::env::var("VLM_EMULATOR_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(3)
}

/// The order of threads and the delays of a seed: the first has the default ones, nine have all.
fn order(seed: i64) -> Result<()> {
    emulated::configure("seed", seed)?;
    emulated::configure("policy", (seed + 1) % 3)?;
    emulated::configure("async", (seed / 3 + seed + 1) % 3)
}

/// Of every tensor and canary of a case.
pub type Bits = Vec<Vec<u32>>;

/// Lends a run its device.
type Lend<'a> = &'a mut dyn FnMut(i64, &mut dyn FnMut(&mut Device));

/// Whether this machine has a GPU that the build has code for; says why not.
pub fn has_gpu() -> bool {
    let problem = probe().cuda_problem(&built());
    problem.iter().for_each(|why| println!("skipped: kernels on a GPU: {why}"));
    problem.is_none()
}

/// Lends this machine's GPU, where it has one that the build has code for: each test opens it once.
pub fn on_gpu(test: impl FnOnce(&mut Device)) {
    thread_local! {
        static GPU: RefCell<Option<Device>> =
            RefCell::new(has_gpu().then(|| Device::cuda(0).expect("a GPU")));
    }
    GPU.with_borrow_mut(|gpu| gpu.as_mut().map(test));
}

/// What a tensor holds before the operation.
#[derive(Debug, Clone)]
enum Start {
    F32(Vec<f32>),
    I32(Vec<i32>),
}

/// Tensors of one operation with their numbers. Behind each lies a canary, up to the next and 256 bytes more.
pub struct Case {
    random: Random,
    generation: u32,
    activations: Slots,
    parameters: Slots,
}

#[derive(Default)]
struct Slots {
    places: Vec<Place>,
    starts: Vec<(Tensor, Start)>,
    bytes: usize,
}

impl Case {
    pub fn new(seed: u64) -> Case {
        let (activations, parameters) = Default::default();
        Case { random: Random::new(seed), generation: new_generation(), activations, parameters }
    }

    fn place(&mut self, arena: Arena, dtype: DType, shape: Shape, start: Start) -> Tensor {
        let generation = self.generation;
        let slots = if arena == Arena::Parameters { &mut self.parameters } else { &mut self.activations };
        let tensor = |slot: usize, dtype, shape| Tensor { arena, slot: slot as u32, generation, dtype, shape };
        let value = tensor(slots.places.len(), dtype, shape);
        let offset = slots.bytes;
        slots.places.push(Place { offset, bytes: value.bytes() });
        slots.starts.push((value, start));
        let end = (offset + value.bytes()).next_multiple_of(ALIGNMENT) + ALIGNMENT;
        let canary_bytes = end - offset - value.bytes();
        let (of, start) = match dtype {
            DType::I32 => (DType::I32, Start::I32(vec![CANARY_INDEX; canary_bytes / 4])),
            _ => (DType::Bf16, Start::F32(vec![CANARY; canary_bytes / 2])),
        };
        let canary = tensor(slots.places.len(), of, [canary_bytes / of.bytes()].into());
        slots.places.push(Place { offset: offset + value.bytes(), bytes: canary_bytes });
        slots.starts.push((canary, start));
        slots.bytes = end;
        value
    }

    /// Random numbers of about this deviation.
    pub fn numbers(&mut self, dtype: DType, shape: impl Into<Shape>, deviation: f64) -> Tensor {
        let shape = shape.into();
        let values = self.random.f32s(shape.elements(), deviation);
        self.place(Arena::Activations, dtype, shape, Start::F32(values))
    }

    /// Random bf16 numbers of deviation 1.
    pub fn bf16(&mut self, shape: impl Into<Shape>) -> Tensor {
        self.numbers(DType::Bf16, shape, 1.0)
    }

    /// Random multiples of 1/4 up to 4: sums of their products are exact in f32, in any order.
    pub fn coarse(&mut self, shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        let values = (0..shape.elements()).map(|_| self.random.below(33) as f32 / 4.0 - 4.0).collect();
        self.values(DType::Bf16, shape, values)
    }

    /// These numbers, rounded to the type.
    pub fn values(&mut self, dtype: DType, shape: impl Into<Shape>, values: Vec<f32>) -> Tensor {
        self.place(Arena::Activations, dtype, shape.into(), Start::F32(values))
    }

    /// These whole numbers.
    pub fn whole(&mut self, shape: impl Into<Shape>, values: Vec<i32>) -> Tensor {
        self.place(Arena::Activations, DType::I32, shape.into(), Start::I32(values))
    }

    /// Room for a result: NaN until it is written.
    pub fn output(&mut self, dtype: DType, shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        let start = match dtype {
            DType::I32 => Start::I32(vec![i32::MIN; shape.elements()]),
            _ => Start::F32(vec![f32::NAN; shape.elements()]),
        };
        self.place(Arena::Activations, dtype, shape, start)
    }

    /// A frozen weight of a checkpoint in f32, so that the device has to round it.
    pub fn weight(&mut self, name: &str, shape: impl Into<Shape>, deviation: f64) -> Weight {
        let shape = shape.into();
        let values = self.random.f32s(shape.elements(), deviation);
        Weight::from_f32(name, shape, &values).expect("a weight")
    }

    /// A trained weight, with a gradient that holds something already.
    pub fn trained(&mut self, name: &str, shape: impl Into<Shape>, deviation: f64) -> Weight {
        let shape = shape.into();
        let value = self.parameter(shape, deviation);
        let gradient = self.parameter(shape, 1.0);
        Weight::trained(name, Trained { value, gradient })
    }

    /// f32 numbers beside the trained weights: moments, flat buffers.
    pub fn parameter(&mut self, shape: impl Into<Shape>, deviation: f64) -> Tensor {
        let shape = shape.into();
        let values = self.random.f32s(shape.elements(), deviation);
        self.place(Arena::Parameters, DType::F32, shape, Start::F32(values))
    }

    /// The random numbers that the case draws from.
    pub fn random(&mut self) -> &mut Random {
        &mut self.random
    }

    fn all(&self) -> impl Iterator<Item = &(Tensor, Start)> {
        self.activations.starts.iter().chain(&self.parameters.starts)
    }

    /// Lays a device out and writes what every tensor starts with.
    pub fn begin(&self, device: &mut Device) -> Result<()> {
        let memory = device.memory();
        for (arena, slots) in [(Arena::Activations, &self.activations), (Arena::Parameters, &self.parameters)] {
            let (generation, places) = (self.generation, slots.places.clone());
            memory.lay_out(arena, Layout { generation, places, bytes: slots.bytes })?;
        }
        self.all().try_for_each(|(tensor, start)| match start {
            Start::F32(values) => memory.write_f32(*tensor, values),
            Start::I32(values) => memory.write_i32(*tensor, values),
        })
    }

    /// The bits of every tensor and canary, after the operation.
    pub fn run(&self, op: &dyn Op, device: &mut Device) -> Result<Bits> {
        self.begin(device)?;
        op.contract()?;
        op.forward(device)?;
        device.check_after()?;
        self.all().map(|(tensor, _)| bits(device, tensor)).collect()
    }

    /// The bits of all tensors and canaries after the operation on an emulated GPU, in each order of threads, and the kernels
    /// that ran.
    #[track_caller]
    pub fn bits_on(&self, op: &dyn Op, capability: (i32, i32)) -> (Vec<Bits>, Vec<(&'static str, u64)>) {
        let mut launches = Vec::new();
        let bits = (0..seeds().max(1)).map(|seed| {
            order(seed).expect("an emulator");
            let mut device = Device::emulated(capability).expect("an emulator");
            let bits = self.run(op, &mut device).unwrap_or_else(|e| panic!("{} on {}: {e}", op.name(), device.name()));
            launches = device.launches().into_iter().collect();
            bits
        });
        (bits.collect(), launches)
    }

    /// What the host makes of the operation in these outputs, as inputs of another.
    pub fn results<const N: usize>(&mut self, op: &dyn Op, outputs: [Tensor; N]) -> [Tensor; N] {
        let mut host = Device::host();
        self.begin(&mut host).expect("room");
        op.contract().expect("a contract that holds");
        op.forward(&mut host).expect("a run");
        outputs.map(|of| {
            let values = host.memory().read_f32(of).expect("an output");
            self.values(of.dtype, of.shape, values)
        })
    }

    /// Runs the operation on the host, on emulated GPUs, Hopper's and the older kind, and on this machine's GPU where it has
    /// one, and panics unless every output agrees row by row, every input and canary is as it was, and another run gives the
    /// same bits: in the emulator with other orders of threads.
    #[track_caller]
    pub fn agrees(&self, op: &dyn Op) {
        self.agrees_within(op, ROW);
    }

    /// The same where nothing lies behind the arena's last tensor but the end of the device's allocation, which is an emulated
    /// device's guard page: what a kernel reads or writes past that tensor is an error. The tensor's bytes are a multiple of
    /// 16, so that nothing pads the allocation.
    #[track_caller]
    pub fn agrees_before_a_guard(mut self, arena: Arena, op: &dyn Op) {
        let slots = if arena == Arena::Parameters { &mut self.parameters } else { &mut self.activations };
        let canary = slots.places.last_mut().expect("a canary");
        *canary = Place { offset: canary.offset, bytes: 0 };
        assert!(canary.offset.is_multiple_of(16), "padding lies behind the last tensor");
        slots.bytes = canary.offset;
        let (canary, start) = slots.starts.last_mut().expect("a canary");
        canary.shape = [0].into();
        match start {
            Start::F32(values) => values.clear(),
            Start::I32(values) => values.clear(),
        }
        emulated::configure("placement", 1).expect("an emulator");
        self.agrees(op);
        emulated::configure("placement", 0).expect("an emulator");
    }

    /// The same with another bound on a row's error.
    #[track_caller]
    pub fn agrees_within(&self, op: &dyn Op, bound: f64) {
        let host = self.on_host(op);
        // only what a GPU ran may be left out here
        let mut emulated = seeds().max(1);
        on_gpu(|gpu| {
            self.agrees_in(op, &host, 2, bound, &mut |_, run| run(gpu));
            emulated = seeds();
        });
        if emulated > 0 {
            for capability in [(8, 6), (9, 0)] {
                self.agrees_emulated(op, &host, capability, emulated, bound);
            }
        }
    }

    /// The same on one kind of GPU: emulated, and this machine's where it is of that kind. How often each kernel was launched
    /// in a run.
    #[track_caller]
    pub fn agrees_on(&self, op: &dyn Op, capability: (i32, i32), bound: f64) -> BTreeMap<&'static str, u64> {
        let host = self.on_host(op);
        on_gpu(|gpu| {
            if gpu.facts().is_some_and(|facts| facts.capability == capability) {
                self.agrees_in(op, &host, 2, bound, &mut |_, run| run(gpu));
            }
        });
        self.agrees_emulated(op, &host, capability, seeds().max(1), bound)
    }

    #[track_caller]
    fn on_host(&self, op: &dyn Op) -> Bits {
        self.run(op, &mut Device::host()).unwrap_or_else(|e| panic!("{} on the host: {e}", op.name()))
    }

    /// How often each kernel was launched in one of so many runs.
    #[track_caller]
    fn agrees_emulated(
        &self,
        op: &dyn Op,
        host: &Bits,
        capability: (i32, i32),
        seeds: i64,
        bound: f64,
    ) -> BTreeMap<&'static str, u64> {
        let mut launches = BTreeMap::new();
        self.agrees_in(op, host, seeds, bound, &mut |seed, run| {
            order(seed).expect("an emulator");
            let mut device = Device::emulated(capability).expect("an emulator");
            run(&mut device);
            launches = device.launches();
        });
        launches
    }

    /// Whether so many runs make what the host makes; `lend` lends the device of each.
    #[track_caller]
    fn agrees_in(&self, op: &dyn Op, host: &Bits, runs: i64, bound: f64, lend: Lend) {
        let name = op.name();
        let (mut first, mut on) = (None::<Bits>, String::new());
        for run in 0..runs {
            lend(run, &mut |device| {
                on = device.name();
                let got = self.run(op, device).unwrap_or_else(|e| panic!("{name} on {on}, run {run}: {e}"));
                let of_first = first.get_or_insert_with(|| got.clone());
                for ((tensor, _), (got, of_first)) in self.all().zip(got.iter().zip(of_first)) {
                    assert!(got == of_first, "{name} on {on}: run {run} differs from the first in {tensor:?}");
                }
            });
        }
        let first = first.expect("at least one run");
        let outputs = op.outputs();
        for (i, (tensor, _)) in self.all().enumerate() {
            let got = &first[i];
            if !outputs.iter().any(|o| o.same_value(tensor)) {
                // each tensor's canary follows it
                let what = if i % 2 == 1 { "wrote outside of a tensor, into" } else { "changed an input" };
                assert!(*got == host[i], "{name} {what}: {tensor:?}");
                continue;
            }
            if tensor.dtype == DType::I32 {
                assert_eq!(*got, host[i], "{name}: {tensor:?}");
                continue;
            }
            let width = tensor.shape.width().max(1);
            let mut tied = 0;
            for (row, (got, want)) in got.chunks(width).zip(host[i].chunks(width)).enumerate() {
                let Err(difference) = row_agrees(got, want, tensor.dtype, bound) else { continue };
                tied += 1;
                let allowed = ROUND_WITHIN.contains(&name)
                    && tied <= tied_rows(tensor.shape.rows())
                    && row_agrees(got, want, tensor.dtype, TIED_ROW).is_ok();
                assert!(allowed, "{name} on {on}: {tensor:?}, row {row}: {difference}");
            }
        }
    }
}

fn bits(device: &mut Device, tensor: &Tensor) -> Result<Vec<u32>> {
    match tensor.dtype {
        DType::I32 => Ok(device.memory().read_i32(*tensor)?.into_iter().map(|i| i as u32).collect()),
        _ => Ok(device.memory().read_f32(*tensor)?.into_iter().map(f32::to_bits).collect()),
    }
}

/// Whether a row is within `bound` of the wanted in relative length, or off by what one number that was rounded the
/// other way makes; where the wanted is NaN or infinite so is what came.
fn row_agrees(got: &[u32], want: &[u32], dtype: DType, bound: f64) -> Result<(), String> {
    let number = |bits: &u32| f64::from(f32::from_bits(*bits));
    let (mut error, mut length, mut largest) = (0.0, 0.0, 0.0f64);
    for (i, (g, w)) in got.iter().map(number).zip(want.iter().map(number)).enumerate() {
        if !w.is_finite() {
            if g == w || (g.is_nan() && w.is_nan()) {
                continue;
            }
            return Err(format!("[{i}] is {g:e}, wanted {w:e}"));
        }
        error += (g - w) * (g - w);
        length += w * w;
        largest = largest.max(w.abs());
    }
    let unit = if dtype == DType::Bf16 { largest / 128.0 } else { 0.0 };
    let allowed = (bound * f64::sqrt(length)).max(unit);
    let error = f64::sqrt(error);
    if error <= allowed {
        return Ok(());
    }
    let (i, g, w) = got
        .iter()
        .map(number)
        .zip(want.iter().map(number))
        .enumerate()
        .map(|(i, (g, w))| (i, g, w))
        .max_by(|a, b| (a.1 - a.2).abs().total_cmp(&(b.1 - b.2).abs()))
        .unwrap_or_default();
    Err(format!("off by {error:e}, allowed {allowed:e}; most at [{i}]: {g:e}, wanted {w:e}"))
}

#[cfg(test)]
mod tests {
    use super::row_agrees;
    use vlm::base::DType::{Bf16, F32};

    #[test]
    fn rows_that_differ_are_found() {
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let check = |got: &[f32], want: &[f32], dtype| row_agrees(&bits(got), &bits(want), dtype, 1e-3);
        assert!(check(&[1.0, 2.0], &[1.0, 2.0], F32).is_ok());
        assert!(check(&[1.0, 2.01], &[1.0, 2.0], F32).is_err());
        assert!(check(&[1.0, 2.015625], &[1.0, 2.0], Bf16).is_ok(), "one unit of bf16");
        assert!(check(&[1.0, 2.04], &[1.0, 2.0], Bf16).is_err());
        assert!(check(&[f32::NAN, 2.0], &[1.0, 2.0], Bf16).is_err());
        assert!(check(&[1.0, 2.0], &[f32::NAN, 2.0], Bf16).is_err());
        assert!(check(&[f32::NAN, 2.0], &[f32::NAN, 2.0], Bf16).is_ok());
        assert!(check(&[f32::INFINITY], &[f32::NEG_INFINITY], Bf16).is_err());
        assert!(check(&[1e-30], &[0.0], Bf16).is_err(), "nothing but zero is near a row of zeros");
    }
}
