//! The hot words of the host path at the shapes of a 55 M-parameter model and of the 8B one: time, and FLOP or bytes a
//! second. Each result is compared with the specification before it is timed.
//!
//! `cargo bench --bench words [-- FILTER]`

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use vlm::base::{DType, Precision};
use vlm::host::attention::{self, Heads, Mask, Rows};
use vlm::host::linear::{self, Activation};
use vlm::host::linear_tuned::{self, Matrix, Segment};
use vlm::host::{attention_tuned, math};

/// Numbers with a mean that is not 0, so that a relative error means something.
fn numbers(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.4
    };
    (0..n).map(|_| next()).collect()
}

fn assert_close(got: &[f32], want: &[f32]) {
    let norm: f64 = want.iter().map(|w| (*w as f64).powi(2)).sum();
    let difference: f64 = got.iter().zip(want).map(|(g, w)| (*g as f64 - *w as f64).powi(2)).sum();
    assert!(difference.sqrt() <= 1e-5 * norm.sqrt(), "the tuned result differs from the specification");
}

fn linear(c: &mut Criterion) {
    let mut group = c.benchmark_group("linear");
    // (rows, in, out): tower, text prompt, one decoded token, an 8B projection for one token
    for (m, k, n) in [(1200, 384, 1536), (330, 512, 3072), (1, 512, 3072), (1, 4096, 4096)] {
        for dtype in [DType::F32, DType::Bf16] {
            let (x, w) = (numbers(m * k, 1), numbers(n * k, 2));
            let w: Vec<f32> = w.iter().map(|w| Precision::Bf16.round(*w)).collect();
            let bytes: Vec<u8> = match dtype {
                DType::Bf16 => w.iter().flat_map(|w| ((w.to_bits() >> 16) as u16).to_le_bytes()).collect(),
                _ => w.iter().flat_map(|w| w.to_le_bytes()).collect(),
            };
            let weight = Matrix { dtype, bytes: &bytes, rows: n, columns: k, precision: Precision::F32 };
            let segments = [Segment { weight, bias: None, low_rank: None }];
            let mut y = vec![0.0; m * n];
            let run = |y: &mut [f32]| linear_tuned::linear(&x, k, &segments, &mut [], 1, Activation::None, y, false);
            run(&mut y);
            let mut want = vec![0.0; m.min(2) * n];
            linear::linear(&x[..m.min(2) * k], k, &w, None, None, Activation::None, &mut want, n, 0, false);
            assert_close(&y[..want.len()], &want);
            group.throughput(if m == 1 {
                Throughput::Bytes(bytes.len() as u64)
            } else {
                Throughput::Elements(2 * (m * k * n) as u64)
            });
            group.bench_function(BenchmarkId::new(format!("{dtype}"), format!("{m}x{k}x{n}")), |b| {
                b.iter(|| run(black_box(&mut y)))
            });
        }
    }
    group.finish();
}

fn attention(c: &mut Criterion) {
    let mut group = c.benchmark_group("attention");
    // the tower over one 640 x 480 photo, the text model over its prompt
    for (t, heads, mask) in [
        (1200, Heads { queries: 6, keys: 6, width: 64 }, Mask::Full),
        (330, Heads { queries: 8, keys: 4, width: 64 }, Mask::Causal),
    ] {
        let (q, k, v) = (
            numbers(t * heads.queries * heads.width, 1),
            numbers(t * heads.keys * heads.width, 2),
            numbers(t * heads.keys * heads.width, 3),
        );
        let rows = |data| Rows { data, start: 0, stride: heads.keys * heads.width };
        let starts = [0, t as i32];
        let mut y = vec![0.0; q.len()];
        let run = |y: &mut [f32]| {
            attention_tuned::attention(&q, rows(&k), rows(&v), &starts, heads, mask, 0.125, Precision::F32, y, None);
        };
        run(&mut y);
        let mut want = vec![0.0; q.len()];
        attention::attention(&q, rows(&k), rows(&v), &starts, heads, mask, 0.125, Precision::F32, &mut want);
        assert_close(&y, &want);
        let pairs = if mask == Mask::Full { t * t } else { t * (t + 1) / 2 };
        group.throughput(Throughput::Elements((4 * pairs * heads.queries * heads.width) as u64));
        group.bench_function(
            BenchmarkId::new(format!("{mask:?}"), format!("{t}x{}x{}", heads.queries, heads.width)),
            |b| b.iter(|| run(black_box(&mut y))),
        );
    }
    group.finish();
}

fn elementwise(c: &mut Criterion) {
    let mut group = c.benchmark_group("elementwise");
    let x = numbers(1200 * 1536, 1);
    group.throughput(Throughput::Bytes(8 * x.len() as u64));
    let mut y = x.clone();
    group.bench_function("gelu_tanh", |b| {
        b.iter(|| {
            y.copy_from_slice(&x);
            math::gelu_tanh(black_box(&mut y));
        })
    });
    group.finish();
}

criterion_group!(words, linear, attention, elementwise);
criterion_main!(words);
