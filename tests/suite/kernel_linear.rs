//! The kernels of `linear` against the host, in the emulator: every tile, with its neighbours in size, and every option.

use crate::support::kernels::{Case, ROW, on_gpu};
use std::collections::{BTreeMap, BTreeSet};
use vlm::base::{DType, Precision};
use vlm::device::{Accumulate, Device, Facts};
use vlm::ops::linear::{Activation, Adapter, Dropout, Linear, LinearBackward, Segment};
use vlm::ops::{Gradient, Op};
use vlm::tensor::{Arena, Tensor, Weight};

/// A segment's output width, its adapter's rank (0: none), and whether it has a bias.
pub type Columns = (usize, usize, bool);

/// Which parameters are trained.
#[derive(Clone, Copy, PartialEq)]
pub enum Trained {
    Nothing,
    Adapters,
    Everything,
}

/// Rows, input width, segments: one, primes, the tiles of 16 x 32, 64 x 64 and 128 x 128 (and Hopper's) and one more or
/// less, widths that are no multiple of 8, adapters of several ranks, several steps of k and a rest, none at all, and as many
/// segments as there can be.
const SHAPES: [(usize, usize, &[Columns]); 21] = [
    (1, 1, &[(1, 1, true)]),
    (1, 264, &[(40, 8, false), (32, 0, true)]),
    (3, 7, &[(5, 0, false), (13, 3, true)]),
    (15, 128, &[(32, 16, false)]),
    (16, 136, &[(24, 0, true), (40, 8, false), (8, 24, true)]),
    (17, 64, &[(64, 0, false)]),
    (63, 72, &[(56, 8, true), (72, 16, false)]),
    (64, 200, &[(64, 0, false), (128, 64, true)]),
    (65, 64, &[(8, 8, false), (264, 0, true)]),
    (65, 67, &[(71, 5, true)]),
    (127, 72, &[(136, 8, false)]),
    (128, 136, &[(128, 0, true)]),
    (66, 264, &[(264, 0, true)]),
    (129, 264, &[(144, 8, false), (120, 72, true)]),
    (130, 129, &[(127, 0, true), (2, 1, false)]),
    (200, 8, &[(520, 8, false)]),
    (130, 376, &[(504, 8, true)]),
    (140, 504, &[(376, 0, false)]),
    (131, 136, &[(112, 8, true)]),
    (0, 16, &[(24, 8, true)]),
    (70, 128, &[(136, 8, true), (128, 0, false), (144, 16, false), (128, 8, true)]),
];

fn weight(case: &mut Case, name: &str, shape: [usize; 2], trained: bool) -> Weight {
    let deviation = 1.0 / (shape[1] as f64).sqrt();
    if trained { case.trained(name, shape, deviation) } else { case.weight(name, shape, deviation) }
}

fn segments(case: &mut Case, k: usize, columns: &[Columns], trained: Trained, p: f64) -> Vec<Segment> {
    let (all, adapters) = (trained == Trained::Everything, trained != Trained::Nothing);
    let mut segment = |(i, (n, rank, bias)): (usize, &Columns)| {
        let w = weight(case, "weight", [*n, k], all);
        let bias = bias.then(|| if all { case.trained("bias", [*n], 1.0) } else { case.weight("bias", [*n], 1.0) });
        let adapter = (*rank > 0).then(|| {
            let (a, b) = (weight(case, "A", [*rank, k], adapters), weight(case, "B", [*n, *rank], adapters));
            let dropout = (p > 0.0).then_some(Dropout { p, module: module(i) });
            Adapter { a, b, scale: 1.7, dropout }
        });
        Segment { weight: w, bias, adapter }
    };
    columns.iter().enumerate().map(&mut segment).collect()
}

/// The id of a segment's module.
pub fn module(segment: usize) -> u64 {
    0x1234_5678_9abc_def0 + segment as u64
}

/// The key of a row of x: any two words.
pub fn key(row: usize) -> [u32; 2] {
    [(row as u32).wrapping_mul(0x9e37_79b9), !(row as u32)]
}

