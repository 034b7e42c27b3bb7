//! Labels, choices and answers as texts that can be compared.

use unicode_normalization_alignments::UnicodeNormalization;

/// A text in Unicode's composed form (NFC), as it is where it is read: tokenizers compose what they are given, so that no
/// model can write another form, and a Mac's folders have names in the decomposed one.
pub fn composed(text: &str) -> String {
    text.nfc().map(|(c, _)| c).collect()
}

/// A label or an answer as it is compared: trimmed, case folded, composed, a final full stop dropped.
pub fn normalised(answer: &str) -> String {
    let answer = answer.trim();
    // last, because there are capitals that have no composed form and small letters that do
    composed(&answer.strip_suffix('.').unwrap_or(answer).trim_end().to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_compared_without_their_dress() {
        assert_eq!(normalised("  Dent.\n"), "dent");
        assert_eq!(normalised("ÉRAFLURE"), "éraflure");
        assert_eq!(normalised("a.b"), "a.b");
        assert_eq!(normalised("."), "");
    }

    /// The composed and decomposed texts are of the Unicode standard, annex 15.
    #[test]
    fn equal_texts_have_one_form() {
        assert_eq!(composed("gru\u{308}n"), "gr\u{fc}n");
        assert_eq!(composed("gr\u{fc}n"), "gr\u{fc}n");
        assert_eq!(composed("\u{212b} \u{1112}\u{1161}\u{11ab}"), "\u{c5} \u{d55c}");
        assert_eq!(normalised("GRU\u{308}N."), "gr\u{fc}n");
        assert_eq!(normalised("J\u{30c}"), normalised("\u{1f0}"));
    }
}
