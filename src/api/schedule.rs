//! Cron schedules: five fields, or `@daily` and its like, or `@every 1h30m`.

use std::time::Duration;

use jiff::civil::DateTime;
use jiff::{Span, ToSpan, Zoned};

/// When a CronJob starts its Jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schedule {
    Fields(Fields),
    Every(Duration),
}

/// One bit per value that matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fields {
    minute: u64,
    hour: u64,
    day: u64,
    month: u64,
    weekday: u64,
    /// A day matches by either field when both are restricted, by both when one is `*`.
    day_starred: bool,
    weekday_starred: bool,
}

/// Why a schedule is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ScheduleError(String);

struct Bounds {
    min: u32,
    max: u32,
    names: &'static [&'static str],
}

const MINUTES: Bounds = Bounds { min: 0, max: 59, names: &[] };
const HOURS: Bounds = Bounds { min: 0, max: 23, names: &[] };
const DAYS: Bounds = Bounds { min: 1, max: 31, names: &[] };
const MONTHS: Bounds = Bounds {
    min: 1,
    max: 12,
    names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
};
const WEEKDAYS: Bounds = Bounds { min: 0, max: 6, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] };

impl Schedule {
    /// # Errors
    /// With upstream's text when `text` is not a schedule.
    pub fn parse(text: &str) -> Result<Self, ScheduleError> {
        if let Some(every) = text.strip_prefix("@every ") {
            return parse_duration(every)
                .map(Self::Every)
                .ok_or_else(|| ScheduleError(format!("failed to parse duration {text}")));
        }
        let text = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            other if other.starts_with('@') => {
                return Err(ScheduleError(format!("unrecognized descriptor: {other}")));
            }
            other => other,
        };
        let fields: Vec<&str> = text.split_whitespace().collect();
        let &[minute, hour, day, month, weekday] = fields.as_slice() else {
            let found = fields.join(" ");
            return Err(ScheduleError(format!("expected exactly 5 fields, found {}: [{found}]", fields.len())));
        };
        let starred = |field: &str| field.split(',').any(|part| part.starts_with(['*', '?']) && !part.contains('/'));
        Ok(Self::Fields(Fields {
            minute: parse_field(minute, &MINUTES)?,
            hour: parse_field(hour, &HOURS)?,
            day: parse_field(day, &DAYS)?,
            month: parse_field(month, &MONTHS)?,
            weekday: parse_field(weekday, &WEEKDAYS)?,
            day_starred: starred(day),
            weekday_starred: starred(weekday),
        }))
    }

    /// The first start after `time`, in its zone; `None` when there is none within five years.
    pub fn next_after(&self, time: &Zoned) -> Option<Zoned> {
        match self {
            Self::Every(period) => {
                let period = Duration::from_secs(period.as_secs().max(1));
                time.checked_add(period).ok()?.round(jiff::Unit::Second).ok()
            }
            Self::Fields(fields) => fields.next_after(time),
        }
    }
}

impl Fields {
    fn next_after(&self, time: &Zoned) -> Option<Zoned> {
        let has = |bits: u64, value: i8| u32::try_from(value).is_ok_and(|value| bits >> value & 1 == 1);
        let start = time.datetime().with().second(0).subsec_nanosecond(0).build().ok()?;
        let mut at: DateTime = start.checked_add(1.minute()).ok()?;
        let last = start.checked_add(5.years()).ok()?;
        let skip = |at: DateTime, span: Span| at.checked_add(span).ok();
        while at < last {
            if !has(self.month, at.month()) {
                at = skip(at.first_of_month().with().hour(0).minute(0).build().ok()?, 1.month())?;
            } else if !self.has_day(at) {
                at = skip(at.with().hour(0).minute(0).build().ok()?, 1.day())?;
            } else if !has(self.hour, at.hour()) {
                at = skip(at.with().minute(0).build().ok()?, 1.hour())?;
            } else if !has(self.minute, at.minute()) {
                at = skip(at, 1.minute())?;
            } else {
                let found = at.to_zoned(time.time_zone().clone()).ok()?;
                // A gap in the clock moves the time; it must still lie ahead.
                if found > *time {
                    return Some(found);
                }
                at = skip(at, 1.minute())?;
            }
        }
        None
    }

    fn has_day(&self, at: DateTime) -> bool {
        let day = u32::try_from(at.day()).is_ok_and(|day| self.day >> day & 1 == 1);
        let weekday = u32::try_from(at.weekday().to_sunday_zero_offset()).is_ok_and(|day| self.weekday >> day & 1 == 1);
        if self.day_starred || self.weekday_starred { day && weekday } else { day || weekday }
    }
}

