//! The key files: `group.key`, and those before it in `old-keys/`, which are numbered in the order in which they went.
//!
//! # Crash behaviour
//! The old key is kept before `group.key` is replaced; killed in between, it is there twice, which does not matter.

use std::path::PathBuf;

use super::Group;
use crate::peer::GroupKey;
use crate::spool::{SpoolError, durable};

/// Earlier keys kept: members that were away for more changes than this need a new ticket.
const OLD_KEYS_MAX: usize = 16;

impl Group {
    /// Makes `key` ours: first the old one is kept, then `group.key` is replaced.
    pub(super) fn change_key(&self, key: GroupKey) -> Result<(), SpoolError> {
        let current = self.state.read().keys.first().cloned();
        if let Some(current) = &current {
            durable::make_directory(&self.old_keys_directory())?;
            let name = &data_encoding::HEXLOWER.encode(&current.commitment()[..8]);
            let number = self
                .old_keys_listed()?
                .last()
                .map_or(1, |(number, _)| number + 1);
            let at = self
                .old_keys_directory()
                .join(format!("{number:08}-{name}.key"));
            durable::write_file(&at, key_line(current).as_bytes())?;
        }
        durable::write_file(&self.layout.group_key(), key_line(&key).as_bytes())?;
        let mut listed = self.old_keys_listed()?;
        let surplus = listed.len().saturating_sub(OLD_KEYS_MAX);
        for (_, path) in listed.drain(..surplus) {
            durable::remove(&path)?;
        }
        let mut state = self.state.write();
        state.keys.retain(|known| *known != key);
        state.keys.insert(0, key);
        state.keys.truncate(1 + OLD_KEYS_MAX);
        Ok(())
    }

    fn old_keys_directory(&self) -> PathBuf {
        self.layout.state().join("old-keys")
    }

    /// Files of old keys with their numbers, the oldest first.
    fn old_keys_listed(&self) -> Result<Vec<(u64, PathBuf)>, SpoolError> {
        let directory = self.old_keys_directory();
        let Ok(entries) = std::fs::read_dir(&directory) else {
            return Ok(Vec::new());
        };
        let numbered = |entry: std::fs::DirEntry| {
            let name = entry.file_name().into_string().ok()?;
            let number = name.strip_suffix(".key")?.split_once('-')?.0.parse().ok()?;
            Some((number, entry.path()))
        };
        let mut listed: Vec<(u64, PathBuf)> = entries.flatten().filter_map(numbered).collect();
        listed.sort();
        Ok(listed)
    }

    /// The newest first. One that cannot be read is passed over: only members that were away would have needed it.
    pub(super) fn old_keys(&self) -> Result<Vec<GroupKey>, SpoolError> {
        let read = |(_, path): (u64, PathBuf)| {
            let text = std::fs::read_to_string(&path).ok()?;
            let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(text.trim().as_bytes());
            GroupKey::from_bytes(bytes.ok()?.try_into().ok()?).ok()
        };
        let listed = self.old_keys_listed()?.into_iter().rev();
        Ok(listed.filter_map(read).take(OLD_KEYS_MAX).collect())
    }
}

fn key_line(key: &GroupKey) -> String {
    format!("{}\n", data_encoding::HEXLOWER.encode(key.as_bytes()))
}
