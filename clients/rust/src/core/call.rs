//! One call from its first attempt to its end: a pure state machine that classifies outcomes.
//!
//! A write ends as applied, not applied, or unknown. An attempt that left and was not answered (the connection
//! broke, time ran out, the server does not know either) makes the call *ambiguous*: from then on only an answer
//! under the same request id can end it as applied or not applied, since only the shard's memory of that id says
//! what became of the earlier attempt. "Nothing was applied" in any other answer speaks of that attempt alone.

use krita_proto::error::ErrorCode;

use crate::core::Moment;
use crate::core::message::ServerError;
use crate::core::retry::{RetryPolicy, milliseconds};
use crate::error::{Detail, Error};

/// Redirects in a row that are followed at once; after them the nodes disagree, and waiting helps more.
const REDIRECTS_AT_ONCE: u32 = 3;

/// Sessions that one call opens at most.
const SESSIONS_MAX: u32 = 4;

/// What is called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CallKind {
    /// Changes nothing: may be sent again without care.
    Read,
    /// Carries a request id.
    Write {
        /// Its conditions, if any, are decided where the entry is applied, so that their failure is remembered
        /// under the id. A condition on a value is decided by the leader before that, and is not.
        condition_is_remembered: bool,
    },
}

/// How an attempt ended, if not with a good answer.
#[derive(Clone, PartialEq, Debug)]
pub enum Attempt {
    /// The server answered with an error.
    Refused(ServerError),
    /// It never left: no connection, or no room on it.
    NotSent(Error),
    /// The connection broke before the answer.
    Lost(String),
    /// It was sent, and its time ran out.
    TimedOut,
}

/// What to do after a failed attempt.
#[derive(Clone, PartialEq, Debug)]
pub enum Next {
    /// Send the request again.
    Retry(Retry),
    /// The call has ended.
    Fail(Error),
}

/// How to send the request again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retry {
    /// After a pause of this many milliseconds.
    pub pause_ms: u64,
    /// Under an id of a new session, by this log time of the shard: it is known that the old one applied nothing.
    pub new_session_at_ms: Option<u64>,
    /// Ask for the cluster's map first: the leader that was tried is gone or unknown.
    pub refresh: bool,
    /// Not to the node that was tried, if there is another.
    pub avoid: bool,
    /// It counts against the retry budget: all but a redirect and a new session do.
    pub is_charged: bool,
}

/// One call.
#[derive(Debug)]
pub struct Call {
    kind: CallKind,
    policy: RetryPolicy,
    began: Moment,
    deadline: Moment,
    attempts: u32,
    pauses: u32,
    redirects: u32,
    sessions_opened: u32,
    /// An attempt under the current request id may have been, or may yet be, applied.
    is_ambiguous: bool,
    last: Option<Error>,
}

impl Call {
    /// A call that begins now and ends within `timeout_ms`.
    pub fn new(kind: CallKind, policy: RetryPolicy, now: Moment, timeout_ms: u64) -> Self {
        Self {
            kind,
            policy,
            began: now,
            deadline: now.after(timeout_ms),
            attempts: 0,
            pauses: 0,
            redirects: 0,
            sessions_opened: 1,
            is_ambiguous: false,
            last: None,
        }
    }

    /// How long the next attempt may take, in milliseconds; `None` = the deadline has passed.
    pub fn attempt_ms(&self, now: Moment) -> Option<u64> {
        let rest = self.deadline.since(now);
        if rest == 0 { None } else { Some(rest.min(milliseconds(self.policy.attempt_timeout).max(1))) }
    }

    /// Until when the call may go on.
    pub fn deadline(&self) -> Moment {
        self.deadline
    }

    /// How many attempts have failed.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// How the last attempt failed.
    pub fn last_failure(&self) -> Option<&Error> {
        self.last.as_ref()
    }

    /// An attempt failed: what now. `random` spreads the pauses.
    pub fn failed(&mut self, attempt: Attempt, now: Moment, random: u64) -> Next {
        self.attempts += 1;
        match attempt {
            Attempt::Refused(error) => self.refused(&error, now, random),
            Attempt::NotSent(error) => {
                let is_final = match &error {
                    Error::Unavailable(_) => false,
                    Error::InvalidRequest(_)
                    | Error::Configuration(_)
                    | Error::Denied(_)
                    | Error::ConditionFailed { .. }
                    | Error::UnknownOutcome(_)
                    | Error::Failed(_) => true,
                };
                self.last = Some(error.clone());
                if is_final { self.end(error) } else { self.elsewhere(now, random) }
            }
            Attempt::Lost(reason) => {
                self.is_ambiguous |= self.kind != CallKind::Read;
                let message = format!("the connection broke before the answer: {reason}");
                self.last = Some(Error::new(ErrorCode::Unavailable, message));
                self.elsewhere(now, random)
            }
            Attempt::TimedOut => {
                self.is_ambiguous |= self.kind != CallKind::Read;
                let message = "no answer came in time".to_owned();
                self.last = Some(Error::new(ErrorCode::DeadlineExceeded, message));
                self.elsewhere(now, random)
            }
        }
    }

