//! JPEG files to the pixels that libjpeg-turbo makes of them, bit for bit.
//!
//! Photos are JPEGs, and decoders differ: the inverse DCT, the interpolation of subsampled chroma and the colour tables
//! are the decoder's choice. The reference reads photos with Pillow, which is libjpeg-turbo with its defaults, and so
//! this decoder makes the same choices: the "islow" integer IDCT ([`idct`]), "fancy" triangle upsampling
//! ([`upsample`]) and 16-bit fixed-point colour tables ([`color`]). The format is ITU-T T.81; the choices are in
//! libjpeg-turbo's jidctint.c, jdsample.c, jdcolor.c.
//!
//! Where libjpeg warns and leaves the rest of a damaged picture grey, this decoder refuses the file.
//!
//! Read: 8-bit Huffman-coded files, baseline, extended and progressive, with 1, 3 or 4 channels.

mod bits;
mod blocks;
mod color;
mod idct;
mod segments;
mod upsample;

use super::Rgb;
use super::orientation::Notes;
use blocks::Planes;
use segments::{Segment, Segments, Tables};

/// Scans in one file; libjpeg-turbo's fuzzers and tools use the same limit. Real files have about ten.
const MAX_SCANS: usize = 500;

/// What is known of a file before its first scan.
pub(super) struct Header {
    pub width: usize,
    pub height: usize,
    pub notes: Notes,
}

/// Reads up to the first scan.
pub(super) fn header(bytes: &[u8]) -> Result<Header, String> {
    let mut segments = Segments::new(bytes);
    let mut tables = Tables::default();
    while !matches!(segments.next(&mut tables)?, Segment::Scan(_) | Segment::End) {}
    let frame = tables.frame.ok_or("the JPEG file holds no picture")?;
    Ok(Header { width: frame.width, height: frame.height, notes: tables.notes })
}

/// Decodes the first picture in the file; the caller has checked the size in its [`header`].
pub(super) fn decode(bytes: &[u8]) -> Result<Rgb, String> {
    let mut segments = Segments::new(bytes);
    let mut tables = Tables::default();
    let mut planes: Option<Planes> = None;
    let mut scans = 0;
    loop {
        match segments.next(&mut tables)? {
            Segment::Other => {}
            Segment::Scan(scan) => {
                scans += 1;
                if scans > MAX_SCANS {
                    return Err(format!("the JPEG file has more than {MAX_SCANS} scans"));
                }
                let frame = tables.frame.as_ref().ok_or("the JPEG file has a scan before its frame header")?;
                let planes = planes.get_or_insert_with(|| Planes::new(frame));
                segments.position = planes.scan(frame, &tables, &scan, bytes, segments.position)?;
            }
            Segment::End => break,
        }
    }
    let (Some(frame), Some(planes)) = (&tables.frame, planes) else {
        return Err("the JPEG file holds no picture".into());
    };
    let samples = planes.finish(frame)?;
    Ok(color::to_rgb(frame, &samples, tables.color(frame)))
}
