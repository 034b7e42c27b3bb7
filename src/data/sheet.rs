//! A contact sheet: small copies of photos, class by class, on one picture.

use super::census::Section;
use super::image::Rgb;
use font8x8::UnicodeFonts;

/// Room for one photo, and between two.
pub const SIDE: usize = 128;
const GAP: usize = 8;
const COLUMNS: usize = 8;
/// Pixels of the picture for one of the font's.
const SCALE: usize = 2;
const TITLE: usize = 8 * SCALE + 2 * GAP;

const PAPER: [u8; 3] = [250; 3];
const INK: [u8; 3] = [30; 3];
const FRAME: [u8; 3] = [232; 3];

/// Draws `sections` one below the other, each a title and rows of photos. The sheet is as wide as eight photos.
pub fn contact_sheet(sections: &[Section]) -> Rgb {
    let rows = |s: &Section| s.thumbnails.len().div_ceil(COLUMNS);
    let cell = SIDE + GAP;
    let width = COLUMNS * cell + GAP;
    let height = GAP + sections.iter().map(|s| TITLE + rows(s) * cell).sum::<usize>();
    let mut sheet = Rgb { width, height, pixels: PAPER.repeat(width * height) };
    let mut top = GAP;
    for (number, section) in sections.iter().enumerate() {
        write(&mut sheet, &title(number, section), GAP, top);
        top += TITLE;
        for (i, photo) in section.thumbnails.iter().enumerate() {
            let (x, y) = (GAP + i % COLUMNS * cell, top + i / COLUMNS * cell);
            fill(&mut sheet, [x, y, SIDE, SIDE], FRAME);
            let (left, above) = ((SIDE.saturating_sub(photo.width)) / 2, (SIDE.saturating_sub(photo.height)) / 2);
            paste(&mut sheet, photo, x + left, y + above);
        }
        top += rows(section) * cell;
    }
    sheet
}

/// The class and how many photos it has, cut so that both have room. A name that the font cannot write is a number.
fn title(number: usize, section: &Section) -> String {
    let letters = (COLUMNS * (SIDE + GAP) - GAP) / (8 * SCALE);
    let name = stand_in(number, &section.class).unwrap_or_else(|| section.class.clone());
    let count = format!("  {}", section.photos);
    let room = letters - count.len();
    let name = match name.chars().count() > room {
        true => name.chars().take(room - 3).chain("...".chars()).collect(),
        false => name,
    };
    name + &count
}

/// What stands on the sheet for class `number`, from 0, whose name has letters that the font lacks.
pub fn stand_in(number: usize, class: &str) -> Option<String> {
    class.chars().any(|letter| glyph(letter).is_none()).then(|| format!("class {}", number + 1))
}

fn glyph(letter: char) -> Option<[u8; 8]> {
    font8x8::BASIC_FONTS
        .get(letter)
        .or_else(|| font8x8::LATIN_FONTS.get(letter))
        .or_else(|| font8x8::GREEK_FONTS.get(letter))
        .or_else(|| font8x8::HIRAGANA_FONTS.get(letter))
}

/// `text` with its upper left corner at (x, y), cut off where the sheet ends.
fn write(sheet: &mut Rgb, text: &str, x: usize, y: usize) {
    for (i, glyph) in text.chars().filter_map(glyph).enumerate() {
        let left = x + i * 8 * SCALE;
        if left + 8 * SCALE > sheet.width {
            return;
        }
        for (row, bits) in glyph.iter().enumerate() {
            for column in (0..8).filter(|column| bits >> column & 1 == 1) {
                fill(sheet, [left + column * SCALE, y + row * SCALE, SCALE, SCALE], INK);
            }
        }
    }
}

/// A rectangle [x, y, width, height] within the sheet.
fn fill(sheet: &mut Rgb, [x, y, width, height]: [usize; 4], color: [u8; 3]) {
    for row in y..y + height {
        let start = (row * sheet.width + x) * 3;
        if let Some(pixels) = sheet.pixels.get_mut(start..start + width * 3) {
            pixels.as_chunks_mut::<3>().0.iter_mut().for_each(|pixel| *pixel = color);
        }
    }
}

fn paste(sheet: &mut Rgb, photo: &Rgb, x: usize, y: usize) {
    let n = photo.width * 3;
    for (row, from) in photo.pixels.chunks_exact(n).enumerate() {
        let start = ((y + row) * sheet.width + x) * 3;
        if let Some(to) = sheet.pixels.get_mut(start..start + n) {
            to.copy_from_slice(from);
        }
    }
}
