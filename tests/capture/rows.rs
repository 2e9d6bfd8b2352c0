//! Rows: which records an insert, update, delete or truncate makes, under which key, whatever the replica identity.

use millrace_test_support::PostgresOptions;

use crate::stage::{Stage, expect, rows};

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_has_its_records_under_the_rows_key() {
    let stage = Stage::start(
        PostgresOptions::default(),
        "CREATE TABLE one (id int PRIMARY KEY, note text);
         CREATE TABLE two (a int, b text, c int, PRIMARY KEY (c, a));
         CREATE TABLE whole (id int, note text);
         ALTER TABLE whole REPLICA IDENTITY FULL;
         CREATE TABLE whole_key (id int PRIMARY KEY, note text);
         ALTER TABLE whole_key REPLICA IDENTITY FULL;
         CREATE TABLE indexed (x int NOT NULL, y int NOT NULL, note text);
         CREATE UNIQUE INDEX indexed_yx ON indexed (y, x);
         ALTER TABLE indexed REPLICA IDENTITY USING INDEX indexed_yx;
         CREATE TABLE other_index (id int PRIMARY KEY, code text NOT NULL UNIQUE, note text);
         ALTER TABLE other_index REPLICA IDENTITY USING INDEX other_index_code_key;",
        &[],
    )
    .await;
    stage
        .run_each(&[
            "INSERT INTO one VALUES (1, 'a'), (2, NULL)",
            "UPDATE one SET note = 'b' WHERE id = 1",
            "UPDATE one SET id = 3 WHERE id = 1",
            "DELETE FROM one WHERE id = 3",
            "INSERT INTO one VALUES (2, 'c') ON CONFLICT (id) DO UPDATE SET note = excluded.note",
            "INSERT INTO two VALUES (1, 'x', 2)",
            "UPDATE two SET a = 5",
            "DELETE FROM two",
            "INSERT INTO whole VALUES (1, 'a')",
            "UPDATE whole SET id = 2",
            "DELETE FROM whole",
            "INSERT INTO whole_key VALUES (1, 'a')",
            "UPDATE whole_key SET note = 'b'",
            "UPDATE whole_key SET id = 2",
            "DELETE FROM whole_key",
            "INSERT INTO indexed VALUES (1, 2, 'a')",
            "UPDATE indexed SET x = 3",
            "DELETE FROM indexed",
            "INSERT INTO other_index VALUES (1, 'A', 'a')",
            "UPDATE other_index SET id = 2",
            "DELETE FROM other_index",
            "TRUNCATE one, two",
        ])
        .await;
    let records = stage.records().await;
    expect(
        &records,
        &[
            r#"one {"id":1} c null {"id":1,"note":"a"}"#,
            r#"one {"id":2} c null {"id":2,"note":null}"#,
            r#"one {"id":1} u null {"id":1,"note":"b"}"#,
            r#"one {"id":1} d {"id":1} null __debezium.newkey={"id":3}"#,
            r#"{"id":1} tombstone __debezium.newkey={"id":3}"#,
            r#"one {"id":3} c null {"id":3,"note":"b"} __debezium.oldkey={"id":1}"#,
            r#"one {"id":3} d {"id":3} null"#,
            r#"{"id":3} tombstone"#,
            r#"one {"id":2} u null {"id":2,"note":"c"}"#,
            r#"two {"c":2,"a":1} c null {"a":1,"b":"x","c":2}"#,
            r#"two {"c":2,"a":1} d {"a":1,"c":2} null __debezium.newkey={"c":2,"a":5}"#,
            r#"{"c":2,"a":1} tombstone __debezium.newkey={"c":2,"a":5}"#,
            r#"two {"c":2,"a":5} c null {"a":5,"b":"x","c":2} __debezium.oldkey={"c":2,"a":1}"#,
            r#"two {"c":2,"a":5} d {"a":5,"c":2} null"#,
            r#"{"c":2,"a":5} tombstone"#,
            r#"whole - c null {"id":1,"note":"a"}"#,
            r#"whole - u {"id":1,"note":"a"} {"id":2,"note":"a"}"#,
            r#"whole - d {"id":2,"note":"a"} null"#,
            r#"whole_key {"id":1} c null {"id":1,"note":"a"}"#,
            r#"whole_key {"id":1} u {"id":1,"note":"a"} {"id":1,"note":"b"}"#,
            r#"whole_key {"id":1} d {"id":1,"note":"b"} null __debezium.newkey={"id":2}"#,
            r#"{"id":1} tombstone __debezium.newkey={"id":2}"#,
            r#"whole_key {"id":2} c null {"id":2,"note":"b"} __debezium.oldkey={"id":1}"#,
            r#"whole_key {"id":2} d {"id":2,"note":"b"} null"#,
            r#"{"id":2} tombstone"#,
            r#"indexed {"y":2,"x":1} c null {"note":"a","x":1,"y":2}"#,
            r#"indexed {"y":2,"x":1} d {"x":1,"y":2} null __debezium.newkey={"y":2,"x":3}"#,
            r#"{"y":2,"x":1} tombstone __debezium.newkey={"y":2,"x":3}"#,
            r#"indexed {"y":2,"x":3} c null {"note":"a","x":3,"y":2} __debezium.oldkey={"y":2,"x":1}"#,
            r#"indexed {"y":2,"x":3} d {"x":3,"y":2} null"#,
            r#"{"y":2,"x":3} tombstone"#,
            r#"other_index {"code":"A"} c null {"code":"A","id":1,"note":"a"}"#,
            r#"other_index {"code":"A"} u null {"code":"A","id":2,"note":"a"}"#,
            r#"other_index {"code":"A"} d {"code":"A"} null"#,
            r#"{"code":"A"} tombstone"#,
            r#"one - t null null"#,
            r#"two - t null null"#,
        ],
    );
    assert!(stage.events().await.is_empty(), "no gap, and none of Millrace's own messages");
}

