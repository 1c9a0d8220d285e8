//! Sessions: what makes a retried write apply once. Part of each shard's replicated state machine.
//!
//! A client names each write by (session, sequence). The shard remembers the outcome of every write of a
//! session from the session's *watermark* upwards; the watermark is the highest `lowest_unacknowledged` that
//! the client has sent. A copy of a remembered write gets the remembered outcome; a copy from below the
//! watermark gets "unknown" and is never applied; anything else is new.
//!
//! # Why no write is applied twice
//!
//! Take two copies of one write in the log, and let the earlier one have been applied. Between the two the
//! session either stayed known or was forgotten.
//!
//! - It stayed known: the outcome is remembered unless the watermark has passed the sequence. Either way the
//!   later copy is not applied.
//! - It was forgotten, which happens only once log time is past its last use by more than [`SESSION_TTL_MS`].
//!   A session carries one `register_until_ms` for life, and when it was registered, at log time R, that was
//!   at most R + [`REGISTER_WINDOW_MAX_MS`]. The last use is not before R, log time never falls, and
//!   `SESSION_TTL_MS > REGISTER_WINDOW_MAX_MS`; so log time is past `register_until_ms` for good, and the
//!   later copy finds an unknown session that may not be registered: not applied.
//!
//! A refusal ([`Outcome::SessionUnknown`], [`Outcome::SessionsFull`], [`Outcome::SequenceOutOfWindow`]) speaks
//! of the copy that got it, and is not remembered: a client that has sent several copies knows that a write was not
//! applied only if every copy was refused for want of room.
//!
//! # Bounds
//!
//! Sessions, outcomes per session and the bytes of all outcomes are bounded. Only expired sessions ever make
//! room: dropping a live one would break the promise to its client.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, BytesMut};

use crate::command::{OPERATIONS_MAX, RequestId};
use crate::machine::{MachineError, OperationOutcome, Outcome};

/// A session may be registered only up to this long after the log time that its client was told.
pub const REGISTER_WINDOW_MAX_MS: u64 = 30_000;

/// A session that was not used for longer than this, in log time, is forgotten.
pub const SESSION_TTL_MS: u64 = 600_000;

/// How far above its watermark a session's sequences may reach.
pub const SEQUENCE_WINDOW: u64 = 1024;

/// Most sessions of one shard.
pub const SESSIONS_MAX: usize = 16_384;

/// Most bytes that the remembered outcomes of one shard take in their encoding.
pub const RESULT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Most bytes that the encoding of all sessions takes.
pub const SESSIONS_BYTES_MAX: usize = 4 + SESSIONS_MAX * SESSION_BYTES + RESULT_BYTES_MAX;

/// Forgetting is paid in small pieces, so that one command after a long silence does not pay for all. Two or more,
/// so that the table shrinks faster than it grows.
const EXPIRED_PER_COMMAND: usize = 16;

const SESSION_BYTES: usize = 8 + 8 + 8 + 4;
const RESULT_BYTES: usize = 8 + 1 + 8 + 2;
const RESULT_APPLIED: u8 = 1;
const RESULT_CONDITION_FAILED: u8 = 2;
const FLAG_EXISTED: u8 = 1;
const FLAG_CHANGED: u8 = 2;

const _: () = {
    assert!(SESSION_TTL_MS > REGISTER_WINDOW_MAX_MS, "the proof above stands on this");
    assert!(EXPIRED_PER_COMMAND >= 2);
    assert!(RESULT_BYTES + OPERATIONS_MAX <= RESULT_BYTES_MAX, "the largest outcome fits");
};

/// The sessions of one shard. Deterministic: equal commands in equal order make equal tables.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Sessions {
    by_id: BTreeMap<u64, Session>,
    /// (last use, id) of every session: the oldest first.
    by_use: BTreeSet<(u64, u64)>,
    /// Sum of the encoded bytes of all remembered outcomes, <= RESULT_BYTES_MAX.
    result_bytes: usize,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Session {
    /// Log time of the last command that named the session.
    last_used_ms: u64,
    /// >= 1; every remembered sequence is in watermark .. watermark + SEQUENCE_WINDOW.
    watermark: u64,
    results: BTreeMap<u64, Remembered>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Remembered {
    Applied { index: u64, flags: Flags },
    ConditionFailed { operation: u16, current_version: u64 },
}

/// One byte for each operation; nearly every write has one, which then needs no allocation.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Flags {
    One([u8; 1]),
    Many(Box<[u8]>),
}

