//! JSON to [`Conversation`]. Errors are sentences without the place; callers add file and line.

use super::source::shown;
use super::{Content, Conversation, ImageSource, Message, Part, Role};
use crate::base::counted;
use serde_json::{Map, Value};
use std::path::Path;

/// Marks, in a message's text, the place of the next listed image.
const MARK: &str = "<image>";

type Object = Map<String, Value>;

/// Parses one JSON value; the error carries its line, counted from 1.
pub(in crate::data) fn from_bytes(bytes: &[u8]) -> Result<Value, (usize, String)> {
    if bytes.trim_ascii().is_empty() {
        return Err((1, "the file is empty".into()));
    }
    serde_json::from_slice(bytes).map_err(|e| (e.line().max(1), json_error(&e)))
}

/// serde_json's message with its own line left out: for a line of JSONL that is always 1. Of JSON that is not what was wanted it
/// is what it lacks.
pub(in crate::data) fn json_error(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(text, _)| text);
    if error.is_data() {
        return message.into();
    }
    format!("not valid JSON: {message} (column {})", error.column())
}

/// The images that an object lists beside its text, and how many of them the text has used.
struct Listed {
    sources: Option<Vec<ImageSource>>,
    used: usize,
}

impl Listed {
    /// The next listed image. One too many is counted here and reported once the whole text is read.
    fn next(&mut self) -> Option<Part> {
        let source = self.sources.as_ref()?.get(self.used).cloned();
        self.used += 1;
        source.map(Part::Image)
    }

    /// Cuts a text at its marks. Without a list the marks are plain text.
    fn cut(&mut self, text: &str) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut rest = text;
        while self.sources.is_some() {
            let Some((before, after)) = rest.split_once(MARK) else { break };
            if !before.is_empty() {
                parts.push(Part::Text(before.into()));
            }
            parts.extend(self.next());
            rest = after;
        }
        if !rest.is_empty() || parts.is_empty() {
            parts.push(Part::Text(rest.into()));
        }
        parts
    }
}

/// What a prompt for lines of one image each says before it and after it: all after it, where the prompt has no mark.
pub(in crate::data) fn around_image(prompt: &str) -> Result<(&str, &str), String> {
    let (before, after) = prompt.split_once(MARK).unwrap_or(("", prompt));
    match after.contains(MARK) {
        true => Err(format!("--prompt has more than one {MARK}, and a line has one image")),
        false => Ok((before, after)),
    }
}

