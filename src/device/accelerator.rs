//! A device that runs kernels, as the words see it: addresses for their arguments, launches, scratch memory.

use super::arguments::Arguments;
use super::cast::CastArgs;
use super::launcher::{Allocation, Facts, Launch, Launcher, Mark, TensorMap, TensorMapShape};
use super::layout::{ALIGNMENT, Place};
use super::memory::Memory;
use super::weights::{Key, Store};
use crate::base::counted::bytes;
use crate::base::{Error, Result};
use crate::tensor::{Arena, Tensor, Weight};
use std::collections::BTreeMap;
use std::sync::Arc;

pub struct Accelerator {
    pub memory: Memory,
    weights: Store,
    /// Begins with the counters.
    scratch: Allocation,
    /// The ranges of `scratch` that the last operation was lent.
    lent: Vec<Place>,
    /// Whether a launch failed, which may have left the counters anywhere.
    pub(super) miscounted: bool,
    /// How often each kernel was launched.
    pub(super) launches: BTreeMap<&'static str, u64>,
    /// The same of the launches that are being recorded.
    pub(super) recording: Option<BTreeMap<&'static str, u64>>,
    pub(super) replays: u64,
    pub(super) launcher: Arc<dyn Launcher>,
}

/// Where one operation's tensors and weights lie.
pub struct Addresses {
    tensors: Vec<(Tensor, u64)>,
    weights: Vec<(Key, u64)>,
}

impl Addresses {
    /// Where an input or output of the operation begins.
    pub fn of(&self, tensor: &Tensor) -> Result<u64> {
        let found = self.tensors.iter().find(|(t, _)| t.same_value(tensor));
        found.map(|(_, address)| *address).ok_or_else(|| not_asked_for(format!("{tensor:?}")))
    }

    /// The same, or 0 where there is none: kernels take a null pointer for what is absent.
    pub fn of_optional(&self, tensor: Option<&Tensor>) -> Result<u64> {
        tensor.map_or(Ok(0), |t| self.of(t))
    }

    /// Where a weight's bf16 numbers begin: of a trained one its shadow's.
    pub fn weight(&self, weight: &Weight) -> Result<u64> {
        let key = Key::of(weight);
        let found = self.weights.iter().find(|(k, _)| *k == key);
        found.map(|(_, address)| *address).ok_or_else(|| not_asked_for(format!("{weight:?}")))
    }

    /// Where the gradient of a weight is added, or 0 where it is frozen.
    pub fn gradient(&self, weight: &Weight) -> Result<u64> {
        self.of_optional(weight.as_trained().map(|t| t.gradient).as_ref())
    }
}

fn not_asked_for(got: String) -> Error {
    let wanted = "one of the operation's own".into();
    Error::Contract { op: "addresses", argument: "tensor", wanted, got }
}

impl Accelerator {
    pub fn new(launcher: Arc<dyn Launcher>) -> Result<Accelerator> {
        Ok(Accelerator {
            memory: Memory::new(Some(launcher.clone())),
            weights: Store::default(),
            scratch: Allocation::new(&launcher, 0)?,
            lent: Vec::new(),
            miscounted: false,
            launches: BTreeMap::new(),
            recording: None,
            replays: 0,
            launcher,
        })
    }

    pub fn facts(&self) -> &Facts {
        self.launcher.facts()
    }

    /// Bytes of the device that nobody holds; None where the launcher does not say.
    pub fn free_bytes(&self) -> Option<usize> {
        self.launcher.memory_bytes().map(|(free, _)| free)
    }

