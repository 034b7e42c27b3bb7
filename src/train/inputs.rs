//! What a run stands on, from its settings: read, checked and fingerprinted before anything is computed.

use super::examples::Samples;
use super::fingerprint::{self, Fingerprints};
use super::lora::Lora;
use super::order::{Order, Spread, pick};
use super::session::{Said, Watch};
use super::sets::Sets;
use super::settings::Settings;
use super::step::Example;
use crate::base::{Error, Result};
use crate::classify::evaluate::{self, Classes, MOST_CHOICES};
use crate::data::dataset::Sample;
use crate::qwen3vl::adapter::Adapter;
use crate::qwen3vl::checkpoint::Checkpoint;
use crate::qwen3vl::prepare::Preparer;
use crate::qwen3vl::processor::patch_spec_for;
use crate::qwen3vl::trainable::Trainable;
use std::path::{Path, PathBuf};

/// What a run trains, and in what form its result is written.
pub(super) enum Kind {
    Lora(Box<Lora>),
    Full,
}

/// What a run stands on, read and checked, before anything is computed.
pub(super) struct Inputs {
    pub checkpoint: Checkpoint,
    pub preparer: Preparer,
    pub samples: Vec<Sample>,
    pub evaluation: Option<Evaluation>,
    pub kind: Kind,
    /// The adapter to start from.
    pub init: Option<Adapter>,
    pub trainable: Trainable,
    pub order: Order,
}

/// The samples of a run without their pixels, and the closed sets that it is judged by on the way.
pub struct Measured {
    pub samples: Vec<Example>,
    /// Those of the validation set, and what their answers are chosen from.
    pub evaluated: Vec<Example>,
    pub of_evaluation: Option<Answers>,
    /// What the answers of an overfit check are chosen from.
    pub of_overfit: Option<Answers>,
}

/// The tokens of each answer, and the one that closes an answer.
pub struct Answers {
    pub labels: Vec<Vec<u32>>,
    pub close: u32,
}

/// A validation set and its answers.
pub(super) struct Evaluation {
    pub file: PathBuf,
    pub samples: Vec<Sample>,
    pub classes: Vec<String>,
}

impl Inputs {
    /// Errors: what cannot be read, or does not fit together; a signal.
    pub fn read(settings: &Settings, sets: &mut Sets, watch: &mut Watch) -> Result<Inputs> {
        let checkpoint = Checkpoint::open(&settings.model)?;
        let init = settings.init_adapter.as_ref().map(|dir| Adapter::open(dir, &checkpoint.config)).transpose()?;
        if let (Some(dir), Some(adapter)) = (&settings.init_adapter, &init)
            && let Some(said) = fingerprint::other_base(dir, adapter, &settings.model)?
        {
            (watch.said)(Said::Note(said));
        }
        let (min, max) = (settings.min_pixels, settings.max_pixels);
        let (spec, said) = patch_spec_for(&settings.model, init.as_ref(), min, max)?;
        said.into_iter().for_each(|said| (watch.said)(Said::Note(said)));
        let preparer = Preparer::open(&settings.model, &checkpoint.config, spec)?;
        let (kind, trainable) = if settings.full {
            (Kind::Full, Trainable::full(&checkpoint))
        } else {
            let lora = Lora::resolve(settings, init.as_ref().map(|a| &a.config), &checkpoint.config)?;
            let trainable = Trainable::lora(&lora.modules, lora.config.rank, lora.scale).with_dropout(settings.dropout);
            (Kind::Lora(Box::new(lora)), trainable)
        };
        let samples = chosen(settings, sets.samples(&settings.data, settings, watch)?)?;
        let evaluation = match &settings.eval_data {
            Some(file) => Some(Evaluation::of(file, sets.samples(file, settings, watch)?)?),
            None => None,
        };
        let (batch, accumulation) = (settings.batch_size, settings.grad_accumulation);
        let order = Order::new(samples.len(), batch, accumulation, settings.sequence(), settings.length())?;
        Ok(Inputs { checkpoint, preparer, samples, evaluation, kind, init, trainable, order })
    }

