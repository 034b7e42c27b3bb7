//! A record: which word, with which arguments.

use crate::ops::{
    Op,
    attention::{Attention, AttentionBackward},
    attention_cached::AttentionCached,
    deepstack_add::{DeepstackAdd, DeepstackAddBackward},
    embed::{Embed, EmbedBackward},
    linear::{Linear, LinearBackward},
    linear_loss::LinearLoss,
    norm::{Norm, NormBackward},
    patch_embed::{PatchEmbed, PatchEmbedBackward},
    qk_rope::{QkRope, QkRopeBackward},
    sample::Sample,
    swiglu::{Swiglu, SwigluBackward},
};

macro_rules! records {
    ($($word:ident)*) => {
        /// One variant a word and direction.
        #[derive(Debug, Clone)]
        pub enum Record {
            $($word($word),)*
        }

        impl Record {
            pub fn op(&self) -> &dyn Op {
                match self {
                    $(Record::$word(op) => op,)*
                }
            }
        }

        $(impl From<$word> for Record {
            fn from(op: $word) -> Record {
                Record::$word(op)
            }
        })*
    };
}

records!(
    Attention AttentionBackward AttentionCached DeepstackAdd DeepstackAddBackward Embed EmbedBackward Linear
    LinearBackward LinearLoss Norm NormBackward PatchEmbed PatchEmbedBackward QkRope QkRopeBackward Sample Swiglu
    SwigluBackward
);
