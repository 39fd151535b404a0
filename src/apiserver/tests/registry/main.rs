//! The registry at its wall: requests of every verb against a real store, in process.

mod admission;
mod aggregation;
mod custom;
mod custom_admission;
mod deletion;
mod encryption;
mod extension_server;
mod hook_server;
mod listing;
mod objects;
mod patching;
mod pods;
mod policies;
mod services;
mod support;
mod tokens;
mod watching;
mod webhooks;
