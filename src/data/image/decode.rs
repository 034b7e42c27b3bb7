//! Bytes of an image file to upright RGB on white.
//!
//! The format is found from the content. Sizes are checked in the header before anything is decoded. The orientation
//! is applied that EXIF or XMP says; transparent pixels lie on white, rounded as Pillow's `paste` rounds; of 16 bits a channel the upper 8
//! are kept, as Pillow does for colour. Colour profiles and gamma are ignored, as the reference does. Of an animation
//! the first frame is taken.

use super::orientation::Notes;
use super::{Rgb, jpeg};
use crate::base::{Error, Result, input};
use image::codecs::{gif::GifDecoder, png::PngDecoder, webp::WebPDecoder};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageResult};
use std::borrow::Cow;
use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read, Seek};
use std::path::Path;

/// Pillow's limit against pictures that are small as files and huge when decoded.
const MAX_PIXELS: u64 = 178_956_970;
const MAX_FILE_BYTES: u64 = 512 << 20;
/// The longer side over the shorter: what Qwen's processor refuses.
pub(super) const MAX_ASPECT: usize = 200;

const READ: &str = "JPEG, PNG, WebP and GIF are read";

/// Enough of a JPEG file for its header, unless it carries large profiles or previews.
const HEADER_BYTES: u64 = 64 << 10;

enum Format {
    Jpeg,
    Other(Other),
}

/// The formats that the image crate decodes.
#[derive(Debug, Clone, Copy)]
enum Other {
    Png,
    WebP,
    Gif,
}

/// Reads the image file at `path`, upright, on white.
///
/// Errors name the file: it cannot be read, is of another format, is too large, too long for its width, truncated or
/// damaged.
pub fn load(path: &Path) -> Result<Rgb> {
    decode(&read(path)?, path)
}

/// The bytes of the image file at `path`. Errors: it cannot be read, is no plain file, or is too large.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let (mut file, bytes) = open(path)?;
    let mut content = Vec::with_capacity(usize::try_from(bytes).unwrap_or(0));
    file.read_to_end(&mut content).map_err(|e| Error::io("read", path, e))?;
    Ok(content)
}

/// [`load`] from memory; `name` is for messages.
pub fn decode(bytes: &[u8], name: &Path) -> Result<Rgb> {
    decode_with_kind(bytes, name).map(|(picture, _)| picture)
}

/// What a file turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// JPEG, PNG, WebP or GIF.
    pub format: &'static str,
    /// Whether white shows through a pixel: what only could be transparent, as every GIF, need not be.
    pub transparent: bool,
}

/// [`decode`], and what kind of file it is.
pub fn decode_with_kind(bytes: &[u8], name: &Path) -> Result<(Rgb, Kind)> {
    let refuse = |reason: String| Error::file(name, reason);
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(too_many_bytes(name, bytes.len() as u64));
    }
    let format = match format(bytes).map_err(refuse)? {
        Format::Jpeg => {
            let header = jpeg::header(bytes).map_err(refuse)?;
            check_size(header.width as u64, header.height as u64).map_err(refuse)?;
            let picture = jpeg::decode(bytes).map_err(refuse)?;
            let picture = upright(picture, header.notes.orientation())
                .ok_or_else(|| refuse("the picture's rows do not fit its size".into()))?;
            return Ok((picture, Kind { format: "JPEG", transparent: false }));
        }
        Format::Other(format) => format,
    };
    let unblended;
    let bytes = match format {
        Other::WebP => {
            check_webp_length(bytes).map_err(refuse)?;
            unblended = without_blending(bytes);
            &unblended
        }
        Other::Png | Other::Gif => bytes,
    };
    let damaged = |e| refuse(damaged(format, e));
    let (decoder, notes) = with_notes(format, bytes, Cursor::new(bytes)).map_err(refuse)?;
    let (width, height) = decoder.dimensions();
    check_size(width.into(), height.into()).map_err(refuse)?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    if notes.cut {
        return Err(refuse(format!("the {format:?} file is truncated or damaged: it ends before its last chunk")));
    }
    picture.apply_orientation(notes.orientation());
    let name = match format {
        Other::Png => "PNG",
        Other::WebP => "WebP",
        Other::Gif => "GIF",
    };
    let kind = Kind { format: name, transparent: is_transparent(&picture) };
    Ok((on_white(picture), kind))
}

