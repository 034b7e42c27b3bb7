//! Computing twice to hold less: the same bits at every level, less memory, and no more of it than a budget asks for.

use crate::support::tiny::{What, step, trainer};
use vlm::base::Precision;
use vlm::base::rng::Stream;
use vlm::qwen3vl::model::Direction;
use vlm::tape::{Record, Tape};
use vlm::train::step::{Example, Forward, Trainer, batch as batch_of};

fn forward(trainer: &Trainer, batch: &[&Example]) -> Tape {
    let (model, precision) = (&trainer.engine.model, trainer.engine.precision);
    let (packed, labels) = batch_of(model, batch).unwrap();
    Forward::new(model, precision, trainer.keeps_features(), &packed, labels.ids.len(), Direction::Both).unwrap().tape
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn every_level_gives_the_same_bits() {
    for (model, what, precision) in [
        ("single", What::Lora(0.3), Precision::F32),
        ("uneven", What::Lora(0.0), Precision::Bf16),
        ("uneven", What::Full, Precision::F32),
    ] {
        let (mut trainer, examples) = trainer(model, what, precision);
        let batch: Vec<&Example> = examples.iter().collect();
        let random = Stream::new(1, &[1]);
        let (losses, gradients) = step(&mut trainer, &batch, random);
        assert!(gradients.iter().all(|g| g.is_finite()) && gradients.iter().any(|g| *g != 0.0));
        let tape = forward(&trainer, &batch);
        let levels = tape.levels();
        let mut seen = Vec::new();
        for level in [1, levels / 4, levels / 2, levels / 2 + 3, levels * 3 / 4, levels] {
            let bytes = tape.at_level(level).unwrap().bytes;
            trainer.budget = Some(bytes);
            let fitted = tape.fit(trainer.budget).unwrap();
            assert!(fitted.bytes <= bytes && fitted.level <= level, "{model} {level}");
            seen.push(fitted.level);
            let (again, same) = step(&mut trainer, &batch, random);
            assert_eq!(again, losses, "{model} {what:?} {level}");
            assert!(bits(&same) == bits(&gradients), "{model} {what:?} {level}");
        }
        assert!(seen.last() > Some(&0), "{seen:?}");
    }
}

#[test]
fn levels_hold_less_and_compute_more() {
    let (trainer, examples) = trainer("uneven", What::Lora(0.0), Precision::F32);
    let batch: Vec<&Example> = examples.iter().collect();
    let tape = forward(&trainer, &batch);
    let [none, cheap, all] = [0, tape.levels() / 2, tape.levels()].map(|level| tape.at_level(level).unwrap());
    assert!(all.bytes < cheap.bytes && cheap.bytes < none.bytes, "{} {} {}", none.bytes, cheap.bytes, all.bytes);
    // cheap values cost no product
    assert_eq!(none.tape.cost().flops, cheap.tape.cost().flops);
    assert!(all.tape.cost().flops > none.tape.cost().flops);
    let count = |tape: &Tape, is: fn(&Record) -> bool| tape.records().iter().filter(|r| is(r)).count();
    let norms = |tape: &Tape| count(tape, |r| matches!(r, Record::Norm(_)));
    let attentions = |tape: &Tape| count(tape, |r| matches!(r, Record::Attention(_)));
    assert!(norms(&cheap.tape) > norms(&none.tape));
    // each block's attention runs a second time, and no more often
    assert_eq!(attentions(&all.tape), 2 * attentions(&none.tape));
}

#[test]
fn nothing_is_computed_twice_where_memory_allows() {
    let (trainer, examples) = trainer("single", What::Lora(0.0), Precision::F32);
    let batch: Vec<&Example> = examples.iter().collect();
    let tape = forward(&trainer, &batch);
    let whole = tape.fit(None).unwrap();
    assert_eq!(whole.level, 0);
    assert_eq!(tape.fit(Some(whole.bytes)).unwrap().level, 0);
    let less = tape.fit(Some(whole.bytes - 1)).unwrap();
    assert!(less.level > 0 && less.bytes < whole.bytes);
    // one level less does not fit
    assert!(tape.at_level(less.level - 1).unwrap().bytes > whole.bytes - 1);
    // where nothing fits, the least there is
    let least = tape.fit(Some(0)).unwrap();
    assert!(least.bytes <= tape.at_level(tape.levels()).unwrap().bytes && least.bytes > 0);
}

/// Batches of one size share a tape: what came before leaves nothing behind.
#[test]
fn a_tape_that_runs_again_gives_the_bits_of_a_new_one() {
    for what in [What::Lora(0.3), What::Full] {
        let run = |before: &[usize]| {
            let (mut trainer, examples) = trainer("uneven", what, Precision::F32);
            for n in before {
                let batch: Vec<&Example> = examples.iter().take(*n).collect();
                step(&mut trainer, &batch, Stream::new(4, &[*n as u64]));
            }
            let batch: Vec<&Example> = examples.iter().take(2).collect();
            let (losses, gradients) = step(&mut trainer, &batch, Stream::new(4, &[9]));
            (losses, bits(&gradients))
        };
        assert!(run(&[2, 1, 2]) == run(&[]));
    }
}
