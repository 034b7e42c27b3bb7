//! Numbers as a sentence has them.

/// `1 photo`, `2 photos`.
pub fn counted(n: impl TryInto<u64>, one: &str, many: &str) -> String {
    match n.try_into().unwrap_or(u64::MAX) {
        1 => format!("1 {one}"),
        n => format!("{n} {many}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_no_plural() {
        let of = [counted(0_usize, "class", "classes"), counted(1_u64, "class", "classes")];
        assert_eq!(of, ["0 classes", "1 class"]);
        assert_eq!(counted(2_i32, "class", "classes"), "2 classes");
    }
}
