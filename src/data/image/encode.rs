//! Pictures as files.

use super::Rgb;
use crate::base::{Error, Result};
use image::ImageEncoder;
use image::codecs::png::PngEncoder;

/// A PNG file. Errors: sides of 0, or pixels that do not fit them.
pub fn png(picture: &Rgb) -> Result<Vec<u8>> {
    let (width, height) = sides(picture)?;
    let mut bytes = Vec::new();
    let written =
        PngEncoder::new(&mut bytes).write_image(&picture.pixels, width, height, image::ExtendedColorType::Rgb8);
    written.map_err(|e| Error::Unsupported(format!("the picture cannot be written as PNG: {e}")))?;
    Ok(bytes)
}

/// A baseline JPEG file with halved colour, as cameras write. `quality` is libjpeg's, from 1 to 100. Errors: as of
/// [`png`], and sides above 65,535.
pub fn jpeg(picture: &Rgb, quality: u8) -> Result<Vec<u8>> {
    let (width, height) = sides(picture)?;
    let said = |e: &dyn std::fmt::Display| Error::Unsupported(format!("the picture cannot be written as JPEG: {e}"));
    let narrow = |side: u32| u16::try_from(side).map_err(|e| said(&e));
    let mut bytes = Vec::new();
    let mut encoder = jpeg_encoder::Encoder::new(&mut bytes, quality);
    encoder.set_sampling_factor(jpeg_encoder::SamplingFactor::F_2_2);
    let written = encoder.encode(&picture.pixels, narrow(width)?, narrow(height)?, jpeg_encoder::ColorType::Rgb);
    written.map_err(|e| said(&e))?;
    Ok(bytes)
}

fn sides(picture: &Rgb) -> Result<(u32, u32)> {
    let wrong = || Error::Contract {
        op: "encode",
        argument: "pixels",
        wanted: "width x height x 3 values, and some".into(),
        got: format!("{} for {} x {}", picture.pixels.len(), picture.width, picture.height),
    };
    let n = picture.width.checked_mul(picture.height).and_then(|n| n.checked_mul(3));
    if n != Some(picture.pixels.len()) || picture.pixels.is_empty() {
        return Err(wrong());
    }
    Ok((u32::try_from(picture.width).map_err(|_| wrong())?, u32::try_from(picture.height).map_err(|_| wrong())?))
}
