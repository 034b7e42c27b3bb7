//! The kernels as this program carries them: what build.rs made of `cuda/`.
//!
//! The generated file has `IMAGES`, the code for GPUs, and `EMULATORS`, pairs of a build's name (`plain`, `asan`, `race`)
//! and the bytes of its shared library, whose functions are those of `cuda/emulator/api.h`. Without the compilers they
//! are empty.

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
    /// Name of the file without `.cu`.
    pub name: &'static str,
    pub kind: ImageKind,
    pub bytes: &'static [u8],
}

/// The driver reads images where they lie.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