/// The keys of so many rows.
pub fn noise(case: &mut Case, rows: usize) -> Tensor {
    case.whole([rows, 2], (0..rows).flat_map(key).map(|word| word as i32).collect())
}

#[derive(Clone, Copy)]
pub struct Options {
    pub activation: Activation,
    /// Some rows of more than there are, in another order.
    pub rows: bool,
    pub residual: bool,
    pub kept: bool,
    /// Of adapters, the probability of an element of x to drop out.
    pub p: f64,
}

pub const PLAIN: Options = Options { activation: Activation::None, rows: false, residual: false, kept: false, p: 0.0 };

/// The operation over random numbers: rows, input width, segments.
pub fn linear(
    case: &mut Case,
    (m, k, columns): (usize, usize, &[Columns]),
    trained: Trained,
    options: Options,
    backward: bool,
) -> Linear {
    let all_rows = if options.rows { m + 5 } else { m };
    let x = case.bf16([all_rows, k]);
    let rows = options.rows.then(|| case.whole([m], (0..m).map(|i| ((i * 7 + 3) % all_rows) as i32).collect()));
    let segments = segments(case, k, columns, trained, options.p);
    let noise = (options.p > 0.0).then(|| noise(case, all_rows));
    let (n, rank) = (Linear::width(&segments), Linear::rank(&segments));
    let residual = options.residual.then(|| case.bf16([all_rows, n]));
    // what forward keeps, backward reads
    let kept = |case: &mut Case, shape: [usize; 2]| match backward {
        true => case.bf16(shape),
        false => case.output(DType::Bf16, shape),
    };
    let s = (rank > 0).then(|| kept(case, [m, rank]));
    let z = options.kept.then(|| kept(case, [m, n]));
    let y = case.output(DType::Bf16, [m, n]);
    let activation = options.activation;
    Linear { x, rows, segments, activation, residual, noise, s, z, precision: Precision::Bf16, y }
}

/// Multiples of 7 modulo m + 5 differ where 7 does not divide it.
fn may_gather(m: usize) -> bool {
    m > 0 && !(m + 5).is_multiple_of(7)
}

fn forward_options(i: usize, m: usize) -> [Options; 3] {
    let activations = [Activation::None, Activation::GeluTanh, Activation::GeluErf];
    let (activation, gathers) = (activations[i % 3], may_gather(m));
    [
        Options { activation, ..PLAIN },
        Options { activation: activations[(i + 1) % 3], rows: gathers, residual: true, kept: false, p: 0.0 },
        Options {
            activation: activations[(i + 2) % 3],
            rows: i.is_multiple_of(2) && gathers,
            residual: false,
            kept: true,
            p: 0.0,
        },
    ]
}

fn backward_options(i: usize, m: usize) -> [(Options, Trained, Option<Accumulate>); 4] {
    let activation = [Activation::GeluTanh, Activation::GeluErf][i % 2];
    let rows = may_gather(m);
    [
        (PLAIN, Trained::Adapters, Some(Accumulate::Overwrite)),
        (Options { activation, kept: true, ..PLAIN }, Trained::Everything, Some(Accumulate::Add)),
        (Options { rows, residual: rows, ..PLAIN }, Trained::Everything, Some(Accumulate::Overwrite)),
        (Options { rows, residual: rows, ..PLAIN }, Trained::Adapters, [None, Some(Accumulate::Add)][i % 2]),
    ]
}

pub fn backward(
    case: &mut Case,
    shape: (usize, usize, &[Columns]),
    of: (Options, Trained, Option<Accumulate>),
) -> LinearBackward {
    let (options, trained, accumulate) = of;
    let forward = linear(case, shape, trained, options, true);
    let dy = case.bf16(forward.y.shape);
    let mut gradient = |shape, accumulate| {
        let tensor = match accumulate {
            Accumulate::Overwrite => case.output(DType::Bf16, shape),
            Accumulate::Add => case.bf16(shape),
        };
        Gradient { tensor, accumulate }
    };
    let dx = accumulate.map(|accumulate| gradient(forward.x.shape, accumulate));
    let part = forward.residual.filter(|_| forward.rows.is_some());
    let dresidual = part.map(|r| gradient(r.shape, accumulate.unwrap_or(Accumulate::Add)));
    LinearBackward { forward, dy, dx, dresidual }
}

