//! What this machine has for computing on a GPU. Asks the driver without ever panicking.

use cudarc::driver::{result, sys};

/// One CUDA device.
#[derive(Debug, Clone)]
pub struct Gpu {
    pub name: String,
    pub memory_bytes: usize,
    /// Compute capability, e.g. (9, 0).
    pub capability: (i32, i32),
}

/// What was found.
#[derive(Debug, Clone, Default)]
pub struct Probe {
    /// The newest CUDA version that the driver serves, e.g. 13000; None where there is no driver library.
    pub driver_cuda_version: Option<i32>,
    /// Why the driver could not be used, where it is there but fails.
    pub driver_error: Option<String>,
    pub gpus: Vec<Gpu>,
}

/// Looks for the CUDA driver and its devices.
pub fn probe() -> Probe {
    let mut found = Probe::default();
    // SAFETY: only asks the dynamic linker whether a library of that name loads.
    if !unsafe { sys::is_culib_present() } {
        return found;
    }
    if let Err(e) = result::init() {
        found.driver_error = Some(format!("cuInit failed: {e:?}"));
        return found;
    }
    let mut version = 0;
    // SAFETY: `version` outlives the call, which writes one integer to it.
    if unsafe { sys::cuDriverGetVersion(&mut version) } == sys::CUresult::CUDA_SUCCESS {
        found.driver_cuda_version = Some(version);
    }
    for ordinal in 0..result::device::get_count().unwrap_or(0) {
        let Ok(device) = result::device::get(ordinal) else { continue };
        use sys::CUdevice_attribute_enum as attribute;
        // SAFETY: `device` is a device that the driver just named.
        let read = unsafe {
            (
                result::device::get_name(device),
                result::device::total_mem(device),
                result::device::get_attribute(device, attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
                result::device::get_attribute(device, attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
            )
        };
        if let (Ok(name), Ok(memory_bytes), Ok(major), Ok(minor)) = read {
            found.gpus.push(Gpu { name, memory_bytes, capability: (major, minor) });
        }
    }
    found
}
