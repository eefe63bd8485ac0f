//! Whose a top directory of the inbox is, because of the symbolic links in it.
//!
//! # Invariants
//! 1. A top directory with links of one origin in it is that origin's alone: what others send to it goes to a directory of
//!    theirs. So no link leads to what somebody else sent, or will send.

use super::tables::IN_NAMES;
use crate::bundle::RelPath;
use crate::journal::{Batch, Table};
use crate::peer::PeerId;
use crate::spool::keys::Beneath;
use crate::spool::{Spool, SpoolError};

/// Top directories of the inbox that have links in them, with whose they are.
const TOPS: Table<RelPath, PeerId> = Table::new(90);

/// By origin and the top directory that it says: the one that it has here, if that is another because of links.
const OTHER_TOPS: Table<(PeerId, RelPath), Vec<u8>> = Table::new(91);

/// Names of a top directory looked at to find whether others have something in it.
const TOP_PAGE: usize = 256;

impl Spool {
    /// Whether `origin` may give names in the top directory `top`; `links`: links too. Call with the decision lock held.
    pub(in crate::spool) fn may_use_top(
        &self,
        origin: PeerId,
        top: &RelPath,
        links: bool,
    ) -> Result<bool, SpoolError> {
        if let Some(owner) = self.journal.row(TOPS, top)? {
            if self.inbox().look(top)?.is_some() || owner == origin {
                return Ok(owner == origin);
            }
            if self.inbox.publishing.has_claimed(owner, top) {
                return Ok(false);
            }
            // It was consumed, with all that was in it: from now on it is of whoever comes first.
            let mut batch = Batch::default();
            batch.remove(TOPS, top);
            self.journal.submit(batch)?;
        }
        if !links {
            return Ok(true);
        }
        if self.inbox.publishing.others_show_below(origin, top) {
            return Ok(false);
        }
        let mut after: Option<RelPath> = None;
        loop {
            let below = IN_NAMES.below(&Beneath(top)).after(after.as_ref());
            let page = self.journal.rows(below, TOP_PAGE)?;
            if page.iter().any(|(_, row)| row.origin != origin) {
                return Ok(false);
            }
            match page.into_iter().next_back() {
                Some((key, _)) => after = Some(key),
                None => return Ok(true),
            }
        }
    }

    /// The top directory that `origin` has here for what it calls `top`, once that is another.
    pub(in crate::spool) fn other_top(
        &self,
        origin: PeerId,
        top: &[u8],
    ) -> Result<Option<Vec<u8>>, SpoolError> {
        let top = RelPath::parse(top.to_vec());
        match top {
            Ok(top) => Ok(self.journal.row(OTHER_TOPS, &(origin, &top))?),
            Err(_) => Ok(None),
        }
    }

    /// A link of `origin`, at `path` there, is about to have `name` here.
    pub(in crate::spool) fn claim_top(
        &self,
        origin: PeerId,
        path: &RelPath,
        name: &RelPath,
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        let top = |path: &RelPath| RelPath::parse(path.components().next()?.to_vec()).ok();
        let (Some(said), Some(chosen)) = (top(path), top(name)) else {
            return Ok(());
        };
        batch.insert(TOPS, &chosen, &origin);
        self.inbox.publishing.claim(origin, &chosen);
        if said != chosen {
            batch.insert(OTHER_TOPS, &(origin, said), &chosen.as_bytes().to_vec());
        }
        Ok(())
    }
}
