//! The known name that a misspelt one was meant to be.

/// The nearest of the known names, if it is near enough to be meant: a third of its letters at most are other ones, and
/// not more than three.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let distances = known.into_iter().map(|known| (distance(name, known), known));
    let (distance, known) = distances.min_by_key(|(distance, _)| *distance)?;
    (distance <= 3.min(known.len() / 3)).then_some(known)
}

/// How many letters have to be put in, taken out or replaced to make one name of the other (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_pen_is_recognised_and_another_word_is_not() {
        let known = ["listen", "advertise", "log", "segment_mb"];
        for (name, meant) in [
            ("lisen", Some("listen")),
            ("listne", Some("listen")),
            ("segment_size_mb", None),
            ("segmentmb", Some("segment_mb")),
            ("lag", Some("log")),
            ("port", None),
            ("", None),
        ] {
            assert_eq!(nearest(name, known), meant, "{name}");
        }
    }
}
