//! How far a file is: one word for each stage, in the order of the way.

/// How far a file is on its way from its writer to its recipients, or where it ended. What is less far comes first; of
/// what has ended, what may still be mended comes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Stage {
    /// Open for writing.
    Open,
    /// Its writer was killed, or a write failed.
    Incomplete,
    /// Waits for something else: the rest of its directory, or a recipient whose name nobody has.
    Waiting,
    /// Closed, and not for long.
    Settling,
    /// Being sealed.
    Sealing,
    /// Sealing failed, and is tried again.
    Retrying,
    /// There is nothing to be sent.
    NotSent,
    /// Shown, and not durable yet.
    Published,
    /// Sealed, and not durable yet.
    Sealed,
    /// A recipient put it off.
    Deferred,
    /// Durable, and offered to nobody yet.
    Queued,
    Offered,
    /// On its way.
    Sending,
    /// A recipient does not want it.
    Refused,
    /// Ended by its origin.
    Cancelled,
    /// Its lifetime is over.
    Expired,
    /// Something newer took its place.
    Superseded,
    /// A recipient has it.
    Delivered,
}

impl Stage {
    const ALL: [Self; 18] = [
        Self::Open,
        Self::Incomplete,
        Self::Waiting,
        Self::Settling,
        Self::Sealing,
        Self::Retrying,
        Self::NotSent,
        Self::Published,
        Self::Sealed,
        Self::Deferred,
        Self::Queued,
        Self::Offered,
        Self::Sending,
        Self::Refused,
        Self::Cancelled,
        Self::Expired,
        Self::Superseded,
        Self::Delivered,
    ];

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
            Self::Published => "published",
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

    /// The stage that a text begins with, and what follows in it.
    pub(crate) fn of(text: &str) -> Option<(Self, &str)> {
        Self::ALL.iter().find_map(|stage| {
            let rest = text.strip_prefix(stage.word())?;
            let ends = rest.is_empty() || rest.starts_with([' ', ':']);
            ends.then(|| (*stage, rest.trim_start_matches([' ', ':'])))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_is_read_back_from_its_word_in_the_order_of_the_way() {
        assert!(Stage::ALL.is_sorted());
        for stage in Stage::ALL {
            assert_eq!(Stage::of(stage.word()), Some((stage, "")));
        }
        assert_eq!(Stage::of("delivered 1/2"), Some((Stage::Delivered, "1/2")));
        assert_eq!(Stage::of("waiting: d/f"), Some((Stage::Waiting, "d/f")));
        assert_eq!(Stage::of("opened"), None);
    }
}