    /// The samples that a run learns from, `file` among its settings.
    pub fn learnt<'a>(&'a self, file: &'a Path) -> Samples<'a> {
        Samples { file, all: &self.samples, preparer: &self.preparer }
    }

    /// All samples, without pixels. Errors name the line: what cannot be prepared, a label that cannot be tokenised.
    pub fn measured(&self, settings: &Settings) -> Result<Measured> {
        let answers = |file: &Path, samples: &[Sample], names: &[String]| {
            let (labels, close) = evaluate::choices(&self.preparer, file, samples, names)?;
            Ok(Answers { labels, close })
        };
        let samples = self.learnt(&settings.data);
        let mut measured =
            Measured { samples: samples.measure()?, evaluated: Vec::new(), of_evaluation: None, of_overfit: None };
        if let Some(Evaluation { file, samples, classes }) = &self.evaluation {
            measured.evaluated = Samples { file, all: samples, preparer: &self.preparer }.measure()?;
            measured.of_evaluation = Some(answers(file, samples, classes)?);
        }
        if settings.overfit.is_some()
            && let Some(classes) = samples.closed_set()?
        {
            measured.of_overfit = Some(answers(&settings.data, &self.samples, &classes)?);
        }
        Ok(measured)
    }

    /// The settings with what is used in the place of every default.
    pub fn resolved(&self, settings: &Settings) -> Settings {
        let adapter = match &self.kind {
            Kind::Lora(lora) => Some(&lora.config),
            Kind::Full => None,
        };
        settings.resolved(adapter, &self.preparer.spec, self.order.steps_per_epoch())
    }

    /// What must not change while a run is interrupted. Errors: what cannot be read; a signal.
    pub fn fingerprints(&self, settings: &Settings, watch: &Watch) -> Result<Fingerprints> {
        let mut inputs = Fingerprints::new();
        let mut of = |what: &str, fingerprint: Result<String>| {
            inputs.insert(what.into(), fingerprint?);
            watch.go_on()
        };
        of(fingerprint::MODEL, fingerprint::of_model(&settings.model))?;
        of("the model's tokenizer, templates or processor", fingerprint::of_processing(&settings.model))?;
        of("the training set", fingerprint::of_file(&settings.data))?;
        of("the photos of the training set", fingerprint::of_photos(&self.samples))?;
        if let Some(evaluation) = &self.evaluation {
            of("the validation set", fingerprint::of_file(&evaluation.file))?;
            of("the photos of the validation set", fingerprint::of_photos(&evaluation.samples))?;
        }
        if let Some(dir) = &settings.init_adapter {
            of("the adapter to start from", fingerprint::of_adapter(dir))?;
        }
        Ok(inputs)
    }
}

impl Evaluation {
    fn of(file: &Path, samples: Vec<Sample>) -> Result<Evaluation> {
        let classes = Classes::of(file, &samples, false)?.names;
        if classes.len() > MOST_CHOICES {
            let said = format!("has {} answers; a run is evaluated on at most {MOST_CHOICES}", classes.len());
            return Err(Error::file(file, said));
        }
        Ok(Evaluation { file: file.into(), samples, classes })
    }
}

/// The samples of `--subset` or `--overfit`, or all.
fn chosen(settings: &Settings, all: Vec<Sample>) -> Result<Vec<Sample>> {
    let labels: Vec<Option<&str>> = all.iter().map(|s| s.label.as_deref()).collect();
    let picked = match (settings.overfit, settings.subset) {
        (Some(n), _) => pick(&labels, n, Spread::Even, settings.seed, "--overfit")?,
        (None, Some(n)) => pick(&labels, n, Spread::Stratified, settings.seed, "--subset")?,
        (None, None) => return Ok(all),
    };
    Ok(picked.into_iter().map(|at| all[at].clone()).collect())
}
