//! Consumer groups.

/// Keeps all groups.
#[derive(Debug)]
pub struct Coordinator;
