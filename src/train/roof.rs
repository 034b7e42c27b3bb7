//! What a device reaches, timed on the device itself: what the seconds of a plan are reckoned by.

use crate::base::{Precision, Result};
use crate::device::{Clock, Device};
use crate::ops::linear::{Activation, Linear, Segment};
use crate::ops::swiglu::Swiglu;
use crate::tape::Tape;
use crate::tensor::{Tensor, Weight};
use serde::Serialize;
use std::time::Instant;

/// What the words reach on a device.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Roof {
    pub flops_per_second: f64,
    pub bytes_per_second: f64,
    /// What an operation takes on top of its work: most of the time of a small model.
    pub seconds_per_operation: f64,
}

/// Rows of the product that is timed.
const TIMED_ROWS: usize = 512;
const TIMED_WIDTH: usize = 2048;
/// The small products that are timed: their number, and rows and width of each.
const SMALL: (usize, usize) = (64, 16);

impl Roof {
    /// Times a product of about a model's width, an element-wise pass over memory, and products too small to take time, on
    /// the device itself.
    pub fn measure(device: &mut Device, precision: Precision, width: usize) -> Result<Roof> {
        let k = width.min(TIMED_WIDTH);
        let mut tape = Tape::new(precision);
        let x = tape.input(precision.dtype(), [TIMED_ROWS, k]);
        push_product(&mut tape, precision, x, 4 * k)?;
        let product = (tape.cost().flops as f64) / seconds_of(&tape, device, x)?;
        let (n, small) = SMALL;
        let mut tape = Tape::new(precision);
        let first = tape.input(precision.dtype(), [small, small]);
        let mut x = first;
        for _ in 0..n {
            x = push_product(&mut tape, precision, x, small)?;
        }
        let operation = seconds_of(&tape, device, first)? / n as f64;
        let mut tape = Tape::new(precision);
        let gate_up = tape.input(precision.dtype(), [8 * TIMED_ROWS, 2 * TIMED_WIDTH]);
        let y = tape.activation([8 * TIMED_ROWS, TIMED_WIDTH]);
        tape.push(Swiglu { gate_up, y })?;
        let moved = (tape.cost().bytes as f64) / seconds_of(&tape, device, gate_up)?;
        Ok(Roof { flops_per_second: product, bytes_per_second: moved, seconds_per_operation: operation })
    }
}

/// x [M, K] times a weight [N, K]; returns what comes out.
fn push_product(tape: &mut Tape, precision: Precision, x: Tensor, n: usize) -> Result<Tensor> {
    let [m, k] = [x.shape.rows(), x.shape.width()];
    let weight = Weight::from_f32("timed", [n, k], &vec![0.01; n * k])?;
    let y = tape.activation([m, n]);
    let segments = vec![Segment { weight, bias: None, adapter: None }];
    let (rows, residual, noise, s, z, activation) = (None, None, None, None, None, Activation::None);
    tape.push(Linear { x, rows, segments, activation, residual, noise, s, z, precision, y })?;
    Ok(y)
}

/// The best of several runs.
fn seconds_of(tape: &Tape, device: &mut Device, input: Tensor) -> Result<f64> {
    tape.begin(device)?;
    device.memory().write_f32(input, &vec![0.5; input.shape.elements()])?;
    let mut best = f64::INFINITY;
    for _ in 0..4 {
        let start = Instant::now();
        tape.run(device, &mut Clock::default(), &mut |_, _| ())?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best.max(1e-9))
}
