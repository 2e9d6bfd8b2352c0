//! What settings are read from, which of them wins, and what is said when they are wrong.

use super::*;
use crate::capture::Start;
use crate::capture::routing::Policy;
use crate::task::definition::{OutputDefinition, OutputSettings};

fn file(text: &str) -> File {
    File { name: "millrace.toml".to_owned(), text: text.to_owned() }
}

fn variables(variables: &[(&str, &str)]) -> Vec<(String, String)> {
    variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn flags(flags: &[(&str, &str)]) -> Vec<(&'static Setting, String)> {
    flags.iter().map(|(key, value)| (Setting::named(key).unwrap(), (*value).to_owned())).collect()
}

/// What is wrong, without the first line.
fn wrong(text: &str, environment: &[(&str, &str)], given: &[(&str, &str)]) -> String {
    let errors = load(Some(&file(text)), &variables(environment), &flags(given)).unwrap_err().to_string();
    errors.split_once('\n').unwrap().1.to_owned()
}

#[test]
fn without_anything_all_settings_have_their_defaults() {
    let loaded = load(None, &[], &[]).unwrap();
    for setting in SETTINGS {
        assert_eq!(loaded.origin(setting), &Origin::Default);
        assert_eq!(setting.render(&loaded.config), setting.render(&Config::default()));
    }
}

#[test]
fn a_flag_wins_over_the_environment_and_that_over_the_file_and_that_over_the_default() {
    let text = "[log]\nsegment_mb = 1\nmax_record_mb = 1\nretention_mb = 1\n";
    let environment = variables(&[("MILLRACE_LOG_MAX_RECORD_MB", "2"), ("MILLRACE_LOG_RETENTION_MB", "2")]);
    let loaded = load(Some(&file(text)), &environment, &flags(&[("log.retention_mb", "3")])).unwrap();
    let settings = &loaded.config.broker;
    assert_eq!((settings.segment_bytes, settings.max_record_bytes), (1 << 20, 2 << 20));
    assert_eq!(settings.retention_bytes, Some(3 << 20));
    let origin = |key: &str| loaded.origin(Setting::named(key).unwrap()).to_string();
    assert_eq!(origin("log.segment_mb"), "millrace.toml:2:14");
    assert_eq!(origin("log.max_record_mb"), "MILLRACE_LOG_MAX_RECORD_MB");
    assert_eq!(origin("log.retention_mb"), "--retention-mb");
    assert_eq!(origin("log.retention_hours"), "default");
}

#[test]
fn every_setting_can_be_given_in_the_file_and_the_environment_and_by_its_flag() {
    for setting in SETTINGS {
        let (text, in_file) = match &setting.value {
            Value::Switch { .. } => ("true".to_owned(), "true".to_owned()),
            Value::Number { range, .. } => (range.end().to_string(), format!("{:#x}", range.end())),
            Value::Text { expected, .. } => {
                let example = expected.split('"').nth(1).unwrap();
                (example.to_owned(), format!("{example:?}"))
            }
        };
        let environment = [(setting.variable(), text.clone())];
        let by_file = load(Some(&file(&format!("{} = {in_file}", setting.key))), &[], &[]).unwrap();
        let by_environment = load(None, &environment, &[]).unwrap();
        let by_flag = load(None, &[], &[(setting, text.clone())]).unwrap();
        for loaded in [by_file, by_environment, by_flag] {
            let value = setting.render(&loaded.config).unwrap();
            assert_eq!(value.trim_matches('"'), text, "{} from {}", setting.key, loaded.origin(setting));
        }
    }
}

#[test]
fn an_empty_variable_counts_as_none_and_a_strangers_variable_is_left_alone() {
    let environment = [
        ("MILLRACE_KAFKA_LISTEN", ""),
        ("MILLRACE_SERVICE_PORT", "9092"),
        ("MILLRACE_KAFKA_PORT", "tcp://10.0.0.1:9092"),
        ("MILLRACE_LOG", "debug"),
        ("PATH", "/bin"),
    ];
    let loaded = load(None, &variables(&environment), &[]).unwrap();
    assert_eq!(loaded.config.broker.kafka_listen.port(), 9092);
}

#[test]
fn all_that_is_wrong_is_said_at_once_with_its_place() {
    let text = r#"
data_dir = 5
allow_plaintxt = true
[kafka]
listen = "localhost:9092"
adverttise = "h:1"
[log]
segment_mb = "256"
max_record_mb = 0
retention_hours = 1.5
codec = "gzip"
heartbeat_seconds = 5
colour = "blue"
[source]
retry_minutes = -4
[lgo]
x = 1
"#;
    let environment = [("MILLRACE_TASK_RETRY_MINUTES", "soon"), ("MILLRACE_HTTP_LISTN", "127.0.0.1:1")];
    assert_eq!(
        wrong(text, &environment, &[("group.initial_delay_ms", "1e3")]),
        r#"millrace.toml:2:12: data_dir: 5 does not fit; write the path of a directory, such as "/var/lib/millrace"
millrace.toml:3:1: allow_plaintxt: there is no such setting; did you mean allow_plaintext?
millrace.toml:5:10: kafka.listen: "localhost:9092" does not fit; write an address and a port, such as "127.0.0.1:9092"
millrace.toml:6:1: kafka.adverttise: there is no such setting; did you mean kafka.advertise?
millrace.toml:8:14: log.segment_mb: "256" does not fit; write a whole number of MiB from 1 to 2048, without quotes
millrace.toml:9:17: log.max_record_mb: 0 does not fit; write a whole number of MiB from 1 to 1535
millrace.toml:10:19: log.retention_hours: 1.5 does not fit; write a whole number of hours from 0 to 876000
millrace.toml:11:9: log.codec: "gzip" does not fit; write "none", "lz4" or "zstd"
millrace.toml:12:1: log.heartbeat_seconds: there is no such setting; did you mean source.heartbeat_seconds?
millrace.toml:13:1: log.colour: there is no such setting; there are log.codec, log.segment_mb, log.max_record_mb, log.retention_mb, log.retention_hours
millrace.toml:15:17: source.retry_minutes: -4 does not fit; write a whole number of minutes from 10 to 1440
millrace.toml:16:2: lgo: there is no such setting; there are data_dir, allow_plaintext, [kafka], [http], [log], [group], [source], [snapshot], [task], [[tasks]]
MILLRACE_HTTP_LISTN: there is no such setting; did you mean MILLRACE_HTTP_LISTEN?
MILLRACE_TASK_RETRY_MINUTES: soon does not fit; write a whole number of minutes from 1 to 1440
--group-initial-delay-ms: 1e3 does not fit; write a whole number of milliseconds from 0 to 300000"#
    );
}

#[test]
fn errors_of_the_file_s_form_stand_beside_those_of_its_settings() {
    let text = "data_dir = \"größe\" \u{fc}\n[kafka]\nlisten = \nadvertise = \"nowhere\"\n[kafka]\n";
    assert_eq!(
        wrong(text, &[], &[]),
        "millrace.toml:1:20: unexpected key or value, expected newline, `#`\n\
         millrace.toml:3:10: string values must be quoted, expected literal string\n\
         millrace.toml:4:13: kafka.advertise: \"nowhere\" does not fit; write HOST:PORT, such as \
         \"millrace.example.com:9092\"\n\
         millrace.toml:5:2: duplicate key"
    );
    assert_eq!(
        wrong("kafka = 3", &[], &[]),
        "millrace.toml:1:1: kafka: this is a section of settings, which are written below [kafka]"
    );
}

#[test]
fn a_listener_beyond_this_machine_needs_leave_and_each_needs_its_own_port() {
    let open = "is open to other machines, and anyone there could read everything; listen on 127.0.0.1, or set \
                allow_plaintext (--allow-plaintext) if the network is yours";
    assert_eq!(
        wrong("kafka.listen = \"192.0.2.1:9092\"", &[("MILLRACE_HTTP_LISTEN", "[::]:80")], &[]),
        format!(
            "millrace.toml:1:16: kafka.listen: 192.0.2.1:9092 {open}\nMILLRACE_HTTP_LISTEN: [::]:80 {open}"
        )
    );
    // Whether it was meant to be allowed is not known.
    assert_eq!(
        wrong("allow_plaintext = 1", &[], &[("kafka.listen", "192.0.2.1:9092")]),
        "millrace.toml:1:19: allow_plaintext: 1 does not fit; write true or false"
    );
    assert!(
        load(Some(&file("allow_plaintext = true")), &[], &flags(&[("kafka.listen", "192.0.2.1:9092")]))
            .is_ok()
    );
    assert_eq!(
        wrong("", &[], &[("http.listen", "127.0.0.1:9092")]),
        "--http-listen: kafka.listen has 127.0.0.1:9092 already; give each a port of its own"
    );
    assert!(
        load(None, &[], &flags(&[("http.listen", "127.0.0.1:0"), ("kafka.listen", "127.0.0.1:0")])).is_ok()
    );
}

#[test]
fn clients_write_topics_on_this_machine_alone_whatever_else_is_allowed() {
    let text = "allow_plaintext = true\nkafka.unsafe_produce = true\n";
    assert_eq!(
        wrong(text, &[], &[("kafka.listen", "192.0.2.1:9092")]),
        "--kafka-listen: kafka.listen is 192.0.2.1:9092, which is open to other machines, and anyone there could write and \
         delete topics; listen on 127.0.0.1, or leave kafka.unsafe_produce off: it is for tests alone"
    );
    assert!(
        load(Some(&file(text)), &[], &flags(&[("http.listen", "192.0.2.1:80")]))
            .unwrap()
            .config
            .broker
            .unsafe_produce
    );
    assert!(!load(None, &[], &[]).unwrap().config.broker.unsafe_produce);
}

#[test]
fn clients_are_told_an_address_that_they_can_connect_to() {
    for anywhere in ["0.0.0.0:9092", "[::]:9092"] {
        let file = file("allow_plaintext = true");
        let environment = variables(&[("MILLRACE_KAFKA_LISTEN", anywhere)]);
        assert_eq!(
            load(Some(&file), &environment, &[]).unwrap_err().to_string().lines().last().unwrap(),
            format!(
                "MILLRACE_KAFKA_LISTEN: {anywhere} is every address of this machine, and clients must be told one of \
                 them; set kafka.advertise (--kafka-advertise)"
            )
        );
        let advertised = flags(&[("kafka.advertise", "millrace.example.com:9092")]);
        assert!(load(Some(&file), &environment, &advertised).is_ok());
    }
}

#[test]
fn what_is_deployed_has_right_settings() {
    let compose = include_str!("../../deploy/compose/millrace.toml").to_owned();
    let chart = include_str!("../../deploy/helm/millrace/values.yaml");
    let example = chart.lines().filter_map(|line| line.strip_prefix("#   "));
    for text in [compose, example.collect::<Vec<_>>().join("\n")] {
        let config = load(Some(&file(&text)), &[], &[]).unwrap().config;
        assert_eq!(config.tasks.len(), 1, "{text}");
    }
}

#[test]
fn the_example_has_everything_with_its_default() {
    let text = include_str!("../../deploy/millrace.toml");
    let config = load(Some(&file(text)), &[], &[]).unwrap().config;
    for setting in SETTINGS {
        assert_eq!(setting.render(&config), setting.render(&Config::default()), "{}", setting.key);
    }
    assert!(config.tasks.is_empty());
    // What has no default is commented out, without the space that an explanation has.
    let uncomment =
        |line: &str| line.strip_prefix('#').filter(|line| !line.starts_with(' ')).unwrap_or(line).to_owned();
    let all = text.lines().map(uncomment).collect::<Vec<_>>().join("\n");
    let loaded = load(Some(&file(&all)), &[], &[]).unwrap();
    for setting in SETTINGS {
        assert!(matches!(loaded.origin(setting), Origin::File { .. }), "{} is missing", setting.key);
    }
    let [task] = loaded.config.tasks.as_slice() else { panic!("{:?}", loaded.config.tasks) };
    let [output, _] = task.definition.outputs.as_slice() else { panic!("{task:?}") };
    let [of_tables] = task.definition.publish.table_options.as_slice() else { panic!("{task:?}") };
    // Everything that can be said of a task is said.
    for value in [
        serde_json::to_value(&task.definition).unwrap(),
        serde_json::to_value(of_tables).unwrap(),
        serde_json::to_value(output).unwrap(),
        serde_json::to_value(output.events).unwrap(),
    ] {
        for key in value.as_object().unwrap().keys() {
            let key = match key.as_str() {
                "objects" => "tables",
                "publish" => "partitions_as",
                key => key,
            };
            let is_said = |line: &str| {
                line.contains(&format!("{key} = ")) || line.starts_with(&format!("[[tasks.{key}]]"))
            };
            assert!(all.lines().any(is_said), "{key} is missing");
        }
    }
    let publish = &task.definition.publish;
    assert_eq!((publish.partitions_as, publish.origin), Default::default());
    let default = OutputSettings::default().define("shop").unwrap();
    assert_eq!(OutputDefinition { codec: None, ..output.clone() }, default);
}

#[test]
fn tasks_and_their_outputs_are_read() {
    let text = r#"
[[tasks]]
source = "postgres://capture@db/Shop-EU?sslmode=verify-full"
password_file = "/run/secrets/shop"
tables = ["public.*", '"odd.one".t']
exclude = ["*.tmp_?"]
start = "snapshot"
partitions_as = "root"
origin = "none"
[[tasks.table_options]]
name = "public.orders"
where = "region = 'eu'"
columns = ["id", "region"]
[[tasks.outputs]]
[[tasks.outputs]]
name = "wide"
partitions = 4
partition_by = "table"
[tasks.outputs.events]
watermark = "inline"
[[tasks]]
name = "other"
source = "postgres://capture@db/other"
"#;
    let tasks = load(Some(&file(text)), &[], &[]).unwrap().config.tasks;
    let [shop, other] = tasks.as_slice() else { panic!("{tasks:?}") };
    assert_eq!(shop.definition.name, "shop_eu");
    assert_eq!(shop.definition.source, shop.source.display());
    assert_eq!(shop.source.sslmode, crate::postgres::source::SslMode::VerifyFull);
    assert_eq!(shop.source.password_file.as_deref(), Some("/run/secrets/shop".as_ref()));
    let outputs: Vec<_> =
        shop.definition.outputs.iter().map(|output| (output.name.as_str(), output.partitions)).collect();
    assert_eq!(outputs, [("shop_eu", 1), ("wide", 4)]);
    let watermarks: Vec<_> = shop.definition.outputs.iter().map(|output| output.events.watermark).collect();
    assert_eq!(watermarks, [Policy::Off, Policy::Inline]);
    assert_eq!((other.definition.name.as_str(), other.definition.outputs.len()), ("other", 1));
    assert_eq!(shop.definition.objects.to_string(), "public.*, \"odd.one\".t without *.tmp_?");
    assert_eq!((shop.start, shop.definition.start), (Some(Start::Snapshot), Start::Snapshot));
    assert_eq!((other.definition.objects.to_string(), other.start), ("*.*".to_owned(), None));
}

#[test]
fn all_that_is_wrong_with_tasks_is_said_at_once_and_without_secrets() {
    let text = r#"
[[tasks]]
name = "Shop"
password = "hunter2"
[[tasks]]
source = "postgres://capture:hunter2@db/shop"
[[tasks.outputs]]
format = "csv"
colour = "red"
partitions = "4"
[[tasks.outputs]]
partitions = 0
[[tasks]]
name = "Shop"
source = "mysql://db"
[[tasks]]
name = "Shop"
source = "postgres://capture@db/shop?password_file=a"
password_file = "b"
[[tasks]]
source = "postgres://capture@db/shop"
outputs = [{ partitions = 2, partition_by = "none" }, { partitions = 0 }]
[[tasks]]
name = "Shop"
source = "postgres://capture@db/shop"
[[tasks]]
source = "postgres://capture@db/one"
[[tasks]]
source = "postgres://capture@db/one"
[[tasks]]
source = "postgres://capture@db/two"
outputs = [{ name = "one" }]
[[tasks]]
outputs = 5
"#;
    let said = wrong(text, &[], &[]);
    let expected = [
        "4:1: tasks.password: unknown field `password`, expected one of `name`, `source`, `password_file`, `tables`, `exclude`, `start`, `partitions_as`, `origin`",
        "6:10: tasks.source: there is a password in it, which does not belong here; write it to a file that only \
         millrace may read, and name that in password_file",
        "8:10: tasks.outputs.format: unknown variant `csv`, expected ",
        "9:1: tasks.outputs.colour: unknown field `colour`, expected one of `name`, `format`, ",
        "10:14: tasks.outputs.partitions: invalid type: string \"4\", expected u32",
        "15:10: tasks.source: scheme 'mysql' is not PostgreSQL's; write postgres://user@host/database",
        "18:10: tasks.source: it names a password_file, and so does the task; leave one of them out",
        "22:12: tasks.outputs: output shop has partition_by none, which means one partition, and partitions 2; leave \
         out partitions, or use partition_by table or key",
        "22:55: tasks.outputs: output shop has partitions 0; use 1 to 10000",
        "23:1: tasks: 'Shop' is not a name for a task or an output: use 1 to 40 of a-z, 0-9 and _",
        "28:1: tasks: there is a task one already; give each another name",
        "30:1: tasks: two outputs are named one, one of task one and one of task two; rename one of them",
        "33:1: tasks.source: it is missing; write the database, such as \"postgres://user@host/database\"",
        "34:11: tasks.outputs: this is a list of tables; write [[tasks.outputs]] for each",
    ];
    assert_eq!(said.lines().count(), expected.len(), "{said}");
    for (said, expected) in said.lines().zip(expected) {
        assert!(said.starts_with(&format!("millrace.toml:{expected}")), "{said}");
    }
    assert!(!said.contains("hunter2"));
    for (text, part) in [
        ("tasks = 3", "millrace.toml:1:9: tasks: this is a list of tables; write [[tasks]] for each"),
        (
            "[tasks]\nname = \"x\"",
            "millrace.toml:1:1: tasks: this is a list of tables; write [[tasks]] for each",
        ),
        (
            "[[task]]\nname = \"x\"",
            "millrace.toml:1:3: task: this is a section of settings, which are written below [task]; a task to capture is written below [[tasks]]",
        ),
        (
            "[[tasks]]\nsource = \"postgres://u@h/d\"\n[[tasks.outputs]]\n[tasks.outputs.events]\nddl = \"off\"",
            "millrace.toml:5:1: tasks.outputs.events: unknown field `ddl`, expected one of `gap`, `message`, `heartbeat`, `watermark`, `transaction`, `snapshot`",
        ),
        (
            "[[tasks]]\nsource = \"postgres://u@h/d\"\n[[tasks.table_options]]\nwhere = \"a\"",
            "millrace.toml:3:1: tasks.table_options: it says of no table; write a name, such as \"public.orders\"",
        ),
        (
            "[[tasks]]\nsource = \"postgres://u@h/d\"\ntables = [\"public.a\", \"b\"]\nstart = \"later\"",
            "millrace.toml:3:10: tasks.tables: 'b' names no schema; write public.b, or *.b for all schemas\n\
             millrace.toml:4:9: tasks.start: unknown variant `later`, expected `now` or `snapshot`",
        ),
        (
            "[[tasks]]\nsource = \"postgres://u@h/d\"\ntables = []",
            "millrace.toml:1:1: tasks.tables: no tables are named; write *.* for the whole database",
        ),
        ("[[tasks]]\nsource = \"x", "millrace.toml:2:12: invalid basic string, expected `\"`"),
    ] {
        assert_eq!(wrong(text, &[], &[]), part);
    }
}
