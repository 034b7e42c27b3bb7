//! A painted surface as a map of slopes, paint and gloss, and the light that makes a picture of it.
//!
//! Lengths are in picture heights: x from 0 to width / height, y from 0 (top) to 1.

use crate::base::rng::Stream;
use crate::data::image::Rgb;

pub type Colour = [f32; 3];

/// Per pixel, row by row.
pub struct Surface {
    pub width: usize,
    pub height: usize,
    /// Rise of the surface per length along x and y.
    pub slope: Vec<[f32; 2]>,
    /// Part of the light that is given back, in [0, 1].
    pub paint: Vec<Colour>,
    /// Part of the surroundings that is mirrored.
    pub gloss: Vec<f32>,
}

/// Where light comes from, and what is mirrored.
pub struct Light {
    pub ambient: f32,
    /// Towards the lamp; any length.
    pub towards: [f32; 3],
    pub colour: Colour,
    /// The mirrored horizon: its place, how soft it is, the brightness below and above.
    pub horizon: f32,
    pub softness: f32,
    pub ground: f32,
    pub sky: f32,
    /// Mirrored windows and lamps.
    pub windows: Vec<Window>,
    /// How far a slope moves what is mirrored.
    pub throw: f32,
}

/// A bright rectangle with soft edges among what is mirrored.
pub struct Window {
    pub x: f32,
    pub y: f32,
    pub half_width: f32,
    pub half_height: f32,
    pub brightness: f32,
}

/// What the camera adds.
pub struct Camera {
    pub exposure: f32,
    pub balance: Colour,
    /// How much darker the corners are.
    pub vignette: f32,
    /// Standard deviation of the noise of one pixel, of 1.
    pub noise: f32,
}

/// 0 below `from`, 1 above `to`, smooth between.
pub fn step(from: f32, to: f32, x: f32) -> f32 {
    let t = ((x - from) / (to - from)).clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

pub fn mix(a: Colour, b: Colour, part: f32) -> Colour {
    [0, 1, 2].map(|c| a[c] + (b[c] - a[c]) * part)
}

pub fn brightness(c: Colour) -> f32 {
    0.3 * c[0] + 0.59 * c[1] + 0.11 * c[2]
}

impl Surface {
    pub fn new(width: usize, height: usize, paint: Colour, gloss: f32) -> Surface {
        let n = width * height;
        Surface { width, height, slope: vec![[0.0; 2]; n], paint: vec![paint; n], gloss: vec![gloss; n] }
    }

    pub fn aspect(&self) -> f32 {
        self.width as f32 / self.height as f32
    }

    /// Every pixel's number and place.
    pub fn places(&self) -> impl Iterator<Item = (usize, f32, f32)> + use<> {
        let (width, height) = (self.width, self.height);
        let unit = 1.0 / height as f32;
        (0..width * height).map(move |i| (i, ((i % width) as f32 + 0.5) * unit, ((i / width) as f32 + 0.5) * unit))
    }

    /// A smooth bump of an ellipse's outline: height falls from the middle as (1 - r^2)^2. `steepness` is about its
    /// largest slope, negative for a hollow.
    pub fn bump(&mut self, at: [f32; 2], radii: [f32; 2], angle: f32, steepness: f32) {
        let (sin, cos) = angle.sin_cos();
        let reach = radii[0].max(radii[1]);
        for (i, x, y) in self.places() {
            let (dx, dy) = (x - at[0], y - at[1]);
            if dx.abs() > reach || dy.abs() > reach {
                continue;
            }
            let u = (dx * cos + dy * sin) / radii[0];
            let v = (dy * cos - dx * sin) / radii[1];
            let inside = 1.0 - u * u - v * v;
            if inside > 0.0 {
                // height is h (1 - r^2)^2 with the smaller radius for h: slopes do not depend on the size
                let k = -4.0 * inside * steepness * radii[0].min(radii[1]);
                let (du, dv) = (k * u / radii[0], k * v / radii[1]);
                self.slope[i][0] += du * cos - dv * sin;
                self.slope[i][1] += du * sin + dv * cos;
            }
        }
    }

    /// The picture. `noise` gives the camera's noise.
    pub fn picture(&self, light: &Light, camera: &Camera, noise: Stream) -> Rgb {
        let length = light.towards.iter().map(|x| x * x).sum::<f32>().sqrt();
        let to = light.towards.map(|x| x / length);
        let aspect = self.aspect();
        let mut grain = vec![0.0; self.width * self.height];
        noise.fill_normal(0, &mut grain);
        let mut pixels = Vec::with_capacity(self.width * self.height * 3);
        for (i, x, y) in self.places() {
            let [sx, sy] = self.slope[i];
            let facing = (to[2] - sx * to[0] - sy * to[1]) / (1.0 + sx * sx + sy * sy).sqrt();
            let lit = light.ambient + facing.max(0.0);
            let mirrored = self.gloss[i] * light.mirrored(x + light.throw * sx, y + light.throw * sy);
            let (across, down) = (x / aspect - 0.5, y - 0.5);
            let dim = camera.exposure * (1.0 - camera.vignette * 2.0 * (across * across + down * down));
            for c in 0..3 {
                let linear = dim * camera.balance[c] * (self.paint[i][c] * lit * light.colour[c] + mirrored);
                let seen = linear.max(0.0).sqrt() + camera.noise * grain[i];
                pixels.push((255.0 * seen).clamp(0.0, 255.0).round() as u8);
            }
        }
        Rgb { width: self.width, height: self.height, pixels }
    }
}

impl Light {
    fn mirrored(&self, x: f32, y: f32) -> f32 {
        let above = step(self.horizon + self.softness, self.horizon - self.softness, y);
        let mut seen = self.ground + (self.sky - self.ground) * above;
        for w in &self.windows {
            let edge = 0.6 * w.half_width.min(w.half_height);
            let inside = |distance: f32, half: f32| step(half + edge, half - edge, distance.abs());
            seen += w.brightness * inside(x - w.x, w.half_width) * inside(y - w.y, w.half_height);
        }
        seen
    }
}

/// Smooth noise in [0, 1]: random numbers on a grid, and a smooth course between them.
pub struct Clouds {
    grid: Vec<f32>,
}

/// Sides of the grid, which repeats.
const CELLS: usize = 32;

impl Clouds {
    pub fn new(random: Stream) -> Clouds {
        Clouds { grid: (0..(CELLS * CELLS) as u64).map(|i| random.uniform(i)).collect() }
    }

    /// At a place counted in cells.
    pub fn at(&self, x: f32, y: f32) -> f32 {
        let (left, top) = (x.floor(), y.floor());
        let (u, v) = (step(0.0, 1.0, x - left), step(0.0, 1.0, y - top));
        let cell = |dx: i64, dy: i64| {
            let wrap = |at: f32, d: i64| (at as i64 + d).rem_euclid(CELLS as i64) as usize;
            self.grid[wrap(top, dy) * CELLS + wrap(left, dx)]
        };
        let upper = cell(0, 0) + (cell(1, 0) - cell(0, 0)) * u;
        let lower = cell(0, 1) + (cell(1, 1) - cell(0, 1)) * u;
        upper + (lower - upper) * v
    }
}
