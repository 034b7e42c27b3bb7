//! Argument structs of `cuda/linear*.cu`, field for field. Addresses are u64; 0 is null.

use super::Dropout;
use crate::device::launcher::TensorMap;
use crate::ops::norm::NormArgs;
use crate::ops::qk_rope::QkRopeArgs;

/// Terms of a product at the most, and columns (or weights) that one launch may serve.
pub const PIECES: usize = 8;
pub const BANDS: usize = 4;
/// Gradients whose parts one launch adds up: dA, dB and dW.
pub const GRADIENTS: usize = 3;

crate::arguments! {
    /// What an adapter does not read of x; `from` 0: nothing.
    #[derive(Default, PartialEq)]
    pub struct LinearDropout {
        pub module: u64,
        pub from: u32,
        pub kept: f32,
    }
}

crate::arguments! {
    /// A term of the sum: left [m, depth] times right, [width, depth] (x W^T) or [depth, width] (dz W).
    #[derive(Default, PartialEq)]
    pub struct LinearPiece {
        pub left: u64,
        pub right: u64,
        pub left_stride: i64,
        pub right_stride: i64,
        /// Forward of left, backward of the product; `kept` multiplies only the latter.
        pub dropout: LinearDropout,
        pub depth: i32,
        /// 1: `rows` names the row of left for each row of the result.
        pub gathered: i32,
    }
}

crate::arguments! {
    /// Columns of the result that have their terms in common: pieces first..end.
    #[derive(Default, PartialEq)]
    pub struct LinearBand {
        pub bias: u64,
        pub column: i32,
        pub width: i32,
        pub first: i32,
        pub end: i32,
        /// After so many of its pieces the sum is multiplied by `scale`.
        pub scaled: i32,
        pub scale: f32,
    }
}

crate::arguments! {
    /// A product with what follows it.
    #[derive(Default, PartialEq)]
    pub struct LinearArgs {
        pub pieces: [LinearPiece; PIECES],
        pub bands: [LinearBand; BANDS],
        pub rows: u64,
        /// Keys of the rows of x.
        pub noise: u64,
        /// What is added after the activation, rows as `rows` says.
        pub added: u64,
        pub y: u64,
        pub z: u64,
        /// The sum in f32, instead of y.
        pub wide: u64,
        /// What each split sums, in f32, where something is left to add up.
        pub partial: u64,
        pub stride: i64,
        pub m: i32,
        pub n_bands: i32,
        pub activation: i32,
        /// 1: rows of y are those that `rows` says.
        pub scattered: i32,
        /// Split s sums `split_depth` elements of k of each band's last piece, from s split_depth on; the first also
        /// the pieces before. Where the last pieces differ, `splits` is that of the longest.
        pub splits: i32,
        pub split_depth: i32,
    }
}

crate::arguments! {
    /// A product whose operands come by bulk copies.
    pub struct LinearSm90Args {
        pub product: LinearArgs,
        pub left: [TensorMap; PIECES],
        pub right: [TensorMap; PIECES],
        pub y: [TensorMap; BANDS],
    }
}

crate::arguments! {
    /// A narrow product, whose right operand is several matrices of so many rows.
    pub struct LinearNarrowArgs {
        pub product: LinearSm90Args,
        pub widths: [i32; BANDS],
    }
}

crate::arguments! {
    /// A product of gate and up, with their SwiGLU.
    pub struct LinearGatedArgs {
        pub product: LinearSm90Args,
        pub swiglu: TensorMap,
    }
}

crate::arguments! {
    /// A product of few rows, with what follows it: 1 SwiGLU, 2 heads, 3 a norm of rows, as `cuda/linear_few_sm90.cu`
    /// numbers them.
    pub struct LinearFewArgs {
        pub product: LinearArgs,
        pub left: [TensorMap; PIECES],
        pub right: [TensorMap; PIECES],
        pub heads: QkRopeArgs,
        pub rows: NormArgs,
        pub swiglu: u64,
        pub counters: u64,
        pub following: i64,
    }
}

impl Default for LinearFewArgs {
    /// A product of nothing that nothing follows.
    fn default() -> LinearFewArgs {
        let nothing = [TensorMap([0; 16]); PIECES];
        LinearFewArgs {
            product: LinearArgs::default(),
            left: nothing,
            right: nothing,
            heads: QkRopeArgs::default(),
            rows: NormArgs::default(),
            swiglu: 0,
            counters: 0,
            following: 0,
        }
    }
}

crate::arguments! {
    /// Rows of a gradient that come from one weight: left^T right.
    #[derive(Default, PartialEq)]
    pub struct LinearGradientBand {
        pub left: u64,
        pub right: u64,
        pub gradient: u64,
        pub right_stride: i64,
        pub partial_at: i64,
        /// Of right; `scale` holds its `kept`.
        pub dropout: LinearDropout,
        pub height: i32,
        pub width: i32,
        pub scale: f32,
        pub gathered: i32,
    }
}

