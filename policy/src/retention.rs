//! How long snapshots are kept.

use std::time::Duration;

use crate::{Error, error::quoted, field::Field};

/// What a policy says about old snapshots. Nothing said, they stay until somebody deletes them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Retention {
    /// How long a snapshot stays that is not used (`retentionConfig.lastAccessTimeout`).
    pub unused_for: Option<Duration>,
    /// How many stay of each group (`groupRetentionPolicy.maxSnapshotCountPerGroup`).
    pub max_per_group: Option<u32>,
}

/// `90min`, `12h`, `7d`, `3mo`, `1y`: a month is 30 days, a year 365.
pub(crate) fn read_time(field: &Field<'_>) -> Result<Duration, Error> {
    const MINUTE: u64 = 60;
    const DAY: u64 = 24 * 60 * MINUTE;
    const UNITS: [(&str, u64); 5] = [
        ("min", MINUTE),
        ("mo", 30 * DAY),
        ("y", 365 * DAY),
        ("d", DAY),
        ("h", 60 * MINUTE),
    ];
    let text = field.text()?;
    let digits = text.find(|c: char| !c.is_ascii_digit());
    let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
    let seconds = UNITS.iter().find(|(name, _)| *name == unit);
    let time = number.parse::<u64>().ok().zip(seconds);
    let time = time.and_then(|(number, (_, seconds))| number.checked_mul(*seconds));
    match time {
        Some(0) => Err(field.error("every snapshot would be too old at once")),
        Some(seconds) => Ok(Duration::from_secs(seconds)),
        None => Err(field.error(format!(
            "{} is no time: write a number and one of y, mo, d, h, min, such as 7d",
            quoted(text)
        ))),
    }
}
