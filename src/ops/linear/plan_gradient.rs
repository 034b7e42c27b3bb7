//! Which kernel gradients of weights run on, and into how many parts their batch rows are cut: pure functions, as in
//! [`super::plan`].

use super::arguments::{LinearGradientArgs, LinearGradientBand};
use super::plan::{HopperTile, Tile, parts, splits};
use crate::device::{Facts, Launch};

/// The tile of gradients that a block of Hopper's kernel owns, with the wider of both operands on the left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GradientTile {
    /// 128 rows and so many columns of one gradient.
    Alone { columns: u32 },
    /// So many rows of all gradients, which lie below each other, and 128 columns.
    Together { rows: u32 },
}

/// A launch of gradients: with tensor maps where the tile is Hopper's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GradientPlan {
    pub launch: Launch,
    pub hopper: Option<GradientTile>,
}

/// Widths of the narrower operand that one tile has, with their kernels.
const ALONE: [(u32, &str); 3] = [
    (64, "linear_bwd_dw_128x64_sm90_bf16"),
    (128, "linear_bwd_dw_128x128_sm90_bf16"),
    (256, "linear_bwd_dw_128x256_sm90_bf16"),
];
const TOGETHER: [(u32, &str); 4] = [
    (64, "linear_bwd_da_64x128_sm90_bf16"),
    (128, "linear_bwd_da_128x128_sm90_bf16"),
    (192, "linear_bwd_da_192x128_sm90_bf16"),
    (256, "linear_bwd_da_256x128_sm90_bf16"),
];

/// Rows of the batch that one split of other kernels sums, at the least.
const SPLIT_ROWS: i32 = 256;
/// Splits of Hopper's kernel at the most: more would be read again for longer than they save.
const SPLITS: i32 = 16;
/// What the start and the end of a tile take, in steps. Unmeasured.
const TILE_STEPS: i64 = 2;
/// What the L2 cache could bring each multiprocessor in the time that the second launch takes to begin. Unmeasured.
const LAUNCH_BYTES: i64 = 90_000;

/// Whether a launch of Hopper's can compute these gradients: the threads of its kernel never touch x, so that nothing of
/// it can drop out there, and no row of it be picked.
fn by_hopper(args: &LinearGradientArgs, facts: &Facts) -> bool {
    let plain = |b: &LinearGradientBand| b.gathered == 0 && !b.dropout.drops() && b.gradient.is_multiple_of(16);
    facts.is_hopper() && aligned(args) && args.partial.is_multiple_of(16) && args.bands().iter().all(plain)
}

fn aligned(args: &LinearGradientArgs) -> bool {
    let of = |b: &LinearGradientBand| {
        let addresses = [b.left, b.right].iter().all(|a| a % 16 == 0);
        addresses && b.right_stride % 8 == 0 && b.height % 8 == 0 && b.width % 8 == 0
    };
    args.left_stride % 8 == 0 && args.bands().iter().all(of)
}

