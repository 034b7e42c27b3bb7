//! `attention_tuned` and its gradients against the specification in f64, over heads, sequences and blocks.

use crate::support::close::{UNIT, assert_within};
use crate::support::random::{Random, wide};
use crate::support::{shapes, threads};
use proptest::prelude::*;
use proptest::sample::select;
use vlm::base::Precision;
use vlm::host::attention::{self, BlockTable, Heads, Mask, Rows, RowsMut, probabilities};
use vlm::host::attention_tuned::{Left, attention, attention_backward, attention_cached};

/// Few and many heads, widths around what a product handles at once.
fn heads() -> impl Strategy<Value = Heads> {
    let kinds = vec![(1, 1, 1), (2, 1, 16), (3, 3, 7), (6, 2, 18), (4, 2, 72)];
    select(kinds).prop_map(|(queries, keys, width)| Heads { queries, keys, width })
}

/// Lengths of packed sequences: empty, one, primes, and around one and two blocks of 96 queries.
fn lengths() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(select(vec![0, 1, 2, 13, 95, 96, 97, 127, 191, 192, 193, 211]), 1..4)
}

fn starts(lengths: &[usize]) -> Vec<i32> {
    std::iter::once(0)
        .chain(lengths.iter().scan(0, |at, n| {
            Some({
                *at += *n as i32;
                *at
            })
        }))
        .collect()
}

/// How far f32 may be from the specification. For one query with scores s_i = scale q . k_i: a score is off by at most
/// delta = scale (E + 3) u max_i |q| . |k_i|, its difference from the largest by twice that and two roundings of the
/// largest, so a probability by rho = twice delta and so on, plus 4 u of the exponential and n u of the sum. With
/// M = max_i |dy| . |v_i| and gamma = (n + E + 20) u for any sum here: dp is off by gamma M, its mean under p by
/// (rho + 2 gamma) M, so ds = scale p (dp - mean) by scale p M (3 rho + 4 gamma), and the sums over ds, at most
/// 2 scale p M each, add 2 gamma of it. y and dv are sums of p times something.
struct Bounds {
    y: Vec<f64>,
    dq: Vec<f64>,
    dk: Vec<f64>,
    dv: Vec<f64>,
}

struct Inputs {
    heads: Heads,
    starts: Vec<i32>,
    mask: Mask,
    scale: f32,
    q: Vec<f32>,
    k: Vec<f32>,
    /// Rows of `v_stride`, the values from column 1.
    v: Vec<f32>,
    v_stride: usize,
    dy: Vec<f32>,
}

impl Inputs {
    fn new(heads: Heads, lengths: &[usize], mask: Mask, seed: u64) -> Inputs {
        let mut random = Random::new(seed);
        let tokens: usize = lengths.iter().sum();
        let (row, keys) = (heads.queries * heads.width, heads.keys * heads.width);
        Inputs {
            heads,
            starts: starts(lengths),
            mask,
            scale: (heads.width as f32).powf(-0.5),
            q: random.f32s(tokens * row, 1.5),
            k: random.f32s(tokens * keys, 1.0),
            v: random.f32s(tokens * (keys + 3), 1.0),
            v_stride: keys + 3,
            dy: random.f32s(tokens * row, 1.0),
        }
    }

    fn bounds(&self) -> Bounds {
        let Heads { queries, keys, width } = self.heads;
        let [q, k, v, dy] = [&self.q, &self.k, &self.v, &self.dy].map(|t| wide(t));
        let scale = f64::from(self.scale);
        let k = |t: usize, g: usize| &k[(t * keys + g) * width..][..width];
        let v_at = |t: usize, g: usize| t * self.v_stride + 1 + g * width;
        let size = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a * b).abs()).sum::<f64>();
        let mut bounds = Bounds {
            y: vec![0.0; q.len()],
            dq: vec![0.0; q.len()],
            dk: vec![0.0; self.k.len()],
            dv: vec![0.0; self.v.len()],
        };
        for pair in self.starts.windows(2) {
            let (from, to) = (pair[0] as usize, pair[1] as usize);
            let gamma = ((to - from) * queries / keys + width + 20) as f64 * 1.1 * UNIT;
            for (t, h) in (from..to).flat_map(|t| (0..queries).map(move |h| (t, h))) {
                let (at, g) = ((t * queries + h) * width, self.heads.key_of(h));
                let seen = from..if self.mask == Mask::Causal { t + 1 } else { to };
                let (q, dy) = (&q[at..][..width], &dy[at..][..width]);
                let score = |i: usize| scale * q.iter().zip(k(i, g)).map(|(q, k)| q * k).sum::<f64>();
                let p = probabilities(seen.clone().map(score).collect());
                let largest = seen.clone().map(|i| scale * size(q, k(i, g))).fold(0.0, f64::max);
                let rho = (2.2 * (width + 5) as f64 * largest + (seen.len() + 12) as f64) * UNIT;
                let m = seen.clone().map(|i| size(dy, &v[v_at(i, g)..][..width])).fold(0.0, f64::max);
                for (i, p) in seen.zip(p) {
                    let ds = scale * p * m * (3.0 * rho + 6.0 * gamma);
                    for e in 0..width {
                        bounds.y[at + e] += (rho + gamma) * p * v[v_at(i, g) + e].abs();
                        bounds.dq[at + e] += ds * k(i, g)[e].abs();
                        bounds.dk[(i * keys + g) * width + e] += ds * q[e].abs();
                        bounds.dv[v_at(i, g) + e] += (rho + gamma) * p * dy[e].abs();
                    }
                }
            }
        }
        bounds
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

