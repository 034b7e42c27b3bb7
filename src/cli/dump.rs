//! `vlm dump`: what the program computes, tensor by tensor.

use super::model::ModelFlags;
use super::output;
use super::progress::Progress;
use crate::base::{Result, counted};
use crate::data::messages::{Conversation, ImageSource, read_messages};
use crate::infer::trace;
use crate::io::{HostTensor, host_tensor};
use crate::qwen3vl::template::Ending;
use std::path::PathBuf;

const WRITER: &str = "vlm dump";

/// Write every intermediate tensor of a prompt to a safetensors file
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: vlm dump --model Qwen3-VL-2B-Instruct --messages chat.json --out tensors.safetensors")]
pub struct Dump {
    #[command(flatten)]
    model: ModelFlags,
    /// {"messages": [...]}; image paths relative to the file
    #[arg(long, value_name = "FILE")]
    messages: PathBuf,
    /// Compute the logits one token at a time through the key/value cache
    #[arg(long)]
    through_cache: bool,
    /// Where to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Replace the file, whatever it is; one that this command wrote is replaced anyway
    #[arg(long)]
    overwrite: bool,
}

impl Dump {
    pub fn run(&self) -> Result<()> {
        output::free_or_own(&self.out, self.overwrite, WRITER)?;
        let conversation = read_messages(&self.messages)?;
        let photos = conversation.images().filter_map(ImageSource::file);
        let files = [Some(&self.messages), Some(&self.model.model), self.model.adapter.as_ref()];
        output::not_an_input(&self.out, files.into_iter().flatten().map(|f| f.as_path()).chain(photos))?;
        let tensors = compute(&self.model, &conversation, self.through_cache)?;
        host_tensor::write(&self.out, WRITER, &tensors)?;
        super::print(&format!("{} in {}\n", counted(tensors.len(), "tensor", "tensors"), self.out.display()))
    }
}

/// The tensors of one prompt: `vlm verify` compares the same.
pub fn compute(
    model: &ModelFlags,
    conversation: &Conversation,
    through_cache: bool,
) -> Result<Vec<(String, HostTensor)>> {
    let mut opened = model.open()?;
    let prepared = opened.preparer.prepare(conversation, Ending::GenerationPrompt)?;
    let mut bar = Progress::new("prompt");
    let mut progress = |done: usize, all: usize| bar.at(done as u64, all as u64);
    if through_cache {
        trace::through_cache(&mut opened.engine, &prepared.sequence, &mut progress)
    } else {
        trace::trace(&mut opened.engine, &prepared.sequence, &mut progress)
    }
}
