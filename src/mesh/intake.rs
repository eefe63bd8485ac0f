//! Intake: how a bundle that a peer offers gets into the spool, whether its content came with the offer or is fetched.
//!
//! Everything here blocks on disk, briefly, and answers with what to tell the peer.

use bytes::Bytes;

use crate::bundle::{Manifest, VerifiedManifest};
use crate::delivery::Verdict;
use crate::mesh::hub::Hub;
use crate::mesh::roster::Peer;
use crate::spool::{CONTRADICTS, FinishError, InboundState, Incoming, IntakeError, Offered};
/// The memory that an offer takes.
pub(crate) fn weight(manifest: &VerifiedManifest, inline: &[Option<Bytes>]) -> usize {
    manifest.memory() + of_inline(inline)
}

/// The memory of what it carries.
pub(crate) fn of_inline(inline: &[Option<Bytes>]) -> usize {
    let content: usize = inline.iter().flatten().map(Bytes::len).sum();
    content + size_of_val(inline)
}

/// Asks the spool for a place to put the bundle; `Err` is what to answer instead.
pub(crate) fn open(
    hub: &Hub,
    peer: &Peer,
    manifest: &VerifiedManifest,
) -> Result<Box<Incoming>, Verdict> {
    if let Some(why) = hub.blames.active(manifest.id(), peer.id) {
        return Err(Verdict::Deferred(why));
    }
    match hub.store.offered(manifest.clone(), peer.id) {
        Ok(Offered::Settled(receipt)) => Err(Verdict::Settled(Box::new(receipt))),
        Ok(Offered::AwaitingDurable) => Err(Verdict::Taken),
        Ok(Offered::Busy) => Err(Verdict::Working),
        Ok(Offered::Refused(why)) => {
            tracing::warn!(
                "refused {} of {}: {why}",
                describe(manifest.manifest()),
                peer.label()
            );
            Err(Verdict::Refused(why))
        }
        Ok(Offered::Deferred(why)) => Err(Verdict::Deferred(why)),
        Ok(Offered::Wanted(arriving)) => Ok(arriving),
        Err(error) => {
            tracing::error!(
                "{} of {} cannot be taken: {error}",
                describe(manifest.manifest()),
                peer.label()
            );
            let why = hub.store.content.disk_failed(&error);
            let says = manifest.manifest();
            let shown = Some(error.to_string());
            hub.store
                .ledger
                .note_inbound(says, manifest.id(), InboundState::Deferred, shown);
            Err(Verdict::Deferred(why))
        }
    }
}

/// Hands over content that came with the offer.
pub(crate) fn feed_inline(
    hub: &Hub,
    manifest: &VerifiedManifest,
    arriving: &mut Incoming,
    inline: &[Option<Bytes>],
) -> Result<(), IntakeError> {
    for (index, entry) in manifest.manifest().entries.iter().enumerate() {
        if arriving.missing(index).is_empty() {
            continue;
        }
        let content = match inline.get(index) {
            Some(Some(content)) => content.clone(),
            _ if entry.size() == 0 => Bytes::new(),
            _ => continue,
        };
        if content.len() as u64 != entry.size() {
            return Err(IntakeError::WrongBytes {
                path: entry.path.clone(),
                index: 0,
            });
        }
        hub.store.count_bytes(0, content.len() as u64);
        arriving.accept_chunk(index, 0, &content)?;
    }
    Ok(())
}

