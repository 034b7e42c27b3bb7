//! `--device` and `--precision`.

use super::notice::notice;
use crate::base::{Error, Precision, Result};
use crate::device::probe::{Probe, built, probe};
use crate::device::{Device, emulated_capability};
use crate::train::settings::DeviceChoice;

/// Where and how to compute.
#[derive(Debug, clap::Args)]
pub struct Compute {
    /// Where to compute
    #[arg(long, value_enum, default_value = "auto")]
    device: DeviceChoice,
    /// What activations and weights are stored in while computing [default: f32 on the CPU, bf16 on a GPU]
    #[arg(long, value_enum)]
    precision: Option<Precision>,
}

impl Compute {
    /// What a training run's settings ask for.
    pub fn of(device: DeviceChoice, precision: Option<Precision>) -> Compute {
        Compute { device, precision }
    }

    /// That a device which was asked for by name is there: for jobs that would find out late.
    pub fn check(device: DeviceChoice) -> Result<()> {
        match device {
            DeviceChoice::Auto => Ok(()),
            device => Compute::of(device, None).open().map(|_| ()),
        }
    }

    /// Opens the device; `auto` says on stderr which it took and why, where there was a choice.
    pub fn open(&self) -> Result<(Device, Precision)> {
        let f32 = self.precision == Some(Precision::F32);
        let bf16_only = |device: &str| {
            let said = format!("--precision f32: the kernels of --device {device} compute in bf16; use --device cpu");
            if f32 { Err(Error::Unsupported(said)) } else { Ok(()) }
        };
        match self.device {
            DeviceChoice::Cpu => (),
            DeviceChoice::Emulated => {
                bf16_only("emulated")?;
                return Ok((Device::emulated(emulated_capability()?)?, Precision::Bf16));
            }
            DeviceChoice::Cuda => {
                bf16_only("cuda")?;
                let found = probe();
                if let Some(problem) = found.cuda_problem(&built()) {
                    return Err(Error::Unsupported(format!("--device cuda: {problem}")));
                }
                return cuda(&found);
            }
            DeviceChoice::Auto => {
                let found = probe();
                match (found.gpus.first(), found.cuda_problem(&built())) {
                    (None, _) => (),
                    (Some(_), Some(problem)) => notice(format_args!("computing on the CPU: {problem}")),
                    (Some(gpu), None) if f32 => {
                        notice(format_args!("computing on the CPU and not on {}: --precision f32", gpu.name));
                    }
                    (Some(gpu), None) => {
                        notice(format_args!("computing on {}", gpu.name));
                        return cuda(&found);
                    }
                }
            }
        }
        Ok((Device::host(), self.precision.unwrap_or(Precision::F32)))
    }
}

/// Opens the first GPU.
fn cuda(found: &Probe) -> Result<(Device, Precision)> {
    if let Some(gpu) = found.gpus.first().filter(|gpu| gpu.compiles()) {
        notice(format_args!("the driver compiles the kernels for {}, which takes a while the first time", gpu.name));
    }
    Ok((Device::cuda(0)?, Precision::Bf16))
}

/// What computed, for `--json`: its name, how often each kernel was launched, and how often recorded launches were replayed.
pub fn described(device: &Device) -> serde_json::Value {
    serde_json::json!({"name": device.name(), "kernels": device.launches(), "replays": device.replays()})
}
