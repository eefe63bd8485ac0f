//! The addresses that were last listened on, so that the next start can take the same ports again.
//!
//! Members dial each other at the addresses they last heard. With new ports at every start, two members that are
//! restarted at the same time would both be known at ports that nobody listens on.
//!
//! # Crash behaviour
//! The file is replaced whole. Without it, or when it cannot be read, free ports are taken.

use std::io;
use std::net::SocketAddr;

use super::Group;
use crate::spool::{SpoolError, durable};

/// Most addresses that are read back.
const ADDRS_MAX: usize = 64;

impl Group {
    /// The sockets that were bound at the last start, unspecified addresses as such; empty if there was none.
    pub(crate) fn remembered_listen(&self) -> Vec<SocketAddr> {
        let path = self.layout.listen();
        match std::fs::read_to_string(&path) {
            Ok(text) => parse(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                tracing::warn!("cannot read {}: {error}", path.display());
                Vec::new()
            }
        }
    }

    /// Remembers the sockets that are bound now.
    pub(crate) fn remember_listen(&self, bound: &[SocketAddr]) -> Result<(), SpoolError> {
        if self.remembered_listen() == bound {
            return Ok(());
        }
        let text: String = bound.iter().map(|addr| format!("{addr}\n")).collect();
        Ok(durable::write_file(&self.layout.listen(), text.as_bytes())?)
    }
}

/// One address a line; what is none is passed over.
fn parse(text: &str) -> Vec<SocketAddr> {
    let addrs = text.lines().filter_map(|line| line.trim().parse().ok());
    addrs.take(ADDRS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_are_no_address_are_passed_over() {
        let text = "0.0.0.0:7\n\nnonsense\n [::]:8 \n127.0.0.1\n";
        let found: Vec<String> = parse(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["0.0.0.0:7", "[::]:8"]);
    }
}