#[test]
fn forward_agrees_with_the_host() {
    for (i, shape) in SHAPES.into_iter().enumerate() {
        for options in forward_options(i, shape.0) {
            let mut case = Case::new(i as u64);
            let op = linear(&mut case, shape, Trained::Adapters, options, false);
            case.agrees(&op);
        }
    }
}

#[test]
fn backward_agrees_with_the_host() {
    for (i, shape) in SHAPES.into_iter().enumerate() {
        for options in backward_options(i, shape.0) {
            let mut case = Case::new(i as u64);
            let op = backward(&mut case, shape, options);
            case.agrees(&op);
        }
    }
}

/// Shapes that have an adapter.
fn adapted() -> impl Iterator<Item = (usize, (usize, usize, &'static [Columns]))> {
    SHAPES.into_iter().enumerate().filter(|(_, (.., columns))| columns.iter().any(|(_, rank, _)| *rank > 0))
}

const PS: [f64; 2] = [0.1, 0.5];

#[test]
fn forward_behind_dropouts_agrees_with_the_host() {
    for (i, shape) in adapted() {
        for (j, options) in forward_options(i, shape.0).into_iter().enumerate() {
            let mut case = Case::new(i as u64);
            let options = Options { p: PS[(i + j) % 2], ..options };
            let op = linear(&mut case, shape, Trained::Adapters, options, false);
            case.agrees(&op);
        }
    }
}

#[test]
fn backward_behind_dropouts_agrees_with_the_host() {
    for (i, shape) in adapted() {
        for (j, (options, trained, accumulate)) in backward_options(i, shape.0).into_iter().enumerate() {
            let mut case = Case::new(i as u64);
            let options = Options { p: PS[(i + j) % 2], ..options };
            let op = backward(&mut case, shape, (options, trained, accumulate));
            case.agrees(&op);
        }
    }
}

#[test]
fn adapters_with_and_without_a_dropout_may_share_their_input() {
    for (i, shape) in adapted().filter(|(_, (.., columns))| columns.len() > 1) {
        for without in [0, 1] {
            let options = Options { p: PS[i % 2], ..PLAIN };
            let strip = |segments: &mut Vec<Segment>| {
                segments[without].adapter.iter_mut().for_each(|adapter| adapter.dropout = None);
            };
            let mut case = Case::new(i as u64);
            let mut op = linear(&mut case, shape, Trained::Adapters, options, false);
            strip(&mut op.segments);
            case.agrees(&op);
            let mut case = Case::new(i as u64);
            let mut op = backward(&mut case, shape, (options, Trained::Adapters, Some(Accumulate::Overwrite)));
            strip(&mut op.forward.segments);
            case.agrees(&op);
        }
    }
}

/// Tiles reach past the last row, whose key is the last that is there; so is the last row's place.
#[test]
fn no_key_is_read_past_the_last() {
    for (m, k, n) in [(40, 64, 72), (76, 64, 72), (20, 67, 13), (200, 136, 264)] {
        let columns = [(n, 8, false)];
        for (gathers, p) in [(false, 0.5), (true, 0.5), (true, 0.0)] {
            let options = Options { rows: gathers, p, ..PLAIN };
            let end = |case: &mut Case, op: &mut Linear| match (gathers, op.rows) {
                (true, Some(_)) => {
                    let last = (0..m).map(|i| ((i * 7 + 3) % op.x.shape.rows()) as i32).collect();
                    op.rows = Some(case.whole([m], last));
                }
                _ => op.noise = Some(noise(case, op.x.shape.rows())),
            };
            let mut case = Case::new(m as u64);
            let mut op = linear(&mut case, (m, k, &columns), Trained::Adapters, options, false);
            end(&mut case, &mut op);
            case.agrees_before_a_guard(Arena::Activations, &op);
            let mut case = Case::new(m as u64);
            let of = (options, Trained::Adapters, Some(Accumulate::Overwrite));
            let mut op = backward(&mut case, (m, k, &columns), of);
            end(&mut case, &mut op.forward);
            case.agrees_before_a_guard(Arena::Activations, &op);
        }
    }
}

#[test]
fn no_gradient_is_written_past_the_last_bias() {
    let mut case = Case::new(4);
    let of = (PLAIN, Trained::Everything, Some(Accumulate::Overwrite));
    let op = backward(&mut case, (70, 64, &[(72, 8, false), (40, 0, true)]), of);
    case.agrees_before_a_guard(Arena::Parameters, &op);
}

/// Large ones, whose gradients Hopper's kernel computes tile by tile of one after the other.
#[test]
fn as_many_weights_as_a_launch_has_room_for() {
    let mut case = Case::new(6);
    let of = (PLAIN, Trained::Everything, Some(Accumulate::Overwrite));
    let op = backward(&mut case, (130, 128, &[(128, 0, true), (136, 0, false), (128, 0, false), (200, 0, false)]), of);
    case.agrees_on(&op, (8, 6), ROW);
    let ran = case.agrees_on(&op, (9, 0), ROW);
    assert!(ran.contains_key("linear_bwd_dw_128x128_sm90_bf16"), "{ran:?}");
}

#[test]
fn batch_rows_in_several_parts_are_one_gradient() {
    for (seed, (k, n, rank)) in [(72, 40, 8), (13, 9, 3), (136, 128, 0)].into_iter().enumerate() {
        for (rows, p) in [(false, 0.0), (true, 0.0), (true, 0.5)] {
            let mut case = Case::new(seed as u64);
            let options = Options { rows, p, ..PLAIN };
            let op =
                backward(&mut case, (700, k, &[(n, rank, true), (24, 8, false)]), (options, Trained::Everything, None));
            case.agrees(&op);
        }
    }
}

#[test]
fn a_residual_may_be_overwritten_by_the_result() {
    let mut case = Case::new(5);
    let mut op = linear(&mut case, (70, 64, &[(72, 8, true)]), Trained::Nothing, PLAIN, false);
    op.y = case.bf16(op.y.shape);
    op.residual = Some(op.y);
    case.agrees(&op);
}

#[test]
fn logits_may_be_kept_in_f32() {
    for (seed, (m, n)) in [(1, 40), (3, 13), (70, 200)].into_iter().enumerate() {
        let mut case = Case::new(seed as u64);
        let mut op = linear(&mut case, (m, 64, &[(n, 0, false)]), Trained::Nothing, PLAIN, false);
        op.y = case.output(DType::F32, op.y.shape);
        case.agrees_within(&op, 1e-5);
    }
}

#[test]
fn a_nan_stays_in_its_row() {
    for (m, p) in [(4, 0.0), (70, 0.0), (70, 0.9)] {
        let mut case = Case::new(3);
        let options = Options { p, ..PLAIN };
        let mut op = linear(&mut case, (m, 64, &[(72, 8, true)]), Trained::Nothing, options, false);
        let mut x = case.random().f32s(m * 64, 1.0);
        x[64 + 5] = f32::NAN;
        op.x = case.values(DType::Bf16, [m, 64], x);
        case.agrees(&op);
    }
}

#[test]
fn a_row_does_not_depend_on_how_many_there_are() {
    // every tile sums in the same order, in steps of 16 along k, whatever stands beside a row; in the emulator wgmma adds
    // within a step as mma does. Hopper cuts the k of the second shape, of up to 128 rows and of more, whatever their number.
    for (k, n, older, hopper) in [
        (
            264,
            376,
            ["linear_fwd_128x128_bf16", "linear_fwd_16x32_bf16", "linear_fwd_64x64_bf16"],
            &["linear_fwd_128x192_sm90_bf16", "linear_fwd_narrow_128x64_sm90_bf16"][..],
        ),
        (
            1608,
            136,
            ["linear_fwd_128x128_bf16", "linear_fwd_16x32_bf16", "linear_fwd_64x64_bf16"],
            &["linear_fwd_128x128_sm90_bf16", "linear_fwd_narrow_128x64_sm90_bf16", "linear_sum_bf16"],
        ),
    ] {
        for capability in [(8, 6), (9, 0)] {
            let mut device = Device::emulated(capability).expect("an emulator");
            let ran = rows_alone_and_among_others(&mut device, k, n);
            let (few, others): (Vec<_>, Vec<_>) = ran.into_iter().partition(|kernel| kernel.contains("_few_"));
            assert_eq!(others, if capability == (9, 0) { hopper } else { &older });
            assert_eq!(few.len(), if capability == (8, 6) { 0 } else { 4 }, "{few:?}");
        }
        // whether a GPU's wgmma adds as its mma does, no emulator can say
        on_gpu(|gpu| {
            rows_alone_and_among_others(gpu, k, n);
        });
    }
}

/// Runs rows of one matrix alone and in batches, and panics unless each has the same bits in all, on Hopper in all of
/// up to 128 rows and in all larger ones. The kernels that ran.
fn rows_alone_and_among_others(device: &mut Device, k: usize, n: usize) -> Vec<&'static str> {
    let (rank, most) = (8, 130);
    let mut case = Case::new(9);
    let x = case.random().f32s(most * k, 1.0);
    let one = linear(&mut case, (1, k, &[(n, rank, true)]), Trained::Nothing, PLAIN, false);
    let mut of_rows = |(first, m): (usize, usize)| {
        let x = case.values(DType::Bf16, [m, k], x[first * k..(first + m) * k].to_vec());
        let (s, y) = (case.output(DType::Bf16, [m, rank]), case.output(DType::Bf16, [m, n]));
        Linear { x, s: Some(s), y, ..one.clone() }
    };
    let batches = [130, 129, 128, 65, 64, 63, 33, 32, 17, 16, 15, 2, 1].map(|m| (0, m));
    let others = [(2, 128), (15, 1), (16, 1), (64, 1), (128, 2), (129, 1)];
    let ranges = [&batches[..], &others].concat();
    let ops: Vec<Linear> = ranges.iter().map(|range| of_rows(*range)).collect();
    case.begin(device).expect("memory");
    let hopper = device.facts().is_some_and(Facts::is_hopper);
    let mut seen = BTreeMap::new();
    for (op, (first, m)) in ops.iter().zip(&ranges) {
        op.forward(device).expect("linear");
        let y = device.memory().read_f32(op.y).expect("y");
        for (i, got) in y.chunks(n).enumerate() {
            assert!(got.iter().all(|v| v.is_finite()));
            let of = seen.entry((hopper && *m > 128, first + i)).or_insert_with(|| got.to_vec());
            assert_eq!(got, of, "row {} of {m} from {first} on {}", first + i, device.name());
        }
    }
    device.launches().into_keys().collect()
}

