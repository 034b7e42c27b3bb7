//! The device, its context, and the driver's state.

use crate::memory::Memory;
use crate::modules::Modules;
use crate::settings::Settings;
use crate::streams::Streams;
use crate::{Done, Handle, refused};
use cudarc::driver::sys::{CUdevice_attribute, CUresult};
use std::cell::Cell;
use std::io::Write;
use std::sync::Arc;
use vlm::device::emulated::Emulated;
use vlm::device::launcher::{Launcher, TensorMap, TensorMapShape};

thread_local! {
    /// The context that is current for the calling thread.
    static CURRENT: Cell<Option<Handle>> = const { Cell::new(None) };
}

/// The one context.
const CONTEXT: Handle = Handle(0xc0);

/// The driver's whole state.
pub struct Driver {
    pub settings: Settings,
    /// Opened with the context.
    emulator: Option<Arc<Emulated>>,
    retained: u32,
    initialised: bool,
    handles: usize,
    /// What a kernel did wrong: from then on the context is lost.
    pub lost: Option<CUresult>,
    pub memory: Memory,
    pub modules: Modules,
    pub streams: Streams,
}

impl Driver {
    pub fn from_environment() -> Driver {
        Driver {
            settings: Settings::parse(&std::env::var("VLM_TEST_DRIVER").unwrap_or_default()),
            emulator: None,
            retained: 0,
            initialised: false,
            handles: 0,
            lost: None,
            memory: Memory::default(),
            modules: Modules::default(),
            streams: Streams::default(),
        }
    }

    /// A line of the report.
    pub fn report(&self, line: &str) {
        let Some(path) = &self.settings.report else { return };
        let opened = std::fs::File::options().create(true).append(true).open(path);
        let written = opened.and_then(|mut file| writeln!(file, "{line}"));
        if let Err(e) = written {
            eprintln!("the test driver cannot write {}: {e}", path.display());
        }
    }

    /// A new name.
    pub fn handle(&mut self) -> Handle {
        self.handles += 1;
        Handle(0x1000 + 16 * self.handles)
    }

    pub fn init(&mut self) -> Done<()> {
        match self.settings.init {
            0 if self.settings.gpus == 0 => refused(CUresult::CUDA_ERROR_NO_DEVICE, "as the test asks"),
            0 => {
                self.initialised = true;
                Ok(())
            }
            999 => refused(CUresult::CUDA_ERROR_UNKNOWN, "as the test asks"),
            _ => refused(CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, "as the test asks"),
        }
    }

    pub fn device(&self, ordinal: i32) -> Done<i32> {
        match () {
            () if !self.initialised => refused(CUresult::CUDA_ERROR_NOT_INITIALIZED, "cuInit was not called"),
            () if !(0..self.settings.gpus).contains(&ordinal) => {
                refused(CUresult::CUDA_ERROR_INVALID_DEVICE, format!("no device {ordinal}"))
            }
            () => Ok(ordinal),
        }
    }

    pub fn name(&self) -> String {
        let (major, minor) = self.settings.capability;
        format!("test driver sm_{major}{minor}")
    }

    /// Dynamic shared memory that a block may ask for, as NVIDIA's table of compute capabilities has it.
    pub fn shared_bytes(&self) -> usize {
        1024 * match self.settings.capability {
            (8, 0) => 163,
            (8, 7) => 163,
            (8, _) | (12, _) => 99,
            (9 | 10, _) => 227,
            _ => 64,
        }
    }

    pub fn attribute(&self, which: CUdevice_attribute) -> Done<i32> {
        use CUdevice_attribute as attribute;
        Ok(match which {
            attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR => self.settings.capability.0,
            attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR => self.settings.capability.1,
            attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT => self.settings.multiprocessors,
            attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN => self.shared_bytes() as i32,
            attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED => 1,
            _ => return refused(CUresult::CUDA_ERROR_NOT_SUPPORTED, format!("the test driver knows no {which:?}")),
        })
    }

    pub fn retain(&mut self) -> Done<Handle> {
        if self.emulator.is_none() {
            match Emulated::open(self.settings.capability) {
                Ok(emulator) => self.emulator = Some(emulator),
                Err(e) => return refused(CUresult::CUDA_ERROR_UNKNOWN, e.to_string()),
            }
        }
        self.retained += 1;
        Ok(CONTEXT)
    }

    /// What was not given back goes to the report with the last release.
    pub fn release(&mut self) -> Done<()> {
        self.retained = match self.retained.checked_sub(1) {
            Some(left) => left,
            None => return refused(CUresult::CUDA_ERROR_INVALID_CONTEXT, "the context was not retained"),
        };
        if self.retained == 0 {
            let left = [self.memory.left(), self.modules.left(), self.streams.left()].concat();
            let did = self.streams.did();
            self.report(&format!("released: {did}; left: {}", if left.is_empty() { "nothing" } else { &left }));
        }
        Ok(())
    }

    pub fn current() -> Option<Handle> {
        CURRENT.get()
    }

    pub fn set_current(&self, context: Option<Handle>) -> Done<()> {
        if context.is_some_and(|c| c != CONTEXT || self.retained == 0) {
            return refused(CUresult::CUDA_ERROR_INVALID_CONTEXT, "no such context");
        }
        CURRENT.set(context);
        Ok(())
    }

    /// The device of the calling thread's context.
    pub fn emulator(&self) -> Done<Arc<Emulated>> {
        if let Some(code) = self.lost {
            return refused(code, "a kernel failed before");
        }
        match &self.emulator {
            Some(emulator) if CURRENT.get().is_some() && self.retained > 0 => Ok(emulator.clone()),
            _ => refused(CUresult::CUDA_ERROR_INVALID_CONTEXT, "no context is current for this thread"),
        }
    }

    /// The emulator knows what cuTensorMapEncodeTiled asks of its arguments.
    pub fn encode(&self, shape: &TensorMapShape) -> Done<TensorMap> {
        self.emulator()?.tensor_map(shape).or_else(|_| {
            let TensorMapShape { address, sizes, strides_bytes, box_sizes, swizzle, .. } = shape;
            let why = format!(
                "a tensor map with strides of {strides_bytes:?} bytes, sizes {sizes:?}, boxes {box_sizes:?} swizzled {swizzle:?}, \
                 at {address:#x}"
            );
            refused(CUresult::CUDA_ERROR_INVALID_VALUE, why)
        })
    }
}
