//! The text model: tokens with image rows in place become hidden states, and logits for the rows asked for.
//!
//! Semantics: transformers `modeling_qwen3_vl.py`, Qwen3VLTextModel.

use super::config::{Config, TextConfig};
use super::model::Direction;
use super::parameters::Parameters;
use super::{names, vision};
use crate::base::{DType, Error, Result};
use crate::nn::{self, Embedding, Linear, Norm, NormKind};
use crate::ops::attention::{Attention, Heads, Mask};
use crate::ops::attention_cached::AttentionCached;
use crate::ops::deepstack_add::DeepstackAdd;
use crate::ops::linear::{Activation, Segment};
use crate::ops::linear_loss::LinearLoss;
use crate::ops::qk_rope::{Append, HeadNorms, QkRope};
use crate::ops::swiglu::Swiglu;
use crate::tape::Tape;
use crate::tensor::Tensor;

struct Layer {
    input_norm: Norm,
    qkv: Linear,
    head_norms: HeadNorms,
    o: Linear,
    post_norm: Norm,
    gate_up: Linear,
    down: Linear,
}

pub struct TextModel {
    heads: Heads,
    embed: Embedding,
    layers: Vec<Layer>,
    norm: Norm,
    head: Linear,
}

/// Image rows and where they go: features of the tower, for each token its feature row or -1 [T], and for each feature
/// row its token [U].
pub struct Visual {
    pub features: vision::Features,
    pub rows: Tensor,
    pub tokens: Tensor,
}

/// Keys and values of all layers, and where new ones go (`slots` [T]).
pub struct CacheInputs<'a> {
    /// (keys, values) of each layer.
    pub pools: &'a [(Tensor, Tensor)],
    pub slots: Tensor,
}

