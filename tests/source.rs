//! What Millrace does in a source, against real PostgreSQL servers: publications, slots, checks, heartbeats.
//!
//! `MILLRACE_TEST_PG` chooses the server's version.
#![cfg(test)]

use std::collections::HashSet;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use millrace::change::{DataType, Lsn, ReplicaIdentity, TypeForm};
use millrace::postgres::catalog::{self, TrackedTable};
use millrace::postgres::connect;
use millrace::postgres::heartbeat;
use millrace::postgres::objects::Objects;
use millrace::postgres::precheck::{self, Outcome, PrecheckOptions, PrecheckReport};
use millrace::postgres::publication::{self, PublicationError, Reconciled, SourceOptions, TableOptions};
use millrace::postgres::slot::{self, SlotError, SlotTrouble, WalStatus};
use millrace::postgres::source::SourceConfig;
use millrace_test_support::{Postgres, PostgresOptions};
use postgres_protocol::message::frontend;
use tokio_postgres::Client;

/// Nothing here may take longer than this while somebody else holds a lock.
const AT_ONCE: Duration = Duration::from_secs(1);

async fn start() -> (Postgres, Client) {
    let server = Postgres::start(PostgresOptions::default()).await;
    let client = server.client().await;
    (server, client)
}

async fn run(client: &Client, sql: &str) {
    client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

/// `name` of tables in the two publications of task `t`.
async fn published(client: &Client) -> (Vec<String>, Vec<String>) {
    let rows = client
        .query("SELECT pubname::text, tablename::text FROM pg_publication_tables ORDER BY 2", &[])
        .await
        .expect("read publications");
    let of = |name: &str| {
        rows.iter().filter(|row| row.get::<_, &str>(0) == name).map(|row| row.get(1)).collect::<Vec<String>>()
    };
    (of("millrace_t"), of("millrace_t_insert_only"))
}

async fn tables(client: &Client) -> Vec<TrackedTable> {
    catalog::tracked_tables(client, &Objects::default()).await.expect("list tables")
}

async fn reconcile(client: &Client) -> publication::Reconciled {
    let listed = publication::listed(client, "t").await.expect("list");
    publication::reconcile(client, "t", &SourceOptions::default(), &tables(client).await, &listed)
        .await
        .expect("reconcile")
}

async fn ensure(client: &Client) -> publication::PublicationState {
    publication::ensure(client, "t", &SourceOptions::default(), &tables(client).await).await.expect("ensure")
}

fn names(tables: &[TrackedTable]) -> Vec<&str> {
    tables.iter().map(|table| table.name.as_str()).collect()
}

async fn count_through(client: &Client, slot: &str) -> i64 {
    let sql = "SELECT count(*) FROM pg_logical_slot_get_binary_changes($1::text::name, NULL, NULL, 'proto_version', '1',
               'publication_names', 'millrace_t,millrace_t_insert_only')
               WHERE get_byte(data, 0) IN (ascii('I'), ascii('U'), ascii('D'))";
    client.query_one(sql, &[&slot]).await.expect("read changes").get(0)
}

#[tokio::test]
async fn tables_are_found_with_what_identifies_their_rows() {
    let (_server, client) = start().await;
    run(
        &client,
        "CREATE TABLE keyed (id int PRIMARY KEY, v text);
         CREATE TABLE keyless (v text);
         CREATE TABLE full_identity (v text); ALTER TABLE full_identity REPLICA IDENTITY FULL;
         CREATE TABLE indexed (a int NOT NULL, b int NOT NULL); CREATE UNIQUE INDEX indexed_i ON indexed (b, a);
         ALTER TABLE indexed REPLICA IDENTITY USING INDEX indexed_i;
         CREATE TABLE index_gone (a int PRIMARY KEY, b int NOT NULL); CREATE UNIQUE INDEX gone ON index_gone (b);
         ALTER TABLE index_gone REPLICA IDENTITY USING INDEX gone; DROP INDEX gone;
         CREATE TABLE nothing (id int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
         CREATE TABLE deferred (id int PRIMARY KEY DEFERRABLE);
         CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE part_1 PARTITION OF parted FOR VALUES FROM (0) TO (10);
         CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY);
         CREATE TEMP TABLE temporary (id int PRIMARY KEY);
         CREATE VIEW a_view AS SELECT 1 AS one; CREATE MATERIALIZED VIEW a_matview AS SELECT 1 AS one;
         CREATE SCHEMA millrace; CREATE TABLE millrace.ours (id int PRIMARY KEY);
         CREATE SCHEMA \"O'dd \"\"one\"; CREATE TABLE \"O'dd \"\"one\".\"Table.1\" (id int PRIMARY KEY);",
    )
    .await;
    let tables = tables(&client).await;
    let found: Vec<_> = tables.iter().map(|t| (t.name.as_str(), t.usable_identity, t.partitioned)).collect();
    assert_eq!(
        found,
        [
            ("Table.1", true, false),
            ("deferred", false, false),
            ("full_identity", true, false),
            ("index_gone", false, false),
            ("indexed", true, false),
            ("keyed", true, false),
            ("keyless", false, false),
            ("nothing", false, false),
            ("part_1", true, false),
            ("parted", true, true),
        ]
    );
    assert!(tables.iter().all(|table| table.owned_by_us));
    assert!(tables.iter().find(|t| t.name == "deferred").is_some_and(|t| t.deferrable_key));
    // The server agrees, for each table and with its odd names quoted.
    ensure(&client).await;
    for table in tables.iter().filter(|table| !table.partitioned) {
        run(&client, &format!("DELETE FROM {table}")).await;
    }
}

