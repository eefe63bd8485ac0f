//! The order of seals: who left a name is sealed before who has it now.

use std::collections::HashSet;

use super::Ready;
use super::event::Ino;
use super::inode::Name;

impl Ready {
    /// The inode, after those that left the names it has now, and after those that left theirs.
    pub(super) fn in_order(&self, ino: Ino) -> Vec<Ino> {
        let (mut order, mut seen) = (vec![ino], HashSet::from([ino]));
        let mut at = 0;
        while let Some(inode) = order.get(at).and_then(|ino| self.inodes.get(ino)) {
            at += 1;
            let moved = |name: &&Name| name.renamed_from.is_some() && !name.is_dressed();
            for name in inode.names.iter().filter(moved) {
                let before = self.leaving.last_at(&name.path).filter(|before| {
                    let before = self.inodes.get(before);
                    before.is_some_and(|b| b.may_be_sealed() && b.has_left(&name.path))
                });
                order.extend(before.filter(|before| seen.insert(*before)));
            }
        }
        order.reverse();
        order
    }
}
