//! What a device that runs kernels can do: hold bytes, copy them, launch. One trait, and an implementation a device
//! ([`super::emulated`], [`super::cuda`]).

use super::recording::Recorded;
use crate::base::{Error, Result};
use cudarc::driver::CudaEvent;
use std::ffi::c_void;
use std::sync::Arc;
use std::time::Instant;

/// What plans need to know of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// For a person, e.g. "NVIDIA H200".
    pub name: String,
    /// Compute capability: which instructions the kernels may use, e.g. (9, 0).
    pub capability: (i32, i32),
    /// Blocks that can run at the same time, at one a multiprocessor.
    pub multiprocessors: u32,
    /// The most shared memory that one block may have.
    pub shared_bytes: u32,
    /// Weights are allocated one by one, each with a guard behind it, and not side by side.
    pub guarded: bool,
    /// Launches appear on a profiler's time line, under ranges of their names.
    pub profiled: bool,
}

impl Facts {
    /// Whether the device has Hopper's own instructions (wgmma, TMA), which no other architecture runs.
    pub fn is_hopper(&self) -> bool {
        self.capability == (9, 0)
    }

    /// The most operations a second that products of bf16 can reach, where the device is one whose maker's figure is known.
    pub fn peak_flops_per_second(&self) -> Option<f64> {
        super::peak::flops_per_second(&self.name)
    }
}

/// One launch: which kernel, how many blocks of how many threads, and the dynamic shared memory of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    pub kernel: &'static str,
    pub grid: [u32; 3],
    pub block: u32,
    pub shared_bytes: u32,
}

impl Launch {
    /// Without dynamic shared memory, over one row of blocks.
    pub fn of(kernel: &'static str, blocks: u32, threads: u32) -> Launch {
        Launch { kernel, grid: [blocks, 1, 1], block: threads, shared_bytes: 0 }
    }

    /// Nothing to do: a tensor was empty.
    pub fn is_empty(&self) -> bool {
        self.grid.contains(&0)
    }
}

/// How a bulk copy finds a box of a tensor: CUDA's `CUtensorMap`, in an argument struct; aligned as CUDA 13 has it.
#[repr(C, align(128))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorMap(pub [u64; 16]);

/// A copy of a kernel's argument struct, for a launch that happens later: aligned as the strictest of its fields is, a
/// [`TensorMap`].
#[derive(Debug, Clone)]
pub struct ArgumentCopy {
    copied: Vec<TensorMap>,
    bytes: usize,
}

impl ArgumentCopy {
    /// # Safety
    /// `bytes` bytes lie at `from`.
    pub unsafe fn of(from: *const c_void, bytes: usize) -> ArgumentCopy {
        let mut copied = vec![TensorMap([0; 16]); bytes.div_ceil(size_of::<TensorMap>())];
        // SAFETY: the caller promises so many bytes, and `copied` was made for as many.
        unsafe { std::ptr::copy_nonoverlapping(from.cast(), copied.as_mut_ptr().cast::<u8>(), bytes) };
        ArgumentCopy { copied, bytes }
    }

    pub fn as_ptr(&self) -> *const c_void {
        self.copied.as_ptr().cast()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// What a [`TensorMap`] is made of. Sizes have the contiguous dimension first, as the driver has them.
#[derive(Debug, Clone)]
pub struct TensorMapShape<'a> {
    pub dtype: MapType,
    pub address: u64,
    /// Elements of each dimension.
    pub sizes: &'a [u64],
    /// Bytes from one element to the next, of every dimension but the first.
    pub strides_bytes: &'a [u64],
    /// Elements that one copy takes of each dimension.
    pub box_sizes: &'a [u32],
    pub swizzle: Swizzle,
}

/// Element types of a tensor map, numbered as in cuda.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum MapType {
    F32 = 7,
    Bf16 = 9,
}

impl MapType {
    /// Of one element.
    pub fn bytes(self) -> usize {
        match self {
            MapType::F32 => 4,
            MapType::Bf16 => 2,
        }
    }
}

/// How the 16-byte pieces of a box's rows are exchanged in shared memory, numbered as in cuda.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Swizzle {
    None = 0,
    Bytes32 = 1,
    Bytes64 = 2,
    Bytes128 = 3,
}

/// A moment in the order of what a device was given to do.
pub enum Mark {
    /// Of this machine's clock, where nothing is done later than it is given.
    Now(Instant),
    /// Of a GPU's stream.
    Event(CudaEvent),
}

impl Mark {
    pub fn now() -> Mark {
        Mark::Now(Instant::now())
    }

    /// Seconds from this mark to a later one of the same device, once the device has come to it.
    pub fn seconds_until(&self, later: &Mark) -> Result<f64> {
        match (self, later) {
            (Mark::Now(begin), Mark::Now(end)) => Ok((*end - *begin).as_secs_f64()),
            (Mark::Event(begin), Mark::Event(end)) => super::cuda::seconds_between(begin, end),
            _ => Err(Error::Contract {
                op: "mark",
                argument: "later",
                wanted: "a mark of the same device".into(),
                got: "one of another".into(),
            }),
        }
    }
}

/// A device that runs kernels. Everything happens in the order of the calls; results are there after [`Launcher::read`]
/// or [`Launcher::synchronise`].
pub trait Launcher: Send + Sync {
    fn facts(&self) -> &Facts;

    /// Free and total bytes; None where only the host's memory is the limit.
    fn memory_bytes(&self) -> Option<(usize, usize)>;

    /// New bytes, aligned to 16 at the least. `bytes` is above 0. Errors: [`Error::OutOfMemory`] where there is no room.
    fn allocate(&self, bytes: usize) -> Result<u64>;

