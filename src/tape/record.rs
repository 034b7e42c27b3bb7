//! A record: which word, with which arguments.

use crate::ops::{
    Op,
    attention::{Attention, AttentionBackward},
    attention_cached::AttentionCached,
    deepstack_add::{DeepstackAdd, DeepstackAddBackward},
    embed::{Embed, EmbedBackward},
    linear::following::{Followed, Following},
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

impl Record {
    /// This product with the record after it, where the two may run as one.
    pub fn followed<'a>(&'a self, next: &'a Record) -> Option<Followed<'a>> {
        let Record::Linear(product) = self else { return None };
        let next = match next {
            Record::Swiglu(op) => Following::Swiglu(op),
            Record::QkRope(op) => Following::QkRope(op),
            Record::Norm(op) => Following::Norm(op),
            _ => return None,
        };
        Followed::of(product, next)
    }
}
