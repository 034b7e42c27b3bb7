//! Which of Hopper's kernels a product runs on, and with how wide tiles: pure functions, as in [`super::plan`].

use super::arguments::{LinearArgs, LinearBand};
use super::plan::{Form, Plan, aligned, parts};
use super::plan_few::{FEW_ROWS, counters, few_product};
use super::plan_narrow::{joined, narrow_product};
use crate::device::accelerator::COUNTERS;
use crate::device::{Facts, Launch};

/// Tiles of the result that Hopper's kernel computes, one block a multiprocessor for many of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HopperTile {
    /// 128 rows and so many columns.
    Wide { columns: u32 },
    /// 128 rows and up to so many columns, those of all bands: the right operand is several matrices.
    Narrow { columns: u32 },
    /// So many rows and 128 columns: the weight is the left operand.
    Few { rows: u32 },
}

impl HopperTile {
    /// Rows or columns that come from the left operand.
    pub const LEFT: u32 = 128;
    /// Columns of the widest tiles.
    pub const WIDEST: u32 = 256;
    /// Steps of k, and the width of a box whose other index is contiguous.
    pub const DEPTH: u32 = 64;
    /// Rows of y that leave together, 64 columns of them.
    pub const STAGED_ROWS: u32 = 16;

    pub(super) fn launch(self, kernel: &'static str, tiles: i32, facts: &Facts) -> Launch {
        // stages of the ring, width of the right operand, bytes of results on their way out: of eight warps two boxes each,
        // of two warpgroups a slice of sums
        let (boxes, slices) = (8 * 2 * HopperTile::STAGED_ROWS * 128, 2 * 64 * 40 * 4);
        let (stages, right, out) = match self {
            HopperTile::Wide { columns } | HopperTile::Narrow { columns } => (4, columns, boxes),
            HopperTile::Few { rows: 128 } => (6, 128, slices),
            HopperTile::Few { rows } => (8, rows, slices),
        };
        let operands = stages * 2 * HopperTile::DEPTH * (HopperTile::LEFT + right.next_multiple_of(64));
        let (barriers, alignment) = (2 * 8 * stages, 1024);
        let grid = [(tiles as u32).min(facts.multiprocessors), 1, 1];
        Launch { kernel, grid, block: 384, shared_bytes: operands + out + barriers + alignment }
    }
}

/// Rows from which tiles of 128 of them pay.
const HOPPER_ROWS: i32 = 65;

