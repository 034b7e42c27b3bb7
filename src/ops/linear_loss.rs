//! `linear_loss`: the head and the cross-entropy of label rows, loss_i = -log softmax(x_i W^T)[label_i], and in the same
//! pass the gradient of scale * sum(loss), since the logits would have to be computed again in another.
//!
//! Specification: `host/linear_loss.rs`; what the host device runs: `host/linear_loss_tuned.rs`; kernels:
//! `cuda/linear_loss.cu`, on Hopper `cuda/linear_loss_sm90.cu`, and the products of `linear`. Logits exist for a chunk of
//! rows at a time, in f32; sums are f32 within a row's products, and over the vocabulary f64 on the host. Rounding points:
//! the logits' gradient, and dx.

use super::linear::arguments::*;
use super::linear::matrix;
use super::linear::plan::{self, Form, HopperTile, Tile};
use super::linear::run::{map, run, run_gradients};
use super::{Op, bf16, f32, indices, open_trained, require, shape, trained, weight_shape, whole};
use crate::base::{Precision, Result};
use crate::device::launcher::{MapType, Swizzle, TensorMap, TensorMapShape};
use crate::device::{Accelerator, Device, Facts, Launch, Memory};
use crate::host::linear_loss_tuned::{Gradients, linear_loss};
use crate::tensor::{Tensor, Weight};

/// x [R, D], head [V, D], labels [R] (i32), scale [1] (f32); losses [R] (f32), and dx [R, D] where gradients are
/// wanted.
#[derive(Debug, Clone)]
pub struct LinearLoss {
    pub x: Tensor,
    pub head: Weight,
    pub labels: Tensor,
    pub scale: Tensor,
    pub precision: Precision,
    pub losses: Tensor,
    pub dx: Option<Tensor>,
}

impl Op for LinearLoss {
    fn name(&self) -> &'static str {
        "linear_loss"
    }

    fn contract(&self) -> Result<()> {
        let (r, d, v) = (self.x.shape.rows(), self.x.shape.width(), self.head.shape().rows());
        // as for `linear`
        require("linear_loss", "head", v > 0 && d > 0, || "rows and columns".into(), &self.head.shape())?;
        weight_shape("linear_loss", "head", &self.head, [v, d])?;
        shape("linear_loss", "labels", &self.labels, [r])?;
        whole("linear_loss", "labels", &self.labels)?;
        shape("linear_loss", "scale", &self.scale, [1])?;
        f32("linear_loss", "scale", &self.scale)?;
        shape("linear_loss", "losses", &self.losses, [r])?;
        f32("linear_loss", "losses", &self.losses)?;
        self.dx.iter().try_for_each(|dx| shape("linear_loss", "dx", dx, self.x.shape))
    }

    fn inputs(&self) -> Vec<Tensor> {
        vec![self.x, self.labels, self.scale]
    }

    fn outputs(&self) -> Vec<Tensor> {
        let gradient = if self.dx.is_some() { trained([&self.head]) } else { Vec::new() };
        std::iter::once(self.losses).chain(self.dx).chain(gradient).collect()
    }

    fn weights(&self) -> Vec<&Weight> {
        vec![&self.head]
    }

    fn flops(&self) -> u64 {
        let products = 1 + self.dx.is_some() as u64 * (1 + self.head.as_trained().is_some() as u64);
        2 * products * (self.x.shape.elements() * self.head.shape().rows()) as u64
    }

    fn scratch(&self, facts: &Facts) -> Result<Vec<usize>> {
        let plan = self.plan(facts);
        Ok(vec![plan.logits, plan.dlogits, plan.statistics, plan.label_logits, plan.row_statistics, plan.partial])
    }

    fn check(&self, memory: &Memory) -> Result<()> {
        indices("linear_loss", "labels", memory.indices(&self.labels)?, self.head.shape().rows(), false)
    }

    fn forward(&self, device: &mut Device) -> Result<()> {
        self.check(device.memory())?;
        match device {
            Device::Host(memory) => {
                let mut lent = memory.borrow(&self.inputs(), &self.weights(), &self.outputs())?;
                let (x, labels) = (lent.f32(self.x)?, lent.i32(self.labels)?);
                let scale = lent.f32(self.scale)?[0];
                let head = matrix(&lent, &self.head, self.precision)?;
                let (k, mut losses) = (self.x.shape.width(), vec![0.0; labels.len()]);
                match self.dx {
                    Some(dx) => {
                        let mut dw = open_trained(&mut lent, Some(&self.head))?;
                        lent.output(dx)?.fill(|dx| {
                            dx.fill(0.0);
                            let gradients = Gradients { scale, dx, dw: dw.as_mut().map(|g| g.values()) };
                            linear_loss(&x, k, head, labels, &mut losses, Some(gradients));
                        })?;
                        dw.into_iter().for_each(|g| g.close());
                    }
                    None => linear_loss(&x, k, head, labels, &mut losses, None),
                }
                lent.output(self.losses)?.fill(|to| to.iter_mut().zip(&losses).for_each(|(to, l)| *to = *l as f32))
            }
            Device::Launch(gpu) => self.launch(gpu),
        }
    }
}

