//! Lines of every kind as paths, and how a path marks a surface.

use super::surface::{Colour, Surface, mix};
use crate::base::rng::Dice;
use std::f32::consts::{PI, TAU};

/// A point of a path. Lengths in picture heights.
#[derive(Debug, Clone, Copy)]
pub struct Point {
    pub x: f32,
    pub y: f32,
    /// Half of the line's width here.
    pub half_width: f32,
    /// How much of what is below it hides.
    pub cover: f32,
}

pub type Path = Vec<Point>;

/// How lines mark the surface.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    pub colour: Colour,
    pub opacity: f32,
    /// How steep the rims are.
    pub rim: f32,
}

/// Where a path lies and how large it is.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub x: f32,
    pub y: f32,
    pub length: f32,
    pub angle: f32,
    pub half_width: f32,
}

impl Place {
    /// A point at `along` of the length (from -1/2 to 1/2) and `aside` to its left.
    fn point(&self, along: f32, aside: f32, half_width: f32) -> Point {
        let (sin, cos) = self.angle.sin_cos();
        let (a, b) = (along * self.length, aside);
        Point { x: self.x + a * cos - b * sin, y: self.y + a * sin + b * cos, half_width, cover: 1.0 }
    }

    /// A path whose distance to the straight line is `aside` of the position, from -1/2 to 1/2; thin at the ends.
    fn path(&self, points: usize, aside: impl Fn(f32) -> f32) -> Path {
        let place = |i: usize| {
            let t = i as f32 / (points - 1) as f32 - 0.5;
            let taper = 1.0 - (2.0 * t).abs().powi(4) * 0.7;
            self.point(t, aside(t), self.half_width * taper)
        };
        (0..points).map(place).collect()
    }
}

/// Straight, or with one slight bend of at most `bend` of its length.
pub fn line(place: Place, bend: f32) -> Path {
    let bend = bend * place.length;
    place.path(16, |t| bend * (1.0 - 4.0 * t * t))
}

/// A sine of `waves` periods.
pub fn wave(place: Place, waves: f32, height: f32, phase: f32) -> Path {
    place.path(48, |t| height * (TAU * waves * t + phase).sin())
}

/// A walk of sharp turns to the one and the other side of its direction.
pub fn jagged(place: Place, dice: &mut Dice) -> Path {
    let turns = ((place.length / 0.07).round() as usize).clamp(3, 14);
    let mut side = if dice.chance(0.5) { 1.0 } else { -1.0 };
    let mut path = Path::new();
    for i in 0..=turns {
        let ends = i == 0 || i == turns;
        let jitter = if ends { 0.0 } else { dice.between(-0.25, 0.25) };
        let along = (i as f32 + jitter) / turns as f32 - 0.5;
        let aside = if ends { 0.0 } else { side * dice.between(0.015, 0.045) };
        let taper = if ends { 0.4 } else { dice.between(0.7, 1.2) };
        path.push(place.point(along, aside, place.half_width * taper));
        side = if dice.chance(0.85) { -side } else { side };
    }
    path
}

/// A jagged walk with one to three jagged branches.
pub fn branching(place: Place, dice: &mut Dice) -> Vec<Path> {
    let trunk = jagged(place, dice);
    let mut paths = Vec::new();
    for _ in 0..1 + dice.below(3) {
        let from = trunk[1 + dice.below(trunk.len() - 2)];
        let turn = dice.between(0.5, 1.1) * if dice.chance(0.5) { 1.0 } else { -1.0 };
        let length = place.length * dice.between(0.25, 0.5);
        let angle = place.angle + turn;
        let half_width = 0.8 * place.half_width;
        let (sin, cos) = angle.sin_cos();
        let centre = (from.x + 0.5 * length * cos, from.y + 0.5 * length * sin);
        paths.push(jagged(Place { x: centre.0, y: centre.1, length, angle, half_width }, dice));
    }
    paths.push(trunk);
    paths
}

/// Three to five jagged arms from one point.
pub fn star(place: Place, dice: &mut Dice) -> Vec<Path> {
    let arms = 3 + dice.below(3);
    let arm = |i: usize, dice: &mut Dice| {
        let angle = place.angle + TAU * (i as f32 + dice.between(-0.2, 0.2)) / arms as f32;
        let length = place.length * dice.between(0.35, 0.65);
        let (sin, cos) = angle.sin_cos();
        let (x, y) = (place.x + 0.5 * length * cos, place.y + 0.5 * length * sin);
        jagged(Place { x, y, length, angle, half_width: place.half_width }, dice)
    };
    (0..arms).map(|i| arm(i, dice)).collect()
}

