//! Changes that make a near-duplicate of a photo, as they happen on the way of a photo through phones and web sites.

use crate::base::Result;
use crate::base::rng::Stream;
use crate::data::image::{self, Rgb};
use serde::Serialize;
use std::path::Path;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// 80 to 95 % of each side are left, somewhere.
    Crop,
    /// Made smaller, to 60 to 100 % of each side, and saved as JPEG of quality 40 to 85.
    Reencode,
    /// 10 to 30 % brighter or darker.
    Brightness,
}

impl Change {
    pub const ALL: [Change; 3] = [Change::Crop, Change::Reencode, Change::Brightness];

    pub fn name(self) -> &'static str {
        match self {
            Change::Crop => "crops",
            Change::Reencode => "re-encodes",
            Change::Brightness => "brightness",
        }
    }
}

/// The photo changed; the random numbers decide by how much.
pub fn planted(photo: &Rgb, change: Change, random: Stream) -> Result<Rgb> {
    let between = |i: u64, from: f32, to: f32| from + (to - from) * random.uniform(i);
    match change {
        Change::Crop => {
            let side = |i: u64, n: usize| ((n as f32 * between(i, 0.8, 0.95)).round() as usize).clamp(1, n);
            let (width, height) = (side(0, photo.width), side(1, photo.height));
            let place = |i: u64, room: usize| (room as f32 * random.uniform(i)).round() as usize;
            let (x, y) = (place(2, photo.width - width), place(3, photo.height - height));
            let row = |y: usize| &photo.pixels[(y * photo.width + x) * 3..][..width * 3];
            Ok(Rgb { width, height, pixels: (y..y + height).flat_map(row).copied().collect() })
        }
        Change::Reencode => {
            let scale = between(0, 0.6, 1.0);
            let side = |n: usize| ((n as f32 * scale).round() as usize).max(1);
            let smaller = image::resize(photo, side(photo.height), side(photo.width));
            let quality = between(1, 40.0, 85.0).round() as u8;
            image::decode(&image::to_jpeg(&smaller, quality)?, Path::new("a photo saved as JPEG"))
        }
        Change::Brightness => {
            let by = between(0, 0.1, 0.3);
            let factor = if random.uniform(1) < 0.5 { 1.0 - by } else { 1.0 + by };
            let pixels = photo.pixels.iter().map(|v| (f32::from(*v) * factor).round().min(255.0) as u8).collect();
            Ok(Rgb { width: photo.width, height: photo.height, pixels })
        }
    }
}
