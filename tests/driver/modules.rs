//! Loaded images and their functions, and whether a launch is one that they allow.

use crate::device::Driver;
use crate::image::{Facts, kernels, ptx_version};
use crate::{Done, Handle, refused};
use cudarc::driver::sys::CUresult;
use std::collections::BTreeMap;
use vlm::device::Launch;

/// Shared memory of a block, static and dynamic, that nobody has to ask for.
const SHARED_WITHOUT_ASKING: usize = 48 << 10;

/// Registers of a multiprocessor, and how many a thread gets at a time.
const REGISTERS: usize = 65536;
const REGISTERS_AT_A_TIME: usize = 8;

#[derive(Default)]
pub struct Modules {
    loaded: BTreeMap<Handle, BTreeMap<String, Facts>>,
    functions: BTreeMap<Handle, Function>,
}

/// A kernel that was asked for.
#[derive(Clone)]
pub struct Function {
    module: Handle,
    pub name: &'static str,
    pub facts: Facts,
    /// Dynamic shared memory that it was allowed.
    allowed: usize,
    /// It was launched before, and so is loaded.
    launched: bool,
}

impl Modules {
    pub fn left(&self) -> String {
        if self.loaded.is_empty() { String::new() } else { format!("{} modules ", self.loaded.len()) }
    }
}

impl Driver {
    /// # Safety
    /// As of [`kernels`].
    pub unsafe fn load(&mut self, image: *const u8) -> Done<Handle> {
        self.emulator()?;
        self.streams.forbid_in_capture("cuModuleLoadData")?;
        // SAFETY: the caller's promise.
        let version = unsafe { ptx_version(image) };
        if let (Some(newest), Some(version)) = (self.settings.ptx, version)
            && version > newest
        {
            return refused(CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION, format!("PTX {version:?}, not {newest:?}"));
        }
        let too_old = match self.settings.cubin {
            0 => None,
            _ if version.is_some() => None,
            2 => Some(CUresult::CUDA_ERROR_OUT_OF_MEMORY),
            209 => Some(CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU),
            222 => Some(CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION),
            300 => Some(CUresult::CUDA_ERROR_INVALID_SOURCE),
            _ => Some(CUresult::CUDA_ERROR_INVALID_IMAGE),
        };
        if let Some(code) = too_old {
            return refused(code, "machine code, as the test asks");
        }
        // SAFETY: the caller's promise.
        match unsafe { kernels(image) } {
            Ok(found) => {
                let handle = self.handle();
                self.modules.loaded.insert(handle, found);
                Ok(handle)
            }
            Err(why) => refused(CUresult::CUDA_ERROR_INVALID_IMAGE, why),
        }
    }

    pub fn unload(&mut self, module: Handle) -> Done<()> {
        self.emulator()?;
        self.settle_all()?;
        self.modules.functions.retain(|_, f| f.module != module);
        match self.modules.loaded.remove(&module) {
            Some(_) => Ok(()),
            None => refused(CUresult::CUDA_ERROR_INVALID_HANDLE, "no such module"),
        }
    }

    pub fn find(&mut self, module: Handle, name: &str) -> Done<Handle> {
        self.emulator()?;
        let Some(loaded) = self.modules.loaded.get(&module) else {
            return refused(CUresult::CUDA_ERROR_INVALID_HANDLE, "no such module");
        };
        let Some(facts) = loaded.get(name).cloned() else {
            return refused(CUresult::CUDA_ERROR_NOT_FOUND, format!("no kernel {name}"));
        };
        let name = name.to_string().leak();
        let handle = self.handle();
        let allowed = SHARED_WITHOUT_ASKING.saturating_sub(facts.shared_bytes);
        self.modules.functions.insert(handle, Function { module, name, facts, allowed, launched: false });
        Ok(handle)
    }

    pub fn allow(&mut self, function: Handle, shared_bytes: i32) -> Done<()> {
        self.emulator()?;
        let most = self.shared_bytes();
        let Some(function) = self.modules.functions.get_mut(&function) else {
            return refused(CUresult::CUDA_ERROR_INVALID_HANDLE, "no such function");
        };
        let shared_bytes = shared_bytes.max(0) as usize;
        if shared_bytes + function.facts.shared_bytes > most {
            let why = format!(
                "{}: {shared_bytes} bytes of shared memory beside {} of its own, of {most}",
                function.name, function.facts.shared_bytes
            );
            return refused(CUresult::CUDA_ERROR_INVALID_VALUE, why);
        }
        function.allowed = shared_bytes;
        Ok(())
    }

    /// The function, where a driver would launch it so.
    pub fn launchable(
        &mut self,
        function: Handle,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
    ) -> Done<(Function, Launch)> {
        let capturing = self.streams.capturing();
        let Some(function) = self.modules.functions.get_mut(&function) else {
            return refused(CUresult::CUDA_ERROR_INVALID_HANDLE, "no such function");
        };
        let (name, facts) = (function.name, &function.facts);
        let threads = block.iter().map(|n| *n as usize).product::<usize>();
        let warps = threads.div_ceil(32);
        let registers = facts.registers.next_multiple_of(REGISTERS_AT_A_TIME) * 32 * warps;
        let grid_fits = (1..=i32::MAX as u32).contains(&grid[0]) && grid[1..].iter().all(|n| (1..=65535).contains(n));
        let why = match () {
            () if !grid_fits => format!("{name}: a grid of {grid:?}"),
            () if threads == 0 || threads > 1024 || threads > facts.threads => {
                format!("{name}: {threads} threads a block, compiled for {}", facts.threads)
            }
            () if block[1..] != [1, 1] => format!("{name}: blocks of {block:?}, where the emulator has one row"),
            () if registers > REGISTERS => format!("{name}: {threads} threads of {} registers", facts.registers),
            () if shared as usize > function.allowed => {
                format!("{name}: {shared} bytes of shared memory, allowed {}", function.allowed)
            }
            () if facts.parameters != 1 => {
                format!("{name}: {} parameters, where each kernel has one", facts.parameters)
            }
            // a driver loads a kernel when it is first launched, which may wait for the device
            () if capturing && !function.launched => format!("{name}: launched first while a stream is captured"),
            () => {
                function.launched = true;
                let launch = Launch { kernel: name, grid, block: block[0], shared_bytes: shared };
                return Ok((function.clone(), launch));
            }
        };
        refused(CUresult::CUDA_ERROR_INVALID_VALUE, why)
    }
}
