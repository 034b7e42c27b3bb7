//! The inverse DCT of libjpeg's jidctint.c ("islow"): Loeffler, Ligtenberg and Moschytz's factorisation in fixed point,
//! 13 bits for the constants and 2 more kept between the passes. Columns first, then rows; the rounding of both
//! passes is what makes the result equal, bit for bit.
//!
//! Sums wrap: a damaged file's coefficients may be anything.

use super::blocks::Block;
use multiversion::multiversion;
use std::num::Wrapping;

type Word = Wrapping<i32>;
/// Eight rows of eight.
type Square = [[Word; 8]; 8];

const BITS: usize = 13;
const KEPT: usize = 2;

const fn fixed(value: f64) -> Word {
    Wrapping((value * (1 << BITS) as f64 + 0.5) as i32)
}

const C_0_298: Word = fixed(0.298631336);
const C_0_390: Word = fixed(0.390180644);
const C_0_541: Word = fixed(0.541196100);
const C_0_765: Word = fixed(0.765366865);
const C_0_899: Word = fixed(0.899976223);
const C_1_175: Word = fixed(1.175875602);
const C_1_501: Word = fixed(1.501321110);
const C_1_847: Word = fixed(1.847759065);
const C_1_961: Word = fixed(1.961570560);
const C_2_053: Word = fixed(2.053119869);
const C_2_562: Word = fixed(2.562915447);
const C_3_072: Word = fixed(3.072711026);

/// One pass down every column, its result divided by 2^`shift` and rounded.
#[inline(always)]
fn pass(x: &mut Square, shift: usize) {
    let half = Wrapping(1 << (shift - 1));
    (0..8).for_each(|c| {
        let z1 = (x[2][c] + x[6][c]) * C_0_541;
        let even2 = z1 - x[6][c] * C_1_847;
        let even3 = z1 + x[2][c] * C_0_765;
        let even0 = (x[0][c] + x[4][c]) << BITS;
        let even1 = (x[0][c] - x[4][c]) << BITS;
        let even = [even0 + even3, even1 + even2, even1 - even2, even0 - even3];

        let (x7, x5, x3, x1) = (x[7][c], x[5][c], x[3][c], x[1][c]);
        let z5 = (x7 + x3 + x5 + x1) * C_1_175;
        let z1 = (x7 + x1) * C_0_899;
        let z2 = (x5 + x3) * C_2_562;
        let z3 = z5 - (x7 + x3) * C_1_961;
        let z4 = z5 - (x5 + x1) * C_0_390;
        let odd = [x1 * C_1_501 - z1 + z4, x3 * C_3_072 - z2 + z3, x5 * C_2_053 - z2 + z4, x7 * C_0_298 - z1 + z3];
        for i in 0..4 {
            x[i][c] = (even[i] + odd[i] + half) >> shift;
            x[7 - i][c] = (even[i] - odd[i] + half) >> shift;
        }
    });
}

#[inline(always)]
fn transposed(x: &Square) -> Square {
    std::array::from_fn(|r| std::array::from_fn(|c| x[c][r]))
}

fn level(value: i32) -> u8 {
    (value + 128).clamp(0, 255) as u8
}

/// The 8x8 samples of a block, written to the first 8 values of 8 rows, `stride` apart.
#[multiversion(targets("x86_64+avx2", "x86_64+sse4.1"))]
pub(super) fn block(coefficients: &Block, quant: &[u16; 64], out: &mut [u8], stride: usize) {
    let mut x: Square = std::array::from_fn(|r| {
        // 16 bits are kept of the product, as in libjpeg-turbo's vector code.
        std::array::from_fn(|c| {
            let product = i32::from(coefficients[8 * r + c]).wrapping_mul(quant[8 * r + c].into());
            Wrapping(i32::from(product as i16))
        })
    });
    pass(&mut x, BITS - KEPT);
    x = transposed(&x);
    pass(&mut x, BITS + KEPT + 3);
    x = transposed(&x);
    for (row, values) in out.chunks_mut(stride).zip(&x) {
        for (sample, value) in row.iter_mut().zip(values) {
            *sample = level(value.0);
        }
    }
}

/// [`block`] where all coefficients but the first are zero.
pub(super) fn flat(coefficient: i16, quant: u16, out: &mut [u8], stride: usize) {
    let product = i32::from(coefficient).wrapping_mul(quant.into());
    let value = level((i32::from(product as i16) * (1 << KEPT) + (1 << (KEPT + 2))) >> (KEPT + 3));
    for row in out.chunks_mut(stride).take(8) {
        row[..8].fill(value);
    }
}
