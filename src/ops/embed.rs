//! `embed`: y[t] = table[ids[t]], or features[rows[t]] where rows[t] is not negative: tokens with image rows in place.
//!
//! Specification: `host/embed.rs`; kernels: `cuda/embed.cu`. Rounding point: y.

use super::linear::matrix;
use super::{Gradient, Op, THREADS, bf16, indices, open_trained, plan_pieces, require, shape, trained, whole};
use crate::base::{Precision, Result};
use crate::device::{Accumulate, Device, Launch, Memory};
use crate::host;
use crate::tensor::{Tensor, Weight};

crate::arguments! {
    /// `EmbedArgs` of `cuda/embed.cu`.
    pub struct EmbedArgs {
        ids: u64,
        rows: u64,
        table: u64,
        features: u64,
        y: u64,
        t: i64,
        d: i64,
    }
}

crate::arguments! {
    /// `EmbedBackwardArgs` of `cuda/embed.cu`.
    pub struct EmbedBackwardArgs {
        ids: u64,
        rows: u64,
        dy: u64,
        dtable: u64,
        dfeatures: u64,
        t: i64,
        d: i64,
        add: i64,
    }
}

/// A block for each token and each 256 columns.
fn plan_backward(t: usize, d: usize) -> Launch {
    let grid = [t as u32, d.div_ceil(THREADS) as u32, 1];
    Launch { grid, ..Launch::of("embed_bwd_bf16", 1, THREADS as u32) }
}

/// ids [T] (i32), table [V, D], y [T, D]; image: features [U, D] and rows [T] (i32: a feature row, or -1).
#[derive(Debug, Clone)]
pub struct Embed {
    pub ids: Tensor,
    pub table: Weight,
    pub image: Option<(Tensor, Tensor)>,
    pub precision: Precision,
    pub y: Tensor,
}

impl Embed {
    /// That ids name rows of the table, and rows those of the features.
    fn check_indices(&self, op: &'static str, memory: &Memory) -> Result<()> {
        indices(op, "ids", memory.indices(&self.ids)?, self.table.shape().rows(), false)?;
        let check = |(features, rows): &(Tensor, Tensor)| {
            indices(op, "rows", memory.indices(rows)?, features.shape.rows(), true)
        };
        self.image.as_ref().map_or(Ok(()), check)
    }
}

impl Op for Embed {
    fn name(&self) -> &'static str {
        "embed"
    }

    fn contract(&self) -> Result<()> {
        let (t, d) = (self.ids.shape.elements(), self.table.shape().width());
        whole("embed", "ids", &self.ids)?;
        shape("embed", "y", &self.y, [t, d])?;
        if let Some((features, rows)) = &self.image {
            whole("embed", "rows", rows)?;
            shape("embed", "rows", rows, [t])?;
            require("embed", "features", features.shape.width() == d, || format!("rows of {d}"), &features.shape)?;
        }
        Ok(())
    }

    fn inputs(&self) -> Vec<Tensor> {
        std::iter::once(self.ids).chain(self.image.iter().flat_map(|(f, r)| [*f, *r])).collect()
    }

    fn outputs(&self) -> Vec<Tensor> {
        vec![self.y]
    }

    fn weights(&self) -> Vec<&Weight> {
        vec![&self.table]
    }

    fn cost(&self) -> super::Cost {
        // a row of the table for each token, not the table
        let tensors = self.inputs().iter().chain(&self.outputs()).map(Tensor::bytes).sum::<usize>();
        let rows = self.ids.shape.elements() * self.table.shape().width() * self.table.dtype().bytes();
        super::Cost { bytes: (tensors + rows) as u64, flops: 0 }
    }

    fn check(&self, memory: &Memory) -> Result<()> {
        self.check_indices("embed", memory)
    }

    fn forward(&self, device: &mut Device) -> Result<()> {
        self.check(device.memory())?;
        match device {
            Device::Host(memory) => {
                let mut lent = memory.borrow(&self.inputs(), &self.weights(), &self.outputs())?;
                let ids = lent.i32(self.ids)?;
                let image = self.image.map(|(f, rows)| Ok((lent.f32(f)?, lent.i32(rows)?))).transpose()?;
                let table = matrix(&lent, &self.table, self.precision)?;
                lent.output(self.y)?.fill(|y| {
                    let image = image.as_ref().map(|(f, r)| (&**f, *r));
                    let row = |id: usize, y: &mut [f32]| y.copy_from_slice(&table.panel(id..id + 1));
                    host::embed::embed(ids, image, self.y.shape.width(), row, y)
                })
            }
            Device::Launch(gpu) => {
                bf16("embed", &[&self.y])?;
                let at = gpu.addresses(&self.inputs(), &self.weights(), &self.outputs())?;
                let (t, d) = (self.y.shape.rows(), self.y.shape.width());
                let (features, rows) = self.image.as_ref().map(|(features, rows)| (features, rows)).unzip();
                features.map_or(Ok(()), |f| bf16("embed", &[f]))?;
                let arguments = EmbedArgs {
                    ids: at.of(&self.ids)?,
                    rows: at.of_optional(rows)?,
                    table: at.weight(&self.table)?,
                    features: at.of_optional(features)?,
                    y: at.of(&self.y)?,
                    t: t as i64,
                    d: d as i64,
                };
                // SAFETY: y has t rows of d, and `check` found every row that is read in the table or features.
                unsafe { gpu.launch("embed", &plan_pieces("embed_fwd_bf16", t, d), &arguments) }
            }
        }
    }
}

