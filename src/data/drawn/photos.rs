//! A labelled set of drawn photos on disk, in folders per class, with near-duplicates planted between train and test.

use super::damage::{CLASSES, photo};
use crate::base::rng::Dice;
use crate::base::{Error, Result, counted};
use crate::data::image::{Rgb, resize, to_jpeg};
use rayon::prelude::*;
use serde::Serialize;
use std::path::Path;

/// Keeps these random numbers apart from others of the same seed.
const PLANT: u64 = 0x706c_616e;
/// Photos drawn between two reports of progress.
const CHUNK: usize = 16;

#[derive(Debug, Clone, Copy)]
pub struct Set {
    /// Photos in all, spread evenly over the classes.
    pub train: usize,
    /// Photos that are like no photo of `train`.
    pub test: usize,
    /// Photos of `train` that come back in `test`, altered.
    pub planted: usize,
    pub width: usize,
    pub height: usize,
    pub seed: u64,
}

/// A test photo that was made of a training photo. Paths are relative to the folder of the set.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Planted {
    pub train: String,
    pub test: String,
    pub change: Change,
}

/// How a copy was altered; each is also saved anew.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// The part of each side that is left, anywhere in the photo, at the old size again.
    Crop(f32),
    /// The quality of the new JPEG file.
    Quality(u8),
    /// Every value times this.
    Brightness(f32),
}

struct Drawn {
    path: String,
    class: usize,
    number: u64,
    change: Option<Change>,
}

const QUALITY: u8 = 90;

/// Draws the set into `out`: `train/dent/001.jpg` and so on. Returns what was planted, in the order of the test photos.
/// Errors: files that cannot be written; more planted photos than there are to train on.
pub fn write_set(out: &Path, set: &Set, progress: &mut dyn FnMut(u64, u64)) -> Result<Vec<Planted>> {
    if set.planted > set.train {
        let planted = counted(set.planted, "photo", "photos");
        let said = format!("{planted} cannot be planted: to make them of the set has {}", set.train);
        return Err(Error::Usage(said));
    }
    let path = |part: &str, class: usize, at: usize| format!("{part}/{}/{at:03}.jpg", CLASSES[class]);
    let n_classes = CLASSES.len();
    let mut drawn: Vec<Drawn> = Vec::new();
    for i in 0..set.train {
        let (class, at) = (i % n_classes, i / n_classes);
        drawn.push(Drawn { path: path("train", class, at + 1), class, number: at as u64, change: None });
    }
    // the copies lie anywhere among the new photos
    let mut dice = Dice::new(set.seed, &[PLANT]);
    let mut left: Vec<usize> = (0..set.train).collect();
    let mut test: Vec<Option<usize>> = vec![None; set.test];
    for _ in 0..set.planted {
        let original = left.swap_remove(dice.below(left.len()));
        test.insert(dice.below(test.len() + 1), Some(original));
    }
    let mut planted = Vec::new();
    let (mut in_class, mut fresh) = ([0; CLASSES.len()], 0);
    for original in test {
        let (class, number, change) = match original {
            Some(original) => {
                let change = match planted.len() % 3 {
                    0 => Change::Crop(dice.between(0.8, 0.95)),
                    1 => Change::Quality(30 + dice.below(30) as u8),
                    _ => Change::Brightness(if dice.chance(0.5) {
                        dice.between(0.7, 0.9)
                    } else {
                        dice.between(1.1, 1.3)
                    }),
                };
                (drawn[original].class, drawn[original].number, Some(change))
            }
            None => {
                fresh += 1;
                ((fresh - 1) % n_classes, (set.train + fresh) as u64, None)
            }
        };
        in_class[class] += 1;
        let path = path("test", class, in_class[class]);
        if let (Some(original), Some(change)) = (original, change) {
            planted.push(Planted { train: drawn[original].path.clone(), test: path.clone(), change });
        }
        drawn.push(Drawn { path, class, number, change });
    }
    for folder in drawn.iter().filter_map(|d| out.join(&d.path).parent().map(Path::to_path_buf)) {
        std::fs::create_dir_all(&folder).map_err(|e| Error::io("create", &folder, e))?;
    }
    for (i, chunk) in drawn.chunks(CHUNK).enumerate() {
        chunk.par_iter().try_for_each(|d| write(out, set, d))?;
        progress((i * CHUNK + chunk.len()) as u64, drawn.len() as u64);
    }
    Ok(planted)
}

fn write(out: &Path, set: &Set, d: &Drawn) -> Result<()> {
    let mut picture = photo(d.class, d.number, set.seed, set.width, set.height);
    let mut quality = QUALITY;
    match d.change {
        None => (),
        Some(Change::Quality(q)) => quality = q,
        Some(Change::Brightness(factor)) => {
            picture.pixels.iter_mut().for_each(|p| *p = (factor * f32::from(*p)).round().min(255.0) as u8);
        }
        Some(Change::Crop(part)) => {
            let mut dice = Dice::new(set.seed, &[PLANT, d.class as u64, d.number]);
            picture = crop(&picture, part, dice.between(0.0, 1.0), dice.between(0.0, 1.0));
        }
    }
    let path = out.join(&d.path);
    std::fs::write(&path, to_jpeg(&picture, quality)?).map_err(|e| Error::io("write", &path, e))
}

/// `part` of each side, at (x, y) of the room that this leaves, back at the picture's size.
fn crop(picture: &Rgb, part: f32, x: f32, y: f32) -> Rgb {
    let of = |n: usize, at: f32| {
        let kept = ((n as f32 * part).round() as usize).clamp(1, n);
        (((n - kept) as f32 * at) as usize, kept)
    };
    let ((left, width), (top, height)) = (of(picture.width, x), of(picture.height, y));
    let rows = picture.pixels.chunks_exact(picture.width * 3).skip(top).take(height);
    let pixels = rows.flat_map(|row| &row[left * 3..(left + width) * 3]).copied().collect();
    resize(&Rgb { width, height, pixels }, picture.height, picture.width)
}
