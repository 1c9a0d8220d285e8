//! Raft messages on the wire: `krita_raft::Message` to and from `krita.v1.RaftMessage`, field by field.
//!
//! Large payloads stay slices of the frame they came in.

use bytes::Bytes;
use krita_proto::v1;
use krita_proto::v1::raft_message::Body as Wire;
use krita_raft::{
    AppendAnswer, Body, Entry, EntryKind, Heal, Index, Marks, Message, ReplicaId, Round, SuspectMark, Term,
};

/// An entry's payload: an encoded command, shared and never copied.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(crate) struct Payload(pub(crate) Bytes);

impl krita_raft::Payload for Payload {
    fn length(&self) -> usize {
        self.0.len()
    }

    fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(Bytes::from(bytes))
    }

    fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Payloads below this many bytes are copied out of the frame that they came in.
const UNPINNED_BYTES: usize = 16 * 1024;

/// The wire form of a group's message.
pub(crate) fn encode(shard: u32, message: Message<Payload>) -> v1::RaftMessage {
    let body = match message.body {
        Body::PreVote { last_index, last_term } => {
            Wire::PreVote(v1::RaftVote { last_index: last_index.0, last_term: last_term.0, transfer: false })
        }
        Body::PreVoteReply { granted } => Wire::PreVoteReply(v1::RaftVoteReply { granted }),
        Body::Vote { last_index, last_term, transfer } => {
            Wire::Vote(v1::RaftVote { last_index: last_index.0, last_term: last_term.0, transfer })
        }
        Body::VoteReply { granted } => Wire::VoteReply(v1::RaftVoteReply { granted }),
        Body::Append { previous_index, previous_term, commit, entries, round } => {
            Wire::Append(v1::RaftAppend {
                previous_index: previous_index.0,
                previous_term: previous_term.0,
                commit: commit.0,
                entries: entries.into_iter().map(encode_entry).collect(),
                round: round.0,
            })
        }
        Body::AppendReply { round, answer } => Wire::AppendReply(encode_answer(round, answer)),
        Body::Heartbeat { commit, round } => {
            Wire::Heartbeat(v1::RaftHeartbeat { commit: commit.0, round: round.0 })
        }
        Body::HeartbeatReply { round } => Wire::HeartbeatReply(v1::RaftHeartbeatReply { round: round.0 }),
        Body::TimeoutNow => Wire::TimeoutNow(v1::RaftTimeoutNow {}),
        Body::Quiesce { last_index, last_term } => {
            Wire::Quiesce(v1::RaftQuiesce { last_index: last_index.0, last_term: last_term.0 })
        }
        Body::QuiesceReply { agreed } => Wire::QuiesceReply(v1::RaftQuiesceReply { agreed }),
        Body::Wake => Wire::Wake(v1::RaftWake {}),
    };
    let Marks { life, doubts, suspect, heal } = message.marks;
    v1::RaftMessage {
        shard,
        from: message.from.0,
        to: message.to.0,
        term: message.term.0,
        body: Some(body),
        life,
        doubts,
        suspect: suspect
            .map(|mark| v1::RaftSuspect { nonce: mark.nonce, needs_snapshot: mark.needs_snapshot }),
        heal: heal.map(|heal| v1::RaftHeal { nonce: heal.nonce, through: heal.through.0 }),
    }
}

/// The message behind its wire form; `None` if it is of a kind or shape that this version does not know (a
/// message may always be lost).
pub(crate) fn decode(wire: v1::RaftMessage) -> Option<Message<Payload>> {
    let marks = Marks {
        life: wire.life,
        doubts: wire.doubts,
        suspect: wire
            .suspect
            .map(|mark| SuspectMark { nonce: mark.nonce, needs_snapshot: mark.needs_snapshot }),
        heal: wire.heal.map(|heal| Heal { nonce: heal.nonce, through: Index(heal.through) }),
    };
    let body = match wire.body? {
        Wire::PreVote(vote) => {
            Body::PreVote { last_index: Index(vote.last_index), last_term: Term(vote.last_term) }
        }
        Wire::PreVoteReply(reply) => Body::PreVoteReply { granted: reply.granted },
        Wire::Vote(vote) => Body::Vote {
            last_index: Index(vote.last_index),
            last_term: Term(vote.last_term),
            transfer: vote.transfer,
        },
        Wire::VoteReply(reply) => Body::VoteReply { granted: reply.granted },
        Wire::Append(append) => decode_append(append)?,
        Wire::AppendReply(reply) => decode_answer(reply),
        Wire::Heartbeat(heartbeat) => {
            Body::Heartbeat { commit: Index(heartbeat.commit), round: Round(heartbeat.round) }
        }
        Wire::HeartbeatReply(reply) => Body::HeartbeatReply { round: Round(reply.round) },
        Wire::TimeoutNow(_) => Body::TimeoutNow,
        Wire::Quiesce(quiesce) => {
            Body::Quiesce { last_index: Index(quiesce.last_index), last_term: Term(quiesce.last_term) }
        }
        Wire::QuiesceReply(reply) => Body::QuiesceReply { agreed: reply.agreed },
        Wire::Wake(_) => Body::Wake,
    };
    Some(Message { from: ReplicaId(wire.from), to: ReplicaId(wire.to), term: Term(wire.term), body, marks })
}

