//! Files of assets/base, which are part of the program: a small model.

use crate::base::{Error, Result};
use crate::io::atomic;
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
    atomic::write_file(&dir.join("model.safetensors"), |file| file.write(WEIGHTS))
}

/// The same without weights.
pub fn write_base(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
    FILES.iter().try_for_each(|(name, text)| atomic::write_file(&dir.join(name), |file| file.write(text.as_bytes())))
}
