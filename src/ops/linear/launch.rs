//! How a device that runs kernels computes `linear` and its gradients: argument structs and scratch memory.
//!
//! Kernels: `cuda/linear.cu`, `cuda/linear_backward.cu` and, on Hopper, `cuda/linear_sm90.cu`,
//! `cuda/linear_gradient_sm90.cu`, `cuda/linear_few_sm90.cu`.

use super::arguments::*;
use super::following::Followed;
use super::plan::{self, Form, HopperTile};
use super::run::{run, run_bias, run_few, run_gated, run_gradients};
use super::{Activation, Adapter, Linear, LinearBackward, Segment};
use crate::base::{DType, Error, Result};
use crate::device::layout::ALIGNMENT;
use crate::device::{Accelerator, Accumulate, Addresses, Facts, Launch};
use crate::ops::{Gradient, Op, bf16, require};
use crate::tensor::{Tensor, Weight};

/// A segment with its first column of y, and its adapter with its first column of s.
struct Placed<'a> {
    segment: &'a Segment,
    n: i32,
    column: i32,
    adapter: Option<(&'a Adapter, i32, i32)>,
}

impl<'a> Placed<'a> {
    fn all(segments: &'a [Segment]) -> Vec<Placed<'a>> {
        let (mut column, mut s_column) = (0, 0);
        let place = |segment: &'a Segment| {
            let n = segment.weight.shape().rows() as i32;
            let adapter = segment.adapter.as_ref().map(|a| {
                let rank = a.a.shape().rows() as i32;
                s_column += rank;
                (a, rank, s_column - rank)
            });
            column += n;
            Placed { segment, n, column: column - n, adapter }
        };
        segments.iter().map(place).collect()
    }
}

