//! mussel-dns
