//! The kernels of `attention` and `attention_cached` against the host, in the emulator.

use crate::support::kernels::{Case, ROW};
use std::collections::BTreeSet;
use vlm::base::DType;
use vlm::device::{Accumulate, Device, Facts};
use vlm::ops::attention::{Attention, AttentionBackward, Heads, Mask};
use vlm::ops::attention_cached::AttentionCached;
use vlm::ops::{Gradient, Op};
use vlm::tensor::Arena;

/// Heads: every compiled width, whole and padded, and widths whose rows are not aligned; one, two and three query heads
/// for a key head.
const HEADS: [(usize, usize, usize); 12] = [
    (2, 1, 16),
    (1, 1, 32),
    (2, 2, 40),
    (2, 1, 64),
    (1, 1, 72),
    (2, 2, 80),
    (1, 1, 96),
    (3, 1, 128),
    (2, 1, 1),
    (1, 1, 20),
    (2, 2, 37),
    (1, 1, 127),
];

/// Lengths of sequences: one token, a prime, a tile and one more or less, none at all, several side by side.
const LENGTHS: [&[usize]; 7] = [&[1], &[63], &[64], &[65], &[0, 3, 0, 62, 67], &[131], &[]];

/// What Hopper's own kernels run, and which of them.
const HOPPER: [(Mask, usize, &str); 4] =
    [(Mask::Causal, 128, "w128"), (Mask::Full, 128, "w128"), (Mask::Full, 72, "w80"), (Mask::Causal, 80, "w80")];

const CAPABILITIES: [(i32, i32); 2] = [(8, 6), (9, 0)];

fn facts(capability: (i32, i32)) -> Facts {
    match Device::emulated(capability).expect("an emulator") {
        Device::Launch(gpu) => gpu.facts().clone(),
        Device::Host(_) => panic!("an emulated device runs kernels"),
    }
}

fn starts(case: &mut Case, lengths: &[usize]) -> (vlm::tensor::Tensor, usize) {
    let mut starts = vec![0];
    for n in lengths {
        starts.push(starts[starts.len() - 1] + *n as i32);
    }
    let tokens = starts[starts.len() - 1] as usize;
    (case.whole([starts.len()], starts), tokens)
}

/// v is the last columns of a tensor as a projection leaves it.
fn attention(
    case: &mut Case,
    lengths: &[usize],
    (queries, keys, width): (usize, usize, usize),
    mask: Mask,
) -> Attention {
    let heads = Heads { queries, keys, width };
    let (starts, t) = starts(case, lengths);
    let (q, k) = (case.bf16([t, queries * width]), case.bf16([t, keys * width]));
    // columns before the values and behind them
    let v = case.bf16([t, (queries + 2 * keys) * width + 16]);
    let y = case.output(DType::Bf16, [t, queries * width]);
    let (v_column, scale) = ((queries + keys) * width, (width as f32).powf(-0.5));
    Attention { q, k, v, v_column, starts, heads, mask, scale, pairs: 0, y, lse: None }
}

/// The operation as backward finds it: y and lse are what forward on the host left.
fn run_forward(case: &mut Case, mut op: Attention) -> Attention {
    let lse = case.output(DType::F32, [op.heads.queries, op.q.shape.rows()]);
    op.lse = Some(lse);
    let [y, lse] = case.results(&op, [op.y, lse]);
    Attention { y, lse: Some(lse), ..op }
}

#[test]
fn forward_agrees_with_the_host() {
    let mut reached = BTreeSet::new();
    for (i, heads) in HEADS.into_iter().enumerate() {
        // every other length, under both masks in turn
        for (j, lengths) in LENGTHS.into_iter().enumerate().skip(i % 2).step_by(2) {
            let mask = if (i + j) % 4 < 2 { Mask::Causal } else { Mask::Full };
            let mut case = Case::new((i * 100 + j) as u64);
            let mut op = attention(&mut case, lengths, heads, mask);
            if j % 4 < 2 {
                op.lse = Some(case.output(DType::F32, [heads.0, op.q.shape.rows()]));
            }
            reached.extend(CAPABILITIES.map(|c| op.plan(&facts(c)).expect("a plan").kernel));
            case.agrees(&op);
        }
    }
    assert_eq!(reached.len(), 7, "{reached:?}");
}

