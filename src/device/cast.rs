//! Rounding f32 masters to their bf16 shadows: `cuda/cast.cu`.

use super::launcher::Launch;

crate::arguments! {
    /// x [n] f32 becomes y [n] bf16.
    pub struct CastArgs {
        pub x: u64,
        pub y: u64,
        pub n: u64,
    }
}

/// Threads of a block; each rounds [`EACH`] numbers at a time.
const THREADS: u32 = 256;
const EACH: u64 = 4;
/// More blocks than this go round again.
const MOST_BLOCKS: u64 = 1 << 16;

impl CastArgs {
    pub(super) fn plan(x: u64, y: u64, n: u64) -> (CastArgs, Launch) {
        let blocks = n.div_ceil(EACH * u64::from(THREADS)).min(MOST_BLOCKS) as u32;
        (CastArgs { x, y, n }, Launch::of("cast_fwd_bf16", blocks, THREADS))
    }
}
