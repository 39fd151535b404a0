//! Nodes bring their status when they register.

use super::Rules;

pub struct Nodes;

impl Rules for Nodes {
    fn status_on_create(&self) -> bool {
        true
    }
}
