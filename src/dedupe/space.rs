//! Where photos are compared: features less their mean, each direction in which the photos differ scaled to the same spread.
//!
//! A tower's features have most of their length in what all photos share, and most of the rest in a few directions, such as
//! brightness: a crop's cosine with its original is then no higher than that of two photos of one car. With the directions
//! evened out it is. After H. Jégou and O. Chum, "Negative evidences and co-occurrences in image retrieval: the benefit of
//! PCA and whitening" (2012).

use nalgebra::{DMatrix, SymmetricEigen};
use rayon::prelude::*;

/// Fewer photos have no directions to even out.
const LEAST: usize = 24;
/// So many photos tell the directions.
const MOST: usize = 512;
/// Directions at the most, and photos to each: with more directions, two photos that show the same would be told apart by
/// what little they differ in.
const DIRECTIONS: usize = 96;
const PHOTOS_EACH: usize = 3;
/// A direction with a smaller part of the first one's variance is rounding.
const NOISE: f64 = 1e-9;

pub struct Space {
    mean: Vec<f64>,
    /// [K][D], each at the inverse of its deviation; empty: the features themselves.
    directions: Vec<Vec<f64>>,
}

impl Space {
    /// The space of these photos' features, all of one width.
    pub fn of(features: &[Vec<f32>]) -> Space {
        let n = features.len();
        let width = features.first().map_or(0, Vec::len);
        if n < LEAST {
            return Space { mean: vec![0.0; width], directions: Vec::new() };
        }
        let chosen: Vec<&Vec<f32>> = features.iter().step_by(n.div_ceil(MOST)).collect();
        let n = chosen.len();
        let mut mean = vec![0.0; width];
        for of in &chosen {
            mean.iter_mut().zip(*of).for_each(|(sum, v)| *sum += f64::from(*v) / n as f64);
        }
        let centred: Vec<Vec<f64>> =
            chosen.iter().map(|of| of.iter().zip(&mean).map(|(v, m)| f64::from(*v) - m).collect()).collect();
        // of the products of photos, not of channels: there are fewer photos
        let row = |i: usize| (0..=i).map(|j| dot(&centred[i], &centred[j])).collect();
        let products: Vec<Vec<f64>> = (0..n).into_par_iter().map(row).collect();
        let eigen = SymmetricEigen::new(DMatrix::from_fn(n, n, |i, j| products[i.max(j)][i.min(j)]));
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|a, b| eigen.eigenvalues[*b].total_cmp(&eigen.eigenvalues[*a]));
        let least = NOISE * eigen.eigenvalues[order[0]];
        let direction = |j: usize| {
            let mut sum = vec![0.0; width];
            for (i, of) in centred.iter().enumerate() {
                let part = eigen.eigenvectors[(i, j)] / eigen.eigenvalues[j];
                sum.iter_mut().zip(of).for_each(|(sum, v)| *sum += part * v);
            }
            sum
        };
        let kept = order.into_iter().take(DIRECTIONS.min(n / PHOTOS_EACH)).filter(|j| eigen.eigenvalues[*j] > least);
        let directions = kept.collect::<Vec<_>>().into_par_iter().map(direction).collect();
        Space { mean, directions }
    }

    /// A photo's embedding, at length 1; zeros where it has nothing of any direction.
    pub fn embedding(&self, features: &[f32]) -> Vec<f32> {
        let centred: Vec<f64> = features.iter().zip(&self.mean).map(|(v, m)| f64::from(*v) - m).collect();
        let values = match self.directions.is_empty() {
            true => centred,
            false => self.directions.iter().map(|direction| dot(direction, &centred)).collect(),
        };
        let length = values.iter().map(|v| v * v).sum::<f64>().sqrt();
        let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
        values.into_iter().map(|v| (v * scale) as f32).collect()
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
