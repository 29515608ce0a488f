//! The date-time of TUF metadata. Nothing here asks for the time; it is always an argument.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// UTC with a resolution of one second, written `YYYY-MM-DDTHH:MM:SSZ`; years 1970 to 9999.
///
/// ```
/// let time: ocelli_tuf::DateTime = "2030-01-01T00:00:00Z".parse().unwrap();
/// assert_eq!(time.unix_seconds(), 1_893_456_000);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DateTime {
    unix_seconds: u64,
}

/// A text that is no date-time of the form `YYYY-MM-DDTHH:MM:SSZ`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no date-time: write it as 2030-01-31T23:59:59Z")]
pub struct InvalidDateTime(String);

const SECONDS_PER_DAY: u64 = 86_400;
/// 9999-12-31T23:59:59Z
const LAST: u64 = 253_402_300_799;

impl DateTime {
    /// A time from seconds since 1970; later than the year 9999 becomes its last second.
    #[must_use]
    pub fn from_unix_seconds(seconds: u64) -> Self {
        Self { unix_seconds: seconds.min(LAST) }
    }

    /// Seconds since 1970.
    #[must_use]
    pub fn unix_seconds(self) -> u64 {
        self.unix_seconds
    }

    /// This time plus whole days.
    #[must_use]
    pub fn plus_days(self, days: u32) -> Self {
        Self::from_unix_seconds(self.unix_seconds + u64::from(days) * SECONDS_PER_DAY)
    }
}

impl FromStr for DateTime {
    type Err = InvalidDateTime;

    fn from_str(text: &str) -> Result<Self, InvalidDateTime> {
        parse(text.as_bytes())
            .map(|unix_seconds| Self { unix_seconds })
            .ok_or_else(|| InvalidDateTime(text.chars().take(40).collect()))
    }
}

fn parse(text: &[u8]) -> Option<u64> {
    let form = b"0000-00-00T00:00:00Z";
    let fits = text.len() == form.len()
        && text.iter().zip(form).all(|(byte, form)| match form {
            b'0' => byte.is_ascii_digit(),
            _ => byte == form,
        });
    if !fits {
        return None;
    }
    let number =
        |from, to| text[from..to].iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    let (year, month, day) = (number(0, 4), number(5, 7), number(8, 10));
    let (hour, minute, second) = (number(11, 13), number(14, 16), number(17, 19));
    let in_range = year >= 1970
        && (1..=12).contains(&month)
        && (1..=days_in_month(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    in_range.then(|| {
        days_before(year, month, day) * SECONDS_PER_DAY + hour * 3600 + minute * 60 + second
    })
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400)
}

fn days_in_month(year: u64, month: u64) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 to this day.
fn days_before(year: u64, month: u64, day: u64) -> u64 {
    let leaps = |year: u64| year / 4 - year / 100 + year / 400;
    let years = (year - 1970) * 365 + leaps(year - 1) - leaps(1969);
    let months: u64 = (1..month).map(|month| days_in_month(year, month)).sum();
    years + months + day - 1
}

impl fmt::Display for DateTime {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut days, time) =
            (self.unix_seconds / SECONDS_PER_DAY, self.unix_seconds % SECONDS_PER_DAY);
        // Never late: a year has at most 366 days; so this starts at or before the year and walks at most 22 years on.
        let mut year = 1970 + days / 366;
        days -= days_before(year, 1, 1);
        while days >= if is_leap(year) { 366 } else { 365 } {
            days -= if is_leap(year) { 366 } else { 365 };
            year += 1;
        }
        let mut month = 1;
        while days >= days_in_month(year, month) {
            days -= days_in_month(year, month);
            month += 1;
        }
        let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
        write!(formatter, "{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", days + 1)
    }
}

impl TryFrom<String> for DateTime {
    type Error = InvalidDateTime;

    fn try_from(text: String) -> Result<Self, InvalidDateTime> {
        text.parse()
    }
}

impl From<DateTime> for String {
    fn from(time: DateTime) -> Self {
        time.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_the_specified_form() {
        // Expected values: GNU date.
        let cases = [
            ("1970-01-01T00:00:00Z", 0),
            ("1985-10-21T01:21:00Z", 498_705_660),
            ("2000-02-29T23:59:59Z", 951_868_799),
            ("2026-11-21T10:00:00Z", 1_795_255_200),
            ("2100-03-01T00:00:00Z", 4_107_542_400),
            ("9999-12-31T23:59:59Z", LAST),
        ];
        for (text, seconds) in cases {
            assert_eq!(text.parse(), Ok(DateTime::from_unix_seconds(seconds)), "{text}");
            assert_eq!(DateTime::from_unix_seconds(seconds).to_string(), text);
        }
    }

    #[test]
    fn refuses_everything_else() {
        let cases = [
            "",
            "2030-01-01",
            "2030-01-01T00:00:00",
            "2030-01-01T00:00:00+00:00",
            "2030-01-01T00:00:00.0Z",
            "2030-01-01 00:00:00Z",
            "2030-02-29T00:00:00Z",
            "2100-02-29T00:00:00Z",
            "2030-13-01T00:00:00Z",
            "2030-00-01T00:00:00Z",
            "2030-01-00T00:00:00Z",
            "2030-01-01T24:00:00Z",
            "2030-01-01T00:60:00Z",
            "1969-12-31T23:59:59Z",
            "+030-01-01T00:00:00Z",
        ];
        for text in cases {
            assert!(text.parse::<DateTime>().is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn every_second_has_one_text(seconds in 0..=LAST) {
            let time = DateTime::from_unix_seconds(seconds);
            proptest::prop_assert_eq!(time.to_string().parse(), Ok(time));
        }
    }
}
