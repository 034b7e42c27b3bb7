//! The checkpoint's chat template: a conversation to the text that the model was trained to read.
//!
//! The checkpoint's own Jinja is what is rendered. Where a turn's words lie in the text is learnt by rendering the
//! conversation up to that turn, never by looking for markers, which a user can type.

use super::jinja::{self, STEP_BYTES, STEPS};
use super::tokenizer::content;
use crate::base::error::first_of;
use crate::base::width::in_line;
use crate::base::{Error, Result, counted, input};
use crate::data::messages::{Content, Conversation, Message, Part, Role};
use crate::io::json;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, Value, context};
use serde_json::{Map, Value as Json, json};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Closes every turn of Qwen's templates, and is what the model emits to stop.
pub const END_OF_TURN: &str = "<|im_end|>";

/// How a rendered conversation ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With the header of an assistant turn, for the model to go on.
    GenerationPrompt,
    /// With the last message, to learn from.
    Complete,
}

/// A complete conversation as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    pub text: String,
    /// For each assistant turn the bytes of `text` that it says: content, tool calls and the closing `<|im_end|>`,
    /// without the header before and the newline after.
    pub answers: Vec<Range<usize>>,
}

pub struct ChatTemplate {
    environment: Environment<'static>,
    place: Place,
    /// `eos_token` and the like, which transformers hands to templates.
    special_tokens: Value,
}

/// Where the template's text came from.
struct Place {
    path: PathBuf,
    /// Whether the file is the template, or a JSON file with the template inside.
    in_json: bool,
}

impl Place {
    /// `on` says what was rendered, if anything was.
    fn error(&self, error: &minijinja::Error, on: &str) -> Error {
        let mut reason = match error.kind() {
            ErrorKind::OutOfFuel => {
                let text = counted::bytes(STEPS * STEP_BYTES);
                format!("not done after {STEPS} steps or {text} of text; does a loop in it end?")
            }
            kind => error.detail().map_or_else(|| kind.to_string(), str::to_owned),
        };
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            reason = format!("{reason}: {cause}");
            source = cause.source();
        }
        let reason = format!("the chat template failed{on}: {}", in_line(&reason));
        match error.line() {
            Some(line) if self.in_json => {
                Error::file(&self.path, format!("line {line} of its chat_template: {reason}"))
            }
            Some(line) => Error::line(&self.path, line, reason),
            None => Error::file(&self.path, reason),
        }
    }
}

const NAME: &str = "chat_template";
/// The one of a folder of named templates that is taken where `chat_template.jinja` is absent.
pub const ADDITIONAL_DEFAULT: &str = "additional_chat_templates/default.jinja";

