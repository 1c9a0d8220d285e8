//! The members that a node knows of, without itself, and in which order it probes them.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};

use krita_runtime::Instant;

use super::member::{Change, Member, NodeUuid, Record, State, VitalsNews};
use super::options::Options;
use super::random::Random;

/// All members by uuid, gone ones included.
#[derive(Clone, Debug)]
pub(super) struct Table {
    me: NodeUuid,
    members: BTreeMap<NodeUuid, Member>,
    /// Each member that is not gone stands here once; probed from the end, shuffled when all had their turn.
    order: Vec<NodeUuid>,
    next: usize,
    /// How many are not gone.
    present: usize,
}

impl Table {
    pub(super) fn new(me: NodeUuid) -> Self {
        Self { me, members: BTreeMap::new(), order: Vec::new(), next: 0, present: 0 }
    }

    pub(super) fn get(&self, uuid: NodeUuid) -> Option<&Member> {
        self.members.get(&uuid)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// Those behind this one.
    pub(super) fn behind(&self, after: Option<NodeUuid>) -> impl Iterator<Item = &Member> {
        let from = after.map_or(Unbounded, Excluded);
        self.members.range((from, Unbounded)).map(|(_, member)| member)
    }

    /// Nodes in the cluster that are not gone, this one included.
    pub(super) fn nodes(&self) -> usize {
        self.present + 1
    }

    /// Uuids of members in these states, in order.
    pub(super) fn in_states(&self, states: &[State]) -> Vec<NodeUuid> {
        let wanted = |member: &&Member| states.contains(&member.state);
        self.members.values().filter(wanted).map(|member| member.uuid).collect()
    }

    /// Takes a record in. `None`: it tells of a node that is too long gone, or the table is full.
    pub(super) fn merge(
        &mut self,
        now: Instant,
        record: &Record,
        options: &Options,
        random: &mut Random,
    ) -> Option<Change> {
        debug_assert_ne!(record.uuid, self.me);
        let Some(member) = self.members.get_mut(&record.uuid) else {
            return self.insert(now, record, options, random);
        };
        let was_gone = member.state.is_gone();
        let change = member.merge(now, record);
        match (was_gone, member.state.is_gone()) {
            (false, true) => self.present -= 1,
            (true, false) => self.schedule(record.uuid, random),
            (false, false) | (true, true) => {}
        }
        Some(change)
    }

    fn insert(
        &mut self,
        now: Instant,
        record: &Record,
        options: &Options,
        random: &mut Random,
    ) -> Option<Change> {
        let gone = record.state.is_gone();
        if gone && record.gone_for >= options.remember_gone {
            return None;
        }
        if self.members.len() >= options.members_max && (gone || !self.forget_oldest_gone()) {
            return None;
        }
        self.members.insert(record.uuid, Member::new(now, record));
        if !gone {
            self.schedule(record.uuid, random);
        }
        Some(Change { before: None, standing: true, profile: true, vitals: true, stale: false })
    }

    /// Puts a member that is there (again) at a random place of the order.
    fn schedule(&mut self, uuid: NodeUuid, random: &mut Random) {
        self.present += 1;
        // It may stand there still if it was gone for a short time only.
        if !self.order.contains(&uuid) {
            let at = random.below(self.order.len() + 1);
            self.order.insert(at, uuid);
        }
    }

    fn forget_oldest_gone(&mut self) -> bool {
        let gone = self.members.values().filter_map(|member| Some((member.gone_at?, member.uuid)));
        let Some((_, oldest)) = gone.min() else { return false };
        self.members.remove(&oldest);
        true
    }

    /// Forgets who has been gone for longer than they are remembered.
    pub(super) fn forget(&mut self, now: Instant, options: &Options) -> Vec<NodeUuid> {
        let expired = |member: &&Member| {
            member.gone_at.is_some_and(|gone_at| now.since(gone_at) >= options.remember_gone)
        };
        let expired: Vec<NodeUuid> =
            self.members.values().filter(expired).map(|member| member.uuid).collect();
        for uuid in &expired {
            self.members.remove(uuid);
        }
        expired
    }

    pub(super) fn merge_vitals(&mut self, news: &VitalsNews) -> bool {
        self.members.get_mut(&news.uuid).is_some_and(|member| member.merge_vitals(news.vitals))
    }

    /// There was a message from it.
    pub(super) fn heard(&mut self, uuid: NodeUuid, now: Instant) {
        if let Some(member) = self.members.get_mut(&uuid) {
            member.heard_at = Some(now);
        }
    }

    /// A probe of it was answered: to this node itself, or to a helper only.
    pub(super) fn reached(&mut self, uuid: NodeUuid, directly: bool, now: Instant) {
        if let Some(member) = self.members.get_mut(&uuid) {
            member.unreached_since = (!directly).then(|| member.unreached_since.unwrap_or(now));
        }
    }

    /// The next to probe: each in turn, in an order that changes from round to round.
    pub(super) fn next_in_turn(&mut self, random: &mut Random) -> Option<NodeUuid> {
        for _ in 0..2 {
            while let Some(&uuid) = self.order.get(self.next) {
                self.next += 1;
                if self.members.get(&uuid).is_some_and(|member| !member.state.is_gone()) {
                    return Some(uuid);
                }
            }
            let members = &self.members;
            self.order.retain(|uuid| members.get(uuid).is_some_and(|member| !member.state.is_gone()));
            let all = self.order.len();
            random.choose(&mut self.order, all);
            self.next = 0;
        }
        None
    }

    /// The next alive member on the ring of uuids: each node has one that watches it, all the time.
    pub(super) fn next_on_ring(&self) -> Option<NodeUuid> {
        let behind = self.members.range((Excluded(self.me), Unbounded));
        let from_start = self.members.range(..self.me);
        let alive = |member: &&Member| member.state == State::Alive;
        behind.chain(from_start).map(|(_, member)| member).find(alive).map(|member| member.uuid)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::member::{Profile, StampedVitals};
    use super::*;

    fn record(random: &mut Random) -> Record {
        let states = [State::Alive, State::Suspect, State::Dead, State::Left];
        Record {
            uuid: NodeUuid([1 + u8::try_from(random.below(12)).expect("few"); 16]),
            incarnation: random.next() % 4,
            state: states[random.below(4)],
            profile: Arc::new(Profile { address: "a:1".into(), ..Profile::default() }),
            vitals: StampedVitals::default(),
            accusers: Vec::new(),
            gone_for: Duration::from_secs(random.next() % 100),
        }
    }

    fn check(table: &Table) {
        let present = table.members.values().filter(|member| !member.state.is_gone()).count();
        assert_eq!(present, table.present, "the count is of those that are not gone");
        for member in table.members.values().filter(|member| !member.state.is_gone()) {
            let times = table.order.iter().filter(|uuid| **uuid == member.uuid).count();
            assert_eq!(times, 1, "each has its turn once");
        }
    }

    #[test]
    fn each_has_its_turn_once_a_round() {
        for seed in 0..200 {
            let mut random = Random::new(seed);
            let mut table = Table::new(NodeUuid([0; 16]));
            let options =
                Options { members_max: 8, remember_gone: Duration::from_secs(60), ..Options::default() };
            for second in 0..200 {
                let now = Instant::from_nanoseconds(second * 1_000_000_000);
                let told = record(&mut random);
                table.merge(now, &told, &options, &mut random);
                if random.below(4) == 0 {
                    table.next_in_turn(&mut random);
                }
                if random.below(10) == 0 {
                    table.forget(now, &options);
                }
                assert!(table.members.len() <= options.members_max, "seed {seed}: the table is bounded");
                check(&table);
            }
            // Once round, whatever came before.
            let all = table.nodes() - 1;
            let mut seen: Vec<NodeUuid> = Vec::new();
            for _ in 0..all * 2 {
                seen.extend(table.next_in_turn(&mut random));
            }
            let wanted = table.in_states(&[State::Alive, State::Suspect]);
            assert!(
                wanted.iter().all(|uuid| seen.contains(uuid)),
                "seed {seed}: everybody within two rounds"
            );
        }
    }
}
