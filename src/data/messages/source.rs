//! Where an image comes from: a file, or bytes inside the JSON itself.

use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An encoded image (PNG, JPEG, …), not yet decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageSource {
    /// An existing file.
    File(PathBuf),
    /// A `data:` URL's content; `name` is what messages call it.
    Bytes { name: String, bytes: Arc<[u8]> },
}

impl std::fmt::Display for ImageSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ImageSource::File(path) => write!(f, "{}", path.display()),
            ImageSource::Bytes { name, .. } => write!(f, "{name}"),
        }
    }
}

impl ImageSource {
    /// The file, where it is one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            ImageSource::File(path) => Some(path),
            ImageSource::Bytes { .. } => None,
        }
    }

    /// Understands a path (relative to `folder`), a `file://` URL (taken verbatim after the scheme, as qwen-vl-utils
    /// does) and a `data:` URL. The error is a sentence without the place, which the caller adds.
    pub(super) fn parse(text: &str, folder: &Path) -> Result<Self, String> {
        let scheme = |name: &str| text.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name));
        if scheme("http://") || scheme("https://") {
            return Err(format!(
                "{} is on the network, and images are read from files and data: URLs only; download it (for example \
                 with curl -LO) and give its path",
                shown(text)
            ));
        }
        if scheme("data:") {
            return data_url(text);
        }
        let name = if scheme("file://") { &text["file://".len()..] } else { text };
        if name.is_empty() {
            return Err("an image's path is empty".into());
        }
        let path = folder.join(name);
        match std::fs::metadata(&path) {
            Ok(found) if found.is_file() => Ok(ImageSource::File(path)),
            Ok(_) => Err(format!("the image {} is not a file", shown(&path.to_string_lossy()))),
            Err(e) => Err(format!(
                "cannot find the image {}: {e}; paths are relative to the file that names them",
                shown(&path.to_string_lossy())
            )),
        }
    }

    /// `{"base64": "…"}` of transformers: the bare encoding.
    pub(super) fn from_base64(text: &str) -> Result<Self, String> {
        decode("base64 image", text)
    }
}

fn data_url(text: &str) -> Result<ImageSource, String> {
    let Some((head, body)) = text.split_once(',') else {
        return Err(format!("the image {} has no comma, so no data", shown(text)));
    };
    let kind = head.get("data:".len()..).unwrap_or_default();
    let Some(media) = kind.strip_suffix(";base64") else {
        return Err(format!("the image {} is not base64; wanted data:image/…;base64,…", shown(text)));
    };
    let media = media.split(';').next().unwrap_or_default();
    if !(media.is_empty() || media.starts_with("image/") || media == "application/octet-stream") {
        return Err(format!("a data: URL of type {} where an image was wanted", shown(media)));
    }
    decode(shown(head).as_str(), body)
}

fn decode(name: &str, text: &str) -> Result<ImageSource, String> {
    // Encoders differ in whether they pad, and the padding carries nothing.
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let bytes = GeneralPurpose::new(&base64::alphabet::STANDARD, config)
        .decode(text.trim())
        .map_err(|e| format!("{name}: broken base64: {e}"))?;
    if bytes.is_empty() {
        return Err(format!("{name}: holds no data"));
    }
    Ok(ImageSource::Bytes { name: format!("{name} ({} bytes)", bytes.len()), bytes: bytes.into() })
}

/// Short enough for a message: people put whole pictures where a path belongs.
pub(super) fn shown(text: &str) -> String {
    const LONGEST: usize = 200;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
