//! DELETE: at once, after a grace period, or after the finalizers are gone.

use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use mussel_api::object::ObjectExt;
use mussel_store::{Freshness, Txn};
use serde_json::{Value, json};

use super::call::{Call, Current};
use super::negotiate;
use super::options::{DeleteOptions, Propagation};
use super::write::{at, now, time_text};
use crate::admission::{self, Attributes};
use crate::handler::Response;
use crate::status::Status;

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

const ATTEMPTS_MAX: usize = 16;

/// What came of a deletion.
pub struct Deleted {
    pub object: Value,
    /// The object is gone, not only going.
    pub at_once: bool,
}

pub async fn delete(call: &Call<'_>) -> Result<Response, Status> {
    let options = DeleteOptions::of(call.request)?;
    let deleted = remove(call, call.name(), &options).await?;
    let code = if !deleted.at_once && options.cascades { StatusCode::ACCEPTED } else { StatusCode::OK };
    if deleted.at_once && !call.rules.returns_deleted() {
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details(call, &deleted.object)});
        return negotiate::respond(code, negotiate::Form { shape: negotiate::Shape::Object, ..call.form }, &status);
    }
    negotiate::respond(code, call.form, &negotiate::shape_object(&call.resource, call.form, deleted.object))
}

fn details(call: &Call<'_>, object: &Value) -> Value {
    let mut details = json!({"name": object.name(), "kind": call.resource.plural, "uid": object.uid()});
    if !call.resource.group.is_empty() {
        details["group"] = call.resource.group.as_ref().into();
    }
    details
}

/// Deletes the object of this name as the options say.
pub async fn remove(call: &Call<'_>, name: &str, options: &DeleteOptions) -> Result<Deleted, Status> {
    if options.propagation.is_none() && call.rules.orphans_by_default() && call.stored_as == "jobs.batch" {
        call.request.warnings.add(
            "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them \
             or set propagationPolicy=Orphan to suppress this warning",
        );
    }
    for _ in 0..ATTEMPTS_MAX {
        let view = call.view(Freshness::Linearizable).await?;
        let Current { object: old, revision, .. } =
            call.find(&view, name).await?.ok_or_else(|| call.not_found(name))?;
        check_preconditions(call, &old, options)?;
        let attributes = Attributes {
            operation: admission::Operation::Delete,
            resource: &call.resource,
            stored_as: &call.stored_as,
            subresource: "",
            namespace: &call.namespace,
            name,
            user: &call.request.user,
            dry_run: options.dry_run,
            old: Some(&old),
            view: &view,
            warnings: &call.request.warnings,
            config: &call.context.config,
            context: call.context,
            schema: Some(call.schema()),
            options: &|| options.to_value(),
            generated: false,
            is_virtual: false,
            face: None,
        };
        if !call.raw {
            call.registry.admission.validate(&attributes, None).await?;
        }

        let mut new = old.clone();
        let next = step(call, &mut new, options);
        if options.dry_run {
            return Ok(Deleted { object: new, at_once: next == Next::Remove });
        }
        match next {
            Next::Wait => return Ok(Deleted { object: old, at_once: false }),
            Next::Mark if new == old => return Ok(Deleted { object: old, at_once: false }),
            Next::Mark => {
                if let Some(object) = call.replace(name, revision, &new, Txn::default()).await? {
                    return Ok(Deleted { object, at_once: false });
                }
            }
            Next::Remove => {
                if let Some(revision) = call.remove(&old, revision).await? {
                    return Ok(Deleted { object: at(new, revision), at_once: true });
                }
            }
        }
    }
    Err(call.server_timeout("delete"))
}

