//! Frozen weights on a device: each once, as bf16.

use super::launcher::{Allocation, Facts, Launcher};
use super::layout::ALIGNMENT;
use crate::base::{DType, Error, Precision, Result, dtype};
use crate::tensor::Weight;
use rayon::prelude::*;
use std::collections::HashMap;
use std::sync::Arc;

/// Elements that are rounded and written at a time.
const PIECE: usize = 1 << 22;

/// The weights that a device holds. They go with it.
#[derive(Default)]
pub(super) struct Store {
    allocations: Vec<Allocation>,
    /// Bytes used of the last allocation.
    used: usize,
    /// The weight is held, so that no other can come to lie where its bytes are.
    placed: HashMap<Key, (u64, Weight)>,
}

/// What tells weights apart: where the bytes of the checkpoint lie and how many they are, or the slot of a trained one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Key {
    Frozen(usize, usize),
    Trained(u32),
}

impl Key {
    pub fn of(weight: &Weight) -> Key {
        match weight.as_trained() {
            Some(trained) => Key::Trained(trained.value.slot),
            None => Key::Frozen(weight.bytes().as_ptr().addr(), weight.bytes().len()),
        }
    }
}

/// Bytes that these weights take on a device with kernels, each counted once; trained ones lie with what is trained.
pub fn weight_bytes(weights: &[&Weight]) -> usize {
    Store::default().missing_bytes(weights)
}

fn device_bytes(weight: &Weight) -> usize {
    (weight.shape().elements() * DType::Bf16.bytes()).next_multiple_of(ALIGNMENT)
}

impl Store {
    /// Bytes that these weights still need, each counted once.
    pub fn missing_bytes(&self, weights: &[&Weight]) -> usize {
        let mut seen = std::collections::HashSet::new();
        let missing = weights.iter().filter(|w| w.as_trained().is_none() && !self.placed.contains_key(&Key::of(w)));
        missing.filter(|w| seen.insert(Key::of(w))).map(|w| device_bytes(w)).sum()
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.allocations.iter().map(Allocation::bytes).sum()
    }

    /// Puts weights on the device that it does not have yet, side by side in one allocation.
    pub fn place(&mut self, launcher: &Arc<dyn Launcher>, weights: &[&Weight]) -> Result<()> {
        let missing = self.missing_bytes(weights);
        if missing > 0 && !launcher.facts().guarded {
            self.allocations.push(Allocation::new(launcher, missing)?);
            self.used = 0;
        }
        weights.iter().filter(|w| w.as_trained().is_none()).try_for_each(|w| self.address(launcher, w).map(|_| ()))
    }

    /// Where a weight lies; it is put there first where the device does not have it.
    pub fn address(&mut self, launcher: &Arc<dyn Launcher>, weight: &Weight) -> Result<u64> {
        let key = Key::of(weight);
        if let Some((address, _)) = self.placed.get(&key) {
            return Ok(*address);
        }
        if weight.bytes().len() != weight.stored_bytes() {
            return Err(Error::Contract {
                op: "weights",
                argument: "weight",
                wanted: "stored numbers".into(),
                got: format!("{weight:?}, which has only a shape"),
            });
        }
        let bytes = device_bytes(weight);
        if bytes == 0 {
            return Ok(0);
        }
        let Facts { guarded, .. } = launcher.facts();
        let room = self.allocations.last().is_some_and(|a| self.used + bytes <= a.bytes());
        if *guarded || !room {
            // what a kernel reads past a weight's end is then past the end of an allocation
            let exact = weight.shape().elements() * DType::Bf16.bytes();
            self.allocations.push(Allocation::new(launcher, if *guarded { exact } else { bytes })?);
            self.used = 0;
        }
        let Some(allocation) = self.allocations.last() else { return Ok(0) };
        write(allocation, self.used, weight)?;
        let address = allocation.address() + self.used as u64;
        self.used += bytes;
        self.placed.insert(key, (address, weight.clone()));
        Ok(address)
    }
}

/// Rounds as the host's words do in bf16, a piece at a time.
fn write(allocation: &Allocation, offset: usize, weight: &Weight) -> Result<()> {
    let (stored, width) = (weight.bytes(), weight.dtype().bytes());
    for (i, piece) in stored.chunks(PIECE * width).enumerate() {
        let at = offset + i * PIECE * DType::Bf16.bytes();
        if weight.dtype() == DType::Bf16 {
            allocation.write(at, piece)?;
            continue;
        }
        let mut rounded = vec![0; piece.len() / width * DType::Bf16.bytes()];
        let parts = rounded.par_chunks_mut(DType::Bf16.bytes() << 12).zip(piece.par_chunks(width << 12));
        parts.for_each(|(to, part)| dtype::narrow_bf16(&dtype::widened(weight.dtype(), part, Precision::F32), to));
        allocation.write(at, &rounded)?;
    }
    Ok(())
}
