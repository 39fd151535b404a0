//! The columns `kubectl get` shows, and their cells, kind by kind as upstream prints them.

mod age;
mod cluster;
mod column;
mod config;
mod extension;
mod network;
mod pod;
mod storage;
mod text;
mod workload;

use jiff::Timestamp;
use serde_json::Value;

pub use self::age::human_duration;
use self::column::{AGE, Column, NAME, Printer};
use crate::custom;
use crate::resource::Resource;

/// `columnDefinitions` of a Table.
pub fn columns(resource: &Resource) -> Value {
    if let Some(custom) = &resource.custom {
        return custom::column_definitions(custom);
    }
    printer(resource).columns.iter().map(Column::definition).collect()
}

/// The cells of one row, one for each column.
pub fn row(resource: &Resource, object: &Value, now: Timestamp) -> Vec<Value> {
    if let Some(custom) = &resource.custom {
        return custom::row(custom, object, now);
    }
    (printer(resource).cells)(object, now)
}

fn printer(resource: &Resource) -> &'static Printer {
    let found = match &*resource.group {
        "" => pod::printer(&resource.kind).or_else(|| cluster::printer(&resource.kind)).or_else(|| {
            let kind = &resource.kind;
            config::printer(kind)
                .or_else(|| network::core(kind))
                .or_else(|| workload::core(kind))
                .or_else(|| storage::core(kind))
        }),
        "apps" | "batch" | "autoscaling" | "policy" => workload::printer(&resource.kind),
        "networking.k8s.io" | "discovery.k8s.io" => network::printer(&resource.kind),
        "storage.k8s.io" => storage::printer(&resource.kind),
        "events.k8s.io" => cluster::printer(&resource.kind),
        group => extension::printer(group, &resource.kind),
    };
    found.unwrap_or(&Printer {
        columns: &[NAME, AGE],
        cells: |object, now| vec![text::name(object), age::of(object, now)],
    })
}

/// The columns that every kind has.
pub(crate) fn name_and_age() -> [Value; 2] {
    [NAME.definition(), AGE.definition()]
}

/// A point in time as the age column shows it.
pub(crate) fn age(time: &str, now: Timestamp) -> String {
    age::since(time, now)
}

#[cfg(test)]
mod tests;
