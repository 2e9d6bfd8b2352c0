//! Tasks: what one is, the states it goes through, and the supervisor that keeps it going.

pub mod definition;
pub mod lifecycle;
pub mod precheck;
pub mod supervisor;

pub use definition::TaskDefinition;
pub use lifecycle::{State, Status};
