//! "Did you mean …": the name nearest to one that does not exist. Pure.

/// The known name nearest to `typed`, if it is near enough to be a slip: a third of its letters, at least one.
pub(crate) fn nearest<'a>(
    typed: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let typed = typed.to_lowercase();
    let near = known.into_iter().filter_map(|name| {
        let slips = strsim::damerau_levenshtein(&typed, &name.to_lowercase());
        let most = (typed.chars().count().max(name.chars().count()) / 3).max(1);
        // Of a name of one letter nothing would be left.
        (slips <= most && slips < name.chars().count()).then_some((slips, name))
    });
    near.min_by_key(|(slips, _)| *slips).map(|(_, name)| name)
}

/// The same as the end of an error: "; did you mean `settle`?", or nothing.
pub(crate) fn hint<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(typed, known).map_or_else(String::new, |name| format!("; did you mean `{name}`?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_slip_is_taken_for_a_known_name() {
        let known = ["settle", "peer", "uid", "log", "lifetime", "@hq"];
        for (typed, meant) in [
            ("setle", Some("settle")),
            ("sttele", Some("settle")),
            ("SETTLE", Some("settle")),
            ("liftime", Some("lifetime")),
            ("logs", Some("log")),
            ("@hg", Some("@hq")),
            ("port", None),
            ("image", None),
            ("", None),
        ] {
            assert_eq!(nearest(typed, known), meant, "{typed}");
        }
        assert_eq!(hint("setle", known), "; did you mean `settle`?");
        assert_eq!(hint("port", known), "");
        assert_eq!(nearest("b", ["a"]), None);
    }
}
