//! The kernels that go through tensors piece by piece, of the optimiser and of sampling, against the host, in the
//! emulator.

use crate::support::kernels::Case;
use vlm::base::{DType, Precision};
use vlm::device::{Accumulate, Device};
use vlm::host::adamw::Step;
use vlm::ops::adamw::AdamW;
use vlm::ops::deepstack_add::{DeepstackAdd, DeepstackAddBackward};
use vlm::ops::embed::{Embed, EmbedBackward};
use vlm::ops::grad_norm::GradNorm;
use vlm::ops::sample::{Choice, Sample, chosen};
use vlm::ops::swiglu::{Swiglu, SwigluBackward};
use vlm::ops::{Gradient, Op};
use vlm::tensor::Tensor;

/// One, primes, a block's pieces and one more, none.
const SHAPES: [(usize, usize); 8] = [(1, 1), (1, 8), (3, 7), (5, 13), (32, 64), (33, 64), (7, 257), (0, 16)];

/// A gradient that holds something, or nothing yet.
fn gradient(case: &mut Case, of: Tensor, accumulate: Accumulate) -> Gradient {
    let tensor = match accumulate {
        Accumulate::Add => case.bf16(of.shape),
        Accumulate::Overwrite => case.output(DType::Bf16, of.shape),
    };
    Gradient { tensor, accumulate }
}

const BOTH: [Accumulate; 2] = [Accumulate::Overwrite, Accumulate::Add];

#[test]
fn swiglu() {
    for (seed, (t, f)) in SHAPES.into_iter().enumerate() {
        for accumulate in BOTH {
            let mut case = Case::new(seed as u64);
            let gate_up = case.numbers(DType::Bf16, [t, 2 * f], 4.0);
            let forward = Swiglu { gate_up, y: case.output(DType::Bf16, [t, f]) };
            case.agrees(&forward);
            let dy = case.bf16([t, f]);
            let dgate_up = gradient(&mut case, gate_up, accumulate);
            case.agrees(&SwigluBackward { forward, dy, dgate_up });
        }
    }
    // gates so large that the exponential would overflow, and what is no number
    let mut case = Case::new(1);
    let gates = [-1e30, -200.0, -89.0, -88.0, -1.0, 0.0, 88.0, 200.0, 1e30, f32::NAN];
    let gate_up = case.values(DType::Bf16, [10, 2], gates.iter().flat_map(|g| [*g, 0.5]).collect());
    let forward = Swiglu { gate_up, y: case.output(DType::Bf16, [10, 1]) };
    case.agrees(&forward);
    let dy = case.bf16([10, 1]);
    let dgate_up = gradient(&mut case, gate_up, Accumulate::Overwrite);
    case.agrees(&SwigluBackward { forward, dy, dgate_up });
}

/// Tokens, width, rows of the table, feature rows.
const EMBEDDINGS: [(usize, usize, usize, usize); 6] =
    [(1, 1, 1, 0), (5, 8, 3, 2), (300, 7, 11, 4), (17, 264, 5, 17), (0, 8, 3, 0), (257, 16, 2, 1)];

fn embed(case: &mut Case, (t, d, v, u): (usize, usize, usize, usize), images: bool, trained: bool) -> Embed {
    let ids = (0..t).map(|_| case.random().below(v) as i32).collect();
    let ids = case.whole([t], ids);
    // the features stand at the beginning, in order, apart from every third token
    let rows = (0..t).scan(0, |next, i| {
        let image = i % 3 != 2 && *next < u;
        *next += usize::from(image);
        Some(if image { *next as i32 - 1 } else { -1 })
    });
    let rows: Vec<i32> = rows.collect();
    let image = images.then(|| (case.bf16([u, d]), case.whole([t], rows)));
    let table = if trained { case.trained("table", [v, d], 1.0) } else { case.weight("table", [v, d], 1.0) };
    Embed { ids, table, image, precision: Precision::Bf16, y: case.output(DType::Bf16, [t, d]) }
}

