//! Near-duplicates: embeddings against transformers', thresholds by hand, leaks found and removed.

use crate::data_split::picture;
use crate::support::close::assert_within;
use crate::support::tiny::cases;
use serde_json::json;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use vlm::base::Precision;
use vlm::base::rng::Stream;
use vlm::data::dataset::OnBad;
use vlm::data::image::{Rgb, to_png};
use vlm::data::messages::ImageSource;
use vlm::dedupe::cache::Cache;
use vlm::dedupe::calibrate::{Planted, Point, calibrate, cosine};
use vlm::dedupe::embed::{Embedder, Wanted, Watch};
use vlm::dedupe::leaks::{self, Alike, Photo, find};
use vlm::dedupe::plant::{Change, planted};
use vlm::dedupe::space::Space;
use vlm::device::Device;
use vlm::infer::engine::Engine;
use vlm::io::safetensors::SafetensorsFile;
use vlm::qwen3vl::checkpoint::Checkpoint;
use vlm::qwen3vl::model::Model;
use vlm::qwen3vl::processor::read_patch_spec;

fn embedder(cache: &Path) -> Embedder {
    let dir = cases().join("single");
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let engine = Engine::new(Model::load(&checkpoint, None).unwrap(), Device::host(), Precision::F32);
    Embedder::new(engine, &checkpoint, read_patch_spec(&dir).unwrap(), Cache::open(cache).unwrap()).unwrap()
}

fn embed(embedder: &mut Embedder, wanted: &[Wanted]) -> Vec<Vec<f32>> {
    let mut watch = Watch { done: &mut |_, _| (), interrupted: &|| false };
    embedder.embed(wanted, &mut watch).unwrap().unwrap().into_iter().map(Result::unwrap).collect()
}

/// Nine means of transformers' features, none of them zeros: a wide photo has one row. Each token is shared between the cells whose
/// middles it lies between.
#[test]
fn features_are_means_of_those_of_transformers() {
    let dir = tempfile::tempdir().unwrap();
    let source = ImageSource::File(cases().join("images/wide.png"));
    let got = embed(&mut embedder(&dir.path().join("c")), &[Wanted { source: &source, change: None }]).remove(0);
    let file = SafetensorsFile::open(&cases().join("single.one_image.safetensors")).unwrap();
    let width = file.entry("image_embeds").unwrap().shape[1];
    let values: Vec<f64> =
        file.bytes("image_embeds").unwrap().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b) as f64).collect();
    let grid = file.bytes("image_grid_thw").unwrap().as_chunks::<8>().0;
    let [rows, columns] = [1, 2].map(|i| i64::from_le_bytes(grid[i]) as usize / 2);
    assert_eq!(rows * columns * width, values.len());
    let (mut sums, mut weights) = (vec![[0.0; 64]; 9], [0.0; 9]);
    assert!(width <= 64);
    for r in 0..rows {
        for c in 0..columns {
            // the token's middle, where cell k has its own at k
            let [y, x] = [(r, rows), (c, columns)].map(|(at, n)| (3.0 * (2 * at + 1) as f64 / (2 * n) as f64) - 0.5);
            for cell in 0..9 {
                let [dy, dx] = [(y, cell / 3), (x, cell % 3)].map(|(at, k)| (at - k as f64).abs());
                if dy < 1.0 && dx < 1.0 {
                    let weight = (1.0 - dy) * (1.0 - dx);
                    weights[cell] += weight;
                    (0..width).for_each(|j| sums[cell][j] += weight * values[(r * columns + c) * width + j]);
                }
            }
        }
    }
    let want: Vec<f64> =
        (0..9 * width).map(|i| sums[i / width][i % width] / f64::max(weights[i / width], 1e-9)).collect();
    // features agree to 2e-5 of their length
    assert_within("features", &got, &want, |_| 1e-4);
}

