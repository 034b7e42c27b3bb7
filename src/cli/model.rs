//! `--model` and `--adapter`: opens what every computing command needs.

use super::compute::Compute;
use crate::base::{Error, Result};
use crate::data::image::PatchSpec;
use crate::infer::engine::Engine;
use crate::qwen3vl::adapter::Adapter;
use crate::qwen3vl::checkpoint::Checkpoint;
use crate::qwen3vl::generation_config::GenerationConfig;
use crate::qwen3vl::model::Model;
use crate::qwen3vl::prepare::Preparer;
use crate::qwen3vl::processor::read_patch_spec;
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
    /// Enlarge pictures to at least this many pixels [default: the model's]
    #[arg(long, value_name = "N")]
    pub min_pixels: Option<u64>,
    /// Shrink pictures to at most this many pixels [default: the model's]
    #[arg(long, value_name = "N")]
    pub max_pixels: Option<u64>,
}

impl PixelFlags {
    /// The model's limits, with what the flags say in their place.
    pub fn apply(&self, mut spec: PatchSpec) -> Result<PatchSpec> {
        spec.min_pixels = self.min_pixels.unwrap_or(spec.min_pixels);
        spec.max_pixels = self.max_pixels.unwrap_or(spec.max_pixels);
        if spec.min_pixels > spec.max_pixels {
            let (min, max) = (spec.min_pixels, spec.max_pixels);
            return Err(Error::Usage(format!("--min-pixels {min} is above --max-pixels {max}")));
        }
        Ok(spec)
    }
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

/// Opens a model with the adapter, the picture sizes and the device that were asked for.
pub fn open(dir: &Path, adapter: Option<&Path>, pixels: &PixelFlags, compute: &Compute) -> Result<Opened> {
    let (device, precision) = compute.open()?;
    let checkpoint = Checkpoint::open(dir)?;
    let adapter = adapter.map(|dir| Adapter::open(dir, &checkpoint.config)).transpose()?;
    let model = Model::load(&checkpoint, adapter.as_ref())?;
    let spec = pixels.apply(read_patch_spec(dir)?)?;
    let preparer = Preparer::open(dir, &checkpoint.config, spec)?;
    let generation = GenerationConfig::read(dir, &checkpoint.config)?;
    Ok(Opened { engine: Engine::new(model, device, precision), preparer, generation })
}