#[test]
fn embed_copies_rows_and_adds_gradients_in_order() {
    for (seed, sizes) in EMBEDDINGS.into_iter().enumerate() {
        for (images, trained) in [(false, false), (true, false), (false, true), (true, true)] {
            let mut case = Case::new(seed as u64);
            let op = embed(&mut case, sizes, images, trained);
            case.agrees_within(&op, 0.0);
            for accumulate in BOTH {
                let mut case = Case::new(seed as u64);
                let forward = embed(&mut case, sizes, images, trained);
                let dy = case.bf16(forward.y.shape);
                let features = forward.image.map(|(features, _)| features);
                let dfeatures = features.map(|f| gradient(&mut case, f, accumulate));
                case.agrees(&EmbedBackward { forward, dy, dfeatures });
            }
        }
    }
}

#[test]
fn deepstack_add() {
    for (seed, (t, d, rows)) in [
        (1, 1, vec![0]),
        (5, 8, vec![3, 0]),
        (40, 7, (0..33).rev().collect()),
        (3, 257, vec![1, 2, 0]),
        (3, 16, vec![]),
    ]
    .into_iter()
    .enumerate()
    {
        let mut case = Case::new(seed as u64);
        let u = rows.len();
        let (x, features) = (case.bf16([t, d]), case.bf16([u, d]));
        let rows = case.whole([u], rows);
        let y = case.output(DType::Bf16, [t, d]);
        case.agrees(&DeepstackAdd { x, features, rows, y });
        // in x's place
        case.agrees(&DeepstackAdd { x, features, rows, y: x });
        for accumulate in BOTH {
            let mut case = Case::new(seed as u64);
            let dy = case.bf16([t, d]);
            let rows = case.whole([u], (0..u as i32).collect());
            let features = case.bf16([u, d]);
            let dfeatures = gradient(&mut case, features, accumulate);
            case.agrees(&DeepstackAddBackward { rows, dy, dfeatures });
        }
    }
}

fn step(number: u32) -> Step {
    Step { number, learning_rate: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, gradient_scale: 1.0 }
}

#[test]
fn adamw_moves_values_and_moments() {
    for (seed, n) in [1, 7, 255, 256, 257, 5000].into_iter().enumerate() {
        for (norm, max_norm) in [(3.0, Some(1.0)), (0.5, Some(1.0)), (3.0, None), (f32::NAN, Some(1.0))] {
            let mut case = Case::new(seed as u64);
            let [value, gradient, first] = [0.5, 1.0, 0.1].map(|deviation| case.parameter([n], deviation));
            let second = case.values(DType::F32, [n], (0..n).map(|i| 0.01 * (i % 7) as f32).collect());
            let norm = case.values(DType::F32, [1], vec![norm]);
            case.agrees_within(&AdamW { value, gradient, first, second, norm, max_norm, step: step(3) }, 1e-6);
        }
    }
}

#[test]
fn the_norm_of_gradients() {
    for (seed, n) in [1, 255, 257, 16384, 16385, 40000].into_iter().enumerate() {
        let mut case = Case::new(seed as u64);
        let gradients = case.numbers(DType::F32, [n], 1.0);
        let norm = case.output(DType::F32, [1]);
        case.agrees_within(&GradNorm { gradients, norm }, 1e-7);
    }
    // squares that overflow f32, and what is no number
    for value in [3e30, f32::NAN] {
        let mut case = Case::new(9);
        let gradients = case.values(DType::F32, [3], vec![value, 1.0, 4e30]);
        let norm = case.output(DType::F32, [1]);
        case.agrees_within(&GradNorm { gradients, norm }, 1e-7);
    }
}

/// A shadow is what a product reads of a trained weight: here an embedding's table.
#[test]
fn shadows_follow_their_masters() {
    let mut case = Case::new(5);
    let table = case.trained("table", [3, 4], 1.0);
    let (first, second) = (case.parameter([12], 0.1), case.values(DType::F32, [12], vec![0.01; 12]));
    let norm = case.values(DType::F32, [1], vec![1.0]);
    let ids = case.whole([3], vec![0, 1, 2]);
    let y = case.output(DType::Bf16, [3, 4]);
    let read = Embed { ids, table: table.clone(), image: None, precision: Precision::Bf16, y };
    let trained = table.as_trained().expect("a trained weight");
    let (value, gradient) = (trained.value.reshaped([12]), trained.gradient.reshaped([12]));
    let moved = AdamW { value, gradient, first, second, norm, max_norm: Some(1.0), step: step(1) };
    let mut devices = [Device::host(), Device::emulated((9, 0)).expect("an emulator")];
    let mut seen: Vec<Vec<Vec<f32>>> = Vec::new();
    for device in &mut devices {
        case.begin(device).expect("room");
        let mut of = Vec::new();
        let mut note = |device: &mut Device| {
            read.forward(device).expect("embed");
            of.push(device.memory().read_f32(y).expect("y"));
        };
        note(device);
        moved.forward(device).expect("adamw");
        note(device);
        device.memory().write_f32(value, &[2.5; 12]).expect("value");
        note(device);
        device.memory().zero(value).expect("value");
        note(device);
        seen.push(of);
    }
    assert_eq!(seen[0], seen[1]);
    assert!(seen[0][0] != seen[0][1] && seen[0][2] == [2.5; 12] && seen[0][3] == [0.0; 12], "{seen:?}");
    let casts = devices[1].launches().get("cast_fwd_bf16").copied();
    assert_eq!(casts, Some(3), "the optimiser writes the shadow itself");
}

