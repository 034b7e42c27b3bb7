//! The benches of the operations on tiny shapes in the emulator, so that they run when a GPU is there.

#[path = "../../benches/ops/mod.rs"]
mod ops;

use ops::cublaslt::{Call, Form, Product};
use ops::{Options, Where};
use std::collections::BTreeSet;

#[test]
fn every_row_runs_in_the_emulator_and_leaves_a_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let csv = folder.path().join("report/ops.csv");
    let options = Options { filter: None, device: Where::Emulated, csv: Some(csv.clone()), bench: false };
    ops::run(&options).expect("tiny rows");
    let text = std::fs::read_to_string(&csv).expect("a table");
    let mut lines = text.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let head = lines.next().expect("a head");
    let (operation, kernels) = (head.iter().position(|c| *c == "operation"), head.iter().position(|c| *c == "kernels"));
    let mut words = BTreeSet::new();
    for line in lines {
        assert_eq!(line.len(), head.len(), "{line:?}");
        assert!(line[1].contains("emulated sm_90"), "{line:?}");
        let seconds: f64 = line[6].parse().expect("a time");
        assert!(seconds > 0.0 && !line[kernels.expect("kernels")].is_empty(), "{line:?}");
        words.insert(line[operation.expect("operation")].to_owned());
    }
    let wanted = [
        "linear qkv forward",
        "linear o dx",
        "linear down dw",
        "linear qkv LoRA 8 forward",
        "linear o LoRA 8 dx dA dB",
        "attention causal backward",
        "tower attention full backward",
        "tower linear fc1 forward",
        "norm backward",
        "qk_rope backward",
        "swiglu backward",
        "linear_loss with dx",
        "embed",
        "deepstack_add",
        "adamw",
        "grad_norm",
        "attention_cached",
        "qk_rope with append",
        "linear qkv with qk_rope",
        "linear gate_up with swiglu",
        "linear o with norm",
        "sample top-k top-p",
        "sample top-p",
        "patch_embed",
    ];
    let missing: Vec<_> = wanted.iter().filter(|w| !words.contains(**w)).collect();
    assert!(missing.is_empty(), "no row {missing:?}");
    // lines are added to those of an earlier run, with one head
    let rows = text.lines().count();
    let filtered = |text: &str| ops::run(&Options { filter: Some(text.into()), csv: Some(csv.clone()), ..options });
    filtered("tiny adamw").expect("one row");
    let said = filtered("tiny adamv").expect_err("no row").to_string();
    assert!(said.contains("no row holds \"tiny adamv\""), "{said}");
    assert_eq!(std::fs::read_to_string(&csv).expect("a table").lines().count(), rows + 1);
}

/// A step of decoding reads the whole cache, and appends to little of it: neither row asks for more of a device than a
/// little above what it rotates, however many sequences there are.
#[test]
fn rows_with_a_cache_fit() {
    let with_a_cache = ["attention_cached", "qk_rope with append"];
    let rows = ops::rows::all();
    let chosen: Vec<_> = rows.iter().filter(|row| with_a_cache.iter().any(|name| row.operation == *name)).collect();
    assert!(chosen.len() >= 2 * 3 * 5, "{}", chosen.len());
    for row in chosen {
        let (room, ops) = ops::copies(row, 64);
        let (bytes, read) = (room.bytes(), ops.iter().map(|op| op.cost().bytes).sum::<u64>());
        let name = row.name();
        assert!(bytes < 3 << 30, "{name} takes {bytes} bytes");
        // far above the 50 MiB of a Hopper's L2 cache, where the most copies reach it
        assert!(ops.len() == 64 || read > 128 << 20, "{name}: {} copies move {read} bytes", ops.len());
    }
}

/// The library's view of the memory, element by element, beside the layer's own formulas.
#[test]
fn operands_of_the_library_are_those_of_the_layer() {
    let (m, n, k) = (3, 4, 5);
    let numbers = |count: usize, seed: usize| (0..count).map(|i| ((i * 7 + seed) % 11) as i32 - 5).collect::<Vec<_>>();
    let (x, w, dy) = (numbers(m * k, 1), numbers(n * k, 2), numbers(m * n, 3));
    let sum = |count: usize, term: &dyn Fn(usize) -> i32| (0..count).map(term).sum::<i32>();
    let y: Vec<i32> = (0..m * n).map(|i| sum(k, &|j| x[i / n * k + j] * w[i % n * k + j])).collect();
    let dx: Vec<i32> = (0..m * k).map(|i| sum(n, &|j| dy[i / k * n + j] * w[j * k + i % k])).collect();
    let dw: Vec<i32> = (0..n * k).map(|i| sum(m, &|j| dy[j * n + i / k] * x[j * k + i % k])).collect();
    for (form, a, b, want) in [(Form::Forward, &w, &x, y), (Form::Dx, &w, &dy, dx), (Form::Dw, &x, &dy, dw)] {
        let product = Product { form, m, n, k };
        let Call { transposed: [ta, tb], rows, columns, depth } = product.call();
        assert_eq!(product.elements(), [a.len(), b.len(), want.len()]);
        let at = |of: &[i32], transposed, rows: usize, columns: usize, i: usize, j: usize| match transposed {
            true => of[i * columns + j],
            false => of[j * rows + i],
        };
        let got: Vec<i32> = (0..rows * columns)
            .map(|i| sum(depth, &|j| at(a, ta, rows, depth, i % rows, j) * at(b, tb, depth, columns, j, i / rows)))
            .collect();
        assert_eq!(got, want, "{form:?}");
    }
}
