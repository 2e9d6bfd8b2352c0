//! How tables are published: partitions by leaf and by root, filters and columns, origins, identities, and what cannot be
//! published at all.

use std::process::Command;

use millrace_test_support::{Millrace, PASSWORD, Postgres, PostgresOptions, Record, read_topic};

use crate::stage::{Stage, expect, line, rows, run};

/// A server of this version, if it is there or can be fetched.
pub fn version(major: u32) -> Option<PostgresOptions> {
    let fetched = Command::new("deploy/fetch-postgres.sh").arg(major.to_string()).output();
    if fetched.as_ref().is_ok_and(|output| output.status.success()) {
        return Some(PostgresOptions::default().major(major));
    }
    println!("not tested: PostgreSQL {major} cannot be fetched: {fetched:?}");
    None
}

/// The server under test, if it has filters of rows and lists of columns.
fn has_filters() -> Option<PostgresOptions> {
    Some(PostgresOptions::default()).filter(|options| options.version() >= 15)
}

const PARTITIONED: &str = "
    CREATE TABLE orders (id int, region text, note text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
    CREATE TABLE orders_eu PARTITION OF orders FOR VALUES IN ('eu');
    CREATE TABLE orders_us (note text, region text, id int, PRIMARY KEY (id, region));
    ALTER TABLE orders ATTACH PARTITION orders_us FOR VALUES IN ('us');
    CREATE TABLE orders_asia PARTITION OF orders FOR VALUES IN ('jp', 'cn') PARTITION BY LIST (region);
    CREATE TABLE orders_jp PARTITION OF orders_asia FOR VALUES IN ('jp');
    CREATE TABLE attached (id int, region text, note text, PRIMARY KEY (id, region));
    CREATE TABLE unlike (id int NOT NULL, region text NOT NULL, note text, UNIQUE (region, id));
    ALTER TABLE unlike REPLICA IDENTITY FULL;";

const PARTITION_CHANGES: &[&str] = &[
    "INSERT INTO orders VALUES (1, 'eu', 'a'), (2, 'us', 'b'), (3, 'jp', 'c')",
    "UPDATE orders SET note = 'd' WHERE id < 3",
    // From one partition into another.
    "UPDATE orders SET region = 'us' WHERE id = 1",
    "DELETE FROM orders WHERE id = 3",
    "INSERT INTO attached VALUES (4, 'cn', 'own')",
    "ALTER TABLE orders_asia ATTACH PARTITION attached FOR VALUES IN ('cn')",
    "UPDATE orders SET note = 'e' WHERE id = 4",
    "ALTER TABLE orders DETACH PARTITION orders_us",
    "DELETE FROM orders_us WHERE id = 2",
];

/// What they are told as: the table by leaf, the table by root, and the rest of the line.
const PARTITION_LINES: [(&str, &str, &str); 11] = [
    ("orders_eu", "orders", r#"{"id":1,"region":"eu"} c null {"id":1,"note":"a","region":"eu"}"#),
    ("orders_us", "orders", r#"{"id":2,"region":"us"} c null {"id":2,"note":"b","region":"us"}"#),
    ("orders_jp", "orders", r#"{"id":3,"region":"jp"} c null {"id":3,"note":"c","region":"jp"}"#),
    ("orders_eu", "orders", r#"{"id":1,"region":"eu"} u null {"id":1,"note":"d","region":"eu"}"#),
    ("orders_us", "orders", r#"{"id":2,"region":"us"} u null {"id":2,"note":"d","region":"us"}"#),
    ("orders_eu", "orders", r#"{"id":1,"region":"eu"} d {"id":1,"region":"eu"} null"#),
    ("orders_us", "orders", r#"{"id":1,"region":"us"} c null {"id":1,"note":"d","region":"us"}"#),
    ("orders_jp", "orders", r#"{"id":3,"region":"jp"} d {"id":3,"region":"jp"} null"#),
    ("attached", "orders", r#"{"id":4,"region":"cn"} c null {"id":4,"note":"own","region":"cn"}"#),
    ("attached", "orders", r#"{"id":4,"region":"cn"} u null {"id":4,"note":"e","region":"cn"}"#),
    ("orders_us", "orders_us", r#"{"id":2,"region":"us"} d {"id":2,"region":"us"} null"#),
];

/// Compares records with what those changes are told as, by root on a server of this version or by leaf, and what comes
/// after them.
fn expect_partitions(records: &[Record], by_root: Option<u32>, after: &[&str]) {
    let line = |(leaf, root, rest): &(&str, &str, &str)| match by_root {
        None => format!("{leaf} {rest}"),
        // Version 14 does not notice that a partition is none any more.
        Some(14) => format!("orders {rest}"),
        Some(_) => format!("{root} {rest}"),
    };
    let lines: Vec<String> = PARTITION_LINES.iter().map(line).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).chain(after.iter().copied()).collect();
    expect(records, &lines);
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_keep_their_own_names_while_they_are_attached_and_detached() {
    let stage = Stage::start(PostgresOptions::default(), PARTITIONED, &[]).await;
    stage.run_each(PARTITION_CHANGES).await;
    stage.run_each(&["TRUNCATE orders_eu", "TRUNCATE orders"]).await;
    let mut records = stage.records().await;
    records.retain(|record| record.value.is_some());
    expect_partitions(
        &records,
        None,
        &[
            r#"orders_eu - t null null"#,
            r#"orders_eu - t null null"#,
            r#"orders_jp - t null null"#,
            r#"attached - t null null"#,
        ],
    );
}

/// Also those that are attached or made while it runs; and no update of a user fails in any of them.
#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_told_as_the_table_at_the_top_when_asked_for() {
    for options in [Some(PostgresOptions::default()), version(18)].into_iter().flatten() {
        let stage = Stage::start(options, PARTITIONED, &["--partitions-as", "root"]).await;
        stage.run_each(&PARTITION_CHANGES[..4]).await;
        stage.run("ALTER TABLE orders_asia ATTACH PARTITION attached FOR VALUES IN ('cn')").await;
        stage.told_as_one(&["attached"]).await;
        stage
            .run_each(&[
                "INSERT INTO attached VALUES (4, 'cn', 'own')",
                "UPDATE orders SET note = 'e' WHERE id = 4",
                // In one transaction, so that no poll comes between.
                "ALTER TABLE orders DETACH PARTITION orders_us; DELETE FROM orders_us WHERE id = 2",
            ])
            .await;
        stage.read("orders_us", 1).await;
        stage.run("CREATE TABLE orders_fr PARTITION OF orders FOR VALUES IN ('fr')").await;
        stage.told_as_one(&["orders_fr"]).await;
        stage.run_each(&["INSERT INTO orders VALUES (5, 'fr', 'new')", "TRUNCATE orders"]).await;
        stage.run("INSERT INTO orders VALUES (6, 'fr', 'x'); UPDATE orders SET note = 'y'").await;
        // Its old rows are told by other columns than those of the table at the top: insert-only, and named.
        stage.run("ALTER TABLE orders ATTACH PARTITION unlike FOR VALUES IN ('de')").await;
        let weak = stage.names("insert_only", 1).await;
        assert!(
            weak[0].contains("\"unlike\"") && weak[0].contains("has another replica identity"),
            "{weak:?}"
        );
        stage.told_as_one(&["unlike"]).await;
        stage
            .run("INSERT INTO orders VALUES (7, 'de', 'x'); UPDATE orders SET note = 'z' WHERE id = 7")
            .await;
        let mut records = stage.records().await;
        records.retain(|record| record.value.is_some());
        expect_partitions(
            &records,
            Some(stage.postgres.major()),
            &[
                r#"orders_us {"id":1,"region":"us"} r null {"id":1,"note":"d","region":"us"} millrace.phase=snapshot"#,
                r#"orders {"id":5,"region":"fr"} c null {"id":5,"note":"new","region":"fr"}"#,
                r#"orders - t null null"#,
                r#"orders {"id":6,"region":"fr"} c null {"id":6,"note":"x","region":"fr"}"#,
                r#"orders {"id":6,"region":"fr"} u null {"id":6,"note":"y","region":"fr"}"#,
                r#"orders {"id":7,"region":"de"} c null {"id":7,"note":"x","region":"de"}"#,
            ],
        );
    }
}

const NARROWED: &str = r#"{"table_options":[
    {"name":"public.orders","where":"region = 'eu' -- theirs only","columns":["id","region","total"]},
    {"name":"public.late","where":"id > 10"},
    {"name":"public.weak","where":"note <> 'x'"},
    {"name":"public.keyless_list","columns":["note"]},
    {"name":"public.wrong","where":"nosuch > 1"},
    {"name":"public.evil","where":"true); DROP TABLE orders; --"},
    {"name":"public.parted","where":"id > 10","columns":["id"]}]}"#;

const NARROWED_TABLES: &str = "
    CREATE TABLE orders (id int, region text, total int, secret text, PRIMARY KEY (id, region));
    CREATE TABLE weak (id int PRIMARY KEY, note text);
    CREATE TABLE keyless_list (id int PRIMARY KEY, note text);
    CREATE TABLE parted (id int PRIMARY KEY, secret text) PARTITION BY RANGE (id);
    CREATE TABLE part_1 PARTITION OF parted FOR VALUES FROM (0) TO (20);";

/// An update that moves a row into the filter is an insert, one that moves it out a delete: so says PostgreSQL.
#[tokio::test(flavor = "multi_thread")]
async fn only_the_rows_and_columns_that_are_asked_for_arrive_and_no_update_fails() {
    for options in [has_filters(), version(18)].into_iter().flatten() {
        let stage = Stage::with_publish(options, NARROWED_TABLES, NARROWED).await;
        // A task that runs goes on without tables of which it learns that it cannot have them.
        stage.run("CREATE TABLE wrong (id int PRIMARY KEY); CREATE TABLE evil (id int PRIMARY KEY)").await;
        let left_out = stage.names("not_captured", 2).await;
        assert!(left_out[0].contains("\"evil\"") && left_out[0].contains("syntax error"), "{left_out:?}");
        assert!(left_out[1].contains("\"wrong\"") && left_out[1].contains("nosuch"), "{left_out:?}");
        let weak = stage.names("insert_only", 2).await;
        assert!(weak[0].contains("its columns leave out \"id\""), "{weak:?}");
        assert!(weak[1].contains("its filter uses \"note\""), "{weak:?}");
        stage
            .run_each(&[
                "INSERT INTO orders VALUES (1, 'eu', 5, 'x'), (2, 'us', 5, 'x')",
                "UPDATE orders SET total = 6",
                "UPDATE orders SET region = 'eu' WHERE id = 2",
                "UPDATE orders SET region = 'us' WHERE id = 1",
                "UPDATE orders SET id = 3 WHERE id = 2",
                "DELETE FROM orders",
                "INSERT INTO weak VALUES (1, 'x'), (2, 'y')",
                "UPDATE weak SET note = 'z'",
                "DELETE FROM weak",
                "INSERT INTO keyless_list VALUES (1, 'x')",
                "UPDATE keyless_list SET note = 'z'",
                "INSERT INTO wrong VALUES (1)",
                "INSERT INTO evil VALUES (1)",
                "INSERT INTO parted VALUES (9, 'x'), (11, 'x')",
                "UPDATE parted SET secret = 'y'",
                "CREATE TABLE late (id int PRIMARY KEY)",
            ])
            .await;
        stage.published_whole("late").await;
        stage.run("INSERT INTO late VALUES (10), (11); UPDATE late SET id = id + 10").await;
        // It comes when its existing rows have been read.
        let late = ids_of(&stage, "late", 21).await;
        assert!(late.iter().all(|id| [11, 20, 21].contains(id)), "{late:?}");
        let mut records = stage.records().await;
        records
            .retain(|record| record.value.as_ref().is_some_and(|event| event["source"]["table"] != "late"));
        let plain = |record: &Record| line(record).split(" __debezium").next().unwrap().to_owned();
        let found: Vec<String> = records.iter().map(plain).collect();
        assert_eq!(
            found,
            [
                r#"orders {"id":1,"region":"eu"} c null {"id":1,"region":"eu","total":5}"#,
                r#"orders {"id":1,"region":"eu"} u null {"id":1,"region":"eu","total":6}"#,
                r#"orders {"id":2,"region":"eu"} c null {"id":2,"region":"eu","total":6}"#,
                r#"orders {"id":1,"region":"eu"} d {"id":1,"region":"eu"} null"#,
                r#"orders {"id":2,"region":"eu"} d {"id":2,"region":"eu"} null"#,
                r#"orders {"id":3,"region":"eu"} c null {"id":3,"region":"eu","total":6}"#,
                r#"orders {"id":3,"region":"eu"} d {"id":3,"region":"eu"} null"#,
                r#"weak {"id":2} c null {"id":2,"note":"y"}"#,
                r#"keyless_list - c null {"note":"x"}"#,
                r#"part_1 {"id":11} c null {"id":11}"#,
                r#"part_1 {"id":11} u null {"id":11}"#,
            ]
            .map(|line| line.to_owned())
            .to_vec()
        );
    }
}

/// Under the name of the table at the top its filter and its columns count.
#[tokio::test(flavor = "multi_thread")]
async fn a_partitioned_table_told_as_one_has_one_filter_and_one_list_of_columns() {
    let publish = r#"{"partitions_as":"root","table_options":[
        {"name":"public.parted","where":"id <> 5","columns":["id","v"]},
        {"name":"public.weak","where":"v > 5"}]}"#;
    let setup = "CREATE TABLE parted (id int PRIMARY KEY, secret text, v int) PARTITION BY RANGE (id);
         CREATE TABLE part_1 PARTITION OF parted FOR VALUES FROM (0) TO (10);
         CREATE TABLE part_2 (v int, secret text, id int PRIMARY KEY);
         ALTER TABLE parted ATTACH PARTITION part_2 FOR VALUES FROM (10) TO (20);
         CREATE TABLE weak (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
         CREATE TABLE weak_1 PARTITION OF weak FOR VALUES FROM (0) TO (10);";
    for options in [has_filters(), version(18)].into_iter().flatten() {
        let stage = Stage::with_publish(options, setup, publish).await;
        stage.published_whole("parted").await;
        stage
            .run_each(&[
                "INSERT INTO parted VALUES (5, 's', 1), (6, 's', 1), (11, 's', 1)",
                "UPDATE parted SET v = 2",
                "UPDATE parted SET id = 7 WHERE id = 5",
                "UPDATE parted SET id = 5 WHERE id = 6",
                "DELETE FROM parted",
                "INSERT INTO weak VALUES (1, 1), (2, 9)",
                "UPDATE weak SET v = 10",
                "CREATE TABLE part_3 PARTITION OF parted FOR VALUES FROM (20) TO (30)",
                "INSERT INTO parted VALUES (21, 's', 1)",
                "UPDATE parted SET v = 3",
            ])
            .await;
        let weak = stage.names("insert_only", 1).await;
        assert!(weak[0].contains("\"weak_1\""), "{weak:?}");
        let mut records = stage.records().await;
        records.retain(|record| record.value.is_some());
        expect(
            &records,
            &[
                r#"parted {"id":6} c null {"id":6,"v":1}"#,
                r#"parted {"id":11} c null {"id":11,"v":1}"#,
                r#"parted {"id":6} u null {"id":6,"v":2}"#,
                r#"parted {"id":11} u null {"id":11,"v":2}"#,
                r#"parted {"id":7} c null {"id":7,"v":2}"#,
                r#"parted {"id":6} d {"id":6} null"#,
                r#"parted {"id":7} d {"id":7} null"#,
                r#"parted {"id":11} d {"id":11} null"#,
                r#"weak {"id":2} c null {"id":2,"v":9}"#,
                r#"parted {"id":21} c null {"id":21,"v":1}"#,
                r#"parted {"id":21} u null {"id":21,"v":3}"#,
            ],
        );
    }
}

/// Two databases that replicate into each other. Asked for its own changes alone, each task has each row once, and both
/// together everything; asked for all, each has everything once.
#[tokio::test(flavor = "multi_thread")]
async fn changes_that_were_replicated_into_the_source_are_left_out_when_asked_for() {
    let Some(options) = version(18) else { return };
    let (left, right) = (Postgres::start(options.clone()).await, Postgres::start(options).await);
    let (at_left, at_right) = (left.client().await, right.client().await);
    let table = "CREATE TABLE t (id int PRIMARY KEY, note text); CREATE PUBLICATION app FOR TABLE t";
    run(&at_left, table).await;
    run(&at_right, table).await;
    for (client, other) in [(&at_left, &right), (&at_right, &left)] {
        let to =
            format!("host=127.0.0.1 port={} user=postgres password={PASSWORD} dbname=postgres", other.port());
        let subscribe = format!(
            "CREATE SUBSCRIPTION s_{} CONNECTION '{to}' PUBLICATION app WITH (origin = none, copy_data = false)",
            other.port()
        );
        run(client, &subscribe).await;
    }
    let data: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let own = ["--task", "t", "--origin", "none", "--tables", "public.t"];
    let own_left = Millrace::up(data[0].path(), &left.url(), &own).await;
    let own_right = Millrace::up(data[1].path(), &right.url(), &own).await;
    let all_left =
        Millrace::up(data[2].path(), &left.url(), &["--task", "all", "--tables", "public.t"]).await;
    run(&at_left, "INSERT INTO t VALUES (1, 'left')").await;
    run(&at_right, "INSERT INTO t VALUES (2, 'right')").await;
    let both = "SELECT count(*) FROM t";
    for client in [&at_left, &at_right] {
        while client.query_one(both, &[]).await.unwrap().get::<_, i64>(0) < 2 {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
    run(&at_left, "UPDATE t SET note = 'again' WHERE id = 2").await;
    while at_right
        .query_one("SELECT count(*) FROM t WHERE note = 'again'", &[])
        .await
        .unwrap()
        .get::<_, i64>(0)
        < 1
    {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let mark = "SELECT pg_logical_emit_message(true, 'test.mark', '')::text";
    for (millrace, client, topic, lines) in [
        (
            &own_left,
            &at_left,
            "t",
            &[r#"t {"id":1} c null {"id":1,"note":"left"}"#, r#"t {"id":2} u null {"id":2,"note":"again"}"#]
                [..],
        ),
        (&own_right, &at_right, "t", &[r#"t {"id":2} c null {"id":2,"note":"right"}"#]),
    ] {
        millrace.wait_durable(client.query_one(mark, &[]).await.unwrap().get(0)).await;
        expect(&read_topic(&millrace.bootstrap(), topic).await, lines);
    }
    all_left.wait_durable(at_left.query_one(mark, &[]).await.unwrap().get(0)).await;
    let mut all: Vec<String> = read_topic(&all_left.bootstrap(), "all").await.iter().map(line).collect();
    all.sort();
    assert_eq!(
        all,
        [
            r#"t {"id":1} c null {"id":1,"note":"left"}"#,
            r#"t {"id":2} c null {"id":2,"note":"right"}"#,
            r#"t {"id":2} u null {"id":2,"note":"again"}"#,
        ]
    );
}

/// What a server cannot do is said before the task is made.
#[tokio::test(flavor = "multi_thread")]
async fn options_that_a_server_does_not_know_are_refused() {
    let Some(options) = version(14) else { return };
    let postgres = Postgres::start(options).await;
    let data = tempfile::tempdir().unwrap();
    let options = millrace_test_support::MillraceOptions::new(data.path(), &postgres.url());
    let mut millrace = Millrace::spawn(options.args(&["--origin", "none"]));
    assert!(!millrace.wait().await.success());
    let output = millrace.output();
    assert!(output.contains("origin none needs PostgreSQL 16 or later, and the source is 14"), "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_captured_is_named_and_a_table_that_becomes_logged_joins() {
    let stage = Stage::start(
        PostgresOptions::default(),
        "CREATE TABLE kept (id int PRIMARY KEY); CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY);
         CREATE FOREIGN DATA WRAPPER elsewhere; CREATE SERVER far FOREIGN DATA WRAPPER elsewhere;
         CREATE FOREIGN TABLE distant (id int) SERVER far;
         CREATE MATERIALIZED VIEW sums AS SELECT 1 AS one; CREATE VIEW view AS SELECT 1 AS one;",
        &["--tables", "public.*"],
    )
    .await;
    let refused = stage.names("refused", 4).await;
    let reasons = ["a foreign table", "a materialized view", "an unlogged table", "a view"];
    for (sentence, reason) in refused.iter().zip(reasons) {
        assert!(sentence.contains(reason), "{refused:?}");
    }
    assert!(refused[2].contains("ALTER TABLE \"public\".\"unlogged\" SET LOGGED;"), "{refused:?}");
    stage.run_each(&["INSERT INTO unlogged VALUES (1)", "ALTER TABLE unlogged SET LOGGED"]).await;
    stage.names("refused", 3).await;
    stage.published_whole("unlogged").await;
    stage.run_each(&["INSERT INTO unlogged VALUES (2)", "DELETE FROM unlogged WHERE id = 1"]).await;
    ids_of(&stage, "unlogged", 2).await;
}

/// The `id`s of a table's new rows, once this one is among them.
async fn ids_of(stage: &Stage, table: &str, last: i64) -> Vec<i64> {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let records = stage.records().await;
        let ids: Vec<i64> = rows(&records, table).iter().filter_map(|row| row["id"].as_i64()).collect();
        if ids.contains(&last) {
            return ids;
        }
        assert!(std::time::Instant::now() < deadline, "{table}: {ids:?}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

/// Each old row is told as far as the identity of its time allows; parents and children of inheritance are tables apart.
#[tokio::test(flavor = "multi_thread")]
async fn every_replica_identity_and_its_change_is_followed() {
    let stage = Stage::start(
        PostgresOptions::default(),
        "CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, code text NOT NULL UNIQUE, note text);
         CREATE TABLE parent (id int PRIMARY KEY, v int);
         CREATE TABLE child (extra text, PRIMARY KEY (id)) INHERITS (parent);
         CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a);
         CREATE TABLE c (b int REFERENCES b);",
        &[],
    )
    .await;
    stage
        .run_each(&[
            "INSERT INTO t (code, note) VALUES ('a', 'x')",
            "UPDATE t SET note = 'default'",
            "ALTER TABLE t REPLICA IDENTITY FULL",
            "UPDATE t SET note = 'full'",
            "ALTER TABLE t REPLICA IDENTITY USING INDEX t_code_key",
            "UPDATE t SET note = 'index'",
            "UPDATE t SET code = 'b'",
            "ALTER TABLE t REPLICA IDENTITY DEFAULT",
            "UPDATE t SET code = 'c'",
            "ALTER TABLE t REPLICA IDENTITY NOTHING",
        ])
        .await;
    assert_eq!(stage.gap("t", 1).await, "table_lost_identity");
    stage.run_each(&["UPDATE t SET note = 'nothing'", "INSERT INTO t (code) VALUES ('d')"]).await;
    stage.run("ALTER TABLE t REPLICA IDENTITY FULL").await;
    assert_eq!(stage.gap("t", 2).await, "table_gained_identity");
    stage
        .run_each(&[
            "DELETE FROM t WHERE code = 'd'",
            "INSERT INTO parent VALUES (1, 1)",
            "INSERT INTO child VALUES (2, 1, 'e')",
            "UPDATE parent SET v = 2",
            "DELETE FROM ONLY parent",
            "INSERT INTO a VALUES (1)",
            "INSERT INTO b VALUES (1, 1)",
            "TRUNCATE a, parent RESTART IDENTITY CASCADE",
        ])
        .await;
    let mut records = stage.records().await;
    records.retain(|record| record.value.is_some());
    let plain = |record: &Record| line(record).split(" __debezium").next().unwrap().to_owned();
    let mut found: Vec<String> = records.iter().map(plain).collect();
    let mut truncated = found.split_off(found.len() - 5);
    truncated.sort();
    assert_eq!(
        found,
        [
            r#"t {"id":1} c null {"code":"a","id":1,"note":"x"}"#,
            r#"t {"id":1} u null {"code":"a","id":1,"note":"default"}"#,
            r#"t {"id":1} u {"code":"a","id":1,"note":"default"} {"code":"a","id":1,"note":"full"}"#,
            r#"t {"code":"a"} u null {"code":"a","id":1,"note":"index"}"#,
            r#"t {"code":"a"} d {"code":"a"} null"#,
            r#"t {"code":"b"} c null {"code":"b","id":1,"note":"index"}"#,
            r#"t {"id":1} u null {"code":"c","id":1,"note":"index"}"#,
            r#"t {"id":2} c null {"code":"d","id":2,"note":null}"#,
            r#"t {"id":2} d {"code":"d","id":2,"note":null} null"#,
            r#"parent {"id":1} c null {"id":1,"v":1}"#,
            r#"child {"id":2} c null {"extra":"e","id":2,"v":1}"#,
            r#"parent {"id":1} u null {"id":1,"v":2}"#,
            r#"child {"id":2} u null {"extra":"e","id":2,"v":2}"#,
            r#"parent {"id":1} d {"id":1} null"#,
            r#"a {"id":1} c null {"id":1}"#,
            r#"b {"id":1} c null {"a":1,"id":1}"#,
        ]
    );
    assert_eq!(truncated, ["a", "b", "c", "child", "parent"].map(|table| format!("{table} - t null null")));
}
