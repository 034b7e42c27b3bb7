//! What a checkpoint calls its modules and tensors: the one owner of these strings.
//!
//! The names are those of the published checkpoints, which transformers 4.57 and 5.x read and write for dense models.
//! A module's path plus `.weight` or `.bias` is a tensor's name. Shapes are PyTorch's: `[out, in]` for a linear map.

use super::config::Config;
use std::borrow::Cow;

pub const PATCH_EMBED: &str = "model.visual.patch_embed.proj";
pub const VISION_POSITIONS: &str = "model.visual.pos_embed";
pub const EMBED_TOKENS: &str = "model.language_model.embed_tokens";
pub const FINAL_NORM: &str = "model.language_model.norm";
pub const LM_HEAD: &str = "lm_head";

pub fn weight(module: &str) -> String {
    format!("{module}.weight")
}

pub fn bias(module: &str) -> String {
    format!("{module}.bias")
}

/// Module paths below one prefix, a method each.
macro_rules! modules {
    ($(#[$about:meta])* $name:ident: $($method:ident = $suffix:literal),+ $(,)?) => {
        $(#[$about])*
        #[derive(Debug, Clone)]
        pub struct $name(String);
        impl $name {
            $(pub fn $method(&self) -> String { format!("{}.{}", self.0, $suffix) })+
        }
    };
}

modules!(
    /// A decoder layer.
    TextLayer:
    input_norm = "input_layernorm",
    q_proj = "self_attn.q_proj",
    k_proj = "self_attn.k_proj",
    v_proj = "self_attn.v_proj",
    o_proj = "self_attn.o_proj",
    q_norm = "self_attn.q_norm",
    k_norm = "self_attn.k_norm",
    post_attention_norm = "post_attention_layernorm",
    gate_proj = "mlp.gate_proj",
    up_proj = "mlp.up_proj",
    down_proj = "mlp.down_proj",
);
modules!(
    /// A block of the vision tower.
    VisionBlock:
    norm1 = "norm1",
    qkv = "attn.qkv",
    proj = "attn.proj",
    norm2 = "norm2",
    fc1 = "mlp.linear_fc1",
    fc2 = "mlp.linear_fc2",
);
modules!(
    /// What makes one token of merge_size x merge_size patches.
    Merger: norm = "norm", fc1 = "linear_fc1", fc2 = "linear_fc2",
);

pub fn text_layer(layer: usize) -> TextLayer {
    TextLayer(format!("model.language_model.layers.{layer}"))
}

pub fn vision_block(block: usize) -> VisionBlock {
    VisionBlock(format!("model.visual.blocks.{block}"))
}

/// The merger after the last block: its norm is over one patch.
pub fn merger() -> Merger {
    Merger("model.visual.merger".into())
}

/// The merger of the k-th deepstack tap: its norm is over the merged patches.
pub fn deepstack_merger(k: usize) -> Merger {
    Merger(format!("model.visual.deepstack_merger_list.{k}"))
}

/// Which half of the model a module is in; what `--lora-vision` and `--lora-merger` speak of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    Text,
    Vision,
    Merger,
}

/// A module that has parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    pub path: String,
    pub kind: Kind,
    pub part: Part,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Linear {
        inputs: usize,
        outputs: usize,
        has_bias: bool,
    },
    /// With a bias it is a LayerNorm, else an RMSNorm.
    Norm {
        width: usize,
        has_bias: bool,
    },
    Embedding {
        rows: usize,
        width: usize,
    },
    /// The patch embedding: `[out, channels, frames, rows, columns]`, and a bias.
    Convolution {
        shape: [usize; 5],
    },
}

impl Module {
    /// Its tensors: names with shapes, the weight first.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (shape, bias_width) = match self.kind {
            Kind::Linear { inputs, outputs, has_bias } => (vec![outputs, inputs], has_bias.then_some(outputs)),
            Kind::Norm { width, has_bias } => (vec![width], has_bias.then_some(width)),
            Kind::Embedding { rows, width } => (vec![rows, width], None),
            Kind::Convolution { shape } => (shape.to_vec(), Some(shape[0])),
        };
        let mut tensors = vec![(weight(&self.path), shape)];
        tensors.extend(bias_width.map(|width| (bias(&self.path), vec![width])));
        tensors
    }
}

/// A module that adapters can be put on: y = x W^T + b with W `[outputs, inputs]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearModule {
    pub path: String,
    pub inputs: usize,
    pub outputs: usize,
    pub part: Part,
}

/// Every module with parameters, the vision tower first, each half in the order of its computation. A tied head has no
/// parameters of its own and is not among them.
pub fn modules(config: &Config) -> Vec<Module> {
    let mut all = Vec::new();
    vision_modules(config, &mut all);
    text_modules(config, &mut all);
    all
}

