//! NVIDIA's GPUs through the driver: one context, one stream, the kernels' images, pinned staging for copies.

use super::images::{IMAGES, Image, ImageKind, is_of_conformance};
use super::launcher::{Facts, Launch, Launcher, Mark, TensorMap, TensorMapShape, checked_rank};
use super::probe::{built, probe};
use super::recording::{Noting, Recorded};
use crate::base::{Error, Result, env};
use cudarc::driver::sys::{self, CUdevice_attribute_enum as attribute, CUfunction_attribute_enum as of_function};
use cudarc::driver::{CudaContext, CudaEvent, CudaGraph, CudaStream, DriverError, result};
use rayon::prelude::*;
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;

/// Bytes of pinned memory that copies to and from the device go through.
const STAGING: usize = 32 << 20;

const CANNOT_TIME: &str = "cannot time what runs";

/// A loaded kernel, and the dynamic shared memory that it was last allowed. How much it may take without asking depends on
/// its static one.
#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    shared_bytes: u32,
}

/// What changes while the device runs.
struct State {
    modules: Vec<sys::CUmodule>,
    /// Those of conformance are among them.
    has_conformance: bool,
    functions: HashMap<&'static str, Function>,
    /// Pinned, `STAGING` bytes.
    staging: *mut u8,
    /// Bytes of it whose copies may not have happened yet.
    staged: usize,
    /// What is noted is in the driver's hands.
    recording: Noting<()>,
}

// SAFETY: the handles and the staging memory belong to the context and not to a thread, and a lock guards their use.
unsafe impl Send for State {}

/// A graph of what was recorded. The driver frees it once it no longer runs.
struct Graph {
    graph: CudaGraph,
    device: String,
}

// SAFETY: the handles belong to the context and not to a thread, and whoever holds the graph is alone with it.
unsafe impl Send for Graph {}

impl Recorded for Graph {
    unsafe fn replay(&self) -> Result<()> {
        self.graph.launch().map_err(|e| device_error(&self.device, "cannot launch what was recorded", e))
    }
}

/// Copies bytes by all cores where they are many: a core alone brings weights out of the page cache at a fraction of what the
/// bus takes. The threads are its own: those that decode photos would come to it when they have nothing else to do, and the
/// GPU waits for these bytes.
fn copy(from: &[u8], to: &mut [u8]) {
    /// Bytes that a core takes at a time.
    const PART: usize = 1 << 20;
    /// Bytes that pay for a thread more.
    const PAYS: usize = 8 << 20;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let parts = Mutex::new(from.chunks(PART).zip(to.chunks_mut(PART)));
    let next = || parts.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        while let Some((from, to)) = next() {
            to.copy_from_slice(from);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..cores.min(from.len() / PAYS + 1) {
            if Builder::new().spawn_scoped(scope, work).is_err() {
                break; // those that there are do all of it
            }
        }
        work();
    });
}

/// One GPU.
pub struct Cuda {
    facts: Facts,
    /// Wait after each launch, so that an error names the word that made it.
    every_launch: bool,
    state: Mutex<State>,
    stream: Arc<CudaStream>,
    context: Arc<CudaContext>,
}

