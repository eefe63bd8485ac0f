//! What is shown on a terminal while a command takes its time; nothing where standard error is none.

use std::io::{IsTerminal, Read};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressBarIter, ProgressStyle};

use super::show;
use crate::control::wait::{Missing, Progress};

/// How often the daemon is to say how far it is.
const EVERY: Duration = Duration::from_millis(200);

/// How often the bar moves by itself: rate and remaining time go on while nothing comes.
const TICK: Duration = Duration::from_millis(250);

/// Most members that are named beside the bar.
const NAMED: usize = 3;

/// A bar on standard error, taken away when it is dropped.
pub(super) struct Bar(Option<ProgressBar>);

impl Bar {
    fn new(template: &str) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(None);
        }
        // The templates are ours; a wrong one would show the default bar.
        let style = ProgressStyle::with_template(template)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> ");
        let bar = ProgressBar::no_length().with_style(style);
        bar.enable_steady_tick(TICK);
        Self(Some(bar))
    }

    /// For a delivery that is waited for.
    pub(super) fn of_delivery() -> Self {
        Self::new("[{bar:24}] {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}\n{wide_msg}")
    }

    /// For files that are copied.
    pub(super) fn of_copying() -> Self {
        Self::new("{spinner} copied {bytes} {bytes_per_sec} {wide_msg}")
    }

    /// How often the daemon is to be heard of, in milliseconds; `None`: not at all.
    pub(super) fn every_ms(&self) -> Option<u64> {
        let every = u64::try_from(EVERY.as_millis()).ok();
        self.0.as_ref().and(every)
    }

    /// Shows how far a delivery is.
    pub(super) fn show(&self, progress: &Progress, now: u64) {
        if let Some(bar) = &self.0 {
            bar.set_length(progress.bytes);
            bar.set_position(progress.bytes_done);
            bar.set_message(beside(progress, now));
        }
    }

    /// Counts what is read from a file called `name`.
    pub(super) fn reading<R: Read>(&self, name: &str, from: R) -> ProgressBarIter<R> {
        let hidden = ProgressBar::hidden();
        let bar = self.0.as_ref().unwrap_or(&hidden);
        bar.set_message(show::plain(name));
        bar.wrap_read(from)
    }

    /// Whether anything is shown.
    pub(super) fn is_shown(&self) -> bool {
        self.0.is_some()
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// "2 of 5 files, waiting for birch (offline since …), cedar".
fn beside(progress: &Progress, now: u64) -> String {
    let mut words = format!("{} of {} files", progress.files_done, progress.files);
    if progress.unsealed > 0 {
        words.push_str(&format!(", {} not sealed yet", progress.unsealed));
    }
    let name = |missing: &Missing| {
        let name = show::plain(&missing.name);
        match missing.offline_since {
            Some(at) => format!("{name} ({})", show::offline(at, now)),
            None => name,
        }
    };
    let names: Vec<String> = progress.missing.iter().take(NAMED).map(name).collect();
    if !names.is_empty() {
        words.push_str(&format!(", waiting for {}", names.join(", ")));
    }
    if progress.missing.len() > NAMED {
        words.push_str(&format!(" and {} more", progress.missing.len() - NAMED));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beside_the_bar_stands_who_is_waited_for() {
        let missing = |name: &str, offline_since| Missing {
            name: name.into(),
            offline_since,
            ..Missing::default()
        };
        let mut progress = Progress {
            files: 5,
            files_done: 2,
            unsealed: 1,
            missing: vec![missing("birch", Some(940)), missing("ce\u{1b}dar", None)],
            ..Progress::default()
        };
        let words = beside(&progress, 1000);
        assert_eq!(
            words,
            "2 of 5 files, 1 not sealed yet, waiting for birch (offline since 1970-01-01T00:15:40Z, 1m ago), ce\u{fffd}dar"
        );
        let more = ["d", "e", "f"].map(|name| missing(name, Some(0)));
        progress.missing.splice(1..2, more);
        let words = beside(&progress, 1000);
        assert!(
            words.ends_with("d (never seen), e (never seen) and 1 more"),
            "{words}"
        );
    }
}
