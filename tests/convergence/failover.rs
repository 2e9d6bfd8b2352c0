//! Failovers at random moments under load: they end in continuation without loss or repeat, or in a report (I5).

use std::time::{Duration, Instant};

use millrace::postgres::connect;
use millrace::postgres::objects::Objects;
use millrace::postgres::precheck::{self, Outcome as Checked, PrecheckOptions};
use millrace::postgres::publication::SourceOptions;
use millrace::postgres::source::SourceConfig;
use millrace_test_support::{Postgres, Random, seed};
use tokio::time::sleep;

use crate::stage::{Begin, SLOT, Stage, newest, options, run_time, settle};
use crate::workload::Load;

/// The first version that copies slots to standbys.
const SYNCHRONIZES_SLOTS: u32 = 17;
/// What nobody waits longer for.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a failover ended.
#[derive(Debug, PartialEq)]
enum Outcome {
    /// The task runs.
    Continued,
    /// The task has failed, for this cause, which stands in a gap event too.
    Reported(String),
}

/// A primary of the version under test, or of the newest where that cannot synchronize slots.
async fn synchronizing() -> Option<Postgres> {
    let options = options();
    let options = if options.version() < SYNCHRONIZES_SLOTS { newest()? } else { options };
    Some(Postgres::start(options).await)
}

/// We are sent nothing that the standby does not have: whenever the primary dies, it goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_failover_with_a_synchronized_slot_goes_on_exactly() {
    goes_on_exactly(Begin::Rows).await;
}

/// What was read from the old primary may be what the new one has lost: it is read again.
#[tokio::test(flavor = "multi_thread")]
async fn a_failover_while_existing_rows_are_read_goes_on_exactly() {
    goes_on_exactly(Begin::ManyRows).await;
}

async fn goes_on_exactly(begin: Begin) {
    let Some(mut primary) = synchronizing().await else { return };
    let seed = seed();
    let standby = primary.standby(&[("sync_replication_slots", "on")]).await;
    until_prechecked(&primary, Checked::Warning, "synchronized_standby_slots = 'standby';").await;
    primary.reset("synchronized_standby_slots", "standby").await;
    until_prechecked(&primary, Checked::Ok, "sync_replication_slots = on").await;
    let mut stage = Stage::start(primary, seed, begin).await;
    stage.until_synchronized(&standby).await;
    let outcome = stage.fail_over(standby, &mut Random::new(seed, 1 << 33), false, false).await;
    assert_eq!(outcome, Outcome::Continued, "{}", stage.report());
    stage.goes_on().await;
}

/// A name or a proxy leads to the new primary while the stream still has the old one, which has not gone away.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_has_moved_while_its_old_primary_lives_is_followed() {
    let Some(mut primary) = synchronizing().await else { return };
    let seed = seed();
    let standby = primary.standby(&[("sync_replication_slots", "on")]).await;
    let mut stage = Stage::start(primary, seed, Begin::Rows).await;
    stage.until_synchronized(&standby).await;
    stage.compare().await;
    stage.until_replayed(&standby).await;
    standby.promote().await;
    // It writes what leaves no record, so that the rows are asked for at a place behind the fork.
    let write = "SELECT max(pg_logical_emit_message(true, 'millrace.test', repeat('x', 4000000)))::text
                 FROM generate_series(1, 5)";
    let end: String = stage.postgres.client().await.query_one(write, &[]).await.unwrap().get(0);
    stage.millrace.wait_durable(&end).await;
    stage.proxy.lead_to(standby.port());
    let _old = std::mem::replace(&mut stage.postgres, standby);
    stage.ask_for_rows("plain");
    stage.goes_on().await;
}

