//! The kernels as this program carries them: what build.rs made of `cuda/`.
//!
//! The generated file has `IMAGES`, the code for GPUs, and `EMULATORS`, pairs of a build's name (`plain`, `asan`, `race`)
//! and its shared library, whose functions are those of `cuda/emulator/api.h`. Without the compilers they are empty.
//! All of it is compressed, to a fifth of its size, and unpacked where it is used.

use crate::base::{Error, Result};
use flate2::bufread::ZlibDecoder;
use std::io::Read;

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

impl ImageKind {
    /// What a GPU of this compute capability runs: what was compiled for exactly this architecture, else the best that runs
    /// on it, else text that the driver compiles.
    pub fn of(capability: (i32, i32)) -> ImageKind {
        match capability {
            (9, 0) => ImageKind::Sm90a,
            (8, _) => ImageKind::Sm80,
            _ => ImageKind::Ptx80,
        }
    }
}

/// One compiled file.
#[derive(Debug, Clone, Copy)]
pub struct Image {
    /// Name of the file without `.cu`.
    pub name: &'static str,
    pub kind: ImageKind,
    pub packed: Packed,
}

/// Whether an image or a kernel of this name is one of conformance's, which tests alone launch.
pub fn is_of_conformance(name: &str) -> bool {
    name.starts_with("conformance")
}

/// A file, compressed.
#[derive(Debug, Clone, Copy)]
pub struct Packed {
    bytes: &'static [u8],
    unpacked_bytes: usize,
}

