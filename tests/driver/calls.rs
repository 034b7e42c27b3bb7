//! The driver's functions, under their names in `libcuda.so`. Their contracts are those of the CUDA driver API: pointers to
//! results may be written, others point to what is named.

use crate::device::Driver;
use crate::streams::Work;
use crate::{Done, call, give, pointer, refused};
use cudarc::driver::sys::*;
use std::ffi::{CStr, c_char, c_int, c_uchar, c_uint, c_ulonglong, c_void};
use vlm::device::launcher::{ArgumentCopy, MapType, Swizzle, TensorMap, TensorMapShape};

/// Declares functions that leave one value.
macro_rules! giving {
    ($($name:ident(to: *mut $value:ty $(, $argument:ident: $kind:ty)*) $run:expr;)*) => {
        $(
            /// # Safety
            /// As the module says.
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name(to: *mut $value $(, $argument: $kind)*) -> CUresult {
                let run: fn(&mut Driver $(, $kind)*) -> Done<$value> = $run;
                // SAFETY: the caller's promise.
                unsafe { give(stringify!($name), to, |driver| run(driver $(, $argument)*)) }
            }
        )*
    };
}

/// Declares functions that leave none.
macro_rules! doing {
    ($($name:ident($($argument:ident: $kind:ty),*) $run:expr;)*) => {
        $(
            /// # Safety
            /// As the module says.
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name($($argument: $kind),*) -> CUresult {
                let run: fn(&mut Driver $(, $kind)*) -> Done<()> = $run;
                call(stringify!($name), |driver| run(driver $(, $argument)*))
            }
        )*
    };
}

giving! {
    cuDriverGetVersion(to: *mut c_int) |d| Ok(d.settings.version);
    cuDeviceGetCount(to: *mut c_int) |d| Ok(d.settings.gpus);
    cuDeviceGet(to: *mut CUdevice, ordinal: c_int) |d, ordinal| d.device(ordinal);
    cuDeviceTotalMem_v2(to: *mut usize, device: CUdevice) |d, device| d.device(device).map(|_| d.settings.memory);
    cuDeviceGetAttribute(to: *mut c_int, which: CUdevice_attribute, device: CUdevice) |d, which, device| {
        d.device(device)?;
        d.attribute(which)
    };
    cuDevicePrimaryCtxRetain(to: *mut CUcontext, device: CUdevice) |d, device| {
        d.device(device)?;
        d.retain().map(pointer)
    };
    cuCtxGetCurrent(to: *mut CUcontext) |_| Ok(Driver::current().map_or(std::ptr::null_mut(), pointer));
    cuMemAlloc_v2(to: *mut CUdeviceptr, bytes: usize) |d, bytes| d.allocate(bytes);
    cuMemHostAlloc(to: *mut *mut c_void, bytes: usize, _flags: c_uint) |d, bytes, _| d.pin(bytes).map(|at| at as *mut c_void);
    cuModuleLoadData(to: *mut CUmodule, image: *const c_void) |d, image| {
        // SAFETY: callers give whole images.
        unsafe { d.load(image.cast()) }.map(pointer)
    };
    cuModuleGetFunction(to: *mut CUfunction, module: CUmodule, name: *const c_char) |d, module, name| {
        // SAFETY: callers give a C string.
        match unsafe { CStr::from_ptr(name) }.to_str() {
            Ok(name) => d.find(module.into(), name).map(pointer),
            Err(e) => refused(CUresult::CUDA_ERROR_INVALID_VALUE, e.to_string()),
        }
    };
    cuStreamCreate(to: *mut CUstream, _flags: c_uint) |d, _| d.new_stream().map(pointer);
    cuGraphInstantiateWithFlags(to: *mut CUgraphExec, graph: CUgraph, _flags: c_ulonglong) |d, graph, _| {
        d.instantiate(graph.into()).map(pointer)
    };
    cuEventCreate(to: *mut CUevent, flags: c_uint) |d, flags| {
        d.new_event(flags & CUevent_flags::CU_EVENT_DISABLE_TIMING as c_uint == 0).map(pointer)
    };
    cuEventElapsedTime(to: *mut f32, begin: CUevent, end: CUevent) |d, begin, end| d.milliseconds(begin.into(), end.into());
}