/// Says whether the word that follows was done too: not where the operands lie as no kernel for both reads them.
pub(super) fn forward(op: &Linear, followed: Option<&Followed>, gpu: &mut Accelerator) -> Result<bool> {
    let activations: Vec<&Tensor> = std::iter::once(&op.x).chain(&op.residual).chain(&op.s).chain(&op.z).collect();
    bf16("linear", &activations)?;
    let wide = op.y.dtype == DType::F32;
    let alone = !wide || (op.residual.is_none() && op.z.is_none());
    require("linear", "y", alone, || "bf16 beside a residual or a kept sum".into(), &op.y.dtype)?;
    let residual = match op.residual {
        Some(r) if !gpu.memory.same_place(&r, &op.y)? => Some(r),
        _ => None,
    };
    let mut inputs: Vec<Tensor> = std::iter::once(op.x).chain(residual).chain(op.rows).chain(op.noise).collect();
    let (mut weights, mut outputs) = (op.weights(), op.outputs());
    if let Some(next) = followed.map(Followed::next) {
        inputs.extend(next.inputs().into_iter().filter(|t| !t.same_value(&op.y)));
        weights.extend(next.weights());
        outputs.extend(next.outputs());
    }
    let at = gpu.addresses(&inputs, &weights, &outputs)?;
    let keeps_parts = followed.is_some_and(|f| f.keeps_parts(gpu.facts()));
    let [partial] = gpu.scratch(&forward_scratch(op, keeps_parts, gpu.facts()))?;
    let y = at.of(&op.y)?;
    let (k, rank) = (op.x.shape.width() as i32, Linear::rank(&op.segments) as i64);
    let of_x = LinearPiece {
        left: at.of(&op.x)?,
        left_stride: k.into(),
        right_stride: k.into(),
        depth: k,
        gathered: op.rows.is_some() as i32,
        ..LinearPiece::default()
    };
    let s = at.of_optional(op.s.as_ref())?;
    let (rows, noise) = (at.of_optional(op.rows.as_ref())?, at.of_optional(op.noise.as_ref())?);
    let base = LinearArgs { rows, noise, m: op.m() as i32, splits: 1, ..LinearArgs::default() };
    let mut shrink = LinearArgs { y: s, stride: rank, ..base };
    let mut product = LinearArgs {
        added: match (op.residual, residual) {
            (Some(_), None) => y,
            _ => at.of_optional(residual.as_ref())?,
        },
        y: if wide { 0 } else { y },
        wide: if wide { y } else { 0 },
        z: at.of_optional(op.z.as_ref())?,
        stride: op.y.shape.width() as i64,
        activation: code(op.activation),
        ..base
    };
    for placed in Placed::all(&op.segments) {
        let mut pieces = Vec::with_capacity(2);
        let mut band = LinearBand { column: placed.column, width: placed.n, ..LinearBand::default() };
        if let Some(bias) = &placed.segment.bias {
            band.bias = at.weight(bias)?;
        }
        if let Some((adapter, r, s_column)) = placed.adapter {
            let dropout = LinearDropout::new(adapter.dropout, op.noise.is_some());
            let of_a = LinearPiece { right: at.weight(&adapter.a)?, dropout, ..of_x };
            let (scaled, scale) = (dropout.drops() as i32, dropout.kept);
            let of_s = LinearBand { column: s_column, width: r, scaled, scale, ..LinearBand::default() };
            fits(shrink.push(of_s, &[of_a]))?;
            (band.scaled, band.scale) = (1, adapter.scale);
            pieces.push(LinearPiece {
                left: s + 2 * s_column as u64,
                right: at.weight(&adapter.b)?,
                left_stride: rank,
                right_stride: r.into(),
                depth: r,
                ..LinearPiece::default()
            });
        }
        pieces.push(LinearPiece { right: at.weight(&placed.segment.weight)?, ..of_x });
        fits(product.push(band, &pieces))?;
    }
    if rank > 0 {
        let shrink = plan::cut(shrink, Form::Forward, partial, false, gpu.facts());
        // SAFETY: x has rows of k, as every A, and s m rows of all ranks by contract; `rows` lie in x, as `check` found.
        unsafe { run(gpu, "linear", &shrink, Form::Forward)? }
    }
    let product = plan::cut(product, Form::Forward, partial, keeps_parts, gpu.facts());
    let plan = plan::product(&product, Form::Forward, gpu.facts());
    if let (Some(HopperTile::Few { rows }), Some(followed)) = (plan.hopper, followed) {
        let following = followed.arguments(&at)?;
        // SAFETY: as below; the word that follows has checked its contract, and reads y by its shape.
        unsafe { run_few(gpu, "linear", &product, (&plan.launch, rows), &following)? }
        return Ok(true);
    }
    if let Some(gated) = followed.and_then(Followed::gated)
        && let Some(launch) = plan::gated(&product, &plan, gpu.facts())
    {
        let swiglu = at.of(gated)?;
        // SAFETY: as below; SwiGLU's result has y's rows and half its width by its contract.
        unsafe { run_gated(gpu, "linear", &product, &launch, swiglu)? }
        return Ok(true);
    }
    // SAFETY: the contract gives x, weights, biases, pairs, s, z, the residual and y their shapes; `rows` lie in x, as
    // `check` found, and `partial` has the bytes of `forward_scratch`.
    unsafe { run(gpu, "linear", &product, Form::Forward)? }
    Ok(false)
}

/// The sums of the splits of k, of the product that leaves more of them: s is complete before y is begun.
pub(super) fn forward_scratch(op: &Linear, keeps_parts: bool, facts: &Facts) -> Vec<usize> {
    let placed = Placed::all(&op.segments);
    let widths: Vec<i32> = placed.iter().map(|p| p.n).collect();
    let ranks: Vec<i32> = placed.iter().filter_map(|p| p.adapter.map(|(_, rank, _)| rank)).collect();
    let (m, k) = (op.m() as i32, op.x.shape.width() as i32);
    let bytes = |widths: &[i32], keeps_parts| match op.rows {
        Some(_) => 0,
        None => plan::partial_bytes(m, widths, &vec![k; widths.len()], Form::Forward, keeps_parts, facts),
    };
    vec![bytes(&widths, keeps_parts).max(bytes(&ranks, false))]
}

