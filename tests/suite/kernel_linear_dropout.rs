//! What drops out in the kernels of `linear` is what drops out on the host, bit for bit: through matrices of ones and unit
//! matrices the factors themselves come out of s, dx and dA.

use crate::kernel_linear::{key, module, noise};
use crate::support::kernels::Case;
use vlm::base::{DType, Precision};
use vlm::device::{Accumulate, Device};
use vlm::host::dropout::{Dropout, factors};
use vlm::ops::linear::{Activation, Adapter, Linear, LinearBackward, Segment};
use vlm::ops::{Gradient, Op};
use vlm::tensor::{Trained, Weight};

/// Rows, columns, probability, in tiles of every kernel.
const SHAPES: [(usize, usize, f64); 4] = [(136, 264, 0.5), (40, 64, 0.1), (13, 67, 0.1), (67, 13, 0.5)];

/// Two adapters behind dropouts of their own, over some rows of more than there are, in another order.
struct Bench {
    m: usize,
    k: usize,
    all_rows: usize,
    /// The row of x for each row that is read.
    rows: Vec<usize>,
    dropouts: [Dropout; 2],
    /// The host's factors [m, k] of each.
    factors: [Vec<f32>; 2],
}

impl Bench {
    fn new((m, k, p): (usize, usize, f64)) -> Bench {
        let all_rows = m + 5;
        let rows: Vec<usize> = (0..m).map(|i| (i * 7 + 3) % all_rows).collect();
        let dropouts = [0, 1].map(|i| Dropout { p, module: module(i) });
        let factors = dropouts.map(|dropout| {
            let mut all = vec![f32::NAN; m * k];
            all.chunks_exact_mut(k).zip(&rows).for_each(|(row, i)| factors(dropout, key(*i), row));
            all
        });
        Bench { m, k, all_rows, rows, dropouts, factors }
    }

    /// Two segments with weights of zeros [n, k].
    fn segments(&self, n: usize, b: &Weight, mut a: impl FnMut() -> Weight) -> Vec<Segment> {
        let zeros = vec![0.0; n * self.k];
        let segment = |dropout| {
            let adapter = Adapter { a: a(), b: b.clone(), scale: 1.0, dropout: Some(dropout) };
            Segment { weight: given("weight", [n, self.k], &zeros), bias: None, adapter: Some(adapter) }
        };
        self.dropouts.into_iter().map(segment).collect()
    }

    /// The operation, with x and s as given.
    fn linear(&self, case: &mut Case, x: Vec<f32>, segments: Vec<Segment>) -> Linear {
        let (n, rank) = (Linear::width(&segments), Linear::rank(&segments));
        Linear {
            x: case.values(DType::Bf16, [self.all_rows, self.k], x),
            rows: Some(case.whole([self.m], self.rows.iter().map(|i| *i as i32).collect())),
            segments,
            activation: Activation::None,
            residual: None,
            noise: Some(noise(case, self.all_rows)),
            s: Some(case.values(DType::Bf16, [self.m, rank], vec![f32::NAN; self.m * rank])),
            z: None,
            precision: Precision::Bf16,
            y: case.output(DType::Bf16, [self.m, n]),
        }
    }

    /// Backward where both ds are the unit matrix.
    fn backward(&self, case: &mut Case, dx: bool, a: impl FnMut(&mut Case) -> Weight) -> LinearBackward {
        let (m, mut a) = (self.m, a);
        let segments = self.segments(m, &given("B", [m, m], &unit(m)), || a(case));
        let x = case.random().f32s(self.all_rows * self.k, 1.0);
        let forward = self.linear(case, x, segments);
        let dy = unit(m).chunks(m).flat_map(|row| [row, row].concat()).collect();
        let dx = dx.then(|| Gradient {
            tensor: case.output(DType::Bf16, [self.all_rows, self.k]),
            accumulate: Accumulate::Overwrite,
        });
        LinearBackward { dy: case.values(DType::Bf16, forward.y.shape, dy), forward, dx, dresidual: None }
    }
}

