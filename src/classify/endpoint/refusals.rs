//! Refusals before the first answer: where nothing is answered, it is the request that is refused and not a photo.

use crate::base::{Error, Result, counted};
use crate::classify::records::{REFUSED, Record};

/// So many without an answer are enough.
const ENOUGH: usize = 20;

/// Keeps refused questions back until one is answered.
pub struct Refusals {
    held: Vec<Record>,
    answered: bool,
}

impl Refusals {
    /// `answered`: whether a question was answered before these.
    pub fn new(answered: bool) -> Refusals {
        Refusals { held: Vec::new(), answered }
    }

    /// The records that count, now that there is this one. Errors: the first [`ENOUGH`] questions were all refused.
    pub fn pass(&mut self, record: Record) -> Result<Vec<Record>> {
        self.answered |= !record.tagged(REFUSED);
        self.held.push(record);
        match self.answered {
            true => Ok(std::mem::take(&mut self.held)),
            false if self.held.len() < ENOUGH => Ok(Vec::new()),
            false => self.end().map(|()| Vec::new()),
        }
    }

    /// When all are asked. Errors: nothing was answered.
    pub fn end(&self) -> Result<()> {
        let Some(last) = self.held.last() else { return Ok(()) };
        let reason = last.answer.as_deref().unwrap_or_default();
        let asked = counted(self.held.len(), "question was", "questions were");
        Err(Error::Unsupported(format!(
            "{asked} asked, and every one refused, the last (line {}) so: {reason}; --endpoint-options changes what is \
             asked for beside the question",
            last.line
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(line: usize, tags: &[&str]) -> Record {
        Record { line, tags: tags.iter().map(|t| t.to_string()).collect(), ..Record::default() }
    }

    #[test]
    fn the_first_answer_lets_refusals_count() {
        let lines = |records: Vec<Record>| records.iter().map(|r| r.line).collect::<Vec<_>>();
        let mut refusals = Refusals::new(false);
        assert!(refusals.pass(record(4, &[REFUSED])).unwrap().is_empty());
        assert!(refusals.pass(record(2, &[REFUSED])).unwrap().is_empty());
        assert!(refusals.end().unwrap_err().to_string().starts_with("2 questions were asked, and every one refused"));
        assert_eq!(lines(refusals.pass(record(3, &["cut_off"])).unwrap()), [4, 2, 3]);
        assert_eq!(lines(refusals.pass(record(1, &[REFUSED])).unwrap()), [1]);
        refusals.end().unwrap();
        let mut refusals = Refusals::new(true);
        assert_eq!(lines(refusals.pass(record(1, &[REFUSED])).unwrap()), [1]);
    }

    #[test]
    fn refusals_alone_end_it() {
        let mut refusals = Refusals::new(false);
        for line in 1..ENOUGH {
            assert!(refusals.pass(record(line, &[REFUSED])).unwrap().is_empty());
        }
        let said = refusals.pass(record(77, &[REFUSED])).unwrap_err().to_string();
        assert!(said.starts_with("20 questions were asked") && said.contains("line 77"), "{said}");
    }
}
