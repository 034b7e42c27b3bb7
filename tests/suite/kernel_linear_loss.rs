//! The kernels of `linear_loss` against the host, in the emulator.

use crate::support::kernels::Case;
use std::collections::BTreeSet;
use vlm::base::{DType, Precision};
use vlm::device::{Device, Facts};
use vlm::ops::Op;
use vlm::ops::linear_loss::{LinearLoss, LossPlan};

/// Label rows, width, vocabulary: one, primes, the tiles and one more or less, several parts of the vocabulary, none;
/// on Hopper tiles of 256 columns, of which the last may have eight, and splits of dx.
const SHAPES: [(usize, usize, usize); 14] = [
    (1, 1, 1),
    (1, 8, 2),
    (3, 7, 131),
    (15, 64, 136),
    (9, 67, 4503),
    (16, 72, 4504),
    (17, 64, 520),
    (63, 24, 64),
    (65, 136, 1024),
    (130, 64, 264),
    (129, 67, 193),
    (66, 72, 248),
    (260, 16, 6152),
    (0, 16, 24),
];

fn loss(case: &mut Case, (r, d, v): (usize, usize, usize), gradient: bool, trained: bool) -> LinearLoss {
    let x = case.bf16([r, d]);
    let deviation = 2.0 / (d as f64).sqrt();
    let head = if trained { case.trained("head", [v, d], deviation) } else { case.weight("head", [v, d], deviation) };
    let labels = (0..r).map(|_| case.random().below(v) as i32).collect();
    let labels = case.whole([r], labels);
    let scale = case.values(DType::F32, [1], vec![0.3]);
    let losses = case.output(DType::F32, [r]);
    let dx = gradient.then(|| case.output(DType::Bf16, [r, d]));
    LinearLoss { x, head, labels, scale, precision: Precision::Bf16, losses, dx }
}

#[test]
fn losses_and_gradients_agree_with_the_host() {
    for (seed, shape) in SHAPES.into_iter().enumerate() {
        for (gradient, trained) in [(false, false), (true, false), (true, true)] {
            let mut case = Case::new(seed as u64);
            let op = loss(&mut case, shape, gradient, trained);
            case.agrees(&op);
        }
    }
}

/// Rows for the products of few and of many.
const ROWS: [usize; 2] = [20, 140];

#[test]
fn a_nan_reaches_its_own_loss() {
    for (rows, gradient) in ROWS.into_iter().flat_map(|rows| [(rows, false), (rows, true)]) {
        let mut case = Case::new(7);
        let mut op = loss(&mut case, (rows, 64, 200), gradient, false);
        let mut x = case.random().f32s(rows * 64, 1.0);
        x[3 * 64 + 9] = f32::NAN;
        op.x = case.values(DType::Bf16, [rows, 64], x);
        case.agrees(&op);
    }
}

#[test]
fn rows_of_far_larger_logits_stay_out_of_their_neighbours() {
    // beside the largest logit of the row that follows, all of a row's weights would be zero
    for rows in ROWS {
        let mut case = Case::new(9);
        let mut op = loss(&mut case, (rows, 64, 200), true, false);
        let mut x = case.random().f32s(rows * 64, 1.0);
        x.chunks_exact_mut(64).skip(1).step_by(2).flatten().for_each(|x| *x *= 100.0);
        op.x = case.values(DType::Bf16, [rows, 64], x);
        case.agrees(&op);
    }
}

/// What lies beyond the vocabulary in the last tile is zero, and would be far above all logits.
#[test]
fn logits_may_all_be_far_below_zero() {
    for rows in ROWS {
        let mut case = Case::new(10);
        let mut op = loss(&mut case, (rows, 8, 200), true, false);
        op.x = case.values(DType::Bf16, [rows, 8], vec![6.0; rows * 8]);
        let head: Vec<f32> = case.random().f32s(200 * 8, 0.1).iter().map(|w| w - 6.0).collect();
        op.head = vlm::tensor::Weight::from_f32("head", [200, 8], &head).expect("a head");
        case.agrees(&op);
    }
}

