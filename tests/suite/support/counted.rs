//! A device that counts the bytes that are allocated on it.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex};
use vlm::base::Result;
use vlm::device::emulated::Emulated;
use vlm::device::launcher::{Mark, TensorMap, TensorMapShape};
use vlm::device::recording::Recorded;
use vlm::device::{Facts, Launch, Launcher};

/// An emulated device.
pub struct Counted {
    inner: Arc<Emulated>,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    /// Bytes by address.
    allocations: HashMap<u64, usize>,
    /// The most that they were together.
    most: usize,
}

impl Counted {
    pub fn open(capability: (i32, i32)) -> Arc<Counted> {
        let inner = Emulated::open(capability).expect("an emulator");
        Arc::new(Counted { inner, held: Mutex::default() })
    }

    /// The most bytes that were allocated at the same time.
    pub fn most(&self) -> usize {
        self.held.lock().expect("no panic").most
    }
}

impl Launcher for Counted {
    fn facts(&self) -> &Facts {
        self.inner.facts()
    }
    fn memory_bytes(&self) -> Option<(usize, usize)> {
        self.inner.memory_bytes()
    }
    fn allocate(&self, bytes: usize) -> Result<u64> {
        let address = self.inner.allocate(bytes)?;
        let mut held = self.held.lock().expect("no panic");
        held.allocations.insert(address, bytes);
        held.most = held.most.max(held.allocations.values().sum());
        Ok(address)
    }
    unsafe fn free(&self, address: u64) {
        self.held.lock().expect("no panic").allocations.remove(&address);
        // SAFETY: the caller's promise, as in all that follows.
        unsafe { self.inner.free(address) }
    }
    unsafe fn write(&self, to: u64, bytes: &[u8]) -> Result<()> {
        unsafe { self.inner.write(to, bytes) }
    }
    unsafe fn read(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        unsafe { self.inner.read(from, bytes) }
    }
    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        unsafe { self.inner.copy(from, to, bytes) }
    }
    unsafe fn fill(&self, to: u64, byte: u8, bytes: usize) -> Result<()> {
        unsafe { self.inner.fill(to, byte, bytes) }
    }
    fn tensor_map(&self, shape: &TensorMapShape) -> Result<TensorMap> {
        self.inner.tensor_map(shape)
    }
    unsafe fn launch(
        &self,
        op: &'static str,
        launch: &Launch,
        arguments: *const c_void,
        argument_bytes: usize,
    ) -> Result<()> {
        unsafe { self.inner.launch(op, launch, arguments, argument_bytes) }
    }
    fn begin_recording(&self) -> Result<bool> {
        self.inner.begin_recording()
    }
    fn end_recording(&self) -> Result<Option<Box<dyn Recorded>>> {
        self.inner.end_recording()
    }
    fn synchronise(&self) -> Result<()> {
        self.inner.synchronise()
    }
    fn mark(&self) -> Result<Mark> {
        self.inner.mark()
    }
}
