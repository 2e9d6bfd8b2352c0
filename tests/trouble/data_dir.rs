//! Ports and data directories that cannot be had: exit code 1, by whom they are taken, and the flag that helps.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use millrace_test_support::{Millrace, MillraceOptions, Postgres, PostgresOptions};

use crate::stage::{SmallDisk, refused, says};

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_is_named_with_its_flag_and_nothing_is_touched() {
    let postgres = Postgres::start(PostgresOptions::default()).await;
    let data = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let options = || MillraceOptions::new(data.path(), &postgres.url());
    for (options, what, flag) in [
        (options().kafka_port(port), "Kafka", "--kafka-listen"),
        (options().http_port(port), "HTTP", "--http-listen"),
    ] {
        let (code, output) = refused(options).await;
        assert_eq!(code, 1, "{output}");
        let address = format!("cannot listen on 127.0.0.1:{port} for {what}");
        says(&output, &[&address, "in use", "choose another with", flag]);
    }
    assert_eq!(fs::read_dir(data.path()).unwrap().count(), 0);
    let slots = postgres.client().await.query("SELECT FROM pg_replication_slots", &[]).await.unwrap();
    assert!(slots.is_empty(), "a start that fails leaves no slot behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_in_use_or_of_a_newer_millrace_is_refused() {
    let postgres = Postgres::start(PostgresOptions::default()).await;
    let data = tempfile::tempdir().unwrap();
    let mut millrace = Millrace::up(data.path(), &postgres.url(), &["--task", "first"]).await;
    let second = || MillraceOptions::new(data.path(), &postgres.url()).args(&["--task", "second"]);
    let (code, output) = refused(second()).await;
    assert_eq!(code, 1, "{output}");
    says(&output, &["is in use by another millrace", &format!("(process {})", millrace.pid()), "--data-dir"]);
    assert_eq!(millrace.task().unwrap()["state"], "running", "the first goes on");
    millrace.sigterm();
    assert!(millrace.wait().await.success());

    fs::write(data.path().join("VERSION"), "99\n").unwrap();
    let (code, output) = refused(second()).await;
    assert_eq!(code, 1, "{output}");
    says(&output, &["has format version 99", "use the newer millrace"]);
    fs::write(data.path().join("VERSION"), "1\n").unwrap();
    millrace.spawn_again();
    millrace.wait_ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_that_cannot_be_written_is_refused() {
    let url = "postgres://postgres@127.0.0.1:1/postgres";
    let plain = tempfile::tempdir().unwrap();
    // Nothing keeps root from writing but a file system that is read-only.
    // SAFETY: a plain system call.
    let disk = match unsafe { libc::geteuid() } {
        0 => match SmallDisk::mount("ro,size=1m") {
            Some(disk) => Some(disk),
            None => return,
        },
        _ => None,
    };
    let path = disk.as_ref().map_or(plain.path(), SmallDisk::path);
    if disk.is_none() {
        fs::set_permissions(path, fs::Permissions::from_mode(0o500)).unwrap();
    }
    for data in [path.to_owned(), path.join("deeper")] {
        let (code, output) = refused(MillraceOptions::new(&data, url)).await;
        assert_eq!(code, 1, "{output}");
        says(
            &output,
            &[
                path.to_str().unwrap(),
                "is not writable",
                "give its user write permission or another --data-dir",
            ],
        );
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    let (code, output) = refused(MillraceOptions::new(file.path(), url)).await;
    assert_eq!(code, 1, "{output}");
    says(&output, &[file.path().to_str().unwrap()]);
}
