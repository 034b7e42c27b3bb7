//! Drawn photos: the same for the same seed, about shapes and not colours, with copies where the ledger says.

use std::collections::BTreeSet;
use vlm::base::Error;
use vlm::data::alike::{self, Print};
use vlm::data::drawn::damage::{CLASSES, photo};
use vlm::data::drawn::marks;
use vlm::data::drawn::photos::{Change, Planted, Set, write_set};
use vlm::data::image::{self, Rgb, resize};

#[test]
fn a_photo_follows_from_seed_class_number_and_size() {
    for (width, height) in [(96, 72), (1000, 667), (17, 40)] {
        let one = photo(0, 3, 7, width, height);
        assert_eq!((one.width, one.height, one.pixels.len()), (width, height, 3 * width * height));
        assert_eq!(one, photo(0, 3, 7, width, height));
    }
    let one = photo(0, 3, 7, 96, 72);
    for other in [photo(1, 3, 7, 96, 72), photo(0, 4, 7, 96, 72), photo(0, 3, 8, 96, 72)] {
        assert_ne!(one, other);
    }
}

/// Mean and deviation of each colour, and a histogram of 12 steps of each: what a look without shapes can use.
fn colours(picture: &Rgb) -> Vec<f64> {
    let n = picture.pixels.len() as f64 / 3.0;
    let mut features = Vec::new();
    for c in 0..3 {
        let values = || picture.pixels.iter().skip(c).step_by(3).map(|p| f64::from(*p) / 255.0);
        let mean = values().sum::<f64>() / n;
        features.extend([mean, (values().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt()]);
        let mut histogram = [0.0; 12];
        values().for_each(|v| histogram[((v * 12.0) as usize).min(11)] += 1.0 / n);
        features.extend(histogram);
    }
    features
}

/// The share that k nearest neighbours (k = 9, features scaled to deviation 1) get right.
fn nearest_neighbours(train: &[(Vec<f64>, usize)], test: &[(Vec<f64>, usize)]) -> f64 {
    let width = train[0].0.len();
    let scale: Vec<f64> = (0..width)
        .map(|f| {
            let mean = train.iter().map(|(x, _)| x[f]).sum::<f64>() / train.len() as f64;
            let variance = train.iter().map(|(x, _)| (x[f] - mean).powi(2)).sum::<f64>() / train.len() as f64;
            1.0 / variance.sqrt().max(1e-9)
        })
        .collect();
    let right = test.iter().filter(|(x, class)| {
        let mut near: Vec<(f64, usize)> =
            train.iter().map(|(y, of)| ((0..width).map(|f| ((x[f] - y[f]) * scale[f]).powi(2)).sum(), *of)).collect();
        near.sort_by(|a, b| a.0.total_cmp(&b.0));
        let votes = |of: usize| near.iter().take(9).filter(|(_, c)| *c == of).count();
        (0..3).max_by_key(|c| votes(*c)) == Some(*class)
    });
    right.count() as f64 / test.len() as f64
}

#[test]
fn colours_alone_do_not_tell_the_classes() {
    let draw = |from: u64, n: u64, tint: [f64; 3]| -> Vec<(Vec<f64>, usize)> {
        let of = |i: u64| {
            let class = (i % 3) as usize;
            let mut picture = photo(class, from + i, 1, 96, 72);
            picture.pixels.iter_mut().for_each(|p| *p = (f64::from(*p) * tint[class]) as u8);
            (colours(&picture), class)
        };
        (0..n).map(of).collect()
    };
    let means = |set: &[(Vec<f64>, usize)]| -> Vec<(Vec<f64>, usize)> {
        set.iter().map(|(x, c)| ([0, 14, 28].iter().map(|i| x[*i]).collect(), *c)).collect()
    };
    let plain = [1.0; 3];
    let (train, test) = (draw(0, 240, plain), draw(1000, 240, plain));
    for (what, score) in [
        ("mean colour", nearest_neighbours(&means(&train), &means(&test))),
        ("histograms", nearest_neighbours(&train, &test)),
    ] {
        assert!(score < 0.6, "{what}: {score}");
    }
    // the probe finds what is there: classes of different brightness
    let tint = [1.0, 0.6, 0.35];
    let score = nearest_neighbours(&draw(0, 240, tint), &draw(1000, 120, tint));
    assert!(score > 0.75, "{score}");
}

/// Of brightness, on a small grid.
fn correlation(a: &Rgb, b: &Rgb) -> f64 {
    let small = |p: &Rgb| -> Vec<f64> {
        let p = resize(p, 24, 32);
        let brightness: Vec<f64> =
            p.pixels.chunks_exact(3).map(|c| c.iter().map(|x| f64::from(*x)).sum::<f64>()).collect();
        let mean = brightness.iter().sum::<f64>() / brightness.len() as f64;
        brightness.into_iter().map(|x| x - mean).collect()
    };
    let (a, b) = (small(a), small(b));
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(p, q)| p * q).sum::<f64>();
    dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt()
}

