//! `vlm merge`: base and adapter become one plain checkpoint.

use super::model;
use super::progress::Progress;
use super::values::dtype;
use crate::base::{DType, Result, counted};
use crate::qwen3vl::checkpoint::Checkpoint;
use crate::qwen3vl::merge::{self, Options};
use std::path::PathBuf;

/// Write a checkpoint folder with the adapter's change in its weights
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: vlm merge --model Qwen3-VL-2B-Instruct --adapter runs/cars --out cars-merged")]
pub struct Merge {
    /// The base checkpoint folder
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The PEFT LoRA adapter folder
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,
    /// The new folder; it is made, or is there and empty
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Type of the written weights [default: that of the base]
    #[arg(long, value_parser = dtype([DType::Bf16, DType::F16, DType::F32]))]
    dtype: Option<DType>,
}

impl Merge {
    pub fn run(&self) -> Result<()> {
        let base = Checkpoint::open(&self.model)?;
        let adapter = model::open_adapter(&self.adapter, &base)?;
        let options = Options { dtype: self.dtype, ..Options::default() };
        let mut bar = Progress::new("bytes");
        merge::merge(&base, Some(&adapter), &self.out, options, &mut |done, all| bar.at(done, all))?;
        drop(bar);
        let n = counted(adapter.modules.len(), "adapted module", "adapted modules");
        super::print(&format!("merged {n} into {}\n", self.out.display()))
    }
}
