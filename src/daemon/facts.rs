//! What does not change while the daemon runs.

use std::path::PathBuf;
use std::sync::Arc;

use crate::peer::{PeerId, PeerName};
use crate::spool::Spool;

pub(super) struct Facts {
    pub(super) id: PeerId,
    pub(super) name: PeerName,
    pub(super) mountpoint: PathBuf,
    pub(super) spool: Arc<Spool>,
    /// Begins the end; does not block.
    pub(super) stop: Box<dyn Fn() + Send + Sync>,
}
