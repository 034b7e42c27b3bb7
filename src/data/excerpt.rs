//! Whether a photo shows a part of another, without a model: a crop, in whatever size, brightness or quality it was saved.
//!
//! Windows of the one are held against the whole of the other by the correlation of brightness on a grid, which takes out
//! what is brighter or has more contrast. A coarse grid over a few windows tells where it might lie; from the best of them
//! the window is moved, made wider and narrower as long as a finer grid agrees better; a still finer one decides, by
//! brightness and by its steps. After template matching by normalised cross-correlation, as in J. P. Lewis, "Fast Normalized
//! Cross-Correlation" (1995), with a search by halved steps in place of every window.
//!
//! Of 417 photos of things on a white board, and crops of them that left 80 to 95 % of each side, 99 of 100 were found; of
//! the 86,736 pairs of these photos one was, which is a photo that is there twice.

use super::alike::{FLAT, across, at_length_one, dot, less_mean, luma};
use super::image::{self, Rgb};

/// Points a side of what is kept of a photo.
const SIDE: usize = 64;
/// Cells a side of the grids: of the one that looks for a window, that moves it, that decides.
const COARSE: usize = 8;
const MIDDLE: usize = 16;
const FINE: usize = 32;
/// The windows that are looked at: so many places of each size, along either side.
const SIZES: [(f32, usize); 3] = [(1.0, 1), (0.92, 2), (0.83, 3)];
/// A part has at least this much of each side.
const LEAST_SIZE: f32 = 0.78;
/// How far a window is moved at first, and at last.
const FIRST_MOVE: f32 = 0.04;
const LAST_MOVE: f32 = 0.004;
/// The least correlations: to go on with the best window, and to be a part, of brightness and of its steps.
const LEAST_COARSE: f64 = 0.9;
const LEAST_SHAPE: f64 = 0.95;
const LEAST_STEPS: f64 = 0.9;

/// Left, top, width and height, as parts of the photo's sides.
type Window = [f32; 4];
const WHOLE: Window = [0.0, 0.0, 1.0, 1.0];

/// What is kept of a photo.
#[derive(Debug, Clone, PartialEq)]
pub struct Map {
    /// Brightness [SIDE, SIDE].
    points: Vec<u8>,
    /// Of the coarse grid's cells.
    coarse: Vec<f32>,
}

/// A photo made ready to be held against many.
pub struct Whole {
    sums: Sums,
    /// With their coarse grids.
    windows: Vec<(Window, Vec<f32>)>,
}

impl Map {
    pub fn of(picture: &Rgb) -> Map {
        let small = image::resize(picture, SIDE, SIDE);
        let points: Vec<u8> = luma(&small).map(|v| v.round() as u8).collect();
        let coarse = Sums::of(&points).grid(WHOLE, COARSE).0;
        Map { points, coarse }
    }
}

impl Whole {
    pub fn of(map: &Map) -> Whole {
        let place =
            |(size, n): (f32, usize)| (0..n).map(move |i| ((1.0 - size) * i as f32 / (n.max(2) - 1) as f32, size));
        let places: Vec<(f32, f32)> = SIZES.into_iter().flat_map(place).collect();
        let sums = Sums::of(&map.points);
        let window = |(x, w): (f32, f32)| places.iter().map(move |(y, h)| [x, *y, w, *h]);
        let windows =
            places.iter().copied().flat_map(window).map(|window| (window, sums.grid(window, COARSE).0)).collect();
        Whole { sums, windows }
    }

    /// Whether the photo of `part` shows a part of this one, or all of it.
    pub fn has(&self, part: &Map) -> bool {
        let scored = self.windows.iter().map(|(window, grid)| (dot(grid, &part.coarse), *window));
        let Some((score, window)) = scored.max_by(|a, b| a.0.total_cmp(&b.0)) else { return false };
        if score < LEAST_COARSE {
            return false;
        }
        let sums = Sums::of(&part.points);
        let (fine, deviation) = sums.grid(WHOLE, FINE);
        if deviation < FLAT {
            return false;
        }
        let found = self.sums.grid(self.moved(window, &sums.grid(WHOLE, MIDDLE).0), FINE).0;
        dot(&found, &fine) >= LEAST_SHAPE && dot(&steps(&found), &steps(&fine)) >= LEAST_STEPS
    }

    /// The window from which no small change leads to one that is more like `part`.
    fn moved(&self, mut window: Window, part: &[f32]) -> Window {
        let mut best = dot(&self.sums.grid(window, MIDDLE).0, part);
        let mut by = FIRST_MOVE;
        while by > LAST_MOVE {
            let before = best;
            for (axis, by) in (0..4).flat_map(|axis| [(axis, -by), (axis, by)]) {
                let to = changed(window, axis, by);
                let score = dot(&self.sums.grid(to, MIDDLE).0, part);
                if score > best {
                    (best, window) = (score, to);
                }
            }
            if best == before {
                by /= 2.0;
            }
        }
        window
    }
}

