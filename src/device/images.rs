//! The kernels as this program carries them: what build.rs made of `cuda/`.

/// What an image holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageKind {
    /// Machine code for compute capability 8.x.
    Sm80,
    /// Machine code for 9.0, with its own instructions.
    Sm90a,
    /// Text for 8.0 that a driver compiles for anything newer. Ends in a zero byte.
    Ptx80,
}

/// One compiled file.
#[derive(Debug, Clone, Copy)]
pub struct Image {
    pub name: &'static str,
    pub kind: ImageKind,
    pub bytes: &'static [u8],
}

pub static IMAGES: &[Image] = &[];
pub static EMULATORS: &[(&str, &[u8])] = &[];
