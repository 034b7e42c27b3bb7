//! Marks on panels, and questions about them with their answers: what is in each cell of a grid, which mark it is, how
//! many, where, which way, how dark, on which paint. A model that learns these learns to see shapes, and none of the
//! words for damage.

use super::panel::{PAINTS, Tone, faint, panel, paper, sheet};
use super::strokes::{Path, Place, branching, direction, jagged, line, parallel, ring, spot, star, wave};
use super::surface::Surface;
use crate::base::rng::Dice;
use crate::data::image::Rgb;
use std::f32::consts::PI;

/// Keeps these random numbers apart from others of the same seed.
const MARKS: u64 = 0x6d61_726b;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Line,
    Wave,
    Zigzag,
    Fork,
    Star,
    Ring,
    Spot,
    Hill,
    Ridge,
    Hollow,
    Stripes,
}

const KINDS: [(Kind, &str); 11] = [
    (Kind::Line, "line"),
    (Kind::Wave, "wave"),
    (Kind::Zigzag, "zigzag"),
    (Kind::Fork, "fork"),
    (Kind::Star, "star"),
    (Kind::Ring, "ring"),
    (Kind::Spot, "spot"),
    (Kind::Hill, "hill"),
    (Kind::Ridge, "ridge"),
    (Kind::Hollow, "hollow"),
    (Kind::Stripes, "stripes"),
];
/// Those that are on every ground; the others come with the haze.
const FIRST_KINDS: usize = 10;

/// The grid of the first question: twelve cells, each what one image token of a 128 x 96 picture covers.
const GRID: [usize; 2] = [3, 4];
/// A line shorter than this within a cell is not there, in picture heights.
const SHORTEST: f32 = 0.06;
/// Directions that differ more than this within a cell are a bend: the length of their mean as double angles.
const STRAIGHT: f32 = 0.9;

const ROWS: [&str; 3] = ["top", "middle", "bottom"];
const COLUMNS: [&str; 3] = ["left", "centre", "right"];
const NUMBERS: [&str; 3] = ["one", "two", "three"];

/// What marks are drawn on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ground {
    /// Gray paper: bold marks, one each, and nothing else.
    Paper,
    /// A plain sheet: bold marks, one each, to begin with.
    Sheet,
    /// A car panel with this part, from 0 to 1, of what may be seen on one: 0 is gray paper. Lines are bolder the less it
    /// is.
    Panel(f32),
    /// The same with one mark, of all kinds.
    Haze(f32),
}

