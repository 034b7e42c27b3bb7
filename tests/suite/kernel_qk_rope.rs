//! The kernels of `qk_rope` against the host, in the emulator.

use crate::support::kernels::Case;
use std::collections::BTreeSet;
use vlm::base::{DType, Precision};
use vlm::device::Accumulate;
use vlm::ops::Gradient;
use vlm::ops::attention::Heads;
use vlm::ops::qk_rope::{Append, HeadNorms, QkRope, QkRopeBackward};

/// Tokens, query heads, key heads, width: lanes that move 8, 4 and 1 numbers, one and several rounds, heads that fill
/// their lanes and heads that do not; chunks of the weights' gradient and one more or less; no token at all.
const SHAPES: [(usize, usize, usize, usize); 9] = [
    (1, 1, 1, 2),
    (5, 4, 2, 128),
    (63, 2, 1, 72),
    (64, 1, 1, 80),
    (65, 2, 2, 32),
    (7, 3, 1, 24),
    (130, 1, 1, 10),
    (3, 2, 1, 250),
    (0, 2, 1, 16),
];

#[derive(Clone, Copy, PartialEq)]
pub enum Norms {
    None,
    Frozen,
    Trained,
}

pub fn qk_rope(
    case: &mut Case,
    (t, queries, keys, width): (usize, usize, usize, usize),
    norms: Norms,
    append: bool,
) -> QkRope {
    let qkv = case.bf16([t, (queries + 2 * keys) * width]);
    let turns = case.random().f32s(t * width / 2, 2.0);
    let table = turns.chunks(width / 2).flat_map(|row| {
        let part = |f: fn(f32) -> f32| row.iter().map(move |a| f(*a));
        part(f32::cos).chain(part(f32::sin)).collect::<Vec<_>>()
    });
    let table = table.collect();
    let angles = case.values(DType::F32, [t, width], table);
    let mut weight = |name: &str| match norms {
        Norms::Trained => case.trained(name, [width], 0.5),
        _ => case.weight(name, [width], 0.5),
    };
    let norms = (norms != Norms::None).then(|| HeadNorms { query: weight("query"), key: weight("key"), eps: 1e-6 });
    let append = append.then(|| {
        let rows = t + 4;
        let slots = case.whole([t], (0..t).map(|i| ((i * 3 + 2) % rows) as i32).collect());
        // the rows that no slot names stay as they are
        let pool = [rows, keys * width];
        Append { keys: case.bf16(pool), values: case.bf16(pool), slots }
    });
    let (q, k) = (case.output(DType::Bf16, [t, queries * width]), case.output(DType::Bf16, [t, keys * width]));
    let heads = Heads { queries, keys, width };
    QkRope { qkv, angles, norms, heads, append, precision: Precision::Bf16, q, k }
}

#[test]
fn forward_agrees_with_the_host() {
    let mut reached = BTreeSet::new();
    for (seed, shape) in SHAPES.into_iter().enumerate() {
        for (norms, append) in
            [(Norms::None, false), (Norms::Frozen, true), (Norms::Trained, false), (Norms::None, true)]
        {
            // of rows + 4 slots in steps of 3 none comes twice
            let shape = if append && (shape.0 + 4) % 3 == 0 { (shape.0 + 1, shape.1, shape.2, shape.3) } else { shape };
            let mut case = Case::new(seed as u64);
            let op = qk_rope(&mut case, shape, norms, append);
            reached.insert(op.plan().expect("a plan").kernel);
            case.agrees(&op);
        }
    }
    assert_eq!(reached.len(), 3, "{reached:?}");
}

#[test]
fn backward_agrees_with_the_host() {
    let mut reached = BTreeSet::new();
    for (seed, shape) in SHAPES.into_iter().enumerate() {
        for norms in [Norms::None, Norms::Frozen, Norms::Trained] {
            for accumulate in [Accumulate::Overwrite, Accumulate::Add] {
                let mut case = Case::new(seed as u64);
                let forward = qk_rope(&mut case, shape, norms, false);
                let (dq, dk) = (case.bf16(forward.q.shape), case.bf16(forward.k.shape));
                let tensor = match accumulate {
                    Accumulate::Overwrite => case.output(DType::Bf16, forward.qkv.shape),
                    Accumulate::Add => case.bf16(forward.qkv.shape),
                };
                let op = QkRopeBackward { forward, dq, dk, dqkv: Gradient { tensor, accumulate } };
                let (main, of_weights) = op.plan().expect("a plan");
                reached.extend(std::iter::once(main).chain(of_weights.into_iter().flatten()).map(|l| l.kernel));
                case.agrees(&op);
            }
        }
    }
    assert_eq!(reached.len(), 5, "{reached:?}");
}
