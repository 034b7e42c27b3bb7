//! The launches of products and of the gradients of weights, for every word that has them.

use super::arguments::*;
use super::plan::{self, Form, GradientTile, HopperTile};
use crate::base::Result;
use crate::device::launcher::{MapType, Swizzle, TensorMap, TensorMapShape};
use crate::device::{Accelerator, Launch};

/// Launches a product for the word `op`.
///
/// # Safety
/// As of [`Accelerator::launch`]: pieces, bands and results lie, with the sizes that `args` gives them, in what the word
/// asked addresses of. `partial` has room for the sums of all splits.
pub(in crate::ops) unsafe fn run(gpu: &mut Accelerator, op: &'static str, args: &LinearArgs, form: Form) -> Result<()> {
    let plan = plan::product(args, form, gpu.facts());
    match plan.hopper.filter(|_| !plan.launch.is_empty()) {
        // it adds its splits up itself
        Some(HopperTile::Few { rows }) => {
            // SAFETY: the caller's promise; nothing follows.
            return unsafe { run_few(gpu, op, args, (&plan.launch, rows), &LinearFewArgs::default()) };
        }
        Some(HopperTile::Narrow { .. }) => {
            let product = narrow_maps(gpu, args)?;
            // SAFETY: the caller's promise; the maps describe the same operands.
            unsafe { gpu.launch(op, &plan.launch, &product)? }
        }
        Some(HopperTile::Wide { columns }) => {
            let product = product_maps(gpu, args, form, columns)?;
            // SAFETY: the caller's promise; the maps describe the same operands.
            unsafe { gpu.launch(op, &plan.launch, &product)? }
        }
        // SAFETY: the kernel takes LinearArgs; the rest is the caller's promise.
        None => unsafe { gpu.launch(op, &plan.launch, args)? },
    }
    if args.splits == 1 {
        return Ok(());
    }
    // SAFETY: the kernel takes LinearArgs; it reads the sums of the splits, just written, and writes the results.
    unsafe { gpu.launch(op, &plan::sum(args), args) }
}

/// Launches a product of few rows for [`run`], or with the word after it: `following` says what that reads and writes. With
/// the launch, as [`plan::product`] planned it, and its tiles' rows.
///
/// # Safety
/// As of [`run`], and the same of `following`.
pub(super) unsafe fn run_few(
    gpu: &mut Accelerator,
    op: &'static str,
    args: &LinearArgs,
    (launch, rows): (&Launch, u32),
    following: &LinearFewArgs,
) -> Result<()> {
    let counters = gpu.counters()?;
    let mut few = LinearFewArgs { product: *args, counters, ..*following };
    for (i, piece, band) in args.pieces() {
        let (depth, m, width) = (piece.depth as u64, args.m as u64, band.width as u64);
        let boxes = |outer| [HopperTile::DEPTH, outer];
        few.left[i] = map(gpu, piece.right, [depth, width], piece.right_stride, boxes(HopperTile::LEFT))?;
        few.right[i] = map(gpu, piece.left, [depth, m], piece.left_stride, boxes(rows))?;
    }
    // SAFETY: the kernel takes LinearFewArgs, and no more counters than there are, or `product` would have planned
    // otherwise; the rest is the caller's promise.
    unsafe { gpu.launch(op, launch, &few) }
}

/// Launches a product of gate and up with their SwiGLU, for `Followed`, as [`plan::gated`] planned it.
///
/// # Safety
/// As of [`run`]; at `swiglu` there are as many rows of half the product's width.
pub(super) unsafe fn run_gated(
    gpu: &mut Accelerator,
    op: &'static str,
    args: &LinearArgs,
    launch: &Launch,
    swiglu: u64,
) -> Result<()> {
    let product = product_maps(gpu, args, Form::Forward, HopperTile::LEFT)?;
    let (half, boxes) = (args.stride / 2, [HopperTile::DEPTH, HopperTile::STAGED_ROWS]);
    let swiglu = map(gpu, swiglu, [half as u64, args.m as u64], half, boxes)?;
    // SAFETY: the kernel takes LinearGatedArgs; the maps describe what the caller promised.
    unsafe { gpu.launch(op, launch, &LinearGatedArgs { product, swiglu }) }
}

/// A product with the maps of its operands and of y, in tiles of so many columns.
fn product_maps(gpu: &Accelerator, args: &LinearArgs, form: Form, columns: u32) -> Result<LinearSm90Args> {
    let [left, right] = operand_maps(gpu, args, form, |_| columns)?;
    Ok(LinearSm90Args { product: *args, left, right, y: y_maps(gpu, args)? })
}

/// The bands of a narrow product as one, with the maps of their weights.
fn narrow_maps(gpu: &Accelerator, args: &LinearArgs) -> Result<LinearNarrowArgs> {
    let (mut product, mut widths) = (LinearArgs { n_bands: 1, ..*args }, [0; BANDS]);
    product.bands[0].width = args.bands().iter().map(|b| b.width).sum();
    args.bands().iter().zip(&mut widths).for_each(|(band, width)| *width = band.width);
    let [left, right] = operand_maps(gpu, args, Form::Forward, |band| band.width as u32)?;
    Ok(LinearNarrowArgs { product: LinearSm90Args { product, left, right, y: y_maps(gpu, &product)? }, widths })
}

