//! The segments between the scans: frame header, quantisation and Huffman tables, and the application data that says
//! how channels are to be read.

use super::bits::Huffman;
use super::color::Color;
use crate::base::counted;
use crate::data::image::orientation::{EXIF, Notes};

const XMP: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";

/// Position in the zigzag order to position in the 8x8 block, row by row.
pub(super) const NATURAL: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21,
    28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54,
    47, 55, 62, 63,
];

/// One channel of the picture. Counts of blocks are of 8x8 samples.
pub(super) struct Component {
    pub id: u8,
    /// Samples of this channel in a group of `max_h` by `max_v` pixels.
    pub h: usize,
    pub v: usize,
    pub quant: usize,
    /// Samples that belong to the picture.
    pub width: usize,
    pub height: usize,
    /// Blocks that hold a sample of the picture.
    pub blocks_across: usize,
    pub blocks_down: usize,
    /// Blocks of whole groups: what is stored.
    pub stored_across: usize,
    pub stored_down: usize,
}

pub(super) struct Frame {
    pub width: usize,
    pub height: usize,
    pub progressive: bool,
    pub components: Vec<Component>,
    pub max_h: usize,
    pub max_v: usize,
    /// Groups of blocks ("MCUs") in a scan of several channels.
    pub groups_across: usize,
    pub groups_down: usize,
}

/// One channel's part in a scan: index in the frame, numbers of its Huffman tables.
pub(super) struct Part {
    pub component: usize,
    pub dc: usize,
    pub ac: usize,
}

pub(super) struct Scan {
    pub parts: Vec<Part>,
    /// Range of coefficients, in zigzag order, both ends included.
    pub first: usize,
    pub last: usize,
    /// Bits left out by the scan before this one (0: none was) and by this one.
    pub high: u8,
    pub low: u8,
}

#[derive(Default)]
pub(super) struct Tables {
    pub frame: Option<Frame>,
    /// In the order of the block, not zigzag.
    pub quant: [Option<[u16; 64]>; 4],
    pub dc: [Option<Huffman>; 4],
    pub ac: [Option<Huffman>; 4],
    /// Groups between restart markers; 0: none.
    pub restart_interval: usize,
    pub notes: Notes,
    jfif: bool,
    adobe_transform: Option<u8>,
}

impl Tables {
    /// What the channels are, as libjpeg decides it (jdapimin.c, default_decompress_parms).
    pub fn color(&self, frame: &Frame) -> Color {
        match (frame.components.as_slice(), self.adobe_transform) {
            ([_], _) => Color::Gray,
            ([_, _, _], _) if self.jfif => Color::YCbCr,
            ([_, _, _], Some(0)) => Color::Rgb,
            ([r, g, b], None) if [r.id, g.id, b.id] == *b"RGB" => Color::Rgb,
            ([_, _, _], _) => Color::YCbCr,
            (_, None | Some(0)) => Color::Cmyk,
            (_, Some(_)) => Color::Ycck,
        }
    }
}

pub(super) enum Segment {
    /// The entropy-coded data begins at [`Segments::position`].
    Scan(Scan),
    End,
    Other,
}

pub(super) struct Segments<'a> {
    bytes: &'a [u8],
    pub position: usize,
}

const ENDS: &str = "the JPEG file is truncated: it ends before its end marker";

impl<'a> Segments<'a> {
    /// `bytes` begin with the start marker.
    pub fn new(bytes: &'a [u8]) -> Self {
        Segments { bytes, position: 2 }
    }

