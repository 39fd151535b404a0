//! The registry at its wall: requests of every verb against a real store, in process.

mod admission;
mod custom;
mod deletion;
mod encryption;
mod listing;
mod objects;
mod patching;
mod pods;
mod services;
mod support;
mod tokens;
mod watching;
