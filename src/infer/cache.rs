//! The key/value cache: pools of rows in blocks, and a table of blocks for each sequence.
//!
//! Sequences that were forked share the blocks they had in common; a shared block is copied before one of them writes
//! to it.

use crate::base::{Error, Precision, Result};
use crate::device::{Device, Layout};
use crate::qwen3vl::config::TextConfig;
use crate::tensor::{Arena, Tensor, new_generation};

/// Tokens of one block.
pub const BLOCK: usize = 64;

/// Pools of all layers, and which blocks are free.
pub struct Cache {
    /// (keys, values) of each layer, each [rows, G E].
    pub pools: Vec<(Tensor, Tensor)>,
    free: Vec<u32>,
    /// How many sequences hold each block.
    holders: Vec<u32>,
}

/// One sequence's part of the cache.
#[derive(Debug)]
pub struct CachedSequence {
    blocks: Vec<u32>,
    /// Tokens held.
    pub length: usize,
    /// Position of a later token = its index + delta.
    pub delta: i32,
}

impl CachedSequence {
    /// No tokens yet.
    pub fn new(delta: i32) -> CachedSequence {
        CachedSequence { blocks: Vec::new(), length: 0, delta }
    }

    /// The pool row of a token.
    pub fn row(&self, token: usize) -> i32 {
        (self.blocks[token / BLOCK] as usize * BLOCK + token % BLOCK) as i32
    }

    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }
}

/// Blocks that `tokens` tokens need.
pub fn blocks_for(tokens: usize) -> usize {
    tokens.div_ceil(BLOCK)
}

/// Blocks that a step's table has room for where a sequence has at most so many: some more, so that the next steps have the
/// same sizes and run the same tape.
pub fn table_width(blocks: usize) -> usize {
    blocks.next_multiple_of(16)
}

/// Bytes that pools of `blocks` blocks take.
pub fn bytes(config: &TextConfig, precision: Precision, blocks: usize) -> usize {
    2 * config.n_layers * blocks * BLOCK * config.n_kv_heads * config.head_dim * precision.dtype().bytes()
}

/// The pools of all layers for `blocks` blocks, and where they lie.
pub fn pools(config: &TextConfig, precision: Precision, blocks: usize) -> (Vec<(Tensor, Tensor)>, Layout) {
    let generation = new_generation();
    let shape = [blocks * BLOCK, config.n_kv_heads * config.head_dim].into();
    let pool =
        |slot: usize| Tensor { arena: Arena::Cache, slot: slot as u32, generation, dtype: precision.dtype(), shape };
    let pools: Vec<_> = (0..config.n_layers).map(|l| (pool(2 * l), pool(2 * l + 1))).collect();
    let layout = Layout::sequential(generation, pools.iter().flat_map(|(k, v)| [k.bytes(), v.bytes()]));
    (pools, layout)
}

impl Cache {
    /// Lays out the device's cache arena for `blocks` blocks; what it held is gone.
    pub fn new(device: &mut Device, config: &TextConfig, precision: Precision, blocks: usize) -> Result<Cache> {
        let (pools, layout) = pools(config, precision, blocks);
        device.memory().lay_out(Arena::Cache, layout)?;
        Ok(Cache { pools, free: (0..blocks as u32).rev().collect(), holders: vec![0; blocks] })
    }

    /// Makes room for `tokens` tokens of a sequence, and its last block its own.
    pub fn grow(&mut self, device: &mut Device, sequence: &mut CachedSequence, tokens: usize) -> Result<()> {
        if !sequence.length.is_multiple_of(BLOCK)
            && tokens > sequence.length
            && let Some(last) = sequence.blocks.last_mut()
            && self.holders[*last as usize] > 1
        {
            let copy = take(&mut self.free)?;
            for (keys, values) in &self.pools {
                for pool in [keys, values] {
                    device.memory().copy_rows(*pool, *last as usize * BLOCK, copy as usize * BLOCK, BLOCK)?;
                }
            }
            self.holders[*last as usize] -= 1;
            self.holders[copy as usize] = 1;
            *last = copy;
        }
        while sequence.blocks.len() < blocks_for(tokens) {
            let block = take(&mut self.free)?;
            self.holders[block as usize] = 1;
            sequence.blocks.push(block);
        }
        Ok(())
    }

    /// A second sequence with the same tokens, sharing their blocks.
    pub fn fork(&mut self, sequence: &CachedSequence) -> CachedSequence {
        sequence.blocks.iter().for_each(|b| self.holders[*b as usize] += 1);
        CachedSequence { blocks: sequence.blocks.clone(), ..*sequence }
    }

    /// Gives a sequence's blocks back.
    pub fn release(&mut self, sequence: CachedSequence) {
        for block in sequence.blocks {
            let holders = &mut self.holders[block as usize];
            *holders -= 1;
            if *holders == 0 {
                self.free.push(block);
            }
        }
    }
}

fn take(free: &mut Vec<u32>) -> Result<u32> {
    free.pop().ok_or_else(|| Error::Contract {
        op: "cache",
        argument: "blocks",
        wanted: "a free block".into(),
        got: "none: more tokens than were reserved".into(),
    })
}