    /// Reads the next segment into `tables`. Stray bytes before a marker are skipped, as libjpeg does.
    pub fn next(&mut self, tables: &mut Tables) -> Result<Segment, String> {
        let marker = self.marker()?;
        match marker {
            0xD9 => return Ok(Segment::End),
            0xD8 => return Err("the JPEG file has a second start marker inside the picture".into()),
            0x01 | 0xD0..=0xD7 => return Ok(Segment::Other),
            _ => {}
        }
        let body = self.body()?;
        match marker {
            0xC0..=0xC2 => {
                if tables.frame.is_some() {
                    return Err("the JPEG file has two frame headers".into());
                }
                tables.frame = Some(frame(body, marker == 0xC2)?);
            }
            0xC3 | 0xC5..=0xC7 | 0xC9..=0xCB | 0xCD..=0xCF => {
                let kind = if marker >= 0xC9 { "arithmetic-coded" } else { "lossless or hierarchical" };
                return Err(format!(
                    "the JPEG file is {kind}, which is not read; save it as a baseline or progressive JPEG"
                ));
            }
            0xC4 => huffman_tables(body, tables)?,
            0xDA => return Ok(Segment::Scan(scan(body, tables)?)),
            0xDB => quant_tables(body, tables)?,
            0xDD => {
                let [a, b, ..] = *body else { return Err("the JPEG restart interval is cut short".into()) };
                tables.restart_interval = usize::from(u16::from_be_bytes([a, b]));
            }
            0xE0 if body.starts_with(b"JFIF\0") && body.len() >= 14 => tables.jfif = true,
            // Pillow joins several segments of EXIF, and of XMP takes the last
            0xE1 if body.starts_with(EXIF) => {
                tables.notes.exif.get_or_insert_default().extend_from_slice(&body[EXIF.len()..]);
            }
            0xE1 if body.starts_with(XMP) => tables.notes.xmp = Some(body[XMP.len()..].to_vec()),
            0xEE if body.starts_with(b"Adobe") && body.len() >= 12 => tables.adobe_transform = Some(body[11]),
            _ => {}
        }
        Ok(Segment::Other)
    }

    fn marker(&mut self) -> Result<u8, String> {
        loop {
            let rest = self.bytes.get(self.position..).unwrap_or_default();
            let at = rest.iter().position(|&b| b == 0xFF).ok_or(ENDS)?;
            let fill = rest[at..].iter().take_while(|&&b| b == 0xFF).count();
            let code = *rest.get(at + fill).ok_or(ENDS)?;
            self.position += at + fill + 1;
            if code != 0 {
                return Ok(code);
            }
        }
    }

    fn body(&mut self) -> Result<&'a [u8], String> {
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        let [a, b, ..] = *rest else { return Err(ENDS.into()) };
        let length = usize::from(u16::from_be_bytes([a, b]));
        if length < 2 {
            return Err(format!("a JPEG segment at byte {} has length {length}", self.position));
        }
        let body = rest.get(2..length).ok_or(ENDS)?;
        self.position += length;
        Ok(body)
    }
}

fn frame(body: &[u8], progressive: bool) -> Result<Frame, String> {
    let [bits, h1, h0, w1, w0, count, ref rest @ ..] = *body else {
        return Err("the JPEG frame header is cut short".into());
    };
    let (width, height) = (usize::from(u16::from_be_bytes([w1, w0])), usize::from(u16::from_be_bytes([h1, h0])));
    if bits != 8 {
        return Err(format!("the JPEG file has {bits} bits a sample; 8 are read"));
    }
    if width == 0 || height == 0 {
        return Err(format!("the JPEG picture is {width} x {height} pixels: it is empty"));
    }
    let count = usize::from(count);
    if !matches!(count, 1 | 3 | 4) {
        return Err(format!("the JPEG file has {count} channels; files with 1, 3 or 4 are read"));
    }
    if rest.len() != 3 * count {
        let channels = counted(count, "channel", "channels");
        return Err(format!("the JPEG frame header has {} for {channels}", counted(rest.len(), "byte", "bytes")));
    }
    let factors: Vec<(u8, usize, usize, usize)> =
        rest.chunks_exact(3).map(|c| (c[0], usize::from(c[1] >> 4), usize::from(c[1] & 15), c[2].into())).collect();
    if let Some(&(id, h, v, _)) = factors.iter().find(|f| !(1..=4).contains(&f.1) || !(1..=4).contains(&f.2)) {
        return Err(format!("JPEG channel {id} has sampling factors {h} x {v}; 1 to 4 are allowed"));
    }
    if let Some(&(id, .., quant)) = factors.iter().find(|f| f.3 > 3) {
        return Err(format!("JPEG channel {id} names quantisation table {quant}; 0 to 3 are allowed"));
    }
    let max_h = factors.iter().map(|f| f.1).max().unwrap_or(1);
    let max_v = factors.iter().map(|f| f.2).max().unwrap_or(1);
    let broken = |f: &&(u8, usize, usize, usize)| !max_h.is_multiple_of(f.1) || !max_v.is_multiple_of(f.2);
    if let Some(&(id, h, v, _)) = factors.iter().find(broken) {
        return Err(format!("JPEG channel {id} has {h} x {v} samples where others have {max_h} x {max_v}: not read"));
    }
    let (groups_across, groups_down) = (width.div_ceil(8 * max_h), height.div_ceil(8 * max_v));
    let component = |(id, h, v, quant): (u8, usize, usize, usize)| {
        let (own_width, own_height) = ((width * h).div_ceil(max_h), (height * v).div_ceil(max_v));
        Component {
            id,
            h,
            v,
            quant,
            width: own_width,
            height: own_height,
            blocks_across: own_width.div_ceil(8),
            blocks_down: own_height.div_ceil(8),
            stored_across: groups_across * h,
            stored_down: groups_down * v,
        }
    };
    let components = factors.into_iter().map(component).collect();
    Ok(Frame { width, height, progressive, components, max_h, max_v, groups_across, groups_down })
}

