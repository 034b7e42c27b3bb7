//! The gradients of attention; the head of this word's room says more.

use super::{Attention, check_starts, hopper, plan};
use crate::base::{Error, Precision, Result};
use crate::device::{Accumulate, Device, Facts, Launch, Memory};
use crate::host::attention::{Rows, RowsMut};
use crate::host::attention_tuned::{self, Left};
use crate::ops::{Gradient, Op, bf16, shape};
use crate::tensor::Tensor;

crate::arguments! {
    /// Of `cuda/attention_backward.cu`. statistics [H, T, 2] (f32), T rounded up to even, is scratch.
    pub struct AttentionBackwardArgs {
        q: u64,
        k: u64,
        v: u64,
        starts: u64,
        y: u64,
        lse: u64,
        dy: u64,
        pub(super) statistics: u64,
        dq: u64,
        dk: u64,
        dv: u64,
        k_stride: i64,
        v_stride: i64,
        tokens: i32,
        sequences: i32,
        heads: i32,
        group: i32,
        width: i32,
        v_column: i32,
        causal: i32,
        add_dq: i32,
        add_dk: i32,
        add_dv: i32,
        scale: f32,
        scale_log2: f32,
    }
}

/// The gradients of [`Attention`]: dy [T, H E] adds to dq, dk and the value columns of `dv`, probabilities computed
/// again.
#[derive(Debug, Clone)]
pub struct AttentionBackward {
    pub forward: Attention,
    pub dy: Tensor,
    pub dq: Gradient,
    pub dk: Gradient,
    pub dv: Gradient,
}

impl AttentionBackward {
    /// What forward leaves for its gradients in bf16.
    fn lse(&self) -> Result<Tensor> {
        let missing = || Error::Contract {
            op: "attention_backward",
            argument: "lse",
            wanted: "what forward leaves in bf16".into(),
            got: "nothing".into(),
        };
        self.forward.lse.ok_or_else(missing)
    }

    /// How a device with kernels runs it: the statistics of the queries, and dq where it has a kernel of its own; then the
    /// other gradients.
    pub fn plan(&self, facts: &Facts) -> Result<[Launch; 2]> {
        let (op, f) = ("attention_backward", &self.forward);
        if let Some(launches) = hopper::backward(f, facts)? {
            return Ok(launches);
        }
        let dq = [
            "attention_bwd_dq_w32_bf16",
            "attention_bwd_dq_w64_bf16",
            "attention_bwd_dq_w80_bf16",
            "attention_bwd_dq_w128_bf16",
            "attention_bwd_dq_unaligned_bf16",
        ];
        let dkv = [
            "attention_bwd_dkv_w32_bf16",
            "attention_bwd_dkv_w64_bf16",
            "attention_bwd_dkv_w80_bf16",
            "attention_bwd_dkv_w128_bf16",
            "attention_bwd_dkv_unaligned_bf16",
        ];
        // queries and dy, two tiles of keys, two of values; and keys, values, twice half a tile of queries and of dy
        Ok([plan(op, dq, f.heads.queries, 6, f)?, plan(op, dkv, f.heads.keys, 4, f)?])
    }

    /// Rows of statistics of a head: TMA wants each head's at a multiple of 16 bytes.
    pub(super) fn statistics_rows(&self) -> usize {
        self.forward.q.shape.rows().next_multiple_of(2)
    }
}

