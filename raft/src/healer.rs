//! The leader's part in healing suspects: whom it believes, and what it tells a suspect to hold. Why that is safe is
//! argued in `suspect.rs`.

use crate::core::Core;
use crate::leader::Leader;
use crate::status::ReplicationMode;
use crate::suspect::{Heal, Marks, SuspectMark};
use crate::types::{EntryKind, Index, Payload, Position, ReplicaId, Round};

/// What a leader knows of a suspect.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Doubted {
    pub(crate) nonce: u64,
    /// The newest round when the leader learnt of it: only answers to later ones tell something of what came after.
    pub(crate) learnt: Round,
    /// The last index of the leader's log when it learnt of it.
    pub(crate) learnt_at: Index,
    /// What it must hold to be whole; `None`: not confirmed yet.
    pub(crate) heal: Option<Index>,
}

impl Leader {
    /// Whether `id` is held for suspect.
    pub(crate) fn doubts(&self, id: ReplicaId) -> bool {
        self.progress.get(&id).is_some_and(|progress| progress.doubted.is_some())
    }

    /// Weighs what goes with an answer, before the answer itself. False if the answer is to be ignored: it was given
    /// before its sender had heard that it is doubted, perhaps before it forgot; or it is what tells of that.
    pub(crate) fn hear_marks<P: Payload>(
        &mut self,
        core: &mut Core<P>,
        from: ReplicaId,
        marks: &Marks,
        round: Round,
    ) -> bool {
        let Some(progress) = self.progress.get_mut(&from) else { return false };
        if marks.doubts != progress.doubts {
            return false;
        }
        match (marks.suspect, progress.doubted) {
            (None, None) => true,
            (Some(mark), Some(doubted)) if mark.nonce == doubted.nonce => {
                if mark.needs_snapshot {
                    self.give_snapshot(core, from, round);
                }
                true
            }
            (Some(mark), _) => {
                self.doubt(core, from, mark);
                false
            }
            // It is whole, holding what it was told to hold. What it said as a suspect and comes later is old news.
            (None, Some(Doubted { heal: Some(_), .. })) => {
                progress.doubted = None;
                progress.doubts += 1;
                core.told.insert(from, (progress.doubts, None));
                true
            }
            // Nobody has healed it: whatever it says, it has not come by its memory honestly.
            (None, Some(Doubted { heal: None, .. })) => false,
        }
    }

    /// `id` is suspect: nothing that was assumed of it holds.
    fn doubt<P: Payload>(&mut self, core: &mut Core<P>, id: ReplicaId, mark: SuspectMark) {
        let learnt = self.rounds.newest();
        let learnt_at = core.log.last();
        let next = learnt_at.next();
        let Some(progress) = self.progress.get_mut(&id) else { return };
        progress.doubts += 1;
        progress.doubted = Some(Doubted { nonce: mark.nonce, learnt, learnt_at, heal: None });
        progress.heard_at = core.now;
        progress.matched = Index(0);
        progress.acknowledged = Round(0);
        progress.snapshot_round = Round(0);
        progress.probe(next);
        progress.catch_up.start_over(core.log.last(), core.now);
        core.told.insert(id, (progress.doubts, None));
        if self.transfer.as_ref().is_some_and(|transfer| transfer.to == id) {
            self.transfer = None;
        }
        if mark.needs_snapshot {
            self.give_snapshot(core, id, Round(1));
        }
        self.wake(core);
        self.confirm_doubts(core);
    }

    /// It says that its state is damaged. One snapshot at a time, and none for an answer that was given before the
    /// last one had been installed.
    fn give_snapshot<P: Payload>(&mut self, core: &mut Core<P>, to: ReplicaId, round: Round) {
        let Some(progress) = self.progress.get_mut(&to) else { return };
        if progress.mode != ReplicationMode::Snapshot && round > progress.snapshot_round {
            progress.snapshot();
            core.need_snapshot(to);
        }
    }

    /// Decides what the suspects must hold, once that is known: when every voter that is not suspect itself has
    /// answered, in this term, a round that began after the last suspicion was learnt, and the suspects are too few
    /// to have decided anything among themselves.
    pub(crate) fn confirm_doubts<P: Payload>(&mut self, core: &mut Core<P>) {
        let doubted: Vec<Doubted> = self.progress.values().filter_map(|progress| progress.doubted).collect();
        let doubted = doubted.into_iter();
        let Some(learnt) = doubted.clone().map(|doubted| doubted.learnt).max() else { return };
        if doubted.clone().all(|doubted| doubted.heal.is_some()) || !self.has_committed_in_term(core) {
            return;
        }
        let is_whole = |id: &ReplicaId| !self.doubts(*id);
        if !core.configuration().meets_every_majority(|id| is_whole(&id)) {
            return;
        }
        // Where the members have ever changed, who may campaign is known only of those that lack a newer entry.
        let has_changed = core.membership().set_by != Position::default();
        let learnt_at = doubted.map(|doubted| doubted.learnt_at).max().filter(|_| has_changed);
        if learnt_at.is_some_and(|learnt_at| core.log.last() <= learnt_at) && self.transfer.is_none() {
            self.append(core, EntryKind::TermStart, P::default());
        }
        let holds = |index: Index| learnt_at.is_none_or(|learnt_at| index > learnt_at);
        let is_whole = |id: &ReplicaId| !self.doubts(*id);
        let confirmed = core.configuration().all_voters().filter(is_whole).all(|id| match id == core.id() {
            true => holds(core.log.durable()),
            false => self
                .progress
                .get(&id)
                .is_some_and(|progress| progress.acknowledged > learnt && holds(progress.matched)),
        });
        if !confirmed {
            return;
        }
        let through = core.log.commit();
        for (id, progress) in &mut self.progress {
            if let Some(doubted) = &mut progress.doubted
                && doubted.heal.is_none()
            {
                doubted.heal = Some(through);
                core.told.insert(*id, (progress.doubts, Some(Heal { nonce: doubted.nonce, through })));
            }
        }
    }
}
