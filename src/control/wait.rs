//! `wait`: when a file counts as delivered. The judgement is pure; the server repeats it at every change.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::path::WirePath;
use crate::bundle::{RelPath, Stage};
use crate::similar;
use crate::spool::{OutboundRow, RecipientRow};

/// How long a wait sleeps when it is not told of any change. Bounds a missed bell and the end of the daemon.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// To whom a file must be delivered.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WaitFor {
    /// Everyone it is for, and at least one.
    All,
    /// So many of them.
    Count(usize),
    /// One of them, and where the group has no other member yet, the first that there will be.
    First,
    /// This one, by name or id.
    Peer(String),
}

impl std::str::FromStr for WaitFor {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self::All),
            "" => Err("say all, a number, or the name of a peer".to_owned()),
            text => match text.parse() {
                Ok(0) => Err("0 is nobody: say all, a number, or the name of a peer".to_owned()),
                Ok(count) => Ok(Self::Count(count)),
                Err(_) => Ok(Self::Peer(text.to_owned())),
            },
        }
    }
}

/// How the delivery of a path stands.
#[derive(Clone, Debug)]
pub(crate) enum Delivery {
    /// There is no such file, and nothing was ever sent from this path.
    Unknown,
    /// What the path shows now is not sealed yet; in words.
    Unsealed(String),
    /// It is not sent because of its name; in words.
    Ignored(String),
    /// It is held back until somebody acts, since its writer was killed; in words.
    Held(String),
    /// It is a directory: what counts is in it.
    Directory,
    /// The newest bundle sealed from it.
    Sealed(OutboundRow),
}

/// One file or bundle.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Target {
    /// What a path below `outbox/` shows.
    Path(RelPath),
    /// A bundle of ours, by its id as hex.
    Bundle(String),
}

/// What a wait came to, for one path or for all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// As asked.
    Delivered,
    /// It will not come to what was asked.
    Failed,
    /// Still on its way when the time was over.
    Timeout,
}

/// What a wait came to for one path.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct PathOutcome {
    /// Below `outbox/`, or the id of a bundle; absent: all that was on its way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<WirePath>,
    /// In one word; `timeout` for one that is still on its way.
    pub outcome: Outcome,
    /// In more words: `delivered 2/3`.
    pub detail: String,
    /// There was nothing to wait for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub nothing: bool,
}

/// A member that does not have everything yet.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Missing {
    /// Its id as hex; empty for a name that nobody has, and for several together.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Files and bundles that it does not have yet.
    pub files: u64,
    /// Bytes of them that are still to come.
    pub bytes: u64,
    /// How far they are.
    pub states: BTreeSet<Stage>,
    /// Why one of them does not go on, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Seconds since 1970 of the last contact, if it is not connected; 0: it never was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offline_since: Option<u64>,
}

/// How far a wait is. Bytes count once for each recipient.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Files and bundles.
    pub files: u64,
    /// Of these, delivered as asked.
    pub files_done: u64,
    /// Of these, not sealed yet: their bytes are not counted.
    pub unsealed: u64,
    /// Bytes to be sent of what is sealed.
    pub bytes: u64,
    /// Of these, sent.
    pub bytes_done: u64,
    /// Who does not have everything yet, those first that are away.
    pub missing: Vec<Missing>,
}

/// What one delivery comes to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Judged {
    /// `None` while it is still on its way.
    pub outcome: Option<Outcome>,
    /// For people.
    pub words: String,
}

impl From<(Option<Outcome>, String)> for Judged {
    fn from((outcome, words): (Option<Outcome>, String)) -> Self {
        Self { outcome, words }
    }
}

/// What is said where there is nobody to send to.
const ALONE: &str = "queued, but the group has no other member: `meshbox ticket` invites one, and --for-first waits for the \
                     first";

/// Judges one delivery. `alone`: the group has no other member.
pub(crate) fn judge(delivery: &Delivery, to: &WaitFor, alone: bool) -> Judged {
    let failed = |why: &str| (Some(Outcome::Failed), why.to_owned());
    let judged = match delivery {
        Delivery::Unknown => failed("no such file in the outbox"),
        Delivery::Unsealed(state) => (None, state.clone()),
        Delivery::Ignored(why) | Delivery::Held(why) => failed(why),
        Delivery::Directory => failed("it is a directory by now"),
        Delivery::Sealed(row) => judge_row(row, to, alone),
    };
    judged.into()
}