/// Parks a bundle whose bytes could not be taken, and says so everywhere.
pub(crate) fn wrong_or_disk(
    hub: &Hub,
    peer: &Peer,
    manifest: &VerifiedManifest,
    arriving: Box<Incoming>,
    error: &IntakeError,
) -> Verdict {
    match error {
        IntakeError::WrongBytes { .. } => {
            let why = format!("{} sent wrong bytes: {error}", peer.label());
            tracing::warn!("{why}");
            hub.blames.add(manifest.id(), peer.id, &why);
            defer(hub, manifest, *arriving, why)
        }
        IntakeError::Ended(reason) => {
            tracing::info!("{}: {error}", describe(manifest.manifest()));
            drop(arriving);
            Verdict::Refused(reason.refusal().into())
        }
        IntakeError::Superseded => {
            tracing::info!("{}: {error}", describe(manifest.manifest()));
            drop(arriving);
            Verdict::Refused(error.to_string())
        }
        IntakeError::Disk(error) => {
            tracing::error!(
                "{} cannot be stored: {error}",
                describe(manifest.manifest())
            );
            arriving.park(error.to_string());
            hub.store.ledger.note_inbound(
                manifest.manifest(),
                manifest.id(),
                InboundState::Deferred,
                Some(error.to_string()),
            );
            Verdict::Deferred(hub.store.content.disk_failed(error))
        }
    }
}

/// Parks what arrived, with the reason in status.
pub(crate) fn defer(
    hub: &Hub,
    manifest: &VerifiedManifest,
    arriving: Incoming,
    why: String,
) -> Verdict {
    arriving.park(why.clone());
    hub.store.ledger.note_inbound(
        manifest.manifest(),
        manifest.id(),
        InboundState::Deferred,
        Some(why.clone()),
    );
    Verdict::Deferred(why)
}

/// Everything is here: check and show it. Blocks on disk.
pub(crate) fn publish(
    hub: &Hub,
    peer: &Peer,
    manifest: &VerifiedManifest,
    arriving: Incoming,
) -> Verdict {
    let (says, bundle) = (manifest.manifest(), manifest.id());
    let published = arriving
        .finish()
        .and_then(|verified| Ok(verified.publish()?));
    match published {
        Ok(_) => {
            hub.store.content.disk_works();
            if let Some(origin) = hub.roster.get(says.origin) {
                hub.saw_epoch(&origin, says.epoch);
            }
            tracing::info!(
                "received {} from {}",
                describe(says),
                hub.label_of(says.origin)
            );
            Verdict::Taken
        }
        Err(FinishError::Quarantined(bad)) if bad.manifest_contradicts_itself => {
            let why = CONTRADICTS.to_owned();
            tracing::warn!(
                "refused {} of {}: {why}: {bad}",
                describe(says),
                hub.label_of(says.origin)
            );
            hub.store.ledger.note_inbound(
                says,
                bundle,
                InboundState::Contradicts,
                Some(why.clone()),
            );
            Verdict::Refused(why)
        }
        Err(FinishError::Quarantined(bad)) => {
            let why = format!("{} sent wrong bytes: {bad}", peer.label());
            tracing::warn!("{why}");
            hub.blames.add(bundle, peer.id, &why);
            hub.store.ledger.note_inbound(
                says,
                bundle,
                InboundState::Quarantined,
                Some(why.clone()),
            );
            Verdict::Deferred(why)
        }
        Err(FinishError::Ended(reason)) => {
            tracing::info!("{}: {}", describe(says), reason.refusal());
            Verdict::Refused(reason.refusal().into())
        }
        Err(error @ (FinishError::Incomplete(_) | FinishError::Disk(_))) => {
            tracing::error!("{} cannot be published: {error}", describe(says));
            hub.store.ledger.note_inbound(
                says,
                bundle,
                InboundState::Deferred,
                Some(error.to_string()),
            );
            Verdict::Deferred(match &error {
                FinishError::Disk(error) => hub.store.content.disk_failed(error),
                _ => "the receiver's disk failed".into(),
            })
        }
    }
}

/// "a/b.pdf (4096 bytes)", for logs.
pub(crate) fn describe(manifest: &Manifest) -> String {
    let more = match manifest.entries.len() {
        0 | 1 => String::new(),
        many => format!("/ with {many} entries"),
    };
    let first = manifest
        .title()
        .map(|path| format!("{path:?}"))
        .unwrap_or_default();
    let first = first.trim_matches('"');
    format!(
        "{first}{more} ({} bytes)",
        manifest
            .entries
            .iter()
            .map(|e| u128::from(e.size()))
            .sum::<u128>()
    )
}
