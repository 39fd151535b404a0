//! What members say to each other, and how: our own frames and encodings over a stream that somebody else made safe.
//!
//! A member dials each other member it has something to ask, and keeps the connection: requests go one way, answers come
//! back, many at a time. `hello.rs` settles at the start who talks to whom, and in which version. `frame.rs` cuts the
//! stream into frames, `message.rs` gives them meaning, `link.rs` is the asking end and `serve.rs` the answering one.

pub(crate) mod frame;
pub(crate) mod hello;
pub(crate) mod link;
pub(crate) mod message;
pub(crate) mod serve;
pub(crate) mod transfer;