#[tokio::test]
async fn shapes_resolve_domains_and_keep_the_order_of_keys() {
    let (_server, client) = start().await;
    run(
        &client,
        "CREATE TYPE mood AS ENUM ('ok', 'bad');
         CREATE DOMAIN price AS numeric(12,2); CREATE DOMAIN net_price AS price CHECK (VALUE > 0);
         CREATE DOMAIN mood_d AS mood;
         CREATE TABLE t (a int, gone int, b text, p net_price, m mood_d, c varchar(7), PRIMARY KEY (b, a) INCLUDE (p));
         ALTER TABLE t DROP COLUMN gone;
         CREATE UNIQUE INDEX t_i ON t (a, b); ALTER TABLE t REPLICA IDENTITY USING INDEX t_i;",
    )
    .await;
    let oid: u32 = client.query_one("SELECT 't'::regclass::oid", &[]).await.expect("oid").get(0);
    let shapes = catalog::table_shapes(&client, &[oid, 1]).await.expect("shapes");
    assert_eq!(shapes.len(), 1);
    let table = &shapes[&oid];
    assert_eq!(table.identity, ReplicaIdentity::Index);
    assert_eq!(table.primary_key, ["b", "a"]);
    assert_eq!(table.identity_index, ["a", "b"]);
    let types = "SELECT ARRAY['net_price', 'mood_d', 'mood', 'int', 'net_price[]', 't']::regtype[]::oid[]";
    let types: Vec<u32> = client.query_one(types, &[]).await.expect("types").get(0);
    let types_of = catalog::data_types(&client, &types).await.expect("types");
    let numeric_12_2 = (12 << 16 | 2) + 4;
    let plain = |oid, type_modifier| DataType { oid, type_modifier, form: TypeForm::Plain };
    let price = plain(1700, numeric_12_2);
    assert_eq!(types_of[&types[0]], price);
    assert_eq!(types_of[&types[1]], plain(types[2], -1));
    assert_eq!((&types_of[&types[2]], &types_of[&types[3]]), (&plain(types[2], -1), &plain(23, -1)));
    let array = TypeForm::Array { element_oid: types[0], element: price.clone().into(), delimiter: b',' };
    assert_eq!(types_of[&types[4]].form, array);
    let TypeForm::Composite(attributes) = &types_of[&types[5]].form else { panic!("{types_of:?}") };
    let names: Vec<&str> = attributes.iter().map(|attribute| attribute.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "p", "m", "c"]);
    assert_eq!(attributes[2].data_type, price);
    assert_eq!((attributes[4].type_oid, attributes[4].data_type.type_modifier), (1043, 11));
}

#[tokio::test]
async fn the_fingerprint_changes_with_what_decides_the_publications_and_with_nothing_else() {
    let (_server, client) = start().await;
    run(
        &client,
        "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE narrow (id int PRIMARY KEY, v int);
         CREATE TABLE generated (id int GENERATED ALWAYS AS (1) STORED PRIMARY KEY)",
    )
    .await;
    ensure(&client).await;
    if PostgresOptions::default().version() >= 15 {
        let narrow = "ALTER PUBLICATION millrace_t DROP TABLE narrow;
             ALTER PUBLICATION millrace_t ADD TABLE narrow (id, v)";
        run(&client, narrow).await;
    }
    let version = PostgresOptions::default().version() * 10_000;
    let mut last = catalog::fingerprint(&client, version).await.expect("fingerprint");
    for sql in [
        "INSERT INTO t VALUES (1, 'x'); UPDATE t SET v = 'y'; ANALYZE t; VACUUM t",
        "CREATE INDEX ON t (v)",
        "CREATE TEMPORARY TABLE brief (id serial PRIMARY KEY, v int DEFAULT 1)",
        "ALTER TABLE t RENAME v TO w",
    ] {
        run_each(&client, sql).await;
        assert_eq!(catalog::fingerprint(&client, version).await.expect("fingerprint"), last, "{sql}");
    }
    for sql in [
        "ALTER TABLE generated ALTER COLUMN id DROP EXPRESSION",
        match PostgresOptions::default().version() {
            // Without lists of columns.
            14 => "ALTER TABLE narrow DROP CONSTRAINT narrow_pkey",
            _ => "ALTER TABLE narrow RENAME v TO w",
        },
        "CREATE TABLE u (id int)",
        "ALTER TABLE u ADD PRIMARY KEY (id)",
        "ALTER TABLE u REPLICA IDENTITY FULL",
        "ALTER TABLE u RENAME TO w",
        "ALTER TABLE w ADD COLUMN g int",
        "ALTER TABLE w ENABLE ROW LEVEL SECURITY",
        "DROP TABLE w",
        "ALTER TABLE t DROP CONSTRAINT t_pkey",
        "ALTER PUBLICATION millrace_t DROP TABLE t",
        "DROP PUBLICATION millrace_t",
        "CREATE ROLE other; ALTER TABLE t OWNER TO other",
    ] {
        run(&client, sql).await;
        let now = catalog::fingerprint(&client, version).await.expect("fingerprint");
        assert_ne!(now, last, "{sql}");
        last = now;
    }
}

/// VACUUM wants to be alone in its message.
async fn run_each(client: &Client, statements: &str) {
    for sql in statements.split(';') {
        run(client, sql).await;
    }
}

