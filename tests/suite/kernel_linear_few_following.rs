//! A product of few rows and the word that reads it, in one launch of Hopper's and in two: every value has the same bits,
//! in the emulator, whoever comes last. The words alone are held against the host elsewhere.

use crate::batches::text;
use crate::folders::{model, set, small_config};
use crate::kernel_linear::{Columns, Options, PLAIN, Trained, linear};
use crate::kernel_qk_rope::{Norms, qk_rope};
use crate::support::kernels::{Case, on_gpu};
use serde_json::json;
use vlm::base::{DType, Precision, Result};
use vlm::device::{Clock, Device};
use vlm::infer::engine::{Answer, Engine, Read};
use vlm::nn::Linear as Layer;
use vlm::ops::Op;
use vlm::ops::linear::{Activation, Linear};
use vlm::ops::norm::{Kind, Norm};
use vlm::ops::qk_rope::QkRope;
use vlm::ops::swiglu::Swiglu;
use vlm::qwen3vl::checkpoint::Checkpoint;
use vlm::qwen3vl::model::{Model, Rows};
use vlm::tape::{Record, Tape};
use vlm::tensor::{Tensor, Weight};

const HOPPER: (i32, i32) = (9, 0);

/// A product and the word after it, one after the other or as one.
#[derive(Clone)]
struct Both {
    product: Record,
    next: Record,
    joined: bool,
}

impl Op for Both {
    fn name(&self) -> &'static str {
        if self.joined { "a product and what follows" } else { "a product, and what follows" }
    }
    fn contract(&self) -> Result<()> {
        self.product.op().contract()?;
        self.next.op().contract()
    }
    fn inputs(&self) -> Vec<Tensor> {
        self.product.op().inputs()
    }
    fn outputs(&self) -> Vec<Tensor> {
        self.next.op().outputs().into_iter().chain(self.product.op().outputs()).collect()
    }
    fn forward(&self, device: &mut Device) -> Result<()> {
        let done = match self.product.followed(&self.next).filter(|_| self.joined) {
            Some(followed) => followed.run(device, &mut Clock::default())?,
            None => self.product.op().forward(device).map(|()| false)?,
        };
        if done { Ok(()) } else { self.next.op().forward(device) }
    }
}

/// Panics unless both ways leave the same bits everywhere, and the one launches `kernels` alone.
#[track_caller]
fn same_bits(case: &Case, product: Linear, next: Record, kernels: &[&str]) {
    let apart = Both { product: product.into(), next, joined: false };
    let joined = Both { joined: true, ..apart.clone() };
    let (wanted, of_apart) = case.bits_on(&apart, HOPPER);
    let (got, of_joined) = case.bits_on(&joined, HOPPER);
    on_gpu(|gpu| {
        let (wanted, got) = (case.run(&apart, gpu).expect("a run"), case.run(&joined, gpu).expect("a run"));
        assert!(got == wanted, "{} differs on a GPU", joined.name());
    });
    assert_eq!(of_joined.iter().map(|(kernel, _)| *kernel).collect::<Vec<_>>(), kernels);
    assert!(of_joined.iter().map(|(_, n)| n).sum::<u64>() <= of_apart.iter().map(|(_, n)| n).sum::<u64>());
    for (seed, (got, wanted)) in got.iter().zip(&wanted).enumerate() {
        for (i, (got, wanted)) in got.iter().zip(wanted).enumerate() {
            let differs = got.iter().zip(wanted).position(|(g, w)| g != w);
            assert!(differs.is_none(), "seed {seed}: tensor {i} differs at {differs:?}");
        }
    }
}

fn few(m: usize) -> String {
    format!("linear_fwd_few_{}x128_sm90_bf16", m.next_power_of_two().max(16))
}

fn swiglu(case: &mut Case, product: &Linear) -> Record {
    let y = case.output(DType::Bf16, [product.y.shape.rows(), product.y.shape.width() / 2]);
    Swiglu { gate_up: product.y, y }.into()
}

/// The same over heads: so many of queries and of keys.
fn heads(case: &mut Case, product: &Linear, of: (usize, usize, usize), norms: Norms, append: bool) -> Record {
    let (queries, keys, width) = of;
    let op = qk_rope(case, (product.y.shape.rows(), queries, keys, width), norms, append);
    QkRope { qkv: product.y, ..op }.into()
}

