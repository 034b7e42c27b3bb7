//! LoRA adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! y += scale B (A x) with A `[rank, in]`, B `[out, rank]`. The format is PEFT 0.21.2's. Variants that compute
//! something else are refused by name, and every tensor must belong to a module that the config selects: an adapter that loads
//! without effect, which is what peers do with names they do not know, is no adapter.

use super::config::Config;
use super::names::{self, LinearModule};
use super::targets::{Layers, Pattern, Selection, Targets, paths_of};
use crate::base::error::first_of;
use crate::base::width::shortened;
use crate::base::{Error, Result, dtype};
use crate::data::image::{AN_AREA, Limits};
use crate::io::folder_kind::{self, ADAPTER_CONFIG, ADAPTER_WEIGHTS, Wanted};
use crate::io::json::{Fields, brief, one_or_more};
use crate::io::safetensors::SafetensorsFile;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

/// Before the path of a module, in the names of an adapter's tensors and of their gradients.
pub const PREFIX: &str = "base_model.model.";
/// In the metadata of the weights' file, so that it goes where they go; PEFT reads no metadata.
pub(super) const BASE_FINGERPRINT: &str = "base_model_fingerprint";
/// There too.
pub(super) const LIMITS: [&str; 2] = ["min_pixels", "max_pixels"];

#[derive(Debug, Clone)]
pub struct AdapterConfig {
    pub rank: usize,
    pub alpha: f64,
    /// Only training applies it.
    pub dropout: f64,
    /// The scale is alpha / sqrt(rank) and not alpha / rank.
    pub use_rslora: bool,
    pub selection: Selection,
    /// What the adapter says it was trained on; a name or a path.
    pub base_model: Option<String>,
    /// Ranks and alphas of single modules; the first pattern that matches counts.
    pub(super) rank_pattern: Vec<(Pattern, usize)>,
    pub(super) alpha_pattern: Vec<(Pattern, f64)>,
}

impl AdapterConfig {
    /// One rank and one scale for all that `targets` select.
    pub fn new(rank: usize, alpha: f64, dropout: f64, use_rslora: bool, targets: Targets) -> Self {
        AdapterConfig {
            rank,
            alpha,
            dropout,
            use_rslora,
            selection: Selection { targets, exclude: None, layers: None },
            base_model: None,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
        }
    }

    /// Reads `adapter_config.json` in `dir`. Errors name file and key.
    pub fn read(dir: &Path) -> Result<Self> {
        folder_kind::check(dir, Wanted::Adapter)?;
        let path = dir.join(ADAPTER_CONFIG);
        let mut fields = Fields::read(&path)?;
        match fields.string("peft_type")?.as_deref() {
            Some("LORA") => {}
            Some(other) => {
                return Err(fields.error("peft_type", format!("wanted LORA, got {other}; merge it with PEFT first")));
            }
            None => return Err(fields.error("peft_type", "it is missing; wanted LORA")),
        }
        plain_lora_only(&mut fields)?;
        let rank = match fields.usize("r")? {
            Some(0) => return Err(fields.error("r", "wanted a rank of at least 1, got 0")),
            Some(rank) => rank,
            None => 8,
        };
        let config = AdapterConfig {
            rank,
            alpha: fields.f64("lora_alpha")?.unwrap_or(8.0),
            dropout: fields.f64("lora_dropout")?.unwrap_or(0.0),
            use_rslora: fields.bool("use_rslora")?.unwrap_or(false),
            selection: selection(&mut fields)?,
            base_model: fields.string("base_model_name_or_path")?,
            rank_pattern: patterns(&mut fields, "rank_pattern", "a rank of at least 1", |value| {
                value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0)
            })?,
            alpha_pattern: patterns(&mut fields, "alpha_pattern", "a number", Value::as_f64)?,
        };
        nothing_else(&fields)?;
        Ok(config)
    }

    /// The rank of the module's adapter. Errors: a pattern cannot be tried on the path.
    pub fn rank_of(&self, module: &str) -> Result<usize, String> {
        Ok(first_match(&self.rank_pattern, module)?.unwrap_or(self.rank))
    }

    /// What B A is multiplied with.
    pub fn scale_of(&self, module: &str) -> Result<f32, String> {
        let rank = self.rank_of(module)? as f64;
        let alpha = first_match(&self.alpha_pattern, module)?.unwrap_or(self.alpha);
        Ok((alpha / if self.use_rslora { rank.sqrt() } else { rank }) as f32)
    }
}