/// dz where there is an activation, ds, and the parts of ds and of gradients that are summed in two stages.
pub(super) fn backward_scratch(op: &LinearBackward, facts: &Facts) -> Result<Vec<usize>> {
    let f = &op.forward;
    let (m, n) = (f.m(), f.y.shape.width());
    let dz = if f.activation == Activation::None { 0 } else { 2 * m * n };
    // ds is complete before the gradients of weights are begun
    let (ranks, depths): (Vec<i32>, Vec<i32>) =
        Placed::all(&f.segments).iter().filter_map(|p| p.adapter.map(|(_, rank, _)| (rank, p.n))).unzip();
    let of_ds = plan::partial_bytes(m as i32, &ranks, &depths, Form::Backward, false, facts);
    let trained = |w: &Weight| Ok(if w.as_trained().is_some() { ALIGNMENT as u64 } else { 0 });
    let (_, parts) = Gradients::default().of(f, trained, facts)?;
    Ok(vec![dz, 2 * m * Linear::rank(&f.segments), parts.max(of_ds)])
}

pub(super) fn backward(op: &LinearBackward, gpu: &mut Accelerator) -> Result<()> {
    let f = &op.forward;
    let gradients = [&op.dx, &op.dresidual].into_iter().flatten().map(|g| &g.tensor);
    let activations: Vec<&Tensor> = [&f.x, &op.dy].into_iter().chain(&f.s).chain(&f.z).chain(gradients).collect();
    bf16("linear_backward", &activations)?;
    let at = gpu.addresses(&op.inputs(), &op.weights(), &op.outputs())?;
    // rows that nobody read have no gradient
    for gradient in [op.dx, op.dresidual].into_iter().flatten().filter(|_| f.rows.is_some()) {
        if gradient.accumulate == Accumulate::Overwrite {
            gpu.memory.zero(gradient.tensor)?;
        }
    }
    let placed = Placed::all(&f.segments);
    let (m, n, k) = (f.m(), f.y.shape.width(), f.x.shape.width());
    let rank = Linear::rank(&f.segments);
    let activated = f.activation != Activation::None;
    let [dz_scratch, ds, partial] = gpu.scratch(&op.scratch(gpu.facts())?)?;
    if let Some(dresidual) = &op.dresidual {
        add_rows(gpu, &at, op, dresidual)?;
    }
    let mut dz = at.of(&op.dy)?;
    if activated {
        let (z, activation) = (at.of_optional(f.z.as_ref())?, code(f.activation));
        let arguments = LinearActivationArgs { z, dy: dz, dz: dz_scratch, n: (m * n) as i64, activation };
        let launch = Launch::of("linear_bwd_act_bf16", (m * n).div_ceil(8 * 256) as u32, 256);
        // SAFETY: z, dy and the scratch memory of dz hold m n elements each, as the contract and the line above say.
        unsafe { gpu.launch("linear_backward", &launch, &arguments)? }
        dz = dz_scratch;
    }
    let operands = Operands { at, dz, ds, partial, m: m as i32, n: n as i64, k: k as i32, rank: rank as i64 };
    let trains_a = placed.iter().any(|p| p.adapter.is_some_and(|(a, ..)| a.a.as_trained().is_some()));
    if rank > 0 && (op.dx.is_some() || trains_a) {
        operands.low_rank_rows(gpu, &placed)?;
    }
    if let Some(dx) = &op.dx {
        operands.dx(gpu, f, &placed, dx)?;
    }
    for p in &placed {
        let Some(bias) = p.segment.bias.as_ref().filter(|b| b.as_trained().is_some()) else { continue };
        let (m, n) = (m as i32, p.n);
        let (dz, dbias, stride) = (dz + 2 * p.column as u64, operands.at.gradient(bias)?, operands.n);
        // SAFETY: the segment's n columns of dz, which has m rows of y's width; its bias has n by contract.
        unsafe { run_bias(gpu, "linear_backward", &LinearBiasArgs { dz, dbias, stride, m, n })? }
    }
    let at = &operands.at;
    let from = Gradients {
        x: at.of(&f.x)?,
        s: at.of_optional(f.s.as_ref())?,
        rows: at.of_optional(f.rows.as_ref())?,
        noise: at.of_optional(f.noise.as_ref())?,
        dz,
        ds,
        partial,
    };
    let (gradients, _) = from.of(f, |weight| at.gradient(weight), gpu.facts())?;
    // SAFETY: x, s, dz and ds have m rows each, or x those that `rows` names, as `check` found; gradients have their
    // weights' shapes by contract, and `partial` the bytes that `of` counts.
    unsafe { run_gradients(gpu, "linear_backward", &gradients) }
}