fn norm(case: &mut Case, product: &Linear) -> Record {
    let d = product.y.shape.width();
    let kind = Kind::Rms { weight: case.weight("norm", [d], 1.0) };
    let y = case.output(DType::Bf16, product.y.shape);
    Norm { x: product.y, rows: None, kind, eps: 1e-6, precision: Precision::Bf16, y }.into()
}

/// Rows and depths: every tile, k in one part and in several.
const SIZES: [(usize, usize); 8] =
    [(1, 1608), (2, 72), (16, 1600), (17, 264), (33, 2000), (64, 136), (65, 1608), (128, 64)];

#[test]
fn swiglu_of_columns_that_are_complete() {
    let columns: [&[Columns]; 4] = [
        &[(8, 0, true), (8, 0, false)],
        &[(136, 8, false), (136, 0, true)],
        &[(264, 0, false), (264, 0, false)],
        &[(128, 8, true), (128, 16, true)],
    ];
    for (i, (m, k)) in SIZES.into_iter().enumerate() {
        let mut case = Case::new(i as u64);
        let product = linear(&mut case, (m, k, columns[i % 4]), Trained::Nothing, PLAIN, false);
        let next = swiglu(&mut case, &product);
        same_bits(&case, product, next, &[&few(m)]);
    }
}

/// Of many rows, tile by tile: ragged ends of rows, of columns and of k, and several tiles a block.
#[test]
fn swiglu_of_a_tile_of_gate_and_up() {
    for (i, (m, k, f)) in [(500, 264, 1000), (1000, 72, 240), (512, 64, 512), (385, 8, 1016)].into_iter().enumerate() {
        let mut case = Case::new(i as u64);
        let product = linear(&mut case, (m, k, &[(f, 0, false), (f, 0, false)]), Trained::Nothing, PLAIN, false);
        let next = swiglu(&mut case, &product);
        same_bits(&case, product, next, &["linear_fwd_gated_128x256_sm90_bf16"]);
    }
}

#[test]
fn heads_of_tiles_that_are_complete() {
    for (i, (m, k)) in SIZES.into_iter().enumerate() {
        let (queries, keys) = [(2, 1), (4, 2), (1, 1)][i % 3];
        let norms = if i % 4 == 3 { Norms::None } else { Norms::Frozen };
        let rank = if i % 2 == 0 { 8 } else { 0 };
        let columns = [(queries * 128, rank, i % 3 == 0), (keys * 128, 0, false), (keys * 128, rank, false)];
        let mut case = Case::new(i as u64);
        let product = linear(&mut case, (m, k, &columns), Trained::Nothing, PLAIN, false);
        // of rows + 4 slots in steps of 3 none comes twice
        let append = i % 3 != 1 && (m + 4) % 3 != 0;
        let next = heads(&mut case, &product, (queries, keys, 128), norms, append);
        same_bits(&case, product, next, &[&few(m)]);
    }
}

#[test]
fn a_norm_of_rows_that_are_complete() {
    for (i, (m, k, n)) in [(1, 1608, 136), (2, 1600, 8), (3, 72, 520), (4, 2000, 264), (1, 64, 1024), (2, 64, 5128)]
        .into_iter()
        .enumerate()
    {
        for (activation, residual) in [(Activation::None, true), (Activation::GeluTanh, false)] {
            let mut case = Case::new(i as u64);
            let options = Options { residual, activation, ..PLAIN };
            let mut product = linear(&mut case, (m, k, &[(n, 8, true)]), Trained::Nothing, options, false);
            if residual && i % 2 == 0 {
                // the residual's bytes taken over, as a plan of memory would have it
                product.y = case.bf16(product.y.shape);
                product.residual = Some(product.y);
            }
            let next = norm(&mut case, &product);
            same_bits(&case, product, next, &[&few(m)]);
        }
    }
}

