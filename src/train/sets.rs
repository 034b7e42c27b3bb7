//! The sets that runs are made of, each read once whatever number of runs needs it: the trials of a sweep share theirs.

use super::fingerprint;
use super::session::{Said, Watch};
use super::settings::Settings;
use crate::base::Result;
use crate::data::dataset::{OnBad, Sample, read_dataset};
use crate::data::whole::whole;
use std::path::{Path, PathBuf};

/// What was read, and how.
#[derive(Default)]
pub struct Sets {
    known: Vec<(Reading, Vec<Sample>)>,
}

/// All that the samples of a file depend on, beside the photos.
#[derive(PartialEq)]
struct Reading {
    file: PathBuf,
    hash: String,
    prompt: Option<String>,
    skip_bad: bool,
}

impl Sets {
    /// The samples of a file, their photos decoded once: in the middle of a run it would be too late to find a damaged one.
    /// Errors: those of reading; a signal.
    pub fn samples(&mut self, file: &Path, settings: &Settings, watch: &mut Watch) -> Result<Vec<Sample>> {
        let on_bad = OnBad::of(settings.skip_bad);
        let data = read_dataset(file, settings.prompt.as_deref(), on_bad)?;
        let reading = Reading {
            file: file.into(),
            hash: fingerprint::of_file(file)?,
            prompt: settings.prompt.clone(),
            skip_bad: settings.skip_bad,
        };
        if let Some((_, samples)) = self.known.iter().find(|(known, _)| *known == reading) {
            return Ok(samples.clone());
        }
        let data = whole(file, data, on_bad, &mut |n, all| {
            (watch.said)(Said::Checked(n, all));
            watch.go_on()
        })?;
        let left_out = data.skipped.iter().map(|e| format!("left out: {e}"));
        data.unused_prompt.into_iter().chain(left_out).for_each(|said| (watch.said)(Said::Note(said)));
        self.known.push((reading, data.samples.clone()));
        Ok(data.samples)
    }
}
