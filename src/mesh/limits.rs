//! Limits per peer: how fast one member may make us work.
//!
//! What a peer may have outstanding is bounded elsewhere: streams and unread bytes by the transport (`endpoint`), frames
//! not dealt with (`session`), offers waiting to be fetched (`fetch`), requests being served (`serve`), bytes stored
//! by the spool's quotas. This is about rates: who sends more than [`RULES`] allow is not refused but slowed, since it
//! may simply have much to say: its stream is handled later, and its own queue grows, not ours. It is shown while that
//! lasts. No other peer notices.
//!
//! The rates are far above what honest members reach: measured, a member takes some 4,000 files a second.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// What is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Any frame on the control connection.
    Frame,
    Offer,
    /// Word of other members.
    Announcement,
    /// A request for a range of content.
    Range,
}

/// Words for a kind, how many a second in the long run, and how many at once.
const RULES: [(&str, f64, f64); 4] = [
    ("frames", 5_000.0, 50_000.0),
    ("offers", 5_000.0, 50_000.0),
    // As word of members costs a look at all of them, and changes as often as members come and go.
    ("announcements", 1.0, 60.0),
    ("range requests", 1_000.0, 8_000.0),
];

/// How long a peer is shown as limited after the last time.
const SHOWN: Duration = Duration::from_secs(60);

/// What is left of one kind.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Option<Instant>,
}

#[derive(Debug)]
struct State {
    buckets: [Bucket; RULES.len()],
    limited: Option<(Kind, Instant)>,
    slowed: u64,
}

/// Counts what one peer does.
#[derive(Debug)]
pub(crate) struct Meter(Mutex<State>);

impl Default for Meter {
    fn default() -> Self {
        let full = |(_, _, burst): (&str, f64, f64)| Bucket {
            tokens: burst,
            at: None,
        };
        Self(Mutex::new(State {
            buckets: RULES.map(full),
            limited: None,
            slowed: 0,
        }))
    }
}

impl Meter {
    /// Counts one of `kind`; how long to wait before dealing with it, and whether that is news.
    pub(crate) fn take(&self, kind: Kind, now: Instant) -> (Duration, bool) {
        let mut state = self.0.lock();
        let (_, rate, burst) = RULES[kind as usize];
        let bucket = &mut state.buckets[kind as usize];
        if let Some(before) = bucket.at {
            let passed = now.saturating_duration_since(before).as_secs_f64();
            bucket.tokens = (bucket.tokens + passed * rate).min(burst);
        }
        bucket.at = Some(now);
        bucket.tokens -= 1.0;
        if bucket.tokens >= 0.0 {
            return (Duration::ZERO, false);
        }
        let wait = Duration::from_secs_f64(-bucket.tokens / rate);
        let news = state.limited.is_none_or(|(_, until)| until <= now);
        state.limited = Some((kind, now + wait + SHOWN));
        state.slowed += 1;
        (wait, news)
    }

    /// Why the peer is slowed, if it is or was a moment ago.
    pub(crate) fn limited(&self, now: Instant) -> Option<String> {
        let state = self.0.lock();
        let (kind, _) = state.limited.filter(|(_, until)| *until > now)?;
        let (what, rate, _) = RULES[kind as usize];
        Some(format!(
            "too many {what}, slowed to {rate} a second, {} times so far",
            state.slowed
        ))
    }

    /// How often it was slowed.
    pub(crate) fn slowed(&self) -> u64 {
        self.0.lock().slowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_floods_is_slowed_to_the_rate_and_shown_and_forgiven() {
        let (meter, t0) = (Meter::default(), Instant::now());
        for _ in 0..50_000 {
            assert_eq!(meter.take(Kind::Offer, t0), (Duration::ZERO, false));
        }
        assert_eq!(meter.limited(t0), None);
        let (wait, news) = meter.take(Kind::Offer, t0);
        assert!(wait > Duration::ZERO && news);
        assert!(!meter.take(Kind::Offer, t0).1, "said once");
        // Who waits as told gets through at the rate.
        let mut now = t0;
        for _ in 0..10_000 {
            now += meter.take(Kind::Offer, now).0;
        }
        let took = now - t0;
        assert!((1.9..2.1).contains(&took.as_secs_f64()), "{took:?}");
        let why = meter.limited(now).unwrap();
        assert!(
            why.contains("too many offers, slowed to 5000 a second"),
            "{why}"
        );
        assert_eq!(meter.limited(now + SHOWN + Duration::from_secs(1)), None);
        // Other kinds are counted for themselves.
        assert_eq!(meter.take(Kind::Announcement, now).0, Duration::ZERO);
        let later = now + Duration::from_secs(60);
        assert_eq!(meter.take(Kind::Offer, later).0, Duration::ZERO);
    }

    #[test]
    fn announcements_are_counted_by_the_minute() {
        let (meter, t0) = (Meter::default(), Instant::now());
        let mut now = t0;
        for _ in 0..180 {
            now += meter.take(Kind::Announcement, now).0;
        }
        assert!(now - t0 >= Duration::from_secs(119));
    }
}
