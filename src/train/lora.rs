//! Which modules are trained with LoRA, and of what rank and scale: what the flags say, or the adapter to start from.

use super::settings::{ALPHA, RANK, Settings, TARGET_MODULES};
use crate::base::error::first_of;
use crate::base::{Error, Result};
use crate::qwen3vl::adapter::AdapterConfig;
use crate::qwen3vl::config::Config;
use crate::qwen3vl::names::{self, LinearModule, Part};
use crate::qwen3vl::targets::{Targets, select_targets};
use std::fmt::Display;

/// One rank and scale for all modules.
#[derive(Debug, Clone)]
pub struct Lora {
    /// What adapter_config.json will say.
    pub config: AdapterConfig,
    /// In the order of [`names::linear_modules`].
    pub modules: Vec<LinearModule>,
    /// What B A is multiplied with.
    pub scale: f32,
}

impl Lora {
    /// Without `init`, the config of the adapter that training starts from, absent settings have their defaults; with it
    /// they are its own, and given ones must say the same. Errors (wrong usage): targets that match nothing or no linear
    /// map; settings that differ from `init`; ranks or scales of `init` that differ between modules; a vision learning
    /// rate where nothing of the tower or the mergers is trained.
    pub fn resolve(settings: &Settings, init: Option<&AdapterConfig>, model: &Config) -> Result<Lora> {
        let says_targets = settings.target_modules.is_some() || settings.lora_vision || settings.lora_merger;
        let (modules, config) = match init {
            None => {
                let (modules, targets) = selected(settings, model)?;
                let (rank, alpha) = (settings.rank.unwrap_or(RANK), settings.alpha.unwrap_or(ALPHA));
                let rslora = settings.rslora.unwrap_or(false);
                (modules, AdapterConfig::new(rank, alpha, settings.dropout, rslora, targets))
            }
            Some(init) => {
                same("rank", settings.rank, init.rank)?;
                same("alpha", settings.alpha, init.alpha)?;
                same("rslora", settings.rslora, init.use_rslora)?;
                let modules = init.selection.modules(model);
                let modules = modules.map_err(|e| Error::Usage(format!("--init-adapter: target_modules: {e}")))?;
                if says_targets {
                    same_modules(&selected(settings, model)?.0, &modules)?;
                }
                let mut config = init.clone();
                config.dropout = settings.dropout;
                (modules, config)
            }
        };
        let scale = one_scale(&config, &modules)?;
        if let Some(rate) = settings.vision_learning_rate
            && modules.iter().all(|m| m.part == Part::Text)
        {
            return Err(Error::Usage(format!(
                "--vision-learning-rate {rate}: nothing of the vision tower or the mergers is trained; give --lora-vision \
                 or --lora-merger"
            )));
        }
        Ok(Lora { config, modules, scale })
    }
}

/// The modules that the flags select, and how to say so.
fn selected(settings: &Settings, model: &Config) -> Result<(Vec<LinearModule>, Targets)> {
    let targets = Targets::parse(settings.target_modules.as_deref().unwrap_or(TARGET_MODULES))?;
    let named = select_targets(&targets, model)?;
    let parts = [(settings.lora_vision, Part::Vision), (settings.lora_merger, Part::Merger)];
    let is_selected = |m: &LinearModule| named.contains(m) || parts.contains(&(true, m.part));
    let modules: Vec<LinearModule> = names::linear_modules(model).into_iter().filter(is_selected).collect();
    if modules.len() == named.len() {
        return Ok((modules, targets));
    }
    let exactly = Targets::exactly(modules.iter().map(|m| m.path.as_str()));
    Ok((modules, exactly.map_err(|e| Error::Usage(format!("target modules: {e}")))?))
}

fn same<T: PartialEq + Display>(flag: &str, given: Option<T>, of_adapter: T) -> Result<()> {
    match given.filter(|x| *x != of_adapter) {
        None => Ok(()),
        Some(x) => Err(Error::Usage(format!(
            "--{flag} {x}: the adapter of --init-adapter has {of_adapter}; leave the flag out, or start a new adapter"
        ))),
    }
}

fn same_modules(given: &[LinearModule], of_adapter: &[LinearModule]) -> Result<()> {
    let beyond = |all: &[LinearModule], known: &[LinearModule]| -> Vec<String> {
        all.iter().filter(|m| !known.contains(m)).map(|m| m.path.clone()).collect()
    };
    for (paths, what) in [
        (beyond(given, of_adapter), "the flags select modules that the adapter of --init-adapter has not"),
        (beyond(of_adapter, given), "the adapter of --init-adapter has modules that the flags do not select"),
    ] {
        if !paths.is_empty() {
            return Err(Error::Usage(format!("--target-modules: {what}: {}", first_of(&paths))));
        }
    }
    Ok(())
}

fn one_scale(config: &AdapterConfig, modules: &[LinearModule]) -> Result<f32> {
    let usage = |e: String| Error::Usage(format!("--init-adapter: {e}"));
    let mut one: Option<(usize, f32)> = None;
    for module in modules {
        let this = (config.rank_of(&module.path).map_err(usage)?, config.scale_of(&module.path).map_err(usage)?);
        if *one.get_or_insert(this) != this {
            let said =
                "its ranks or alphas differ between modules (rank_pattern, alpha_pattern), which cannot be trained";
            return Err(usage(format!("{said}: {}", module.path)));
        }
    }
    match one {
        Some((rank, scale)) if rank == config.rank => Ok(scale),
        Some((rank, _)) => Err(usage(format!("its rank_pattern makes every rank {rank}, and r is {}", config.rank))),
        None => Err(usage("it selects no module of this model".into())),
    }
}
