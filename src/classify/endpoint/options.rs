//! Options that a server takes by another name or not at all, as it says when it refuses them.

use serde_json::{Map, Value};

/// What a server wants changed in the options of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// The option that it does not take.
    pub from: &'static str,
    /// The name by which it does; None where it goes without.
    pub to: Option<&'static str>,
}

const TOKENS: Change = Change { from: "max_tokens", to: Some("max_completion_tokens") };
const TEMPERATURE: Change = Change { from: "temperature", to: None };

impl Change {
    /// What the complaint of a reply asks for. Wordings are OpenAI's ("Unsupported parameter: 'max_tokens' is not
    /// supported with this model. Use 'max_completion_tokens' instead."; "Unsupported value: 'temperature' does not support
    /// 0 with this model.") and those that others pass on.
    pub fn asked_for(complaint: &str) -> Option<Change> {
        let complaint = complaint.to_lowercase();
        let words = complaint.split(|c: char| !c.is_alphanumeric() && c != '_');
        let names = |name: &str| words.clone().any(|word| word == name);
        // a question that is too long names options as well
        if !["unsupported", "not support", "deprecated"].iter().any(|said| complaint.contains(said)) {
            return None;
        }
        if names("max_tokens") && names("max_completion_tokens") {
            return Some(TOKENS);
        }
        names("temperature").then_some(TEMPERATURE)
    }

    /// Whether the options have what is to be changed.
    pub fn concerns(self, options: &Map<String, Value>) -> bool {
        options.get(self.from).is_some_and(|value| !value.is_null())
    }

    /// Under the new name the value is the old one, unless there is one already.
    pub fn make(self, options: &mut Map<String, Value>) {
        let value = options.remove(self.from);
        if let (Some(to), Some(value)) = (self.to, value) {
            options.entry(to).or_insert(value);
        }
    }

    /// The change as a sentence for a person.
    pub fn said(self) -> String {
        match self.to {
            Some(to) => format!("the endpoint does not take {}: from here on {to} is sent instead", self.from),
            None => format!("the endpoint does not take {}: from here on its own default counts", self.from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn complaints_that_ask_for_a_change() {
        for (said, wanted) in [
            (
                "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' \
                 instead.",
                Some(TOKENS),
            ),
            (
                "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is \
                 supported.",
                Some(TEMPERATURE),
            ),
            ("Unsupported parameter: 'temperature' is not supported with this model.", Some(TEMPERATURE)),
            ("`temperature` is deprecated for this model.", Some(TEMPERATURE)),
            ("temperature: must be in [0, 2]", None),
            ("max_tokens must be positive", None),
            ("the image is not supported", None),
            ("max_completion_tokens is too large", None),
            (
                "'max_tokens' or 'max_completion_tokens' is too large: 512. The context has 4096 tokens, the input 3900.",
                None,
            ),
            ("", None),
        ] {
            assert_eq!(Change::asked_for(said), wanted, "{said}");
        }
    }

    #[test]
    fn a_value_keeps_its_place_under_the_new_name() {
        let made = |change: Change, options: Value| {
            let mut options: Map<String, Value> = serde_json::from_value(options).unwrap();
            assert!(change.concerns(&options));
            change.make(&mut options);
            assert!(!change.concerns(&options));
            Value::Object(options)
        };
        let asked = json!({"temperature": 0.0, "max_tokens": 9});
        assert_eq!(made(TOKENS, asked.clone()), json!({"temperature": 0.0, "max_completion_tokens": 9}));
        assert_eq!(made(TEMPERATURE, asked), json!({"max_tokens": 9}));
        let both = json!({"max_tokens": 9, "max_completion_tokens": 700});
        assert_eq!(made(TOKENS, both), json!({"max_completion_tokens": 700}));
        assert!(!TOKENS.concerns(&Map::from_iter([("max_tokens".to_string(), Value::Null)])));
    }
}
