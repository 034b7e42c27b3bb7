//! A CUDA driver for machines without a GPU: what the program calls of `libcuda.so`, on the emulator. With the folder of
//! this library in `LD_LIBRARY_PATH`, `--device cuda` runs as it does on a GPU, through the same launcher, streams, graphs,
//! events and copies, and the kernels' machine code is looked up and its launches are checked against what it says.
//!
//! It is a strict driver. What a stream was given happens as late as the documentation of the CUDA driver API allows: when
//! someone waits. Whoever reads results or writes over what is to be copied before a wait gets other numbers than the
//! emulator alone gives. It refuses what a driver refuses, and some things that a driver lets pass but this program must not
//! do: asynchronous copies of memory that is not pinned, copies across allocations. Each refusal goes to a report, and so
//! does what was not given back. `settings` lists what can be chosen.
//!
//! What it cannot show: how machine code behaves, how a GPU's memory orders accesses, and time.

#![allow(non_snake_case, reason = "the names are NVIDIA's")]

mod calls;
mod device;
mod image;
mod memory;
mod modules;
mod settings;
mod streams;

use cudarc::driver::sys::CUresult;
use device::Driver;
use std::sync::{Mutex, PoisonError};

/// A call's outcome: the number that the driver returns, and for the report why.
type Done<T> = Result<T, Refused>;

/// Why a call is refused.
#[derive(Debug)]
struct Refused {
    code: CUresult,
    why: String,
}

fn refused<T>(code: CUresult, why: impl Into<String>) -> Done<T> {
    Err(Refused { code, why: why.into() })
}

/// The name of something that the driver made: what callers hold as a pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Handle(usize);

impl<T> From<*mut T> for Handle {
    fn from(pointer: *mut T) -> Handle {
        Handle(pointer as usize)
    }
}

static DRIVER: Mutex<Option<Driver>> = Mutex::new(None);

/// Does what one call asks for, alone with the driver's state.
fn call(name: &str, run: impl FnOnce(&mut Driver) -> Done<()>) -> CUresult {
    let mut held = DRIVER.lock().unwrap_or_else(PoisonError::into_inner);
    let driver = held.get_or_insert_with(Driver::from_environment);
    match run(driver) {
        Ok(()) => CUresult::CUDA_SUCCESS,
        Err(refused) => {
            // each module is asked for each kernel until one has it
            if refused.code != CUresult::CUDA_ERROR_NOT_FOUND {
                driver.report(&format!("refused {name}: {} ({:?})", refused.why, refused.code));
            }
            refused.code
        }
    }
}

/// As [`call`], for one that leaves a value.
///
/// # Safety
/// `to` may be written.
unsafe fn give<T>(name: &str, to: *mut T, run: impl FnOnce(&mut Driver) -> Done<T>) -> CUresult {
    call(name, |driver| {
        let value = run(driver)?;
        if to.is_null() {
            return refused(CUresult::CUDA_ERROR_INVALID_VALUE, "nowhere to put the result");
        }
        // SAFETY: the caller's promise.
        unsafe { to.write(value) };
        Ok(())
    })
}

/// That the signatures of [`calls`] are those of cudarc.
const _: fn() = || {
    use cudarc::driver::sys;
    macro_rules! same {
        ($($name:ident($($argument:ident),*)),* $(,)?) => {
            $(let _ = |$($argument),*| if false { unsafe { sys::$name($($argument),*) } } else { unsafe { calls::$name($($argument),*) } };)*
        };
    }
    same!(
        cuInit(a),
        cuDriverGetVersion(a),
        cuDeviceGetCount(a),
        cuDeviceGet(a, b),
        cuDeviceGetName(a, b, c),
        cuDeviceTotalMem_v2(a, b),
        cuDeviceGetAttribute(a, b, c),
        cuDevicePrimaryCtxRetain(a, b),
        cuDevicePrimaryCtxRelease_v2(a),
        cuCtxGetCurrent(a),
        cuCtxSetCurrent(a),
        cuCtxSynchronize(),
        cuMemGetInfo_v2(a, b),
        cuMemAlloc_v2(a, b),
        cuMemFree_v2(a),
        cuMemHostAlloc(a, b, c),
        cuMemFreeHost(a),
        cuModuleLoadData(a, b),
        cuModuleUnload(a),
        cuModuleGetFunction(a, b, c),
        cuFuncSetAttribute(a, b, c),
        cuStreamCreate(a, b),
        cuStreamDestroy_v2(a),
        cuStreamSynchronize(a),
        cuStreamBeginCapture_v2(a, b),
        cuStreamEndCapture(a, b),
        cuGraphInstantiateWithFlags(a, b, c),
        cuGraphLaunch(a, b),
        cuGraphDestroy(a),
        cuGraphExecDestroy(a),
        cuMemcpyHtoDAsync_v2(a, b, c, d),
        cuMemcpyDtoHAsync_v2(a, b, c, d),
        cuMemcpyDtoDAsync_v2(a, b, c, d),
        cuMemsetD8Async(a, b, c, d),
        cuLaunchKernel(a, b, c, d, e, f, g, h, i, j, k),
        cuEventCreate(a, b),
        cuEventRecord(a, b),
        cuEventSynchronize(a),
        cuEventElapsedTime(a, b, c),
        cuEventDestroy_v2(a),
        cuTensorMapEncodeTiled(a, b, c, d, e, f, g, h, i, j, k, l),
        cuGetErrorName(a, b),
        cuGetErrorString(a, b),
    );
};

/// The pointer that callers hold.
fn pointer<T>(handle: Handle) -> *mut T {
    handle.0 as *mut T
}
