//! Which way up a picture lies: what Pillow 13's `ImageOps.exif_transpose` goes by (Image.py, TiffImagePlugin.py and the
//! plugins of the formats).
//!
//! EXIF's tag 274 says it, whatever numbers it is written in; where EXIF has no such tag, XMP's `tiff:Orientation` does. What
//! is damaged says nothing.

use flate2::read::ZlibDecoder;
use image::metadata::Orientation;
use std::io::{self, Read, Seek, SeekFrom};

/// What stands before a TIFF structure.
pub(super) const EXIF: &[u8] = b"Exif\0\0";
const TAG: u16 = 274;
/// Pillow's limit on a compressed text of a PNG file.
const MAX_TEXT: usize = 1 << 20;

/// What a file holds beside its picture.
#[derive(Debug, Default, Clone)]
pub(super) struct Notes {
    /// A TIFF structure, behind `Exif\0\0` or not.
    pub exif: Option<Vec<u8>>,
    /// XML.
    pub xmp: Option<Vec<u8>>,
    /// Whether the file ends before it should, and with it what it may have held.
    pub cut: bool,
}

impl Notes {
    pub fn orientation(&self) -> Orientation {
        let number = self.exif.as_deref().and_then(in_exif).or_else(|| in_xmp(self.xmp.as_deref()?));
        let said = (1..=8u8).find(|&n| number == Some(f64::from(n)));
        said.and_then(Orientation::from_exif).unwrap_or(Orientation::NoTransforms)
    }

    /// Those of a PNG file, from its start to its end; `file` is left at any place.
    pub fn of_png(file: &mut (impl Read + Seek)) -> Notes {
        let mut found = Notes::default();
        // ImageMagick's, as text; Pillow looks at it where no chunk has EXIF
        let mut profile = None;
        let whole = png_chunks(file, |kind, body| match (kind, keyword(body)) {
            (b"eXIf", _) | (b"tEXt", Some((b"exif", _))) => {
                found.exif = Some(if kind == b"eXIf" { body } else { &body[5..] }.to_vec());
            }
            (_, Some((b"Raw profile type exif", rest))) => profile = text(kind, rest).and_then(|text| from_hex(&text)),
            (_, Some((b"XML:com.adobe.xmp", rest))) => found.xmp = text(kind, rest).or(found.xmp.take()),
            _ => {}
        });
        found.exif = found.exif.or(profile);
        found.cut = whole.is_err();
        found
    }
}