fn first_match<T: Copy>(patterns: &[(Pattern, T)], module: &str) -> Result<Option<T>, String> {
    for (pattern, value) in patterns {
        if pattern.matches(module)? {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

/// Refuses by name what is no plain LoRA.
fn plain_lora_only(fields: &mut Fields) -> Result<()> {
    const REFUSED: [(&str, &str); 13] = [
        ("use_dora", "DoRA"),
        ("use_qalora", "QALoRA"),
        ("use_bdlora", "block-diagonal LoRA"),
        ("lora_bias", "a bias on the adapter"),
        ("modules_to_save", "modules trained in full beside the adapter"),
        ("layer_replication", "replicated layers"),
        ("alora_invocation_tokens", "activated LoRA"),
        ("target_parameters", "LoRA on bare parameters (experts)"),
        ("trainable_token_indices", "trained tokens"),
        ("fan_in_fan_out", "transposed weights"),
        ("arrow_config", "Arrow"),
        ("kasa_config", "KaSA"),
        ("monteclora_config", "MonteCLoRA"),
    ];
    let unsupported = |fields: &Fields, key: &str, value: &Value, what: &str| {
        let reason = format!(
            "it is {}: {what} is not supported; merge the adapter with PEFT and use the merged model",
            brief(value)
        );
        Err(fields.error(key, reason))
    };
    for (key, what) in REFUSED {
        if let Some(value) = fields.take(key).filter(is_set) {
            return unsupported(fields, key, &value, what);
        }
    }
    match fields.take("bias") {
        Some(value) if value != "none" => return unsupported(fields, "bias", &value, "a trained bias"),
        _ => {}
    }
    // These start by changing the base's weights, so the saved A and B do not belong to the base as published.
    const CHANGE_THE_BASE: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];
    if let Some(Value::String(init)) = fields.take("init_lora_weights")
        && CHANGE_THE_BASE.iter().any(|name| init.to_lowercase().starts_with(name))
    {
        return unsupported(fields, "init_lora_weights", &init.into(), "a start that changes the base's weights");
    }
    Ok(())
}

/// Neither false nor empty.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        _ => true,
    }
}

fn selection(fields: &mut Fields) -> Result<Selection> {
    let Some(targets) = targets(fields, "target_modules")? else {
        return Err(fields.error("target_modules", "it is missing; wanted a list of names or a regex"));
    };
    let exclude = targets_or_none(fields, "exclude_modules")?;
    let indexes = fields.typed("layers_to_transform", "a layer or a list of layers", |value| {
        one_or_more(value, |n| n.as_u64().and_then(|n| usize::try_from(n).ok()))
    })?;
    let names = fields.typed("layers_pattern", "a name or a list of names", |value| {
        one_or_more(value, |name| name.as_str().map(String::from))
    })?;
    let names: Vec<String> = names.unwrap_or_default().into_iter().filter(|name| !name.is_empty()).collect();
    let layers = match indexes {
        Some(indexes) if !indexes.is_empty() => {
            Some(Layers::new(indexes, &names).map_err(|e| fields.error("layers_pattern", e))?)
        }
        _ => None,
    };
    Ok(Selection { targets, exclude, layers })
}

fn targets_or_none(fields: &mut Fields, key: &str) -> Result<Option<Targets>> {
    Ok(targets(fields, key)?.filter(|targets| !matches!(targets, Targets::Names(names) if names.is_empty())))
}

/// A string is a regex, as PEFT reads it, `all-linear` apart.
fn targets(fields: &mut Fields, key: &str) -> Result<Option<Targets>> {
    match fields.take(key) {
        None => Ok(None),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("all-linear") => Ok(Some(Targets::AllLinear)),
        Some(Value::String(text)) => {
            Pattern::full(&text).map(|pattern| Some(Targets::Regex(pattern))).map_err(|e| fields.error(key, e))
        }
        Some(value) => {
            let names = value.as_array().and_then(|list| list.iter().map(|n| n.as_str().map(String::from)).collect());
            names
                .map(|names| Some(Targets::Names(names)))
                .ok_or_else(|| fields.wrong(key, "a list of names or a regex", &value))
        }
    }
}

