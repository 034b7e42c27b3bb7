//! Hopper's narrow products of many rows, as adapters have: x A^T, whose weights have one tile of columns together, and dy B.
//! A product of 2764 rows leaves most multiprocessors without work. Into how many splits their k is cut: pure functions, as
//! in [`super::plan`].

use super::arguments::{LinearArgs, LinearBand};
use super::plan::{Form, HopperTile, Plan, parts};
use crate::device::Facts;

/// Columns of all bands together up to which a product is narrow.
const COLUMNS: i32 = 256;
/// Tiles that all splits of a row of tiles have at the most: 22 of these, the 2764 rows of the article's step, are as many as
/// an H200 has multiprocessors. A row's sums so depend on the shape alone, and not on the number of rows. Unmeasured.
const TILES: i32 = 6;
/// The depth of a split at the least: eight steps, beside which starting a tile and adding up are short. Unmeasured.
const LEAST_DEPTH: i32 = 512;

/// Columns of a tile that has those of all bands, with its kernel.
const KERNELS: [(i32, &str); 4] = [
    (64, "linear_fwd_narrow_128x64_sm90_bf16"),
    (128, "linear_fwd_narrow_128x128_sm90_bf16"),
    (192, "linear_fwd_narrow_128x192_sm90_bf16"),
    (COLUMNS, "linear_fwd_narrow_128x256_sm90_bf16"),
];

/// The depth of a split, and the splits of the deepest band. Forward all bands share x, and their tile.
fn splits(depths: &[i32], form: Form) -> (i32, i32) {
    let tiles = if form == Form::Forward { &depths[..depths.len().min(1)] } else { depths };
    let deepest = depths.iter().copied().max().unwrap_or(0);
    let mut depth = LEAST_DEPTH;
    // as few splits as that, where there are more bands than tiles
    while depth < deepest && tiles.iter().map(|d| parts(*d, depth)).sum::<i32>() > TILES {
        depth += HopperTile::DEPTH as i32;
    }
    (depth, parts(deepest, depth).max(1))
}

/// Whether the bands are narrow products of one piece.
fn narrow(args: &LinearArgs) -> bool {
    let bands = args.bands();
    let columns = bands.iter().map(|b| b.width).sum::<i32>() <= COLUMNS && args.stride <= i64::from(COLUMNS);
    columns && bands.iter().all(|b| b.end - b.first == 1) && args.scattered == 0
}

/// Whether the bands of a forward product are one product, x times several matrices below each other.
pub(super) fn joined(args: &LinearArgs) -> bool {
    let plain = |b: &LinearBand| b.bias == 0 && b.scaled == 0;
    let beside = |pair: &[LinearBand]| pair[1].column == pair[0].column + pair[0].width;
    let first = args.pieces[0];
    let of_x =
        args.pieces().all(|(_, p, _)| (p.left, p.left_stride, p.depth) == (first.left, first.left_stride, first.depth));
    narrow(args) && of_x && args.bands().iter().all(plain) && args.bands().windows(2).all(beside)
}

/// The launch of a product whose bands are [`joined`].
pub(super) fn narrow_product(args: &LinearArgs, facts: &Facts) -> Plan {
    let width = args.bands().iter().map(|b| b.width).sum::<i32>();
    let (columns, kernel) = KERNELS.into_iter().find(|(columns, _)| width <= *columns).unwrap_or(KERNELS[3]);
    let tile = HopperTile::Narrow { columns: columns as u32 };
    let tiles = parts(args.m, HopperTile::LEFT as i32) * args.splits;
    Plan { launch: tile.launch(kernel, tiles, facts), hopper: Some(tile) }
}

/// A product with its k cut where it is narrow; `partial` has room for what [`narrow_bytes`] says.
pub(super) fn cut_narrow(args: LinearArgs, form: Form, partial: u64) -> LinearArgs {
    let depths: Vec<i32> = args.pieces().map(|(_, piece, _)| piece.depth).collect();
    let (split_depth, splits) = splits(&depths, form);
    if splits == 1 || args.splits > 1 || !narrow(&args) {
        return args;
    }
    LinearArgs { splits, split_depth, partial, ..args }
}

