//! `sample`: the next token of each sequence. Specification: `host/sample.rs`.

use super::{Op, require, shape, whole};
use crate::base::{DType, Error, Result};
use crate::device::Device;
use crate::host;
use crate::tensor::Tensor;

pub use crate::host::sample::Choice;

/// logits [B, V] (f32) to y [B] (i32). seen [B, any] and generated [B, any] (i32, -1 pads): tokens of prompt and answer,
/// and of the answer alone. uniform [B] (f32) in [0, 1). Ids from `n_valid` on are never chosen.
#[derive(Debug, Clone)]
pub struct Sample {
    pub logits: Tensor,
    pub seen: Tensor,
    pub generated: Tensor,
    pub uniform: Tensor,
    pub choice: Choice,
    pub n_valid: usize,
    pub y: Tensor,
}

impl Op for Sample {
    fn name(&self) -> &'static str {
        "sample"
    }

    fn contract(&self) -> Result<()> {
        let (b, v) = (self.logits.shape.rows(), self.logits.shape.width());
        let dtype = self.logits.dtype;
        require("sample", "logits", dtype == DType::F32, || "f32".into(), &dtype)?;
        require("sample", "n_valid", (1..=v).contains(&self.n_valid), || format!("1 to {v}"), &self.n_valid)?;
        shape("sample", "seen", &self.seen, [b, self.seen.shape.width()])?;
        shape("sample", "generated", &self.generated, [b, self.generated.shape.width()])?;
        shape("sample", "uniform", &self.uniform, [b])?;
        shape("sample", "y", &self.y, [b])?;
        [("seen", &self.seen), ("generated", &self.generated), ("y", &self.y)]
            .into_iter()
            .try_for_each(|(name, t)| whole("sample", name, t))
    }

    fn inputs(&self) -> Vec<Tensor> {
        vec![self.logits, self.seen, self.generated, self.uniform]
    }

    fn outputs(&self) -> Vec<Tensor> {
        vec![self.y]
    }

    fn forward(&self, device: &mut Device) -> Result<()> {
        match device {
            Device::Host(memory) => {
                let mut lent = memory.borrow(&self.inputs(), &self.weights(), &self.outputs())?;
                let (logits, uniform) = (lent.f32(self.logits)?, lent.f32(self.uniform)?);
                let (seen, generated) = (lent.i32(self.seen)?, lent.i32(self.generated)?);
                let y = lent.output(self.y)?.i32()?;
                for (b, logits) in logits.chunks_exact(self.logits.shape.width()).enumerate() {
                    let row = |t: &Tensor| b * t.shape.width()..(b + 1) * t.shape.width();
                    let mut logits = logits[..self.n_valid].to_vec();
                    let seen = &seen[row(&self.seen)];
                    host::sample::penalise(&mut logits, seen, &generated[row(&self.generated)], &self.choice);
                    let chosen = host::sample::sample(&logits, &self.choice, uniform[b]);
                    y[b] = match chosen {
                        Some(token) if !logits.iter().any(|l| l.is_nan()) => token as i32,
                        _ => {
                            return Err(Error::Contract {
                                op: "sample",
                                argument: "logits",
                                wanted: "numbers".into(),
                                got: format!("NaN in row {b}: the weights or the picture hold values that overflow"),
                            });
                        }
                    };
                }
                Ok(())
            }
            Device::Launch(_) => Err(super::no_kernel(self.name())),
        }
    }
}