impl Cuda {
    /// Opens a GPU that [`super::probe`] found usable.
    pub fn open(ordinal: usize) -> Result<Arc<Cuda>> {
        let failed = |doing: &'static str| move |e: DriverError| device_error("cuda", doing, e);
        let context = CudaContext::new(ordinal).map_err(failed("cannot open the GPU"))?;
        // The first stream beside tracked slices waits for all that the process's context does, which no driver allows while
        // another thread records.
        // SAFETY: nothing is tracked: no slice is ever made, and one stream is given everything, in order.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(failed("cannot make a stream"))?;
        let name = context.name().map_err(failed("cannot ask for the GPU's name"))?;
        let read = |which| context.attribute(which).map_err(failed("cannot ask for the GPU's attributes"));
        let capability = (
            read(attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            read(attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        let facts = Facts {
            name,
            capability,
            multiprocessors: read(attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32,
            shared_bytes: read(attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as u32,
            guarded: false,
            profiled: true,
        };
        context.bind_to_thread().map_err(failed("cannot use the GPU"))?;
        // SAFETY: the context is current; the memory is freed in `drop`.
        let staging = unsafe { result::malloc_host(STAGING, 0) }.map_err(failed("cannot pin memory"))?;
        let every_launch = std::env::var_os(env::SYNC_LAUNCHES).is_some_and(|v| v != "0" && !v.is_empty());
        let state = State {
            modules: Vec::new(),
            has_conformance: false,
            functions: HashMap::new(),
            staging: staging.cast(),
            staged: 0,
            recording: Noting::Off,
        };
        let cuda = Cuda { facts, every_launch, state: Mutex::new(state), stream, context };
        cuda.load(&mut cuda.lock(), |name| !is_of_conformance(name))?;
        Ok(Arc::new(cuda))
    }

    /// What everything is given to: for a library that is timed beside the kernels.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Loads those images of `wanted` names that this GPU runs.
    fn load(&self, state: &mut State, wanted: fn(&str) -> bool) -> Result<()> {
        let kind = ImageKind::of(self.facts.capability);
        let images: Vec<&Image> = IMAGES.iter().filter(|image| image.kind == kind && wanted(image.name)).collect();
        let unpacked = images.par_iter().map(|image| image.packed.unpack()).collect::<Result<Vec<_>>>()?;
        for (image, bytes) in images.iter().zip(&unpacked) {
            // PTX is text that ends in a zero byte; build.rs sees to it
            // SAFETY: the image is a whole one of our own build; the driver copies what it needs of it before the call
            // returns.
            let module = unsafe { result::module::load_data(bytes.as_ptr().cast()) };
            state.modules.push(module.map_err(|e| self.not_loaded(image, e))?);
        }
        let names: Vec<&str> = images.iter().map(|image| image.name).collect();
        tracing::debug!("{}: kernels are loaded: {}", self.facts.name, names.join(" "));
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn not_loaded(&self, image: &Image, e: DriverError) -> Error {
        use sys::CUresult as code;
        let not_taken = matches!(
            e.0,
            code::CUDA_ERROR_INVALID_IMAGE
                | code::CUDA_ERROR_NO_BINARY_FOR_GPU
                | code::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
                | code::CUDA_ERROR_INVALID_SOURCE
                | code::CUDA_ERROR_NOT_SUPPORTED
        );
        let compiles = image.kind == ImageKind::Ptx80;
        if compiles && e.0 == code::CUDA_ERROR_UNSUPPORTED_PTX_VERSION {
            let older = "the driver is older than the CUDA of the kernels, which it would have to compile: install a newer \
                         one, build vlm with the compiler that tools/install-nvcc installs, or use --device cpu";
            return self.error(older, e);
        }
        if !compiles && not_taken {
            // a driver of the same major version may be older by a minor one, and a damaged file is answered the same way
            let ages = probe().ages(&built());
            let newer = format!(
                "the driver does not take the machine code of {}, for which it may be too old ({ages}): install a newer one, \
                 or use --device cpu",
                image.name
            );
            return self.error(&newer, e);
        }
        self.error(&format!("cannot load the kernels of {}", image.name), e)
    }

    fn error(&self, doing: &str, e: DriverError) -> Error {
        device_error(&self.facts.name, doing, e)
    }

    /// Makes the context current for the calling thread.
    fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(|e| self.error("cannot use the GPU", e))
    }

    /// Before what cannot be recorded: a recording that is under way ends here, so that the stream works again.
    fn refuse(&self, state: &mut State, what: &str) -> Result<()> {
        if matches!(state.recording, Noting::On(())) {
            // an error says the same: there will be no graph
            _ = self.stream.end_capture(sys::CUgraphInstantiate_flags(0));
        }
        state.recording.refuse(what)
    }

    fn wait(&self, state: &mut State) -> Result<()> {
        self.refuse(state, "a wait")?;
        self.settle(state)
    }

    fn settle(&self, state: &mut State) -> Result<()> {
        // SAFETY: the stream is ours and alive.
        unsafe { result::stream::synchronize(self.stream.cu_stream()) }
            .map_err(|e| self.error("cannot wait for the GPU", e))?;
        state.staged = 0;
        Ok(())
    }

    /// The kernel of that name, allowed this much dynamic shared memory.
    fn function(&self, state: &mut State, launch: &Launch) -> Result<sys::CUfunction> {
        let mut function = match state.functions.get(launch.kernel) {
            Some(function) => *function,
            None => {
                // tests launch them, and no run does
                if is_of_conformance(launch.kernel) && !state.has_conformance {
                    self.load(state, is_of_conformance)?;
                    state.has_conformance = true;
                }
                let name = CString::new(launch.kernel).map_err(|e| Error::Unsupported(e.to_string()))?;
                // SAFETY: the modules stay loaded until `drop`.
                let mut found = state.modules.iter().map(|m| unsafe { result::module::get_function(*m, name.clone()) });
                let absent =
                    |r: &Result<_, DriverError>| matches!(r, Err(e) if e.0 == sys::CUresult::CUDA_ERROR_NOT_FOUND);
                let handle = found.find(|r| !absent(r)).ok_or_else(|| Error::Device {
                    device: self.facts.name.clone(),
                    reason: format!("this build of vlm has no kernel {} for it", launch.kernel),
                })?;
                let handle = handle.map_err(|e| self.error(&format!("cannot load kernel {}", launch.kernel), e))?;
                Function { handle, shared_bytes: 0 }
            }
        };
        if launch.shared_bytes > function.shared_bytes {
            let which = of_function::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function was loaded above.
            unsafe { result::function::set_function_attribute(function.handle, which, launch.shared_bytes as i32) }
                .map_err(|e| self.error(&format!("{} bytes of shared memory", launch.shared_bytes), e))?;
            function.shared_bytes = launch.shared_bytes;
        }
        state.functions.insert(launch.kernel, function);
        Ok(function.handle)
    }
}

/// Whatever is asked of it after a kernel has failed, a GPU answers with that failure.
fn device_error(device: &str, doing: &str, e: DriverError) -> Error {
    refusal(device, if is_fault(e) { "a kernel or a copy failed (VLM_SYNC_LAUNCHES=1 names it)" } else { doing }, e)
}

/// Of what is known to have failed.
fn refusal(device: &str, doing: &str, e: DriverError) -> Error {
    let name = e.error_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let said = e.error_string().map(|s| s.to_string_lossy().into_owned()).unwrap_or_else(|_| format!("{e:?}"));
    Error::Device { device: device.into(), reason: format!("{doing}: {said} ({name})") }
}

/// Whether a kernel or the hardware failed, some time before the call that returns this: nothing works from then on.
fn is_fault(e: DriverError) -> bool {
    use sys::CUresult as code;
    matches!(
        e.0,
        code::CUDA_ERROR_ECC_UNCORRECTABLE
            | code::CUDA_ERROR_ILLEGAL_ADDRESS
            | code::CUDA_ERROR_LAUNCH_TIMEOUT
            | code::CUDA_ERROR_ASSERT
            | code::CUDA_ERROR_HARDWARE_STACK_ERROR
            | code::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | code::CUDA_ERROR_MISALIGNED_ADDRESS
            | code::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | code::CUDA_ERROR_INVALID_PC
            | code::CUDA_ERROR_LAUNCH_FAILED
    )
}

/// Waits until the stream has come to `end`.
pub(super) fn seconds_between(begin: &CudaEvent, end: &CudaEvent) -> Result<f64> {
    let milliseconds = begin.elapsed_ms(end).map_err(|e| device_error("cuda", CANNOT_TIME, e))?;
    Ok(f64::from(milliseconds) / 1e3)
}

impl Launcher for Cuda {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn memory_bytes(&self) -> Option<(usize, usize)> {
        self.bind().ok()?;
        result::mem_get_info().ok()
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.bind()?;
        self.refuse(&mut self.lock(), "an allocation")?;
        // SAFETY: the context is current; what is there is written before it is read.
        unsafe { result::malloc_sync(bytes) }.map_err(|e| {
            let (free, total) = self.memory_bytes().unwrap_or_default();
            let error = self.error(&format!("cannot allocate {bytes} bytes; {free} of {total} are free"), e);
            match e.0 {
                sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::OutOfMemory(error.to_string()),
                _ => error,
            }
        })
    }

    unsafe fn free(&self, address: u64) {
        let freed = self.bind().and_then(|()| {
            let mut state = self.lock();
            // what was recorded may read it: the recording fails, and the memory goes all the same
            _ = self.refuse(&mut state, "freed memory");
            self.settle(&mut state)?;
            // SAFETY: the caller's promise; everything that used it has happened.
            unsafe { result::free_sync(address) }.map_err(|e| self.error("cannot free memory", e))
        });
        if let Err(e) = freed {
            tracing::warn!("{e}");
        }
    }

    unsafe fn write(&self, to: u64, bytes: &[u8]) -> Result<()> {
        self.bind()?;
        let mut state = self.lock();
        self.refuse(&mut state, "bytes from the host")?;
        for (i, piece) in bytes.chunks(STAGING).enumerate() {
            if state.staged + piece.len() > STAGING {
                self.wait(&mut state)?;
            }
            // SAFETY: the staging memory has room at `staged`, and no copy that is under way reads there; the caller
            // promises the range at `to`, and the stream keeps the order.
            unsafe {
                let staged = std::slice::from_raw_parts_mut(state.staging.add(state.staged), piece.len());
                copy(piece, staged);
                result::memcpy_htod_async(to + (i * STAGING) as u64, staged, self.stream.cu_stream())
            }
            .map_err(|e| self.error("cannot copy to the GPU", e))?;
            state.staged += piece.len().next_multiple_of(64);
        }
        Ok(())
    }

    unsafe fn read(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.bind()?;
        let mut state = self.lock();
        self.refuse(&mut state, "bytes for the host")?;
        for (i, piece) in bytes.chunks_mut(STAGING).enumerate() {
            self.wait(&mut state)?;
            // SAFETY: nothing else uses the staging memory after the wait; the caller promises the range at `from`.
            let staged = unsafe { std::slice::from_raw_parts_mut(state.staging, piece.len()) };
            let at = from + (i * STAGING) as u64;
            // SAFETY: as above; the wait behind it ends the copy before the memory is read.
            unsafe { result::memcpy_dtoh_async(staged, at, self.stream.cu_stream()) }
                .map_err(|e| self.error("cannot copy from the GPU", e))?;
            self.wait(&mut state)?;
            piece.copy_from_slice(staged);
        }
        Ok(())
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.bind()?;
        self.lock().recording.noting()?;
        // SAFETY: the caller's promise.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) }
            .map_err(|e| self.error("cannot copy on the GPU", e))
    }

    unsafe fn fill(&self, to: u64, byte: u8, bytes: usize) -> Result<()> {
        self.bind()?;
        self.lock().recording.noting()?;
        // SAFETY: the caller's promise.
        unsafe { result::memset_d8_async(to, byte, bytes, self.stream.cu_stream()) }
            .map_err(|e| self.error("cannot fill memory", e))
    }

    fn tensor_map(&self, shape: &TensorMapShape) -> Result<TensorMap> {
        self.bind()?;
        let rank = checked_rank(shape)?;
        let ones = [1u32; 5];
        let mut map = TensorMap([0; 16]);
        let dtype = match shape.dtype {
            super::launcher::MapType::F32 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            super::launcher::MapType::Bf16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        };
        let swizzle = match shape.swizzle {
            super::launcher::Swizzle::None => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
            super::launcher::Swizzle::Bytes32 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_32B,
            super::launcher::Swizzle::Bytes64 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
            super::launcher::Swizzle::Bytes128 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        };
        // SAFETY: the arrays have the lengths that the driver reads for this rank; `map` has the size and the alignment of a
        // CUtensorMap, of whichever CUDA.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                (&raw mut map).cast(),
                dtype,
                rank,
                shape.address as *mut c_void,
                shape.sizes.as_ptr(),
                shape.strides_bytes.as_ptr(),
                shape.box_sizes.as_ptr(),
                ones.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .map_err(|e| self.error(&format!("tensor map {shape:?}"), e))?;
        Ok(map)
    }

    unsafe fn launch(
        &self,
        op: &'static str,
        launch: &Launch,
        arguments: *const c_void,
        _argument_bytes: usize,
    ) -> Result<()> {
        self.bind()?;
        let mut state = self.lock();
        state.recording.noting()?;
        let function = self.function(&mut state, launch)?;
        let [x, y, z] = launch.grid;
        let mut parameters = [arguments.cast_mut()];
        let named = |e: DriverError| {
            let reason = refusal(&self.facts.name, "launch", e).to_string();
            Error::Launch { op, kernel: launch.kernel, reason }
        };
        // where none is waited for, a fault is of a kernel before
        let refused = |e| if is_fault(e) && !self.every_launch { self.error("launch", e) } else { named(e) };
        // SAFETY: the function is loaded; the driver copies the one argument before the call returns, and the caller
        // promises what it points to.
        unsafe {
            result::launch_kernel(
                function,
                (x, y, z),
                (launch.block, 1, 1),
                launch.shared_bytes,
                self.stream.cu_stream(),
                &mut parameters,
            )
        }
        .map_err(refused)?;
        if self.every_launch {
            // SAFETY: the stream is ours and alive.
            unsafe { result::stream::synchronize(self.stream.cu_stream()) }.map_err(named)?;
            state.staged = 0;
        }
        Ok(())
    }

    fn begin_recording(&self) -> Result<bool> {
        if self.every_launch {
            return Ok(false);
        }
        self.bind()?;
        let mut state = self.lock();
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).map_err(|e| self.error("cannot record launches", e))?;
        state.recording = Noting::On(());
        Ok(true)
    }

    fn end_recording(&self) -> Result<Option<Box<dyn Recorded>>> {
        self.bind()?;
        let mut state = self.lock();
        let Noting::On(()) = std::mem::replace(&mut state.recording, Noting::Off) else { return Ok(None) };
        match self.stream.end_capture(sys::CUgraphInstantiate_flags(0)) {
            Ok(graph) => {
                let device = || self.facts.name.clone();
                Ok(graph.map(|graph| Box::new(Graph { graph, device: device() }) as Box<dyn Recorded>))
            }
            Err(e) => {
                tracing::warn!("{}", self.error("launches go one by one: they make no graph", e));
                Ok(None)
            }
        }
    }

    fn synchronise(&self) -> Result<()> {
        self.bind()?;
        self.wait(&mut self.lock())
    }

    fn mark(&self) -> Result<Mark> {
        let event = self.stream.record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT));
        event.map(Mark::Event).map_err(|e| self.error(CANNOT_TIME, e))
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        if self.bind().is_err() {
            return;
        }
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: nothing is under way after the wait; modules and staging memory were made in `open` and go here.
        unsafe {
            _ = result::stream::synchronize(self.stream.cu_stream());
            state.modules.drain(..).for_each(|m| _ = result::module::unload(m));
            _ = result::free_host(state.staging.cast());
        }
    }
}
