//! Which kernel a product runs on, and how many blocks it takes: pure functions of sizes, addresses and the device.

use super::arguments::LinearArgs;
use super::plan_few::{FEW_ROWS, cut_few, few_bytes};
pub use super::plan_gradient::{GradientTile, cut_gradients, gradients};
use super::plan_narrow::{cut_narrow, narrow_bytes};
pub(super) use super::plan_sm90::gated;
pub use super::plan_sm90::{HopperTile, logits};
use super::plan_sm90::{hopper_product, hopper_splits};
use crate::device::{Facts, Launch};

/// How the right operand of a product lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// [width, depth]: x W^T.
    Forward,
    /// [depth, width]: dz W.
    Backward,
}

/// The tile of the result that a block owns, and what it takes: the constants of `cuda/linear_product.cuh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tile {
    /// 128 x 128: large products.
    Large,
    /// 64 x 64: where larger tiles would leave multiprocessors without work.
    Small,
    /// 16 x 32: up to 16 rows, where reading the weight is all that counts.
    Few,
    /// 64 x 64, reading element by element: any width and any alignment.
    Any,
}

impl Tile {
    /// Rows, columns, threads, and bytes of shared memory.
    pub(super) fn facts(self) -> (i32, i32, u32, u32) {
        match self {
            Tile::Large => (128, 128, 256, 3 * 2 * 64 * (128 + 128)),
            Tile::Small | Tile::Any => (64, 64, 128, 3 * 2 * 64 * (64 + 64)),
            Tile::Few => (16, 32, 64, 4 * 2 * 128 * (16 + 32)),
        }
    }

    /// Columns of the result that a block owns.
    pub fn columns(self) -> i32 {
        self.facts().1
    }

    fn tiles(self, m: i32, widths: impl Iterator<Item = i32>) -> i32 {
        let (rows, columns, ..) = self.facts();
        parts(m, rows) * widths.map(|w| parts(w, columns)).sum::<i32>()
    }

    pub(super) fn launch(self, kernel: &'static str, tiles: i32, splits: i32) -> Launch {
        let (_, _, block, shared_bytes) = self.facts();
        Launch { kernel, grid: [tiles as u32, splits as u32, 1], block, shared_bytes }
    }
}

/// A launch of `linear`'s products: with tensor maps where the tile is Hopper's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    pub launch: Launch,
    pub hopper: Option<HopperTile>,
}

/// Steps of k that one split of a product sums, at the least.
const SPLIT_DEPTH: i32 = 2048;

/// The kernel for a product of `linear`.
pub fn product(args: &LinearArgs, form: Form, facts: &Facts) -> Plan {
    if let Some(plan) = hopper_product(args, form, facts) {
        return plan;
    }
    let tile = tile(args, form, facts);
    let kernel = match (form, args.drops(), tile) {
        (Form::Forward, false, Tile::Large) => "linear_fwd_128x128_bf16",
        (Form::Forward, false, Tile::Small) => "linear_fwd_64x64_bf16",
        (Form::Forward, false, Tile::Few) => "linear_fwd_16x32_bf16",
        (Form::Forward, false, Tile::Any) => "linear_fwd_any_bf16",
        (Form::Forward, true, Tile::Any) => "linear_fwd_dropout_any_bf16",
        (Form::Forward, true, _) => "linear_fwd_dropout_64x64_bf16",
        (Form::Backward, false, Tile::Large) => "linear_bwd_dx_128x128_bf16",
        (Form::Backward, false, Tile::Small | Tile::Few) => "linear_bwd_dx_64x64_bf16",
        (Form::Backward, false, Tile::Any) => "linear_bwd_dx_any_bf16",
        (Form::Backward, true, Tile::Large) => "linear_bwd_dx_dropout_128x128_bf16",
        (Form::Backward, true, Tile::Small | Tile::Few) => "linear_bwd_dx_dropout_64x64_bf16",
        (Form::Backward, true, Tile::Any) => "linear_bwd_dx_dropout_any_bf16",
    };
    Plan { launch: launch_of(args, tile, kernel), hopper: None }
}