fn vision_modules(config: &Config, all: &mut Vec<Module>) {
    let vision = &config.vision;
    let width = vision.hidden_size;
    let merged = vision.merged_size();
    let mut push = |part, path: String, kind| all.push(Module { path, kind, part });
    let linear = |inputs, outputs| Kind::Linear { inputs, outputs, has_bias: true };
    let norm = |width| Kind::Norm { width, has_bias: true };
    let shape = [width, vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size];
    push(Part::Vision, PATCH_EMBED.into(), Kind::Convolution { shape });
    push(Part::Vision, VISION_POSITIONS.into(), Kind::Embedding { rows: vision.n_positions, width });
    for b in 0..vision.depth {
        let block = vision_block(b);
        push(Part::Vision, block.norm1(), norm(width));
        push(Part::Vision, block.qkv(), linear(width, 3 * width));
        push(Part::Vision, block.proj(), linear(width, width));
        push(Part::Vision, block.norm2(), norm(width));
        push(Part::Vision, block.fc1(), linear(width, vision.intermediate_size));
        push(Part::Vision, block.fc2(), linear(vision.intermediate_size, width));
    }
    let deepstack = (0..vision.deepstack_indexes.len()).map(|k| (deepstack_merger(k), merged));
    for (merger, norm_width) in deepstack.chain([(merger(), width)]) {
        push(Part::Merger, merger.norm(), norm(norm_width));
        push(Part::Merger, merger.fc1(), linear(merged, merged));
        push(Part::Merger, merger.fc2(), linear(merged, vision.out_hidden_size));
    }
}

fn text_modules(config: &Config, all: &mut Vec<Module>) {
    let text = &config.text;
    let width = text.hidden_size;
    let (queries, keys) = (text.n_heads * text.head_dim, text.n_kv_heads * text.head_dim);
    let mut push = |path: String, kind| all.push(Module { path, kind, part: Part::Text });
    let linear = |inputs, outputs| Kind::Linear { inputs, outputs, has_bias: false };
    let norm = |width| Kind::Norm { width, has_bias: false };
    push(EMBED_TOKENS.into(), Kind::Embedding { rows: text.vocab_size, width });
    for l in 0..text.n_layers {
        let layer = text_layer(l);
        push(layer.input_norm(), norm(width));
        push(layer.q_proj(), linear(width, queries));
        push(layer.k_proj(), linear(width, keys));
        push(layer.v_proj(), linear(width, keys));
        push(layer.q_norm(), norm(text.head_dim));
        push(layer.k_norm(), norm(text.head_dim));
        push(layer.o_proj(), linear(queries, width));
        push(layer.post_attention_norm(), norm(width));
        push(layer.gate_proj(), linear(width, text.intermediate_size));
        push(layer.up_proj(), linear(width, text.intermediate_size));
        push(layer.down_proj(), linear(text.intermediate_size, width));
    }
    push(FINAL_NORM.into(), norm(width));
    if !config.tie_word_embeddings {
        push(LM_HEAD.into(), linear(width, text.vocab_size));
    }
}

/// Every linear module in the order of [`modules`]; an untied head is the last.
pub fn linear_modules(config: &Config) -> Vec<LinearModule> {
    let linear = modules(config).into_iter().filter_map(|Module { path, kind, part }| match kind {
        Kind::Linear { inputs, outputs, .. } => Some(LinearModule { path, inputs, outputs, part }),
        _ => None,
    });
    linear.collect()
}

/// Names and shapes of every tensor that a checkpoint of `config` holds, in the order of [`modules`].
pub fn expected(config: &Config) -> Vec<(String, Vec<usize>)> {
    modules(config).iter().flat_map(Module::tensors).collect()
}

/// How many parameters and tensors a model has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub vision: u64,
    /// The language model, with the head where it is untied.
    pub text: u64,
    pub tensors: usize,
}

impl Counts {
    pub fn of(config: &Config) -> Self {
        let mut counts = Counts::default();
        for module in modules(config) {
            for (_, shape) in module.tensors() {
                let elements = shape.iter().map(|&n| n as u64).product::<u64>();
                match module.part {
                    Part::Text => counts.text += elements,
                    Part::Vision | Part::Merger => counts.vision += elements,
                }
                counts.tensors += 1;
            }
        }
        counts
    }

    pub fn parameters(&self) -> u64 {
        self.vision + self.text
    }
}

/// Prefixes that other programs and versions have written, longest first where one begins another.
const OLDER_PREFIXES: [(&str, &str); 7] = [
    ("visual.", "model.visual."),
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("language_model.", "model.language_model."),
    ("model.layers.", "model.language_model.layers."),
    ("model.embed_tokens.", "model.language_model.embed_tokens."),
    ("model.norm.", "model.language_model.norm."),
];

/// The published spelling of a tensor's name; any other name comes back as it is.
pub fn canonical(name: &str) -> Cow<'_, str> {
    for (older, published) in OLDER_PREFIXES {
        if let Some(rest) = name.strip_prefix(older) {
            return Cow::Owned(format!("{published}{rest}"));
        }
    }
    Cow::Borrowed(name)
}
