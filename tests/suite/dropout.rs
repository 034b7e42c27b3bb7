//! Dropout as PEFT has it, before every A: the mask by its own description, the linear behind it by PyTorch with that
//! mask, a whole model by differences, and what the keys promise.

use crate::support::close::assert_close;
use crate::support::golden::Golden;
use crate::support::tiny::{What, step, trainer};
use vlm::base::rng::{self, Stream};
use vlm::base::{DType, Precision};
use vlm::host::dropout::{Dropout, factors};
use vlm::host::linear::Activation;
use vlm::host::linear_tuned::{LowRank, Matrix, Segment, linear};
use vlm::host::linear_tuned_backward::{Gradients, linear_backward};
use vlm::train::step::Example;

fn masks(keys: &[[u32; 2]], dropout: Dropout, width: usize) -> Vec<f32> {
    let mut all = vec![f32::NAN; keys.len() * width];
    all.chunks_exact_mut(width).zip(keys).for_each(|(row, key)| factors(dropout, *key, row));
    all
}

fn matrix(values: &[f32], columns: usize) -> Matrix<'_> {
    let (dtype, precision) = (DType::F32, Precision::F32);
    Matrix { dtype, bytes: bytemuck::cast_slice(values), rows: values.len() / columns, columns, precision }
}

#[test]
fn follows_pytorch_with_the_same_mask() {
    let golden = Golden::dropout();
    for (name, n_segments) in [("dropout.one", 1), ("dropout.two", 2)] {
        let case = golden.case(name);
        let (k, p, scale) = (case.shape("x")[1], case.number("p"), case.number("scale") as f32);
        let keys: Vec<[u32; 2]> =
            case.i32("keys").as_chunks::<2>().0.iter().map(|key| key.map(|word| word as u32)).collect();
        let (x, dy) = (case.f32("x"), case.f32("dy"));
        let named = |what: &str, j: usize| format!("{what}{j}");
        let parts: Vec<[Vec<f32>; 3]> =
            (0..n_segments).map(|j| ["weight", "a", "b"].map(|what| case.f32(&named(what, j)))).collect();
        let ranks: Vec<usize> = (0..n_segments).map(|j| case.shape(&named("a", j))[0]).collect();
        let mut segments = Vec::new();
        for (j, [w, a, b]) in parts.iter().enumerate() {
            let dropout = Dropout { p, module: rng::id(&format!("module{j}")) };
            let keep = masks(&keys, dropout, k);
            let kept: Vec<f64> = keep.iter().map(|f| f64::from(*f > 0.0)).collect();
            assert_eq!(kept, case.f64(&named("mask", j)), "{name} mask {j}");
            assert!(keep.iter().all(|f| *f == 0.0 || *f == (1.0 / (1.0 - p)) as f32));
            let low_rank = LowRank {
                a: matrix(a, k),
                b: matrix(b, ranks[j]),
                scale,
                s_column: ranks[..j].iter().sum(),
                keep: Some(keep),
            };
            segments.push(Segment { weight: matrix(w, k), bias: None, low_rank: Some(low_rank) });
        }
        let (m, rank) = (x.len() / k, ranks.iter().sum::<usize>());
        let (mut s, mut y) = (vec![0.0; m * rank], vec![f32::NAN; dy.len()]);
        linear(&x, k, &segments, &mut s, rank, Activation::None, &mut y, false);
        assert_close("y", &y, &case.f64("y"), 2e-6);
        let mut dx = vec![0.0; x.len()];
        let mut sums: Vec<[Vec<f32>; 3]> =
            parts.iter().map(|part| part.each_ref().map(|v| vec![0.0; v.len()])).collect();
        let mut gradients: Vec<Gradients> =
            sums.iter_mut().map(|[w, a, b]| Gradients { dw: Some(w), dbias: None, da: Some(a), db: Some(b) }).collect();
        linear_backward(&dy, &x, k, &segments, &s, rank, Some(&mut dx), &mut gradients);
        drop(gradients);
        assert_close("dx", &dx, &case.f64("dx"), 2e-6);
        for (j, sums) in sums.iter().enumerate() {
            for (what, sum) in ["dweight", "da", "db"].iter().zip(sums) {
                assert_close(&named(what, j), sum, &case.f64(&named(what, j)), 3e-6);
            }
        }
    }
}