/// Width and height of the image at `path` as [`load`] would return it, from the header alone.
pub fn dimensions(path: &Path) -> Result<(usize, usize)> {
    let refuse = |reason: String| Error::file(path, reason);
    let (mut file, _) = open(path)?;
    let mut head = Vec::new();
    let unread = |e| Error::io("read", path, e);
    file.by_ref().take(HEADER_BYTES).read_to_end(&mut head).map_err(unread)?;
    match format(&head).map_err(refuse)? {
        Format::Jpeg => {
            let mut header = jpeg::header(&head);
            if header.is_err() {
                file.read_to_end(&mut head).map_err(unread)?;
                header = jpeg::header(&head);
            }
            header.and_then(|header| header.upright_size()).map_err(refuse)
        }
        Format::Other(format) => {
            file.rewind().map_err(unread)?;
            other_size(format, &head, BufReader::new(file)).map_err(refuse)
        }
    }
}

/// [`dimensions`] of an image in memory; `name` is for messages.
pub fn dimensions_of(bytes: &[u8], name: &Path) -> Result<(usize, usize)> {
    let size = format(bytes).and_then(|format| match format {
        Format::Jpeg => jpeg::header(bytes)?.upright_size(),
        Format::Other(format) => other_size(format, bytes, Cursor::new(bytes)),
    });
    size.map_err(|reason| Error::file(name, reason))
}

/// Of a file that begins with `head`.
fn other_size<R: BufRead + Seek>(format: Other, head: &[u8], file: R) -> Result<(usize, usize), String> {
    let (decoder, notes) = with_notes(format, head, file)?;
    let (width, height) = decoder.dimensions();
    upright_size(width as usize, height as usize, notes.orientation())
}

/// Width and height after turning, of a picture that may be read.
fn upright_size(width: usize, height: usize, orientation: Orientation) -> Result<(usize, usize), String> {
    check_size(width as u64, height as u64)?;
    let lies = matches!(
        orientation,
        Orientation::Rotate90 | Orientation::Rotate270 | Orientation::Rotate90FlipH | Orientation::Rotate270FlipH
    );
    Ok(if lies { (height, width) } else { (width, height) })
}

impl jpeg::Header {
    fn upright_size(&self) -> Result<(usize, usize), String> {
        upright_size(self.width, self.height, self.notes.orientation())
    }
}

fn open(path: &Path) -> Result<(File, u64)> {
    let meta = std::fs::metadata(path).map_err(|e| Error::io("open", path, e))?;
    if meta.is_dir() {
        return Err(Error::file(path, "is a folder; an image file was wanted"));
    }
    input::plain(path)?;
    if meta.len() > MAX_FILE_BYTES {
        return Err(too_many_bytes(path, meta.len()));
    }
    Ok((File::open(path).map_err(|e| Error::io("open", path, e))?, meta.len()))
}

fn too_many_bytes(name: &Path, bytes: u64) -> Error {
    Error::file(name, format!("the file has {bytes} bytes; image files of up to {MAX_FILE_BYTES} are read"))
}

/// Refuses what is empty, a decompression bomb, or longer than the processor allows.
fn check_size(width: u64, height: u64) -> Result<(), String> {
    let size = format!("the picture is {width} x {height} pixels");
    if width == 0 || height == 0 {
        return Err(format!("{size}: it is empty"));
    }
    if width.saturating_mul(height) > MAX_PIXELS {
        return Err(format!("{size}; at most {MAX_PIXELS} in all are read: make it smaller"));
    }
    if width.max(height) > width.min(height) * MAX_ASPECT as u64 {
        return Err(format!("{size}; the longer side may be at most {MAX_ASPECT} times the shorter: crop it"));
    }
    Ok(())
}

/// The WebP decoder takes what is missing at the end for zeros; the file says how long it is.
fn check_webp_length(bytes: &[u8]) -> Result<(), String> {
    let declared = bytes[4..].first_chunk::<4>().map_or(0, |size| u64::from(u32::from_le_bytes(*size)) + 8);
    // The byte that makes the last chunk even may be left out.
    if declared > bytes.len() as u64 + 1 {
        return Err(format!("the WebP file is truncated: it has {} bytes of {declared}", bytes.len()));
    }
    Ok(())
}

