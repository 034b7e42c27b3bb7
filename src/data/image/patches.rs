//! Pixels to the rows that the vision tower reads: the size a picture is brought to, its normalisation, and the order
//! of patches. Source of the maths: transformers' Qwen2VLImageProcessor (`smart_resize`, `patchify`) and its "fast"
//! path's normalisation, which folds the rescaling by 1/255 into mean and deviation.

use super::decode::MAX_ASPECT;
use super::{Rgb, resize};
use crate::base::{Error, Result};
use rayon::prelude::*;
use std::ops::RangeInclusive;

/// Limits to an area that can be asked for: more than any picture that is read, and up to there a product of two sides is
/// exact in f64.
pub const AREAS: RangeInclusive<u64> = 1..=1 << 32;
/// [`AREAS`] in a sentence.
pub const AN_AREA: &str = "a number of pixels from 1 to 2^32";
/// What a picture is brought to at most: more than the largest that is read, so that only a minimum gets there. Patches of
/// more are gigabytes that machines do not have.
const MOST_PIXELS: f64 = (1_u64 << 28) as f64;

/// How a checkpoint wants its images. The default is that of the published Qwen3-VL models.
#[derive(Debug, Clone, PartialEq)]
pub struct PatchSpec {
    /// Side of a patch in pixels.
    pub patch: usize,
    /// Frames in a patch; a still image is repeated.
    pub temporal: usize,
    /// Patches along the side of the square that becomes one token.
    pub merge: usize,
    /// Limits to the area after resizing, in pixels.
    pub min_pixels: u64,
    pub max_pixels: u64,
    /// Of red, green, blue, on a scale of 0 to 1.
    pub mean: [f32; 3],
    pub std: [f32; 3],
}

impl Default for PatchSpec {
    fn default() -> Self {
        PatchSpec {
            patch: 16,
            temporal: 2,
            merge: 2,
            min_pixels: 256 * 256,
            max_pixels: 4096 * 4096,
            mean: [0.5; 3],
            std: [0.5; 3],
        }
    }
}

/// Between what areas pictures are brought, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub min_pixels: u64,
    pub max_pixels: u64,
}

impl Limits {
    /// None: not a range of areas that can be asked for.
    pub fn new(min_pixels: u64, max_pixels: u64) -> Option<Limits> {
        let known = [min_pixels, max_pixels].iter().all(|area| AREAS.contains(area));
        (known && min_pixels <= max_pixels).then_some(Limits { min_pixels, max_pixels })
    }
}

/// The patches of one image.
#[derive(Debug, Clone, PartialEq)]
pub struct Patches {
    /// [P, 3 * temporal * patch * patch]: per row channel, frame, y, x. Rows go block by block of `merge` x `merge`
    /// patches, so that the patches of one token follow one another.
    pub values: Vec<f32>,
    /// Patches in time (1), down and across.
    pub grid: [usize; 3],
}

impl PatchSpec {
    /// With the limits that were asked for in place of its own. Where one alone was, the other gives way to it.
    ///
    /// Errors: wrong usage; an area that nothing can have, or a minimum above a maximum.
    pub fn limited(mut self, min: Option<u64>, max: Option<u64>) -> Result<PatchSpec> {
        for (name, area) in [("min", min), ("max", max)] {
            if let Some(n) = area.filter(|n| !AREAS.contains(n)) {
                return Err(Error::Usage(format!("--{name}-pixels {n}: wanted {AN_AREA}")));
            }
        }
        (self.min_pixels, self.max_pixels) = match (min, max) {
            (Some(min), Some(max)) if min > max => {
                return Err(Error::Usage(format!("--min-pixels {min} is above --max-pixels {max}")));
            }
            (Some(min), None) => (min, self.max_pixels.max(min)),
            (None, Some(max)) => (self.min_pixels.min(max), max),
            (min, max) => (min.unwrap_or(self.min_pixels), max.unwrap_or(self.max_pixels)),
        };
        Ok(self)
    }

    pub fn limits(&self) -> Limits {
        Limits { min_pixels: self.min_pixels, max_pixels: self.max_pixels }
    }

