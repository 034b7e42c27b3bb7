//! Hopper's products of few rows, which are as fast as their weights are read: which kernel, and into how many splits k
//! is cut: pure functions, as in [`super::plan`].

use super::arguments::LinearArgs;
use super::plan::{HopperTile, Plan, parts};
use crate::device::Facts;

/// Rows of a product up to which the weight is the left operand.
pub(super) const FEW_ROWS: i32 = 128;

/// Rows of a tile with its kernel. They differ in how much of x they read, and in nothing that a sum sees.
const KERNELS: [(i32, &str); 4] = [
    (16, "linear_fwd_few_16x128_sm90_bf16"),
    (32, "linear_fwd_few_32x128_sm90_bf16"),
    (64, "linear_fwd_few_64x128_sm90_bf16"),
    (FEW_ROWS, "linear_fwd_few_128x128_sm90_bf16"),
];

const LEFT: i32 = HopperTile::LEFT as i32;
const DEPTH: i32 = HopperTile::DEPTH as i32;
/// Bytes of the weight in a step of a tile.
const STEP_BYTES: i64 = 2 * (LEFT * DEPTH) as i64;
/// What the arrivals take, and the last sums, in steps of all multiprocessors. Unmeasured.
const SUM_STEPS: i64 = 2;
/// Bytes of a split's sums that a column of y costs, written and read again, were there 64 rows.
const PART_BYTES: i64 = 2 * 4 * 64;

/// The kernel of the least tile that holds all rows.
pub(super) fn few_product(args: &LinearArgs, facts: &Facts) -> Plan {
    let (rows, kernel) = KERNELS.into_iter().find(|(rows, _)| args.m <= *rows).unwrap_or(KERNELS[3]);
    let tile = HopperTile::Few { rows: rows as u32 };
    let tiles = parts(args.m, rows) * tiles(args.bands().iter().map(|b| b.width)) * args.splits;
    Plan { launch: tile.launch(kernel, tiles, facts), hopper: Some(tile) }
}

fn tiles(widths: impl Iterator<Item = i32>) -> i32 {
    widths.map(|width| parts(width, LEFT)).sum()
}

/// Into how many splits the depth of a weight is cut, and the depth of a split, a multiple of 64: what costs the least
/// when every multiprocessor gets its share of the memory's bandwidth. It does not depend on the number of rows, so a
/// row's sums do not either.
pub(super) fn splits(widths: &[i32], depth: i32, facts: &Facts) -> (i32, i32) {
    let multiprocessors = facts.multiprocessors as i32;
    let (tiles, columns) = (tiles(widths.iter().copied()), i64::from(widths.iter().sum::<i32>()));
    let all = parts(depth, DEPTH).max(1);
    let cost = |steps: i32| {
        let splits = parts(all, steps);
        let waves = i64::from(parts(tiles * splits, multiprocessors));
        let second = if splits > 1 { SUM_STEPS } else { 0 };
        let parts_bytes = if splits > 1 { i64::from(splits) * columns * PART_BYTES } else { 0 };
        (waves * i64::from(steps) + second) * i64::from(multiprocessors) * STEP_BYTES + parts_bytes
    };
    let steps = (1..=all).rev().min_by_key(|steps| cost(*steps)).unwrap_or(all);
    (parts(all, steps), steps * DEPTH)
}

/// A product of few rows with its k cut; `partial` has room for what [`few_bytes`] says. With `keeps_parts` a single split
/// leaves its sums there too.
pub(super) fn cut_few(args: LinearArgs, partial: u64, keeps_parts: bool, facts: &Facts) -> LinearArgs {
    let Some(last) = args.bands().last() else { return args };
    // all bands share x, and so the depth of their last pieces
    let widths: Vec<i32> = args.bands().iter().map(|b| b.width).collect();
    let (splits, split_depth) = splits(&widths, args.pieces[last.end as usize - 1].depth, facts);
    LinearArgs { splits, split_depth, partial: if splits > 1 || keeps_parts { partial } else { 0 }, ..args }
}

/// How many counters a product of few rows has: of each half of a tile, and one for all of these.
pub(super) fn counters(args: &LinearArgs) -> usize {
    2 * tiles(args.bands().iter().map(|b| b.width)) as usize + 1
}

