//! The format `protobuf`: what a reader of the schema makes of a user's changes.

use millrace::proto::value::Kind;
use millrace::proto::{self, change};
use millrace_test_support::{PostgresOptions, RawRecord, read_raw_topic};
use prost::Message;

use crate::catalogue::{Catalogue, from_proto};
use crate::stage::{Stage, TASK, run};
use crate::types::{CASES, MADE_TYPES};

async fn start(setup: &str) -> Stage {
    Stage::start(PostgresOptions::default(), setup, &["--format", "protobuf"]).await
}

/// The row changes in the topic, once everything committed has arrived, with their keys. Messages stand among them.
async fn row_changes(stage: &Stage) -> Vec<(proto::Key, proto::RowChange)> {
    stage.caught_up().await;
    let records = read_raw_topic(&stage.millrace.bootstrap(), TASK).await;
    let decode = |record: &RawRecord| {
        let change = proto::Change::decode(record.value.as_deref().unwrap()).unwrap();
        match change.event {
            Some(change::Event::Row(row)) => {
                Some((proto::Key::decode(record.key.as_deref().unwrap()).unwrap(), row))
            }
            Some(change::Event::Message(_)) => None,
            other => panic!("{other:?} is neither a row nor a message"),
        }
    };
    records.iter().filter_map(decode).collect()
}

/// A row as `name=value`, where a value is what the server would take for it.
fn line(row: Option<&proto::Row>) -> String {
    let column = |column: &proto::Column| format!("{}={}", column.name, sql(column.value.as_ref().unwrap()));
    row.map_or("-".to_owned(), |row| row.columns.iter().map(column).collect::<Vec<_>>().join(" "))
}

