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
    /// Under an id of a new session: it is known that the old one applied nothing.
    pub new_session: bool,
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
        let retry = Retry { pause_ms: 0, new_session: true, refresh: false, avoid: false, is_charged: false };
        self.retry(retry, now)
    }

    fn redirected(&mut self, error: &ServerError, now: Moment, random: u64) -> Next {
        let is_told = error.message.hint.is_some_and(|hint| hint.node_number != 0);
        if is_told && self.redirects < REDIRECTS_AT_ONCE {
            self.redirects += 1;
            let retry =
                Retry { pause_ms: 0, new_session: false, refresh: false, avoid: false, is_charged: false };
            return self.retry(retry, now);
        }
        self.redirects = 0;
        self.pause(error, !is_told, now, random)
    }

    /// The server says: not now.
    fn pause(&mut self, error: &ServerError, elsewhere: bool, now: Moment, random: u64) -> Next {
        let advised = u64::from(error.message.retry_after_ms);
        let pause_ms = self.next_pause_ms(random).max(advised);
        let retry =
            Retry { pause_ms, new_session: false, refresh: elsewhere, avoid: elsewhere, is_charged: true };
        self.retry(retry, now)
    }

    /// The node does not answer: another one, soon.
    fn elsewhere(&mut self, now: Moment, random: u64) -> Next {
        let pause_ms = self.next_pause_ms(random);
        let retry = Retry { pause_ms, new_session: false, refresh: true, avoid: true, is_charged: true };
        self.retry(retry, now)
    }

    fn next_pause_ms(&mut self, random: u64) -> u64 {
        let pause_ms = self.policy.pause_ms(self.pauses, random);
        self.pauses += 1;
        pause_ms
    }

    fn retry(&self, retry: Retry, now: Moment) -> Next {
        let is_over = now.after(retry.pause_ms) >= self.deadline || self.attempts >= self.policy.attempts_max;
        if is_over { Next::Fail(self.give_up(now)) } else { Next::Retry(retry) }
    }
}