    /// How often each kernel was launched so far.
    pub fn launches(&self) -> &BTreeMap<&'static str, u64> {
        &self.launches
    }

    /// The addresses of one operation's tensors and weights. An output that overlaps anything else is an error, as in
    /// [`Memory::borrow`]; weights come as bf16. What the operation writes is taken to change.
    pub fn addresses(&mut self, inputs: &[Tensor], weights: &[&Weight], outputs: &[Tensor]) -> Result<Addresses> {
        let wanted = self.memory.apart(inputs, outputs)?;
        let tensors = wanted.iter().map(|w| Ok((w.tensor, self.memory.address(&w.tensor)?))).collect::<Result<_>>()?;
        outputs.iter().try_for_each(|t| self.memory.overwritten(t))?;
        let weights = weights.iter().map(|w| Ok((Key::of(w), self.weight(w)?))).collect::<Result<_>>()?;
        Ok(Addresses { tensors, weights })
    }

    fn weight(&mut self, weight: &Weight) -> Result<u64> {
        let Some(trained) = weight.as_trained() else { return self.weights.address(&self.launcher, weight) };
        let (address, refresh) = self.memory.need_shadow(&self.launcher, &trained.value)?;
        if let Some(refresh) = refresh {
            let (arguments, launch) = CastArgs::plan(refresh.from, refresh.to, refresh.n);
            // SAFETY: both ranges lie in the allocations of the masters and of their shadow, which `need_shadow` found.
            unsafe { self.launch("cast", &launch, &arguments)? }
        }
        Ok(address)
    }

    /// The shadow that the optimiser has to write together with `master`, or 0 where nothing reads one.
    pub fn shadow(&mut self, master: &Tensor) -> Result<u64> {
        let address = self.memory.shadow(master)?.unwrap_or(0);
        self.memory.shadow_written(master)?;
        Ok(address)
    }

    /// Runs one kernel for the word `op`. A grid without blocks runs nothing.
    ///
    /// # Safety
    /// The kernel is one that takes `A`, and all that it reads and writes through the addresses in `arguments` lies in
    /// the tensors, weights and scratch memory that they are addresses of.
    pub unsafe fn launch<A: Arguments>(&mut self, op: &'static str, launch: &Launch, arguments: &A) -> Result<()> {
        if launch.is_empty() {
            return Ok(());
        }
        let _range = self.facts().profiled.then(|| super::nvtx::Range::begin(launch.kernel));
        *self.recording.as_mut().unwrap_or(&mut self.launches).entry(launch.kernel).or_default() += 1;
        // SAFETY: `arguments` is a whole struct in the kernel's layout; the rest is the caller's promise.
        let launched =
            unsafe { self.launcher.launch(op, launch, std::ptr::from_ref(arguments).cast(), size_of::<A>()) };
        self.miscounted |= launched.is_err();
        launched
    }

    pub(super) fn mark(&self) -> Result<Mark> {
        self.launcher.mark()
    }

    pub fn tensor_map(&self, shape: &TensorMapShape) -> Result<TensorMap> {
        self.launcher.tensor_map(shape)
    }

    /// Memory for one operation's intermediate results, a range for each of the sizes that its `scratch` says, until the
    /// next operation asks. Grows where nobody reserved it, and is filled with NaN in debug builds.
    pub fn scratch<const N: usize>(&mut self, sizes: &[usize]) -> Result<[u64; N]> {
        let bytes = scratch_bytes(sizes);
        self.grow_scratch(bytes)?;
        if cfg!(debug_assertions) {
            self.scratch.fill(COUNTER_BYTES, bytes - COUNTER_BYTES, NOT_WRITTEN)?;
        }
        self.lent.clear();
        let mut at = COUNTER_BYTES;
        for size in sizes {
            self.lent.push(Place { offset: at, bytes: *size });
            at += range_bytes(*size);
        }
        let begins: Vec<u64> = self.lent.iter().map(|place| self.scratch.address() + place.offset as u64).collect();
        begins.try_into().map_err(|begins: Vec<u64>| {
            let (wanted, got) = (format!("{N} ranges"), begins.len().to_string());
            Error::Contract { op: "scratch", argument: "sizes", wanted, got }
        })
    }

    /// Where [`COUNTERS`] counters (u32) lie that are 0 now, as long as no scratch memory is asked for. Kernels leave them
    /// so: each goes back to 0 with its last arrival, and all operations use the same ones, one after the other.
    pub fn counters(&mut self) -> Result<u64> {
        self.grow_scratch(COUNTER_BYTES)?;
        if self.miscounted {
            self.scratch.fill(0, COUNTER_BYTES, 0)?;
            self.miscounted = false;
        }
        Ok(self.scratch.address())
    }

    /// In debug builds, after an operation: it kept to its scratch memory, and its counters are back at 0. Nothing is looked
    /// at where launches are recorded: they have happened once before.
    pub(super) fn check_after(&mut self) -> Result<()> {
        if !cfg!(debug_assertions) || self.recording.is_some() {
            return Ok(());
        }
        self.check_scratch()?;
        let mut counters = vec![0; COUNTER_BYTES.min(self.scratch.bytes())];
        self.scratch.read(0, &mut counters)?;
        let counts = counters.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes));
        let Some((at, count)) = counts.enumerate().find(|(_, count)| *count != 0) else { return Ok(()) };
        self.miscounted = true;
        let (wanted, got) = ("0 after the launch".into(), format!("{count} at counter {at}"));
        Err(Error::Contract { op: "counters", argument: "count", wanted, got })
    }

    /// That what lies between the ranges of scratch memory that were last lent is as it was. Errors: a kernel wrote past the
    /// end of one.
    fn check_scratch(&self) -> Result<()> {
        for (i, place) in self.lent.iter().enumerate() {
            let mut behind = vec![0; range_bytes(place.bytes) - place.bytes];
            self.scratch.read(place.end(), &mut behind)?;
            if let Some(at) = behind.iter().position(|byte| *byte != NOT_WRITTEN) {
                let wanted = format!("nothing written past range {i}, of {} bytes", place.bytes);
                return Err(Error::Contract {
                    op: "scratch",
                    argument: "range",
                    wanted,
                    got: format!("byte {at} behind it"),
                });
            }
        }
        Ok(())
    }

    fn grow_scratch(&mut self, bytes: usize) -> Result<()> {
        if bytes > self.scratch.bytes() {
            self.memory.moved();
            self.lent.clear();
            // what is there goes before the new comes
            self.scratch = Allocation::new(&self.launcher, 0)?;
            self.scratch = Allocation::new(&self.launcher, bytes)?;
            self.scratch.fill(0, COUNTER_BYTES, 0)?;
        }
        Ok(())
    }

    /// Before a tape runs: says whether its activations, intermediate results and weights fit, makes room for the
    /// intermediate results and puts the weights on the device.
    pub fn reserve(&mut self, activations: usize, scratch: usize, weights: &[&Weight]) -> Result<()> {
        self.fits(activations, scratch, weights)?;
        self.grow_scratch(scratch)?;
        self.weights.place(&self.launcher, weights)?;
        let (weights, scratch) = (bytes(self.weights.bytes()), bytes(self.scratch.bytes()));
        tracing::debug!("{}: {weights} of weights, {scratch} for intermediate results", self.facts().name);
        Ok(())
    }

    fn fits(&self, activations: usize, scratch: usize, weights: &[&Weight]) -> Result<()> {
        let Some((free, total)) = self.launcher.memory_bytes() else { return Ok(()) };
        let missing = self.weights.missing_bytes(weights);
        let trained: usize = weights.iter().filter(|w| w.as_trained().is_some()).map(|w| w.shape().elements()).sum();
        let shadows = self.memory.shadow_bytes().max(2 * trained);
        let held = self.memory.allocated(Arena::Activations);
        // a larger arena comes in the place of the smaller
        let growth = activations.saturating_sub(held) + scratch.saturating_sub(self.scratch.bytes());
        let new = missing + growth + (shadows - self.memory.shadow_bytes());
        if new <= free {
            return Ok(());
        }
        let rows = [
            ("weights", self.weights.bytes() + missing),
            ("trained, with gradients and moments", self.memory.allocated(Arena::Parameters) + shadows),
            ("cache of keys and values", self.memory.allocated(Arena::Cache)),
            ("image features", self.memory.allocated(Arena::Features)),
            ("activations", activations.max(held)),
            ("intermediate results of a kernel", scratch.max(self.scratch.bytes())),
        ];
        let lines: Vec<String> = rows.iter().map(|(name, n)| format!("\n  {name:<36}{:>10}", bytes(*n))).collect();
        Err(Error::OutOfMemory(format!(
            "out of memory on {}: {} more are needed and {} of {} are free{}\nuse a smaller --batch-size or --max-pixels, a shorter \
             prompt, or --device cpu",
            self.facts().name,
            bytes(new),
            bytes(free),
            bytes(total),
            lines.concat()
        )))
    }
}