/// The standby may not have what we were sent: that is reported, and otherwise it goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_failover_to_a_standby_that_lags_goes_on_or_reports_what_was_lost() {
    let Some(mut primary) = synchronizing().await else { return };
    let seed = seed();
    let mut random = Random::new(seed, 1 << 33);
    let standby = primary.standby(&[("sync_replication_slots", "on")]).await;
    let mut stage = Stage::start(primary, seed, Begin::Rows).await;
    stage.until_synchronized(&standby).await;
    let lags = random.below(3) > 0;
    let outcome = stage.fail_over(standby, &mut random, lags, false).await;
    println!("{outcome:?}");
    if outcome == Outcome::Continued {
        stage.goes_on().await;
    } else {
        assert_eq!(outcome, Outcome::Reported("timeline_diverged".to_owned()), "{}", stage.report());
    }
}

/// The stream brings nothing of transactions that wrote to a table before it was captured, and yet its rows tell of them.
#[tokio::test(flavor = "multi_thread")]
async fn existing_rows_that_a_failover_loses_are_reported() {
    let Some(mut primary) = synchronizing().await else { return };
    let seed = seed();
    let standby = primary.standby(&[("sync_replication_slots", "on")]).await;
    let mut stage = Stage::start(primary, seed, Begin::Empty).await;
    stage.until_synchronized(&standby).await;
    standby.reset("primary_conninfo", "").await;
    let late =
        "BEGIN; CREATE TABLE late (LIKE plain INCLUDING ALL); INSERT INTO late (id) VALUES (1); COMMIT";
    stage.postgres.client().await.batch_execute(late).await.unwrap();
    stage.until_read("late").await;
    stage.postgres.stop_immediate().await;
    let outcome = stage.take_over(standby, &mut Random::new(seed, 1 << 33), false).await;
    assert_eq!(outcome, Outcome::Reported("timeline_diverged".to_owned()), "{}", stage.report());
}

/// A standby without the slot, or with one that somebody has made there: changes are missing, and that is said.
#[tokio::test(flavor = "multi_thread")]
async fn a_failover_without_the_slot_is_reported() {
    let seed = seed();
    let mut random = Random::new(seed, 1 << 33);
    let mut primary = Postgres::start(options()).await;
    let standby = primary.standby(&[]).await;
    let cost = if primary.major() < SYNCHRONIZES_SLOTS { "reports a gap" } else { "what was lost" };
    until_prechecked(&primary, Checked::Warning, cost).await;
    let mut stage = Stage::start(primary, seed, Begin::Rows).await;

    // A standby is not where the task reads from, and says nothing of its slot.
    stage.proxy.point_at(standby.port());
    stage.until_said("is a standby").await;
    stage.proxy.point_at(stage.postgres.port());
    stage.millrace.wait_state("running").await;

    let (lags, by_hand) = (random.below(2) == 0, random.below(2) == 0);
    let outcome = stage.fail_over(standby, &mut random, lags, by_hand).await;
    let missing = if by_hand { "slot_ahead" } else { "slot_missing" };
    let is_expected = [missing, "timeline_diverged"].map(|cause| Outcome::Reported(cause.to_owned()));
    assert!(is_expected.contains(&outcome), "{outcome:?}\n{}", stage.report());
}

/// Waits until the standby has connected, and the precheck says this of a failover.
async fn until_prechecked(primary: &Postgres, outcome: Checked, word: &str) {
    let control = connect::connect(&SourceConfig::parse(&primary.url()).unwrap()).await.unwrap();
    let asked = PrecheckOptions {
        task: "t".to_owned(),
        objects: Objects::default(),
        publish: SourceOptions::default(),
        slot_may_exist: false,
    };
    let deadline = Instant::now() + PATIENCE;
    loop {
        let report = precheck::run(&control, &asked).await.unwrap();
        let check = report.checks.iter().find(|check| check.name == "failover");
        if check.is_some_and(|check| check.outcome == outcome && check.to_string().contains(word)) {
            return;
        }
        assert!(Instant::now() < deadline, "'{word}' is not in:\n{report}");
        sleep(Duration::from_millis(50)).await;
    }
}

