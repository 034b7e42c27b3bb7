//! Hopper's narrow products of many rows, as adapters have: x A^T and dy B have a tile or two of columns, so that a product
//! of 2764 rows leaves most multiprocessors without work. Into how many splits their k is cut: pure functions, as in
//! [`super::plan`].

use super::arguments::LinearArgs;
use super::plan::{HopperTile, parts};
use crate::device::Facts;
use crate::device::accelerator::COUNTERS;

/// Columns of all bands together up to which a product is narrow.
const COLUMNS: i32 = 256;
/// The depth of a split, of any narrow product: sixteen steps, beside which starting a tile and adding up are short. A row's
/// sums so depend on the shape alone. Unmeasured.
const DEPTH: i32 = 1024;

fn splits(depths: impl Iterator<Item = i32>) -> i32 {
    depths.map(|depth| parts(depth, DEPTH)).max().unwrap_or(1)
}

/// How many halves of tiles of so many columns, which a warpgroup has each, a split has.
fn halves(args: &LinearArgs, columns: i32) -> i32 {
    2 * parts(args.m, HopperTile::LEFT as i32) * args.bands().iter().map(|b| parts(b.width, columns)).sum::<i32>()
}

/// Whether a product in tiles of so many columns adds its splits up itself: there is a counter for each half of a tile.
pub fn adds_up(args: &LinearArgs, columns: i32) -> bool {
    args.splits > 1 && halves(args, columns) as usize <= COUNTERS
}

/// A product in Hopper's tiles of so many columns with its k cut where it is narrow; `partial` has room for what
/// [`narrow_bytes`] says.
pub(super) fn cut_narrow(args: LinearArgs, columns: i32, partial: u64) -> LinearArgs {
    let bands = args.bands();
    let narrow = bands.iter().map(|b| b.width).sum::<i32>() <= COLUMNS && args.stride <= i64::from(COLUMNS);
    let single = bands.iter().all(|b| b.end - b.first == 1) && args.scattered == 0 && args.splits == 1;
    let splits = splits(args.pieces().map(|(_, piece, _)| piece.depth));
    let cut = LinearArgs { splits, split_depth: DEPTH, partial, ..args };
    if narrow && single && adds_up(&cut, columns) { cut } else { args }
}

/// Bytes of the sums that all splits of a product leave, where it may be narrow.
pub(super) fn narrow_bytes(m: i32, widths: &[i32], depths: &[i32], facts: &Facts) -> usize {
    let (columns, splits) = (widths.iter().sum::<i32>(), splits(depths.iter().copied()));
    if !facts.is_hopper() || columns > COLUMNS || splits == 1 {
        return 0;
    }
    size_of::<f32>() * splits as usize * m as usize * columns as usize
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::{args, gpu};
    use super::super::plan::{Form, cut, partial_bytes, product};
    use super::*;

    #[test]
    fn narrow_products_fill_the_multiprocessors() {
        let hopper = gpu((9, 0), 132);
        let of = |args: LinearArgs, form| {
            let args = cut(args, form, 256, false, &hopper);
            (args.splits, product(&args, form, &hopper).launch.grid[0])
        };
        // x A^T of q, k and v, and of o, of the article's step
        assert_eq!(of(args(2764, 4096, &[64, 64, 64]), Form::Forward), (4, 132));
        assert_eq!(of(args(2764, 4096, &[64]), Form::Forward), (4, 88));
        assert_eq!(of(args(8448, 12_288, &[16]), Form::Forward), (12, 132));
        // dy B, of which k and v have less depth
        let mut dy = args(2764, 4096, &[64, 64, 64]);
        dy.pieces[1].depth = 1024;
        dy.pieces[2].depth = 1024;
        assert_eq!(of(dy, Form::Backward), (4, 132));
        // what is wide, or short, or of few rows has other plans
        assert_eq!(of(args(2764, 4096, &[256, 8]), Form::Forward).0, 1);
        assert_eq!(of(args(2764, 1024, &[64]), Form::Forward).0, 1);
        assert_eq!(of(args(2764, 4096, &[4096]), Form::Backward).0, 1);
        let older = gpu((8, 6), 80);
        assert_eq!(cut(args(2764, 4096, &[64]), Form::Forward, 256, false, &older).splits, 1);
    }

    #[test]
    fn what_is_cut_has_its_counters_and_its_room() {
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
                    let cut = cut(product, form, 256, false, &hopper);
                    if cut.split_depth != DEPTH || cut.splits == 1 {
                        continue;
                    }
                    let bytes = 4 * cut.splits as usize * m as usize * cut.stride as usize;
                    assert_eq!(partial_bytes(m, widths, depths, form, false, &hopper), bytes, "{m} {widths:?}");
                    assert!(2 * parts(m, 128) as usize * widths.len() <= COUNTERS, "{m} {widths:?}");
                }
            }
        }
    }
}