    /// Ends the call before another attempt: the deadline passed while it waited.
    pub fn give_up(&self, now: Moment) -> Error {
        let attempts = self.attempts;
        let waited = now.since(self.began);
        let last = self.last.as_ref();
        let reason = last.map_or_else(|| "nothing was tried".to_owned(), ToString::to_string);
        let message = format!("after {attempts} attempts in {waited} ms; the last: {reason}");
        if self.is_ambiguous {
            return Error::new(
                ErrorCode::UnknownOutcome,
                format!("the write may have been applied, {message}"),
            );
        }
        let code = match last.map(Error::code) {
            // A read that the server calls unknown was not read, no more.
            None | Some(ErrorCode::UnknownOutcome) => ErrorCode::DeadlineExceeded,
            Some(code) => code,
        };
        let retry_after = last.and_then(|error| error.detail().retry_after);
        let message = match last {
            Some(error) => format!(
                "{} ({attempts} {} in {waited} ms)",
                error.detail().message,
                if attempts == 1 { "attempt" } else { "attempts" }
            ),
            None => "the deadline passed before anything was sent".to_owned(),
        };
        Error::from_detail(Detail { code, message, retry_after })
    }

    fn refused(&mut self, error: &ServerError, now: Moment, random: u64) -> Next {
        if error.session_refused() && self.kind != CallKind::Read {
            return self.session_refused(error, now);
        }
        self.last = Some(error.to_error());
        match error.code {
            ErrorCode::InvalidArgument
            | ErrorCode::WrongCluster
            | ErrorCode::Unauthenticated
            | ErrorCode::PermissionDenied
            | ErrorCode::Corruption => self.end(error.to_error()),
            ErrorCode::ConditionFailed => match self.kind {
                // Remembered under the id: the answer to every attempt.
                CallKind::Write { condition_is_remembered: true } => Next::Fail(error.to_error()),
                CallKind::Write { condition_is_remembered: false } | CallKind::Read => {
                    self.end(error.to_error())
                }
            },
            ErrorCode::Internal => {
                self.is_ambiguous |= self.kind != CallKind::Read;
                self.end(error.to_error())
            }
            ErrorCode::UnknownOutcome => {
                self.is_ambiguous |= self.kind != CallKind::Read;
                self.pause(error, false, now, random)
            }
            ErrorCode::NotLeader => self.redirected(error, now, random),
            ErrorCode::ResourceExhausted if error.message.retry_after_ms == 0 && !self.is_ambiguous => {
                Next::Fail(error.to_error())
            }
            ErrorCode::Overloaded | ErrorCode::ResourceExhausted => self.pause(error, false, now, random),
            ErrorCode::Unavailable | ErrorCode::DeadlineExceeded | ErrorCode::NotReady => {
                self.pause(error, true, now, random)
            }
        }
    }

    /// Nothing can be learnt by another attempt: the error, or unknown.
    fn end(&self, error: Error) -> Next {
        if !self.is_ambiguous {
            return Next::Fail(error);
        }
        let message = format!("an attempt may have been applied; the last answer: {error}");
        Next::Fail(Error::new(ErrorCode::UnknownOutcome, message))
    }

    fn session_refused(&mut self, error: &ServerError, now: Moment) -> Next {
        if self.is_ambiguous {
            // The shard has forgotten what it knew of the earlier attempt; asking again tells nothing more.
            return self.end(error.to_error());
        }
        let message = format!("the shard does not take this client's session: {}", error.message.message);
        self.last = Some(Error::new(ErrorCode::Unavailable, message));
        if self.sessions_opened >= SESSIONS_MAX {
            return Next::Fail(self.give_up(now));
        }
        self.sessions_opened += 1;
        let retry = Retry {
            pause_ms: 0,
            new_session_at_ms: Some(error.message.log_time_ms),
            refresh: false,
            avoid: false,
            is_charged: false,
        };
        self.retry(retry, now)
    }

    fn redirected(&mut self, error: &ServerError, now: Moment, random: u64) -> Next {
        let is_told = error.message.hint.is_some_and(|hint| hint.node_number != 0);
        if is_told && self.redirects < REDIRECTS_AT_ONCE {
            self.redirects += 1;
            let retry = Retry {
                pause_ms: 0,
                new_session_at_ms: None,
                refresh: false,
                avoid: false,
                is_charged: false,
            };
            return self.retry(retry, now);
        }
        self.redirects = 0;
        self.pause(error, !is_told, now, random)
    }

