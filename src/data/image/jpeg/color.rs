//! Channels to RGB: the fixed-point arithmetic of libjpeg's jdcolor.c, and for four channels that of Pillow's
//! Convert.c, which takes every such file to be inverted, as Adobe's programs write them.

use super::super::Rgb;
use super::blocks::Samples;
use super::segments::Frame;
use super::upsample::{Room, Upsampled};
use multiversion::multiversion;
use rayon::prelude::*;

/// What the channels of a file are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Color {
    Gray,
    Rgb,
    YCbCr,
    Cmyk,
    /// CMYK whose first three channels are turned into YCbCr.
    Ycck,
}

pub(super) fn to_rgb(frame: &Frame, samples: &[Samples], color: Color) -> Rgb {
    let pairs = frame.components.iter().zip(samples);
    let channels: Vec<Upsampled> =
        pairs.map(|(component, samples)| Upsampled::new(frame, component, samples)).collect();
    let mut pixels = vec![0; frame.height * frame.width * 3];
    let rows = pixels.par_chunks_exact_mut(frame.width * 3).enumerate();
    rows.for_each_init(<[Room; 4]>::default, |[a, b, c, d], (y, out)| match channels.as_slice() {
        [gray] => {
            for (pixel, &value) in out.as_chunks_mut::<3>().0.iter_mut().zip(gray.row(y, a)) {
                *pixel = [value; 3];
            }
        }
        [first, second, third] => three(color, first.row(y, a), second.row(y, b), third.row(y, c), out),
        [first, second, third, black] => {
            // YCCK's three channels give inverted CMY where RGB is expected.
            let rgb = if color == Color::Ycck { Color::YCbCr } else { Color::Rgb };
            three(rgb, first.row(y, a), second.row(y, b), third.row(y, c), out);
            for (pixel, &black) in out.as_chunks_mut::<3>().0.iter_mut().zip(black.row(y, d)) {
                *pixel = pixel.map(|ink| mixed(if color == Color::Ycck { ink } else { 255 - ink }, black));
            }
        }
        _ => {}
    });
    Rgb { width: frame.width, height: frame.height, pixels }
}

/// Pillow's cmyk2rgb: what `ink` leaves of `light`, the inverse of black.
fn mixed(ink: u8, light: u8) -> u8 {
    let product = u32::from(ink) * u32::from(light) + 128;
    light - (((product >> 8) + product) >> 8) as u8
}

const fn fixed(value: f64) -> i32 {
    (value * 65536.0 + 0.5) as i32
}

/// One row of three channels; each has at least as many samples as `out` has pixels.
#[multiversion(targets("x86_64+avx2", "x86_64+sse4.1"))]
fn three(color: Color, first: &[u8], second: &[u8], third: &[u8], out: &mut [u8]) {
    let pixels = out.as_chunks_mut::<3>().0;
    let values = first.iter().zip(second).zip(third).map(|((&a, &b), &c)| (a, b, c));
    if color == Color::Rgb {
        for (pixel, (r, g, b)) in pixels.iter_mut().zip(values) {
            *pixel = [r, g, b];
        }
        return;
    }
    const HALF: i32 = 1 << 15;
    for (pixel, (luma, cb, cr)) in pixels.iter_mut().zip(values) {
        let (luma, cb, cr) = (i32::from(luma), i32::from(cb) - 128, i32::from(cr) - 128);
        let r = luma + ((fixed(1.402) * cr + HALF) >> 16);
        let g = luma + ((HALF - fixed(0.34414) * cb - fixed(0.71414) * cr) >> 16);
        let b = luma + ((fixed(1.772) * cb + HALF) >> 16);
        *pixel = [r, g, b].map(|value| value.clamp(0, 255) as u8);
    }
}