    /// The size (height, width) that a picture of `height` x `width` is brought to: both multiples of
    /// `patch * merge`, the area within the limits, the proportions about kept.
    ///
    /// Errors: an empty picture, sides of more than 200 to 1, nothing left after rounding, or more than can be held.
    pub fn target_size(&self, height: usize, width: usize) -> Result<(usize, usize)> {
        let wrong = |wanted: String| Error::Contract {
            op: "image size",
            argument: "height, width",
            wanted,
            got: format!("{height} x {width}"),
        };
        if height == 0 || width == 0 {
            return Err(wrong("at least one pixel".into()));
        }
        if height.max(width) as f64 / height.min(width) as f64 > MAX_ASPECT as f64 {
            return Err(wrong(format!("a longer side of at most {MAX_ASPECT} times the shorter")));
        }
        let side = (self.patch * self.merge) as f64;
        let (h, w) = (height as f64, width as f64);
        // Python's round: half to even.
        let mut target = ((h / side).round_ties_even() * side, (w / side).round_ties_even() * side);
        if target.0 * target.1 > self.max_pixels as f64 {
            let beta = (h * w / self.max_pixels as f64).sqrt();
            target = (((h / beta / side).floor() * side).max(side), ((w / beta / side).floor() * side).max(side));
        } else if target.0 * target.1 < self.min_pixels as f64 {
            let beta = (self.min_pixels as f64 / (h * w)).sqrt();
            target = ((h * beta / side).ceil() * side, (w * beta / side).ceil() * side);
        }
        if target.0 < side || target.1 < side {
            return Err(wrong(format!("sides that round to at least {side} pixels (min_pixels {})", self.min_pixels)));
        }
        if target.0 * target.1 > MOST_PIXELS {
            let min = self.min_pixels;
            return Err(Error::Unsupported(format!(
                "--min-pixels {min} enlarges a picture of {width} x {height} to more than {MOST_PIXELS} pixels, which is too \
                 much; lower it"
            )));
        }
        Ok((target.0 as usize, target.1 as usize))
    }

    /// Tokens that a picture of `height` x `width` takes in the language model.
    pub fn tokens(&self, height: usize, width: usize) -> Result<usize> {
        let (height, width) = self.target_size(height, width)?;
        let side = self.patch * self.merge;
        Ok((height / side) * (width / side))
    }

    /// `image` resized, normalised and cut into patches.
    ///
    /// Errors: those of [`PatchSpec::target_size`], or `pixels` that do not fit width and height.
    pub fn patches(&self, image: &Rgb) -> Result<Patches> {
        let (height, width) = self.target_size(image.height, image.width)?;
        if image.pixels.len() != image.height * image.width * 3 {
            return Err(Error::Contract {
                op: "image patches",
                argument: "pixels",
                wanted: format!("{} x {} x 3 values", image.height, image.width),
                got: image.pixels.len().to_string(),
            });
        }
        let image = resize(image, height, width);
        let (across, down) = (width / self.patch, height / self.patch);
        let plane = self.patch * self.patch;
        let values_per_patch = 3 * self.temporal * plane;
        let levels: [[f32; 256]; 3] = std::array::from_fn(|c| self.levels(c));
        let mut values = vec![0.0; across * down * values_per_patch];
        // One row of blocks, so of tokens, at a time.
        values.par_chunks_mut(self.merge * across * values_per_patch).enumerate().for_each(|(block_row, rows)| {
            for (i, out) in rows.chunks_exact_mut(values_per_patch).enumerate() {
                let (block, within) = (i / (self.merge * self.merge), i % (self.merge * self.merge));
                let y = (block_row * self.merge + within / self.merge) * self.patch;
                let x = (block * self.merge + within % self.merge) * self.patch;
                for (c, frames) in out.chunks_exact_mut(self.temporal * plane).enumerate() {
                    let (first, others) = frames.split_at_mut(plane);
                    for (dy, out) in first.chunks_exact_mut(self.patch).enumerate() {
                        let at = ((y + dy) * width + x) * 3;
                        let pixels = image.pixels[at..at + self.patch * 3].as_chunks::<3>().0;
                        for (out, pixel) in out.iter_mut().zip(pixels) {
                            *out = levels[c][usize::from(pixel[c])];
                        }
                    }
                    others.chunks_exact_mut(plane).for_each(|frame| frame.copy_from_slice(first));
                }
            }
        });
        Ok(Patches { values, grid: [1, down, across] })
    }

    /// What each of the 256 values of a channel becomes.
    fn levels(&self, channel: usize) -> [f32; 256] {
        let (mean, std) = (self.mean[channel] * 255.0, self.std[channel] * 255.0);
        std::array::from_fn(|value| (value as f32 - mean) / std)
    }
}
