//! Image files to the patches that the vision tower reads.
//!
//! Owns: which formats are read and how ([`decode`]; JPEG by a decoder of our own in `jpeg/`, so that photos give
//! Pillow's pixels), which way up they lie ([`orientation`]), the resize filter ([`resize`]) and the order of patches ([`patches`]). Uses `base` only. Start
//! at [`load`], then [`PatchSpec::patches`].

mod decode;
mod encode;
mod jpeg;
mod orientation;
mod patches;
mod resize;

pub use decode::{Kind, decode, decode_with_kind, dimensions, dimensions_of, load, read};
pub use encode::{jpeg as to_jpeg, png as to_png};
pub use patches::{AN_AREA, AREAS, Limits, PatchSpec, Patches};
pub use resize::resize;

/// An 8-bit picture: `pixels` is [height, width, 3], red first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rgb {
    pub width: usize,
    pub height: usize,
    pub pixels: Vec<u8>,
}
