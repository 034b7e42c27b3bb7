//! The tape and the memory under it: no value is ever lost to another, and misuse is an error that says what.

use proptest::prelude::*;
use vlm::base::{DType, Error, Precision};
use vlm::device::{Clock, Device, Layout, Memory, Place};
use vlm::host::adamw;
use vlm::host::sample::MOST_TOKENS;
use vlm::nn::{Linear, Norm, NormKind};
use vlm::ops::Op;
use vlm::ops::adamw::AdamW;
use vlm::ops::deepstack_add::DeepstackAdd;
use vlm::ops::grad_norm::GradNorm;
use vlm::ops::linear::{Activation, Segment};
use vlm::ops::linear_loss::LinearLoss;
use vlm::ops::patch_embed::PatchEmbed;
use vlm::ops::sample::{Choice, Sample};
use vlm::ops::swiglu::Swiglu;
use vlm::qwen3vl::checkpoint::Checkpoint;
use vlm::qwen3vl::model::{Model, Rows};
use vlm::qwen3vl::pack::{Packed, Sequence};
use vlm::tape::Tape;
use vlm::tensor::{Arena, Tensor, Weight};

const T: usize = 5;
const D: usize = 72; // 1440 bytes: no multiple of the arena's alignment

/// Numbers between -0.4 and 0.6 that differ from place to place.
fn numbers(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 + seed * 104_729 + 13) % 1009) as f32 / 1009.0 - 0.4).collect()
}

fn weight(rows: usize, columns: usize, seed: usize) -> Weight {
    let small: Vec<f32> = numbers(rows * columns, seed).iter().map(|x| x / 8.0).collect();
    Weight::from_f32("w", [rows, columns], &small).unwrap()
}

fn norm() -> Norm {
    let weight = Weight::from_f32("norm", [D], &numbers(D, 1)).unwrap();
    Norm { kind: NormKind::Rms { weight }, eps: 1e-6 }
}

fn linear(rows: usize, columns: usize, seed: usize) -> Linear {
    Linear { segments: vec![Segment { weight: weight(rows, columns, seed), bias: None, adapter: None }] }
}

/// One choice of a word and of earlier values that it reads (counted back from the newest).
#[derive(Debug, Clone)]
struct Step {
    word: u8,
    x: usize,
    other: usize,
    keep: bool,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // most words read what was written last, some reach far back
    let back = prop_oneof![4 => 0usize..2, 2 => 0usize..6, 1 => 0usize..40];
    let step = (0u8..4, back.clone(), back, prop::bool::weighted(0.1));
    prop::collection::vec(step.prop_map(|(word, x, other, keep)| Step { word, x, other, keep }), 1..40)
}

struct Written {
    tape: Tape,
    inputs: Vec<Tensor>,
    features: Tensor,
    rows: Tensor,
    /// Values [T, D] in the order that they were written.
    values: Vec<Tensor>,
    kept: Vec<Tensor>,
}

/// A tape of these steps. With `keep_all`, every value is kept, so that none can share bytes with a later one.
fn write(steps: &[Step], keep_all: bool) -> Written {
    let mut tape = Tape::new(Precision::F32);
    let inputs = vec![tape.input(DType::F32, [T, D]), tape.input(DType::F32, [T, D])];
    let (features, rows) = (tape.input(DType::F32, [2, D]), tape.input(DType::I32, [2]));
    let (mut values, mut kept) = (inputs.clone(), Vec::new());
    for (i, step) in steps.iter().enumerate() {
        tape.scope(format!("step.{i}"));
        let at = |back: usize| values[values.len() - 1 - back.min(values.len() - 1)];
        let (x, other) = (at(step.x), at(step.other));
        let y = match step.word {
            0 => norm().apply(&mut tape, x).unwrap(),
            1 => {
                let residual = (!other.same_value(&x)).then_some(other);
                linear(D, D, i).apply(&mut tape, x, None, Activation::None, residual).unwrap()
            }
            2 => {
                // a product of two such sums: without the norm, a few in a row leave the range of f32
                let x = norm().apply(&mut tape, x).unwrap();
                let gate_up = linear(2 * D, D, i).apply(&mut tape, x, None, Activation::None, None).unwrap();
                let y = tape.activation([T, D]);
                tape.push(Swiglu { gate_up, y }).unwrap();
                y
            }
            _ => {
                let y = tape.activation([T, D]);
                tape.push(DeepstackAdd { x, features, rows, y }).unwrap();
                y
            }
        };
        if step.keep || keep_all || i + 1 == steps.len() {
            tape.keep(y);
            kept.push(y);
        }
        values.push(y);
    }
    Written { tape, inputs, features, rows, values, kept }
}