#[tokio::test]
async fn every_table_stands_in_the_publication_that_it_belongs_in() {
    let (_server, client) = start().await;
    run(
        &client,
        "CREATE TABLE keyed (id int PRIMARY KEY, v text); CREATE TABLE keyless (v text);
         CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE part_1 PARTITION OF parted FOR VALUES FROM (0) TO (10);
         CREATE TABLE parent (id int); CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent);",
    )
    .await;
    let state = ensure(&client).await;
    assert!(state.created);
    assert_eq!(state.reconciled.added.len(), 6);
    assert!(state.reconciled.is_settled());
    let (full, insert_only) = published(&client).await;
    assert_eq!(full, ["child", "keyed", "part_1"]);
    // pg_publication_tables shows a partitioned table by its partitions.
    assert_eq!(insert_only, ["keyless", "parent", "part_1"]);

    let again = ensure(&client).await;
    assert!(!again.created);
    assert!(again.reconciled.added.is_empty() && again.reconciled.removed.is_empty());
    publication::drop(&client, "t").await.expect("drop");
    publication::drop(&client, "t").await.expect("drop what is gone");
    assert_eq!(published(&client).await, (vec![], vec![]));
}

#[tokio::test]
async fn users_update_and_delete_freely_in_tables_without_a_key() {
    let (_server, client) = start().await;
    run(
        &client,
        "CREATE TABLE keyless (v int); INSERT INTO keyless VALUES (1), (2);
         CREATE TABLE deferred (id int PRIMARY KEY DEFERRABLE); INSERT INTO deferred VALUES (1);
         CREATE TABLE parted (v int) PARTITION BY RANGE (v);
         CREATE TABLE part_1 PARTITION OF parted FOR VALUES FROM (0) TO (10);",
    )
    .await;
    ensure(&client).await;
    run(
        &client,
        "UPDATE keyless SET v = v + 1; DELETE FROM keyless; UPDATE deferred SET id = 2; DELETE FROM deferred;
         CREATE TABLE part_2 PARTITION OF parted FOR VALUES FROM (10) TO (20);
         INSERT INTO parted VALUES (1), (11); UPDATE parted SET v = v + 1; DELETE FROM parted",
    )
    .await;
}

#[tokio::test]
async fn generated_columns_in_a_replica_identity_do_not_make_updates_fail() {
    let (server, client) = start().await;
    run(
        &client,
        "CREATE TABLE stored (id int, g int GENERATED ALWAYS AS (id * 2) STORED, PRIMARY KEY (g));
         CREATE TABLE stored_full (id int, g int GENERATED ALWAYS AS (id * 2) STORED);
         ALTER TABLE stored_full REPLICA IDENTITY FULL;
         INSERT INTO stored VALUES (1); INSERT INTO stored_full VALUES (1)",
    )
    .await;
    if server.major() >= 18 {
        run(
            &client,
            "CREATE TABLE virtual_full (id int, g int GENERATED ALWAYS AS (id * 2) VIRTUAL);
             ALTER TABLE virtual_full REPLICA IDENTITY FULL; INSERT INTO virtual_full VALUES (1)",
        )
        .await;
    }
    ensure(&client).await;
    for table in tables(&client).await {
        run(&client, &format!("UPDATE {table} SET id = 2; DELETE FROM {table}")).await;
    }
}

#[tokio::test]
async fn a_table_created_later_joins_and_what_it_missed_is_known() {
    let (server, client) = start().await;
    ensure(&client).await;
    run(&client, "SELECT pg_create_logical_replication_slot('s', 'pgoutput')").await;
    run(&client, "CREATE TABLE quiet (id int PRIMARY KEY); CREATE TABLE busy (id int PRIMARY KEY)").await;
    let writer = server.client().await;
    run(&writer, "BEGIN; INSERT INTO busy VALUES (1)").await;

    let joined = reconcile(&client).await.added;
    let of = |name: &str| joined.iter().find(|join| join.table.name == name).expect("joined");
    assert_eq!(of("quiet").open_until, None);
    let open_until = of("busy").open_until.expect("an open writer");
    assert_eq!(publication::settled(&client, open_until).await.expect("settled"), None);

    run(&writer, "INSERT INTO busy VALUES (2); COMMIT").await;
    let complete_from = publication::settled(&client, open_until).await.expect("settled").expect("ended");
    assert!(complete_from > of("busy").complete_from);
    run(&client, "INSERT INTO quiet VALUES (1); INSERT INTO busy VALUES (3)").await;
    // Row 1 of `busy` was written before the table joined.
    assert_eq!(count_through(&client, "s").await, 3);
}

#[tokio::test]
async fn a_partition_made_between_two_polls_loses_no_insert() {
    let (_server, client) = start().await;
    run(&client, "CREATE TABLE parted (id int PRIMARY KEY, v int) PARTITION BY RANGE (id)").await;
    ensure(&client).await;
    run(&client, "SELECT pg_create_logical_replication_slot('s', 'pgoutput')").await;
    run(&client, "CREATE TABLE part_1 PARTITION OF parted FOR VALUES FROM (0) TO (10)").await;
    run(&client, "INSERT INTO parted VALUES (1), (2)").await;
    assert_eq!(reconcile(&client).await.added.len(), 1);
    run(&client, "UPDATE parted SET v = 1").await;
    assert_eq!(count_through(&client, "s").await, 4);
}