/// Lengths of more sequences than Hopper's kernels look at together.
fn more_than_a_window() -> Vec<usize> {
    (0..40).map(|b| if b % 13 == 5 { 130 } else { b % 3 }).collect()
}

#[test]
fn hoppers_tiles_agree_with_the_host() {
    let many = more_than_a_window();
    for (j, lengths) in [[127].as_slice(), &[128], &[129], &[0, 257, 0, 1, 300], &many].into_iter().enumerate() {
        for (mask, width, kernel) in HOPPER {
            let mut case = Case::new(j as u64);
            let mut op = attention(&mut case, lengths, (2, 1, width), mask);
            op.lse = Some(case.output(DType::F32, [2, op.q.shape.rows()]));
            assert_eq!(op.plan(&facts((9, 0))).expect("a plan").kernel, format!("attention_fwd_{kernel}_sm90_bf16"));
            case.agrees_on(&op, (9, 0), ROW);
        }
    }
}

#[test]
fn a_neighbours_nan_stays_out() {
    // the last tile of the first sequence reaches into the second, whose values are NaN; all kinds of kernel
    for width in [64, 72, 128] {
        let mut case = Case::new(3);
        let heads = Heads { queries: 1, keys: 1, width };
        let (starts, t) = starts(&mut case, &[70, 5]);
        let (q, k) = (case.bf16([t, width]), case.bf16([t, width]));
        let mut numbers = case.random().f32s(t * width, 1.0);
        numbers[70 * width..].fill(f32::NAN);
        let v = case.values(DType::Bf16, [t, width], numbers);
        let y = case.output(DType::Bf16, [t, width]);
        case.agrees(&Attention {
            q,
            k,
            v,
            v_column: 0,
            starts,
            heads,
            mask: Mask::Full,
            scale: 0.2,
            pairs: 0,
            y,
            lse: None,
        });
    }
}

#[test]
fn large_scores_lose_no_weight() {
    // scores of about 150: exp alone would overflow, and a maximum that is not carried along loses everything
    let mut case = Case::new(1);
    let heads = Heads { queries: 1, keys: 1, width: 64 };
    let (starts, t) = starts(&mut case, &[150]);
    let [q, k] = [(); 2].map(|_| case.numbers(DType::Bf16, [t, 64], 4.0));
    let (v, y) = (case.bf16([t, 64]), case.output(DType::Bf16, [t, 64]));
    let mask = Mask::Full;
    case.agrees(&Attention { q, k, v, v_column: 0, starts, heads, mask, scale: 0.5, pairs: 0, y, lse: None });
}

#[test]
fn a_nan_reaches_its_own_row_of_a_full_mask() {
    let mut case = Case::new(2);
    let heads = Heads { queries: 1, keys: 1, width: 32 };
    let (starts, t) = starts(&mut case, &[5, 70]);
    let mut numbers = case.random().f32s(t * 32, 1.0);
    numbers[9 * 32 + 3] = f32::NAN;
    let q = case.values(DType::Bf16, [t, 32], numbers);
    let (k, v) = (case.bf16([t, 32]), case.bf16([t, 32]));
    let y = case.output(DType::Bf16, [t, 32]);
    case.agrees(&Attention {
        q,
        k,
        v,
        v_column: 0,
        starts,
        heads,
        mask: Mask::Full,
        scale: 0.2,
        pairs: 0,
        y,
        lse: None,
    });
}

