//! Hopper's narrow products of many rows, as adapters have, against the host in the emulator.

use crate::kernel_linear::{Columns, PLAIN, Trained, backward, linear};
use crate::support::kernels::{Case, ROW};
use vlm::device::{Accumulate, Device};
use vlm::ops::Op;

/// Of adapters on many rows k of x A^T and of dy B is cut, of weights of different depth into different splits, and
/// each leaves nothing for a second launch to add.
#[test]
fn narrow_products_of_many_rows_are_cut() {
    let shapes: [(usize, usize, &[Columns]); 3] = [
        (300, 2504, &[(2104, 8, false), (136, 24, true), (1032, 16, false)]),
        (129, 1096, &[(1032, 128, false)]),
        (385, 3080, &[(64, 8, false), (2056, 8, false)]),
    ];
    for (i, shape) in shapes.into_iter().enumerate() {
        let mut case = Case::new(i as u64);
        let forward = linear(&mut case, shape, Trained::Adapters, PLAIN, false);
        case.agrees_on(&forward, (9, 0), ROW);
        let (_, ran) = case.bits_on(&forward, (9, 0));
        let meant = |kernel: &str| kernel.starts_with("linear_fwd_128x") && kernel.ends_with("_sm90_bf16");
        assert!(ran.iter().all(|(kernel, _)| kernel.starts_with("cast_") || meant(kernel)), "{ran:?}");
        let mut case = Case::new(i as u64);
        let of = (PLAIN, Trained::Adapters, Some(Accumulate::Overwrite));
        let op = backward(&mut case, shape, of);
        case.agrees_on(&op, (9, 0), ROW);
        let (_, ran) = case.bits_on(&op, (9, 0));
        assert!(ran.iter().all(|(kernel, _)| !kernel.contains("linear_sum")), "{ran:?}");
        // what the splits leave has its room in the plan of memory
        let hopper = Device::emulated((9, 0)).expect("an emulator");
        let facts = hopper.facts().expect("a GPU");
        let rank: usize = shape.2.iter().map(|(_, rank, _)| rank).sum();
        let bytes = |depth: usize| 4 * depth.div_ceil(1024) * shape.0 * rank;
        let deepest = shape.2.iter().filter(|(_, rank, _)| *rank > 0).map(|(n, ..)| *n).max().unwrap_or(0);
        assert_eq!(forward.scratch(facts).expect("sizes"), [bytes(shape.1)]);
        assert!(op.scratch(facts).expect("sizes")[2] >= bytes(deepest));
    }
}