/// Cosines after scikit-learn's PCA(8, whiten=True) of 24 rows sin(0.7 i + 1.3 j + 0.11 i j) of 10.
/// A third of the photos are directions.
#[test]
fn a_space_is_that_of_scikit_learn() {
    let row = |i: usize, width: usize| -> Vec<f32> {
        (0..width).map(|j| (0.7 * i as f64 + 1.3 * j as f64 + 0.11 * (i * j) as f64).sin() as f32).collect()
    };
    let rows: Vec<Vec<f32>> = (0..24).map(|i| row(i, 10)).collect();
    let space = Space::of(&rows);
    let embedding = |i: usize| space.embedding(&row(i, 10));
    // of rows that it is made of, and of one that it is not
    let pairs = [(0, 1), (3, 17), (5, 30), (22, 23)];
    let got: Vec<f64> = pairs.iter().map(|(i, j)| cosine(&embedding(*i), &embedding(*j))).collect();
    const SKLEARN: [f64; 4] = [-0.002965878933552712, -0.14714541920605922, -0.8554793252177112, 0.15216166356509275];
    assert_within("cosines", &got.iter().map(|v| *v as f32).collect::<Vec<_>>(), &SKLEARN, |_| 1e-4);
    // fewer have no directions: the features at length 1
    let few = Space::of(&rows[..23]);
    let length = rows[4].iter().map(|v| v * v).sum::<f32>().sqrt();
    let want: Vec<f64> = rows[4].iter().map(|v| f64::from(v / length)).collect();
    assert_within("features", &few.embedding(&rows[4]), &want, |_| 1e-6);
    assert_eq!(few.embedding(&[0.0; 10]), [0.0; 10]);
}

#[test]
fn embeddings_depend_on_nothing_beside_the_photo_and_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let sources: Vec<ImageSource> = (0..5)
        .map(|i| {
            let path = dir.path().join(format!("{i}.png"));
            fs::write(&path, to_png(&picture(i, 48 + 8 * i, 40)).unwrap()).unwrap();
            ImageSource::File(path)
        })
        .collect();
    let mut wanted: Vec<Wanted> = sources.iter().map(|source| Wanted { source, change: None }).collect();
    wanted.push(Wanted { source: &sources[1], change: Some((Change::Crop, 3)) });
    wanted.push(wanted[0]);
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let all = embed(&mut embedder(&one), &wanted);
    assert_eq!(all[0], all[6]);
    assert_ne!(all[1], all[5]);
    for (i, w) in wanted.iter().enumerate().rev() {
        assert_eq!(embed(&mut embedder(&two), &[*w])[0], all[i], "{i}");
    }
    // a second time nothing is computed: the cache does not grow, and its values are used
    let size = fs::metadata(&one).unwrap().len();
    assert_eq!(embed(&mut embedder(&one), &wanted), all);
    assert_eq!(fs::metadata(&one).unwrap().len(), size);
    // nor on another number of threads
    let threads = rayon::ThreadPoolBuilder::new().num_threads(rayon::current_num_threads() + 1).build().unwrap();
    assert_eq!(threads.install(|| embed(&mut embedder(&one), &wanted)), all);
    assert_eq!(fs::metadata(&one).unwrap().len(), size);
    // a photo that cannot be read is an error in its place
    let gone = ImageSource::File(dir.path().join("gone.png"));
    let mut watch = Watch { done: &mut |_, _| (), interrupted: &|| false };
    let mixed = [wanted[0], Wanted { source: &gone, change: None }];
    let found = embedder(&one).embed(&mixed, &mut watch).unwrap().unwrap();
    assert!(found[0].is_ok() && found[1].as_ref().unwrap_err().to_string().contains("gone.png"));
    // interrupted after two: these are kept
    let three = dir.path().join("three");
    let seen = std::cell::Cell::new(0);
    let mut done = |n: usize, _: usize| seen.set(n);
    let mut watch = Watch { done: &mut done, interrupted: &|| seen.get() >= 2 };
    assert!(embedder(&three).embed(&wanted, &mut watch).unwrap().is_none());
    let (mut first, start) = (None, Instant::now());
    let mut done = |n: usize, _: usize| _ = first.get_or_insert(n);
    let mut watch = Watch { done: &mut done, interrupted: &|| start.elapsed() > Duration::from_secs(300) };
    assert!(embedder(&three).embed(&wanted, &mut watch).unwrap().is_some());
    assert!(first >= Some(2), "{first:?} known at the start");
}