#[tokio::test]
async fn a_table_moves_with_its_replica_identity_and_loses_no_insert() {
    let (_server, client) = start().await;
    run(&client, "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int NOT NULL)").await;
    ensure(&client).await;
    run(&client, "SELECT pg_create_logical_replication_slot('s', 'pgoutput')").await;
    run(&client, "ALTER TABLE a DROP CONSTRAINT a_pkey; ALTER TABLE b ADD PRIMARY KEY (id)").await;
    run(&client, "INSERT INTO a VALUES (1)").await;
    assert!(
        client.execute("UPDATE a SET id = 2", &[]).await.is_err(),
        "the exception that the precheck names"
    );

    let outcome = reconcile(&client).await;
    assert_eq!(names(&outcome.moved_to_insert_only), ["a"]);
    assert_eq!(outcome.moved_to_full.len(), 1);
    assert_eq!(outcome.moved_to_full[0].table.name, "b");
    assert!(outcome.added.is_empty() && outcome.is_settled());
    assert_eq!(published(&client).await, (vec!["b".to_owned()], vec!["a".to_owned()]));

    run(
        &client,
        "INSERT INTO a VALUES (2); UPDATE a SET id = 3; INSERT INTO b VALUES (1); UPDATE b SET id = 2",
    )
    .await;
    // Two inserts into a, an insert and an update of b.
    assert_eq!(count_through(&client, "s").await, 4);
}

#[tokio::test]
async fn tables_no_longer_wanted_leave_and_dropped_ones_leave_by_themselves() {
    let (_server, client) = start().await;
    run(
        &client,
        "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (v int); CREATE TABLE c (id int PRIMARY KEY)",
    )
    .await;
    ensure(&client).await;
    run(&client, "DROP TABLE c").await;
    let listed = publication::listed(&client, "t").await.expect("list");
    let outcome = publication::reconcile(&client, "t", &SourceOptions::default(), &[], &listed)
        .await
        .expect("reconcile");
    let removed: Vec<_> = outcome.removed.iter().map(|table| table.name.as_str()).collect();
    assert_eq!(removed, ["a", "b"]);
    assert_eq!(published(&client).await, (vec![], vec![]));
}

#[tokio::test]
async fn many_tables_join_together_and_one_that_is_locked_holds_up_no_other() {
    let (server, client) = start().await;
    for number in 0..450 {
        run(&client, &format!("CREATE TABLE t{number} (id int PRIMARY KEY)")).await;
    }
    let other = server.client().await;
    run(&other, "BEGIN; LOCK TABLE t7 IN ACCESS EXCLUSIVE MODE").await;
    let outcome = ensure(&client).await.reconciled;
    assert_eq!(outcome.added.len(), 449);
    assert_eq!(outcome.busy.iter().map(|table| table.name.as_str()).collect::<Vec<_>>(), ["t7"]);
    run(&other, "COMMIT").await;
    assert_eq!(reconcile(&client).await.added.len(), 1);
}

#[tokio::test]
async fn a_locked_table_with_a_filter_and_columns_holds_up_no_other() {
    let (server, client) = start().await;
    if server.major() < 15 {
        // It knows neither.
        return;
    }
    // As in the sessions of a task.
    run(&client, "SET lock_timeout = '100ms'").await;
    run(&client, "CREATE TABLE a (id int PRIMARY KEY, v int); CREATE TABLE b (id int PRIMARY KEY)").await;
    let name = "public.a".parse().expect("pattern");
    let columns = Some(vec!["id".to_owned()]);
    let table_options = vec![TableOptions { name, filter: Some("id > 0".to_owned()), columns }];
    let options = SourceOptions { table_options, ..SourceOptions::default() };
    let other = server.client().await;
    run(&other, "BEGIN; LOCK TABLE a IN ACCESS EXCLUSIVE MODE").await;
    let state = publication::ensure(&client, "t", &options, &tables(&client).await).await.expect("ensure");
    let busy: Vec<_> = state.reconciled.busy.iter().map(|table| table.name.as_str()).collect();
    assert_eq!((busy, names_of_joined(&state.reconciled)), (vec!["a"], vec!["b"]));
    run(&other, "COMMIT").await;
    let listed = publication::listed(&client, "t").await.expect("list");
    let outcome = publication::reconcile(&client, "t", &options, &tables(&client).await, &listed).await;
    assert_eq!(names_of_joined(&outcome.expect("reconcile")), ["a"]);
}

fn names_of_joined(reconciled: &Reconciled) -> Vec<&str> {
    reconciled.added.iter().map(|joined| joined.table.name.as_str()).collect()
}

#[tokio::test]
async fn nobody_waits_while_a_table_or_the_publication_is_locked() {
    let (server, client) = start().await;
    run(&client, "CREATE TABLE a (id int PRIMARY KEY, v int)").await;
    ensure(&client).await;
    run(&client, "CREATE TABLE b (id int PRIMARY KEY, v int)").await;
    let other = server.client().await;
    let mut joined = 0;
    for holding in [
        "LOCK TABLE b IN SHARE UPDATE EXCLUSIVE MODE",
        &format!("SELECT pg_advisory_xact_lock({})", publication::advisory_lock("t")),
        "CREATE TABLE c (id int PRIMARY KEY); ALTER PUBLICATION millrace_t ADD TABLE c",
    ] {
        run(&other, "BEGIN").await;
        run(&other, holding).await;
        let began = Instant::now();
        let outcome = reconcile(&client).await;
        assert!(began.elapsed() < AT_ONCE, "{holding}: {:?}", began.elapsed());
        joined += outcome.added.len();
        // Version 14 does not lock a publication: there nothing is in the way.
        let free = server.major() == 14 && holding.contains("ALTER PUBLICATION");
        assert_eq!(outcome.busy.len(), usize::from(!free), "{holding}");
        assert_eq!(outcome.is_settled(), free);
        // Users go on meanwhile, in that table too, and the server keeps no lock of ours.
        run(
            &client,
            "SET lock_timeout = '1s'; INSERT INTO b VALUES (1, 1); UPDATE b SET v = 2; DELETE FROM b",
        )
        .await;
        run(&other, "ROLLBACK").await;
    }
    joined += reconcile(&client).await.added.len();
    assert_eq!(joined, 1);
}

