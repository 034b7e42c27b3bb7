//! What stands behind a flag, read. Errors are what was wanted.

use crate::base::DType;
use crate::data::image::{AN_AREA, AREAS};
use crate::data::label::composed;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use std::path::PathBuf;
use std::str::FromStr;

/// A picture's path; what is no file is said at once.
pub fn picture(text: &str) -> Result<PathBuf, String> {
    let lower = text.to_ascii_lowercase();
    if lower.starts_with("http://") || lower.starts_with("https://") {
        return Err(
            "pictures are read from files only; download it (for example with curl -LO) and give its path".into()
        );
    }
    Ok(PathBuf::from(text))
}

/// One of the answers to choose from, without the spaces around it, in the form that labels have.
pub fn choice(text: &str) -> Result<String, String> {
    Ok(composed(text.trim()))
}

/// A number of tokens that memory is laid out for.
pub fn tokens(text: &str) -> Result<usize, String> {
    tokens_from(0, text)
}

/// The same for an answer, which has at least one.
pub fn answer_tokens(text: &str) -> Result<usize, String> {
    tokens_from(1, text)
}

fn tokens_from(least: usize, text: &str) -> Result<usize, String> {
    const MOST: usize = 1_000_000;
    let number = text.parse().ok().filter(|n| (least..=MOST).contains(n));
    number.ok_or_else(|| format!("give a whole number from {least} to {MOST}"))
}

/// The area of pictures.
pub fn pixels(text: &str) -> Result<u64, String> {
    text.parse().ok().filter(|n| AREAS.contains(n)).ok_or_else(|| format!("wanted {AN_AREA}"))
}

/// A picture's width and height.
pub fn size(text: &str) -> Result<(usize, usize), String> {
    let parts: Option<(usize, usize)> =
        text.split_once('x').and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
    parts.filter(|(w, h)| *w > 0 && *h > 0).ok_or_else(|| "give width x height in pixels, as 640x480".into())
}

/// One of these types of numbers, by its name in lower case.
pub fn dtype<const N: usize>(types: [DType; N]) -> impl TypedValueParser<Value = DType> {
    let names = PossibleValuesParser::new(types.map(|dtype| dtype.to_string()));
    names.try_map(move |name| types.into_iter().find(|dtype| dtype.to_string() == name).ok_or("no such type"))
}

/// A number above 0.
pub fn positive(text: &str) -> Result<f64, String> {
    let number: Option<f64> = text.parse().ok();
    number.filter(|x| x.is_finite() && *x > 0.0).ok_or_else(|| "wanted a number above 0".into())
}

/// How many of something.
pub fn count(text: &str) -> Result<u32, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| format!("give a whole number from 1 to {}", u32::MAX))
}

/// A number of 0 or more.
pub fn not_negative<T: FromStr + Copy + Into<f64>>(text: &str) -> Result<T, String> {
    let number: Option<T> = text.parse().ok();
    number.filter(|x| (0.0..f64::INFINITY).contains(&(*x).into())).ok_or_else(|| "wanted a number, 0 or more".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_finite() {
        assert_eq!((positive("1e-300"), not_negative("0"), not_negative("0.5")), (Ok(1e-300), Ok(0.0), Ok(0.5_f32)));
        for text in ["nan", "-nan", "inf", "-inf", "-1", "1e999", "x", ""] {
            assert!(positive(text).is_err() && not_negative::<f64>(text).is_err(), "{text}");
        }
        assert!(not_negative::<f32>("1e39").is_err() && positive("0").is_err());
    }

    #[test]
    fn choices_have_the_form_of_labels() {
        assert_eq!(choice(" gru\u{308}n "), Ok("gr\u{fc}n".into()));
    }

    #[test]
    fn areas_and_sizes() {
        assert_eq!([pixels("1"), pixels("4294967296")], [Ok(1), Ok(1 << 32)]);
        for text in ["0", "4294967297", "-1", "1e6", ""] {
            assert_eq!(pixels(text), Err("wanted a number of pixels from 1 to 2^32".into()), "{text}");
        }
        assert_eq!(size("640x480"), Ok((640, 480)));
        for text in ["640", "0x480", "640x0", "640x480x3", "x", "6.5x4"] {
            assert!(size(text).is_err_and(|said| said.contains("640x480")), "{text}");
        }
    }
}
