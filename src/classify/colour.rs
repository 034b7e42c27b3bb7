//! What a photo's mean colour alone tells of its class: where that is much, a set can be told apart without a look at
//! shapes, and a model's score on it says little.

use crate::base::Result;
use crate::data::dataset::Sample;
use crate::data::image::load;
use crate::data::messages::ImageSource;
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Neighbours that vote.
const NEIGHBOURS: usize = 9;

type Colour = [f64; 3];

/// Photos of `test` whose class most of the nearest photos of `train` have (nine of them, by mean red, green and blue,
/// each in units of its standard deviation over `train`; of equals the class of the nearest), and how many there are.
/// Samples without a photo in a file or without a label do not count. Errors: photos that cannot be read.
pub fn probe(train: &[Sample], test: &[Sample]) -> Result<(usize, usize)> {
    let (train, test) = (colours(train)?, colours(test)?);
    let n = train.len().max(1) as f64;
    let spread: Colour = [0, 1, 2].map(|c| {
        let mean = train.iter().map(|(colour, _)| colour[c]).sum::<f64>() / n;
        let variance = train.iter().map(|(colour, _)| (colour[c] - mean).powi(2)).sum::<f64>() / n;
        variance.sqrt().max(f64::MIN_POSITIVE)
    });
    let right = test.iter().filter(|(colour, label)| vote(&train, *colour, spread) == Some(label)).count();
    Ok((right, test.len()))
}

fn colours(samples: &[Sample]) -> Result<Vec<(Colour, String)>> {
    let one = |s: &Sample| match (s.images().next(), &s.label) {
        (Some(ImageSource::File(path)), Some(label)) => {
            Some(load(path).map(|photo| (mean(&photo.pixels), label.clone())))
        }
        _ => None,
    };
    samples.par_iter().filter_map(one).collect()
}

fn mean(pixels: &[u8]) -> Colour {
    let n = (pixels.len() / 3).max(1) as f64;
    [0, 1, 2].map(|c| pixels.iter().skip(c).step_by(3).map(|&p| f64::from(p)).sum::<f64>() / n)
}

fn vote(train: &[(Colour, String)], at: Colour, spread: Colour) -> Option<&String> {
    let distance = |colour: &Colour| (0..3).map(|c| ((colour[c] - at[c]) / spread[c]).powi(2)).sum::<f64>();
    let mut near: Vec<(f64, &String)> = train.iter().map(|(colour, label)| (distance(colour), label)).collect();
    near.sort_by(|a, b| a.0.total_cmp(&b.0));
    near.truncate(NEIGHBOURS);
    let mut votes: BTreeMap<&String, usize> = BTreeMap::new();
    near.iter().for_each(|(_, label)| *votes.entry(label).or_default() += 1);
    let most = votes.values().copied().max()?;
    near.iter().map(|(_, label)| *label).find(|label| votes[label] == most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_vote_and_the_nearest_decides_between_equals() {
        let photo = |red: f64, label: &str| ([red, 0.0, 0.0], label.to_string());
        let mut train: Vec<_> = (0..5).map(|i| photo(f64::from(i), "dark")).collect();
        train.extend((0..20).map(|i| photo(100.0 + f64::from(i), "light")));
        // of the nine nearest to 3, five are dark and four light; to 110 all are light
        assert_eq!(vote(&train, [3.0, 0.0, 0.0], [1.0; 3]).map(String::as_str), Some("dark"));
        assert_eq!(vote(&train, [110.0, 0.0, 0.0], [1.0; 3]).map(String::as_str), Some("light"));
        let two = [photo(0.0, "a"), photo(1.0, "b")];
        assert_eq!(vote(&two, [0.9, 0.0, 0.0], [1.0; 3]).map(String::as_str), Some("b"));
        assert_eq!(vote(&two, [0.1, 0.0, 0.0], [1.0; 3]).map(String::as_str), Some("a"));
        assert_eq!(vote(&[], [0.0; 3], [1.0; 3]), None);
    }

    #[test]
    fn a_mean_is_one_per_channel() {
        assert_eq!(mean(&[0, 10, 20, 100, 30, 20]), [50.0, 20.0, 20.0]);
    }
}
