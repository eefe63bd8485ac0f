//! The group: members, names, routes, and what a new member is given.

pub(in crate::spool) mod joining;
pub(in crate::spool) mod listen;
mod members;
pub(in crate::spool) mod membership;
pub(in crate::spool) mod route;
mod tables;

pub(crate) use self::membership::Group;
