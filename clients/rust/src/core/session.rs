//! Request ids: what makes a retried write apply once (Ongaro, "Consensus: Bridging Theory and Practice", §6.3).
//!
//! A client has one session per shard: a random id, and sequences that count up. The shard remembers the outcome of
//! each sequence from the lowest unacknowledged one on. A session is registered by the first write under it, and
//! only up to a log time that is fixed when the session is opened: a retry that arrives after the shard has
//! forgotten the session can then not register it again and apply a second time.

use std::collections::{BTreeMap, BTreeSet};

use krita_proto::v1;

use crate::core::Moment;

/// Most sequences between the lowest unacknowledged and the newest of a session: what a shard must remember.
pub const WINDOW: u64 = 256;

/// How long after it was opened a session may be registered, in milliseconds of log time.
pub const REGISTRATION_MS: u64 = 10_000;

/// A session this close to the end of its registration is not begun with: its writes would arrive too late.
const REGISTRATION_MARGIN_MS: u64 = 2_000;

/// The cluster's log time, as last heard and advanced by the client's own clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogClock {
    heard_ms: u64,
    at: Moment,
}

impl LogClock {
    /// A server told its log time. It never goes back: nodes differ a little, and the latest is the safe one.
    pub fn learn(&mut self, log_time_ms: u64, now: Moment) {
        if log_time_ms > self.estimate(now) {
            *self = Self { heard_ms: log_time_ms, at: now };
        }
    }

    /// The log time now; 0 = nothing has been heard yet.
    pub fn estimate(&self, now: Moment) -> u64 {
        if self.heard_ms == 0 { 0 } else { self.heard_ms.saturating_add(now.since(self.at)) }
    }
}

/// One write's place in a session. Not `Clone`: it is ended once.
#[derive(PartialEq, Eq, Debug)]
pub struct Ticket {
    /// Which shard.
    pub shard: u32,
    session: u64,
    sequence: u64,
    /// As of its beginning; a lower bound for ever.
    lowest_unacknowledged: u64,
    register_until_ms: u64,
}

#[derive(Debug)]
struct Session {
    id: u64,
    /// A write under it has succeeded, so that the shard knows it.
    is_registered: bool,
    register_until_ms: u64,
    next_sequence: u64,
    /// Every element is below `next_sequence`; `next_sequence - first <= WINDOW`.
    outstanding: BTreeSet<u64>,
}

impl Session {
    fn lowest_unacknowledged(&self) -> u64 {
        self.outstanding.first().copied().unwrap_or(self.next_sequence)
    }
}

/// The sessions of one client, one per shard.
#[derive(Debug, Default)]
pub struct Sessions {
    clock: LogClock,
    /// Of shards that have refused a session: their own log time, which may be far from the latest one heard.
    shard_clocks: BTreeMap<u32, LogClock>,
    by_shard: BTreeMap<u32, Session>,
}

impl Sessions {
    /// A server told its log time.
    pub fn learn_log_time(&mut self, log_time_ms: u64, now: Moment) {
        self.clock.learn(log_time_ms, now);
    }

    /// A place for one more write to `shard`; `None` = the window is full, wait until one of them has ended.
    /// `random` becomes the id if a session must be opened: 64 unpredictable bits.
    pub fn begin(&mut self, shard: u32, now: Moment, random: u64) -> Option<Ticket> {
        let clock = self.shard_clocks.get(&shard).unwrap_or(&self.clock);
        let log_time_ms = clock.estimate(now);
        let is_usable = self.by_shard.get(&shard).is_some_and(|session| {
            session.is_registered || log_time_ms + REGISTRATION_MARGIN_MS < session.register_until_ms
        });
        if !is_usable {
            let session = Session {
                // 0 means "no session" on the wire.
                id: random.max(1),
                is_registered: false,
                register_until_ms: log_time_ms + REGISTRATION_MS,
                next_sequence: 1,
                outstanding: BTreeSet::new(),
            };
            self.by_shard.insert(shard, session);
        }
        let session = self.by_shard.get_mut(&shard)?;
        let lowest_unacknowledged = session.lowest_unacknowledged();
        if session.next_sequence - lowest_unacknowledged >= WINDOW {
            return None;
        }
        let sequence = session.next_sequence;
        session.next_sequence += 1;
        session.outstanding.insert(sequence);
        let register_until_ms = session.register_until_ms;
        Some(Ticket { shard, session: session.id, sequence, lowest_unacknowledged, register_until_ms })
    }

    /// The id to send with an attempt of this write, the same for each but for what only grows stricter.
    pub fn request_id(&self, ticket: &Ticket) -> v1::RequestId {
        let current = self.current(ticket);
        v1::RequestId {
            session: ticket.session,
            sequence: ticket.sequence,
            lowest_unacknowledged: current
                .map_or(ticket.lowest_unacknowledged, Session::lowest_unacknowledged),
            register_until_ms: match current {
                Some(session) if session.is_registered => 0,
                Some(_) | None => ticket.register_until_ms,
            },
        }
    }

    /// A write under it was applied: the shard knows the session.
    pub fn succeeded(&mut self, ticket: &Ticket) {
        if let Some(session) = self.current_mut(ticket) {
            session.is_registered = true;
        }
    }

