//! Refusals before the first answer: where nothing is answered, it is the request that is refused and not a photo.

use crate::base::{Error, Result, counted};
use crate::classify::records::{REFUSED, Record};

/// So many without an answer are enough, and for each question that is asked at once four more: answers take longer than
/// refusals.
const ENOUGH: usize = 20;

/// Keeps refused questions back until one is answered.
pub struct Refusals {
    held: Vec<Record>,
    answered: bool,
    enough: usize,
}

impl Refusals {
    /// `answered`: whether a question was answered before these, of which so many are asked `at_once`.
    pub fn new(answered: bool, at_once: usize) -> Refusals {
        Refusals {
            held: Vec::new(),
            answered,
            enough: ENOUGH.saturating_add(at_once.saturating_sub(1).saturating_mul(4)),
        }
    }

    /// The records that count, now that there is this one. Errors: all replies so far are refusals, and they are enough.
    pub fn pass(&mut self, record: Record) -> Result<Vec<Record>> {
        self.answered |= !record.tagged(REFUSED);
        self.held.push(record);
        match self.answered {
            true => Ok(std::mem::take(&mut self.held)),
            false if self.held.len() < self.enough => Ok(Vec::new()),
            false => self.end().map(|()| Vec::new()),
        }
    }

    /// When all are asked. Errors: nothing was answered.
    pub fn end(&self) -> Result<()> {
        let Some(last) = self.held.last() else { return Ok(()) };
        let reason = last.answer.as_deref().unwrap_or_default();
        let refused = counted(self.held.len(), "question was", "questions were");
        Err(Error::Unsupported(format!(
            "{refused} refused and none answered, the last (line {}) so: {reason}; --endpoint-options changes what is \
             asked for beside the question, and photos that no model is to see can leave the set",
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
        let mut refusals = Refusals::new(false, 1);
        assert!(refusals.pass(record(4, &[REFUSED])).unwrap().is_empty());
        assert!(refusals.pass(record(2, &[REFUSED])).unwrap().is_empty());
        assert!(refusals.end().unwrap_err().to_string().starts_with("2 questions were refused and none answered"));
        assert_eq!(lines(refusals.pass(record(3, &["cut_off"])).unwrap()), [4, 2, 3]);
        assert_eq!(lines(refusals.pass(record(1, &[REFUSED])).unwrap()), [1]);
        refusals.end().unwrap();
        let mut refusals = Refusals::new(true, 1);
        assert_eq!(lines(refusals.pass(record(1, &[REFUSED])).unwrap()), [1]);
    }

    #[test]
    fn refusals_alone_end_it() {
        for (at_once, enough) in [(1, 20), (32, 144)] {
            let mut refusals = Refusals::new(false, at_once);
            for line in 1..enough {
                assert!(refusals.pass(record(line, &[REFUSED])).unwrap().is_empty());
            }
            let said = refusals.pass(record(777, &[REFUSED])).unwrap_err().to_string();
            assert!(
                said.starts_with(&format!("{enough} questions were refused")) && said.contains("line 777"),
                "{said}"
            );
        }
    }
}