/// Whether each value has its bytes to itself from the record that first names it to the last one that does (its own
/// end where it is kept), found by looking at every pair. A value written over one that is read there for the last time
/// is what `in_place` allows.
fn assert_apart(tape: &Tape, inputs: &[Tensor], kept: &[Tensor]) {
    let layout = tape.plan();
    let end = tape.records().len() as isize;
    let mut lives: Vec<(Tensor, isize, isize)> = inputs.iter().map(|t| (*t, -1, -1)).collect();
    for (i, record) in tape.records().iter().enumerate() {
        let op = record.op();
        for t in op.inputs().into_iter().chain(op.outputs()).filter(|t| t.arena == Arena::Activations) {
            match lives.iter_mut().find(|(other, ..)| other.same_value(&t)) {
                Some((_, _, last)) => *last = i as isize,
                None => lives.push((t, i as isize, i as isize)),
            }
        }
    }
    for (tensor, _, last) in &mut lives {
        if kept.iter().any(|k| k.same_value(tensor)) {
            *last = end;
        }
    }
    for (i, (a, a_first, a_last)) in lives.iter().enumerate() {
        let at = layout.places[a.slot as usize];
        assert!(at.offset.is_multiple_of(256) && at.offset + at.bytes <= layout.bytes && at.bytes >= a.bytes());
        for (b, b_first, b_last) in &lives[i + 1..] {
            let other = layout.places[b.slot as usize];
            let share = at.offset < other.offset + other.bytes && other.offset < at.offset + at.bytes;
            if !share || a_last < b_first || b_last < a_first {
                continue;
            }
            let ((dying, last), (new, first)) =
                if a_first <= b_first { ((a, a_last), (b, b_first)) } else { ((b, b_last), (a, a_first)) };
            let taken_over = last == first
                && at == other
                && tape.records()[*first as usize]
                    .op()
                    .in_place()
                    .is_some_and(|(from, to)| from.same_value(dying) && to.same_value(new));
            assert!(taken_over, "{a:?} ({a_first} to {a_last}) and {b:?} ({b_first} to {b_last}) share bytes\n{tape}");
        }
    }
}

