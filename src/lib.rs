//! Meshbox: a directory that is a mesh mailbox.
//!
//! The way of the bytes, and the rooms it leads through (imports go down only):
//!
//! ```text
//! cp → fuse → fs ──► spool (seal: digest, manifest, journal) ──► mesh (offer) ─────► peer
//!                      ▲   ready decides when                                          │
//! inbox names ◄── spool (intake: verified → published; receipt) ◄── mesh (fetch) ◄─────┘
//! ```
//!
//! `fs` and `mesh` never meet except in `spool`: the disk is the queue, a channel is only a doorbell. The commit point
//! of a sent file is its seal in [`spool`]; the commit point of a received one is `Verified::publish`.
#![cfg_attr(not(test), deny(clippy::unwrap_used))]

mod bundle;
pub mod cli;
mod config;
mod control;
mod daemon;
mod delivery;
mod digest;
mod disk;
mod encoding;
mod fs;
mod fuse;
mod journal;
mod mesh;
mod mount;
mod peer;
mod protocol;
mod ready;
mod similar;
mod spool;
