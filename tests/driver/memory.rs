//! Device memory and pinned host memory.

use crate::device::Driver;
use crate::{Done, refused};
use cudarc::driver::sys::CUresult;
use std::collections::BTreeMap;
use vlm::device::Launcher;

/// Device addresses are ordinary ones, and other memory begins at multiples of this.
const PINNED_ALIGNMENT: usize = 4096;

#[derive(Default)]
pub struct Memory {
    /// Bytes of each allocation by its address.
    allocations: BTreeMap<u64, usize>,
    /// Pinned memory by its address, with what keeps it.
    pinned: BTreeMap<usize, (usize, Vec<u8>)>,
}

/// Whether `bytes` bytes at `at` lie within one of the ranges.
fn within(range: Option<(usize, usize)>, at: usize, bytes: usize) -> bool {
    range.is_some_and(|(begin, size)| at + bytes <= begin + size)
}

impl Memory {
    pub fn left(&self) -> String {
        let of = |n: usize, what: &str| if n == 0 { String::new() } else { format!("{n} {what} ") };
        of(self.allocations.len(), "allocations") + &of(self.pinned.len(), "pinned")
    }

    pub fn used(&self) -> usize {
        self.allocations.values().sum()
    }

    /// That a range of device memory lies in one allocation.
    pub fn on_device(&self, at: u64, bytes: usize) -> Done<()> {
        let before = self.allocations.range(..=at).next_back().map(|(a, n)| (*a as usize, *n));
        match within(before, at as usize, bytes) {
            true => Ok(()),
            false => refused(CUresult::CUDA_ERROR_INVALID_VALUE, format!("{bytes} bytes at {at:#x} of no allocation")),
        }
    }

    /// That a range of host memory is pinned: only then does an asynchronous copy return before it happens.
    pub fn on_host(&self, at: usize, bytes: usize) -> Done<()> {
        let before = self.pinned.range(..=at).next_back().map(|(a, (n, _))| (*a, *n));
        match within(before, at, bytes) {
            true => Ok(()),
            false => refused(CUresult::CUDA_ERROR_INVALID_VALUE, format!("{bytes} bytes at {at:#x} are not pinned")),
        }
    }
}

impl Driver {
    pub fn allocate(&mut self, bytes: usize) -> Done<u64> {
        let emulator = self.emulator()?;
        self.streams.forbid_in_capture("cuMemAlloc")?;
        if bytes == 0 {
            return refused(CUresult::CUDA_ERROR_INVALID_VALUE, "0 bytes");
        }
        let used = self.memory.used();
        if used + bytes > self.settings.memory {
            let why = format!("{bytes} bytes, {used} of {} are taken", self.settings.memory);
            return refused(CUresult::CUDA_ERROR_OUT_OF_MEMORY, why);
        }
        match emulator.allocate(bytes) {
            Ok(address) => {
                self.memory.allocations.insert(address, bytes);
                Ok(address)
            }
            Err(e) => refused(CUresult::CUDA_ERROR_OUT_OF_MEMORY, e.to_string()),
        }
    }

    /// Waits for all that was given before, as cuMemFree does.
    pub fn free(&mut self, address: u64) -> Done<()> {
        let emulator = self.emulator()?;
        self.streams.forbid_in_capture("cuMemFree")?;
        self.settle_all()?;
        if self.memory.allocations.remove(&address).is_none() {
            return refused(CUresult::CUDA_ERROR_INVALID_VALUE, format!("{address:#x} is no allocation"));
        }
        // SAFETY: it came from `allocate` of the same emulator, and nothing is under way.
        unsafe { emulator.free(address) };
        Ok(())
    }

    pub fn pin(&mut self, bytes: usize) -> Done<usize> {
        self.emulator()?;
        self.streams.forbid_in_capture("cuMemHostAlloc")?;
        let memory = vec![0xa5; bytes + PINNED_ALIGNMENT];
        let at = (memory.as_ptr() as usize).next_multiple_of(PINNED_ALIGNMENT);
        self.memory.pinned.insert(at, (bytes, memory));
        Ok(at)
    }

    pub fn unpin(&mut self, at: usize) -> Done<()> {
        self.emulator()?;
        self.settle_all()?;
        match self.memory.pinned.remove(&at) {
            Some(_) => Ok(()),
            None => refused(CUresult::CUDA_ERROR_INVALID_VALUE, format!("{at:#x} was not pinned")),
        }
    }
}