/// Widths of Hopper's tiles with their kernels, wide ones first: they read less for each product.
type Choices = [(i32, &'static str)];
const HOPPER_FORWARD: [(i32, &str); 4] = [
    (256, "linear_fwd_128x256_sm90_bf16"),
    (192, "linear_fwd_128x192_sm90_bf16"),
    (176, "linear_fwd_128x176_sm90_bf16"),
    (128, "linear_fwd_128x128_sm90_bf16"),
];
const HOPPER_BACKWARD: [(i32, &str); 4] = [
    (256, "linear_bwd_dx_128x256_sm90_bf16"),
    (192, "linear_bwd_dx_128x192_sm90_bf16"),
    (176, "linear_bwd_dx_128x176_sm90_bf16"),
    (128, "linear_bwd_dx_128x128_sm90_bf16"),
];
const HOPPER_BACKWARD_DROPOUT: [(i32, &str); 2] =
    [(256, "linear_bwd_dx_dropout_128x256_sm90_bf16"), (128, "linear_bwd_dx_dropout_128x128_sm90_bf16")];
/// What a tile takes besides its columns, as columns. Unmeasured.
const HOPPER_TILE_COST: i32 = 16;

/// What the waves of so many tiles of these columns take for a step of k, in columns.
fn tile_cost(columns: i32, tiles: impl Fn(i32) -> i32, facts: &Facts) -> i64 {
    let waves = parts(tiles(columns), facts.multiprocessors as i32);
    i64::from(waves) * i64::from(columns + HOPPER_TILE_COST)
}

/// The width whose last wave of tiles ends first; of equals the widest.
fn fastest(choices: &'static Choices, tiles: impl Fn(i32) -> i32, facts: &Facts) -> &'static (i32, &'static str) {
    choices.iter().min_by_key(|(columns, _)| tile_cost(*columns, &tiles, facts)).unwrap_or(&choices[0])
}

/// Tiles of 128 rows and so many columns that a product has.
fn hopper_tiles(args: &LinearArgs, columns: i32) -> i32 {
    let of_row = args.bands().iter().map(|b| parts(b.width, columns)).sum::<i32>();
    parts(args.m, HopperTile::LEFT as i32) * of_row * args.splits
}

/// Whether TMA can bring a product's operands, where the device has it.
fn comes_in_boxes(args: &LinearArgs, form: Form, facts: &Facts) -> bool {
    let gathered = args.pieces().any(|(_, p, _)| p.gathered != 0);
    // the threads of Hopper's kernel never touch x, so that nothing of it can drop out there
    let operand_drops = args.drops() && form == Form::Forward;
    facts.is_hopper() && aligned(args) && !gathered && !operand_drops
}

/// The launch that computes a loss's logits with the statistics of their tiles, where Hopper's instructions can and there
/// are rows for them; `args` is their product. Its tiles have [`HopperTile::WIDEST`] columns.
pub fn logits(args: &LinearArgs, facts: &Facts) -> Option<Launch> {
    let wanted = comes_in_boxes(args, Form::Forward, facts) && args.m >= HOPPER_ROWS;
    let tile = HopperTile::Wide { columns: HopperTile::WIDEST };
    let tiles = hopper_tiles(args, HopperTile::WIDEST as i32);
    wanted.then(|| tile.launch("linear_loss_fwd_128x256_sm90_bf16", tiles, facts))
}

/// Splits of the depth at the most: more of them cost more to add up than they bring.
const MOST_SPLITS: i32 = 8;

/// Into how many splits the depth of a product of one band is cut, none shorter than `least`: as few as end first; none
/// for rows that Hopper's tiles do not pay for. Adding them up is left out: it is short beside splits that pay.
pub(super) fn hopper_splits(m: i32, width: i32, depth: i32, least: i32, facts: &Facts) -> Option<i32> {
    let rows = parts(m, HopperTile::LEFT as i32);
    let cost = |splits: &i32| {
        let tiles = |columns: i32| rows * parts(width, columns) * splits;
        let of_step = |(columns, _): &(i32, &str)| tile_cost(*columns, tiles, facts);
        HOPPER_BACKWARD.iter().map(of_step).min().map(|of_step| of_step * i64::from(parts(depth, *splits)))
    };
    let splits = 1..=(depth / least).clamp(1, MOST_SPLITS);
    splits.min_by_key(cost).filter(|_| facts.is_hopper() && m >= HOPPER_ROWS)
}

/// The kernel for a product that Hopper's instructions can compute, where the device has them.
pub(super) fn hopper_product(args: &LinearArgs, form: Form, facts: &Facts) -> Option<Plan> {
    if !comes_in_boxes(args, form, facts) {
        return None;
    }
    if form == Form::Forward && args.m <= FEW_ROWS && counters(args) <= COUNTERS {
        return Some(few_product(args, facts));
    }
    if args.m < HOPPER_ROWS {
        return None;
    }
    if form == Form::Forward && joined(args) {
        return Some(narrow_product(args, facts));
    }
    let choices = match (form, args.drops()) {
        (Form::Forward, _) => &HOPPER_FORWARD[..],
        (Form::Backward, false) => &HOPPER_BACKWARD,
        (Form::Backward, true) => &HOPPER_BACKWARD_DROPOUT,
    };
    let tiles = |columns| hopper_tiles(args, columns);
    let (columns, kernel) = *fastest(choices, tiles, facts);
    let tile = HopperTile::Wide { columns: columns as u32 };
    Some(Plan { launch: tile.launch(kernel, tiles(columns), facts), hopper: Some(tile) })
}

/// The launch of a forward product that does the SwiGLU of its two bands as well: where it is a product and no more, and
/// tiles of 256 columns are the fastest anyway, which then have 128 of either.
pub(super) fn gated(args: &LinearArgs, plan: &Plan, facts: &Facts) -> Option<Launch> {
    let tile = HopperTile::Wide { columns: HopperTile::WIDEST };
    let [gate, up] = args.bands() else { return None };
    let plain = |b: &LinearBand| b.bias == 0 && b.end - b.first == 1 && b.width == gate.width;
    let alone = args.added == 0 && args.z == 0 && args.wide == 0 && args.activation == 0 && args.scattered == 0;
    if plan.hopper != Some(tile) || args.splits > 1 || !alone || !plain(gate) || !plain(up) {
        return None;
    }
    let tiles = parts(args.m, HopperTile::LEFT as i32) * parts(gate.width, HopperTile::WIDEST as i32 / 2);
    Some(tile.launch("linear_fwd_gated_128x256_sm90_bf16", tiles, facts))
}

#[cfg(test)]
mod tests {
    use super::super::plan::product;
    use super::super::plan::tests::{args, gpu};
    use super::*;

    #[test]
    fn gate_and_up_are_gated_where_they_are_a_product_and_no_more() {
        let facts = gpu((9, 0), 132);
        let launch = |args: &LinearArgs| gated(args, &product(args, Form::Forward, &facts), &facts);
        let plain = args(2764, 4096, &[12_288, 12_288]);
        // 22 x 96 tiles of 128 columns of either, in exactly sixteen waves
        let found = launch(&plain).expect("a launch");
        assert_eq!((found.kernel, found.grid), ("linear_fwd_gated_128x256_sm90_bf16", [132, 1, 1]));
        let mut biased = plain;
        biased.bands[1].bias = 256;
        let [mut added, mut kept, mut activated] = [plain; 3];
        (added.added, kept.z, activated.activation) = (256, 256, 1);
        let narrower = args(2764, 4096, &[12_288, 12_160]);
        let three = args(2764, 4096, &[8192, 8192, 8192]);
        let few = args(100, 4096, &[12_288, 12_288]);
        for other in [biased, added, kept, activated, narrower, three, few] {
            assert_eq!(launch(&other), None, "{other:?}");
        }
        let mut adapted = LinearArgs { m: 2764, stride: 24_576, splits: 1, ..LinearArgs::default() };
        let piece = plain.pieces[0];
        for column in [0, 12_288] {
            let band = LinearBand { column, width: 12_288, ..LinearBand::default() };
            adapted.push(band, &[piece, piece]).expect("room");
        }
        assert_eq!(launch(&adapted), None);
    }

    #[test]
    fn logits_of_many_rows_come_in_the_widest_tiles() {
        let (older, hopper) = (gpu((8, 6), 80), gpu((9, 0), 132));
        let launch = logits(&args(512, 4096, &[151_936]), &hopper).expect("a launch");
        assert_eq!((launch.kernel, launch.grid), ("linear_loss_fwd_128x256_sm90_bf16", [132, 1, 1]));
        assert_eq!(logits(&args(65, 64, &[264]), &hopper).expect("a launch").grid, [2, 1, 1]);
        // few rows, an older GPU, rows of logits or of x that begin within 16 bytes
        for (other, facts) in [
            (args(64, 4096, &[151_936]), &hopper),
            (args(512, 4096, &[151_936]), &older),
            (args(512, 4096, &[151_935]), &hopper),
            (args(512, 4090, &[151_936]), &hopper),
        ] {
            assert_eq!(logits(&other, facts), None);
        }
    }

    /// Sums that are wanted beside those that all multiprocessors compute until the last wave is done.
    fn fill(m: i32, widths: &[i32], columns: i32, multiprocessors: i32) -> f64 {
        let tiles = parts(m, 128) * widths.iter().map(|w| parts(*w, columns)).sum::<i32>();
        let computed = f64::from(parts(tiles, multiprocessors) * multiprocessors) * f64::from(128 * columns);
        f64::from(m) * f64::from(widths.iter().sum::<i32>()) / computed
    }

    #[test]
    fn widths_fill_hoppers_multiprocessors() {
        let hopper = gpu((9, 0), 132);
        // the article's step, other steps and the sizes of a long batch; of the 8B model qkv, o and down, gate and up
        let (qkv, o, gate_up) = (&[4096, 1024, 1024][..], &[4096][..], &[12_288, 12_288][..]);
        for (m, widths, columns, least) in [
            (2764, qkv, 256, 0.98),
            (2764, o, 176, 0.95),
            (2764, gate_up, 256, 0.98),
            (512, o, 128, 0.96),
            (512, &[6144], 192, 0.96),
            (512, &[12_288], 192, 0.96),
            (1024, o, 256, 0.96),
            (1024, &[6144], 192, 0.96),
            (4224, o, 256, 1.0),
            (8448, qkv, 256, 1.0),
            (8448, o, 256, 1.0),
            (8448, gate_up, 256, 1.0),
        ] {
            for form in [Form::Forward, Form::Backward] {
                let plan = product(&args(m, 4096, widths), form, &hopper);
                assert_eq!(plan.hopper, Some(HopperTile::Wide { columns }), "{m} {widths:?}");
                assert!(plan.launch.kernel.contains(&format!("128x{columns}")), "{plan:?}");
            }
            let reached = fill(m, widths, columns as i32, 132);
            assert!(reached >= least, "{m} {widths:?}: {reached}");
            let others = HOPPER_FORWARD.map(|(columns, _)| fill(m, widths, columns, 132));
            assert!(others.iter().all(|other| *other <= 1.06 * reached), "{m} {widths:?}: {reached} of {others:?}");
        }
        // what tiles of 256 columns would leave idle
        assert!((fill(2764, o, 256, 132) - 0.872).abs() < 1e-3 && (fill(2764, o, 176, 132) - 0.952).abs() < 1e-3);
    }
}
