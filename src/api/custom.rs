//! Custom kinds: what a CustomResourceDefinition says, in the form that requests need it.
//!
//! A [`Definition`] is what one version of a CRD's spec comes to. It is shared by all that work with it and never changes; a
//! changed spec makes a new one. A [`Custom`] is one of its versions, as a row of the resources ([`crate::resource::Resource`])
//! carries it. The schema, which is most of a CRD, is parsed at the first use of an object of the kind and not before
//! ([`Compiled`]): a cluster with hundreds of CRDs uses few of them, and the text is in the store anyway.
//!
//! The way of an object through these functions: `decode` (`crate::decode`), [`coerce`] (metadata and pruning), [`default`],
//! [`validate`]; and for one that comes from the store the same without validation. All are pure.

mod coerce;
mod columns;
mod default;
mod definition;
mod format;
mod jsonpath;
mod lists;
mod pattern;
mod props;
mod rows;
mod scale;
mod validate;

use std::any::Any;
use std::fmt;
use std::sync::{Arc, OnceLock};

use serde_json::Value;

pub use self::coerce::{Coerced, coerce};
pub(crate) use self::coerce::{any_object, coerce_part};
pub use self::columns::{Column, definitions as column_definitions, row};
pub use self::default::default;
pub use self::definition::{Conversion, Definition, DefinitionError, Names, ServedVersion, WebhookConversion};
pub use self::jsonpath::{JsonPath, JsonPathError, select_simple, simple};
pub use self::pattern::Pattern;
pub use self::props::{Additional, Props, PropsError};
pub use self::rows::rows;
pub use self::scale::{ScalePaths, scale_of, with_replicas};
pub(crate) use self::validate::against as validate_part;
pub use self::validate::{validate, validate_update};

use crate::schema::Schema;

/// One version of a custom kind.
#[derive(Clone)]
pub struct Custom {
    pub definition: Arc<Definition>,
    /// Of the version in [`Definition::versions`].
    pub index: usize,
    /// The revision of the CRD object: a write of an object of the kind holds only as long as the CRD is at it.
    pub revision: u64,
    /// The CRD is being deleted: nothing new is created.
    pub terminating: bool,
}

/// What is made of a version's schema.
pub struct Compiled {
    pub props: Props,
    /// For server-side apply.
    pub schema: Schema,
    /// What the API server makes of the schema's rules in CEL, of which this crate knows nothing. Made at the first use.
    pub rules: OnceLock<Box<dyn Any + Send + Sync>>,
}

impl Custom {
    pub fn version(&self) -> &ServedVersion {
        &self.definition.versions[self.index]
    }

    /// `example.com/v1`
    pub fn api_version(&self) -> &str {
        &self.version().api_version
    }

    pub fn storage(&self) -> &ServedVersion {
        &self.definition.versions[self.definition.storage]
    }

    pub fn is_storage(&self) -> bool {
        self.index == self.definition.storage
    }

    /// The version that an object is in, by its `apiVersion`.
    pub fn index_of(&self, object: &Value) -> Option<usize> {
        let api_version = object["apiVersion"].as_str()?;
        self.definition.versions.iter().position(|version| version.api_version == api_version)
    }

    /// Whether a stored object is already as this version serves it: written in it, and since its schema is what it is.
    pub fn is_current(&self, stored: &[u8], revision: u64) -> bool {
        let prefix = self.version().stored_prefix.as_bytes();
        revision > self.definition.since && stored.starts_with(prefix)
    }

    /// The schema, parsed.
    pub fn compiled(&self) -> &Compiled {
        self.definition.compiled(self.index)
    }

    /// The value of a field that selectors may name.
    pub fn select_field(&self, object: &Value, field: &str) -> Option<String> {
        let known = self.version().selectable.iter().any(|path| path.strip_prefix('.') == Some(field));
        known.then(|| match select_simple(object, field) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
        })
    }
}

impl fmt::Debug for Custom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Custom({} {})", self.definition.name, self.api_version())
    }
}

/// Made at the first use, kept from then on.
#[derive(Default)]
struct Lazy(OnceLock<Box<Compiled>>);

impl Lazy {
    fn get(&self, make: impl FnOnce() -> Compiled) -> &Compiled {
        self.0.get_or_init(|| Box::new(make()))
    }
}

#[cfg(test)]
mod tests;
