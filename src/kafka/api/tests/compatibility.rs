//! The table of APIs in docs/compatibility.md, made from [`ALL`] and from what the file of each API says of it first.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::*;

const PAGE: &str = "docs/compatibility.md";
const BEGIN: &str = "<!-- apis -->\n";
const END: &str = "<!-- /apis -->\n";
/// Set to write the page instead of comparing it.
const WRITE: &str = "MILLRACE_WRITE_DOCS";

/// What a broker of Apache Kafka 4.3.1 answers to ApiVersions: keys with their first and last version.
const APACHE_KAFKA: &[(i16, i16, i16)] = &[
    (0, 0, 13),
    (1, 4, 18),
    (2, 1, 11),
    (3, 0, 13),
    (8, 2, 10),
    (9, 1, 10),
    (10, 0, 6),
    (11, 0, 9),
    (12, 0, 4),
    (13, 0, 5),
    (14, 0, 5),
    (15, 0, 6),
    (16, 0, 5),
    (17, 0, 1),
    (18, 0, 4),
    (19, 2, 7),
    (20, 1, 6),
    (21, 0, 2),
    (22, 0, 5),
    (23, 2, 4),
    (24, 0, 5),
    (25, 0, 4),
    (26, 0, 5),
    (27, 1, 2),
    (28, 0, 5),
    (29, 1, 3),
    (30, 1, 3),
    (31, 1, 3),
    (32, 1, 4),
    (33, 0, 2),
    (34, 1, 2),
    (35, 1, 5),
    (36, 0, 2),
    (37, 0, 3),
    (38, 1, 3),
    (39, 1, 2),
    (40, 1, 2),
    (41, 1, 3),
    (42, 0, 2),
    (43, 0, 2),
    (44, 0, 1),
    (45, 0, 1),
    (46, 0, 0),
    (47, 0, 0),
    (48, 0, 1),
    (49, 0, 1),
    (50, 0, 0),
    (51, 0, 0),
    (55, 0, 2),
    (57, 0, 2),
    (60, 0, 2),
    (61, 0, 0),
    (64, 0, 0),
    (65, 0, 0),
    (66, 0, 2),
    (68, 0, 1),
    (69, 0, 1),
    (74, 0, 1),
    (75, 0, 0),
    (76, 1, 1),
    (77, 1, 1),
    (78, 1, 2),
    (79, 1, 2),
    (80, 0, 1),
    (81, 0, 0),
    (83, 0, 0),
    (84, 0, 0),
    (85, 0, 1),
    (86, 0, 0),
    (87, 0, 1),
    (88, 0, 0),
    (89, 0, 0),
    (90, 0, 1),
    (91, 0, 0),
    (92, 0, 0),
];

/// Why an API of Apache Kafka is not served.
fn missing(key: i16) -> &'static str {
    match key {
        17 | 36 => "not yet: there are no accounts",
        38..=41 => "delegation tokens need accounts",
        24..=28 => "transactions are for producers",
        76..=79 | 90..=92 => "share groups",
        80..=87 => "between brokers",
        88 | 89 => "Streams groups write what they work on",
        _ => panic!("why is API {key} not served?"),
    }
}

/// APIs that the protocol crate has no name for.
fn name(key: i16) -> String {
    match key {
        88 => "StreamsGroupHeartbeat".to_owned(),
        89 => "StreamsGroupDescribe".to_owned(),
        key => format!("{:?}", ApiKey::try_from(key).unwrap()),
    }
}

fn versions((first, last): (i16, i16)) -> String {
    if first == last { first.to_string() } else { format!("{first}–{last}") }
}

/// What the file of an API says of it in the first place. It must begin with its name, key and versions as they are.
fn note(api: &Api) -> String {
    let name = format!("{:?}", api.key);
    let file = name.char_indices().fold(String::new(), |file, (at, letter)| match letter {
        'A'..='Z' if at > 0 => format!("{file}_{}", letter.to_ascii_lowercase()),
        _ => format!("{file}{}", letter.to_ascii_lowercase()),
    });
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("src/kafka/api/{file}.rs"));
    let source = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let first = source.lines().map_while(|line| line.strip_prefix("//! ")).collect::<Vec<_>>().join(" ");
    let plural = if api.versions.0 == api.versions.1 { "version" } else { "versions" };
    let head = format!("{name}, key {}, {plural} {}: ", api.key as i16, versions(api.versions));
    let Some(note) = first.strip_prefix(&head) else { panic!("{} must begin with {head:?}", path.display()) };
    note.trim_end_matches('.').to_owned()
}

fn table() -> String {
    let mut served: BTreeMap<i16, &Api> = ALL.iter().map(|api| (api.key as i16, *api)).collect();
    let rows: Vec<_> = APACHE_KAFKA
        .iter()
        .map(|(key, first, last)| {
            let (ours, note) = match served.remove(key) {
                Some(api) => (versions(api.versions), note(api)),
                None => ("–".to_owned(), missing(*key).to_owned()),
            };
            (key, ours, versions((*first, *last)), note)
        })
        .collect();
    assert!(served.is_empty(), "Apache Kafka does not have {served:?}");
    let mut table = "| key | API | versions | in Apache Kafka 4.3 | |\n|---|---|---|---|---|\n".to_owned();
    for (key, ours, theirs, note) in rows {
        table += &format!("| {key} | {} | {ours} | {theirs} | {note} |\n", name(*key));
    }
    table
}

#[test]
fn the_page_of_compatibility_has_the_apis_that_are_served() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    let wanted = format!("{before}{BEGIN}{}{END}{after}", table());
    if std::env::var_os(WRITE).is_some() {
        fs::write(&path, wanted).unwrap();
    } else {
        assert!(page == wanted, "{PAGE} is not what the code serves; `make compatibility` writes it anew");
    }
}
