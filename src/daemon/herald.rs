//! Connects the file system's announcements with the process that performs them: neither knows the other.

use crate::fs::{Herald, Step};
use crate::mount::announcer::{Announcer, Job, MountPlace};
use crate::mount::watchers::Watchers;

/// The herald of one mount.
pub(super) struct MountHerald {
    watchers: Watchers,
    announcer: Announcer,
}

impl MountHerald {
    pub(super) fn new(place: MountPlace, all_users: bool) -> Self {
        Self {
            watchers: Watchers::new(place.device, all_users),
            announcer: Announcer::new(place),
        }
    }
}

impl Herald for MountHerald {
    fn is_watched(&mut self) -> bool {
        self.watchers.any()
    }

    fn is_watching(&mut self, ino: u64) -> bool {
        self.watchers.watch(ino)
    }

    fn perform(&mut self, steps: &[Step], admit: &dyn Fn(u32), give_up: &dyn Fn() -> bool) {
        let jobs: Vec<Job> = steps
            .iter()
            .cloned()
            .map(|step| match step {
                Step::MakeDirectory(path) => Job::MakeDirectory(path),
                Step::Move(from, to) => Job::Move(from, to),
            })
            .collect();
        self.announcer.perform(&jobs, admit, give_up);
    }
}