impl ChatTemplate {
    /// Reads the template that transformers 5.17's processor takes (processing_utils.py): `chat_template` in
    /// `processor_config.json`, else that in `chat_template.json`, else `chat_template.jinja`, else `default.jinja` in
    /// `additional_chat_templates`; where there is none of these, and that processor gives up, `chat_template` in
    /// `tokenizer_config.json`. In JSON it is text, or a list or map of named templates with one called `default`.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let [processor, legacy, tokenizer] =
            ["processor_config.json", "chat_template.json", "tokenizer_config.json"].map(|name| folder.join(name));
        let config = json::read_object_if_there(&tokenizer)?.unwrap_or_default();
        let special_tokens = Value::from(Serde(special_tokens(&config)));
        let in_json = |path: &Path, object: Option<&Map<String, Json>>| {
            let Some(found) = object.and_then(|object| object.get(NAME)).filter(|found| !found.is_null()) else {
                return Ok(None);
            };
            let source = default_template(found).map_err(|reason| Error::file(path, reason))?;
            Self::new(Place { path: path.into(), in_json: true }, source, special_tokens.clone()).map(Some)
        };
        for path in [&processor, &legacy] {
            if let Some(template) = in_json(path, json::read_object_if_there(path)?.as_ref())? {
                return Ok(template);
            }
        }
        for name in ["chat_template.jinja", ADDITIONAL_DEFAULT] {
            let path = folder.join(name);
            if let Some(source) = input::if_there(input::read_text(&path))? {
                return Self::new(Place { path, in_json: false }, &source, special_tokens);
            }
        }
        in_json(&tokenizer, Some(&config))?.ok_or_else(|| {
            Error::file(
                folder,
                "has no chat template: neither chat_template.jinja nor chat_template.json, and no chat_template in \
                 processor_config.json or tokenizer_config.json; copy the file from the original checkpoint",
            )
        })
    }

    fn new(place: Place, source: &str, special_tokens: Value) -> Result<Self> {
        match jinja::environment(NAME, source) {
            Ok(environment) => Ok(ChatTemplate { environment, place, special_tokens }),
            Err(e) => Err(place.error(&e, "")),
        }
    }

    /// The text of a conversation. Templates may print less than the messages hold: Qwen's drops images of system and
    /// assistant messages and a system message that is not the first.
    pub fn render(&self, conversation: &Conversation, ending: Ending) -> Result<String> {
        self.print(&values(&conversation.messages), conversation, ending)
    }

    /// The text of a complete conversation with the places of what the assistant says.
    ///
    /// Beyond the errors of [`ChatTemplate::render`]: the template writes an earlier turn differently once others
    /// follow (templates that drop past reasoning do), or ends a turn with something other than `<|im_end|>`.
    pub fn render_with_answers(&self, conversation: &Conversation) -> Result<Rendered> {
        let messages = values(&conversation.messages);
        let text = self.print(&messages, conversation, Ending::Complete)?;
        let mut answers = Vec::new();
        for (i, message) in conversation.messages.iter().enumerate() {
            if message.role != Role::Assistant {
                continue;
            }
            let until = self.print(&messages[..=i], conversation, Ending::Complete)?;
            let start = match i {
                0 => self.start_of_first_turn(conversation, &until)?,
                _ => self.print(&messages[..i], conversation, Ending::GenerationPrompt)?,
            };
            let said = until.trim_end();
            let (from, to) = (start.len(), said.len());
            if !text.starts_with(&start) || !text.starts_with(&until) || !said.ends_with(END_OF_TURN) || to < from {
                return Err(Error::file(
                    &self.place.path,
                    format!(
                        "cannot tell which words of message {} are the assistant's, so it cannot be learnt: the \
                         template does not write it as a generation prompt, the answer and {END_OF_TURN}, the same \
                         whatever follows; split the conversation so that this answer comes last, or use another \
                         template",
                        i + 1
                    ),
                ));
            }
            answers.push(from..to);
        }
        Ok(Rendered { text, answers })
    }

    /// What stands before the words of an assistant turn that opens the conversation: nothing can be rendered before
    /// it, so the turn is rendered without words, and its header, the last one there, is what a generation prompt is.
    fn start_of_first_turn(&self, conversation: &Conversation, until: &str) -> Result<String> {
        let silent = values(&[Message::text(Role::Assistant, "")]);
        let mut empty = self.print(&silent, conversation, Ending::Complete)?;
        let prompted = self.print(&silent, conversation, Ending::GenerationPrompt)?;
        let header = prompted.strip_prefix(empty.as_str()).filter(|header| !header.is_empty());
        match header.and_then(|header| Some(empty.rfind(header)? + header.len())) {
            Some(end) => empty.truncate(end),
            // Longer than the turn itself: the caller's checks say what is wrong.
            None => empty = format!("{until}{prompted}"),
        }
        Ok(empty)
    }

    /// The texts of the first message, the first two, and so on.
    pub(super) fn prefixes(&self, conversation: &Conversation) -> Result<Vec<String>> {
        let messages = values(&conversation.messages);
        (1..=messages.len()).map(|n| self.print(&messages[..n], conversation, Ending::Complete)).collect()
    }

    fn print(&self, messages: &[Value], conversation: &Conversation, ending: Ending) -> Result<String> {
        let context = context! {
            messages,
            tools => conversation.tools.as_ref().map(|tools| Value::from(Serde(tools))),
            documents => Value::from(()),
            add_generation_prompt => ending == Ending::GenerationPrompt,
            ..self.special_tokens.clone()
        };
        let template = self.environment.get_template(NAME).map_err(|e| self.place.error(&e, ""))?;
        template.render(context).map_err(|e| self.place.error(&e, &on(messages)))
    }
}

/// What a template was rendered on, for the sentence that it failed: many want roles in an order of their own.
fn on(messages: &[Value]) -> String {
    let roles: Vec<Value> = messages.iter().filter_map(|message| message.get_attr("role").ok()).collect();
    match roles.as_slice() {
        [] => " on no messages (nothing comes before the answer; begin with what a user says)".into(),
        roles => format!(" on messages by {}", first_of(roles)),
    }
}

/// The messages as the template sees them.
fn values(messages: &[Message]) -> Vec<Value> {
    let value = |message: &Message| {
        let mut object = Map::new();
        object.insert("role".into(), message.role.as_str().into());
        match &message.content {
            Content::Absent => {}
            Content::Text(text) => {
                object.insert("content".into(), text.as_str().into());
            }
            Content::Parts(parts) => {
                let parts = parts.iter().map(|part| match part {
                    Part::Text(text) => json!({"type": "text", "text": text}),
                    Part::Image(_) => json!({"type": "image"}),
                });
                object.insert("content".into(), parts.collect());
            }
        }
        object.extend(message.extra.iter().map(|(key, value)| (key.clone(), value.clone())));
        Value::from(Serde(object))
    };
    messages.iter().map(value).collect()
}

/// A template's text, or of several named ones that called `default`.
fn default_template(found: &Json) -> std::result::Result<&str, String> {
    let named: Vec<(&str, &Json)> = match found {
        Json::String(source) => return Ok(source),
        Json::Array(list) => {
            list.iter().filter_map(|entry| Some((entry.get("name")?.as_str()?, entry.get("template")?))).collect()
        }
        Json::Object(map) => map.iter().map(|(name, template)| (name.as_str(), template)).collect(),
        _ => return Err("its chat_template is neither text nor a list of named templates".into()),
    };
    let default = named.iter().find(|(name, _)| *name == "default").and_then(|(_, template)| template.as_str());
    default.ok_or_else(|| {
        let names: Vec<_> = named.iter().map(|(name, _)| *name).collect();
        format!("its chat_template has several templates and none called \"default\": {}", in_line(&names.join(", ")))
    })
}

/// `bos_token` and the like, each text or an object with its text.
fn special_tokens(config: &Map<String, Json>) -> Map<String, Json> {
    let names = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
    let token = |name: &&str| {
        let text = content(config.get(*name)?)?;
        Some((name.to_string(), Json::from(text)))
    };
    names.iter().filter_map(token).collect()
}
