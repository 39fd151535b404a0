//! The query of a log request, checked as upstream checks PodLogOptions, and as the kubelet wants it.

use mussel_api::field::{FieldError, FieldErrors, Path};

use crate::request::Query;
use crate::status::Status;

/// The kubelet's query for a client's.
///
/// # Errors
/// 400 for what is no number or boolean, 422 for what makes no sense.
pub fn kubelet_query(pod: &str, query: &Query) -> Result<String, Status> {
    let mut out: Vec<String> = Vec::new();
    let mut errors = FieldErrors::new();
    for name in ["follow", "previous", "timestamps"] {
        if query.is_true(name) {
            out.push(format!("{name}=true"));
        }
    }
    let mut number = |name: &str, min: i64, text: &str| -> Result<Option<i64>, Status> {
        let Some(value) = query.get(name).filter(|value| !value.is_empty()) else { return Ok(None) };
        let parsed: i64 = value
            .parse()
            .map_err(|_| Status::bad_request(format!("strconv.ParseInt: parsing {value:?}: invalid syntax")))?;
        if parsed < min {
            errors.push(FieldError::invalid(&Path::new(name), parsed, text));
        }
        Ok(Some(parsed))
    };
    let limits = [
        ("tailLines", 0, "must be greater than or equal to 0"),
        ("limitBytes", 1, "must be greater than 0"),
        ("sinceSeconds", 1, "must be greater than 0"),
    ];
    for (name, min, text) in limits {
        if let Some(value) = number(name, min, text)? {
            out.push(format!("{name}={value}"));
        }
    }
    if let Some(time) = query.get("sinceTime").filter(|time| !time.is_empty()) {
        if time.parse::<jiff::Timestamp>().is_err() {
            return Err(Status::bad_request(format!(
                "parsing time {time:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse"
            )));
        }
        if query.get("sinceSeconds").is_some_and(|value| !value.is_empty()) {
            let text = "at most one of `sinceTime` or `sinceSeconds` may be specified";
            errors.push(FieldError::forbidden(&Path::root(), text));
        }
        out.push(format!("sinceTime={}", super::encode_component(time)));
    }
    if let Some(stream) = query.get("stream").filter(|stream| !stream.is_empty()) {
        if !matches!(stream, "All" | "Stdout" | "Stderr") {
            errors.push(FieldError::not_supported(&Path::new("stream"), stream, &["All", "Stderr", "Stdout"]));
        } else if stream != "All" && query.get("tailLines").is_some_and(|lines| !lines.is_empty()) {
            let text = "`tailLines` and specific `stream` are mutually exclusive for now";
            errors.push(FieldError::forbidden(&Path::root(), text));
        }
        out.push(format!("stream={stream}"));
    }
    if errors.is_empty() { Ok(out.join("&")) } else { Err(Status::invalid("", "PodLogOptions", pod, &errors)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_queries_are_checked_and_passed_on() {
        let ask = |query: &str| kubelet_query("web", &Query::parse(query));
        assert_eq!(ask("follow=true&tailLines=5&container=c").unwrap(), "follow=true&tailLines=5");
        assert_eq!(ask("sinceTime=2026-01-01T00:00:00Z").unwrap(), "sinceTime=2026-01-01T00%3A00%3A00Z");
        assert_eq!(
            ask("tailLines=-1").unwrap_err().message,
            "PodLogOptions \"web\" is invalid: tailLines: Invalid value: -1: must be greater than or equal to 0"
        );
        assert_eq!(ask("limitBytes=x").unwrap_err().code, 400);
        assert_eq!(ask("limitBytes=0").unwrap_err().code, 422);
    }
}
