//! Where tokens and patches are: M-RoPE positions, the angles of both rotaries, and the interpolation of the tower's
//! position table. Semantics: transformers `models/qwen3_vl/modeling_qwen3_vl.py` (get_rope_index,
//! apply_interleaved_mrope, rot_pos_emb, fast_pos_embed_interpolate), checked against 4.57 and 5.17.

use super::config::{TextConfig, VISION_ROPE_THETA, VisionConfig};
use crate::base::{Error, Result};

/// Time, height and width position of one token.
pub type Position = [i32; 3];

/// The positions of a sequence's tokens, and what to add to a later token's index to get its position.
///
/// Text advances all three axes by one. An image of merged grid h x w gives its tokens (p, p + row, p + column) and
/// advances by max(h, w). `is_image` marks image tokens; `merged` lists each image's merged grid in order.
pub fn text_positions(is_image: &[bool], merged: &[[usize; 2]]) -> Result<(Vec<Position>, i32)> {
    let mut positions = Vec::with_capacity(is_image.len());
    let (mut p, mut t, mut images) = (0i32, 0, merged.iter());
    let mismatch = |got: String| Error::Contract {
        op: "positions",
        argument: "image tokens",
        wanted: format!("{} in all", merged.iter().map(|[h, w]| h * w).sum::<usize>()),
        got,
    };
    while t < is_image.len() {
        if !is_image[t] {
            positions.push([p; 3]);
            (p, t) = (p + 1, t + 1);
            continue;
        }
        let Some([h, w]) = images.next() else { return Err(mismatch(format!("a surplus at token {t}"))) };
        let run = is_image.get(t..t + h * w);
        if !run.is_some_and(|run| run.iter().all(|i| *i)) {
            return Err(mismatch(format!("a shorter run at token {t}")));
        }
        for row in 0..*h as i32 {
            positions.extend((0..*w as i32).map(|column| [p, p + row, p + column]));
        }
        (p, t) = (p + (*h).max(*w) as i32, t + h * w);
    }
    if images.next().is_some() {
        return Err(mismatch(is_image.iter().filter(|i| **i).count().to_string()));
    }
    let next = positions.iter().flatten().max().map_or(0, |m| m + 1);
    Ok((positions, next - is_image.len() as i32))
}

/// The E/2 frequencies of a rotary: each the axis whose position it multiplies, and the frequency.
pub struct Frequencies(Vec<(usize, f32)>);

impl Frequencies {
    /// Interleaved M-RoPE: frequency j turns with height where j % 3 = 1 and j < 3 section[1], with width where
    /// j % 3 = 2 and j < 3 section[2], else with time.
    pub fn text(config: &TextConfig) -> Frequencies {
        let section = config.mrope_section;
        let axis = |j: usize| match j % 3 {
            axis @ 1..=2 if j < 3 * section[axis] => axis,
            _ => 0,
        };
        let half = config.head_dim / 2;
        Frequencies((0..half).map(|j| (axis(j), frequency(config.rope_theta, 2 * j, config.head_dim))).collect())
    }

    /// The tower's 2-D rotary: the first half of the frequencies turns with the row, the second with the column.
    pub fn vision(config: &VisionConfig) -> Frequencies {
        let quarter = config.head_dim() / 4;
        let axis = |axis| (0..quarter).map(move |i| (axis, frequency(VISION_ROPE_THETA, 2 * i, 2 * quarter)));
        Frequencies(axis(0).chain(axis(1)).collect())
    }

    /// Rows of cos of all angles, then sin: [T, E]. The angle is one f32 product, as in the reference; its cosine is
    /// rounded once.
    pub fn angles<const AXES: usize>(&self, positions: &[[i32; AXES]]) -> Vec<f32> {
        let mut table = Vec::with_capacity(positions.len() * 2 * self.0.len());
        for p in positions {
            let angle = |(axis, f): &(usize, f32)| (p[*axis] as f32 * f) as f64;
            table.extend(self.0.iter().map(|f| angle(f).cos() as f32));
            table.extend(self.0.iter().map(|f| angle(f).sin() as f32));
        }
        table
    }
}