/// Bytes of the sums that all splits of a product leave, where it may be narrow.
pub(super) fn narrow_bytes(m: i32, widths: &[i32], depths: &[i32], form: Form, facts: &Facts) -> usize {
    let (columns, (_, splits)) = (widths.iter().sum::<i32>(), splits(depths, form));
    if !facts.is_hopper() || columns > COLUMNS || splits == 1 {
        return 0;
    }
    size_of::<f32>() * splits as usize * m as usize * columns as usize
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::{args, gpu};
    use super::super::plan::{cut, partial_bytes, product};
    use super::*;

    /// Splits, kernel, blocks, tiles.
    fn planned(args: LinearArgs, form: Form) -> (i32, &'static str, u32) {
        let hopper = gpu((9, 0), 132);
        let args = cut(args, form, 256, false, &hopper);
        let launch = product(&args, form, &hopper).launch;
        (args.splits, launch.kernel, launch.grid[0])
    }

    #[test]
    fn narrow_products_fill_the_multiprocessors() {
        let (forward, backward) = (Form::Forward, Form::Backward);
        // x A^T of q, k and v, and of o, of the article's step: 22 rows of tiles
        assert_eq!(planned(args(2764, 4096, &[64; 3]), forward), (6, "linear_fwd_narrow_128x192_sm90_bf16", 132));
        assert_eq!(planned(args(2764, 4096, &[64]), forward), (6, "linear_fwd_narrow_128x64_sm90_bf16", 132));
        assert_eq!(planned(args(8448, 12_288, &[16]), forward), (6, "linear_fwd_narrow_128x64_sm90_bf16", 132));
        assert_eq!(planned(args(2764, 4096, &[72, 8]), forward), (6, "linear_fwd_narrow_128x128_sm90_bf16", 132));
        assert_eq!(planned(args(2764, 4096, &[64; 4]), forward), (6, "linear_fwd_narrow_128x256_sm90_bf16", 132));
        // a short one has fewer tiles
        assert_eq!(planned(args(2764, 1024, &[64]), forward), (2, "linear_fwd_narrow_128x64_sm90_bf16", 44));
        assert_eq!(planned(args(2764, 512, &[64]), forward), (1, "linear_fwd_narrow_128x64_sm90_bf16", 22));
        // dy B, of which k and v have less depth, and of o
        let mut dy = args(2764, 4096, &[64; 3]);
        dy.pieces[1].depth = 1024;
        dy.pieces[2].depth = 1024;
        assert_eq!((planned(dy, backward).0, planned(dy, backward).2), (4, 132));
        assert_eq!(splits(&[4096, 1024, 1024], backward), (1024, 4));
        assert_eq!(planned(args(2764, 4096, &[64]), backward).0, 6);
        // what is wide or has another form has other plans
        assert_eq!(planned(args(2764, 4096, &[256, 8]), forward).0, 1);
        assert_eq!(planned(args(2764, 4096, &[4096]), backward).0, 1);
        let mut biased = args(2764, 4096, &[64; 2]);
        biased.bands[1].bias = 256;
        assert_eq!(planned(biased, forward), (6, "linear_fwd_128x128_sm90_bf16", 132));
        let older = gpu((8, 6), 80);
        assert_eq!(cut(args(2764, 4096, &[64]), forward, 256, false, &older).splits, 1);
    }

    #[test]
    fn splits_are_whole_steps_and_cover_the_depth() {
        for form in [Form::Forward, Form::Backward] {
            for depths in [&[8][..], &[512], &[520], &[4096, 1024, 1024], &[4096; 4], &[12_288, 8], &[151_936]] {
                let (depth, n) = splits(depths, form);
                let deepest = depths.iter().copied().max().unwrap_or(0);
                assert!(depth % 64 == 0 && depth >= LEAST_DEPTH, "{depths:?}: {depth}");
                assert!(n * depth >= deepest && (n == 1 || (n - 1) * depth < deepest), "{depths:?}: {n} of {depth}");
                let own = if form == Form::Forward { &depths[..1] } else { depths };
                assert!(own.iter().map(|d| parts(*d, depth)).sum::<i32>() <= TILES.max(own.len() as i32));
            }
        }
    }

    #[test]
    fn what_is_cut_has_its_room() {
        let hopper = gpu((9, 0), 132);
        for m in [65, 128, 129, 300, 2764, 100_000, 600_000] {
            for (widths, depths) in
                [(&[8][..], &[1032][..]), (&[64, 64, 64], &[4096, 1024, 1024]), (&[128, 128], &[2048; 2])]
            {
                for form in [Form::Forward, Form::Backward] {
                    let mut product = args(m, depths[0], widths);
                    for (piece, depth) in product.pieces.iter_mut().zip(depths) {
                        piece.depth = *depth;
                    }
                    let few = form == Form::Forward && m <= 128;
                    let cut = cut(product, form, 256, false, &hopper);
                    if few || cut.splits == 1 {
                        continue;
                    }
                    let bytes = 4 * cut.splits as usize * m as usize * cut.stride as usize;
                    assert_eq!(partial_bytes(m, widths, depths, form, false, &hopper), bytes, "{m} {widths:?}");
                }
            }
        }
    }
}
