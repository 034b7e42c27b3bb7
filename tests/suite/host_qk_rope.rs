//! `qk_rope`: PyTorch's values and gradients, and differences. The angles are made here, from the formulas of
//! transformers' Qwen3VLTextRotaryEmbedding and Qwen3VLVisionRotaryEmbedding.

use crate::support::close::assert_close;
use crate::support::differences::{assert_gradient, dot};
use crate::support::golden::{Case, Golden};
use crate::support::random::Random;
use half::bf16;
use vlm::base::Precision;
use vlm::host::qk_rope::{HeadNorm, head, rotate, rotate_backward};

/// Cosines then sines of each token's E/2 angles, interleaved M-RoPE: frequency j follows the height where j % 3 == 1
/// and j < 3 sections[1], the width where j % 3 == 2 and j < 3 sections[2], else the time.
fn text_angles(case: &Case, width: usize) -> Vec<f64> {
    let (positions, sections, theta) = (case.i32("positions"), case.i32("sections"), case.number("theta"));
    let tokens = positions.len() / 3;
    let axis = |j: usize| (1..3).find(|a| j % 3 == *a && j < 3 * sections[*a] as usize).unwrap_or(0);
    let angle =
        |t: usize, j: usize| positions[axis(j) * tokens + t] as f64 * theta.powf(-2.0 * j as f64 / width as f64);
    table(tokens, width / 2, angle)
}

/// The first half of the frequencies turns with the row, the second with the column.
fn vision_angles(case: &Case, width: usize) -> Vec<f64> {
    let (positions, theta) = (case.i32("positions"), case.number("theta"));
    let quarter = width / 4;
    let angle = |p: usize, j: usize| {
        let frequency = theta.powf(-2.0 * (j % quarter) as f64 / (width / 2) as f64);
        positions[2 * p + j / quarter] as f64 * frequency
    };
    table(positions.len() / 2, width / 2, angle)
}

fn table(tokens: usize, half: usize, angle: impl Fn(usize, usize) -> f64) -> Vec<f64> {
    (0..tokens)
        .flat_map(|t| {
            let angles: Vec<f64> = (0..half).map(|j| angle(t, j)).collect();
            let (cos, sin): (Vec<_>, Vec<_>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
            [cos, sin].concat()
        })
        .collect()
}

#[test]
fn follows_pytorch() {
    let golden = Golden::ops();
    for name in ["qk_rope.a", "qk_rope.b", "vision_rope.a", "vision_rope.b"] {
        let case = golden.case(name);
        let [tokens, queries, width] = case.shape("q")[..] else { panic!("q is [T, H, E]") };
        let keys = case.shape("k")[1];
        let text = name.starts_with("qk");
        let angles = if text { text_angles(&case, width) } else { vision_angles(&case, width) };
        // queries, keys and values side by side, as the projection leaves them
        let stride = (queries + 2 * keys) * width;
        let (q, k) = (case.f64("q"), case.f64("k"));
        let qkv: Vec<f64> = (0..tokens)
            .flat_map(|t| {
                let row = |x: &[f64], heads: usize| x[t * heads * width..][..heads * width].to_vec();
                [row(&q, queries), row(&k, keys), vec![f64::NAN; keys * width]].concat()
            })
            .collect();
        let mut dqkv = vec![0.0; qkv.len()];
        for (side, heads, column) in [("q", queries, 0), ("k", keys, queries * width)] {
            let weight = if text { case.f64(&format!("{side}_norm")) } else { vec![] };
            let norm = text.then(|| HeadNorm { weight: &weight, eps: case.number("eps") });
            let mut y = vec![0.0; tokens * heads * width];
            rotate(&qkv, stride, column, heads, width, &angles, norm, Precision::Bf16, &mut y);
            assert_close(&format!("{name} {side}"), &y, &case.f64(&format!("{side}_out")), 1e-12);

            let dy = case.f64(&format!("d{side}_out"));
            let mut dweight = vec![0.0; width];
            let accumulator = text.then_some(&mut dweight[..]);
            rotate_backward(&qkv, stride, column, heads, width, &angles, norm, &dy, &mut dqkv, accumulator);
            let dx: Vec<f64> =
                dqkv.chunks(stride).flat_map(|row| row[column..][..heads * width].iter().copied()).collect();
            assert_close(&format!("{name} d{side}"), &dx, &case.f64(&format!("d{side}")), 1e-10);
            if text {
                assert_close(name, &dweight, &case.f64(&format!("d{side}_norm")), 1e-10);
            }
        }
        let values = dqkv.chunks(stride).flat_map(|row| &row[(queries + keys) * width..]);
        assert!(values.into_iter().all(|v| *v == 0.0), "{name}: the values' columns were touched");
    }
}

#[test]
fn gradients_are_those_of_the_forward() {
    for (seed, (tokens, heads, width, extra)) in [(1, 1, 2, 0), (2, 3, 6, 5), (3, 1, 14, 1)].into_iter().enumerate() {
        let mut random = Random::new(seed as u64);
        let stride = heads * width + extra;
        let column = extra / 2;
        let (x, weight) = (random.f64s(tokens * stride, 1.0), random.f64s(width, 0.5));
        let turns = random.f64s(tokens * width / 2, 3.0);
        let angles = table(tokens, width / 2, |t, j| turns[t * width / 2 + j]);
        let dy = random.f64s(tokens * heads * width, 1.0);
        for normed in [true, false] {
            let f = |x: &[f64], weight: &[f64]| {
                let norm = normed.then_some(HeadNorm { weight, eps: 1e-2 });
                let mut y = vec![0.0; dy.len()];
                rotate(x, stride, column, heads, width, &angles, norm, Precision::F32, &mut y);
                dot(&dy, &y)
            };
            let norm = normed.then_some(HeadNorm { weight: &weight, eps: 1e-2 });
            let (mut dx, mut dweight) = (vec![0.0; x.len()], vec![0.0; width]);
            rotate_backward(&x, stride, column, heads, width, &angles, norm, &dy, &mut dx, Some(&mut dweight));
            assert_gradient("dx", |x| f(x, &weight), &x, &dx);
            if normed {
                assert_gradient("dweight", |w| f(&x, w), &weight, &dweight);
            }
        }
    }
}

#[test]
fn a_normed_head_is_rounded_before_and_after_its_weight() {
    let x = Random::new(8).f32s(16, 1.0);
    let weight = Random::new(9).f32s(16, 1.0);
    let still = [[1.0f32; 8], [0.0; 8]].concat();
    let (mut y, mut plain) = ([0.0; 16], [0.0; 16]);
    head(&x, &still, Some(HeadNorm { weight: &weight, eps: 1e-6 }), Precision::Bf16, &mut y);
    let mean_square = x.iter().map(|x| (*x as f64).powi(2)).sum::<f64>() / 16.0 + 1e-6;
    for i in 0..16 {
        let n = x[i] as f64 / mean_square.sqrt();
        let twice = |n: f64| bf16::from_f32(bf16::from_f64(n).to_f32() * weight[i]).to_f32();
        let choices = [twice(n * (1.0 - 1e-6)), twice(n * (1.0 + 1e-6))];
        assert!(choices.contains(&y[i]), "{} is not one of {choices:?}", y[i]);
    }
    head(&x, &still, None, Precision::Bf16, &mut plain);
    assert_eq!(plain[..], x[..], "without a norm nothing is rounded before the rotation");
}