/// theta^(-i / width), through f32 as the reference computes it.
fn frequency(theta: f64, i: usize, width: usize) -> f32 {
    let exponent = i as f32 / width as f32;
    1.0 / (theta.powf(exponent as f64) as f32)
}

/// Row and column of each patch of a grid [t, h, w], in the order of `pixel_values`: blocks of merge x merge.
pub fn patch_coordinates(grid: [usize; 3], merge: usize) -> Vec<[i32; 2]> {
    let [t, h, w] = grid;
    let mut one = Vec::with_capacity(t * h * w);
    for block_row in 0..h / merge {
        for block_column in 0..w / merge {
            for row in 0..merge {
                for column in 0..merge {
                    one.push([(block_row * merge + row) as i32, (block_column * merge + column) as i32]);
                }
            }
        }
    }
    one.repeat(t)
}

/// For each patch the four rows of the side x side position table around it, and their shares: bilinear with the
/// corners of grid and table aligned.
pub fn position_corners(grid: [usize; 3], merge: usize, side: usize) -> (Vec<i32>, Vec<f32>) {
    let along = |i: i32, n: usize| {
        let at = if n > 1 { i as f64 * (side - 1) as f64 / (n - 1) as f64 } else { 0.0 };
        let low = at as usize;
        (low, (low + 1).min(side - 1), (at - low as f64) as f32)
    };
    let (mut corners, mut shares) = (Vec::new(), Vec::new());
    for [row, column] in patch_coordinates(grid, merge) {
        let (y0, y1, dy) = along(row, grid[1]);
        let (x0, x1, dx) = along(column, grid[2]);
        corners.extend([y0 * side + x0, y0 * side + x1, y1 * side + x0, y1 * side + x1].map(|c| c as i32));
        shares.extend([(1.0 - dy) * (1.0 - dx), (1.0 - dy) * dx, dy * (1.0 - dx), dy * dx]);
    }
    (corners, shares)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_example() {
        // 4 text, a merged 2 x 3 image, 4 text, a merged 1 x 1 image, 2 text
        let is_image: Vec<bool> = "ttttiiiiiittttitt".chars().map(|c| c == 'i').collect();
        let (positions, delta) = text_positions(&is_image, &[[2, 3], [1, 1]]).unwrap();
        let same = |p: i32| [p; 3];
        let want = [
            vec![same(0), same(1), same(2), same(3)],
            vec![[4, 4, 4], [4, 4, 5], [4, 4, 6], [4, 5, 4], [4, 5, 5], [4, 5, 6]],
            vec![same(7), same(8), same(9), same(10), same(11), same(12), same(13)],
        ];
        assert_eq!(positions, want.concat());
        assert_eq!(delta, -3);
    }

    #[test]
    fn image_tokens_must_match_their_grids() {
        assert!(text_positions(&[true, true], &[[1, 3]]).is_err());
        assert!(text_positions(&[true, true, false], &[[1, 3]]).is_err());
        assert!(text_positions(&[true, true], &[]).is_err());
        assert!(text_positions(&[false], &[[1, 1]]).is_err());
        assert_eq!(text_positions(&[], &[]).unwrap(), (vec![], 0));
    }

    #[test]
    fn the_position_table_is_met_at_its_corners() {
        // rows of the documented example, for a table of 48: h = 6 gives 0, 9.4, 18.8, 28.2, 37.6, 47
        let (corners, shares) = position_corners([1, 6, 2], 2, 48);
        let coordinates = patch_coordinates([1, 6, 2], 2);
        for (i, [row, column]) in coordinates.iter().enumerate() {
            let want = 47.0 * *row as f64 / 5.0;
            assert_eq!(corners[4 * i] / 48, want as i32);
            assert_eq!(corners[4 * i] % 48, 47 * column);
            let below: f32 = shares[4 * i + 2..4 * i + 4].iter().sum();
            assert!((below as f64 - want.fract()).abs() < 1e-6);
        }
        assert_eq!(&coordinates[..6], &[[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]]);
    }
}
