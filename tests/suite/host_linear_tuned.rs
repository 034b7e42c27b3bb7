//! `linear_tuned` and its gradients against the specification in f64, over shapes, segments, adapters and formats.
//!
//! Bounds: a sum of n products in f32, in any order, is off by at most about n u times the sum of their magnitudes, u
//! the unit of f32 (Higham, Accuracy and Stability, 3.1); that sum is the specification of the magnitudes. Rounding to
//! bf16 on the way adds its unit times the magnitude of what follows.

use crate::support::close::{UNIT, UNIT_BF16, assert_within};
use crate::support::random::{Random, wide};
use crate::support::stored::Stored;
use crate::support::{shapes, threads};
use proptest::prelude::*;
use proptest::sample::select;
use std::borrow::Cow;
use vlm::base::{DType, Precision};
use vlm::host::linear::{self, Activation, activation_backward};
use vlm::host::linear_tuned::{LowRank, Segment, activate, linear};
use vlm::host::linear_tuned_backward::{self, Gradients, linear_backward};

#[derive(Debug, Clone)]
struct Shape {
    n: usize,
    rank: usize,
    bias: bool,
    dtype: DType,
    offset: usize,
}

/// Around the panels of 128 and 192 rows, and primes.
fn segment() -> impl Strategy<Value = Shape> {
    let n = select(vec![1, 2, 7, 127, 128, 129, 191, 192, 193, 257, 389]);
    let dtype = select(vec![DType::F32, DType::Bf16, DType::F16]);
    (n, 0..4usize, any::<bool>(), dtype, 0..2usize).prop_map(|(n, rank, bias, dtype, offset)| Shape {
        n,
        rank,
        bias,
        dtype,
        offset,
    })
}

struct Part {
    weight: Stored,
    bias: Option<Vec<f32>>,
    low_rank: Option<(Stored, Stored, usize)>,
}

const SCALE: f32 = 0.75;

impl Part {
    fn all(random: &mut Random, shapes: &[Shape], k: usize, precision: Precision) -> Vec<Part> {
        let mut column = 1; // of s: one that belongs to nobody comes first
        let mut part = |s: &Shape| {
            let mut stored =
                |n: usize, columns| Stored::new(&random.f32s(n, 0.5), columns, s.dtype, precision, s.offset);
            let weight = stored(s.n * k, k);
            let low_rank = (s.rank > 0).then(|| (stored(s.rank * k, k), stored(s.n * s.rank, s.rank), column));
            column += s.rank;
            Part { weight, low_rank, bias: s.bias.then(|| random.f32s(s.n, 1.0)) }
        };
        shapes.iter().map(&mut part).collect()
    }

    fn segment(&self) -> Segment<'_> {
        let low_rank = self.low_rank.as_ref().map(|(a, b, s_column)| LowRank {
            a: a.matrix(),
            b: b.matrix(),
            scale: SCALE,
            s_column: *s_column,
            keep: None,
        });
        Segment { weight: self.weight.matrix(), bias: self.bias.as_ref().map(|b| Cow::Borrowed(&b[..])), low_rank }
    }
}