/// The gradients of [`Embed`]: dy [T, D] adds to those of the table (where it is trained) and of the features.
#[derive(Debug, Clone)]
pub struct EmbedBackward {
    pub forward: Embed,
    pub dy: Tensor,
    pub dfeatures: Option<Gradient>,
}

impl Op for EmbedBackward {
    fn name(&self) -> &'static str {
        "embed_backward"
    }

    fn contract(&self) -> Result<()> {
        shape("embed_backward", "dy", &self.dy, self.forward.y.shape)?;
        match (&self.dfeatures, &self.forward.image) {
            (Some(d), Some((features, _))) => shape("embed_backward", "dfeatures", &d.tensor, features.shape),
            (None, _) => Ok(()),
            (Some(d), None) => require("embed_backward", "dfeatures", false, || "none without images".into(), d),
        }
    }

    fn inputs(&self) -> Vec<Tensor> {
        let rows = self.forward.image.map(|(_, rows)| rows);
        [self.forward.ids, self.dy].into_iter().chain(rows).collect()
    }

    fn outputs(&self) -> Vec<Tensor> {
        self.dfeatures.iter().map(|d| d.tensor).chain(trained(self.forward.weights())).collect()
    }

    fn check(&self, memory: &Memory) -> Result<()> {
        self.forward.check_indices("embed_backward", memory)
    }

    fn forward(&self, device: &mut Device) -> Result<()> {
        self.check(device.memory())?;
        match device {
            Device::Host(memory) => {
                let mut lent = memory.borrow(&self.inputs(), &[], &self.outputs())?;
                let (ids, dy) = (lent.i32(self.forward.ids)?, lent.f32(self.dy)?);
                let rows = self.forward.image.map(|(_, rows)| lent.i32(rows)).transpose()?;
                let mut dfeatures = self.dfeatures.map(|d| d.open(&mut lent)).transpose()?;
                let mut dtable = open_trained(&mut lent, Some(&self.forward.table))?;
                let width = self.dy.shape.width();
                let (t, f) = (dtable.as_mut().map(|g| g.values()), dfeatures.as_mut().map(|g| g.values()));
                host::embed::embed_backward(ids, rows, width, &dy, t, f);
                [dfeatures, dtable].into_iter().flatten().for_each(|g| g.close());
                Ok(())
            }
            Device::Launch(gpu) => {
                let f = &self.forward;
                bf16("embed_backward", &[&self.dy])?;
                let at = gpu.addresses(&self.inputs(), &[], &self.outputs())?;
                let mut add = Accumulate::Overwrite;
                if let Some(d) = &self.dfeatures {
                    add = d.accumulate;
                    bf16("embed_backward", &[&d.tensor])?;
                    if add == Accumulate::Overwrite {
                        // features that no token shows have no gradient
                        gpu.memory.zero(d.tensor)?;
                    }
                }
                let (t, d) = (self.dy.shape.rows(), self.dy.shape.width());
                let arguments = EmbedBackwardArgs {
                    ids: at.of(&f.ids)?,
                    rows: at.of_optional(f.image.as_ref().map(|(_, rows)| rows))?,
                    dy: at.of(&self.dy)?,
                    dtable: at.gradient(&f.table)?,
                    dfeatures: at.of_optional(self.dfeatures.as_ref().map(|d| &d.tensor))?,
                    t: t as i64,
                    d: d as i64,
                    add: (add == Accumulate::Add) as i64,
                };
                // SAFETY: as in the forward; the gradients have the shapes of what they are gradients of.
                unsafe { gpu.launch("embed_backward", &plan_backward(t, d), &arguments) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gradients_blocks_cover_tokens_and_columns() {
        for (t, d, grid) in [(0, 8, [0, 1, 1]), (1, 1, [1, 1, 1]), (7, 256, [7, 1, 1]), (7, 257, [7, 2, 1])] {
            assert_eq!(plan_backward(t, d).grid, grid);
        }
    }
}
