//! The conditions of a CRD and the names it may have. Pure.

use std::collections::HashSet;

use mussel_api::custom::Names;
use mussel_api::resource;
use mussel_api::validation::Approval;
use serde_json::{Value, json};

use super::Entry;

/// Whether a status has this condition.
pub fn is_true(status: &Value, condition: &str) -> bool {
    find(status, condition).is_some_and(|found| found["status"] == "True")
}

fn find<'v>(status: &'v Value, condition: &str) -> Option<&'v Value> {
    status["conditions"].as_array()?.iter().find(|found| found["type"] == condition)
}

/// The reason of a condition; empty when there is none.
pub fn reason<'v>(status: &'v Value, condition: &str) -> &'v str {
    find(status, condition).and_then(|found| found["reason"].as_str()).unwrap_or_default()
}

/// Sets a condition; its time stays when its status does.
pub fn set(status: &mut Value, condition: &str, is: bool, reason: &str, message: &str, now: &str) {
    let word = if is { "True" } else { "False" };
    let before = find(status, condition);
    let time = before.filter(|before| before["status"] == word).map(|before| before["lastTransitionTime"].clone());
    let new = json!({"type": condition, "status": word, "reason": reason, "message": message,
        "lastTransitionTime": time.unwrap_or_else(|| now.into())});
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let Some(list) = status["conditions"].as_array_mut() else { return };
    match list.iter_mut().find(|found| found["type"] == condition) {
        Some(found) => *found = new,
        None => list.push(new),
    }
}

/// The status a CRD should have, when it is another than it has. `others` are the other CRDs of its group.
pub fn status<'e>(entry: &Entry, others: impl Iterator<Item = &'e Entry>, now: &str) -> Option<Value> {
    let mut taken = Taken::built_in(&entry.group);
    for other in others {
        taken.add(&other.accepted);
    }
    let (names, conflict) = accept(&entry.names, &entry.accepted, &taken);
    let mut status = entry.status.clone();
    if !status.is_object() {
        status = json!({});
    }
    if names != entry.accepted || !status["acceptedNames"].is_object() {
        status["acceptedNames"] = to_value(&names);
    }
    match &conflict {
        None => set(&mut status, "NamesAccepted", true, "NoConflicts", "no conflicts found", now),
        Some((reason, message)) => set(&mut status, "NamesAccepted", false, reason, message, now),
    }
    if !is_true(&status, "Established") {
        match conflict {
            None => set(
                &mut status,
                "Established",
                true,
                "InitialNamesAccepted",
                "the initial names have been accepted",
                now,
            ),
            Some(_) => set(&mut status, "Established", false, "NotAccepted", "not all names are accepted", now),
        }
    }
    let policy = match &entry.approval {
        Approval::NotNeeded => None,
        Approval::Approved(message) => Some((true, "ApprovedAnnotation", message)),
        Approval::Bypassed(message) => Some((false, "UnapprovedAnnotation", message)),
        Approval::Invalid(message) => Some((false, "InvalidAnnotation", message)),
        Approval::Missing(message) => Some((false, "MissingAnnotation", message)),
    };
    if let Some((is, reason, message)) = policy {
        set(&mut status, "KubernetesAPIApprovalPolicyConformant", is, reason, message, now);
    }
    (status != entry.status).then_some(status)
}

/// The names in use in a group.
#[derive(Default)]
struct Taken {
    /// Plurals, singulars and short names.
    resources: HashSet<String>,
    kinds: HashSet<String>,
}

impl Taken {
    /// Built-in resources are there first: their objects must never be taken for a CRD's.
    fn built_in(group: &str) -> Self {
        let mut taken = Self::default();
        for row in resource::builtin().iter().filter(|row| row.group == group) {
            taken.add(&Names {
                plural: row.plural.to_string(),
                singular: row.singular.to_string(),
                kind: row.kind.to_string(),
                list_kind: row.list_kind().into_owned(),
                short_names: row.short_names.iter().map(ToString::to_string).collect(),
                categories: Vec::new(),
            });
        }
        taken
    }