/// What the tokens attend to.
pub enum Attend<'a> {
    /// Packed prompts, each from its first token; kept in the cache where there is one.
    Prompt { starts: Tensor, pairs: u64, cache: Option<CacheInputs<'a>> },
    /// New tokens of sequences whose earlier tokens are in the cache.
    Cached { cache: CacheInputs<'a>, starts: Tensor, lengths: Tensor, blocks: Tensor, block: usize },
}

/// Keys of a dropout (i32): of every token [T, 2], and of the rows that go on after the last attention [R, 2].
#[derive(Clone, Copy)]
pub struct Noise {
    pub tokens: Tensor,
    pub rows: Tensor,
}

/// What a forward pass leaves on the tape.
pub struct Hidden {
    /// Embeddings with the image rows in place, then the output of each layer before its deepstack add; the last one
    /// is after the final norm. Kept only when asked for.
    pub trace: Vec<Tensor>,
    /// The rows asked for after the final norm [R, D].
    pub last: Tensor,
}

impl TextModel {
    pub fn load(parameters: &Parameters, config: &Config) -> Result<TextModel> {
        let text: &TextConfig = &config.text;
        let eps = text.rms_norm_eps;
        let norm = |path: &str| {
            let weight = parameters.weight(&names::weight(path))?;
            Ok(Norm { kind: NormKind::Rms { weight }, eps })
        };
        let layer = |l: usize| {
            let at = names::text_layer(l);
            let linear = |modules: &[String]| {
                let segments = modules.iter().map(|m| parameters.segment(m, false)).collect::<Result<_>>()?;
                Ok(Linear { segments })
            };
            Ok(Layer {
                input_norm: norm(&at.input_norm())?,
                qkv: linear(&[at.q_proj(), at.k_proj(), at.v_proj()])?,
                head_norms: HeadNorms {
                    query: parameters.weight(&names::weight(&at.q_norm()))?,
                    key: parameters.weight(&names::weight(&at.k_norm()))?,
                    eps,
                },
                o: linear(&[at.o_proj()])?,
                post_norm: norm(&at.post_attention_norm())?,
                gate_up: linear(&[at.gate_proj(), at.up_proj()])?,
                down: linear(&[at.down_proj()])?,
            })
        };
        let embed = parameters.weight(&names::weight(names::EMBED_TOKENS))?;
        let head = match config.tie_word_embeddings {
            true => parameters.adapted(names::LM_HEAD, embed.clone(), None)?,
            false => parameters.segment(names::LM_HEAD, false)?,
        };
        Ok(TextModel {
            heads: Heads { queries: text.n_heads, keys: text.n_kv_heads, width: text.head_dim },
            embed: Embedding { table: embed },
            layers: (0..text.n_layers).map(layer).collect::<Result<_>>()?,
            norm: norm(names::FINAL_NORM)?,
            head: Linear { segments: vec![head] },
        })
    }

    /// ids [T] and angles [T, E] become hidden states of the rows that `rows` names, or of all where None. With `trace`
    /// those of every layer are kept. `noise` holds the keys of a dropout.
    #[allow(clippy::too_many_arguments, reason = "the inputs of the text model")]
    pub fn forward(
        &self,
        tape: &mut Tape,
        ids: Tensor,
        angles: Tensor,
        visual: Option<&Visual>,
        attend: &Attend,
        rows: Option<Tensor>,
        noise: Option<Noise>,
        trace: bool,
    ) -> Result<Hidden> {
        tape.scope("text.embed");
        let mut kept = Vec::new();
        let mut x = self.embed.apply(tape, ids, visual.map(|v| (v.features.embeds, v.rows)))?;
        if trace {
            kept.push(tape.keep(x));
        }
        // after the last attention nothing mixes tokens any more: only the rows asked for go on
        let taps = visual.map_or(0, |v| v.features.deepstack.len());
        let narrow = |l: usize| rows.filter(|_| l + 1 == self.layers.len() && taps <= l);
        for (l, layer) in self.layers.iter().enumerate() {
            tape.scope(format!("text.layer.{l}"));
            x = self.layer(tape, layer, l, x, angles, attend, narrow(l), noise)?;
            if trace && l + 1 < self.layers.len() {
                kept.push(tape.keep(x));
            }
            if let Some((v, features)) = visual.and_then(|v| Some((v, *v.features.deepstack.get(l)?))) {
                let y = tape.activation(x.shape);
                tape.push(DeepstackAdd { x, features, rows: v.tokens, y })?;
                x = y;
            }
        }
        tape.scope("text.head");
        let last = match rows {
            Some(rows) if self.layers.len() <= taps => self.norm.apply_rows(tape, x, rows)?,
            _ => self.norm.apply(tape, x)?,
        };
        if trace {
            kept.push(tape.keep(last));
        }
        Ok(Hidden { trace: kept, last })
    }

    /// f32 [R, V], kept.
    pub fn logits(&self, tape: &mut Tape, last: Tensor) -> Result<Tensor> {
        let logits = self.head.logits(tape, last)?;
        Ok(tape.keep(logits))
    }

    /// The loss of each row [R] with its label, kept; where something is trained, with the gradient of `scale` times
    /// their sum.
    pub fn loss(
        &self,
        tape: &mut Tape,
        last: Tensor,
        labels: Tensor,
        scale: Tensor,
        direction: Direction,
    ) -> Result<Tensor> {
        let [Segment { weight: head, adapter: None, .. }] = &self.head.segments[..] else {
            return Err(Error::Unsupported(format!(
                "{} is not trained with an adapter: leave it out of --target-modules",
                names::LM_HEAD
            )));
        };
        let value = tape.value(DType::F32, [last.shape.rows()]);
        let losses = tape.keep(value);
        let trains = tape.requires_gradient(&last) || head.as_trained().is_some();
        let dx = (trains && direction == Direction::Both).then(|| tape.activation(last.shape));
        let (head, precision) = (head.clone(), tape.precision());
        tape.push(LinearLoss { x: last, head, labels, scale, precision, losses, dx })?;
        Ok(losses)
    }

    /// One layer; with `rows` everything after its attention is computed for those rows alone.
    #[allow(clippy::too_many_arguments, reason = "the inputs of one layer")]
    fn layer(
        &self,
        tape: &mut Tape,
        layer: &Layer,
        l: usize,
        x: Tensor,
        angles: Tensor,
        attend: &Attend,
        rows: Option<Tensor>,
        noise: Option<Noise>,
    ) -> Result<Tensor> {
        let keys = noise.map(|n| n.tokens);
        let (t, heads, precision) = (x.shape.rows(), self.heads, tape.precision());
        let (q_width, k_width) = (heads.queries * heads.width, heads.keys * heads.width);
        let y = layer.input_norm.apply(tape, x)?;
        let qkv = layer.qkv.apply(tape, y, keys, Activation::None, None)?;
        let (q, k, y) = (tape.activation([t, q_width]), tape.activation([t, k_width]), tape.activation([t, q_width]));
        let scale = (heads.width as f32).powf(-0.5);
        let append = match attend {
            Attend::Prompt { cache: None, .. } => None,
            Attend::Prompt { cache: Some(cache), .. } | Attend::Cached { cache, .. } => {
                let (keys, values) = cache.pools[l];
                Some(Append { keys, values, slots: cache.slots })
            }
        };
        let norms = Some(layer.head_norms.clone());
        tape.push(QkRope { qkv, angles, norms, heads, append, precision, q, k })?;
        match attend {
            Attend::Prompt { starts, pairs, .. } => {
                let (starts, pairs, mask, v_column) = (*starts, *pairs, Mask::Causal, q_width + k_width);
                let lse = nn::attention_lse(tape, &q, &heads);
                tape.push(Attention { q, k, v: qkv, v_column, starts, heads, mask, scale, pairs, y, lse })?;
            }
            Attend::Cached { cache, starts, lengths, blocks, block } => {
                let (keys, values) = cache.pools[l];
                let (starts, lengths, blocks, block) = (*starts, *lengths, *blocks, *block);
                tape.push(AttentionCached { q, keys, values, starts, lengths, blocks, block, heads, scale, y })?;
            }
        }
        let x = match rows {
            Some(rows) => layer.o.apply_rows(tape, y, rows, keys, x)?,
            None => layer.o.apply(tape, y, keys, Activation::None, Some(x))?,
        };
        let keys = noise.map(|n| if rows.is_some() { n.rows } else { n.tokens });
        let y = layer.post_norm.apply(tape, x)?;
        let gate_up = layer.gate_up.apply(tape, y, keys, Activation::None, None)?;
        let y = tape.activation([x.shape.rows(), gate_up.shape.width() / 2]);
        tape.push(Swiglu { gate_up, y })?;
        layer.down.apply(tape, y, keys, Activation::None, Some(x))
    }
}