/// Judges one of many that were not named one by one: what nobody is to get, or what a newer version replaced meanwhile, is
/// no failure.
pub(crate) fn judge_wide(delivery: &Delivery, to: &WaitFor, alone: bool) -> Judged {
    let passed = |words: &str| Judged::from((Some(Outcome::Delivered), words.to_owned()));
    match delivery {
        Delivery::Unknown | Delivery::Directory => passed("gone"),
        Delivery::Ignored(why) => passed(why),
        Delivery::Sealed(row) => {
            let replaced = |recipient: &RecipientRow| recipient.state == Stage::Superseded;
            let mut row = row.clone();
            let all = row.recipients.len();
            row.recipients.retain(|recipient| !replaced(recipient));
            let for_nobody = match to {
                WaitFor::Peer(who) => !row.recipients.iter().any(|one| is_called(one, who)),
                WaitFor::All | WaitFor::Count(_) | WaitFor::First => row.recipients.is_empty(),
            };
            if all > 0 && for_nobody {
                return passed("not for it");
            }
            judge_row(&row, to, alone).into()
        }
        Delivery::Unsealed(_) | Delivery::Held(_) => judge(delivery, to, alone),
    }
}

fn is_called(recipient: &RecipientRow, who: &str) -> bool {
    recipient.name == who || recipient.id == who
}

fn judge_row(row: &OutboundRow, to: &WaitFor, alone: bool) -> (Option<Outcome>, String) {
    if row.recipients.is_empty() && matches!(row.state, Stage::Cancelled | Stage::Expired) {
        return (Some(Outcome::Failed), row.state.to_string());
    }
    if row.recipients.is_empty() {
        let waits = *to == WaitFor::First || !alone;
        let words = match alone {
            true => ALONE,
            false => "queued: its recipients are being found",
        };
        return (Some(Outcome::Failed).filter(|_| !waits), words.to_owned());
    }
    // Who was given up, or is no member any more, is not waited for, unless nobody else is left.
    let mut counted: Vec<&RecipientRow> = row.living().collect();
    if counted.is_empty() {
        counted = row.recipients.iter().collect();
    }
    let all = counted.len();
    let delivered = counted
        .iter()
        .filter(|recipient| is_delivered(recipient))
        .count();
    let lost: Vec<&RecipientRow> = counted
        .into_iter()
        .filter(|recipient| is_lost(recipient))
        .collect();
    let mut words = format!("delivered {delivered}/{all}");
    for recipient in row.recipients.iter().filter(|recipient| is_lost(recipient)) {
        words.push_str(&format!(", {}", lost_words(recipient)));
    }
    let wanted = match to {
        WaitFor::All => all,
        WaitFor::Count(count) => *count,
        WaitFor::First => 1,
        WaitFor::Peer(who) => {
            let Some(peer) = row
                .recipients
                .iter()
                .find(|recipient| is_called(recipient, who))
            else {
                let names = row.recipients.iter().map(|to| to.name.as_str());
                let hint = similar::hint(who, names);
                return (
                    Some(Outcome::Failed),
                    format!("{who} is no recipient of it{hint}"),
                );
            };
            let outcome = match (is_delivered(peer), is_lost(peer)) {
                (true, _) => Some(Outcome::Delivered),
                (false, true) => Some(Outcome::Failed),
                (false, false) => None,
            };
            return (outcome, words);
        }
    };
    if delivered >= wanted {
        (Some(Outcome::Delivered), words)
    } else if all - lost.len() < wanted {
        if wanted > all {
            let members = if all == 1 { "member" } else { "members" };
            words.push_str(&format!(", it goes to {all} {members}, not {wanted}"));
        }
        (Some(Outcome::Failed), words)
    } else {
        (None, words)
    }
}

fn is_delivered(recipient: &RecipientRow) -> bool {
    recipient.state == Stage::Delivered
}

/// Whether it will never be delivered: a final state by the glossary, but not `delivered`.
fn is_lost(recipient: &RecipientRow) -> bool {
    matches!(
        recipient.state,
        Stage::Refused | Stage::Cancelled | Stage::Superseded | Stage::Expired
    )
}

/// What became of it for this recipient, and whose doing that was.
fn lost_words(recipient: &RecipientRow) -> String {
    let name = name_of(recipient);
    let why = |before: &str| {
        let why = recipient.error.as_ref();
        why.map_or_else(String::new, |why| format!("{before}({why})"))
    };
    match recipient.state {
        Stage::Refused => format!("refused by {name}{}", why(" ")),
        // Only the origin of a bundle can cancel it, and this is one of ours.
        Stage::Cancelled => format!("cancelled here, not for {name} any more{}", why(" ")),
        Stage::Superseded => format!("superseded for {name} by a newer version"),
        state => format!("{state} for {name}{}", why(" ")),
    }
}

