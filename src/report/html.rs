//! Text and numbers as HTML.

use crate::base::counted::grouped;

/// Text as the content of an element or of a quoted attribute.
pub fn text(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            // HTML has no such characters
            c if c.is_control() && !matches!(c, '\n' | '\t') => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

/// A name that may break into lines where its parts end.
pub fn breakable(name: &str) -> String {
    let mut html = String::new();
    for part in name.split_inclusive(['_', '-', '/', '.']) {
        if !html.is_empty() {
            html.push_str("<wbr>");
        }
        html.push_str(&text(part));
    }
    html
}

/// JSON as the content of a script element: nothing in it can end the element or begin a comment.
pub fn script_json(value: &serde_json::Value) -> String {
    let mut safe = String::new();
    for c in value.to_string().chars() {
        match c {
            // these stand only within JSON's strings
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => safe.push_str(&format!("\\u{:04x}", c as u32)),
            c => safe.push(c),
        }
    }
    safe
}

/// A share as per cent.
pub fn percent(x: f64) -> String {
    format!("{:.1} %", 100.0 * x)
}

/// A number for a person: few digits, no exponent where it can be helped.
pub fn number(x: f64) -> String {
    let size = x.abs();
    if x == 0.0 {
        "0".into()
    } else if !(1e-3..1e6).contains(&size) {
        format!("{x:.1e}")
    } else if x.fract() == 0.0 || size >= 1000.0 {
        let text = grouped(size.round_ties_even() as u64, '\u{2009}');
        if x < 0.0 { format!("-{text}") } else { text }
    } else {
        let digits = if size >= 100.0 {
            1
        } else if size >= 1.0 {
            2
        } else {
            4
        };
        let text = format!("{x:.digits$}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

/// Seconds for a person.
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 100.0 => format!("{s:.1} s"),
        s if s < 6000.0 => format!("{:.1} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_becomes_markup() {
        assert_eq!(text("<a href='x'>&\"\u{0}"), "&lt;a href=&#39;x&#39;&gt;&amp;&quot;\u{fffd}");
        let hostile = serde_json::json!({"</script><!--": "&\u{2028}<script>"});
        let safe = script_json(&hostile);
        assert!(!safe.contains(['<', '>', '&', '\u{2028}']), "{safe}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&safe).unwrap(), hostile);
    }

    #[test]
    fn names_break_between_their_parts() {
        assert_eq!(breakable("a_deep/scratch <b>"), "a_<wbr>deep/<wbr>scratch &lt;b&gt;");
        assert_eq!(breakable("crack"), "crack");
    }

    #[test]
    fn numbers_are_short() {
        let shown: Vec<String> =
            [0.0, 3.0, 0.25, 2.5, 123.456, 4100.0, 2e-4, 1234567.0, -1500.0].iter().map(|x| number(*x)).collect();
        assert_eq!(shown, ["0", "3", "0.25", "2.5", "123.5", "4\u{2009}100", "2.0e-4", "1.2e6", "-1\u{2009}500"]);
        assert_eq!([1.0, 600.0, 7200.0].map(duration), ["1.0 s", "10.0 min", "2.0 h"]);
    }
}
