//! Which samples make a step: a pure function of the step's number, so that a run resumes anywhere.
//!
//! An epoch is every sample once, in file order or shuffled by (seed, epoch). It is cut into steps of
//! `grad_accumulation` micro-batches of `batch_size` samples; the last step of an epoch is what is left, and no step
//! crosses into the next epoch.

use crate::base::rng::Stream;
use crate::base::{Error, Result};
use std::collections::BTreeMap;

/// Keeps these random numbers apart from others of the same seed.
const SHUFFLE: u64 = 0x7368_7566;
const PICK: u64 = 0x7069_636b;

/// How long a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    Epochs(u64),
    /// Over as many epochs as it takes.
    Steps(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sequence {
    /// As in the file, in every epoch.
    File,
    Shuffled {
        seed: u64,
    },
}

/// The order of a run over samples 0 to n - 1.
#[derive(Debug, Clone)]
pub struct Order {
    n_samples: usize,
    batch_size: usize,
    step_size: usize,
    sequence: Sequence,
    total_steps: u64,
}

/// One update of the weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Counted from 1.
    pub number: u64,
    /// Counted from 0: the epoch that its samples belong to.
    pub epoch: u64,
    /// Counted from 0, within the epoch.
    pub in_epoch: u64,
    /// How many epochs are done after it, in steps, as Hugging Face's trainer counts.
    pub epochs_done: f64,
    /// Indexes of samples, none of the batches empty.
    pub micro_batches: Vec<Vec<usize>>,
}

impl Step {
    /// How many samples it learns from.
    pub fn n_samples(&self) -> usize {
        self.micro_batches.iter().map(Vec::len).sum()
    }
}

impl Order {
    /// Errors (wrong usage): no samples, a size or length of 0, more steps than can be counted.
    pub fn new(
        n_samples: usize,
        batch_size: usize,
        grad_accumulation: usize,
        sequence: Sequence,
        length: Length,
    ) -> Result<Order> {
        let usage = |said: &str| Error::Usage(said.into());
        if n_samples == 0 {
            return Err(usage("there are no samples to train on"));
        }
        let step_size = batch_size.checked_mul(grad_accumulation).filter(|&n| n > 0);
        let step_size = step_size
            .ok_or_else(|| usage("--batch-size times --grad-accumulation: wanted 1 or more samples a step"))?;
        let mut order = Order { n_samples, batch_size, step_size, sequence, total_steps: 0 };
        let total = match length {
            Length::Steps(steps) => Some(steps),
            Length::Epochs(epochs) => order.steps_per_epoch().checked_mul(epochs),
        };
        order.total_steps = total.filter(|&n| n > 0).ok_or_else(|| usage("wanted a run of 1 or more steps"))?;
        Ok(order)
    }

    pub fn total_steps(&self) -> u64 {
        self.total_steps
    }

    pub fn steps_per_epoch(&self) -> u64 {
        self.n_samples.div_ceil(self.step_size) as u64
    }

    /// The steps after the first `done` ones, to the end of the run.
    pub fn steps_after(&self, done: u64) -> impl Iterator<Item = Step> + '_ {
        let per_epoch = self.steps_per_epoch();
        let mut shuffled: Option<(u64, Vec<usize>)> = None;
        (done..self.total_steps).map(move |before| {
            let (epoch, in_epoch) = (before / per_epoch, before % per_epoch);
            if shuffled.as_ref().is_none_or(|(of, _)| *of != epoch) {
                shuffled = Some((epoch, self.epoch(epoch)));
            }
            let samples = shuffled.as_ref().map_or(&[][..], |(_, samples)| samples);
            let of_step = samples.chunks(self.step_size).nth(in_epoch as usize).unwrap_or_default();
            let number = before + 1;
            Step {
                number,
                epoch,
                in_epoch,
                epochs_done: number as f64 / per_epoch as f64,
                micro_batches: of_step.chunks(self.batch_size).map(<[usize]>::to_vec).collect(),
            }
        })
    }

    /// How often each sample is seen.
    pub fn passes(&self) -> Vec<u64> {
        let whole = self.total_steps / self.steps_per_epoch();
        let mut passes = vec![whole; self.n_samples];
        let rest = self.steps_after(whole * self.steps_per_epoch());
        rest.flat_map(|step| step.micro_batches).flatten().for_each(|at| passes[at] += 1);
        passes
    }

    /// Of all steps; an epoch has as many as its samples make.
    pub fn n_micro_batches(&self) -> u64 {
        let whole = self.total_steps / self.steps_per_epoch();
        let rest = self.steps_after(whole * self.steps_per_epoch()).map(|step| step.micro_batches.len() as u64).sum();
        whole.saturating_mul(self.n_samples.div_ceil(self.batch_size) as u64).saturating_add(rest)
    }

    /// Every sample once, in the order of epoch `epoch`, counted from 0.
    pub fn epoch(&self, epoch: u64) -> Vec<usize> {
        let mut samples: Vec<usize> = (0..self.n_samples).collect();
        if let Sequence::Shuffled { seed } = self.sequence {
            shuffle(&mut samples, Stream::new(seed, &[SHUFFLE, epoch]));
        }
        samples
    }
}

/// Fisher and Yates, from the end. A place among n is the upper half of n times 64 random bits: uneven by n / 2^64.
fn shuffle<T>(items: &mut [T], random: Stream) {
    for last in (1..items.len()).rev() {
        let at = 2 * last as u64;
        let bits = u64::from(random.bits(at)) << 32 | u64::from(random.bits(at + 1));
        let place = (u128::from(bits) * (last as u128 + 1)) >> 64;
        items.swap(place as usize, last);
    }
}

/// How a part of the samples is taken from the classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// Each class in proportion to its size.
    Stratified,
    /// As many of each class, while it has any.
    Even,
}

/// `n` samples of those with these labels, in file order. Which ones depends on the seed, and a smaller pick of the same
/// seed lies within a larger one: samples are ranked once, and the first n taken.
///
/// Within a class the rank is random; the j-th (from 0) of a class of m stands at (2j + 1) / m, which is Webster's
/// apportionment (each class within one sample of its share), or at j to spread evenly. Samples without a label are a
/// class of their own. Errors (wrong usage): `n` is 0 or more than there are; they name `flag`.
pub fn pick(labels: &[Option<&str>], n: usize, spread: Spread, seed: u64, flag: &str) -> Result<Vec<usize>> {
    if n == 0 || n > labels.len() {
        let said = format!("{flag} {n}: wanted from 1 to {}, the number of samples", labels.len());
        return Err(Error::Usage(said));
    }
    let mut classes: BTreeMap<Option<&str>, Vec<usize>> = BTreeMap::new();
    for (i, label) in labels.iter().enumerate() {
        classes.entry(*label).or_default().push(i);
    }
    let mut ranked = Vec::with_capacity(labels.len());
    for (class, mut samples) in classes.into_values().enumerate() {
        shuffle(&mut samples, Stream::new(seed, &[PICK, class as u64]));
        let share = match spread {
            Spread::Stratified => samples.len() as f64,
            Spread::Even => 1.0,
        };
        ranked.extend(samples.into_iter().enumerate().map(|(j, i)| ((2.0 * j as f64 + 1.0) / share, class, i)));
    }
    ranked.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut picked: Vec<usize> = ranked.into_iter().take(n).map(|(_, _, i)| i).collect();
    picked.sort_unstable();
    Ok(picked)
}