/// dq, dk, dv: whether to add to what is there. Values and dy are coarse, so that the gradient of a lone key's score is
/// exactly zero in whatever order its sums run.
fn backward(case: &mut Case, mut forward: Attention, adds: [bool; 3]) -> AttentionBackward {
    forward.v = case.coarse(forward.v.shape);
    let forward = run_forward(case, forward);
    let dy = case.coarse(forward.y.shape);
    let mut gradient = |of: vlm::tensor::Tensor, add: bool| match add {
        true => Gradient { tensor: case.bf16(of.shape), accumulate: Accumulate::Add },
        false => Gradient { tensor: case.output(DType::Bf16, of.shape), accumulate: Accumulate::Overwrite },
    };
    let (dq, dk, dv) = (gradient(forward.q, adds[0]), gradient(forward.k, adds[1]), gradient(forward.v, adds[2]));
    AttentionBackward { forward, dy, dq, dk, dv }
}

#[test]
fn backward_agrees_with_the_host() {
    let mut reached = BTreeSet::new();
    for (i, heads) in HEADS.into_iter().enumerate() {
        let lengths = [[1].as_slice(), &[33], &[64], &[0, 65, 0, 3], &[]];
        for (j, lengths) in lengths.into_iter().enumerate().skip(i % 2).step_by(2) {
            let mask = if (i + j) % 4 < 2 { Mask::Causal } else { Mask::Full };
            let mut case = Case::new((i * 100 + j) as u64);
            let forward = attention(&mut case, lengths, heads, mask);
            let op = backward(&mut case, forward, [i % 3 == 0, j % 3 == 0, (i + j) % 3 == 0]);
            reached
                .extend(CAPABILITIES.map(|c| op.plan(&facts(c)).expect("a plan").map(|launch| launch.kernel)).concat());
            case.agrees(&op);
        }
    }
    assert_eq!(reached.len(), 13, "{reached:?}");
}

#[test]
fn hoppers_gradients_agree_with_the_host() {
    // a tile of keys, half of one (the queries of a step), one more or less, tiles that end amid a sequence's neighbour
    let lengths = [[127].as_slice(), &[128, 64], &[129], &[0, 63, 257, 0, 1, 130]];
    for (j, lengths) in lengths.into_iter().enumerate() {
        for (mask, width, kernel) in HOPPER {
            let mut case = Case::new(j as u64);
            let forward = attention(&mut case, lengths, (3 - j % 3, 1, width), mask);
            let op = backward(&mut case, forward, [j == 0, j == 1, j == 2]);
            let kernels = op.plan(&facts((9, 0))).expect("a plan").map(|launch| launch.kernel);
            assert_eq!(kernels, ["statistics", kernel].map(|of| format!("attention_bwd_{of}_sm90_bf16")));
            case.agrees_on(&op, (9, 0), ROW);
        }
    }
}

/// Several tiles of keys in several sequences, of unequal lengths and more than a warp has lanes: who adds to dq after whom.
#[test]
fn hoppers_blocks_add_to_dq_in_their_order() {
    let many = more_than_a_window();
    for (lengths, heads) in [([400, 0, 140].as_slice(), (2, 1)), (&many, (2, 2))] {
        for (mask, width, _) in HOPPER {
            let mut case = Case::new(lengths.len() as u64);
            let forward = attention(&mut case, lengths, (heads.0, heads.1, width), mask);
            let op = backward(&mut case, forward, [false; 3]);
            case.agrees_on(&op, (9, 0), ROW);
        }
    }
}

#[test]
fn a_neighbours_nan_stays_out_of_gradients() {
    // the last tile of the first sequence reaches into the second, all of whose numbers are NaN
    for (width, mask) in [(64, Mask::Full), (72, Mask::Full), (128, Mask::Causal), (128, Mask::Full)] {
        let mut case = Case::new(3);
        let heads = Heads { queries: 1, keys: 1, width };
        let (starts, t) = starts(&mut case, &[71, 6]);
        let [q, k, v, dy] = [(); 4].map(|_| {
            let mut numbers = case.random().f32s(t * width, 1.0);
            numbers[71 * width..].fill(f32::NAN);
            case.values(DType::Bf16, [t, width], numbers)
        });
        let y = case.output(DType::Bf16, [t, width]);
        let forward = Attention { q, k, v, v_column: 0, starts, heads, mask, scale: 0.2, pairs: 0, y, lse: None };
        let forward = run_forward(&mut case, forward);
        let gradient = |tensor| Gradient { tensor, accumulate: Accumulate::Overwrite };
        let [dq, dk, dv] = [(); 3].map(|_| gradient(case.output(DType::Bf16, [t, width])));
        case.agrees(&AttentionBackward { forward, dy, dq, dk, dv });
    }
}