fn magnitudes(x: &[f64]) -> Vec<f64> {
    x.iter().map(|x| x.abs()).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

proptest! {
    #![proptest_config(shapes(64))]

    #[test]
    fn forward_follows_the_specification(
        m in select(vec![1, 2, 6, 7, 13, 40]),
        k in select(vec![1, 2, 31, 63, 64, 65, 131, 300]),
        segments in prop::collection::vec(segment(), 1..4),
        activation in select(vec![Activation::None, Activation::GeluTanh, Activation::GeluErf]),
        add in any::<bool>(),
        precision in select(vec![Precision::F32, Precision::Bf16]),
        seed in any::<u64>(),
    ) {
        let mut random = Random::new(seed);
        let parts = Part::all(&mut random, &segments, k, precision);
        let (n, rank): (usize, usize) = (segments.iter().map(|s| s.n).sum(), segments.iter().map(|s| s.rank).sum());
        let s_stride = rank + 2;
        let (x, residual) = (random.f32s(m * k, 1.0), random.f32s(m * n, 1.0));
        let run = || {
            let segments: Vec<Segment> = parts.iter().map(Part::segment).collect();
            let mut s = vec![f32::NAN; m * s_stride];
            let mut y = if add { residual.clone() } else { vec![f32::NAN; m * n] };
            linear(&x, k, &segments, &mut s, s_stride, activation, &mut y, add);
            (s, y)
        };
        let [(s, y), (s_again, y_again)] = threads(run);
        prop_assert_eq!(bits(&y), bits(&y_again));
        prop_assert_eq!(bits(&s), bits(&s_again));
        prop_assert!(s.chunks(s_stride).all(|s| s[0].is_nan() && s[rank + 1].is_nan()), "s beside the adapters");

        let (x, s) = (wide(&x), wide(&s));
        let (mut column, size) = (0, magnitudes(&x));
        for part in &parts {
            let (w, width) = (&part.weight.values, part.weight.values.len() / k);
            if let Some((a, _, s_column)) = &part.low_rank {
                let rank = a.values.len() / k;
                let (mut want, mut most) = (vec![0.0; m * rank], vec![0.0; m * rank]);
                linear::linear(&x, k, &a.values, None, None, Activation::None, &mut want, rank, 0, false);
                linear::linear(&size, k, &magnitudes(&a.values), None, None, Activation::None, &mut most, rank, 0, false);
                let got: Vec<f64> = s.chunks(s_stride).flat_map(|s| s[*s_column..][..rank].to_vec()).collect();
                let stored = if precision == Precision::Bf16 { UNIT_BF16 } else { 0.0 };
                assert_within("s", &got, &want, |i| (k + 2) as f64 * 1.1 * UNIT * most[i] + stored * 1.01 * want[i].abs());
            }
            // from the s that was stored, so that what follows does not carry its rounding
            let bias = part.bias.as_deref().map(wide);
            let s_size = magnitudes(&s);
            let b_size = part.low_rank.as_ref().map(|(_, b, _)| magnitudes(&b.values));
            let low_rank = |sizes: bool| part.low_rank.as_ref().map(|(_, b, s_column)| linear::LowRank {
                s: if sizes { &s_size } else { &s },
                s_stride,
                s_column: *s_column,
                b: if sizes { b_size.as_ref().unwrap_or(&b.values) } else { &b.values },
                rank: b.values.len() / width,
                scale: SCALE as f64,
            });
            let mut z = vec![0.0; m * width];
            linear::linear(&x, k, w, bias.as_deref(), low_rank(false), Activation::None, &mut z, width, 0, false);
            let mut most = vec![0.0; m * width];
            let bias_size = bias.as_deref().map(magnitudes);
            let (w_size, low) = (magnitudes(w), low_rank(true));
            linear::linear(&size, k, &w_size, bias_size.as_deref(), low, Activation::None, &mut most, width, 0, false);
            let columns = |rows: &[f32]| -> Vec<f64> {
                rows.chunks(n).flat_map(|row| wide(&row[column..][..width])).collect()
            };
            let (got, held) = (columns(&y), columns(&residual));
            let held: Vec<f64> = held.into_iter().map(|r| if add { r } else { 0.0 }).collect();
            let want: Vec<f64> = z.iter().zip(&held).map(|(z, r)| activation.apply(*z) + r).collect();
            // a GELU is at most 1.13 steep, and in f32 off by at most 6 units of 1 + |z|
            let own = if activation == Activation::None { 0.0 } else { 6.0 };
            assert_within("y", &got, &want, |i| {
                let sum = (k + 8) as f64 * 1.1 * UNIT * most[i];
                1.13 * sum + UNIT * (own * (1.0 + z[i].abs()) + 2.0 * (want[i].abs() + held[i].abs()))
            });
            column += width;
        }
    }

    #[test]
    fn backward_follows_the_specification(
        m in select(vec![1, 2, 7, 40, 191, 193]),
        k in select(vec![1, 2, 31, 64, 255, 256, 257]),
        segments in prop::collection::vec(segment(), 1..4),
        precision in select(vec![Precision::F32, Precision::Bf16]),
        [frozen, no_dx] in [any::<bool>(), any::<bool>()],
        seed in any::<u64>(),
    ) {
        let mut random = Random::new(seed);
        let parts = Part::all(&mut random, &segments, k, precision);
        let (n, rank): (usize, usize) = (segments.iter().map(|s| s.n).sum(), segments.iter().map(|s| s.rank).sum());
        let s_stride = rank + 2;
        let (x, dz) = (random.f32s(m * k, 1.0), random.f32s(m * n, 1.0));
        // s as forward leaves it; what lies beside the adapters is never read into a result
        let s = random.f32s(m * s_stride, 1.0);
        let held = 0.5f32;
        let run = || {
            let segments: Vec<Segment> = parts.iter().map(Part::segment).collect();
            let mut dx = vec![held; m * k];
            let mut own: Vec<[Vec<f32>; 4]> = parts.iter().map(|p| {
                let low = |f: fn(&(Stored, Stored, usize)) -> usize| p.low_rank.as_ref().map_or(0, f);
                [p.weight.values.len(), p.weight.values.len() / k, low(|l| l.0.values.len()), low(|l| l.1.values.len())]
                    .map(|n| vec![held; n])
            }).collect();
            let mut gradients: Vec<Gradients> = own.iter_mut().map(|[dw, dbias, da, db]| Gradients {
                dw: (!frozen).then_some(&mut dw[..]),
                dbias: (!frozen).then_some(&mut dbias[..]),
                da: Some(da),
                db: Some(db),
            }).collect();
            let wanted = (!no_dx).then_some(&mut dx[..]);
            linear_backward(&dz, &x, k, &segments, &s, s_stride, wanted, &mut gradients);
            (dx, own)
        };
        let [(dx, own), again] = threads(run);
        prop_assert_eq!(bits(&dx), bits(&again.0));
        prop_assert_eq!(own.as_flattened().iter().map(|g| bits(g)).collect::<Vec<_>>(),
            again.1.as_flattened().iter().map(|g| bits(g)).collect::<Vec<_>>());

        let held = held as f64;
        let spec = |sizes: bool| {
            let of = |v: &[f64]| if sizes { magnitudes(v) } else { v.to_vec() };
            let (x, dz, s) = (of(&wide(&x)), of(&wide(&dz)), of(&wide(&s)));
            let mut dx = vec![held; m * k];
            let (mut own, mut column) = (Vec::new(), 0);
            for part in &parts {
                let (w, width) = (of(&part.weight.values), part.weight.values.len() / k);
                let low = part.low_rank.as_ref().map(|(a, b, s_column)| (of(&a.values), of(&b.values), *s_column));
                let low_rank = low.as_ref().map(|(a, b, s_column)| {
                    let rank = b.len() / width;
                    (linear::LowRank { s: &s, s_stride, s_column: *s_column, b, rank, scale: SCALE as f64 }, &a[..])
                });
                let (a, b) = low.as_ref().map_or((0, 0), |(a, b, _)| (a.len(), b.len()));
                let [mut dw, mut dbias, mut da, mut db] = [w.len(), width, a, b].map(|n| vec![held; n]);
                let gradients = linear::Gradients {
                    dx: Some(&mut dx),
                    dw: Some(&mut dw),
                    dbias: Some(&mut dbias),
                    da: Some(&mut da),
                    db: Some(&mut db),
                };
                linear::linear_backward(&dz, n, column, &x, k, &w, low_rank, precision, gradients);
                own.push([dw, dbias, da, db]);
                column += width;
            }
            (dx, own)
        };
        let ((want_dx, want), (most_dx, most)) = (spec(false), spec(true));
        let stored = if precision == Precision::Bf16 && rank > 0 { 1.01 * UNIT_BF16 } else { 0.0 };
        // ds is itself a sum of n products
        let units = |products: usize| (products + n + 8) as f64 * 1.1 * UNIT;
        if no_dx {
            prop_assert!(dx.iter().all(|v| *v as f64 == held));
        } else {
            assert_within("dx", &dx, &want_dx, |i| (units(n + rank) + stored) * most_dx[i]);
        }
        for ((got, want), most) in own.iter().zip(&want).zip(&most) {
            for (g, name) in ["dw", "dbias", "da", "db"].iter().enumerate() {
                if frozen && g < 2 {
                    prop_assert!(got[g].iter().all(|v| *v as f64 == held));
                } else if !want[g].is_empty() {
                    let stored = if *name == "da" { stored } else { 0.0 };
                    assert_within(name, &got[g], &want[g], |i| (units(m) + stored) * most[g][i]);
                }
            }
        }
    }
}

#[test]
fn no_rows_are_no_work() {
    let weight = Stored::new(&[1.0; 6], 3, DType::F32, Precision::F32, 0);
    let segments = [Segment { weight: weight.matrix(), bias: None, low_rank: None }];
    linear(&[], 3, &segments, &mut [], 1, Activation::GeluTanh, &mut [], false);
    let mut dw = [0.5; 6];
    let gradients = Gradients { dw: Some(&mut dw), ..Gradients::default() };
    linear_backward(&[], &[], 3, &segments, &[], 1, Some(&mut []), &mut [gradients]);
    assert_eq!(dw, [0.5; 6]);
}

#[test]
fn ds_is_stored_in_bf16() {
    // one row, one adapter of rank 1 with A = 1: dx is ds alone, since W is 0
    let zero = Stored::new(&[0.0; 2], 1, DType::F32, Precision::Bf16, 0);
    let (a, b) = ([1.0], [1.0, 1.0]);
    let [a, b] = [&a[..], &b].map(|v| Stored::new(v, 1, DType::F32, Precision::Bf16, 0));
    let low_rank = LowRank { a: a.matrix(), b: b.matrix(), scale: 1.0, s_column: 0, keep: None };
    let segments = [Segment { weight: zero.matrix(), bias: None, low_rank: Some(low_rank) }];
    let mut dx = [0.0];
    linear_backward(&[1.0, 0.005], &[1.0], 1, &segments, &[1.0], 1, Some(&mut dx), &mut [Gradients::default()]);
    assert_eq!(dx, [half::bf16::from_f32(1.005).to_f32()]);
}

#[test]
fn dz_is_stored_in_bf16() {
    let (z, dy) = ([0.3, -1.7], [1.001, 0.37]);
    for activation in [Activation::None, Activation::GeluTanh, Activation::GeluErf] {
        let [mut dz, mut wide] = [[f32::NAN; 2]; 2];
        linear_tuned_backward::activation_backward(activation, &z, &dy, Precision::F32, &mut wide);
        linear_tuned_backward::activation_backward(activation, &z, &dy, Precision::Bf16, &mut dz);
        assert_eq!(dz, wide.map(|v| half::bf16::from_f32(v).to_f32()));
        assert_ne!(dz, wide);
    }
}

#[test]
fn activations_follow_the_specification() {
    // more than one piece of work, with a rest
    let n = 20_011;
    let (z, dy) = (Random::new(1).f32s(n, 3.0), Random::new(2).f32s(n, 1.0));
    for activation in [Activation::None, Activation::GeluTanh, Activation::GeluErf] {
        let (mut y, mut dz, mut want_dz) = (vec![f32::NAN; n], vec![f32::NAN; n], vec![0.0; n]);
        activate(activation, &z, &mut y);
        linear_tuned_backward::activation_backward(activation, &z, &dy, Precision::F32, &mut dz);
        let (z, dy) = (wide(&z), wide(&dy));
        let want: Vec<f64> = z.iter().map(|z| activation.apply(*z)).collect();
        activation_backward(activation, &z, &dy, Precision::F32, &mut want_dz);
        assert_within("y", &y, &want, |i| 6.0 * UNIT * (1.0 + z[i].abs()));
        // the derivative's second term is z times a density, whose argument z^2 carries its own roundings; it vanishes
        // before z^2 is large
        assert_within("dz", &dz, &want_dz, |i| 16.0 * UNIT * dy[i].abs());
    }
}
