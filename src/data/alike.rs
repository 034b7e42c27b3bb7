//! Photos that look the same at a glance, without a model: brightness and its steps from left to right on 17 x 16 points,
//! each compared by correlation.
//!
//! It finds files saved again, in another size, format, quality or brightness. A crop moves every step: whether one is a
//! part of the other is [`excerpt`](super::excerpt)'s to say. After the difference hash of N. Krawetz, "Kind of Like That"
//! (2013), with the steps themselves in place of their signs, which are noise where a picture is smooth.

use super::excerpt::{Map, Whole};
use super::image::{self, Rgb};
use rayon::prelude::*;
use std::collections::BTreeSet;

const WIDTH: usize = 17;
const HEIGHT: usize = 16;
/// The least correlations, of brightness and of steps. Of 417 photos saved again or made brighter both were above for 99
/// of 100, and no two different photos came near.
const LEAST_SHAPE: f64 = 0.95;
const LEAST_STEPS: f64 = 0.93;
/// How far the aspects may be apart, as a factor.
const MOST_ASPECT: f32 = 1.05;
/// Below this deviation (of 255) a picture is flat, and its shape is noise.
pub const FLAT: f32 = 2.0;

/// What is compared.
#[derive(Debug, Clone, PartialEq)]
pub struct Print {
    /// Brightness less its mean, at length 1.
    shape: Vec<f32>,
    /// Differences of neighbours in a row, at length 1.
    steps: Vec<f32>,
    flat: bool,
    mean: f32,
    aspect: f32,
    /// To tell whether it is a part of another, or has one.
    map: Map,
}

impl Print {
    pub fn of(picture: &Rgb) -> Print {
        let small = image::resize(picture, HEIGHT, WIDTH);
        let mut shape: Vec<f32> = luma(&small).collect();
        let mut steps: Vec<f32> = across(&shape, WIDTH).collect();
        at_length_one(&mut steps);
        let mean = less_mean(&mut shape);
        let deviation = at_length_one(&mut shape) / (shape.len() as f32).sqrt();
        let aspect = picture.width as f32 / picture.height as f32;
        Print { shape, steps, flat: deviation < FLAT, mean, aspect, map: Map::of(picture) }
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
        // a picture of rows alone has no steps
        let still = |print: &Print| print.steps.iter().all(|step| *step == 0.0);
        dot(&self.shape, &other.shape) >= LEAST_SHAPE
            && (dot(&self.steps, &other.steps) >= LEAST_STEPS || (still(self) && still(other)))
    }
}

/// Brightness of every pixel: ITU-R BT.601's luma, as in JPEG.
pub fn luma(picture: &Rgb) -> impl Iterator<Item = f32> {
    let of = |p: &[u8; 3]| 0.299 * f32::from(p[0]) + 0.587 * f32::from(p[1]) + 0.114 * f32::from(p[2]);
    picture.pixels.as_chunks::<3>().0.iter().map(of)
}

/// Differences of neighbours in the rows of a grid.
pub fn across(grid: &[f32], width: usize) -> impl Iterator<Item = f32> {
    grid.chunks_exact(width).flat_map(|row| row.windows(2).map(|pair| pair[1] - pair[0]))
}

/// Takes the mean away; returns it.
pub fn less_mean(values: &mut [f32]) -> f32 {
    let mean = values.iter().sum::<f32>() / values.len() as f32;
    values.iter_mut().for_each(|v| *v -= mean);
    mean
}

/// Scales to length 1, where there is any; returns the length.
pub fn at_length_one(values: &mut [f32]) -> f32 {
    let length = values.iter().map(|v| v * v).sum::<f32>().sqrt();
    if length > 0.0 {
        values.iter_mut().for_each(|v| *v /= length);
    }
    length
}

/// The scalar product, in sixteen sums, which the compiler makes vectors of, added in a fixed order.
pub fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [0.0f32; 16];
    let (a, a_rest) = a.as_chunks::<16>();
    let (b, b_rest) = b.as_chunks::<16>();
    for (a, b) in a.iter().zip(b) {
        for i in 0..16 {
            sums[i] += a[i] * b[i];
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    sums.iter().map(|s| f64::from(*s)).sum::<f64>() + rest
}

/// All pairs i < j that look the same, or of which one is a part of the other.
pub fn pairs(prints: &[&Print]) -> BTreeSet<(usize, usize)> {
    found(prints, prints).into_iter().filter(|(i, j)| i != j).map(|(i, j)| (i.min(j), i.max(j))).collect()
}

/// All pairs of one of `a` and one of `b` that look the same, or of which one is a part of the other.
pub fn pairs_between(a: &[&Print], b: &[&Print]) -> BTreeSet<(usize, usize)> {
    let turned = found(b, a).into_iter().map(|(j, i)| (i, j));
    found(a, b).into_iter().chain(turned).collect()
}

/// Pairs (i, j): those of `others` that look the same as one of `wholes`, or are a part of it.
fn found(wholes: &[&Print], others: &[&Print]) -> Vec<(usize, usize)> {
    let of = |i: usize| {
        let whole = Whole::of(&wholes[i].map);
        let like = move |j: &usize| wholes[i].is_like(others[*j]) || whole.has(&others[*j].map);
        (0..others.len()).filter(like).map(move |j| (i, j))
    };
    (0..wholes.len()).into_par_iter().flat_map_iter(of).collect()
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