fn scan(body: &[u8], tables: &Tables) -> Result<Scan, String> {
    let cut = || "a JPEG scan header has the wrong length".to_string();
    let frame = tables.frame.as_ref().ok_or("the JPEG file has a scan before its frame header")?;
    let (&count, rest) = body.split_first().ok_or_else(cut)?;
    let count = usize::from(count);
    if !(1..=4).contains(&count) || rest.len() != 2 * count + 3 {
        return Err(cut());
    }
    let (channels, limits) = rest.split_at(2 * count);
    let mut parts: Vec<Part> = Vec::with_capacity(count);
    for channel in channels.chunks_exact(2) {
        let component = frame
            .components
            .iter()
            .position(|c| c.id == channel[0])
            .ok_or_else(|| format!("a JPEG scan names channel {}, which the frame has not", channel[0]))?;
        let (dc, ac) = (usize::from(channel[1] >> 4), usize::from(channel[1] & 15));
        if dc > 3 || ac > 3 || parts.iter().any(|p| p.component == component) {
            return Err("a JPEG scan header is damaged".into());
        }
        parts.push(Part { component, dc, ac });
    }
    let in_group: usize = parts.iter().map(|p| frame.components[p.component].h * frame.components[p.component].v).sum();
    if count > 1 && in_group > 10 {
        return Err(format!("a JPEG scan has {in_group} blocks in a group; 10 are allowed"));
    }
    let (first, last) = (usize::from(limits[0]), usize::from(limits[1]));
    let (high, low) = (limits[2] >> 4, limits[2] & 15);
    if !frame.progressive {
        return Ok(Scan { parts, first: 0, last: 63, high: 0, low: 0 });
    }
    let range_is_right = if first == 0 { last == 0 } else { first <= last && last <= 63 && count == 1 };
    let bits_are_right = low <= 13 && (high == 0 || high == low + 1);
    if !range_is_right || !bits_are_right {
        return Err(format!("a JPEG scan sends coefficients {first} to {last}, bits {high} to {low}: not allowed"));
    }
    Ok(Scan { parts, first, last, high, low })
}

fn quant_tables(mut body: &[u8], tables: &mut Tables) -> Result<(), String> {
    while let Some((&head, rest)) = body.split_first() {
        let (wide, number) = (head >> 4, usize::from(head & 15));
        let bytes = if wide == 0 { 64 } else { 128 };
        if number > 3 || rest.len() < bytes {
            return Err("a JPEG quantisation table is damaged".into());
        }
        let mut table = [0u16; 64];
        for (k, &at) in NATURAL.iter().enumerate() {
            let value = if wide == 0 { rest[k].into() } else { u16::from_be_bytes([rest[2 * k], rest[2 * k + 1]]) };
            table[usize::from(at)] = value;
        }
        tables.quant[number] = Some(table);
        body = &rest[bytes..];
    }
    Ok(())
}

fn huffman_tables(mut body: &[u8], tables: &mut Tables) -> Result<(), String> {
    const DAMAGED: &str = "a JPEG Huffman table is damaged";
    while let Some((&head, rest)) = body.split_first() {
        let (counts, rest) = rest.split_first_chunk::<16>().ok_or(DAMAGED)?;
        let total: usize = counts.iter().map(|&c| usize::from(c)).sum();
        let symbols = rest.get(..total).ok_or(DAMAGED)?;
        let slot = match head >> 4 {
            0 if symbols.iter().all(|&s| s <= 15) => tables.dc.get_mut(usize::from(head & 15)),
            1 => tables.ac.get_mut(usize::from(head & 15)),
            _ => None,
        };
        *slot.ok_or(DAMAGED)? = Some(Huffman::new(counts, symbols).ok_or(DAMAGED)?);
        body = &rest[total..];
    }
    Ok(())
}
