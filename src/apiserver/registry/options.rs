//! The options of requests: `CreateOptions`, `UpdateOptions`, `PatchOptions`, `DeleteOptions` and `ListOptions`.

use mussel_api::decode::{self, Strictness};
use mussel_api::field::{FieldError, FieldErrors, Path};
use mussel_api::selector::{FieldSelector, LabelSelector};
use serde_json::{Value, json};

use super::body;
use crate::handler::{Query, Request};
use crate::status::Status;

/// What writes have in common.
#[derive(Clone, Debug)]
pub struct WriteOptions {
    /// Everything but the commit.
    pub dry_run: bool,
    pub strictness: Strictness,
    pub field_manager: String,
    pub force: bool,
}

const FIELD_MANAGER_MAX: usize = 128;

impl WriteOptions {
    /// `kind` is that of the options, for error texts.
    pub fn of(request: &Request, kind: &str) -> Result<Self, Status> {
        let query = &request.query;
        let mut errors = FieldErrors::new();
        let dry_run = dry_run(query.all("dryRun"), &mut errors);
        let strictness = match query.get("fieldValidation") {
            None | Some("" | "Warn") => Strictness::Warn,
            Some("Ignore") => Strictness::Ignore,
            Some("Strict") => Strictness::Strict,
            Some(other) => {
                let supported = ["Ignore", "Strict", "Warn"];
                errors.push(FieldError::not_supported(&Path::new("fieldValidation"), other, &supported));
                Strictness::Warn
            }
        };
        let manager = query.get("fieldManager").unwrap_or_default();
        if manager.len() > FIELD_MANAGER_MAX {
            errors.push(FieldError::too_long(&Path::new("fieldManager"), FIELD_MANAGER_MAX));
        }
        if manager.chars().any(|c| c.is_control()) {
            let detail = "should only contain printable characters";
            errors.push(FieldError::invalid(&Path::new("fieldManager"), manager, detail));
        }
        if !errors.is_empty() {
            return Err(Status::invalid("meta.k8s.io", kind, "", &errors));
        }
        let field_manager = if manager.is_empty() { user_agent_manager(request) } else { manager.to_owned() };
        Ok(Self { dry_run, strictness, field_manager, force: query.is_true("force") })
    }

    /// For writes of our own: bootstrap objects.
    pub fn internal() -> Self {
        Self { dry_run: false, strictness: Strictness::Ignore, field_manager: "mussel".to_owned(), force: false }
    }
}

/// The options in the query of a write, as `kind` has them.
pub fn write_options(query: &Query, kind: &str) -> Value {
    let mut options = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
    for field in ["fieldManager", "fieldValidation"] {
        if let Some(value) = query.get(field).filter(|value| !value.is_empty()) {
            options[field] = value.into();
        }
    }
    if query.all("dryRun").any(|value| !value.is_empty()) {
        options["dryRun"] = json!(["All"]);
    }
    options
}

/// Clients that name no field manager are known by the first word of their user agent.
fn user_agent_manager(request: &Request) -> String {
    let agent = request.headers.get(http::header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let first = agent.split('/').next().unwrap_or_default();
    let name: String = first.chars().filter(|c| !c.is_control()).take(FIELD_MANAGER_MAX).collect();
    if name.is_empty() { "unknown".to_owned() } else { name }
}

fn dry_run<'a>(values: impl Iterator<Item = &'a str>, errors: &mut FieldErrors) -> bool {
    let mut dry = false;
    for value in values {
        match value {
            "All" => dry = true,
            "" => {}
            other => errors.push(FieldError::not_supported(&Path::new("dryRun"), other, &["All"])),
        }
    }
    dry
}

/// What becomes of the dependents of a deleted object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Orphan,
    Background,
    Foreground,
}

#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    pub dry_run: bool,
    pub grace_period_seconds: Option<i64>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub propagation: Option<Propagation>,
    /// `orphanDependents: false` was given: the answer to a pending deletion is then 202.
    pub cascades: bool,
}

impl DeleteOptions {
    pub fn to_value(&self) -> Value {
        let mut options = json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"});
        if self.dry_run {
            options["dryRun"] = json!(["All"]);
        }
        if let Some(seconds) = self.grace_period_seconds {
            options["gracePeriodSeconds"] = seconds.into();
        }
        if let Some(uid) = &self.uid {
            options["preconditions"]["uid"] = uid.as_str().into();
        }
        if let Some(version) = &self.resource_version {
            options["preconditions"]["resourceVersion"] = version.as_str().into();
        }
        if let Some(propagation) = self.propagation {
            options["propagationPolicy"] = format!("{propagation:?}").into();
        }
        options
    }