fn name_of(recipient: &RecipientRow) -> &str {
    if recipient.name.is_empty() {
        &recipient.id
    } else {
        &recipient.name
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::DeliveryState;

    fn row(states: &[(&str, Stage)]) -> OutboundRow {
        let recipient = |(name, state): &(&str, Stage)| RecipientRow {
            id: format!("id-{name}"),
            name: (*name).into(),
            state: *state,
            bytes: 0,
            error: None,
            gone: false,
        };
        OutboundRow {
            path: "x".into(),
            path_b64: None,
            bundle: String::new(),
            sha256: String::new(),
            size: 0,
            sealed_at: 0,
            state: Stage::Queued,
            recipients: states.iter().map(recipient).collect(),
        }
    }

    fn outcome(states: &[(&str, Stage)], to: &str) -> Option<Outcome> {
        judge(&Delivery::Sealed(row(states)), &to.parse().unwrap(), false).outcome
    }

    #[test]
    fn a_slip_in_the_name_of_a_recipient_gets_a_suggestion() {
        let row = Delivery::Sealed(row(&[("birch", Stage::Queued)]));
        let judged = judge(&row, &"brich".parse().unwrap(), false);
        assert_eq!(judged.outcome, Some(Outcome::Failed));
        let words = judged.words;
        assert!(words.ends_with("did you mean `birch`?"), "{words}");
    }

    #[test]
    fn all_means_everyone_and_at_least_one() {
        assert_eq!(outcome(&[], "all"), None);
        assert_eq!(
            outcome(&[("a", Stage::Delivered), ("b", Stage::Sending)], "all"),
            None
        );
        assert_eq!(
            outcome(&[("a", Stage::Delivered), ("b", Stage::Delivered)], "all"),
            Some(Outcome::Delivered)
        );
        assert_eq!(
            outcome(&[("a", Stage::Sending), ("b", Stage::Refused)], "all"),
            Some(Outcome::Failed)
        );
    }

    #[test]
    fn a_number_is_met_or_out_of_reach() {
        let three = [
            ("a", Stage::Delivered),
            ("b", Stage::Deferred),
            ("c", Stage::Expired),
        ];
        assert_eq!(outcome(&three, "1"), Some(Outcome::Delivered));
        assert_eq!(outcome(&three, "2"), None);
        assert_eq!(outcome(&three, "3"), Some(Outcome::Failed));
        assert_eq!(
            outcome(&[("a", Stage::Delivered)], "2"),
            Some(Outcome::Failed)
        );
        assert_eq!(outcome(&[], "2"), None);
    }

    #[test]
    fn a_peer_is_meant_by_name_or_id() {
        let two = [("a", Stage::Delivered), ("b", Stage::Queued)];
        assert_eq!(outcome(&two, "a"), Some(Outcome::Delivered));
        assert_eq!(outcome(&two, "id-a"), Some(Outcome::Delivered));
        assert_eq!(outcome(&two, "b"), None);
        assert_eq!(outcome(&two, "c"), Some(Outcome::Failed));
    }

    #[test]
    fn who_is_no_member_any_more_is_not_waited_for() {
        let judged = |states: &[(&str, Stage)], gone: &[&str], to: &str| {
            let mut row = row(states);
            for recipient in &mut row.recipients {
                let ended = recipient.state == Stage::Cancelled;
                recipient.gone = ended && gone.contains(&recipient.name.as_str());
                recipient.error = recipient.gone.then(|| "forgotten".to_owned());
            }
            let Judged { outcome, words } =
                judge(&Delivery::Sealed(row), &to.parse().unwrap(), false);
            (outcome, words)
        };
        let two = [("a", Stage::Delivered), ("b", Stage::Cancelled)];
        let (outcome, words) = judged(&two, &["b"], "all");
        assert_eq!(outcome, Some(Outcome::Delivered));
        assert!(
            words.starts_with("delivered 1/1, ") && words.contains("(forgotten)"),
            "{words}"
        );
        assert_eq!(judged(&two, &[], "all").0, Some(Outcome::Failed));
        assert_eq!(judged(&two, &["b"], "b").0, Some(Outcome::Failed));
        assert_eq!(judged(&two, &["b"], "2").0, Some(Outcome::Failed));
        let open = [("a", Stage::Sending), ("b", Stage::Cancelled)];
        assert_eq!(judged(&open, &["b"], "all").0, None);
        // What was delivered before stays so.
        let had = [("a", Stage::Delivered), ("b", Stage::Delivered)];
        assert_eq!(judged(&had, &["b"], "2").0, Some(Outcome::Delivered));
        let nobody = judged(&[("b", Stage::Cancelled)], &["b"], "all");
        assert_eq!(nobody.0, Some(Outcome::Failed), "nobody has it");
    }

    #[test]
    fn it_is_said_whose_doing_it_was() {
        let words = |state: Stage, error: Option<&str>| {
            let mut row = row(&[("birch", state)]);
            row.recipients[0].error = error.map(str::to_owned);
            judge(&Delivery::Sealed(row), &WaitFor::All, false).words
        };
        for (state, error, said) in [
            (
                Stage::Refused,
                Some("too large"),
                "refused by birch (too large)",
            ),
            (
                Stage::Cancelled,
                None,
                "cancelled here, not for birch any more",
            ),
            (
                Stage::Superseded,
                None,
                "superseded for birch by a newer version",
            ),
            (Stage::Expired, None, "expired for birch"),
        ] {
            assert_eq!(words(state, error), format!("delivered 0/1, {said}"));
        }
    }

    #[test]
    fn lost_is_every_final_state_but_delivered() {
        for state in [
            DeliveryState::Queued,
            DeliveryState::Offered,
            DeliveryState::Sending(1),
            DeliveryState::Delivered,
            DeliveryState::Deferred(String::new()),
            DeliveryState::Refused(String::new()),
            DeliveryState::Cancelled,
            DeliveryState::Superseded,
            DeliveryState::Expired,
        ] {
            let row = row(&[("a", state.stage())]);
            let lost = state.is_final() && state != DeliveryState::Delivered;
            assert_eq!(is_lost(&row.recipients[0]), lost, "{state:?}");
        }
    }

    #[test]
    fn a_file_not_sealed_is_waited_for_and_one_held_back_is_not() {
        let judge = |delivery| judge(&delivery, &WaitFor::All, false).outcome;
        assert_eq!(judge(Delivery::Unsealed("settling".into())), None);
        assert_eq!(
            judge(Delivery::Held("incomplete".into())),
            Some(Outcome::Failed)
        );
        assert_eq!(judge(Delivery::Unknown), Some(Outcome::Failed));
    }

    #[test]
    fn where_nobody_else_is_only_the_first_member_is_waited_for() {
        let nobody = Delivery::Sealed(row(&[]));
        for to in ["all", "1", "birch"] {
            let judged = judge(&nobody, &to.parse().unwrap(), true);
            assert_eq!(judged.outcome, Some(Outcome::Failed), "{to}");
            assert!(judged.words.contains("no other member"), "{judged:?}");
        }
        assert_eq!(judge(&nobody, &WaitFor::First, true).outcome, None);
        let first = |states| judge(&Delivery::Sealed(row(states)), &WaitFor::First, false).outcome;
        assert_eq!(
            first(&[("a", Stage::Sending), ("b", Stage::Delivered)]),
            Some(Outcome::Delivered)
        );
        assert_eq!(first(&[("a", Stage::Sending), ("b", Stage::Refused)]), None);
    }

    #[test]
    fn of_many_what_is_not_sent_or_was_replaced_is_passed_over() {
        let wide = |delivery, to: &str| judge_wide(&delivery, &to.parse().unwrap(), false).outcome;
        let passed = Some(Outcome::Delivered);
        assert_eq!(wide(Delivery::Unknown, "all"), passed);
        assert_eq!(
            wide(Delivery::Ignored("ignored: .x".to_owned()), "all"),
            passed
        );
        let torn = Delivery::Held("incomplete".into());
        assert_eq!(wide(torn, "all"), Some(Outcome::Failed));
        let sealed = |states: &[(&str, Stage)]| Delivery::Sealed(row(states));
        assert_eq!(wide(sealed(&[("a", Stage::Superseded)]), "all"), passed);
        let mixed = [("a", Stage::Superseded), ("b", Stage::Sending)];
        assert_eq!(wide(sealed(&mixed), "all"), None);
        assert_eq!(wide(sealed(&mixed), "c"), passed, "not for it");
        assert_eq!(
            wide(sealed(&[("a", Stage::Refused)]), "all"),
            Some(Outcome::Failed)
        );
    }

    #[test]
    fn whom_to_wait_for_is_all_a_number_or_a_name() {
        assert_eq!("all".parse(), Ok(WaitFor::All));
        assert_eq!("2".parse(), Ok(WaitFor::Count(2)));
        assert_eq!("birch".parse(), Ok(WaitFor::Peer("birch".into())));
        assert!("0".parse::<WaitFor>().is_err());
        assert!("".parse::<WaitFor>().is_err());
    }
}
