//! What can be wrong with a configuration.

use std::path::PathBuf;

use thiserror::Error;

/// Why the configuration does not hold together. The user's to correct.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The configuration file or the ticket file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Not TOML.
    #[error("{path}: {why}")]
    Toml {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        why: String,
    },
    /// A key or option nobody knows.
    #[error("unknown setting `{name}` ({origin}){hint}")]
    Unknown {
        /// As it was written.
        name: String,
        /// Where it stands.
        origin: String,
        /// The one that may be meant, as the end of a sentence; may be empty.
        hint: String,
    },
    /// A value that does not fit its setting.
    #[error("{origin}: {why}")]
    Value {
        /// Where the value stands.
        origin: String,
        /// What is wrong with it.
        why: String,
    },
    /// Nothing says where the state is.
    #[error(
        "which state directory? name it with --state (no $XDG_STATE_HOME, and no home directory)"
    )]
    NoState,
}
