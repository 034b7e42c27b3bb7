//! Whether the photos of a set are whole. A damaged one says so only where it is decoded, which a long run would do late:
//! so all are decoded before it begins. Here stands what becomes of a sample with a damaged one, for every command.

use super::dataset::{Dataset, OnBad, Sample};
use super::look;
use super::messages::ImageSource;
use crate::base::{Error, Result, counted, error::Context};
use rayon::prelude::*;
use std::path::Path;

/// Samples a thread between two reports.
const AT_A_TIME: usize = 8;

/// The set without the samples that have a damaged photo; see [`seen`].
pub fn whole(
    file: &Path,
    set: Dataset,
    on_bad: OnBad,
    done: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Dataset> {
    let decoded = |source: &ImageSource| look::load(source).map(|_| ());
    let (samples, damaged) = seen(file, set.samples, on_bad, decoded, done)?;
    let skipped = set.skipped.into_iter().chain(damaged).collect();
    Ok(Dataset { samples: samples.into_iter().map(|(sample, _)| sample).collect(), skipped, ..set })
}

/// What is said of a sample with a damaged photo where none is left out.
pub fn refused<T>(file: &Path, line: usize, damage: &Error) -> Result<T> {
    let said = format!(
        "{damage}; mend or replace this photo, or leave such samples out with --skip-bad (vlm data show lists them all)"
    );
    Err(Error::Unsupported(said)).context(format!("{}, line {line}", file.display()))
}

/// What a result says of the samples that were left out, for a line or for a photo; None where there are none.
pub fn left_out(samples: usize) -> Option<String> {
    let which = counted(samples, "sample that cannot be read is", "samples that cannot be read are");
    (samples > 0).then(|| format!("{which} left out"))
}

/// What is said of a set all of whose `samples` have damaged photos.
pub fn none_left(file: &Path, samples: usize, first: &Error) -> Error {
    let all = counted(samples, "sample", "samples");
    Error::file(file, format!("of its {all} none has whole photos; the first error: {first}"))
}

/// A sample, and what was made of its photos.
pub type Seen<T> = (Sample, Vec<T>);

/// What `look` makes of every photo, on all cores; `done` is told how many samples of how many are through, and
/// ends it with an error. With [`OnBad::Skip`] samples with a photo that it refuses are left out, and their errors come second.
///
/// Errors name file, line and photo; a set that nothing is left of is one too.
pub fn seen<T: Send>(
    file: &Path,
    samples: Vec<Sample>,
    on_bad: OnBad,
    look: impl Fn(&ImageSource) -> Result<T> + Sync,
    done: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<(Vec<Seen<T>>, Vec<Error>)> {
    let all = samples.len();
    let (mut whole, mut damaged) = (Vec::with_capacity(all), Vec::new());
    let mut samples = samples.into_iter();
    loop {
        let some: Vec<Sample> = samples.by_ref().take(AT_A_TIME * rayon::current_num_threads()).collect();
        if some.is_empty() {
            break;
        }
        let looks: Vec<Result<Vec<T>>> = some.par_iter().map(|sample| sample.images().map(&look).collect()).collect();
        for (sample, looks) in some.into_iter().zip(looks) {
            match (looks, on_bad) {
                (Ok(looks), _) => whole.push((sample, looks)),
                (Err(e), OnBad::Skip) => damaged.push(Error::line(file, sample.line, e.to_string())),
                (Err(e), OnBad::Fail) => return refused(file, sample.line, &e),
            }
        }
        done(whole.len() + damaged.len(), all)?;
    }
    match (whole.is_empty(), damaged.first()) {
        (true, Some(first)) => Err(none_left(file, all, first)),
        _ => Ok((whole, damaged)),
    }
}
