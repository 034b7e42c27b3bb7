//! The memory plan: each value lives from the record that writes it to the last that reads it; values whose lives do
//! not meet share bytes.
//!
//! An output that may take over an input's bytes (`Op::in_place`) does so where nothing reads the input later. Offsets
//! are assigned greedily, the largest value first, each at the lowest gap among the values it lives beside: the
//! "greedy by size" of Pisarchyk and Lee, Efficient Memory Management for Deep Neural Net Inference (2020).

use super::Tape;
use crate::device::memory::ALIGNMENT;
use crate::device::{Layout, Place};
use crate::tensor::{Arena, Tensor};

/// Records from the first to the last that needs a value, both included; record 0 follows the inputs' writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Life {
    first: usize,
    last: usize,
}

/// For each value the value whose bytes it uses (itself, or the one it took over), and each owner's life.
fn lives(tape: &Tape) -> (Vec<usize>, Vec<Option<Life>>) {
    let n = tape.values.len();
    let end = tape.records.len();
    let mut life: Vec<Option<Life>> = vec![None; n];
    for (i, record) in tape.records.iter().enumerate() {
        let op = record.op();
        for t in op.inputs().iter().chain(&op.outputs()).filter(|t| t.arena == Arena::Activations) {
            let l = life[t.slot as usize].get_or_insert(Life { first: i, last: i });
            l.last = i;
        }
    }
    for (life, value) in life.iter_mut().zip(&tape.values) {
        if value.input {
            life.get_or_insert(Life { first: 0, last: 0 }).first = 0;
        }
        if value.kept
            && let Some(l) = life
        {
            l.last = end;
        }
    }
    let mut owner: Vec<usize> = (0..n).collect();
    for (i, record) in tape.records.iter().enumerate() {
        let op = record.op();
        // an input that is read elsewhere in the same operation cannot be written over
        let once = |t: &Tensor| op.inputs().iter().filter(|i| i.same_value(t)).count() == 1;
        let Some((from, to)) = op.in_place().filter(|(from, _)| once(from)) else { continue };
        let (from, to) = (from.slot as usize, to.slot as usize);
        let root = owner[from];
        let dies = life[from].is_some_and(|l| l.last == i) && tape.values[root].bytes == tape.values[to].bytes;
        // the root's life already covers every value that took its bytes before, each of which died in its successor
        if dies
            && life[root].is_some_and(|l| l.last == i)
            && let (Some(new), Some(old)) = (life[to], life[root])
        {
            owner[to] = root;
            life[root] = Some(Life { first: old.first, last: new.last });
        }
    }
    (owner, life)
}

/// Offsets for every value.
pub(super) fn layout(tape: &Tape) -> Layout {
    let (owner, life) = lives(tape);
    let mut order: Vec<usize> = (0..owner.len()).filter(|v| owner[*v] == *v && life[*v].is_some()).collect();
    order.sort_by_key(|v| (std::cmp::Reverse(tape.values[*v].bytes), *v));
    let mut places = vec![Place { offset: 0, bytes: 0 }; owner.len()];
    let mut placed: Vec<(Life, usize, usize)> = Vec::new(); // life, offset, end; sorted by offset
    let mut total = 0;
    for v in order {
        let Some(l) = life[v] else { continue };
        let bytes = tape.values[v].bytes.next_multiple_of(ALIGNMENT);
        let mut offset = 0;
        for (other, from, to) in &placed {
            if other.first > l.last || l.first > other.last {
                continue;
            }
            if *from >= offset + bytes {
                break;
            }
            offset = offset.max(*to);
        }
        let at = placed.partition_point(|(_, from, _)| *from <= offset);
        placed.insert(at, (l, offset, offset + bytes));
        places[v] = Place { offset, bytes: tape.values[v].bytes };
        total = total.max(offset + bytes);
    }
    for v in 0..owner.len() {
        places[v] = places[owner[v]];
    }
    Layout { generation: tape.generation, places, bytes: total }
}

/// For each record the places that nothing needs after it.
pub(super) fn releases(tape: &Tape) -> Vec<Vec<Place>> {
    let (owner, life) = lives(tape);
    let layout = layout(tape);
    let mut releases = vec![Vec::new(); tape.records.len()];
    for v in (0..owner.len()).filter(|v| owner[*v] == *v) {
        if let Some(l) = life[v]
            && let Some(at) = releases.get_mut(l.last)
        {
            at.push(layout.places[v]);
        }
    }
    releases
}

/// Bytes alive while each record runs.
pub(super) fn alive(tape: &Tape) -> Vec<usize> {
    let (owner, life) = lives(tape);
    let bytes = |i: usize| {
        let live =
            (0..owner.len()).filter(|v| owner[*v] == *v && life[*v].is_some_and(|l| l.first <= i && i <= l.last));
        live.map(|v| tape.values[v].bytes).sum()
    };
    (0..tape.records.len()).map(bytes).collect()
}