#[tokio::test]
async fn a_writer_does_not_keep_a_table_from_joining_nor_the_other_way_round() {
    let (server, client) = start().await;
    ensure(&client).await;
    run(&client, "CREATE TABLE a (id int PRIMARY KEY)").await;
    let writer = server.client().await;
    run(&writer, "BEGIN; INSERT INTO a VALUES (1)").await;
    assert_eq!(reconcile(&client).await.added.len(), 1);
    run(&writer, "UPDATE a SET id = 2; COMMIT").await;
}

/// A role that may replicate and create publications, and owns one of two tables.
async fn a_plain_role(server: &Postgres, admin: &Client) -> Client {
    run(
        admin,
        "CREATE ROLE capture LOGIN REPLICATION PASSWORD 'secret'; CREATE ROLE app;
         GRANT CREATE ON DATABASE postgres TO capture; GRANT USAGE, CREATE ON SCHEMA public TO capture;
         CREATE TABLE theirs (id int PRIMARY KEY); ALTER TABLE theirs OWNER TO app;
         CREATE TABLE ours (id int PRIMARY KEY); ALTER TABLE ours OWNER TO capture;",
    )
    .await;
    server.client_for(&server.url_for("capture", "secret", "postgres")).await
}

#[tokio::test]
async fn a_table_of_another_owner_is_reported_with_the_sql_that_helps() {
    let (server, admin) = start().await;
    let client = a_plain_role(&server, &admin).await;
    let outcome = ensure(&client).await.reconciled;
    assert_eq!(outcome.added.len(), 1);
    assert_eq!(outcome.not_captured.len(), 1);
    let missed = &outcome.not_captured[0];
    assert_eq!(missed.table.name, "theirs");
    assert!(missed.reason.contains("'app'"), "{}", missed.reason);
    assert_eq!(missed.sql, "GRANT \"app\" TO \"capture\";");

    run(&admin, &missed.sql).await;
    let outcome = reconcile(&client).await;
    assert_eq!((outcome.added.len(), outcome.not_captured.len()), (1, 0));
}

#[tokio::test]
async fn a_table_that_lost_key_and_ownership_leaves_so_that_its_users_are_not_hindered() {
    let (server, admin) = start().await;
    let client = a_plain_role(&server, &admin).await;
    ensure(&client).await;
    run(&admin, "ALTER TABLE ours OWNER TO app; ALTER TABLE ours DROP CONSTRAINT ours_pkey").await;
    let outcome = reconcile(&client).await;
    assert_eq!(outcome.not_captured.len(), 2);
    assert_eq!(names(&outcome.moved_to_insert_only), ["ours"], "it is told");
    run(&admin, "INSERT INTO ours VALUES (1); UPDATE ours SET id = 2").await;
    assert_eq!(published(&admin).await, (vec![], vec![]));
}

#[tokio::test]
async fn a_table_whose_filter_is_wrong_by_now_leaves_so_that_its_users_are_not_hindered() {
    let (server, client) = start().await;
    if server.major() < 15 {
        // It knows no filters.
        return;
    }
    run(&client, "CREATE TABLE t (id int PRIMARY KEY, v int)").await;
    let name = "public.t".parse().expect("pattern");
    let table_options = vec![TableOptions { name, filter: Some("id > 0".to_owned()), columns: None }];
    let options = SourceOptions { table_options, ..SourceOptions::default() };
    let state = publication::ensure(&client, "t", &options, &tables(&client).await).await.expect("ensure");
    assert_eq!(names(&state.reconciled.tables), ["t"]);
    assert_eq!(published(&client).await, (vec!["t".to_owned()], vec![]));
    run(&client, "ALTER TABLE t DROP CONSTRAINT t_pkey; ALTER TABLE t RENAME id TO number").await;
    let reconcile = async || {
        let listed = publication::listed(&client, "t").await.expect("list");
        let tables = tables(&client).await;
        publication::reconcile(&client, "t", &options, &tables, &listed).await.expect("reconcile")
    };
    let outcome = reconcile().await;
    assert_eq!(outcome.not_captured.len(), 1, "{outcome:?}");
    assert_eq!(names(&outcome.moved_to_insert_only), ["t"]);
    assert_eq!(published(&client).await, (vec![], vec![]));
    run(&client, "INSERT INTO t VALUES (1, 1); UPDATE t SET v = 2; DELETE FROM t").await;
    assert!(reconcile().await.moved_to_insert_only.is_empty(), "told once");
}

#[tokio::test]
async fn publications_that_are_not_as_we_make_them_are_refused_with_the_sql_that_mends_them() {
    let (server, admin) = start().await;
    let client = a_plain_role(&server, &admin).await;
    assert!(matches!(
        publication::reconcile(&client, "t", &SourceOptions::default(), &[], &HashSet::new()).await,
        Err(PublicationError::Missing(name)) if name == "millrace_t"
    ));
    for (made, word) in [
        ("CREATE PUBLICATION millrace_t", "OWNER TO"),
        ("CREATE PUBLICATION millrace_t FOR ALL TABLES", "OWNER TO"),
    ] {
        run(&admin, made).await;
        let error = publication::ensure(&client, "t", &SourceOptions::default(), &[])
            .await
            .expect_err("refused")
            .to_string();
        assert!(error.contains(word), "{error}");
        run(&admin, "DROP PUBLICATION millrace_t").await;
    }
    for (made, word) in [
        ("FOR ALL TABLES", "DROP PUBLICATION"),
        ("WITH (publish = 'insert')", "SET (publish = "),
        ("WITH (publish_via_partition_root = true)", "publish_via_partition_root = false"),
    ] {
        run(&admin, &format!("CREATE PUBLICATION millrace_t {made}")).await;
        let error = publication::ensure(&admin, "t", &SourceOptions::default(), &[])
            .await
            .expect_err("refused")
            .to_string();
        assert!(error.contains(word), "{error}");
        run(&admin, "DROP PUBLICATION millrace_t").await;
    }
    run(&admin, "REVOKE CREATE ON DATABASE postgres FROM capture").await;
    let error = publication::ensure(&client, "t", &SourceOptions::default(), &[]).await.expect_err("refused");
    assert!(matches!(error, PublicationError::MayNotCreate { .. }), "{error}");
    assert!(error.to_string().contains("GRANT CREATE ON DATABASE \"postgres\" TO \"capture\";"), "{error}");
}

