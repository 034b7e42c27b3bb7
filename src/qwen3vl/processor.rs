//! The image processor's constants, from the `image_processor` object of `processor_config.json`, or where there is none
//! from `preprocessor_config.json`: transformers 5.17 looks in this order (image_processing_base.py).
//!
//! Every key is either used, known to change nothing, or an error: a file that asks for other maths must not be
//! answered with ours.

use super::adapter::Adapter;
use super::config_keys::same;
use crate::base::{Error, Result, input};
use crate::data::image::{AN_AREA, AREAS, Limits, PatchSpec};
use crate::io::json::{self, Fields};
use serde_json::Value;
use std::path::{Path, PathBuf};

const SHARED: &str = "processor_config.json";
const OWN: &str = "preprocessor_config.json";

/// Reads the image processor's constants of the checkpoint folder `dir`.
///
/// Errors name file and key: neither file is there, a key that is needed is missing, or one asks for something that
/// this program does not do.
pub fn read_patch_spec(dir: &Path) -> Result<PatchSpec> {
    let (_, mut fields) = constants(dir)?;
    check(&mut fields)?;
    let spec = spec(&mut fields)?;
    match fields.left().next() {
        Some((key, _)) => Err(fields.error(key, "this key is not known, and may change what the model is shown")),
        None => Ok(spec),
    }
}

/// The constants that photos are prepared by for the checkpoint folder `dir`, with `adapter` where there is one, and what a
/// person is told of it. Limits that were asked for come first, then those that the adapter was trained with: at other sizes
/// it was never taught. Errors: those of [`read_patch_spec`] and [`PatchSpec::limited`].
pub fn patch_spec_for(
    dir: &Path,
    adapter: Option<&Adapter>,
    min: Option<u64>,
    max: Option<u64>,
) -> Result<(PatchSpec, Option<String>)> {
    let own = read_patch_spec(dir)?;
    let others = adapter.and_then(|adapter| adapter.limits).filter(|limits| *limits != own.limits());
    let Some(limits) = others else { return Ok((own.limited(min, max)?, None)) };
    let Limits { min_pixels, max_pixels } = limits;
    let said = format!(
        "photos are brought to {min_pixels} to {max_pixels} pixels, as the adapter was trained, and not to the {} to {} of the \
         model; --min-pixels and --max-pixels ask for others",
        own.min_pixels, own.max_pixels
    );
    let spec = PatchSpec { min_pixels, max_pixels, ..own }.limited(min, max)?;
    Ok((spec, (min.is_none() && max.is_none()).then_some(said)))
}

/// Writes `limits` into those files of `dir` that have others. Errors: such a file cannot be read or written.
pub(super) fn write_limits(dir: &Path, limits: Limits) -> Result<()> {
    for name in [SHARED, OWN] {
        let path = dir.join(name);
        let Some(mut whole) = json::read_if_there(&path)? else { continue };
        let constants = if name == SHARED { whole.get_mut("image_processor") } else { Some(&mut whole) };
        let Some(Value::Object(constants)) = constants else { continue };
        let areas =
            [("min_pixels", "shortest_edge", limits.min_pixels), ("max_pixels", "longest_edge", limits.max_pixels)];
        let mut changed = false;
        let mut set = |stands: Option<&mut Value>, area: u64| {
            if let Some(stands) = stands.filter(|stands| !stands.is_null() && stands.as_f64() != Some(area as f64)) {
                (*stands, changed) = (area.into(), true);
            }
        };
        for (key, in_size, area) in areas {
            // it overrules that of `size`
            set(constants.get_mut(key), area);
            set(constants.get_mut("size").and_then(|size| size.get_mut(in_size)), area);
        }
        if changed {
            json::write(&path, &whole)?;
        }
    }
    Ok(())
}

/// The file of `dir` that they are in.
pub fn patch_spec_file(dir: &Path) -> Result<PathBuf> {
    constants(dir).map(|(path, _)| path)
}

