//! How wide text is in a terminal: letters of China, Japan and Korea and most emoji take two columns, accents none. How
//! text stays on its line.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Columns of a terminal.
pub fn width(text: &str) -> usize {
    text.width()
}

/// With spaces behind, `columns` wide; wider text stays as it is.
pub fn left(text: &str, columns: usize) -> String {
    format!("{text}{}", " ".repeat(columns.saturating_sub(width(text))))
}

/// With spaces before, `columns` wide; wider text stays as it is.
pub fn right(text: &str, columns: usize) -> String {
    format!("{}{text}", " ".repeat(columns.saturating_sub(width(text))))
}

/// At most `columns` wide: an ellipsis stands for what was left out of the middle, since names often differ at an end.
pub fn shortened(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let room = columns.saturating_sub(1);
    let tail_room = room / 3;
    let tail: Vec<char> = fitting(text.chars().rev(), tail_room);
    let head: Vec<char> = fitting(text.chars(), room - tail_room);
    head.into_iter().chain(['…']).chain(tail.into_iter().rev()).collect()
}

/// What a file says, for a sentence: control characters are escapes, and what is longer than any sentence is shortened.
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            c if c.is_control() => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
    shortened(&line, 1000)
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

    #[test]
    fn what_a_file_says_stays_on_its_line() {
        assert_eq!(one_line("a\nb\r\t\u{1b}[31m\u{85} 猫"), r"a\nb\r\t\u{1b}[31m\u{85} 猫");
        assert_eq!(width(&one_line(&"a".repeat(2000))), 1000);
    }
}
