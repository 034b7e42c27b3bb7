//! Settings that have a form of their own behind a flag: bytes such as `24G`, betas such as `0.9,0.999`. A recipe may write
//! them as the flag does, or as TOML's own numbers, which is how a run writes its settings down. Errors are what was wanted.

use serde::de::{Deserialize, Deserializer, Error};

const BYTES: &str = "wanted bytes, or a number with K, M, G or T such as 24G (powers of 1024; GB: of 1000)";
const BETAS: &str = "wanted two numbers, such as 0.9,0.999";

/// AdamW's two.
pub fn betas(text: &str) -> Result<[f64; 2], String> {
    let numbers: Result<Vec<f64>, _> = text.split(',').map(|x| x.trim().parse()).collect();
    numbers.ok().and_then(|n| n.try_into().ok()).ok_or_else(|| BETAS.into())
}

/// Bytes: a whole number, or one with K, M, G or T behind it (also KiB and so on: powers of 1024; KB: of 1000). At most
/// TOML's largest integer, since a run writes them down as one.
pub fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || BYTES.to_string();
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = unit.trim().to_ascii_uppercase();
    if unit.is_empty() || unit == "B" {
        return number.parse::<i64>().map(i64::unsigned_abs).map_err(|_| wrong());
    }
    let (letter, rest) = unit.split_at_checked(1).ok_or_else(wrong)?;
    let power = "KMGT".find(letter).ok_or_else(wrong)? as i32 + 1;
    let step: f64 = match rest {
        "" | "IB" => 1024.0,
        "B" => 1000.0,
        _ => return Err(wrong()),
    };
    let bytes = number.parse::<f64>().map_err(|_| wrong())? * step.powi(power);
    if bytes < i64::MAX as f64 { Ok(bytes as u64) } else { Err(wrong()) }
}

/// [`bytes`] of a recipe.
pub(super) fn bytes_in_file<'de, D: Deserializer<'de>>(value: D) -> Result<Option<u64>, D::Error> {
    either(value, bytes, BYTES).map(Some)
}

/// [`betas`] of a recipe.
pub(super) fn betas_in_file<'de, D: Deserializer<'de>>(value: D) -> Result<[f64; 2], D::Error> {
    either(value, betas, BETAS)
}

/// A value as it is, or as the flag spells it: then it is read as behind the flag.
fn either<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    value: D,
    flag: fn(&str) -> Result<T, String>,
    wanted: &str,
) -> Result<T, D::Error> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Form<T> {
        Plain(T),
        Flag(String),
    }
    match Form::deserialize(value) {
        Ok(Form::Plain(value)) => Ok(value),
        Ok(Form::Flag(text)) => flag(&text).map_err(D::Error::custom),
        // what serde says of it names these two variants
        Err(_) => Err(D::Error::custom(wanted)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_with_and_without_units() {
        for (text, want) in [
            ("0", 0),
            ("123", 123),
            ("5B", 5),
            ("24G", 24 << 30),
            ("24 GiB", 24 << 30),
            ("1.5k", 1536),
            ("2MB", 2_000_000),
            ("1t", 1 << 40),
        ] {
            assert_eq!(bytes(text), Ok(want), "{text}");
        }
        for text in [
            "",
            "G",
            "-1",
            "1.5",
            "24X",
            "24Gb/s",
            "1e9",
            "24Gi",
            "99999999T",
            "1..5G",
            "24é",
            "8388608T",
            "9223372036854775808",
        ] {
            assert!(bytes(text).is_err_and(|said| said.contains("24G")), "{text}");
        }
    }
}