    /// From the body when there is one, else from the query.
    pub fn of(request: &Request) -> Result<Self, Status> {
        if request.body.is_empty() { Self::from_query(&request.query) } else { Self::from_body(request) }
    }

    fn from_body(request: &Request) -> Result<Self, Status> {
        let format = body::format(&request.headers)?;
        let value = decode::parse(&request.body, format).map_err(|error| Status::bad_request(error.to_string()))?;
        let query_dry_run = request.query.all("dryRun").any(|value| value == "All");
        Self::from_value(&value, query_dry_run)
    }

    /// From a `DeleteOptions` object, as bodies and evictions carry it.
    pub fn from_value(value: &Value, also_dry_run: bool) -> Result<Self, Status> {
        let kind = value["kind"].as_str().unwrap_or_default();
        if !kind.is_empty() && kind != "DeleteOptions" {
            return Err(Status::bad_request("decoded object cannot be converted to DeleteOptions"));
        }
        let mut errors = FieldErrors::new();
        let dry = value["dryRun"].as_array().map(Vec::as_slice).unwrap_or_default();
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let grace = &value["gracePeriodSeconds"];
        if !grace.is_null() && grace.as_i64().is_none() {
            return Err(Status::bad_request(format!(
                "json: cannot unmarshal {grace} into Go struct field DeleteOptions.gracePeriodSeconds of type int64"
            )));
        }
        let mut options = Self {
            dry_run: dry_run(dry.iter().filter_map(Value::as_str), &mut errors) || also_dry_run,
            grace_period_seconds: grace.as_i64(),
            uid: text(&value["preconditions"]["uid"]),
            resource_version: text(&value["preconditions"]["resourceVersion"]),
            ..Self::default()
        };
        options.propagate(value["propagationPolicy"].as_str(), value["orphanDependents"].as_bool(), &mut errors);
        if errors.is_empty() { Ok(options) } else { Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", &errors)) }
    }

    fn from_query(query: &Query) -> Result<Self, Status> {
        let mut errors = FieldErrors::new();
        let mut options = Self { dry_run: dry_run(query.all("dryRun"), &mut errors), ..Self::default() };
        if let Some(text) = query.get("gracePeriodSeconds").filter(|text| !text.is_empty()) {
            let seconds = text
                .parse()
                .map_err(|_| Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax")))?;
            options.grace_period_seconds = Some(seconds);
        }
        let orphan = query.get("orphanDependents").map(|_| query.is_true("orphanDependents"));
        options.propagate(query.get("propagationPolicy"), orphan, &mut errors);
        if errors.is_empty() { Ok(options) } else { Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", &errors)) }
    }

    fn propagate(&mut self, policy: Option<&str>, orphan: Option<bool>, errors: &mut FieldErrors) {
        let path = Path::new("propagationPolicy");
        if policy.is_some() && orphan.is_some() {
            let detail = "orphanDependents and deletionPropagation cannot be both set";
            errors.push(FieldError::invalid(&path, policy.unwrap_or_default(), detail));
        }
        self.cascades = orphan == Some(false);
        self.propagation = match (policy, orphan) {
            (Some("Orphan"), _) | (None, Some(true)) => Some(Propagation::Orphan),
            (Some("Background"), _) | (None, Some(false)) => Some(Propagation::Background),
            (Some("Foreground"), _) => Some(Propagation::Foreground),
            (None | Some(""), _) => None,
            (Some(other), _) => {
                let supported = ["Background", "Foreground", "Orphan"];
                errors.push(FieldError::not_supported(&path, other, &supported));
                None
            }
        };
    }
}

/// `resourceVersionMatch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    Exact,
    NotOlderThan,
}

/// What is to be listed or watched.
#[derive(Debug)]
pub struct ListOptions {
    pub labels: Option<LabelSelector>,
    pub fields: Option<FieldSelector>,
    /// The value of `metadata.name=…`, when the field selector has it.
    pub name: Option<String>,
    /// `None`: the newest.
    pub resource_version: Option<u64>,
    pub matching: Option<Match>,
    pub limit: usize,
    pub continue_token: Option<String>,
    pub timeout_seconds: Option<u64>,
    pub bookmarks: bool,
    pub send_initial_events: Option<bool>,
}

impl ListOptions {
    pub fn of(query: &Query, watch: bool) -> Result<Self, Status> {
        let selector = |key: &str| query.get(key).filter(|text| !text.is_empty());
        let labels = selector("labelSelector")
            .map(LabelSelector::parse)
            .transpose()
            .map_err(|error| Status::bad_request(error.to_string()))?
            .filter(|selector| !selector.is_empty());
        let fields = selector("fieldSelector")
            .map(FieldSelector::parse)
            .transpose()
            .map_err(|error| Status::bad_request(error.to_string()))?
            .filter(|selector| !selector.is_empty());
        let number = |key: &str| match query.get(key).filter(|text| !text.is_empty()) {
            None => Ok(None),
            Some(text) => text
                .parse::<i64>()
                .map(Some)
                .map_err(|_| Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))),
        };
        let limit = number("limit")?.unwrap_or(0);
        let timeout = number("timeoutSeconds")?;
        let version_text = query.get("resourceVersion").unwrap_or_default();
        let continue_token = query.get("continue").filter(|text| !text.is_empty()).map(str::to_owned);
        let send_initial_events = query.get("sendInitialEvents").map(|_| query.is_true("sendInitialEvents"));

        let mut errors = FieldErrors::new();
        let resource_version = if version_text.is_empty() {
            None
        } else {
            match version_text.parse() {
                Ok(version) => Some(version),
                Err(_) => {
                    let detail = format!("strconv.ParseUint: parsing {version_text:?}: invalid syntax");
                    errors.push(FieldError::invalid(&Path::new("resourceVersion"), version_text, detail));
                    None
                }
            }
        };
        let path = Path::new("resourceVersionMatch");
        let match_text = query.get("resourceVersionMatch").unwrap_or_default();
        let matching = match match_text {
            "" => None,
            "Exact" => Some(Match::Exact),
            "NotOlderThan" => Some(Match::NotOlderThan),
            other => {
                errors.push(FieldError::not_supported(&path, other, &["Exact", "NotOlderThan", ""]));
                None
            }
        };
        let initial = Path::new("sendInitialEvents");
        if watch {
            if matching.is_some() && send_initial_events.is_none() {
                let detail = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
                errors.push(FieldError::forbidden(&path, detail));
            }
            if send_initial_events.is_some() && matching != Some(Match::NotOlderThan) {
                let detail = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
                errors.push(FieldError::forbidden(&path, detail));
            }
        } else {
            if send_initial_events.is_some() {
                errors.push(FieldError::forbidden(&initial, "sendInitialEvents is forbidden for list"));
            }
            if matching.is_some() {
                if version_text.is_empty() {
                    let detail = "resourceVersionMatch is forbidden unless resourceVersion is provided";
                    errors.push(FieldError::forbidden(&path, detail));
                }
                if continue_token.is_some() {
                    let detail = "resourceVersionMatch is forbidden when continue is provided";
                    errors.push(FieldError::forbidden(&path, detail));
                }
                if matching == Some(Match::Exact) && resource_version == Some(0) {
                    let detail = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
                    errors.push(FieldError::forbidden(&path, detail));
                }
            }
        }
        if limit < 0 {
            let detail = "must be greater than or equal to 0";
            errors.push(FieldError::invalid(&Path::new("limit"), limit, detail));
        }
        if !errors.is_empty() {
            return Err(Status::invalid("meta.k8s.io", "ListOptions", "", &errors));
        }
        if continue_token.is_some() && resource_version.is_some_and(|version| version > 0) {
            return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
        }
        let name = fields.as_ref().and_then(|fields| fields.exact("metadata.name")).map(str::to_owned);
        Ok(Self {
            labels,
            fields,
            name,
            resource_version,
            matching,
            limit: usize::try_from(limit).unwrap_or(0),
            continue_token,
            timeout_seconds: timeout.and_then(|seconds| u64::try_from(seconds).ok()).filter(|seconds| *seconds > 0),
            bookmarks: query.is_true("allowWatchBookmarks"),
            send_initial_events,
        })
    }

    /// Whether every object of the resource is wanted.
    pub fn selects_all(&self) -> bool {
        self.labels.is_none() && self.fields.is_none()
    }
}
