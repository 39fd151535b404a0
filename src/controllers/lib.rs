//! mussel-controllers