/// The number of an entry's kind, in messages and on disk.
pub(crate) fn kind_number(kind: EntryKind) -> u8 {
    match kind {
        EntryKind::Command => 0,
        EntryKind::TermStart => 1,
        EntryKind::Configuration => 2,
    }
}

/// The kind behind a number.
pub(crate) fn kind_of(number: u32) -> Option<EntryKind> {
    match number {
        0 => Some(EntryKind::Command),
        1 => Some(EntryKind::TermStart),
        2 => Some(EntryKind::Configuration),
        _ => None,
    }
}

fn encode_entry(entry: Entry<Payload>) -> v1::RaftEntry {
    v1::RaftEntry { term: entry.term.0, kind: u32::from(kind_number(entry.kind)), payload: entry.payload.0 }
}

fn decode_append(append: v1::RaftAppend) -> Option<Body<Payload>> {
    // Indexes come from a peer: their sum must not overflow.
    append.previous_index.checked_add(append.entries.len() as u64 + 1)?;
    let first = append.previous_index + 1;
    let entries = append.entries.into_iter().zip(first..).map(|(entry, index)| {
        Some(Entry {
            term: Term(entry.term),
            index: Index(index),
            kind: kind_of(entry.kind)?,
            payload: Payload(unpinned(entry.payload)),
        })
    });
    Some(Body::Append {
        previous_index: Index(append.previous_index),
        previous_term: Term(append.previous_term),
        commit: Index(append.commit),
        entries: entries.collect::<Option<Vec<_>>>()?,
        round: Round(append.round),
    })
}

/// A small payload is copied out of its frame: it may stay in memory for long, and would keep the whole frame with it.
fn unpinned(payload: Bytes) -> Bytes {
    match payload.len() < UNPINNED_BYTES {
        true => Bytes::copy_from_slice(&payload),
        false => payload,
    }
}

fn encode_answer(round: Round, answer: AppendAnswer) -> v1::RaftAppendReply {
    match answer {
        AppendAnswer::Accepted { matched } => {
            v1::RaftAppendReply { accepted: true, matched: matched.0, round: round.0, ..Default::default() }
        }
        AppendAnswer::Rejected { rejected_index, hint_index, hint_term } => v1::RaftAppendReply {
            accepted: false,
            rejected_index: rejected_index.0,
            hint_index: hint_index.0,
            hint_term: hint_term.0,
            round: round.0,
            ..Default::default()
        },
    }
}

fn decode_answer(reply: v1::RaftAppendReply) -> Body<Payload> {
    let answer = match reply.accepted {
        true => AppendAnswer::Accepted { matched: Index(reply.matched) },
        false => AppendAnswer::Rejected {
            rejected_index: Index(reply.rejected_index),
            hint_index: Index(reply.hint_index),
            hint_term: Term(reply.hint_term),
        },
    };
    Body::AppendReply { round: Round(reply.round), answer }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_append_survives_the_wire() {
        let entries = vec![
            Entry {
                term: Term(3),
                index: Index(8),
                kind: EntryKind::TermStart,
                payload: Payload(Bytes::new()),
            },
            Entry {
                term: Term(3),
                index: Index(9),
                kind: EntryKind::Command,
                payload: Payload(Bytes::from_static(b"command")),
            },
        ];
        let message = Message {
            from: ReplicaId(1),
            to: ReplicaId(2),
            term: Term(3),
            body: Body::Append {
                previous_index: Index(7),
                previous_term: Term(2),
                commit: Index(6),
                entries,
                round: Round(5),
            },
            marks: Marks::default(),
        };
        assert_eq!(decode(encode(4, message.clone())), Some(message));
    }

    #[test]
    fn the_marks_of_a_suspect_survive_the_wire() {
        let message = Message {
            from: ReplicaId(2),
            to: ReplicaId(1),
            term: Term(3),
            body: Body::HeartbeatReply { round: Round(5) },
            marks: Marks {
                life: u64::MAX,
                doubts: 7,
                suspect: Some(SuspectMark { nonce: 1 << 63, needs_snapshot: true }),
                heal: Some(Heal { nonce: 9, through: Index(1 << 40) }),
            },
        };
        assert_eq!(decode(encode(4, message.clone())), Some(message));
    }

    #[test]
    fn an_append_at_the_end_of_the_numbers_is_refused() {
        let append = v1::RaftAppend {
            previous_index: u64::MAX,
            entries: vec![v1::RaftEntry::default()],
            ..Default::default()
        };
        let wire = v1::RaftMessage { body: Some(Wire::Append(append)), ..Default::default() };
        assert_eq!(decode(wire), None);
        assert_eq!(decode(v1::RaftMessage::default()), None);
    }
}
