//! The words that work row by row, `swiglu`, `embed`, `deepstack_add` and `patch_embed`: PyTorch's values and gradients,
//! and differences.

use crate::support::close::assert_close;
use crate::support::differences::{assert_gradient, dot};
use crate::support::golden::{Case, Golden};
use crate::support::random::Random;
use half::bf16;
use vlm::base::Precision;
use vlm::host::deepstack_add::{deepstack_add, deepstack_add_backward};
use vlm::host::embed::{embed, embed_backward};
use vlm::host::linear::{self, Activation, linear, linear_backward};
use vlm::host::patch_embed::{add_positions, add_positions_backward};
use vlm::host::swiglu::{swiglu, swiglu_backward};

/// Rows of a and b side by side.
fn beside(a: &[f64], b: &[f64], width: usize) -> Vec<f64> {
    a.chunks(width).zip(b.chunks(width)).flat_map(|(a, b)| [a, b].concat()).collect()
}

#[test]
fn swiglu_follows_pytorch() {
    let golden = Golden::ops();
    let case = golden.case("swiglu.a");
    let width = case.shape("gate")[1];
    let gate_up = beside(&case.f64("gate"), &case.f64("up"), width);
    let mut y = vec![0.0; gate_up.len() / 2];
    swiglu(&gate_up, width, &mut y);
    assert_close("y", &y, &case.f64("y"), 1e-12);
    let mut dgate_up = vec![0.0; gate_up.len()];
    swiglu_backward(&gate_up, width, &case.f64("dy"), &mut dgate_up);
    assert_close("dgate_up", &dgate_up, &beside(&case.f64("dgate"), &case.f64("dup"), width), 1e-10);
}

#[test]
fn swiglu_gradients_are_those_of_the_forward() {
    for (rows, width) in [(1, 1), (3, 7)] {
        let mut random = Random::new(5);
        let (gate_up, dy) = (random.f64s(rows * 2 * width, 2.0), random.f64s(rows * width, 1.0));
        let mut dgate_up = vec![0.0; gate_up.len()];
        swiglu_backward(&gate_up, width, &dy, &mut dgate_up);
        let f = |gate_up: &[f64]| {
            let mut y = vec![0.0; rows * width];
            swiglu(gate_up, width, &mut y);
            dot(&dy, &y)
        };
        assert_gradient("dgate_up", f, &gate_up, &dgate_up);
    }
}

#[test]
fn embed_follows_pytorch() {
    let golden = Golden::ops();
    let case = golden.case("embed.a");
    let (ids, table, features, dy) = (case.i32("ids"), case.f64("table"), case.f64("features"), case.f64("dy"));
    let width = case.shape("table")[1];
    let mut rows = vec![-1; ids.len()];
    case.i32("rows").iter().zip(0..).for_each(|(at, row)| rows[*at as usize] = row);
    let mut y = vec![0.0; ids.len() * width];
    let row = |id: usize, y: &mut [f64]| y.copy_from_slice(&table[id * width..][..width]);
    embed(&ids, Some((&features, &rows)), width, row, &mut y);
    assert_eq!(y, case.f64("y"));
    let (mut dtable, mut dfeatures) = (vec![0.0; table.len()], vec![0.0; features.len()]);
    embed_backward(&ids, Some(&rows), width, &dy, Some(&mut dtable), Some(&mut dfeatures));
    assert_close("dtable", &dtable, &case.f64("dtable"), 1e-12);
    assert_eq!(dfeatures, case.f64("dfeatures"));

    // a frozen table, and text without images
    let mut alone = vec![0.0; features.len()];
    embed_backward(&ids, Some(&rows), width, &dy, None, Some(&mut alone));
    assert_eq!(alone, dfeatures);
    embed(&ids, None, width, row, &mut y);
    let mut of_text = vec![0.0; table.len()];
    embed_backward(&ids, None, width, &dy, Some(&mut of_text), None);
    for (t, id) in ids.iter().enumerate() {
        assert_eq!(y[t * width..][..width], table[*id as usize * width..][..width]);
    }
    let sum = |g: &[f64]| g.iter().sum::<f64>();
    assert_close("what flows in flows out", &[sum(&of_text)], &[sum(&dy)], 1e-12);
}

