//! The kernels of `norm` against the host, in the emulator.

use crate::support::kernels::Case;
use vlm::base::{DType, Precision};
use vlm::device::Accumulate;
use vlm::ops::Gradient;
use vlm::ops::norm::{Kind, Norm, NormBackward};

/// Rows, width: one, primes, the rows of a block and of a partial sum and one more or less, none at all; as wide as registers
/// hold a row, nearly, and by one and by more of a warp's accesses wider.
const SHAPES: [(usize, usize); 13] = [
    (1, 1),
    (1, 8),
    (3, 7),
    (4, 64),
    (5, 13),
    (3, 8),
    (63, 24),
    (65, 129),
    (130, 17),
    (0, 16),
    (1, 4088),
    (2, 4360),
    (1, 5128),
];

fn kind(case: &mut Case, layer: bool, trained: bool, d: usize) -> Kind {
    let mut of = |name: &str| match trained {
        true => case.trained(name, [d], 0.5),
        false => case.weight(name, [d], 0.5),
    };
    let weight = of("weight");
    if layer { Kind::Layer { weight, bias: of("bias") } } else { Kind::Rms { weight } }
}

fn norm(case: &mut Case, (t, d): (usize, usize), rows: Option<Vec<i32>>, layer: bool, trained: bool) -> Norm {
    let x = case.bf16([t, d]);
    let n = rows.as_ref().map_or(t, Vec::len);
    let rows = rows.map(|r| case.whole([n], r));
    let kind = kind(case, layer, trained, d);
    let y = case.output(DType::Bf16, [n, d]);
    Norm { x, rows, kind, eps: 1e-6, precision: Precision::Bf16, y }
}

#[test]
fn forward_agrees_with_the_host() {
    for (seed, shape) in SHAPES.into_iter().enumerate() {
        for layer in [false, true] {
            let mut case = Case::new(seed as u64);
            let op = norm(&mut case, shape, None, layer, seed % 2 == 0);
            case.agrees(&op);
        }
    }
    for (layer, rows) in [(false, vec![4, 0, 2]), (true, vec![1]), (true, vec![])] {
        let mut case = Case::new(17);
        let op = norm(&mut case, (5, 24), Some(rows), layer, false);
        case.agrees(&op);
    }
}

#[test]
fn backward_agrees_with_the_host() {
    let cases = SHAPES.into_iter().map(|shape| (shape, None)).chain([
        ((5, 24), Some(vec![4, 0, 2])),
        ((70, 9), Some((0..66).rev().collect())),
        ((3, 8), Some(vec![])),
    ]);
    for (seed, (shape, rows)) in cases.enumerate() {
        for (layer, trained) in [(false, false), (true, false), (false, true), (true, true)] {
            let accumulates = [Some(Accumulate::Overwrite), Some(Accumulate::Add), trained.then_some(Accumulate::Add)];
            for (i, accumulate) in accumulates.into_iter().enumerate() {
                let mut case = Case::new(seed as u64);
                let forward = norm(&mut case, shape, rows.clone(), layer, trained);
                let dy = case.bf16(forward.y.shape);
                // the last of the three trains the parameters alone
                let dx = match accumulate {
                    Some(Accumulate::Overwrite) => Some(case.output(DType::Bf16, forward.x.shape)),
                    Some(Accumulate::Add) if i == 1 => Some(case.bf16(forward.x.shape)),
                    _ => None,
                };
                let dx = dx.zip(accumulate).map(|(tensor, accumulate)| Gradient { tensor, accumulate });
                case.agrees(&NormBackward { forward, dy, dx });
            }
        }
    }
}

#[test]
fn a_nan_stays_in_its_row() {
    let mut case = Case::new(3);
    let mut x = vec![0.5f32; 4 * 16];
    (0..x.len()).for_each(|i| x[i] += i as f32 * 0.01);
    x[2 * 16 + 5] = f32::NAN;
    let x = case.values(DType::Bf16, [4, 16], x);
    let kind = kind(&mut case, true, false, 16);
    let y = case.output(DType::Bf16, [4, 16]);
    case.agrees(&Norm { x, rows: None, kind, eps: 1e-6, precision: Precision::Bf16, y });
}

#[test]
fn rows_outside_are_refused_before_a_kernel_reads_them() {
    for bad in [-1, 5] {
        let mut case = Case::new(4);
        let op = norm(&mut case, (5, 24), Some(vec![0, bad]), true, false);
        let mut device = vlm::device::Device::emulated((9, 0)).expect("an emulator");
        case.begin(&mut device).expect("room");
        let said = vlm::ops::Op::forward(&op, &mut device).expect_err("a row outside").to_string();
        assert_eq!(said, format!("norm: rows: wanted 0 to 5 exclusive, got {bad}"));
    }
}

/// Kernels write the gradient in bf16, whatever its tensor is.
#[test]
fn a_gradient_that_is_not_bf16_is_refused() {
    let mut case = Case::new(5);
    let forward = norm(&mut case, (5, 24), None, false, false);
    let (dy, tensor) = (case.bf16([5, 24]), case.output(DType::F32, [5, 24]));
    let dx = Some(Gradient { tensor, accumulate: Accumulate::Overwrite });
    let mut device = vlm::device::Device::emulated((9, 0)).expect("an emulator");
    let said = case.run(&NormBackward { forward, dy, dx }, &mut device).expect_err("f32").to_string();
    assert!(said.contains("norm_backward: precision: wanted bf16") && said.contains("F32"), "{said}");
}
