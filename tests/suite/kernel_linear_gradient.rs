//! Hopper's gradients of weights against the host in the emulator: every kernel, ragged sizes, and what other kernels do.

use crate::kernel_linear::{Columns, Options, PLAIN, Trained, backward};
use crate::support::kernels::{Case, ROW};
use std::collections::BTreeSet;
use vlm::device::Device;
use vlm::ops::Op;
use vlm::ops::linear::LinearBackward;

/// The kernels of gradients of weights that an operation runs on Hopper, where its results are those of the host, and one
/// launch adds up the parts of all gradients.
#[track_caller]
fn gradients(case: &Case, op: &LinearBackward) -> BTreeSet<&'static str> {
    let ran = case.agrees_on(op, (9, 0), ROW);
    let of_weights = |kernel: &&str| kernel.starts_with("linear_bwd_dw") || kernel.starts_with("linear_bwd_da");
    assert!(ran.iter().all(|(kernel, n)| *kernel != "linear_bwd_dw_sum_f32" || *n == 1), "{ran:?}");
    ran.into_keys().filter(of_weights).collect()
}

/// Rows, input width and segments, then what is trained and the kernels.
type Expected = ((usize, usize, &'static [Columns]), Trained, &'static [&'static str]);

/// One row and less, more and just as many as steps and tiles have; one adapter and as many as there can be, of equal and of
/// different ranks and widths, that fill a tile or not, or two; whole weights.
const SHAPES: [Expected; 11] = [
    (
        (1, 72, &[(40, 8, false)]),
        Trained::Adapters,
        &["linear_bwd_da_64x128_sm90_bf16", "linear_bwd_dw_128x64_sm90_bf16"],
    ),
    (
        (63, 264, &[(72, 16, false), (8, 0, false), (136, 8, true)]),
        Trained::Adapters,
        &["linear_bwd_da_64x128_sm90_bf16", "linear_bwd_dw_128x64_sm90_bf16"],
    ),
    (
        (65, 136, &[(144, 72, false), (80, 8, false)]),
        Trained::Adapters,
        &["linear_bwd_da_128x128_sm90_bf16", "linear_bwd_dw_128x128_sm90_bf16"],
    ),
    (
        (130, 264, &[(136, 64, false), (64, 64, false), (72, 64, false)]),
        Trained::Adapters,
        &["linear_bwd_da_192x128_sm90_bf16", "linear_bwd_dw_128x64_sm90_bf16"],
    ),
    (
        (128, 392, &[(8, 136, false), (16, 104, false)]),
        Trained::Adapters,
        &["linear_bwd_da_256x128_sm90_bf16", "linear_bwd_dw_128x256_sm90_bf16"],
    ),
    (
        (70, 392, &[(136, 120, false), (64, 96, false), (24, 120, false), (8, 16, false)]),
        Trained::Adapters,
        &["linear_bwd_da_256x128_sm90_bf16", "linear_bwd_dw_128x128_sm90_bf16"],
    ),
    // a rank beyond the widths: then x and dy are the narrow ones
    (
        (64, 64, &[(64, 72, false)]),
        Trained::Adapters,
        &["linear_bwd_da_64x128_sm90_bf16", "linear_bwd_dw_128x64_sm90_bf16"],
    ),
    ((129, 264, &[(272, 0, true)]), Trained::Everything, &["linear_bwd_dw_128x256_sm90_bf16"]),
    // as many bands as there may be, together narrower than a tile: its last columns belong to none
    (
        (130, 264, &[(64, 8, false), (40, 16, false), (72, 8, false), (24, 8, false)]),
        Trained::Adapters,
        &["linear_bwd_da_64x128_sm90_bf16", "linear_bwd_dw_128x64_sm90_bf16"],
    ),
    // batch rows in several parts, of which the last is shorter
    (
        (700, 152, &[(72, 64, false), (136, 8, false), (40, 72, false)]),
        Trained::Adapters,
        &["linear_bwd_da_192x128_sm90_bf16", "linear_bwd_dw_128x128_sm90_bf16", "linear_bwd_dw_sum_f32"],
    ),
    (
        (650, 144, &[(152, 8, false)]),
        Trained::Everything,
        &[
            "linear_bwd_da_64x128_sm90_bf16",
            "linear_bwd_dw_128x256_sm90_bf16",
            "linear_bwd_dw_128x64_sm90_bf16",
            "linear_bwd_dw_sum_f32",
        ],
    ),
];

#[test]
fn gradients_of_weights_agree_with_the_host() {
    for (i, (shape, trained, kernels)) in SHAPES.into_iter().enumerate() {
        let mut case = Case::new(i as u64);
        let op = backward(&mut case, shape, (PLAIN, trained, None));
        assert_eq!(gradients(&case, &op), kernels.iter().copied().collect(), "{:?}", &shape);
    }
}

/// What some adapters of x do not train, others read past.
#[test]
fn adapters_that_are_not_side_by_side_have_tiles_of_their_own() {
    for (m, frozen) in [(130, 1), (700, 1), (130, 2)] {
        let mut case = Case::new(7);
        let shape: (usize, usize, &[Columns]) = (m, 264, &[(64, 8, false), (40, 24, false), (72, 16, false)]);
        let mut op = backward(&mut case, shape, (PLAIN, Trained::Adapters, None));
        let adapter = op.forward.segments[frozen].adapter.as_mut().expect("an adapter");
        adapter.a = case.weight("A", adapter.a.shape(), 0.1);
        let ran = gradients(&case, &op);
        let of_a = if frozen == 2 { "linear_bwd_da_64x128_sm90_bf16" } else { "linear_bwd_dw_128x256_sm90_bf16" };
        assert!(ran.contains(of_a), "{ran:?}");
    }
}

/// Behind a dropout only dB is Hopper's; of gathered rows, whose x no map describes, dB too.
#[test]
fn what_is_picked_from_x_is_left_to_other_kernels() {
    let shape: (usize, usize, &[Columns]) = (130, 264, &[(64, 8, false), (40, 24, false)]);
    for (options, kernel) in [
        (Options { p: 0.5, ..PLAIN }, "linear_bwd_dw_dropout_64x64_bf16"),
        (Options { rows: true, ..PLAIN }, "linear_bwd_dw_64x64_bf16"),
    ] {
        let mut case = Case::new(8);
        let op = backward(&mut case, shape, (options, Trained::Adapters, None));
        assert_eq!(gradients(&case, &op), [kernel, "linear_bwd_dw_128x64_sm90_bf16"].into());
    }
}

/// The parts of all gradients have their room in the plan of memory: 44 steps of the batch, one part for each
/// of four multiprocessors.
#[test]
fn parts_of_gradients_have_their_room() {
    let mut case = Case::new(9);
    let op = backward(&mut case, (2764, 64, &[(128, 64, false)]), (PLAIN, Trained::Adapters, None));
    let hopper = Device::emulated((9, 0)).expect("an emulator");
    let [_, ds, parts] = op.scratch(hopper.facts().expect("a GPU")).expect("sizes")[..] else { panic!("three") };
    assert_eq!(ds, 2 * 2764 * 64);
    assert_eq!(parts, 4 * 4 * (64 * 64 + 128 * 64));
}
