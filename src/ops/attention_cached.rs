//! `attention_cached`: the newest tokens of each sequence attend to all its keys and values, found through a table of
//! blocks.
//!
//! Specification: `host/attention.rs`; what the host device runs: `host/attention_tuned.rs`. Rounding point: y.

use super::attention::check_starts;
use super::{Op, indices, require, shape, whole};
use crate::base::{Error, Result};
use crate::device::Device;
use crate::host::attention::{BlockTable, Heads};
use crate::host::attention_tuned;
use crate::tensor::Tensor;

/// q [T, H E]: rows starts[b]..starts[b + 1] are the last ones of sequence b, which has lengths[b] tokens in the pools
/// `keys` and `values` [rows, G E], these included. Token i of sequence b lies in pool row
/// blocks[b, i / block] * block + i % block. starts [B + 1], lengths [B], blocks [B, any]: i32. y [T, H E].
#[derive(Debug, Clone)]
pub struct AttentionCached {
    pub q: Tensor,
    pub keys: Tensor,
    pub values: Tensor,
    pub starts: Tensor,
    pub lengths: Tensor,
    pub blocks: Tensor,
    pub block: usize,
    pub heads: Heads,
    pub scale: f32,
    pub y: Tensor,
}

impl Op for AttentionCached {
    fn name(&self) -> &'static str {
        "attention_cached"
    }

    fn contract(&self) -> Result<()> {
        let op = "attention_cached";
        let (t, h, b) = (self.q.shape.rows(), &self.heads, self.lengths.shape.elements());
        shape(op, "q", &self.q, [t, h.queries * h.width])?;
        let rows = self.keys.shape.rows();
        shape(op, "keys", &self.keys, [rows, h.keys * h.width])?;
        shape(op, "values", &self.values, [rows, h.keys * h.width])?;
        require(
            op,
            "block",
            self.block > 0 && rows.is_multiple_of(self.block),
            || "a divisor of the pool".into(),
            &self.block,
        )?;
        require(op, "heads", h.queries % h.keys == 0, || "groups of equal size".into(), h)?;
        shape(op, "starts", &self.starts, [b + 1])?;
        shape(op, "blocks", &self.blocks, [b, self.blocks.shape.width()])?;
        for (name, tensor) in [("starts", &self.starts), ("lengths", &self.lengths), ("blocks", &self.blocks)] {
            whole(op, name, tensor)?;
        }
        shape(op, "y", &self.y, self.q.shape)
    }

    fn inputs(&self) -> Vec<Tensor> {
        vec![self.q, self.keys, self.values, self.starts, self.lengths, self.blocks]
    }

    fn outputs(&self) -> Vec<Tensor> {
        vec![self.y]
    }

    fn cost(&self) -> super::Cost {
        // of the pools at most the rows that the table can name; how many are held is known to the run alone
        let named = (self.blocks.shape.elements() * self.block).min(self.keys.shape.rows());
        let rows = 2 * named * self.keys.shape.width() * self.keys.dtype.bytes();
        super::Cost { bytes: (2 * self.q.bytes() + rows) as u64, flops: 0 }
    }

    fn forward(&self, device: &mut Device) -> Result<()> {
        match device {
            Device::Host(memory) => {
                let mut lent = memory.borrow(&self.inputs(), &self.weights(), &self.outputs())?;
                let (starts, lengths, blocks) =
                    (lent.i32(self.starts)?, lent.i32(self.lengths)?, lent.i32(self.blocks)?);
                let table = BlockTable { blocks, max_blocks: self.blocks.shape.width(), block: self.block };
                check_starts("attention_cached", starts, self.q.shape.rows())?;
                for (b, (pair, length)) in starts.windows(2).zip(lengths).enumerate() {
                    let (new, held) = (pair[1] - pair[0], table.max_blocks * table.block);
                    if *length < new || *length as usize > held {
                        return Err(Error::Contract {
                            op: "attention_cached",
                            argument: "lengths",
                            wanted: format!("{new} to {held} for sequence {b}"),
                            got: length.to_string(),
                        });
                    }
                    let used = (*length as usize).div_ceil(table.block);
                    let row = &blocks[b * table.max_blocks..][..used];
                    indices("attention_cached", "blocks", row, self.keys.shape.rows() / self.block, false)?;
                }
                let (q, keys, values) = (lent.f32(self.q)?, lent.f32(self.keys)?, lent.f32(self.values)?);
                lent.output(self.y)?.fill(|y| {
                    attention_tuned::attention_cached(
                        &q, &keys, &values, starts, lengths, table, self.heads, self.scale, y,
                    )
                })
            }
            Device::Launch(_) => Err(super::no_kernel(self.name())),
        }
    }
}
