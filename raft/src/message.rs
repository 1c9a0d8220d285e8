//! What replicas of one group say to each other. Mirrors `RaftMessage` in `proto/krita/v1/peer.proto`.
//!
//! Messages may be lost, delayed, duplicated and reordered at will; the protocol is safe under all of it.

use crate::suspect::Marks;
use crate::types::{Entry, Index, ReplicaId, Round, Term};

/// One message from one replica to another of the same group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message<P> {
    /// The sender.
    pub from: ReplicaId,
    /// The receiver; a replica ignores what is not addressed to it.
    pub to: ReplicaId,
    /// The sender's term. Of a [`Body::PreVote`] and its granted reply: the term that the sender would campaign in.
    pub term: Term,
    /// What it says.
    pub body: Body<P>,
    /// What goes with it because replicas may forget.
    pub marks: Marks,
}

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body<P> {
    /// "Would you vote for me in this term?" Changes nothing at the receiver.
    PreVote {
        /// Last index of the sender's log.
        last_index: Index,
        /// Term of that entry.
        last_term: Term,
    },
    /// The answer to a [`Body::PreVote`].
    PreVoteReply {
        /// Granted: the message's term is the one asked for. Refused: the voter's own.
        granted: bool,
    },
    /// "Vote for me."
    Vote {
        /// Last index of the sender's log.
        last_index: Index,
        /// Term of that entry.
        last_term: Term,
        /// The leader asked for this election and has given up its lease for good, so voters need not wait
        /// for its silence.
        transfer: bool,
    },
    /// The answer to a [`Body::Vote`]; leaves only after the vote is durable.
    VoteReply {
        /// Whether the vote was given.
        granted: bool,
    },
    /// Entries, or none, to follow (`previous_index`, `previous_term`).
    Append {
        /// Index of the entry before the first of `entries`.
        previous_index: Index,
        /// Term of that entry.
        previous_term: Term,
        /// The leader's commit index.
        commit: Index,
        /// Contiguous, from `previous_index + 1`.
        entries: Vec<Entry<P>>,
        /// The leader's newest round when this was sent.
        round: Round,
    },
    /// The answer to a [`Body::Append`].
    AppendReply {
        /// The round of the append that is answered.
        round: Round,
        /// What became of it.
        answer: AppendAnswer,
    },
    /// "I lead." Proves nothing about the log but carries the commit index.
    Heartbeat {
        /// min(leader's commit index, what this follower has acknowledged).
        commit: Index,
        /// The round that this heartbeat belongs to.
        round: Round,
    },
    /// The answer to a [`Body::Heartbeat`]: "in your term I follow you". With a higher term than the leader's, and
    /// round 0, it is how a stale leader learns that it is one.
    HeartbeatReply {
        /// The round of the heartbeat that is answered.
        round: Round,
    },
    /// The leader asks the receiver to campaign at once.
    TimeoutNow,
    /// The leader asks to fall silent: everything is replicated, committed and applied.
    Quiesce {
        /// Last index of the leader's log.
        last_index: Index,
        /// Term of that entry.
        last_term: Term,
    },
    /// The answer to a [`Body::Quiesce`].
    QuiesceReply {
        /// The follower has stopped its election timer.
        agreed: bool,
    },
    /// Ends the silence of an idle group at the receiver.
    Wake,
}

/// What became of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendAnswer {
    /// The follower's log is durable and equal to the leader's up to here.
    Accepted {
        /// Up to and with this index.
        matched: Index,
    },
    /// The follower has no entry (`previous_index`, `previous_term`).
    Rejected {
        /// The append's `previous_index`.
        rejected_index: Index,
        /// The last index where the follower's log may still agree with the leader's.
        hint_index: Index,
        /// The follower's term there.
        hint_term: Term,
    },
}