/// SQL for a value of the types that [`line`] meets.
fn sql(value: &proto::Value) -> String {
    match value.kind.as_ref().unwrap() {
        Kind::Null(_) => "NULL".to_owned(),
        Kind::Unsent(_) => "unsent".to_owned(),
        Kind::IntValue(value) => format!("'{value}'"),
        Kind::TextValue(text) => format!("'{text}'"),
        other => panic!("{other:?} is not expected here"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_value_cast_back_is_what_the_server_holds() {
    let mut setup = MADE_TYPES.to_owned();
    for (number, case) in CASES.iter().enumerate() {
        setup.push_str(&format!(
            "CREATE TABLE type_{number} (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v {0}, a {0}[]);",
            case.type_name
        ));
    }
    let stage = start(&setup).await;
    run(&stage.client, "SET timezone = 'UTC'").await;
    let mut inserted = 0;
    for (number, case) in CASES.iter().enumerate() {
        for value in case.all_values() {
            inserted += 1;
            let array = if case.has_array() { "ARRAY[x, NULL]" } else { "NULL" };
            stage
                .run(&format!(
                    "INSERT INTO type_{number} (v, a) SELECT x, {array} FROM (SELECT ({value})::{} AS x) s",
                    case.type_name
                ))
                .await;
        }
        if case.type_name != "list_price" {
            stage.run(&format!("INSERT INTO type_{number} (v) VALUES (NULL)")).await;
        }
    }
    let catalogue = Catalogue::read(&stage.client).await;
    let mut wrong = Vec::new();
    let changes = row_changes(&stage).await;
    for (_, change) in &changes {
        let table = &change.table.as_ref().unwrap().name;
        let case = &CASES[table.strip_prefix("type_").unwrap().parse::<usize>().unwrap()];
        let [id, v, a] = &change.after.as_ref().unwrap().columns[..] else { panic!("{change:?}") };
        let value = |column: &proto::Column| column.value.clone().unwrap();
        for (column, type_name) in [(v, case.type_name.to_owned()), (a, format!("{}[]", case.type_name))] {
            let delivered = from_proto(&catalogue, column.type_oid, &value(column));
            let query = format!(
                "SELECT format('%L', {}) = format('%L', {delivered}) FROM {table} WHERE id = {}",
                column.name,
                sql(&value(id))
            );
            let short = |text: &str| text.chars().take(300).collect::<String>();
            match stage.client.query_one(&query, &[]).await {
                Ok(row) if row.get::<_, Option<bool>>(0) == Some(true) => {}
                Ok(_) => wrong.push(format!("{type_name}: {}", short(&query))),
                Err(error) => wrong.push(format!("{type_name}: {error:?}: {}", short(&query))),
            }
        }
    }
    assert!(wrong.is_empty(), "{} values differ:\n{}", wrong.len(), wrong.join("\n"));
    // Each type has a null too, but for list_price.
    assert_eq!(changes.len(), inserted + CASES.len() - 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_sends_of_updates_and_deletes_is_told_apart_from_null() {
    let stage = start(
        "CREATE TABLE docs (id int PRIMARY KEY, title text, body text);
         ALTER TABLE docs ALTER body SET STORAGE EXTERNAL;
         CREATE TABLE whole (LIKE docs INCLUDING ALL);
         ALTER TABLE whole REPLICA IDENTITY FULL",
    )
    .await;
    for table in ["docs", "whole"] {
        stage
            .run_each(&[
                &format!("INSERT INTO {table} VALUES (1, NULL, repeat('x', 5000))"),
                &format!("UPDATE {table} SET title = 'a'"),
                &format!("UPDATE {table} SET id = 2"),
                &format!("DELETE FROM {table}"),
            ])
            .await;
    }
    let found: Vec<String> = row_changes(&stage)
        .await
        .iter()
        .map(|(key, change)| {
            let columns = |columns: &Vec<proto::Column>| line(Some(&proto::Row { columns: columns.clone() }));
            let moved_to = change.moved_to.as_ref().map(|key| columns(&key.columns)).unwrap_or_default();
            let operation = change.operation().as_str_name().trim_start_matches("OPERATION_");
            let (before, after) = (line(change.before.as_ref()), line(change.after.as_ref()));
            let line =
                format!("{} {} {operation} {before} {after} {moved_to}", key.table, columns(&key.columns));
            line.replace(&"x".repeat(5000), "xx")
        })
        .collect();
    let whole = "id='1' title='a' body='xx'";
    assert_eq!(
        found,
        [
            "docs id='1' INSERT - id='1' title=NULL body='xx' ",
            "docs id='1' UPDATE - id='1' title='a' body=unsent ",
            "docs id='2' UPDATE id='1' id='2' title='a' body=unsent ",
            "docs id='1' DELETE id='1' - id='2'",
            "docs id='2' DELETE id='2' - ",
            "whole id='1' INSERT - id='1' title=NULL body='xx' ",
            "whole id='1' UPDATE id='1' title=NULL body='xx' id='1' title='a' body='xx' ",
            &format!("whole id='2' UPDATE {whole} id='2' title='a' body='xx' "),
            &format!("whole id='1' DELETE {whole} - id='2'"),
            "whole id='2' DELETE id='2' title='a' body='xx' - ",
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shape_version_changes_with_the_table_and_comes_back_with_it() {
    let stage = start("CREATE TABLE t (id int PRIMARY KEY, v varchar(10))").await;
    let mut shapes = vec![];
    for change in [
        "SELECT 1",
        "ALTER TABLE t ALTER v TYPE varchar(20)",
        "ALTER TABLE t ADD w int",
        "ALTER TABLE t DROP w",
        "ALTER TABLE t ALTER v TYPE varchar(10)",
        "ALTER TABLE t REPLICA IDENTITY FULL",
    ] {
        stage.run_each(&[change, "INSERT INTO t SELECT count(*) FROM t"]).await;
    }
    for (_, change) in row_changes(&stage).await {
        shapes.push(change.table.unwrap().shape_version);
    }
    assert_eq!((shapes[3], shapes[4], shapes[5]), (shapes[1], shapes[0], shapes[0]));
    assert!(shapes[0] != shapes[1] && shapes[1] != shapes[2] && shapes[0] != shapes[2], "{shapes:?}");
}