#[test]
fn a_set_has_its_copies_where_the_ledger_says() {
    let dir = tempfile::tempdir().unwrap();
    let set = Set { train: 18, test: 9, planted: 6, width: 128, height: 96, seed: 5 };
    let mut last = (0, 0);
    let planted = write_set(dir.path(), &set, &mut |done, all| last = (done, all)).unwrap();
    assert_eq!(last, (33, 33));
    assert_eq!(planted.len(), 6);
    let list = |part: &str| -> Vec<String> {
        let of = |class: &&str| {
            let folder = format!("{part}/{class}");
            let names = std::fs::read_dir(dir.path().join(&folder)).unwrap();
            names.map(|e| format!("{folder}/{}", e.unwrap().file_name().to_str().unwrap())).collect::<Vec<_>>()
        };
        CLASSES.iter().flat_map(of).collect()
    };
    let (train, test) = (list("train"), list("test"));
    assert_eq!((train.len(), test.len()), (18, 15));
    let load = |path: &String| image::load(&dir.path().join(path)).unwrap();
    for Planted { train: original, test: copy, change } in &planted {
        assert_eq!(original.split('/').nth(1), copy.split('/').nth(1), "of the same class");
        let (original, copy) = (load(original), load(copy));
        assert_eq!((copy.width, copy.height), (128, 96));
        assert_ne!(original, copy);
        let alike = correlation(&original, &copy);
        // a crop of a tenth moves every edge by a few pixels
        let least = if matches!(change, Change::Crop(_)) { 0.6 } else { 0.97 };
        assert!(alike >= least, "{change:?}: {alike}");
    }
    // and nowhere else
    let copies: Vec<&String> = planted.iter().map(|p| &p.test).collect();
    for fresh in test.iter().filter(|t| !copies.contains(t)) {
        let picture = load(fresh);
        for other in &train {
            let alike = correlation(&picture, &load(other));
            assert!(alike < 0.97, "{fresh} {other}: {alike}");
        }
    }
    let again = tempfile::tempdir().unwrap();
    assert_eq!(write_set(again.path(), &set, &mut |_, _| ()).unwrap(), planted);
    assert_eq!(std::fs::read(again.path().join(&test[0])).unwrap(), std::fs::read(dir.path().join(&test[0])).unwrap());
}

/// Copies and crops are found by their pixels; between photos of one kind, drawn apart, nothing is.
#[test]
fn pixels_tell_copies_and_crops_from_other_photos() {
    let dir = tempfile::tempdir().unwrap();
    let set = Set { train: 120, test: 3, planted: 45, width: 128, height: 96, seed: 11 };
    let planted = write_set(dir.path(), &set, &mut |_, _| ()).unwrap();
    let print = |path: &str| Print::of(&image::load(&dir.path().join(path)).unwrap());
    let names = |part: &str, n: usize| {
        CLASSES.map(|c| (1..=n).map(|i| format!("{part}/{c}/{i:03}.jpg")).collect::<Vec<_>>()).concat()
    };
    let train: Vec<String> = names("train", 40);
    let originals: Vec<Print> = train.iter().map(|path| print(path)).collect();
    let copies: Vec<Print> = planted.iter().map(|p| print(&p.test)).collect();
    let all: Vec<&Print> = originals.iter().collect();
    assert_eq!(alike::pairs(&all), BTreeSet::new());
    let found = alike::pairs_between(&all, &copies.iter().collect::<Vec<_>>());
    let own = |at: &usize| train.iter().position(|path| *path == planted[*at].train).unwrap();
    let right = |crops: bool| {
        let of_kind = (0..planted.len()).filter(|at| matches!(planted[*at].change, Change::Crop(_)) == crops);
        let (n, found) =
            of_kind.fold((0, 0), |(n, hits), at| (n + 1, hits + usize::from(found.contains(&(own(&at), at)))));
        found as f64 / n as f64
    };
    assert!(right(true) >= 0.8 && right(false) >= 0.9, "of crops {:.2}, of others {:.2}", right(true), right(false));
    let wrong: Vec<_> = found.iter().filter(|(i, at)| *i != own(at)).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn more_copies_than_photos_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let set = Set { train: 3, test: 3, planted: 4, width: 32, height: 24, seed: 0 };
    let error = write_set(dir.path(), &set, &mut |_, _| ()).unwrap_err();
    assert!(matches!(error, Error::Usage(_)) && error.to_string().contains("4 photos"), "{error}");
}

#[test]
fn marks_have_answers_and_none_of_them_names_a_damage() {
    for number in 0..60 {
        let ground = if number % 2 == 0 { marks::Ground::Sheet } else { marks::Ground::Panel(1.0) };
        let marks::Marked { picture, turns, cells } = marks::picture(number, 1, ground, 64, 48);
        assert_eq!(picture.pixels.len(), 64 * 48 * 3);
        assert!((2..=5).contains(&turns.len()), "{turns:?}");
        // something was drawn, and it is somewhere
        assert!(cells.len() == 12 && cells.iter().any(|w| *w != "none"), "{cells:?}");
        assert_eq!(turns.iter().filter(|(question, _)| *question == "Which mark?").count(), 1);
        for (question, answer) in &turns {
            assert!(!answer.is_empty() && CLASSES.iter().all(|c| !answer.contains(c)), "{question} {answer}");
            if *question == "What is where?" {
                let words: Vec<&str> = answer.split(' ').collect();
                let letters: String = words.iter().step_by(2).copied().collect();
                assert_eq!((words.len(), letters.as_str()), (24, "abcdefghijkl"));
                assert!(words.iter().skip(1).step_by(2).eq(&cells), "{answer} {cells:?}");
            }
        }
    }
}
