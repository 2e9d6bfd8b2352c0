//! Which tables a task tracks.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use millrace_test_support::{PASSWORD, PostgresOptions, Record};
use serde_json::{Value, json};

use crate::stage::{Stage, rows};

impl Stage {
    /// Runs `millrace task` against the broker: its exit code, and all that it has printed.
    pub async fn task_command(&self, args: &[&str]) -> (i32, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_millrace"));
        let endpoint = format!("http://127.0.0.1:{}", self.millrace.http_port());
        command.arg("task").args(args);
        command.env("MILLRACE_DATA_DIR", self.data_dir()).env("MILLRACE_ENDPOINT", endpoint);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let printed = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(printed).unwrap())
    }

    async fn rows_of_b(&self) -> BTreeMap<i64, i64> {
        let rows = self.client.query("SELECT id::int8, n::int8 FROM b", &[]).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    /// The task, with its tables.
    fn show(&self) -> Value {
        serde_json::from_str(&self.millrace.get("/api/v1/tasks/t").unwrap().1).unwrap()
    }

    /// A PATCH of the task, with these headers.
    fn patch(&self, headers: &str, body: &str) -> (u16, String) {
        self.millrace.request("PATCH", "/api/v1/tasks/t", headers, body).unwrap()
    }

    /// Waits until exactly these tables are published, `schema.name` by name.
    async fn published(&self, expected: &str) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let published = self
                .ask(
                    "SELECT coalesce(string_agg(prrelid::regclass::text, ' ' ORDER BY prrelid::regclass::text), '')
                     FROM pg_publication_rel",
                )
                .await;
            if published == expected {
                return;
            }
            assert!(Instant::now() < deadline, "published: {published}, not {expected}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// A table's rows, `id` and `n`, as its records say. Each must fit what is there.
fn rebuilt(records: &[Record], table: &str) -> BTreeMap<i64, i64> {
    let mut rows = BTreeMap::new();
    let events = records.iter().filter_map(|record| record.value.as_ref());
    for event in events.filter(|event| event["source"]["table"] == table) {
        let row = |row: &Value| (row["id"].as_i64().unwrap(), row["n"].as_i64().unwrap_or_default());
        let known = match event["op"].as_str().unwrap() {
            "d" => rows.remove(&row(&event["before"]).0),
            _ => {
                let (id, n) = row(&event["after"]);
                rows.insert(id, n)
            }
        };
        // A row may be read again, after a reading that was interrupted.
        let op = event["op"].as_str().unwrap();
        assert!(op == "r" || known.is_some() == ["u", "d"].contains(&op), "{event}");
    }
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_tracks_the_tables_that_its_patterns_mean_also_when_they_are_made_renamed_or_attached_later() {
    let setup = r#"
        CREATE SCHEMA sales; CREATE SCHEMA "odd.one"; CREATE SCHEMA elsewhere;
        CREATE TABLE sales.orders (id int PRIMARY KEY); CREATE TABLE sales.tmp_1 (id int PRIMARY KEY);
        CREATE TABLE "odd.one"."A*" (id int PRIMARY KEY); CREATE TABLE "odd.one"."AB" (id int PRIMARY KEY);
        CREATE TABLE elsewhere.other (id int PRIMARY KEY);
        CREATE TABLE sales.parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
        CREATE TABLE elsewhere.part_1 PARTITION OF sales.parts FOR VALUES FROM (0) TO (10);
        CREATE VIEW public.v AS SELECT 1 AS id; CREATE UNLOGGED TABLE public.u (id int);"#;
    let patterns = [
        "--tables",
        "sales.*",
        "--tables",
        "\"odd.one\".\"A*\"",
        "--tables",
        "public.?",
        "--tables",
        "new_*.*",
        "--exclude",
        "*.tmp_*",
    ];
    let mut stage = Stage::start(PostgresOptions::default(), setup, &patterns).await;
    let at_first = r#""odd.one"."A*" elsewhere.part_1 sales.orders sales.parts"#;
    stage.published(at_first).await;
    let unmatched = [
        "public.? means only what cannot be captured: \"public\".\"u\" (an unlogged table), \"public\".\"v\" (a view)",
        "new_*.* means no table; a table of that name joins when it is made",
    ];
    assert_eq!(stage.task()["unmatched"], json!(unmatched));
    assert!(stage.millrace.output().contains(&format!("warning  tables: {}", unmatched.join("; "))));

    stage
        .run_each(&[
            "INSERT INTO sales.orders VALUES (1)",
            "INSERT INTO sales.tmp_1 VALUES (2)",
            r#"INSERT INTO "odd.one"."A*" VALUES (3)"#,
            r#"INSERT INTO "odd.one"."AB" VALUES (4)"#,
            "INSERT INTO elsewhere.other VALUES (5)",
            "INSERT INTO sales.parts VALUES (6)",
        ])
        .await;
    let records = stage.records().await;
    assert_eq!(records.len(), 3, "{records:?}");
    assert_eq!(rows(&records, "orders"), [&json!({"id": 1})]);
    assert_eq!(rows(&records, "A*"), [&json!({"id": 3})]);
    assert_eq!(rows(&records, "part_1"), [&json!({"id": 6})]);

    // A new schema, a table renamed into the selection and one out of it, a partition attached and one detached.
    stage
        .run_each(&[
            "CREATE SCHEMA new_one; CREATE TABLE new_one.t (id int PRIMARY KEY)",
            "ALTER TABLE sales.tmp_1 RENAME TO kept",
            "ALTER TABLE sales.orders RENAME TO tmp_orders",
            "ALTER TABLE sales.parts DETACH PARTITION elsewhere.part_1",
            "ALTER TABLE sales.parts ATTACH PARTITION elsewhere.other FOR VALUES FROM (0) TO (10)",
        ])
        .await;
    stage.published(r#""odd.one"."A*" elsewhere.other new_one.t sales.kept sales.parts"#).await;
    for table in ["t", "kept", "other"] {
        stage.read(table, 1).await;
    }
    let before = stage.records().await.len();
    stage
        .run_each(&[
            "INSERT INTO new_one.t VALUES (11)",
            "INSERT INTO sales.kept VALUES (12)",
            "INSERT INTO sales.tmp_orders VALUES (13)",
            "INSERT INTO elsewhere.part_1 VALUES (9)",
            "INSERT INTO sales.parts VALUES (8)",
        ])
        .await;
    let records = stage.records().await.split_off(before);
    assert_eq!(records.len(), 3, "{records:?}");
    assert_eq!(rows(&records, "t"), [&json!({"id": 11})]);
    assert_eq!(rows(&records, "kept"), [&json!({"id": 12})]);
    assert_eq!(rows(&records, "other"), [&json!({"id": 8})]);

    // What is said at a later start changes nothing, and what differs is named.
    stage.millrace.add_args(&["--tables", "public.*", "--start", "snapshot"]);
    stage.millrace.restart().await;
    let output = stage.millrace.output();
    for part in [
        "--tables is sales.*, \"odd.one\".\"A*\", public.?, new_*.*, not sales.*, \"odd.one\".\"A*\", public.?, new_*.*, \
         public.*;",
        "--start is now, not snapshot;",
    ] {
        assert!(output.contains(part), "{part} is not in\n{output}");
    }
    assert!(!output.contains("--exclude is"), "{output}");
    stage.published(r#""odd.one"."A*" elsewhere.other new_one.t sales.kept sales.parts"#).await;
}

/// A writer goes on all the time: nothing that is done to the task fails or holds up one of its statements.
#[tokio::test(flavor = "multi_thread")]
async fn tables_are_added_and_removed_while_the_task_runs_and_that_survives_a_kill() {
    let setup = "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY, n int NOT NULL);
                 INSERT INTO b SELECT -i, 0 FROM generate_series(1, 20000) i;
                 CREATE TABLE c (id int PRIMARY KEY); CREATE VIEW v AS SELECT 1 AS id";
    let mut stage = Stage::start(PostgresOptions::default(), setup, &["--tables", "public.a"]).await;
    stage.published("a").await;
    let writer = stage.postgres.client().await;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let writing = tokio::spawn(async move {
        for id in (0..).take_while(|_| !*stopped.borrow()) {
            let both = format!(
                "BEGIN; INSERT INTO a VALUES ({id}); INSERT INTO b VALUES ({id}, 0);
                 UPDATE b SET n = n + 1 WHERE id IN ({id} / 2, -{id} * 3);
                 DELETE FROM b WHERE id IN ({id} / 3, -{id} * 5); COMMIT"
            );
            writer.batch_execute(&both).await.unwrap();
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });

    let (code, said) = stage.task_command(&["tables", "t", "--add", "public.b", "--add", "public.v"]).await;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("tracks    public.a, public.b, public.v"), "{said}");
    stage.published("a b").await;
    stage.read("b", 1).await;
    let (code, shown) = stage.task_command(&["show", "t", "--output", "json"]).await;
    assert_eq!(code, 0, "{shown}");
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["objects"]["include"], json!(["public.a", "public.b", "public.v"]));
    let table = |name: &str| json!({"schema": "public", "name": name, "insert_only": false, "told_as": null});
    assert_eq!(shown["tables"], json!([table("a"), table("b")]));
    assert_eq!(shown["unmatched"].as_array().unwrap().len(), 1, "{shown}");

    // The table that leaves: what was committed before is there, and nothing of what is written after. The writer may have
    // a transaction open then.
    assert_eq!(stage.task_command(&["tables", "t", "--exclude", "public.a"]).await.0, 0);
    stage.published("b").await;
    let at_most = stage.ask("SELECT max(id)::text FROM a").await.parse::<i64>().unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    stop.send_replace(true);
    writing.await.unwrap();
    let records = stage.records().await;
    let of_a: Vec<i64> = rows(&records, "a").iter().map(|row| row["id"].as_i64().unwrap()).collect();
    let last = *of_a.last().unwrap();
    assert!(last <= at_most + 1, "{last} came after the table had left, at {at_most}");
    assert_eq!(of_a, (0..=last).collect::<Vec<_>>(), "up to the border nothing is missing or repeated");
    assert_eq!(rebuilt(&records, "b"), stage.rows_of_b().await);

    // Read once more because somebody asks for it.
    let before = records.len();
    assert_eq!(stage.task_command(&["snapshot", "t", "public.b"]).await.0, 0);
    stage.read("b", 2).await;
    assert_eq!(rebuilt(&stage.records().await[before..], "b"), stage.rows_of_b().await);
    assert_eq!(stage.task()["state"], "running");

    stage.millrace.restart().await;
    stage.published("b").await;
    let (_, listed) = stage.task_command(&["list"]).await;
    assert!(listed.contains("public.a, public.b, public.v without public.a"), "{listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_a_task_needs_the_token_and_what_is_wrong_with_it_is_said() {
    let stage = Stage::start(PostgresOptions::default(), "CREATE TABLE a (id int PRIMARY KEY)", &[]).await;
    stage.published("a").await;
    let change = r#"{"objects":{"include":["public.a"]}}"#;
    let token = std::fs::read_to_string(stage.data_dir().join("admin-token")).unwrap();
    let with_token = format!("Authorization: Bearer {}\r\nContent-Type: application/json\r\n", token.trim());
    let wrong = with_token.replace(token.trim(), &"0".repeat(64));
    for (headers, body, status, part) in [
        ("", change, 401, "admin-token of the data directory"),
        ("Authorization: Basic YTpi\r\n", change, 401, "admin token"),
        (wrong.as_str(), change, 401, "admin token"),
        (with_token.as_str(), "{", 400, "docs/operations.md"),
        (with_token.as_str(), r#"{"objects":{"include":[]}}"#, 422, "write *.* for the whole database"),
        (with_token.as_str(), r#"{"objects":{"include":["a"]}}"#, 422, "write public.a"),
        (
            with_token.as_str(),
            r#"{"object":{}}"#,
            422,
            "unknown variant `object`, expected `objects` or `tables`",
        ),
        (&format!("{with_token}Origin: http://evil.example\r\n"), change, 403, "other sites"),
        (&with_token.replace("application/json", "text/plain"), change, 415, "application/json"),
    ] {
        let (answered, said) = stage.patch(headers, body);
        assert_eq!(answered, status, "{headers} {body}: {said}");
        assert!(said.contains(part), "{headers} {body}: {said}");
        assert!(!said.contains(token.trim()));
    }
    assert_eq!(stage.task()["objects"], json!({"include": ["*.*"], "exclude": []}));
    let (status, changed) = stage.patch(&with_token, change);
    assert_eq!(status, 200, "{changed}");
    assert_eq!(stage.task()["objects"], json!({"include": ["public.a"], "exclude": []}));

    for (args, code, part) in [
        (&["show", "other"][..], 3, "there is no task other here; GET /api/v1/tasks"),
        (&["show", "../x"], 2, "is no task's name"),
        (&["tables", "t", "--add", "x"], 2, "write public.x"),
        (&["tables", "t", "--remove", "public.x"], 3, "to leave a table out of a wider one, exclude it"),
        (&["tables", "t", "--add", "b.c", "--token", "wrong"], 3, "admin token"),
        (&["snapshot", "t", "public.x"], 3, "public.x means no table that task t captures"),
        (&["list", "--endpoint", "http://127.0.0.1:1"], 4, "cannot reach millrace at http://127.0.0.1:1/"),
        (&["list", "--endpoint", "https://127.0.0.1:1"], 2, "does not speak yet"),
    ] {
        let (ended, said) = stage.task_command(args).await;
        assert_eq!(ended, code, "{args:?}: {said}");
        assert!(said.contains(part), "{args:?}: {said}");
    }
    assert!(!stage.millrace.output().contains(token.trim()));

    // Several people at the same time all have their way.
    let names: Vec<String> = (0..6).map(|number| format!("public.t{number}")).collect();
    let commands: Vec<[&str; 4]> = names.iter().map(|name| ["tables", "t", "--add", name]).collect();
    let ended =
        futures_util::future::join_all(commands.iter().map(|command| stage.task_command(command))).await;
    assert!(ended.iter().all(|(code, _)| *code == 0), "{ended:?}");
    let tracked = stage.task()["objects"]["include"].to_string();
    assert!(names.iter().all(|name| tracked.contains(name)), "{tracked}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_whose_rows_may_not_be_read_joins_with_a_gap_that_says_what_to_grant() {
    let setup = format!(
        "CREATE ROLE capture LOGIN REPLICATION PASSWORD '{PASSWORD}'; GRANT CREATE ON DATABASE postgres TO capture;
         CREATE SCHEMA app; GRANT USAGE ON SCHEMA app TO capture; CREATE TABLE app.first (id int PRIMARY KEY);
         ALTER TABLE app.first OWNER TO capture"
    );
    let stage = Stage::start_as("capture", &setup).await;
    stage
        .run(
            "CREATE TABLE app.secret (id int PRIMARY KEY, n int); INSERT INTO app.secret VALUES (1, 1);
             ALTER TABLE app.secret OWNER TO capture; REVOKE ALL ON app.secret FROM capture",
        )
        .await;
    assert_eq!(stage.gap("secret", 1).await, "table_joined_late");
    let grant = r#"GRANT SELECT ON "app"."secret" TO "capture";"#;
    let events = stage.events().await;
    let detail = events[0].value.as_ref().unwrap()["detail"].as_str().unwrap();
    assert!(detail.ends_with(&format!("so that its rows can be read, run: {grant}")), "{detail}");
    stage.run("INSERT INTO app.secret VALUES (2, 2)").await;
    assert_eq!(rebuilt(&stage.records().await, "secret"), BTreeMap::from([(2, 2)]));
    let (code, said) = stage.task_command(&["snapshot", "t", "app.secret"]).await;
    assert_eq!(code, 3, "{said}");
    assert!(said.contains(&format!("nothing was started; run: {grant}")), "{said}");

    stage.run(grant).await;
    let deadline = Instant::now() + Duration::from_secs(30);
    while stage.task_command(&["snapshot", "t", "app.*"]).await.0 != 0 {
        assert!(Instant::now() < deadline, "the right is not seen");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    stage.read("secret", 1).await;
    let read: Vec<Record> = stage.records().await.split_off(1);
    assert_eq!(rebuilt(&read, "secret"), BTreeMap::from([(1, 1), (2, 2)]));
}

/// What was read of it and held of its changes by then is void, and so it is as if it had never been there.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_removed_while_it_is_read_and_added_again_has_each_row_and_change() {
    let setup =
        "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY, n int NOT NULL, pad text);
                 INSERT INTO b SELECT i, 0, repeat('x', 300) FROM generate_series(1, 100000) i";
    let stage = Stage::start(PostgresOptions::default(), setup, &["--tables", "public.a"]).await;
    stage.published("a").await;
    assert_eq!(stage.task_command(&["tables", "t", "--add", "public.b"]).await.0, 0);
    stage.published("a b").await;
    stage.run("UPDATE b SET n = 1 WHERE id % 1000 = 1").await;
    assert_eq!(stage.task_command(&["tables", "t", "--remove", "public.b"]).await.0, 0);
    stage.published("a").await;
    stage.run("UPDATE b SET n = 2 WHERE id % 1000 = 2").await;
    stage.run("INSERT INTO b VALUES (0, 3)").await;
    assert_eq!(stage.task_command(&["tables", "t", "--add", "public.b"]).await.0, 0);
    stage.published("a b").await;
    stage.run("UPDATE b SET n = 4 WHERE id % 1000 = 3").await;
    let expected = stage.rows_of_b().await;
    let deadline = Instant::now() + Duration::from_secs(120);
    let mut found = rebuilt(&stage.records().await, "b");
    while found != expected {
        assert!(
            Instant::now() < deadline,
            "{} of {} rows\n{}",
            found.len(),
            expected.len(),
            stage.millrace.output()
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
        found = rebuilt(&stage.records().await, "b");
    }
    let snapshots = stage.show()["snapshots"].clone();
    assert_eq!(snapshots, json!([]), "no reading is left behind");
    stage.run("DELETE FROM b WHERE id <= 100").await;
    assert_eq!(rebuilt(&stage.records().await, "b"), stage.rows_of_b().await);
}
