//! Layers: parameters, and the records that applying them appends to a tape.
//!
//! Floor 6: uses `tape`, `ops`' argument types, `tensor`, `base`. Start at [`Linear`].

use crate::base::{DType, Precision, Result};
use crate::ops::attention::Heads;
use crate::ops::linear::{Activation, Segment};
use crate::ops::{embed, linear, norm};
use crate::tape::Tape;
use crate::tensor::{Tensor, Weight};

pub use crate::ops::norm::Kind as NormKind;

/// Room for what attention over q [T, H E] leaves for its gradients, where `tape` will ask for them and in bf16: lse [H, T].
pub fn attention_lse(tape: &mut Tape, q: &Tensor, heads: &Heads) -> Option<Tensor> {
    let wanted = tape.precision() == Precision::Bf16 && tape.requires_gradient(q);
    wanted.then(|| tape.value(DType::F32, [heads.queries, q.shape.rows()]))
}

/// One or several weights that share their input; their outputs lie side by side.
#[derive(Debug, Clone)]
pub struct Linear {
    pub segments: Vec<Segment>,
}

impl Linear {
    /// y = act(x W^T + b) + residual, adapters included; x [T, K] to y [T, sum of N]. Adapters that have a dropout need
    /// `noise` [T, 2] in training, the keys of x's rows.
    pub fn apply(
        &self,
        tape: &mut Tape,
        x: Tensor,
        noise: Option<Tensor>,
        activation: Activation,
        residual: Option<Tensor>,
    ) -> Result<Tensor> {
        self.record(tape, x, None, noise, activation, residual, tape.precision().dtype())
    }

    /// y = x W^T + b + residual of the rows [R] of x and residual that `rows` names: y [R, sum of N].
    pub fn apply_rows(
        &self,
        tape: &mut Tape,
        x: Tensor,
        rows: Tensor,
        noise: Option<Tensor>,
        residual: Tensor,
    ) -> Result<Tensor> {
        self.record(tape, x, Some(rows), noise, Activation::None, Some(residual), tape.precision().dtype())
    }

    /// x W^T kept in f32 whatever the precision: logits.
    pub fn logits(&self, tape: &mut Tape, x: Tensor) -> Result<Tensor> {
        self.record(tape, x, None, None, Activation::None, None, DType::F32)
    }

    #[allow(clippy::too_many_arguments, reason = "what one record holds")]
    fn record(
        &self,
        tape: &mut Tape,
        x: Tensor,
        rows: Option<Tensor>,
        noise: Option<Tensor>,
        activation: Activation,
        residual: Option<Tensor>,
        dtype: DType,
    ) -> Result<Tensor> {
        let m = rows.map_or(x.shape.rows(), |rows| rows.shape.elements());
        let y = tape.value(dtype, [m, linear::Linear::width(&self.segments)]);
        let rank = linear::Linear::rank(&self.segments);
        let s = (rank > 0).then(|| tape.activation([m, rank]));
        let segments = self.segments.clone();
        let trained = segments.iter().flat_map(Segment::weights).any(|w| w.as_trained().is_some());
        let trains = trained || tape.requires_gradient(&x);
        let z = (activation != Activation::None && trains).then(|| tape.activation(y.shape));
        // only what an adapter drops out needs keys
        let noise = noise.filter(|_| segments.iter().flat_map(|seg| &seg.adapter).any(|a| a.dropout.is_some()));
        let precision = tape.precision();
        tape.push(linear::Linear { x, rows, segments, activation, residual, noise, s, z, precision, y })?;
        Ok(y)
    }
}

/// Layer norm or RMS norm.
#[derive(Debug, Clone)]
pub struct Norm {
    pub kind: NormKind,
    pub eps: f32,
}

impl Norm {
    /// y [T, D] of x [T, D].
    pub fn apply(&self, tape: &mut Tape, x: Tensor) -> Result<Tensor> {
        self.record(tape, x, None, x.shape.rows())
    }

    /// Only the rows of x that `rows` [R] names.
    pub fn apply_rows(&self, tape: &mut Tape, x: Tensor, rows: Tensor) -> Result<Tensor> {
        self.record(tape, x, Some(rows), rows.shape.elements())
    }

    fn record(&self, tape: &mut Tape, x: Tensor, rows: Option<Tensor>, n: usize) -> Result<Tensor> {
        let y = tape.activation([n, x.shape.width()]);
        let (kind, precision) = (self.kind.clone(), tape.precision());
        tape.push(norm::Norm { x, rows, kind, eps: self.eps, precision, y })?;
        Ok(y)
    }
}

/// A table of rows.
#[derive(Debug, Clone)]
pub struct Embedding {
    pub table: Weight,
}

impl Embedding {
    /// Rows of the table for ids [T], image features where `image` = (features [U, D], rows [T]) says so.
    pub fn apply(&self, tape: &mut Tape, ids: Tensor, image: Option<(Tensor, Tensor)>) -> Result<Tensor> {
        let y = tape.activation([ids.shape.elements(), self.table.shape().width()]);
        let precision: Precision = tape.precision();
        tape.push(embed::Embed { ids, table: self.table.clone(), image, precision, y })?;
        Ok(y)
    }
}
