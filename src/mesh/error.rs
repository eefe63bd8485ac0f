//! Why the mesh does not start.

/// Why the mesh did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MeshError {
    /// Without a key nobody could be let in.
    #[error("this node is in no group yet")]
    NoGroup,
    /// An address could not be bound.
    #[error("cannot listen on {0}: {1}")]
    Bind(String, String),
    /// What is configured as a relay is no URL.
    #[error("{0:?} is not the URL of a relay, such as http://10.0.0.1:3340")]
    Relay(String),
    /// The runtime could not be made.
    #[error("cannot start the network threads: {0}")]
    Runtime(std::io::Error),
}
