//! The rows that a CRD adds to the resources.

use std::borrow::Cow;
use std::sync::Arc;

use super::{Custom, Definition, ServedVersion};
use crate::resource::{Resource, STANDARD_VERBS, Strategy, Subresource, no_field, none_create, none_update, nothing};

const READ_WRITE: &[&str] = &["get", "patch", "update"];

/// One row for each version, in the order of the CRD; also for those that are not served.
pub fn rows(definition: &Arc<Definition>, revision: u64, terminating: bool) -> Vec<Resource> {
    let row = |(index, version): (usize, &ServedVersion)| {
        let custom = Custom { definition: Arc::clone(definition), index, revision, terminating };
        of_version(custom, definition, version)
    };
    definition.versions.iter().enumerate().map(row).collect()
}

fn of_version(custom: Custom, definition: &Definition, version: &ServedVersion) -> Resource {
    let names = &definition.names;
    let strings = |list: &[String]| list.iter().cloned().map(Cow::Owned).collect();
    let mut subresources = Vec::new();
    if version.scale.is_some() {
        let kind = Some(("autoscaling", "v1", "Scale"));
        subresources.push(Subresource { name: "scale", kind, verbs: READ_WRITE });
    }
    if version.has_status {
        subresources.push(Subresource { name: "status", kind: None, verbs: READ_WRITE });
    }
    Resource {
        group: definition.group.clone().into(),
        version: version.name.clone().into(),
        kind: names.kind.clone().into(),
        plural: names.plural.clone().into(),
        singular: names.singular.clone().into(),
        short_names: strings(&names.short_names),
        namespaced: definition.namespaced,
        verbs: STANDARD_VERBS.into(),
        categories: strings(&names.categories),
        subresources: subresources.into(),
        schema: schema_name(&definition.group, &version.name, &names.kind).into(),
        storage: None,
        // The functions of a strategy know nothing of the row; what is custom is done by it.
        strategy: Strategy {
            has_status: version.has_status,
            has_generation: true,
            create_on_update: false,
            grace_seconds: None,
            default: nothing,
            validate_create: none_create,
            validate_update: none_update,
            validate_status: none_update,
            select_field: no_field,
        },
        custom: Some(custom),
    }
}

/// `com.example.v1.Widget`: the group turned around, as upstream names definitions.
fn schema_name(group: &str, version: &str, kind: &str) -> String {
    let mut parts: Vec<&str> = group.split('.').collect();
    parts.reverse();
    format!("{}.{version}.{kind}", parts.join("."))
}
