//! A Hugging Face checkpoint folder, opened: every tensor found, accounted for and of the right shape.

use super::config::Config;
use super::names;
use crate::base::error::first_of;
use crate::base::{DType, Error, Result};
use crate::io::folder_kind::ADAPTER_WEIGHTS;
use crate::io::json::Fields;
use crate::io::safetensors::{SafetensorsFile, TensorEntry};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

pub(super) const SINGLE_FILE: &str = "model.safetensors";
pub(super) const INDEX_FILE: &str = "model.safetensors.index.json";

/// The tensors stay in the mapped files.
#[derive(Debug)]
pub struct Checkpoint {
    pub dir: PathBuf,
    pub config: Config,
    files: Vec<SafetensorsFile>,
    /// Published name to file and the name there.
    places: HashMap<String, (usize, String)>,
}

/// A tensor where it is stored.
#[derive(Debug, Clone, Copy)]
pub struct StoredTensor<'a> {
    pub file: &'a SafetensorsFile,
    pub entry: &'a TensorEntry,
}

impl<'a> StoredTensor<'a> {
    /// Little-endian elements; see [`TensorEntry::range`] for alignment.
    pub fn bytes(&self) -> &'a [u8] {
        &self.file.file[self.entry.range.clone()]
    }
}

impl Checkpoint {
    /// Opens the folder `dir`. Errors: what [`Config::read`] and [`SafetensorsFile::open`] refuse; no weights; a shard
    /// that is missing; an index that disagrees with its shards; one error for all tensors that are missing,
    /// unexpected, of another shape or of a type that is not f32, bf16 or f16; a tied head that differs from the
    /// embedding.
    pub fn open(dir: &Path) -> Result<Self> {
        let config = Config::read(dir)?;
        let files = weights(dir)?;
        let mut places: HashMap<String, (usize, String)> = HashMap::new();
        for (i, file) in files.iter().enumerate() {
            for (name, _) in file.tensors() {
                let published = names::canonical(name);
                if let Some((other, _)) = places.insert(published.to_string(), (i, name.into())) {
                    let other = files.get(other).map(|f| f.path.display().to_string()).unwrap_or_default();
                    return Err(Error::tensor(&file.path, name, format!("{other} has {published} too")));
                }
            }
        }
        let mut checkpoint = Checkpoint { dir: dir.into(), config, files, places };
        checkpoint.drop_tied_head()?;
        checkpoint.account()?;
        tracing::debug!("{}: {} tensors in {} files", dir.display(), checkpoint.places.len(), checkpoint.files.len());
        Ok(checkpoint)
    }

    /// A tensor by its published name ([`names`]); None for names that [`names::expected`] does not list.
    pub fn tensor(&self, name: &str) -> Option<StoredTensor<'_>> {
        let (file, name_there) = self.places.get(name)?;
        let file = self.files.get(*file)?;
        Some(StoredTensor { file, entry: file.entry(name_there)? })
    }

    /// Every tensor with its published name, in the order of [`names::expected`].
    pub fn tensors(&self) -> impl Iterator<Item = (String, StoredTensor<'_>)> {
        names::expected(&self.config)
            .into_iter()
            .filter_map(|(name, _)| self.tensor(&name).map(|tensor| (name, tensor)))
    }

    pub fn files(&self) -> &[SafetensorsFile] {
        &self.files
    }

    /// A head beside tied embeddings is the same matrix, saved twice.
    fn drop_tied_head(&mut self) -> Result<()> {
        let head = names::weight(names::LM_HEAD);
        if !self.config.tie_word_embeddings {
            return Ok(());
        }
        if let (Some(tied), Some(embedding)) = (self.tensor(&head), self.tensor(&names::weight(names::EMBED_TOKENS)))
            && (tied.entry.dtype != embedding.entry.dtype || tied.bytes() != embedding.bytes())
        {
            let reason = "config.json says tie_word_embeddings, but it differs from the embedding; \
                          set tie_word_embeddings to false if both were trained";
            return Err(Error::tensor(&tied.file.path, head, reason));
        }
        self.places.remove(&head);
        Ok(())
    }

    fn account(&self) -> Result<()> {
        let expected = names::expected(&self.config);
        let mut missing = Vec::new();
        let mut misshapen = Vec::new();
        let mut types = Vec::new();
        for (name, shape) in &expected {
            match self.tensor(name) {
                None => missing.push(name.clone()),
                Some(StoredTensor { entry, .. }) if entry.shape != *shape => {
                    misshapen.push(format!("{name} has {:?} where config.json needs {shape:?}", entry.shape));
                }
                Some(StoredTensor { entry, .. }) if !matches!(entry.dtype, DType::F32 | DType::Bf16 | DType::F16) => {
                    types.push(format!("{name} is {}", entry.dtype));
                }
                Some(_) => {}
            }
        }
        let known: std::collections::HashSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
        let mut unexpected: Vec<&str> = self
            .places
            .iter()
            .filter(|(name, _)| !known.contains(name.as_str()))
            .map(|(_, (_, there))| there.as_str())
            .collect();
        unexpected.sort_unstable();
        let mut problems = Vec::new();
        if missing.iter().any(|name| name.starts_with(names::LM_HEAD)) {
            problems.push("there is no head and config.json does not say tie_word_embeddings".to_string());
        }
        if !missing.is_empty() {
            problems.push(format!("missing: {}", first_of(&missing)));
        }
        if !unexpected.is_empty() {
            problems.push(format!("unexpected: {}", first_of(&unexpected)));
        }
        if !misshapen.is_empty() {
            problems.push(format!("of another shape: {}", first_of(&misshapen)));
        }
        if !types.is_empty() {
            problems.push(format!("of a type other than f32, bf16 and f16: {}", first_of(&types)));
        }
        if problems.is_empty() {
            return Ok(());
        }
        Err(Error::file(&self.dir, format!("the tensors are not those of config.json; {}", problems.join("; "))))
    }
}

