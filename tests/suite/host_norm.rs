//! `norm`: PyTorch's values and gradients, differences, and where bf16 rounds.

use crate::support::close::assert_close;
use crate::support::differences::{assert_gradient, dot};
use crate::support::golden::Golden;
use crate::support::random::Random;
use half::bf16;
use vlm::base::Precision;
use vlm::host::norm::{Gradients, Kind, norm, norm_backward};

#[test]
fn follows_pytorch() {
    let golden = Golden::ops();
    for name in ["layer_norm.a", "layer_norm.b", "rms_norm.a", "rms_norm.b"] {
        let case = golden.case(name);
        let (x, weight, dy, eps) = (case.f64("x"), case.f64("weight"), case.f64("dy"), case.number("eps"));
        let (d, layer) = (weight.len(), name.starts_with("layer"));
        let bias = if layer { case.f64("bias") } else { vec![] };
        let kind = if layer { Kind::Layer { weight: &weight, bias: &bias } } else { Kind::Rms { weight: &weight } };
        let mut y = vec![0.0; x.len()];
        norm(&x, d, None, kind, eps, Precision::Bf16, &mut y);
        assert_close(name, &y, &case.f64("y"), 1e-12);

        let (mut dx, mut dweight, mut dbias) = (vec![0.0; x.len()], vec![0.0; d], vec![0.0; d]);
        let gradients = Gradients { dweight: Some(&mut dweight), dbias: layer.then_some(&mut dbias[..]) };
        norm_backward(&x, d, None, kind, eps, &dy, &mut dx, gradients);
        // row by row, since the second row of x is small and its gradient a thousand times the others'
        for (i, (got, want)) in dx.chunks(d).zip(case.f64("dx").chunks(d)).enumerate() {
            assert_close(&format!("{name} dx row {i}"), got, want, 1e-10);
        }
        assert_close(name, &dweight, &case.f64("dweight"), 1e-10);
        if layer {
            assert_close(name, &dbias, &case.f64("dbias"), 1e-10);
        }
    }
}

#[test]
fn gradients_are_those_of_the_forward_and_are_added() {
    for (seed, (rows_of_x, d, rows)) in
        [(1, 1, None), (1, 2, None), (3, 7, None), (5, 13, Some(vec![4, 1])), (4, 3, Some(vec![2]))].iter().enumerate()
    {
        let mut random = Random::new(seed as u64);
        let (x, weight) = (random.f64s(rows_of_x * d, 1.0), random.f64s(*d, 0.5));
        let (bias, eps) = (random.f64s(*d, 0.5), 1e-2);
        let n = rows.as_ref().map_or(*rows_of_x, Vec::len);
        let dy = random.f64s(n * d, 1.0);
        for layer in [true, false] {
            let f = |x: &[f64], weight: &[f64], bias: &[f64]| {
                let kind = if layer { Kind::Layer { weight, bias } } else { Kind::Rms { weight } };
                let mut y = vec![0.0; n * d];
                norm(x, *d, rows.as_deref(), kind, eps, Precision::F32, &mut y);
                dot(&dy, &y)
            };
            let kind = if layer { Kind::Layer { weight: &weight, bias: &bias } } else { Kind::Rms { weight: &weight } };
            let held = 0.5;
            let (mut dx, mut dweight, mut dbias) = (vec![held; x.len()], vec![held; *d], vec![held; *d]);
            let gradients = Gradients { dweight: Some(&mut dweight), dbias: layer.then_some(&mut dbias[..]) };
            norm_backward(&x, *d, rows.as_deref(), kind, eps, &dy, &mut dx, gradients);
            [&mut dx, &mut dweight, &mut dbias].into_iter().flatten().for_each(|g| *g -= held);
            assert_gradient("dx", |x| f(x, &weight, &bias), &x, &dx);
            assert_gradient("dweight", |w| f(&x, w, &bias), &weight, &dweight);
            assert_gradient("dbias", |b| f(&x, &weight, b), &bias, &dbias);
        }
    }
}

#[test]
fn rms_rounds_before_the_weight_and_layer_does_not() {
    let mut random = Random::new(3);
    let (x, weight) = (random.f32s(64, 2.0), random.f32s(64, 1.0));
    let (mut rms, mut layer) = ([0.0; 64], [0.0; 64]);
    norm(&x, 64, None, Kind::Rms { weight: &weight }, 1e-6, Precision::Bf16, &mut rms);
    let mean_square = x.iter().map(|x| (*x as f64).powi(2)).sum::<f64>() / 64.0 + 1e-6;
    let mut moved = 0;
    for i in 0..64 {
        let exact = x[i] as f64 / mean_square.sqrt();
        // the f32 quotient may fall on the other side of a tie between two bf16 numbers
        let choices = [exact * (1.0 - 1e-6), exact * (1.0 + 1e-6)].map(|v| bf16::from_f64(v).to_f32() * weight[i]);
        assert!(choices.contains(&rms[i]), "{} is not one of {choices:?}", rms[i]);
        moved += usize::from((rms[i] as f64 - exact * weight[i] as f64).abs() > 1e-5 * rms[i].abs() as f64);
    }
    assert!(moved > 32, "only {moved} of 64 values were rounded");
    let kind = Kind::Layer { weight: &weight, bias: &[0.0; 64] };
    norm(&x, 64, None, kind, 1e-6, Precision::Bf16, &mut layer);
    let mut exact = [0.0; 64];
    norm(&x, 64, None, kind, 1e-6, Precision::F32, &mut exact);
    assert_eq!(layer, exact);
}
