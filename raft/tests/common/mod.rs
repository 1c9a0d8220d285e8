//! A driver as the contract wants it, over a disk that exists only in memory: what the scripts and the simulated
//! group have in common. A crash loses what was not durable; a Ready's records become durable as one unit, in order.
#![allow(dead_code)]

use std::collections::VecDeque;

use krita_raft::*;

/// What a state machine holds: the command at each index it has applied, and so a register, the last of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Machine {
    /// Who the members are as of what is applied.
    pub(crate) membership: Membership,
    pub(crate) applied: Index,
    pub(crate) applied_term: Term,
    /// The index of the last command.
    pub(crate) register: Index,
    /// Folds everything applied, so that machines compare.
    pub(crate) digest: u64,
}

impl Machine {
    pub(crate) fn apply(&mut self, entry: &Entry<Vec<u8>>) {
        assert_eq!(entry.index, self.applied.next(), "entries are applied in order");
        self.applied = entry.index;
        self.applied_term = entry.term;
        match entry.kind {
            EntryKind::Command => self.register = entry.index,
            EntryKind::TermStart => {}
            EntryKind::Configuration => self.membership = membership_of(entry),
        }
        for byte in entry.payload.iter().chain(&entry.term.0.to_le_bytes()) {
            self.digest = (self.digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    pub(crate) fn position(&self) -> Position {
        Position { index: self.applied, term: self.applied_term }
    }

    pub(crate) fn meta(&self) -> SnapshotMeta {
        SnapshotMeta { position: self.position(), membership: self.membership.clone() }
    }
}

/// What a configuration entry sets.
pub(crate) fn membership_of(entry: &Entry<Vec<u8>>) -> Membership {
    let configuration = Configuration::decode(&entry.payload).expect("what is in the log is well-formed");
    Membership { configuration, set_by: entry.position() }
}

/// What a crash leaves.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    pub(crate) hard_state: HardState,
    /// The entry before the first of `entries`.
    pub(crate) start: Position,
    pub(crate) entries: Vec<Entry<Vec<u8>>>,
    /// A checkpoint; `start.index <= checkpoint.applied`.
    pub(crate) checkpoint: Machine,
    pub(crate) has_run: bool,
    /// The flag of a replica that may have forgotten something.
    pub(crate) suspect: Option<Suspicion>,
}

impl Disk {
    pub(crate) fn last(&self) -> Index {
        Index(self.start.index.0 + self.entries.len() as u64)
    }

    pub(crate) fn entry(&self, index: Index) -> Option<&Entry<Vec<u8>>> {
        self.entries.get(index.0.checked_sub(self.start.index.0 + 1)? as usize)
    }

    pub(crate) fn truncate(&mut self, after: Index) {
        self.entries.truncate(after.0.saturating_sub(self.start.index.0) as usize);
    }

    /// Whether a crash now would leave `entry`, or a state that contains it.
    pub(crate) fn holds(&self, index: Index, term: Term) -> bool {
        index <= self.start.index || self.entry(index).is_some_and(|entry| entry.term == term)
    }

    /// The newest configuration on it.
    pub(crate) fn configuration(&self) -> Configuration {
        let mut entries = self.entries.iter().rev();
        let newest = entries.find(|entry| entry.kind == EntryKind::Configuration).map(membership_of);
        newest.unwrap_or_else(|| self.checkpoint.membership.clone()).configuration
    }

    fn term_runs(&self) -> Vec<TermRun> {
        let mut runs: Vec<TermRun> = Vec::new();
        for entry in &self.entries {
            if runs.last().is_none_or(|run| run.term != entry.term) {
                runs.push(TermRun { first: entry.index, term: entry.term });
            }
        }
        runs
    }

    pub(crate) fn restored(&self) -> Restored {
        let behind = self.entries.iter().filter(|entry| entry.index > self.checkpoint.applied);
        let configurations = behind.filter(|entry| entry.kind == EntryKind::Configuration);
        Restored {
            hard_state: self.hard_state,
            membership: self.checkpoint.membership.clone(),
            memberships_behind: configurations.map(membership_of).collect(),
            log_start: self.start,
            terms: self.term_runs(),
            last: self.last(),
            applied: self.checkpoint.applied,
            may_have_run_before: self.has_run,
            suspect: self.suspect,
        }
    }
}

/// Records on their way to the disk, and what may leave once they are there.
pub(crate) struct Write {
    pub(crate) number: ReadyNumber,
    pub(crate) hard_state: Option<HardState>,
    pub(crate) truncate_after: Option<Index>,
    pub(crate) entries: Vec<Entry<Vec<u8>>>,
    pub(crate) messages_after: Vec<Message<Vec<u8>>>,
}

impl Write {
    pub(crate) fn has_records(&self) -> bool {
        self.hard_state.is_some() || self.truncate_after.is_some() || !self.entries.is_empty()
    }
}

/// A replica with its disk and state machine.
pub(crate) struct Replica {
    pub(crate) id: ReplicaId,
    pub(crate) raft: Raft<Vec<u8>>,
    pub(crate) disk: Disk,
    pub(crate) writes: VecDeque<Write>,
    pub(crate) machine: Machine,
    pub(crate) apply_through: Index,
}

impl Replica {
    /// `configuration` is what the replica was created with, and counts if its disk knows nothing newer.
    pub(crate) fn start(config: Config, configuration: Configuration, mut disk: Disk, now: Time) -> Self {
        let id = config.id;
        if disk.checkpoint.membership == Membership::default() {
            disk.checkpoint.membership.configuration = configuration;
        }
        let restored = disk.restored();
        let raft = Raft::new(config, restored, now).expect("the disk is consistent");
        let machine = disk.checkpoint.clone();
        let apply_through = machine.applied;
        disk.has_run = true;
        Replica { id, raft, disk, writes: VecDeque::new(), machine, apply_through }
    }

    /// Queues the records of a Ready behind those before it, with what must wait for them.
    pub(crate) fn take_records(&mut self, ready: &mut Ready<Vec<u8>>) {
        assert!(ready.apply_through >= self.apply_through, "apply_through never decreases");
        assert!(ready.apply_through <= ready.commit);
        self.apply_through = ready.apply_through;
        self.writes.push_back(Write {
            number: ready.number,
            hard_state: ready.hard_state.take(),
            truncate_after: ready.truncate_after.take(),
            entries: std::mem::take(&mut ready.entries),
            messages_after: std::mem::take(&mut ready.messages_after),
        });
    }

    /// The oldest queued records reach the disk.
    pub(crate) fn complete_write(&mut self) -> Option<Write> {
        let mut write = self.writes.pop_front()?;
        if let Some(hard_state) = write.hard_state {
            let before = self.disk.hard_state;
            assert!(hard_state.term >= before.term);
            assert!(hard_state.commit >= before.commit || self.disk.suspect.is_some());
            assert!(
                hard_state.term > before.term || before.vote.is_none() || hard_state.vote == before.vote,
                "a vote is given once in a term"
            );
            self.disk.hard_state = hard_state;
        }
        if let Some(after) = write.truncate_after {
            assert!(after >= self.disk.checkpoint.applied, "a checkpoint is never truncated");
            self.disk.truncate(after);
        }
        for entry in std::mem::take(&mut write.entries) {
            assert_eq!(entry.index, self.disk.last().next(), "the log on disk has no gaps");
            self.disk.entries.push(entry);
        }
        Some(write)
    }

    /// The disk as it will be once all that is on its way has arrived.
    pub(crate) fn disk_soon(&self) -> Disk {
        let mut disk = self.disk.clone();
        for write in &self.writes {
            if let Some(after) = write.truncate_after {
                disk.truncate(after);
            }
            disk.entries.extend(write.entries.iter().cloned());
        }
        disk
    }

    /// Applies all that may be applied; returns what was.
    pub(crate) fn apply(&mut self) -> Vec<Entry<Vec<u8>>> {
        let mut applied = Vec::new();
        if self.disk.suspect == Some(Suspicion::NeedsSnapshot) {
            return applied;
        }
        while self.machine.applied < self.apply_through {
            let index = self.machine.applied.next();
            let entry = self.disk.entry(index).expect("only what is durable here is applied").clone();
            self.machine.apply(&entry);
            applied.push(entry);
        }
        if !applied.is_empty() {
            self.raft.applied(self.machine.applied);
            assert_eq!(*self.raft.applied_membership(), self.machine.membership);
        }
        applied
    }

    /// Writes a checkpoint, and drops the log before it but for `keep` entries.
    pub(crate) fn checkpoint(&mut self, keep: u64) {
        if self.disk.suspect == Some(Suspicion::NeedsSnapshot) {
            return;
        }
        self.disk.checkpoint = self.machine.clone();
        let first = Index((self.machine.applied.0 + 1).saturating_sub(keep).max(self.disk.start.index.0 + 1));
        let before = first.previous();
        if before > self.disk.start.index {
            let term = self.disk.entry(before).expect("what is applied is in the log").term;
            let drop = (before.0 - self.disk.start.index.0) as usize;
            self.disk.entries.drain(..drop);
            self.disk.start = Position { index: before, term };
            self.raft.log_truncated_before(first);
        }
    }

    /// A snapshot that was begun replaces log and state, as one unit.
    pub(crate) fn install(&mut self, machine: Machine, now: Time) {
        assert!(self.writes.is_empty(), "records of earlier Readies are written first");
        self.disk.start = machine.position();
        self.disk.entries.clear();
        self.disk.checkpoint = machine.clone();
        self.disk.suspect = self.disk.suspect.map(|_| Suspicion::Forgetful);
        self.raft.snapshot_installed(now, machine.meta());
        self.apply_through = machine.applied;
        self.machine = machine;
    }

    /// The driver takes note, durably, that this replica is whole again.
    pub(crate) fn trusted(&mut self) {
        if self.raft.status().suspect.is_none() {
            self.disk.suspect = None;
        }
    }

    /// What the log on disk, or on its way there, holds for a [`LogLoad`].
    pub(crate) fn load(&self, load: &LogLoad) -> Vec<Entry<Vec<u8>>> {
        let mut bytes = 0;
        let mut entries = Vec::new();
        for index in load.from.0..=load.through.0 {
            let Some(entry) = self.disk.entry(Index(index)) else { break };
            bytes += entry.cost();
            if !entries.is_empty() && bytes > load.bytes_max {
                break;
            }
            entries.push(entry.clone());
        }
        entries
    }
}
