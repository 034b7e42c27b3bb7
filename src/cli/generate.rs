//! `vlm generate`: an answer about pictures.

use super::compute::described;
use super::endpoint::shortest;
use super::model::{ModelFlags, Opened};
use super::progress::Progress;
use super::values::{answer_tokens, choice, not_negative, picture};
use crate::base::{Error, Result};
use crate::classify::evaluate::label_tokens;
use crate::data::messages::{Conversation, ImageSource, read_messages};
use crate::infer::choices;
use crate::infer::generate::{Finish, Generated, Settings, Timings, generate};
use crate::ops::sample::Choice;
use crate::qwen3vl::generation_config::GenerationConfig;
use crate::qwen3vl::pack::Sequence;
use crate::qwen3vl::template::{END_OF_TURN, Ending};
use crate::qwen3vl::tokenizer::Specials;
use serde_json::{Map, Value, json};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Instant;

/// Answer a prompt about pictures
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: vlm generate --model Qwen3-VL-2B-Instruct --image car.jpg --prompt 'What is damaged?'\n\
                  Choices: vlm generate --model DIR --image car.jpg --prompt 'Which damage?' --choices scratch,dent,crack"
)]
#[command(group(clap::ArgGroup::new("question").required(true).args(["messages", "prompt"])))]
pub struct Generate {
    #[command(flatten)]
    model: ModelFlags,
    /// {"messages": [...]}; image paths relative to the file
    #[arg(long, value_name = "FILE", conflicts_with = "image")]
    messages: Option<PathBuf>,
    /// A picture, before the prompt; may be given several times
    #[arg(long, value_name = "FILE", requires = "prompt", value_parser = picture)]
    image: Vec<PathBuf>,
    /// What to ask
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Score these answers instead of writing one: a probability each
    #[arg(long, value_name = "A,B,C", value_delimiter = ',', value_parser = choice)]
    choices: Vec<String>,
    #[command(flatten)]
    sampling: SamplingFlags,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// How tokens are chosen; what is absent and has no default comes from the checkpoint's generation_config.json.
#[derive(Debug, clap::Args)]
pub struct SamplingFlags {
    /// Stop after this many tokens [default: 512]
    #[arg(long, value_name = "N", value_parser = answer_tokens)]
    max_new_tokens: Option<usize>,
    /// 0 always takes the likeliest token
    #[arg(long, value_name = "X", value_parser = not_negative::<f32>)]
    temperature: Option<f32>,
    /// Keep the likeliest tokens that reach this probability together
    #[arg(long, value_name = "X")]
    top_p: Option<f32>,
    /// Keep this many likeliest tokens; 0 keeps all
    #[arg(long, value_name = "N")]
    top_k: Option<usize>,
    /// Above 1: repeat less of prompt and answer
    #[arg(long, value_name = "X")]
    repetition_penalty: Option<f32>,
    /// Above 0: repeat less of the answer [default: 0]
    #[arg(long, value_name = "X")]
    presence_penalty: Option<f32>,
    /// The same seed gives the same answer [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

impl SamplingFlags {
    /// That of the flag.
    pub fn temperature(&self) -> Option<f32> {
        self.temperature
    }

    pub fn max_new_tokens(&self) -> usize {
        self.max_new_tokens.unwrap_or(512)
    }

    /// Errors: any of the flags was given where none has a say; `place` is the end of the sentence.
    pub fn refuse(&self, place: &str) -> Result<()> {
        let others = [
            ("--max-new-tokens", self.max_new_tokens.is_some()),
            ("--temperature", self.temperature.is_some()),
            ("--repetition-penalty", self.repetition_penalty.is_some()),
            ("--presence-penalty", self.presence_penalty.is_some()),
        ];
        none_of(&others, place)?;
        self.refuse_draws(place)
    }

