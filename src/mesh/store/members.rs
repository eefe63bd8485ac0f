//! What the mesh needs to know of the group. A store without a roll has one key that never changes, and admits all who
//! prove it.

use std::sync::Arc;

use crate::peer::roll::SignedStatement;
use crate::peer::{GroupKey, PeerId};
use crate::spool::{Admission, Denied, Spool, SpoolError, Welcome};

/// The roll as the mesh uses it; each call is the one of that name of [`Spool`].
#[allow(missing_docs)]
pub(crate) trait Members {
    fn group_keys(&self) -> Vec<GroupKey> {
        Vec::new()
    }
    fn admission(&self, _: PeerId) -> Admission {
        Admission::Welcome
    }
    fn older_keys_for(&self, _: PeerId) -> Vec<GroupKey> {
        Vec::new()
    }
    fn proved(&self, _: PeerId, _: &GroupKey) -> Result<bool, SpoolError> {
        Ok(true)
    }
    fn rekey_statement(&self) -> Option<SignedStatement> {
        None
    }
    fn statements(&self) -> Vec<SignedStatement> {
        Vec::new()
    }
    fn roll_digest(&self) -> Option<[u8; 32]> {
        None
    }
    fn take_statements(&self, _: Vec<SignedStatement>) -> Result<(), SpoolError> {
        Ok(())
    }
    fn invitation_key(&self, _: [u8; 16]) -> Option<GroupKey> {
        None
    }
    fn redeem(&self, _: [u8; 16], _: PeerId) -> Result<Welcome, Denied> {
        Err(Denied::Unknown)
    }
    fn refuses_origin(&self, _: PeerId) -> Option<String> {
        None
    }
}

impl Members for Arc<Spool> {
    fn group_keys(&self) -> Vec<GroupKey> {
        Spool::group_keys(self)
    }
    fn admission(&self, id: PeerId) -> Admission {
        Spool::admission(self, id)
    }
    fn older_keys_for(&self, id: PeerId) -> Vec<GroupKey> {
        Spool::older_keys_for(self, id)
    }
    fn proved(&self, id: PeerId, key: &GroupKey) -> Result<bool, SpoolError> {
        Spool::proved(self, id, key)
    }
    fn rekey_statement(&self) -> Option<SignedStatement> {
        Spool::rekey_statement(self)
    }
    fn statements(&self) -> Vec<SignedStatement> {
        Spool::statements(self)
    }
    fn roll_digest(&self) -> Option<[u8; 32]> {
        Spool::roll_digest(self)
    }
    fn take_statements(&self, told: Vec<SignedStatement>) -> Result<(), SpoolError> {
        Spool::take_statements(self, told)
    }
    fn invitation_key(&self, name: [u8; 16]) -> Option<GroupKey> {
        Spool::invitation_key(self, name)
    }
    fn redeem(&self, name: [u8; 16], joiner: PeerId) -> Result<Welcome, Denied> {
        Spool::redeem(self, name, joiner)
    }
    fn refuses_origin(&self, origin: PeerId) -> Option<String> {
        Spool::refuses_origin(self, origin)
    }
}
