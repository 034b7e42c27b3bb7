//! What a run learns from, as short text: a resumed run must find it unchanged.
//!
//! SHA-256 of contents, never of times or places: files may be copied or moved. Photos are read whole before the first
//! step, on all threads. That costs a small part of decoding them, which every epoch does, it finds a missing photo
//! before the run and not within it, and nothing less is sure: a photo edited in place often keeps its length.

use crate::base::{Error, Result, input};
use crate::data::dataset::Sample;
use crate::data::messages::ImageSource;
use crate::io::folder_kind::{ADAPTER, CONFIG};
use crate::qwen3vl::adapter::Adapter;
use crate::qwen3vl::checkpoint;
use crate::qwen3vl::template::ADDITIONAL_DEFAULT;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

/// The header of a large checkpoint's file.
const FIRST_BYTES: usize = 1 << 17;
/// Of the rest: at least so many blocks (or all there are) of so many bytes.
const BLOCKS: usize = 256;
const BLOCK_BYTES: usize = 1 << 12;

/// What of a checkpoint folder makes tokens of text and patches of photos, and says how answers are drawn. No more is read
/// of it than these, its config and its weights.
const PROCESSING: [&str; 8] = [
    ADDITIONAL_DEFAULT,
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// Of what a run learns from, the checkpoint folder.
pub const MODEL: &str = "the model";

/// By what they say of it, e.g. "the training set".
pub type Fingerprints = BTreeMap<String, String>;

/// A file's content. Errors: it cannot be read, or is a pipe, of which whoever else reads it has the other part.
pub fn of_file(path: &Path) -> Result<String> {
    let mut file = input::open(path)?;
    input::twice(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer).map_err(|e| Error::io("read", path, e))? {
            0 => return Ok(hex(hash)),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// The contents of all photos, in the order of the samples.
pub fn of_photos(samples: &[Sample]) -> Result<String> {
    let sources: Vec<&ImageSource> = samples.iter().flat_map(Sample::images).collect();
    let hashes: Vec<String> = sources
        .par_iter()
        .map(|source| match source {
            ImageSource::File(path) => of_file(path),
            ImageSource::Bytes { bytes, .. } => Ok(hex(Sha256::new_with_prefix(bytes))),
        })
        .collect::<Result<_>>()?;
    Ok(hex(Sha256::new_with_prefix(hashes.join("\n"))))
}

/// A checkpoint folder: its config, and of each file of weights that is read (an adapter may lie beside them) name, length,
/// first bytes (the names and shapes) and blocks spread evenly over the rest. All of the weights would take a minute to
/// read, and two models differ nearly everywhere. An index has no say: it has to agree with its shards.
pub fn of_model(dir: &Path) -> Result<String> {
    let mut hash = Sha256::new_with_prefix(of_file(&dir.join(CONFIG))?);
    for weights in checkpoint::weights(dir)? {
        let (path, file) = (&weights.path, &weights.file);
        hash.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        hash.update((file.len() as u64).to_le_bytes());
        hash.update(&file[..file.len().min(FIRST_BYTES)]);
        for block in file.chunks(BLOCK_BYTES).step_by((file.len() / BLOCK_BYTES / BLOCKS).max(1)) {
            hash.update(block);
        }
    }
    Ok(hex(hash))
}

/// What a checkpoint folder holds beside weights and config that is read: its tokenizer, templates and the configurations of
/// preprocessing and generation. A file that is missing is none that is empty.
pub fn of_processing(dir: &Path) -> Result<String> {
    let there: Vec<&str> = PROCESSING.into_iter().filter(|name| dir.join(name).exists()).collect();
    of_named(dir, &there)
}

/// An adapter's folder: its configuration and its numbers.
pub fn of_adapter(dir: &Path) -> Result<String> {
    of_named(dir, &ADAPTER)
}

/// A sentence where the adapter of the folder `dir` was trained on other weights than those in the checkpoint folder `model`;
/// None where on these, or where it does not say. Errors: the model cannot be read.
///
/// An adapter changes any weights of its shapes, those that hold it already too.
pub fn other_base(dir: &Path, adapter: &Adapter, model: &Path) -> Result<Option<String>> {
    let Some(base) = &adapter.base_fingerprint else { return Ok(None) };
    if of_model(model)? == *base {
        return Ok(None);
    }
    let named = adapter.config.base_model.as_ref().map_or(String::new(), |named| format!(" ({named})"));
    Ok(Some(format!(
        "the adapter in {} was not trained on the weights in {}: where these hold it already, as those of vlm merge do, leave \
         it out; else give the model that it was trained on{named}",
        dir.display(),
        model.display()
    )))
}

fn of_named(dir: &Path, names: &[&str]) -> Result<String> {
    let line = |name: &&str| Ok(format!("{name} {}\n", of_file(&dir.join(name))?));
    let lines: String = names.iter().map(line).collect::<Result<_>>()?;
    Ok(hex(Sha256::new_with_prefix(lines)))
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
