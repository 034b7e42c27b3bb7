//! Text in a terminal: what of it is shown, and how wide that is. Letters of China, Japan and Korea and most emoji take two
//! columns, accents none.
//!
//! Labels, paths and answers come from anywhere. A control character would move the cursor or change colours; the escape
//! that stands for it is that of a JSON string.

use std::borrow::Cow;
use std::fmt::Write;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Text as it may go to a terminal: without control characters, but that lines stay lines and tabs tabs.
pub fn visible(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c.is_control() && !matches!(c, '\n' | '\t'))
}

/// The same as a part of a line.
pub fn in_line(text: &str) -> Cow<'_, str> {
    escaped(text, char::is_control)
}

fn escaped(text: &str, goes: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&goes) {
        return text.into();
    }
    let mut said = String::new();
    for c in text.chars() {
        match c {
            c if !goes(c) => said.push(c),
            '\n' => said += "\\n",
            '\r' => said += "\\r",
            '\t' => said += "\\t",
            c => _ = write!(said, "\\u{:04x}", u32::from(c)),
        }
    }
    said.into()
}

/// Columns of a terminal, as [`in_line`].
pub fn width(text: &str) -> usize {
    in_line(text).width()
}

/// [`in_line`] with spaces behind, `columns` wide; wider text stays as wide.
pub fn left(text: &str, columns: usize) -> String {
    format!("{}{}", in_line(text), " ".repeat(columns.saturating_sub(width(text))))
}

/// [`in_line`] with spaces before, `columns` wide; wider text stays as wide.
pub fn right(text: &str, columns: usize) -> String {
    format!("{}{}", " ".repeat(columns.saturating_sub(width(text))), in_line(text))
}

/// [`in_line`], at most `columns` wide: an ellipsis stands for what was left out of the middle, since names often differ at
/// an end.
pub fn shortened(text: &str, columns: usize) -> String {
    cut(&in_line(text), columns)
}

/// The columns of a sentence. None of the program's own comes near, and no path that a system opens is longer.
const SENTENCE: usize = 4096;

/// [`visible`], without the middle of what is longer than a sentence: one may quote a file.
pub fn sentence(text: &str) -> String {
    cut(&visible(text), SENTENCE)
}

fn cut(text: &str, columns: usize) -> String {
    if text.width() <= columns {
        return text.to_owned();
    }
    let room = columns.saturating_sub(1);
    let tail_room = room / 3;
    let tail: Vec<char> = fitting(text.chars().rev(), tail_room);
    let head: Vec<char> = fitting(text.chars(), room - tail_room);
    head.into_iter().chain(['…']).chain(tail.into_iter().rev()).collect()
}

/// The first characters that have room in `columns`.
fn fitting(text: impl Iterator<Item = char>, columns: usize) -> Vec<char> {
    let mut used = 0;
    text.take_while(|c| {
        used += c.width().unwrap_or(0);
        used <= columns
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_control_character_is_left() {
        let text = "a\u{1b}[31mb\u{9b}0m\u{7f}\r\n\tc\0";
        assert_eq!(visible(text), "a\\u001b[31mb\\u009b0m\\u007f\\r\n\tc\\u0000");
        assert_eq!(in_line(text), "a\\u001b[31mb\\u009b0m\\u007f\\r\\n\\tc\\u0000");
        assert_eq!((left("\n", 3), right("\n", 3), width("\u{1b}")), ("\\n ".into(), " \\n".into(), 6));
        assert_eq!(shortened("\u{1b}[2J and more", 12), "\\u001b[2…ore");
        assert!(matches!(visible("plain\n\tÄ 猫"), Cow::Borrowed(_)));
        let long = format!("x.csv: {}: \u{1b} is too long\nfor that", "猫".repeat(1 << 20));
        let said = sentence(&long);
        assert!(width(&said) <= SENTENCE + 2 && said.starts_with("x.csv: 猫"), "{said}");
        assert!(said.ends_with("猫: \\u001b is too long\nfor that"), "{said}");
    }

    /// Unicode's East Asian Width: 猫 and 🐈 are wide; U+0301 is an accent of the letter before it.
    #[test]
    fn columns_are_those_of_a_terminal() {
        assert_eq!(["cat", "猫", "🐈", "e\u{301}", ""].map(width), [3, 2, 2, 1, 0]);
        assert_eq!((left("猫", 4), right("猫", 4), left("long", 2)), ("猫  ".into(), "  猫".into(), "long".into()));
        assert_eq!(shortened("scratch", 7), "scratch");
        assert_eq!(shortened("a deep scratch on the left door", 16), "a deep scr… door");
        for columns in 1..12 {
            let short = shortened("猫猫猫猫猫猫猫猫", columns);
            assert!(width(&short) <= columns && short.contains('…'), "{columns} {short}");
        }
    }
}
