//! Where the log goes: stderr in the foreground, a bounded file or the journal in the background.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use parking_lot::Mutex;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{EnvFilter, Registry, reload};

/// Size at which the log file is put aside. Some ten thousand lines: enough to see what led to a problem.
const LOG_FILE_SIZE: u64 = 4 * 1024 * 1024;

/// Files put aside; with the current one the log takes at most 16 MiB.
const LOG_FILES_KEPT: usize = 3;

/// What is logged; set when logging starts.
static LEVEL: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Where log lines go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Sink {
    /// The terminal.
    Stderr,
    /// A file, rotated and bounded.
    File(PathBuf),
    /// systemd's journal.
    Journal,
}

impl Sink {
    /// Chooses: the journal when systemd runs us and it is there, else stderr in the foreground, else the file.
    pub(crate) fn choose(foreground: bool, file: PathBuf) -> Self {
        let stderr = rustix::fs::fstat(io::stderr())
            .ok()
            .map(|stat| (stat.st_dev, stat.st_ino));
        let journal = std::env::var("JOURNAL_STREAM").ok();
        let notified = std::env::var_os("NOTIFY_SOCKET").is_some();
        let listens = Path::new("/run/systemd/journal/socket").exists();
        Self::decide(
            foreground,
            file,
            journal.as_deref(),
            stderr,
            notified,
            listens,
        )
    }

    /// A terminal started by a desktop inherits JOURNAL_STREAM too; it counts only if it names our own stderr
    /// (systemd.exec(5)). A container can have NOTIFY_SOCKET and no journal.
    fn decide(
        foreground: bool,
        file: PathBuf,
        journal: Option<&str>,
        stderr: Option<(u64, u64)>,
        notified: bool,
        listens: bool,
    ) -> Self {
        let named = journal.and_then(|text| {
            let (device, inode) = text.split_once(':')?;
            Some((device.parse().ok()?, inode.parse().ok()?))
        });
        let ours = named.is_some() && named == stderr;
        if listens && (ours || (notified && !foreground)) {
            Self::Journal
        } else if foreground {
            Self::Stderr
        } else {
            Self::File(file)
        }
    }
}

/// Starts logging and logs panics from now on. A second call in one process does nothing.
pub(crate) fn start(sink: &Sink, directives: &str) -> io::Result<()> {
    let (filter, level) = reload::Layer::new(EnvFilter::builder().parse_lossy(directives));
    let started = match sink {
        Sink::Stderr => tracing_subscriber::registry()
            .with(filter)
            .with(
                tracing_subscriber::fmt::layer()
                    .with_writer(io::stderr)
                    .with_ansi(io::stderr().is_terminal())
                    .with_target(false),
            )
            .try_init(),
        Sink::File(path) => tracing_subscriber::registry()
            .with(filter)
            .with(
                tracing_subscriber::fmt::layer()
                    .with_writer(LogFile::open(path)?)
                    .with_ansi(false)
                    .with_target(false),
            )
            .try_init(),
        Sink::Journal => tracing_subscriber::registry()
            .with(filter)
            .with(tracing_journald::layer()?)
            .try_init(),
    };
    if started.is_ok() {
        // Set once, as logging is.
        let _second = LEVEL.set(level);
        log_panics();
    }
    Ok(())
}

/// Logs by other directives from now on.
pub(crate) fn set_level(directives: &str) {
    let filter = EnvFilter::builder().parse_lossy(directives);
    if let Some(Err(error)) = LEVEL.get().map(|level| level.reload(filter)) {
        tracing::error!("the log level stays: {error}");
    }
}

/// A panic ends one thread or one request, never silently.
fn log_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("unnamed");
        let place = panic
            .location()
            .map_or_else(|| "somewhere".to_owned(), ToString::to_string);
        let words = panic.payload_as_str().unwrap_or("without words");
        tracing::error!("panic in thread {name} at {place}: {words}");
        before(panic);
    }));
}

/// A log file that is put aside when it is full: `meshbox.log` becomes `meshbox.log.1`, that `meshbox.log.2`, and so on.
struct LogFile(Mutex<Rotating>);

struct Rotating {
    path: PathBuf,
    file: File,
    /// Bytes in `file`.
    size: u64,
}

impl LogFile {
    fn open(path: &Path) -> io::Result<Self> {
        let file = open_log(path)?;
        let size = file.metadata()?.len();
        Ok(Self(Mutex::new(Rotating {
            path: path.to_owned(),
            file,
            size,
        })))
    }
}

fn open_log(path: &Path) -> io::Result<File> {
    // Names of files are private.
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o600).open(path)
}

impl Rotating {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.size >= LOG_FILE_SIZE {
            self.put_aside()?;
        }
        let written = self.file.write(bytes)?;
        self.size += written as u64;
        Ok(written)
    }

    /// Replaces the oldest file. Where a rename fails, lines are lost until one succeeds: the log stays bounded.
    fn put_aside(&mut self) -> io::Result<()> {
        let aside = |count: usize| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{count}"));
            PathBuf::from(name)
        };
        for count in (1..LOG_FILES_KEPT).rev() {
            match std::fs::rename(aside(count), aside(count + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        std::fs::rename(&self.path, aside(1))?;
        self.file = open_log(&self.path)?;
        self.size = 0;
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogFile {
    type Writer = LogLine<'a>;
    fn make_writer(&'a self) -> LogLine<'a> {
        LogLine(self)
    }
}

/// Writes to the log file; the lock is held for one line only.
struct LogLine<'a>(&'a LogFile);

impl io::Write for LogLine<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.0.lock().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.0.0.lock().file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn the_journal_counts_only_if_it_is_our_stderr_and_is_there() {
        let file = || PathBuf::from("/s/meshbox.log");
        let stderr = Some((8, 77));
        let decide = |foreground, journal, notified| {
            Sink::decide(foreground, file(), journal, stderr, notified, true)
        };
        assert_eq!(decide(true, None, false), Sink::Stderr);
        assert_eq!(
            decide(false, None, false),
            Sink::File("/s/meshbox.log".into())
        );
        assert_eq!(decide(true, Some("8:77"), true), Sink::Journal);
        assert_eq!(decide(true, Some("8:78"), false), Sink::Stderr);
        assert_eq!(
            decide(false, Some("8:78"), false),
            Sink::File("/s/meshbox.log".into())
        );
        assert_eq!(decide(false, None, true), Sink::Journal);
        assert_eq!(decide(true, Some("nonsense"), false), Sink::Stderr);

        let without =
            |foreground, journal| Sink::decide(foreground, file(), journal, stderr, true, false);
        assert_eq!(without(true, Some("8:77")), Sink::Stderr);
        assert_eq!(without(false, None), Sink::File(file()));
    }

    #[test]
    fn the_log_is_bounded_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("meshbox.log");
        let log = LogFile::open(&path).unwrap();
        let line = vec![b'x'; 1024 * 1024];
        for _ in 0..40 {
            log.make_writer().write_all(&line).unwrap();
        }
        let sizes: Vec<u64> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .collect();
        assert_eq!(sizes.len(), LOG_FILES_KEPT + 1);
        assert!(
            sizes.iter().sum::<u64>()
                <= (LOG_FILES_KEPT as u64 + 1) * (LOG_FILE_SIZE + line.len() as u64)
        );
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_log_that_cannot_be_opened_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(LogFile::open(&dir.path().join("missing/meshbox.log")).is_err());
    }
}