    /// The same of the flags that only drawn tokens have a use for.
    pub fn refuse_draws(&self, place: &str) -> Result<()> {
        let draws =
            [("--top-p", self.top_p.is_some()), ("--top-k", self.top_k.is_some()), ("--seed", self.seed.is_some())];
        none_of(&draws, place)
    }

    /// The flags over the checkpoint's defaults. `n_valid`: ids from here on have no text.
    pub fn settings(&self, defaults: &GenerationConfig, n_valid: usize) -> Result<Settings> {
        let within = |name: &str, value: f32, ok: bool, range: &str| match ok {
            true => Ok(value),
            false => Err(Error::Usage(format!("--{name} {value}: give {range}"))),
        };
        let temperature = match self.temperature {
            Some(t) => t,
            None if defaults.do_sample => defaults.temperature as f32,
            None => 0.0,
        };
        let top_p = self.top_p.unwrap_or(defaults.top_p as f32);
        let repetition = self.repetition_penalty.unwrap_or(defaults.repetition_penalty as f32);
        let presence = self.presence_penalty.unwrap_or(0.0);
        let choice = Choice {
            temperature: (temperature > 0.0).then_some(temperature),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            top_p: within("top-p", top_p, top_p > 0.0 && top_p <= 1.0, "above 0, at most 1")?,
            repetition_penalty: within(
                "repetition-penalty",
                repetition,
                repetition > 0.0 && repetition.is_finite(),
                "above 0",
            )?,
            presence_penalty: within("presence-penalty", presence, presence.is_finite(), "a number")?,
        };
        if let Some(said) = defaults.greedy_only.as_ref().filter(|_| choice.temperature.is_some()) {
            return Err(Error::Unsupported(format!("{said}, or give --temperature 0")));
        }
        let stop = defaults.eos_token_ids.clone();
        let (seed, max_new_tokens) = (self.seed.unwrap_or(0), self.max_new_tokens());
        Ok(Settings { choice, seed, max_new_tokens, stop, n_valid })
    }
}

fn none_of(flags: &[(&str, bool)], place: &str) -> Result<()> {
    match flags.iter().find(|(_, given)| *given) {
        Some((flag, _)) => Err(Error::Usage(format!("{flag} has no say {place}"))),
        None => Ok(()),
    }
}

/// The settings, each by the flag that gives it.
pub fn by_flag(settings: &Settings) -> Map<String, Value> {
    let choice = &settings.choice;
    Map::from_iter([
        ("--max-new-tokens".to_string(), json!(settings.max_new_tokens)),
        ("--temperature".to_string(), json!(shortest(choice.temperature.unwrap_or(0.0)))),
        ("--top-p".to_string(), json!(shortest(choice.top_p))),
        ("--top-k".to_string(), json!(choice.top_k)),
        ("--repetition-penalty".to_string(), json!(shortest(choice.repetition_penalty))),
        ("--presence-penalty".to_string(), json!(shortest(choice.presence_penalty))),
        ("--seed".to_string(), json!(settings.seed)),
    ])
}

impl Generate {
    pub fn run(&self) -> Result<()> {
        if !self.choices.is_empty() {
            self.sampling.refuse("where --choices are scored by their probability; leave it out")?;
        }
        let conversation = match (&self.messages, &self.prompt) {
            (Some(file), _) => read_messages(file)?,
            (None, Some(prompt)) => {
                Conversation::ask(self.image.iter().cloned().map(ImageSource::File).collect(), prompt)
            }
            (None, None) => return Err(Error::Usage("give --prompt or --messages".into())),
        };
        let start = Instant::now();
        let mut opened = self.model.open()?;
        let load_seconds = start.elapsed().as_secs_f64();
        let start = Instant::now();
        let sequence = opened.preparer.prepare(&conversation, Ending::GenerationPrompt)?.sequence;
        let preprocess_seconds = start.elapsed().as_secs_f64();
        let before = Before { load_seconds, preprocess_seconds };
        if self.choices.is_empty() {
            self.answer(&mut opened, &sequence, before)
        } else {
            self.score(&mut opened, &conversation, &sequence, before)
        }
    }