fn run(written: &Written) -> Vec<Vec<f32>> {
    let mut device = Device::host();
    written.tape.begin(&mut device).unwrap();
    let memory = device.memory();
    for (i, input) in written.inputs.iter().chain([&written.features]).enumerate() {
        memory.write_f32(*input, &numbers(input.shape.elements(), i)).unwrap();
    }
    memory.write_i32(written.rows, &[3, 1]).unwrap();
    written.tape.run(&mut device, &mut Clock::default(), &mut |_, _| ()).unwrap();
    written.kept.iter().map(|t| device.memory().read_f32(*t).unwrap()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn values_that_live_at_once_lie_apart(steps in steps()) {
        let written = write(&steps, false);
        let inputs = [written.inputs.as_slice(), &[written.features, written.rows]].concat();
        assert_apart(&written.tape, &inputs, &written.kept);
    }

    /// Sharing bytes changes no bit: released memory is full of NaN, so a value that is read too late would show.
    #[test]
    fn sharing_bytes_changes_nothing(steps in steps()) {
        let (shared, apart) = (write(&steps, false), write(&steps, true));
        prop_assert!(shared.tape.plan().bytes <= apart.tape.plan().bytes);
        let all = run(&apart);
        for (tensor, got) in shared.kept.iter().zip(run(&shared)) {
            let at = shared.values.iter().position(|v| v.same_value(tensor)).unwrap() - shared.inputs.len();
            prop_assert!(got.iter().all(|x| x.is_finite()));
            prop_assert_eq!(&got, &all[at]);
        }
    }
}

/// The passes that the program really runs, of a model with deepstack out of order and of one without.
#[test]
fn the_models_own_passes_keep_values_apart() {
    for model in ["uneven", "single"] {
        let dir = crate::golden_cases::cases().join(model);
        let model = Model::dry(&Checkpoint::open(&dir).unwrap().config, DType::Bf16).unwrap();
        let image = |n: usize| Sequence {
            ids: vec![1; 6 + n],
            is_image: (0..6 + n).map(|i| (2..2 + n).contains(&i)).collect(),
            grids: vec![[1, 2 * n, 2]],
            pixels: Vec::new(),
        };
        for precision in [Precision::F32, Precision::Bf16] {
            for (rows, trace) in [(Rows::All, true), (Rows::Last, false)] {
                let mut tape = Tape::new(precision);
                let packed = Packed::new(&[&image(3), &image(5)], 2).unwrap();
                let pass = model.prompt(&mut tape, &packed, rows, None, trace).unwrap();
                let mut kept = vec![pass.logits];
                kept.extend(&pass.hidden);
                if let (true, Some((embeds, deepstack))) = (trace, pass.features) {
                    kept.push(embeds);
                    kept.extend(deepstack);
                }
                assert_apart(&tape, &[], &kept);
            }
        }
    }
}

#[test]
fn a_chain_of_residuals_stays_in_place() {
    let mut tape = Tape::new(Precision::F32);
    let first = tape.input(DType::F32, [T, D]);
    let mut stream = vec![first];
    for i in 0..10 {
        let x = *stream.last().unwrap();
        let y = norm().apply(&mut tape, x).unwrap();
        stream.push(linear(D, D, i).apply(&mut tape, y, None, Activation::None, Some(x)).unwrap());
    }
    tape.keep(*stream.last().unwrap());
    let layout = tape.plan();
    let place = layout.places[first.slot as usize];
    assert!(stream.iter().all(|t| layout.places[t.slot as usize] == place));
    // the stream, and a norm's output beside it
    assert_eq!(layout.bytes, 2 * (T * D * 4).next_multiple_of(256));
    // a value that is read again later is not written over
    let again = norm().apply(&mut tape, stream[5]).unwrap();
    tape.keep(again);
    let layout = tape.plan();
    assert_ne!(layout.places[stream[5].slot as usize], layout.places[stream[6].slot as usize]);
    assert_eq!(layout.places[stream[4].slot as usize], layout.places[stream[5].slot as usize]);
}

/// The parts of a contract error: operation, argument, wanted, got.
fn contract<V>(result: Result<V, Error>) -> (&'static str, &'static str, String, String) {
    match result.err().expect("an error") {
        Error::Contract { op, argument, wanted, got } => (op, argument, wanted, got),
        Error::While { source, .. } => contract::<V>(Err(*source)),
        other => panic!("{other}"),
    }
}

#[test]
fn a_handle_of_another_layout_is_an_error() {
    let mut device = Device::host();
    let (mut old, mut new) = (Tape::new(Precision::F32), Tape::new(Precision::F32));
    let stale = old.input(DType::F32, [4]);
    let x = new.input(DType::F32, [4]);
    for (tape, tensor) in [(&mut old, stale), (&mut new, x)] {
        let y = tape.activation([1, 4]);
        let kind = NormKind::Rms { weight: Weight::from_f32("w", [4], &[1.0; 4]).unwrap() };
        let x = tensor.reshaped([1, 4]);
        tape.push(vlm::ops::norm::Norm { x, rows: None, kind, eps: 1e-6, precision: Precision::F32, y }).unwrap();
    }
    old.begin(&mut device).unwrap();
    device.memory().write_f32(stale, &[1.0; 4]).unwrap();
    new.begin(&mut device).unwrap();
    let (op, argument, wanted, got) = contract(device.memory().read_f32(stale));
    assert_eq!((op, argument), ("memory", "handle"));
    assert!(wanted.contains("generation") && got.contains("stale handle"), "{wanted}; {got}");
    assert!(contract(device.memory().write_f32(stale, &[1.0; 4])).3.contains("stale"));
    assert!(contract(old.run(&mut device, &mut Clock::default(), &mut |_, _| ())).3.contains("stale"));
    device.memory().write_f32(x, &[1.0; 4]).unwrap();
    assert_eq!(device.memory().read_f32(x).unwrap(), [1.0; 4]);
}

fn tensor(slot: u32, dtype: DType, n: usize) -> Tensor {
    Tensor { arena: Arena::Activations, slot, generation: 7, dtype, shape: [n].into() }
}

/// Three values of 512, 512 and 256 bytes; the second begins in the middle of the first.
fn overlapping() -> Memory {
    let mut memory = Memory::default();
    let place = |offset, bytes| Place { offset, bytes };
    let places = vec![place(0, 512), place(256, 512), place(768, 256)];
    memory.lay_out(Arena::Activations, Layout { generation: 7, places, bytes: 1024 }).unwrap();
    memory
}

#[test]
fn an_overlap_that_nobody_declared_is_an_error() {
    let (a, b, c) = (tensor(0, DType::F32, 128), tensor(1, DType::F32, 128), tensor(2, DType::F32, 64));
    let mut memory = overlapping();
    for (inputs, outputs) in [
        (vec![a], vec![a]),
        (vec![a], vec![b]),
        (vec![b], vec![a]),
        (vec![a, b], vec![c]),
        (vec![c], vec![a, b]),
        (vec![], vec![c, c]),
    ] {
        let (op, argument, wanted, got) = contract(memory.borrow(&inputs, &[], &outputs).map(|_| ()));
        assert_eq!((op, argument), ("memory", "overlap"), "{inputs:?} {outputs:?}");
        assert!(wanted.contains("apart") && got.contains("inside its neighbour"), "{wanted}; {got}");
    }
    for (inputs, outputs) in [(vec![a, a], vec![c]), (vec![c, a, c], vec![]), (vec![b], vec![]), (vec![], vec![a, c])] {
        assert!(memory.borrow(&inputs, &[], &outputs).is_ok(), "{inputs:?} {outputs:?}");
    }
}

#[test]
fn handles_are_held_to_their_bytes_and_types() {
    let mut memory = overlapping();
    let (_, argument, wanted, got) = contract(memory.read_f32(tensor(0, DType::F32, 129)));
    assert_eq!((argument, wanted.as_str()), ("handle", "at most 512 bytes"));
    assert!(got.contains("129"), "{got}");
    assert_eq!(contract(memory.read_f32(tensor(9, DType::F32, 1))).1, "handle");
    let (_, argument, wanted, got) = contract(memory.write_f32(tensor(2, DType::F32, 64), &[0.0; 63]));
    assert_eq!((argument, got.as_str()), ("values", "63"));
    assert!(wanted.starts_with("64"), "{wanted}");
    assert_eq!(contract(memory.write_i32(tensor(2, DType::F32, 64), &[0; 64])).1, "tensor");
    let whole = tensor(2, DType::I32, 64);
    memory.write_i32(whole, &[5; 64]).unwrap();
    assert_eq!(memory.read_i32(whole).unwrap(), [5; 64]);
    // each output can be taken once, and only what was asked for
    let (a, c) = (tensor(0, DType::F32, 128), tensor(2, DType::F32, 64));
    let mut lent = memory.borrow(&[], &[], &[c]).unwrap();
    assert!(lent.output(c).is_ok());
    assert_eq!(contract(lent.output(c).map(|_| ())).1, "tensor");
    assert_eq!(contract(lent.f32(a).map(|_| ())).1, "tensor");
    let rows = Tensor { shape: [32, 4].into(), ..a };
    memory.write_f32(rows, &numbers(128, 3)).unwrap();
    memory.copy_rows(rows, 1, 30, 2).unwrap();
    assert_eq!(memory.read_f32(rows).unwrap()[120..], numbers(128, 3)[4..12]);
    assert_eq!(contract(memory.copy_rows(rows, 1, 31, 2)).1, "rows");
}

#[test]
fn the_printed_tape_names_every_record() {
    let words = [0, 1, 2, 3, 0];
    let steps: Vec<Step> = words.map(|word| Step { word, x: 0, other: 1, keep: false }).into();
    let Written { tape, .. } = write(&steps, false);
    let text = tape.to_string();
    let lines: Vec<&str> = text.lines().collect();
    let names: Vec<&str> =
        lines.iter().filter(|l| l.starts_with("  ")).map(|l| l.split_whitespace().next().unwrap()).collect();
    assert_eq!(names, ["norm", "linear", "norm", "linear", "swiglu", "deepstack_add", "norm"]);
    let scopes: Vec<&str> = lines.iter().filter(|l| l.starts_with("step.")).copied().collect();
    assert_eq!(scopes, ["step.0", "step.1", "step.2", "step.3", "step.4"]);
    assert!(lines.last().unwrap().starts_with("7 records, "), "{text}");
    assert!(text.contains("f32[5, 72] f32[5, 72] -> f32[5, 72]"), "{text}");
    let flops: u64 = tape.records().iter().map(|r| r.op().cost().flops).sum();
    // two multiplications and additions of each of T rows by D x D and 2D x D weights
    assert_eq!((tape.cost().flops, flops), ((2 * T * D * D * 3) as u64, (2 * T * D * D * 3) as u64));
}

#[test]
fn contracts_name_operation_argument_wanted_and_got() {
    let mut tape = Tape::new(Precision::F32);
    let x = tape.input(DType::F32, [T, D]);
    let whole = tape.input(DType::I32, [2]);
    let floats = tape.input(DType::F32, [2]);
    let narrow = tape.input(DType::F32, [2, D - 1]);
    let half = tape.value(DType::Bf16, [T, D]);
    let y = tape.activation([T, D]);
    let token = tape.value(DType::I32, [T]);
    let is = |got: (&str, &str, String, String), want: [&str; 4]| {
        assert_eq!((got.0, got.1), (want[0], want[1]));
        assert!(got.2.contains(want[2]) && got.3.contains(want[3]), "{got:?} and not {want:?}");
    };
    let kind = |n: usize| NormKind::Rms { weight: Weight::from_f32("norm.w", [n], &numbers(n, 0)).unwrap() };
    let norm = |rows, kind, eps, y| vlm::ops::norm::Norm { x, rows, kind, eps, precision: Precision::F32, y };
    is(contract(tape.push(norm(None, kind(D), 1e-6, narrow))), ["norm", "y", "[5, 72]", "[2, 71]"]);
    is(contract(tape.push(norm(None, kind(D - 1), 1e-6, y))), ["norm", "weight", "[72]", "norm.w f32 [71]"]);
    is(contract(tape.push(norm(None, kind(D), 0.0, y))), ["norm", "eps", "positive", "0.0"]);
    let two = tape.activation([2, D]);
    is(contract(tape.push(norm(Some(floats), kind(D), 1e-6, two))), ["norm", "rows", "i32", "F32"]);
    is(contract(tape.push(Swiglu { gate_up: x, y })), ["swiglu", "gate_up", "[5, 144]", "[5, 72]"]);
    let add = |features, rows| DeepstackAdd { x, features, rows, y };
    is(contract(tape.push(add(narrow, whole))), ["deepstack_add", "features", "[2, 72]", "[2, 71]"]);
    let features = tape.input(DType::F32, [2, D]);
    is(contract(tape.push(add(features, floats))), ["deepstack_add", "rows", "i32", "F32"]);
    let wide = linear(D, D + 1, 0);
    is(
        contract(wide.apply(&mut tape, x, None, Activation::None, None)),
        ["linear", "weight", "[72, 72]", "w f32 [72, 73]"],
    );
    let plain = linear(D, D, 0);
    is(contract(plain.apply(&mut tape, x, None, Activation::None, Some(half))), ["linear", "residual", "f32", "Bf16"]);
    is(
        contract(plain.apply(&mut tape, x, None, Activation::None, Some(narrow))),
        ["linear", "residual", "[5, 72]", "[2, 71]"],
    );
    let empty = linear(0, D, 1);
    is(contract(empty.apply(&mut tape, x, None, Activation::None, None)), ["linear", "weight", "rows and", "[0, 72]"]);
    let none = Linear { segments: Vec::new() };
    is(contract(none.apply(&mut tape, x, None, Activation::None, None)), ["linear", "segments", "at least one", "[]"]);
    let (seen, uniform) = (tape.input(DType::I32, [T, 3]), tape.input(DType::F32, [T]));
    let sample =
        |n_valid| Sample { logits: x, seen, generated: seen, uniform, choice: Choice::GREEDY, n_valid, y: token };
    is(contract(tape.push(sample(D + 1))), ["sample", "n_valid", "1 to 72", "73"]);
    is(contract(tape.push(sample(0))), ["sample", "n_valid", "1 to 72", "0"]);
    // sums of as many probabilities fit into 64 bits
    let (one, number) = (tape.input(DType::I32, [1, 1]), tape.input(DType::F32, [1]));
    let (logits, y) = (tape.input(DType::F32, [1, MOST_TOKENS + 1]), tape.value(DType::I32, [1]));
    let most = Sample { logits, seen: one, generated: one, uniform: number, y, ..sample(MOST_TOKENS + 1) };
    is(contract(tape.push(most)), ["sample", "n_valid", "1 to 1048576", "1048577"]);
    assert!(tape.records().is_empty(), "nothing that breaks its contract is recorded");
}

/// What a kernel reads as f32 is f32 by contract, and a product sums something.
#[test]
fn contracts_hold_numbers_to_f32() {
    let mut tape = Tape::new(Precision::F32);
    let refuses = |op: &dyn Op, want: [&str; 4]| {
        let got = contract(op.contract());
        assert_eq!((got.0, got.1), (want[0], want[1]));
        assert!(got.2.contains(want[2]) && got.3.contains(want[3]), "{got:?} and not {want:?}");
    };
    let [one, half_of_one] = [DType::F32, DType::Bf16].map(|dtype| tape.input(dtype, [1]));
    let [of_n, half_of_n] = [DType::F32, DType::Bf16].map(|dtype| tape.input(dtype, [D]));
    let step = adamw::Step {
        number: 1,
        learning_rate: 1e-3,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.0,
        gradient_scale: 1.0,
    };
    let [value, gradient, first, second] = [of_n; 4];
    let adamw = AdamW { value, gradient, first, second, norm: one, max_norm: None, step };
    adamw.contract().unwrap();
    refuses(&AdamW { value: half_of_n, ..adamw.clone() }, ["adamw", "value", "f32", "Bf16"]);
    refuses(&AdamW { gradient: half_of_n, ..adamw.clone() }, ["adamw", "gradient", "f32", "Bf16"]);
    refuses(&AdamW { first: half_of_n, ..adamw.clone() }, ["adamw", "first", "f32", "Bf16"]);
    refuses(&AdamW { second: half_of_n, ..adamw.clone() }, ["adamw", "second", "f32", "Bf16"]);
    refuses(&AdamW { norm: half_of_one, ..adamw }, ["adamw", "norm", "f32", "Bf16"]);
    let norm = GradNorm { gradients: of_n, norm: one };
    norm.contract().unwrap();
    refuses(&GradNorm { gradients: half_of_n, ..norm.clone() }, ["grad_norm", "gradients", "f32", "Bf16"]);
    refuses(&GradNorm { norm: half_of_one, ..norm }, ["grad_norm", "norm", "f32", "Bf16"]);

    let labels = tape.input(DType::I32, [T]);
    let [losses, half_of_t] = [DType::F32, DType::Bf16].map(|dtype| tape.input(dtype, [T]));
    let (x, head) = (tape.input(DType::F32, [T, D]), weight(3, D, 0));
    let loss = LinearLoss { x, head, labels, scale: one, precision: Precision::F32, losses, dx: None };
    loss.contract().unwrap();
    refuses(&LinearLoss { scale: half_of_one, ..loss.clone() }, ["linear_loss", "scale", "f32", "Bf16"]);
    refuses(&LinearLoss { losses: half_of_t, ..loss.clone() }, ["linear_loss", "losses", "f32", "Bf16"]);
    refuses(&LinearLoss { head: weight(0, D, 0), ..loss.clone() }, ["linear_loss", "head", "rows and", "[0, 72]"]);
    let nothing = tape.input(DType::F32, [T, 0]);
    refuses(&LinearLoss { x: nothing, head: weight(3, 0, 0), ..loss }, ["linear_loss", "head", "rows and", "[3, 0]"]);

    let corners = tape.input(DType::I32, [T, 4]);
    let [shares, half_of_shares] = [DType::F32, DType::Bf16].map(|dtype| tape.input(dtype, [T, 4]));
    let (kernel, table, y) = (weight(8, D, 0), weight(4, 8, 1), tape.activation([T, 8]));
    let bias = Weight::from_f32("b", [8], &numbers(8, 2)).unwrap();
    let embed = PatchEmbed { pixels: x, weight: kernel, bias, table, corners, shares, precision: Precision::F32, y };
    embed.contract().unwrap();
    refuses(&PatchEmbed { shares: half_of_shares, ..embed }, ["patch_embed", "shares", "f32", "Bf16"]);

    let (seen, y) = (tape.input(DType::I32, [T, 3]), tape.value(DType::I32, [T]));
    let sample = Sample { logits: x, seen, generated: seen, uniform: losses, choice: Choice::GREEDY, n_valid: D, y };
    sample.contract().unwrap();
    let half = tape.value(DType::Bf16, [T, D]);
    refuses(&Sample { logits: half, ..sample.clone() }, ["sample", "logits", "f32", "Bf16"]);
    refuses(&Sample { uniform: half_of_t, ..sample }, ["sample", "uniform", "f32", "Bf16"]);
}

/// What only shows when numbers are there: the message also says where in the model it was.
#[test]
fn a_run_that_fails_says_where() {
    let mut tape = Tape::new(Precision::F32);
    let (x, rows) = (tape.input(DType::F32, [T, D]), tape.input(DType::I32, [2]));
    let later = tape.input(DType::I32, [1]);
    tape.scope("text.layer.3");
    let y = norm().apply_rows(&mut tape, x, rows).unwrap();
    tape.scope("text.layer.4");
    norm().apply_rows(&mut tape, y, later).unwrap();
    let attempt = |rows_written: [i32; 2], later_written: i32| {
        let mut device = Device::host();
        tape.begin(&mut device).unwrap();
        let memory = device.memory();
        memory.write_f32(x, &numbers(T * D, 0)).unwrap();
        memory.write_i32(rows, &rows_written).unwrap();
        memory.write_i32(later, &[later_written]).unwrap();
        let mut told = Vec::new();
        let done = tape.run(&mut device, &mut Clock::default(), &mut |done, all| told.push((done, all)));
        (done.map_err(|e| e.to_string()), told)
    };
    let (done, told) = attempt([0, 4], 1);
    assert_eq!((done, told), (Ok(()), vec![(0, 2), (1, 2)]));
    for wrong in [5, -1] {
        let (said, told) = attempt([0, wrong], 1);
        let said = said.unwrap_err();
        assert!(said.starts_with("text.layer.3 (record 0): norm: rows: wanted 0 to 5 exclusive, got "), "{said}");
        assert!(said.ends_with(&wrong.to_string()) && told.len() == 1, "{said}");
    }
    let (said, told) = attempt([0, 4], 2);
    let said = said.unwrap_err();
    assert!(said.starts_with("text.layer.4 (record 1): norm: rows: wanted 0 to 2 exclusive, got 2"), "{said}");
    assert_eq!(told.len(), 2);
}