#[test]
fn the_next_heads_nan_stays_out() {
    // columns of a tile behind a head 72 wide are the next head's, all of whose numbers are NaN
    let (mut case, width) = (Case::new(6), 72);
    let heads = Heads { queries: 2, keys: 2, width };
    let (starts, t) = starts(&mut case, &[9, 70]);
    let [q, k, v, dy] = [(); 4].map(|_| {
        let mut numbers = case.random().f32s(t * 2 * width, 1.0);
        numbers.chunks_mut(2 * width).for_each(|row| row[width..].fill(f32::NAN));
        case.values(DType::Bf16, [t, 2 * width], numbers)
    });
    let [y, dq, dk, dv] = [(); 4].map(|_| case.output(DType::Bf16, [t, 2 * width]));
    let forward =
        Attention { q, k, v, v_column: 0, starts, heads, mask: Mask::Full, scale: 0.2, pairs: 0, y, lse: None };
    case.agrees(&forward);
    let forward = run_forward(&mut case, forward);
    let [dq, dk, dv] = [dq, dk, dv].map(|tensor| Gradient { tensor, accumulate: Accumulate::Overwrite });
    case.agrees(&AttentionBackward { forward, dy, dq, dk, dv });
}

/// New tokens and tokens held of each sequence; blocks lie in the pools in a mixed order.
fn cached(case: &mut Case, new: &[usize], held: &[i32], heads: (usize, usize, usize), block: usize) -> AttentionCached {
    let (queries, keys, width) = heads;
    let (starts, t) = starts(case, new);
    let b = new.len();
    let max_blocks = held.iter().map(|n| (*n as usize).div_ceil(block)).max().unwrap_or(0) + 1;
    let n_blocks = b * max_blocks + 1;
    let lengths = case.whole([b], held.to_vec());
    let table = (0..b * max_blocks).map(|i| ((i * 7 + 3) % n_blocks) as i32);
    // what lies past a sequence's length is never read
    let table: Vec<i32> = table
        .enumerate()
        .map(|(i, at)| if (i % max_blocks) * block < held[i / max_blocks] as usize { at } else { -9 })
        .collect();
    let blocks = case.whole([b, max_blocks], table.clone());
    let row = keys * width;
    let held_rows: BTreeSet<usize> = (0..b)
        .flat_map(|s| (0..held[s] as usize).map(move |i| (s, i)))
        .map(|(s, i)| table[s * max_blocks + i / block] as usize * block + i % block)
        .collect();
    // rows that no sequence holds are not numbers
    let pool = |case: &mut Case| {
        let mut values = case.random().f32s(n_blocks * block * row, 1.0);
        let rows = values.chunks_exact_mut(row).enumerate().filter(|(i, _)| !held_rows.contains(i));
        rows.for_each(|(_, row)| row.fill(f32::NAN));
        case.values(DType::Bf16, [n_blocks * block, row], values)
    };
    let (k, v) = (pool(case), pool(case));
    let q = case.bf16([t, queries * width]);
    let y = case.output(DType::Bf16, [t, queries * width]);
    let (heads, scale) = (Heads { queries, keys, width }, (width as f32).powf(-0.5));
    AttentionCached { q, keys: k, values: v, starts, lengths, blocks, block, heads, scale, y }
}

