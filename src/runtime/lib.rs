//! mussel-runtime
