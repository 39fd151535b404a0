//! The command line: which personality the binary takes, and with what.

pub mod args;
pub mod config_file;
