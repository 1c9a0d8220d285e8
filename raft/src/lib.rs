//! Raft for one group of replicas, as a pure state machine: no I/O, no clock, no randomness, std only.
//!
//! A group keeps one log of entries on several replicas, and agrees on it although replicas crash, pause and lose
//! touch with each other (Ongaro and Ousterhout, "In Search of an Understandable Consensus Algorithm", 2014; Ongaro's
//! thesis of the same year for pre-votes, transfer and leases). Time is cut into *terms*; each has at most one
//! *leader*, which a majority of the voters elected. Only the leader appends. What a majority holds durably is
//! *committed*: no later leader can lack it, so it may be applied to the state machine, in order, on every replica.
//!
//! # The contract
//!
//! The caller, here called the driver, owns disk, network and clock. It feeds in what happened, with the time:
//! [`Raft::step`] for a message, [`Raft::tick`] when [`Raft::next_tick`] has come, [`Raft::propose`],
//! [`Raft::read`], [`Raft::durable`], [`Raft::applied`]. Then it asks [`Raft::ready`] what to do. [`Ready`] is
//! the whole contract: each of its fields says before or after which point of durability it acts.
//!
//! Durability is asynchronous. A Ready's records may be on their way to disk while the next Readies are made, so
//! one slow flush stops neither heartbeats nor the collecting of the next batch. Three rules make that safe:
//!
//! 1. What depends on a record leaves in `messages_after`, once the record is durable: votes, requests for votes
//!    (they claim a term), acknowledgements of entries. All else leaves at once: a leader's appends travel in parallel
//!    with its own write.
//! 2. A replica counts *itself* only once [`Raft::durable`] said so: its own vote, and as leader its own entries. A
//!    leader may commit from a quorum without itself, and then applying waits for its own disk.
//! 3. A truncation takes back what is on its way: a write that completes after its entries were cut off makes nothing
//!    durable.
//!
//! # Elections
//!
//! A follower that hears nothing for between one and two election timeouts first asks whether it could win (a
//! *pre-vote*, which changes nothing anywhere), then enters the next term, votes for itself and asks for votes. A
//! voter votes once in a term, and only for a log at least as long as its own, by (term, index) of the last entry.
//!
//! A voter that has heard a leader helps nobody, itself included, for one election timeout: that is its *promise*. It
//! outlives changes of term. A voter that has just started may have promised something before it stopped, and waits
//! for
//! the longest election timeout. A leader that hears no quorum for an election timeout steps down (*check-quorum*), so
//! the promises cannot keep a useless leader. Only a transfer, which the leader itself asked for, overrides them.
//!
//! # Replication
//!
//! The leader keeps a [`FollowerStatus`] for each other member. It *probes* with one append at a time until it
//! finds where the logs agree, skipping whole terms, then *pipelines* within a window of messages and bytes; if the
//! log
//! no longer reaches back far enough it asks for a *snapshot*. Recent entries are in memory; older ones it asks of the
//! driver ([`LogLoad`]). A lost append shows in a rejection, or in an empty append that follows the next heartbeat's
//! answer. The commit index travels with the next append or heartbeat.
//!
//! A leader opens its term with an entry of its own ([`EntryKind::TermStart`]). Entries of earlier terms are never
//! committed by counting, only together with one of its own; and until that is committed it serves no read, as
//! it cannot know what its predecessor had committed.
//!
//! # Reads
//!
//! A read must show every write that was over when it began. Each broadcast of heartbeats starts a numbered
//! *round*. Once a quorum has answered a round that started after a read arrived, no newer leader had committed
//! anything by then, and the read is served at the commit index of the round's start. A *lease* saves the round trip:
//! the promises behind a quorum's answers to a round hold for an election timeout from when it was *sent*, so for
//! somewhat less than that (clocks drift) nobody else can be leader. There is none while leadership is being
//! handed over, for the rest of the term once a target was told to campaign, in a silent group, and from rounds
//! before a pause of the process. The lease is judged by the time that the caller of [`Raft::read`] gives.
//!
//! # Silence
//!
//! A group in which everything is replicated, committed and applied, and nobody wants anything, may stop talking
//! ([`Config::quiesce_after`]): the leader asks, and when all members have agreed, no timers run. Any message wakes a
//! replica. Since silence then proves nothing, the driver must call [`Raft::peer_core_died`] when it learns, by
//! other means, that the core of a peer is gone or was started anew.
//!
//! # Lost memory
//!
//! All of this rests on disks that keep what they were given. Where one did not, and the driver noticed, the replica
//! is *suspect*: it neither votes nor counts until a leader has shown it what it may have forgotten. The rules, and
//! why
//! they are enough, stand in `suspect.rs`.
//!
//! # Members
//!
//! The members change by entries of the log ([`Raft::propose_configuration`]). A replica goes by the newest
//! configuration in its log from the moment when that is appended, and by the one before again if it is cut off. A new
//! replica is a *learner* first, which counts for nothing, until it follows closely; then it is made a voter,
//! perhaps in place of another, by a *joint* configuration in which every quorum is two majorities, and which the
//! leader leaves by itself. What is refused and why, and how a leader goes that is to be removed, stands in
//! `reconfigure.rs`. The driver keeps the [`Membership`] as of what is applied ([`Raft::applied_membership`]) in its
//! checkpoints and snapshots, and gives it back at the next start together with those of the entries behind it
//! ([`Restored`]).
//!
//! # What is not here
//!
//! Followers serve no linearizable reads. Snapshots are moved by the driver. A disk that forgets unnoticed is beyond
//! help.
//!
//! # Example
//!
//! A group of one, whose disk is instant:
//!
//! ```
//! use krita_raft::*;
//!
//! let now = Time(0);
//! let members = Configuration::new([ReplicaId(1)], []);
//! let mut raft: Raft<Vec<u8>> =
//!     Raft::new(Config::new(ReplicaId(1)), Restored::first_start(members), now)?;
//! raft.tick(now);
//!
//! let mut log = Vec::new();
//! let mut turn = |raft: &mut Raft<Vec<u8>>| {
//!     let mut apply_through = Index(0);
//!     while let Some(ready) = raft.ready() {
//!         log.extend(ready.entries); // Written, then:
//!         raft.durable(now, ready.number);
//!         apply_through = ready.apply_through;
//!     }
//!     raft.applied(apply_through);
//!     log.len()
//! };
//! turn(&mut raft); // Votes for itself; leads once that is durable; opens its term.
//! let (term, index) = raft.propose(now, b"x=1".to_vec())?;
//! assert_eq!((term, index), (Term(1), Index(2)));
//! assert_eq!(turn(&mut raft), 2);
//! assert_eq!(raft.status().applied, Index(2));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod catch_up;
mod config;
mod configuration;
mod core;
mod election;
mod follower;
mod healer;
mod leader;
mod log;
mod membership;
mod message;
mod progress;
mod raft;
mod random;
mod ready;
mod reconfigure;
mod rounds;
mod status;
mod suspect;
mod types;

pub use config::{Config, ConfigError, Restored};
pub use configuration::{Configuration, LEARNERS_MAX, VOTERS_MAX};
pub use membership::Membership;
pub use message::{AppendAnswer, Body, Message};
pub use raft::Raft;
pub use ready::{
    CampaignError, Change, LogLoad, ProposeError, ReadError, ReadOutcome, Ready, SnapshotMeta,
    SnapshotNeeded, TransferError,
};
pub use reconfigure::{ConfigurationChange, ConfigurationError};
pub use status::{FollowerStatus, ReplicationMode, RoleKind, Status};
pub use suspect::{Heal, Marks, SuspectMark, SuspectStatus, Suspicion};
pub use types::{
    Entry, EntryKind, HardState, Index, Payload, Position, ReadToken, ReadyNumber, ReplicaId, Round, Term,
    TermRun, Time,
};
