//! Room for what arrives: whether an offer may begin, and room for its parts as they come.
//!
//! An offer is taken when all that is missing of it fits now; nothing is set aside for it. Each fetch then asks for room
//! in portions ([`Spool::part_room`]). Who gets it when there is not enough for all is decided in
//! [`crate::spool::content::ration`]; bytes that make room for others are removed here.
//!
//! # Crash behaviour
//! Nothing is stored. What was given is free again after a start; what is in `partial/` is found there.

use std::collections::BTreeMap;
use std::time::Duration;

use super::bytes_in;
use crate::bundle::{BundleId, EntryKind, VerifiedManifest};
use crate::peer::PeerId;
use crate::spool::content::Content;
use crate::spool::content::ration::{self, Parked, Ration};
use crate::spool::durable::{self, OnPath};
use crate::spool::ledger::inbound::InboundState;
use crate::spool::{Offered, Spool, SpoolError};

/// What is said to a fetch that asks for room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PartRoom {
    /// So many bytes may be written.
    Given(u64),
    /// Others go first, or there is none. Ask again.
    Later(String),
    /// What is here of it makes room for another bundle: give it up.
    Never(String),
}

/// What may be used.
struct Free {
    bytes: u64,
    /// What it is of, in words.
    of: String,
}

impl Content {
    fn room_clock(&self) -> Duration {
        self.room.begun.elapsed()
    }

    /// What arrivals may write, with what is given to them already.
    fn free_for_arrivals(&self) -> Result<Free, SpoolError> {
        let (free, min_free) = self.room.measure()?;
        let disk = Free {
            bytes: free,
            of: format!("{free} are free above min_free ({min_free})"),
        };
        let Some(max) = self.room.limits().max_bytes else {
            return Ok(disk);
        };
        let given = self.room.rations.lock().given();
        let used = self.used_for_others().saturating_sub(given);
        let left = max.saturating_sub(used);
        if left >= free {
            return Ok(disk);
        }
        Ok(Free {
            bytes: left,
            of: format!("{used} of max_bytes ({max}) are used"),
        })
    }

    /// A part is written, or does not come.
    pub(crate) fn part_over(&self, bundle: BundleId, bytes: u64) {
        self.room.rations.lock().over(bundle, bytes);
    }

    /// A bundle begins to arrive: bytes that are here of it, and those that are missing.
    pub(in crate::spool) fn arrival_begins(
        &self,
        bundle: BundleId,
        origin: PeerId,
        (here, left): (u64, u64),
    ) {
        let now = self.room_clock();
        let mut rations = self.room.rations.lock();
        rations.begin(bundle, origin, (here, left), now);
    }

    /// Bytes of a bundle that arrives which are here, and how many come in a second.
    pub(in crate::spool) fn arrival_progress(&self, bundle: BundleId) -> Option<(u64, u64)> {
        let now = self.room_clock();
        self.room.rations.lock().progress(bundle, now)
    }

    /// Bytes of it are on the disk.
    pub(in crate::spool) fn arrival_wrote(&self, bundle: BundleId, bytes: u64) {
        let now = self.room_clock();
        self.room.rations.lock().wrote(bundle, bytes, now);
    }

    /// It does not arrive any more. Says whether what is here of it is to be removed.
    pub(in crate::spool) fn arrival_ended(&self, bundle: BundleId) -> bool {
        self.room.rations.lock().end(bundle)
    }

    /// Removes what arrived of a bundle.
    pub(in crate::spool) fn discard_partial(&self, bundle: BundleId) -> Result<(), SpoolError> {
        let partial = self.layout.partial();
        let prefix = format!("{bundle}.");
        for entry in std::fs::read_dir(&partial).on("read", &partial)? {
            let path = entry.on("read", &partial)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(&prefix) {
                durable::remove_all(&path)?;
            }
        }
        Ok(())
    }
}

impl Spool {
    /// The same, after `wanted` bytes more than are free were looked for in what may be given up.
    fn freed_for_arrivals(&self, wanted: u64) -> Result<Free, SpoolError> {
        let free = self.content.free_for_arrivals()?;
        let given = self.content.room.rations.lock().given();
        let short = wanted.saturating_sub(free.bytes.saturating_sub(given));
        // What is kept for others goes first.
        if short > 0 && (self.outbox.let_go() || self.custodian.shed_custody(short)? > 0) {
            return self.content.free_for_arrivals();
        }
        Ok(free)
    }

    /// Room for a part of a bundle that arrives, at least `least` bytes, at most `most`. Whoever is given some says
    /// [`Content::part_over`] of each part; the rest is free again when the bundle does not arrive any more. Blocks on disk.
    pub(crate) fn part_room(&self, bundle: BundleId, least: u64, most: u64) -> PartRoom {
        match self.ask_room(bundle, least, most) {
            Ok(room) => room,
            Err(error) => PartRoom::Later(error.to_string()),
        }
    }

