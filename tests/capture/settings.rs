//! What a role, a database or its encoding changes for other sessions, and may not change in what we read.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use millrace::postgres::source::SourceConfig;
use millrace::postgres::{connect, replication::ReplicationConnection};
use millrace::proto::value::Kind;
use millrace::proto::{self, change};
use millrace_test_support::{
    Millrace, PASSWORD, Postgres, PostgresOptions, Record, read_raw_topic, read_topic,
};
use prost::Message;
use serde_json::Value;
use tokio_postgres::Client;

use crate::stage::{expect, rows, run};
use crate::types::decimal_text;

/// Waits until everything committed in this database is durable.
async fn caught_up(millrace: &Millrace, client: &Client) {
    let mark = "SELECT pg_logical_emit_message(true, 'test.mark', '')::text";
    millrace.wait_durable(client.query_one(mark, &[]).await.unwrap().get(0)).await;
}

/// A topic, with everything committed in this database.
async fn captured(millrace: &Millrace, client: &Client, topic: &str) -> Vec<Record> {
    caught_up(millrace, client).await;
    read_topic(&millrace.bootstrap(), topic).await
}

/// Defaults of the server, the database, the role, and the role in the database: the last of them would win.
#[tokio::test(flavor = "multi_thread")]
async fn defaults_of_role_and_database_change_nothing_that_is_read() {
    let postgres = Postgres::start(PostgresOptions::default().setting("wal_sender_timeout", "0")).await;
    let client = postgres.client().await;
    let mut setup = "CREATE ROLE capture LOGIN REPLICATION SUPERUSER PASSWORD 'secret';
         CREATE TABLE t (id int PRIMARY KEY, at timestamptz, day date, span interval, f float8, r real, raw bytea,
                         price money, class regclass, note text);
         CREATE TABLE \"Odd One\" (id int PRIMARY KEY);
         ALTER TABLE t REPLICA IDENTITY FULL;"
        .to_owned();
    let defaults = [
        "datestyle = 'SQL, DMY'",
        "intervalstyle = 'sql_standard'",
        "timezone = 'America/New_York'",
        "extra_float_digits = -15",
        "bytea_output = 'escape'",
        "client_encoding = 'LATIN1'",
        "search_path = 'public'",
        "quote_all_identifiers = on",
        "standard_conforming_strings = off",
        "xmloption = 'document'",
        "default_transaction_read_only = on",
        "default_transaction_isolation = 'serializable'",
        "default_transaction_deferrable = on",
        "row_security = on",
        "statement_timeout = '1ms'",
        "lock_timeout = '1ms'",
        "idle_in_transaction_session_timeout = '1ms'",
        "idle_session_timeout = '100ms'",
    ];
    for setting in defaults {
        setup.push_str(&format!("ALTER ROLE capture SET {setting};"));
        setup.push_str(&format!("ALTER ROLE capture IN DATABASE postgres SET {setting};"));
    }
    run(&client, &setup).await;
    let url = postgres.url_for("capture", "secret", "postgres");
    let data = tempfile::tempdir().unwrap();
    let millrace = Millrace::up(data.path(), &url, &["--task", "t"]).await;
    let settled = async |table: &str| {
        // Joins later: that takes a statement that writes.
        run(&client, &format!("CREATE TABLE {table} (id int PRIMARY KEY)")).await;
        let listed = format!("SELECT count(*) FROM pg_publication_tables WHERE tablename = '{table}'");
        while client.query_one(&listed, &[]).await.unwrap().get::<_, i64>(0) == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    settled("later").await;
    let mut writer = postgres.client().await;
    let insert = "SET datestyle = 'ISO'; SET timezone = 'UTC';
         INSERT INTO t VALUES (1, '2026-03-04 05:06:07.89+00', '2026-03-04', '1 year 2 days 03:04:05.6', 0.1, 1e-7,
                               '\\x00ff27', 12.34, '\"Odd One\"', 'größe 世界'); UPDATE t SET id = 2";
    writer.simple_query(insert).await.unwrap();
    // A transaction of ours may last longer than any of the timeouts.
    let open = writer.transaction().await.unwrap();
    open.batch_execute("INSERT INTO later VALUES (1)").await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    open.commit().await.unwrap();
    let mut records = captured(&millrace, &client, "t").await;
    // Perhaps as what was held while its rows were read.
    while rows(&records, "later").is_empty() {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        records = captured(&millrace, &client, "t").await;
    }
    let found: Vec<&Value> = records.iter().filter_map(|record| record.value.as_ref()).collect();
    assert_eq!(found.len(), 4, "{found:?}");
    for row in [&found[0]["after"], &found[1]["before"], &found[2]["after"]] {
        assert_eq!(row["at"], "2026-03-04T05:06:07.890000Z");
        assert_eq!(row["day"], 20516);
        assert_eq!(row["f"], 0.1);
        assert_eq!(row["r"], 1e-7);
        assert_eq!(row["raw"], "AP8n");
        assert_eq!(row["price"], "BNI=");
        assert_eq!(row["class"], "public.\"Odd One\"");
        assert_eq!(row["note"], "größe 世界");
        // A year, two days, and 03:04:05.6, in microseconds.
        assert_eq!(row["span"], 31_557_600_000_000_i64 + 172_800_000_000 + 11_045_600_000);
    }
    assert_eq!(rows(&records, "later"), [&serde_json::json!({ "id": 1 })]);

    // Both kinds of session are set, also where the connection string says otherwise.
    let config =
        SourceConfig::parse(&format!("{url}?options=-c%20datestyle%3DGerman%20-c%20row_security%3Don"))
            .unwrap();
    let control = connect::connect(&config).await.unwrap();
    let shown = "SELECT current_setting('datestyle') || current_setting('row_security')
                        || current_setting('lc_monetary') || current_setting('default_transaction_read_only')";
    assert_eq!(control.query_one(shown, &[]).await.unwrap().get::<_, String>(0), "ISO, YMDoffCoff");
    let replication = ReplicationConnection::connect(&config).await.unwrap();
    let silence = replication.wal_sender_timeout();
    assert_eq!(silence, Some(std::time::Duration::from_secs(60)), "a dead connection frees the slot");
}

/// A directory with the locales of currencies of no decimals and of three, where the machine can make them.
fn locales() -> Option<tempfile::TempDir> {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    for locale in ["ja_JP", "ar_BH"] {
        let file = directory.path().join(format!("{locale}.UTF-8"));
        let made = Command::new("localedef").args(["-i", locale, "-f", "UTF-8"]).arg(file).output();
        if !made.as_ref().is_ok_and(|made| made.status.success()) {
            println!(
                "not tested: locale {locale} cannot be made (Debian: apt-get install locales): {made:?}"
            );
            return None;
        }
    }
    Some(directory)
}

/// Rows that are read and rows that come, cast back by a session with the database's defaults.
#[tokio::test(flavor = "multi_thread")]
async fn money_has_the_decimals_of_the_databases_currency() {
    let Some(locales) = locales() else { return };
    let postgres = Postgres::start(PostgresOptions::default().locales(locales.path())).await;
    for (database, locale, format) in
        [("yen", "ja_JP.UTF-8", "debezium-json"), ("dinar", "ar_BH.UTF-8", "protobuf")]
    {
        run(&postgres.client().await, &format!("CREATE DATABASE {database}")).await;
        let default = format!("ALTER DATABASE {database} SET lc_monetary = '{locale}'");
        run(&postgres.client().await, &default).await;
        let url = postgres.url_for("postgres", PASSWORD, database);
        let client = postgres.client_for(&url).await;
        let setup = "CREATE TYPE priced AS (price money, prices money[]);
             CREATE TABLE t (id int PRIMARY KEY, v priced); INSERT INTO t VALUES (1, (1234.5, '{-0.049,7}'))";
        run(&client, setup).await;
        let data = tempfile::tempdir().unwrap();
        let millrace = Millrace::up(data.path(), &url, &["--format", format, "--start", "snapshot"]).await;
        millrace.wait_state("running").await;
        run(&client, "INSERT INTO t VALUES (2, (-98765.432, '{0.001,1000000}'))").await;
        caught_up(&millrace, &client).await;
        // Of each row, its three amounts.
        let amounts: Vec<[String; 3]> = match format {
            "protobuf" => {
                let records = read_raw_topic(&millrace.bootstrap(), database).await;
                records.iter().filter_map(|record| amounts_of_proto(record.value.as_deref()?)).collect()
            }
            _ => {
                let records = read_topic(&millrace.bootstrap(), database).await;
                let amount = |value: &Value| decimal_text(value.as_str().unwrap(), 2);
                let rows = rows(&records, "t").into_iter().map(|row| &row["v"]);
                rows.map(|row| [&row["price"], &row["prices"][0], &row["prices"][1]].map(amount)).collect()
            }
        };
        assert_eq!(amounts.len(), 2, "{amounts:?}");
        for (id, [price, first, second]) in (1..).zip(amounts) {
            let same = format!(
                "SELECT v = ROW('{price}'::numeric::money,
                                ARRAY['{first}'::numeric::money, '{second}'::numeric::money])::priced
                 FROM t WHERE id = {id}"
            );
            assert!(client.query_one(&same, &[]).await.unwrap().get::<_, bool>(0), "{database} {same}");
        }
    }
}

