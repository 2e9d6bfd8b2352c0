//! Small numbers from a seed: the same history for the same seed.

use std::sync::atomic::{AtomicU16, Ordering::Relaxed};

/// The seed of a test: what `MILLRACE_TEST_SEED` says, or one of its own. It is printed.
pub fn seed() -> u64 {
    // Another for each test of a process.
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let given = std::env::var("MILLRACE_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let own = || u64::from(std::process::id()) << 20 | u64::from(NEXT.fetch_add(1, Relaxed));
    let seed = given.unwrap_or_else(own);
    println!("MILLRACE_TEST_SEED={seed}");
    seed
}

/// Small numbers.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The history of `seed`, in one of its parts.
    pub fn new(seed: u64, part: u64) -> Self {
        let mixed = (seed ^ part.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        Random(mixed ^ mixed >> 31 | 1)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    /// Whether it happens, once in `n`.
    pub fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of these.
    pub fn of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len() as u64) as usize]
    }
}