#[test]
fn the_expectation_is_the_input() {
    for p in [0.0, 0.1, 0.5, 0.9] {
        let n = 400_000;
        let keys: Vec<[u32; 2]> = (0..400).map(|i| Stream::new(5, &[i]).key()).collect();
        let all = masks(&keys, Dropout { p, module: 7 }, n / 400);
        let mean = all.iter().map(|f| *f as f64).sum::<f64>() / n as f64;
        let share = all.iter().filter(|f| **f == 0.0).count() as f64 / n as f64;
        // five standard errors of a mean of factors whose variance is p / (1 - p), and of a share
        assert!((mean - 1.0).abs() <= 5.0 * (p / (1.0 - p) / n as f64).sqrt() + 1e-6, "{p}: {mean}");
        assert!((share - p).abs() <= 5.0 * (p * (1.0 - p) / n as f64).sqrt(), "{p}: {share}");
    }
    let one = |module| masks(&[[1, 2]], Dropout { p: 0.5, module }, 64);
    assert_ne!(one(1), one(2));
    assert_ne!(masks(&[[1, 3]], Dropout { p: 0.5, module: 1 }, 64), one(1));
}

/// Along each trained tensor's own gradient the loss must change as its length says, with the mask held still.
#[test]
fn gradients_are_those_of_differences_with_the_mask_held_still() {
    for model in ["single", "uneven"] {
        let (mut trainer, examples) = trainer(model, What::Lora(0.4), Precision::F32);
        let batch: Vec<&Example> = examples.iter().collect();
        let random = Stream::new(1, &[9]);
        step(&mut trainer, &batch, random);
        let gradients = trainer.gradients().unwrap();
        let entries = trainer.trainable.entries.clone();
        let mut checked = 0;
        for (entry, (name, gradient)) in entries.iter().zip(gradients) {
            let vlm::io::HostData::F32(gradient) = gradient.data else { panic!("{name}") };
            let length = gradient.iter().map(|g| (*g as f64).powi(2)).sum::<f64>().sqrt();
            // below this the loss, a sum of f32 numbers, is too coarse
            if length < 2e-2 {
                continue;
            }
            let vlm::io::HostData::F32(value) = entry.value(trainer.engine.device.memory()).unwrap().data else {
                panic!()
            };
            let mut at = |distance: f64| {
                let moved: Vec<f32> = value
                    .iter()
                    .zip(&gradient)
                    .map(|(v, g)| (*v as f64 + distance * *g as f64 / length) as f32)
                    .collect();
                entry.write(trainer.engine.device.memory(), &moved).unwrap();
                0.25 * step(&mut trainer, &batch, random).0.iter().sum::<f64>()
            };
            let (ahead, behind) = (at(4e-3), at(-4e-3));
            at(0.0);
            let slope = (ahead - behind) / 8e-3;
            assert!((slope - length).abs() <= 0.02 * length + 5e-4, "{model} {name}: {slope}, wanted {length}");
            checked += 1;
        }
        assert!(checked >= 8, "{model}: {checked}");
    }
}

#[test]
fn what_drops_out_depends_on_seed_step_and_sample_alone() {
    let (mut trainer_, examples) = trainer("single", What::Lora(0.3), Precision::F32);
    let [a, b, c] = [&examples[0], &examples[1], &examples[2]];
    let random = Stream::new(1, &[2]);
    let (together, _) = step(&mut trainer_, &[a, b, c], random);
    let (turned, _) = step(&mut trainer_, &[c, a, b], random);
    for (i, alone) in [a, b, c].iter().enumerate() {
        let (alone, _) = step(&mut trainer_, &[alone], random);
        for other in [alone[0], turned[(i + 1) % 3]] {
            assert!((together[i] - other).abs() <= 2e-5 * together[i], "{i}: {} {other}", together[i]);
        }
    }
    // the same again, and another step's
    assert_eq!(step(&mut trainer_, &[a, b, c], random).0, together);
    let (later, _) = step(&mut trainer_, &[a, b, c], Stream::new(1, &[3]));
    assert!((0..3).all(|i| (later[i] - together[i]).abs() > 1e-4), "{later:?} {together:?}");
    // evaluation drops nothing out
    let (mut without, _) = trainer("single", What::Lora(0.0), Precision::F32);
    assert_eq!(trainer_.losses(&[a, b, c]).unwrap(), without.losses(&[a, b, c]).unwrap());
}