#[test]
fn cosines_are_sums_of_products() {
    for n in [1, 15, 16, 17, 50] {
        let length = (n as f32).sqrt();
        let a: Vec<f32> = (0..n).map(|i| (i as f32 * 0.7).sin() / length).collect();
        let b: Vec<f32> = (0..n).map(|i| (i as f32 * 0.3).cos() / length).collect();
        let want: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        assert_within("cosine", &[cosine(&a, &b)], &[want], |_| 1e-6);
    }
    assert_eq!(cosine(&[1.0, 1e-3], &[1.0, 1e-3]), 1.0, "rounding does not take it beyond");
}

/// A direction in the plane, by its angle in degrees.
fn at(degrees: f64) -> Vec<f32> {
    vec![degrees.to_radians().cos() as f32, degrees.to_radians().sin() as f32]
}

#[test]
fn a_threshold_by_hand() {
    // photos 10 degrees apart; copies 1 or 2 degrees off, one of the half that tests 4 off
    let originals: Vec<Vec<f32>> = (0..8).map(|i| at(10.0 * f64::from(i))).collect();
    let copies = |change, off: [f64; 8]| {
        let of = move |(i, off): (usize, f64)| Planted {
            source: i,
            tests: i % 2 == 1,
            change,
            embedding: at(10.0 * i as f64 + off),
            like: BTreeSet::new(),
        };
        off.into_iter().enumerate().map(of).collect::<Vec<_>>()
    };
    let mut planted = copies(Change::Crop, [2.0, 2.0, 2.0, 4.0, 2.0, 2.0, 2.0, 2.0]);
    planted.extend(copies(Change::Reencode, [1.0; 8]));
    let got = calibrate(&originals, &planted, &BTreeSet::new()).unwrap();
    // even photos choose: own at most 2 degrees off, others at least 8: the middle of the two cosines
    let middle = (2f64.to_radians().cos() + 8f64.to_radians().cos()) / 2.0;
    assert_within("threshold", &[got.threshold], &[middle], |_| 1e-6);
    assert_eq!((got.photos, got.planted), (8, 16));
    assert_eq!((got.precision, got.recall), (Some(1.0), 1.0), "4 degrees are above cos 5.8");
    // an odd photo's copy that went too far, and one that looks like another photo
    planted[3].embedding = at(30.0 + 7.0);
    planted[5].embedding = at(60.0);
    let got = calibrate(&originals, &planted, &BTreeSet::new()).unwrap();
    assert_within("threshold", &[got.threshold], &[middle], |_| 1e-6);
    // of eight copies in the half that tests six are found; two are found with another photo
    // (37 degrees: 40 is 3 off; 60: is 60)
    assert_eq!((got.recall, got.precision), (0.75, Some(0.75)));
    assert_eq!((got.recall_of["crops"], got.recall_of["re-encodes"]), (0.5, 1.0));
    // photos 5 and 6 show the same: finding one by the other's copy is no mistake
    let got = calibrate(&originals, &planted, &BTreeSet::from([(5, 6)])).unwrap();
    assert_eq!(got.precision, Some(6.0 / 7.0));
    let here = got.curve.iter().find(|p| p.threshold == got.threshold).unwrap();
    assert_eq!((here.precision, here.recall), (got.precision, got.recall));
    assert!(got.curve.windows(2).all(|w| w[0].threshold <= w[1].threshold && w[0].recall >= w[1].recall));
    // what pixels find counts, right or wrong: photo 3 by its copy, photo 0 by that of 7
    planted[3].like.insert(3);
    planted[7].like.insert(0);
    let got = calibrate(&originals, &planted, &BTreeSet::from([(5, 6)])).unwrap();
    assert_within("threshold", &[got.threshold], &[middle], |_| 1e-6);
    assert_eq!((got.recall, got.precision), (7.0 / 8.0, Some(7.0 / 9.0)));
    assert_eq!((got.recall_of["crops"], got.recall_of["re-encodes"]), (0.75, 1.0));
    // for a copy 6 degrees off, and 4 from another, the threshold comes down; not where pixels find it
    let mut planted = [copies(Change::Crop, [2.0; 8]), copies(Change::Reencode, [1.0; 8])].concat();
    planted[2].embedding = at(26.0);
    let between = |a: f64, b: f64| (a.to_radians().cos() + b.to_radians().cos()) / 2.0;
    let low = calibrate(&originals, &planted, &BTreeSet::new()).unwrap().threshold;
    planted[2].like.insert(2);
    let high = calibrate(&originals, &planted, &BTreeSet::new()).unwrap().threshold;
    assert_within("thresholds", &[low, high], &[between(6.0, 8.0), between(2.0, 4.0)], |_| 1e-6);
    // where they find all it comes down to what is wrong
    planted.iter_mut().for_each(|p| _ = p.like.insert(p.source));
    planted[2].embedding = at(22.0);
    assert_within(
        "threshold",
        &[calibrate(&originals, &planted, &BTreeSet::new()).unwrap().threshold],
        &[between(2.0, 8.0)],
        |_| 1e-6,
    );
    // a photo that tests, 3.5 degrees from another's copy: what the others chose (cos 5.8) lets that in, and cos 2.6 does not
    assert_eq!(calibrate(&originals, &planted, &BTreeSet::new()).unwrap().better(), None);
    planted[5].embedding = at(63.5);
    let got = calibrate(&originals, &planted, &BTreeSet::new()).unwrap();
    assert_eq!((got.precision, got.recall), (Some(8.0 / 9.0), 1.0));
    assert_eq!(got.better(), Some(&Point { threshold: 0.999, precision: Some(1.0), recall: 1.0 }));
    // where all show the same there is nothing to tell a copy from
    let same = (0..8).flat_map(|i| (i + 1..8).map(move |j| (i, j))).collect();
    let said = calibrate(&originals, &planted, &same).unwrap_err().to_string();
    assert!(said.contains("too many of the photos look the same") && said.contains("--threshold"), "{said}");
}