fn amounts_of_proto(record: &[u8]) -> Option<[String; 3]> {
    let change = proto::Change::decode(record).unwrap();
    let Some(change::Event::Row(row)) = change.event else { return None };
    let value = |row: proto::Row, place: usize| row.columns[place].value.clone().unwrap().kind.unwrap();
    let Kind::CompositeValue(priced) = value(row.after?, 1) else { panic!("no composite") };
    let Kind::ArrayValue(prices) = value(priced.clone(), 1) else { panic!("no array") };
    let amount = |kind| match kind {
        Kind::NumericValue(text) => text,
        other => panic!("{other:?} is no amount"),
    };
    let [first, second] = prices.elements.try_into().unwrap();
    Some([value(priced, 0), first.kind.unwrap(), second.kind.unwrap()].map(amount))
}

/// The server converts what it sends, whatever its database is encoded in.
#[tokio::test(flavor = "multi_thread")]
async fn databases_in_any_encoding_are_read_as_utf8() {
    let postgres = Postgres::start(PostgresOptions::default()).await;
    for (encoding, text) in [
        ("LATIN1", "Straße ÿ"),
        ("WIN1252", "„€ 5“ – Œuvre"),
        ("EUC_JP", "日本語のテーブル"),
        ("KOI8R", "Привет"),
    ] {
        let name = encoding.to_lowercase();
        let create = format!("CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0");
        run(&postgres.client().await, &create).await;
        let url = postgres.url_for("postgres", PASSWORD, &name);
        let client = postgres.client_for(&url).await;
        run(&client, &format!("CREATE TABLE \"{text}\" (\"{text}\" text PRIMARY KEY)")).await;
        let data = tempfile::tempdir().unwrap();
        let millrace = Millrace::up(data.path(), &url, &[]).await;
        run(&client, &format!("INSERT INTO \"{text}\" VALUES ('{text}')")).await;
        let records = captured(&millrace, &client, &name).await;
        let line = format!(r#"{text} {{"{text}":"{text}"}} c null {{"{text}":"{text}"}}"#);
        expect(&records, &[&line]);
    }
}

/// SQL_ASCII means that the server does not know. The task goes on, and says so beforehand.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_utf8_are_marked_and_the_task_goes_on() {
    let postgres = Postgres::start(PostgresOptions::default()).await;
    let create = "CREATE DATABASE raw ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0";
    run(&postgres.client().await, create).await;
    let url = postgres.url_for("postgres", PASSWORD, "raw");
    let client = postgres.client_for(&url).await;
    run(
        &client,
        "CREATE TABLE t (id int PRIMARY KEY, note text); CREATE TABLE \"größe\" (id int PRIMARY KEY)",
    )
    .await;
    let data = tempfile::tempdir().unwrap();
    let millrace = Millrace::up(data.path(), &url, &[]).await;
    assert!(millrace.output().contains("the database's encoding is SQL_ASCII"), "{}", millrace.output());
    run(
        &client,
        "INSERT INTO t VALUES (1, convert_from('\\x636166e9', 'SQL_ASCII')), (2, 'größe');
         INSERT INTO \"größe\" VALUES (1)",
    )
    .await;
    let records = captured(&millrace, &client, "raw").await;
    let notes: Vec<&Value> = rows(&records, "t").into_iter().map(|row| &row["note"]).collect();
    assert_eq!(notes, ["caf\u{fffd}", "größe"]);
    assert_eq!(rows(&records, "größe").len(), 1);
}