fn check_preconditions(call: &Call<'_>, old: &Value, options: &DeleteOptions) -> Result<(), Status> {
    if let Some(uid) = options.uid.as_deref().filter(|uid| *uid != old.uid()) {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", old.uid());
        return Err(call.conflict(old.name(), &why));
    }
    if let Some(version) = options.resource_version.as_deref().filter(|version| *version != old.resource_version()) {
        let why = format!(
            "Precondition failed: ResourceVersion in precondition: {version}, ResourceVersion in object meta: {}",
            old.resource_version()
        );
        return Err(call.conflict(old.name(), &why));
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// A deletion is under way and this one adds nothing.
    Wait,
    /// The object stays for now, marked.
    Mark,
    Remove,
}

/// What a deletion makes of the object.
fn step(call: &Call<'_>, object: &mut Value, options: &DeleteOptions) -> Next {
    if let Some(stays) = call.rules.begin_delete(object) {
        set_finalizers(call, object, options);
        return if stays || !object.finalizers().is_empty() { Next::Mark } else { Next::Remove };
    }
    let grace = call.rules.grace_seconds(object, options.grace_period_seconds);
    match graceful(object, grace, options.grace_period_seconds) {
        Graceful::Pending => Next::Wait,
        Graceful::Started { seconds } => {
            set_finalizers(call, object, options);
            if seconds > 0 || !object.finalizers().is_empty() { Next::Mark } else { Next::Remove }
        }
        Graceful::No => {
            set_finalizers(call, object, options);
            if object.finalizers().is_empty() {
                return Next::Remove;
            }
            if !object.is_deleting() {
                mark(object, Timestamp::now(), 0);
            } else {
                object.meta_mut().insert("deletionGracePeriodSeconds".to_owned(), 0.into());
            }
            Next::Mark
        }
    }
}

enum Graceful {
    No,
    Pending,
    Started { seconds: i64 },
}

/// `grace` is what the kind grants; `None` when it knows no grace.
fn graceful(object: &mut Value, grace: Option<i64>, requested: Option<i64>) -> Graceful {
    if object.is_deleting() {
        let metadata = &object["metadata"];
        let Some(period) = metadata["deletionGracePeriodSeconds"].as_i64() else { return Graceful::No };
        if grace.is_none() && period == 0 {
            return Graceful::Pending;
        }
        // Only a shorter period may be asked for.
        let Some(seconds) = requested.filter(|seconds| *seconds < period) else { return Graceful::Pending };
        let seconds = seconds.max(0);
        let due: Option<Timestamp> = metadata["deletionTimestamp"].as_str().and_then(|text| text.parse().ok());
        let due = due.and_then(|due| due.checked_add(SignedDuration::from_secs(seconds - period)).ok());
        let metadata = object.meta_mut();
        metadata.insert("deletionTimestamp".to_owned(), due.map_or_else(now, time_text).into());
        metadata.insert("deletionGracePeriodSeconds".to_owned(), seconds.into());
        return Graceful::Started { seconds };
    }
    match grace {
        None | Some(0) => Graceful::No,
        Some(seconds) => {
            let due = Timestamp::now().checked_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX);
            mark(object, due, seconds);
            Graceful::Started { seconds }
        }
    }
}

fn mark(object: &mut Value, due: Timestamp, seconds: i64) {
    let generation = object.generation();
    let metadata = object.meta_mut();
    metadata.insert("deletionTimestamp".to_owned(), time_text(due).into());
    metadata.insert("deletionGracePeriodSeconds".to_owned(), seconds.into());
    // The generation counts the wish to be gone, too.
    if generation > 0 {
        metadata.insert("generation".to_owned(), (generation + 1).into());
    }
}

/// The garbage collector's finalizers follow the wanted propagation.
fn set_finalizers(call: &Call<'_>, object: &mut Value, options: &DeleteOptions) {
    let has = |name: &str| object.finalizers().contains(&name);
    let (orphan, foreground) = match options.propagation {
        Some(Propagation::Orphan) => (true, false),
        Some(Propagation::Foreground) => (false, true),
        Some(Propagation::Background) => (false, false),
        None if has(ORPHAN) => (true, false),
        None if has(FOREGROUND) => (false, true),
        None => (call.rules.orphans_by_default(), false),
    };
    let mut finalizers: Vec<Value> = object
        .finalizers()
        .into_iter()
        .filter(|name| *name != ORPHAN && *name != FOREGROUND)
        .map(Value::from)
        .collect();
    for (wanted, name) in [(orphan, ORPHAN), (foreground, FOREGROUND)] {
        if wanted {
            finalizers.push(name.into());
        }
    }
    let metadata = object.meta_mut();
    if finalizers.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".to_owned(), finalizers.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grace_period_only_shrinks() {
        let mut pod = json!({"metadata": {"name": "a", "generation": 1}});
        assert!(matches!(graceful(&mut pod, Some(30), None), Graceful::Started { seconds: 30 }));
        assert_eq!(pod["metadata"]["deletionGracePeriodSeconds"], 30);
        assert_eq!(pod["metadata"]["generation"], 2);
        let first: Timestamp = pod["metadata"]["deletionTimestamp"].as_str().unwrap().parse().unwrap();
        assert!(matches!(graceful(&mut pod, Some(60), Some(60)), Graceful::Pending));
        assert!(matches!(graceful(&mut pod, Some(30), None), Graceful::Pending));
        assert!(matches!(graceful(&mut pod, Some(10), Some(10)), Graceful::Started { seconds: 10 }));
        let second: Timestamp = pod["metadata"]["deletionTimestamp"].as_str().unwrap().parse().unwrap();
        assert_eq!(first.as_second() - second.as_second(), 20);
        assert!(matches!(graceful(&mut pod, Some(0), Some(0)), Graceful::Started { seconds: 0 }));
    }
}
