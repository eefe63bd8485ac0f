//! Telling the kernel that names of the inbox show other files.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Sender, TrySendError, bounded};
use parking_lot::Mutex;

use super::node::NodeId;

/// Notices of replaced names on their way to the kernel. When more are waiting, the rest is dropped: the kernel
/// believes an inbox name for one second only.
const NOTICES_CAP: usize = 1024;

/// How long a publish of many names waits until the kernel has forgotten the old ones. It waits for file operations that
/// are under way in their directories; one that never ends must not keep the inbox from going on.
const FORGET_PATIENCE: Duration = Duration::from_secs(10);

/// Tells the kernel to forget the entry `name` of a directory.
pub(crate) type Invalidator = Arc<dyn Fn(NodeId, &[u8]) + Send + Sync>;

/// What the kernel is told.
pub(super) enum Notice {
    /// One name shows another file.
    Name(NodeId, Vec<u8>),
    /// Many will; somebody waits until the kernel has forgotten them.
    Names(Vec<(NodeId, Vec<u8>)>, Sender<()>),
}

/// The thread that talks to the kernel on the spool's behalf: the kernel may be waiting for a reply of ours while it
/// takes a notice, so neither the spool nor a FUSE loop may do it.
pub(crate) struct Notices {
    running: Mutex<Option<(Sender<Notice>, JoinHandle<()>)>>,
    invalidate: Mutex<Option<Invalidator>>,
}

impl Notices {
    pub(crate) fn new() -> Self {
        Self {
            running: Mutex::new(None),
            invalidate: Mutex::new(None),
        }
    }

    /// How the kernel is told at once, by a thread that may wait for it.
    pub(crate) fn invalidator(&self) -> Option<Invalidator> {
        self.invalidate.lock().clone()
    }

    pub(super) fn start(&self, invalidate: Invalidator) -> std::io::Result<()> {
        *self.invalidate.lock() = Some(Arc::clone(&invalidate));
        let (sender, receiver) = bounded::<Notice>(NOTICES_CAP);
        let thread = thread::Builder::new()
            .name("fs-notifier".into())
            .spawn(move || {
                for notice in receiver {
                    match notice {
                        Notice::Name(parent, name) => invalidate(parent, &name),
                        Notice::Names(names, done) => {
                            for (parent, name) in names {
                                invalidate(parent, &name);
                            }
                            // Who waited may have lost patience.
                            done.try_send(()).ok();
                        }
                    }
                }
            })?;
        let before = self.running.lock().replace((sender, thread));
        Self::end(before);
        Ok(())
    }

    pub(super) fn send(&self, notice: Notice) {
        if let Some((sender, _)) = &*self.running.lock() {
            match sender.try_send(notice) {
                Ok(()) => {}
                Err(TrySendError::Full(_)) => {
                    tracing::debug!("too many replaced inbox names at once for the kernel");
                }
                Err(TrySendError::Disconnected(_)) => {
                    tracing::error!("the fs-notifier thread is gone");
                }
            }
        }
    }

    /// Has the kernel forget all of these names, and waits until it has.
    pub(super) fn forget(&self, names: Vec<(NodeId, Vec<u8>)>) {
        let running = self.running.lock();
        // Before anything is mounted, and after, the kernel knows no name.
        let Some(sender) = running.as_ref().map(|(sender, _)| sender.clone()) else {
            return;
        };
        drop(running);
        let (done, forgotten) = bounded(1);
        let told = sender.send_timeout(Notice::Names(names, done), FORGET_PATIENCE);
        drop(sender);
        if told.is_err() || forgotten.recv_timeout(FORGET_PATIENCE).is_err() {
            tracing::warn!(
                "the kernel does not forget replaced inbox names; some may be seen for a second more"
            );
        }
    }

    pub(crate) fn stop(&self) {
        let running = self.running.lock().take();
        Self::end(running);
    }

    fn end(running: Option<(Sender<Notice>, JoinHandle<()>)>) {
        if let Some((sender, thread)) = running {
            drop(sender);
            if thread.join().is_err() {
                tracing::error!("the fs-notifier thread panicked");
            }
        }
    }
}
