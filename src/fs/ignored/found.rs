//! What was found that is not sent.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::bundle::RelPath;

/// Files that are not sent because of one pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ignored {
    pub pattern: String,
    /// What has such names; `None` for a pattern of the user's.
    pub what: Option<&'static str>,
    /// How many there are, or more if not all of the outbox was looked at.
    pub count: u64,
    /// Some of them.
    pub examples: Vec<RelPath>,
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct IgnoredNames {
    /// Most first.
    pub by_pattern: Vec<Ignored>,
    /// There may be more: the outbox has more names than are looked at.
    pub more: bool,
}

#[derive(Debug, Default)]
pub(in crate::fs) struct LastLook(pub(super) Option<(Instant, Duration, Arc<IgnoredNames>)>);
