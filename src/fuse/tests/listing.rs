//! A listing as the kernel's NFS server takes it: every piece through a new descriptor, by lseek(2).

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{RawDir, SeekFrom, open, seek};

use super::*;

/// The names of one getdents(2) with a small buffer, and the offset after each.
fn piece(directory: &std::path::Path, offset: u64) -> Vec<(String, u64, u64)> {
    let fd = open(directory, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    if offset != 0 {
        seek(&fd, SeekFrom::Start(offset)).unwrap();
    }
    let mut buffer = [std::mem::MaybeUninit::uninit(); 256];
    let mut entries = RawDir::new(&fd, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_str().unwrap().to_owned();
        names.push((name, entry.next_entry_cookie(), entry.ino()));
        if entries.is_buffer_empty() {
            break;
        }
    }
    names
}

#[test]
fn a_listing_is_continued_by_lseek_on_a_new_descriptor() {
    let Some(m) = Mounted::new() else { return };
    m.sh("mkdir d d/sub; for i in $(seq 500); do : > d/$i; done");
    let directory = m.outbox().join("d");
    let (mut seen, mut offset) = (HashSet::new(), 0);
    for n in 1.. {
        let names = piece(&directory, offset);
        let Some((_, next, _)) = names.last() else {
            break;
        };
        offset = *next;
        for (name, _, ino) in names {
            if name == ".." {
                assert_eq!(ino, fs::metadata(m.outbox()).unwrap().ino());
            }
            assert!(seen.insert(name.clone()), "{name} is listed twice");
        }
        if n <= 250 {
            fs::remove_file(directory.join(n.to_string())).unwrap();
            fs::write(directory.join(format!("new{n}")), "").unwrap();
        }
    }
    for n in 251..=500 {
        assert!(seen.contains(&n.to_string()), "{n} was there all the time");
    }
    assert!(seen.contains("sub"));
    let sub = piece(&directory.join("sub"), 0);
    let above = sub.iter().find(|(name, ..)| name == "..").unwrap().2;
    assert_eq!(above, fs::metadata(&directory).unwrap().ino());
}