async fn check(client: &Client, task: &str) -> PrecheckReport {
    check_published(client, task, SourceOptions::default()).await
}

async fn check_published(client: &Client, task: &str, publish: SourceOptions) -> PrecheckReport {
    let options = PrecheckOptions {
        task: task.to_owned(),
        objects: Objects::default(),
        publish,
        slot_may_exist: false,
    };
    precheck::run(client, &options).await.expect("precheck")
}

fn outcome<'a>(report: &'a PrecheckReport, name: &str) -> (Outcome, &'a str, &'a str) {
    let check =
        report.checks.iter().find(|check| check.name == name).unwrap_or_else(|| panic!("{name}:\n{report}"));
    (check.outcome, &check.detail, check.remedy.as_deref().unwrap_or(""))
}

#[tokio::test]
async fn a_sound_source_passes_and_its_weak_tables_are_named() {
    let (_server, client) = start().await;
    let report = check(&client, "t").await;
    assert!(report.passed(), "{report}");
    assert_eq!(outcome(&report, "tables").0, Outcome::Warning);

    run(&client, "CREATE TABLE keyed (id int PRIMARY KEY); CREATE TABLE keyless (v int)").await;
    let report = check(&client, "t").await;
    assert!(report.passed(), "{report}");
    let (weak, detail, remedy) = outcome(&report, "replica_identity");
    assert_eq!(weak, Outcome::Warning);
    assert!(detail.contains("1 of 2 tables") && detail.contains("\"public\".\"keyless\""), "{detail}");
    assert!(remedy.contains("ALTER TABLE \"public\".\"keyless\" REPLICA IDENTITY FULL;"), "{remedy}");
    assert!(outcome(&report, "effects_on_users").1.contains("until the next poll"));
}