    /// The server says: not now.
    fn pause(&mut self, error: &ServerError, elsewhere: bool, now: Moment, random: u64) -> Next {
        let advised = u64::from(error.message.retry_after_ms);
        let pause_ms = self.next_pause_ms(random).max(advised);
        let retry = Retry {
            pause_ms,
            new_session_at_ms: None,
            refresh: elsewhere,
            avoid: elsewhere,
            is_charged: true,
        };
        self.retry(retry, now)
    }

    /// The node does not answer: another one, soon.
    fn elsewhere(&mut self, now: Moment, random: u64) -> Next {
        let pause_ms = self.next_pause_ms(random);
        let retry = Retry { pause_ms, new_session_at_ms: None, refresh: true, avoid: true, is_charged: true };
        self.retry(retry, now)
    }

    fn next_pause_ms(&mut self, random: u64) -> u64 {
        let pause_ms = self.policy.pause_ms(self.pauses, random);
        self.pauses += 1;
        pause_ms
    }

    fn retry(&self, retry: Retry, now: Moment) -> Next {
        let is_over = now.after(retry.pause_ms) >= self.deadline || self.pauses > self.policy.retries_max;
        if is_over { Next::Fail(self.give_up(now)) } else { Next::Retry(retry) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use krita_proto::v1;
    use proptest::prelude::*;

    const WRITE: CallKind = CallKind::Write { condition_is_remembered: true };
    const WRITE_IF_VALUE: CallKind = CallKind::Write { condition_is_remembered: false };

    fn refused(code: ErrorCode) -> Attempt {
        Attempt::Refused(ServerError::new(v1::Error { code: code as u32, ..Default::default() }))
    }

    fn session_refused() -> Attempt {
        let code = ErrorCode::UnknownOutcome as u32;
        Attempt::Refused(ServerError::new(v1::Error { code, log_time_ms: 7, ..Default::default() }))
    }

    fn redirect() -> Attempt {
        let hint = Some(v1::ServedBy { shard: 1, node_number: 2, ..Default::default() });
        let code = ErrorCode::NotLeader as u32;
        Attempt::Refused(ServerError::new(v1::Error { code, hint, ..Default::default() }))
    }

    fn lost() -> Attempt {
        Attempt::Lost("reset".to_owned())
    }

    /// Plays attempts one after the other; the last step decides.
    fn play(kind: CallKind, attempts: &[Attempt]) -> Next {
        let mut call = Call::new(kind, RetryPolicy::default(), Moment(0), 60_000);
        let mut next = None;
        for (attempt, at) in attempts.iter().zip(0..) {
            assert!(!matches!(next, Some(Next::Fail(_))), "the call had ended before {attempt:?}");
            next = Some(call.failed(attempt.clone(), Moment(at), 0));
        }
        next.expect("at least one attempt")
    }

    fn ends_as(kind: CallKind, attempts: &[Attempt]) -> Option<ErrorCode> {
        match play(kind, attempts) {
            Next::Fail(error) => Some(error.code()),
            Next::Retry(_) => None,
        }
    }

    #[test]
    fn the_stories_of_a_write() {
        use ErrorCode as E;
        // What happened to the attempts; how the call ends, if it does.
        let stories: [(&str, CallKind, Vec<Attempt>, Option<E>); 17] = [
            ("no leader", WRITE, vec![refused(E::Unavailable)], None),
            ("too busy", WRITE, vec![refused(E::Overloaded)], None),
            ("no room", WRITE, vec![refused(E::ResourceExhausted)], Some(E::ResourceExhausted)),
            ("no room, but sent before", WRITE, vec![lost(), refused(E::ResourceExhausted)], None),
            ("lost", WRITE, vec![lost()], None),
            ("lost, then denied", WRITE, vec![lost(), refused(E::PermissionDenied)], Some(E::UnknownOutcome)),
            ("denied", WRITE, vec![refused(E::PermissionDenied)], Some(E::PermissionDenied)),
            ("a bug", WRITE, vec![refused(E::Internal)], Some(E::UnknownOutcome)),
            ("a bug in a read", CallKind::Read, vec![refused(E::Internal)], Some(E::Internal)),
            ("session refused", WRITE, vec![session_refused()], None),
            (
                "timed out, session refused",
                WRITE,
                vec![Attempt::TimedOut, session_refused()],
                Some(E::UnknownOutcome),
            ),
            (
                "unknown there, session refused",
                WRITE,
                vec![refused(E::UnknownOutcome), session_refused()],
                Some(E::UnknownOutcome),
            ),
            ("refused attempts, session refused", WRITE, vec![refused(E::NotReady), session_refused()], None),
            ("no session lasts", WRITE, vec![session_refused(); 4], Some(E::Unavailable)),
            ("condition", WRITE_IF_VALUE, vec![refused(E::ConditionFailed)], Some(E::ConditionFailed)),
            (
                "lost, version differs",
                WRITE,
                vec![lost(), refused(E::ConditionFailed)],
                Some(E::ConditionFailed),
            ),
            (
                "lost, value differs",
                WRITE_IF_VALUE,
                vec![lost(), refused(E::ConditionFailed)],
                Some(E::UnknownOutcome),
            ),
        ];
        for (name, kind, attempts, end) in stories {
            assert_eq!(ends_as(kind, &attempts), end, "{name}");
        }
    }

    #[test]
    fn redirects_are_followed_at_once_a_few_times() {
        let mut pauses = Vec::new();
        let mut call = Call::new(CallKind::Read, RetryPolicy::default(), Moment(0), 60_000);
        for _ in 0..8 {
            let Next::Retry(retry) = call.failed(redirect(), Moment(1), 0) else { panic!("time is left") };
            pauses.push((retry.pause_ms > 0, retry.is_charged));
        }
        let (at_once, later) = ((false, false), (true, true));
        assert_eq!(pauses, [at_once, at_once, at_once, later, at_once, at_once, at_once, later]);
    }

    #[test]
    fn the_server_says_when_to_come_back() {
        let error =
            v1::Error { code: ErrorCode::Overloaded as u32, retry_after_ms: 700, ..Default::default() };
        let Next::Retry(retry) = play(WRITE, &[Attempt::Refused(ServerError::new(error))]) else {
            panic!("time is left")
        };
        assert_eq!((retry.pause_ms, retry.avoid), (700, false));
    }

    fn any_attempt() -> impl Strategy<Value = Attempt> {
        prop_oneof![
            (1u32..=14).prop_map(|number| refused(ErrorCode::from_number(number))),
            Just(session_refused()),
            Just(redirect()),
            Just(lost()),
            Just(Attempt::TimedOut),
            Just(Attempt::NotSent(Error::new(ErrorCode::Unavailable, "no route"))),
            Just(Attempt::NotSent(Error::new(ErrorCode::Unauthenticated, "who?"))),
        ]
    }

    /// Whether the attempt may have been applied.
    fn may_have_applied(attempt: &Attempt) -> bool {
        match attempt {
            Attempt::Lost(_) | Attempt::TimedOut => true,
            Attempt::NotSent(_) => false,
            Attempt::Refused(error) => {
                error.code == ErrorCode::Internal
                    || (error.code == ErrorCode::UnknownOutcome && !error.session_refused())
            }
        }
    }

    proptest! {
        #[test]
        fn no_write_that_may_have_been_applied_ends_as_not_applied(
            attempts in prop::collection::vec((any_attempt(), 0u64..500), 1..100),
            timeout_ms in 1u64..20_000,
            randoms: u64,
        ) {
            let mut now = Moment(0);
            let mut call = Call::new(WRITE_IF_VALUE, RetryPolicy::default(), now, timeout_ms);
            let mut ambiguous = false;
            for (attempt, took_ms) in attempts {
                if call.attempt_ms(now).is_none() {
                    break;
                }
                now = now.after(took_ms);
                ambiguous |= may_have_applied(&attempt);
                match call.failed(attempt, now, randoms) {
                    Next::Fail(error) => {
                        prop_assert_eq!(error.code() == ErrorCode::UnknownOutcome, ambiguous, "{}", error);
                        return Ok(());
                    }
                    Next::Retry(retry) => {
                        let is_new_id = retry.new_session_at_ms.is_some();
                        prop_assert!(!(is_new_id && ambiguous), "a new id for what may be applied");
                        now = now.after(retry.pause_ms);
                        prop_assert!(now < call.deadline(), "a pause past the deadline");
                    }
                }
            }
            let end = call.give_up(now).code();
            prop_assert_eq!(end == ErrorCode::UnknownOutcome, ambiguous);
        }

        #[test]
        fn a_call_ends(attempt in any_attempt(), timeout_ms in 1u64..100_000) {
            let mut now = Moment(0);
            let mut call = Call::new(WRITE, RetryPolicy::default(), now, timeout_ms);
            for round in 0.. {
                // Up to three redirects go before each pause.
                prop_assert!(round <= 4 * (RetryPolicy::default().retries_max + 2));
                match call.failed(attempt.clone(), now, 1) {
                    Next::Fail(_) => break,
                    Next::Retry(retry) => now = now.after(retry.pause_ms),
                }
            }
        }

        #[test]
        fn no_read_is_unknown(attempts in prop::collection::vec(any_attempt(), 1..100)) {
            let mut call = Call::new(CallKind::Read, RetryPolicy::default(), Moment(0), 1_000_000);
            for attempt in attempts {
                if let Next::Fail(error) = call.failed(attempt, Moment(1), 1) {
                    prop_assert_ne!(error.code(), ErrorCode::UnknownOutcome);
                    break;
                }
            }
        }
    }
}