/// The files of weights in a checkpoint folder: one, or the shards that an index names, in the order of their names. Errors:
/// there are none; one is missing or no safetensors file; the index disagrees with its shards.
pub fn weights(dir: &Path) -> Result<Vec<SafetensorsFile>> {
    let (single, index) = (dir.join(SINGLE_FILE), dir.join(INDEX_FILE));
    if single.exists() {
        return Ok(vec![SafetensorsFile::open(&single)?]);
    }
    if index.exists() {
        return open_shards(dir, &index);
    }
    let hint = if dir.join(ADAPTER_WEIGHTS).exists() {
        "; this folder holds an adapter: give it with --adapter, and its base model with --model"
    } else if dir.join("pytorch_model.bin").exists() || dir.join("pytorch_model.bin.index.json").exists() {
        "; pickled weights are not read: save the model again as safetensors"
    } else {
        ""
    };
    Err(Error::file(dir, format!("there is neither {SINGLE_FILE} nor {INDEX_FILE}{hint}")))
}

fn open_shards(dir: &Path, index: &Path) -> Result<Vec<SafetensorsFile>> {
    let Some(Value::Object(weight_map)) = Fields::read(index)?.take("weight_map") else {
        return Err(Error::file(index, "weight_map: wanted a table of tensors and files"));
    };
    // By file, in order; each with the tensors that the index puts there.
    let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, file) in &weight_map {
        // A plain file name: an index must not lead out of its folder.
        let Some(file) = file.as_str().filter(|f| Path::new(f).file_name() == Some(std::ffi::OsStr::new(f))) else {
            return Err(Error::tensor(
                index,
                tensor,
                format!("wanted the name of a file beside the index, got {file}"),
            ));
        };
        shards.entry(file).or_default().push(tensor);
    }
    if shards.is_empty() {
        return Err(Error::file(index, "weight_map: it is empty"));
    }
    let absent: Vec<&str> = shards.keys().copied().filter(|file| !dir.join(file).exists()).collect();
    if !absent.is_empty() {
        let reason =
            format!("of {} shards these are missing: {}; download them again", shards.len(), first_of(&absent));
        return Err(Error::file(index, reason));
    }
    let mut files = Vec::with_capacity(shards.len());
    for (name, tensors) in shards {
        let file = SafetensorsFile::open(&dir.join(name))?;
        let not_there: Vec<&str> = tensors.iter().copied().filter(|tensor| file.entry(tensor).is_none()).collect();
        if !not_there.is_empty() {
            return Err(Error::file(
                index,
                format!("{name} does not hold what the index says: {}", first_of(&not_there)),
            ));
        }
        let not_said: Vec<&str> =
            file.tensors().map(|(tensor, _)| tensor).filter(|t| weight_map.get(*t).is_none_or(|f| f != name)).collect();
        if !not_said.is_empty() {
            return Err(Error::file(
                index,
                format!("{name} holds what the index does not put there: {}", first_of(&not_said)),
            ));
        }
        files.push(file);
    }
    Ok(files)
}