/// What to do with a command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Admission {
    /// It is new: apply it, then [`Sessions::remember`] the outcome.
    Apply,
    /// Answer this, and apply nothing.
    Answer(Outcome),
}

impl Sessions {
    /// How many sessions the shard remembers.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether the shard remembers no session.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Bytes that [`Sessions::encode`] appends.
    pub(crate) fn encoded_bytes(&self) -> usize {
        4 + self.by_id.len() * SESSION_BYTES + self.result_bytes
    }

    /// Decides about a command at log time `now_ms`, registering its session if that is due.
    pub(crate) fn admit(&mut self, request: RequestId, operations: usize, now_ms: u64) -> Admission {
        self.expire(request.session, now_ms);
        if request.session == 0 {
            return Admission::Apply;
        }
        let admission = match self.by_id.contains_key(&request.session) {
            true => self.admit_known(request, now_ms),
            false => self.admit_unknown(request, now_ms),
        };
        match admission {
            Admission::Apply if self.result_bytes + RESULT_BYTES + operations > RESULT_BYTES_MAX => {
                Admission::Answer(Outcome::SessionsFull)
            }
            Admission::Apply => {
                let session = Session {
                    last_used_ms: now_ms,
                    watermark: request.lowest_unacknowledged.max(1),
                    results: BTreeMap::new(),
                };
                if let std::collections::btree_map::Entry::Vacant(entry) = self.by_id.entry(request.session) {
                    entry.insert(session);
                    self.by_use.insert((now_ms, request.session));
                }
                Admission::Apply
            }
            Admission::Answer(outcome) => Admission::Answer(outcome),
        }
    }

    /// The outcome that a request had when it was applied, if that is still remembered. Changes nothing.
    pub(crate) fn remembered(&self, request: RequestId) -> Option<Outcome> {
        self.by_id.get(&request.session)?.results.get(&request.sequence).map(Remembered::outcome)
    }

    /// Remembers the outcome of a command that [`Sessions::admit`] let through. `index` is its entry's.
    pub(crate) fn remember(&mut self, request: RequestId, index: u64, outcome: &Outcome) {
        if request.session == 0 {
            return;
        }
        let remembered = match outcome {
            Outcome::Applied(operations) => {
                let flag = |operation: &OperationOutcome| {
                    let existed = if operation.existed { FLAG_EXISTED } else { 0 };
                    let changed = if operation.version != 0 { FLAG_CHANGED } else { 0 };
                    existed | changed
                };
                let flags = match operations.as_slice() {
                    [operation] => Flags::One([flag(operation)]),
                    operations => Flags::Many(operations.iter().map(flag).collect()),
                };
                Remembered::Applied { index, flags }
            }
            Outcome::ConditionFailed { operation, current_version } => {
                Remembered::ConditionFailed { operation: *operation, current_version: *current_version }
            }
            Outcome::SessionUnknown | Outcome::SessionsFull | Outcome::SequenceOutOfWindow => {
                unreachable!("a refusal is never the outcome of an admitted command")
            }
        };
        let session = self.by_id.get_mut(&request.session).expect("an admitted command has a session");
        self.result_bytes += remembered.encoded_bytes();
        assert!(self.result_bytes <= RESULT_BYTES_MAX, "admission has checked the room");
        let earlier = session.results.insert(request.sequence, remembered);
        assert!(earlier.is_none(), "a remembered sequence is never applied again");
    }