crate::arguments! {
    /// The logits of some rows, or only what the loss needs of them.
    pub struct LinearLossArgs {
        pub product: LinearArgs,
        pub labels: u64,
        pub statistics: u64,
        pub label_logits: u64,
    }
}

crate::arguments! {
    /// The same with operands that come, and logits that leave, by bulk copies.
    pub struct LinearLossSm90Args {
        pub loss: LinearLossArgs,
        pub left: TensorMap,
        pub right: TensorMap,
        pub logits: TensorMap,
    }
}

crate::arguments! {
    /// The statistics of a row's tiles become its loss.
    pub struct LinearLossRowsArgs {
        pub statistics: u64,
        pub label_logits: u64,
        pub rows: u64,
        pub losses: u64,
        pub m: i32,
        pub tiles: i32,
    }
}

crate::arguments! {
    /// Logits [m, v] become their gradient, in rows of `stride`.
    pub struct LinearLossGradientArgs {
        pub logits: u64,
        pub rows: u64,
        pub labels: u64,
        pub scale: u64,
        pub dlogits: u64,
        pub stride: i64,
        pub v: i32,
    }
}

/// Bytes that the logits of one chunk of rows, their gradient and their statistics may take: 512 rows of the published
/// vocabulary, so that a chunk's products take longer than reading the head for them.
const WORKSPACE_BYTES: usize = 512 << 20;
/// Rows of the largest tiles: chunks of more than these are whole tiles.
const TILE_ROWS: usize = 128;

/// Rows of a chunk at the most: one is a row of the grid that computes the logits' gradient.
const GRID_ROWS: usize = 65_535;

/// How the rows are cut, and what a chunk needs. The sizes are bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LossPlan {
    /// Rows of one chunk; the last may have fewer.
    pub rows: usize,
    pub logits: usize,
    pub dlogits: usize,
    pub statistics: usize,
    pub label_logits: usize,
    pub row_statistics: usize,
    pub partial: usize,
}

impl LossPlan {
    /// For r rows of width d over a vocabulary of v: as few chunks as the workspace allows, of equal size but for the last.
    pub fn new(r: usize, d: usize, v: usize, gradient: bool, facts: &Facts) -> LossPlan {
        let tiles = v.div_ceil(Tile::Few.columns() as usize);
        let row = 8 * tiles + if gradient { 4 * v + 2 * stride(v) } else { 0 };
        let fitting = (WORKSPACE_BYTES / row).min(GRID_ROWS);
        let most = if fitting < TILE_ROWS { fitting.max(1) } else { fitting / TILE_ROWS * TILE_ROWS };
        let equal = r.div_ceil(r.div_ceil(most).max(1));
        let rows = equal.next_multiple_of(TILE_ROWS).min(most).min(r).max(1);
        let wanted = |bytes: usize| if gradient { bytes } else { 0 };
        // a last, shorter chunk may be cut into more parts than the others
        let partial = |rows: usize| match plan::product_splits(rows as i32, d as i32, v as i32, facts).0 as usize {
            1 => 0,
            splits => 4 * splits * rows * d,
        };
        let last = if r == 0 { 1 } else { (r - 1) % rows + 1 };
        LossPlan {
            rows,
            logits: wanted(4 * rows * v),
            dlogits: wanted(2 * rows * stride(v)),
            statistics: 8 * rows * tiles,
            label_logits: 4 * rows,
            row_statistics: 8 * rows,
            partial: wanted(partial(rows).max(partial(last))),
        }
    }
}

