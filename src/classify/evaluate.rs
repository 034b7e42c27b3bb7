//! Predictions for a labelled set, in batches: the next batch's photos are decoded while one is computed.

use super::metrics::{OTHER, distinct, parts};
use super::records::{CUT_OFF, REFUSED, Record};
use crate::base::error::{Context, at_line, lines_of};
use crate::base::{Error, Result};
use crate::data::dataset::Sample;
use crate::data::label::normalised;
use crate::data::messages::{Conversation, ImageSource, Message, Role};
use crate::data::paths;
use crate::infer::choices;
use crate::infer::engine::Engine;
use crate::infer::generate::{self, Settings};
use crate::infer::lists::{self, Labels};
use crate::io::json::brief;
use crate::qwen3vl::pack::Sequence;
use crate::qwen3vl::prepare::Preparer;
use crate::qwen3vl::template::{END_OF_TURN, Ending};
use crate::qwen3vl::tokenizer::Specials;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::mpsc::sync_channel;

/// Closed sets above this are answered by generation.
pub const MOST_CHOICES: usize = 50;

/// How an answer is got.
pub enum Method {
    /// The likeliest of these.
    Choices(Vec<String>),
    /// A list of some of these: see [`lists`].
    Lists(Vec<String>),
    /// What the model writes, compared with the classes: see [`Classes::judge`].
    Generate { settings: Box<Settings>, classes: Classes },
}

/// What can be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Classes {
    /// Each once, sorted where they are a set's labels.
    pub names: Vec<String>,
    /// Whether a photo can have several, written as a list with commas.
    pub several: bool,
}

impl Classes {
    /// The labels of a set, each once; every sample needs one. Those that are compared as the same are one class, by their
    /// commonest spelling.
    pub fn of(data: &Path, samples: &[Sample], several: bool) -> Result<Classes> {
        let mut names = Vec::new();
        for s in samples {
            let said = "has no label: no assistant turn ends the conversation";
            let label = s.label.as_ref().ok_or_else(|| Error::line(data, s.line, said))?;
            match several {
                false => names.push(label.clone()),
                true => names.extend(parts(label)),
            }
        }
        Ok(Classes { names: distinct(names), several })
    }

    /// The class that a label or an answer names: the one that [`normalised`] makes the same of.
    pub fn class(&self, text: &str) -> Option<&String> {
        self.names.iter().find(|name| normalised(name) == normalised(text))
    }

    /// The labels of an answer, by the names that the classes have; one that is no class is [`OTHER`].
    pub fn read(&self, answer: &str) -> Vec<String> {
        let name = |text: &str| self.class(text).cloned().unwrap_or_else(|| OTHER.into());
        if !self.several {
            return vec![name(answer)];
        }
        // the full stop of a sentence is nobody's label
        let answer = answer.trim().strip_suffix('.').unwrap_or(answer);
        let mut names: Vec<String> = parts(answer).iter().map(|part| name(part)).collect();
        names.sort();
        names.dedup();
        names
    }

    /// A written answer as a record: what it names, and whether that is right. A record has labels and predictions by the
    /// names of the classes, so that whoever counts compares them as they stand. Errors: a photo whose path is not UTF-8.
    pub fn judge(&self, sample: &Sample, answer: String) -> Result<Record> {
        let mut record = self.record(sample, self.read(&answer))?;
        record.answer = Some(answer);
        Ok(record)
    }

    /// The record of a question that was refused, which names no class whatever the reason says. Errors: as of
    /// [`Self::judge`].
    pub fn refused(&self, sample: &Sample, reason: String) -> Result<Record> {
        let mut record = self.record(sample, vec![OTHER.into()])?;
        (record.answer, record.right) = (Some(reason), false);
        record.tags.push(REFUSED.into());
        Ok(record)
    }

    fn record(&self, sample: &Sample, mut predictions: Vec<String>) -> Result<Record> {
        let label = sample.label.clone().unwrap_or_default();
        let mut record = Record { line: sample.line, ..Record::default() };
        record.set_images(sample.images().map(named).collect::<Result<_>>()?);
        if self.several {
            let mut labels = self.read(&label);
            labels.sort();
            predictions.sort();
            record.right = labels == predictions;
            (record.label, record.prediction) = (labels.join(", "), predictions.join(", "));
            (record.labels, record.predictions) = (Some(labels), Some(predictions));
        } else {
            record.prediction = predictions.into_iter().next().unwrap_or_else(|| OTHER.into());
            record.label = self.class(&label).cloned().unwrap_or(label);
            record.right = record.label == record.prediction;
        }
        Ok(record)
    }
}

/// What a record calls a picture.
fn named(source: &ImageSource) -> Result<String> {
    match source {
        ImageSource::File(path) => paths::text(path),
        ImageSource::Bytes { bytes, .. } => {
            let hash: String = Sha256::digest(bytes).iter().take(16).map(|b| format!("{b:02x}")).collect();
            Ok(format!("data:{hash}"))
        }
    }
}

