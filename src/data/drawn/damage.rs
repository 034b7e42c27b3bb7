//! Photos of car panels with one kind of damage each: what the demo learns to tell apart.
//!
//! Scratches, dents and cracks come in the same paints, lights, places and sizes, and lines are lighter or darker than
//! the paint as often in the one class as in the other: what tells them apart is shape.

use super::panel::{faint, panel};
use super::strokes::{Look, Place, branching, parallel, star};
use super::surface::Surface;
use crate::base::rng::Dice;
use crate::data::image::Rgb;
use std::f32::consts::PI;

pub const CLASSES: [&str; 3] = ["crack", "dent", "scratch"];

/// How much is left of what surrounds the damage: photos are taken in a haze, so that a small model can see it.
const HAZE: f32 = 0.4;

/// Keeps these random numbers apart from others of the same seed.
const DAMAGE: u64 = 0x6461_6d61;

/// Photo `number` of the class `CLASSES[class]`, always the same for the same seed and size.
pub fn photo(class: usize, number: u64, seed: u64, width: usize, height: usize) -> Rgb {
    let ids = [DAMAGE, class as u64, number];
    let mut dice = Dice::new(seed, &ids);
    let mut panel = panel(width, height, seed, &ids, &mut dice);
    let (look, _) = panel.contrast(&mut dice);
    let bare = panel.photo();
    let aspect = panel.surface.aspect();
    let place = Place {
        x: aspect * dice.between(0.3, 0.7),
        y: dice.between(0.3, 0.7),
        length: dice.between(0.4, 0.85),
        angle: dice.between(0.0, PI),
        half_width: dice.between(0.0136, 0.0255),
    };
    match CLASSES[class] {
        "crack" => crack(&mut panel.surface, place, look, &mut dice),
        "dent" => dent(&mut panel.surface, place, &mut dice),
        _ => scratch(&mut panel.surface, place, look, &mut dice),
    }
    faint(panel.photo(), &bare, HAZE)
}

fn crack(surface: &mut Surface, place: Place, look: Look, dice: &mut Dice) {
    let paths = if dice.chance(0.5) { star(place, dice) } else { branching(place, dice) };
    surface.strokes(&paths, look);
}

fn scratch(surface: &mut Surface, place: Place, look: Look, dice: &mut Dice) {
    let n = 3 + dice.below(3);
    let mut paths = parallel(place, n, dice);
    // paint comes off in places only
    for path in &mut paths {
        let gap = dice.between(0.0, 1.0);
        let n = path.len() as f32;
        for (i, point) in path.iter_mut().enumerate() {
            let away = (i as f32 / n - gap).abs();
            point.cover = if away < 0.07 { 0.35 } else { 1.0 };
        }
    }
    surface.strokes(&paths, look);
}

fn dent(surface: &mut Surface, place: Place, dice: &mut Dice) {
    let lobes = 1 + dice.below(2);
    for lobe in 0..lobes {
        let (dx, dy) = if lobe == 0 { (0.0, 0.0) } else { (dice.between(-0.15, 0.15), dice.between(-0.12, 0.12)) };
        let radius = place.length * dice.between(0.28, 0.5);
        let radii = [radius, radius * dice.between(0.55, 1.0)];
        let steepness = -dice.between(0.55, 1.1) / lobes as f32;
        surface.bump([place.x + dx, place.y + dy], radii, place.angle + dice.between(-0.3, 0.3), steepness);
    }
}
