//! Computing twice to hold less: which records run again in backward, and how few of them suffice.
//!
//! A record that runs again writes the values that it wrote before, to the same bytes, from the same inputs: so the
//! result is the same to the bit, and the records of backward need not know. What is let go of after forward follows
//! from the plan, since a value then has two lives.
//!
//! There are levels, from holding everything upwards. First the values that cost little, part of the model by part:
//! norms, the product of SwiGLU, rotated queries and keys. Then whole blocks: of these only what later parts read, their
//! input, is held. The first parts go first, since their second lives come when those of all others have ended.

use super::{Record, Tape};
use crate::base::Result;
use crate::tensor::{Arena, Tensor};
use std::collections::BTreeSet;

/// Which records run again, and which of them have.
pub(super) struct Again {
    /// For each forward record.
    wanted: Vec<bool>,
    /// For each value the forward record that makes it.
    maker: Vec<Option<usize>>,
    done: BTreeSet<usize>,
}

impl Again {
    pub(super) fn none() -> Again {
        Again { wanted: Vec::new(), maker: Vec::new(), done: BTreeSet::new() }
    }
}

/// A tape with its backward, and what it takes.
pub struct Fitted {
    pub tape: Tape,
    /// Of the activation arena.
    pub bytes: usize,
    /// 0: nothing runs twice.
    pub level: usize,
}

impl Tape {
    /// Levels of recomputing beyond none.
    pub fn levels(&self) -> usize {
        2 * self.scope_names.len()
    }

    /// This forward with its backward, recomputing as little as makes its activations fit into `budget` bytes. Where
    /// nothing makes them fit, the smallest that was found: the caller compares.
    pub fn fit(&self, budget: Option<usize>) -> Result<Fitted> {
        let mut all = self.at_level(0)?;
        let fits = |fitted: &Fitted| budget.is_none_or(|budget| fitted.bytes <= budget);
        if fits(&all) {
            return Ok(all);
        }
        // the least level that fits, where higher ones take less; `above` is one that does
        let (cheap, most) = (self.at_level(self.levels() / 2)?, self.at_level(self.levels())?);
        let (mut below, mut above) = match (fits(&cheap), fits(&most)) {
            (true, _) => (0, cheap),
            (false, true) => (cheap.level, most),
            (false, false) => {
                for other in [cheap, most] {
                    all = if other.bytes < all.bytes { other } else { all };
                }
                return Ok(all);
            }
        };
        while above.level - below > 1 {
            let middle = self.at_level(below + (above.level - below) / 2)?;
            match fits(&middle) {
                true => above = middle,
                false => below = middle.level,
            }
        }
        Ok(above)
    }

    /// This forward with its backward at a level of recomputing.
    pub fn at_level(&self, level: usize) -> Result<Fitted> {
        let mut tape = self.clone();
        let mut again = self.again(level);
        tape.backward_after(&mut again)?;
        let bytes = tape.plan().bytes;
        Ok(Fitted { tape, bytes, level })
    }

    fn again(&self, level: usize) -> Again {
        let parts = self.scope_names.len();
        let (cheap, whole) = (level.min(parts), level.saturating_sub(parts));
        let mut maker = vec![None; self.values.len()];
        // whether a value is read by another part than the one that makes it
        let mut read_beyond = vec![false; self.values.len()];
        for (i, record) in self.records.iter().enumerate() {
            for t in record.op().inputs().iter().filter(|t| t.arena == Arena::Activations) {
                let made_here = maker[t.slot as usize].is_some_and(|by: usize| self.scopes[by] == self.scopes[i]);
                read_beyond[t.slot as usize] |= !made_here;
            }
            for t in record.op().outputs().iter().filter(|t| t.arena == Arena::Activations) {
                maker[t.slot as usize] = Some(i);
            }
        }
        let again = |i: usize| {
            let (op, part) = (self.records[i].op(), self.scopes[i]);
            let inside = |t: &Tensor| {
                let slot = t.slot as usize;
                t.arena == Arena::Activations && !self.values[slot].kept && !read_beyond[slot]
            };
            op.outputs().iter().all(inside)
                && match &self.records[i] {
                    Record::Norm(_) | Record::Swiglu(_) => part < cheap,
                    Record::QkRope(op) => op.append.is_none() && part < cheap,
                    Record::Linear(_) | Record::Attention(_) => part < whole,
                    _ => false,
                }
        };
        Again { wanted: (0..self.records.len()).map(again).collect(), maker, done: BTreeSet::new() }
    }

    /// Appends a record of backward, and before it what has to run again so that it can read it.
    pub(super) fn push_backward(&mut self, again: &mut Again, record: impl Into<Record>) -> Result<()> {
        let record = record.into();
        let mut wanted = record.op().inputs();
        let mut needed = BTreeSet::new();
        while let Some(t) = wanted.pop() {
            let maker = again.maker.get(t.slot as usize).copied().flatten();
            let Some(i) = maker.filter(|i| t.arena == Arena::Activations && again.wanted[*i]) else { continue };
            if !again.done.contains(&i) && needed.insert(i) {
                wanted.extend(self.records[i].op().inputs());
            }
        }
        for i in needed {
            self.push(self.records[i].clone())?;
            if let Some(last) = self.made_again.last_mut() {
                *last = true;
            }
            again.done.insert(i);
        }
        self.push(record)
    }
}