    fn answer(&self, opened: &mut Opened, sequence: &Sequence, before: Before) -> Result<()> {
        let tokenizer = opened.preparer.prompts.tokenizer();
        let settings = self.sampling.settings(&opened.generation, tokenizer.n_tokens())?;
        let live = !self.json && std::io::stdout().is_terminal();
        let mut printed = String::new();
        let mut tokens = Vec::new();
        let mut each = |_: usize, token: u32| {
            tokens.push(token);
            if live && let Ok(text) = tokenizer.decode(&tokens, Specials::Skip) {
                // a character may need more tokens: wait until the text ends in a whole one
                if let Some(new) = text.strip_prefix(&printed).filter(|new| !new.ends_with('\u{fffd}')) {
                    _ = super::print(new).and_then(|()| std::io::stdout().flush().or(Ok(())));
                    printed = text;
                }
            }
            true
        };
        let mut bar = Progress::new("prompt");
        let mut progress = |done: usize, all: usize| bar.at(done as u64, all as u64);
        let (answers, timings) = generate(&mut opened.engine, &[sequence], &settings, &mut progress, &mut each)?;
        drop(bar);
        let Some(Generated { tokens, finish }) = answers.into_iter().next() else { return Ok(()) };
        let text = tokenizer.decode(&tokens, Specials::Skip)?;
        if !self.json {
            return super::print_exact(&format!("{}\n", text.strip_prefix(&printed).unwrap_or(&text)));
        }
        super::print_json(&json!({
            "text": text,
            "token_ids": tokens,
            "prompt_tokens": sequence.ids.len(),
            "finish_reason": if finish == Finish::Stop { "stop" } else { "length" },
            "timings": before.timings(timings),
            "device": described(&opened.engine.device),
        }))
    }

    fn score(
        &self,
        opened: &mut Opened,
        conversation: &Conversation,
        sequence: &Sequence,
        before: Before,
    ) -> Result<()> {
        let prompts = &opened.preparer.prompts;
        let labels = label_tokens(&opened.preparer, conversation, &self.choices)?;
        let longest = labels.iter().map(Vec::len).max().unwrap_or(0);
        opened.preparer.fits(sequence.ids.len() + longest)?;
        let close = prompts.tokenizer().need_token(END_OF_TURN)?;
        let mut bar = Progress::new("prompt");
        let mut progress = |done: usize, all: usize| bar.at(done as u64, all as u64);
        let start = Instant::now();
        let scores = choices::score(&mut opened.engine, &[sequence], &labels, close, &mut progress)?;
        let timings = Timings { prefill_seconds: start.elapsed().as_secs_f64(), decode_seconds: 0.0 };
        drop(bar);
        let mut ranked: Vec<(&String, f64)> = self.choices.iter().zip(scores.into_iter().flatten()).collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        let best = ranked.first().map_or("", |(label, _)| label.as_str());
        if self.json {
            let choices: serde_json::Map<_, _> = ranked.iter().map(|(l, p)| (l.to_string(), json!(p))).collect();
            return super::print_json(&json!({
                "text": best,
                "token_ids": [],
                "prompt_tokens": sequence.ids.len(),
                "finish_reason": "stop",
                "choices": choices,
                "timings": before.timings(timings),
                "device": described(&opened.engine.device),
            }));
        }
        let lines: Vec<String> = ranked.iter().map(|(label, p)| format!("{:6.2} %  {label}\n", 100.0 * p)).collect();
        super::print(&lines.concat())
    }
}

/// What passed before the model was asked.
struct Before {
    load_seconds: f64,
    preprocess_seconds: f64,
}

impl Before {
    fn timings(&self, t: Timings) -> serde_json::Value {
        json!({
            "load_seconds": self.load_seconds,
            "preprocess_seconds": self.preprocess_seconds,
            "prefill_seconds": t.prefill_seconds,
            "decode_seconds": t.decode_seconds,
        })
    }
}
