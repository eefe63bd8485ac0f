//! What the command line can have done to bundles: cancel, retry, send.

use serde::{Deserialize, Serialize};

use super::path::WirePath;
use crate::bundle::Priority;
pub(crate) use crate::spool::parse_priority;

/// Something to be done.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub(crate) enum Act {
    /// End a bundle for all who do not have it.
    Cancel {
        /// Which.
        what: Named,
    },
    /// Ask again those who refused it or put it off.
    Retry {
        /// Which.
        what: Named,
        /// Only this one, by name or id.
        #[serde(rename = "for")]
        to: Option<String>,
    },
    /// Send files as one bundle.
    Send(SendFiles),
}

/// A bundle of ours as the user names it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Named {
    /// The newest from this path below `outbox/`.
    pub path: Option<WirePath>,
    /// The one with this id as hex, or with the id that `send --bundle` gave it.
    pub bundle: Option<String>,
}

/// Files to be sent as one bundle. They lie below an ignored directory of the outbox.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct SendFiles {
    /// Where each is, below `outbox/`, and the path it is to have in the bundle.
    pub files: Vec<(WirePath, WirePath)>,
    /// Whom to; empty: as the routes say.
    pub to: Vec<String>,
    /// How urgently; else as the routes say.
    pub priority: Option<Priority>,
    /// The sender's own name for it.
    pub id: Option<String>,
}

/// How it went.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ActOutcome {
    /// As asked, or it was so already.
    Done,
    /// There was nothing to be done, or it cannot be.
    Failed,
    /// The bundle's id is in use with other content.
    Conflict,
}

/// How it went, with words for people.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Acted {
    /// In one word.
    pub outcome: ActOutcome,
    /// In more.
    pub text: String,
    /// The bundle, as hex, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<String>,
}

impl Acted {
    pub(crate) fn done(text: impl Into<String>) -> Self {
        Self {
            outcome: ActOutcome::Done,
            text: text.into(),
            bundle: None,
        }
    }

    /// It was not.
    pub(crate) fn failed(text: impl Into<String>) -> Self {
        Self {
            outcome: ActOutcome::Failed,
            ..Self::done(text)
        }
    }
}