/// The kernel that adds up what the splits of a product left: a thread for eight columns of a band in a row.
pub fn sum(args: &LinearArgs) -> Launch {
    let eights = args.bands().iter().map(|b| i64::from(parts(b.width, 8))).sum::<i64>();
    let blocks = (i64::from(args.m) * eights + 255) / 256;
    let kernel = if aligned(args) { "linear_sum_bf16" } else { "linear_sum_any_bf16" };
    Launch::of(kernel, blocks as u32, 256)
}

/// The product with its k cut where that is faster on Hopper. What the splits leave goes to `partial`, which has room for
/// what [`partial_bytes`] says. With `keeps_parts` a single split of few rows leaves its sums there too.
pub fn cut(args: LinearArgs, form: Form, partial: u64, keeps_parts: bool, facts: &Facts) -> LinearArgs {
    match product(&args, form, facts).hopper {
        Some(HopperTile::Few { .. }) => cut_few(args, partial, keeps_parts, facts),
        Some(HopperTile::Wide { .. } | HopperTile::Narrow { .. }) => cut_narrow(args, form, partial),
        None => args,
    }
}

/// Bytes of the sums that all splits of a product of these widths and depths leave, whichever of Hopper's kernels it takes.
pub fn partial_bytes(m: i32, widths: &[i32], depths: &[i32], form: Form, keeps_parts: bool, facts: &Facts) -> usize {
    match (form, depths.last()) {
        (Form::Forward, Some(depth)) if m <= FEW_ROWS => few_bytes(m, widths, *depth, keeps_parts, facts),
        _ => narrow_bytes(m, widths, depths, form, facts),
    }
}

/// The tile that a product takes on any architecture.
pub fn tile(args: &LinearArgs, form: Form, facts: &Facts) -> Tile {
    let widths = || args.bands().iter().map(|b| b.width);
    if !aligned(args) {
        Tile::Any
    } else if args.drops() && form == Form::Forward {
        Tile::Small
    } else if args.m <= 16 && form == Form::Forward {
        Tile::Few
    } else if args.m > 64 && Tile::Large.tiles(args.m, widths()) * args.splits >= facts.multiprocessors as i32 {
        Tile::Large
    } else {
        Tile::Small
    }
}

/// One block a tile.
pub fn launch_of(args: &LinearArgs, tile: Tile, kernel: &'static str) -> Launch {
    tile.launch(kernel, tile.tiles(args.m, args.bands().iter().map(|b| b.width)), args.splits)
}

/// Into how many parts the depth of a product of one piece is cut, and the depth of a part.
pub fn product_splits(m: i32, width: i32, depth: i32, facts: &Facts) -> (i32, i32) {
    match hopper_splits(m, width, depth, SPLIT_DEPTH, facts) {
        Some(wanted) => sized(depth, wanted, SPLIT_DEPTH),
        None => splits(depth, parts(m, 64) * parts(width, 64), SPLIT_DEPTH, facts),
    }
}

/// Parts of `n` summed elements that give each multiprocessor some, each a multiple of 128 (the longest step) but the last.
pub(super) fn splits(n: i32, tiles: i32, least: i32, facts: &Facts) -> (i32, i32) {
    let multiprocessors = facts.multiprocessors as i32;
    let wanted = if tiles == 0 || tiles >= multiprocessors { 1 } else { parts(2 * multiprocessors, tiles) };
    sized(n, wanted, least)
}

fn sized(n: i32, wanted: i32, least: i32) -> (i32, i32) {
    let size = parts(parts(n, wanted).max(least), 128) * 128;
    (parts(n, size).max(1), size)
}

/// Whether every row begins at a multiple of 16 bytes and every width is a multiple of 8 elements.
pub(super) fn aligned(args: &LinearArgs) -> bool {
    let addresses = [args.added, args.y, args.z, args.wide, args.partial];
    let pieces = args.pieces().all(|(_, p, _)| {
        p.left % 16 == 0 && p.right % 16 == 0 && p.left_stride % 8 == 0 && p.right_stride % 8 == 0 && p.depth % 8 == 0
    });
    let bands = args.bands().iter().all(|b| b.bias % 16 == 0 && b.column % 8 == 0 && b.width % 8 == 0);
    pieces && bands && args.stride % 8 == 0 && addresses.iter().all(|a| a % 16 == 0)
}