#[test]
fn what_no_launch_does_as_one_is_done_one_after_the_other() {
    let mut case = Case::new(1);
    let mut of =
        |m, k, columns: &[Columns], options| linear(&mut case, (m, k, columns), Trained::Nothing, options, false);
    let two: &[Columns] = &[(72, 0, false), (72, 0, false)];
    let many = of(129, 64, two, PLAIN);
    let unaligned = of(3, 67, two, PLAIN);
    let of_three = of(3, 72, &[(24, 0, false), (24, 0, false), (24, 0, true)], PLAIN);
    let gathered = of(3, 72, two, Options { rows: true, ..PLAIN });
    let narrow = of(3, 72, &[(128, 0, false), (64, 0, false), (64, 0, false)], PLAIN);
    let of_one = of(3, 72, &[(512, 0, false)], PLAIN);
    let five_rows = of(5, 72, &[(72, 0, false)], PLAIN);
    let of_adapters = of(500, 72, &[(1000, 0, false), (1000, 8, false)], PLAIN);
    let of_narrow_tiles = of(150, 72, &[(264, 0, false), (264, 0, false)], PLAIN);
    for (product, kernel) in [
        (many, "linear_fwd_narrow_128x192_sm90_bf16"),
        (unaligned, "linear_fwd_any_bf16"),
        (of_three, "linear_fwd_few_16x128_sm90_bf16"),
        (gathered, "linear_fwd_16x32_bf16"),
        (of_narrow_tiles, "linear_fwd_128x176_sm90_bf16"),
    ] {
        let next = swiglu(&mut case, &product);
        same_bits(&case, product, next, &[kernel, "swiglu_fwd_bf16"]);
    }
    let next = swiglu(&mut case, &of_adapters);
    let kernels = ["linear_fwd_128x256_sm90_bf16", "linear_fwd_narrow_128x64_sm90_bf16", "swiglu_fwd_bf16"];
    same_bits(&case, of_adapters, next, &kernels);
    let next = heads(&mut case, &narrow, (2, 1, 64), Norms::Frozen, true);
    same_bits(&case, narrow, next, &[&few(3), "qk_rope_fwd_v8_bf16"]);
    // one weight for all heads is whole heads too
    let next = heads(&mut case, &of_one, (2, 1, 128), Norms::Frozen, true);
    same_bits(&case, of_one, next, &[&few(3)]);
    let next = norm(&mut case, &five_rows);
    same_bits(&case, five_rows, next, &[&few(5), "norm_fwd_bf16"]);
}

/// One launch has no refusals of its own: each word says what it does not take.
#[test]
fn what_a_word_refuses_is_refused_with_the_product_before_it() {
    let mut case = Case::new(3);
    let product = linear(&mut case, (2, 72, &[(8, 0, false), (8, 0, false)]), Trained::Nothing, PLAIN, false);
    let y = case.output(DType::F32, [2, 8]);
    let next = Swiglu { gate_up: product.y, y }.into();
    let both = Both { product: product.into(), next, joined: true };
    let said = case.run(&both, &mut Device::emulated(HOPPER).expect("an emulator")).expect_err("f32").to_string();
    assert!(said.contains("bf16, which is what the kernels compute in"), "{said}");
}

#[test]
fn a_word_that_reads_something_else_does_not_follow() {
    let mut case = Case::new(2);
    let two: &[Columns] = &[(8, 0, false), (8, 0, false)];
    let product = linear(&mut case, (2, 72, two), Trained::Nothing, PLAIN, false);
    let other = linear(&mut case, (2, 72, two), Trained::Nothing, PLAIN, false);
    let next = swiglu(&mut case, &other);
    assert!(Record::from(product).followed(&next).is_none());
    assert!(Record::from(other).followed(&next).is_some());
    assert!(next.followed(&next).is_none());
    // nor does one that reads it in another shape, in which a row of it is no row of the product's
    let product = linear(&mut case, (2, 72, &[(512, 0, false)]), Trained::Nothing, PLAIN, false);
    let wide = Linear { y: product.y.reshaped([8, 128]), ..product.clone() };
    let next = norm(&mut case, &wide);
    next.op().contract().expect("a norm of eight rows");
    assert!(Record::from(product.clone()).followed(&next).is_none());
    let wide = Linear { y: product.y.reshaped([4, 256]), ..product.clone() };
    let next = swiglu(&mut case, &wide);
    assert!(Record::from(product).followed(&next).is_none());
}