#[test]
fn deepstack_add_follows_pytorch() {
    let golden = Golden::ops();
    let case = golden.case("deepstack_add.a");
    let (rows, width) = (case.i32("rows"), case.shape("x")[1]);
    let mut y = case.f64("x");
    deepstack_add(&mut y, &case.f64("features"), width, &rows);
    assert_close("y", &y, &case.f64("y"), 1e-15);
    let mut dfeatures = vec![0.0; rows.len() * width];
    deepstack_add_backward(&case.f64("dy"), width, &rows, &mut dfeatures);
    assert_eq!(dfeatures, case.f64("dfeatures"));
    assert_eq!(case.f64("dx"), case.f64("dy"));
}

/// Rows of the position table around each patch, and their shares: the bilinear interpolation with aligned corners of
/// Qwen3VLVisionModel, in the order of 2 x 2 blocks.
fn corners(case: &Case) -> (Vec<i32>, Vec<f64>) {
    let side = (case.shape("table")[0] as f64).sqrt() as usize;
    let (mut corners, mut shares) = (Vec::new(), Vec::new());
    for grid in case.i32("grid").chunks(3) {
        let (h, w) = (grid[1] as usize, grid[2] as usize);
        for patch in 0..h * w {
            let (block, within) = (patch / 4, patch % 4);
            let (row, column) = (block / (w / 2) * 2 + within / 2, block % (w / 2) * 2 + within % 2);
            let place = |at: usize, n: usize| {
                let x = at as f64 * (side - 1) as f64 / (n - 1) as f64;
                (x as usize, (x as usize + 1).min(side - 1), x.fract())
            };
            let ((y0, y1, dy), (x0, x1, dx)) = (place(row, h), place(column, w));
            for (y, ys) in [(y0, 1.0 - dy), (y1, dy)] {
                for (x, xs) in [(x0, 1.0 - dx), (x1, dx)] {
                    corners.push((y * side + x) as i32);
                    shares.push(ys * xs);
                }
            }
        }
    }
    (corners, shares)
}

#[test]
fn patch_embed_follows_pytorch() {
    let golden = Golden::ops();
    for name in ["patch_embed.small", "patch_embed.real"] {
        let case = golden.case(name);
        let (pixels, weight, bias, table) =
            (case.f64("pixels"), case.f64("weight"), case.f64("bias"), case.f64("table"));
        let [patches, k] = case.shape("pixels")[..] else { panic!("pixels are [P, K]") };
        let width = bias.len();
        let (corners, shares) = corners(&case);
        let mut y = vec![0.0; patches * width];
        linear(&pixels, k, &weight, Some(&bias), None, Activation::None, &mut y, width, 0, false);
        add_positions(&table, width, &corners, &shares, Precision::Bf16, &mut y);
        assert_close(name, &y, &case.f64("y"), 1e-12);

        let dy = case.f64("dy");
        let (mut dw, mut dbias, mut dtable) = (vec![0.0; weight.len()], vec![0.0; width], vec![0.0; table.len()]);
        let gradients =
            linear::Gradients { dw: Some(&mut dw), dbias: Some(&mut dbias), ..linear::Gradients::default() };
        linear_backward(&dy, width, 0, &pixels, k, &weight, None, Precision::F32, gradients);
        add_positions_backward(&corners, &shares, width, &dy, &mut dtable);
        assert_close(name, &dw, &case.f64("dweight"), 1e-10);
        assert_close(name, &dbias, &case.f64("dbias"), 1e-10);
        assert_close(name, &dtable, &case.f64("dtable"), 1e-10);
    }
}

#[test]
fn a_patch_rounds_the_product_and_the_position_before_their_sum() {
    let (product, position) = (1.0 + 1.0 / 512.0 + 1.0 / 1024.0, 0.1f32);
    let mut y = [product];
    add_positions(&[position], 1, &[0, 0, 0, 0], &[0.25; 4], Precision::Bf16, &mut y);
    let want = bf16::from_f32(product).to_f32() + bf16::from_f32(position).to_f32();
    assert_eq!(y, [want]);
    assert_ne!(want, product + position);
}
