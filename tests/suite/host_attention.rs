//! `attention` and `attention_cached`, the specification: PyTorch's values and gradients, and differences.

use crate::support::close::assert_close;
use crate::support::differences::{assert_gradient, dot};
use crate::support::golden::Golden;
use crate::support::random::Random;
use vlm::base::Precision;
use vlm::host::attention::{BlockTable, Heads, Mask, Rows, RowsMut, attention, attention_backward, attention_cached};

fn rows(data: &[f64], stride: usize) -> Rows<'_, f64> {
    Rows { data, start: 0, stride }
}

#[test]
fn follows_pytorch() {
    let golden = Golden::ops();
    for (name, mask) in [("attention.causal", Mask::Causal), ("attention.full", Mask::Full)] {
        let case = golden.case(name);
        let [_, queries, width] = case.shape("q")[..] else { panic!("q is [T, H, E]") };
        let heads = Heads { queries, keys: case.shape("k")[1], width };
        let (q, k, v, dy) = (case.f64("q"), case.f64("k"), case.f64("v"), case.f64("dy"));
        let (starts, scale, stride) = (case.i32("starts"), (width as f64).powf(-0.5), heads.keys * width);
        let mut y = vec![f64::NAN; q.len()];
        attention(&q, rows(&k, stride), rows(&v, stride), &starts, heads, mask, scale, Precision::F32, &mut y);
        assert_close(name, &y, &case.f64("y"), 1e-12);
        let [mut dq, mut dk, mut dv] = [&q, &k, &v].map(|t| vec![0.0; t.len()]);
        let into = |data| RowsMut { data, start: 0, stride };
        let (k, v) = (rows(&k, stride), rows(&v, stride));
        attention_backward(
            &q,
            k,
            v,
            &starts,
            heads,
            mask,
            scale,
            Precision::F32,
            &dy,
            &mut dq,
            into(&mut dk),
            into(&mut dv),
        );
        for (tensor, got) in [("dq", dq), ("dk", dk), ("dv", dv)] {
            assert_close(&format!("{name}.{tensor}"), &got, &case.f64(tensor), 1e-10);
        }
    }
}

#[test]
fn a_cache_follows_pytorch_wherever_its_blocks_lie() {
    let golden = Golden::ops();
    let case = golden.case("attention.cached");
    let [tokens, queries, width] = case.shape("q")[..] else { panic!("q is [T, H, E]") };
    let [length, keys, _] = case.shape("k")[..] else { panic!("k is [S, G, E]") };
    let heads = Heads { queries, keys, width };
    let (q, k, v) = (case.f64("q"), case.f64("k"), case.f64("v"));
    let (scale, row) = ((width as f64).powf(-0.5), keys * width);
    // the same sequence twice, behind another of one token; its blocks in order, and scattered
    for (block, blocks) in [(length, vec![2, 0, 1]), (4, vec![4, -1, -1, 5, 0, 2, 3, 1, 6]), (1, (0..27).collect())] {
        let max_blocks = blocks.len() / 3;
        let table = BlockTable { blocks: &blocks, max_blocks, block };
        let pool = (blocks.iter().max().unwrap() + 1) as usize * block * row;
        let (mut pool_k, mut pool_v) = (vec![f64::NAN; pool], vec![f64::NAN; pool]);
        let mut put = |b: usize, i: usize, from: usize| {
            let at = table.row(b, i) * row;
            pool_k[at..][..row].copy_from_slice(&k[from * row..][..row]);
            pool_v[at..][..row].copy_from_slice(&v[from * row..][..row]);
        };
        put(0, 0, 3);
        (1..3).for_each(|b| (0..length).for_each(|i| put(b, i, i)));
        let one = q[..queries * width].to_vec();
        let all = [&one[..], &q, &q].concat();
        let (t, s) = (tokens as i32, length as i32);
        let starts = [0, 1, 1 + t, 1 + 2 * t];
        let mut y = vec![f64::NAN; all.len()];
        attention_cached(&all, &pool_k, &pool_v, &starts, &[1, s, s], table, heads, scale, Precision::F32, &mut y);
        // one token sees one value: its own
        let alone: Vec<f64> =
            (0..queries).flat_map(|h| v[3 * row + heads.key_of(h) * width..][..width].to_vec()).collect();
        assert_close("alone", &y[..one.len()], &alone, 1e-15);
        let want = case.f64("y");
        assert_close("cached", &y[one.len()..], &[&want[..], &want].concat(), 1e-12);
    }
}

#[test]
fn gradients_are_those_of_the_forward_and_are_added() {
    let cases = [
        (Heads { queries: 1, keys: 1, width: 1 }, vec![0, 1], Mask::Full),
        (Heads { queries: 2, keys: 1, width: 3 }, vec![0, 2, 2, 5], Mask::Causal),
        (Heads { queries: 3, keys: 3, width: 2 }, vec![0, 3, 4], Mask::Full),
    ];
    for (seed, (heads, starts, mask)) in cases.into_iter().enumerate() {
        let mut random = Random::new(seed as u64);
        let tokens = starts[starts.len() - 1] as usize;
        let width = heads.keys * heads.width;
        let stride = width + 2;
        let (q, k) = (random.f64s(tokens * heads.queries * heads.width, 1.0), random.f64s(tokens * width, 1.0));
        let (v, dy) = (random.f64s(tokens * stride, 1.0), random.f64s(q.len(), 1.0));
        fn of_v(data: &[f64], stride: usize) -> Rows<'_, f64> {
            Rows { data, start: 1, stride }
        }
        let f = |q: &[f64], k: &[f64], v: &[f64]| {
            let mut y = vec![0.0; q.len()];
            attention(q, rows(k, width), of_v(v, stride), &starts, heads, mask, 0.7, Precision::F32, &mut y);
            dot(&dy, &y)
        };
        let held = 0.25;
        let [mut dq, mut dk, mut dv] = [&q, &k, &v].map(|t| vec![held; t.len()]);
        let into_k = RowsMut { data: &mut dk, start: 0, stride: width };
        let into_v = RowsMut { data: &mut dv, start: 1, stride };
        attention_backward(
            &q,
            rows(&k, width),
            of_v(&v, stride),
            &starts,
            heads,
            mask,
            0.7,
            Precision::F32,
            &dy,
            &mut dq,
            into_k,
            into_v,
        );
        [&mut dq, &mut dk, &mut dv].into_iter().flatten().for_each(|g| *g -= held);
        assert_gradient("dq", |q| f(q, &k, &v), &q, &dq);
        assert_gradient("dk", |k| f(&q, k, &v), &k, &dk);
        assert_gradient("dv", |v| f(&q, &k, v), &v, &dv);
    }
}