doing! {
    cuInit(_flags: c_uint) |d, _| d.init();
    cuDevicePrimaryCtxRelease_v2(device: CUdevice) |d, device| {
        d.device(device)?;
        d.release()
    };
    cuCtxSetCurrent(context: CUcontext) |d, context| d.set_current((!context.is_null()).then(|| context.into()));
    cuCtxSynchronize() |d| d.synchronise(None);
    cuMemFree_v2(address: CUdeviceptr) |d, address| d.free(address);
    cuMemFreeHost(at: *mut c_void) |d, at| d.unpin(at as usize);
    cuModuleUnload(module: CUmodule) |d, module| d.unload(module.into());
    cuFuncSetAttribute(function: CUfunction, which: CUfunction_attribute, value: c_int) |d, function, which, value| {
        match which {
            CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES => d.allow(function.into(), value),
            _ => refused(CUresult::CUDA_ERROR_NOT_SUPPORTED, format!("the test driver sets no {which:?}")),
        }
    };
    cuStreamDestroy_v2(stream: CUstream) |d, stream| d.end_stream(stream.into());
    cuStreamSynchronize(stream: CUstream) |d, stream| d.synchronise(Some(stream.into()));
    cuStreamBeginCapture_v2(stream: CUstream, mode: CUstreamCaptureMode) |d, stream, mode| match mode {
        CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL => d.begin_capture(stream.into()),
        _ => refused(CUresult::CUDA_ERROR_NOT_SUPPORTED, format!("the test driver captures in no {mode:?}")),
    };
    cuGraphLaunch(graph: CUgraphExec, stream: CUstream) |d, graph, stream| d.launch_graph(graph.into(), stream.into());
    cuGraphDestroy(graph: CUgraph) |d, graph| d.end_graph(graph.into());
    cuGraphExecDestroy(graph: CUgraphExec) |d, graph| d.end_executable(graph.into());
    cuMemcpyHtoDAsync_v2(to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream) |d, to, from, bytes, stream| {
        let from = from as usize;
        d.memory.on_host(from, bytes)?;
        d.memory.on_device(to, bytes)?;
        d.enqueue(stream.into(), Work::ToDevice { from, to, bytes })
    };
    cuMemcpyDtoHAsync_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream) |d, to, from, bytes, stream| {
        let to = to as usize;
        d.memory.on_host(to, bytes)?;
        d.memory.on_device(from, bytes)?;
        d.enqueue(stream.into(), Work::ToHost { from, to, bytes })
    };
    cuMemcpyDtoDAsync_v2(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream) |d, to, from, bytes, stream| {
        d.memory.on_device(from, bytes)?;
        d.memory.on_device(to, bytes)?;
        d.enqueue(stream.into(), Work::Copy { from, to, bytes })
    };
    cuMemsetD8Async(to: CUdeviceptr, byte: c_uchar, bytes: usize, stream: CUstream) |d, to, byte, bytes, stream| {
        d.memory.on_device(to, bytes)?;
        d.enqueue(stream.into(), Work::Fill { to, byte, bytes })
    };
    cuEventRecord(event: CUevent, stream: CUstream) |d, event, stream| d.record(event.into(), stream.into());
    cuEventSynchronize(event: CUevent) |d, event| d.wait_for(event.into());
    cuEventDestroy_v2(event: CUevent) |d, event| d.end_event(event.into());
}

/// # Safety
/// As the module says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamEndCapture(stream: CUstream, to: *mut CUgraph) -> CUresult {
    // SAFETY: the caller's promise.
    unsafe { give("cuStreamEndCapture", to, |driver| driver.end_capture(stream.into()).map(pointer)) }
}

/// # Safety
/// As the module says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> CUresult {
    call("cuMemGetInfo", |driver| {
        driver.emulator()?;
        // SAFETY: the caller's promise.
        unsafe {
            free.write(driver.settings.memory - driver.memory.used());
            total.write(driver.settings.memory);
        }
        Ok(())
    })
}

/// # Safety
/// As the module says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(to: *mut c_char, bytes: c_int, device: CUdevice) -> CUresult {
    call("cuDeviceGetName", |driver| {
        driver.device(device)?;
        let name = driver.name();
        let n = name.len().min(bytes.max(1) as usize - 1);
        // SAFETY: `bytes` bytes may be written at `to`.
        unsafe {
            std::ptr::copy_nonoverlapping(name.as_ptr(), to.cast(), n);
            to.add(n).write(0);
        }
        Ok(())
    })
}

