//! `vlm init`: a checkpoint of random weights.

use super::progress::Progress;
use super::values::dtype;
use crate::base::{DType, Result};
use crate::qwen3vl::checkpoint::Checkpoint;
use crate::qwen3vl::init::{self, Options};
use crate::qwen3vl::names::Counts;
use crate::qwen3vl::save;
use std::path::PathBuf;

/// Write a checkpoint folder of a configuration's shapes with random weights
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: vlm init --config Qwen3-VL-8B-Instruct --out random-8b --dtype bf16")]
pub struct Init {
    /// A folder with config.json (and, to be copied, tokenizer, template and processor files)
    #[arg(long, value_name = "DIR")]
    config: PathBuf,
    /// tokenizer.json to put into the new folder [default: the one of --config]
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// The new folder; it is made, or is there and empty
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The same seed gives the same weights
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Type of the weights
    #[arg(long, default_value = "bf16", value_parser = dtype([DType::Bf16, DType::F32]))]
    dtype: DType,
}

impl Init {
    pub fn run(&self) -> Result<()> {
        let options = Options { seed: self.seed, dtype: self.dtype, shard_bytes: save::SHARD_BYTES };
        let mut bar = Progress::new("bytes");
        let progress = &mut |done, all| bar.at(done, all);
        init::init(&self.config, self.tokenizer.as_deref(), &self.out, options, progress)?;
        drop(bar);
        let made = Checkpoint::open(&self.out)?;
        let n = Counts::of(&made.config).parameters();
        super::print(&format!("{n} parameters in {}\n", self.out.display()))
    }
}