fn constants(dir: &Path) -> Result<(PathBuf, Fields)> {
    super::config::folder(dir)?;
    let [shared, own] = [SHARED, OWN].map(|name| dir.join(name));
    let mut whole = input::if_there(Fields::read(&shared))?;
    if let Some(whole) = whole.as_mut().filter(|whole| whole.left().any(|(key, _)| key == "image_processor")) {
        let fields = whole.section("image_processor")?;
        return Ok((shared, fields));
    }
    match input::if_there(Fields::read(&own))? {
        Some(fields) => Ok((own, fields)),
        None if whole.is_some() => Err(Error::file(&shared, "wanted an image_processor object, found none")),
        None => Err(Error::file(
            dir,
            format!("has neither {OWN} nor {SHARED}; copy it from the model that this one was made from"),
        )),
    }
}

/// Say nothing about the result.
const HARMLESS: [&str; 11] = [
    "processor_class",
    "auto_map",
    "transformers_version",
    "_valid_processor_keys",
    "return_tensors",
    "device",
    "disable_grouping",
    "default_to_square",
    "crop_size",
    "pad_size",
    "input_data_format",
];

/// Refuses values that would change the maths.
fn check(fields: &mut Fields) -> Result<()> {
    for key in HARMLESS {
        fields.take(key);
    }
    for key in ["image_processor_type", "feature_extractor_type"] {
        same(fields, key, &["Qwen2VLImageProcessorFast".into(), "Qwen2VLImageProcessor".into()])?;
    }
    for key in ["do_resize", "do_rescale", "do_normalize", "do_convert_rgb"] {
        same(fields, key, &[true.into()])?;
    }
    for key in ["do_center_crop", "do_pad"] {
        same(fields, key, &[false.into()])?;
    }
    // bicubic
    same(fields, "resample", &[3.into()])?;
    same(fields, "data_format", &["channels_first".into()])?;
    fields.typed("rescale_factor", "1/255 (0.00392156862745098)", |value| {
        value.as_f64().filter(|factor| (factor * 255.0 - 1.0).abs() < 1e-12)
    })?;
    Ok(())
}

fn spec(fields: &mut Fields) -> Result<PatchSpec> {
    let mut size = fields.section("size")?;
    let mut area = |key, in_size| match pixels(fields, key)? {
        // overrules that of `size`, as in transformers
        Some(area) => Ok(area),
        None => pixels(&mut size, in_size).and_then(|found| size.needed(in_size, found)),
    };
    let (min_pixels, max_pixels) = (area("min_pixels", "shortest_edge")?, area("max_pixels", "longest_edge")?);
    if min_pixels > max_pixels {
        return Err(fields.error("size", format!("the least area {min_pixels} is above the largest {max_pixels}")));
    }
    Ok(PatchSpec {
        patch: count(fields, "patch_size", 1024)?,
        temporal: count(fields, "temporal_patch_size", 16)?,
        merge: count(fields, "merge_size", 16)?,
        min_pixels,
        max_pixels,
        mean: channels(fields, "image_mean", |v| v.is_finite())?,
        std: channels(fields, "image_std", |v| v.is_finite() && v > 0.0)?,
    })
}

fn count(fields: &mut Fields, key: &str, most: usize) -> Result<usize> {
    let found = fields.typed(key, &format!("a whole number from 1 to {most}"), |value| {
        value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=most).contains(n))
    })?;
    fields.needed(key, found)
}

/// An area: despite their names, `shortest_edge` and `longest_edge` are areas too. JSON may write it as 5000.0.
fn pixels(fields: &mut Fields, key: &str) -> Result<Option<u64>> {
    fields.typed(key, AN_AREA, |value| {
        let whole = |x: f64| (x.fract() == 0.0 && x >= 0.0 && x < 2f64.powi(53)).then_some(x as u64);
        value.as_u64().or_else(|| value.as_f64().and_then(whole)).filter(|area| AREAS.contains(area))
    })
}

fn channels(fields: &mut Fields, key: &str, allowed: impl Fn(f32) -> bool) -> Result<[f32; 3]> {
    let found = fields.typed(key, "three numbers that can be used", |value| {
        let numbers = value.as_array()?.iter().map(|v| v.as_f64().map(|v| v as f32));
        let three: [f32; 3] = numbers.collect::<Option<Vec<_>>>()?.try_into().ok()?;
        three.into_iter().all(&allowed).then_some(three)
    })?;
    fields.needed(key, found)
}
