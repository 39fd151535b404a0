//! mussel-apiserver
