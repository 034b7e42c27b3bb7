//! `adamw` and `grad_norm` against torch.optim.AdamW and torch.nn.utils.clip_grad_norm_.

use crate::support::close::{UNIT, assert_close, assert_within};
use crate::support::golden::Golden;
use crate::support::random::{Random, wide};
use vlm::host::adamw::{Step, adamw};
use vlm::host::grad_norm::{clip_coefficient, grad_norm};

#[test]
fn adamw_follows_pytorch() {
    let golden = Golden::ops();
    for name in ["adamw.decay", "adamw.plain"] {
        let case = golden.case(name);
        let (mut p, g, lr, betas) = (case.f64("p"), case.f64("g"), case.f64("lr"), case.f64("betas"));
        let mut p32 = case.f32("p");
        let n = p.len();
        let (mut m, mut v, mut m32, mut v32) = (vec![0.0; n], vec![0.0; n], vec![0.0; n], vec![0.0; n]);
        for (i, want) in case.f64("p_out").chunks(n).enumerate() {
            let mut step = Step {
                number: i as u32 + 1,
                learning_rate: lr[i],
                beta1: betas[0],
                beta2: betas[1],
                eps: case.number("eps"),
                weight_decay: case.number("weight_decay"),
                gradient_scale: 1.0,
            };
            adamw(&step, &mut p, &g[i * n..][..n], &mut m, &mut v);
            assert_close(name, &p, want, 1e-14);
            // in f32, from gradients four times too large and scaled back: each step moves p by about lr, with a
            // relative error of some ten roundings, and rounds p
            let large: Vec<f32> = g[i * n..][..n].iter().map(|g| 4.0 * *g as f32).collect();
            step.gradient_scale = 0.25;
            adamw(&step, &mut p32, &large, &mut m32, &mut v32);
            assert_within(name, &p32, want, |j| (i + 1) as f64 * UNIT * (2.0 * want[j].abs() + 10.0 * lr[2]));
        }
        assert_close(name, &m, &case.f64("m"), 1e-14);
        assert_close(name, &v, &case.f64("v"), 1e-14);
        assert_close(name, &m32, &case.f64("m"), 8.0 * UNIT);
        assert_close(name, &v32, &case.f64("v"), 8.0 * UNIT);
    }
}

#[test]
fn the_norm_and_the_clipping_follow_pytorch() {
    let golden = Golden::ops();
    for name in ["grad_norm.clipped", "grad_norm.kept"] {
        let case = golden.case(name);
        let parts = ["g0", "g1", "g2"].map(|g| case.f64(g));
        let norm = grad_norm(&parts.each_ref().map(|g| &g[..]));
        assert_close(name, &[norm], &[case.number("norm")], 1e-14);
        let coefficient = clip_coefficient(norm, case.number("max_norm"));
        for (g, out) in parts.iter().zip(["g0_out", "g1_out", "g2_out"]) {
            let got: Vec<f64> = g.iter().map(|g| g * coefficient).collect();
            assert_close(out, &got, &case.f64(out), 1e-14);
        }
    }
}

#[test]
fn the_norm_of_many_is_exact_and_the_same_for_any_number_of_threads() {
    let g = Random::new(1).f32s(100_003, 3.0);
    let want = wide(&g).iter().map(|g| g * g).sum::<f64>().sqrt();
    let norm = grad_norm(&[&g[..5], &g[5..]]);
    assert_close("norm", &[norm], &[want], 1e-12);
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    assert_eq!(one.install(|| grad_norm(&[&g[..5], &g[5..]])).to_bits(), norm.to_bits());
    assert_eq!(grad_norm::<f32>(&[]), 0.0);
    assert_eq!(clip_coefficient(0.0, 1.0), 1.0);
    assert!(clip_coefficient(f64::NAN, 1.0).is_nan());
    assert!(grad_norm(&[&[1.0f32, f32::NAN]]).is_nan());
}