    fn add(&mut self, names: &Names) {
        let all = [&names.plural, &names.singular].into_iter().chain(&names.short_names);
        self.resources.extend(all.filter(|name| !name.is_empty()).cloned());
        self.kinds.extend([&names.kind, &names.list_kind].into_iter().filter(|name| !name.is_empty()).cloned());
    }
}

/// Which of the wanted names a CRD gets. What is in use by another stays what it was, and is told.
fn accept(wanted: &Names, accepted: &Names, taken: &Taken) -> (Names, Option<(&'static str, String)>) {
    let mut names = accepted.clone();
    let mut conflict = None;
    let mut one = |wanted: &String, name: &mut String, taken: &HashSet<String>, reason: &'static str| {
        if *wanted != *name && taken.contains(wanted) {
            conflict = Some((reason, format!("{wanted:?} is already in use")));
        } else {
            name.clone_from(wanted);
        }
    };
    one(&wanted.plural, &mut names.plural, &taken.resources, "PluralConflict");
    one(&wanted.singular, &mut names.singular, &taken.resources, "SingularConflict");
    one(&wanted.kind, &mut names.kind, &taken.kinds, "KindConflict");
    one(&wanted.list_kind, &mut names.list_kind, &taken.kinds, "ListKindConflict");
    let clashes: Vec<String> = wanted
        .short_names
        .iter()
        .filter(|name| !accepted.short_names.contains(name) && taken.resources.contains(*name))
        .map(|name| format!("{name:?} is already in use"))
        .collect();
    if clashes.is_empty() {
        names.short_names.clone_from(&wanted.short_names);
    } else {
        let message = if clashes.len() == 1 { clashes.concat() } else { format!("[{}]", clashes.join(", ")) };
        conflict = Some(("ShortNamesConflict", message));
    }
    names.categories.clone_from(&wanted.categories);
    (names, conflict)
}

fn to_value(names: &Names) -> Value {
    let mut value = json!({"plural": names.plural, "kind": names.kind});
    for (field, name) in [("singular", &names.singular), ("listKind", &names.list_kind)] {
        if !name.is_empty() {
            value[field] = name.as_str().into();
        }
    }
    for (field, list) in [("shortNames", &names.short_names), ("categories", &names.categories)] {
        if !list.is_empty() {
            value[field] = json!(list);
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(plural: &str, kind: &str, short: &[&str]) -> Names {
        Names {
            plural: plural.to_owned(),
            kind: kind.to_owned(),
            short_names: short.iter().map(|name| (*name).to_owned()).collect(),
            ..Names::default()
        }
    }

    #[test]
    fn a_name_belongs_to_who_had_it_first() {
        let mut taken = Taken::default();
        taken.add(&names("widgets", "Widget", &["w"]));
        let (got, conflict) = accept(&names("gadgets", "Gadget", &["g"]), &Names::default(), &taken);
        assert_eq!((got, conflict), (names("gadgets", "Gadget", &["g"]), None));
        let (got, conflict) = accept(&names("gadgets", "Widget", &["w"]), &Names::default(), &taken);
        assert_eq!(got, names("gadgets", "", &[]));
        assert_eq!(conflict, Some(("ShortNamesConflict", "\"w\" is already in use".to_owned())));
        let (_, conflict) = accept(&names("gadgets", "Widget", &[]), &Names::default(), &taken);
        assert_eq!(conflict, Some(("KindConflict", "\"Widget\" is already in use".to_owned())));
        let (_, conflict) =
            accept(&names("ingresses", "Mine", &[]), &Names::default(), &Taken::built_in("networking.k8s.io"));
        assert_eq!(conflict, Some(("PluralConflict", "\"ingresses\" is already in use".to_owned())));
        // What is one's own is no conflict.
        let own = names("gadgets", "Gadget", &["g"]);
        assert_eq!(accept(&own, &own, &taken).1, None);
    }

    #[test]
    fn the_time_of_a_condition_changes_with_its_status() {
        let mut status = json!({});
        set(&mut status, "Established", false, "A", "", "1");
        set(&mut status, "Established", false, "B", "", "2");
        assert_eq!(status["conditions"][0]["lastTransitionTime"], "1");
        set(&mut status, "Established", true, "C", "", "3");
        assert_eq!(status["conditions"][0]["lastTransitionTime"], "3");
        assert!(is_true(&status, "Established"));
    }
}
