//! The configuration file, from the command line to what runs.

#![allow(clippy::unwrap_used, reason = "what fails here is the test")]

use std::fs;
use std::path::{Path, PathBuf};

use millrace_test_support::{Millrace, MillraceOptions};

/// Runs a command that must end by itself, and gives its exit code and all that it printed.
async fn ended(options: MillraceOptions) -> (i32, String) {
    let mut millrace = Millrace::spawn(options);
    let status = millrace.wait().await;
    (status.code().unwrap(), millrace.output())
}

/// A configuration file in a directory.
fn written(directory: &Path, text: &str) -> PathBuf {
    let path = directory.join("millrace.toml");
    fs::write(&path, text).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_ok_or_all_that_is_wrong_with_exit_code_2() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let file = written(directory.path(), "[log]\nsegment_mb = 1\n[kafka]\nlisten = \"127.0.0.1:1\"\n");
    let name = file.to_str().unwrap();
    let check = || MillraceOptions::config("check", &data).args(&["--config", name]);
    assert_eq!(ended(check()).await, (0, "ok\n".to_owned()));
    let show =
        MillraceOptions::config("show", &data).env("MILLRACE_CONFIG", name).env("MILLRACE_LOG_CODEC", "zstd");
    let (code, shown) = ended(show).await;
    assert_eq!(code, 0);
    for line in [
        format!("data_dir = \"{}\"  # --data-dir", data.display()),
        format!("segment_mb = 1  # {name}:2:14"),
        "codec = \"zstd\"  # MILLRACE_LOG_CODEC".to_owned(),
        "retention_hours = 168  # default".to_owned(),
        "# advertise is not set".to_owned(),
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line} is not in\n{shown}");
    }

    written(directory.path(), "[log]\nsegment_mb = 0\ncolour = 1\n");
    let (code, output) = ended(check().env("MILLRACE_LOG_CODEC", "gzip")).await;
    assert_eq!(code, 2);
    let expected = format!(
        "millrace: the settings cannot be used; nothing was started\n\
         {name}:2:14: log.segment_mb: 0 does not fit; write a whole number of MiB from 1 to 4096\n\
         {name}:3:1: log.colour: there is no such setting; there are log.codec, log.segment_mb, log.max_record_mb, \
         log.retention_mb, log.retention_hours\n\
         MILLRACE_LOG_CODEC: \"gzip\" does not fit; write \"none\", \"lz4\" or \"zstd\"\n"
    );
    assert_eq!(output, expected);

    fs::remove_file(&file).unwrap();
    let (code, output) = ended(check()).await;
    assert_eq!(code, 2);
    assert!(output.contains(&format!("cannot read the settings in {name}: No such file")), "{output}");
    assert!(!data.exists(), "a check leaves nothing behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_file_starts_nothing_and_leaves_no_trace() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let file = written(directory.path(), "[kafka]\nlisten = 9092\n");
    let arguments = ["--config", file.to_str().unwrap()];
    for options in
        [MillraceOptions::serve(&data), MillraceOptions::new(&data, "postgres://nobody@127.0.0.1:1/nothing")]
    {
        let (code, output) = ended(options.args(&arguments)).await;
        assert_eq!(code, 2, "{output}");
        assert!(output.contains("kafka.listen: 9092 does not fit; write an address and a port"), "{output}");
        assert!(!data.exists());
    }
}
