//! Which modules an adapter is put on: names or a regex over module paths, as PEFT reads them.
//!
//! The rules are those of PEFT 0.21.2 (`check_target_module_exists` in `tuners/tuners_utils.py`): a name matches the
//! module of that path and every module whose path ends with `.name`; a regex must match the whole path. PEFT applies
//! them to every module, convolutions and containers too; what is no linear map is refused here with its path.

use super::config::Config;
use super::names::{self, Kind, LinearModule};
use crate::base::error::first_of;
use crate::base::{Error, Result};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// A regex with look-ahead and look-behind, compiled.
#[derive(Debug, Clone)]
pub struct Pattern {
    regex: fancy_regex::Regex,
    /// As it was written.
    text: String,
}

impl Pattern {
    /// One that must match the whole of a path, as Python's `re.fullmatch`.
    pub fn full(text: &str) -> Result<Self, String> {
        Self::compile(text, &format!(r"\A(?:{text})\z"))
    }

    /// One that may begin after any dot, as PEFT reads the keys of `rank_pattern` and `alpha_pattern`.
    pub fn at_end(text: &str) -> Result<Self, String> {
        Self::compile(text, &format!(r"\A(.*\.)?({text})\z"))
    }

    fn compile(text: &str, whole: &str) -> Result<Self, String> {
        let regex = fancy_regex::Regex::new(whole).map_err(|e| format!("{text} is no valid regex: {e}"))?;
        Ok(Pattern { regex, text: text.into() })
    }

    /// As it was written, without what says where it must match.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Errors: the pattern needs too many steps for this path.
    pub fn matches(&self, path: &str) -> Result<bool, String> {
        self.regex.is_match(path).map_err(|e| format!("the regex {} cannot be tried on {path}: {e}", self.text))
    }
}

#[derive(Debug, Clone)]
pub enum Targets {
    Names(Vec<String>),
    Regex(Pattern),
    /// Every linear module but the head.
    AllLinear,
}

impl Targets {
    /// Reads the command line's spelling: names where every piece between commas is made of letters, digits, `_` and
    /// `.`, else one regex; `all-linear` as PEFT's. Errors: an empty name, no valid regex.
    pub fn parse(text: &str) -> Result<Self> {
        let pieces: Vec<&str> = text.split(',').map(str::trim).collect();
        if text.eq_ignore_ascii_case("all-linear") {
            Ok(Targets::AllLinear)
        } else if pieces.iter().all(|p| p.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '.')) {
            if pieces.contains(&"") {
                return Err(Error::Usage(format!("target modules {text:?}: there is an empty name in the list")));
            }
            Ok(Targets::Names(pieces.into_iter().map(String::from).collect()))
        } else {
            Pattern::full(text).map(Targets::Regex).map_err(|e| Error::Usage(format!("target modules: {e}")))
        }
    }

    /// A regex that matches these paths and no others. Those of the same layers share a branch.
    pub fn exactly<'a>(paths: impl IntoIterator<Item = &'a str>) -> Result<Targets, String> {
        // what is before the number, what follows it -> numbers; an unnumbered path has none
        let mut numbers: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
        for path in paths {
            let number = path.split('.').find(|piece| piece.bytes().all(|b| b.is_ascii_digit()));
            match number.and_then(|n| Some((path.split_once(&format!(".{n}."))?, n))) {
                Some(((before, after), n)) => numbers.entry((before, after)).or_default().push(n),
                None => _ = numbers.entry((path, "")).or_default(),
            }
        }
        let mut branches: BTreeMap<(&str, Vec<&str>), Vec<&str>> = BTreeMap::new();
        for ((before, after), numbers) in numbers {
            branches.entry((before, numbers)).or_default().push(after);
        }
        let any_of = |pieces: &[&str]| match pieces {
            [one] => fancy_regex::escape(one).into_owned(),
            many => format!("(?:{})", many.iter().map(|p| fancy_regex::escape(p)).collect::<Vec<_>>().join("|")),
        };
        let branch = |((before, numbers), after): (&(&str, Vec<&str>), &Vec<&str>)| match numbers[..] {
            [] => any_of(&[*before]),
            _ => format!(r"{}\.{}\.{}", any_of(&[*before]), any_of(numbers), any_of(after)),
        };
        let text = branches.iter().map(branch).collect::<Vec<_>>().join("|");
        Pattern::full(&text).map(Targets::Regex)
    }

    /// As `target_modules` of adapter_config.json spells it.
    pub fn to_json(&self) -> Value {
        match self {
            Targets::Names(names) => names.clone().into(),
            Targets::Regex(pattern) => pattern.text().into(),
            Targets::AllLinear => "all-linear".into(),
        }
    }

    fn matches(&self, path: &str, is_linear: bool) -> Result<bool, String> {
        match self {
            Targets::Names(targets) => Ok(targets.iter().any(|target| named(target, path))),
            Targets::Regex(pattern) => pattern.matches(path),
            Targets::AllLinear => Ok(is_linear && path != names::LM_HEAD),
        }
    }
}