fn patterns<T>(
    fields: &mut Fields,
    key: &str,
    wanted: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Vec<(Pattern, T)>> {
    let table = match fields.take(key) {
        None => return Ok(Vec::new()),
        Some(Value::Object(table)) => table,
        Some(other) => return Err(fields.wrong(key, "a table", &other)),
    };
    let entries = table.iter().map(|(text, value)| {
        let pattern = Pattern::at_end(text).map_err(|e| fields.error(key, e))?;
        let value =
            read(value).ok_or_else(|| fields.error(key, format!("{text}: wanted {wanted}, got {}", brief(value))))?;
        Ok((pattern, value))
    });
    entries.collect()
}

/// A key of a newer PEFT: a switch that is on, or a table or list that holds something, may change what is computed;
/// numbers and names only qualify switches.
fn nothing_else(fields: &Fields) -> Result<()> {
    const HARMLESS: [&str; 7] = [
        "auto_mapping",
        "corda_config",
        "eva_config",
        "inference_mode",
        "loftq_config",
        "lora_ga_config",
        "velora_config",
    ];
    for (key, value) in fields.left() {
        if matches!(value, Value::Bool(true) | Value::Array(_) | Value::Object(_))
            && is_set(value)
            && !HARMLESS.contains(&key)
        {
            let reason =
                format!("it is {}, a key that this program does not know and cannot ignore safely", brief(value));
            return Err(fields.error(key, reason));
        }
    }
    Ok(())
}

/// The adapter of one linear module, in f32 whatever the file holds.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterModule {
    pub rank: usize,
    pub inputs: usize,
    pub outputs: usize,
    pub scale: f32,
    /// `[rank, inputs]`
    pub a: Vec<f32>,
    /// `[outputs, rank]`
    pub b: Vec<f32>,
}

#[derive(Debug, Clone)]
pub struct Adapter {
    pub config: AdapterConfig,
    /// By the path of the module.
    pub modules: BTreeMap<String, AdapterModule>,
    /// Which weights it was trained on, by [`crate::train::fingerprint::of_model`], where its file says so.
    pub base_fingerprint: Option<String>,
    /// Between what areas its training brought photos, where its file says so.
    pub limits: Option<Limits>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    A,
    B,
}

impl Adapter {
    /// Reads the adapter in `dir` for a model of `config`. Errors: what [`AdapterConfig::read`] refuses; a tensor that
    /// belongs to no linear module of the model, has another shape, or holds NaN or an infinity; a scale beyond f32; A
    /// without B; modules in the file that are not those that the config selects.
    pub fn open(dir: &Path, model: &Config) -> Result<Self> {
        let config = AdapterConfig::read(dir)?;
        let path = dir.join(ADAPTER_WEIGHTS);
        if !path.exists() && dir.join("adapter_model.bin").exists() {
            return Err(Error::file(
                dir.join("adapter_model.bin"),
                "pickled adapters are not read; save it with PEFT as safetensors",
            ));
        }
        let file = SafetensorsFile::open(&path)?;
        let linear: HashMap<String, LinearModule> =
            names::linear_modules(model).into_iter().map(|m| (m.path.clone(), m)).collect();
        let pairs = sort_tensors(&file, &linear)?;
        let mut modules = BTreeMap::new();
        let mut misfits = Vec::new();
        for (module, pair) in pairs {
            let Some(about) = linear.get(&module) else { continue };
            let rank = config.rank_of(&module).map_err(|e| Error::file(&path, e))?;
            let scale = config.scale_of(&module).map_err(|e| Error::file(&path, e))?;
            if !scale.is_finite() {
                let said = format!("lora_alpha: the scale of {module} is beyond what f32 can hold");
                return Err(Error::file(dir.join(ADAPTER_CONFIG), said));
            }
            let shapes = [vec![rank, about.inputs], vec![about.outputs, rank]];
            let mut matrices = Vec::with_capacity(2);
            for ((name, side), shape) in pair.iter().zip(["lora_A", "lora_B"]).zip(shapes) {
                let Some(name) = name else {
                    return Err(Error::tensor(
                        &path,
                        format!("{module}.{side}"),
                        "it is missing, its partner is there",
                    ));
                };
                match read_matrix(&file, name, &shape) {
                    Ok(matrix) => match dtype::not_finite(&matrix) {
                        None => matrices.push(matrix),
                        Some(value) => {
                            let reason =
                                format!("it holds {value}: the training that wrote it ran away; train it again");
                            return Err(Error::tensor(&path, name, reason));
                        }
                    },
                    Err(reason) => misfits.push(format!("{name} {reason}")),
                }
            }
            if let Ok([a, b]) = <[Vec<f32>; 2]>::try_from(matrices) {
                let LinearModule { inputs, outputs, .. } = *about;
                modules.insert(module, AdapterModule { rank, inputs, outputs, scale, a, b });
            }
        }
        if !misfits.is_empty() {
            let reason = format!(
                "the adapter is of another model, or of another rank than its config says: {}",
                first_of(&misfits)
            );
            return Err(Error::file(&path, reason));
        }
        let selected = config
            .selection
            .modules(model)
            .map_err(|e| Error::file(dir.join(ADAPTER_CONFIG), format!("target_modules: {e}")))?;
        let selected: BTreeSet<String> = selected.into_iter().map(|module| module.path).collect();
        let untrained: Vec<&String> = selected.iter().filter(|path| !modules.contains_key(*path)).collect();
        let unselected: Vec<&String> = modules.keys().filter(|path| !selected.contains(*path)).collect();
        for (paths, what) in [
            (untrained, "has no tensors for modules that its config selects"),
            (unselected, "has tensors for modules that its config does not select"),
        ] {
            if !paths.is_empty() {
                return Err(Error::file(&path, format!("the adapter {what}: {}", paths_of(paths))));
            }
        }
        if modules.is_empty() {
            return Err(Error::file(&path, "the adapter has no tensors"));
        }
        let base_fingerprint = file.metadata.get(BASE_FINGERPRINT).cloned();
        let limits = limits_in(&file)?;
        Ok(Adapter { config, modules, base_fingerprint, limits })
    }

