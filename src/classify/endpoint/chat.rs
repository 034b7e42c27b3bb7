//! A conversation as the body of a chat completions request, and the answer of a reply.

use super::Endpoint;
use crate::base::{Error, Result};
use crate::classify::records::{CUT_OFF, FILTERED, Usage};
use crate::data::look;
use crate::data::messages::{Content, Conversation, Message, Part, Role};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

/// What a reply says.
#[derive(Debug, PartialEq)]
pub struct Answer {
    pub text: String,
    pub usage: Option<Usage>,
    /// The tag of an answer that the model has not ended itself: [`CUT_OFF`] or [`FILTERED`].
    pub unended: Option<&'static str>,
}

/// The body of a request with these `options`. Photos go as they are in their files. Errors: a photo that cannot be read,
/// or is in a format that such endpoints do not take.
pub fn request(endpoint: &Endpoint, options: &Map<String, Value>, question: &Conversation) -> Result<Vec<u8>> {
    let mut question = question.clone();
    if let (Some(suffix), Some(last)) = (&endpoint.suffix, question.messages.last_mut()) {
        last.content = match std::mem::replace(&mut last.content, Content::Absent) {
            Content::Absent => Content::Text(suffix.clone()),
            Content::Text(text) => Content::Text(format!("{text}\n{suffix}")),
            Content::Parts(mut parts) => {
                parts.push(Part::Text(format!("\n{suffix}")));
                Content::Parts(parts)
            }
        };
    }
    let messages = question.messages.iter().map(message).collect::<Result<Vec<_>>>()?;
    let mut body = json!({"model": endpoint.model, "messages": messages});
    if let (Some(tools), Some(body)) = (&question.tools, body.as_object_mut()) {
        body.insert("tools".into(), tools.clone());
    }
    if let Some(body) = body.as_object_mut() {
        body.extend(options.clone());
        body.retain(|_, value| !value.is_null());
    }
    Ok(body.to_string().into_bytes())
}

fn message(message: &Message) -> Result<Value> {
    let mut object = Map::from_iter([("role".to_string(), Value::from(message.role.as_str()))]);
    let content = match &message.content {
        Content::Absent => None,
        Content::Text(text) => Some(Value::from(text.as_str())),
        // only a user's content may be a list everywhere
        Content::Parts(_) if message.role != Role::User && message.images().next().is_none() => {
            Some(message.joined_text().into())
        }
        Content::Parts(parts) => Some(parts.iter().map(part).collect::<Result<Vec<_>>>()?.into()),
    };
    object.extend(content.map(|c| ("content".to_string(), c)));
    object.extend(message.extra.clone());
    Ok(object.into())
}

fn part(part: &Part) -> Result<Value> {
    let (bytes, name) = match part {
        Part::Text(text) => return Ok(json!({"type": "text", "text": text})),
        Part::Image(source) => look::content(source)?,
    };
    let media = match &bytes[..] {
        [0xff, 0xd8, 0xff, ..] => "jpeg",
        [0x89, b'P', b'N', b'G', ..] => "png",
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "webp",
        [b'G', b'I', b'F', b'8', ..] => "gif",
        _ => return Err(Error::file(name, "is no JPEG, PNG, WebP or GIF, which are what endpoints take")),
    };
    let url = format!("data:image/{media};base64,{}", STANDARD.encode(bytes));
    Ok(json!({"type": "image_url", "image_url": {"url": url}}))
}

/// The answer in a reply of status 200. Err: what is wrong with it.
pub fn answer(reply: &str) -> Result<Answer, String> {
    let value: Value = serde_json::from_str(reply).map_err(|_| "the reply is not JSON".to_string())?;
    let Some(message) = value.pointer("/choices/0/message").filter(|m| m.is_object()) else {
        return Err("the reply has no choices[0].message".into());
    };
    let text = match &message["content"] {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|p| p["text"].as_str()).collect(),
        // nothing was said, or that nothing will be
        Value::Null => message["refusal"].as_str().unwrap_or_default().to_owned(),
        _ => return Err("the content of choices[0].message is no text".into()),
    };
    let usage = serde_json::from_value(value["usage"].clone()).ok();
    let unended = match value.pointer("/choices/0/finish_reason").and_then(Value::as_str) {
        Some("length") => Some(CUT_OFF),
        Some("content_filter") => Some(FILTERED),
        _ => None,
    };
    Ok(Answer { text, usage, unended })
}

/// What an error reply says, in a sentence that fits a line.
pub fn complaint(reply: &str) -> String {
    const LONGEST: usize = 300;
    let value: Value = serde_json::from_str(reply).unwrap_or(Value::Null);
    // OpenAI's {"error": {"message"}}; a list of them (Gemini); FastAPI's {"detail"}
    let pointers = ["/error/message", "/0/error/message", "/message", "/error", "/detail"];
    let said = pointers.iter().find_map(|p| value.pointer(p)?.as_str()).unwrap_or(reply);
    let line: Vec<&str> = said.split_whitespace().collect();
    let line = line.join(" ");
    match line.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None if line.is_empty() => "nothing more was said".into(),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::messages::ImageSource;

    #[test]
    fn replies_and_what_is_none() {
        let said = |text: &str| answer(text).map(|a| a.text);
        assert_eq!(said(r#"{"choices": [{"message": {"content": "dent"}}]}"#).unwrap(), "dent");
        let parts = r#"{"choices": [{"message": {"content": [{"type": "text", "text": "a"}, {"text": "b"}]}}]}"#;
        assert_eq!(said(parts).unwrap(), "ab");
        assert_eq!(said(r#"{"choices": [{"message": {"content": null, "refusal": "no"}}]}"#).unwrap(), "no");
        let counted =
            r#"{"choices": [{"message": {"content": ""}}], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}"#;
        assert_eq!(answer(counted).unwrap().usage, Some(Usage { prompt_tokens: 7, completion_tokens: 2 }));
        let ended = |reason: &str| {
            answer(&json!({"choices": [{"message": {"content": "a"}, "finish_reason": reason}]}).to_string())
        };
        assert_eq!(ended("length").unwrap().unended, Some("cut_off"));
        assert_eq!(ended("content_filter").unwrap().unended, Some("content_filter"));
        assert_eq!((ended("stop").unwrap().unended, answer(counted).unwrap().unended), (None, None));
        for broken in ["", "<html>", "[]", "{}", r#"{"choices": []}"#, r#"{"choices": [{"message": {"content": 5}}]}"#]
        {
            assert!(answer(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn a_file_that_is_too_large_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let huge = dir.path().join("huge.jpg");
        std::fs::File::create(&huge).unwrap().set_len((512 << 20) + 1).unwrap();
        let said = part(&Part::Image(ImageSource::File(huge))).unwrap_err().to_string();
        assert!(said.contains("huge.jpg") && said.contains("536870913 bytes"), "{said}");
    }

    #[test]
    fn complaints_fit_a_line() {
        assert_eq!(complaint(r#"{"error": {"message": "no such\nmodel"}}"#), "no such model");
        assert_eq!(complaint(r#"{"detail": "bad"}"#), "bad");
        assert_eq!(complaint(" "), "nothing more was said");
        assert_eq!(complaint(&"é".repeat(1000)).chars().count(), 301);
    }
}