    /// The shard refused the session and told its log time: what begins from here on uses another session, which
    /// is registered by that time, whether it is before or after the latest one heard.
    pub fn refused(&mut self, ticket: &Ticket, log_time_ms: u64, now: Moment) {
        self.shard_clocks.insert(ticket.shard, LogClock { heard_ms: log_time_ms, at: now });
        if self.current(ticket).is_some() {
            self.by_shard.remove(&ticket.shard);
        }
    }

    /// The write has ended, in whatever way: it will not be sent again.
    pub fn end(&mut self, ticket: &Ticket) {
        if let Some(session) = self.current_mut(ticket) {
            session.outstanding.remove(&ticket.sequence);
        }
    }

    fn current(&self, ticket: &Ticket) -> Option<&Session> {
        self.by_shard.get(&ticket.shard).filter(|session| session.id == ticket.session)
    }

    fn current_mut(&mut self, ticket: &Ticket) -> Option<&mut Session> {
        self.by_shard.get_mut(&ticket.shard).filter(|session| session.id == ticket.session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sessions() -> Sessions {
        let mut sessions = Sessions::default();
        sessions.learn_log_time(1_000_000, Moment(0));
        sessions
    }

    #[test]
    fn a_session_registers_until_its_first_success() {
        let mut sessions = sessions();
        let first = sessions.begin(1, Moment(500), 77).unwrap();
        let second = sessions.begin(1, Moment(600), 78).unwrap();
        let id = sessions.request_id(&first);
        assert_eq!((id.session, id.sequence, id.lowest_unacknowledged), (77, 1, 1));
        assert_eq!(id.register_until_ms, 1_010_500);
        assert_eq!(sessions.request_id(&second).register_until_ms, 1_010_500, "fixed at the opening");
        sessions.succeeded(&first);
        sessions.end(&first);
        let id = sessions.request_id(&second);
        assert_eq!((id.sequence, id.lowest_unacknowledged, id.register_until_ms), (2, 2, 0));
        let elsewhere = sessions.begin(2, Moment(600), 79).unwrap();
        assert_eq!(sessions.request_id(&elsewhere).session, 79, "one session per shard");
    }

    #[test]
    fn a_session_nobody_registered_in_time_is_replaced_and_its_writes_keep_their_id() {
        let mut sessions = sessions();
        let old = sessions.begin(1, Moment(0), 77).unwrap();
        let before = sessions.request_id(&old);
        let new = sessions.begin(1, Moment(REGISTRATION_MS), 78).unwrap();
        assert_eq!(sessions.request_id(&new).session, 78);
        assert_eq!(sessions.request_id(&old), before);
        sessions.succeeded(&old);
        sessions.end(&old);
        let id = sessions.request_id(&new);
        assert_eq!((id.session, id.sequence, id.register_until_ms), (78, 1, 1_020_000));
    }

    #[test]
    fn the_window_bounds_the_span_not_only_the_count() {
        let mut sessions = sessions();
        let slow = sessions.begin(1, Moment(0), 77).unwrap();
        sessions.succeeded(&slow);
        for _ in 1..WINDOW {
            let quick = sessions.begin(1, Moment(0), 78).unwrap();
            sessions.end(&quick);
        }
        assert_eq!(sessions.begin(1, Moment(0), 78), None);
        assert!(sessions.begin(2, Moment(0), 78).is_some(), "other shards have windows of their own");
        sessions.end(&slow);
        let next = sessions.begin(1, Moment(0), 78).unwrap();
        let id = sessions.request_id(&next);
        assert_eq!((id.sequence, id.lowest_unacknowledged), (WINDOW + 1, WINDOW + 1));
    }

    #[test]
    fn a_refusal_opens_a_new_session_once() {
        let mut sessions = sessions();
        let first = sessions.begin(1, Moment(0), 77).unwrap();
        let second = sessions.begin(1, Moment(0), 78).unwrap();
        sessions.refused(&first, 2_000_000, Moment(0));
        let again = sessions.begin(1, Moment(0), 80).unwrap();
        sessions.refused(&second, 2_000_000, Moment(0));
        assert_eq!(sessions.request_id(&again).session, 80, "a late refusal of the old one changes nothing");
        assert_eq!(sessions.begin(1, Moment(0), 81).unwrap().session, 80);
    }

    #[test]
    fn a_shard_whose_clock_is_behind_is_asked_by_its_own_clock() {
        let mut sessions = sessions();
        let first = sessions.begin(1, Moment(0), 77).unwrap();
        sessions.refused(&first, 900_000, Moment(5));
        let second = sessions.begin(1, Moment(6), 78).unwrap();
        assert_eq!(sessions.request_id(&second).register_until_ms, 900_001 + REGISTRATION_MS);
        let elsewhere = sessions.begin(2, Moment(6), 79).unwrap();
        assert_eq!(sessions.request_id(&elsewhere).register_until_ms, 1_000_006 + REGISTRATION_MS);
    }

    #[test]
    fn log_time_never_goes_back() {
        let mut clock = LogClock::default();
        assert_eq!(clock.estimate(Moment(9)), 0);
        clock.learn(100, Moment(10));
        clock.learn(90, Moment(20));
        assert_eq!(clock.estimate(Moment(20)), 110);
        clock.learn(500, Moment(20));
        assert_eq!(clock.estimate(Moment(30)), 510);
    }
}
