//! `vlm inspect`: what a folder holds, and what running it takes.

use super::values::{size, tokens};
use crate::base::counted::{bytes, counted, grouped};
use crate::base::{DType, Error, Precision, Result};
use crate::data::image::PatchSpec;
use crate::infer::cache;
use crate::io::folder_kind::{self, ADAPTER_CONFIG, ADAPTER_WEIGHTS, Wanted};
use crate::io::safetensors::SafetensorsFile;
use crate::qwen3vl::adapter::AdapterConfig;
use crate::qwen3vl::checkpoint::Checkpoint;
use crate::qwen3vl::config::{self, Config};
use crate::qwen3vl::model::{Model, Rows};
use crate::qwen3vl::names::Counts;
use crate::qwen3vl::pack::{Packed, Sequence};
use crate::qwen3vl::processor::read_patch_spec;
use crate::tape::Tape;
use serde_json::json;
use std::fmt::Write;
use std::path::PathBuf;

/// Sizes, parameters and memory of a model folder (its config.json is enough), or of an adapter
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: vlm inspect Qwen3-VL-8B-Instruct --image 1000x667 --new-tokens 64")]
pub struct Inspect {
    /// A checkpoint or adapter folder
    dir: PathBuf,
    /// Size of the picture that memory is planned for
    #[arg(long, value_name = "WxH", default_value = "640x480", value_parser = size)]
    image: (usize, usize),
    /// Text tokens of the prompt that memory is planned for
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = tokens)]
    prompt_tokens: usize,
    /// Answer tokens that memory is planned for
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = tokens)]
    new_tokens: usize,
    /// Print the tape of the prompt's pass: shapes, cost and memory of each operation
    #[arg(long, conflicts_with = "json")]
    trace: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

impl Inspect {
    pub fn run(&self) -> Result<()> {
        if self.dir.join(folder_kind::CONFIG).exists() {
            self.model()
        } else if self.dir.join(ADAPTER_CONFIG).exists() {
            self.adapter()
        } else {
            config::folder(&self.dir)?;
            folder_kind::check(&self.dir, Wanted::Model)?;
            let said = format!("holds neither {} (a model) nor {ADAPTER_CONFIG} (an adapter)", folder_kind::CONFIG);
            Err(Error::file(&self.dir, said))
        }
    }

    fn model(&self) -> Result<()> {
        let config = Config::read(&self.dir)?;
        let counts = Counts::of(&config);
        // weights are there, or only their configuration
        let has_weights = std::fs::read_dir(&self.dir)
            .map_err(|e| Error::io("read", &self.dir, e))?
            .flatten()
            .any(|f| f.path().extension().is_some_and(|e| e == "safetensors"));
        let checkpoint = if has_weights { Some(Checkpoint::open(&self.dir)?) } else { None };
        let stored: Option<u64> =
            checkpoint.as_ref().map(|c| c.tensors().map(|(_, t)| t.bytes().len() as u64).sum::<u64>());
        let spec =
            if self.dir.join("preprocessor_config.json").exists() || self.dir.join("processor_config.json").exists() {
                read_patch_spec(&self.dir)?
            } else {
                PatchSpec::default()
            };
        let plans = [Precision::F32, Precision::Bf16].map(|p| self.plan(&config, &spec, p));
        let [f32, bf16] = plans;
        let (f32, bf16) = (f32?, bf16?);
        if self.trace {
            return super::print(&format!("{}\n", f32.trace));
        }
        let (t, v) = (&config.text, &config.vision);
        if self.json {
            let plan = |p: &Plan| json!({"activation_bytes": p.activations, "cache_bytes": p.cache, "prompt_flops": p.flops, "prompt_tokens": p.tokens});
            return super::print_json(&json!({
                "parameters": counts.parameters(),
                "text_parameters": counts.text,
                "vision_parameters": counts.vision,
                "tensors": counts.tensors,
                "weight_bytes": stored,
                "tied": config.tie_word_embeddings,
                "text": {"layers": t.n_layers, "hidden_size": t.hidden_size, "heads": t.n_heads, "kv_heads": t.n_kv_heads,
                         "head_dim": t.head_dim, "intermediate_size": t.intermediate_size, "vocab_size": t.vocab_size},
                "vision": {"depth": v.depth, "hidden_size": v.hidden_size, "heads": v.n_heads,
                           "intermediate_size": v.intermediate_size, "deepstack_indexes": v.deepstack_indexes,
                           "patch_size": v.patch_size},
                "memory": {"f32": plan(&f32), "bf16": plan(&bf16)},
            }));
        }
        let mut said = String::new();
        let mut line = |name: &str, text: String| _ = writeln!(said, "{name:<12}{text}");
        line(
            "parameters",
            format!(
                "{} (text {}, vision {})",
                grouped(counts.parameters(), ','),
                grouped(counts.text, ','),
                grouped(counts.vision, ',')
            ),
        );
        line(
            "tensors",
            format!(
                "{}{}",
                counts.tensors,
                if config.tie_word_embeddings { ", head tied to the embedding" } else { "" }
            ),
        );
        line(
            "weights",
            match stored {
                Some(n) => format!("{} in this folder", bytes(n)),
                None => format!("none in this folder; {} as bf16", bytes(2 * counts.parameters())),
            },
        );
        line(
            "text",
            format!(
                "{} of {}, {} of {} on {}, MLP {}, vocabulary {}",
                counted(t.n_layers, "layer", "layers"),
                t.hidden_size,
                counted(t.n_heads, "head", "heads"),
                t.head_dim,
                counted(t.n_kv_heads, "key head", "key heads"),
                t.intermediate_size,
                t.vocab_size
            ),
        );
        line(
            "vision",
            format!(
                "{} of {}, {}, MLP {}, patches of {}, deepstack after {:?}",
                counted(v.depth, "block", "blocks"),
                v.hidden_size,
                counted(v.n_heads, "head", "heads"),
                v.intermediate_size,
                v.patch_size,
                v.deepstack_indexes
            ),
        );
        let (w, h) = self.image;
        line(
            "answering",
            format!(
                "a {w} x {h} photo with {} ({} tokens), {}, beside the weights:",
                counted(self.prompt_tokens, "text token", "text tokens"),
                f32.tokens,
                counted(self.new_tokens, "new one", "new ones")
            ),
        );
        for (name, p) in [("f32", &f32), ("bf16", &bf16)] {
            line("", format!("{name:<5} activations {}, cache {}", bytes(p.activations), bytes(p.cache)));
        }
        line("", format!("{:.2} TFLOP for the prompt", f32.flops as f64 / 1e12));
        super::print(&said)
    }

