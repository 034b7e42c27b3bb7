//! A record: which word, with which arguments.

use crate::ops::{
    Op, attention::Attention, attention_cached::AttentionCached, deepstack_add::DeepstackAdd, embed::Embed,
    linear::Linear, norm::Norm, patch_embed::PatchEmbed, qk_rope::QkRope, sample::Sample, swiglu::Swiglu,
};

/// One variant a word.
#[derive(Debug, Clone)]
pub enum Record {
    Attention(Attention),
    AttentionCached(AttentionCached),
    DeepstackAdd(DeepstackAdd),
    Embed(Embed),
    Linear(Linear),
    Norm(Norm),
    PatchEmbed(PatchEmbed),
    QkRope(QkRope),
    Sample(Sample),
    Swiglu(Swiglu),
}

impl Record {
    pub fn op(&self) -> &dyn Op {
        match self {
            Record::Attention(op) => op,
            Record::AttentionCached(op) => op,
            Record::DeepstackAdd(op) => op,
            Record::Embed(op) => op,
            Record::Linear(op) => op,
            Record::Norm(op) => op,
            Record::PatchEmbed(op) => op,
            Record::QkRope(op) => op,
            Record::Sample(op) => op,
            Record::Swiglu(op) => op,
        }
    }
}

macro_rules! from_words {
    ($($word:ident)*) => {
        $(impl From<$word> for Record {
            fn from(op: $word) -> Record {
                Record::$word(op)
            }
        })*
    };
}
from_words!(Attention AttentionCached DeepstackAdd Embed Linear Norm PatchEmbed QkRope Sample Swiglu);
