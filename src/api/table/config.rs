//! Configuration that pods use: config maps, secrets, service accounts.

use super::age;
use super::column::{AGE, NAME, Printer, integer, text as column};
use super::text;
use crate::object::ObjectExt;

pub(super) fn printer(kind: &str) -> Option<&'static Printer> {
    Some(match kind {
        "ConfigMap" => &CONFIG_MAP,
        "Secret" => &SECRET,
        "ServiceAccount" => &SERVICE_ACCOUNT,
        _ => return None,
    })
}

static CONFIG_MAP: Printer = Printer {
    columns: &[NAME, integer("Data", "How many entries there are."), AGE],
    cells: |object, now| {
        let entries = text::len(object, "data") + text::len(object, "binaryData");
        vec![text::name(object), entries.into(), age::of(object, now)]
    },
};

static SECRET: Printer = Printer {
    columns: &[NAME, column("Type", "What the secret is for."), integer("Data", "How many entries there are."), AGE],
    cells: |object, now| {
        vec![text::name(object), object.str_at("type").into(), text::len(object, "data").into(), age::of(object, now)]
    },
};

static SERVICE_ACCOUNT: Printer = Printer {
    columns: &[NAME, integer("Secrets", "How many secrets are listed."), AGE],
    cells: |object, now| vec![text::name(object), text::len(object, "secrets").into(), age::of(object, now)],
};