impl Packed {
    /// The file. Errors: the program is damaged, which a checksum tells.
    pub fn unpack(&self) -> Result<Vec<u8>> {
        let mut file = Vec::with_capacity(self.unpacked_bytes);
        match ZlibDecoder::new(self.bytes).read_to_end(&mut file) {
            Ok(n) if n == self.unpacked_bytes => Ok(file),
            _ => Err(Error::Unsupported(
                "the kernels in this program cannot be unpacked: its file is damaged; build or copy vlm anew".into(),
            )),
        }
    }
}

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// The kernels of an image's machine code, each with its instructions as text.
    fn kernels(disassembler: &str, image: &Image) -> Vec<(String, String)> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), image.packed.unpack().expect("whole")).expect("room");
        let done = Command::new(disassembler).arg("-c").arg(file.path()).output().expect("a disassembler");
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        assert!(done.status.success(), "{}: {}", image.name, String::from_utf8_lossy(&done.stderr));
        let parts = text.split("\n.text.").skip(1).filter_map(|part| part.split_once(":\n"));
        parts.map(|(name, code)| (name.to_string(), code.to_string())).collect()
    }

    /// Which instructions a kernel has to have: those of its products, those that bring their operands, of the large
    /// products those that take y away, and where the last block finishes what others left those of an arrival that
    /// releases and acquires, and where blocks add to sums in turn the wait and the addition.
    fn meant(kernel: &str) -> Vec<&'static str> {
        let tiles = ["_128x128_", "_64x64_", "_16x32_", "_sm90_"].iter().any(|tile| kernel.contains(tile));
        let padded = ["_w32_", "_w64_", "_w80_", "_w128_"].iter().any(|width| kernel.contains(width));
        let mut meant = match kernel.starts_with("linear_") && tiles || kernel.starts_with("attention_") && padded {
            true if kernel.contains("_sm90_") => vec!["HGMMA", "UTMALDG"],
            true => vec!["HMMA.16816.F32.BF16", "LDGSTS"],
            false => Vec::new(),
        };
        if ["linear_fwd_128x", "linear_fwd_narrow_", "linear_fwd_gated_", "linear_bwd_dx_"]
            .iter()
            .any(|p| kernel.starts_with(p))
            && kernel.contains("_sm90_")
        {
            meant.extend(["STSM", "UTMASTG"]);
        }
        if kernel.starts_with("linear_loss_fwd_") && kernel.contains("_sm90_") {
            meant.push("UTMASTG");
        }
        if kernel.starts_with("attention_bwd_w") && kernel.contains("_sm90_") {
            meant.extend(["STSM", "LD.E.STRONG.GPU", "UBLKRED.G.S.ADD.F32.RN", "UBLKCP.G.S"]);
            meant.extend(["MEMBAR.ALL.GPU", "ATOM.E.INC.STRONG.GPU"]);
        }
        if kernel.contains("_few_") || kernel.starts_with("attention_cached_") {
            meant.extend(["MEMBAR.ALL.GPU", "ATOM.E.INC.STRONG.GPU", "CCTL.IVALL"]);
        }
        meant
    }

    /// How often a kernel has an instruction while products are under way, and how often while none are, in the order of
    /// its text.
    fn under_products(code: &str, instruction: &str) -> (usize, usize) {
        let (mut groups, mut under, mut idle) = (0, 0, 0);
        for line in code.lines() {
            if line.contains("HGMMA") && line.contains("gsb0") {
                groups += 1;
            } else if let Some((_, left)) = line.split_once("WARPGROUP.DEPBAR.LE gsb0, 0x") {
                let left = left.split(' ').next().and_then(|digits| usize::from_str_radix(digits, 16).ok());
                groups = groups.min(left.expect("a number of groups"));
            } else if line.contains(instruction) {
                *(if groups > 0 { &mut under } else { &mut idle }) += 1;
            }
        }
        (under, idle)
    }

    #[test]
    fn what_was_packed_comes_out_whole_or_not_at_all() {
        // by Python's zlib
        static PACKED: &[u8] = &[120, 156, 75, 73, 205, 43, 209, 81, 72, 129, 147, 0, 47, 91, 5, 154];
        let unpack = |bytes, unpacked_bytes| Packed { bytes, unpacked_bytes }.unpack();
        assert_eq!(unpack(PACKED, 16).expect("whole"), b"dent, dent, dent");
        for at in 0..PACKED.len() {
            let mut damaged = PACKED.to_vec();
            damaged[at] ^= 4;
            for bytes in [&PACKED[..at], damaged.leak()] {
                let said = unpack(bytes, 16).expect_err("damaged").to_string();
                assert!(said.contains("its file is damaged"), "{at}: {said}");
            }
        }
        assert!(unpack(PACKED, 15).is_err() && unpack(PACKED, 17).is_err());
    }

    /// So it is enough to load them when a kernel of such a name is looked for.
    #[test]
    fn kernels_of_conformance_are_in_images_of_its_own() {
        for image in IMAGES {
            let bytes = image.packed.unpack().expect("whole");
            // sections of a cubin, entries of PTX
            let before: &[u8] = if image.kind == ImageKind::Ptx80 { b".entry " } else { b".text." };
            let names = bytes.windows(before.len() + 11).filter_map(|at| at.strip_prefix(before));
            let (of_it, others): (Vec<&[u8]>, _) = names.partition(|name| *name == b"conformance");
            let (of_it, others) = (of_it.len(), others.len());
            let right = if is_of_conformance(image.name) { of_it > 0 && others == 0 } else { of_it == 0 && others > 0 };
            assert!(right, "{}: {of_it} kernels of conformance and {others} others", image.name);
        }
    }

    #[test]
    fn machine_code_has_the_instructions_that_are_meant() {
        let disassembler = concat!(env!("CARGO_MANIFEST_DIR"), "/.cache/nvcc/bin/nvdisasm");
        if IMAGES.is_empty() || !std::path::Path::new(disassembler).exists() {
            return println!(
                "skipped: the kernels' machine code: tools/install-nvcc installs compiler and disassembler"
            );
        }
        let (mut hopper, mut older) = (0, 0);
        for image in IMAGES.iter().filter(|i| i.kind != ImageKind::Ptx80 && !is_of_conformance(i.name)) {
            for (kernel, code) in kernels(disassembler, image) {
                let wanted = meant(&kernel);
                let missing: Vec<_> = wanted.iter().filter(|instruction| !code.contains(**instruction)).collect();
                assert!(missing.is_empty(), "{kernel} has no {missing:?}");
                // registers that do not suffice go to local memory
                let local = code.lines().find(|line| line.contains(" LDL") || line.contains(" STL"));
                assert!(wanted.is_empty() || local.is_none(), "{kernel}: {local:?}");
                // ptxas moves waits up and arithmetic down where it may: what should run under products would wait for them.
                // Forward's first tile has no product to run under
                let parts = match kernel.as_str() {
                    name if !name.contains("_sm90_") => &[][..],
                    name if name.starts_with("attention_fwd_w") => &[("MUFU.EX2", 64, 66)],
                    name if name.starts_with("attention_bwd_w") => &[("MUFU.EX2", 32, 0), ("STSM", 4, 0)],
                    _ => &[],
                };
                for &(instruction, at_least, at_most) in parts {
                    let (under, idle) = under_products(&code, instruction);
                    let said = format!("{kernel}: {under} {instruction} under products, {idle} under none");
                    assert!(under >= at_least && idle <= at_most, "{said}");
                }
                hopper += usize::from(wanted.first() == Some(&"HGMMA"));
                older += usize::from(wanted.first() == Some(&"HMMA.16816.F32.BF16"));
            }
        }
        // four of attention, the others of linear; both of each width and tile
        assert!(hopper >= 30 && older >= 30, "{hopper} of Hopper's, {older} others");
    }
}