fn parse_field(field: &str, bounds: &Bounds) -> Result<u64, ScheduleError> {
    let mut bits = 0;
    for part in field.split(',').filter(|part| !part.is_empty()) {
        bits |= parse_range(part, bounds)?;
    }
    Ok(bits)
}

fn parse_range(text: &str, bounds: &Bounds) -> Result<u64, ScheduleError> {
    let fail = |message: String| Err(ScheduleError(message));
    let parts: Vec<&str> = text.split('/').collect();
    let (range, step) = match parts.as_slice() {
        [range] => (*range, None),
        [range, step] => (*range, Some(parse_number(step)?)),
        _ => return fail(format!("too many slashes: {text}")),
    };
    let ends: Vec<&str> = range.split('-').collect();
    let (start, end) = match ends.as_slice() {
        ["*" | "?"] => (bounds.min, bounds.max),
        // `5/10` runs on to the end.
        [one] => {
            let start = parse_value(one, bounds)?;
            (start, if step.is_some() { bounds.max } else { start })
        }
        [start, end] => (parse_value(start, bounds)?, parse_value(end, bounds)?),
        _ => return fail(format!("too many hyphens: {text}")),
    };
    let step = step.unwrap_or(1);
    if start < bounds.min {
        return fail(format!("beginning of range ({start}) below minimum ({}): {text}", bounds.min));
    }
    if end > bounds.max {
        return fail(format!("end of range ({end}) above maximum ({}): {text}", bounds.max));
    }
    if start > end {
        return fail(format!("beginning of range ({start}) beyond end of range ({end}): {text}"));
    }
    if step == 0 {
        return fail(format!("step of range should be a positive number: {text}"));
    }
    let step = usize::try_from(step).unwrap_or(usize::MAX);
    Ok((start..=end).step_by(step).fold(0, |bits, value| bits | 1 << value))
}

fn parse_value(text: &str, bounds: &Bounds) -> Result<u32, ScheduleError> {
    let lower = text.to_lowercase();
    match bounds.names.iter().position(|name| *name == lower) {
        Some(at) => Ok(bounds.min + u32::try_from(at).unwrap_or_default()),
        None => parse_number(text),
    }
}

fn parse_number(text: &str) -> Result<u32, ScheduleError> {
    text.parse().map_err(|_| {
        ScheduleError(format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax"))
    })
}

/// `1h30m`, `90s`
fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.bytes().position(|b| !b.is_ascii_digit() && b != b'.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.bytes().position(|b| b.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 0.001,
            _ => return None,
        };
        rest = &rest[letters..];
        total = total.checked_add(Duration::try_from_secs_f64(number * unit).ok()?)?;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_find_their_next_time() {
        for (schedule, from, next) in [
            ("*/5 * * * *", "2026-01-01T00:00:00[UTC]", "2026-01-01T00:05:00+00:00[UTC]"),
            ("0 0 * * 0", "2026-01-01T00:00:00[UTC]", "2026-01-04T00:00:00+00:00[UTC]"),
            ("30 4 1,15 * 5", "2026-01-01T05:00:00[UTC]", "2026-01-02T04:30:00+00:00[UTC]"),
            ("0 0 29 feb *", "2026-01-01T00:00:00[UTC]", "2028-02-29T00:00:00+00:00[UTC]"),
            ("@hourly", "2026-01-01T00:59:59[UTC]", "2026-01-01T01:00:00+00:00[UTC]"),
            ("@every 90s", "2026-01-01T00:00:00[UTC]", "2026-01-01T00:01:30+00:00[UTC]"),
            ("10-20/5 22 * * mon-fri", "2026-01-03T00:00:00[UTC]", "2026-01-05T22:10:00+00:00[UTC]"),
        ] {
            let from: Zoned = from.parse().unwrap();
            let found = Schedule::parse(schedule).unwrap().next_after(&from).unwrap();
            assert_eq!(found.to_string(), next, "{schedule}");
        }
        let never = Schedule::parse("0 0 31 2 *").unwrap();
        assert_eq!(never.next_after(&"2026-01-01T00:00:00[UTC]".parse().unwrap()), None);
    }

    #[test]
    fn malformed_schedules_are_refused() {
        let text = |schedule: &str| Schedule::parse(schedule).unwrap_err().to_string();
        assert_eq!(text("* * *"), "expected exactly 5 fields, found 3: [* * *]");
        assert_eq!(text("70 * * * *"), "end of range (70) above maximum (59): 70");
        assert_eq!(text("x * * * *"), "failed to parse int from x: strconv.Atoi: parsing \"x\": invalid syntax");
        assert_eq!(text("*/0 * * * *"), "step of range should be a positive number: */0");
        assert_eq!(text("@sometimes"), "unrecognized descriptor: @sometimes");
    }
}