/// Where the operands of gradients lie; nowhere, if only sizes are wanted.
#[derive(Default)]
struct Gradients {
    x: u64,
    s: u64,
    dz: u64,
    ds: u64,
    rows: u64,
    noise: u64,
    partial: u64,
}

impl Gradients {
    /// dA, dB and dW of all weights whose gradient lies somewhere, each with their batch rows cut, and the bytes of their
    /// parts, which lie behind each other.
    fn of(
        &self,
        f: &Linear,
        gradient: impl Fn(&Weight) -> Result<u64>,
        facts: &Facts,
    ) -> Result<([LinearGradientArgs; GRADIENTS], usize)> {
        let (n, k, rank) = (f.y.shape.width() as i64, f.x.shape.width() as i32, Linear::rank(&f.segments) as i64);
        let of = |left_stride| LinearGradientArgs {
            rows: self.rows,
            noise: self.noise,
            left_stride,
            m: f.m() as i32,
            ..LinearGradientArgs::default()
        };
        let (mut da, mut db, mut dw) = (of(rank), of(n), of(n));
        let of_x = LinearGradientBand {
            right: self.x,
            right_stride: k.into(),
            width: k,
            gathered: f.rows.is_some() as i32,
            scale: 1.0,
            ..LinearGradientBand::default()
        };
        for p in Placed::all(&f.segments) {
            let of_dz = |band| LinearGradientBand { left: self.dz + 2 * p.column as u64, height: p.n, ..band };
            let to = gradient(&p.segment.weight)?;
            if to != 0 {
                fits(dw.push(of_dz(LinearGradientBand { gradient: to, ..of_x })))?;
            }
            let Some((adapter, r, column)) = p.adapter else { continue };
            let to = gradient(&adapter.a)?;
            if to != 0 {
                let left = self.ds + 2 * column as u64;
                let dropout = LinearDropout::new(adapter.dropout, f.noise.is_some());
                let scale = dropout.kept;
                fits(da.push(LinearGradientBand { left, gradient: to, height: r, dropout, scale, ..of_x }))?;
            }
            let to = gradient(&adapter.b)?;
            if to != 0 {
                fits(db.push(of_dz(LinearGradientBand {
                    right: self.s + 2 * column as u64,
                    right_stride: rank,
                    width: r,
                    gradient: to,
                    scale: adapter.scale,
                    ..LinearGradientBand::default()
                })))?;
            }
        }
        let mut bytes = 0;
        let cut = [da, db, dw].map(|args| {
            let args = plan::cut_gradients(args, self.partial + bytes as u64, facts);
            bytes += args.partial_bytes().next_multiple_of(ALIGNMENT);
            args
        });
        Ok((cut, bytes))
    }
}

/// What the products of backward read, and their sizes.
struct Operands {
    at: Addresses,
    dz: u64,
    ds: u64,
    partial: u64,
    m: i32,
    n: i64,
    k: i32,
    rank: i64,
}

