//! The workload, and everything that can come between Millrace and its source short of a failover.

use std::time::{Duration, Instant};

use millrace_test_support::{Postgres, Random, seed};
use tokio::time::sleep;

use crate::stage::{Begin, Stage, newest, options, run_time};
use crate::workload::{Load, TABLES, connect};

/// How often the workload pauses for a comparison.
const ROUNDS: u32 = 2;

#[tokio::test(flavor = "multi_thread")]
async fn tables_rebuilt_from_the_topics_are_those_of_the_source() {
    converge(Postgres::start(options()).await).await;
}

/// A second version, where the environment does not ask for one: the newest.
#[tokio::test(flavor = "multi_thread")]
async fn tables_rebuilt_from_the_topics_are_those_of_the_newest_source() {
    if std::env::var_os("MILLRACE_TEST_PG").is_some() {
        println!("not tested: MILLRACE_TEST_PG names the one version to test");
        return;
    }
    let Some(options) = newest() else { return };
    converge(Postgres::start(options).await).await;
}

async fn converge(postgres: Postgres) {
    let seed = seed();
    let mut stage = Stage::start(postgres, seed, Begin::any(seed)).await;
    let mut random = Random::new(seed, 1 << 32);
    for round in 0..ROUNDS {
        let load = Load::start(&stage.postgres.url(), &stage.shared, seed, u64::from(round));
        let end = Instant::now() + run_time() / ROUNDS;
        while Instant::now() < end {
            sleep(Duration::from_millis(random.below(700))).await;
            stage.disturb(&mut random).await;
        }
        load.stop().await;
        stage.compare().await;
        assert!(stage.gaps().await.is_empty(), "no gap is reported where none is:\n{}", stage.report());
    }
}

impl Stage {
    /// One of the things that happen.
    async fn disturb(&mut self, random: &mut Random) {
        match random.below(10) {
            0..=2 => {
                self.millrace.kill9();
                self.millrace.spawn_again();
                // Sometimes something else happens before it is ready.
                if random.below(3) > 0 {
                    self.until_ready().await;
                }
            }
            3 => {
                // Before that it takes no signal.
                self.until_ready().await;
                self.millrace.sigterm();
                let status = self.millrace.wait().await;
                assert!(status.success(), "{status}:\n{}", self.report());
                self.millrace.spawn_again();
            }
            9 => self.ask_for_rows(random.of(&TABLES)),
            4 => self.proxy.cut(),
            5 => {
                self.proxy.close();
                sleep(Duration::from_millis(random.below(400))).await;
                self.proxy.open();
            }
            6 => {
                self.proxy.freeze(true);
                sleep(Duration::from_millis(random.below(3_000))).await;
                self.proxy.freeze(false);
            }
            7 => {
                let Some(client) = connect(&self.postgres.url(), || false).await else { return };
                let end =
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'walsender'";
                client.batch_execute(end).await.unwrap();
            }
            _ if random.below(2) == 0 => self.postgres.restart_immediate().await,
            _ => {
                self.postgres.stop_fast().await;
                self.postgres.start_again().await;
            }
        }
    }
}
