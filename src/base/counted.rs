//! Numbers as a sentence has them.

/// `1 photo`, `2 photos`.
pub fn counted(n: impl TryInto<u64>, one: &str, many: &str) -> String {
    match n.try_into().unwrap_or(u64::MAX) {
        1 => format!("1 {one}"),
        n => format!("{n} {many}"),
    }
}

/// 8767123696 as 8,767,123,696, or with another character `between` the thousands.
pub fn grouped(n: u64, between: char) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, d) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(between);
        }
        text.push(d);
    }
    text
}

/// Bytes for a person, in powers of 1000.
pub fn bytes(n: impl TryInto<u64>) -> String {
    match n.try_into().unwrap_or(u64::MAX) as f64 {
        b if b >= 1e9 => format!("{:.2} GB", b / 1e9),
        b if b >= 1e6 => format!("{:.2} MB", b / 1e6),
        b => format!("{:.1} kB", b / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_numbers_are_read_at_a_glance() {
        let of = [0, 999, 1000, 8_767_123_696].map(|n| grouped(n, ','));
        assert_eq!(of, ["0", "999", "1,000", "8,767,123,696"]);
        assert_eq!(grouped(4100, '\u{2009}'), "4\u{2009}100");
        let of = [0_u64, 453_100, 2_000_000, 17_534_000_000].map(bytes);
        assert_eq!(of, ["0.0 kB", "453.1 kB", "2.00 MB", "17.53 GB"]);
    }

    #[test]
    fn one_is_no_plural() {
        let of = [counted(0_usize, "class", "classes"), counted(1_u64, "class", "classes")];
        assert_eq!(of, ["0 classes", "1 class"]);
        assert_eq!(counted(2_i32, "class", "classes"), "2 classes");
    }
}
