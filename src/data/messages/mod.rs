//! A conversation as a file tells it: who said what, with which images.
//!
//! Start at [`read_messages`]. The several JSON shapes that people use become one [`Conversation`] in `parse`;
//! where an image comes from is decided in `source`. Nothing here knows a model or a template.

mod parse;
mod source;

pub use source::ImageSource;

use crate::base::{Error, Result, input};
use serde_json::{Map, Value};
use std::path::Path;

pub(super) use parse::{around_image, conversation, from_bytes, images, json_error};

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    System,
    User,
    Assistant,
    Tool,
}

impl Role {
    /// The name that chat templates compare with.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }
}

/// One item of a message.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    Text(String),
    Image(ImageSource),
}

/// What a message says. The file's form is kept, because templates treat a string and a list differently.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// `content` is missing or null, as beside `tool_calls`.
    Absent,
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    pub role: Role,
    pub content: Content,
    /// Every other key of the message (`tool_calls`, `reasoning_content`, `name`, …), as written, for the template.
    pub extra: Map<String, Value>,
}

impl Message {
    pub fn text(role: Role, text: impl Into<String>) -> Self {
        Message { role, content: Content::Text(text.into()), extra: Map::new() }
    }

    pub fn parts(role: Role, parts: Vec<Part>) -> Self {
        Message { role, content: Content::Parts(parts), extra: Map::new() }
    }

    /// The images of this message, in order.
    pub fn images(&self) -> impl Iterator<Item = &ImageSource> {
        let parts: &[Part] = if let Content::Parts(parts) = &self.content { parts } else { &[] };
        parts.iter().filter_map(|part| match part {
            Part::Image(source) => Some(source),
            Part::Text(_) => None,
        })
    }

    /// All text of this message, joined without anything between; what a template prints of the content.
    pub fn joined_text(&self) -> String {
        match &self.content {
            Content::Absent => String::new(),
            Content::Text(text) => text.clone(),
            Content::Parts(parts) => {
                let texts = parts.iter().filter_map(|part| match part {
                    Part::Text(text) => Some(text.as_str()),
                    Part::Image(_) => None,
                });
                texts.collect()
            }
        }
    }
}

/// At least one message, and the tools that the model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversation {
    pub messages: Vec<Message>,
    /// A JSON array of function descriptions, key order as written.
    pub tools: Option<Value>,
}

impl Conversation {
    /// One user turn: the images, then the text.
    pub fn ask(images: Vec<ImageSource>, text: impl Into<String>) -> Self {
        let mut parts: Vec<Part> = images.into_iter().map(Part::Image).collect();
        parts.push(Part::Text(text.into()));
        Conversation { messages: vec![Message::parts(Role::User, parts)], tools: None }
    }

    /// The images of all messages, in the order in which the messages show them.
    pub fn images(&self) -> impl Iterator<Item = &ImageSource> {
        self.messages.iter().flat_map(Message::images)
    }

    /// The text of the last assistant turn that has any.
    pub fn last_answer(&self) -> Option<String> {
        let turns = self.messages.iter().rev().filter(|message| message.role == Role::Assistant);
        turns.map(Message::joined_text).find(|text| !text.is_empty())
    }
}

/// Reads `{"messages": [...], "tools": [...]}`, or any shape of a dataset line that has its own text. A bare array of
/// messages is read too. Image paths are relative to the file's folder.
///
/// Errors name the file, and the line where the JSON itself is broken: unreadable file, not JSON, an unknown role or
/// item, an image file that does not exist, an http(s) image, images and `<image>` marks that differ in number.
pub fn read_messages(file: &Path) -> Result<Conversation> {
    let bytes = input::read_unmarked(file)?;
    let value = from_bytes(&bytes).map_err(|(line, reason)| Error::line(file, line, reason))?;
    let object = match value {
        Value::Object(object) => object,
        Value::Array(messages) => Map::from_iter([("messages".into(), Value::Array(messages))]),
        _ => return Err(Error::file(file, r#"wanted a JSON object {"messages": [...]}"#)),
    };
    conversation(&object, folder_of(file)).map_err(|reason| Error::file(file, reason))
}

/// The folder that a file's relative image paths start from.
pub(super) fn folder_of(file: &Path) -> &Path {
    file.parent().unwrap_or(Path::new(""))
}
