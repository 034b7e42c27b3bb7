//! The demo's commands, in order, as they would be typed in its folder.

/// Where the base model lies in the demo's folder.
pub const BASE: &str = "base";

/// A step of the recipe.
pub struct Part {
    pub heading: &'static str,
    /// What follows `vlm`; `PART` stands for a quarter of the photos to train on.
    pub commands: &'static [&'static str],
}

pub const RECIPE: &[Part] = &[
    Part {
        heading: "Look at the data",
        commands: &[
            "data import photos/train --out train.jsonl --prompt \"Which damage does the panel have?\"",
            "data import photos/test --out test.jsonl --prompt \"Which damage does the panel have?\"",
            "data show train.jsonl --model base --sheet sheet.png",
        ],
    },
    Part {
        heading: "Find leaks, and take them out",
        commands: &["data dedupe --model base train.jsonl test.jsonl --out clean"],
    },
    Part {
        heading: "Score the base model",
        commands: &["eval --model base --data clean/test.jsonl --out scores/base"],
    },
    Part {
        heading: "Overfit first: can ten photos be learnt at all?",
        commands: &[
            "train --model base --data clean/train.jsonl --out overfit --full --overfit 10 --learning-rate 1e-3",
        ],
    },
    Part {
        heading: "Fine-tune, on a part and on all",
        commands: &[
            "train --config demo.toml --subset PART --out run-part",
            "eval --model base --adapter run-part --data clean/test.jsonl --out scores/part",
            "train --config demo.toml --out run",
            "eval --model base --adapter run --data clean/test.jsonl --out scores/tuned",
        ],
    },
    Part { heading: "Compare", commands: &["compare scores/base scores/tuned --out scores/comparison"] },
    Part {
        heading: "Merge, to deploy",
        commands: &[
            "merge --model base --adapter run --out merged",
            "eval --model merged --data clean/test.jsonl --out scores/merged",
        ],
    },
    Part {
        heading: "A page to look at",
        commands: &["report scores/base scores/part scores/tuned run clean/pairs.jsonl --out report.html"],
    },
];

/// A command line's words: parted by spaces, those between double quotes are one.
pub fn words(line: &str) -> Vec<String> {
    let parts = line.split('"').enumerate();
    let words = parts.flat_map(|(i, part)| match i % 2 {
        0 => part.split_whitespace().collect(),
        _ => vec![part],
    });
    words.map(String::from).collect()
}

/// Whether a command takes `--device`.
pub fn computes(words: &[String]) -> bool {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    matches!(words[..], ["eval" | "train", ..] | ["data", "dedupe", ..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_words_stay_together() {
        assert_eq!(
            words("data import a --prompt \"Which one?\" --out b"),
            ["data", "import", "a", "--prompt", "Which one?", "--out", "b"]
        );
    }

    #[test]
    fn what_computes_is_known() {
        assert!(computes(&words("data dedupe a b")) && computes(&words("eval --model base")));
        assert!(!computes(&words("data show train.jsonl")) && !computes(&words("merge --model base")));
    }
}
