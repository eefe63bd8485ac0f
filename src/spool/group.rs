//! The group: members, names, routes, and what a new member is given.

pub(in crate::spool) mod joining;
pub(in crate::spool) mod listen;
pub(in crate::spool) mod membership;
pub(in crate::spool) mod route;

pub(in crate::spool) use self::membership::Group;
