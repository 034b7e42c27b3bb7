//! Answers from an OpenAI-compatible chat completions endpoint: how a baseline of a model that runs elsewhere is
//! measured, and how a served one is.
//!
//! Start at [`Endpoint::ask`]. [`chat`] makes requests of conversations and answers of replies; [`client`] sends one and
//! says whether to try again; [`pace`] keeps the rate; [`options`] are changed where a server does not take them;
//! [`refusals`] end it where nothing is answered.

mod chat;
mod client;
mod options;
mod pace;
mod refusals;

use super::evaluate::{Classes, question};
use super::records::Record;
use crate::base::error::{Context, at_line};
use crate::base::{Error, Result};
use crate::data::dataset::Sample;
use client::{Client, Outcome};
use options::Change;
use pace::Pace;
use refusals::Refusals;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

/// Whom to ask, and how hard.
pub struct Endpoint {
    /// As given: the base, such as `https://api.openai.com/v1`, or the whole path of chat completions.
    pub url: String,
    pub model: String,
    /// Sent as a bearer token, and found nowhere else: it is cut from whatever the server says.
    pub key: Option<String>,
    /// Further fields of the request; null takes one away.
    pub options: Map<String, Value>,
    /// Of those that a person asked for, the flag that did. The others are changed where the server does not take them.
    pub flags: BTreeMap<String, &'static str>,
    /// Added to the end of the question.
    pub suffix: Option<String>,
    /// For one request, from connecting to the last byte.
    pub timeout: Duration,
    /// A PEM file of the certificates to trust, in the place of Mozilla's.
    pub certificates: Option<PathBuf>,
    /// How often a request is repeated that may work later, and how long the first wait is; each is twice the one before,
    /// up to a minute. A server that says how long to wait is obeyed instead.
    pub retries: u32,
    pub first_wait: Duration,
    /// Requests under way at the same time.
    pub concurrency: usize,
    pub requests_per_minute: Option<f64>,
    /// What the server refuses to answer counts as a wrong answer instead of ending the evaluation.
    pub skip_refused: bool,
}

/// What the caller is told on the way.
pub enum Said {
    /// A sentence for a person.
    Note(String),
    /// The server does not take an option: from here on these are sent.
    Changed(Map<String, Value>),
    Answer(Box<Record>),
}

enum Message {
    Said(Said),
    Failed(Error),
}

/// What each worker shares with the others.
struct Work<'a> {
    endpoint: &'a Endpoint,
    client: Client,
    pace: Pace,
    data: &'a Path,
    classes: &'a Classes,
    left: Mutex<std::slice::Iter<'a, Sample>>,
    /// The options, less what the server does not take.
    options: Mutex<Map<String, Value>>,
    stop: &'a (dyn Fn() -> bool + Sync),
}

impl Endpoint {
    /// The address that requests go to. Errors: no http(s) URL; one with a name and password in it.
    pub fn address(&self) -> Result<String> {
        let url = self.url.trim_end_matches('/');
        let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
        let host = rest.and_then(|r| r.split('/').next()).filter(|h| !h.is_empty());
        let Some(host) = host else {
            let said = "--endpoint: give a URL such as https://api.openai.com/v1 or http://localhost:8000/v1";
            return Err(Error::Usage(said.into()));
        };
        if host.contains('@') || url.contains('?') {
            let said = "--endpoint: give the URL without a key in it; set the environment variable VLM_API_KEY instead";
            return Err(Error::Usage(said.into()));
        }
        Ok(if url.ends_with("/chat/completions") { url.into() } else { format!("{url}/chat/completions") })
    }

    /// Goes on with the options that an earlier sitting had come to; what a person asks for now stays asked for.
    pub fn go_on_with(&mut self, sent: Map<String, Value>) {
        let asked = std::mem::replace(&mut self.options, sent);
        self.options.extend(asked.into_iter().filter(|(name, _)| self.flags.contains_key(name)));
    }

