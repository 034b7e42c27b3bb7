//! The reference's resize filter, bit for bit: torchvision's antialiased bicubic on 8-bit pictures (PyTorch's
//! `_upsample_bicubic2d_aa` on the CPU, after Pillow's). Columns first, over the whole picture, rounded to 8 bits;
//! then rows. Weights are integers of at most 15 bits; a pass whose side does not change is left out.
//!
//! Both passes are the same loop: a weighted sum of stretches of memory. The pass over columns first turns strips of
//! rows so that the pixels of one column lie side by side.

use super::Rgb;
use multiversion::multiversion;
use rayon::prelude::*;

/// Rows of a strip: 16 pixels of three channels are 48 sums, which registers hold.
const STRIP: usize = 16;
const LANES: usize = STRIP * 3;

/// `image` at `height` x `width`. Both must be above 0, as must the picture's sides.
pub fn resize(image: &Rgb, height: usize, width: usize) -> Rgb {
    let mut pixels = Vec::new();
    if width != image.width {
        let filter = Filter::new(image.width, width);
        pixels = vec![0; image.height * width * 3];
        let strips = image.pixels.par_chunks(STRIP * image.width * 3).zip(pixels.par_chunks_mut(STRIP * width * 3));
        strips.for_each_init(Vec::new, |turned, (rows, out)| columns(&filter, rows, image.width, out, turned));
    }
    let source = if width == image.width { &image.pixels } else { &pixels };
    if height != image.height {
        let filter = Filter::new(image.height, height);
        let mut resized = vec![0; height * width * 3];
        let rows = resized.par_chunks_mut(width * 3).zip(&filter.taps);
        rows.for_each(|(out, taps)| row(taps, filter.bits, source, out));
        pixels = resized;
    } else if width == image.width {
        pixels.clone_from(&image.pixels);
    }
    Rgb { width, height, pixels }
}

/// The inputs that one output is made of.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// How one axis is resized: `taps` for every output; weights sum to 2^`bits`.
struct Filter {
    bits: u32,
    taps: Vec<Taps>,
}

impl Filter {
    fn new(n_in: usize, n_out: usize) -> Self {
        let scale = n_in as f64 / n_out as f64;
        let stretch = scale.max(1.0);
        let support = 2.0 * stretch;
        let mut largest = 0.0f64;
        let exact: Vec<(usize, Vec<f64>)> = (0..n_out)
            .map(|i| {
                let center = (i as f64 + 0.5) * scale;
                let first = (center - support + 0.5).max(0.0) as usize;
                let end = ((center + support + 0.5) as usize).min(n_in);
                let mut weights: Vec<f64> = (first..end).map(|j| cubic((j as f64 - center + 0.5) / stretch)).collect();
                let sum: f64 = weights.iter().sum();
                weights.iter_mut().for_each(|w| *w /= sum);
                largest = weights.iter().fold(largest, |l, &w| l.max(w));
                (first, weights)
            })
            .collect();
        let mut bits = 0;
        while bits < 22 && ((0.5 + largest * f64::from(1u32 << (bits + 1))) as i32) < 1 << 15 {
            bits += 1;
        }
        let one = f64::from(1u32 << bits);
        let whole = |w: &f64| (w * one + 0.5f64.copysign(*w)) as i32;
        let taps = exact.iter().map(|(first, w)| Taps { first: *first, weights: w.iter().map(whole).collect() });
        Filter { bits, taps: taps.collect() }
    }
}

/// Keys' kernel with a = -0.5.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

#[inline(always)]
fn rounded(sum: i32, bits: u32) -> u8 {
    (sum >> bits).clamp(0, 255) as u8
}

/// One row of the result from whole rows of `source`. Sums fit 32 bits: the weights' magnitudes add up to less than
/// 1.6 times 2^22.
#[multiversion(targets("x86_64+avx2", "x86_64+sse4.1"))]
fn row(taps: &Taps, bits: u32, source: &[u8], out: &mut [u8]) {
    let stride = out.len();
    for (at, out) in out.chunks_mut(LANES).enumerate() {
        let mut sums = [half(bits); LANES];
        let sums = &mut sums[..out.len()];
        for (j, &weight) in taps.weights.iter().enumerate() {
            let values = &source[(taps.first + j) * stride + at * LANES..][..sums.len()];
            for (sum, &value) in sums.iter_mut().zip(values) {
                *sum += weight * i32::from(value);
            }
        }
        for (out, &sum) in out.iter_mut().zip(sums.iter()) {
            *out = rounded(sum, bits);
        }
    }
}

/// Up to [`STRIP`] whole rows, of `width` pixels before. `turned` is room for the strip, column by column.
#[multiversion(targets("x86_64+avx2", "x86_64+sse4.1"))]
fn columns(filter: &Filter, rows: &[u8], width: usize, out: &mut [u8], turned: &mut Vec<[u8; LANES]>) {
    turned.resize(width, [0; LANES]);
    for (r, row) in rows.chunks_exact(width * 3).enumerate() {
        for (column, pixel) in turned.iter_mut().zip(row.as_chunks::<3>().0) {
            column[3 * r..3 * r + 3].copy_from_slice(pixel);
        }
    }
    let out_stride = filter.taps.len() * 3;
    for (x, taps) in filter.taps.iter().enumerate() {
        let mut sums = [half(filter.bits); LANES];
        for (&weight, column) in taps.weights.iter().zip(&turned[taps.first..]) {
            for (sum, &value) in sums.iter_mut().zip(column) {
                *sum += weight * i32::from(value);
            }
        }
        let pixels = sums.map(|sum| rounded(sum, filter.bits));
        for (row, pixel) in out.chunks_exact_mut(out_stride).zip(pixels.as_chunks::<3>().0) {
            row[3 * x..3 * x + 3].copy_from_slice(pixel);
        }
    }
}

/// Half of the last place, so that the shift rounds. `bits` is at least 14: no weight is above 1.2.
#[inline(always)]
fn half(bits: u32) -> i32 {
    1 << (bits - 1)
}