/// How many counters there are for the blocks of a launch to arrive at.
pub const COUNTERS: usize = 8192;
const COUNTER_BYTES: usize = COUNTERS * size_of::<u32>();

/// What ranges of these sizes take together, with the counters before them.
pub fn scratch_bytes(sizes: &[usize]) -> usize {
    COUNTER_BYTES + sizes.iter().map(|size| range_bytes(*size)).sum::<usize>()
}

/// Of one range, with what keeps it apart from the next in debug builds.
fn range_bytes(size: usize) -> usize {
    size.next_multiple_of(ALIGNMENT) + if cfg!(debug_assertions) { ALIGNMENT } else { 0 }
}

/// Bytes that nobody has written: NaN, as numbers of any type.
const NOT_WRITTEN: u8 = 0xff;

#[cfg(test)]
mod tests {
    use crate::device::Device;

    #[test]
    fn a_write_past_a_range_is_noticed() {
        let mut device = Device::emulated((9, 0)).expect("an emulator");
        let Device::Launch(gpu) = &mut device else { panic!("a device that runs kernels") };
        let [first, second] = gpu.scratch(&[100, 256]).expect("memory");
        let between = (second - first) as usize;
        let begin = (first - gpu.scratch.address()) as usize;
        for at in [0, 99, between, between + 255] {
            gpu.scratch.write(begin + at, &[7]).expect("a write");
            gpu.check_scratch().expect("within a range");
        }
        for (at, range) in [(100, "range 0, of 100"), (between - 1, "range 0"), (between + 256, "range 1, of 256")] {
            gpu.scratch.write(begin + at, &[7]).expect("a write");
            let said = gpu.check_scratch().expect_err("a write between ranges").to_string();
            assert!(said.contains(range), "{said}");
            gpu.scratch.write(begin + at, &[super::NOT_WRITTEN]).expect("a write");
        }
    }