proptest! {
    #![proptest_config(shapes(32))]

    #[test]
    fn forward_and_backward_follow_the_specification(
        heads in heads(),
        lengths in lengths(),
        mask in select(vec![Mask::Causal, Mask::Full]),
        seed in any::<u64>(),
    ) {
        let i = Inputs::new(heads, &lengths, mask, seed);
        let (stride, v_stride, starts) = (heads.keys * heads.width, i.v_stride, &i.starts[..]);
        let held = 0.5f32;
        let run = || {
            let mut y = vec![f32::NAN; i.q.len()];
            let [mut dq, mut dk, mut dv] = [&i.q, &i.k, &i.v].map(|t| vec![held; t.len()]);
            let (k, v) = (Rows { data: &i.k[..], start: 0, stride }, Rows { data: &i.v[..], start: 1, stride: v_stride });
            attention(&i.q, k, v, starts, heads, mask, i.scale, Precision::F32, &mut y, None);
            let (to_k, to_v) = (
                RowsMut { data: &mut dk[..], start: 0, stride },
                RowsMut { data: &mut dv[..], start: 1, stride: v_stride },
            );
            attention_backward(&i.q, k, v, starts, heads, mask, i.scale, None, &i.dy, &mut dq, to_k, to_v);
            [y, dq, dk, dv]
        };
        let [got, again] = threads(run);
        prop_assert_eq!(got.each_ref().map(|t| bits(t)), again.each_ref().map(|t| bits(t)));
        let [y, dq, dk, dv] = got;
        if y.is_empty() {
            return Ok(());
        }

        let [q, k, v, dy] = [&i.q, &i.k, &i.v, &i.dy].map(|t| wide(t));
        let (held, scale) = (f64::from(held), f64::from(i.scale));
        let (k, v) = (Rows { data: &k[..], start: 0, stride }, Rows { data: &v[..], start: 1, stride: v_stride });
        let mut want_y = vec![0.0; q.len()];
        attention::attention(&q, k, v, starts, heads, mask, scale, Precision::F32, &mut want_y);
        let [mut want_q, mut want_k, mut want_v] = [&i.q, &i.k, &i.v].map(|t| vec![held; t.len()]);
        let (to_k, to_v) = (
            RowsMut { data: &mut want_k[..], start: 0, stride },
            RowsMut { data: &mut want_v[..], start: 1, stride: v_stride },
        );
        attention::attention_backward(&q, k, v, starts, heads, mask, scale, Precision::F32, &dy, &mut want_q, to_k, to_v);
        let bounds = i.bounds();
        assert_within("y", &y, &want_y, |i| bounds.y[i]);
        // adding to what was held rounds once more
        let added = |want: &[f64], i: usize| 2.0 * UNIT * (want[i].abs() + held);
        assert_within("dq", &dq, &want_q, |i| bounds.dq[i] + added(&want_q, i));
        assert_within("dk", &dk, &want_k, |i| bounds.dk[i] + added(&want_k, i));
        assert_within("dv", &dv, &want_v, |i| bounds.dv[i] + added(&want_v, i));
    }

    #[test]
    fn in_bf16_it_rounds_where_the_specification_does(
        heads in heads(),
        lengths in lengths(),
        mask in select(vec![Mask::Causal, Mask::Full]),
        seed in any::<u64>(),
    ) {
        let precision = Precision::Bf16;
        // enough rows for a tie or two to be few
        let lengths = [lengths, vec![61]].concat();
        let mut i = Inputs::new(heads, &lengths, mask, seed);
        [&mut i.q, &mut i.k, &mut i.v, &mut i.dy].into_iter().flatten().for_each(|x| *x = precision.round(*x));
        let (stride, starts) = (heads.keys * heads.width, &i.starts[..]);
        let (k, v) = (Rows { data: &i.k[..], start: 0, stride }, Rows { data: &i.v[..], start: 1, stride: i.v_stride });
        let [mut y, mut want_y] = [(); 2].map(|_| vec![f32::NAN; i.q.len()]);
        let mut lse = vec![f32::NAN; i.q.len() / heads.width];
        attention(&i.q, k, v, starts, heads, mask, i.scale, precision, &mut y, Some(&mut lse));
        attention::attention(&i.q, k, v, starts, heads, mask, i.scale, precision, &mut want_y);
        let gradients = || [&i.q, &i.k, &i.v].map(|t| vec![0.0f32; t.len()]);
        let into = |data, start, stride| RowsMut { data, start, stride };
        let [mut want_q, mut want_k, mut want_v] = gradients();
        let (to_k, to_v) = (into(&mut want_k[..], 0, stride), into(&mut want_v[..], 1, i.v_stride));
        attention::attention_backward(&i.q, k, v, starts, heads, mask, i.scale, precision, &i.dy, &mut want_q, to_k, to_v);
        let stored: Vec<f32> = want_y.iter().map(|y| precision.round(*y)).collect();
        let [mut dq, mut dk, mut dv] = gradients();
        let (to_k, to_v) = (into(&mut dk[..], 0, stride), into(&mut dv[..], 1, i.v_stride));
        let left = Some(Left { y: &stored, lse: &lse });
        attention_backward(&i.q, k, v, starts, heads, mask, i.scale, left, &i.dy, &mut dq, to_k, to_v);
        // Were something rounded elsewhere, most rows would be off by 1e-4 to 1e-3 of a row's usual length. A number that
        // two orders of summing leave on different sides of a tie moves its own row that far, but few rows have one.
        let heads_of = |v: &[f32]| v.chunks_exact(i.v_stride).flat_map(|row| row[1..][..stride].to_vec()).collect();
        let [dv, want_v]: [Vec<f32>; 2] = [heads_of(&dv), heads_of(&want_v)];
        for (what, got, want) in [("y", y, want_y), ("dq", dq, want_q), ("dk", dk, want_k), ("dv", dv, want_v)] {
            let length = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            let rows = want.len() / heads.width;
            let usual = length(&mut want.iter().copied()) / (rows as f64).sqrt();
            let pairs = got.chunks(heads.width).zip(want.chunks(heads.width));
            let mut errors: Vec<f64> = pairs.map(|(got, want)| length(&mut got.iter().zip(want).map(|(g, w)| g - w))).collect();
            errors.sort_by(f64::total_cmp);
            let most = errors[rows * 3 / 4];
            prop_assert!(most <= 1e-5 * usual, "{what}: a quarter of the rows is off by {most:e} or more beside {usual:e}");
        }
    }

    #[test]
    fn a_cache_follows_the_specification(
        heads in heads(),
        // (queries, tokens before them) of each sequence; the last is long enough to be shared out
        sequences in prop::collection::vec((0..5usize, select(vec![0, 1, 15, 16, 17, 97])), 1..4),
        long in any::<bool>(),
        block in select(vec![1, 16, 64]),
        scattered in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let mut sequences = sequences;
        if long {
            sequences.push((9, 2100));
        }
        let mut random = Random::new(seed);
        let lengths: Vec<i32> = sequences.iter().map(|(n, before)| (n + before) as i32).collect();
        let starts = starts(&sequences.iter().map(|s| s.0).collect::<Vec<_>>());
        let tokens = starts[sequences.len()] as usize;
        let max_blocks = lengths.iter().map(|l| (*l as usize).div_ceil(block)).max().unwrap_or(0).max(1);
        let mut blocks: Vec<i32> = (0..(sequences.len() * max_blocks) as i32).collect();
        if scattered {
            (1..blocks.len()).for_each(|i| blocks.swap(i, random.below(i + 1)));
        }
        let table = BlockTable { blocks: &blocks, max_blocks, block };
        let row = heads.keys * heads.width;
        let (mut keys, mut values) = (vec![f32::NAN; blocks.len() * block * row], vec![f32::NAN; blocks.len() * block * row]);
        for (b, n) in lengths.iter().enumerate() {
            for i in 0..*n as usize {
                let at = table.row(b, i) * row;
                keys[at..][..row].copy_from_slice(&random.f32s(row, 1.0));
                values[at..][..row].copy_from_slice(&random.f32s(row, 1.0));
            }
        }
        let q = random.f32s(tokens * heads.queries * heads.width, 1.5);
        let scale = (heads.width as f32).powf(-0.5);
        let run = || {
            let mut y = vec![f32::NAN; q.len()];
            attention_cached(&q, &keys, &values, &starts, &lengths, table, heads, scale, Precision::F32, &mut y);
            y
        };
        let [y, again] = threads(run);
        prop_assert_eq!(bits(&y), bits(&again));
        if y.is_empty() {
            return Ok(());
        }
        let mut want = vec![0.0; q.len()];
        let (wide_keys, wide_values) = (wide(&keys), wide(&values));
        let scale = f64::from(scale);
        attention::attention_cached(
            &wide(&q), &wide_keys, &wide_values, &starts, &lengths, table, heads, scale, Precision::F32, &mut want,
        );
        // As for `Bounds::y`, with the largest values that occur: an element is at most 3.7 deviations, so q . k has at
        // most E products of 5.6 * 3.7, below 24, and a value is below 4.
        let n = *lengths.iter().max().unwrap_or(&0) as f64;
        let width = heads.width as f64;
        let rho = 2.2 * (width + 5.0) * scale * width * 24.0 + n + 12.0;
        assert_within("y", &y, &want, |_| (rho + n + width + 20.0) * UNIT * 4.0);
    }
}
