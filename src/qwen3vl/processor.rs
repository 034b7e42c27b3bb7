//! The image processor's constants, from the `image_processor` object of `processor_config.json`, or where there is none
//! from `preprocessor_config.json`: transformers 5.17 looks in this order (image_processing_base.py).
//!
//! Every key is either used, known to change nothing, or an error: a file that asks for other maths must not be
//! answered with ours.

use crate::base::{Error, Result};
use crate::data::image::{AN_AREA, AREAS, PatchSpec};
use crate::io::json;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Reads the image processor's constants of the checkpoint folder `dir`.
///
/// Errors name file and key: neither file is there, a key that is needed is missing, or one asks for something that
/// this program does not do.
pub fn read_patch_spec(dir: &Path) -> Result<PatchSpec> {
    let file = ConfigFile::of(dir)?;
    file.check()?;
    file.spec()
}

/// The file of `dir` that they are in.
pub fn patch_spec_file(dir: &Path) -> Result<PathBuf> {
    ConfigFile::of(dir).map(|file| file.path)
}

struct ConfigFile {
    path: PathBuf,
    /// Where the keys are in the file.
    prefix: &'static str,
    keys: Map<String, Value>,
}

impl ConfigFile {
    fn of(dir: &Path) -> Result<ConfigFile> {
        super::config::folder(dir)?;
        let [shared, own] = ["processor_config.json", "preprocessor_config.json"].map(|name| dir.join(name));
        let mut whole = json::read_if_there(&shared)?;
        let nested =
            whole.as_mut().and_then(|v| v.get_mut("image_processor")).map(Value::take).filter(|v| !v.is_null());
        let (path, prefix, found) = match nested {
            Some(nested) => (shared, "image_processor.", nested),
            None => match (json::read_if_there(&own)?, whole) {
                (Some(found), _) => (own, "", found),
                (None, Some(_)) => return Err(Error::file(&shared, "wanted an image_processor object, found none")),
                (None, None) => {
                    return Err(Error::file(
                        dir,
                        "has neither preprocessor_config.json nor processor_config.json; copy it from the model that \
                         this one was made from",
                    ));
                }
            },
        };
        match found {
            Value::Object(keys) => Ok(ConfigFile { path, prefix, keys }),
            other => {
                let wanted = if prefix.is_empty() { "an object" } else { "an image_processor object" };
                Err(Error::file(&path, format!("wanted {wanted}, got {other}")))
            }
        }
    }

    fn wrong(&self, key: &str, reason: impl std::fmt::Display) -> Error {
        Error::file(&self.path, format!("{}{key}: {reason}", self.prefix))
    }

    /// The key's value; a null counts as missing, as in transformers.
    fn get(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).filter(|v| !v.is_null())
    }

    /// Refuses values that would change the maths, and keys that nobody here knows.
    fn check(&self) -> Result<()> {
        for (key, value) in self.keys.iter().filter(|(_, v)| !v.is_null()) {
            let only = |wanted: &str, holds: bool| {
                if holds { Ok(()) } else { Err(self.wrong(key, format!("wanted {wanted}, got {value}"))) }
            };
            match key.as_str() {
                "patch_size"
                | "temporal_patch_size"
                | "merge_size"
                | "size"
                | "min_pixels"
                | "max_pixels"
                | "image_mean"
                | "image_std" => {}
                // Say nothing about the result.
                "processor_class"
                | "auto_map"
                | "transformers_version"
                | "_valid_processor_keys"
                | "return_tensors"
                | "device"
                | "disable_grouping"
                | "default_to_square"
                | "crop_size"
                | "pad_size"
                | "input_data_format" => {}
                "image_processor_type" | "feature_extractor_type" => only(
                    "Qwen2VLImageProcessor or Qwen2VLImageProcessorFast",
                    matches!(value.as_str(), Some("Qwen2VLImageProcessor" | "Qwen2VLImageProcessorFast")),
                )?,
                "do_resize" | "do_rescale" | "do_normalize" | "do_convert_rgb" => {
                    only("true", value.as_bool() == Some(true))?;
                }
                "do_center_crop" | "do_pad" => only("false", value.as_bool() == Some(false))?,
                "resample" => only("3 (bicubic)", value.as_u64() == Some(3))?,
                "rescale_factor" => only(
                    "1/255 (0.00392156862745098)",
                    value.as_f64().is_some_and(|f| (f * 255.0 - 1.0).abs() < 1e-12),
                )?,
                "data_format" => only("channels_first", value.as_str() == Some("channels_first"))?,
                _ => return Err(self.wrong(key, "this key is not known, and may change what the model is shown")),
            }
        }
        Ok(())
    }

    fn spec(&self) -> Result<PatchSpec> {
        let (min_pixels, max_pixels) =
            (self.pixels("min_pixels", "shortest_edge")?, self.pixels("max_pixels", "longest_edge")?);
        if min_pixels > max_pixels {
            return Err(self.wrong("size", format!("the least area {min_pixels} is above the largest {max_pixels}")));
        }
        Ok(PatchSpec {
            patch: self.count("patch_size", 1024)?,
            temporal: self.count("temporal_patch_size", 16)?,
            merge: self.count("merge_size", 16)?,
            min_pixels,
            max_pixels,
            mean: self.channels("image_mean", |v| v.is_finite())?,
            std: self.channels("image_std", |v| v.is_finite() && v > 0.0)?,
        })
    }

    fn needed(&self, key: &str) -> Result<&Value> {
        self.get(key).ok_or_else(|| self.wrong(key, "is missing"))
    }

    fn count(&self, key: &str, most: u64) -> Result<usize> {
        let value = self.needed(key)?;
        let count = value.as_u64().filter(|n| (1..=most).contains(n)).and_then(|n| usize::try_from(n).ok());
        count.ok_or_else(|| self.wrong(key, format!("wanted a whole number from 1 to {most}, got {value}")))
    }

    /// An area: the key itself overrules that of `size`, as in transformers. Despite their names, `shortest_edge` and
    /// `longest_edge` are areas too.
    fn pixels(&self, key: &str, in_size: &str) -> Result<u64> {
        let (name, value) = match (self.get(key), self.get("size")) {
            (Some(value), _) => (key.to_string(), value),
            (None, Some(size)) => {
                let name = format!("size.{in_size}");
                let value = size.get(in_size).ok_or_else(|| self.wrong(&name, "is missing"))?;
                (name, value)
            }
            (None, None) => return Err(self.wrong("size", "is missing")),
        };
        let area = value.as_u64().filter(|area| AREAS.contains(area));
        area.ok_or_else(|| self.wrong(&name, format!("wanted {AN_AREA}, got {value}")))
    }

    fn channels(&self, key: &str, allowed: impl Fn(f32) -> bool) -> Result<[f32; 3]> {
        let value = self.needed(key)?;
        let wrong = || self.wrong(key, format!("wanted three numbers that can be used, got {value}"));
        let numbers = value.as_array().ok_or_else(wrong)?;
        let numbers: Option<Vec<f32>> = numbers.iter().map(|v| v.as_f64().map(|v| v as f32)).collect();
        let three: [f32; 3] = numbers.and_then(|n| n.try_into().ok()).ok_or_else(wrong)?;
        if three.into_iter().all(allowed) { Ok(three) } else { Err(wrong()) }
    }
}
