//! Where a file has bytes, and where only holes.

use std::fs::File;
use std::ops::Range;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// Asks the file system as needed. What it does not know counts as bytes.
pub(crate) struct Extents<'a> {
    file: &'a File,
    /// The stretch of bytes found last; a hole is before it.
    found: Range<u64>,
}

impl<'a> Extents<'a> {
    pub(crate) fn of(file: &'a File) -> Self {
        Self { file, found: 0..0 }
    }

    /// The stretch of bytes that `at` is in, or else the next one; at the end of the file one that does not end.
    /// Positions asked for must not go back.
    pub(crate) fn bytes_from(&mut self, at: u64) -> Range<u64> {
        if at >= self.found.end {
            let begin = match rustix::fs::seek(self.file, SeekFrom::Data(at)) {
                Ok(begin) => begin.max(at),
                // Nothing but a hole up to the end.
                Err(Errno::NXIO) => self.file.metadata().map_or(at, |meta| meta.len().max(at)),
                Err(_) => at,
            };
            let end = rustix::fs::seek(self.file, SeekFrom::Hole(begin)).unwrap_or(u64::MAX);
            self.found = begin..end.max(begin + 1);
        }
        self.found.clone()
    }

    /// Whether there is no byte in `range`.
    pub(crate) fn is_hole(&mut self, range: &Range<u64>) -> bool {
        let bytes = self.bytes_from(range.start);
        bytes.start >= range.end
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn holes_lie_between_what_was_written() {
        const MIB: u64 = 1 << 20;
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; 4096], MIB).unwrap();
        file.write_all_at(&[1; 4096], 3 * MIB).unwrap();
        file.set_len(5 * MIB).unwrap();
        let mut extents = Extents::of(&file);
        assert!(extents.is_hole(&(0..MIB)));
        assert_eq!(extents.bytes_from(0).start, MIB);
        assert!(!extents.is_hole(&(MIB..2 * MIB)));
        assert!(extents.is_hole(&(2 * MIB..3 * MIB)));
        assert!(!extents.is_hole(&(2 * MIB..3 * MIB + 1)));
        assert!(extents.is_hole(&(4 * MIB..5 * MIB)));
        assert_eq!(extents.bytes_from(4 * MIB), 5 * MIB..u64::MAX);
    }
}
