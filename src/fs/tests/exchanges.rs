//! Every pair of kinds that can be exchanged, in both orders: what is sealed by it.

use super::*;

#[derive(Clone, Copy, Debug, PartialEq)]
enum What {
    File,
    Directory,
    IgnoredFile,
    IgnoredDirectory,
}

use What::{Directory, File, IgnoredDirectory, IgnoredFile};

impl What {
    fn is_ignored(self) -> bool {
        matches!(self, IgnoredFile | IgnoredDirectory)
    }

    fn is_directory(self) -> bool {
        matches!(self, Directory | IgnoredDirectory)
    }

    /// What is sealed when this gets the name `to` where that is `there`.
    fn sealed_at(self, to: &str, there: What) -> Option<String> {
        match (there.is_ignored(), self) {
            (true, _) => None,
            (false, File | IgnoredFile) => Some(to.to_owned()),
            (false, Directory) => Some(format!("{to}/in")),
            (false, IgnoredDirectory) => Some(format!("{to}[{to}/in]")),
        }
    }
}

fn make(t: &TestFs, name: &str, what: What) {
    if what.is_directory() {
        let made = t.fs.mkdir(at(NodeId::OUTBOX, name), 0o755, ME).unwrap();
        t.put(made.attr.node, "in", name.as_bytes());
    } else {
        t.put(NodeId::OUTBOX, name, name.as_bytes());
    }
}

/// Everything sealed since the last time, sorted.
fn sealed(t: &TestFs) -> Vec<String> {
    let sealed = t.all_sealed().into_iter().map(|sealed| match sealed {
        Sealed::One(path, _) => path,
        Sealed::Tree(files, directories) => {
            format!("{}[{}]", directories[0], files.join(","))
        }
    });
    let mut sealed: Vec<String> = sealed.collect();
    sealed.sort();
    sealed
}

#[test]
fn an_exchange_of_any_two_kinds_counts_as_two_renames() {
    let t = test_fs();
    let all = [File, Directory, IgnoredFile, IgnoredDirectory];
    let mut pairs = Vec::new();
    for (n, a) in all.into_iter().enumerate() {
        for (m, b) in all.into_iter().enumerate() {
            let name = |side: &str, what: What| {
                let dot = if what.is_ignored() { "." } else { "" };
                format!("{dot}{side}{n}{m}")
            };
            pairs.push(((name("a", a), a), (name("b", b), b)));
        }
    }
    for ((a, is_a), (b, is_b)) in &pairs {
        make(&t, a, *is_a);
        make(&t, b, *is_b);
    }
    sealed(&t);
    for ((a, _), (b, _)) in &pairs {
        let (a, b) = (at(NodeId::OUTBOX, a), at(NodeId::OUTBOX, b));
        t.rename(a, b, RenameFlags::EXCHANGE).unwrap();
    }
    let mut expected: Vec<String> = pairs
        .iter()
        .flat_map(|((a, is_a), (b, is_b))| [is_a.sealed_at(b, *is_b), is_b.sealed_at(a, *is_a)])
        .flatten()
        .collect();
    expected.sort();
    assert_eq!(sealed(&t), expected);
    for ((a, is_a), (b, is_b)) in &pairs {
        for (at, from, is) in [(a, b, is_b), (b, a, is_a)] {
            let inner = if is.is_directory() { "/in" } else { "" };
            let read = disk::read_to_string(t.outbox(&format!("{at}{inner}"))).unwrap();
            assert_eq!(read, *from);
        }
    }
}
