//! Webhooks and policies are asked about connections, too: the options of the request are what they see.

use mussel_store::Freshness;
use serde_json::{Value, json};

use crate::admission::Operation;
use crate::api_server::Inner;
use crate::handler::{Query, RequestInfo, UserInfo, Warnings};
use crate::registry::passing::Passing;
use crate::registry::view::View;
use crate::status::Status;

/// Asks about a connection that the user is authorized to open.
///
/// # Errors
/// The refusal of a webhook or policy.
pub async fn admit(
    server: &Inner,
    info: &RequestInfo,
    query: &Query,
    user: &UserInfo,
    warnings: &Warnings,
) -> Result<(), Status> {
    let resource = server.context.catalog.by_plural(&info.group, &info.version, &info.resource);
    let resource = resource.ok_or_else(Status::unknown_resource)?;
    let kind = resource.subresource(&info.subresource).and_then(|subresource| subresource.kind);
    let Some((_, _, kind)) = kind else { return Ok(()) };
    let view = View::new(server.context.store.snapshot(Freshness::Linearizable).await?);
    let passing = Passing {
        operation: Operation::Connect,
        resource: &resource,
        subresource: &info.subresource,
        namespace: &info.namespace,
        name: &info.name,
        user,
        dry_run: false,
        warnings,
        schema: None,
        options: &|| Value::Null,
    };
    server.registry.pass(&passing, &view, &mut options(info, query, kind)).await
}

/// The query as an object of the given kind.
fn options(info: &RequestInfo, query: &Query, kind: &str) -> Value {
    let mut options = json!({"kind": kind, "apiVersion": "v1"});
    match info.subresource.as_str() {
        "exec" | "attach" => {
            for field in ["stdin", "stdout", "stderr", "tty"] {
                if query.is_true(field) {
                    options[field] = true.into();
                }
            }
            if let Some(container) = query.get("container").filter(|name| !name.is_empty()) {
                options["container"] = container.into();
            }
            let command: Vec<Value> = query.all("command").map(Value::from).collect();
            if !command.is_empty() {
                options["command"] = command.into();
            }
        }
        "portforward" => {
            let ports = query.all("ports").flat_map(|list| list.split(','));
            let ports: Vec<Value> = ports.filter_map(|port| port.parse::<i64>().ok()).map(Value::from).collect();
            if !ports.is_empty() {
                options["ports"] = ports.into();
            }
        }
        _ => {
            let path = info.path.split_once("/proxy").map_or("", |(_, path)| path);
            if !path.is_empty() {
                options["path"] = path.into();
            }
        }
    }
    options
}