/// An MLP between two norms: a tape does in three launches what its records do in five, with the same bits, and SwiGLU's
/// result does not take the place of what the product before it reads.
#[test]
fn a_tape_joins_records() {
    let (m, d, f) = (3, 136, 136);
    let values = |n: usize, seed: usize| -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729 + 13) % 1009) as f32 / 1009.0 - 0.5).collect()
    };
    let weight = |n: usize, k: usize, seed| Weight::from_f32("w", [n, k], &values(n * k, seed)).expect("a weight");
    let layer = |shapes: &[(usize, usize)]| {
        let segment = |(i, (n, k)): (usize, &(usize, usize))| vlm::ops::linear::Segment {
            weight: weight(*n, *k, i + n),
            bias: None,
            adapter: None,
        };
        Layer { segments: shapes.iter().enumerate().map(segment).collect() }
    };
    let (gate_up, down) = (layer(&[(f, d), (f, d)]), layer(&[(d, f)]));
    let norm = |tape: &mut Tape, x: Tensor| {
        let y = tape.activation([m, d]);
        let kind = Kind::Rms { weight: Weight::from_f32("n", [d], &values(d, 5)).expect("a weight") };
        tape.push(Norm { x, rows: None, kind, eps: 1e-6, precision: Precision::Bf16, y }).expect("a record");
        y
    };
    let run = |as_one: bool| {
        let mut tape = Tape::new(Precision::Bf16);
        let x = tape.input(DType::Bf16, [m, d]);
        let before = norm(&mut tape, x);
        let gated = gate_up.apply(&mut tape, before, None, Activation::None, None).expect("a record");
        let y = tape.activation([m, f]);
        tape.push(Swiglu { gate_up: gated, y }).expect("a record");
        let sum = down.apply(&mut tape, y, None, Activation::None, Some(x)).expect("a record");
        let after = norm(&mut tape, sum);
        let kept = [tape.keep(sum), tape.keep(after)];
        let mut device = Device::emulated(HOPPER).expect("an emulator");
        tape.begin(&mut device).expect("memory");
        device.memory().write_f32(x, &values(m * d, 9)).expect("an input");
        if as_one {
            tape.run(&mut device, &mut Clock::default(), &mut |_, _| ()).expect("a run");
        } else {
            tape.records().iter().for_each(|record| record.op().forward(&mut device).expect("a run"));
        }
        let bits = kept.map(|t| device.memory().read_f32(t).expect("a value"));
        (bits, device.launches().values().sum::<u64>())
    };
    let ((apart, five), (joined, three)) = (run(false), run(true));
    assert_eq!((five, three), (5, 3));
    assert!(apart == joined && apart.iter().flatten().all(|v| v.is_finite()));
}

/// A model with heads as wide as the real ones': a token takes five launches a layer, and four around them. What it says is
/// what the host says.
#[test]
fn a_token_takes_five_launches_a_layer() {
    let mut config = small_config();
    for (at, value) in [
        ("/text_config/vocab_size", json!(432)),
        ("/text_config/head_dim", json!(128)),
        ("/text_config/rope_scaling/mrope_section", json!([24, 20, 20])),
    ] {
        set(&mut config, at, value);
    }
    let dir = model(&config, DType::Bf16);
    let decode = |device: Device| {
        let model = Model::load(&Checkpoint::open(dir.path()).expect("a model"), None).expect("a model");
        let mut engine = Engine::new(model, device, Precision::Bf16);
        let prompt = text(300);
        engine.reserve([prompt.ids.len() + 3]).expect("room");
        let (mut cached, _) = engine.prefill(&[&prompt], Read::Logits(Rows::Last), &mut |_, _| ()).expect("a prompt");
        let (mut said, mut launches) = (Vec::new(), Vec::new());
        for id in [5u32, 6, 7] {
            let before = engine.device.launches();
            let mut sequences: Vec<_> = cached.iter_mut().collect();
            let answer = engine.extend(&mut sequences, &[&[id]], Read::Logits(Rows::All)).expect("a step");
            let Answer::Logits(rows) = answer else { panic!("logits were asked for") };
            said.extend(rows.into_iter().flatten());
            let new = |(kernel, n): (&'static str, u64)| (kernel, n - before.get(kernel).copied().unwrap_or(0));
            launches.push(engine.device.launches().into_iter().map(new).filter(|(_, n)| *n > 0).collect::<Vec<_>>());
        }
        (said, launches)
    };
    let (wanted, _) = decode(Device::host());
    let (got, launches) = decode(Device::emulated(HOPPER).expect("an emulator"));
    let layers = 2;
    for of_token in launches {
        let wanted = [
            ("attention_cached_fwd_w128_bf16", layers),
            ("embed_fwd_bf16", 1),
            // the head, which nothing follows, and four a layer
            ("linear_fwd_few_16x128_sm90_bf16", 4 * layers + 1),
            ("norm_fwd_bf16", 1),
        ];
        assert_eq!(of_token, wanted);
    }
    let square = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v * v)).sum::<f64>().sqrt();
    let error = square(&mut got.iter().zip(&wanted).map(|(g, w)| g - w)) / square(&mut wanted.iter().copied());
    assert!(error <= 2e-2, "{error:e}");
}
