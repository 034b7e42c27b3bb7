//! One look at a photo: what its file is, and a small copy of it.

use super::alike::Print;
use super::image::{self, Rgb};
use super::messages::ImageSource;
use crate::base::Result;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::path::{Path, PathBuf};

/// What a photo is.
#[derive(Debug, Clone)]
pub struct Look {
    /// Of the file's bytes.
    pub sha256: [u8; 32],
    pub bytes: u64,
    pub kind: image::Kind,
    pub width: usize,
    pub height: usize,
    /// Whether no pixel has a colour.
    pub gray: bool,
    pub print: Print,
    /// At most `side` pixels long, where one was asked for.
    pub thumbnail: Option<Rgb>,
}

/// Reads and decodes a photo. Errors: those of [`image::decode`].
pub fn look(source: &ImageSource, side: Option<usize>) -> Result<Look> {
    let (bytes, name) = content(source)?;
    let (picture, kind) = image::decode_with_kind(&bytes, &name)?;
    let print = Print::of(&picture);
    Ok(Look {
        sha256: sha256(&bytes),
        bytes: bytes.len() as u64,
        kind,
        width: picture.width,
        height: picture.height,
        gray: picture.pixels.as_chunks::<3>().0.iter().all(|[r, g, b]| r == g && g == b),
        print,
        thumbnail: side.map(|side| thumbnail(&picture, side)),
    })
}

/// A photo, decoded. Errors: those of [`image::load`].
pub fn load(source: &ImageSource) -> Result<Rgb> {
    match source {
        ImageSource::File(path) => image::load(path),
        ImageSource::Bytes { name, bytes } => image::decode(bytes, Path::new(name)),
    }
}

/// Width and height of a photo as [`load`] would return it, from the header alone.
pub fn dimensions(source: &ImageSource) -> Result<(usize, usize)> {
    match source {
        ImageSource::File(path) => image::dimensions(path),
        ImageSource::Bytes { name, bytes } => image::dimensions_of(bytes, Path::new(name)),
    }
}

/// A photo's encoded bytes, and what to call it in messages. Errors: those of [`image::read`].
pub fn content(source: &ImageSource) -> Result<(Cow<'_, [u8]>, PathBuf)> {
    Ok(match source {
        ImageSource::File(path) => (image::read(path)?.into(), path.to_path_buf()),
        ImageSource::Bytes { name, bytes } => (bytes.as_ref().into(), Path::new(name).into()),
    })
}

pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// The picture with its longer side at `side` pixels, if it is longer.
pub fn thumbnail(picture: &Rgb, side: usize) -> Rgb {
    let longer = picture.width.max(picture.height);
    if longer <= side {
        return picture.clone();
    }
    let scaled = |n: usize| ((n * side + longer / 2) / longer).max(1);
    image::resize(picture, scaled(picture.height), scaled(picture.width))
}