    fn ask_room(&self, bundle: BundleId, least: u64, most: u64) -> Result<PartRoom, SpoolError> {
        let free = self.freed_for_arrivals(least)?;
        let none = || format!("no room here: {least} bytes are needed, {}", free.of);
        let ration = {
            let mut rations = self.content.room.rations.lock();
            rations.ask(bundle, (least, most), free.bytes, self.content.room_clock())
        };
        Ok(match ration {
            Ration::Given(bytes) => PartRoom::Given(bytes),
            Ration::Wait => PartRoom::Later(none()),
            Ration::Removed => PartRoom::Never(
                "no room here: what had come made room for a bundle that was nearer its end".into(),
            ),
            Ration::Short => {
                let parked = self.parked()?;
                let victims = {
                    let mut rations = self.content.room.rations.lock();
                    rations.make_room(bundle, free.bytes, &parked)
                };
                self.discard_parked(&victims)?;
                PartRoom::Later(none())
            }
        })
    }

    /// Bundles of which a part is here and that do not arrive now.
    fn parked(&self) -> Result<Vec<Parked>, SpoolError> {
        let mut here: BTreeMap<BundleId, u64> = BTreeMap::new();
        let entries = std::fs::read_dir(self.layout.partial());
        for entry in entries.into_iter().flatten().flatten() {
            let name = entry.file_name();
            let bundle = name.to_str().and_then(|name| name.split('.').next());
            if let Some(bundle) = bundle.and_then(BundleId::from_hex)
                && let Ok(meta) = entry.metadata()
            {
                *here.entry(bundle).or_default() += bytes_of(&meta);
            }
        }
        let mut parked = Vec::new();
        for (bundle, here) in here {
            if self.ledger.arriving.lock().contains_key(&bundle) {
                continue;
            }
            // After a kill nothing is known of it before it is offered again.
            let row = self.ledger.inbound_shown(bundle)?;
            let (origin, size) = row.map_or((PeerId::from_bytes([0; 32]), u64::MAX), |row| {
                (row.origin, row.size)
            });
            parked.push(Parked {
                bundle,
                origin,
                here,
                left: size.saturating_sub(here),
            });
        }
        Ok(parked)
    }

    /// Removes what is here of bundles that do not arrive; those that do are told.
    fn discard_parked(&self, bundles: &[BundleId]) -> Result<(), SpoolError> {
        for bundle in bundles {
            // Held, so that no fetch of it begins meanwhile.
            let arriving = self.ledger.arriving.lock();
            if !arriving.contains_key(bundle) && !self.inbox.publishing.is_shown(*bundle) {
                tracing::info!(bundle = %bundle.short(), "what had come makes room for another bundle");
                self.content.discard_partial(*bundle)?;
            }
        }
        Ok(())
    }

    /// Whether there is room for a bundle that is not here yet; what to answer if not.
    pub(in crate::spool) fn no_room_for(
        &self,
        manifest: &VerifiedManifest,
    ) -> Result<Option<Offered>, SpoolError> {
        let of = manifest.manifest();
        if let Some(max) = self.content.room.limits().max_file_bytes
            && let Some(entry) = of.entries.iter().find(|entry| entry.size() > max)
        {
            let why = format!(
                "{} has {} bytes, max_file_bytes here is {max}",
                entry.path,
                entry.size()
            );
            self.ledger
                .note_inbound(of, manifest.id(), InboundState::Refused, Some(why.clone()));
            return Ok(Some(Offered::Refused(why)));
        }
        if let Some(why) = self.group.over_our_limits(manifest) {
            self.ledger
                .note_inbound(of, manifest.id(), InboundState::Refused, Some(why.clone()));
            return Ok(Some(Offered::Refused(why)));
        }
        let need: u64 = of
            .entries
            .iter()
            .filter(|entry| matches!(entry.kind, EntryKind::File { .. }))
            .map(|entry| entry.size())
            .fold(0, u64::saturating_add);
        let why = match self.over_allowance(of, need) {
            None => self.does_not_fit(manifest.id(), need)?,
            over => over,
        };
        let Some(why) = why else { return Ok(None) };
        self.ledger
            .note_inbound(of, manifest.id(), InboundState::Deferred, Some(why.clone()));
        Ok(Some(Offered::Deferred(why)))
    }

    /// Why what is missing of a bundle of `need` bytes does not fit now. While nothing moves, what is parked and farther
    /// from done makes room for it.
    fn does_not_fit(&self, bundle: BundleId, need: u64) -> Result<Option<String>, SpoolError> {
        let prefix = format!("{bundle}.");
        let here = bytes_in(&self.layout.partial(), |name| name.starts_with(&prefix));
        let left = need.saturating_sub(here);
        for last in [false, true] {
            let free = self.freed_for_arrivals(left)?;
            let (given, moves) = {
                let rations = self.content.room.rations.lock();
                (rations.given(), rations.moves(self.content.room_clock()))
            };
            let room = free.bytes.saturating_sub(given);
            if room > 0 && left <= room {
                return Ok(None);
            }
            let mut victims = Vec::new();
            if !moves && !last {
                let mut parked = self.parked()?;
                parked.retain(|one| one.bundle != bundle);
                victims = ration::give_way(left, left.saturating_sub(room), parked);
            }
            if victims.is_empty() {
                return Ok(Some(format!(
                    "no room here: {left} bytes are needed, {}",
                    free.of
                )));
            }
            self.discard_parked(&victims)?;
        }
        Ok(None)
    }
}

fn bytes_of(meta: &std::fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt;
    meta.blocks().saturating_mul(512)
}