fn sample(case: &mut Case, (b, v): (usize, usize), logits: Option<Vec<f32>>, choice: Choice) -> Sample {
    let n_valid = (v - v / 9).max(1);
    let logits = match logits {
        Some(values) => case.values(DType::F32, [b, v], values),
        None => case.numbers(DType::F32, [b, v], 3.0),
    };
    // padding is negative or past the end
    let mut some = |n: usize| {
        let ids = (0..b * n).map(|i| if i % 4 == 3 { -1 } else { case.random().below(v + 1) as i32 }).collect();
        case.whole([b, n], ids)
    };
    let (seen, generated) = (some(9), some(5));
    let uniform = (0..b).map(|_| case.random().below(1000) as f32 / 1000.0).collect();
    let uniform = case.values(DType::F32, [b], uniform);
    let y = case.output(DType::I32, [b]);
    Sample { logits, seen, generated, uniform, choice, n_valid, y }
}

#[test]
fn the_same_tokens_are_chosen() {
    let free = Choice { temperature: Some(0.7), ..Choice::GREEDY };
    let choices = [
        Choice::GREEDY,
        Choice { repetition_penalty: 1.3, presence_penalty: 0.5, ..Choice::GREEDY },
        free,
        Choice { top_k: 5, ..free },
        Choice { top_p: 0.8, ..free },
        Choice { top_k: 20, top_p: 0.8, repetition_penalty: 1.1, presence_penalty: 1.5, ..free },
        Choice { top_k: 1, ..free },
        Choice { top_p: 1e-6, ..free },
    ];
    for (seed, sizes) in [(1, 1), (3, 2), (2, 257), (4, 600)].into_iter().enumerate() {
        for choice in choices {
            let mut case = Case::new(seed as u64);
            let op = sample(&mut case, sizes, None, choice);
            case.agrees(&op);
            // few different values: whole groups of equals stand at every border
            let (b, v) = sizes;
            let steps = (0..b * v).map(|i| ((i * 7) % 5) as f32 - 2.0).collect();
            let mut case = Case::new(seed as u64 + 100);
            let op = sample(&mut case, sizes, Some(steps), choice);
            case.agrees(&op);
        }
    }
    for choice in [Choice::GREEDY, free] {
        let mut case = Case::new(7);
        let mut logits: Vec<f32> = (0..40).map(|i| i as f32 * 0.1).collect();
        (logits[0], logits[5], logits[39]) = (f32::NEG_INFINITY, f32::NEG_INFINITY, f32::NAN);
        let op = sample(&mut case, (1, 40), Some(logits), choice);
        case.agrees(&op);
    }
}

/// A vocabulary of several chunks, of which the last has few tokens or one; lists that end in one of them and lists of all.
#[test]
fn tokens_of_several_chunks_are_chosen() {
    let free = Choice { temperature: Some(0.7), ..Choice::GREEDY };
    let penalties = Choice { repetition_penalty: 1.3, presence_penalty: 0.5, ..Choice::GREEDY };
    let choices = [
        Choice::GREEDY,
        penalties,
        Choice { top_k: 20, top_p: 0.8, ..free },
        Choice { top_k: 5000, temperature: Some(1.5), ..penalties },
        free,
        Choice { top_p: 0.9, ..free },
    ];
    for (seed, sizes) in [(2, 10_000), (2, 4609), (1, 9217)].into_iter().enumerate() {
        for choice in choices {
            let mut case = Case::new(seed as u64);
            let op = sample(&mut case, sizes, None, choice);
            assert!(op.plan()[0].1.grid[0] > 1);
            case.agrees(&op);
            // equals of the largest in every chunk, and more of them than are to be kept
            let (b, v) = sizes;
            let mut steps: Vec<f32> = (0..b * v).map(|i| ((i * 7) % 5) as f32 - 2.0).collect();
            // where few are left out a chunk's list moves by less than a block has threads
            steps.iter_mut().step_by(997).for_each(|l| *l = f32::NEG_INFINITY);
            let mut case = Case::new(seed as u64 + 100);
            let op = sample(&mut case, sizes, Some(steps), choice);
            case.agrees(&op);
        }
    }
}

