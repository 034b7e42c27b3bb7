//! Gradients: backward appends its own records to the tape, one rule a variant, in reverse order.
//!
//! The rules never compute: they name which operation turns the gradient of an output into those of the inputs. The
//! memory plan, the cost and the trace then cover both directions alike. Parameters' gradients lie outside the tape and
//! are always added to; a value's gradient is written by its first contribution and added to by later ones.

use super::recompute::Again;
use super::{Record, Tape};
use crate::base::{Error, Result};
use crate::device::Accumulate;
use crate::ops::attention::AttentionBackward;
use crate::ops::deepstack_add::DeepstackAddBackward;
use crate::ops::embed::EmbedBackward;
use crate::ops::linear::LinearBackward;
use crate::ops::norm::NormBackward;
use crate::ops::patch_embed::PatchEmbedBackward;
use crate::ops::qk_rope::QkRopeBackward;
use crate::ops::swiglu::SwigluBackward;
use crate::ops::{Gradient, Op};
use crate::tensor::Tensor;
use std::collections::HashMap;

/// Gradients of values that are known so far, by slot.
#[derive(Default)]
struct Gradients(HashMap<u32, Tensor>);

impl Gradients {
    fn of(&self, value: Tensor) -> Option<Tensor> {
        self.0.get(&value.slot).map(|g| g.reshaped(value.shape))
    }

    /// Where a contribution to the gradient of `value` goes; None where nothing trained lies behind it.
    fn to(&mut self, tape: &mut Tape, value: Tensor) -> Option<Gradient> {
        if !tape.requires_gradient(&value) {
            return None;
        }
        if let Some(tensor) = self.of(value) {
            return Some(Gradient { tensor, accumulate: Accumulate::Add });
        }
        let tensor = tape.activation(value.shape);
        self.0.insert(value.slot, tensor);
        Some(Gradient { tensor, accumulate: Accumulate::Overwrite })
    }

    /// The gradient of `value` is that of the result it was added into, whose own is of no further use.
    fn pass_on(&mut self, tape: &Tape, value: Tensor, gradient: Tensor) -> Result<()> {
        if tape.requires_gradient(&value) && self.0.insert(value.slot, gradient).is_some() {
            return Err(Error::Contract {
                op: "backward",
                argument: "residual",
                wanted: "a value that later operations read only through its sum".into(),
                got: format!("{value:?}, which has a gradient already"),
            });
        }
        Ok(())
    }
}

impl Tape {
    /// Appends the backward of everything recorded so far, starting from each `linear_loss`.
    pub fn backward(&mut self) -> Result<()> {
        self.backward_after(&mut Again::none())
    }

    /// [`Tape::backward`], where the records of `again` run a second time before their results are read.
    pub(super) fn backward_after(&mut self, again: &mut Again) -> Result<()> {
        let mut gradients = Gradients::default();
        for i in (0..self.records.len()).rev() {
            let record = self.records[i].clone();
            let scope = format!("{} backward", self.scope_names[self.scopes[i]]);
            if self.scope_names.last() != Some(&scope) {
                self.scope(scope);
            }
            self.rule(record, &mut gradients, again)?;
        }
        Ok(())
    }

    fn rule(&mut self, record: Record, gradients: &mut Gradients, again: &mut Again) -> Result<()> {
        match record {
            Record::LinearLoss(op) => {
                if let Some(dx) = op.dx {
                    gradients.0.insert(op.x.slot, dx);
                }
            }
            Record::Linear(op) => {
                let Some(dy) = gradients.of(op.y) else { return Ok(()) };
                let dx = gradients.to(self, op.x);
                // of some rows the residual's gradient is a part, of all it is dy
                let part = op.residual.filter(|_| op.rows.is_some());
                let whole = op.residual.filter(|_| op.rows.is_none());
                let dresidual = part.and_then(|residual| gradients.to(self, residual));
                let backward = LinearBackward { forward: op, dy, dx, dresidual };
                if !backward.outputs().is_empty() {
                    self.push_backward(again, backward)?;
                }
                if let Some(residual) = whole {
                    gradients.pass_on(self, residual, dy)?;
                }
            }
            Record::Norm(op) => {
                let Some(dy) = gradients.of(op.y) else { return Ok(()) };
                let dx = gradients.to(self, op.x);
                self.push_backward(again, NormBackward { forward: op, dy, dx })?;
            }
            Record::Swiglu(op) => {
                let Some(dy) = gradients.of(op.y) else { return Ok(()) };
                if let Some(dgate_up) = gradients.to(self, op.gate_up) {
                    self.push_backward(again, SwigluBackward { forward: op, dy, dgate_up })?;
                }
            }
            Record::Attention(op) => {
                let Some(dy) = gradients.of(op.y) else { return Ok(()) };
                let (dq, dk) = (gradients.to(self, op.q), gradients.to(self, op.k));
                if let (Some(dq), Some(dk), Some(dv)) = (dq, dk, gradients.to(self, op.v)) {
                    self.push_backward(again, AttentionBackward { forward: op, dy, dq, dk, dv })?;
                }
            }
            Record::QkRope(op) => {
                let (Some(dq), Some(dk)) = (gradients.of(op.q), gradients.of(op.k)) else { return Ok(()) };
                if let Some(dqkv) = gradients.to(self, op.qkv) {
                    self.push_backward(again, QkRopeBackward { forward: op, dq, dk, dqkv })?;
                }
            }
            Record::DeepstackAdd(op) => {
                let Some(dy) = gradients.of(op.y) else { return Ok(()) };
                if let Some(dfeatures) = gradients.to(self, op.features) {
                    self.push_backward(again, DeepstackAddBackward { rows: op.rows, dy, dfeatures })?;
                }
                gradients.pass_on(self, op.x, dy)?;
            }
            Record::Embed(op) => {
                let Some(dy) = gradients.of(op.y) else { return Ok(()) };
                let dfeatures = op.image.and_then(|(features, _)| gradients.to(self, features));
                let backward = EmbedBackward { forward: op, dy, dfeatures };
                if !backward.outputs().is_empty() {
                    self.push_backward(again, backward)?;
                }
            }
            Record::PatchEmbed(op) => {
                let Some(dy) = gradients.of(op.y) else { return Ok(()) };
                let backward = PatchEmbedBackward { forward: op, dy };
                if !backward.outputs().is_empty() {
                    self.push_backward(again, backward)?;
                }
            }
            Record::AttentionCached(_) | Record::Sample(_) => {
                return Err(Error::Contract {
                    op: "backward",
                    argument: "records",
                    wanted: "operations of a prompt's pass".into(),
                    got: record.op().name().into(),
                });
            }
            // what backward itself appended
            Record::AttentionBackward(_)
            | Record::DeepstackAddBackward(_)
            | Record::EmbedBackward(_)
            | Record::LinearBackward(_)
            | Record::NormBackward(_)
            | Record::PatchEmbedBackward(_)
            | Record::QkRopeBackward(_)
            | Record::SwigluBackward(_) => (),
        }
        Ok(())
    }
}
