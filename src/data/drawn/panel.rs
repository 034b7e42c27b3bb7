//! Painted panels as they are before anything happens to them: colour, shape, gaps, dirt, light and camera.

use super::strokes::{Look, Path, Place, Point, line};
use super::surface::{Camera, Clouds, Colour, Light, Surface, Window, brightness, mix, step};
use crate::base::rng::{Dice, Stream};
use crate::data::image::Rgb;

/// Paints, as linear light, and their names.
pub const PAINTS: [(&str, Colour); 8] = [
    ("white", [0.80, 0.80, 0.78]),
    ("silver", [0.45, 0.46, 0.48]),
    ("black", [0.035, 0.035, 0.04]),
    ("red", [0.50, 0.04, 0.04]),
    ("blue", [0.05, 0.12, 0.42]),
    ("green", [0.06, 0.26, 0.12]),
    ("yellow", [0.66, 0.45, 0.06]),
    ("brown", [0.24, 0.14, 0.08]),
];

/// A panel that waits for its damage, then for its photo.
pub struct Panel {
    pub surface: Surface,
    /// Which of [`PAINTS`].
    pub paint: usize,
    light: Light,
    camera: Camera,
    noise: Stream,
}

/// A random panel. `ids` keep its noise apart from that of others of the seed.
pub fn panel(width: usize, height: usize, seed: u64, ids: &[u64], dice: &mut Dice) -> Panel {
    let paint = dice.below(PAINTS.len());
    let tone = dice.between(0.75, 1.25);
    let colour = PAINTS[paint].1.map(|c| (c * tone * dice.between(0.9, 1.1)).min(0.9));
    let mut surface = Surface::new(width, height, colour, dice.between(0.12, 0.4));
    let noise = Stream::new(seed, &[ids, &[1]].concat());
    let clouds = Clouds::new(Stream::new(seed, &[ids, &[2]].concat()));
    curve(&mut surface, dice);
    if dice.chance(0.5) {
        fold(&mut surface, dice);
    }
    if dice.chance(0.35) {
        gap(&mut surface, colour, dice);
    }
    wear(&mut surface, &clouds, dice);
    Panel { light: light(surface.aspect(), dice), camera: camera(dice), surface, paint, noise }
}

/// A sheet of one paint in plain light: nothing is to be seen but what is drawn on it.
pub fn sheet(width: usize, height: usize, seed: u64, ids: &[u64], dice: &mut Dice) -> Panel {
    let paint = dice.below(PAINTS.len());
    let light = Light {
        ambient: 0.4,
        towards: [dice.between(-0.9, 0.9), dice.between(-1.1, -0.5), 0.8],
        colour: [1.0; 3],
        horizon: 0.0,
        softness: 1.0,
        ground: 0.0,
        sky: 0.0,
        windows: Vec::new(),
        throw: 0.0,
    };
    let camera = Camera { exposure: dice.between(0.6, 0.8), balance: [1.0; 3], vignette: 0.0, noise: 0.005 };
    let noise = Stream::new(seed, &[ids, &[1]].concat());
    Panel { surface: Surface::new(width, height, PAINTS[paint].1, 0.0), paint, light, camera, noise }
}

/// Gray paper in even light: a flat part of it has the value in the middle, which preprocessing turns into 0, so that
/// marks are all that a model sees.
pub fn paper(width: usize, height: usize, seed: u64, ids: &[u64], dice: &mut Dice) -> Panel {
    let mut sheet = sheet(width, height, seed, ids, dice);
    let gray = 0.22;
    sheet.surface.paint.fill([gray; 3]);
    let to = sheet.light.towards;
    let facing = to[2] / to.iter().map(|x| x * x).sum::<f32>().sqrt();
    sheet.camera.exposure = 0.25 / (gray * (sheet.light.ambient + facing));
    sheet
}