#[test]
fn a_small_loss_keeps_its_digits() {
    // the label's logit is far above all others: ln S is nearly 0 and must not drown in the logit
    for (rows, capability) in ROWS.into_iter().flat_map(|rows| [(rows, (8, 6)), (rows, (9, 0))]) {
        let mut case = Case::new(8);
        let mut op = loss(&mut case, (rows, 8, 40), false, false);
        op.x = case.values(DType::Bf16, [rows, 8], vec![6.0; rows * 8]);
        let mut head = vec![0.5f32; 40 * 8];
        head[5 * 8..6 * 8].fill(0.75);
        op.head = vlm::tensor::Weight::from_f32("head", [40, 8], &head).expect("a head");
        op.labels = case.whole([rows], vec![5; rows]);
        let want = (39.0 * f64::exp(-12.0)).ln_1p();
        let mut device = Device::emulated(capability).expect("an emulator");
        case.begin(&mut device).expect("memory");
        op.forward(&mut device).expect("linear_loss");
        for loss in device.memory().read_f32(op.losses).expect("losses") {
            assert!((f64::from(loss) / want - 1.0).abs() <= 1e-3, "{loss:e}, wanted {want:e}");
        }
    }
}

#[test]
fn every_kernel_runs() {
    let mut ran = BTreeSet::new();
    for (i, shape) in SHAPES.into_iter().enumerate() {
        let mut case = Case::new(i as u64);
        let op = loss(&mut case, shape, true, true);
        for capability in [(8, 6), (9, 0)] {
            let mut device = Device::emulated(capability).expect("an emulator");
            case.begin(&mut device).expect("memory");
            op.forward(&mut device).expect("linear_loss");
            ran.extend(device.launches().into_keys());
        }
    }
    let wanted = [
        "linear_loss_bwd_dlogits_bf16",
        "linear_loss_fwd_128x128_bf16",
        "linear_loss_fwd_128x256_sm90_bf16",
        "linear_loss_fwd_16x32_bf16",
        "linear_loss_fwd_64x64_bf16",
        "linear_loss_fwd_any_bf16",
        "linear_loss_fwd_rows_f32",
        "linear_sum_any_bf16",
        "linear_sum_bf16",
    ];
    let missing: Vec<_> = wanted.into_iter().filter(|name| !ran.contains(name)).collect();
    assert!(missing.is_empty(), "no shape of this file reaches {missing:?}");
}

#[test]
fn the_workspace_has_a_bound() {
    let facts = Facts {
        name: "a GPU".into(),
        capability: (8, 6),
        multiprocessors: 80,
        shared_bytes: 99 << 10,
        guarded: false,
        profiled: false,
    };
    for (r, d, v) in [(1, 4096, 151_936), (4, 4096, 151_936), (2764, 4096, 151_936), (100_000, 64, 128), (0, 8, 16)] {
        assert!(LossPlan::new(r, d, v, true, &facts).rows <= 65_535);
        let plan = LossPlan::new(r, d, v, true, &facts);
        assert!(plan.logits + plan.dlogits + plan.statistics <= 512 << 20, "{plan:?}");
        assert!(plan.logits >= 4 * plan.rows * v && plan.dlogits >= 2 * plan.rows * v, "{plan:?}");
        assert!(plan.rows >= 1 && (r == 0 || plan.rows <= r), "{plan:?}");
        assert!(plan.rows == r.max(1) || plan.rows.is_multiple_of(128), "{plan:?}");
        let alone = LossPlan::new(r, d, v, false, &facts);
        assert_eq!((alone.logits, alone.dlogits, alone.partial), (0, 0, 0));
    }
    // one row of the real vocabulary: few tiles of dx, so its sums are cut
    assert!(LossPlan::new(1, 4096, 151_936, true, &facts).partial > 0);
}