/// Bytes of the sums that all splits of a product x W^T leave; with `keeps_parts` also a single one.
pub(super) fn few_bytes(m: i32, widths: &[i32], depth: i32, keeps_parts: bool, facts: &Facts) -> usize {
    if !facts.is_hopper() || m > FEW_ROWS {
        return 0;
    }
    let columns = widths.iter().sum::<i32>() as usize;
    match splits(widths, depth, facts).0 as usize {
        1 if !keeps_parts => 0,
        splits => size_of::<f32>() * splits * m as usize * columns,
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::{args, gpu};
    use super::super::plan::{Form, cut, product};
    use super::*;

    #[test]
    fn splits_fill_the_multiprocessors() {
        let hopper = gpu((9, 0), 132);
        // of the 8B, 4B and 2B models qkv, o, gate and up, down; the head; the A of adapters
        for (widths, depth, wanted) in [
            (&[4096, 1024, 1024][..], 4096, (5, 832)),
            (&[4096], 4096, (4, 1024)),
            (&[12_288, 12_288], 4096, (2, 2048)),
            (&[4096], 12_288, (4, 3072)),
            (&[151_936], 4096, (1, 4096)),
            (&[64, 64, 64], 4096, (32, 128)),
            (&[2560], 4096, (6, 704)),
            (&[2048, 1024, 1024], 2048, (4, 512)),
            (&[2048], 2048, (8, 256)),
            (&[6144, 6144], 2048, (1, 2048)),
            (&[8], 8, (1, 64)),
        ] {
            assert_eq!(splits(widths, depth, &hopper), wanted, "{widths:?} {depth}");
        }
        // of the multiprocessors' time until the last wave is done, what is spent on steps that are wanted
        let fill = |width: i32, depth: i32| {
            let (splits, split_depth) = splits(&[width], depth, &hopper);
            let waves = parts(parts(width, 128) * splits, 132);
            f64::from(width) / 128.0 * f64::from(depth) / f64::from(132 * waves * split_depth)
        };
        for (width, depth) in [(4096, 4096), (24_576, 4096), (4096, 12_288), (151_936, 4096)] {
            assert!(fill(width, depth) >= 0.96, "{width} {depth}: {}", fill(width, depth));
        }
        assert!(fill(6144, 4096) >= 0.89);
    }

    #[test]
    fn splits_cover_the_depth_whatever_the_rows() {
        for multiprocessors in [1, 4, 78, 132] {
            let facts = gpu((9, 0), multiprocessors);
            for depth in [0, 8, 64, 72, 264, 1600, 4096, 9728] {
                for widths in [&[8][..], &[136, 24], &[2560], &[24_576]] {
                    let (n, size) = splits(widths, depth, &facts);
                    assert!(n >= 1 && size % 64 == 0 && n * size >= depth && (n - 1) * size < depth.max(1));
                    for m in [1, 16, 17, 32, 33, 64, 65, 128] {
                        let product = cut(args(m, depth, widths), Form::Forward, 256, false, &facts);
                        assert_eq!((product.splits, product.split_depth), (n, size), "{m} {widths:?} {depth}");
                        assert_eq!(product.partial, if n > 1 { 256 } else { 0 });
                        let columns = widths.iter().sum::<i32>();
                        let bytes = if n > 1 { 4 * n * m * columns } else { 0 };
                        assert_eq!(few_bytes(m, widths, depth, false, &facts), bytes as usize);
                    }
                }
            }
        }
    }

    #[test]
    fn few_rows_take_the_least_tile_that_holds_them() {
        let (older, hopper) = (gpu((8, 6), 80), gpu((9, 0), 132));
        for (m, rows) in [(1, 16), (16, 16), (17, 32), (32, 32), (33, 64), (64, 64), (65, 128), (128, 128)] {
            let product = cut(args(m, 4096, &[4096]), Form::Forward, 256, false, &hopper);
            let plan = few_product(&product, &hopper);
            assert_eq!(plan.hopper, Some(HopperTile::Few { rows }));
            assert_eq!(
                (plan.launch.kernel, plan.launch.grid),
                (KERNELS.map(|(_, k)| k)[rows.ilog2() as usize - 4], [128, 1, 1])
            );
        }
        // nothing is cut of other products
        let uncut = |product: LinearArgs, facts| cut(product, Form::Forward, 256, true, facts) == product;
        assert!(uncut(args(16, 4096, &[4096]), &older) && uncut(args(129, 4096, &[4096]), &hopper));
        assert!(uncut(args(16, 4095, &[4096]), &hopper));
        // as many columns as there are counters for, and one more
        let wide = |columns| product(&args(1, 64, &[columns]), Form::Forward, &hopper).hopper;
        assert_eq!(wide(4095 * 128), Some(HopperTile::Few { rows: 16 }));
        assert_eq!(wide(4095 * 128 + 8), None);
        assert_eq!(few_bytes(16, &[4096], 4096, true, &older), 0);
        assert_eq!(few_bytes(129, &[4096], 4096, true, &hopper), 0);
    }
}
