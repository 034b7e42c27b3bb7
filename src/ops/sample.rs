//! `sample`: the next token of each sequence. Specification: `host/sample.rs`; kernel: `cuda/sample.cu`.

use super::{Op, THREADS, f32, require, shape, whole};
use crate::base::{DType, Result};
use crate::device::accelerator::COUNTERS;
use crate::device::{Device, Facts, Launch, Memory};
use crate::host;
use crate::tensor::Tensor;

pub use crate::host::sample::Choice;

crate::arguments! {
    /// `SampleArgs` of `cuda/sample.cu`.
    pub struct SampleArgs {
        logits: u64,
        seen: u64,
        generated: u64,
        uniform: u64,
        y: u64,
        keys: u64,
        ids: u64,
        parts: u64,
        counters: u64,
        v: i64,
        n_valid: i64,
        n_seen: i64,
        n_generated: i64,
        top_k: i64,
        first: i32,
        greedy: i32,
        temperature: f32,
        top_p: f32,
        repetition: f32,
        presence: f32,
    }
}

/// The tokens that y holds after the run; None where it is -1.
pub fn chosen(memory: &mut Memory, y: Tensor) -> Result<Vec<Option<u32>>> {
    Ok(memory.read_i32(y)?.into_iter().map(|token| u32::try_from(token).ok()).collect())
}

/// logits [B, V] (f32) to y [B] (i32). seen [B, any] and generated [B, any] (i32, -1 pads): tokens of prompt and answer,
/// and of the answer alone. uniform [B] (f32) in [0, 1). Ids from `n_valid` on are never chosen; -1 is, where a
/// logit is NaN or plus infinity, or none is a number: [`chosen`] reads y. `n_valid` is at most 2^20.
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

/// Logits of a block, and bytes of what it leaves of them: `CHUNK` and `Part` of `cuda/sample.cu`.
const CHUNK: usize = 4096;
const PART_BYTES: usize = 5 * 4;

impl Sample {
    /// How a device with kernels runs it: a block for each chunk of a sequence, of as many sequences as have a counter. Each
    /// launch with its first sequence.
    pub fn plan(&self) -> Vec<(usize, Launch)> {
        let b = self.logits.shape.rows();
        let launch = |first: usize| {
            let grid = [self.n_valid.div_ceil(CHUNK) as u32, (b - first).min(COUNTERS) as u32, 1];
            (first, Launch { kernel: "sample_fwd_f32", grid, block: THREADS as u32, shared_bytes: 0 })
        };
        (0..b).step_by(COUNTERS).map(launch).collect()
    }
}

impl Op for Sample {
    fn name(&self) -> &'static str {
        "sample"
    }

    fn contract(&self) -> Result<()> {
        let (b, v) = (self.logits.shape.rows(), self.logits.shape.width());
        f32("sample", "logits", &self.logits)?;
        let most = v.min(host::sample::MOST_TOKENS);
        require("sample", "n_valid", (1..=most).contains(&self.n_valid), || format!("1 to {most}"), &self.n_valid)?;
        shape("sample", "seen", &self.seen, [b, self.seen.shape.width()])?;
        shape("sample", "generated", &self.generated, [b, self.generated.shape.width()])?;
        shape("sample", "uniform", &self.uniform, [b])?;
        f32("sample", "uniform", &self.uniform)?;
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

    fn scratch(&self, _facts: &Facts) -> Result<Vec<usize>> {
        let draws = self.choice.temperature.is_some();
        let list = if draws { self.logits.shape.elements() * DType::I32.bytes() } else { 0 };
        let parts = self.logits.shape.rows() * self.n_valid.div_ceil(CHUNK) * PART_BYTES;
        Ok(vec![list, list, parts])
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
                    y[b] = chosen.map_or(-1, |token| token as i32);
                }
                Ok(())
            }
            Device::Launch(gpu) => {
                let at = gpu.addresses(&self.inputs(), &[], &self.outputs())?;
                let [keys, ids, parts] = gpu.scratch(&self.scratch(gpu.facts())?)?;
                let mut arguments = SampleArgs {
                    logits: at.of(&self.logits)?,
                    seen: at.of(&self.seen)?,
                    generated: at.of(&self.generated)?,
                    uniform: at.of(&self.uniform)?,
                    y: at.of(&self.y)?,
                    keys,
                    ids,
                    parts,
                    counters: gpu.counters()?,
                    v: self.logits.shape.width() as i64,
                    n_valid: self.n_valid as i64,
                    n_seen: self.seen.shape.width() as i64,
                    n_generated: self.generated.shape.width() as i64,
                    top_k: self.choice.top_k as i64,
                    first: 0,
                    greedy: self.choice.temperature.is_none() as i32,
                    temperature: self.choice.temperature.unwrap_or(1.0),
                    top_p: self.choice.top_p,
                    repetition: self.choice.repetition_penalty,
                    presence: self.choice.presence_penalty,
                };
                for (first, launch) in self.plan() {
                    arguments.first = first as i32;
                    // SAFETY: a row of each tensor and of the scratch memory for each sequence, and a counter for each of a
                    // launch: the contract and the plan. The lists are used only where there is a temperature.
                    unsafe { gpu.launch("sample", &launch, &arguments)? }
                }
                Ok(())
            }
        }
    }
}