    fn admit_known(&mut self, request: RequestId, now_ms: u64) -> Admission {
        let session = self.by_id.get_mut(&request.session).expect("the caller has looked");
        self.by_use.remove(&(session.last_used_ms, request.session));
        self.by_use.insert((now_ms, request.session));
        session.last_used_ms = now_ms;
        if request.lowest_unacknowledged > session.watermark {
            session.watermark = request.lowest_unacknowledged;
            let kept = session.results.split_off(&session.watermark);
            let forgotten = std::mem::replace(&mut session.results, kept);
            self.result_bytes -= forgotten.values().map(Remembered::encoded_bytes).sum::<usize>();
        }
        if request.sequence < session.watermark {
            return Admission::Answer(Outcome::SessionUnknown);
        }
        if let Some(remembered) = session.results.get(&request.sequence) {
            return Admission::Answer(remembered.outcome());
        }
        if request.sequence - session.watermark >= SEQUENCE_WINDOW {
            return Admission::Answer(Outcome::SequenceOutOfWindow);
        }
        Admission::Apply
    }

    fn admit_unknown(&self, request: RequestId, now_ms: u64) -> Admission {
        let until = request.register_until_ms;
        let may_register = until != 0 && now_ms <= until && until - now_ms <= REGISTER_WINDOW_MAX_MS;
        let watermark = request.lowest_unacknowledged.max(1);
        if !may_register || request.sequence < watermark {
            return Admission::Answer(Outcome::SessionUnknown);
        }
        if request.sequence - watermark >= SEQUENCE_WINDOW {
            return Admission::Answer(Outcome::SequenceOutOfWindow);
        }
        if self.by_id.len() >= SESSIONS_MAX {
            return Admission::Answer(Outcome::SessionsFull);
        }
        Admission::Apply
    }

    /// Forgets some of the expired sessions, and in any case `asked`, if that one has expired.
    fn expire(&mut self, asked: u64, now_ms: u64) {
        let expired = |last_used_ms: u64| now_ms - last_used_ms > SESSION_TTL_MS;
        for _ in 0..EXPIRED_PER_COMMAND {
            match self.by_use.first() {
                Some((last_used_ms, id)) if expired(*last_used_ms) => self.forget(*id),
                Some(_) | None => break,
            }
        }
        if self.by_id.get(&asked).is_some_and(|session| expired(session.last_used_ms)) {
            self.forget(asked);
        }
    }

    fn forget(&mut self, id: u64) {
        let session = self.by_id.remove(&id).expect("only known sessions are forgotten");
        self.by_use.remove(&(session.last_used_ms, id));
        self.result_bytes -= session.results.values().map(Remembered::encoded_bytes).sum::<usize>();
    }

    /// Appends the table: a count (u32), then each session by rising id:
    /// `id u64, last used u64, watermark u64, outcomes u32`, then each outcome by rising sequence:
    /// `sequence u64, kind u8`, and for kind 1 (applied) `index u64, operations u16`, one flag byte for each
    /// operation (bit 0: the key existed, bit 1: it was changed); for kind 2 (condition failed)
    /// `operation u16, current version u64`.
    pub(crate) fn encode(&self, out: &mut BytesMut) {
        out.put_u32_le(self.by_id.len() as u32);
        for (id, session) in &self.by_id {
            out.put_u64_le(*id);
            out.put_u64_le(session.last_used_ms);
            out.put_u64_le(session.watermark);
            out.put_u32_le(session.results.len() as u32);
            for (sequence, remembered) in &session.results {
                out.put_u64_le(*sequence);
                remembered.encode(out);
            }
        }
    }

    /// Reads what [`Sessions::encode`] wrote, from the front of `bytes`.
    pub(crate) fn decode(bytes: &mut &[u8], now_ms: u64) -> Result<Self, MachineError> {
        let count = take_u32(bytes)? as usize;
        if count > SESSIONS_MAX {
            return Err(MachineError("too many sessions"));
        }
        let mut sessions = Self::default();
        let mut id_before = 0;
        for _ in 0..count {
            let id = take_u64(bytes)?;
            if id <= id_before {
                return Err(MachineError("session ids do not rise from 1"));
            }
            id_before = id;
            let session = Session::decode(bytes)?;
            if session.last_used_ms > now_ms {
                return Err(MachineError("a session was used after the machine's log time"));
            }
            let bytes_of_results = session.results.values().map(Remembered::encoded_bytes);
            sessions.result_bytes += bytes_of_results.sum::<usize>();
            if sessions.result_bytes > RESULT_BYTES_MAX {
                return Err(MachineError("too many remembered outcomes"));
            }
            sessions.by_use.insert((session.last_used_ms, id));
            sessions.by_id.insert(id, session);
        }
        Ok(sessions)
    }
}

