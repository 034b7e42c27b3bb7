//! The kernels of `patch_embed` against the host, in the emulator.

use crate::support::kernels::Case;
use std::collections::BTreeSet;
use vlm::base::{DType, Precision};
use vlm::device::Device;
use vlm::ops::Op;
use vlm::ops::patch_embed::{PatchEmbed, PatchEmbedBackward};

/// Patches, pixels of one, width, rows of the table.
const SHAPES: [(usize, usize, usize, usize); 8] = [
    (1, 1, 1, 1),
    (3, 7, 5, 4),
    (16, 48, 40, 9),
    (64, 72, 64, 16),
    (65, 96, 136, 25),
    (130, 64, 264, 9),
    (129, 27, 131, 4),
    (0, 8, 16, 4),
];

fn patch_embed(case: &mut Case, (p, k, c, n): (usize, usize, usize, usize), trained: bool) -> PatchEmbed {
    let pixels = case.bf16([p, k]);
    let of = |case: &mut Case, name: &str, rows: Option<usize>, width: usize, deviation: f64| {
        let shape: Vec<usize> = rows.into_iter().chain([width]).collect();
        let shape = match shape[..] {
            [rows, width] => vlm::base::Shape::from([rows, width]),
            _ => vlm::base::Shape::from([width]),
        };
        if trained { case.trained(name, shape, deviation) } else { case.weight(name, shape, deviation) }
    };
    let weight = of(case, "weight", Some(c), k, 1.0 / (k as f64).sqrt());
    let bias = of(case, "bias", None, c, 1.0);
    let table = of(case, "table", Some(n), c, 1.0);
    let corners = (0..4 * p).map(|_| case.random().below(n) as i32).collect();
    let corners = case.whole([p, 4], corners);
    let shares = case.numbers(DType::F32, [p, 4], 0.25);
    let y = case.output(DType::Bf16, [p, c]);
    PatchEmbed { pixels, weight, bias, table, corners, shares, precision: Precision::Bf16, y }
}

#[test]
fn forward_agrees_with_the_host() {
    for (seed, shape) in SHAPES.into_iter().enumerate() {
        let mut case = Case::new(seed as u64);
        let op = patch_embed(&mut case, shape, false);
        case.agrees(&op);
    }
}

#[test]
fn backward_agrees_with_the_host() {
    // the last has several parts of batch rows
    for (seed, shape) in SHAPES.into_iter().chain([(600, 24, 16, 9)]).enumerate() {
        let mut case = Case::new(seed as u64);
        let forward = patch_embed(&mut case, shape, true);
        let dy = case.bf16(forward.y.shape);
        case.agrees(&PatchEmbedBackward { forward, dy });
    }
}

#[test]
fn every_kernel_runs() {
    let mut ran = BTreeSet::new();
    for (seed, shape) in SHAPES.into_iter().enumerate() {
        let mut case = Case::new(seed as u64);
        let op = patch_embed(&mut case, shape, false);
        let mut device = Device::emulated((8, 6)).expect("an emulator");
        case.begin(&mut device).expect("memory");
        op.forward(&mut device).expect("patch_embed");
        ran.extend(device.launches().into_keys());
    }
    let wanted = ["patch_embed_fwd_128x128_bf16", "patch_embed_fwd_64x64_bf16", "patch_embed_fwd_any_bf16"];
    assert_eq!(ran.into_iter().collect::<Vec<_>>(), wanted);
}