impl Operands {
    /// ds = scale dz B.
    fn low_rank_rows(&self, gpu: &mut Accelerator, placed: &[Placed]) -> Result<()> {
        let mut args = LinearArgs { y: self.ds, stride: self.rank, m: self.m, splits: 1, ..LinearArgs::default() };
        for p in placed {
            let Some((adapter, r, column)) = p.adapter else { continue };
            let band = LinearBand { column, width: r, scaled: 1, scale: adapter.scale, ..LinearBand::default() };
            fits(args.push(band, &[self.of_dz(p, self.at.weight(&adapter.b)?, r)]))?;
        }
        let args = plan::cut(args, Form::Backward, self.partial, false, gpu.facts());
        // SAFETY: dz and ds have m rows, of y's width and of all ranks: the contract and `backward_scratch`, which has the
        // parts, too. B is [n, r] by contract.
        unsafe { run(gpu, "linear_backward", &args, Form::Backward) }
    }

    /// dx = sum over segments of dz W + (ds A) o keep.
    fn dx(&self, gpu: &mut Accelerator, f: &Linear, placed: &[Placed], dx: &Gradient) -> Result<()> {
        let to = self.at.of(&dx.tensor)?;
        let mut args = LinearArgs {
            rows: self.at.of_optional(f.rows.as_ref())?,
            noise: self.at.of_optional(f.noise.as_ref())?,
            added: if dx.accumulate == Accumulate::Add { to } else { 0 },
            y: to,
            stride: self.k.into(),
            m: self.m,
            scattered: f.rows.is_some() as i32,
            splits: 1,
            ..LinearArgs::default()
        };
        let mut pieces = Vec::with_capacity(PIECES);
        for p in placed {
            pieces.push(self.of_dz(p, self.at.weight(&p.segment.weight)?, self.k));
            let Some((adapter, r, column)) = p.adapter else { continue };
            pieces.push(LinearPiece {
                left: self.ds + 2 * column as u64,
                right: self.at.weight(&adapter.a)?,
                left_stride: self.rank,
                right_stride: self.k.into(),
                dropout: LinearDropout::new(adapter.dropout, f.noise.is_some()),
                depth: r,
                ..LinearPiece::default()
            });
        }
        // what drops out comes last, as Hopper's kernel wants it
        pieces.sort_by_key(|piece| piece.dropout.drops());
        fits(args.push(LinearBand { width: self.k, ..LinearBand::default() }, &pieces))?;
        // SAFETY: dz and ds as for `low_rank_rows`, weights and A of k columns; dx has x's shape by contract, and a row for
        // each of `rows`, as `check` found.
        unsafe { run(gpu, "linear_backward", &args, Form::Backward) }
    }

    /// A segment's columns of dz times a matrix [n, width].
    fn of_dz(&self, p: &Placed, right: u64, width: i32) -> LinearPiece {
        let left = self.dz + 2 * p.column as u64;
        let (left_stride, right_stride) = (self.n, width.into());
        LinearPiece { left, right, left_stride, right_stride, depth: p.n, ..LinearPiece::default() }
    }
}

/// dresidual[rows[i]] += dy[i].
fn add_rows(gpu: &mut Accelerator, at: &Addresses, op: &LinearBackward, dresidual: &Gradient) -> Result<()> {
    let (m, width) = (op.dy.shape.rows(), op.dy.shape.width());
    let rows = at.of_optional(op.forward.rows.as_ref())?;
    let (from, to) = (at.of(&op.dy)?, at.of(&dresidual.tensor)?);
    let arguments = LinearRowsArgs { from, rows, to, m: m as i32, width: width as i32 };
    let launch = Launch::of("linear_bwd_rows_bf16", (m * width).div_ceil(256) as u32, 256);
    // SAFETY: dy has m rows of this width, and so has dresidual for every row that `check` let pass.
    unsafe { gpu.launch("linear_backward", &launch, &arguments) }
}

/// The activation as `cuda/linear_activation.cuh` numbers it.
fn code(activation: Activation) -> i32 {
    match activation {
        Activation::None => 0,
        Activation::GeluTanh => 1,
        Activation::GeluErf => 2,
    }
}

fn fits(pushed: Option<()>) -> Result<()> {
    pushed.ok_or_else(|| {
        Error::Unsupported(format!(
            "linear: at most {BANDS} weights may share their input on this device; use --device cpu"
        ))
    })
}
