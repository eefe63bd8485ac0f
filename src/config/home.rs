//! Where a state is that nobody named: in a directory called by the whole path of its mountpoint.
//!
//! By the last part of the path alone, two mountpoints that are called alike would share one state: files, identity and
//! group of one would show up in the other.

use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::error::ConfigError;
use super::surroundings::Surroundings;

/// A name of this length and the names of what a tool makes of it (`.tar.gz`) fit into 255 bytes.
const NAME_MAX: usize = 200;

/// Of a longer one this much stays, for people.
const NAME_KEPT: usize = 160;

/// Digits of the hash that tells longer ones apart.
const HASH_DIGITS: usize = 16;

/// The state of a mount at `mountpoint`, whose parent has no links in it.
pub(super) fn default_state(
    mountpoint: Option<&Path>,
    surroundings: &Surroundings,
) -> Result<PathBuf, ConfigError> {
    let home = surroundings.state_home().ok_or(ConfigError::NoState)?;
    let place = mountpoint.ok_or(ConfigError::NoState)?;
    Ok(home.join(state_name(place)))
}

fn state_name(mountpoint: &Path) -> String {
    let mut name = escaped(mountpoint);
    if name.len() > NAME_MAX {
        let hash = data_encoding::HEXLOWER.encode(&Sha256::digest(name.as_bytes()));
        name.truncate(NAME_KEPT);
        name.push('-');
        name.push_str(&hash[..HASH_DIGITS]);
    }
    name
}

/// As `systemd-escape --path` does, so that the state of a unit is called like the unit.
fn escaped(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let bytes = path.as_os_str().as_bytes();
    let parts = bytes.split(|byte| *byte == b'/');
    let parts: Vec<&[u8]> = parts.filter(|part| !part.is_empty()).collect();
    let mut name = String::new();
    for (at, byte) in parts.join(&b'/').into_iter().enumerate() {
        match byte {
            b'/' => name.push('-'),
            b'.' if at > 0 => name.push('.'),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b':' | b'_' => name.push(char::from(byte)),
            other => name.push_str(&format!("\\x{other:02x}")),
        }
    }
    if name.is_empty() {
        name.push('-');
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `systemd-escape --path` prints.
    #[test]
    fn a_state_is_called_as_systemd_calls_the_path() {
        for (path, name) in [
            ("/srv/share", "srv-share"),
            ("/srv//share/", "srv-share"),
            ("/", "-"),
            ("/srv/my-share", r"srv-my\x2dshare"),
            ("/.hidden/x", r"\x2ehidden-x"),
            ("/a/.hidden", "a-.hidden"),
            ("/home/möwe/a b", r"home-m\xc3\xb6we-a\x20b"),
            ("/a:b_c.d", "a:b_c.d"),
        ] {
            assert_eq!(state_name(Path::new(path)), name, "{path}");
        }
        assert_ne!(state_name(Path::new("/a/b")), state_name(Path::new("/a-b")));
    }

    #[test]
    fn long_paths_have_names_that_fit_and_differ() {
        let path = |end: &str| PathBuf::from(format!("/{}/{end}", "möwe/".repeat(100)));
        let (one, other) = (state_name(&path("a")), state_name(&path("b")));
        assert_eq!(one.len(), NAME_KEPT + 1 + HASH_DIGITS);
        assert_eq!(one[..NAME_KEPT], other[..NAME_KEPT]);
        assert_ne!(one, other);
        let just = PathBuf::from(format!("/{}", "a".repeat(NAME_MAX)));
        assert_eq!(state_name(&just).len(), NAME_MAX);
        let more = PathBuf::from(format!("/{}", "a".repeat(NAME_MAX + 1)));
        assert_eq!(state_name(&more).len(), NAME_KEPT + 1 + HASH_DIGITS);
    }
}