/// Reads an object that has `messages`, or LLaVA's `conversations`, with images in place or listed beside.
pub(in crate::data) fn conversation(object: &Object, folder: &Path) -> Result<Conversation, String> {
    refuse(object)?;
    let list = match (present(object, "messages"), present(object, "conversations")) {
        (Some(list), None) | (None, Some(list)) => list,
        (Some(_), Some(_)) => return Err(r#"has both "messages" and "conversations"; keep one"#.into()),
        (None, None) => return Err(r#"has neither "messages" nor "conversations""#.into()),
    };
    let Value::Array(list) = list else { return Err("the messages are not an array".into()) };
    let mut listed = Listed { sources: images(object, folder)?, used: 0 };
    let mut messages = Vec::with_capacity(list.len());
    for (index, value) in list.iter().enumerate() {
        let parsed =
            message(value, folder, &mut listed).map_err(|reason| format!("message {}: {reason}", index + 1))?;
        messages.push(parsed);
    }
    let n_listed = listed.sources.as_ref().map_or(0, Vec::len);
    if listed.used != n_listed {
        return Err(format!(
            "{} listed, and the text has {} for them ({MARK} or an image item without a source); the numbers must be equal",
            counted(n_listed, "image is", "images are"),
            counted(listed.used, "place", "places")
        ));
    }
    prepend_system(object, &mut messages)?;
    if messages.is_empty() {
        return Err("the conversation has no messages".into());
    }
    Ok(Conversation { messages, tools: tools(object)? })
}

/// What other trainers read and this one does not, so that nothing is lost in silence.
fn refuse(object: &Object) -> Result<(), String> {
    for key in ["videos", "video", "audios", "audio"] {
        if present(object, key).is_some_and(|value| value.as_array().is_none_or(|list| !list.is_empty())) {
            return Err(format!("has \"{key}\", and only images are supported"));
        }
    }
    for key in ["chosen", "rejected"] {
        if present(object, key).is_some() {
            return Err(format!("has \"{key}\": preference pairs are not supported, only conversations to learn"));
        }
    }
    Ok(())
}

/// `images` or `image`: a path, a URL, an object with one, or an array of these.
pub(in crate::data) fn images(object: &Object, folder: &Path) -> Result<Option<Vec<ImageSource>>, String> {
    let value = match (present(object, "images"), present(object, "image")) {
        (Some(_), Some(_)) => return Err(r#"has both "images" and "image"; keep one"#.into()),
        (None, None) => return Ok(None),
        (Some(value), None) | (None, Some(value)) => value,
    };
    let list = if let Value::Array(list) = value { list.as_slice() } else { std::slice::from_ref(value) };
    let numbered = list.iter().enumerate();
    let sources =
        numbered.map(|(i, value)| source(value, folder).map_err(|reason| format!("image {}: {reason}", i + 1)));
    sources.collect::<Result<_, _>>().map(Some)
}

fn source(value: &Value, folder: &Path) -> Result<ImageSource, String> {
    match value {
        Value::String(text) => ImageSource::parse(text, folder),
        Value::Object(object) => {
            match (present(object, "url").or(present(object, "path")), present(object, "base64")) {
                (Some(Value::String(text)), None) => ImageSource::parse(text, folder),
                (None, Some(Value::String(text))) => ImageSource::from_base64(text),
                _ => Err(r#"wanted one of "url", "path" and "base64", a string"#.into()),
            }
        }
        _ => Err("an image is a path or a data: URL, a string".into()),
    }
}

fn message(value: &Value, folder: &Path, listed: &mut Listed) -> Result<Message, String> {
    let Value::Object(object) = value else { return Err("wanted an object with a role and content".into()) };
    let (role, text) = if object.contains_key("role") { ("role", "content") } else { ("from", "value") };
    let role = match present(object, role) {
        Some(Value::String(name)) => named_role(name)?,
        Some(_) => return Err(format!("its \"{role}\" is not a string")),
        None => return Err(r#"has no "role" (or "from")"#.into()),
    };
    let content = match present(object, text) {
        None if text == "value" => return Err(r#"has no "value""#.into()),
        None => Content::Absent,
        Some(Value::String(text)) => match listed.cut(text) {
            parts if parts.iter().any(|part| matches!(part, Part::Image(_))) => Content::Parts(parts),
            _ => Content::Text(text.clone()),
        },
        Some(Value::Array(items)) => {
            let mut parts = Vec::with_capacity(items.len());
            for (index, item) in items.iter().enumerate() {
                let found = item_parts(item, folder, listed);
                parts.extend(found.map_err(|reason| format!("item {}: {reason}", index + 1))?);
            }
            Content::Parts(parts)
        }
        Some(_) => return Err(format!("its \"{text}\" is neither text nor an array of items")),
    };
    let mut extra = object.clone();
    extra.retain(|key, _| !["role", "from", "content", "value"].contains(&key.as_str()));
    Ok(Message { role, content, extra })
}

fn named_role(name: &str) -> Result<Role, String> {
    match name {
        "system" => Ok(Role::System),
        "user" | "human" => Ok(Role::User),
        "assistant" | "gpt" => Ok(Role::Assistant),
        "tool" => Ok(Role::Tool),
        _ => Err(format!(
            "unknown role {}; known are system, user (human), assistant (gpt) and tool",
            Value::from(shown(name))
        )),
    }
}

fn item_parts(item: &Value, folder: &Path, listed: &mut Listed) -> Result<Vec<Part>, String> {
    let Value::Object(object) = item else { return Err(r#"wanted an object like {"type": "text", …}"#.into()) };
    const SOURCES: [&str; 5] = ["image", "image_url", "url", "path", "base64"];
    let kind = match present(object, "type") {
        Some(Value::String(kind)) => kind.as_str(),
        Some(_) => return Err(r#"its "type" is not a string"#.into()),
        None if SOURCES.iter().any(|key| object.contains_key(*key)) => "image",
        None => "text",
    };
    match kind {
        "text" => match present(object, "text") {
            Some(Value::String(text)) => Ok(listed.cut(text)),
            _ => Err(r#"has no "text""#.into()),
        },
        "image" | "image_url" => {
            for key in ["min_pixels", "max_pixels", "resized_height", "resized_width"] {
                if present(object, key).is_some() {
                    return Err(format!(
                        "\"{key}\" of a single image is not supported; --min-pixels and --max-pixels hold for all"
                    ));
                }
            }
            let mut given = SOURCES.iter().filter_map(|key| Some((*key, present(object, key)?)));
            match (given.next(), given.next()) {
                (None, _) if listed.sources.is_some() => Ok(Vec::from_iter(listed.next())),
                (None, _) => Err("an image without a source, and no \"images\" are listed beside the messages".into()),
                (Some((one, _)), Some((two, _))) => Err(format!("has both \"{one}\" and \"{two}\"; keep one")),
                (Some(("base64", Value::String(text))), None) => Ok(vec![Part::Image(ImageSource::from_base64(text)?)]),
                (Some((_, value)), None) => Ok(vec![Part::Image(source(value, folder)?)]),
            }
        }
        "video" | "video_url" | "audio" | "input_audio" => {
            Err(format!("{kind} is not supported, only images and text"))
        }
        _ => Err(format!("unknown type {}; known are text, image and image_url", Value::from(shown(kind)))),
    }
}

/// ShareGPT files carry the system text beside the turns.
fn prepend_system(object: &Object, messages: &mut Vec<Message>) -> Result<(), String> {
    match present(object, "system") {
        None => Ok(()),
        Some(Value::String(text)) if text.is_empty() => Ok(()),
        Some(Value::String(_)) if messages.first().is_some_and(|first| first.role == Role::System) => {
            Err(r#"has "system" and a first message of that role; keep one"#.into())
        }
        Some(Value::String(text)) => {
            messages.insert(0, Message::text(Role::System, text.as_str()));
            Ok(())
        }
        Some(_) => Err(r#"its "system" is not a string"#.into()),
    }
}

/// An array of objects, or (as LLaMA-Factory has it) a string that holds one.
fn tools(object: &Object) -> Result<Option<Value>, String> {
    let parsed = match present(object, "tools") {
        None => return Ok(None),
        Some(Value::String(text)) if text.trim().is_empty() => return Ok(None),
        Some(Value::String(text)) => {
            serde_json::from_str(text).map_err(|e| format!("its \"tools\" is a string, {}", json_error(&e)))?
        }
        Some(value) => value.clone(),
    };
    match &parsed {
        Value::Array(list) if list.iter().all(Value::is_object) => Ok(Some(parsed)),
        _ => Err(r#"its "tools" is not an array of objects"#.into()),
    }
}

/// A key's value; null counts as absent, as in files written from tables.
fn present<'a>(object: &'a Object, key: &str) -> Option<&'a Value> {
    object.get(key).filter(|value| !value.is_null())
}