/// An unsent value is not null: the placeholder and a header say so; a whole old row fills it in.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_value_that_did_not_change_is_marked_or_filled_in_and_never_null() {
    let stage = Stage::start(
        PostgresOptions::default(),
        "CREATE TABLE big (id int PRIMARY KEY, note text, doc text, raw bytea, list text[], amount numeric);
         CREATE TABLE filled (id int PRIMARY KEY, note text, doc text);
         ALTER TABLE filled REPLICA IDENTITY FULL;
         CREATE TABLE long_key (k text PRIMARY KEY, note text);
         ALTER TABLE big ALTER doc SET STORAGE EXTERNAL, ALTER raw SET STORAGE EXTERNAL,
                         ALTER list SET STORAGE EXTERNAL, ALTER amount SET STORAGE EXTERNAL;
         ALTER TABLE filled ALTER doc SET STORAGE EXTERNAL;",
        &[],
    )
    .await;
    stage
        .run_each(&[
            "INSERT INTO big VALUES (1, 'a', repeat('d', 9000), decode(repeat('00', 9000), 'hex'),
                 ARRAY[repeat('l', 9000)], repeat('7', 20000)::numeric)",
            "UPDATE big SET note = 'b'",
            "UPDATE big SET doc = NULL",
            "UPDATE big SET id = 2",
            "INSERT INTO filled VALUES (1, 'a', repeat('d', 9000))",
            "UPDATE filled SET note = 'b'",
            "UPDATE filled SET id = 2",
            // Too long for its row and short enough for an index.
            "INSERT INTO long_key SELECT string_agg(md5(n::text), ''), 'a' FROM generate_series(1, 80) n",
            "UPDATE long_key SET note = 'b'",
            "DELETE FROM long_key",
        ])
        .await;
    let records = stage.records().await;
    let header = |index: usize| {
        let headers = &records[index].headers;
        headers.iter().find(|(name, _)| name == "millrace.unavailable").map(|(_, value)| value.as_str())
    };
    let placeholder = "__debezium_unavailable_value";
    let big = rows(&records, "big");
    let updated = big[1];
    assert_eq!((updated["doc"].as_str(), updated["note"].as_str()), (Some(placeholder), Some("b")));
    assert_eq!(updated["raw"], "X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==");
    assert_eq!(updated["list"][0], placeholder);
    assert_eq!(updated["amount"], placeholder);
    assert_eq!((header(0), header(1)), (None, Some("doc,raw,list,amount")));
    assert!(big[2]["doc"].is_null());
    assert_eq!(header(2), Some("raw,list,amount"));
    // Deletion, tombstone, creation of the changed key.
    assert_eq!([header(3), header(4), header(5)], [None, None, Some("raw,list,amount")]);

    let filled = rows(&records, "filled");
    let doc = "d".repeat(9000);
    assert_eq!(filled.len(), 4);
    for after in [filled[0], filled[1], filled[3]] {
        assert_eq!(after["doc"].as_str(), Some(doc.as_str()));
    }
    let start = records
        .iter()
        .position(|record| record.value.as_ref().is_some_and(|v| v["source"]["table"] == "filled"));
    assert!((start.unwrap()..records.len()).all(|index| header(index).is_none()));

    let keys: Vec<_> =
        records[records.len() - 4..].iter().map(|record| record.key.as_ref().unwrap()).collect();
    assert_eq!(keys[0]["k"].as_str().unwrap().len(), 80 * 32);
    assert!(keys.iter().all(|key| *key == keys[0]), "an unsent key is taken from the old row");
    let long = rows(&records, "long_key");
    assert_eq!((long[1]["note"].as_str(), &long[1]["k"]), (Some("b"), &long[0]["k"]));
}