/// The first token of a chunk is none of the chunk before.
#[test]
fn a_penalty_stays_in_its_chunk() {
    let mut case = Case::new(12);
    let mut logits = vec![0.0; 5000];
    (logits[0], logits[1], logits[4096]) = (2.0, 1.0, 1.5);
    let choice = Choice { repetition_penalty: 1.5, presence_penalty: 5.0, ..Choice::GREEDY };
    let mut op = sample(&mut case, (1, 5000), Some(logits), choice);
    (op.seen, op.generated) = (case.whole([1, 1], vec![4096]), case.whole([1, 1], vec![4096]));
    case.agrees(&op);
}

/// The whole of a vocabulary is gone through by all threads of a block together: else this takes minutes.
#[test]
fn a_token_of_a_whole_vocabulary_is_chosen() {
    let choice = Choice { temperature: Some(1.0), top_p: 0.95, ..Choice::GREEDY };
    let v = 151_936;
    // equals alone, too, of which 5 in 100 go
    for logits in [None, Some(vec![0.5; v])] {
        let mut case = Case::new(11);
        let op = sample(&mut case, (1, v), logits, choice);
        case.agrees(&op);
    }
}

#[test]
fn more_sequences_than_counters_take_several_launches() {
    let mut case = Case::new(9);
    let op = sample(&mut case, (8200, 3), None, Choice { top_k: 2, ..Choice::GREEDY });
    assert_eq!(
        op.plan().iter().map(|(first, launch)| (*first, launch.grid[1])).collect::<Vec<_>>(),
        [(0, 8192), (8192, 8)]
    );
    case.agrees(&op);
}

#[test]
fn tokens_at_the_edges_are_chosen() {
    let free = Choice { temperature: Some(0.7), ..Choice::GREEDY };
    // the first of all is the largest
    let falling = (0..600).map(|i| 3.0 - i as f32 * 0.001).collect();
    // nothing is chosen beside an infinite logit
    let mut infinite: Vec<f32> = (0..40).map(|i| i as f32 * 0.1).collect();
    (infinite[0], infinite[7]) = (f32::NEG_INFINITY, f32::INFINITY);
    // both zeros are the largest
    let zeros: Vec<f32> = (0..40).map(|i| [-1.0, -0.0, 0.0][i % 3]).collect();
    for (logits, choice) in [
        (falling, Choice::GREEDY),
        (infinite.clone(), Choice::GREEDY),
        (infinite, free),
        (zeros.clone(), Choice::GREEDY),
        (zeros, Choice { top_k: 3, ..free }),
    ] {
        let mut case = Case::new(7);
        let op = sample(&mut case, (1, logits.len()), Some(logits), choice);
        case.agrees(&op);
    }
    // of a number that is none below 1 the last is taken, and nothing behind it is looked at
    let mut case = Case::new(7);
    let mut op = sample(&mut case, (3, 2), None, free);
    op.uniform = case.values(DType::F32, [3], vec![1.0; 3]);
    case.agrees(&op);
}

#[test]
fn beside_nan_or_infinity_nothing_is_chosen() {
    for choice in [Choice::GREEDY, Choice { temperature: Some(0.7), top_k: 3, ..Choice::GREEDY }] {
        let mut case = Case::new(8);
        let mut logits = vec![1.0; 4 * 20];
        (logits[20 + 3], logits[40 + 5], logits[60 + 7]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
        let op = sample(&mut case, (4, 20), Some(logits), choice);
        for mut device in [Device::host(), Device::emulated((9, 0)).expect("an emulator")] {
            case.begin(&mut device).expect("room");
            op.forward(&mut device).expect("a run");
            let tokens = chosen(device.memory(), op.y).expect("tokens");
            assert_eq!(tokens.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, false, true]);
        }
    }
}