/// Elements from one row of the logits' gradient to the next: whole pieces of 16 bytes.
fn stride(v: usize) -> usize {
    v.next_multiple_of(8)
}

impl LinearLoss {
    fn plan(&self, facts: &Facts) -> LossPlan {
        LossPlan::new(self.x.shape.rows(), self.x.shape.width(), self.head.shape().rows(), self.dx.is_some(), facts)
    }

    fn launch(&self, gpu: &mut Accelerator) -> Result<()> {
        bf16("linear_loss", &std::iter::once(&self.x).chain(&self.dx).collect::<Vec<_>>())?;
        let (r, d, v) = (self.x.shape.rows(), self.x.shape.width(), self.head.shape().rows());
        let at = gpu.addresses(&self.inputs(), &self.weights(), &self.outputs())?;
        let plan = self.plan(gpu.facts());
        let [logits, dlogits, statistics, label_logits, rows, partial] = gpu.scratch(&self.scratch(gpu.facts())?)?;
        let (x, head, dx) = (at.of(&self.x)?, at.weight(&self.head)?, at.of_optional(self.dx.as_ref())?);
        let (labels, losses, scale) = (at.of(&self.labels)?, at.of(&self.losses)?, at.of(&self.scale)?);
        let dw = if self.dx.is_some() { at.gradient(&self.head)? } else { 0 };
        for first in (0..r).step_by(plan.rows) {
            let m = plan.rows.min(r - first);
            let (of_row, of_index) = ((2 * first * d) as u64, 4 * first as u64);
            let mut product = LinearArgs {
                wide: if self.dx.is_some() { logits } else { 0 },
                stride: v as i64,
                m: m as i32,
                splits: 1,
                ..LinearArgs::default()
            };
            let piece = LinearPiece {
                left: x + of_row,
                right: head,
                left_stride: d as i64,
                right_stride: d as i64,
                depth: d as i32,
                ..LinearPiece::default()
            };
            product.push(LinearBand { width: v as i32, ..LinearBand::default() }, &[piece]);
            let arguments = LinearLossArgs { product, labels: labels + of_index, statistics, label_logits };
            // SAFETY: x and labels have these m rows, head is [v, d] by contract; the workspace was made for as many.
            let tiles = unsafe { run_logits(gpu, &arguments)? };
            let losses = losses + of_index;
            let arguments = LinearLossRowsArgs { statistics, label_logits, rows, losses, m: m as i32, tiles };
            let launch = Launch::of("linear_loss_fwd_rows_f32", m.div_ceil(8) as u32, 256);
            // SAFETY: the statistics of m rows of tiles were just written; losses has these rows by contract.
            unsafe { gpu.launch("linear_loss", &launch, &arguments)? }
            if self.dx.is_none() {
                continue;
            }
            let (dlogits_stride, labels) = (stride(v) as i64, labels + of_index);
            let arguments =
                LinearLossGradientArgs { logits, rows, labels, scale, dlogits, stride: dlogits_stride, v: v as i32 };
            let grid = [v.div_ceil(8 * 256) as u32, m as u32, 1];
            let launch = Launch { kernel: "linear_loss_bwd_dlogits_bf16", grid, block: 256, shared_bytes: 0 };
            // SAFETY: logits and dlogits are workspace for m rows; rows and labels have as many.
            unsafe { gpu.launch("linear_loss", &launch, &arguments)? }
            // SAFETY: dlogits, just written, are workspace for m rows; head is [v, d], dx has these rows by contract, and
            // `partial` is what the plan reckoned for a chunk.
            unsafe { self.dx_of(gpu, m, dlogits, head, dx + of_row, partial)? }
            if dw != 0 {
                let mut gradient = LinearGradientArgs {
                    left_stride: dlogits_stride,
                    m: m as i32,
                    splits: 1,
                    split_rows: m as i32,
                    ..LinearGradientArgs::default()
                };
                gradient.push(LinearGradientBand {
                    left: dlogits,
                    right: x + of_row,
                    gradient: dw,
                    right_stride: d as i64,
                    height: v as i32,
                    width: d as i32,
                    scale: 1.0,
                    ..LinearGradientBand::default()
                });
                // SAFETY: dlogits and x have m rows, of v and d columns, and the gradient the head's shape by contract.
                unsafe { run_gradients(gpu, "linear_loss", &[gradient])? }
            }
        }
        Ok(())
    }

