//! A conversation with its pictures becomes a [`Sequence`] for the model.

use super::config::Config;
use super::pack::Sequence;
use super::processor::patch_spec_file;
use super::prompt::PromptBuilder;
use super::template::Ending;
use crate::base::{Error, Result};
use crate::data::image::{self, PatchSpec};
use crate::data::look;
use crate::data::messages::{Conversation, ImageSource};
use rayon::prelude::*;
use std::path::Path;

/// Tokenizer, template and picture preprocessing of one checkpoint.
pub struct Preparer {
    pub prompts: PromptBuilder,
    pub spec: PatchSpec,
}

/// A sequence, and which of its ids are labels (the assistant's turns).
pub struct Prepared {
    pub sequence: Sequence,
    pub labels: Vec<bool>,
}

impl Preparer {
    /// Reads the folder's tokenizer and template. The picture settings have to be those that the tower was built for, the
    /// tokenizer the one that the configuration knows.
    pub fn open(dir: &Path, config: &Config, spec: PatchSpec) -> Result<Preparer> {
        let v = &config.vision;
        let (wanted, got) =
            ([v.patch_size, v.temporal_patch_size, v.merge_size], [spec.patch, spec.temporal, spec.merge]);
        if wanted != got {
            let said = format!("patch, temporal and merge size are {got:?} here and {wanted:?} in config.json");
            return Err(Error::file(patch_spec_file(dir)?, said));
        }
        let prompts = PromptBuilder::from_folder(dir)?;
        prompts.check_ids(config)?;
        Ok(Preparer { prompts, spec })
    }

    /// Decodes the pictures, builds the prompt, and puts both together.
    pub fn prepare(&self, conversation: &Conversation, ending: Ending) -> Result<Prepared> {
        let sources: Vec<&ImageSource> = conversation.images().collect();
        let patches = sources
            .into_par_iter()
            .map(|source| self.spec.patches(&look::load(source)?))
            .collect::<Result<Vec<_>>>()?;
        let mut prepared = self.prompt(conversation, patches.iter().map(|p| p.grid).collect(), ending)?;
        prepared.sequence.pixels = match patches.len() {
            1 => patches.into_iter().map(|p| p.values).next().unwrap_or_default(),
            _ => patches.into_iter().map(|p| p.values).collect::<Vec<_>>().concat(),
        };
        Ok(prepared)
    }

    /// The same without pixels: of pictures in files only the headers are read.
    pub fn measure(&self, conversation: &Conversation, ending: Ending) -> Result<Prepared> {
        let grid = |source: &ImageSource| {
            let (width, height) = match source {
                ImageSource::File(path) => image::dimensions(path)?,
                ImageSource::Bytes { .. } => {
                    let rgb = look::load(source)?;
                    (rgb.width, rgb.height)
                }
            };
            let (height, width) = self.spec.target_size(height, width)?;
            Ok([1, height / self.spec.patch, width / self.spec.patch])
        };
        self.prompt(conversation, conversation.images().map(grid).collect::<Result<_>>()?, ending)
    }

    fn prompt(&self, conversation: &Conversation, grids: Vec<[usize; 3]>, ending: Ending) -> Result<Prepared> {
        let merge = self.spec.merge * self.spec.merge;
        let tokens: Vec<usize> = grids.iter().map(|g| g.iter().product::<usize>() / merge).collect();
        let prompt = self.prompts.build(conversation, &tokens, ending)?;
        let sequence = Sequence { ids: prompt.ids, is_image: prompt.is_image, grids, pixels: Vec::new() };
        Ok(Prepared { sequence, labels: prompt.labels })
    }
}