#[test]
fn changes_are_what_they_say() {
    let photo = picture(3, 200, 100);
    for seed in 0..20 {
        let of = |change| planted(&photo, change, Stream::new(seed, &[])).unwrap();
        let crop = of(Change::Crop);
        assert!((160..=190).contains(&crop.width) && (80..=95).contains(&crop.height), "{}", crop.width);
        let first = &crop.pixels[..crop.width * 3];
        let is_part = (0..100).any(|y| photo.pixels[y * 600..(y + 1) * 600].windows(first.len()).any(|w| w == first));
        assert!(is_part, "the crop's first row is in the photo");
        let again = of(Change::Reencode);
        assert!((120..=200).contains(&again.width) && (60..=100).contains(&again.height), "{}", again.width);
        let bright = of(Change::Brightness);
        let sum = |p: &Rgb| p.pixels.iter().map(|v| u64::from(*v)).sum::<u64>() as f64;
        let factor = sum(&bright) / sum(&photo);
        assert!((0.69..=0.91).contains(&factor) || (1.05..=1.31).contains(&factor), "{factor}");
        assert_eq!(bright, of(Change::Brightness));
    }
}

/// One crop for all photos would tell how that crop is found, and of crops nothing.
#[test]
fn each_photo_is_changed_in_its_own_way() {
    let dir = tempfile::tempdir().unwrap();
    let crop = |i: usize, seed: u64| {
        let path = dir.path().join(format!("{i}.png"));
        fs::write(&path, to_png(&picture(i, 200, 100)).unwrap()).unwrap();
        let crop = Wanted { source: &ImageSource::File(path), change: Some((Change::Crop, seed)) }.load().unwrap();
        (crop.width, crop.height)
    };
    let sizes: BTreeSet<_> = (0..8).map(|i| crop(i, 0)).collect();
    assert!(sizes.len() >= 6, "{sizes:?}");
    assert_eq!(crop(3, 0), crop(3, 0));
    assert_ne!((crop(3, 0), crop(4, 0)), (crop(3, 1), crop(4, 1)));
}

