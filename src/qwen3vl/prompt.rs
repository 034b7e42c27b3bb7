//! A conversation to token ids: the template's text, split into tokens, each image's placeholder repeated once for
//! every row that the vision tower will give it, and what is to be learnt marked.

use super::config::Config;
use super::template::{ChatTemplate, END_OF_TURN, Ending, Rendered};
use super::tokenizer::Tokenizer;
use crate::base::{Error, Result, counted};
use crate::data::messages::{Content, Conversation, Part, Role};
use std::path::Path;

/// The template prints it once for an image.
pub const IMAGE_PAD: &str = "<|image_pad|>";
const VISION_START: &str = "<|vision_start|>";
const VISION_END: &str = "<|vision_end|>";

/// A prompt of S tokens; all three have length S.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    pub ids: Vec<u32>,
    /// Whether the token's place takes a row of an image. An [`IMAGE_PAD`] that a user typed into a conversation
    /// without images has the same id, and is a plain token.
    pub is_image: Vec<bool>,
    /// Whether the token is to be learnt: it begins and ends within what an assistant turn says, the `<|im_end|>`
    /// that closes it included, and is no image. All false with [`Ending::GenerationPrompt`].
    pub labels: Vec<bool>,
}

pub struct PromptBuilder {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    image_pad: u32,
}

impl PromptBuilder {
    /// Reads the tokenizer and the chat template of a checkpoint folder.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        Self::new(Tokenizer::from_folder(folder)?, ChatTemplate::from_folder(folder)?)
    }

    pub fn new(tokenizer: Tokenizer, template: ChatTemplate) -> Result<Self> {
        let image_pad = tokenizer.need_token(IMAGE_PAD)?;
        tokenizer.need_token(END_OF_TURN)?;
        Ok(PromptBuilder { tokenizer, template, image_pad })
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Refuses a configuration that knows the tokens around and in place of an image under other ids than the tokenizer:
    /// one of the two files is another checkpoint's. A token that the tokenizer lacks is no mismatch.
    pub fn check_ids(&self, config: &Config) -> Result<()> {
        let ids = [
            ("image_token_id", config.image_token_id, IMAGE_PAD),
            ("vision_start_token_id", config.vision_start_token_id, VISION_START),
            ("vision_end_token_id", config.vision_end_token_id, VISION_END),
        ];
        for (key, id, token) in ids {
            if let Some(known) = self.tokenizer.token_id(token).filter(|known| *known != id) {
                let said = format!(
                    "{token} has the id {known}, and config.json says {key} {id}; they are of different checkpoints"
                );
                return Err(Error::file(self.tokenizer.path(), said));
            }
        }
        Ok(())
    }

    /// The id of [`IMAGE_PAD`].
    pub fn image_pad(&self) -> u32 {
        self.image_pad
    }

    /// `image_tokens` holds the rows of each image of [`Conversation::images`], in that order: t·h·w / merge² of its grid.
    /// The ids are those of transformers' `Qwen3VLProcessor`.
    ///
    /// Where transformers would put the wrong picture in a place, or lose a text, this is an error: the template
    /// drops an image (Qwen's does in system and assistant messages) or a system message (any but the first), and a
    /// text beside images has an [`IMAGE_PAD`] of its own.
    pub fn build(&self, conversation: &Conversation, image_tokens: &[usize], ending: Ending) -> Result<Prompt> {
        let n_images = conversation.images().count();
        if image_tokens.len() != n_images || image_tokens.contains(&0) {
            return Err(Error::Contract {
                op: "prompt",
                argument: "image_tokens",
                wanted: format!("a number above 0 for each of {}", counted(n_images, "image", "images")),
                got: format!("{image_tokens:?}"),
            });
        }
        let Rendered { text, answers } = match ending {
            Ending::GenerationPrompt => {
                Rendered { text: self.template.render(conversation, ending)?, answers: Vec::new() }
            }
            Ending::Complete => self.template.render_with_answers(conversation)?,
        };
        self.nothing_lost(conversation, n_images, &text)?;

        let tokens = self.tokenizer.encode_with_offsets(&text)?;
        let n_tokens = tokens.len() + image_tokens.iter().sum::<usize>() - n_images;
        let mut prompt = Prompt {
            ids: Vec::with_capacity(n_tokens),
            is_image: Vec::with_capacity(n_tokens),
            labels: Vec::with_capacity(n_tokens),
        };
        let mut rows = image_tokens.iter();
        let mut answers = answers.into_iter().peekable();
        for token in tokens {
            while answers.next_if(|answer| answer.end <= token.bytes.start).is_some() {}
            // A token that begins before the answer is the header's, and so is what it holds of the answer.
            let said = answers.peek().is_some_and(|a| a.start <= token.bytes.start && token.bytes.end <= a.end);
            let row_count = if token.id == self.image_pad { rows.next() } else { None };
            // Repeating the id is repeating the text: a special token is split off before anything else is.
            for _ in 0..row_count.copied().unwrap_or(1) {
                prompt.ids.push(token.id);
                prompt.is_image.push(row_count.is_some());
                prompt.labels.push(said && row_count.is_none());
            }
        }
        Ok(prompt)
    }

    /// That `text` has one place for each image, no other, and every system message.
    fn nothing_lost(&self, conversation: &Conversation, n_images: usize, text: &str) -> Result<()> {
        let late_system = conversation.messages.iter().skip(1).any(|message| message.role == Role::System);
        let misplaced = n_images > 0 && (count_pads(text) != n_images || self.typed_pads(conversation)? > 0);
        if !late_system && !misplaced {
            return Ok(());
        }
        let prefixes = self.template.prefixes(conversation)?;
        let mut before = "";
        for (i, (message, until)) in conversation.messages.iter().zip(&prefixes).enumerate() {
            let place = format!("message {} ({})", i + 1, message.role.as_str());
            let n_wanted = message.images().count();
            let n_printed = count_pads(until).saturating_sub(count_pads(before));
            if n_printed < n_wanted {
                return Err(Error::Unsupported(format!(
                    "{place} has {}, and the chat template shows {n_printed} of them; put pictures into a user message",
                    counted(n_wanted, "image", "images")
                )));
            }
            if n_images > 0 && n_printed > n_wanted {
                return Err(Error::Unsupported(format!(
                    "{place} has the text {IMAGE_PAD}, which would take the place of an image; remove it"
                )));
            }
            if i > 0 && message.role == Role::System && until.len() == before.len() {
                return Err(Error::Unsupported(format!(
                    "{place} is left out by the chat template; put its text into the first message"
                )));
            }
            before = until;
        }
        if misplaced {
            return Err(Error::Unsupported(format!(
                "the conversation's text holds {IMAGE_PAD}, which would take the place of one of its {n_images} \
                 images; remove it"
            )));
        }
        Ok(())
    }

    /// How many placeholders are printed where there is no image: those that somebody typed.
    fn typed_pads(&self, conversation: &Conversation) -> Result<usize> {
        let mut without = conversation.clone();
        for message in &mut without.messages {
            if let Content::Parts(parts) = &mut message.content {
                parts.retain(|part| matches!(part, Part::Text(_)));
            }
        }
        Ok(count_pads(&self.template.render(&without, Ending::Complete)?))
    }
}

fn count_pads(text: &str) -> usize {
    text.matches(IMAGE_PAD).count()
}
