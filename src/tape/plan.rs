//! The memory plan: each value lives from the record that writes it to the last that reads it; values whose lives do
//! not meet share bytes.
//!
//! A value that backward reads and that is cheaper to make again than to hold has two lives, at the same bytes.
//! An output that may take over an input's bytes (`Op::in_place`) does so where nothing reads the input later. Offsets
//! are assigned greedily, the largest value first, each at the lowest gap among the values it lives beside: the
//! "greedy by size" of Pisarchyk and Lee, Efficient Memory Management for Deep Neural Net Inference (2020).

use super::Tape;
use crate::device::layout::ALIGNMENT;
use crate::device::{Layout, Place};
use crate::tensor::{Arena, Tensor};

/// Records from the first to the last that needs a value, both included; record 0 follows the inputs' writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Life {
    first: usize,
    last: usize,
}

/// For each value the value whose bytes it uses (itself, or the one it took over), and each owner's lives, in order.
/// A value has one life, unless it is let go of in between and made again.
fn lives(tape: &Tape) -> (Vec<usize>, Vec<Vec<Life>>) {
    let n = tape.values.len();
    let end = tape.records.len();
    let mut lives: Vec<Vec<Life>> = vec![Vec::new(); n];
    for (value, lives) in tape.values.iter().zip(&mut lives) {
        if value.input {
            lives.push(Life { first: 0, last: 0 });
        }
    }
    for (i, record) in tape.records.iter().enumerate() {
        let op = record.op();
        let mut touch = |t: &Tensor, anew: bool, now: Life| match lives[t.slot as usize].last_mut() {
            Some(life) if !anew => life.last = life.last.max(now.last),
            _ => lives[t.slot as usize].push(now),
        };
        let inside = |t: &&Tensor| t.arena == Arena::Activations;
        // of two records that run as one the second writes while the first reads; what the first takes over is its own
        let reads = Life { first: i, last: i + usize::from(tape.joined.get(i + 1) == Some(&true)) };
        let writes = Life { first: i - usize::from(tape.joined[i]), last: i };
        let taken = |t: &Tensor| op.in_place().is_some_and(|(from, _)| from.same_value(t));
        for t in op.inputs().iter().filter(inside) {
            touch(t, false, if taken(t) { Life { first: i, last: i } } else { reads });
        }
        op.outputs().iter().filter(inside).for_each(|t| touch(t, tape.made_again[i], writes));
    }
    for (lives, value) in lives.iter_mut().zip(&tape.values) {
        if let Some(life) = lives.last_mut().filter(|_| value.kept) {
            life.last = end;
        }
    }
    let mut owner: Vec<usize> = (0..n).collect();
    for record in &tape.records {
        let op = record.op();
        // an input that is read elsewhere in the same operation cannot be written over
        let once = |t: &Tensor| op.inputs().iter().filter(|i| i.same_value(t)).count() == 1;
        let Some((from, to)) = op.in_place().filter(|(from, _)| once(from)) else { continue };
        let (root, to) = (owner[from.slot as usize], to.slot as usize);
        if owner[to] != to || tape.values[root].bytes != tape.values[to].bytes {
            continue;
        }
        // wherever the two meet, the one dies in the operation that makes the other of it
        let makes = |i: usize| {
            tape.records[i].op().in_place().is_some_and(|(f, t)| f.same_value(&from) && t.slot as usize == to)
        };
        let apart = |a: &Life, b: &Life| a.last < b.first || b.last < a.first || (a.last == b.first && makes(b.first));
        if lives[root].iter().all(|a| lives[to].iter().all(|b| apart(a, b))) {
            owner[to] = root;
            let mut all: Vec<Life> = lives[root].iter().chain(&lives[to]).copied().collect();
            all.sort_by_key(|life| (life.first, life.last));
            let mut joined: Vec<Life> = Vec::new();
            for life in all {
                match joined.last_mut().filter(|before| before.last >= life.first) {
                    Some(before) => before.last = before.last.max(life.last),
                    None => joined.push(life),
                }
            }
            lives[root] = joined;
        }
    }
    (owner, lives)
}

/// Offsets for every value.
pub(super) fn layout(tape: &Tape) -> Layout {
    let (owner, lives) = lives(tape);
    let mut order: Vec<usize> = (0..owner.len()).filter(|v| owner[*v] == *v && !lives[*v].is_empty()).collect();
    order.sort_by_key(|v| (std::cmp::Reverse(tape.values[*v].bytes), *v));
    let mut places = vec![Place { offset: 0, bytes: 0 }; owner.len()];
    let mut placed: Vec<(&[Life], usize, usize)> = Vec::new(); // lives, offset, end; sorted by offset
    let mut total = 0;
    for v in order {
        let own = &lives[v][..];
        let bytes = tape.values[v].bytes.next_multiple_of(ALIGNMENT);
        let mut offset = 0;
        for (other, from, to) in &placed {
            if !meet(own, other) {
                continue;
            }
            if *from >= offset + bytes {
                break;
            }
            offset = offset.max(*to);
        }
        let at = placed.partition_point(|(_, from, _)| *from <= offset);
        placed.insert(at, (own, offset, offset + bytes));
        places[v] = Place { offset, bytes: tape.values[v].bytes };
        total = total.max(offset + bytes);
    }
    for v in 0..owner.len() {
        places[v] = places[owner[v]];
    }
    Layout { generation: tape.generation, places, bytes: total }
}

/// Whether two values are alive at the same time.
fn meet(a: &[Life], b: &[Life]) -> bool {
    a.iter().any(|a| b.iter().any(|b| a.first <= b.last && b.first <= a.last))
}

/// For each record the places that nothing needs after it.
pub(super) fn releases(tape: &Tape) -> Vec<Vec<Place>> {
    let (owner, lives) = lives(tape);
    let layout = layout(tape);
    let mut releases = vec![Vec::new(); tape.records.len()];
    for v in (0..owner.len()).filter(|v| owner[*v] == *v) {
        for life in &lives[v] {
            if let Some(at) = releases.get_mut(life.last) {
                at.push(layout.places[v]);
            }
        }
    }
    releases
}

/// Bytes alive while each record runs.
pub(super) fn alive(tape: &Tape) -> Vec<usize> {
    let (owner, lives) = lives(tape);
    let bytes = |i: usize| {
        let lives_at = |v: &usize| lives[*v].iter().any(|l| l.first <= i && i <= l.last);
        let live = (0..owner.len()).filter(|v| owner[*v] == *v && lives_at(v));
        live.map(|v| tape.values[v].bytes).sum()
    };
    (0..tape.records.len()).map(bytes).collect()
}