/// A question and its answer.
pub type Turn = (&'static str, String);

/// A drawn picture and what it shows.
pub struct Marked {
    pub picture: Rgb,
    /// Up to five questions in random order; which mark it is is always among them.
    pub turns: Vec<Turn>,
    /// What is in each cell of a grid of 4 x 3, row by row.
    pub cells: Vec<&'static str>,
}

/// Picture `number`, always the same for the same seed and size.
pub fn picture(number: u64, seed: u64, on: Ground, width: usize, height: usize) -> Marked {
    let ids = [MARKS, number];
    let mut dice = Dice::new(seed, &ids);
    let mut panel = match on {
        Ground::Paper => paper(width, height, seed, &ids, &mut dice),
        Ground::Sheet => sheet(width, height, seed, &ids, &mut dice),
        Ground::Panel(_) | Ground::Haze(_) => panel(width, height, seed, &ids, &mut dice),
    };
    let (look, tone) = panel.contrast(&mut dice);
    let kinds = if matches!(on, Ground::Haze(_)) { KINDS.len() } else { FIRST_KINDS };
    let (kind, name) = KINDS[dice.below(kinds)];
    let (n, bold) = match on {
        Ground::Paper | Ground::Sheet => (1, 2.0),
        Ground::Panel(part) => ([1, 1, 1, 2, 3][dice.below(5)], 2.0 - part),
        Ground::Haze(part) => (1, 2.0 - part),
    };
    let aspect = panel.surface.aspect();
    let angle = dice.between(0.0, PI);
    let (column, row) = (dice.below(3), dice.below(3));
    let half_width = bold * dice.between(0.01, 0.018);
    let flat = panel.surface.slope.clone();
    let bare = match on {
        Ground::Panel(part) | Ground::Haze(part) => Some((panel.photo(), part)),
        Ground::Paper | Ground::Sheet => None,
    };
    let mut lines = Vec::new();
    for i in 0..n {
        // one mark anywhere; more of them in columns of their own, from the one that was drawn on
        let column = (column + i) % 3;
        let row = if i == 0 { row } else { dice.below(3) };
        let cell = |at: usize, dice: &mut Dice| (at as f32 + dice.between(0.3, 0.7)) / 3.0;
        let place = Place {
            x: aspect * cell(column, &mut dice),
            y: cell(row, &mut dice),
            length: dice.between(0.4, 0.9) / if n == 1 { 1.0 } else { 1.5 },
            angle: angle + dice.between(-0.1, 0.1),
            half_width,
        };
        if let Some(paths) = mark(kind, &mut panel.surface, place, &mut dice) {
            lines.extend(paths);
        }
    }
    let cells = cells(&panel.surface, &flat, &lines, kind, name);
    panel.surface.strokes(&lines, look);
    let mut others = vec![("How many?", NUMBERS[n - 1]), ("Which paint?", PAINTS[panel.paint].0)];
    if matches!(kind, Kind::Line | Kind::Wave | Kind::Zigzag | Kind::Ridge | Kind::Stripes) {
        others.push(("Which way?", direction(angle)));
    }
    if !matches!(kind, Kind::Hill | Kind::Ridge | Kind::Hollow) {
        others.push(("Lighter or darker?", if tone == Tone::Lighter { "lighter" } else { "darker" }));
    }
    let mut turns: Vec<Turn> = others.into_iter().map(|(question, answer)| (question, answer.to_string())).collect();
    if n == 1 {
        turns.push(("Where?", format!("{} {}", ROWS[row], COLUMNS[column])));
    }
    for last in (1..turns.len()).rev() {
        turns.swap(last, dice.below(last + 1));
    }
    turns.truncate(3);
    turns.insert(dice.below(turns.len() + 1), ("Which mark?", name.to_string()));
    if dice.chance(0.6) {
        let named = ('a'..).zip(&cells).map(|(cell, word)| format!("{cell} {word}"));
        turns.insert(0, ("What is where?", named.collect::<Vec<_>>().join(" ")));
    }
    let picture = match bare {
        Some((bare, part)) => faint(panel.photo(), &bare, part),
        None => panel.photo(),
    };
    Marked { picture, turns, cells }
}

/// The lines of a mark; None where it is a shape of the surface, which is then there.
fn mark(kind: Kind, surface: &mut Surface, place: Place, dice: &mut Dice) -> Option<Vec<Path>> {
    let paths = match kind {
        Kind::Line => vec![line(place, dice.between(-0.12, 0.12))],
        Kind::Wave => {
            let (waves, height) = (place.length * dice.between(3.0, 6.0), dice.between(0.025, 0.05));
            vec![wave(place, waves, height, dice.between(0.0, 2.0 * PI))]
        }
        Kind::Zigzag => vec![jagged(place, dice)],
        Kind::Fork => branching(place, dice),
        Kind::Stripes => {
            let n = 3 + dice.below(3);
            parallel(place, n, dice)
        }
        Kind::Star => star(Place { length: 0.8 * place.length, ..place }, dice),
        Kind::Ring => vec![ring(Place { length: 0.6 * place.length, ..place }, dice.between(0.7, 1.0))],
        Kind::Spot => vec![spot(Place { length: 0.3 * place.length, ..place })],
        Kind::Hill | Kind::Ridge | Kind::Hollow => {
            let radius = 0.45 * place.length;
            let flat = if kind == Kind::Ridge { dice.between(0.2, 0.35) } else { dice.between(0.75, 1.0) };
            let steepness = dice.between(0.5, 1.1) * if kind == Kind::Hollow { -1.0 } else { 1.0 };
            surface.bump([place.x, place.y], [radius, radius * flat], place.angle, steepness);
            return None;
        }
    };
    Some(paths)
}

/// What is in each cell. `flat` are the surface's slopes without the marks.
fn cells(surface: &Surface, flat: &[[f32; 2]], lines: &[Path], kind: Kind, name: &'static str) -> Vec<&'static str> {
    let [rows, columns] = GRID;
    let aspect = surface.aspect();
    let cell = |x: f32, y: f32| {
        let inside = (0.0..aspect).contains(&x) && (0.0..1.0).contains(&y);
        inside.then(|| (y * rows as f32) as usize * columns + (x / aspect * columns as f32) as usize)
    };
    // of lines the length and the sum of double angles, of bumps the slope
    let mut found = vec![[0.0f32; 4]; rows * columns];
    for pair in lines.iter().flat_map(|path| path.windows(2)) {
        let &[a, b] = pair else { continue };
        let (dx, dy) = (b.x - a.x, b.y - a.y);
        let length = (dx * dx + dy * dy).sqrt();
        let double = 2.0 * dy.atan2(dx);
        let pieces = (length / 0.01).ceil().max(1.0);
        for i in 0..pieces as usize {
            let t = (i as f32 + 0.5) / pieces;
            if let Some(at) = cell(a.x + t * dx, a.y + t * dy) {
                let piece = length / pieces;
                found[at][0] += piece;
                found[at][1] += piece * double.cos();
                found[at][2] += piece * double.sin();
            }
        }
    }
    for (i, x, y) in surface.places() {
        if let Some(at) = cell(x, y) {
            let change = [0, 1].map(|d| surface.slope[i][d] - flat[i][d]);
            found[at][3] += (change[0] * change[0] + change[1] * change[1]).sqrt();
        }
    }
    let pixels = flat.len() as f32 / found.len() as f32;
    let word = |[length, cos, sin, slope]: [f32; 4]| match kind {
        Kind::Hill | Kind::Ridge | Kind::Hollow => {
            if slope / pixels > 0.05 {
                name
            } else {
                "none"
            }
        }
        Kind::Spot => {
            if length > 0.0 {
                name
            } else {
                "none"
            }
        }
        _ if length < SHORTEST => "none",
        _ if (cos * cos + sin * sin).sqrt() < STRAIGHT * length => "bend",
        _ => direction(0.5 * sin.atan2(cos)),
    };
    found.into_iter().map(word).collect()
}
