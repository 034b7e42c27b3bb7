//! Predictions for a labelled set, in batches: the next batch's photos are decoded while one is computed.

use super::metrics::{OTHER, normalised};
use crate::base::{Error, Result, error::Context};
use crate::data::dataset::Sample;
use crate::data::messages::{Conversation, Message, Role};
use crate::infer::choices;
use crate::infer::engine::Engine;
use crate::infer::generate::{self, Settings};
use crate::qwen3vl::pack::Sequence;
use crate::qwen3vl::prepare::Preparer;
use crate::qwen3vl::template::{END_OF_TURN, Ending};
use crate::qwen3vl::tokenizer::Specials;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::sync_channel;

/// Closed sets above this are answered by generation.
pub const MOST_CHOICES: usize = 50;

/// How an answer is got.
pub enum Method {
    /// The likeliest of these.
    Choices(Vec<String>),
    /// What the model writes, compared after [`normalised`] with these classes.
    Generate { settings: Box<Settings>, classes: Vec<String> },
}

/// One line of predictions.jsonl.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Prediction {
    /// The line of the data file, from 1.
    pub line: usize,
    pub images: Vec<String>,
    pub label: String,
    pub prediction: String,
    pub correct: bool,
    /// Each choice's probability.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probabilities: Option<BTreeMap<String, f64>>,
    /// What was written, where it was generated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
}

/// The distinct labels of a set, sorted; every sample needs one.
pub fn classes(data: &Path, samples: &[Sample]) -> Result<Vec<String>> {
    let label = |s: &Sample| {
        s.label
            .clone()
            .ok_or_else(|| Error::line(data, s.line, "has no label: no assistant turn ends the conversation"))
    };
    let mut classes = samples.iter().map(label).collect::<Result<Vec<_>>>()?;
    classes.sort();
    classes.dedup();
    Ok(classes)
}

/// The conversation up to the answer that is to be predicted.
fn question(conversation: &Conversation) -> Conversation {
    let mut question = conversation.clone();
    if question.messages.last().is_some_and(|m| m.role == Role::Assistant) {
        question.messages.pop();
    }
    question
}

/// Predicts all samples in order; `done` is told each prediction as soon as its batch is computed.
pub fn evaluate(
    engine: &mut Engine,
    preparer: &Preparer,
    data: &Path,
    samples: &[Sample],
    method: &Method,
    batch: usize,
    done: &mut dyn FnMut(Prediction) -> Result<()>,
) -> Result<()> {
    let labels = match method {
        Method::Choices(names) => match samples.first() {
            Some(first) => label_tokens(preparer, &question(&first.conversation), names)?,
            None => Vec::new(),
        },
        Method::Generate { .. } => Vec::new(),
    };
    std::thread::scope(|scope| {
        let (send, receive) = sync_channel::<Result<(&[Sample], Vec<Sequence>)>>(1);
        scope.spawn(move || {
            for chunk in samples.chunks(batch.max(1)) {
                let prepare = |s: &Sample| {
                    let prepared = preparer.prepare(&question(&s.conversation), Ending::GenerationPrompt);
                    prepared.map(|p| p.sequence).context(format!("{}, line {}", data.display(), s.line))
                };
                let sequences = chunk.iter().map(prepare).collect::<Result<Vec<_>>>();
                // a receiver that has gone away stopped for its own reason
                if send.send(sequences.map(|s| (chunk, s))).is_err() {
                    return;
                }
            }
        });
        for prepared in receive {
            let (chunk, sequences) = prepared?;
            let sequences: Vec<&Sequence> = sequences.iter().collect();
            for prediction in predict(engine, preparer, chunk, &sequences, method, &labels)? {
                done(prediction)?;
            }
        }
        Ok(())
    })
}

fn predict(
    engine: &mut Engine,
    preparer: &Preparer,
    samples: &[Sample],
    sequences: &[&Sequence],
    method: &Method,
    labels: &[Vec<u32>],
) -> Result<Vec<Prediction>> {
    let prediction = |s: &Sample, prediction: String, probabilities, answer| {
        let label = s.label.clone().unwrap_or_default();
        Prediction {
            line: s.line,
            images: s.images().map(|i| i.to_string()).collect(),
            correct: normalised(&label) == normalised(&prediction),
            label,
            prediction,
            probabilities,
            answer,
        }
    };
    match method {
        Method::Choices(names) => {
            let close = preparer.prompts.tokenizer().need_token(END_OF_TURN)?;
            let scores = choices::score(engine, sequences, labels, close, &mut |_, _| ())?;
            let of = |(s, p): (&Sample, Vec<f64>)| {
                let best = p.iter().enumerate().fold(0, |best, (i, x)| if *x > p[best] { i } else { best });
                let probabilities = names.iter().cloned().zip(p).collect();
                prediction(s, names[best].clone(), Some(probabilities), None)
            };
            Ok(samples.iter().zip(scores).map(of).collect())
        }
        Method::Generate { settings, classes } => {
            let (answers, _) = generate::generate(engine, sequences, settings, &mut |_, _| (), &mut |_, _| true)?;
            let of = |(s, a): (&Sample, &generate::Generated)| {
                let text = preparer.prompts.tokenizer().decode(&a.tokens, Specials::Skip)?;
                let named = classes.iter().find(|c| normalised(c) == normalised(&text));
                Ok(prediction(s, named.cloned().unwrap_or_else(|| OTHER.into()), None, Some(text)))
            };
            samples.iter().zip(&answers).map(of).collect()
        }
    }
}

/// The tokens of each label as an answer, without the token that closes it: tokenised where they will stand, after the
/// prompt's own text.
pub fn label_tokens(preparer: &Preparer, prompt: &Conversation, names: &[String]) -> Result<Vec<Vec<u32>>> {
    let close = preparer.prompts.tokenizer().need_token(END_OF_TURN)?;
    let rows = vec![1; prompt.images().count()];
    let tokens = |name: &String| {
        let mut answered = prompt.clone();
        answered.messages.push(Message::text(Role::Assistant, name.as_str()));
        let prompt = preparer.prompts.build(&answered, &rows, Ending::Complete)?;
        // of all assistant turns the last is the label
        let end = prompt.labels.iter().rposition(|l| *l).unwrap_or(0);
        let start = prompt.labels[..end].iter().rposition(|l| !*l).map_or(0, |before| before + 1);
        let mut ids = prompt.ids[start..=end].to_vec();
        ids.pop_if(|id| *id == close);
        Ok(ids)
    };
    names.iter().map(tokens).collect()
}
