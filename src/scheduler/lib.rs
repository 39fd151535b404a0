//! mussel-scheduler
