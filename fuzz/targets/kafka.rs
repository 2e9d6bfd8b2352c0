//! Requests to every Kafka API, several on their way at once, to one broker: see the library.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use millrace_fuzz::Stage;

/// What clients leave behind is cleared away after so many inputs.
const INPUTS: u32 = 1000;

thread_local! {
    static STAGE: RefCell<(u32, Option<Stage>)> = const { RefCell::new((0, None)) };
}

fuzz_target!(|input: &[u8]| {
    STAGE.with_borrow_mut(|(inputs, stage)| {
        *inputs += 1;
        if *inputs % INPUTS == 0 {
            *stage = None;
        }
        stage.get_or_insert_with(Stage::set).play(input);
    });
});
