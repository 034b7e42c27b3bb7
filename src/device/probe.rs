//! What this machine has for computing on a GPU. Asks the driver without ever panicking.

use super::images::{IMAGES, ImageKind};
use cudarc::driver::{result, sys};

/// One CUDA device.
#[derive(Debug, Clone)]
pub struct Gpu {
    pub name: String,
    pub memory_bytes: usize,
    /// Compute capability, e.g. (9, 0).
    pub capability: (i32, i32),
}

impl Gpu {
    /// Whether its driver has to compile the kernels; it keeps what it compiled.
    pub fn compiles(&self) -> bool {
        ImageKind::of(self.capability) == ImageKind::Ptx80
    }
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
    let mut version = 0;
    // SAFETY: `version` outlives the call, which writes one integer to it and works before cuInit does.
    if unsafe { sys::cuDriverGetVersion(&mut version) } == sys::CUresult::CUDA_SUCCESS {
        found.driver_cuda_version = Some(version);
    }
    match result::init() {
        Ok(()) => (),
        // as a driver says where it may show no GPU
        Err(e) if e.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => return found,
        Err(e) => {
            found.driver_error = Some(format!("cuInit failed: {e:?}"));
            return found;
        }
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

/// Which kernels this build of the program has for GPUs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Built {
    pub sm_80: bool,
    pub sm_90a: bool,
    /// Text that a driver compiles for newer GPUs.
    pub ptx: bool,
    /// The major version of the CUDA that compiled them.
    pub cuda_version: Option<u32>,
}

/// What build.rs put into this program.
pub fn built() -> Built {
    let has = |kind| IMAGES.iter().any(|i| i.kind == kind);
    let ptx = IMAGES.iter().find(|i| i.kind == ImageKind::Ptx80);
    let text = ptx.and_then(|i| i.packed.unpack().ok());
    let cuda_version = text.and_then(|text| cuda_version(&String::from_utf8_lossy(&text)));
    Built { sm_80: has(ImageKind::Sm80), sm_90a: has(ImageKind::Sm90a), ptx: ptx.is_some(), cuda_version }
}

/// The major version of the CUDA that wrote PTX: 8.x is of CUDA 12, 9.x of CUDA 13.
fn cuda_version(ptx: &str) -> Option<u32> {
    let version = ptx.lines().find_map(|l| l.strip_prefix(".version "))?;
    match version.split('.').next()?.trim().parse().ok()? {
        8 => Some(12),
        isa if isa >= 9 => Some(isa + 4),
        _ => None,
    }
}

impl Built {
    fn any(&self) -> bool {
        self.sm_80 || self.sm_90a || self.ptx
    }

    /// For a person.
    pub fn describe(&self) -> Vec<&'static str> {
        let all = [(self.sm_80, "sm_80"), (self.sm_90a, "sm_90a"), (self.ptx, "PTX for newer GPUs")];
        all.into_iter().filter(|(has, _)| *has).map(|(_, name)| name).collect()
    }

    fn runs_on(&self, capability: (i32, i32)) -> bool {
        match ImageKind::of(capability) {
            ImageKind::Sm90a => self.sm_90a,
            ImageKind::Sm80 => self.sm_80,
            ImageKind::Ptx80 => self.ptx,
        }
    }
}

impl Probe {
    /// Why the first GPU cannot be computed on, in one sentence; None where it can.
    pub fn cuda_problem(&self, built: &Built) -> Option<String> {
        let instead = "or use --device cpu";
        if let Some(e) = &self.driver_error {
            return Some(format!("the CUDA driver is installed but fails ({e}): mend its installation, {instead}"));
        }
        let Some(driver) = self.driver_cuda_version else {
            return Some(format!("no CUDA driver (libcuda.so.1 is not there): install NVIDIA's driver, {instead}"));
        };
        let Some(gpu) = self.gpus.first() else {
            return Some(format!("the driver finds no GPU: look at nvidia-smi and CUDA_VISIBLE_DEVICES, {instead}"));
        };
        let (major, minor) = gpu.capability;
        if major < 8 {
            let has = format!("{} has compute capability {major}.{minor}", gpu.name);
            return Some(format!("{has}, and the kernels need 8.0 or newer: take another GPU, {instead}"));
        }
        if !built.any() {
            let said = "this build of vlm has no GPU kernels: build it where nvcc is (tools/install-nvcc installs it)";
            return Some(format!("{said}, {instead}"));
        }
        if !built.runs_on(gpu.capability) {
            let said =
                format!("this build of vlm has no kernels for compute capability {major}.{minor} ({})", gpu.name);
            return Some(format!("{said}: build it anew, {instead}"));
        }
        let wanted = built.cuda_version.unwrap_or(0) as i32;
        if driver / 1000 < wanted {
            let needs = if wanted >= 13 { "driver 580 or newer" } else { "driver 525 or newer" };
            return Some(format!("{}: install {needs}, {instead}", self.ages(built)));
        }
        None
    }

    /// Which CUDA the driver serves and of which the kernels are, as far as it is known: a part of a sentence.
    pub(super) fn ages(&self, built: &Built) -> String {
        let driver = self.driver_cuda_version.map(|v| format!("the driver serves CUDA {}.{}", v / 1000, v % 1000 / 10));
        let kernels = built.cuda_version.map(|v| format!("the kernels are of CUDA {v}"));
        [driver, kernels].into_iter().flatten().collect::<Vec<_>>().join(", and ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_ptx_tells_that_of_cuda() {
        for (ptx, wanted) in [(".version 8.8\n", Some(12)), ("//\n.version 9.0\n", Some(13)), ("none", None)] {
            assert_eq!(cuda_version(ptx), wanted);
        }
    }
}
