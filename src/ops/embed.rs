//! `embed`: y[t] = table[ids[t]], or features[rows[t]] where rows[t] is not negative: tokens with image rows in place.
//!
//! Specification: `host/embed.rs`. Rounding point: y.

use super::linear::matrix;
use super::{Gradient, Op, indices, open_trained, require, shape, trained, whole};
use crate::base::{Precision, Result};
use crate::device::Device;
use crate::host;
use crate::tensor::{Tensor, Weight};

/// ids [T] (i32), table [V, D], y [T, D]; image: features [U, D] and rows [T] (i32: a feature row, or -1).
#[derive(Debug, Clone)]
pub struct Embed {
    pub ids: Tensor,
    pub table: Weight,
    pub image: Option<(Tensor, Tensor)>,
    pub precision: Precision,
    pub y: Tensor,
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

    fn forward(&self, device: &mut Device) -> Result<()> {
        match device {
            Device::Host(memory) => {
                let mut lent = memory.borrow(&self.inputs(), &self.weights(), &self.outputs())?;
                let ids = lent.i32(self.ids)?;
                indices("embed", "ids", ids, self.table.shape().rows(), false)?;
                let image = match &self.image {
                    Some((features, rows)) => {
                        let (n, rows) = (features.shape.rows(), lent.i32(*rows)?);
                        indices("embed", "rows", rows, n, true)?;
                        Some((lent.f32(*features)?, rows))
                    }
                    None => None,
                };
                let table = matrix(&lent, &self.table, self.precision)?;
                lent.output(self.y)?.fill(|y| {
                    let image = image.as_ref().map(|(f, r)| (&**f, *r));
                    let row = |id: usize, y: &mut [f32]| y.copy_from_slice(&table.panel(id..id + 1));
                    host::embed::embed(ids, image, self.y.shape.width(), row, y)
                })
            }
            Device::Launch(_) => Err(super::no_kernel(self.name())),
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

    fn forward(&self, device: &mut Device) -> Result<()> {
        match device {
            Device::Host(memory) => {
                let mut lent = memory.borrow(&self.inputs(), &[], &self.outputs())?;
                let (ids, dy) = (lent.i32(self.forward.ids)?, lent.f32(self.dy)?);
                indices("embed_backward", "ids", ids, self.forward.table.shape().rows(), false)?;
                let rows = match &self.forward.image {
                    Some((features, rows)) => {
                        let rows = lent.i32(*rows)?;
                        indices("embed_backward", "rows", rows, features.shape.rows(), true)?;
                        Some(rows)
                    }
                    None => None,
                };
                let mut dfeatures = self.dfeatures.map(|d| d.open(&mut lent)).transpose()?;
                let mut dtable = open_trained(&mut lent, Some(&self.forward.table))?;
                let width = self.dy.shape.width();
                let (t, f) = (dtable.as_mut().map(|g| g.values()), dfeatures.as_mut().map(|g| g.values()));
                host::embed::embed_backward(ids, rows, width, &dy, t, f);
                [dfeatures, dtable].into_iter().flatten().for_each(|g| g.close());
                Ok(())
            }
            Device::Launch(_) => Err(super::no_kernel(self.name())),
        }
    }
}