/// # Safety
/// As the module says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: CUfunction,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared: c_uint,
    stream: CUstream,
    parameters: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> CUresult {
    call("cuLaunchKernel", |driver| {
        driver.emulator()?;
        if parameters.is_null() || !extra.is_null() {
            return refused(CUresult::CUDA_ERROR_INVALID_VALUE, "parameters come as an array of pointers");
        }
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        let (function, launch) = driver.launchable(function.into(), grid, block, shared)?;
        // SAFETY: the kernel has one parameter, and so many bytes of it are copied, as a driver does.
        let arguments = unsafe { ArgumentCopy::of(*parameters, function.facts.parameter_bytes) };
        driver.enqueue(stream.into(), Work::Launch { launch, arguments })
    })
}

/// # Safety
/// As the module says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuTensorMapEncodeTiled(
    to: *mut CUtensorMap,
    dtype: CUtensorMapDataType,
    rank: c_uint,
    address: *mut c_void,
    sizes: *const cuuint64_t,
    strides: *const cuuint64_t,
    boxes: *const cuuint32_t,
    element_strides: *const cuuint32_t,
    interleave: CUtensorMapInterleave,
    swizzle: CUtensorMapSwizzle,
    _promotion: CUtensorMapL2promotion,
    _fill: CUtensorMapFloatOOBfill,
) -> CUresult {
    let run = |driver: &mut Driver| {
        let rank = rank as usize;
        let dtype = match dtype {
            CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT32 => MapType::F32,
            CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 => MapType::Bf16,
            _ => return refused(CUresult::CUDA_ERROR_NOT_SUPPORTED, format!("the test driver maps no {dtype:?}")),
        };
        let swizzle = match swizzle {
            CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE => Swizzle::None,
            CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_32B => Swizzle::Bytes32,
            CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B => Swizzle::Bytes64,
            CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B => Swizzle::Bytes128,
            _ => return refused(CUresult::CUDA_ERROR_NOT_SUPPORTED, format!("the test driver maps no {swizzle:?}")),
        };
        let aligned = (to as usize).is_multiple_of(align_of::<TensorMap>());
        if !(1..=5).contains(&rank) || !aligned || interleave != CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE {
            return refused(CUresult::CUDA_ERROR_INVALID_VALUE, "a tensor map of this rank, place or interleaving");
        }
        // SAFETY: the arrays have these lengths.
        let (shape, steps) = unsafe {
            let shape = TensorMapShape {
                dtype,
                address: address as u64,
                sizes: std::slice::from_raw_parts(sizes, rank),
                strides_bytes: std::slice::from_raw_parts(strides, rank - 1),
                box_sizes: std::slice::from_raw_parts(boxes, rank),
                swizzle,
            };
            (shape, std::slice::from_raw_parts(element_strides, rank))
        };
        if steps.iter().any(|n| *n != 1) {
            return refused(CUresult::CUDA_ERROR_NOT_SUPPORTED, "the test driver maps elements one after the other");
        }
        driver.encode(&shape).map(|map| CUtensorMap { opaque: map.0 })
    };
    // SAFETY: the caller's promise.
    unsafe { give("cuTensorMapEncodeTiled", to, run) }
}

/// Names that the program may show; others are told by their number.
fn named(code: CUresult) -> (&'static CStr, &'static CStr) {
    match code {
        CUresult::CUDA_SUCCESS => (c"CUDA_SUCCESS", c"no error"),
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => (c"CUDA_ERROR_OUT_OF_MEMORY", c"out of memory"),
        CUresult::CUDA_ERROR_LAUNCH_FAILED => (c"CUDA_ERROR_LAUNCH_FAILED", c"unspecified launch failure"),
        CUresult::CUDA_ERROR_INVALID_SOURCE => (c"CUDA_ERROR_INVALID_SOURCE", c"device kernel image is invalid"),
        CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU => {
            (c"CUDA_ERROR_NO_BINARY_FOR_GPU", c"no kernel image is available for execution on the device")
        }
        CUresult::CUDA_ERROR_INVALID_IMAGE => (c"CUDA_ERROR_INVALID_IMAGE", c"device kernel image is invalid"),
        CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => {
            (c"CUDA_ERROR_UNSUPPORTED_PTX_VERSION", c"the provided PTX was compiled with an unsupported toolchain.")
        }
        _ => (c"CUDA_ERROR", c"refused by the test driver"),
    }
}

/// # Safety
/// As the module says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(code: CUresult, to: *mut *const c_char) -> CUresult {
    // SAFETY: the caller's promise.
    unsafe { give("cuGetErrorName", to, |_| Ok(named(code).0.as_ptr())) }
}

/// # Safety
/// As the module says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(code: CUresult, to: *mut *const c_char) -> CUresult {
    // SAFETY: the caller's promise.
    unsafe { give("cuGetErrorString", to, |_| Ok(named(code).1.as_ptr())) }
}