/// I7: nothing that a user does in a table without identity fails, and the task says what it cannot capture there.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_identity_gives_its_inserts_and_its_users_are_not_hindered() {
    let stage = Stage::start(
        PostgresOptions::default(),
        "CREATE TABLE keyless (id int, note text);
         CREATE TABLE deferred (id int PRIMARY KEY DEFERRABLE, note text);
         CREATE TABLE nothing (id int PRIMARY KEY, note text);
         ALTER TABLE nothing REPLICA IDENTITY NOTHING;
         CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY);
         CREATE TABLE parent (id int, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
         CREATE TABLE parent_2026 PARTITION OF parent FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');",
        &[],
    )
    .await;
    let tables = ["keyless", "deferred", "nothing"];
    for table in tables {
        stage
            .run_each(&[
                &format!("INSERT INTO {table} VALUES (1, 'a'), (2, 'b')"),
                &format!("UPDATE {table} SET note = 'c'"),
                &format!("DELETE FROM {table} WHERE id = 1"),
                &format!("TRUNCATE {table}"),
            ])
            .await;
    }
    stage
        .run_each(&[
            "CREATE TEMP TABLE passing AS SELECT 1 AS id",
            "UPDATE passing SET id = 2",
            "INSERT INTO unlogged VALUES (1)",
            "UPDATE unlogged SET id = 2",
            "INSERT INTO parent VALUES (1, '2026-05-01')",
            "UPDATE parent SET id = 2",
            "DELETE FROM parent",
        ])
        .await;
    let records = stage.records().await;
    expect(
        &records,
        &[
            r#"keyless - c null {"id":1,"note":"a"}"#,
            r#"keyless - c null {"id":2,"note":"b"}"#,
            r#"keyless - t null null"#,
            r#"deferred {"id":1} c null {"id":1,"note":"a"}"#,
            r#"deferred {"id":2} c null {"id":2,"note":"b"}"#,
            r#"deferred - t null null"#,
            r#"nothing {"id":1} c null {"id":1,"note":"a"}"#,
            r#"nothing {"id":2} c null {"id":2,"note":"b"}"#,
            r#"nothing - t null null"#,
            r#"parent_2026 {"id":1,"at":20574} c null {"at":20574,"id":1}"#,
            r#"parent_2026 {"id":1,"at":20574} d {"at":20574,"id":1} null __debezium.newkey={"id":2,"at":20574}"#,
            r#"{"id":1,"at":20574} tombstone __debezium.newkey={"id":2,"at":20574}"#,
            r#"parent_2026 {"id":2,"at":20574} c null {"at":20574,"id":2} __debezium.oldkey={"id":1,"at":20574}"#,
            r#"parent_2026 {"id":2,"at":20574} d {"at":20574,"id":2} null"#,
            r#"{"id":2,"at":20574} tombstone"#,
        ],
    );
    assert_eq!(stage.insert_only(), ["deferred", "keyless", "nothing"]);
}
