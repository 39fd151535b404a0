//! The way of every write: default, prepare, track, admit, validate, reserve, commit; again when somebody else was faster.

use bytes::Bytes;
use futures::future::BoxFuture;
use mussel_api::apply::{self, Manager, Operation};
use mussel_api::custom;
use mussel_api::field::FieldErrors;
use mussel_api::object::{self, ObjectExt};
use mussel_api::validation::{self, NameRule};
use mussel_store::{CommitError, Freshness, Precondition, Revision, Txn};
use serde_json::{Value, json};

use super::call::{Call, Current};
use super::names;
use super::options::{WriteOptions, write_options};
use super::view::View;
use crate::admission::{self, Attributes, Face};
use crate::status::Status;

/// How often a write is tried again after another one got between its read and its commit.
pub const ATTEMPTS_MAX: usize = 16;

/// How many names are made up before giving up; upstream's number.
const NAMES_MAX: usize = 8;

/// The part of an object that a write is about: all of it, its status, its scale.
pub trait Part: Sync {
    /// Empty for the object itself.
    fn subresource(&self) -> &'static str;

    /// Puts back what this part may not change, and sets what follows from the change.
    fn prepare(&self, write: &Write<'_>, new: &mut Value, old: &Value) -> Result<(), Status>;

    fn validate(&self, write: &Write<'_>, new: &Value, old: &Value) -> FieldErrors;

    /// The form in which webhooks and policies see the object, when it is another.
    fn face(&self) -> Option<&dyn Face> {
        None
    }

    /// May this user make this change, beyond what RBAC says of the request?
    fn authorize<'a>(
        &'a self,
        _write: &'a Write<'_>,
        _new: &'a Value,
        _old: &'a Value,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// What the rules of a kind get to see of the write they are asked about.
pub struct Write<'a> {
    pub call: &'a Call<'a>,
    pub view: &'a View,
    pub dry_run: bool,
}

/// What a request makes of the current object.
pub struct Made {
    pub object: Value,
    /// Server-side apply has settled the managed fields.
    pub tracked: bool,
    /// Made of the current object: the version in it is that object's, and not one that the client insists on.
    pub patched: bool,
}

impl Made {
    pub fn plain(object: Value) -> Self {
        Self { object, tracked: false, patched: false }
    }

    pub fn patched(object: Value) -> Self {
        Self { object, tracked: false, patched: true }
    }
}

/// The object itself.
pub struct Main;

impl Part for Main {
    fn subresource(&self) -> &'static str {
        ""
    }

    fn prepare(&self, write: &Write<'_>, new: &mut Value, old: &Value) -> Result<(), Status> {
        if write.call.resource.strategy.has_status {
            set(new, "status", old.get("status"));
        }
        write.call.rules.prepare_update(write, new, old)
    }

    fn validate(&self, write: &Write<'_>, new: &Value, old: &Value) -> FieldErrors {
        (write.call.resource.strategy.validate_update)(new, old)
    }

    fn authorize<'a>(
        &'a self,
        write: &'a Write<'_>,
        new: &'a Value,
        old: &'a Value,
    ) -> BoxFuture<'a, Result<(), Status>> {
        write.call.rules.authorize(write, new, Some(old))
    }
}

/// `…/status`.
pub struct StatusPart;

impl Part for StatusPart {
    fn subresource(&self) -> &'static str {
        "status"
    }

    fn prepare(&self, write: &Write<'_>, new: &mut Value, old: &Value) -> Result<(), Status> {
        keep_all_but(new, old, &["status"]);
        write.call.rules.prepare_status(write, new, old)
    }

    fn validate(&self, write: &Write<'_>, new: &Value, old: &Value) -> FieldErrors {
        (write.call.resource.strategy.validate_status)(new, old)
    }

    fn authorize<'a>(
        &'a self,
        write: &'a Write<'_>,
        new: &'a Value,
        old: &'a Value,
    ) -> BoxFuture<'a, Result<(), Status>> {
        write.call.rules.authorize_status(write, new, old)
    }
}

/// Takes everything but metadata and these fields from `old`.
pub fn keep_all_but(new: &mut Value, old: &Value, fields: &[&str]) {
    let mut kept = old.clone();
    for field in std::iter::once(&"metadata").chain(fields) {
        let value = new.get(*field).cloned();
        set(&mut kept, field, value.as_ref());
    }
    *new = kept;
}

