//! `--device` and `--precision`.

use super::notice::notice;
use crate::base::{Error, Precision, Result};
use crate::device::probe::{built, probe};
use crate::device::{Device, emulated_capability};
use crate::train::settings::{DeviceChoice, PrecisionChoice};
use clap::ValueEnum;

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
    /// What activations and weights are stored in while computing [default: f32 on the CPU, bf16 on a GPU]
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

    /// That a device which was asked for by name is there: for jobs that would find out late.
    pub fn check(device: &str) -> Result<()> {
        match DeviceFlag::from_str(device, false).map_err(Error::Usage)? {
            DeviceFlag::Auto => Ok(()),
            device => Compute { device, precision: None }.open().map(|_| ()),
        }
    }

    /// Opens the device; `auto` says on stderr which it took and why, where there was a choice.
    pub fn open(&self) -> Result<(Device, Precision)> {
        let f32 = self.precision == Some(PrecisionFlag::F32);
        let bf16_only = |device: &str| {
            let said = format!("--precision f32: the kernels of --device {device} compute in bf16; use --device cpu");
            if f32 { Err(Error::Unsupported(said)) } else { Ok(()) }
        };
        match self.device {
            DeviceFlag::Cpu => (),
            DeviceFlag::Emulated => {
                bf16_only("emulated")?;
                return Ok((Device::emulated(emulated_capability()?)?, Precision::Bf16));
            }
            DeviceFlag::Cuda => {
                bf16_only("cuda")?;
                if let Some(problem) = probe().cuda_problem(&built()) {
                    return Err(Error::Unsupported(format!("--device cuda: {problem}")));
                }
                return Ok((Device::cuda(0)?, Precision::Bf16));
            }
            DeviceFlag::Auto => {
                let found = probe();
                match (found.gpus.first(), found.cuda_problem(&built())) {
                    (None, _) => (),
                    (Some(_), Some(problem)) => notice(format_args!("computing on the CPU: {problem}")),
                    (Some(gpu), None) if f32 => {
                        notice(format_args!("computing on the CPU and not on {}: --precision f32", gpu.name));
                    }
                    (Some(gpu), None) => {
                        notice(format_args!("computing on {}", gpu.name));
                        return Ok((Device::cuda(0)?, Precision::Bf16));
                    }
                }
            }
        }
        let precision = match self.precision {
            None | Some(PrecisionFlag::F32) => Precision::F32,
            Some(PrecisionFlag::Bf16) => Precision::Bf16,
        };
        Ok((Device::host(), precision))
    }
}

/// What computed, for `--json`: its name, how often each kernel was launched, and how often recorded launches were replayed.
pub fn described(device: &Device) -> serde_json::Value {
    serde_json::json!({"name": device.name(), "kernels": device.launches(), "replays": device.replays()})
}
