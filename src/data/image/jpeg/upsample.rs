//! Rows of a channel at the picture's width: libjpeg's "fancy" upsampling (jdsample.c), a triangle filter with the
//! weights 3/4 and 1/4 in each direction that is halved. Its rounding alternates, so that no bias builds up. Other
//! ratios repeat samples.

use super::blocks::Samples;
use super::segments::{Component, Frame};

#[derive(Clone, Copy)]
enum Ratio {
    Full,
    /// Half as wide.
    Half,
    /// Half as high.
    HalfHeight,
    /// Half as wide and half as high.
    Quarter,
    /// Each sample `.0` times across and `.1` times down.
    Repeat(usize, usize),
}

/// One channel, and how its rows are brought to the picture's width.
pub(super) struct Upsampled<'a> {
    samples: &'a Samples,
    width: usize,
    height: usize,
    ratio: Ratio,
}

impl<'a> Upsampled<'a> {
    pub fn new(frame: &Frame, component: &Component, samples: &'a Samples) -> Self {
        let ratio = match (frame.max_h / component.h, frame.max_v / component.v) {
            (1, 1) => Ratio::Full,
            // As in libjpeg: the filter needs three samples in a row.
            (2, 1) if component.width > 2 => Ratio::Half,
            (2, 2) if component.width > 2 => Ratio::Quarter,
            (1, 2) => Ratio::HalfHeight,
            (across, down) => Ratio::Repeat(across, down),
        };
        Upsampled { samples, width: component.width, height: component.height, ratio }
    }

    fn input(&self, y: usize) -> &'a [u8] {
        &self.samples.values[y * self.samples.stride..][..self.width]
    }

    /// Row `y` of the picture; `room` may be used to hold it. Returns at least the picture's width of samples.
    pub fn row<'r>(&self, y: usize, room: &'r mut Room) -> &'r [u8]
    where
        'a: 'r,
    {
        match self.ratio {
            Ratio::Full => return self.input(y),
            Ratio::Half => {
                room.row.resize(2 * self.width, 0);
                half(self.input(y), &mut room.row);
            }
            Ratio::HalfHeight => {
                room.row.resize(self.width, 0);
                let (near, far) = self.neighbours(y);
                let rounding = if y.is_multiple_of(2) { 1 } else { 2 };
                for ((out, &near), &far) in room.row.iter_mut().zip(near).zip(far) {
                    *out = ((u16::from(near) * 3 + u16::from(far) + rounding) >> 2) as u8;
                }
            }
            Ratio::Quarter => {
                let (near, far) = self.neighbours(y);
                room.sums.clear();
                room.sums.extend(near.iter().zip(far).map(|(&near, &far)| u16::from(near) * 3 + u16::from(far)));
                room.row.resize(2 * self.width, 0);
                quarter(&room.sums, &mut room.row);
            }
            Ratio::Repeat(across, down) => {
                room.row.clear();
                room.row.extend(self.input(y / down).iter().flat_map(|&s| std::iter::repeat_n(s, across)));
            }
        }
        &room.row
    }

    /// The row of half height that row `y` lies in, and the one it leans to, which at the edge is the same.
    fn neighbours(&self, y: usize) -> (&'a [u8], &'a [u8]) {
        let near = y / 2;
        let far = if y.is_multiple_of(2) { near.saturating_sub(1) } else { (near + 1).min(self.height - 1) };
        (self.input(near), self.input(far))
    }
}

/// Memory for one row of one channel.
#[derive(Default)]
pub(super) struct Room {
    row: Vec<u8>,
    sums: Vec<u16>,
}

/// `out` is twice as long; the input has at least three samples.
fn half(input: &[u8], out: &mut [u8]) {
    let last = input.len() - 1;
    let at = |i: usize| u16::from(input[i]);
    out[0] = input[0];
    out[1] = ((at(0) * 3 + at(1) + 2) >> 2) as u8;
    for (three, pair) in input.windows(3).zip(out[2..].chunks_exact_mut(2)) {
        let near = u16::from(three[1]) * 3;
        pair[0] = ((near + u16::from(three[0]) + 1) >> 2) as u8;
        pair[1] = ((near + u16::from(three[2]) + 2) >> 2) as u8;
    }
    out[2 * last] = ((at(last) * 3 + at(last - 1) + 1) >> 2) as u8;
    out[2 * last + 1] = input[last];
}

/// As [`half`], on sums of two rows with the weights 3 and 1.
fn quarter(sums: &[u16], out: &mut [u8]) {
    let last = sums.len() - 1;
    out[0] = ((sums[0] * 4 + 8) >> 4) as u8;
    out[1] = ((sums[0] * 3 + sums[1] + 7) >> 4) as u8;
    for (three, pair) in sums.windows(3).zip(out[2..].chunks_exact_mut(2)) {
        let near = three[1] * 3;
        pair[0] = ((near + three[0] + 8) >> 4) as u8;
        pair[1] = ((near + three[2] + 7) >> 4) as u8;
    }
    out[2 * last] = ((sums[last] * 3 + sums[last - 1] + 8) >> 4) as u8;
    out[2 * last + 1] = ((sums[last] * 4 + 7) >> 4) as u8;
}
