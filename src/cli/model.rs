//! `--model` and `--adapter`: opens what every computing command needs.

use super::compute::Compute;
use super::notice::notice;
use super::values::pixels;
use crate::base::Result;
use crate::infer::engine::Engine;
use crate::qwen3vl::adapter::Adapter;
use crate::qwen3vl::checkpoint::Checkpoint;
use crate::qwen3vl::generation_config::GenerationConfig;
use crate::qwen3vl::model::Model;
use crate::qwen3vl::prepare::Preparer;
use crate::qwen3vl::processor::patch_spec_for;
use crate::train::fingerprint;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub struct ModelFlags {
    /// A checkpoint folder as Hugging Face publishes it
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// A PEFT LoRA adapter folder
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    #[command(flatten)]
    pub pixels: PixelFlags,
    #[command(flatten)]
    pub compute: Compute,
}

#[derive(Debug, Clone, Copy, clap::Args)]
pub struct PixelFlags {
    /// Enlarge pictures to at least this many pixels [default: the model's, with an adapter its own, or --max-pixels if less]
    #[arg(long, value_name = "N", value_parser = pixels)]
    pub min_pixels: Option<u64>,
    /// Shrink pictures to at most this many pixels [default: the model's, with an adapter its own, or --min-pixels if more]
    #[arg(long, value_name = "N", value_parser = pixels)]
    pub max_pixels: Option<u64>,
}

/// A model ready to be asked.
pub struct Opened {
    pub engine: Engine,
    pub preparer: Preparer,
    pub generation: GenerationConfig,
}

impl ModelFlags {
    pub fn open(&self) -> Result<Opened> {
        open(&self.model, self.adapter.as_deref(), &self.pixels, &self.compute)
    }
}

/// Opens an adapter for the model; says where it was trained on other weights.
pub fn open_adapter(dir: &Path, model: &Checkpoint) -> Result<Adapter> {
    let adapter = Adapter::open(dir, &model.config)?;
    fingerprint::other_base(dir, &adapter, &model.dir)?.into_iter().for_each(notice);
    Ok(adapter)
}

/// Opens a model with the adapter, the picture sizes and the device that were asked for.
pub fn open(dir: &Path, adapter: Option<&Path>, pixels: &PixelFlags, compute: &Compute) -> Result<Opened> {
    let (device, precision) = compute.open()?;
    let checkpoint = Checkpoint::open(dir)?;
    let adapter = adapter.map(|dir| open_adapter(dir, &checkpoint)).transpose()?;
    let model = Model::load(&checkpoint, adapter.as_ref())?;
    let (spec, said) = patch_spec_for(dir, adapter.as_ref(), pixels.min_pixels, pixels.max_pixels)?;
    said.into_iter().for_each(notice);
    let preparer = Preparer::open(dir, &checkpoint.config, spec)?;
    let generation = GenerationConfig::read(dir)?;
    Ok(Opened { engine: Engine::new(model, device, precision), preparer, generation })
}