/// Gives kind and content of the chunks that can hold notes, in their order, those behind the picture too; of an animation
/// up to its second frame.
fn png_chunks(file: &mut (impl Read + Seek), mut take: impl FnMut(&[u8; 4], &[u8])) -> io::Result<()> {
    file.seek(SeekFrom::Start(8))?;
    let mut in_picture = false;
    loop {
        let mut head = [0; 8];
        file.read_exact(&mut head)?;
        let [l3, l2, l1, l0, kind @ ..] = head;
        let length = u32::from_be_bytes([l3, l2, l1, l0]);
        let mut left = i64::from(length) + 4;
        match &kind {
            b"IEND" => return Ok(()),
            b"fcTL" if in_picture => return Ok(()),
            b"IDAT" | b"fdAT" => in_picture = true,
            b"eXIf" | b"tEXt" | b"zTXt" | b"iTXt" => {
                let mut body = Vec::new();
                if file.by_ref().take(length.into()).read_to_end(&mut body)? < length as usize {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                take(&kind, &body);
                left = 4;
            }
            _ => {}
        }
        file.seek_relative(left)?;
    }
}

/// The keyword of a chunk of text, and what follows it.
fn keyword(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = body.iter().position(|&b| b == 0)?;
    Some((&body[..end], &body[end + 1..]))
}

/// The text that a chunk of this kind has behind its keyword.
fn text(kind: &[u8; 4], rest: &[u8]) -> Option<Vec<u8>> {
    let (packed, rest) = match (kind, rest) {
        (b"tEXt", _) => (false, rest),
        (b"zTXt", [0, rest @ ..]) => (true, rest),
        // the language and the translated keyword come first
        (b"iTXt", [packed, method, rest @ ..]) if *packed == 0 || *method == 0 => {
            (*packed != 0, keyword(keyword(rest)?.1)?.1)
        }
        _ => return None,
    };
    if !packed {
        return Some(rest.to_vec());
    }
    let mut text = Vec::new();
    ZlibDecoder::new(rest).take(MAX_TEXT as u64 + 1).read_to_end(&mut text).ok()?;
    (text.len() <= MAX_TEXT).then_some(text)
}

/// The bytes of a raw profile: three lines, then hexadecimal digits.
fn from_hex(text: &[u8]) -> Option<Vec<u8>> {
    let lines = text.splitn(4, |&b| b == b'\n').nth(3).unwrap_or_default();
    let digits: Option<Vec<u8>> = lines
        .iter()
        .filter(|b| !b.is_ascii_whitespace())
        .map(|&b| char::from(b).to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect();
    let digits = digits?;
    let (pairs, odd) = digits.as_chunks::<2>();
    odd.is_empty().then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

/// The number behind the first `tiff:Orientation`, as attribute or as element, that has one of a single digit.
fn in_xmp(xmp: &[u8]) -> Option<f64> {
    const NAME: &[u8] = b"tiff:Orientation";
    xmp.windows(NAME.len()).enumerate().filter(|(_, found)| *found == NAME).find_map(|(at, _)| {
        match &xmp[at + NAME.len()..] {
            [b'=', b'"', digit, ..] | [b'>', digit, ..] if digit.is_ascii_digit() => Some(f64::from(digit - b'0')),
            _ => None,
        }
    })
}

/// The number of the tag in the first directory of a TIFF structure; 0, which turns nothing, where the tag holds no number
/// or the structure has no head. None: the tag is not there.
fn in_exif(mut exif: &[u8]) -> Option<f64> {
    for _ in 0..2 {
        exif = exif.strip_prefix(EXIF).unwrap_or(exif);
    }
    if exif.is_empty() {
        return None;
    }
    let order = match exif {
        [b'I', b'I', 42, 0, _, _, _, _, ..] | [b'I', b'I', 0, 42, _, _, _, _, ..] => Order::Little,
        [b'M', b'M', 0, 42 | 43, _, _, _, _, ..] | [b'M', b'M', 42, 0, _, _, _, _, ..] => Order::Big,
        _ => return Some(0.0),
    };
    let short = |bytes: &[u8]| order.number(bytes) as u16;
    let directory = exif.get(order.number(&exif[4..8]) as usize..)?;
    let (count, entries) = directory.split_at_checked(2)?;
    // Pillow believes entries up to as many bytes as there are, and stops at one that reaches beyond the end
    let mut believed = exif.len() as u64;
    for entry in entries.chunks_exact(12).take(short(count).into()) {
        let (tag, kind, value) = (short(&entry[..2]), short(&entry[2..4]), &entry[8..]);
        let unit = match kind {
            1 | 2 | 6 | 7 => 1,
            3 | 8 => 2,
            4 | 9 | 11 | 13 => 4,
            5 | 10 | 12 | 16 => 8,
            _ => continue,
        };
        let size = order.number(&entry[4..8]) * unit;
        let bytes = if size <= 4 {
            &value[..size as usize]
        } else {
            let Some(left) = believed.checked_sub(size) else {
                believed = 0;
                continue;
            };
            believed = left;
            let start = order.number(value) as usize;
            exif.get(start..start.checked_add(size as usize)?)?
        };
        if tag == TAG && !bytes.is_empty() {
            return Some(first_number(kind, &bytes[..unit as usize], order));
        }
    }
    None
}

/// Of bytes of one number of TIFF's types; 0 for texts and bytes, which are no numbers to Pillow.
fn first_number(kind: u16, bytes: &[u8], order: Order) -> f64 {
    let number = order.number(bytes);
    let half = |bytes: &[u8]| order.number(bytes) as u32;
    match kind {
        3 | 4 | 13 | 16 => number as f64,
        5 => f64::from(half(&bytes[..4])) / f64::from(half(&bytes[4..])),
        6 => f64::from(number as i8),
        8 => f64::from(number as i16),
        9 => f64::from(number as i32),
        10 => f64::from(half(&bytes[..4]) as i32) / f64::from(half(&bytes[4..]) as i32),
        11 => f64::from(f32::from_bits(number as u32)),
        12 => f64::from_bits(number),
        _ => 0.0,
    }
}

#[derive(Clone, Copy)]
enum Order {
    Little,
    Big,
}

impl Order {
    /// Of at most eight bytes.
    fn number(self, bytes: &[u8]) -> u64 {
        let join = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        match self {
            Order::Little => bytes.iter().rev().fold(0, join),
            Order::Big => bytes.iter().fold(0, join),
        }
    }
}
