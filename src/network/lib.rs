//! mussel-network