    /// Trained numbers in all.
    pub fn parameters(&self) -> u64 {
        self.modules.values().map(|m| (m.a.len() + m.b.len()) as u64).sum()
    }
}

/// Names of the A and B tensors by module path; errors list what belongs to no linear module.
fn sort_tensors(
    file: &SafetensorsFile,
    linear: &HashMap<String, LinearModule>,
) -> Result<BTreeMap<String, [Option<String>; 2]>> {
    let mut pairs: BTreeMap<String, [Option<String>; 2]> = BTreeMap::new();
    let mut strangers = Vec::new();
    for (name, _) in file.tensors() {
        let (module, side) = module_of(name).map_err(|reason| Error::tensor(&file.path, name, reason))?;
        if !linear.contains_key(module) {
            strangers.push(name);
            continue;
        }
        let slot = &mut pairs.entry(module.into()).or_default()[side as usize];
        if let Some(other) = slot.replace(name.into()) {
            return Err(Error::tensor(&file.path, name, format!("{other} stands for the same matrix")));
        }
    }
    let Some(first) = strangers.first() else { return Ok(pairs) };
    let path = module_of(first).map(|(path, _)| path).unwrap_or_default();
    let published = names::canonical(&format!("{path}.weight")).into_owned();
    let hint = match published.strip_suffix(".weight").filter(|p| *p != path && linear.contains_key(*p)) {
        Some(published) => format!("; they are named for another class of model, the first would be {published} here"),
        None => String::new(),
    };
    let whose =
        if pairs.is_empty() { "the adapter is of another model" } else { "the adapter does not fit this model" };
    Err(Error::file(&file.path, format!("{whose}: no linear module has the names of {}{hint}", first_of(&strangers))))
}

/// Errors: what stands there are no limits.
fn limits_in(file: &SafetensorsFile) -> Result<Option<Limits>> {
    let [Some(min), Some(max)] = LIMITS.map(|key| file.metadata.get(key)) else { return Ok(None) };
    let limits = min.parse().ok().zip(max.parse().ok()).and_then(|(min, max)| Limits::new(min, max));
    limits.map(Some).ok_or_else(|| {
        let said = format!(
            "its metadata says {} = {} and {} = {}, wanted are two areas, each {AN_AREA}, the first not above the second",
            LIMITS[0],
            shortened(min, 40),
            LIMITS[1],
            shortened(max, 40)
        );
        Error::file(&file.path, said)
    })
}

/// `base_model.model.PATH.lora_A.weight`, or with the adapter's name before `.weight`. Errors: the reason only.
fn module_of(name: &str) -> Result<(&str, Side), &'static str> {
    let Some(rest) = name.strip_prefix(PREFIX) else {
        return Err("wanted a name that begins with base_model.model., as PEFT writes it");
    };
    for (infix, side) in [(".lora_A.", Side::A), (".lora_B.", Side::B)] {
        if let Some((path, end)) = rest.split_once(infix) {
            let adapter = end.strip_suffix("weight").map(|name| name.trim_end_matches('.'));
            return match adapter {
                Some(adapter) if !adapter.contains('.') => Ok((path, side)),
                _ => Err("wanted a matrix, a name that ends with .weight"),
            };
        }
    }
    Err(match rest {
        _ if rest.contains("lora_magnitude_vector") => "DoRA is not supported; merge the adapter with PEFT",
        _ if rest.contains("lora_embedding_") => "LoRA on embeddings is not supported; merge the adapter with PEFT",
        _ => "it is no LoRA matrix; modules trained in full beside an adapter are not supported",
    })
}

fn read_matrix(file: &SafetensorsFile, name: &str, shape: &[usize]) -> Result<Vec<f32>, String> {
    let (Some(entry), Some(bytes)) = (file.entry(name), file.bytes(name)) else {
        return Err("is missing".into());
    };
    if entry.shape != shape {
        return Err(format!("has shape {:?} where {shape:?} is needed", entry.shape));
    }
    let mut values = vec![0.0; entry.elements()];
    dtype::widen(entry.dtype, bytes, &mut values)
        .ok_or_else(|| format!("is {}, wanted a floating type", entry.dtype))?;
    Ok(values)
}