/// Without the flag that has the first frame of an animation blended with the empty canvas: libwebp takes no notice of it
/// there, and the decoder's blending rounds.
fn without_blending(bytes: &[u8]) -> Cow<'_, [u8]> {
    let mut at = 12;
    while let Some(chunk) = bytes.get(at..).and_then(|rest| rest.first_chunk::<24>()) {
        let [a, n, m, f, s0, s1, s2, s3, ..] = *chunk;
        if [a, n, m, f] == *b"ANMF" {
            let mut bytes = bytes.to_vec();
            bytes[at + 23] |= 2;
            return bytes.into();
        }
        let size = u32::from_le_bytes([s0, s1, s2, s3]) as usize;
        at += 8 + size + (size & 1);
    }
    bytes.into()
}

/// The format that the content is of.
fn format(bytes: &[u8]) -> Result<Format, String> {
    let brand = bytes.get(4..12).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(512)])
        .trim_start_matches('\u{feff}')
        .trim_start()
        .to_lowercase();
    let other = match bytes {
        [] => return Err(format!("the file is empty; {READ}")),
        [0xFF, 0xD8, 0xFF, ..] => return Ok(Format::Jpeg),
        [0x89, b'P', b'N', b'G', 0x0D, 0x0A, 0x1A, 0x0A, ..] => return Ok(Format::Other(Other::Png)),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => return Ok(Format::Other(Other::WebP)),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => return Ok(Format::Other(Other::Gif)),
        [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => "a TIFF or raw camera file",
        [b'B', b'M', ..] => "a BMP file",
        [0, 0, 1, 0, ..] => "an ICO file",
        [b'8', b'B', b'P', b'S', ..] => "a Photoshop file",
        [0xFF, 0x0A, ..] | [0, 0, 0, 12, b'J', b'X', b'L', b' ', ..] => "a JPEG XL file",
        [0xFF, 0x4F, 0xFF, 0x51, ..] | [0, 0, 0, 12, b'j', b'P', b' ', b' ', ..] => "a JPEG 2000 file",
        [b'%', b'P', b'D', b'F', ..] => "a PDF file",
        _ if brand.starts_with(b"ftypavi") => "an AVIF file",
        _ if [&b"ftyphei"[..], b"ftyphev", b"ftypmif1", b"ftypmsf1"].iter().any(|b| brand.starts_with(b)) => {
            "a HEIC file"
        }
        _ if brand.starts_with(b"ftyp") => "a video or another ISO media file",
        _ if text.starts_with("<svg") || (text.starts_with("<?xml") && text.contains("<svg")) => "an SVG file",
        _ if text.starts_with("<!doctype html") || text.starts_with("<html") => "a web page",
        _ => return Err(format!("is no image file that this program knows; {READ}")),
    };
    Err(format!("is {other}; {READ}: convert it to one of them"))
}

/// The decoder of a file that begins with `head`.
fn decoder<'a, R: BufRead + Seek + 'a>(
    format: Other,
    head: &[u8],
    file: R,
) -> Result<Box<dyn ImageDecoder + 'a>, String> {
    if let Some((width, height)) = claimed(format, head) {
        check_size(width, height)?;
    }
    let opened = || -> ImageResult<Box<dyn ImageDecoder + 'a>> {
        Ok(match format {
            Other::Png => Box::new(PngDecoder::new(file)?),
            Other::WebP => Box::new(WebPDecoder::new(file)?),
            Other::Gif => Box::new(GifDecoder::new(file)?),
        })
    };
    opened().map_err(|e| damaged(format, e))
}

/// The same, with what the file says of the picture.
fn with_notes<'a, R: BufRead + Seek + 'a>(
    format: Other,
    head: &[u8],
    mut file: R,
) -> Result<(Box<dyn ImageDecoder + 'a>, Notes), String> {
    let unread = |e: image::ImageError| damaged(format, e);
    let mut notes = Notes::default();
    if matches!(format, Other::Png) {
        notes = Notes::of_png(&mut file);
        file.rewind().map_err(|e| unread(e.into()))?;
    }
    let mut decoder = decoder(format, head, file)?;
    if let (Other::WebP, Some([b'V', b'P', b'8', b'X', _, _, _, _, flags])) = (format, head.get(12..21)) {
        // libwebp keeps what the flags announce
        notes.exif = if flags & 8 != 0 { decoder.exif_metadata().map_err(unread)? } else { None };
        notes.xmp = if flags & 4 != 0 { decoder.xmp_metadata().map_err(unread)? } else { None };
    }
    Ok((decoder, notes))
}

