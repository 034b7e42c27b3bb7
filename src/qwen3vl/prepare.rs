//! A conversation with its pictures becomes a [`Sequence`] for the model.

use super::config::Config;
use super::pack::Sequence;
use super::processor::patch_spec_file;
use super::prompt::PromptBuilder;
use super::template::Ending;
use crate::base::{Error, Result};
use crate::data::image::PatchSpec;
use crate::data::look;
use crate::data::messages::{Conversation, ImageSource};
use rayon::prelude::*;
use std::path::Path;

/// Tokenizer, template and picture preprocessing of one checkpoint.
pub struct Preparer {
    pub prompts: PromptBuilder,
    pub spec: PatchSpec,
    /// Positions that the model has.
    most_tokens: usize,
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
        Ok(Preparer { prompts, spec, most_tokens: config.text.max_position_embeddings })
    }

    /// Errors: a conversation of so many tokens has more than the model has positions for. Nothing is cut off, be it learnt
    /// or asked.
    pub fn fits(&self, tokens: usize) -> Result<()> {
        match self.most_tokens {
            most if tokens > most => Err(Error::Unsupported(format!(
                "the conversation has {tokens} tokens, and the model positions for {most}: lower --max-pixels, or shorten its \
                 text"
            ))),
            _ => Ok(()),
        }
    }

    /// Builds the prompt, decodes the pictures, and puts both together. Errors: those of [`Preparer::measure`], before
    /// anything is decoded; a picture that is damaged, or changes while it is read.
    pub fn prepare(&self, conversation: &Conversation, ending: Ending) -> Result<Prepared> {
        let mut prepared = self.measure(conversation, ending)?;
        let sources: Vec<&ImageSource> = conversation.images().collect();
        let patches = sources
            .into_par_iter()
            .map(|source| self.spec.patches(&look::load(source)?))
            .collect::<Result<Vec<_>>>()?;
        if !patches.iter().map(|p| &p.grid).eq(&prepared.sequence.grids) {
            let said = "a picture changed between a look at its size and its decoding: run the command again";
            return Err(Error::Unsupported(said.into()));
        }
        prepared.sequence.pixels = match patches.len() {
            1 => patches.into_iter().map(|p| p.values).next().unwrap_or_default(),
            _ => patches.into_iter().map(|p| p.values).collect::<Vec<_>>().concat(),
        };
        Ok(prepared)
    }

    /// The same without pixels: of pictures only the headers are read. Errors: what cannot be read, a prompt that cannot be
    /// built, more tokens than [`Preparer::fits`] lets pass.
    pub fn measure(&self, conversation: &Conversation, ending: Ending) -> Result<Prepared> {
        let grid = |source: &ImageSource| {
            let (width, height) = look::dimensions(source)?;
            let (height, width) = self.spec.target_size(height, width)?;
            Ok([1, height / self.spec.patch, width / self.spec.patch])
        };
        let grids = conversation.images().map(grid).collect::<Result<Vec<[usize; 3]>>>()?;
        let merge = self.spec.merge * self.spec.merge;
        let tokens: Vec<usize> = grids.iter().map(|g| g.iter().product::<usize>() / merge).collect();
        let prompt = self.prompts.build(conversation, &tokens, ending)?;
        self.fits(prompt.ids.len())?;
        let sequence = Sequence { ids: prompt.ids, is_image: prompt.is_image, grids, pixels: Vec::new() };
        Ok(Prepared { sequence, labels: prompt.labels })
    }
}