#[test]
fn every_kernel_runs() {
    let mut ran = BTreeSet::new();
    let mut run = |case: &Case, op: &dyn Op| {
        for capability in [(8, 6), (9, 0)] {
            let mut device = Device::emulated(capability).expect("an emulator");
            case.begin(&mut device).expect("memory");
            op.forward(&mut device).expect("linear");
            ran.extend(device.launches().into_keys());
        }
    };
    for (i, shape) in SHAPES.into_iter().enumerate() {
        let mut case = Case::new(i as u64);
        let op = linear(&mut case, shape, Trained::Adapters, PLAIN, false);
        run(&case, &op);
        let mut case = Case::new(i as u64);
        let op = linear(&mut case, shape, Trained::Adapters, Options { p: 0.5, ..PLAIN }, false);
        run(&case, &op);
        for (options, trained, accumulate) in backward_options(i, shape.0) {
            for p in [0.0, 0.5] {
                let mut case = Case::new(i as u64);
                let op = backward(&mut case, shape, (Options { p, ..options }, trained, accumulate));
                run(&case, &op);
            }
        }
    }
    let wanted = [
        "linear_bwd_act_bf16",
        "linear_bwd_da_64x128_sm90_bf16",
        "linear_bwd_dbias_bf16",
        "linear_bwd_dw_128x128_bf16",
        "linear_bwd_dw_128x128_sm90_bf16",
        "linear_bwd_dw_128x64_sm90_bf16",
        "linear_bwd_dw_64x64_bf16",
        "linear_bwd_dw_any_bf16",
        "linear_bwd_dw_dropout_64x64_bf16",
        "linear_bwd_dw_dropout_any_bf16",
        "linear_bwd_dx_128x128_bf16",
        "linear_bwd_dx_128x128_sm90_bf16",
        "linear_bwd_dx_128x176_sm90_bf16",
        "linear_bwd_dx_128x192_sm90_bf16",
        "linear_bwd_dx_128x256_sm90_bf16",
        "linear_bwd_dx_64x64_bf16",
        "linear_bwd_dx_any_bf16",
        "linear_bwd_dx_dropout_128x128_bf16",
        "linear_bwd_dx_dropout_128x128_sm90_bf16",
        "linear_bwd_dx_dropout_128x256_sm90_bf16",
        "linear_bwd_dx_dropout_64x64_bf16",
        "linear_bwd_dx_dropout_any_bf16",
        "linear_bwd_rows_bf16",
        "linear_fwd_128x128_bf16",
        "linear_fwd_128x128_sm90_bf16",
        "linear_fwd_128x176_sm90_bf16",
        "linear_fwd_128x192_sm90_bf16",
        "linear_fwd_128x256_sm90_bf16",
        "linear_fwd_16x32_bf16",
        "linear_fwd_64x64_bf16",
        "linear_fwd_any_bf16",
        "linear_fwd_dropout_64x64_bf16",
        "linear_fwd_dropout_any_bf16",
        "linear_fwd_few_128x128_sm90_bf16",
        "linear_fwd_few_16x128_sm90_bf16",
        "linear_fwd_few_32x128_sm90_bf16",
        "linear_fwd_few_64x128_sm90_bf16",
        "linear_fwd_narrow_128x128_sm90_bf16",
        "linear_fwd_narrow_128x64_sm90_bf16",
    ];
    let missing: Vec<_> = wanted.into_iter().filter(|name| !ran.contains(name)).collect();
    assert!(missing.is_empty(), "no shape of this file reaches {missing:?}");
}

#[test]
fn what_the_kernels_cannot_do_is_said() {
    let mut device = Device::emulated((8, 6)).expect("an emulator");
    let mut case = Case::new(1);
    let op = linear(&mut case, (2, 8, &[(8, 0, false); 5]), Trained::Nothing, PLAIN, false);
    case.begin(&mut device).expect("memory");
    let said = op.forward(&mut device).expect_err("five weights").to_string();
    assert!(said.contains("at most 4 weights"), "{said}");

    let mut case = Case::new(1);
    let mut op = linear(&mut case, (2, 8, &[(8, 0, false)]), Trained::Nothing, PLAIN, false);
    op.x = case.numbers(DType::F32, op.x.shape, 1.0);
    case.begin(&mut device).expect("memory");
    let said = op.forward(&mut device).expect_err("f32").to_string();
    assert!(said.contains("bf16"), "{said}");

    let mut case = Case::new(1);
    let mut op = linear(&mut case, (2, 8, &[(8, 0, false)]), Trained::Nothing, PLAIN, false);
    op.rows = Some(case.whole([2], vec![0, 2]));
    case.begin(&mut device).expect("memory");
    let said = op.forward(&mut device).expect_err("a row that is not there").to_string();
    assert!(said.contains("rows"), "{said}");
}