/// The maps of both operands of each piece; a weight that lies with k contiguous comes in boxes of so many rows.
fn operand_maps(
    gpu: &Accelerator,
    args: &LinearArgs,
    form: Form,
    rows: impl Fn(&LinearBand) -> u32,
) -> Result<[[TensorMap; PIECES]; 2]> {
    let [mut left, mut right] = [[TensorMap([0; 16]); PIECES]; 2];
    for (i, piece, band) in args.pieces() {
        let (depth, m, width) = (piece.depth as u64, args.m as u64, band.width as u64);
        let of_weight = |sizes, boxes| map(gpu, piece.right, sizes, piece.right_stride, boxes);
        let boxes = [HopperTile::DEPTH, HopperTile::LEFT];
        left[i] = map(gpu, piece.left, [depth, m], piece.left_stride, boxes)?;
        right[i] = match form {
            Form::Forward => of_weight([depth, width], [HopperTile::DEPTH, rows(band)])?,
            Form::Backward => of_weight([width, depth], [HopperTile::DEPTH; 2])?,
        };
    }
    Ok([left, right])
}

/// The maps of each band's columns of y; what the kernel stores by other ways has none.
fn y_maps(gpu: &Accelerator, args: &LinearArgs) -> Result<[TensorMap; BANDS]> {
    let mut maps = [TensorMap([0; 16]); BANDS];
    let staged = args.y != 0 && args.scattered == 0 && args.partial == 0;
    for (i, band) in args.bands().iter().enumerate().filter(|_| staged) {
        let (address, sizes) = (args.y + 2 * band.column as u64, [band.width as u64, args.m as u64]);
        maps[i] = map(gpu, address, sizes, args.stride, [HopperTile::DEPTH, HopperTile::STAGED_ROWS])?;
    }
    Ok(maps)
}

/// Launches up to [`GRADIENTS`] gradients of weights, and one launch more for all whose batch rows are cut.
///
/// # Safety
/// As of [`Accelerator::launch`]: what the bands describe lies, with the sizes that they give, in what the word asked
/// addresses of; each `partial` is scratch memory of its own for all parts.
pub(in crate::ops) unsafe fn run_gradients(
    gpu: &mut Accelerator,
    op: &'static str,
    gradients: &[LinearGradientArgs],
) -> Result<()> {
    // SAFETY: the caller's promise.
    gradients.iter().try_for_each(|args| unsafe { run_gradient(gpu, op, args) })?;
    let mut sum = LinearGradientSumArgs::default();
    let cut = gradients.iter().filter(|args| args.splits > 1);
    sum.gradients.iter_mut().zip(cut).for_each(|(to, args)| *to = *args);
    let elements = sum.gradients.iter().map(|args| args.partial_size as u64).sum::<u64>();
    if elements == 0 {
        return Ok(());
    }
    let launch = Launch::of("linear_bwd_dw_sum_f32", elements.div_ceil(256) as u32, 256);
    // SAFETY: the kernel takes these arguments; it reads the parts, just written, and adds to the same gradients.
    unsafe { gpu.launch(op, &launch, &sum) }
}

/// The products of gradients that share their batch rows.
///
/// # Safety
/// As of [`run_gradients`].
unsafe fn run_gradient(gpu: &mut Accelerator, op: &'static str, args: &LinearGradientArgs) -> Result<()> {
    let plan = plan::gradients(args, gpu.facts());
    if plan.launch.is_empty() {
        return Ok(());
    }
    if let Some(tile) = plan.hopper {
        let nothing = TensorMap([0; 16]);
        let mut maps = LinearGradientSm90Args { gradients: *args, left: [nothing; BANDS], right: [nothing; BANDS] };
        let operand = |address, width: i32, stride| {
            map(gpu, address, [width as u64, args.m as u64], stride, [HopperTile::DEPTH; 2])
        };
        let bands = args.bands();
        match tile {
            GradientTile::Alone { .. } => {
                for (i, band) in bands.iter().enumerate() {
                    maps.left[i] = operand(band.left, band.height, args.left_stride)?;
                    maps.right[i] = operand(band.right, band.width, band.right_stride)?;
                }
            }
            // the wide operand that all share, and the narrow ones side by side
            GradientTile::Together { .. } => {
                maps.left[0] = operand(bands[0].right, bands[0].width, bands[0].right_stride)?;
                maps.right[0] = operand(bands[0].left, bands.iter().map(|b| b.height).sum(), args.left_stride)?;
            }
        }
        // SAFETY: the kernel takes these arguments; the maps describe what the caller promised.
        unsafe { gpu.launch(op, &plan.launch, &maps) }
    } else {
        // SAFETY: the kernel takes these arguments; the rest is the caller's promise.
        unsafe { gpu.launch(op, &plan.launch, args) }
    }
}

/// Launches the gradient of a bias.
///
/// # Safety
/// As of [`Accelerator::launch`]: dz has m rows of n columns in rows of `stride`, dbias n elements.
pub(in crate::ops) unsafe fn run_bias(gpu: &mut Accelerator, op: &'static str, args: &LinearBiasArgs) -> Result<()> {
    let launch = Launch::of("linear_bwd_dbias_bf16", (args.n as u32).div_ceil(32), 256);
    // SAFETY: the kernel takes these arguments; the rest is the caller's promise.
    unsafe { gpu.launch(op, &launch, args) }
}

/// A matrix whose rows are `stride` elements apart, contiguous along the first of `sizes`.
pub(in crate::ops) fn map(
    gpu: &Accelerator,
    address: u64,
    sizes: [u64; 2],
    stride: i64,
    boxes: [u32; 2],
) -> Result<TensorMap> {
    gpu.tensor_map(&TensorMapShape {
        dtype: MapType::Bf16,
        address,
        sizes: &sizes,
        strides_bytes: &[2 * stride as u64],
        box_sizes: &boxes,
        swizzle: Swizzle::Bytes128,
    })
}