    /// dx = dl W of m rows: the vocabulary is cut where there are few rows, and the parts summed in order.
    ///
    /// # Safety
    /// m rows of the logits' gradient and of dx lie at these addresses, the head, and a chunk's `partial` of [`LossPlan`].
    unsafe fn dx_of(
        &self,
        gpu: &mut Accelerator,
        m: usize,
        dlogits: u64,
        head: u64,
        dx: u64,
        partial: u64,
    ) -> Result<()> {
        let (d, v) = (self.x.shape.width(), self.head.shape().rows());
        let (splits, split_depth) = plan::product_splits(m as i32, d as i32, v as i32, gpu.facts());
        let mut product = LinearArgs {
            y: dx,
            partial: if splits > 1 { partial } else { 0 },
            stride: d as i64,
            m: m as i32,
            splits,
            split_depth,
            ..LinearArgs::default()
        };
        let piece = LinearPiece {
            left: dlogits,
            right: head,
            left_stride: stride(v) as i64,
            right_stride: d as i64,
            depth: v as i32,
            ..LinearPiece::default()
        };
        product.push(LinearBand { width: d as i32, ..LinearBand::default() }, &[piece]);
        // SAFETY: the caller's promise.
        unsafe { run(gpu, "linear_loss", &product, Form::Backward) }
    }
}

/// Launches the logits of one chunk; into how many tiles the vocabulary was cut.
///
/// # Safety
/// As of [`run`], of the product and of the labels and statistics of its rows.
unsafe fn run_logits(gpu: &mut Accelerator, args: &LinearLossArgs) -> Result<i32> {
    let (product, piece) = (&args.product, &args.product.pieces[0]);
    let width = product.bands[0].width;
    let tiles = |columns: i32| (width + columns - 1) / columns;
    if let Some(launch) = plan::logits(product, gpu.facts()) {
        let (depth, m, v) = (piece.depth as u64, product.m as u64, width as u64);
        let boxes = |outer| [HopperTile::DEPTH, outer];
        let logits = TensorMapShape {
            dtype: MapType::F32,
            address: product.wide,
            sizes: &[v, m],
            strides_bytes: &[4 * product.stride as u64],
            box_sizes: &[32, HopperTile::STAGED_ROWS],
            swizzle: Swizzle::Bytes128,
        };
        let maps = LinearLossSm90Args {
            loss: *args,
            left: map(gpu, piece.left, [depth, m], piece.left_stride, boxes(HopperTile::LEFT))?,
            right: map(gpu, piece.right, [depth, v], piece.right_stride, boxes(HopperTile::WIDEST))?,
            logits: if product.wide == 0 { TensorMap([0; 16]) } else { gpu.tensor_map(&logits)? },
        };
        // SAFETY: the caller's promise; the maps describe the same.
        unsafe { gpu.launch("linear_loss", &launch, &maps)? }
        return Ok(tiles(HopperTile::WIDEST as i32));
    }
    let tile = plan::tile(product, Form::Forward, gpu.facts());
    // SAFETY: the caller's promise.
    unsafe { gpu.launch("linear_loss", &plan::launch_of(product, tile, kernel(tile)), args)? }
    Ok(tiles(tile.columns()))
}

fn kernel(tile: Tile) -> &'static str {
    match tile {
        Tile::Large => "linear_loss_fwd_128x128_bf16",
        Tile::Small => "linear_loss_fwd_64x64_bf16",
        Tile::Few => "linear_loss_fwd_16x32_bf16",
        Tile::Any => "linear_loss_fwd_any_bf16",
    }
}