    /// What a prompt needs, from a dry run of its tape.
    fn plan(&self, config: &Config, spec: &PatchSpec, precision: Precision) -> Result<Plan> {
        let model = Model::dry(config, DType::Bf16)?;
        let (w, h) = self.image;
        let (height, width) = spec.target_size(h, w)?;
        let grid = [1, height / spec.patch, width / spec.patch];
        let image_tokens = grid.iter().product::<usize>() / (spec.merge * spec.merge);
        let tokens = image_tokens + self.prompt_tokens;
        let is_image = (0..tokens).map(|i| i < image_tokens).collect();
        let sequence = Sequence { ids: vec![0; tokens], is_image, grids: vec![grid], pixels: Vec::new() };
        let mut tape = Tape::new(precision);
        model.prompt(&mut tape, &Packed::new(&[&sequence], spec.merge)?, Rows::Last, None, false)?;
        let blocks = cache::blocks_for(tokens + self.new_tokens);
        Ok(Plan {
            tokens,
            activations: tape.plan().bytes as u64,
            cache: cache::bytes(&config.text, precision, blocks) as u64,
            flops: tape.cost().flops,
            trace: if self.trace { tape.to_string() } else { String::new() },
        })
    }

    fn adapter(&self) -> Result<()> {
        if self.trace {
            return Err(Error::Usage("--trace is of a model, and this folder holds an adapter; give its model".into()));
        }
        let config = AdapterConfig::read(&self.dir)?;
        let file = SafetensorsFile::open(&self.dir.join(ADAPTER_WEIGHTS))?;
        let parameters: u64 = file.tensors().map(|(_, t)| t.elements() as u64).sum();
        let tensors = file.tensors().len();
        if self.json {
            return super::print_json(&json!({
                "rank": config.rank, "alpha": config.alpha, "rslora": config.use_rslora,
                "parameters": parameters, "tensors": tensors,
            }));
        }
        let mut said = String::new();
        let mut line = |name: &str, text: String| _ = writeln!(said, "{name:<12}{text}");
        line(
            "adapter",
            format!(
                "LoRA, rank {}, alpha {}{}",
                config.rank,
                config.alpha,
                if config.use_rslora { ", rsLoRA" } else { "" }
            ),
        );
        line("parameters", format!("{} in {}", grouped(parameters, ','), counted(tensors, "tensor", "tensors")));
        for (name, entry) in file.tensors() {
            _ = writeln!(said, "  {name} {} {:?}", entry.dtype, entry.shape);
        }
        super::print(&said)
    }
}

struct Plan {
    tokens: usize,
    activations: u64,
    cache: u64,
    flops: u64,
    trace: String,
}
