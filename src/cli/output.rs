//! What the program prints.

use std::io::Write;

use super::exit::Failure;

/// Says what is wrong, on standard error.
pub(super) fn complain(message: &str) {
    // Nothing is left to be done where standard error is closed.
    let _closed = writeln!(std::io::stderr(), "meshbox: {message}");
}

/// Prints to standard output; a reader that has seen enough (`| head`) is no error.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(err) if err.kind() != std::io::ErrorKind::BrokenPipe => Err(err.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}