#[test]
fn every_plan_fits_the_smaller_gpus() {
    let most = 99 * 1024;
    for (queries, keys, width) in HEADS {
        let mut case = Case::new(0);
        let forward = attention(&mut case, &[64], (queries, keys, width), Mask::Full);
        assert!(forward.plan(&facts((8, 6))).expect("a plan").shared_bytes <= most);
        let dy = case.bf16(forward.y.shape);
        let gradient = |tensor| Gradient { tensor, accumulate: Accumulate::Add };
        let (dq, dk, dv) = (gradient(forward.q), gradient(forward.k), gradient(forward.v));
        let backward = AttentionBackward { forward, dy, dq, dk, dv };
        assert!(backward.plan(&facts((8, 6))).expect("a plan").iter().all(|launch| launch.shared_bytes <= most));
        let cached = cached(&mut case, &[1], &[9], (queries, keys, width), 4);
        let plan = cached.plan().expect("a plan");
        assert!(plan.launches.iter().all(|(_, launch)| launch.shared_bytes <= most));
    }
}

#[test]
fn what_no_kernel_takes_is_said() {
    let mut case = Case::new(0);
    let op = attention(&mut case, &[3], (1, 1, 136), Mask::Full);
    let said = op.plan(&facts((8, 6))).expect_err("too wide").to_string();
    assert!(said.contains("heads at most 128 wide, or --device cpu"), "{said}");
    let op = cached(&mut case, &[1], &[1], (8193, 8193, 2), 1);
    let said = op.plan().expect_err("too many").to_string();
    assert!(said.contains("at most 8192 key heads, or --device cpu"), "{said}");
}

#[test]
fn a_long_cache_takes_several_launches() {
    // 40 tokens of 16 heads over a table of 16384 keys: the splits of all slots together leave more than fits
    let mut case = Case::new(5);
    let op = cached(&mut case, &[40], &[300], (16, 16, 16), 16);
    let wide = case.whole([1, 1024], vec![0; 1024]);
    let plan = AttentionCached { blocks: wide, ..op.clone() }.plan().expect("a plan");
    assert!(plan.scratch_bytes <= 64 << 20);
    let wide = case.whole([1, 1 << 15], vec![0; 1 << 15]);
    let mut long = op.clone();
    long.blocks = wide;
    let plan = long.plan().expect("a plan");
    assert!(plan.launches.len() > 1 && plan.scratch_bytes <= 64 << 20, "{plan:?}");
    let firsts: Vec<u32> = plan.launches.iter().map(|(first, ..)| *first).collect();
    let ends = plan.launches.iter().map(|(first, launch)| first + launch.grid[2]);
    assert_eq!(firsts[1..], ends.collect::<Vec<_>>()[..firsts.len() - 1]);
}

/// A lane of the join weighs every 32nd split of 256 keys: here there are more splits than lanes, and as many.
#[test]
fn cached_agrees_with_the_host_on_long_contexts() {
    for (i, (new, held)) in [([2, 1], [8800, 300]), ([1, 3], [8192, 8194])].into_iter().enumerate() {
        // by the larger scale a split's largest score is far from another's, and only from the largest of all do weights count
        for scale in [0.4, 60.0] {
            let mut case = Case::new(20 + i as u64);
            let op = AttentionCached { scale, ..cached(&mut case, &new, &held, (2, 1, 8), 16) };
            case.agrees(&op);
        }
    }
}

/// More slots than there are counters for: the second launch has its own place in tables and results, and the same counters.
#[test]
fn many_sequences_take_several_launches() {
    let held: Vec<i32> = (0..520).map(|i| 1 + i % 4).collect();
    let mut case = Case::new(6);
    let op = cached(&mut case, &[1; 520], &held, (16, 16, 8), 4);
    let plan = op.plan().expect("a plan");
    assert!(plan.launches.len() > 1 && plan.scratch_bytes < 64 << 20, "{plan:?}");
    case.agrees(&op);
}

