//! Photos that look the same at a glance, without a model: a difference hash of 16 x 16 brightness steps, and the
//! correlation of the same small pictures.
//!
//! It finds files saved again, in another size, format, quality or brightness. A crop moves every step and is not found;
//! that takes the embeddings of a model. Source of the hash: N. Krawetz, "Kind of Like That" (2013), dHash, here with
//! 256 bits.

use super::image::{self, Rgb};
use rayon::prelude::*;

const SIDE: usize = 16;
/// Bits that may differ.
const MOST_BITS: u32 = 20;
/// The least correlation.
const LEAST_CORRELATION: f32 = 0.97;
/// How far the aspects may be apart, as a factor.
const MOST_ASPECT: f32 = 1.05;
/// Below this deviation (of 255) a picture is flat, and its steps are noise.
const FLAT: f32 = 2.0;

/// What is compared.
#[derive(Debug, Clone, PartialEq)]
pub struct Print {
    bits: [u64; 4],
    /// Brightness, mean 0; of length 1 unless the picture is flat.
    shape: Vec<f32>,
    flat: bool,
    mean: f32,
    aspect: f32,
}

impl Print {
    pub fn of(picture: &Rgb) -> Print {
        let small = image::resize(picture, SIDE, SIDE + 1);
        // ITU-R BT.601's luma, as in JPEG
        let luma = |p: &[u8; 3]| 0.299 * f32::from(p[0]) + 0.587 * f32::from(p[1]) + 0.114 * f32::from(p[2]);
        let mut shape: Vec<f32> = small.pixels.as_chunks::<3>().0.iter().map(luma).collect();
        let mut bits = [0u64; 4];
        for (y, row) in shape.chunks_exact(SIDE + 1).enumerate() {
            for (x, step) in row.windows(2).enumerate() {
                let bit = y * SIDE + x;
                bits[bit / 64] |= u64::from(step[0] < step[1]) << (bit % 64);
            }
        }
        let n = shape.len() as f32;
        let mean = shape.iter().sum::<f32>() / n;
        shape.iter_mut().for_each(|v| *v -= mean);
        let length = shape.iter().map(|v| v * v).sum::<f32>().sqrt();
        let flat = length / n.sqrt() < FLAT;
        if !flat {
            shape.iter_mut().for_each(|v| *v /= length);
        }
        Print { bits, shape, flat, mean, aspect: picture.width as f32 / picture.height as f32 }
    }

    /// Whether the two look the same.
    pub fn is_like(&self, other: &Print) -> bool {
        let ratio = self.aspect / other.aspect;
        if ratio.max(1.0 / ratio) > MOST_ASPECT || self.flat != other.flat {
            return false;
        }
        if self.flat {
            return (self.mean - other.mean).abs() < FLAT;
        }
        let differ: u32 = self.bits.iter().zip(other.bits).map(|(a, b)| (a ^ b).count_ones()).sum();
        differ <= MOST_BITS && self.shape.iter().zip(&other.shape).map(|(a, b)| a * b).sum::<f32>() >= LEAST_CORRELATION
    }
}

/// All pairs i < j that look the same, in order.
pub fn pairs(prints: &[Print]) -> Vec<(usize, usize)> {
    let of = |i: usize| (i + 1..prints.len()).filter(move |j| prints[i].is_like(&prints[*j])).map(move |j| (i, j));
    (0..prints.len()).into_par_iter().flat_map_iter(of).collect()
}

/// The group of each of `n` items, where pairs belong together: the number of its first item.
pub fn groups(n: usize, pairs: impl IntoIterator<Item = (usize, usize)>) -> Vec<usize> {
    let mut parent: Vec<usize> = (0..n).collect();
    fn root(parent: &mut [usize], mut i: usize) -> usize {
        while parent[i] != i {
            parent[i] = parent[parent[i]];
            i = parent[i];
        }
        i
    }
    for (a, b) in pairs {
        let (a, b) = (root(&mut parent, a), root(&mut parent, b));
        let (first, second) = (a.min(b), a.max(b));
        parent[second] = first;
    }
    (0..n).map(|i| root(&mut parent, i)).collect()
}