    /// # Safety
    /// `address` came from [`Launcher::allocate`] of this device, and nothing uses it any more.
    unsafe fn free(&self, address: u64);

    /// # Safety
    /// `to` and as many bytes behind it lie in one allocation of this device.
    unsafe fn write(&self, to: u64, bytes: &[u8]) -> Result<()>;

    /// # Safety
    /// `from` and as many bytes behind it lie in one allocation of this device.
    unsafe fn read(&self, from: u64, bytes: &mut [u8]) -> Result<()>;

    /// # Safety
    /// Both ranges lie in allocations of this device and do not overlap.
    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()>;

    /// # Safety
    /// `to` and `bytes` bytes behind it lie in one allocation of this device.
    unsafe fn fill(&self, to: u64, byte: u8, bytes: usize) -> Result<()>;

    fn tensor_map(&self, shape: &TensorMapShape) -> Result<TensorMap>;

    /// Runs one kernel for the word `op`.
    ///
    /// # Safety
    /// `arguments` points to a struct of `argument_bytes` bytes, laid out as the kernel's own, whose addresses lie in
    /// allocations of this device that are large enough for all that the kernel reads and writes.
    unsafe fn launch(
        &self,
        op: &'static str,
        launch: &Launch,
        arguments: *const c_void,
        argument_bytes: usize,
    ) -> Result<()>;

    /// From here on to [`Launcher::end_recording`] launches, fills and copies do not happen: they are noted. What cannot be
    /// noted (an allocation, a transfer, a wait) fails, and with it the recording. False where this device records nothing.
    fn begin_recording(&self) -> Result<bool>;

    /// What was noted; None where something could not be.
    fn end_recording(&self) -> Result<Option<Box<dyn Recorded>>>;

    /// Waits until everything has happened.
    fn synchronise(&self) -> Result<()>;

    /// Where the device will be when it has done what it was given so far.
    fn mark(&self) -> Result<Mark>;

    /// Seconds from the moment when the device comes to what `run` gives it to do until it has done all of that.
    fn elapsed(&self, run: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        let begin = self.mark()?;
        run()?;
        begin.seconds_until(&self.mark()?)
    }
}

/// Bytes of a device, given back when dropped. Its methods check their ranges.
pub struct Allocation {
    launcher: Arc<dyn Launcher>,
    address: u64,
    bytes: usize,
}

impl Allocation {
    /// `bytes` may be 0: then nothing is allocated.
    pub fn new(launcher: &Arc<dyn Launcher>, bytes: usize) -> Result<Allocation> {
        let address = if bytes == 0 { 0 } else { launcher.allocate(bytes)? };
        Ok(Allocation { launcher: launcher.clone(), address, bytes })
    }

    pub fn address(&self) -> u64 {
        self.address
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn at(&self, offset: usize, bytes: usize) -> Result<u64> {
        match offset.checked_add(bytes).is_some_and(|end| end <= self.bytes) {
            true => Ok(self.address + offset as u64),
            false => Err(Error::Contract {
                op: "memory",
                argument: "range",
                wanted: format!("at most {} bytes", self.bytes),
                got: format!("{bytes} bytes at {offset}"),
            }),
        }
    }

    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        let to = self.at(offset, bytes.len())?;
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: `at` found the range inside this allocation, which lives as long as `self`.
        unsafe { self.launcher.write(to, bytes) }
    }

    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let from = self.at(offset, bytes.len())?;
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: `at` found the range inside this allocation, which lives as long as `self`.
        unsafe { self.launcher.read(from, bytes) }
    }

    pub fn fill(&self, offset: usize, bytes: usize, byte: u8) -> Result<()> {
        let to = self.at(offset, bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: `at` found the range inside this allocation, which lives as long as `self`.
        unsafe { self.launcher.fill(to, byte, bytes) }
    }

    /// Copies a range to another one of the same allocation that it does not overlap.
    pub fn copy_within(&self, from: usize, to: usize, bytes: usize) -> Result<()> {
        let (source, target) = (self.at(from, bytes)?, self.at(to, bytes)?);
        if bytes == 0 || from == to {
            return Ok(());
        }
        if from.abs_diff(to) < bytes {
            return Err(Error::Contract {
                op: "memory",
                argument: "range",
                wanted: "ranges apart from each other".into(),
                got: format!("{bytes} bytes at {from} and {to}"),
            });
        }
        // SAFETY: `at` found both ranges inside this allocation, and they are apart.
        unsafe { self.launcher.copy(source, target, bytes) }
    }

    /// Copies a range to one of another allocation of the same device.
    pub fn copy_to(&self, from: usize, other: &mut Allocation, to: usize, bytes: usize) -> Result<()> {
        let (source, target) = (self.at(from, bytes)?, other.at(to, bytes)?);
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: `at` found each range inside its allocation; `other` is lent for writing, so it is not this one.
        unsafe { self.launcher.copy(source, target, bytes) }
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if self.bytes > 0 {
            // SAFETY: `address` came from `allocate` of this launcher in `new`, and goes out of use here.
            unsafe { self.launcher.free(self.address) }
        }
    }
}

/// The rank of a tensor map, whose parts have to agree.
pub(super) fn checked_rank(shape: &TensorMapShape) -> Result<u32> {
    let rank = shape.sizes.len();
    if (1..=5).contains(&rank) && shape.strides_bytes.len() + 1 == rank && shape.box_sizes.len() == rank {
        return Ok(rank as u32);
    }
    Err(Error::Contract {
        op: "tensor map",
        argument: "sizes",
        wanted: "1 to 5 sizes, a stride less, and as many box sizes".into(),
        got: format!("{shape:?}"),
    })
}