/// What `photo` shows beyond `bare` in full, and this part of `bare` itself, on gray.
pub fn faint(mut photo: Rgb, bare: &Rgb, part: f32) -> Rgb {
    for (p, bare) in photo.pixels.iter_mut().zip(&bare.pixels) {
        let (marked, bare) = (f32::from(*p), f32::from(*bare));
        *p = (127.5 + marked - bare + part * (bare - 127.5)).round().clamp(0.0, 255.0) as u8;
    }
    photo
}

impl Panel {
    pub fn photo(&self) -> Rgb {
        self.surface.picture(&self.light, &self.camera, self.noise)
    }

    /// What lies below paint or what fell on it: clearly lighter or darker than the paint. Which of the two is chance,
    /// as far as the paint leaves one.
    pub fn contrast(&self, dice: &mut Dice) -> (Look, Tone) {
        let paint = self.surface.paint[self.surface.paint.len() / 2];
        let tone = match brightness(paint) {
            dark if dark < 0.08 => Tone::Lighter,
            light if light > 0.45 => Tone::Darker,
            _ if dice.chance(0.5) => Tone::Lighter,
            _ => Tone::Darker,
        };
        let colour = match tone {
            Tone::Lighter => mix(paint, [0.85, 0.85, 0.83], dice.between(0.45, 0.9)),
            Tone::Darker => mix(paint, [0.02, 0.02, 0.02], dice.between(0.65, 0.95)),
        };
        (Look { colour, opacity: dice.between(0.75, 1.0), rim: dice.between(0.0, 0.25) }, tone)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    Lighter,
    Darker,
}

/// The panel's own bend, over the whole picture.
fn curve(surface: &mut Surface, dice: &mut Dice) {
    let [tilt_x, tilt_y] = [dice.between(-0.15, 0.15), dice.between(-0.2, 0.2)];
    let [bend_x, bend_y] = [dice.between(-0.15, 0.15), dice.between(-0.3, 0.3)];
    for (i, x, y) in surface.places() {
        surface.slope[i] = [tilt_x + bend_x * (x - 0.6), tilt_y + bend_y * (y - 0.5)];
    }
}

/// A line of the body's design: on either side the panel leans another way.
fn fold(surface: &mut Surface, dice: &mut Dice) {
    let (at, lean) = (dice.between(0.1, 0.9), dice.between(-0.25, 0.25));
    let (rise, soft) = (dice.between(-0.2, 0.2), dice.between(0.01, 0.08));
    for (i, x, y) in surface.places() {
        surface.slope[i][1] += lean * step(-soft, soft, y - at - rise * (x - 0.6));
    }
}

/// A gap to the next panel, from edge to edge, with another paint beyond it now and then.
fn gap(surface: &mut Surface, paint: Colour, dice: &mut Dice) {
    let aspect = surface.aspect();
    let upright = dice.chance(0.5);
    let near = if dice.chance(0.5) { dice.between(0.05, 0.2) } else { dice.between(0.8, 0.95) };
    let lean = dice.between(-0.12, 0.12);
    let beyond = match dice.below(3) {
        0 => [0.03, 0.03, 0.03],
        1 => paint.map(|c| 0.8 * c),
        _ => paint,
    };
    let side =
        |x: f32, y: f32| if upright { x / aspect - near - lean * (y - 0.5) } else { y - near - lean * (x - 0.6) };
    let outer = (near - 0.5).signum();
    for (i, x, y) in surface.places() {
        if side(x, y) * outer > 0.0 {
            surface.paint[i] = beyond;
        }
    }
    let half_width = dice.between(0.006, 0.014);
    let point = |x: f32, y: f32| Point { x, y, half_width, cover: 1.0 };
    let path: Path = if upright {
        let x = |y: f32| (near + lean * (y - 0.5)) * aspect;
        vec![point(x(-0.1), -0.1), point(x(1.1), 1.1)]
    } else {
        let y = |x: f32| near + lean * (x - 0.6);
        vec![point(-0.1, y(-0.1)), point(aspect + 0.1, y(aspect + 0.1))]
    };
    surface.strokes(&[path], Look { colour: [0.01, 0.01, 0.01], opacity: 0.95, rim: 0.15 });
}

/// Flakes of the paint, dirt, dust and hairlines: what every used car has.
fn wear(surface: &mut Surface, clouds: &Clouds, dice: &mut Dice) {
    let flakes = if dice.chance(0.4) { dice.between(0.02, 0.08) } else { 0.0 };
    let dirt = if dice.chance(0.5) { dice.between(0.1, 0.5) } else { 0.0 };
    let (scale, shift) = (dice.between(2.0, 5.0), dice.between(0.0, 20.0));
    let dust: Colour = [0.32, 0.26, 0.18];
    for (i, x, y) in surface.places() {
        if flakes > 0.0 {
            let flake = 1.0 + flakes * (2.0 * clouds.at(70.0 * x, 70.0 * y) - 1.0);
            surface.paint[i] = surface.paint[i].map(|c| c * flake);
        }
        if dirt > 0.0 {
            let fine = clouds.at(2.1 * scale * (x + 0.6 * y) + shift, 2.1 * scale * (y - 0.6 * x));
            let cloud = 0.7 * clouds.at(scale * x + shift, scale * y) + 0.3 * fine;
            let part = dirt * step(0.45, 0.8, cloud);
            surface.paint[i] = mix(surface.paint[i], dust, part);
            surface.gloss[i] *= 1.0 - part;
        }
    }
    let aspect = surface.aspect();
    let specks: Vec<Path> = (0..dice.below(9))
        .map(|_| {
            let (x, y) = (dice.between(0.0, aspect), dice.between(0.0, 1.0));
            let half_width = dice.between(0.003, 0.007);
            let point = Point { x, y, half_width, cover: 0.8 };
            vec![point, Point { x: x + 0.003, ..point }]
        })
        .collect();
    let speck = if dice.chance(0.5) { [0.5, 0.48, 0.44] } else { [0.05, 0.04, 0.03] };
    surface.strokes(&specks, Look { colour: speck, opacity: 0.8, rim: 0.0 });
    let hairlines: Vec<Path> = (0..dice.below(4))
        .map(|_| {
            let place = Place {
                x: dice.between(0.0, aspect),
                y: dice.between(0.0, 1.0),
                length: dice.between(0.1, 0.3),
                angle: dice.between(0.0, std::f32::consts::PI),
                half_width: 0.0015,
            };
            line(place, dice.between(-0.15, 0.15))
        })
        .collect();
    surface.strokes(&hairlines, Look { colour: [0.5, 0.5, 0.5], opacity: 0.2, rim: 0.0 });
}

fn light(aspect: f32, dice: &mut Dice) -> Light {
    let warmth = dice.between(-0.08, 0.08);
    let window = |dice: &mut Dice| Window {
        x: dice.between(-0.2, aspect + 0.2),
        y: dice.between(-0.1, 1.1),
        half_width: dice.between(0.05, 0.4),
        half_height: dice.between(0.03, 0.15),
        brightness: dice.between(0.15, 0.6),
    };
    Light {
        ambient: dice.between(0.25, 0.5),
        towards: [dice.between(-0.9, 0.9), dice.between(-1.1, 0.2), dice.between(0.5, 1.0)],
        colour: [1.0 + warmth, 1.0, 1.0 - warmth],
        horizon: dice.between(0.2, 0.8),
        softness: dice.between(0.03, 0.3),
        ground: dice.between(0.03, 0.2),
        sky: dice.between(0.4, 1.0),
        windows: (0..dice.below(3)).map(|_| window(dice)).collect(),
        throw: dice.between(0.5, 1.2),
    }
}

fn camera(dice: &mut Dice) -> Camera {
    Camera {
        exposure: dice.between(0.5, 0.85),
        balance: [dice.between(0.92, 1.08), 1.0, dice.between(0.92, 1.08)],
        vignette: dice.between(0.0, 0.4),
        noise: dice.between(0.005, 0.025),
    }
}
