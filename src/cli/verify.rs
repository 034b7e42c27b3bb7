//! `vlm verify`: this program's tensors beside those of another implementation.

use super::dump;
use super::model::ModelFlags;
use super::values::not_negative;
use crate::base::{Error, Result};
use crate::data::messages::read_messages;
use crate::io::safetensors::SafetensorsFile;
use crate::io::{HostData, HostTensor};
use std::fmt::Write;
use std::path::PathBuf;

/// Compare what the program computes with a safetensors file of another implementation
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: vlm verify --model DIR --reference transformers.safetensors --messages chat.json")]
pub struct Verify {
    #[command(flatten)]
    model: ModelFlags,
    /// Tensors under the names that `vlm dump` writes
    #[arg(long, value_name = "FILE")]
    reference: PathBuf,
    /// {"messages": [...]}; image paths relative to the file
    #[arg(long, value_name = "FILE")]
    messages: PathBuf,
    /// Relative error up to which two tensors count as equal
    #[arg(long, value_name = "X", default_value_t = 2e-5, value_parser = not_negative::<f64>)]
    tolerance: f64,
}

impl Verify {
    pub fn run(&self) -> Result<()> {
        let reference = SafetensorsFile::open(&self.reference)?;
        let ours = dump::compute(&self.model, &read_messages(&self.messages)?, false)?;
        let mut said = format!("{:<16} {:<16} {:>12} {:>12}\n", "tensor", "shape", "relative", "largest");
        let (mut first, mut compared) = (None, 0);
        for (name, tensor) in &ours {
            if reference.entry(name).is_none() {
                _ = writeln!(said, "{name:<16} not in the reference");
                continue;
            }
            compared += 1;
            let theirs = HostTensor::read(&reference, name)?;
            let shape = format!("{:?}", tensor.shape);
            match difference(tensor, &theirs) {
                Some((relative, largest)) => {
                    let ok = relative <= self.tolerance;
                    let mark = if ok { "" } else { "  <-" };
                    _ = writeln!(said, "{name:<16} {shape:<16} {relative:>12.2e} {largest:>12.2e}{mark}");
                    if !ok {
                        first.get_or_insert(name);
                    }
                }
                None => {
                    _ = writeln!(said, "{name:<16} {shape:<16} shape {:?} there  <-", theirs.shape);
                    first.get_or_insert(name);
                }
            }
        }
        for (name, _) in reference.tensors().filter(|(name, _)| ours.iter().all(|(ours, _)| ours != name)) {
            _ = writeln!(said, "{name:<16} only in the reference");
        }
        super::print(&said)?;
        match first {
            _ if compared == 0 => {
                Err(Error::file(&self.reference, "holds no tensor under a name that vlm dump writes"))
            }
            Some(name) => Err(Error::tensor(&self.reference, name, "is the first that differs")),
            None => Ok(()),
        }
    }
}

/// Relative L2 error and largest difference; None where the shapes differ. NaN where either holds one.
fn difference(a: &HostTensor, b: &HostTensor) -> Option<(f64, f64)> {
    if a.shape != b.shape {
        return None;
    }
    let numbers = |t: &HostTensor| -> Vec<f64> {
        match &t.data {
            HostData::F32(v) => v.iter().map(|x| *x as f64).collect(),
            HostData::I64(v) => v.iter().map(|x| *x as f64).collect(),
        }
    };
    let (a, b) = (numbers(a), numbers(b));
    let square: f64 = a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum();
    let norm: f64 = b.iter().map(|b| b * b).sum();
    let largest =
        a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, |m: f64, d| if d.is_nan() || d > m { d } else { m });
    Some((if norm > 0.0 { (square / norm).sqrt() } else { square.sqrt() }, largest))
}