pub fn write_set(dir: &Path, name: &str, images: &[&str]) -> PathBuf {
    let line = |image: &&str| json!({"image": image, "label": "a"}).to_string() + "\n";
    let file = dir.join(format!("{name}.jsonl"));
    fs::write(&file, images.iter().map(line).collect::<String>()).unwrap();
    file
}

#[test]
fn what_an_earlier_set_keeps_goes_from_a_later_one() {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..9 {
        fs::write(dir.path().join(format!("{i}.png")), to_png(&picture(i, 8, 8)).unwrap()).unwrap();
    }
    let files = [
        ("test", &["0.png", "1.png", "2.png"][..]),
        ("my-val", &["3.png", "4.png"]),
        ("Train", &["5.png", "6.png", "7.png", "8.png"]),
    ];
    let files = files.map(|(name, images)| write_set(dir.path(), name, images));
    let sets = leaks::open(&files, OnBad::Fail).unwrap();
    assert_eq!(sets.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["Train", "my-val", "test"]);
    let photos = leaks::photos(&sets);
    // Train 0, 0, 40, 80; my-val 1, 120; test 2, 121, 200
    let embeddings: Vec<_> = [0.0, 0.0, 40.0, 80.0, 1.0, 120.0, 2.0, 121.0, 200.0].map(at).into();
    let (threshold, none) = (5f64.to_radians().cos(), BTreeSet::new());
    let (pairs, removed) = find(&sets, &photos, (&embeddings, threshold), &none, false);
    assert!(pairs.windows(2).all(|w| w[0].cosine >= w[1].cosine), "most alike first");
    let mut names: Vec<(usize, usize)> = pairs.iter().map(|pair| (pair.a, pair.b)).collect();
    names.sort_unstable();
    assert_eq!(names, [(0, 1), (0, 4), (0, 6), (1, 4), (1, 6), (4, 6), (5, 7)]);
    // within train nothing goes; validation's 1 does, test's 2 and 121 do
    assert_eq!(removed, [vec![false; 4], vec![true, false], vec![true, true, false]]);
    let (_, removed) = find(&sets, &photos, (&embeddings, threshold), &none, true);
    assert_eq!(removed[0], [false, true, false, false]);
    // what is gone takes nothing with it: at 1.5 degrees test's 2 is like validation's 1 alone, which went
    let (pairs, removed) = find(&sets, &photos, (&embeddings, 1.5f64.to_radians().cos()), &none, false);
    assert_eq!(pairs.len(), 5);
    assert_eq!(removed, [vec![false; 4], vec![true, false], vec![false, true, false]]);
    let same = [Photo { set: 0, sample: 0, source: photos[0].source }; 2];
    let (zeros, known) = ([at(0.0), at(0.0)], BTreeSet::from([(0, 1)]));
    assert!(find(&sets, &same, (&zeros, 0.5), &known, false).0.is_empty(), "two photos of one sample are no pair");
    // what pixels tell comes first, whatever the cosine, and goes as the others do
    let (pairs, removed) = find(&sets, &photos, (&embeddings, 1.5), &BTreeSet::from([(2, 8)]), false);
    assert!(matches!(pairs[..], [Alike { a: 2, b: 8, cosine, by_pixels: true }] if cosine < 0.0), "{pairs:?}");
    assert_eq!(removed, [vec![false; 4], vec![false; 2], vec![false, false, true]]);
    let (pairs, _) = find(&sets, &photos, (&embeddings, threshold), &BTreeSet::from([(2, 8)]), false);
    assert_eq!((pairs.len(), pairs[0].by_pixels, pairs[1].by_pixels), (8, true, false));
    let twice = [files[0].clone(), dir.path().join("deep/test.jsonl")];
    fs::create_dir(dir.path().join("deep")).unwrap();
    fs::copy(&files[0], &twice[1]).unwrap();
    for i in 0..3 {
        fs::copy(dir.path().join(format!("{i}.png")), dir.path().join(format!("deep/{i}.png"))).unwrap();
    }
    assert!(leaks::open(&twice, OnBad::Fail).unwrap_err().is_usage());
}
