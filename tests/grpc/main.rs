//! The gRPC front end of the real binary, with the generated client.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a step that fails is a test that fails")]

mod calls;
mod credit;
mod ending;
mod groups;
mod hostile;
mod port;
mod stage;
mod starts;