    /// Asks every sample's question, several at a time; `said` gets answers in the order in which they come, refusals not
    /// before the first answer, unless others were `answered` before. Ends early where `stop` says so, after the requests
    /// that are under way. Errors: a photo that cannot be read; a request that failed for good, or too often; an option
    /// of a flag that the server does not take; all that was asked was refused; those of `said`. What was answered before
    /// stays answered.
    pub fn ask(
        &self,
        data: &Path,
        samples: &[Sample],
        classes: &Classes,
        answered: bool,
        stop: &(dyn Fn() -> bool + Sync),
        said: &mut dyn FnMut(Said) -> Result<()>,
    ) -> Result<()> {
        let failed = std::sync::atomic::AtomicBool::new(false);
        let ends = || stop() || failed.load(std::sync::atomic::Ordering::SeqCst);
        let work = Work {
            endpoint: self,
            client: Client::new(self.address()?, self.key.clone(), self.timeout, self.certificates.as_deref())?,
            pace: Pace::new(self.requests_per_minute),
            data,
            classes,
            left: Mutex::new(samples.iter()),
            options: Mutex::new(self.options.clone()),
            stop: &ends,
        };
        std::thread::scope(|scope| {
            let (send, receive) = channel();
            let at_once = self.concurrency.clamp(1, samples.len().max(1));
            for _ in 0..at_once {
                let (work, send) = (&work, send.clone());
                scope.spawn(move || work.answer_all(&send));
            }
            drop(send);
            let (mut first, mut refusals) = (Ok(()), Refusals::new(answered, at_once));
            for message in receive {
                let done = match message {
                    // what others have answered meanwhile is kept
                    Message::Said(Said::Answer(record)) => refusals.pass(*record).and_then(|records| {
                        records.into_iter().try_for_each(|record| said(Said::Answer(Box::new(record))))
                    }),
                    Message::Said(message) => said(message),
                    Message::Failed(e) => Err(e),
                };
                if done.is_err() {
                    failed.store(true, std::sync::atomic::Ordering::SeqCst);
                    first = first.and(done);
                }
            }
            // what a person has stopped is asked again
            if stop() { first } else { first.and(refusals.end()) }
        })
    }
}

impl Work<'_> {
    fn answer_all(&self, send: &Sender<Message>) {
        loop {
            // poisoned: another worker panicked, which ends all of it
            let Some(sample) = self.left.lock().ok().and_then(|mut left| left.next()) else { return };
            let message = match self.answer(sample, send).context(at_line(self.data, sample.line)) {
                Ok(Some(record)) => Message::Said(Said::Answer(Box::new(record))),
                Ok(None) => return,
                Err(e) => Message::Failed(e),
            };
            let failed = matches!(message, Message::Failed(_));
            if send.send(message).is_err() || failed {
                return;
            }
        }
    }

    /// One sample's record; None where it is to stop.
    fn answer(&self, sample: &Sample, send: &Sender<Message>) -> Result<Option<Record>> {
        let question = question(&sample.conversation);
        let Some(mut options) = self.options() else { return Ok(None) };
        let mut body = chat::request(self.endpoint, &options, &question)?;
        let mut tried = 0;
        while self.pace.turn(self.stop) {
            match self.client.send(&body) {
                Outcome::Answer(answer) => {
                    let mut record = self.classes.judge(sample, answer.text)?;
                    record.usage = answer.usage;
                    record.tags.extend(answer.unended.map(String::from));
                    return Ok(Some(record));
                }
                Outcome::Refused { reason, change: Some(change) } if change.concerns(&options) => {
                    if let Some(flag) = self.endpoint.flags.get(change.from) {
                        let said = format!("{reason}; {} is what {flag} asks for: leave it out", change.from);
                        return Err(Error::Unsupported(said));
                    }
                    let Some(changed) = self.change(change, send) else { return Ok(None) };
                    options = changed;
                    body = chat::request(self.endpoint, &options, &question)?;
                }
                Outcome::Refused { reason, .. } if self.endpoint.skip_refused => {
                    return self.classes.refused(sample, reason).map(Some);
                }
                Outcome::Refused { reason, .. } => {
                    let hint = "--endpoint-options changes what is asked for beside the question, --skip-bad counts \
                                what is refused as wrong answers, and --resume keeps what is answered";
                    return Err(Error::Unsupported(format!("{reason}; {hint}")));
                }
                Outcome::Failed(reason) => return Err(Error::Unsupported(reason)),
                Outcome::Later { reason, after } if tried < self.endpoint.retries => {
                    let wait = after.unwrap_or_else(|| pace::back_off(self.endpoint.first_wait, sample.line, tried));
                    let seconds = wait.as_secs_f64();
                    let said = format!("line {}: {reason}; again in {seconds:.1} s", sample.line);
                    // a receiver that has gone away stopped for its own reason
                    _ = send.send(Message::Said(Said::Note(said)));
                    tried += 1;
                    if after.is_some() {
                        self.pace.pause(wait);
                    } else if !pace::sleep(wait, self.stop) {
                        return Ok(None);
                    }
                }
                Outcome::Later { reason, .. } => {
                    let tries = tried + 1;
                    let said = format!("{reason}; gave up after {tries} tries. The same command with --resume goes on");
                    return Err(Error::Unsupported(said));
                }
            }
        }
        Ok(None)
    }

    /// What is sent beside a question by now; None where another worker panicked, which ends all of it.
    fn options(&self) -> Option<Map<String, Value>> {
        self.options.lock().ok().map(|options| options.clone())
    }

    /// The same after a change, which the first worker that meets it makes for all, and tells.
    fn change(&self, change: Change, send: &Sender<Message>) -> Option<Map<String, Value>> {
        let mut options = self.options.lock().ok()?;
        if change.concerns(&options) {
            change.make(&mut options);
            _ = send.send(Message::Said(Said::Note(change.said())));
            _ = send.send(Message::Said(Said::Changed(options.clone())));
        }
        Some(options.clone())
    }
}