#[test]
fn a_token_alone_gives_the_bits_that_it_gives_in_a_batch() {
    let run = |new: &[usize], held: &[i32], tables: &[i32], q: &[f32]| {
        let mut case = Case::new(9);
        let (width, block, b) = (64, 16, new.len());
        let pool = [40 * block, width];
        let (keys, values) = (case.bf16(pool), case.bf16(pool));
        let (starts, t) = starts(&mut case, new);
        let lengths = case.whole([b], held.to_vec());
        let blocks = case.whole([b, tables.len() / b], tables.to_vec());
        let q = case.values(DType::Bf16, [t, width], q.to_vec());
        let y = case.output(DType::Bf16, [t, width]);
        let heads = Heads { queries: 1, keys: 1, width };
        let op = AttentionCached { q, keys, values, starts, lengths, blocks, block, heads, scale: 0.1, y };
        let mut device = Device::emulated((8, 6)).expect("an emulator");
        case.begin(&mut device).expect("room");
        op.contract().expect("a contract that holds");
        op.forward(&mut device).expect("a run");
        device.memory().read_f32(y).expect("y")
    };
    let q: Vec<f32> = (0..64).map(|i| ((i * 37 % 19) as f32 - 9.0) / 8.0).collect();
    let own: Vec<i32> = (0..19).map(|i| 39 - i).collect();
    let alone = run(&[1], &[290], &own, &q);
    let others: Vec<i32> = (0..19).map(|i| i % 7).collect();
    let together =
        run(&[2, 1, 1], &[40, 290, 3], &[others.clone(), own, others].concat(), &[&q[..], &q, &q, &q].concat());
    assert_eq!(alone, together[128..192]);
}

#[test]
fn a_neighbours_large_scores_stay_out() {
    // beside the second head's largest score all of the first head's weights would be zero
    let mut case = Case::new(4);
    let mut op = cached(&mut case, &[1], &[300], (2, 1, 16), 16);
    let mut q = case.random().f32s(2 * 16, 1.0);
    q[16..].iter_mut().for_each(|x| *x *= 100.0);
    op.q = case.values(DType::Bf16, [1, 2 * 16], q);
    case.agrees(&op);
}

/// A lane of the warp that joins a row's splits has one, or two.
#[test]
fn splits_are_joined_where_they_are_more_than_lanes() {
    let mut case = Case::new(8);
    let op = cached(&mut case, &[1], &[33 * 256 + 9], (2, 1, 16), 64);
    case.agrees(&op);
}

#[test]
fn no_start_is_read_past_the_last() {
    for (mask, width, _) in HOPPER {
        let ends = |case: &mut Case| case.whole([4], vec![0, 70, 70, 200]);
        let mut case = Case::new(4);
        let mut op = attention(&mut case, &[70, 0, 130], (2, 1, width), mask);
        op.starts = ends(&mut case);
        case.agrees_before_a_guard(Arena::Activations, &op);
        let mut case = Case::new(4);
        let forward = attention(&mut case, &[70, 0, 130], (2, 1, width), mask);
        let mut op = backward(&mut case, forward, [false; 3]);
        op.forward.starts = ends(&mut case);
        case.agrees_before_a_guard(Arena::Activations, &op);
    }
}

/// A block's 16 rows are more than are left at the end of the last sequence.
#[test]
fn no_query_is_read_past_the_last() {
    for heads in [(4, 2, 64), (2, 2, 12)] {
        let mut case = Case::new(3);
        let mut op = cached(&mut case, &[1, 3], &[9, 70], heads, 16);
        op.q = case.bf16(op.q.shape);
        case.agrees_before_a_guard(Arena::Activations, &op);
    }
}

#[test]
fn cached_agrees_with_the_host() {
    let mut reached = BTreeSet::new();
    for (i, heads) in HEADS.into_iter().enumerate() {
        let batches: [(&[usize], &[i32], usize); 4] =
            [(&[1], &[1], 16), (&[1, 1, 1], &[255, 256, 257], 16), (&[3, 0, 18], &[3, 40, 300], 7), (&[], &[], 4)];
        for (j, (new, held, block)) in batches.into_iter().enumerate() {
            let mut case = Case::new((i * 100 + j) as u64);
            let op = cached(&mut case, new, held, heads, block);
            reached.extend(op.plan().expect("a plan").launches.iter().map(|(_, launch)| launch.kernel));
            case.agrees(&op);
        }
    }
    assert_eq!(reached.len(), 5, "{reached:?}");
}