impl Session {
    fn decode(bytes: &mut &[u8]) -> Result<Self, MachineError> {
        let last_used_ms = take_u64(bytes)?;
        let watermark = take_u64(bytes)?;
        if watermark == 0 {
            return Err(MachineError("a watermark is zero"));
        }
        let mut results = BTreeMap::new();
        let mut lowest = watermark;
        for _ in 0..take_u32(bytes)? {
            let sequence = take_u64(bytes)?;
            if sequence < lowest || sequence - watermark >= SEQUENCE_WINDOW {
                return Err(MachineError("remembered sequences do not rise within the window"));
            }
            lowest = sequence.saturating_add(1);
            if results.insert(sequence, Remembered::decode(bytes)?).is_some() {
                return Err(MachineError("a sequence is remembered twice"));
            }
        }
        Ok(Self { last_used_ms, watermark, results })
    }
}

impl Flags {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::One(flag) => flag,
            Self::Many(flags) => flags,
        }
    }
}

impl Remembered {
    fn encoded_bytes(&self) -> usize {
        RESULT_BYTES
            + match self {
                Self::Applied { flags, .. } => flags.as_slice().len(),
                Self::ConditionFailed { .. } => 0,
            }
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::Applied { index, flags } => {
                let of_flag = |flag: &u8| OperationOutcome {
                    version: if flag & FLAG_CHANGED == 0 { 0 } else { *index },
                    existed: flag & FLAG_EXISTED != 0,
                };
                Outcome::Applied(flags.as_slice().iter().map(of_flag).collect())
            }
            Self::ConditionFailed { operation, current_version } => {
                Outcome::ConditionFailed { operation: *operation, current_version: *current_version }
            }
        }
    }

    fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Applied { index, flags } => {
                out.put_u8(RESULT_APPLIED);
                out.put_u64_le(*index);
                out.put_u16_le(flags.as_slice().len() as u16);
                out.put_slice(flags.as_slice());
            }
            Self::ConditionFailed { operation, current_version } => {
                out.put_u8(RESULT_CONDITION_FAILED);
                out.put_u16_le(*operation);
                out.put_u64_le(*current_version);
            }
        }
    }

    fn decode(bytes: &mut &[u8]) -> Result<Self, MachineError> {
        match take::<1>(bytes)?[0] {
            RESULT_APPLIED => {
                let index = take_u64(bytes)?;
                let count = usize::from(u16::from_le_bytes(take(bytes)?));
                if count == 0 || count > OPERATIONS_MAX {
                    return Err(MachineError("a remembered outcome has an impossible number of operations"));
                }
                let (flags, rest) =
                    bytes.split_at_checked(count).ok_or(MachineError("it ends within an outcome"))?;
                *bytes = rest;
                if flags.iter().any(|flag| flag & !(FLAG_EXISTED | FLAG_CHANGED) != 0) {
                    return Err(MachineError("a remembered outcome has an unknown flag"));
                }
                let flags = match flags {
                    [flag] => Flags::One([*flag]),
                    flags => Flags::Many(flags.into()),
                };
                Ok(Self::Applied { index, flags })
            }
            RESULT_CONDITION_FAILED => Ok(Self::ConditionFailed {
                operation: u16::from_le_bytes(take(bytes)?),
                current_version: take_u64(bytes)?,
            }),
            _ => Err(MachineError("a remembered outcome has an unknown kind")),
        }
    }
}

/// Takes the first bytes off `bytes`.
pub(crate) fn take<const LENGTH: usize>(bytes: &mut &[u8]) -> Result<[u8; LENGTH], MachineError> {
    let (first, rest) = bytes.split_first_chunk::<LENGTH>().ok_or(MachineError("it ends early"))?;
    *bytes = rest;
    Ok(*first)
}

/// Takes a little-endian integer off `bytes`.
pub(crate) fn take_u64(bytes: &mut &[u8]) -> Result<u64, MachineError> {
    Ok(u64::from_le_bytes(take(bytes)?))
}

fn take_u32(bytes: &mut &[u8]) -> Result<u32, MachineError> {
    Ok(u32::from_le_bytes(take(bytes)?))
}