/// The single-byte encodings give some bytes no meaning, and a client of the same encoding may store them.
#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_the_server_cannot_convert_is_told_with_the_way_out() {
    let postgres = Postgres::start(PostgresOptions::default()).await;
    let create = "CREATE DATABASE western ENCODING 'WIN1252' LOCALE 'C' TEMPLATE template0";
    run(&postgres.client().await, create).await;
    let url = postgres.url_for("postgres", PASSWORD, "western");
    let client = postgres.client_for(&url).await;
    run(&client, "CREATE TABLE t (id int PRIMARY KEY, note text)").await;
    let data = tempfile::tempdir().unwrap();
    let mut millrace = Millrace::up(data.path(), &url, &[]).await;
    run(&client, "INSERT INTO t VALUES (1, convert_from('\\x6181', 'WIN1252'))").await;
    let reason = millrace.wait_state("retrying").await;
    assert!(reason.contains("cannot send a text as UTF-8") && reason.contains("--accept-gap"), "{reason}");
    millrace.sigterm();
    assert!(millrace.wait().await.success());
    run(&client, "SELECT pg_drop_replication_slot('millrace_western'); UPDATE t SET note = 'mended'").await;
    millrace.add_args(&["--accept-gap"]);
    millrace.spawn_again();
    millrace.wait_ready().await;
    run(&client, "INSERT INTO t VALUES (2, '€')").await;
    let records = captured(&millrace, &client, "western").await;
    expect(&records, &[r#"t {"id":2} c null {"id":2,"note":"€"}"#]);
    let events = read_topic(&millrace.bootstrap(), "western.events").await;
    assert!(events.iter().any(|event| event.value.as_ref().unwrap()["type"] == "gap"), "{events:?}");
}
