//! The program matrix: ordinary programs at work in a real outbox, and what exactly arrives of it.
//!
//! [`matrix`] says how one row is checked; the other modules hold the rows, a table of shell scripts each.

#[path = "../common/mod.rs"]
mod common;

mod archives;
mod copying;
mod editors;
mod handles;
mod matrix;
mod reading;
mod storms;
mod torn;
