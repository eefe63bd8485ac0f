//! What members say to each other, and what follows from what they hear. Pure: nothing here reads a clock, a disk or a
//! socket.
//!
//! ```text
//!  frames heard ──►┌─────────────┐──► frames to say
//!  what happened ─►│   session   │──► jobs: what is to be looked up or written
//!  results of jobs►└─────────────┘──► words for the layer that fetches
//!                    │  crate::delivery: what one peer is owed
//!                    └─ care: what is remembered across sessions
//! ```
//!
//! `mesh` keeps a thin actor for each session, which cuts frames, runs the jobs against the spool and feeds the results
//! back; the simulator runs this very code on modelled disks.

pub(crate) mod care;
pub(crate) mod frame;
pub(crate) mod offers;
pub(crate) mod session;

#[cfg(test)]
mod simulator;