fn damaged(format: Other, e: image::ImageError) -> String {
    format!("the {format:?} file is truncated or damaged: {e}")
}

/// Width and height in the headers with room for sizes at which a decoder gives up before it says them: that of PNG, big
/// endian, and that of extended WebP, 24 bits each, little endian and less 1.
fn claimed(format: Other, head: &[u8]) -> Option<(u64, u64)> {
    match (format, head.get(12..30)?) {
        (Other::Png, [b'I', b'H', b'D', b'R', w3, w2, w1, w0, h3, h2, h1, h0, ..]) => {
            let side = |bytes| u64::from(u32::from_be_bytes(bytes));
            Some((side([*w3, *w2, *w1, *w0]), side([*h3, *h2, *h1, *h0])))
        }
        (Other::WebP, [b'V', b'P', b'8', b'X', _, _, _, _, _, _, _, _, w0, w1, w2, h0, h1, h2]) => {
            let side = |[a, b, c]: [u8; 3]| u64::from(u32::from_le_bytes([a, b, c, 0])) + 1;
            Some((side([*w0, *w1, *w2]), side([*h0, *h1, *h2])))
        }
        _ => None,
    }
}

fn upright(picture: Rgb, orientation: Orientation) -> Option<Rgb> {
    if orientation == Orientation::NoTransforms {
        return Some(picture);
    }
    let (width, height) = (u32::try_from(picture.width).ok()?, u32::try_from(picture.height).ok()?);
    let mut turned = DynamicImage::ImageRgb8(image::RgbImage::from_raw(width, height, picture.pixels)?);
    turned.apply_orientation(orientation);
    Some(on_white(turned))
}

/// Whether [`on_white`] changes a pixel. Of 16 bits of alpha the upper 8 count, as there.
fn is_transparent(picture: &DynamicImage) -> bool {
    match picture {
        DynamicImage::ImageLumaA8(p) => p.pixels().any(|p| p.0[1] < u8::MAX),
        DynamicImage::ImageRgba8(p) => p.pixels().any(|p| p.0[3] < u8::MAX),
        DynamicImage::ImageLumaA16(p) => p.pixels().any(|p| p.0[1] >> 8 < 0xff),
        DynamicImage::ImageRgba16(p) => p.pixels().any(|p| p.0[3] >> 8 < 0xff),
        _ => false,
    }
}

/// Pillow's `Image.new("RGB", size, "white").paste(picture, mask=alpha)`.
fn on_white(picture: DynamicImage) -> Rgb {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let over = |color: u8, alpha: u8| {
        let sum = 255 * (255 - u32::from(alpha)) + u32::from(color) * u32::from(alpha) + 128;
        (((sum >> 8) + sum) >> 8) as u8
    };
    let high = |value: u16| (value >> 8) as u8;
    let pixels = match picture {
        DynamicImage::ImageRgb8(p) => p.into_raw(),
        DynamicImage::ImageLuma8(p) => p.as_raw().iter().flat_map(|&l| [l; 3]).collect(),
        DynamicImage::ImageLumaA8(p) => p.pixels().flat_map(|p| [over(p.0[0], p.0[1]); 3]).collect(),
        DynamicImage::ImageRgba8(p) => {
            p.pixels().flat_map(|p| [over(p.0[0], p.0[3]), over(p.0[1], p.0[3]), over(p.0[2], p.0[3])]).collect()
        }
        DynamicImage::ImageLuma16(p) => p.as_raw().iter().flat_map(|&l| [high(l); 3]).collect(),
        DynamicImage::ImageRgb16(p) => p.as_raw().iter().map(|&v| high(v)).collect(),
        DynamicImage::ImageLumaA16(p) => p.pixels().flat_map(|p| [over(high(p.0[0]), high(p.0[1])); 3]).collect(),
        DynamicImage::ImageRgba16(p) => {
            p.pixels().flat_map(|p| [0, 1, 2].map(|c| over(high(p.0[c]), high(p.0[3])))).collect()
        }
        other => other.into_rgb8().into_raw(),
    };
    Rgb { width, height, pixels }
}
