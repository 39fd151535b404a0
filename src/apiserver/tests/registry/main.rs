//! The registry at its wall: requests of every verb against a real store, in process.

mod admission;
mod custom;
mod deletion;
mod encryption;
// Parts of it are for other tests.
#[allow(dead_code)]
mod hook_server;
mod listing;
mod objects;
mod patching;
mod pods;
mod services;
mod support;
mod tokens;
mod watching;
