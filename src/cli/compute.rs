//! `--device` and `--precision`.

use crate::base::{Error, Precision, Result};
use crate::device::{Device, probe};
use crate::train::settings::{DeviceChoice, PrecisionChoice};

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum DeviceFlag {
    /// CUDA where it works, else the CPU
    Auto,
    Cpu,
    Cuda,
    /// The GPU kernels, run on the CPU
    Emulated,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum PrecisionFlag {
    F32,
    Bf16,
}

/// Where and how to compute.
#[derive(Debug, clap::Args)]
pub struct Compute {
    /// Where to compute
    #[arg(long, value_enum, default_value = "auto")]
    device: DeviceFlag,
    /// What activations and weights are stored in while computing [default: f32 on the CPU]
    #[arg(long, value_enum)]
    precision: Option<PrecisionFlag>,
}

impl Compute {
    /// What a training run's settings ask for.
    pub fn of(device: DeviceChoice, precision: Option<PrecisionChoice>) -> Compute {
        let device = match device {
            DeviceChoice::Auto => DeviceFlag::Auto,
            DeviceChoice::Cpu => DeviceFlag::Cpu,
            DeviceChoice::Cuda => DeviceFlag::Cuda,
            DeviceChoice::Emulated => DeviceFlag::Emulated,
        };
        let precision = precision.map(|p| match p {
            PrecisionChoice::F32 => PrecisionFlag::F32,
            PrecisionChoice::Bf16 => PrecisionFlag::Bf16,
        });
        Compute { device, precision }
    }

    /// Opens the device; `auto` says on stderr which it took and why, where there was a choice.
    pub fn open(&self) -> Result<(Device, Precision)> {
        let no_kernels = |device: &str| {
            let said = format!("--device {device}: this build of vlm has no GPU kernels; use --device cpu");
            Err(Error::Unsupported(said))
        };
        match self.device {
            DeviceFlag::Cuda => return no_kernels("cuda"),
            DeviceFlag::Emulated => return no_kernels("emulated"),
            DeviceFlag::Auto => {
                if let Some(gpu) = probe().gpus.first() {
                    eprintln!("vlm: computing on the CPU: {} is there, but this build has no GPU kernels", gpu.name);
                }
            }
            DeviceFlag::Cpu => (),
        }
        let precision = match self.precision {
            None | Some(PrecisionFlag::F32) => Precision::F32,
            Some(PrecisionFlag::Bf16) => Precision::Bf16,
        };
        Ok((Device::host(), precision))
    }
}