impl Stage {
    /// The primary dies under load, and the standby takes its place.
    async fn fail_over(
        &mut self,
        standby: Postgres,
        random: &mut Random,
        lags: bool,
        slot_by_hand: bool,
    ) -> Outcome {
        let load = Load::start(&self.postgres.url(), &self.shared, self.seed, 0);
        let before = self.shared.committed().len();
        self.shared.until_committed(before + 50 + random.below(400) as usize).await;
        if lags {
            standby.reset("primary_conninfo", "").await;
            sleep(Duration::from_millis(random.below(500))).await;
        }
        self.postgres.stop_immediate().await;
        load.stop().await;
        self.take_over(standby, random, slot_by_hand).await
    }

    /// The standby takes the place of the primary, which is dead.
    async fn take_over(&mut self, standby: Postgres, random: &mut Random, slot_by_hand: bool) -> Outcome {
        // It sees the primary's end, or is not there when that happens.
        if random.below(2) == 0 {
            self.until_said("").await;
        } else {
            self.millrace.kill9();
        }
        standby.promote().await;
        // Rows are not read before those have ended who wrote to their tables.
        settle(&standby.client().await).await;
        if slot_by_hand {
            let make = format!("SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')");
            standby.client().await.batch_execute(&make).await.unwrap();
        }
        self.proxy.point_at(standby.port());
        self.postgres = standby;
        self.shared.forget();
        if !self.millrace.is_running() {
            self.millrace.spawn_again();
        }
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let task = self.millrace.task();
            match task.as_ref().and_then(|task| task["state"].as_str()) {
                Some("running") => return Outcome::Continued,
                Some("failed") => return Outcome::Reported(self.reported().await),
                _ => sleep(Duration::from_millis(20)).await,
            }
        }
        panic!("neither goes on nor says why not:\n{}", self.report());
    }

    /// The cause in the one gap event, which the task's state names too.
    async fn reported(&self) -> String {
        let gaps = self.gaps().await;
        assert_eq!(gaps.len(), 1, "{gaps:?}\n{}", self.report());
        let cause = gaps[0]["cause"].as_str().unwrap().to_owned();
        let reason = self.millrace.wait_state("failed").await;
        assert!(reason.contains(&cause) && reason.contains("--accept-gap"), "{cause} is not in: {reason}");
        cause
    }

    /// The new primary's tables are told whole, with what was written before and with what is written now.
    async fn goes_on(&mut self) {
        self.compare().await;
        let load = Load::start(&self.postgres.url(), &self.shared, self.seed, 1);
        sleep(run_time() / 4).await;
        load.stop().await;
        self.compare().await;
        // A slot that is made beside DDL may have to be made anew.
        let gaps = self.gaps().await;
        let is_expected = |gap: &serde_json::Value| gap["cause"] == "slot_undecodable";
        assert!(gaps.iter().all(is_expected), "no gap is reported where none is:\n{}", self.report());
    }

    /// Waits until the standby has the slot and would keep it.
    async fn until_synchronized(&self, standby: &Postgres) {
        let (primary, standby) = (self.postgres.client().await, standby.client().await);
        let kept = "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND NOT temporary)";
        let deadline = Instant::now() + PATIENCE;
        while !standby.query_one(kept, &[&SLOT]).await.unwrap().get::<_, bool>(0) {
            assert!(Instant::now() < deadline, "the slot was not synchronized:\n{}", self.report());
            // The slot moves only with what the server tells of running transactions.
            primary.batch_execute("SELECT pg_log_standby_snapshot()").await.unwrap();
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until the standby has all that was committed.
    async fn until_replayed(&self, standby: &Postgres) {
        let end = "SELECT pg_current_wal_flush_lsn()::text";
        let end: String = self.postgres.client().await.query_one(end, &[]).await.unwrap().get(0);
        let (standby, deadline) = (standby.client().await, Instant::now() + PATIENCE);
        let is_there = "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn";
        while !standby.query_one(is_there, &[&end]).await.unwrap().get::<_, bool>(0) {
            assert!(Instant::now() < deadline, "the standby never has what the primary had at {end}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until the task is in trouble and its reason has this.
    async fn until_said(&self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.millrace.wait_state("retrying").await.contains(text) {
            assert!(Instant::now() < deadline, "it was never said that '{text}':\n{}", self.report());
            sleep(Duration::from_millis(20)).await;
        }
    }
}