/// Sets or removes a field.
pub fn set(object: &mut Value, field: &str, value: Option<&Value>) {
    if let Some(map) = object.as_object_mut() {
        match value {
            Some(value) => map.insert(field.to_owned(), value.clone()),
            None => map.remove(field),
        };
    }
}

/// RFC 3339 in whole seconds: the form of `metav1.Time`.
pub fn now() -> String {
    time_text(jiff::Timestamp::now())
}

pub fn time_text(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

impl Call<'_> {
    fn manager<'m>(
        &'m self,
        options: &'m WriteOptions,
        operation: Operation,
        api_version: &'m str,
        part: &'m str,
    ) -> Manager<'m> {
        Manager {
            name: &options.field_manager,
            operation,
            api_version,
            subresource: part,
            time: jiff::Timestamp::now(),
        }
    }

    /// Creates `object`, which has been decoded and defaulted by nobody yet.
    pub async fn create(&self, object: Made, options: &WriteOptions) -> Result<Value, Status> {
        let Made { mut object, tracked, .. } = object;
        self.fit_namespace(&mut object)?;
        if !object.resource_version().is_empty() && object.resource_version() != "0" {
            return Err(Status::new(500, "", "resourceVersion should not be set on objects to be created"));
        }
        let generates = object.name().is_empty() && !object.meta_str("generateName").is_empty();
        if generates && self.request.info.name.is_empty() {
            for _ in 0..NAMES_MAX {
                let mut named = object.clone();
                let name = names::generate(object.meta_str("generateName"));
                named.meta_mut().insert("name".to_owned(), name.as_str().into());
                match self.create_named(named, tracked, true, options).await {
                    Err(status) if status.reason == "AlreadyExists" => {}
                    done => return done,
                }
            }
            let (group, plural) = (&self.resource.group, &self.resource.plural);
            return Err(Status::generate_name_conflict(group, plural, object.meta_str("generateName")));
        }
        self.create_named(object, tracked, false, options).await
    }

    async fn create_named(
        &self,
        object: Value,
        tracked: bool,
        generated: bool,
        options: &WriteOptions,
    ) -> Result<Value, Status> {
        let mut in_turn = None;
        // What webhooks and policies have let pass, once they were asked. Nobody is asked while others wait for their turn.
        let mut admitted: Option<Value> = None;
        for _ in 0..ATTEMPTS_MAX {
            let mut new = object.clone();
            let view = self.view(Freshness::Linearizable).await?;
            let write = Write { call: self, view: &view, dry_run: options.dry_run };
            let name = new.name().to_owned();

            let system = new.meta_mut();
            for field in
                ["resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation"]
            {
                system.remove(field);
            }
            system.insert("uid".to_owned(), uuid::Uuid::new_v4().to_string().into());
            system.insert("creationTimestamp".to_owned(), now().into());

            let strategy = &self.resource.strategy;
            self.default(&mut new);
            if strategy.has_status && !self.rules.status_on_create() {
                new["status"] = json!({});
            }
            self.rules.prepare_create(&write, &mut new)?;
            if !tracked {
                let api_version = self.resource.api_version();
                let manager = self.manager(options, Operation::Update, &api_version, "");
                apply::track_update_resetting(None, &mut new, &manager, self.schema(), self.reset(""));
            }

            let attributes = Attributes {
                operation: admission::Operation::Create,
                resource: &self.resource,
                stored_as: &self.stored_as,
                subresource: "",
                namespace: &self.namespace,
                name: &name,
                user: &self.request.user,
                dry_run: options.dry_run,
                old: None,
                view: &view,
                warnings: &self.request.warnings,
                config: &self.context.config,
                context: self.context,
                schema: Some(self.schema()),
                options: &|| write_options(&self.request.query, "CreateOptions"),
                generated,
                is_virtual: false,
                face: None,
            };
            let mut asked = false;
            match &admitted {
                Some(object) => new = object.clone(),
                None => {
                    asked = self.registry.admission.mutate(&attributes, &mut new).await?;
                    self.fit_namespace(&mut new)?;
                }
            }
            // A webhook may choose it.
            let name = new.name().to_owned();
            self.default_again(&mut new)?;
            if strategy.has_generation {
                new.meta_mut().insert("generation".to_owned(), 1.into());
            }
            self.rules.finish(&write, &mut new, None)?;

            // An object that exists is reported as such, whatever else is wrong with the request.
            if !name.is_empty() && view.snapshot().get(&self.key(&name)).is_some() {
                return Err(self.already_exists(&name));
            }
            let mut errors = self.meta_create_errors(&new);
            errors.extend((strategy.validate_create)(&new));
            errors.extend(self.rules.validate(&write, &new, None));
            if !errors.is_empty() {
                return Err(self.invalid(&name, &errors));
            }
            let mut txn = Txn::default();
            let key = self.key(&name);
            txn.preconditions.push(Precondition::Absent(key.clone()));
            txn.preconditions.extend(self.definition_holds());
            let own = txn.preconditions.len();
            if let Err(status) = self.rules.reserve(&write, &mut new, None, &mut txn) {
                // What the admitted object was given is somebody else's by now: from the beginning.
                if admitted.take().is_some() {
                    in_turn = None;
                    continue;
                }
                return Err(status);
            }
            self.rules.authorize(&write, &new, None).await?;
            if admitted.is_none() {
                asked |= self.registry.admission.validate(&attributes, Some(&new)).await?;
                admitted = asked.then(|| new.clone());
            }

            if options.dry_run {
                return Ok(new);
            }
            self.registry.admission.reserve(&attributes, &new, &mut txn)?;
            if txn.preconditions.len() > own && in_turn.is_none() {
                // What is to be taken is shared. Taken in turn, on the newest state, it is taken at the first try; only
                // other servers can still be faster.
                in_turn = Some(self.registry.reservations.lock().await);
                continue;
            }
            let stored = self.encode(&new).await?;
            txn.puts.push((key, stored.clone()));
            match self.context.store.commit(txn).await {
                Ok(revision) => return self.as_stored(new, &stored, revision).await,
                Err(CommitError::Refused { index: 0, .. }) => return Err(self.already_exists(&name)),
                Err(CommitError::Refused { index: 1, .. }) if own > 1 => return Err(self.outdated()),
                // Somebody else took what was reserved.
                Err(CommitError::Refused { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(self.server_timeout("create"))
    }

    /// Changes one part of the object of this name. `make` is given the current object, and again a newer one when
    /// another write was faster; with `None` when there is no object, for requests that may create it.
    pub async fn change<F>(
        &self,
        name: &str,
        part: &dyn Part,
        options: &WriteOptions,
        creates: bool,
        mut make: F,
    ) -> Result<(Value, bool), Status>
    where
        F: FnMut(Option<&Value>) -> Result<Made, Status> + Send,
    {
        for _ in 0..ATTEMPTS_MAX {
            let view = self.view(Freshness::Linearizable).await?;
            let Some(current) = self.find(&view, name).await? else {
                if !creates {
                    return Err(self.not_found(name));
                }
                let mut made = make(None)?;
                if !made.object.uid().is_empty() {
                    let why = format!(
                        "Precondition failed: UID in precondition: {}, UID in object meta: ",
                        made.object.uid()
                    );
                    return Err(self.conflict(name, &why));
                }
                let version = made.object.resource_version();
                if !version.is_empty() && version != "0" {
                    return Err(self.not_found(name));
                }
                made.object.meta_mut().insert("name".to_owned(), name.into());
                match self.create(made, options).await {
                    Err(status) if status.reason == "AlreadyExists" => continue,
                    done => return done.map(|object| (object, true)),
                }
            };
            let made = make(Some(&current.object))?;
            if let Some(object) = self.change_once(name, part, options, &view, current, made).await? {
                return Ok((object, false));
            }
        }
        Err(self.server_timeout("update"))
    }

    /// `None` when another write was faster and this one did not insist on a version.
    async fn change_once(
        &self,
        name: &str,
        part: &dyn Part,
        options: &WriteOptions,
        view: &View,
        current: Current,
        made: Made,
    ) -> Result<Option<Value>, Status> {
        let Current { object: old, revision, stale } = current;
        let Made { object: mut new, tracked, patched } = made;
        let write = Write { call: self, view, dry_run: options.dry_run };
        self.fit_namespace(&mut new)?;

        let wanted = new.resource_version();
        let versioned = !wanted.is_empty() && wanted != "0";
        if versioned && wanted != old.resource_version() {
            return Err(self.modified(name));
        }
        // A patch that names the version meets the check above again when it is tried again.
        let insists = versioned && !patched;
        if !versioned && part.subresource().is_empty() && !self.rules.allows_unconditional_update() {
            let path = mussel_api::field::Path::new("metadata").child("resourceVersion");
            let error = mussel_api::field::FieldError::invalid(&path, 0, "must be specified for an update");
            return Err(self.invalid(name, &vec![error]));
        }
        if !new.uid().is_empty() && new.uid() != old.uid() {
            let why =
                format!("Precondition failed: UID in precondition: {}, UID in object meta: {}", new.uid(), old.uid());
            return Err(self.conflict(name, &why));
        }
        let system = new.meta_mut();
        for field in
            ["uid", "creationTimestamp", "generation", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"]
        {
            match old["metadata"].get(field) {
                Some(value) => system.insert(field.to_owned(), value.clone()),
                None => system.remove(field),
            };
        }
        system.insert("resourceVersion".to_owned(), old.resource_version().into());
        new["apiVersion"] = old["apiVersion"].clone();
        new["kind"] = old["kind"].clone();

        let strategy = &self.resource.strategy;
        self.default(&mut new);
        part.prepare(&write, &mut new, &old)?;
        if !tracked {
            let api_version = self.resource.api_version();
            let manager = self.manager(options, Operation::Update, &api_version, part.subresource());
            apply::track_update_resetting(
                Some(&old),
                &mut new,
                &manager,
                self.schema(),
                self.reset(part.subresource()),
            );
        }
        let attributes = Attributes {
            operation: admission::Operation::Update,
            resource: &self.resource,
            stored_as: &self.stored_as,
            subresource: part.subresource(),
            namespace: &self.namespace,
            name,
            user: &self.request.user,
            dry_run: options.dry_run,
            old: Some(&old),
            view,
            warnings: &self.request.warnings,
            config: &self.context.config,
            context: self.context,
            schema: Some(self.schema()),
            options: &|| write_options(&self.request.query, "UpdateOptions"),
            generated: false,
            is_virtual: false,
            face: part.face(),
        };
        self.registry.admission.mutate(&attributes, &mut new).await?;
        self.fit_namespace(&mut new)?;
        self.default_again(&mut new)?;
        if strategy.has_generation && part.subresource() != "status" && self.rules.counts_as_change(&new, &old) {
            new.meta_mut().insert("generation".to_owned(), (old.generation() + 1).into());
        }
        self.rules.finish(&write, &mut new, Some(&old))?;

        let mut errors = validation::meta_update(&new, &old);
        errors.extend(part.validate(&write, &new, &old));
        if part.subresource().is_empty() || self.resource.custom.is_some() {
            errors.extend(self.rules.validate(&write, &new, Some(&old)));
        }
        if !errors.is_empty() {
            return Err(self.invalid(name, &errors));
        }
        let key = self.key(name);
        let mut txn = Txn::default();
        txn.preconditions.push(Precondition::At(key.clone(), revision));
        txn.preconditions.extend(self.definition_holds());
        let is_custom = txn.preconditions.len() > 1;
        if part.subresource().is_empty() {
            self.rules.reserve(&write, &mut new, Some(&old), &mut txn)?;
        }
        part.authorize(&write, &new, &old).await?;
        self.registry.admission.validate(&attributes, Some(&new)).await?;

        // Written although nothing changes when that brings it to another key: so are objects migrated, also by hand.
        if options.dry_run || (new == old && !stale) {
            return Ok(Some(new));
        }
        let ends = self.rules.ends(&new, &old);
        let mut stored = Bytes::new();
        if ends {
            self.rules.release(&old, &mut txn);
            txn.deletes.push(key);
        } else {
            stored = self.encode(&new).await?;
            txn.puts.push((key, stored.clone()));
        }
        let own = txn.preconditions.len();
        self.registry.admission.reserve(&attributes, &new, &mut txn)?;
        match self.context.store.commit(txn).await {
            Ok(revision) if ends => Ok(Some(at(new, revision))),
            Ok(revision) => self.as_stored(new, &stored, revision).await.map(Some),
            Err(CommitError::Refused { index: 0, current: None }) => Err(self.not_found(name)),
            Err(CommitError::Refused { index: 1, .. }) if is_custom => Err(self.outdated()),
            // A quota was used meanwhile, not this object.
            Err(CommitError::Refused { index, .. }) if index >= own => Ok(None),
            Err(CommitError::Refused { .. }) if insists => Err(self.modified(name)),
            Err(CommitError::Refused { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Commits a change of our own making: no admission, no validation, no tracking. `None`: try again.
    pub async fn replace(
        &self,
        name: &str,
        revision: Revision,
        new: &Value,
        extra: Txn,
    ) -> Result<Option<Value>, Status> {
        let key = self.key(name);
        let mut txn = extra;
        txn.preconditions.insert(0, Precondition::At(key.clone(), revision));
        txn.puts.push((key, self.encode(new).await?));
        match self.context.store.commit(txn).await {
            Ok(revision) => Ok(Some(at(new.clone(), revision))),
            Err(CommitError::Refused { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes the object if it is still at `revision`. `false`: try again.
    pub async fn remove(&self, old: &Value, revision: Revision) -> Result<Option<Revision>, Status> {
        let key: Bytes = self.key(old.name());
        let mut txn = Txn { preconditions: vec![Precondition::At(key.clone(), revision)], ..Txn::default() };
        self.rules.release(old, &mut txn);
        txn.deletes.push(key);
        match self.context.store.commit(txn).await {
            Ok(revision) => Ok(Some(revision)),
            Err(CommitError::Refused { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// What a write of this part leaves as it is, so that nobody comes to own it by such a write.
    pub fn reset(&self, subresource: &str) -> &'static [&'static [&'static str]] {
        match subresource {
            "status" => &[&["spec"]],
            "" if self.resource.custom.is_some() && !self.resource.strategy.has_status => &[],
            _ => &[&["status"]],
        }
    }

    /// Fills in what the kind has defaults for.
    fn default(&self, object: &mut Value) {
        match &self.resource.custom {
            Some(custom) => custom::default(object, &custom.compiled().props),
            None => (self.resource.strategy.default)(object),
        }
    }

    /// The same after admission, which may have added what a custom kind does not know.
    fn default_again(&self, object: &mut Value) -> Result<(), Status> {
        if let Some(custom) = &self.resource.custom {
            custom::coerce(object, &custom.compiled().props).map_err(Status::internal)?;
        }
        self.default(object);
        Ok(())
    }

    /// The object as it is read from now on: on its way through the stored version a custom one may lose what that
    /// version does not know.
    async fn as_stored(&self, new: Value, stored: &[u8], revision: Revision) -> Result<Value, Status> {
        match self.resource.custom.as_ref().filter(|custom| !custom.is_storage()) {
            Some(custom) => {
                let object = object::decode(stored, revision.0).map_err(Status::internal)?;
                Ok(crate::custom::convert::served(self.context, custom, vec![object]).await?.remove(0))
            }
            None => Ok(at(new, revision)),
        }
    }

    /// The object's namespace is that of the request.
    fn fit_namespace(&self, object: &mut Value) -> Result<(), Status> {
        if self.namespace.is_empty() {
            object.meta_mut().remove("namespace");
            return Ok(());
        }
        match object.namespace() {
            "" => {
                object.meta_mut().insert("namespace".to_owned(), self.namespace.as_str().into());
                Ok(())
            }
            same if same == self.namespace => Ok(()),
            _ => Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            )),
        }
    }

    fn meta_create_errors(&self, new: &Value) -> FieldErrors {
        let rule = NameRule::of(&self.resource.group, &self.resource.kind);
        validation::meta_create(new, self.resource.namespaced, rule)
    }

    fn already_exists(&self, name: &str) -> Status {
        Status::already_exists(&self.resource.group, &self.resource.plural, name)
    }

    pub fn server_timeout(&self, operation: &str) -> Status {
        Status::server_timeout(&self.resource.group, &self.resource.plural, operation)
    }
}

/// The object as the commit left it.
pub fn at(mut object: Value, revision: Revision) -> Value {
    object.meta_mut().insert("resourceVersion".to_owned(), revision.0.to_string().into());
    object
}
