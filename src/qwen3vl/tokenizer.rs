//! The checkpoint's tokenizer: text to ids and back.
//!
//! Byte-level BPE after NFC, of the vocabulary, merges and added tokens in `tokenizer.json`. Special tokens in the text are
//! recognised wherever they stand, typed by a user or not, as transformers does; nothing is added before or after.
//!
//! Qwen2Tokenizer of transformers 5.17 normalises and splits in one way whatever that file says, and lets
//! `tokenizer_config.json` add tokens. Files of which it would make other ids than the ones here are refused.

use crate::base::width::in_line;
use crate::base::{Error, Result, input};
use crate::io::json::{self, brief};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
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
    /// This and the normaliser the library reads as JSON and takes for granted that they are: damaged, it panics.
    #[serde(default, rename = "decoder")]
    _decoder: Value,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
}

/// The library gives such a token the id that the vocabulary has for it, or else the next one, whatever stands here.
#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
}

/// Where Qwen's texts are split before bytes are joined.
const SPLIT: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl Beside {
    /// The normaliser and the splits that transformers makes whatever stands here; the key of one that is another.
    fn other_than_qwens(&self) -> Option<(&'static str, &Value)> {
        let normalizer = json!({"type": "NFC"});
        let mut splits = self.pre_tokenizer.clone();
        if let Some(bytes) = splits.pointer_mut("/pretokenizers/1").and_then(Value::as_object_mut) {
            // of offsets alone
            bytes.remove("trim_offsets");
        }
        let wanted = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false},
        ]});
        if self.normalizer != normalizer {
            return Some(("normalizer", &self.normalizer));
        }
        (splits != wanted).then_some(("pre_tokenizer", &self.pre_tokenizer))
    }
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a checkpoint folder. Errors: of that file; `tokenizer_config.json` asks for other tokens.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let (tokenizer, added) = Self::open(&folder.join("tokenizer.json"))?;
        let path = folder.join("tokenizer_config.json");
        match json::read_object_if_there(&path)?.and_then(|config| other_tokens(&config, &added)) {
            Some(said) => Err(Error::file(path, said)),
            None => Ok(tokenizer),
        }
    }

    pub fn from_file(path: &Path) -> Result<Self> {
        Self::open(path).map(|(tokenizer, _)| tokenizer)
    }

    /// With the added tokens.
    fn open(path: &Path) -> Result<(Self, BTreeMap<String, u32>)> {
        let bytes = input::read(path)?;
        let wrong =
            |e: String| Error::file(path, format!("is not a tokenizer of Hugging Face's tokenizers: {}", in_line(&e)));
        let beside: Beside = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| wrong(e.to_string()))?;
        if let Some((key, found)) = beside.other_than_qwens() {
            let said = format!(
                "{key}: it is {}, and transformers splits texts of Qwen3-VL in one way whatever it is; take the file of \
                 the original checkpoint",
                brief(found)
            );
            return Err(Error::file(path, said));
        }
        for Added { id, content } in &beside.added_tokens {
            if let Some(known) = inner.token_to_id(content).filter(|known| known != id) {
                let token = in_line(content);
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
        inner.with_padding(None);
        let around = inner.encode_fast("", true).map_err(|e| wrong(e.to_string()))?;
        if let Some(token) = around.get_tokens().first() {
            let said = format!(
                "post_processor: it adds {} to every text, which Qwen3-VL's does not; take the file of the original \
                 checkpoint",
                in_line(token)
            );
            return Err(Error::file(path, said));
        }
        inner.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
        let largest = inner.get_vocab(true).into_values().max();
        let Some(largest) = largest else { return Err(Error::file(path, "holds no tokens")) };
        let added = beside.added_tokens.into_iter().map(|Added { id, content }| (content, id)).collect();
        Ok((Tokenizer { inner, path: path.into(), n_tokens: largest as usize + 1 }, added))
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

/// The text of a token in `tokenizer_config.json`: that itself, or an object with it.
pub(super) fn content(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

/// What of `tokenizer_config.json` makes other ids in transformers than `tokenizer.json` does, whose added tokens are given.
fn other_tokens(config: &Map<String, Value>, added: &BTreeMap<String, u32>) -> Option<String> {
    const TAKE: &str = "take both files from one checkpoint";
    for key in ["add_prefix_space", "split_special_tokens"] {
        if config.get(key) == Some(&Value::Bool(true)) {
            return Some(format!("{key}: it is true, and this program computes with false only"));
        }
    }
    if let Some(Value::Object(decoder)) = config.get("added_tokens_decoder") {
        let listed = decoder.iter().filter_map(|(id, token)| Some((content(token)?.into(), id.parse().ok()?)));
        let listed: BTreeMap<String, u32> = listed.collect();
        let (here, there) = (listed.iter().collect::<BTreeSet<_>>(), added.iter().collect::<BTreeSet<_>>());
        if let Some((token, id)) = here.symmetric_difference(&there).next() {
            let (has, lacks) =
                if listed.get(*token) == Some(*id) { ("it", "tokenizer.json") } else { ("tokenizer.json", "it") };
            let token = in_line(token);
            return Some(format!(
                "added_tokens_decoder: {has} has the token {token} with the id {id}, and {lacks} has not; {TAKE}"
            ));
        }
    }
    config
        .iter()
        .flat_map(|(key, value)| -> Vec<(&str, &str)> {
            let tokens: Vec<&Value> = match (key.as_str(), value) {
                ("additional_special_tokens" | "extra_special_tokens", Value::Array(list)) => list.iter().collect(),
                ("additional_special_tokens" | "extra_special_tokens", Value::Object(named)) => {
                    named.values().collect()
                }
                (key, value) if key.ends_with("_token") => vec![value],
                _ => Vec::new(),
            };
            tokens.into_iter().filter_map(|token| Some((key.as_str(), content(token)?))).collect()
        })
        .find(|(_, token)| !added.contains_key(*token))
        .map(|(key, token)| format!("{key}: tokenizer.json does not list {} as an added token; {TAKE}", in_line(token)))
}