impl Op for AttentionBackward {
    fn name(&self) -> &'static str {
        "attention_backward"
    }

    fn contract(&self) -> Result<()> {
        if self.forward.precision() == Precision::Bf16 {
            self.lse()?;
        }
        shape("attention_backward", "dy", &self.dy, self.forward.y.shape)?;
        shape("attention_backward", "dq", &self.dq.tensor, self.forward.q.shape)?;
        shape("attention_backward", "dk", &self.dk.tensor, self.forward.k.shape)?;
        shape("attention_backward", "dv", &self.dv.tensor, self.forward.v.shape)
    }

    fn inputs(&self) -> Vec<Tensor> {
        let f = &self.forward;
        // y too only where it is read
        let left = f.lse.into_iter().flat_map(|lse| [f.y, lse]);
        [f.q, f.k, f.v, f.starts, self.dy].into_iter().chain(left).collect()
    }

    fn outputs(&self) -> Vec<Tensor> {
        vec![self.dq.tensor, self.dk.tensor, self.dv.tensor]
    }

    fn flops(&self) -> u64 {
        // scores again, and four products of their size
        self.forward.flops() / 2 * 5
    }

    fn scratch(&self, facts: &Facts) -> Result<Vec<usize>> {
        // two numbers for each query of each head
        let statistics = self.statistics_rows() * self.forward.heads.queries * 2 * size_of::<f32>();
        let [sums, counters] = hopper::backward_scratch(&self.forward, facts)?;
        Ok(vec![statistics, sums, counters])
    }

    fn check(&self, memory: &Memory) -> Result<()> {
        check_starts("attention_backward", memory.indices(&self.forward.starts)?, self.forward.q.shape.rows())
    }

    fn forward(&self, device: &mut Device) -> Result<()> {
        self.check(device.memory())?;
        match device {
            Device::Host(memory) => {
                let f = &self.forward;
                let mut lent = memory.borrow(&self.inputs(), &[], &self.outputs())?;
                let (q, k, v, dy) = (lent.f32(f.q)?, lent.f32(f.k)?, lent.f32(f.v)?, lent.f32(self.dy)?);
                let starts = lent.i32(f.starts)?;
                let (k_stride, v_stride) = (f.k.shape.width(), f.v.shape.width());
                let left = f.lse.map(|lse| Ok((lent.f32(f.y)?, lent.f32(lse)?))).transpose()?;
                let k = Rows { data: &k, start: 0, stride: k_stride };
                let v = Rows { data: &v, start: f.v_column, stride: v_stride };
                let (mut dq, mut dk) = (self.dq.open(&mut lent)?, self.dk.open(&mut lent)?);
                let mut dv = self.dv.open(&mut lent)?;
                attention_tuned::attention_backward(
                    &q,
                    k,
                    v,
                    starts,
                    f.heads,
                    f.mask,
                    f.scale,
                    left.as_ref().map(|(y, lse)| Left { y, lse }),
                    &dy,
                    dq.values(),
                    RowsMut { data: dk.values(), start: 0, stride: k_stride },
                    RowsMut { data: dv.values(), start: f.v_column, stride: v_stride },
                );
                [dq, dk, dv].into_iter().for_each(|g| g.close());
                Ok(())
            }
            Device::Launch(gpu) => {
                let (op, f) = ("attention_backward", &self.forward);
                bf16(op, &[&f.q, &f.k, &f.v, &self.dy, &self.dq.tensor, &self.dk.tensor, &self.dv.tensor])?;
                let launches = self.plan(gpu.facts())?;
                let at = gpu.addresses(&self.inputs(), &[], &self.outputs())?;
                if f.q.shape.rows() == 0 {
                    return Ok(());
                }
                let [statistics, sums, counters] = gpu.scratch(&self.scratch(gpu.facts())?)?;
                let args = AttentionBackwardArgs {
                    q: at.of(&f.q)?,
                    k: at.of(&f.k)?,
                    v: at.of(&f.v)?,
                    starts: at.of(&f.starts)?,
                    y: at.of(&f.y)?,
                    lse: at.of(&self.lse()?)?,
                    dy: at.of(&self.dy)?,
                    statistics,
                    dq: at.of(&self.dq.tensor)?,
                    dk: at.of(&self.dk.tensor)?,
                    dv: at.of(&self.dv.tensor)?,
                    k_stride: f.k.shape.width() as i64,
                    v_stride: f.v.shape.width() as i64,
                    tokens: f.q.shape.rows() as i32,
                    sequences: f.sequences() as i32,
                    heads: f.heads.queries as i32,
                    group: f.group(),
                    width: f.heads.width as i32,
                    v_column: f.v_column as i32,
                    causal: f.causal(),
                    add_dq: adds(&self.dq),
                    add_dk: adds(&self.dk),
                    add_dv: adds(&self.dv),
                    scale: f.scale,
                    scale_log2: f.scale * std::f32::consts::LOG2_E,
                };
                if hopper::runs(f, gpu.facts()) {
                    let args = hopper::backward_arguments(self, args, [sums, counters], gpu, &at)?;
                    // SAFETY: as below; reads go through tensor maps of the tensors' own sizes, and the scratch memory has
                    // the sums and counters of every tile of queries.
                    return launches.iter().try_for_each(|launch| unsafe { gpu.launch(op, launch, &args) });
                }
                for launch in &launches {
                    // SAFETY: as of forward, whose contract this one extends to the gradients; the scratch memory holds
                    // two numbers for each query of each head.
                    unsafe { gpu.launch(op, launch, &args)? }
                }
                Ok(())
            }
        }
    }
}

/// A kernel's flag: 1 where it adds to the gradient.
fn adds(gradient: &Gradient) -> i32 {
    i32::from(gradient.accumulate == Accumulate::Add)
}
