//! The replica: what the driver calls. Signatures first; the bodies follow.
#![allow(unused_variables, dead_code)]

use crate::*;

/// One replica of one group.
pub struct Raft<P> {
    phantom: std::marker::PhantomData<P>,
}

impl<P: Payload> Raft<P> {
    /// A replica from its settings and what was restored.
    pub fn new(config: Config, restored: Restored, now: Time) -> Result<Self, ConfigError> {
        unimplemented!()
    }
    /// Lets time pass. Harmless when nothing is due.
    pub fn tick(&mut self, now: Time) {
        unimplemented!()
    }
    /// When `tick` next has something to do.
    pub fn next_tick(&self) -> Time {
        unimplemented!()
    }
    /// Takes in a message.
    pub fn step(&mut self, now: Time, message: Message<P>) {
        unimplemented!()
    }
    /// Appends a command if this replica leads.
    pub fn propose(&mut self, now: Time, payload: P) -> Result<(Term, Index), ProposeError> {
        unimplemented!()
    }
    /// Asks for a linearizable read; the answer comes in `Ready::reads`.
    pub fn read(&mut self, now: Time, token: ReadToken) -> Result<(), ReadError> {
        unimplemented!()
    }
    /// Hands leadership to `to`.
    pub fn transfer_leadership(&mut self, now: Time, to: ReplicaId) -> Result<(), TransferError> {
        unimplemented!()
    }
    /// Campaigns now, by an operator's wish, unless that would break a promise.
    pub fn campaign(&mut self, now: Time) -> Result<(), CampaignError> {
        unimplemented!()
    }
    /// Gives leadership up at once, if this replica leads.
    pub fn step_down(&mut self, now: Time) {
        unimplemented!()
    }
    /// Everything gathered since the last call.
    pub fn ready(&mut self) -> Option<Ready<P>> {
        unimplemented!()
    }
    /// The records of this Ready and of all before it are durable.
    pub fn durable(&mut self, now: Time, ready: ReadyNumber) {
        unimplemented!()
    }
    /// The state machine has applied everything up to `index`.
    pub fn applied(&mut self, now: Time, index: Index) {
        unimplemented!()
    }
    /// Answers a `LogLoad`.
    pub fn log_loaded(&mut self, now: Time, to: ReplicaId, entries: Vec<Entry<P>>) {
        unimplemented!()
    }
    /// A `LogLoad` could not be answered.
    pub fn log_load_failed(&mut self, now: Time, to: ReplicaId) {
        unimplemented!()
    }
    /// The follower has installed a snapshot up to `index`, durably.
    pub fn snapshot_sent(&mut self, now: Time, to: ReplicaId, index: Index) {
        unimplemented!()
    }
    /// The snapshot did not arrive.
    pub fn snapshot_failed(&mut self, now: Time, to: ReplicaId) {
        unimplemented!()
    }
    /// Receiver: whether to install this snapshot. True freezes the log until one of the next two calls.
    pub fn snapshot_begin(&mut self, now: Time, meta: &SnapshotMeta) -> bool {
        unimplemented!()
    }
    /// Receiver: the snapshot begun is durable, and the log on disk is empty behind it.
    pub fn snapshot_installed(&mut self, now: Time, meta: SnapshotMeta) {
        unimplemented!()
    }
    /// Receiver: the snapshot begun will not be installed; nothing on disk has changed.
    pub fn snapshot_abandoned(&mut self, now: Time) {
        unimplemented!()
    }
    /// Everything before `first` was dropped from the log, behind a durable checkpoint.
    pub fn log_truncated_before(&mut self, first: Index) {
        unimplemented!()
    }
    /// The connection to `peer` broke or `peer` cannot be reached: what was on its way may be lost.
    pub fn peer_unreachable(&mut self, now: Time, peer: ReplicaId) {
        unimplemented!()
    }
    /// Ends the silence of an idle group.
    pub fn wake(&mut self, now: Time) {
        unimplemented!()
    }
    /// The core that `peer` lives on is dead.
    pub fn peer_core_died(&mut self, now: Time, peer: ReplicaId) {
        unimplemented!()
    }
    /// What this replica knows.
    pub fn status(&self) -> Status {
        unimplemented!()
    }
    /// The members.
    pub fn configuration(&self) -> &Configuration {
        unimplemented!()
    }
    /// The term of the entry at `index`, if the log reaches there.
    pub fn term_of(&self, index: Index) -> Option<Term> {
        unimplemented!()
    }
    /// Entries from `from` to `through` that are still in memory, as far as they are contiguous from `from`.
    pub fn entries(&self, from: Index, through: Index) -> impl Iterator<Item = &Entry<P>> {
        std::iter::empty()
    }
}