/// The window moved along an axis (0, 1), or made wider or higher around its middle (2, 3), within the photo.
fn changed(window: Window, axis: usize, by: f32) -> Window {
    let mut to = window;
    to[axis] += by;
    if axis >= 2 {
        to[axis - 2] -= by / 2.0;
    }
    for side in [0, 1] {
        to[side + 2] = to[side + 2].clamp(LEAST_SIZE, 1.0);
        to[side] = to[side].clamp(0.0, 1.0 - to[side + 2]);
    }
    to
}

/// Differences of neighbours across and down in the finest grid, at length 1.
fn steps(grid: &[f32]) -> Vec<f32> {
    let down = grid.iter().zip(&grid[FINE..]).map(|(above, below)| below - above);
    let mut all: Vec<f32> = across(grid, FINE).chain(down).collect();
    at_length_one(&mut all);
    all
}

/// Brightness less its mean, summed over all points above and left of each corner [SIDE + 1, SIDE + 1]: what is in a
/// rectangle follows from four of them.
struct Sums(Vec<f32>);

impl Sums {
    const WIDTH: usize = SIDE + 1;

    fn of(points: &[u8]) -> Sums {
        let mean = points.iter().map(|v| f32::from(*v)).sum::<f32>() / points.len() as f32;
        let mut sums = vec![0.0; Self::WIDTH * Self::WIDTH];
        for (y, row) in points.chunks_exact(SIDE).enumerate() {
            let mut left = 0.0;
            for (x, v) in row.iter().enumerate() {
                left += f32::from(*v) - mean;
                sums[(y + 1) * Self::WIDTH + x + 1] = sums[y * Self::WIDTH + x + 1] + left;
            }
        }
        Sums(sums)
    }

    /// The brightness of n x n cells of a window, less their mean, at length 1; and their deviation.
    fn grid(&self, [x, y, width, height]: Window, n: usize) -> (Vec<f32>, f32) {
        let edge = |from: f32, size: f32, i: usize| {
            let at = ((from + size * i as f32 / n as f32) * SIDE as f32).clamp(0.0, SIDE as f32);
            let point = (at as usize).min(SIDE - 1);
            (point, at - point as f32)
        };
        let columns: Vec<(usize, f32)> = (0..=n).map(|i| edge(x, width, i)).collect();
        let between = |a: f32, b: f32, part: f32| a + part * (b - a);
        let corners: Vec<f32> = (0..=n)
            .flat_map(|i| {
                let (row, part) = edge(y, height, i);
                let (above, below) = (&self.0[row * Self::WIDTH..], &self.0[(row + 1) * Self::WIDTH..]);
                columns.iter().map(move |(c, across)| {
                    let [above, below] = [above, below].map(|row| between(row[*c], row[c + 1], *across));
                    between(above, below, part)
                })
            })
            .collect();
        let rows = corners.chunks_exact(n + 1);
        let mut cells: Vec<f32> = rows
            .clone()
            .zip(rows.skip(1))
            .flat_map(|(up, down)| (0..n).map(|c| down[c + 1] - down[c] - up[c + 1] + up[c]))
            .collect();
        less_mean(&mut cells);
        let points_each = width * height * (SIDE * SIDE) as f32 / (n * n) as f32;
        let deviation = at_length_one(&mut cells) / (points_each * n as f32);
        (cells, deviation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Brightness 2 x + y: the grid of a window is that of the whole, at length 1, and its deviation follows from the sides.
    #[test]
    fn a_grid_has_the_means_of_its_cells() {
        let points: Vec<u8> = (0..SIDE * SIDE).map(|i| (2 * (i % SIDE) + i / SIDE) as u8).collect();
        let sums = Sums::of(&points);
        let (whole, _) = sums.grid(WHOLE, 4);
        for window in [[0.1, 0.05, 0.5, 0.5], [0.33, 0.41, 0.37, 0.37]] {
            let (grid, deviation) = sums.grid(window, 4);
            // linear but at the points themselves, which are steps of 1 and 2
            assert!(whole.iter().zip(&grid).all(|(a, b)| (a - b).abs() < 0.02), "{grid:?}");
            // of cells in a row and in a column: of places -1.5, -0.5, 0.5, 1.5 the variance is 1.25
            let cell = window[2] * SIDE as f32 / 4.0;
            let wanted = (1.25f32 * (4.0 + 1.0)).sqrt() * cell;
            assert!((deviation / wanted - 1.0).abs() < 0.05, "{deviation} and not {wanted}");
        }
    }

    #[test]
    fn windows_stay_within_the_photo() {
        for axis in 0..4 {
            for by in [-0.3, 0.3] {
                let [x, y, w, h] = changed([0.1, 0.0, 0.85, 0.9], axis, by);
                assert!(x >= 0.0 && y >= 0.0 && x + w <= 1.0 && y + h <= 1.0, "{axis} {by}");
                assert!(w >= LEAST_SIZE && h >= LEAST_SIZE);
            }
        }
    }
}
