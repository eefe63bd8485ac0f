//! Rings: the spool's events, passed on to the sessions that they concern.
//!
//! A ring is only a doorbell: one that does not fit leads to a rescan.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use crate::mesh::custody;
use crate::mesh::hub::Hub;
use crate::protocol::session::Input;
use crate::spool::{Event, Spool};

/// Events of the spool waiting to be passed on. More than a full delivery window of every kind; a ring that does not
/// fit leads to a rescan.
const RINGS: usize = 4096;

/// How often a lost ring is looked for.
const LOST_RING: Duration = Duration::from_secs(1);

/// What the spool rang.
pub(super) struct Rings {
    events: mpsc::Receiver<Event>,
    /// Set when one did not fit.
    lost: Arc<AtomicBool>,
}

impl Rings {
    /// Listens from now on.
    pub(super) fn of(store: &Spool) -> Self {
        let (ring, events) = mpsc::channel(RINGS);
        let lost = Arc::new(AtomicBool::new(false));
        let flag = lost.clone();
        store.doorbell.subscribe(move |event| {
            if *event != Event::StatusChanged && ring.try_send(event.clone()).is_err() {
                flag.store(true, Ordering::Relaxed);
            }
        });
        Self { events, lost }
    }

    /// Passes the spool's events on to the sessions, until the spool is gone.
    pub(super) async fn pass_on(self, hub: Arc<Hub>) {
        let Self { mut events, lost } = self;
        let mut ticker = interval(LOST_RING);
        ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => pass(&hub, event).await,
                    None => return,
                },
                _ = ticker.tick() => {
                    if lost.swap(false, Ordering::Relaxed) {
                        hub.roster.ring_all(|| Input::Rescan);
                    }
                }
            }
        }
    }
}

async fn pass(hub: &Arc<Hub>, event: Event) {
    match event {
        Event::Sealed(bundle, priority) => hub.roster.ring_all(|| Input::Sealed(bundle, priority)),
        Event::ReceiptReady(receipt) => {
            if receipt.recipient == hub.me {
                custody::settled(hub, &receipt).await;
            }
            hub.roster.ring(receipt.origin, Input::Receipt(receipt));
        }
        Event::Closed(bundle) => hub.care.closed(bundle),
        Event::PendingChanged(peer) => hub.roster.ring(peer, Input::Rescan),
        Event::Retry(bundle, peer) => {
            // What it said before counts no more: the journal still owes it, so the scan finds it as new.
            hub.roster
                .ring(peer, Input::Event(crate::delivery::Event::Gone(bundle)));
            hub.roster.ring(peer, Input::Rescan);
        }
        Event::MembersChanged => {
            let refreshed = hub.clone();
            drop(tokio::task::spawn_blocking(move || refreshed.refresh()).await);
            hub.keep_out();
            hub.roster.ring_all(|| Input::Members);
        }
        Event::StatusChanged => {}
    }
}
