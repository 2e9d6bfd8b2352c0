//! What consoles in the browser ask for. What Redpanda Console asks for is among the tests of clients.

use crate::stage::{PARTITIONS, ROWS, Stage, TOPIC};
use crate::tool::{CONSOLE_CONSUMER, run};

#[test]
fn kafka_ui_and_akhq_fill_their_pages() {
    let stage = Stage::start();
    let (bootstrap, all) = (stage.bootstrap(), ROWS.to_string());
    let read_all = ["--from-beginning", "--max-messages", &all, "--group", "readers"];
    run(CONSOLE_CONSUMER, &[&["--bootstrap-server", &bootstrap, "--topic", TOPIC], &read_all[..]].concat());

    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/Consoles.java");
    let directory = stage.data_dir().to_str().unwrap();
    let printed = run(program, &[&bootstrap, TOPIC, &PARTITIONS.to_string(), &all, "readers", directory]);
    printed.assert_has_line("every page is filled");
}
