//! Files of assets/base, which are part of the program: a small model.

use crate::base::{Error, Result};
use std::path::Path;

const FILES: [(&str, &str); 6] = [
    ("chat_template.jinja", include_str!("../../assets/base/chat_template.jinja")),
    ("config.json", include_str!("../../assets/base/config.json")),
    ("generation_config.json", include_str!("../../assets/base/generation_config.json")),
    ("processor_config.json", include_str!("../../assets/base/processor_config.json")),
    ("tokenizer.json", include_str!("../../assets/base/tokenizer.json")),
    ("tokenizer_config.json", include_str!("../../assets/base/tokenizer_config.json")),
];

const WEIGHTS: &[u8] = include_bytes!("../../assets/base/model.safetensors");

/// Writes the checkpoint folder of the base model.
pub fn write_base_model(dir: &Path) -> Result<()> {
    write_base(dir)?;
    let path = dir.join("model.safetensors");
    std::fs::write(&path, WEIGHTS).map_err(|e| Error::io("write", &path, e))
}

/// The same without weights.
pub fn write_base(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
    FILES.iter().try_for_each(|(name, text)| {
        let path = dir.join(name);
        std::fs::write(&path, text).map_err(|e| Error::io("write", &path, e))
    })
}
