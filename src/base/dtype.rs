//! Element types, and the precision that a computation stores its activations in.

use half::{bf16, f16};
use multiversion::multiversion;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// How the elements of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    F32,
    Bf16,
    F16,
    F64,
    I32,
    I64,
    U8,
}

impl DType {
    pub fn bytes(self) -> usize {
        match self {
            DType::F64 | DType::I64 => 8,
            DType::F32 | DType::I32 => 4,
            DType::Bf16 | DType::F16 => 2,
            DType::U8 => 1,
        }
    }

    /// The type of that name in a safetensors header; None for those that this program does not read.
    pub fn from_safetensors_name(name: &str) -> Option<Self> {
        use DType::*;
        [F32, Bf16, F16, F64, I32, I64, U8].into_iter().find(|dtype| dtype.safetensors_name() == name)
    }

    /// The name as it stands in a safetensors header.
    pub fn safetensors_name(self) -> &'static str {
        match self {
            DType::F32 => "F32",
            DType::Bf16 => "BF16",
            DType::F16 => "F16",
            DType::F64 => "F64",
            DType::I32 => "I32",
            DType::I64 => "I64",
            DType::U8 => "U8",
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.safetensors_name().to_lowercase())
    }
}

/// What activations and weights are stored in while computing. Sums are f32 in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    F32,
    Bf16,
}

impl Precision {
    /// Of a computation whose activations are stored in this type.
    pub fn of(activations: DType) -> Precision {
        if activations == DType::Bf16 { Precision::Bf16 } else { Precision::F32 }
    }

    pub fn dtype(self) -> DType {
        match self {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::Bf16,
        }
    }

    /// `x` as it is after being stored: the rounding point of every contract.
    #[inline]
    pub fn round(self, x: f32) -> f32 {
        match self {
            Precision::F32 => x,
            Precision::Bf16 => bf16::from_f32(x).to_f32(),
        }
    }
}

/// Numbers as bf16, rounded to the nearest, ties to even; NaN stays NaN. `bytes` holds two for each.
pub fn narrow_bf16(wide: &[f32], bytes: &mut [u8]) {
    /// What a thread takes at a time.
    const PART: usize = 1 << 18;
    match wide.len() <= PART {
        true => narrow_bf16_part(wide, bytes),
        false => wide.par_chunks(PART).zip(bytes.par_chunks_mut(2 * PART)).for_each(|(x, o)| narrow_bf16_part(x, o)),
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn narrow_bf16_part(wide: &[f32], bytes: &mut [u8]) {
    for (o, x) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(wide) {
        // as half's bf16::from_f32, in a form that the compiler turns into vector instructions
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        let quiet = bits >> 16 | 0x40;
        let high = if bits & 0x7fff_ffff > 0x7f80_0000 { quiet } else { rounded };
        *o = (high as u16).to_le_bytes();
    }
}

/// Stored elements as f32, rounded as a computation in `precision` stores them. Borrows where nothing changes.
/// `bytes` holds whole elements of a floating `dtype`; an integer type is a caller's mistake.
pub fn widened(dtype: DType, bytes: &[u8], precision: Precision) -> Cow<'_, [f32]> {
    let rounds = precision == Precision::Bf16 && dtype != DType::Bf16;
    if dtype == DType::F32
        && !rounds
        && let Ok(values) = bytemuck::try_cast_slice(bytes)
    {
        return Cow::Borrowed(values);
    }
    let mut out = vec![0.0; bytes.len() / dtype.bytes()];
    assert!(widen(dtype, bytes, &mut out).is_some(), "{dtype} holds no fractions");
    if rounds {
        out.iter_mut().for_each(|x| *x = precision.round(*x));
    }
    Cow::Owned(out)
}

/// Widens stored elements to f32. `bytes` holds whole elements of a floating `dtype`; None for the integer types.
pub fn widen(dtype: DType, bytes: &[u8], out: &mut [f32]) -> Option<()> {
    debug_assert_eq!(bytes.len(), out.len() * dtype.bytes());
    match dtype {
        DType::F32 => {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *o = f32::from_le_bytes(*b);
            }
        }
        DType::Bf16 => {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *o = f32::from_bits((u16::from_le_bytes(*b) as u32) << 16);
            }
        }
        DType::F16 => {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *o = f16::from_le_bytes(*b).to_f32();
            }
        }
        DType::F64 => {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks::<8>().0) {
                *o = f64::from_le_bytes(*b) as f32;
            }
        }
        DType::I32 | DType::I64 | DType::U8 => return None,
    }
    Some(())
}

/// The first of some numbers that is NaN or infinite.
pub fn not_finite(values: &[f32]) -> Option<f32> {
    // within a part nothing stops early, so that the compiler can look at several at a time
    let some = |part: &&[f32]| !part.iter().fold(true, |all, x| all & x.is_finite());
    values.chunks(1 << 10).find(some)?.iter().copied().find(|x| !x.is_finite())
}

/// The first of stored elements that is NaN or infinite; looked for on all cores. None for the integer types.
pub fn stored_not_finite(dtype: DType, bytes: &[u8]) -> Option<f32> {
    const PART: usize = 1 << 18;
    bytes.par_chunks(PART * dtype.bytes()).find_map_first(|part| {
        let mut wide = vec![0.0; part.len() / dtype.bytes()];
        widen(dtype, part, &mut wide)?;
        not_finite(&wide)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_number_that_is_not_finite_is_found_wherever_it_stands() {
        let mut values = vec![f32::MAX; 3000];
        assert_eq!(not_finite(&values), None);
        for at in [2999, 1024, 1023, 0] {
            values[at] = at as f32 * f32::INFINITY;
            assert_eq!(not_finite(&values).map(f32::to_bits), Some(values[at].to_bits()), "{at}");
        }
    }

    #[test]
    fn narrowing_is_halfs() {
        // every pattern of the half that stays, with lower halves below, on and above a tie
        let patterns =
            (0..=0xffffu32).flat_map(|high| [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map(|low| high << 16 | low));
        let wide: Vec<f32> = patterns.map(f32::from_bits).collect();
        let mut bytes = vec![0; 2 * wide.len()];
        narrow_bf16(&wide, &mut bytes);
        for (x, got) in wide.iter().zip(bytes.as_chunks::<2>().0) {
            assert_eq!(u16::from_le_bytes(*got), bf16::from_f32(*x).to_bits(), "{:#010x}", x.to_bits());
        }
    }
}
