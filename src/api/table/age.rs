//! Times as ages: `12s`, `3m4s`, `5h`, `2d3h`, `1y40d`.

use jiff::Timestamp;
use serde_json::Value;

use crate::object::ObjectExt;

/// A duration as upstream prints it: two or three significant figures.
pub fn human_duration(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let pair = |major: i64, unit: char, minor: i64, of: char| match minor {
        0 => format!("{major}{unit}"),
        _ => format!("{major}{unit}{minor}{of}"),
    };
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        _ if seconds < 60 * 2 => format!("{seconds}s"),
        _ if minutes < 10 => pair(minutes, 'm', seconds % 60, 's'),
        _ if minutes < 60 * 3 => format!("{minutes}m"),
        _ if hours < 8 => pair(hours, 'h', minutes % 60, 'm'),
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 24 * 8 => pair(hours / 24, 'd', hours % 24, 'h'),
        _ if hours < 24 * 365 * 2 => format!("{}d", hours / 24),
        _ if hours < 24 * 365 * 8 => pair(hours / 24 / 365, 'y', hours / 24 % 365, 'd'),
        _ => format!("{}y", hours / 24 / 365),
    }
}

/// The time since the object was created.
pub(super) fn of(object: &Value, now: Timestamp) -> Value {
    since(object.meta_str("creationTimestamp"), now).into()
}

/// The time since a point in time; `<unknown>` when there is none.
pub(super) fn since(time: &str, now: Timestamp) -> String {
    match parse(time) {
        Some(time) => human_duration(now.as_second() - time.as_second()),
        None => "<unknown>".to_owned(),
    }
}

pub(super) fn parse(time: &str) -> Option<Timestamp> {
    time.parse().ok()
}
