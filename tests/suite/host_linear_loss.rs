//! `linear_loss`: PyTorch's values and gradients, and differences; the tuned function against the specification.

use crate::support::close::assert_close;
use crate::support::differences::assert_gradient;
use crate::support::golden::Golden;
use crate::support::random::Random;
use vlm::host::linear_loss::{linear_loss, linear_loss_backward};

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
        linear_loss_backward(&x, k, &w, &labels, 1.0 / count, &mut dx, Some(&mut dw));
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
        linear_loss_backward(&x, k, &w, &labels, 0.3, &mut dx, Some(&mut dw));
        [&mut dx, &mut dw].into_iter().flatten().for_each(|g| *g -= 0.5);
        assert_gradient("dx", |x| f(x, &w), &x, &dx);
        assert_gradient("dw", |w| f(&x, w), &w, &dw);
    }
}