pub(super) fn parts(n: i32, of: i32) -> i32 {
    (n + of - 1) / of
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::arguments::{LinearBand, LinearDropout, LinearPiece};
    use super::*;

    pub fn gpu(capability: (i32, i32), multiprocessors: u32) -> Facts {
        let name = "a GPU".into();
        Facts { name, capability, multiprocessors, shared_bytes: 99 << 10, guarded: false, profiled: false }
    }

    pub fn args(m: i32, k: i32, widths: &[i32]) -> LinearArgs {
        let stride = widths.iter().sum::<i32>().into();
        let mut args = LinearArgs { m, stride, splits: 1, ..LinearArgs::default() };
        let mut column = 0;
        for width in widths {
            let piece =
                LinearPiece { left_stride: k.into(), right_stride: k.into(), depth: k, ..LinearPiece::default() };
            args.push(LinearBand { column, width: *width, ..LinearBand::default() }, &[piece]).expect("room");
            column += width;
        }
        args
    }

    #[test]
    fn tiles_follow_sizes_and_device() {
        let (older, hopper) = (gpu((8, 6), 80), gpu((9, 0), 132));
        let kernel = |args: &LinearArgs, form, facts: &Facts| product(args, form, facts).launch.kernel;
        let (forward, backward) = (Form::Forward, Form::Backward);
        assert_eq!(kernel(&args(2764, 4096, &[4096, 1024, 1024]), forward, &older), "linear_fwd_128x128_bf16");
        assert_eq!(kernel(&args(2764, 4096, &[4096]), backward, &older), "linear_bwd_dx_128x128_bf16");
        // one tile of 128 x 128 would leave 79 of 80 without work
        assert_eq!(kernel(&args(100, 4096, &[128]), forward, &older), "linear_fwd_64x64_bf16");
        assert_eq!(kernel(&args(16, 4096, &[6144]), forward, &older), "linear_fwd_16x32_bf16");
        assert_eq!(kernel(&args(16, 4096, &[6144]), backward, &older), "linear_bwd_dx_64x64_bf16");
        assert_eq!(kernel(&args(2764, 67, &[64]), forward, &older), "linear_fwd_any_bf16");
        assert_eq!(kernel(&args(2764, 64, &[68]), backward, &older), "linear_bwd_dx_any_bf16");
        assert_eq!(kernel(&args(2764, 4096, &[4096]), forward, &hopper), "linear_fwd_128x176_sm90_bf16");
        assert_eq!(kernel(&args(512, 4096, &[4096]), backward, &hopper), "linear_bwd_dx_128x128_sm90_bf16");
        assert_eq!(kernel(&args(129, 4096, &[4096]), forward, &hopper), "linear_fwd_128x128_sm90_bf16");
        assert_eq!(kernel(&args(128, 4096, &[4096]), forward, &hopper), "linear_fwd_few_128x128_sm90_bf16");
        assert_eq!(kernel(&args(128, 4096, &[4096]), backward, &hopper), "linear_bwd_dx_128x128_sm90_bf16");
        assert_eq!(kernel(&args(64, 4096, &[4096]), backward, &hopper), "linear_bwd_dx_64x64_bf16");
        for (m, few, older) in [
            (2764, "linear_fwd_128x128_bf16", "linear_fwd_any_bf16"),
            (1, "linear_fwd_16x32_bf16", "linear_fwd_any_bf16"),
        ] {
            let mut gathered = args(m, 4096, &[4096]);
            gathered.pieces[0].gathered = 1;
            assert_eq!(kernel(&gathered, forward, &hopper), few);
            let mut shifted = args(m, 4096, &[4096]);
            shifted.pieces[0].left = 2;
            assert_eq!(kernel(&shifted, forward, &hopper), older);
        }
        assert!(product(&args(0, 64, &[64]), forward, &hopper).launch.is_empty());
    }

    #[test]
    fn dropouts_have_kernels_of_their_own() {
        let (older, hopper) = (gpu((8, 6), 80), gpu((9, 0), 132));
        let dropout = LinearDropout { module: 1, from: 1 << 30, kept: 4.0 / 3.0 };
        let kernel = |m, k, width, form, facts: &Facts| {
            let mut args = args(m, k, &[width]);
            args.pieces[0].dropout = dropout;
            product(&args, form, facts).launch.kernel
        };
        let (forward, backward) = (Form::Forward, Form::Backward);
        // what x drops out of has one kernel for every device and number of rows
        for (m, facts) in [(1, &older), (2764, &older), (2764, &hopper)] {
            assert_eq!(kernel(m, 4096, 64, forward, facts), "linear_fwd_dropout_64x64_bf16");
            assert_eq!(kernel(m, 4095, 64, forward, facts), "linear_fwd_dropout_any_bf16");
        }
        assert_eq!(kernel(2764, 64, 4096, backward, &older), "linear_bwd_dx_dropout_128x128_bf16");
        assert_eq!(kernel(64, 64, 4096, backward, &hopper), "linear_bwd_dx_dropout_64x64_bf16");
        assert_eq!(kernel(2764, 64, 4095, backward, &hopper), "linear_bwd_dx_dropout_any_bf16");
        assert_eq!(kernel(2764, 64, 4096, backward, &hopper), "linear_bwd_dx_dropout_128x256_sm90_bf16");
        assert_eq!(kernel(512, 64, 4096, backward, &hopper), "linear_bwd_dx_dropout_128x128_sm90_bf16");
    }

    #[test]
    fn launches_fit_their_devices() {
        let (older, hopper) = (gpu((8, 6), 80), gpu((9, 0), 132));
        for m in [1, 16, 17, 32, 33, 64, 65, 128, 129, 2764] {
            for widths in [&[8][..], &[67], &[4096, 1024, 1024], &[24576]] {
                for form in [Form::Forward, Form::Backward] {
                    let (a, b) =
                        (product(&args(m, 4096, widths), form, &older), product(&args(m, 64, widths), form, &hopper));
                    assert!(a.hopper.is_none() && a.launch.shared_bytes <= 99 << 10, "{a:?}");
                    assert!(b.launch.shared_bytes <= 227 << 10 && b.launch.grid[0] >= 1, "{b:?}");
                    assert!(b.hopper.is_none() || b.launch.grid[0] <= 132, "{b:?}");
                }
            }
        }
        // 3 x 5 tiles of 128, 6 x 10 of 64: 2 x 2 of the first have work for all
        assert_eq!(product(&args(300, 64, &[600]), Form::Forward, &gpu((8, 0), 4)).launch.grid, [15, 1, 1]);
        assert_eq!(product(&args(300, 64, &[600]), Form::Forward, &older).launch.grid, [50, 1, 1]);
    }

    #[test]
    fn parts_cover_what_is_summed() {
        let facts = gpu((9, 0), 132);
        for n in [0, 1, 127, 128, 129, 255, 256, 257, 2764, 10_416, 151_936] {
            for tiles in [0, 1, 3, 64, 131, 132, 1000] {
                let (parts, size) = splits(n, tiles, 256, &facts);
                assert!(size % 128 == 0 && size >= 256 && parts >= 1);
                assert!(parts * size >= n && (n == 0 || (parts - 1) * size < n), "{n} in {parts} of {size}");
                assert!(tiles < 132 || parts == 1);
            }
        }
        // dx of a loss with four label rows, and of chunks of many, in tiles of 256 columns
        assert_eq!(product_splits(4, 4096, 151_936, &facts), (5, 30_464));
        assert_eq!(product_splits(512, 4096, 151_936, &facts), (2, 76_032));
        assert_eq!(product_splits(128, 4096, 151_936, &facts), (8, 19_072));
        assert_eq!(product_splits(2048, 4096, 151_936, &facts).0, 1);
        assert_eq!(product_splits(512, 4096, 4000, &facts), (1, 4096));
    }
}
