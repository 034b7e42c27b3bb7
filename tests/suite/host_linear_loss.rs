//! `linear_loss`: PyTorch's values and gradients, and differences; the tuned function against the specification.

use crate::support::close::{UNIT, assert_close, assert_within};
use crate::support::differences::assert_gradient;
use crate::support::golden::Golden;
use crate::support::random::{Random, wide};
use crate::support::stored::Stored;
use crate::support::{shapes, threads};
use proptest::prelude::*;
use proptest::sample::select;
use vlm::base::{DType, Precision};
use vlm::host::attention::probabilities;
use vlm::host::linear_loss::{linear_loss, linear_loss_backward};
use vlm::host::linear_loss_tuned::{self, Gradients};

#[test]
fn follows_pytorch() {
    let golden = Golden::ops();
    for name in ["linear_loss.mean", "linear_loss.shared"] {
        let case = golden.case(name);
        let (x, w, labels, count) = (case.f64("x"), case.f64("weight"), case.i32("labels"), case.number("count"));
        let k = case.shape("x")[1];
        // only rows that have a label come here
        let (rows, labels): (Vec<usize>, Vec<i32>) =
            labels.iter().copied().enumerate().filter(|(_, l)| *l >= 0).unzip();
        let x: Vec<f64> = rows.iter().flat_map(|r| x[r * k..][..k].to_vec()).collect();
        let mut losses = vec![0.0; rows.len()];
        linear_loss(&x, k, &w, &labels, &mut losses);
        assert_close(name, &[losses.iter().sum::<f64>() / count], &[case.number("loss")], 1e-12);
        let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; w.len()]);
        linear_loss_backward(&x, k, &w, &labels, 1.0 / count, Precision::F32, &mut dx, Some(&mut dw));
        let want = case.f64("dx");
        let of_rows: Vec<f64> = rows.iter().flat_map(|r| want[r * k..][..k].to_vec()).collect();
        assert_close(name, &dx, &of_rows, 1e-10);
        assert_close(name, &dw, &case.f64("dweight"), 1e-10);
        let sum = |g: &[f64]| g.iter().map(|g| g.abs()).sum::<f64>();
        assert_close("rows without a label have no gradient", &[sum(&of_rows)], &[sum(&want)], 1e-15);
    }
}

#[test]
fn gradients_are_those_of_the_forward_and_are_added() {
    for (r, k, v) in [(1, 1, 1), (1, 2, 3), (3, 5, 7)] {
        let mut random = Random::new(r as u64);
        let (x, w) = (random.f64s(r * k, 1.0), random.f64s(v * k, 1.0));
        let labels: Vec<i32> = (0..r).map(|_| random.below(v) as i32).collect();
        let f = |x: &[f64], w: &[f64]| {
            let mut losses = vec![0.0; r];
            linear_loss(x, k, w, &labels, &mut losses);
            losses.iter().sum::<f64>() * 0.3
        };
        let (mut dx, mut dw) = (vec![0.5; x.len()], vec![0.5; w.len()]);
        linear_loss_backward(&x, k, &w, &labels, 0.3, Precision::F32, &mut dx, Some(&mut dw));
        [&mut dx, &mut dw].into_iter().flatten().for_each(|g| *g -= 0.5);
        assert_gradient("dx", |x| f(x, &w), &x, &dx);
        assert_gradient("dw", |w| f(&x, w), &w, &dw);
    }
}

