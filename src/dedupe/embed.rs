//! Photos to features: what the tower makes of them, a mean in each of nine cells.
//!
//! Each photo is computed alone, so that its features depend on nothing beside it; decoding goes on in parallel, ahead
//! of that. Photos are brought to at most so many pixels, which is enough to tell whether two show the same.

use super::cache::{Cache, Key};
use super::plant::{Change, planted};
use crate::base::rng::Stream;
use crate::base::{Error, Precision, Result};
use crate::data::image::{self, PatchSpec, Patches, Rgb};
use crate::data::look;
use crate::data::messages::ImageSource;
use crate::infer::engine::Engine;
use crate::qwen3vl::checkpoint::Checkpoint;
use crate::qwen3vl::names::{self, Part};
use crate::qwen3vl::pack::Sequence;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::sync::mpsc::sync_channel;

/// Cells a side: two photos that show the same show it in the same places.
const CELLS: usize = 3;
/// Photos that are read ahead side by side.
const AHEAD: usize = 16;

/// A photo to embed: as it is, or changed by random numbers of this seed.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    pub source: &'a ImageSource,
    pub change: Option<(Change, u64)>,
}

pub struct Embedder {
    engine: Engine,
    spec: PatchSpec,
    /// Of everything but the photo that features depend on.
    tower: [u8; 32],
    cache: Cache,
}

/// How the work goes on.
pub struct Watch<'a> {
    /// Told (photos done, photos in all).
    pub done: &'a mut dyn FnMut(usize, usize),
    pub interrupted: &'a dyn Fn() -> bool,
}

impl Embedder {
    /// An embedder by the tower of `engine`'s model, which `checkpoint` holds.
    pub fn new(engine: Engine, checkpoint: &Checkpoint, spec: PatchSpec, cache: Cache) -> Result<Embedder> {
        let mut hash = Sha256::new_with_prefix(tower_hash(checkpoint)?);
        // on the host the number of threads changes no bit
        let device = engine.device.facts().map_or("cpu", |facts| &facts.name);
        hash.update(format!("{CELLS} cells {:?} {:?} {device}", spec, engine.precision == Precision::F32));
        Ok(Embedder { engine, spec, tower: hash.finalize().into(), cache })
    }

    /// The features [CELLS CELLS D] of `wanted`, in order; None: interrupted, and what is done is in the cache. A photo that cannot
    /// be read has its error in its place.
    pub fn embed(&mut self, wanted: &[Wanted], watch: &mut Watch) -> Result<Option<Vec<Result<Vec<f32>>>>> {
        let Embedder { engine, spec, tower, cache } = self;
        let mut features_of: Vec<Option<Result<Vec<f32>>>> = Vec::new();
        // the keys of all, which the cache is asked for first
        let keys: Vec<Result<Key>> = wanted.par_iter().map(|w| key(w, tower)).collect();
        for key in &keys {
            features_of.push(match key {
                Ok(key) => cache.get(key).map(|values| Ok(values.to_vec())),
                Err(e) => Some(Err(Error::Unsupported(e.to_string()))),
            });
        }
        let mut seen = BTreeSet::new();
        let missing: Vec<(usize, Key)> = features_of
            .iter()
            .zip(&keys)
            .enumerate()
            .filter(|(_, (e, _))| e.is_none())
            .filter_map(|(i, (_, key))| Some((i, *key.as_ref().ok()?)))
            .filter(|(_, key)| seen.insert(*key))
            .collect();
        let mut n = wanted.len() - missing.len();
        (watch.done)(n, wanted.len());
        let spec = &*spec;
        let finished = std::thread::scope(|scope| {
            let (send, receive) = sync_channel::<Vec<(usize, Key, Result<Patches>)>>(1);
            let missing = &missing;
            scope.spawn(move || {
                for chunk in missing.chunks(AHEAD) {
                    let ready = chunk
                        .par_iter()
                        .map(|(i, key)| {
                            let patches = wanted[*i].load().and_then(|photo| spec.patches(&photo));
                            (*i, *key, patches)
                        })
                        .collect();
                    // a receiver that has gone away stopped for its own reason
                    if send.send(ready).is_err() {
                        return;
                    }
                }
            });
            for ready in receive {
                for (i, key, patches) in ready {
                    if (watch.interrupted)() {
                        return Ok(false);
                    }
                    features_of[i] = Some(match patches {
                        Ok(patches) => {
                            let values = features(engine, patches)?;
                            cache.add(key, &values)?;
                            Ok(values)
                        }
                        Err(e) => Err(e),
                    });
                    n += 1;
                    (watch.done)(n, wanted.len());
                }
            }
            Ok::<bool, Error>(true)
        })?;
        if !finished {
            return Ok(None);
        }
        // the same photo twice was computed once
        let of = |(i, found): (usize, Option<Result<Vec<f32>>>)| {
            found.unwrap_or_else(|| {
                let known = keys[i].as_ref().ok().and_then(|key| cache.get(key));
                known.map(<[f32]>::to_vec).ok_or_else(|| Error::file(wanted[i].source.to_string(), "cannot be read"))
            })
        };
        Ok(Some(features_of.into_iter().enumerate().map(of).collect()))
    }
}