crate::arguments! {
    /// Gradients of weights that share their batch rows.
    #[derive(Default, PartialEq)]
    pub struct LinearGradientArgs {
        pub bands: [LinearGradientBand; BANDS],
        pub rows: u64,
        /// Keys of the rows of x.
        pub noise: u64,
        /// 0 where there is one split.
        pub partial: u64,
        pub left_stride: i64,
        /// Elements of one split.
        pub partial_size: i64,
        pub m: i32,
        pub n_bands: i32,
        pub splits: i32,
        pub split_rows: i32,
    }
}

crate::arguments! {
    /// Gradients whose batch rows were cut; of the others `partial_size` is 0.
    #[derive(Default)]
    pub struct LinearGradientSumArgs {
        pub gradients: [LinearGradientArgs; GRADIENTS],
    }
}

crate::arguments! {
    /// Gradients whose operands come by bulk copies: of each band, or of the first for all.
    pub struct LinearGradientSm90Args {
        pub gradients: LinearGradientArgs,
        pub left: [TensorMap; BANDS],
        pub right: [TensorMap; BANDS],
    }
}

crate::arguments! {
    /// dbias [n] += the sum of the rows of dz [m, ..].
    pub struct LinearBiasArgs {
        pub dz: u64,
        pub dbias: u64,
        pub stride: i64,
        pub m: i32,
        pub n: i32,
    }
}

crate::arguments! {
    /// dz [n] = act'(z) dy.
    pub struct LinearActivationArgs {
        pub z: u64,
        pub dy: u64,
        pub dz: u64,
        pub n: i64,
        pub activation: i32,
    }
}

crate::arguments! {
    /// to[rows[i]] += from[i], rows of `width`.
    pub struct LinearRowsArgs {
        pub from: u64,
        pub rows: u64,
        pub to: u64,
        pub m: i32,
        pub width: i32,
    }
}

impl LinearDropout {
    /// What `dropout` leaves out where the rows of x have keys.
    pub fn new(dropout: Option<Dropout>, keys: bool) -> LinearDropout {
        let of = |d: Dropout| LinearDropout { module: d.module, from: d.from(), kept: d.kept() };
        dropout.filter(|_| keys).map_or(LinearDropout { kept: 1.0, ..LinearDropout::default() }, of)
    }

    /// Whether anything is left out.
    pub fn drops(&self) -> bool {
        self.from > 0
    }
}

impl LinearArgs {
    /// Whether anything drops out.
    pub fn drops(&self) -> bool {
        self.pieces().any(|(_, piece, _)| piece.dropout.drops())
    }

    /// The bands that are there.
    pub fn bands(&self) -> &[LinearBand] {
        &self.bands[..self.n_bands as usize]
    }

    /// The pieces that are there, each with its band.
    pub fn pieces(&self) -> impl Iterator<Item = (usize, &LinearPiece, &LinearBand)> {
        let of = |band: &'_ LinearBand| band.first as usize..band.end as usize;
        self.bands().iter().flat_map(move |band| of(band).map(move |i| (i, &self.pieces[i], band)))
    }

    /// Appends columns whose terms are `pieces`, the first `scaled` of them multiplied by `scale`. None where one launch
    /// has no room for them.
    pub fn push(&mut self, band: LinearBand, pieces: &[LinearPiece]) -> Option<()> {
        let first = self.bands().last().map_or(0, |b| b.end as usize);
        self.pieces.get_mut(first..first + pieces.len())?.copy_from_slice(pieces);
        let end = (first + pieces.len()) as i32;
        *self.bands.get_mut(self.n_bands as usize)? = LinearBand { first: first as i32, end, ..band };
        self.n_bands += 1;
        Some(())
    }
}

impl LinearGradientArgs {
    /// The bands that are there.
    pub fn bands(&self) -> &[LinearGradientBand] {
        &self.bands[..self.n_bands as usize]
    }

    /// Bytes of the parts of all splits, where there are several.
    pub fn partial_bytes(&self) -> usize {
        if self.splits > 1 { size_of::<f32>() * self.splits as usize * self.partial_size as usize } else { 0 }
    }

    /// Appends the gradient of one weight. None where one launch has no room for it.
    pub fn push(&mut self, band: LinearGradientBand) -> Option<()> {
        let partial_at = self.partial_size;
        self.partial_size += i64::from(band.height) * i64::from(band.width);
        *self.bands.get_mut(self.n_bands as usize)? = LinearGradientBand { partial_at, ..band };
        self.n_bands += 1;
        Some(())
    }
}