/// The tile of Hopper's kernel, its kernel, and how many of them a split has.
fn hopper_tile(args: &LinearGradientArgs) -> (GradientTile, &'static str, i32) {
    let bands = args.bands();
    let (rows, left) = (bands.iter().map(|b| b.height).sum::<i32>(), HopperTile::LEFT as i32);
    let beside = |pair: &[LinearGradientBand]| {
        let (a, b) = (&pair[0], &pair[1]);
        b.left == a.left + 2 * a.height as u64
            && (b.right, b.right_stride, b.width) == (a.right, a.right_stride, a.width)
    };
    let least = |choices: &[(u32, &'static str)], n: i32| {
        *choices.iter().find(|(columns, _)| n <= *columns as i32).unwrap_or(&choices[choices.len() - 1])
    };
    if bands.windows(2).all(beside) && rows < bands[0].width {
        let (n, kernel) = least(&TOGETHER, rows);
        return (GradientTile::Together { rows: n }, kernel, parts(bands[0].width, left) * parts(rows, n as i32));
    }
    let (n, kernel) = least(&ALONE, bands.iter().map(|b| b.width).max().unwrap_or(0));
    let tiles = bands.iter().map(|b| parts(b.height, left) * parts(b.width, n as i32)).sum();
    (GradientTile::Alone { columns: n }, kernel, tiles)
}

/// The gradients with their batch rows cut, where `partial` has room for [`LinearGradientArgs::partial_bytes`]. A part is
/// a number of whole steps, which the sizes alone decide.
pub fn cut_gradients(args: LinearGradientArgs, partial: u64, facts: &Facts) -> LinearGradientArgs {
    let (splits, split_rows) = if args.n_bands == 0 {
        (1, args.m)
    } else if by_hopper(&args, facts) {
        hopper_splits(&args, facts)
    } else {
        // more than one where there would be less than a tile of 64 x 64 for each multiprocessor
        let tiles = args.bands().iter().map(|b| parts(b.height, 64) * parts(b.width, 64)).sum();
        splits(args.m, tiles, SPLIT_ROWS, facts)
    };
    LinearGradientArgs { splits, split_rows, partial: if splits > 1 { partial } else { 0 }, ..args }
}

/// Into how many parts Hopper's kernel cuts the batch rows, and the rows of a part: what is read and added up in the least
/// time, where the L2 cache brings each multiprocessor its share.
fn hopper_splits(args: &LinearGradientArgs, facts: &Facts) -> (i32, i32) {
    let (tile, _, tiles) = hopper_tile(args);
    let (multiprocessors, depth) = (facts.multiprocessors as i32, HopperTile::DEPTH as i32);
    let all = parts(args.m, depth).max(1);
    let cut = |n: i32| (parts(all, parts(all, n)), parts(all, n));
    let cost = |(splits, steps): &(i32, i32)| {
        let waves = i64::from(parts(tiles * splits, multiprocessors));
        let first = waves * (i64::from(*steps) + TILE_STEPS) * tile.step_bytes();
        // each part is written and read
        let (second, summed) =
            if *splits > 1 { (LAUNCH_BYTES, 8 * i64::from(*splits) * args.partial_size) } else { (0, 0) };
        i64::from(multiprocessors) * (first + second) + summed
    };
    let (splits, steps) = (1..=SPLITS).map(cut).min_by_key(cost).unwrap_or((1, all));
    (splits, steps * depth)
}

impl GradientTile {
    /// Columns of the narrower operand.
    fn columns(self) -> u32 {
        match self {
            GradientTile::Alone { columns } => columns,
            GradientTile::Together { rows } => rows,
        }
    }

    /// Bytes of both operands in a step.
    fn step_bytes(self) -> i64 {
        i64::from(2 * HopperTile::DEPTH * (HopperTile::LEFT + self.columns()))
    }
}

/// The kernel for gradients of weights.
pub fn gradients(args: &LinearGradientArgs, facts: &Facts) -> GradientPlan {
    let bands = args.bands();
    if args.m == 0 || bands.is_empty() {
        return GradientPlan { launch: Launch::of("linear_bwd_dw_64x64_bf16", 0, 128), hopper: None };
    }
    if by_hopper(args, facts) {
        let (tile, kernel, tiles) = hopper_tile(args);
        let launch = HopperTile::Wide { columns: tile.columns() }.launch(kernel, tiles * args.splits, facts);
        return GradientPlan { launch, hopper: Some(tile) };
    }
    let drops = bands.iter().any(|b| b.dropout.drops());
    let large = !drops && bands.iter().all(|b| b.height >= 128 && b.width >= 128);
    let tiles = |rows, columns| bands.iter().map(|b| parts(b.height, rows) * parts(b.width, columns)).sum::<i32>();
    let (tile, kernel) = if !aligned(args) {
        (Tile::Any, if drops { "linear_bwd_dw_dropout_any_bf16" } else { "linear_bwd_dw_any_bf16" })
    } else if large && tiles(128, 128) * args.splits >= facts.multiprocessors as i32 {
        (Tile::Large, "linear_bwd_dw_128x128_bf16")
    } else {
        (Tile::Small, if drops { "linear_bwd_dw_dropout_64x64_bf16" } else { "linear_bwd_dw_64x64_bf16" })
    };
    let (rows, columns, ..) = tile.facts();
    GradientPlan { launch: tile.launch(kernel, tiles(rows, columns), args.splits), hopper: None }
}

#[cfg(test)]
mod tests {
    use super::super::arguments::LinearDropout;
    use super::super::plan::tests::gpu;
    use super::*;

    /// Gradients of these heights and widths; with `shared` of one right operand, their left ones side by side.
    fn args(m: i32, sizes: &[(i32, i32)], shared: bool) -> LinearGradientArgs {
        let left_stride = sizes.iter().map(|(height, _)| i64::from(*height)).sum();
        let mut args = LinearGradientArgs { left_stride, m, splits: 1, split_rows: m, ..LinearGradientArgs::default() };
        let mut left = 0;
        for (i, (height, width)) in sizes.iter().enumerate() {
            let right = if shared { 0 } else { 2 * 64 * i as u64 };
            let (right_stride, scale) = (i64::from(*width), 1.0);
            let band = LinearGradientBand { right_stride, scale, height: *height, width: *width, ..Default::default() };
            args.push(LinearGradientBand { left, right, ..band }).expect("room");
            left += 2 * *height as u64;
        }
        args
    }

    /// Splits, rows of a split, kernel, blocks.
    fn planned(args: LinearGradientArgs, facts: &Facts) -> (i32, i32, &'static str, u32) {
        let args = cut_gradients(args, 256, facts);
        let launch = gradients(&args, facts).launch;
        (args.splits, args.split_rows, launch.kernel, launch.grid[0] * launch.grid[1])
    }

    #[test]
    fn adapters_fill_hoppers_multiprocessors() {
        let facts = gpu((9, 0), 132);
        // of q, k and v and of o of the article's step: dA of all in 32 tiles, dB in 48 and 32
        let da = args(2764, &[(64, 4096); 3], true);
        assert_eq!(hopper_tile(&da).2, 32);
        assert_eq!(planned(da, &facts), (4, 704, "linear_bwd_da_192x128_sm90_bf16", 128));
        let da = args(2764, &[(64, 4096)], true);
        assert_eq!(planned(da, &facts), (4, 704, "linear_bwd_da_64x128_sm90_bf16", 128));
        let db = args(2764, &[(4096, 64), (1024, 64), (1024, 64)], false);
        assert_eq!(hopper_tile(&db).2, 48);
        assert_eq!(planned(db, &facts), (2, 1408, "linear_bwd_dw_128x64_sm90_bf16", 96));
        let db = args(2764, &[(4096, 64)], false);
        assert_eq!(planned(db, &facts), (4, 704, "linear_bwd_dw_128x64_sm90_bf16", 128));
        // rank 16, other ranks, and more of them than a tile has
        assert_eq!(planned(args(8448, &[(16, 12_288)], true), &facts).2, "linear_bwd_da_64x128_sm90_bf16");
        assert_eq!(planned(args(2764, &[(72, 4096), (8, 4096)], true), &facts).2, "linear_bwd_da_128x128_sm90_bf16");
        assert_eq!(planned(args(2764, &[(128, 4096); 2], true), &facts).2, "linear_bwd_da_256x128_sm90_bf16");
        assert_eq!(hopper_tile(&args(2764, &[(128, 4096); 4], true)).2, 64);
        assert_eq!(planned(args(2764, &[(4096, 128), (1024, 72)], false), &facts).2, "linear_bwd_dw_128x128_sm90_bf16");
        // whole weights, and those of x whose gradients do not lie side by side
        assert_eq!(
            planned(args(2764, &[(4096, 4096)], true), &facts),
            (1, 2816, "linear_bwd_dw_128x256_sm90_bf16", 132)
        );
        let mut apart = args(2764, &[(64, 4096); 2], true);
        apart.bands[1].left += 128;
        assert_eq!(planned(apart, &facts).2, "linear_bwd_dw_128x256_sm90_bf16");
    }

    #[test]
    fn what_hoppers_kernel_cannot_do_others_do() {
        let (older, hopper) = (gpu((8, 6), 80), gpu((9, 0), 132));
        let of = |args: &LinearGradientArgs, facts| gradients(args, facts).launch.kernel;
        let whole = args(2764, &[(4096, 4096)], false);
        assert_eq!(of(&whole, &older), "linear_bwd_dw_128x128_bf16");
        assert_eq!(of(&args(2764, &[(64, 4096)], false), &older), "linear_bwd_dw_64x64_bf16");
        assert_eq!(of(&args(2764, &[(4096, 67)], false), &hopper), "linear_bwd_dw_any_bf16");
        let [mut gathered, mut dropped, mut shifted] = [whole; 3];
        gathered.bands[0].gathered = 1;
        dropped.bands[0].dropout = LinearDropout { module: 1, from: 1 << 30, kept: 4.0 / 3.0 };
        shifted.bands[0].gradient = 8;
        assert_eq!(of(&gathered, &hopper), "linear_bwd_dw_128x128_bf16");
        assert_eq!(of(&dropped, &hopper), "linear_bwd_dw_dropout_64x64_bf16");
        assert_eq!(of(&shifted, &hopper), "linear_bwd_dw_128x128_bf16");
        dropped.bands[0].width = 67;
        assert_eq!(of(&dropped, &hopper), "linear_bwd_dw_dropout_any_bf16");
        // dA of rank 64 on 4096 inputs: 64 tiles for 132 multiprocessors
        let mut da = args(2764, &[(64, 4096)], false);
        da.bands[0].gathered = 1;
        assert_eq!(planned(da, &hopper), (5, 640, "linear_bwd_dw_64x64_bf16", 5 * 64));
        assert!(gradients(&args(0, &[(64, 64)], false), &hopper).launch.is_empty());
        assert!(gradients(&args(64, &[], false), &hopper).launch.is_empty());
    }

    #[test]
    fn parts_are_whole_steps_and_cover_the_batch() {
        for multiprocessors in [1, 78, 132] {
            let facts = gpu((9, 0), multiprocessors);
            for m in [1, 63, 64, 65, 128, 300, 2764, 10_416, 151_936] {
                for sizes in [&[(64, 4096); 3][..], &[(4096, 64), (1024, 64)], &[(8, 8)], &[(4096, 4096)]] {
                    let shared = sizes[0].0 <= sizes[0].1;
                    let cut = cut_gradients(args(m, sizes, shared), 256, &facts);
                    assert!(cut.splits >= 1 && cut.split_rows % 64 == 0, "{cut:?}");
                    assert!(cut.splits * cut.split_rows >= m && (cut.splits - 1) * cut.split_rows < m, "{cut:?}");
                    assert_eq!(cut.partial, if cut.splits > 1 { 256 } else { 0 });
                    let bytes = if cut.splits > 1 { 4 * i64::from(cut.splits) * cut.partial_size } else { 0 };
                    assert_eq!(cut.partial_bytes(), bytes as usize);
                    let launch = gradients(&cut, &facts).launch;
                    assert!(launch.grid[0] <= multiprocessors && launch.shared_bytes <= 227 << 10, "{launch:?}");
                }
            }
        }
    }
}
