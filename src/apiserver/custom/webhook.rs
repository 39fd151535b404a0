//! Conversion by a webhook.

use mussel_api::custom::{Custom, WebhookConversion};
use serde_json::Value;

use crate::Context;
use crate::status::Status;

pub async fn convert(
    _context: &Context,
    custom: &Custom,
    _hook: &WebhookConversion,
    _api_version: &str,
    _objects: Vec<Value>,
) -> Result<Vec<Value>, Status> {
    let kind = &custom.definition.names.kind;
    Err(Status::internal(format_args!("conversion webhook for {kind} is not there yet")))
}
