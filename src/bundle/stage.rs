//! How far a file is: one word for each stage, in the order of the way.
//!
//! Stages are values everywhere but where somebody reads them: `Display` and serde give the words.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How far a file of the outbox is on its way to its recipients, or where it ended. What is less far comes first; of what
/// has ended, what may still be mended comes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Stage {
    /// Open for writing.
    Open,
    /// Its writer was killed, or a write failed.
    Incomplete,
    /// Waits for something else: the rest of its directory, or a recipient whose name nobody has.
    Waiting,
    /// Closed a moment ago; the settle time is not over.
    Settling,
    /// Being sealed.
    Sealing,
    /// Sealing failed, and is tried again.
    Retrying,
    /// There is nothing to be sent.
    #[serde(rename = "not sent")]
    NotSent,
    /// Sealed, and not durable yet.
    Sealed,
    /// A recipient put it off.
    Deferred,
    /// Durable, and offered to nobody yet.
    Queued,
    /// Offered to a recipient, which has not answered yet.
    Offered,
    /// A recipient has asked for bytes of it.
    Sending,
    /// A recipient does not want it.
    Refused,
    /// Ended by its origin.
    Cancelled,
    /// Its lifetime is over.
    Expired,
    /// A newer version took its place.
    Superseded,
    /// A recipient has it.
    Delivered,
}

impl Stage {
    /// What users read.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Incomplete => "incomplete",
            Self::Waiting => "waiting",
            Self::Settling => "settling",
            Self::Sealing => "sealing",
            Self::Retrying => "retrying",
            Self::NotSent => "not sent",
            Self::Sealed => "sealed",
            Self::Deferred => "deferred",
            Self::Queued => "queued",
            Self::Offered => "offered",
            Self::Sending => "sending",
            Self::Refused => "refused",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::Superseded => "superseded",
            Self::Delivered => "delivered",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// How far a bundle of another member is here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum InboxStage {
    /// Its bytes are arriving.
    Incoming,
    /// Asked for again later.
    Deferred,
    /// What came does not have the digests of its manifest.
    Quarantined,
    /// Not taken, for good.
    Refused,
    /// Its origin does not send it to us any more.
    Withdrawn,
    /// Ended by its origin.
    Cancelled,
    /// Its lifetime is over.
    Expired,
    /// Shown in the inbox, and not durable yet.
    Published,
    /// Shown in the inbox, and durable.
    Received,
    /// The user removed what it showed.
    Consumed,
    /// Its file has other bytes than were received.
    Damaged,
}

impl InboxStage {
    /// What users read.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Incoming => "incoming",
            Self::Deferred => "deferred",
            Self::Quarantined => "quarantined",
            Self::Refused => "refused",
            Self::Withdrawn => "withdrawn",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::Published => "published",
            Self::Received => "received",
            Self::Consumed => "consumed",
            Self::Damaged => "damaged",
        }
    }
}

impl fmt::Display for InboxStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// Tests compare with what users read.
#[cfg(test)]
impl PartialEq<&str> for Stage {
    fn eq(&self, word: &&str) -> bool {
        self.word() == *word
    }
}

#[cfg(test)]
impl PartialEq<&str> for InboxStage {
    fn eq(&self, word: &&str) -> bool {
        self.word() == *word
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_the_words_that_people_read() {
        let stages = [
            Stage::Open,
            Stage::Incomplete,
            Stage::Waiting,
            Stage::Settling,
            Stage::Sealing,
            Stage::Retrying,
            Stage::NotSent,
            Stage::Sealed,
            Stage::Deferred,
            Stage::Queued,
            Stage::Offered,
            Stage::Sending,
            Stage::Refused,
            Stage::Cancelled,
            Stage::Expired,
            Stage::Superseded,
            Stage::Delivered,
        ];
        assert!(stages.is_sorted());
        for stage in stages {
            let json = serde_json::to_value(stage).unwrap();
            assert_eq!(json, stage.word());
            assert_eq!(serde_json::from_value::<Stage>(json).unwrap(), stage);
        }
        for stage in [
            InboxStage::Incoming,
            InboxStage::Deferred,
            InboxStage::Quarantined,
            InboxStage::Refused,
            InboxStage::Withdrawn,
            InboxStage::Cancelled,
            InboxStage::Expired,
            InboxStage::Published,
            InboxStage::Received,
            InboxStage::Consumed,
            InboxStage::Damaged,
        ] {
            assert_eq!(serde_json::to_value(stage).unwrap(), stage.word());
        }
    }
}
