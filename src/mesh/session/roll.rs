//! A session's part in keeping the roll of the group the same everywhere.

use super::Session;
use crate::mesh::budget::Held;
use crate::mesh::wire::{Frame, MemberFrame, pages};

impl Session {
    /// Begins with a hash of our roll: in a group that did not change nothing more is said.
    pub(super) fn compare_rolls(&mut self) {
        self.roll_told = self.hub.store.roll_digest();
        if let Some(digest) = self.roll_told {
            self.out.push(&Frame::Member(MemberFrame::Roll(digest)));
        }
    }

    /// Our roll may have changed: tells it.
    pub(super) fn tell_roll(&mut self) {
        let digest = self.hub.store.roll_digest();
        if digest != self.roll_told {
            self.roll_told = digest;
            for page in pages(self.hub.store.statements()) {
                self.out.push(&Frame::Member(MemberFrame::Statements(page)));
            }
        }
    }

    pub(super) fn heard_member(&mut self, frame: MemberFrame, permit: Held) {
        match frame {
            MemberFrame::Statements(told) => {
                let hub = self.hub.clone();
                self.desk.push(move || {
                    if let Err(error) = hub.store.take_statements(told) {
                        tracing::error!("statements on the group not recorded: {error}");
                    }
                    drop(permit);
                });
            }
            MemberFrame::Roll(theirs) => {
                if self
                    .hub
                    .store
                    .roll_digest()
                    .is_some_and(|ours| ours != theirs)
                {
                    self.roll_told = None;
                    self.tell_roll();
                }
            }
            // The reader lets nothing else through.
            MemberFrame::Redeem { .. } | MemberFrame::Welcome(_) | MemberFrame::Denied(_) => {}
        }
    }
}
