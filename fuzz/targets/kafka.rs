//! Requests to every Kafka API, several on their way at once, to one broker: see the library.
#![no_main]

use std::sync::{Mutex, PoisonError};

use libfuzzer_sys::fuzz_target;
use millrace_fuzz::Stage;

/// What clients leave behind is cleared away after so many inputs.
const INPUTS: u32 = 1000;

/// How many inputs it has seen, and the stage. Never dropped: libFuzzer ends in the middle of it.
static STAGE: Mutex<(u32, Option<Stage>)> = Mutex::new((0, None));

fuzz_target!(|input: &[u8]| {
    let mut guard = STAGE.lock().unwrap_or_else(PoisonError::into_inner);
    let (inputs, stage) = &mut *guard;
    *inputs += 1;
    if *inputs % INPUTS == 0 {
        *stage = None;
    }
    stage.get_or_insert_with(Stage::set).play(input);
});
