//! Symbolic links that travel: only those that cannot lead out of their own tree.
//!
//! # The rule
//! A link may be sent, and shown, if its target is relative and, empty and `.` components dropped, all its `..` come
//! before every name, and there are no more of them than the link's directory lies below the first component of its
//! path. A link directly in a root, which has no tree of its own, is none.
//!
//! Wherever such a link leads, it stays below the first component of its own path, through whatever links it goes: each
//! of them begins at a directory of that tree, goes up inside it, and then only down. The rule needs nothing but the
//! link's own path and target, so it can be checked again wherever the link gets a name; it holds for another name of
//! the same depth.

use super::path::RelPath;
use crate::digest::Digest;

/// Longest target in bytes: what the system takes.
pub(crate) const TARGET_MAX: usize = 4095;

/// Whether a symbolic link at `path` with this target cannot lead out of the first component of `path`.
pub(crate) fn stays(path: &RelPath, target: &[u8]) -> bool {
    let below_top = path.components().count().checked_sub(2);
    let (Some(mut may_rise), Some(first)) = (below_top, target.first()) else {
        return false;
    };
    if *first == b'/' || target.len() > TARGET_MAX || target.contains(&0) {
        return false;
    }
    let mut descends = false;
    for component in target.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." if descends => return false,
            b".." => match may_rise.checked_sub(1) {
                Some(less) => may_rise = less,
                None => return false,
            },
            _name => descends = true,
        }
    }
    true
}