    #[test]
    fn counters_start_at_zero_and_have_to_be_back_there() {
        let mut device = Device::emulated((9, 0)).expect("an emulator");
        let Device::Launch(gpu) = &mut device else { panic!("a device that runs kernels") };
        let zeros = |gpu: &super::Accelerator| {
            let mut bytes = [1; super::COUNTER_BYTES];
            gpu.scratch.read(0, &mut bytes).expect("counters");
            bytes.iter().all(|byte| *byte == 0)
        };
        gpu.counters().expect("counters");
        assert!(zeros(gpu));
        // in the place of the smaller one
        gpu.scratch::<1>(&[1 << 20]).expect("memory");
        assert!(zeros(gpu));
        gpu.check_after().expect("nothing was counted");
        gpu.scratch.write(8, &[0, 3]).expect("a write");
        let said = gpu.check_after().expect_err("a counter that was left").to_string();
        assert!(said.contains("768 at counter 2"), "{said}");
        // whoever asks next has them at 0 again, and so has what was recorded before
        gpu.counters().expect("counters");
        assert!(zeros(gpu));
        let recording = device.record(&mut |_| Ok(())).expect("a recording").expect("of an emulator");
        let Device::Launch(gpu) = &mut device else { panic!("a device that runs kernels") };
        gpu.scratch.write(4, &[1]).expect("a write");
        gpu.check_after().expect_err("a counter that was left");
        // SAFETY: nothing was recorded, so no index is followed.
        unsafe { device.replay(&recording).expect("a replay") };
        let Device::Launch(gpu) = &mut device else { panic!("a device that runs kernels") };
        assert!(zeros(gpu));
    }
}