/// The conversation up to the answer that is to be predicted.
pub fn question(conversation: &Conversation) -> Conversation {
    let mut question = conversation.clone();
    if question.messages.last().is_some_and(|m| m.role == Role::Assistant) {
        question.messages.pop();
    }
    question
}

/// That all samples can be predicted, before one is: of their photos only the headers are read. Errors name the line: a
/// prompt that cannot be built, or is too long together with the longest label; a label that cannot be tokenised.
pub fn check(preparer: &Preparer, data: &Path, samples: &[Sample], method: &Method) -> Result<()> {
    let longest = Tokens::of(preparer, data, samples, method)?.longest();
    let check = |s: &Sample| {
        let prompt = preparer.measure(&question(&s.conversation), Ending::GenerationPrompt);
        prompt.and_then(|p| preparer.fits(p.sequence.ids.len() + longest)).context(at_line(data, s.line))
    };
    // all at once; what is said of is the first that failed
    let checked: Vec<Result<()>> = samples.par_iter().map(check).collect();
    checked.into_iter().collect()
}

/// Predicts all samples in order; `done` is told each prediction as soon as its batch is computed, and ends it with false.
pub fn evaluate(
    engine: &mut Engine,
    preparer: &Preparer,
    data: &Path,
    samples: &[Sample],
    method: &Method,
    batch: usize,
    done: &mut dyn FnMut(Record) -> Result<bool>,
) -> Result<()> {
    let labels = Tokens::of(preparer, data, samples, method)?;
    std::thread::scope(|scope| {
        let (send, receive) = sync_channel::<Result<(&[Sample], Vec<Sequence>)>>(1);
        scope.spawn(move || {
            let prepare = |s: &Sample| {
                let prepared = preparer.prepare(&question(&s.conversation), Ending::GenerationPrompt);
                prepared.map(|p| p.sequence).context(at_line(data, s.line))
            };
            for chunk in samples.chunks(batch.max(1)) {
                // all at once; what is said of is the first that failed
                let prepared: Vec<Result<Sequence>> = chunk.par_iter().map(prepare).collect();
                let sequences = prepared.into_iter().collect::<Result<Vec<_>>>();
                // a receiver that has gone away stopped for its own reason
                if send.send(sequences.map(|s| (chunk, s))).is_err() {
                    return;
                }
            }
        });
        for prepared in receive {
            let (chunk, sequences) = prepared?;
            let sequences: Vec<&Sequence> = sequences.iter().collect();
            let lines: Vec<usize> = chunk.iter().map(|s| s.line).collect();
            let predictions = predict(engine, preparer, chunk, &sequences, method, &labels).context(format!(
                "{}, {}",
                data.display(),
                lines_of(&lines)
            ))?;
            for prediction in predictions {
                if !done(prediction)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    })
}

/// The labels of the method, as tokens.
enum Tokens {
    Choices(Vec<Vec<u32>>),
    Lists(Labels),
    None,
}

impl Tokens {
    /// After the first sample's prompt: tokens of a label are those of any other's. Errors name the line: of that sample
    /// where its prompt cannot be built, else of the first with the label that cannot be.
    fn of(preparer: &Preparer, data: &Path, samples: &[Sample], method: &Method) -> Result<Tokens> {
        let Some(first) = samples.first() else { return Ok(Tokens::None) };
        let prompt = question(&first.conversation);
        let (names, several) = match method {
            Method::Choices(names) => (names, false),
            Method::Lists(names) => (names, true),
            Method::Generate { .. } => return Ok(Tokens::None),
        };
        preparer.measure(&prompt, Ending::GenerationPrompt).context(at_line(data, first.line))?;
        let tokens = match several {
            false => label_tokens(preparer, &prompt, names).map(Tokens::Choices),
            true => list_tokens(preparer, &prompt, names).map(Tokens::Lists),
        };
        tokens.or_else(|e| {
            // each alone, to know which one it is
            let refused = |name: &&String| label_tokens(preparer, &prompt, std::slice::from_ref(*name)).is_err();
            let class = names.iter().find(refused).map(|name| Classes { names: vec![name.clone()], several });
            let has = |s: &&Sample| {
                let label = s.label.as_deref().unwrap_or_default();
                class.as_ref().is_some_and(|class| class.read(label).iter().any(|name| name != OTHER))
            };
            match samples.iter().find(has) {
                Some(sample) => Err(e).context(at_line(data, sample.line)),
                None => Err(e),
            }
        })
    }

    /// Tokens of the longest label.
    fn longest(&self) -> usize {
        let of = |labels: &[Vec<u32>]| labels.iter().map(Vec::len).max().unwrap_or(0);
        match self {
            Tokens::Choices(labels) => of(labels),
            Tokens::Lists(labels) => of(&labels.first).max(of(&labels.later)),
            Tokens::None => 0,
        }
    }
}

fn predict(
    engine: &mut Engine,
    preparer: &Preparer,
    samples: &[Sample],
    sequences: &[&Sequence],
    method: &Method,
    labels: &Tokens,
) -> Result<Vec<Record>> {
    match (method, labels) {
        (Method::Choices(names), Tokens::Choices(labels)) => {
            let close = preparer.prompts.tokenizer().need_token(END_OF_TURN)?;
            let scores = choices::score(engine, sequences, labels, close, &mut |_, _| ())?;
            let classes = Classes { names: names.clone(), several: false };
            let of = |(s, p): (&Sample, Vec<f64>)| {
                let mut record = classes.record(s, vec![names[choices::likeliest(&p)].clone()])?;
                record.probabilities = Some(names.iter().cloned().zip(p).collect());
                Ok(record)
            };
            samples.iter().zip(scores).map(of).collect()
        }
        (Method::Lists(names), Tokens::Lists(labels)) => {
            let classes = Classes { names: names.clone(), several: true };
            let of = |(s, listed): (&Sample, lists::Listed)| {
                let mut record = classes.record(s, listed.named.iter().map(|i| names[*i].clone()).collect())?;
                record.probabilities = Some(names.iter().cloned().zip(listed.probabilities).collect());
                Ok(record)
            };
            samples.iter().zip(lists::list(engine, sequences, labels)?).map(of).collect()
        }
        (Method::Generate { settings, classes }, _) => {
            let (answers, _) = generate::generate(engine, sequences, settings, &mut |_, _| (), &mut |_, _| true)?;
            let of = |(s, a): (&Sample, &generate::Generated)| {
                let text = preparer.prompts.tokenizer().decode(&a.tokens, Specials::Skip)?;
                let mut record = classes.judge(s, text)?;
                record.tags.extend((a.finish == generate::Finish::Length).then(|| CUT_OFF.into()));
                Ok(record)
            };
            samples.iter().zip(&answers).map(of).collect()
        }
        // only where there are no samples
        _ => Ok(Vec::new()),
    }
}

/// The tokens of the labels that [`Method::Choices`] chooses from, and the one that closes an answer.
pub fn choices(preparer: &Preparer, data: &Path, samples: &[Sample], names: &[String]) -> Result<(Vec<Vec<u32>>, u32)> {
    let close = preparer.prompts.tokenizer().need_token(END_OF_TURN)?;
    match Tokens::of(preparer, data, samples, &Method::Choices(names.to_vec()))? {
        Tokens::Choices(labels) => Ok((labels, close)),
        // only where there are no samples
        _ => Ok((Vec::new(), close)),
    }
}

/// The labels as members of a list: first, and after another.
fn list_tokens(preparer: &Preparer, prompt: &Conversation, names: &[String]) -> Result<Labels> {
    let close = preparer.prompts.tokenizer().need_token(END_OF_TURN)?;
    let first = label_tokens(preparer, prompt, names)?;
    let mut later = Vec::new();
    for (i, name) in names.iter().enumerate() {
        let other = if i == 0 { names.len() - 1 } else { 0 };
        let both = label_tokens(preparer, prompt, &[format!("{}, {name}", names[other])])?.remove(0);
        let after = both.strip_prefix(&first[other][..]).filter(|t| !t.is_empty()).ok_or_else(|| {
            let said = format!("the tokens of {:?} are others in a list; give --generate", names[other]);
            Error::Unsupported(said)
        })?;
        later.push(after.to_vec());
    }
    Ok(Labels { first, later, close })
}

/// The tokens of each label as an answer, without the token that closes it: tokenised where they will stand, after the
/// prompt's own text. Errors name the label: it cannot be built, or another has the same tokens.
pub fn label_tokens(preparer: &Preparer, prompt: &Conversation, names: &[String]) -> Result<Vec<Vec<u32>>> {
    let close = preparer.prompts.tokenizer().need_token(END_OF_TURN)?;
    let rows = vec![1; prompt.images().count()];
    let tokens = |name: &String| {
        let mut answered = prompt.clone();
        answered.messages.push(Message::text(Role::Assistant, name.as_str()));
        let prompt = preparer.prompts.build(&answered, &rows, Ending::Complete);
        let prompt = prompt
            .and_then(|prompt| preparer.fits(prompt.ids.len()).map(|()| prompt))
            .context(format!("the label {}", brief(&name.as_str().into())))?;
        // of all assistant turns the last is the label
        let end = prompt.labels.iter().rposition(|l| *l).unwrap_or(0);
        let start = prompt.labels[..end].iter().rposition(|l| !*l).map_or(0, |before| before + 1);
        let mut ids = prompt.ids[start..=end].to_vec();
        ids.pop_if(|id| *id == close);
        Ok(ids)
    };
    let labels = names.iter().map(tokens).collect::<Result<Vec<_>>>()?;
    for (i, label) in labels.iter().enumerate() {
        if let Some(first) = labels[..i].iter().position(|other| other == label) {
            let [one, other] = [first, i].map(|at| brief(&names[at].as_str().into()));
            let said = format!(
                "labels {} and {} of the choices are one to the model: {one} and {other}; leave one out",
                first + 1,
                i + 1
            );
            return Err(Error::Usage(said));
        }
    }
    Ok(labels)
}
