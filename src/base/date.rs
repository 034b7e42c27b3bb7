//! Days as dates, in UTC: for templates that ask for today, and the lines of a bench.

use std::time::{SystemTime, UNIX_EPOCH};

/// Today in UTC, as 2026-11-26.
pub fn today() -> String {
    let days = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() / 86_400);
    let Date { year, month, day, .. } = date(days);
    format!("{year:04}-{month:02}-{day:02}")
}

/// A day in UTC. Month and days count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Date {
    pub year: u64,
    pub month: u64,
    pub day: u64,
    pub day_of_year: u64,
}

/// The date of a number of days since 1970. Source: H. Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms", `civil_from_days`: years begin in March, so that leap days are their last.
pub fn date(days: u64) -> Date {
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let (day, month) = (of_year - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = era * 400 + year + u64::from(month <= 2);
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    // of_year counts from the first of March
    let day_of_year = if month <= 2 { of_year - 305 } else { of_year + 60 + u64::from(leap) };
    Date { year, month, day, day_of_year }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_dates() {
        // date -u -d "1970-01-01 + N days" "+%Y %-m %-d %-j"
        for (days, [year, month, day, day_of_year]) in [
            (0, [1970, 1, 1, 1]),
            (59, [1970, 3, 1, 60]),
            (11_016, [2000, 2, 29, 60]),
            (11_017, [2000, 3, 1, 61]),
            (20_088, [2024, 12, 31, 366]),
            (20_783, [2026, 11, 26, 330]),
            (47_540, [2100, 2, 28, 59]),
            (47_541, [2100, 3, 1, 60]),
        ] {
            assert_eq!(date(days), Date { year, month, day, day_of_year });
        }
    }
}
