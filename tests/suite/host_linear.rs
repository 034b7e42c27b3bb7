//! `linear`, the specification: PyTorch's values and gradients with every option, and differences.

use crate::support::close::assert_close;
use crate::support::differences::{assert_gradient, dot};
use crate::support::golden::Golden;
use crate::support::random::Random;
use vlm::base::Precision;
use vlm::host::linear::{Activation, Gradients, LowRank, activation_backward, linear, linear_backward};

/// x A^T.
fn shrink(x: &[f64], a: &[f64], k: usize) -> Vec<f64> {
    let rank = a.len() / k;
    let mut s = vec![0.0; x.len() / k * rank];
    linear(x, k, a, None, None, Activation::None, &mut s, rank, 0, false);
    s
}

#[test]
fn follows_pytorch() {
    let golden = Golden::ops();
    for name in ["plain", "bias", "gelu_tanh", "gelu_erf", "residual", "lora", "all"] {
        let name = format!("linear.{name}");
        let case = golden.case(&name);
        let optional = |tensor| if case.has(tensor) { case.f64(tensor) } else { vec![] };
        let (x, w, a, b, bias) = (case.f64("x"), case.f64("weight"), optional("a"), optional("b"), optional("bias"));
        let [n, k] = case.shape("weight")[..] else { panic!("a weight is [N, K]") };
        let m = x.len() / k;
        let activation = match &name[..] {
            "linear.gelu_tanh" | "linear.all" => Activation::GeluTanh,
            "linear.gelu_erf" => Activation::GeluErf,
            _ => Activation::None,
        };
        let (s, rank) = (if a.is_empty() { vec![] } else { shrink(&x, &a, k) }, a.len() / k);
        let scale = if rank > 0 { case.number("scale") } else { 0.0 };
        let low_rank = (rank > 0).then_some(LowRank { s: &s, s_stride: rank, s_column: 0, b: &b, rank, scale });
        let bias = case.has("bias").then_some(&bias[..]);
        let add = case.has("residual");
        let mut y = if add { case.f64("residual") } else { vec![f64::NAN; m * n] };
        linear(&x, k, &w, bias, low_rank, activation, &mut y, n, 0, add);
        assert_close(&name, &y, &case.f64("y"), 1e-12);

        let mut z = vec![0.0; m * n];
        linear(&x, k, &w, bias, low_rank, Activation::None, &mut z, n, 0, false);
        let (dy, mut dz) = (case.f64("dy"), vec![0.0; m * n]);
        activation_backward(activation, &z, &dy, Precision::F32, &mut dz);
        let (mut dx, mut dw, mut dbias) = (vec![0.0; x.len()], vec![0.0; w.len()], vec![0.0; n]);
        let (mut da, mut db) = (vec![0.0; a.len()], vec![0.0; b.len()]);
        let gradients = Gradients {
            dx: Some(&mut dx),
            dw: Some(&mut dw),
            dbias: Some(&mut dbias),
            da: Some(&mut da),
            db: Some(&mut db),
        };
        linear_backward(&dz, n, 0, &x, k, &w, low_rank.map(|l| (l, &a[..])), Precision::Bf16, gradients);
        for (tensor, got) in [("dx", dx), ("dweight", dw), ("dbias", dbias), ("da", da), ("db", db)] {
            if case.has(tensor) {
                assert_close(&format!("{name}.{tensor}"), &got, &case.f64(tensor), 1e-10);
            }
        }
        if add {
            assert_eq!(case.f64("dresidual"), dy, "a residual's gradient is that of y");
        }
    }
}

#[test]
fn activations_derivatives_are_slopes() {
    let x: Vec<f64> = (-60..=60).map(|i| i as f64 / 7.0).collect();
    for activation in [Activation::None, Activation::GeluTanh, Activation::GeluErf] {
        let derivatives: Vec<f64> = x.iter().map(|x| activation.derivative(*x)).collect();
        let sum = |x: &[f64]| x.iter().map(|x| activation.apply(*x)).sum();
        assert_gradient(&format!("{activation:?}"), sum, &x, &derivatives);
    }
}

#[test]
fn gradients_are_those_of_the_forward_and_are_added() {
    // one of two segments: y and s have columns of another on either side
    for (m, k, n, rank) in [(1, 1, 1, 1), (2, 3, 5, 1), (3, 5, 2, 3), (2, 7, 3, 0)] {
        let mut random = Random::new((m * k * n) as u64);
        let (stride, column, s_stride, s_column) = (n + 3, 2, rank + 2, 1);
        let (x, w, bias) = (random.f64s(m * k, 1.0), random.f64s(n * k, 1.0), random.f64s(n, 1.0));
        let (a, b, scale) = (random.f64s(rank * k, 1.0), random.f64s(n * rank, 1.0), 0.7);
        let dz = random.f64s(m * stride, 1.0);
        let wide = |x: &[f64], a: &[f64]| -> Vec<f64> {
            let mut s = vec![f64::NAN; m * s_stride];
            linear(x, k, a, None, None, Activation::None, &mut s, s_stride, s_column, false);
            s
        };
        let f = |x: &[f64], w: &[f64], bias: &[f64], a: &[f64], b: &[f64]| {
            let s = wide(x, a);
            let low_rank = (rank > 0).then_some(LowRank { s: &s, s_stride, s_column, b, rank, scale });
            let mut y = vec![0.0; m * stride];
            linear(x, k, w, Some(bias), low_rank, Activation::None, &mut y, stride, column, false);
            dot(&dz, &y)
        };
        let held = 0.5;
        let s = wide(&x, &a);
        let low_rank = (rank > 0).then_some((LowRank { s: &s, s_stride, s_column, b: &b, rank, scale }, &a[..]));
        let [mut dx, mut dw, mut dbias, mut da, mut db] = [&x, &w, &bias, &a, &b].map(|t| vec![held; t.len()]);
        let gradients = Gradients {
            dx: Some(&mut dx),
            dw: Some(&mut dw),
            dbias: Some(&mut dbias),
            da: Some(&mut da),
            db: Some(&mut db),
        };
        linear_backward(&dz, stride, column, &x, k, &w, low_rank, Precision::F32, gradients);
        [&mut dx, &mut dw, &mut dbias, &mut da, &mut db].into_iter().flatten().for_each(|g| *g -= held);
        assert_gradient("dx", |x| f(x, &w, &bias, &a, &b), &x, &dx);
        assert_gradient("dw", |w| f(&x, w, &bias, &a, &b), &w, &dw);
        assert_gradient("dbias", |bias| f(&x, &w, bias, &a, &b), &bias, &dbias);
        if rank > 0 {
            assert_gradient("da", |a| f(&x, &w, &bias, a, &b), &a, &da);
            assert_gradient("db", |b| f(&x, &w, &bias, &a, b), &b, &db);
        }
    }
}
