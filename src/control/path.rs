//! Paths on the control socket.

use serde::{Deserialize, Serialize};

use crate::bundle::{PathError, RelPath};

/// A path below `outbox/` on the wire: text, or base64 where the bytes are not UTF-8.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum WirePath {
    /// UTF-8.
    Text(String),
    /// Any bytes.
    Bytes {
        /// In base64.
        path_b64: String,
    },
}

impl From<&RelPath> for WirePath {
    fn from(path: &RelPath) -> Self {
        match std::str::from_utf8(path.as_bytes()) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Bytes {
                path_b64: data_encoding::BASE64.encode(path.as_bytes()),
            },
        }
    }
}

impl TryFrom<&WirePath> for RelPath {
    type Error = PathError;
    fn try_from(path: &WirePath) -> Result<Self, PathError> {
        match path {
            WirePath::Text(text) => RelPath::parse(text.as_bytes()),
            // Bytes that are not base64 are no path at all.
            WirePath::Bytes { path_b64 } => RelPath::parse(
                data_encoding::BASE64
                    .decode(path_b64.as_bytes())
                    .unwrap_or_default(),
            ),
        }
    }
}