proptest! {
    #![proptest_config(shapes(32))]

    #[test]
    fn the_tuned_function_follows_the_specification(
        r in select(vec![1, 2, 7, 63, 65, 130]),
        k in select(vec![1, 3, 31, 64]),
        v in select(vec![1, 2, 127, 193, 1025]),
        dtype in select(vec![DType::F32, DType::Bf16]),
        [frozen, alone] in [any::<bool>(), any::<bool>()],
        seed in any::<u64>(),
    ) {
        let mut random = Random::new(seed);
        let head = Stored::new(&random.f32s(v * k, 0.5), k, dtype, Precision::F32, 0);
        let x = random.f32s(r * k, 1.0);
        let labels: Vec<i32> = (0..r).map(|_| random.below(v) as i32).collect();
        let scale = 0.3f32;
        let run = || {
            let (mut losses, mut dx, mut dw) = (vec![f64::NAN; r], vec![0.5f32; r * k], vec![0.5f32; v * k]);
            let gradients =
                (!alone).then_some(Gradients { scale, dx: &mut dx, dw: (!frozen).then_some(&mut dw[..]) });
            linear_loss_tuned::linear_loss(&x, k, head.matrix(), &labels, &mut losses, gradients);
            (losses, dx, dw)
        };
        let [got, again] = threads(run);
        prop_assert_eq!(&got, &again);
        let (losses, dx, dw) = got;

        let (x, scale) = (wide(&x), f64::from(scale));
        let (mut want, mut want_dx, mut want_dw) = (vec![0.0; r], vec![0.5; r * k], vec![0.5; v * k]);
        linear_loss(&x, k, &head.values, &labels, &mut want);
        linear_loss_backward(&x, k, &head.values, &labels, scale, Precision::F32, &mut want_dx, Some(&mut want_dw));
        // A logit is off by delta, at most k u times the sum of magnitudes; a difference of two by twice that and its
        // own rounding, and so is ln of the sum, and the relative error of a probability: rho, with the exponential's 4 u
        // and the 80 additions of a lane. Then each gradient is a sum of products of scale p (or 1 - p).
        let (mut rho, mut most_dx, mut most_dw) = (vec![0.0; r], vec![0.5; r * k], vec![0.5; v * k]);
        for (i, x) in x.chunks(k).enumerate() {
            let rows = || head.values.chunks(k);
            let largest = rows().map(|w| w.iter().zip(x).map(|(w, x)| (w * x).abs()).sum::<f64>()).fold(0.0, f64::max);
            rho[i] = (2.2 * (k + 4) as f64 * largest + 100.0) * UNIT;
            let p = probabilities(rows().map(|w| w.iter().zip(x).map(|(w, x)| w * x).sum()).collect::<Vec<f64>>());
            for (j, w) in rows().enumerate() {
                let dl = scale * (p[j] + if labels[i] as usize == j { 1.0 } else { 0.0 });
                for (l, (w, x)) in w.iter().zip(x).enumerate() {
                    most_dx[i * k + l] += dl * w.abs();
                    most_dw[j * k + l] += dl * x.abs();
                }
            }
        }
        assert_within("losses", &losses, &want, |i| rho[i] + UNIT * want[i].abs());
        if alone {
            prop_assert!(dx.iter().chain(&dw).all(|g| *g == 0.5));
            return Ok(());
        }
        assert_within("dx", &dx, &want_dx, |i| (rho[i / k] + (v + 8) as f64 * 1.1 * UNIT) * most_dx[i]);
        if frozen {
            prop_assert!(dw.iter().all(|g| *g == 0.5));
        } else {
            let worst = rho.iter().fold(0.0f64, |m, r| m.max(*r));
            assert_within("dw", &dw, &want_dw, |i| (worst + (r + 8) as f64 * 1.1 * UNIT) * most_dw[i]);
        }
    }
}

#[test]
fn several_chunks_of_rows_are_one_result() {
    // a vocabulary so large that 64 rows are a chunk, of which the last is shorter
    let (r, k, v) = (130, 2, 300_007);
    let mut random = Random::new(4);
    let head = Stored::new(&random.f32s(v * k, 2.0), k, DType::F32, Precision::F32, 0);
    let x = random.f32s(r * k, 1.0);
    let labels: Vec<i32> = (0..r).map(|_| random.below(v) as i32).collect();
    let run = |rows: std::ops::Range<usize>| {
        let (mut losses, mut dx) = (vec![f64::NAN; rows.len()], vec![0.0; rows.len() * k]);
        let gradients = Some(Gradients { scale: 1.0, dx: &mut dx, dw: None });
        let x = &x[rows.start * k..rows.end * k];
        linear_loss_tuned::linear_loss(x, k, head.matrix(), &labels[rows], &mut losses, gradients);
        (losses, dx)
    };
    let (losses, dx) = run(0..r);
    for i in [0, 43, 44, 64, 65, 129] {
        let (alone, dx_alone) = run(i..i + 1);
        assert_close("loss", &[losses[i]], &alone, 1e-5);
        assert_close("dx", &dx[i * k..][..k], &wide(&dx_alone), 1e-4);
        let mut want = [0.0];
        linear_loss(&wide(&x[i * k..][..k]), k, &head.values, &labels[i..i + 1], &mut want);
        assert_close("the specification's loss", &alone, &want, 1e-6);
    }
}

#[test]
fn the_gradient_of_logits_is_stored_in_bf16() {
    // two classes, x = 1 and W = (w, 0): p of the first is sigmoid(w), and dx = dl of the first times w
    let (w, scale) = (0.75f32, 0.3f32);
    let head = Stored::new(&[w, 0.0], 1, DType::F32, Precision::Bf16, 0);
    let (mut losses, mut dx) = ([f64::NAN], [0.0]);
    let gradients = Some(Gradients { scale, dx: &mut dx, dw: None });
    linear_loss_tuned::linear_loss(&[1.0], 1, head.matrix(), &[1], &mut losses, gradients);
    let dl = f64::from(scale) / (1.0 + (-f64::from(w)).exp());
    assert_eq!(dx, [half::bf16::from_f64(dl).to_f32() * w]);
}

#[test]
fn no_label_rows_are_no_work() {
    let head = Stored::new(&[1.0; 6], 3, DType::F32, Precision::F32, 0);
    let gradients = Some(Gradients { scale: 1.0, dx: &mut [], dw: None });
    linear_loss_tuned::linear_loss(&[], 3, head.matrix(), &[], &mut [], gradients);
}

#[test]
fn a_nan_reaches_the_loss() {
    let head = Stored::new(&[1.0; 6], 3, DType::F32, Precision::F32, 0);
    let mut losses = [0.0];
    linear_loss_tuned::linear_loss(&[0.0, f32::NAN, 0.0], 3, head.matrix(), &[1], &mut losses, None);
    assert!(losses[0].is_nan());
}
