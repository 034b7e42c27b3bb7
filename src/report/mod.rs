//! One HTML page of what was trained and scored: it needs no network and no other file.
//!
//! Floor 8: uses `classify`'s records, `train`'s log, `data`, `io`, `base`. Start at [`Report`]. [`sources`] finds out what each folder
//! is, [`gallery`] puts the photos of all evaluations side by side, [`sections`] writes the parts that need no script with
//! [`tables`] and [`curves`], which [`chart`] and [`intervals`] draw along an [`axis`], [`page`] puts it together. The photos are shown by `gallery.js`, which reads JSON out of the page; text of
//! the data reaches the page as escaped text or as that JSON, and the page's policy lets no other script run.

pub mod axis;
pub mod chart;
pub mod curves;
pub mod gallery;
pub mod html;
pub mod intervals;
pub mod page;
pub mod sections;
pub mod sources;
pub mod tables;

use crate::base::Result;
use crate::classify::records::{Evaluation, PREDICTIONS};
use crate::io::folder_kind::SUMMARY;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Built {
    pub evaluations: usize,
    pub runs: usize,
    pub photos: usize,
    /// Photos that are shown without a picture, with the reason.
    pub missing: Vec<String>,
    /// What the page says of its sources: the order they were put in, why there is no comparison.
    pub notes: Vec<String>,
    pub bytes: u64,
    pub seconds: f64,
}

/// A page whose sources are read, and which is not written yet.
pub struct Report {
    start: Instant,
    found: sources::Sources,
    gallery: gallery::Gallery,
}

impl Report {
    /// Reads the sources: folders of evaluations (in the order given: the first is "before", the last "after"), of runs and
    /// of comparisons, folders that hold such (untrained first, then by the time of writing), files of pairs and of learning
    /// curves. Errors: a source that is none of these; nothing to show.
    pub fn read(sources: &[PathBuf]) -> Result<Report> {
        let start = Instant::now();
        let found = sources::read(sources)?;
        let gallery = gallery::Gallery::new(&found);
        Ok(Report { start, found, gallery })
    }

    /// Files that the page shows and that need not lie in a source: photos, and evaluations that a comparison names.
    pub fn shown(&self) -> Vec<PathBuf> {
        let of = |evaluation: &Evaluation| [PREDICTIONS, SUMMARY].map(|name| evaluation.dir.join(name));
        let photos = self.gallery.photos.iter().flat_map(|photo| &photo.key.images);
        let photos = photos.chain(&self.gallery.pictures).cloned();
        photos.chain(self.found.evaluations.iter().flat_map(of)).collect()
    }

    /// Writes the page to `out`. `progress` is told (photos read, photos in all). Errors: those of writing.
    pub fn write(self, title: Option<&str>, out: &Path, progress: &mut dyn FnMut(usize, usize)) -> Result<Built> {
        let Report { start, found, gallery } = self;
        let thumbnails = gallery.thumbnails(progress);
        let bytes = page::write(out, title.unwrap_or("vlm report"), &found, &gallery, &thumbnails)?;
        Ok(Built {
            evaluations: found.evaluations.len(),
            runs: found.runs.len(),
            photos: gallery.photos.len(),
            missing: thumbnails.missing,
            notes: found.notes,
            bytes,
            seconds: start.elapsed().as_secs_f64(),
        })
    }
}
