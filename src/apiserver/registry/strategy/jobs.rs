//! Jobs get a selector of their own uid, unless their author insists on another.

use mussel_api::object::ObjectExt;
use serde_json::{Value, json};

use super::Rules;
use crate::registry::write::Write;
use crate::status::Status;

pub struct Jobs;

impl Rules for Jobs {
    fn prepare_create(&self, _write: &Write<'_>, new: &mut Value) -> Result<(), Status> {
        if new["spec"]["manualSelector"] == true {
            return Ok(());
        }
        let (uid, name) = (new.uid().to_owned(), new.name().to_owned());
        let metadata = &mut new["spec"]["template"]["metadata"];
        if !metadata.is_object() {
            *metadata = json!({});
        }
        let labels = &mut metadata["labels"];
        if !labels.is_object() {
            *labels = json!({});
        }
        for (key, value) in [
            ("controller-uid", &uid),
            ("batch.kubernetes.io/controller-uid", &uid),
            ("job-name", &name),
            ("batch.kubernetes.io/job-name", &name),
        ] {
            labels[key] = value.as_str().into();
        }
        let selector = &mut new["spec"]["selector"];
        if !selector.is_object() {
            *selector = json!({});
        }
        if !selector["matchLabels"].is_object() {
            selector["matchLabels"] = json!({});
        }
        selector["matchLabels"]["batch.kubernetes.io/controller-uid"] = uid.into();
        Ok(())
    }

    fn orphans_by_default(&self) -> bool {
        true
    }
}
