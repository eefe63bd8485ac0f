//! A log of records that is safe in the page cache: of the journal's batches that are not yet in its database, and of what
//! origins signed, which the spool keeps beside it.
//!
//! A record is appended before anything acts on it, without fsync, so a killed process loses none. After a power loss the
//! journal's log is thrown away: it may speak of bytes that did not reach the disk. It has one segment per group commit,
//! which is removed once the database has committed everything in it.
//!
//! # Crash behaviour
//! A record that was cut short ends its segment: it was never acted on, since [`Log::append`] had not returned.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::disk::{DiskError, OnPath, durable};

/// Frame: length of the body, then the first 8 bytes of its BLAKE3, then the body.
const HEADER: usize = 12;

#[derive(Debug)]
pub(crate) struct Log {
    directory: PathBuf,
    segment: u64,
    file: File,
    /// Where the next record goes. A record that could not be written whole is overwritten by the next one.
    end: u64,
}

/// A record as it goes to the disk; made before the log is locked.
#[derive(Debug)]
pub(crate) struct Record(Vec<u8>);

impl Record {
    /// A record of what `encode` appends.
    pub(crate) fn new<E>(encode: impl FnOnce(Vec<u8>) -> Result<Vec<u8>, E>) -> Result<Self, E> {
        let mut record = encode(vec![0; HEADER])?;
        let (header, body) = record.split_at_mut(HEADER);
        header[..4].copy_from_slice(&(body.len() as u32).to_le_bytes());
        header[4..].copy_from_slice(&checksum(body));
        Ok(Self(record))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The record of a body that was read.
    pub(crate) fn of(body: &[u8]) -> Self {
        let mut record = vec![0; HEADER];
        record[..4].copy_from_slice(&(body.len() as u32).to_le_bytes());
        record[4..].copy_from_slice(&checksum(body));
        record.extend_from_slice(body);
        Self(record)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// How long the record of a body is.
    pub(crate) fn len_of(body: &[u8]) -> u64 {
        (HEADER + body.len()) as u64
    }
}

/// A segment that was made and not written to yet.
#[derive(Debug)]
pub(crate) struct Segment {
    number: u64,
    file: File,
}

impl Segment {
    /// Makes the one after `number`. That may wait for the disk, so it is done before the log is locked.
    pub(crate) fn after(directory: &Path, number: u64) -> Result<Self, DiskError> {
        let number = number + 1;
        let file = create(directory, number)?;
        Ok(Self { number, file })
    }
}

impl Log {
    /// Starts a new segment after all that exist.
    pub(crate) fn open(directory: &Path) -> Result<Self, DiskError> {
        durable::make_directory(directory)?;
        let segment = segments(directory)?.last().map_or(0, |last| last + 1);
        let file = create(directory, segment)?;
        Ok(Self {
            directory: directory.to_path_buf(),
            segment,
            file,
            end: 0,
        })
    }

    /// Adds one record.
    pub(crate) fn append(&mut self, record: &Record) -> Result<(), DiskError> {
        if let Err(error) = self.file.write_all_at(&record.0, self.end) {
            // Best effort: what is left of it fails its checksum.
            let _cut = self.file.set_len(self.end);
            return Err(error).on("append to", &self.directory);
        }
        self.end += record.len() as u64;
        Ok(())
    }

    /// The number of the segment that is being written.
    pub(crate) fn segment(&self) -> u64 {
        self.segment
    }

    /// Goes on in a new segment; returns the number of the one it ends.
    pub(crate) fn rotate(&mut self, next: Segment) -> u64 {
        let ended = std::mem::replace(&mut self.segment, next.number);
        self.file = next.file;
        self.end = 0;
        ended
    }

    /// Removes all segments up to and including `segment`.
    pub(crate) fn release(directory: &Path, segment: u64) -> Result<(), DiskError> {
        for old in segments(directory)?.into_iter().filter(|s| *s <= segment) {
            durable::remove(&name(directory, old))?;
        }
        Ok(())
    }
}

/// All records of all segments, in order; each segment up to its first damaged record.
pub(crate) fn read(directory: &Path) -> Result<Vec<Vec<u8>>, DiskError> {
    let mut records = Vec::new();
    for segment in segments(directory)? {
        let path = name(directory, segment);
        let mut bytes = Vec::new();
        File::open(&path)
            .on("open", &path)?
            .read_to_end(&mut bytes)
            .on("read", &path)?;
        let mut rest = bytes.as_slice();
        while let Some((body, after)) = split_record(rest) {
            records.push(body.to_vec());
            rest = after;
        }
    }
    Ok(records)
}

/// Reads the next record of a segment; `None` at its end, or where it is damaged.
pub(crate) fn next_record(reader: &mut impl Read) -> std::io::Result<Option<Vec<u8>>> {
    let mut header = [0; HEADER];
    if let Err(error) = reader.read_exact(&mut header) {
        return match error.kind() {
            std::io::ErrorKind::UnexpectedEof => Ok(None),
            _ => Err(error),
        };
    }
    let [a, b, c, d, ..] = header;
    let len = u64::from(u32::from_le_bytes([a, b, c, d]));
    // Grows as bytes come, whatever a damaged header says.
    let mut body = Vec::new();
    reader.by_ref().take(len).read_to_end(&mut body)?;
    let is_whole = body.len() as u64 == len && checksum(&body) == header[4..];
    Ok(is_whole.then_some(body))
}

fn split_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (header, rest) = bytes.split_at_checked(HEADER)?;
    let len = u32::from_le_bytes(header[..4].try_into().ok()?) as usize;
    let (body, after) = rest.split_at_checked(len)?;
    (checksum(body) == header[4..]).then_some((body, after))
}

fn checksum(body: &[u8]) -> [u8; 8] {
    let mut sum = [0; 8];
    sum.copy_from_slice(&blake3::hash(body).as_bytes()[..8]);
    sum
}

pub(crate) fn name(directory: &Path, segment: u64) -> PathBuf {
    directory.join(format!("{segment:012}"))
}

fn create(directory: &Path, segment: u64) -> Result<File, DiskError> {
    let path = name(directory, segment);
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .on("create", &path)
}

pub(crate) fn segments(directory: &Path) -> Result<Vec<u64>, DiskError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).on("read", directory),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.on("read", directory)?;
        if let Some(number) = entry.file_name().to_str().and_then(|s| s.parse().ok()) {
            found.push(number);
        }
    }
    found.sort_unstable();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(body: &[u8]) -> Record {
        let encode = |mut record: Vec<u8>| {
            record.extend_from_slice(body);
            Ok::<_, ()>(record)
        };
        Record::new(encode).unwrap()
    }

    fn rotate(log: &mut Log) -> u64 {
        let next = Segment::after(&log.directory, log.segment()).unwrap();
        log.rotate(next)
    }

    #[test]
    fn records_survive_in_order_across_segments() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::open(dir.path()).unwrap();
        log.append(&record(b"one")).unwrap();
        log.append(&record(b"")).unwrap();
        let ended = rotate(&mut log);
        log.append(&record(b"three")).unwrap();
        drop(log);
        assert_eq!(
            read(dir.path()).unwrap(),
            [b"one".to_vec(), b"".to_vec(), b"three".to_vec()]
        );
        let mut again = Log::open(dir.path()).unwrap();
        again.append(&record(b"four")).unwrap();
        Log::release(dir.path(), ended).unwrap();
        assert_eq!(
            read(dir.path()).unwrap(),
            [b"three".to_vec(), b"four".to_vec()]
        );
    }

    #[test]
    fn a_record_cut_short_or_damaged_ends_its_segment_only() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::open(dir.path()).unwrap();
        log.append(&record(b"whole")).unwrap();
        log.append(&record(b"cut short")).unwrap();
        rotate(&mut log);
        log.append(&record(b"next")).unwrap();
        let path = name(dir.path(), 0);
        let bytes = fs::read(&path).unwrap();
        for cut in HEADER + 5..bytes.len() {
            fs::write(&path, &bytes[..cut]).unwrap();
            assert_eq!(
                read(dir.path()).unwrap(),
                [b"whole".to_vec(), b"next".to_vec()],
                "cut at {cut}"
            );
        }
        let mut damaged = bytes;
        *damaged.last_mut().unwrap() ^= 1;
        fs::write(&path, &damaged).unwrap();
        assert_eq!(
            read(dir.path()).unwrap(),
            [b"whole".to_vec(), b"next".to_vec()]
        );
    }

    #[test]
    fn what_a_full_disk_left_of_a_record_does_not_hide_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::open(dir.path()).unwrap();
        log.append(&record(b"one")).unwrap();
        let end = log.file.metadata().unwrap().len();
        log.file.write_all_at(b"half of a record", end).unwrap();
        log.append(&record(b"two")).unwrap();
        log.append(&record(b"three")).unwrap();
        assert_eq!(
            read(dir.path()).unwrap(),
            [b"one".to_vec(), b"two".to_vec(), b"three".to_vec()]
        );
    }
}