fn named(target: &str, path: &str) -> bool {
    path.strip_suffix(target).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// PEFT's `layers_to_transform` and `layers_pattern`: of the modules that names match, those of certain layers.
#[derive(Debug, Clone)]
pub struct Layers {
    indexes: Vec<usize>,
    /// Each captures the layer's number; the first that matches counts.
    patterns: Vec<Pattern>,
}

impl Layers {
    /// `names` of the lists of layers; where there are none, the first number in a path is the layer's.
    pub fn new(indexes: Vec<usize>, names: &[String]) -> Result<Self, String> {
        let patterns = if names.is_empty() {
            vec![Pattern::compile("layers", r"\A.*?\.[^.]*\.(\d+)\.")?]
        } else {
            let patterns =
                names.iter().map(|name| Pattern::compile(name, &format!(r"\A(?:|.*?\.)(?:{name})\.(?<idx>\d+)\.")));
            patterns.collect::<Result<_, _>>()?
        };
        Ok(Layers { indexes, patterns })
    }

    fn contain(&self, path: &str) -> Result<bool, String> {
        for pattern in &self.patterns {
            let found =
                pattern.regex.captures(path).map_err(|e| format!("layers_pattern cannot be tried on {path}: {e}"))?;
            if let Some(found) = found {
                let number = found.name("idx").or_else(|| found.get(1)).and_then(|digits| digits.as_str().parse().ok());
                return Ok(number.is_some_and(|number: usize| self.indexes.contains(&number)));
            }
        }
        Ok(false)
    }
}

/// Everything by which an adapter says where it belongs.
#[derive(Debug, Clone)]
pub struct Selection {
    pub targets: Targets,
    pub exclude: Option<Targets>,
    /// Has effect on names only.
    pub layers: Option<Layers>,
}

impl Selection {
    /// The selected modules in the order of [`names::linear_modules`]. Errors, reason only: something that is no
    /// linear map is selected; a regex cannot be tried.
    pub fn modules(&self, config: &Config) -> Result<Vec<LinearModule>, String> {
        for (path, what) in everything_else(config) {
            if self.selects(&path, false)? {
                let hint = if path == names::PATCH_EMBED {
                    "; for the output projection of attention write attn.proj"
                } else {
                    ""
                };
                return Err(format!("{path} is matched too, which is {what}; adapters are for linear modules{hint}"));
            }
        }
        let mut selected = Vec::new();
        for module in names::linear_modules(config) {
            if self.selects(&module.path, true)? {
                selected.push(module);
            }
        }
        Ok(selected)
    }

    fn selects(&self, path: &str, is_linear: bool) -> Result<bool, String> {
        if let Some(exclude) = &self.exclude
            && exclude.matches(path, is_linear)?
        {
            return Ok(false);
        }
        if !self.targets.matches(path, is_linear)? {
            return Ok(false);
        }
        match (&self.layers, &self.targets) {
            (Some(layers), Targets::Names(_)) => layers.contain(path),
            _ => Ok(true),
        }
    }
}

/// The modules that `targets` select in a model of `config`. Errors (wrong usage): a name or the regex matches no
/// module, or one that is no linear map.
pub fn select_targets(targets: &Targets, config: &Config) -> Result<Vec<LinearModule>> {
    let select = |targets: Targets| {
        Selection { targets, exclude: None, layers: None }
            .modules(config)
            .map_err(|e| Error::Usage(format!("target modules: {e}")))
    };
    let matches_nothing = |what: &str| {
        let paths = names::linear_modules(config);
        let last: BTreeSet<&str> = paths.iter().filter_map(|m| m.path.rsplit('.').next()).collect();
        let last: Vec<&str> = last.into_iter().collect();
        Error::Usage(format!(
            "target modules: {what} matches no module of this model; its linear modules end with {}",
            last.join(", ")
        ))
    };
    if let Targets::Names(names) = targets {
        for name in names {
            if select(Targets::Names(vec![name.clone()]))?.is_empty() {
                return Err(matches_nothing(name));
            }
        }
    }
    let selected = select(targets.clone())?;
    if selected.is_empty() {
        return Err(matches_nothing("the regex"));
    }
    Ok(selected)
}

/// Paths of the modules that are no linear maps of their own, and what they are.
fn everything_else(config: &Config) -> Vec<(String, &'static str)> {
    let mut others = Vec::new();
    let mut containers = BTreeSet::new();
    for module in names::modules(config) {
        containers.extend(module.path.match_indices('.').map(|(at, _)| module.path[..at].to_string()));
        match module.kind {
            Kind::Linear { .. } => {}
            Kind::Norm { .. } => others.push((module.path, "a norm")),
            Kind::Embedding { .. } => others.push((module.path, "an embedding")),
            Kind::Convolution { .. } => others.push((module.path, "a convolution")),
        }
    }
    if config.tie_word_embeddings {
        others.push((names::LM_HEAD.into(), "the embedding itself (tie_word_embeddings)"));
    }
    others.extend(containers.into_iter().map(|path| (path, "a group of modules")));
    others
}

/// The end of an error about modules, for more than a few of them.
pub(super) fn paths_of<'a>(modules: impl IntoIterator<Item = &'a String>) -> String {
    first_of(&modules.into_iter().collect::<Vec<_>>())
}
