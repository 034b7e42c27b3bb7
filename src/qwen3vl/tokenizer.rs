//! The checkpoint's tokenizer: text to ids and back.
//!
//! Byte-level BPE after NFC, as `tokenizer.json` says. Special tokens in the text are recognised wherever they stand,
//! typed by a user or not, as transformers does; nothing is added before or after.

use crate::base::width::in_line;
use crate::base::{Error, Result, input};
use serde::Deserialize;
use serde_json::Value;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// What [`Tokenizer::decode`] does with `<|im_end|>` and its like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Specials {
    Keep,
    Skip,
}

/// One token of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub id: u32,
    /// The bytes of the text, before normalisation, that it came from. Tokens that share one character all have the
    /// range of that whole character.
    pub bytes: Range<usize>,
}

pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    n_tokens: usize,
}

/// What is looked at beside the library.
#[derive(Deserialize)]
struct Beside {
    #[serde(default)]
    added_tokens: Vec<Added>,
    /// This and the next one the library reads as JSON and takes for granted that they are: damaged, it panics.
    #[serde(default, rename = "decoder")]
    _decoder: Value,
    #[serde(default, rename = "normalizer")]
    _normalizer: Value,
}

/// The library gives such a token the id that the vocabulary has for it, or else the next one, whatever stands here.
#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a checkpoint folder.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        Self::from_file(&folder.join("tokenizer.json"))
    }

    pub fn from_file(path: &Path) -> Result<Self> {
        let bytes = input::read(path)?;
        let wrong =
            |e: String| Error::file(path, format!("is not a tokenizer of Hugging Face's tokenizers: {}", in_line(&e)));
        let beside: Beside = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| wrong(e.to_string()))?;
        for Added { id, content } in beside.added_tokens {
            if let Some(known) = inner.token_to_id(&content).filter(|known| *known != id) {
                let token = in_line(&content);
                let said = format!(
                    "lists the added token {token} with the id {id}, and its vocabulary and the order of added_tokens \
                     give it {known}; take the file of the original checkpoint"
                );
                return Err(Error::file(path, said));
            }
        }
        // A file may hold the truncation of its author's last call, and a post-processor that trims the offsets.
        inner
            .with_truncation(None)
            .map_err(|e| Error::file(path, format!("cannot be used without truncation: {e}")))?;
        inner.with_padding(None).with_post_processor(None::<tokenizers::PostProcessorWrapper>);
        let largest = inner.get_vocab(true).into_values().max();
        let Some(largest) = largest else { return Err(Error::file(path, "holds no tokens")) };
        Ok(Tokenizer { inner, path: path.into(), n_tokens: largest as usize + 1 })
    }

    /// One more than the largest id. Checkpoints have more embedding rows than that, and those ids mean nothing.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The id of a whole token such as `<|im_end|>`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// [`Tokenizer::token_id`] of a token that the model cannot do without.
    pub fn need_token(&self, token: &str) -> Result<u32> {
        self.token_id(token).ok_or_else(|| {
            Error::file(&self.path, format!("has no token {token}; is it the tokenizer of a Qwen3-VL checkpoint?"))
        })
    }

    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(|e| self.failed("split a text", &e))?;
        Ok(encoding.get_ids().to_vec())
    }

    pub fn encode_with_offsets(&self, text: &str) -> Result<Vec<Token>> {
        let encoding = self.inner.encode(text, false).map_err(|e| self.failed("split a text", &e))?;
        let tokens = encoding.get_ids().iter().zip(encoding.get_offsets());
        Ok(tokens.map(|(&id, &(start, end))| Token { id, bytes: start..end }).collect())
    }

    /// Bytes that are not UTF-8 become U+FFFD; ids that are no token are left out.
    pub fn decode(&self, ids: &[u32], specials: Specials) -> Result<String> {
        self.inner.decode(ids, specials == Specials::Skip).map_err(|e| self.failed("decode ids", &e))
    }

    fn failed(&self, doing: &str, error: &tokenizers::Error) -> Error {
        Error::file(&self.path, format!("cannot {doing}: {error}"))
    }
}
