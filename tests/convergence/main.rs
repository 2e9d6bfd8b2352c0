//! A random workload runs while Millrace is killed, cut off and restarted, and its source restarts and fails over: the
//! tables that can be made from the topics alone are those of the source (I1, I2, I4, I5).
//!
//! What happens follows from one seed, which is printed; `MILLRACE_TEST_SEED` repeats it. `MILLRACE_TEST_SECONDS` is how
//! long the workload runs.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod failover;
mod rebuild;
mod stage;
mod trouble;
mod workload;
