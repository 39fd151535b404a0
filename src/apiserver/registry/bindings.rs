//! Binding a pod to a node: `pods/binding`, and the older `bindings`.

use http::StatusCode;
use mussel_api::field::{FieldError, Path};
use mussel_api::object::ObjectExt;
use mussel_store::{Freshness, Txn};
use serde_json::{Value, json};

use super::body::{self, Expected};
use super::call::{Call, definition};
use super::negotiate;
use super::options::WriteOptions;
use super::strategy::pods::set_condition;
use super::write::now;
use crate::handler::Response;
use crate::status::Status;

/// `name` is the pod's, when the path has it.
pub async fn create(call: &Call<'_>, name: Option<&str>) -> Result<Response, Status> {
    let request = call.request;
    let options = WriteOptions::of(request, "CreateOptions")?;
    let schema = definition("io.k8s.api.core.v1.Binding")?;
    let expected = Expected { api_version: "v1".to_owned(), kind: "Binding", schema: &schema, custom: None };
    let format = body::format(&request.headers)?;
    let mut binding = body::decode(&request.body, format, &expected, options.strictness, &request.warnings)?;
    let subresource = if name.is_some() { "binding" } else { "" };
    let name = name.map_or_else(|| binding.name().to_owned(), str::to_owned);
    let name = name.as_str();
    if !binding.name().is_empty() && binding.name() != name {
        return Err(Status::bad_request("name in URL does not match name in Binding object"));
    }
    let view = call.view(Freshness::Linearizable).await?;
    call.pass(name, subresource, options.dry_run, &schema, &view, &mut binding).await?;
    let target = &binding["target"];
    let node = target["name"].as_str().unwrap_or_default();
    let mut errors = Vec::new();
    let kind = target["kind"].as_str().unwrap_or_default();
    if !kind.is_empty() && kind != "Node" {
        errors.push(FieldError::not_supported(&Path::new("target").child("kind"), kind, &["Node", "<empty>"]));
    }
    if node.is_empty() {
        errors.push(FieldError::required(&Path::new("target").child("name"), ""));
    }
    if !errors.is_empty() {
        return Err(Status::invalid("", "Binding", name, &errors));
    }

    let pods = call.on("", "v1", "pods")?;
    loop {
        let view = pods.view(Freshness::Linearizable).await?;
        let current = pods.find(&view, name).await?.ok_or_else(|| pods.not_found(name))?;
        let mut pod = current.object;
        let refuse = |why: String| Err(Status::conflict("", "pods/binding", name, &why));
        if !binding.uid().is_empty() && binding.uid() != pod.uid() {
            let why = format!(
                "Precondition failed: UID in precondition: {}, UID in object meta: {}",
                binding.uid(),
                pod.uid()
            );
            return refuse(why);
        }
        let version = binding.resource_version();
        if !version.is_empty() && version != pod.resource_version() {
            return refuse(format!(
                "Precondition failed: ResourceVersion in precondition: {version}, ResourceVersion in object meta: {}",
                pod.resource_version()
            ));
        }
        if pod.is_deleting() {
            return refuse(format!("pod {name} is being deleted, cannot be assigned to a host"));
        }
        if !pod.str_at("spec.nodeName").is_empty() {
            return refuse(format!("pod {name} is already assigned to node {:?}", pod.str_at("spec.nodeName")));
        }
        if pod["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
            return refuse(format!("pod {name} has non-empty .spec.schedulingGates"));
        }
        pod["spec"]["nodeName"] = node.into();
        for field in ["annotations", "labels"] {
            for (key, value) in binding["metadata"][field].as_object().into_iter().flatten() {
                if !pod["metadata"][field].is_object() {
                    pod["metadata"][field] = json!({});
                }
                pod["metadata"][field][key] = value.clone();
            }
        }
        set_condition(
            &mut pod,
            json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now()}),
        );
        if options.dry_run || pods.replace(name, current.revision, &pod, Txn::default()).await?.is_some() {
            let status: Value =
                json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
            return negotiate::respond(StatusCode::CREATED, call.form, &status);
        }
    }
}
