//! mussel-cluster
