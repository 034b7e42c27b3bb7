//! Hopper's kernels of `linear` for few rows against the host, in the emulator: every tile and one row more or less, k
//! in one part and in several, with all that follows the sums. `kernel_linear_few_following.rs` has the words that they
//! do as well.

use crate::kernel_linear::{Columns, Options, PLAIN, Trained, linear};
use crate::support::kernels::{Case, ROW};
use std::collections::BTreeSet;
use vlm::base::DType;
use vlm::device::Device;
use vlm::ops::Op;
use vlm::ops::linear::{Activation, Linear};

const HOPPER: (i32, i32) = (9, 0);

/// Rows, input width and segments; into how many splits four multiprocessors, the emulated device's, cut k for y and s.
const SHAPES: [(usize, usize, &[Columns], [usize; 2]); 13] = [
    (1, 1608, &[(136, 8, true)], [2, 4]),
    (2, 1600, &[(64, 16, false)], [4, 4]),
    (15, 72, &[(8, 0, true)], [1, 0]),
    (16, 1000, &[(40, 0, true)], [4, 0]),
    (17, 2000, &[(72, 8, true), (56, 0, false)], [2, 4]),
    (32, 136, &[(264, 0, false)], [1, 0]),
    (33, 264, &[(264, 8, true), (136, 0, false)], [1, 3]),
    (63, 2504, &[(24, 0, true), (40, 24, false), (8, 8, true)], [4, 2]),
    (64, 1608, &[(136, 72, false)], [2, 4]),
    (65, 1600, &[(64, 8, true)], [4, 4]),
    (65, 8, &[(520, 8, false)], [1, 1]),
    (127, 1544, &[(120, 0, false)], [4, 0]),
    (128, 1608, &[(136, 16, true), (8, 0, false)], [1, 4]),
];

/// What may follow the sums.
fn options(i: usize) -> [Options; 3] {
    let activation = |j| [Activation::None, Activation::GeluTanh, Activation::GeluErf][(i + j) % 3];
    [
        Options { activation: activation(0), ..PLAIN },
        Options { activation: activation(1), residual: true, ..PLAIN },
        Options { activation: activation(2), kept: true, ..PLAIN },
    ]
}

fn product(case: &mut Case, i: usize, trained: Trained, options: Options) -> Linear {
    let (m, k, columns, _) = SHAPES[i];
    linear(case, (m, k, columns), trained, options, false)
}

#[test]
fn few_rows_agree_with_the_host() {
    for i in 0..SHAPES.len() {
        for options in options(i) {
            let mut case = Case::new(i as u64);
            let op = product(&mut case, i, Trained::Adapters, options);
            case.agrees_on(&op, HOPPER, ROW);
        }
    }
}

#[test]
fn every_shape_runs_on_its_tile_and_in_its_splits() {
    let mut tiles = BTreeSet::new();
    for (i, (m, _, columns, [of_y, of_s])) in SHAPES.into_iter().enumerate() {
        let mut case = Case::new(i as u64);
        let op = product(&mut case, i, Trained::Nothing, PLAIN);
        let mut device = Device::emulated(HOPPER).expect("an emulator");
        case.begin(&mut device).expect("memory");
        op.forward(&mut device).expect("linear");
        let tile = format!("linear_fwd_few_{}x128_sm90_bf16", m.next_power_of_two().max(16));
        let ran = device.launches();
        assert_eq!(ran.into_iter().collect::<Vec<_>>(), [(&*tile, 1 + u64::from(of_s > 0))], "{m} rows");
        tiles.insert(tile);
        // the two lie in the same memory one after the other
        let rank = columns.iter().map(|(_, rank, _)| rank).sum();
        let bytes = |splits, width| if splits > 1 { 4 * splits * m * width } else { 0 };
        let wanted = bytes(of_y, Linear::width(&op.segments)).max(bytes(of_s, rank));
        assert_eq!(op.scratch(device.facts().expect("a GPU")).expect("sizes"), [wanted], "{m} rows");
    }
    assert_eq!(tiles.len(), 4, "{tiles:?}");
}

#[test]
fn no_memory_is_planned_where_nothing_is_cut() {
    let hopper = Device::emulated(HOPPER).expect("an emulator");
    let older = Device::emulated((8, 6)).expect("an emulator");
    let (hopper, older) = (hopper.facts().expect("a GPU"), older.facts().expect("a GPU"));
    let mut case = Case::new(1);
    let mut op =
        |m, rows| linear(&mut case, (m, 1600, &[(64, 0, false)]), Trained::Nothing, Options { rows, ..PLAIN }, false);
    for (m, rows, facts, bytes) in [
        (128, false, hopper, 4 * 4 * 128 * 64),
        (128, true, hopper, 0),
        // of more rows it is a narrow product, whose splits have 512 of k
        (129, false, hopper, 4 * 4 * 129 * 64),
        (129, true, hopper, 0),
        (128, false, older, 0),
        (0, false, hopper, 0),
    ] {
        assert_eq!(op(m, rows).scratch(facts).expect("sizes"), [bytes], "{m} rows");
    }
}

#[test]
fn logits_of_several_splits_may_be_kept_in_f32() {
    for (seed, m) in [1, 40, 70].into_iter().enumerate() {
        let mut case = Case::new(seed as u64);
        let mut op = linear(&mut case, (m, 1600, &[(64, 0, true)]), Trained::Nothing, PLAIN, false);
        op.y = case.output(DType::F32, op.y.shape);
        case.agrees_on(&op, HOPPER, 1e-5);
    }
}

#[test]
fn a_residual_may_be_overwritten_by_the_sum_of_the_splits() {
    let mut case = Case::new(5);
    let mut op = linear(&mut case, (20, 1600, &[(64, 8, true)]), Trained::Nothing, PLAIN, false);
    op.y = case.bf16(op.y.shape);
    op.residual = Some(op.y);
    case.agrees_on(&op, HOPPER, ROW);
}

#[test]
fn a_nan_stays_in_its_row_of_few() {
    for (m, k) in [(4, 64), (40, 1600), (128, 1600)] {
        let mut case = Case::new(3);
        let mut op = linear(&mut case, (m, k, &[(64, 8, true)]), Trained::Nothing, PLAIN, false);
        let mut x = case.random().f32s(m * k, 1.0);
        x[k + 5] = f32::NAN;
        op.x = case.values(DType::Bf16, [m, k], x);
        case.agrees_on(&op, HOPPER, ROW);
    }
}
