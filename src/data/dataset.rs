//! Labelled samples from a JSONL file, an object a line, in any mix of the four shapes that people use:
//!
//! 1. `{"messages": [{"role", "content": text or items}]}` with the images in the items;
//! 2. the same with `<image>` marks in the text (or image items without a source) and `"images": [paths]` beside;
//! 3. LLaVA's `{"image", "conversations": [{"from": "human" | "gpt", "value"}]}`, marks as in 2;
//! 4. `{"image": path, "label": class}` with one prompt for all lines.
//!
//! Start at [`read_dataset`].

use super::label::composed;
use super::messages::{
    Content, Conversation, ImageSource, Message, Part, Role, around_image, conversation, folder_of, images, json_error,
};
use crate::base::{Error, Result, counted, input};
use serde_json::{Map, Value};
use std::path::Path;

const IMPORT: &str = "a dataset is JSON Lines, an object a line; `vlm data import` makes one of a folder of class folders, \
                      a CSV file or COCO annotations";

/// What to do with a line that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnBad {
    /// Stop with its error.
    Fail,
    /// Leave it out and keep its error in [`Dataset::skipped`].
    Skip,
}

impl OnBad {
    /// As a command's `--skip-bad` has it.
    pub fn of(skip_bad: bool) -> OnBad {
        if skip_bad { OnBad::Skip } else { OnBad::Fail }
    }
}

/// One line of a dataset.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Counted from 1.
    pub line: usize,
    pub conversation: Conversation,
    /// The line's `label` where it has one, else the text of the last assistant turn, [`composed`]; `None` where there is
    /// neither, and then there is nothing to learn from or to score.
    pub label: Option<String>,
}

impl Sample {
    /// The sample's images, in the order in which the prompt shows them.
    pub fn images(&self) -> impl Iterator<Item = &ImageSource> {
        self.conversation.images()
    }
}

#[derive(Debug)]
pub struct Dataset {
    /// In file order, never empty.
    pub samples: Vec<Sample>,
    /// The errors of the lines left out.
    pub skipped: Vec<Error>,
    /// What to say where a prompt was given and lines bring their own question, which they keep.
    pub unused_prompt: Option<String>,
}

/// Reads a dataset; image paths are relative to its folder. `prompt` is the question of shape 4, put after the image,
/// or around it where it holds an `<image>` mark. Blank lines, a byte order mark and CRLF are fine; unknown keys are
/// ignored, those that would change the training are errors.
///
/// Errors name file, line and reason; a file without a single good line is one too.
pub fn read_dataset(file: &Path, prompt: Option<&str>, on_bad: OnBad) -> Result<Dataset> {
    if file.is_dir() {
        return Err(Error::file(file, format!("is a folder, and {IMPORT}")));
    }
    let text = input::read_unmarked(file)?;
    let mut dataset = Dataset { samples: Vec::new(), skipped: Vec::new(), unused_prompt: None };
    let mut own = 0;
    for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        match sample(line, index + 1, folder_of(file), prompt) {
            Ok((sample, asks)) => {
                own += usize::from(asks);
                dataset.samples.push(sample);
            }
            Err(reason) => {
                let error = Error::line(file, index + 1, reason);
                match on_bad {
                    OnBad::Fail => return Err(error),
                    OnBad::Skip => dataset.skipped.push(error),
                }
            }
        }
    }
    dataset.unused_prompt = prompt.filter(|_| own > 0).map(|_| {
        let which = match (own, dataset.samples.len()) {
            (1, 1) => "its line brings its".into(),
            (1, all) => format!("1 of {all} lines brings its"),
            (own, all) if own == all => format!("all {all} lines bring their"),
            (own, all) => format!("{own} of {all} lines bring their"),
        };
        format!("{}: --prompt is for lines with image and label; {which} own question", file.display())
    });
    match (dataset.samples.is_empty(), dataset.skipped.first()) {
        (false, _) => Ok(dataset),
        (true, None) => Err(Error::file(file, "holds no samples; wanted JSON Lines, one object a line")),
        (true, Some(first)) => Err(Error::file(
            file,
            format!(
                "of its {} none can be read; the first error: {first}",
                counted(dataset.skipped.len(), "line", "lines")
            ),
        )),
    }
}