#[tokio::test]
async fn a_filter_or_columns_that_cannot_be_meant_keep_a_task_from_starting() {
    if PostgresOptions::default().version() < 15 {
        return println!("not tested: PostgreSQL 14 has neither");
    }
    let (_server, client) = start().await;
    run(&client, "CREATE TABLE t (id int PRIMARY KEY, note text); CREATE TABLE u (id int PRIMARY KEY)").await;
    for (options, reason) in [
        (r#"{"name":"public.t","where":"nosuch > 1"}"#, "column \"nosuch\" does not exist"),
        (r#"{"name":"public.t","where":"note"}"#, "must be type boolean"),
        (r#"{"name":"public.t","where":"true); DROP TABLE t; --"}"#, "syntax error"),
        (r#"{"name":"public.*","columns":["id","note"]}"#, "\"public\".\"u\": "),
        // Not the whole row.
        (r#"{"name":"public.t","where":"id > 1","columns":["id","t"]}"#, "column t.t does not exist"),
    ] {
        let publish = serde_json::from_str(&format!(r#"{{"table_options":[{options}]}}"#)).unwrap();
        let report = check_published(&client, "t", publish).await;
        let (result, detail, remedy) = outcome(&report, "table_options");
        assert!(result == Outcome::Failed && detail.contains("1 tables have"), "{report}");
        assert!(detail.contains(reason) && remedy.contains("correct where and columns"), "{report}");
    }
    let right = r#"{"table_options":[{"name":"public.t","where":"id > 1 -- some","columns":["id","note"]}]}"#;
    assert!(check_published(&client, "t", serde_json::from_str(right).unwrap()).await.passed());
}

#[tokio::test]
async fn a_server_without_logical_wal_slots_or_senders_fails_with_the_settings_to_change() {
    let options = PostgresOptions::default();
    let server = Postgres::start(
        options
            .setting("wal_level", "replica")
            .setting("max_wal_senders", "0")
            .setting("max_replication_slots", "0"),
    )
    .await;
    let report = check(&server.client().await, "t").await;
    assert!(!report.passed());
    for (name, remedy) in [
        ("wal_level", "ALTER SYSTEM SET wal_level = logical;"),
        ("slot", "ALTER SYSTEM SET max_replication_slots = 10;"),
        ("wal_senders", "ALTER SYSTEM SET max_wal_senders = 10;"),
    ] {
        let (result, _, told) = outcome(&report, name);
        assert_eq!(result, Outcome::Failed, "{name}");
        assert!(told.contains(remedy) && told.contains("restart the server"), "{told}");
    }
}

#[tokio::test]
async fn a_role_without_privileges_fails_with_the_grants_to_run() {
    let (server, admin) = start().await;
    run(
        &admin,
        "CREATE ROLE reader LOGIN PASSWORD 'secret'; CREATE ROLE app;
         CREATE TABLE theirs (id int PRIMARY KEY); ALTER TABLE theirs OWNER TO app",
    )
    .await;
    let client = server.client_for(&server.url_for("reader", "secret", "postgres")).await;
    let report = check(&client, "t").await;
    for (name, remedy) in [
        ("replication_privilege", "ALTER ROLE \"reader\" REPLICATION;"),
        ("publications", "GRANT CREATE ON DATABASE \"postgres\" TO \"reader\";"),
        ("table_ownership", "GRANT \"app\" TO \"reader\";"),
    ] {
        let (result, _, told) = outcome(&report, name);
        assert_eq!(result, Outcome::Failed, "{name}");
        assert!(told.contains(remedy), "{told}");
        // What the check tells to run makes it pass.
        run(&admin, told.rsplit(':').next().unwrap_or(told)).await;
    }
    let report = check(&client, "t").await;
    assert!(report.passed(), "{report}");
}

#[tokio::test]
async fn an_open_transaction_that_would_delay_the_slot_is_named() {
    let server = Postgres::start(PostgresOptions::default().setting("max_prepared_transactions", "2")).await;
    let client = server.client().await;
    run(&client, "CREATE TABLE t (id int)").await;
    run(&client, "BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'forgotten'").await;
    let (result, detail, remedy) = {
        let report = check(&client, "t").await;
        let (result, detail, remedy) = outcome(&report, "old_transactions");
        (result, detail.to_owned(), remedy.to_owned())
    };
    assert_eq!(result, Outcome::Warning);
    assert!(
        detail.contains("'forgotten'") && remedy.contains("ROLLBACK PREPARED 'forgotten';"),
        "{detail} {remedy}"
    );
}

#[tokio::test]
async fn a_slot_with_our_name_and_without_our_state_is_refused() {
    let (_server, client) = start().await;
    run(&client, "SELECT pg_create_logical_replication_slot('millrace_t', 'pgoutput')").await;
    let report = check(&client, "t").await;
    let (result, _, remedy) = outcome(&report, "slot");
    assert_eq!(result, Outcome::Failed);
    assert!(remedy.contains("--adopt-slot"), "{remedy}");
    let adopting = PrecheckOptions {
        task: "t".to_owned(),
        objects: Objects::default(),
        publish: SourceOptions::default(),
        slot_may_exist: true,
    };
    assert!(precheck::run(&client, &adopting).await.expect("precheck").passed());
}

#[tokio::test]
async fn slots_are_told_apart_missing_foreign_used_and_lost() {
    let server = Postgres::start(PostgresOptions::default().setting("max_slot_wal_keep_size", "1MB")).await;
    let client = server.client().await;
    let trouble = async |name: &str, database: &str| match slot::check(&client, name, database).await {
        Err(SlotError::Trouble { trouble, .. }) => trouble,
        other => panic!("{name}: {other:?}"),
    };
    assert_eq!(trouble("absent", "postgres").await, SlotTrouble::Missing);
    run(
        &client,
        "SELECT pg_create_logical_replication_slot('ours', 'pgoutput');
         SELECT pg_create_logical_replication_slot('doomed', 'pgoutput');
         SELECT pg_create_physical_replication_slot('physical', true)",
    )
    .await;
    assert_eq!(trouble("physical", "postgres").await, SlotTrouble::WrongPlugin { plugin: None });
    assert!(matches!(trouble("ours", "shop").await, SlotTrouble::WrongDatabase { .. }));

    let state = slot::check(&client, "ours", "postgres").await.expect("a sound slot");
    assert_eq!((state.plugin.as_deref(), state.active, state.temporary), (Some("pgoutput"), false, false));
    assert_eq!(state.wal_status, Some(WalStatus::Reserved));
    assert!(state.confirmed_flush_lsn > state.restart_lsn && state.restart_lsn > Some(Lsn::ZERO));

    // Two switched segments are more than it may keep; the checkpoint then gives it up.
    for _ in 0..3 {
        run_each(&client, "SELECT pg_logical_emit_message(false, 'x', 'x'); SELECT pg_switch_wal()").await;
    }
    run(&client, "CHECKPOINT").await;
    let SlotTrouble::Lost { reason } = trouble("doomed", "postgres").await else { panic!("not lost") };
    if server.major() >= 17 {
        assert_eq!(reason, "wal_removed");
    }
    let held = slot::slot_state(&client, "doomed").await.expect("state").expect("exists");
    assert_eq!(held.wal_status, Some(WalStatus::Lost));
    assert!(slot::drop_if_inactive(&client, "doomed").await.expect("drop"));
    assert!(slot::drop_if_inactive(&client, "doomed").await.expect("drop what is gone"));
}

#[tokio::test]
async fn a_slot_in_use_names_its_reader_and_is_not_dropped() {
    let (server, client) = start().await;
    run(&client, "CREATE TABLE t (id int PRIMARY KEY)").await;
    run(&client, "SELECT pg_create_logical_replication_slot('ours', 'test_decoding')").await;
    assert!(matches!(
        slot::check(&client, "ours", "postgres").await,
        Err(SlotError::Trouble { trouble: SlotTrouble::WrongPlugin { plugin: Some(plugin) }, .. }) if plugin == "test_decoding"
    ));
    run(&client, "SELECT pg_drop_replication_slot('ours')").await;
    run(
        &client,
        "SELECT pg_create_logical_replication_slot('ours', 'pgoutput'); CREATE PUBLICATION p FOR TABLE t",
    )
    .await;

    let reader = start_reading(&server, "ours");
    while !slot::slot_state(&client, "ours").await.expect("state").expect("exists").active {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let error = slot::check(&client, "ours", "postgres").await.expect_err("in use");
    assert!(error.is_transient());
    let text = error.to_string();
    assert!(
        text.contains("('somebody' from a unix socket)") && text.contains("pg_terminate_backend("),
        "{text}"
    );
    assert!(!slot::drop_if_inactive(&client, "ours").await.expect("left alone"));
    drop(reader);
}

/// A walsender that streams from the slot as long as the connection lives.
fn start_reading(server: &Postgres, slot: &str) -> UnixStream {
    let path = server.socket_dir().join(format!(".s.PGSQL.{}", server.port()));
    let mut connection = UnixStream::connect(path).expect("connect");
    let mut message = BytesMut::new();
    let parameters = [
        ("user", "postgres"),
        ("database", "postgres"),
        ("replication", "database"),
        ("application_name", "somebody"),
    ];
    frontend::startup_message(parameters, &mut message).expect("startup message");
    let start =
        format!("START_REPLICATION SLOT {slot} LOGICAL 0/0 (proto_version '1', publication_names 'p')");
    frontend::query(&start, &mut message).expect("query message");
    connection.write_all(&message).expect("write");
    connection
}

#[tokio::test]
async fn retained_wal_and_the_end_of_wal_are_told() {
    let (_server, client) = start().await;
    run(&client, "SELECT pg_create_logical_replication_slot('ours', 'pgoutput')").await;
    let before = catalog::source_position(&client).await.expect("position");
    let retained =
        async || slot::slot_state(&client, "ours").await.expect("state").expect("exists").retained_bytes;
    let first = retained().await;
    run(&client, "CREATE TABLE t AS SELECT repeat('x', 100) FROM generate_series(1, 10000)").await;
    let after = catalog::source_position(&client).await.expect("position");
    assert!(after.bytes_since(before) > 1_000_000, "{before} {after}");
    assert!(retained().await - first > 1_000_000);
}

#[tokio::test]
async fn a_heartbeat_is_a_transactional_message_that_a_slot_sees() {
    let (_server, client) = start().await;
    run(&client, "SELECT pg_create_logical_replication_slot('s', 'test_decoding')").await;
    let sent = heartbeat::send(&client, "t").await.expect("heartbeat").expect("not a standby");
    // It does not wait for its flush, and a slot shows only what is flushed.
    let seen = loop {
        let sql = "SELECT data FROM pg_logical_slot_peek_changes('s', NULL, NULL) WHERE data LIKE 'message%'";
        let rows = client.query(sql, &[]).await.expect("read changes");
        if let Some(row) = rows.first() {
            break row.get::<_, String>(0);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(seen, "message: transactional: 1 prefix: millrace.heartbeat, sz: 1 content:t");
    assert!(sent > Lsn::ZERO);
}

#[tokio::test]
async fn server_facts_are_read_by_any_role() {
    let (server, admin) = start().await;
    let client = a_plain_role(&server, &admin).await;
    let info = catalog::server_info(&client).await.expect("facts");
    assert_eq!(info.version_num / 10_000, server.major());
    assert_eq!(
        (info.user.as_str(), info.database.as_str(), info.encoding.as_str()),
        ("capture", "postgres", "UTF8")
    );
    assert!(!info.is_superuser && info.may_replicate && info.may_create && !info.in_recovery && !info.is_rds);
    assert_eq!((info.wal_level.as_str(), info.wal_sender_timeout_ms), ("logical", 60_000));
    assert!(info.system_identifier.is_some());
}

#[tokio::test]
async fn what_is_hidden_not_sent_or_cannot_be_captured_is_named_before_the_start() {
    let (server, admin) = start().await;
    run(
        &admin,
        "CREATE ROLE capture LOGIN REPLICATION PASSWORD 'secret'; CREATE ROLE app;
         GRANT CREATE ON DATABASE postgres TO capture; GRANT USAGE, CREATE ON SCHEMA public TO capture;
         CREATE TABLE forced (id int PRIMARY KEY, g int GENERATED ALWAYS AS (id * 2) STORED);
         CREATE TABLE open (id int PRIMARY KEY);
         CREATE POLICY p ON forced USING (id > 5); CREATE POLICY p ON open USING (id > 5);
         ALTER TABLE forced ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
         ALTER TABLE open ENABLE ROW LEVEL SECURITY;
         ALTER TABLE forced OWNER TO capture; ALTER TABLE open OWNER TO capture;
         CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY);
         CREATE MATERIALIZED VIEW sums AS SELECT 1 AS one; CREATE VIEW a_view AS SELECT 1 AS one;",
    )
    .await;
    let config = SourceConfig::parse(&server.url_for("capture", "secret", "postgres")).expect("a source");
    let client = connect::connect(&config).await.expect("connect");
    let report = check(&client, "t").await;
    let (result, detail, _) = outcome(&report, "row_level_security");
    assert_eq!(result, Outcome::Warning);
    assert!(detail.contains("public.forced") && !detail.contains("public.open"), "{detail}");
    // What would be fewer rows is an error.
    let error = client.query("SELECT id FROM public.forced", &[]).await.expect_err("a policy is in the way");
    assert!(format!("{error:?}").contains("row-level security"), "{error:?}");
    let (result, detail, told) = outcome(&report, "refused");
    assert_eq!(result, Outcome::Warning);
    assert!(detail.contains("unlogged table") && detail.contains("materialized view"), "{detail}");
    assert!(!detail.contains("a_view"), "nobody expects rows of a view in a whole database: {detail}");
    assert!(told.contains("ALTER TABLE \"public\".\"unlogged\" SET LOGGED;"), "{told}");
    let generated = report.checks.iter().find(|check| check.name == "generated_columns");
    match server.major() >= 18 {
        true => assert_eq!(generated, None),
        false => assert!(generated.expect("a check").detail.contains("public.forced (g)"), "{generated:?}"),
    }
}
