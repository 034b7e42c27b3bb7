//! Hopper's narrow products of many rows, as adapters have, against the host in the emulator.

use crate::kernel_linear::{Columns, PLAIN, Trained, backward, linear};
use crate::support::kernels::{Case, ROW};
use vlm::base::DType;
use vlm::device::{Accumulate, Device};
use vlm::ops::Op;

/// Rows, input width and segments; columns of the tile that all adapters share; splits of x A^T and of dy B.
type Shape = ((usize, usize, &'static [Columns]), usize, [usize; 2]);

/// One adapter and as many as there can be, of equal and of different ranks and depths; tiles that they fill and not; k in one
/// part and in several, whose last may be short, and bands that have fewer parts than others.
const SHAPES: [Shape; 7] = [
    ((300, 2504, &[(2104, 8, false), (136, 24, true), (1032, 16, false)]), 64, [5, 3]),
    ((129, 1096, &[(1032, 128, false)]), 128, [3, 3]),
    ((385, 3080, &[(64, 8, false), (2056, 8, false)]), 64, [6, 5]),
    ((140, 520, &[(64, 64, false), (8, 64, false), (72, 64, true)]), 192, [2, 1]),
    ((131, 392, &[(72, 136, false), (64, 120, false)]), 256, [1, 1]),
    ((132, 1032, &[(72, 96, false), (8, 8, false), (24, 16, false), (520, 80, false)]), 256, [3, 2]),
    ((257, 72, &[(64, 8, false), (40, 0, false), (40, 24, false)]), 64, [1, 1]),
];

/// x is read for all adapters at once, and of adapters on many rows k of x A^T and of dy B is cut.
#[test]
fn narrow_products_of_many_rows_are_cut() {
    let hopper = Device::emulated((9, 0)).expect("an emulator");
    let facts = hopper.facts().expect("a GPU");
    for (i, (shape, columns, [of_s, of_ds])) in SHAPES.into_iter().enumerate() {
        let mut case = Case::new(i as u64);
        let forward = linear(&mut case, shape, Trained::Adapters, PLAIN, false);
        let kernels = case.agrees_on(&forward, (9, 0), ROW);
        let launches = |name: &str| kernels.get(name).copied().unwrap_or(0);
        assert_eq!(launches(&format!("linear_fwd_narrow_128x{columns}_sm90_bf16")), 1, "{kernels:?}");
        assert_eq!(launches("linear_sum_bf16"), u64::from(of_s > 1), "{kernels:?}");
        let mut case = Case::new(i as u64);
        let of = (PLAIN, Trained::Adapters, Some(Accumulate::Overwrite));
        let op = backward(&mut case, shape, of);
        let kernels = case.agrees_on(&op, (9, 0), ROW);
        assert_eq!(kernels.contains_key("linear_sum_bf16"), of_ds > 1, "{kernels:?}");
        // what the splits leave has its room in the plan of memory
        let rank: usize = shape.2.iter().map(|(_, rank, _)| rank).sum();
        let bytes = |splits: usize| if splits > 1 { 4 * splits * shape.0 * rank } else { 0 };
        assert_eq!(forward.scratch(facts).expect("sizes"), [bytes(of_s)]);
        assert!(op.scratch(facts).expect("sizes")[2] >= bytes(of_ds));
    }
}

/// A stage holds what an earlier step or nobody wrote past the last of the adapters' columns, 48 and 32 here.
#[test]
fn a_nan_stays_in_its_row_of_many() {
    for (shape, ..) in [SHAPES[0], SHAPES[6]] {
        let (m, k, _) = shape;
        let mut case = Case::new(3);
        let mut op = linear(&mut case, shape, Trained::Nothing, PLAIN, false);
        let mut x = case.random().f32s(m * k, 1.0);
        x[k + 5] = f32::NAN;
        op.x = case.values(DType::Bf16, [m, k], x);
        case.agrees_on(&op, (9, 0), ROW);
    }
}
