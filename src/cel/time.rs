//! Durations and timestamps: Go's notation, and their parts.

use jiff::{SignedDuration, Timestamp, tz::TimeZone};

use crate::error::EvalError;

/// `1h30m`, `-1.5s`, `300ms`
///
/// # Errors
/// When the text is no duration, or one too long to count in nanoseconds.
pub fn parse_duration(text: &str) -> Result<SignedDuration, EvalError> {
    let bad = || EvalError::other(format!("time: invalid duration {text:?}"));
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(SignedDuration::ZERO);
    }
    if rest.is_empty() {
        return Err(bad());
    }
    let mut nanos: i128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let (number, after) = rest.split_at(end);
        let units: [(&str, i128); 8] = [
            ("ns", 1),
            ("us", 1_000),
            ("µs", 1_000),
            ("μs", 1_000),
            ("ms", 1_000_000),
            ("s", 1_000_000_000),
            ("m", 60_000_000_000),
            ("h", 3_600_000_000_000),
        ];
        let (unit, factor) = units.iter().find(|(unit, _)| after.starts_with(unit)).ok_or_else(bad)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') || number.len() > 40 {
            return Err(bad());
        }
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| bad())? };
        nanos = whole.checked_mul(*factor).and_then(|part| nanos.checked_add(part)).ok_or_else(bad)?;
        let mut scale = *factor;
        for digit in fraction.bytes() {
            scale /= 10;
            nanos += scale * i128::from(digit - b'0');
        }
        rest = &after[unit.len()..];
    }
    let nanos = i64::try_from(if negative { -nanos } else { nanos }).map_err(|_| bad())?;
    Ok(SignedDuration::from_nanos(nanos))
}

/// In seconds: `5400s`, `-1.5s`.
pub fn duration_text(duration: SignedDuration) -> String {
    let nanos = duration.as_nanos();
    let sign = if nanos < 0 { "-" } else { "" };
    let (seconds, fraction) = (nanos.unsigned_abs() / 1_000_000_000, nanos.unsigned_abs() % 1_000_000_000);
    let fraction = format!("{fraction:09}");
    match fraction.trim_end_matches('0') {
        "" => format!("{sign}{seconds}s"),
        fraction => format!("{sign}{seconds}.{fraction}s"),
    }
}

/// RFC 3339.
///
/// # Errors
/// When the text is none, or out of the years 1 to 9999.
pub fn parse_timestamp(text: &str) -> Result<Timestamp, EvalError> {
    let bad = |why: &dyn std::fmt::Display| EvalError::other(format!("parsing time {text:?}: {why}"));
    // Only this one form, though the parser knows more.
    let shape = text.as_bytes();
    let is_shaped = shape.len() >= 20 && shape[4] == b'-' && shape[7] == b'-' && matches!(shape[10], b'T' | b't');
    if !is_shaped {
        return Err(bad(&"cannot parse as \"2006-01-02T15:04:05Z07:00\""));
    }
    text.parse().map_err(|error: jiff::Error| bad(&error))
}

/// The parts of a point in time, in a zone of the time zone database or at an offset like `-08:00`.
///
/// # Errors
/// When there is no such zone.
pub fn in_zone(time: Timestamp, zone: Option<&str>) -> Result<jiff::Zoned, EvalError> {
    let Some(zone) = zone.filter(|zone| !matches!(*zone, "" | "UTC" | "Z")) else {
        return Ok(time.to_zoned(TimeZone::UTC));
    };
    if let Some((hours, minutes)) = zone.split_once(':') {
        let negative = hours.starts_with('-');
        let parse = |text: &str| text.trim_start_matches(['+', '-']).parse::<i32>().ok();
        let seconds = parse(hours).zip(parse(minutes)).map(|(hours, minutes)| hours * 3600 + minutes * 60);
        let offset = seconds
            .map(|seconds| if negative { -seconds } else { seconds })
            .and_then(|seconds| jiff::tz::Offset::from_seconds(seconds).ok());
        let offset = offset.ok_or_else(|| EvalError::other(format!("unknown time zone {zone}")))?;
        return Ok(time.to_zoned(TimeZone::fixed(offset)));
    }
    let zone = TimeZone::get(zone).map_err(|_| EvalError::other(format!("unknown time zone {zone}")))?;
    Ok(time.to_zoned(zone))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        for (text, seconds) in
            [("1h30m", "5400s"), ("-1.5s", "-1.5s"), ("300ms", "0.3s"), ("0", "0s"), ("1m1ns", "60.000000001s")]
        {
            assert_eq!(duration_text(parse_duration(text).unwrap()), seconds);
        }
        for bad in ["", "1", "1d", "x", "1.2.3s", "99999999999h"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn zones_have_names_or_offsets() {
        let time = parse_timestamp("2024-02-29T23:30:00Z").unwrap();
        assert_eq!(in_zone(time, None).unwrap().day(), 29);
        assert_eq!(in_zone(time, Some("+01:00")).unwrap().day(), 1);
        assert_eq!(in_zone(time, Some("-08:00")).unwrap().hour(), 15);
        assert!(in_zone(time, Some("Nowhere/Else")).is_err());
        assert!(parse_timestamp("2024-02-29").is_err());
    }
}
