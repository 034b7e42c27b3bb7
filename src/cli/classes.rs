//! Class names in tables: short ones as they are. Where a name is long, or the confusion matrix would be wider than a
//! terminal, classes have numbers, which stand for them over the matrix, and long names stand in full below.

use crate::base::width::{in_line, left, right, sentence, shortened, width};
use crate::classify::metrics::Confusion;
use std::fmt::Write;

/// Columns for a name; a longer one is shortened.
const NAME: usize = 40;
/// Columns for a matrix with names over it.
const LINE: usize = 100;

pub struct Classes {
    names: Vec<String>,
    numbered: bool,
}

impl Classes {
    /// Of a table without a matrix.
    pub fn new(names: impl IntoIterator<Item = impl Into<String>>) -> Classes {
        let names: Vec<String> = names.into_iter().map(Into::into).collect();
        let numbered = names.iter().any(|n| width(n) > NAME);
        Classes { names, numbered }
    }

    /// Of a table and the matrix below it.
    pub fn of(confusion: &Confusion) -> Classes {
        let mut classes = Classes::new(&confusion.labels);
        let wide = classes.width() + classes.names.len() * (classes.width().max(6) + 1);
        classes.numbered |= wide > LINE;
        classes
    }

    /// Columns of [`Classes::cell`].
    pub fn width(&self) -> usize {
        let name = self.names.iter().map(|n| width(n).min(NAME)).max().unwrap_or(0).max(5);
        if self.numbered { self.digits() + 1 + name } else { name }
    }

    fn digits(&self) -> usize {
        self.names.len().to_string().len()
    }

    /// The first cell of a class's row.
    pub fn cell(&self, name: &str) -> String {
        let short = shortened(name, NAME);
        let place = self.names.iter().position(|n| n == name).filter(|_| self.numbered);
        let said = place.map_or(short.clone(), |i| format!("{:>1$} {short}", i + 1, self.digits()));
        left(&said, self.width())
    }

    /// The confusion matrix.
    pub fn matrix(&self, confusion: &Confusion) -> String {
        let counts = confusion.counts.iter().flatten().max().map_or(1, |n| n.to_string().len());
        let column = if self.numbered { counts.max(self.digits()) } else { self.width().max(6) };
        let over = |(i, name): (usize, &String)| match self.numbered && confusion.has_row(i) {
            true => (i + 1).to_string(),
            false => name.clone(),
        };
        let header: Vec<String> = self.names.iter().enumerate().map(over).collect();
        let columns: Vec<usize> = header.iter().map(|over| width(over).max(column)).collect();
        let header: Vec<String> = header.iter().zip(&columns).map(|(over, column)| right(over, *column)).collect();
        let rule = if self.numbered { "prediction, by its number" } else { "prediction" };
        let mut said = format!("{} {}   (rows: label, columns: {rule})\n", left("", self.width()), header.join(" "));
        for (label, row) in confusion.labels.iter().zip(&confusion.counts) {
            let row: Vec<String> = row.iter().zip(&columns).map(|(n, column)| format!("{n:>column$}")).collect();
            _ = writeln!(said, "{} {}", self.cell(label), row.join(" "));
        }
        said
    }

    /// The names that were shortened, in full; empty where none was.
    pub fn legend(&self) -> String {
        let mut said = String::new();
        for (i, name) in self.names.iter().enumerate().filter(|(_, n)| width(n) > NAME) {
            let head = if said.is_empty() { "\nnames in full:\n" } else { "" };
            _ = writeln!(said, "{head}{:>1$} {2}", i + 1, self.digits(), sentence(&in_line(name)));
        }
        said
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classify::metrics::OTHER;

    fn confusion(names: &[String]) -> Confusion {
        let n = names.len();
        let counts = (0..n).map(|i| (0..n).map(|j| 10 * usize::from(i == j) + j % 2).collect()).collect();
        Confusion { labels: names.to_vec(), counts }
    }

    #[test]
    fn short_names_stand_over_the_matrix_and_wide_letters_in_line() {
        let names = ["猫", "dog"].map(String::from);
        let classes = Classes::of(&confusion(&names));
        let matrix = classes.matrix(&confusion(&names));
        let want =
            "          猫    dog   (rows: label, columns: prediction)\n猫        10      1\ndog        0     11\n";
        assert_eq!(matrix, want);
        assert_eq!(classes.legend(), "");
    }

    #[test]
    fn long_names_become_numbers_with_a_legend() {
        let names: Vec<String> = (0..20).map(|i| format!("{}{i:02}", "very long name ".repeat(4))).collect();
        let confusion = confusion(&names);
        let classes = Classes::of(&confusion);
        let matrix = classes.matrix(&confusion);
        let widths: Vec<usize> = matrix.lines().skip(1).map(width).collect();
        assert_eq!(widths, [2 + 1 + 40 + 20 * 3; 20]);
        assert!(matrix.contains("19 20   (rows: label, columns: prediction, by its number)"), "{matrix}");
        assert!(matrix.lines().nth(3).unwrap().starts_with(" 3 very long"), "{matrix}");
        assert!(classes.legend().contains(&format!("\n20 {}\n", names[19])), "{}", classes.legend());
    }

    /// A number over a column is that of a row, and answers that are no label have none.
    #[test]
    fn a_column_without_a_row_has_its_name() {
        let names: Vec<String> = (0..20).map(|i| format!("class {i}")).collect();
        let mut confusion = confusion(&names);
        confusion.labels.push(OTHER.into());
        confusion.counts.iter_mut().for_each(|row| row.push(3));
        let matrix = Classes::of(&confusion).matrix(&confusion);
        let lines: Vec<&str> = matrix.lines().collect();
        assert!(lines[0].contains("19 20 (other)   (rows: label, columns: prediction, by its number)"), "{matrix}");
        assert!(lines.len() == 21 && lines[1..].iter().all(|l| l.ends_with("  3")), "{matrix}");
        let end = lines[0].find("   (rows").unwrap();
        assert!(lines[1..].iter().all(|l| width(l) == end), "{matrix}");
    }

    #[test]
    fn many_short_names_become_numbers_without_a_legend() {
        let names: Vec<String> = (0..20).map(|i| format!("class {i}")).collect();
        let confusion = confusion(&names);
        let classes = Classes::of(&confusion);
        assert!(classes.matrix(&confusion).lines().skip(1).all(|l| width(l) <= LINE));
        assert_eq!((classes.legend(), classes.cell("class 4").trim_end()), (String::new(), " 5 class 4"));
    }
}
