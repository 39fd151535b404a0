//! mussel-cri