/// The means of a photo's image features [U, D] in each cell.
fn features(engine: &mut Engine, patches: Patches) -> Result<Vec<f32>> {
    let config = &engine.model.config;
    let (merge, width) = (config.vision.merge_size, config.text.hidden_size);
    let [_, rows, columns] = patches.grid.map(|n| n / merge);
    let tokens = patches.grid.iter().product::<usize>() / (merge * merge);
    let sequence = Sequence {
        ids: vec![0; tokens],
        is_image: vec![true; tokens],
        grids: vec![patches.grid],
        pixels: patches.values,
    };
    let features = engine.features(&sequence)?.map(|made| engine.device.memory().read_f32(made.embeds)).transpose()?;
    let features = features.unwrap_or_default();
    if !features.iter().all(|v| v.is_finite()) {
        let said = "the tower makes no finite features of this photo; is the checkpoint whole?";
        return Err(Error::Unsupported(said.into()));
    }
    // a token counts for the two cells a side between whose middles it lies, so that a photo moved a little changes little
    let part = |at: usize, n: usize, cell: usize| {
        let place = (at as f64 + 0.5) / n as f64 * CELLS as f64 - 0.5;
        (1.0 - (place - cell as f64).abs()).max(0.0)
    };
    let mut means = vec![0.0f64; CELLS * CELLS * width];
    for (cell, mean) in means.chunks_exact_mut(width).enumerate() {
        let mut all = 0.0;
        for (token, row) in features.chunks_exact(width).enumerate() {
            let weight =
                part(token / columns % rows, rows, cell / CELLS) * part(token % columns, columns, cell % CELLS);
            all += weight;
            mean.iter_mut().zip(row).for_each(|(sum, value)| *sum += weight * f64::from(*value));
        }
        // a photo of one row has none in the cells above it
        mean.iter_mut().for_each(|sum| *sum /= f64::max(all, 1e-9));
    }
    Ok(means.into_iter().map(|v| v as f32).collect())
}

impl Wanted<'_> {
    /// The photo, decoded and changed: each photo by other random numbers, which follow from its content.
    pub fn load(&self) -> Result<Rgb> {
        let Some((change, seed)) = self.change else { return look::load(self.source) };
        let (bytes, name) = look::content(self.source)?;
        let photo = image::decode(&bytes, &name)?;
        let content = look::sha256(&bytes);
        let words = content.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b));
        let random = Stream::new(seed, &std::iter::once(change as u64).chain(words).collect::<Vec<_>>());
        planted(&photo, change, random)
    }
}

/// Of the file's bytes, the change and the tower.
fn key(wanted: &Wanted, tower: &[u8; 32]) -> Result<Key> {
    let (bytes, _) = look::content(wanted.source)?;
    let mut hash = Sha256::new_with_prefix(tower);
    hash.update(look::sha256(&bytes));
    if let Some((change, seed)) = wanted.change {
        hash.update(format!("{change:?} {seed} by content"));
    }
    Ok(hash.finalize().into())
}

/// Of all tensors of the tower and its mergers, and of its sizes.
fn tower_hash(checkpoint: &Checkpoint) -> Result<[u8; 32]> {
    let modules = names::modules(&checkpoint.config).into_iter().filter(|m| m.part != Part::Text);
    let tensors: Vec<String> = modules.flat_map(|m| m.tensors()).map(|(name, _)| name).collect();
    let hashes: Vec<Vec<u8>> = tensors
        .par_iter()
        .map(|name| {
            let missing = || Error::tensor(&checkpoint.dir, name, "the checkpoint has none of this name");
            let stored = checkpoint.tensor(name).ok_or_else(missing)?;
            let head = format!("{name} {} {:?}", stored.entry.dtype, stored.entry.shape);
            let mut hash = Sha256::new_with_prefix(head);
            hash.update(stored.bytes());
            Ok(hash.finalize().to_vec())
        })
        .collect::<Result<_>>()?;
    Ok(look::sha256(&[format!("{:?}", checkpoint.config.vision).into_bytes(), hashes.concat()].concat()))
}