/// The sample of a line, and whether that brings its own question.
fn sample(line: &[u8], number: usize, folder: &Path, prompt: Option<&str>) -> Result<(Sample, bool), String> {
    let text = std::str::from_utf8(line).map_err(|e| format!("not UTF-8 (byte {})", e.valid_up_to() + 1))?;
    let object = match serde_json::from_str(text.trim_ascii()) {
        Ok(Value::Object(object)) => object,
        _ if number == 1 && text.trim_ascii().starts_with('[') => {
            return Err("the file is a JSON array, and an object a line is wanted; convert it with \
                        jq -c '.[]' OLD > NEW.jsonl"
                .into());
        }
        Ok(_) => return Err("wanted a JSON object, got another value".into()),
        // a table, or annotations over many lines
        Err(e) if number == 1 && matches!(text.trim_ascii().strip_prefix('{'), None | Some("")) => {
            return Err(format!("{}; {IMPORT}", json_error(&e)));
        }
        Err(e) => return Err(json_error(&e)),
    };
    if number == 1 && object.contains_key("annotations") && object.contains_key("categories") {
        return Err(format!("these are COCO annotations, and {IMPORT}"));
    }
    let class = class(&object)?.map(|label| composed(&label));
    let asks = object.contains_key("messages") || object.contains_key("conversations");
    let conversation =
        if asks { conversation(&object, folder)? } else { labelled_image(&object, class.as_deref(), folder, prompt)? };
    whole_loss(&conversation)?;
    let label = class.or_else(|| Some(composed(&conversation.last_answer()?)));
    Ok((Sample { line: number, conversation, label }, asks))
}

fn class(object: &Map<String, Value>) -> Result<Option<String>, String> {
    match object.get("label") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.trim().is_empty() => Err(r#"its "label" is empty"#.into()),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Number(number)) if number.is_i64() || number.is_u64() => Ok(Some(number.to_string())),
        Some(Value::Array(labels)) if labels.is_empty() => {
            Err(r#"its "label" is an empty list; a photo that shows none needs a label that says so"#.into())
        }
        Some(Value::Array(labels)) => {
            // several labels are one answer: a list with commas
            let texts = labels.iter().map(|l| l.as_str().filter(|t| !t.trim().is_empty() && !t.contains(',')));
            let texts: Option<Vec<&str>> = texts.collect();
            let wrong = r#"its "label" is a list, and not of texts without commas"#;
            texts.map(|t| Some(t.join(", "))).ok_or_else(|| wrong.into())
        }
        Some(_) => Err(r#"its "label" is neither text nor a whole number nor a list of texts"#.into()),
    }
}

fn labelled_image(
    object: &Map<String, Value>,
    class: Option<&str>,
    folder: &Path,
    prompt: Option<&str>,
) -> Result<Conversation, String> {
    let Some(class) = class.filter(|_| object.contains_key("image")) else {
        return Err(r#"has neither "messages" nor "conversations" nor "image" and "label""#.into());
    };
    let Some(prompt) = prompt else {
        return Err(r#"has "image" and "label" but no question; give one for all lines with --prompt"#.into());
    };
    let image = match images(object, folder)?.map(<[ImageSource; 1]>::try_from) {
        Some(Ok([image])) => image,
        _ => return Err(r#"wanted exactly one image in "image""#.into()),
    };
    let (before, after) = around_image(prompt)?;
    let text = |text: &str| (!text.is_empty()).then(|| Part::Text(text.into()));
    let question = text(before).into_iter().chain([Part::Image(image)]).chain(text(after)).collect();
    let messages = vec![Message::parts(Role::User, question), Message::text(Role::Assistant, class)];
    Ok(Conversation { messages, tools: None })
}

/// Other trainers let a turn be left out of the loss; here every assistant turn counts, so such a line is refused
/// rather than trained on against its author's wish.
fn whole_loss(conversation: &Conversation) -> Result<(), String> {
    for (index, message) in conversation.messages.iter().enumerate() {
        for key in ["weight", "loss", "train"] {
            let left_out = match message.extra.get(key) {
                Some(Value::Bool(counts)) => !counts,
                Some(Value::Number(weight)) => weight.as_f64() == Some(0.0),
                _ => false,
            };
            if left_out && message.role == Role::Assistant && message.content != Content::Absent {
                return Err(format!(
                    "message {}: \"{key}\" asks to leave this turn out of the loss, which is not supported; every \
                     assistant turn is learnt",
                    index + 1
                ));
            }
        }
    }
    Ok(())
}