/// One on the diagonal.
fn unit(n: usize) -> Vec<f32> {
    (0..n * n).map(|i| if i % (n + 1) == 0 { 1.0 } else { 0.0 }).collect()
}

fn given(name: &str, shape: [usize; 2], values: &[f32]) -> Weight {
    Weight::from_f32(name, shape, values).expect("a weight")
}

/// Runs a test for every shape, on an older GPU and on Hopper's.
fn everywhere(test: impl Fn(&Bench, &mut Device, &str)) {
    for shape in SHAPES {
        for capability in [(8, 6), (9, 0)] {
            let mut device = Device::emulated(capability).expect("an emulator");
            test(&Bench::new(shape), &mut device, &format!("{shape:?}, {capability:?}"));
        }
    }
}

/// s = (x o keep) A^T, where x is 1 and A the unit matrix.
#[test]
fn forward_reads_what_the_host_reads() {
    everywhere(|bench, device, what| {
        let (m, k) = (bench.m, bench.k);
        let mut case = Case::new(1);
        let b = given("B", [8, k], &vec![0.0; 8 * k]);
        let segments = bench.segments(8, &b, || given("A", [k, k], &unit(k)));
        let op = bench.linear(&mut case, vec![1.0; bench.all_rows * k], segments);
        case.begin(device).expect("memory");
        op.forward(device).expect("linear");
        let s = device.memory().read_f32(op.s.expect("s")).expect("s");
        for i in 0..m {
            for (j, factors) in bench.factors.iter().enumerate() {
                let want: Vec<f32> = factors[i * k..][..k].iter().map(|f| Precision::Bf16.round(*f)).collect();
                assert_eq!(&s[(2 * i + j) * k..][..k], want, "row {i}, adapter {j}: {what}");
            }
        }
    });
}

/// dx = the sum of both (ds A) o keep, where ds is the unit matrix and A is 1.
#[test]
fn dx_has_what_the_host_read() {
    everywhere(|bench, device, what| {
        let (m, k) = (bench.m, bench.k);
        let mut case = Case::new(2);
        let op = bench.backward(&mut case, true, |_| given("A", [m, k], &vec![1.0; m * k]));
        case.begin(device).expect("memory");
        op.forward(device).expect("dx");
        let dx = device.memory().read_f32(op.dx.expect("dx").tensor).expect("dx");
        for (i, row) in bench.rows.iter().enumerate() {
            let sum = |j: usize| Precision::Bf16.round(bench.factors[0][i * k + j] + bench.factors[1][i * k + j]);
            let want: Vec<f32> = (0..k).map(sum).collect();
            assert_eq!(&dx[row * k..][..k], want, "row {row}: {what}");
        }
    });
}

/// dA = ds^T (x o keep), where ds is the unit matrix.
#[test]
fn da_is_of_what_the_host_read() {
    everywhere(|bench, device, what| {
        let (m, k) = (bench.m, bench.k);
        let mut case = Case::new(3);
        let op = bench.backward(&mut case, false, |case| {
            let (value, gradient) = (case.parameter([m, k], 1.0), case.parameter([m, k], 0.0));
            Weight::trained("A", Trained { value, gradient })
        });
        case.begin(device).expect("memory");
        op.forward(device).expect("dA");
        let x = device.memory().read_f32(op.forward.x).expect("x");
        for (segment, factors) in op.forward.segments.iter().zip(&bench.factors) {
            let a = segment.adapter.as_ref().and_then(|a| a.a.as_trained()).expect("trained");
            let da = device.memory().read_f32(a.gradient).expect("dA");
            for (i, row) in bench.rows.iter().enumerate() {
                let want: Vec<f32> = (0..k).map(|j| x[row * k + j] * factors[i * k + j]).collect();
                assert_eq!(&da[i * k..][..k], want, "row {row}: {what}");
            }
        }
    });
}