/// A circle, `place.length` across, drawn out by `stretch` along its angle.
pub fn ring(place: Place, stretch: f32) -> Path {
    let around = |i: usize| {
        let (sin, cos) = (TAU * i as f32 / 40.0).sin_cos();
        place.point(0.5 * cos, 0.5 * place.length * stretch * sin, place.half_width)
    };
    (0..=40).map(around).collect()
}

/// A filled spot.
pub fn spot(place: Place) -> Path {
    let radius = 0.5 * place.length;
    let point = |along: f32| Point { half_width: radius, ..place.point(along, 0.0, radius) };
    vec![point(-0.05), point(0.05)]
}

/// Copies of a straight line side by side, as fingers or bristles leave them.
pub fn parallel(place: Place, n: usize, dice: &mut Dice) -> Vec<Path> {
    let bend = dice.between(-0.08, 0.08);
    let gap = dice.between(0.06, 0.1);
    let copy = |i: usize, dice: &mut Dice| {
        let aside = gap * (i as f32 - 0.5 * (n - 1) as f32) + dice.between(-0.008, 0.008);
        let (sin, cos) = place.angle.sin_cos();
        let slide = dice.between(-0.12, 0.12) * place.length;
        let x = place.x - aside * sin + slide * cos;
        let y = place.y + aside * cos + slide * sin;
        let length = place.length * if i == 0 { 1.0 } else { dice.between(0.5, 1.0) };
        let angle = place.angle + dice.between(-0.04, 0.04);
        let half_width = place.half_width * dice.between(0.7, 1.1);
        line(Place { x, y, length, angle, half_width }, bend)
    };
    (0..n).map(|i| copy(i, dice)).collect()
}

/// Angles in [0, PI), as lines have them, and their four names.
pub fn direction(angle: f32) -> &'static str {
    // y runs downwards: a positive angle falls
    match (angle.rem_euclid(PI) / (PI / 4.0)).round() as usize % 4 {
        0 => "flat",
        1 => "falling",
        2 => "upright",
        _ => "rising",
    }
}

impl Surface {
    /// Draws lines into the paint: their colour, their dullness, and slopes at their rims.
    pub fn strokes(&mut self, paths: &[Path], look: Look) {
        let cover = self.cover(paths);
        let (width, height) = (self.width, self.height);
        for (i, &c) in cover.iter().enumerate() {
            let (x, y) = (i % width, i / width);
            // the rim reaches a pixel beyond the line
            let (left, right) = (cover[i - x + x.saturating_sub(1)], cover[i - x + (x + 1).min(width - 1)]);
            let (above, below) = (cover[y.saturating_sub(1) * width + x], cover[(y + 1).min(height - 1) * width + x]);
            if c > 0.0 {
                self.paint[i] = mix(self.paint[i], look.colour, c * look.opacity);
                self.gloss[i] *= 1.0 - 0.8 * c * look.opacity;
            }
            self.slope[i][0] -= look.rim * (right - left);
            self.slope[i][1] -= look.rim * (below - above);
        }
    }

    /// How much of each pixel the lines cover: by distance to the nearest segment, soft over one pixel.
    fn cover(&self, paths: &[Path]) -> Vec<f32> {
        let unit = 1.0 / self.height as f32;
        let mut cover = vec![0.0f32; self.width * self.height];
        for pair in paths.iter().flat_map(|path| path.windows(2)) {
            let &[a, b] = pair else { continue };
            let reach = a.half_width.max(b.half_width) + unit;
            let pixels = |low: f32, high: f32, n: usize| {
                let first = ((low - reach) / unit).floor().max(0.0) as usize;
                first..(((high + reach) / unit).ceil().max(0.0) as usize).min(n)
            };
            let (dx, dy) = (b.x - a.x, b.y - a.y);
            let length2 = (dx * dx + dy * dy).max(1e-12);
            for j in pixels(a.y.min(b.y), a.y.max(b.y), self.height) {
                for i in pixels(a.x.min(b.x), a.x.max(b.x), self.width) {
                    let (x, y) = ((i as f32 + 0.5) * unit - a.x, (j as f32 + 0.5) * unit - a.y);
                    let t = ((x * dx + y * dy) / length2).clamp(0.0, 1.0);
                    let (ex, ey) = (x - t * dx, y - t * dy);
                    let distance = (ex * ex + ey * ey).sqrt();
                    let half_width = a.half_width + t * (b.half_width - a.half_width);
                    // a line thinner than a pixel covers the part of it that it is wide
                    let thin = (2.0 * half_width / unit).min(1.0);
                    let c = ((half_width - distance) / unit + 0.5).clamp(0.0, 1.0).min(thin);
                    let c = c * (a.cover + t * (b.cover - a.cover));
                    let at = &mut cover[j * self.width + i];
                    *at = at.max(c);
                }
            }
        }
        cover
    }
}
