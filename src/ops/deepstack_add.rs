//! `deepstack_add`: y = x, and y[rows[u]] += features[u]. Specification: `host/deepstack_add.rs`; kernels:
//! `cuda/deepstack_add.cu`. Rounding point: y.

use super::{Gradient, Op, bf16, indices, plan_pieces, shape, whole};
use crate::base::Result;
use crate::device::{Accumulate, Device, Memory};
use crate::host;
use crate::tensor::Tensor;

crate::arguments! {
    /// `DeepstackAddArgs` of `cuda/deepstack_add.cu`.
    pub struct DeepstackAddArgs {
        to: u64,
        from: u64,
        rows: u64,
        u: i64,
        d: i64,
        add: i64,
    }
}

/// x [T, D], features [U, D], rows [U] (i32, the token of each feature row; each token at most once); y [T, D] may take
/// x's place.
#[derive(Debug, Clone)]
pub struct DeepstackAdd {
    pub x: Tensor,
    pub features: Tensor,
    pub rows: Tensor,
    pub y: Tensor,
}

impl Op for DeepstackAdd {
    fn name(&self) -> &'static str {
        "deepstack_add"
    }

    fn contract(&self) -> Result<()> {
        let u = self.features.shape.rows();
        shape("deepstack_add", "features", &self.features, [u, self.x.shape.width()])?;
        shape("deepstack_add", "rows", &self.rows, [u])?;
        whole("deepstack_add", "rows", &self.rows)?;
        shape("deepstack_add", "y", &self.y, self.x.shape)
    }

    fn inputs(&self) -> Vec<Tensor> {
        vec![self.x, self.features, self.rows]
    }

    fn outputs(&self) -> Vec<Tensor> {
        vec![self.y]
    }

    fn in_place(&self) -> Option<(Tensor, Tensor)> {
        Some((self.x, self.y))
    }

    fn check(&self, memory: &Memory) -> Result<()> {
        indices("deepstack_add", "rows", memory.indices(&self.rows)?, self.x.shape.rows(), false)
    }

    fn forward(&self, device: &mut Device) -> Result<()> {
        self.check(device.memory())?;
        match device {
            Device::Host(memory) => {
                let apart = !memory.same_place(&self.x, &self.y)?;
                let mut inputs = vec![self.features, self.rows];
                inputs.extend(apart.then_some(self.x));
                let mut lent = memory.borrow(&inputs, &self.weights(), &self.outputs())?;
                let (features, rows) = (lent.f32(self.features)?, lent.i32(self.rows)?);
                let add = |y: &mut [f32]| host::deepstack_add::deepstack_add(y, &features, self.x.shape.width(), rows);
                let y = lent.output(self.y)?;
                if !apart {
                    return y.update(add);
                }
                let x = lent.f32(self.x)?;
                y.fill(|y| {
                    y.copy_from_slice(&x);
                    add(y);
                })
            }
            Device::Launch(gpu) => {
                bf16("deepstack_add", &[&self.x, &self.features, &self.y])?;
                let apart = !gpu.memory.same_place(&self.x, &self.y)?;
                let mut inputs = vec![self.features, self.rows];
                inputs.extend(apart.then_some(self.x));
                let at = gpu.addresses(&inputs, &[], &self.outputs())?;
                if apart {
                    gpu.memory.copy(self.x, self.y, 0)?;
                }
                let (u, d) = (self.features.shape.rows(), self.x.shape.width());
                let (to, from, rows) = (at.of(&self.y)?, at.of(&self.features)?, at.of(&self.rows)?);
                let arguments = DeepstackAddArgs { to, from, rows, u: u as i64, d: d as i64, add: 1 };
                // SAFETY: features have u rows of d, and the rows that they are added to were found in y.
                unsafe { gpu.launch("deepstack_add", &plan_pieces("deepstack_add_fwd_bf16", u, d), &arguments) }
            }
        }
    }
}

/// The gradient of [`DeepstackAdd`] for its features: dy[rows[u]] adds to dfeatures[u]. That of x is dy itself.
#[derive(Debug, Clone)]
pub struct DeepstackAddBackward {
    pub rows: Tensor,
    pub dy: Tensor,
    pub dfeatures: Gradient,
}

impl Op for DeepstackAddBackward {
    fn name(&self) -> &'static str {
        "deepstack_add_backward"
    }

    fn contract(&self) -> Result<()> {
        let u = self.rows.shape.elements();
        shape("deepstack_add_backward", "dfeatures", &self.dfeatures.tensor, [u, self.dy.shape.width()])
    }

    fn inputs(&self) -> Vec<Tensor> {
        vec![self.rows, self.dy]
    }

    fn outputs(&self) -> Vec<Tensor> {
        vec![self.dfeatures.tensor]
    }

    fn check(&self, memory: &Memory) -> Result<()> {
        indices("deepstack_add_backward", "rows", memory.indices(&self.rows)?, self.dy.shape.rows(), false)
    }

    fn forward(&self, device: &mut Device) -> Result<()> {
        self.check(device.memory())?;
        match device {
            Device::Host(memory) => {
                let mut lent = memory.borrow(&self.inputs(), &[], &self.outputs())?;
                let (rows, dy) = (lent.i32(self.rows)?, lent.f32(self.dy)?);
                let mut d = self.dfeatures.open(&mut lent)?;
                host::deepstack_add::deepstack_add_backward(&dy, self.dy.shape.width(), rows, d.values());
                d.close();
                Ok(())
            }
            Device::Launch(gpu) => {
                let dfeatures = self.dfeatures.tensor;
                bf16("deepstack_add_backward", &[&self.dy, &dfeatures])?;
                let at = gpu.addresses(&self.inputs(), &[], &self.outputs())?;
                let (u, d) = (self.rows.shape.elements(), self.dy.shape.width());
                let (to, from, rows) = (at.of(&dfeatures)?, at.of(&self.dy)?, at.of(&self.rows)?);
                let add = (self.dfeatures.accumulate == Accumulate::Add) as i64;
                let arguments = DeepstackAddArgs { to, from, rows, u: u as i64, d: d as i64, add };
                let launch = plan_pieces("deepstack_add_bwd_bf16", u, d);
                // SAFETY: dfeatures have u rows of d, and the rows that are read were found in dy.
                unsafe { gpu.launch("deepstack_add_backward", &launch, &arguments) }
            }
        }
    }
}