/// What stands for a link where a file has the digest of its bytes. No file has it.
pub(crate) fn digest(target: &[u8]) -> Digest {
    Digest::of(&[b"meshbox link\0", target].concat())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn allowed(path: &str, target: &str) -> bool {
        stays(&RelPath::parse(path).unwrap(), target.as_bytes())
    }

    #[test]
    fn a_link_may_rise_as_far_as_the_first_component_of_its_path() {
        for (path, target) in [
            ("t/l", "x"),
            ("t/l", "."),
            ("t/l", "./x//y/."),
            ("t/l", "x/"),
            ("t/a/l", ".."),
            ("t/a/l", "../x"),
            ("t/a/l", "./.././/x"),
            ("t/a/b/l", "../../x/y"),
            ("t/l", "..."),
            ("t/l", "..x/y"),
        ] {
            assert!(allowed(path, target), "{path} -> {target}");
        }
        for (path, target) in [
            ("l", "x"),
            ("l", "."),
            ("t/l", ""),
            ("t/l", "/"),
            ("t/l", "/t/x"),
            ("t/l", ".."),
            ("t/l", "../t/x"),
            ("t/a/l", "../.."),
            ("t/a/l", "x/../y"),
            ("t/a/l", "../x/.."),
            ("t/a/b/l", "../../../t"),
            ("t/a/l", "x\0y"),
        ] {
            assert!(!allowed(path, target), "{path} -> {target}");
        }
        assert!(allowed("t/l", &"x".repeat(TARGET_MAX)));
        assert!(!allowed("t/l", &"x".repeat(TARGET_MAX + 1)));
    }

    #[test]
    fn no_file_has_the_digest_of_a_link() {
        assert_ne!(digest(b"x"), Digest::of(b"x"));
        assert_ne!(digest(b"x"), digest(b"y"));
    }

    /// What a path of the model shows; directories are those that something is below, or that are listed.
    #[derive(Clone, Debug)]
    enum Shown {
        Directory,
        Link(String),
    }

    type Tree = BTreeMap<String, Shown>;

    /// Resolves a link as the kernel does. Panics if that leads out of the first component of `path`.
    fn resolve(tree: &Tree, path: &str) {
        let Some(Shown::Link(target)) = tree.get(path) else {
            return;
        };
        let mut at: Vec<String> = path.split('/').map(str::to_owned).collect();
        at.pop();
        let top = at[0].clone();
        let mut left: Vec<String> = target.split('/').rev().map(str::to_owned).collect();
        let mut followed = 0;
        while let Some(component) = left.pop() {
            match component.as_str() {
                "" | "." => continue,
                ".." => {
                    at.pop();
                }
                name => {
                    let next = [at.join("/"), name.to_owned()].join("/");
                    match tree.get(&next) {
                        Some(Shown::Directory) => at.push(name.to_owned()),
                        Some(Shown::Link(target)) => {
                            followed += 1;
                            if followed > 40 {
                                return;
                            }
                            left.extend(target.split('/').rev().map(str::to_owned));
                        }
                        None => return,
                    }
                }
            }
            assert_eq!(at.first(), Some(&top), "{path} leads out: {tree:?}");
        }
    }

    fn below(tree: &Tree, path: &str) -> Vec<String> {
        let prefix = format!("{path}/");
        let found = tree.keys();
        found
            .filter(|key| *key == path || key.starts_with(&prefix))
            .cloned()
            .collect()
    }

    /// What is at and below `from` as it would be at `to`; `None` where a link may not be there.
    fn moved(tree: &Tree, from: &str, to: &str) -> Option<Tree> {
        below(tree, from)
            .into_iter()
            .map(|key| {
                let new = format!("{to}{}", &key[from.len()..]);
                let shown = tree[&key].clone();
                match &shown {
                    Shown::Link(target) if !allowed(&new, target) => None,
                    Shown::Link(_) | Shown::Directory => Some((new, shown)),
                }
            })
            .collect()
    }

    /// Links, renames and exchanges of two who want to get out, in trees that they share, checked as the file system and
    /// the receiver check them.
    #[test]
    fn random_trees_of_links_renames_and_exchanges_never_lead_out() {
        let mut state = 0x1234_5678_9abc_def1_u64;
        let mut random = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below as u64) as usize
        };
        let (mut links, mut renames) = (0, 0);
        for _ in 0..60 {
            let mut tree = Tree::new();
            for top in ["t", "u"] {
                tree.insert(top.to_owned(), Shown::Directory);
            }
            for _ in 0..120 {
                let directories: Vec<String> = tree
                    .iter()
                    .filter(|(_, shown)| matches!(shown, Shown::Directory))
                    .map(|(path, _)| path.clone())
                    .collect();
                let parent = directories[random(directories.len())].clone();
                let new = format!("{parent}/{}", ["a", "b", "c", "l"][random(4)]);
                match random(5) {
                    0 if !tree.contains_key(&new) && new.len() < 20 => {
                        tree.insert(new, Shown::Directory);
                    }
                    1 | 2 if !tree.contains_key(&new) => {
                        let count = 1 + random(6);
                        let parts = (0..count).map(|_| {
                            ["..", "..", "..", ".", "", "a", "b", "c", "l", "t", "u"][random(11)]
                        });
                        let target = parts.collect::<Vec<_>>().join("/");
                        if allowed(&new, &target) {
                            links += 1;
                            tree.insert(new, Shown::Link(target));
                        }
                    }
                    kind => {
                        let keys: Vec<String> = tree.keys().cloned().collect();
                        let from = keys[random(keys.len())].clone();
                        let nested = new.starts_with(&format!("{from}/"))
                            || from.starts_with(&format!("{new}/"))
                            || from == new;
                        if nested || !from.contains('/') {
                            continue;
                        }
                        let back = (kind == 4).then(|| moved(&tree, &new, &from));
                        let (Some(there), Some(back)) =
                            (moved(&tree, &from, &new), back.unwrap_or(Some(Tree::new())))
                        else {
                            continue;
                        };
                        for key in [below(&tree, &from), below(&tree, &new)].concat() {
                            tree.remove(&key);
                        }
                        renames += 1;
                        tree.extend(there);
                        tree.extend(back);
                    }
                }
                for path in tree.keys() {
                    resolve(&tree, path);
                }
            }
        }
        assert!(
            links > 500 && renames > 500,
            "{links} links, {renames} renames"
        );
    }
}
