//! The state of the cluster as one value, and how commands find the code that applies them.

use std::collections::{BTreeMap, BTreeSet};

use krita_raft::ReplicaId;

use crate::identity::{ClusterId, ClusterRecord, NodeUuid};
use crate::meta::access::{Role as AccessRole, Token};
use crate::meta::command::Command;
use crate::meta::job::{Job, JobKind, JobState};
use crate::meta::map::{Replica, Role, Shard, ShardMap, equal_arc_start};
use crate::meta::member::{Member, MemberState, NodeDescription, Tombstone, WEIGHT_DEFAULT};
use crate::meta::refusal::{Effect, Outcome, Refusal};
use crate::meta::settings::{Setting, Settings};
use crate::meta::types::{
    FEATURE_MIN, JOBS_ENDED_MAX, JobNumber, META_SHARD, NodeNumber, ShardNumber, Version, replica_id,
};
use crate::placement::ShardPlacement;

/// What shard 0 replicates.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MetaState {
    pub(crate) cluster_name: String,
    pub(crate) cluster_id: ClusterId,
    /// The index of the last command applied; it only rises, and no version is above it.
    pub(crate) applied_index: u64,
    /// Every member takes part in it.
    pub(crate) feature: u32,
    pub(crate) feature_version: Version,
    /// The last number given to a member; numbers of members and tombstones are at most this.
    pub(crate) nodes_numbered: u32,
    /// The last number given to a job.
    pub(crate) jobs_numbered: u64,
    /// Names, addresses and uuids are distinct among those that are not retired.
    pub(crate) members: BTreeMap<NodeNumber, Member>,
    /// Shares no number and no uuid with `members`.
    pub(crate) tombstones: BTreeMap<NodeNumber, Tombstone>,
    /// The uuids of `tombstones`.
    pub(crate) removed_uuids: BTreeMap<NodeUuid, NodeNumber>,
    /// Names members only.
    pub(crate) map: ShardMap,
    pub(crate) settings: Settings,
    /// At most JOBS_RUNNING_MAX that have not ended, and the last JOBS_ENDED_MAX that have.
    pub(crate) jobs: BTreeMap<JobNumber, Job>,
    pub(crate) roles: BTreeMap<String, AccessRole>,
    /// Refer to roles that exist.
    pub(crate) tokens: BTreeMap<String, Token>,
}

impl MetaState {
    /// The state of a cluster that has just been formed: the same on every node, from the same record. Members are
    /// active; zones, weights and versions of software follow by command.
    ///
    /// # Panics
    /// If the placements are not those of the record.
    pub fn formed(record: &ClusterRecord, placements: &[ShardPlacement]) -> Self {
        let members: BTreeMap<NodeNumber, Member> =
            record.members.iter().map(|member| (NodeNumber(member.number), first_member(member))).collect();
        let mut shards = vec![first_meta_shard(members.keys().copied())];
        let data_shards = record.shard_count;
        assert_eq!(placements.len(), data_shards as usize, "every shard of the record has a placement");
        shards.extend(placements.iter().map(|placement| first_shard(placement, data_shards)));
        let map = ShardMap::new(1, shards).expect("equal arcs and a static placement are a map");
        let mut settings = Settings::default();
        // A small cluster's record holds no more replicas than it has members; the wish may have been for more.
        let factor = u64::from(record.replication_factor);
        let (_, default, _) = Setting::ReplicationFactor.bounds();
        if record.replication_factor < members.len() as u32 || factor > default {
            settings.set.insert(Setting::ReplicationFactor, (factor, Version(0)));
        }
        Self {
            cluster_name: record.cluster_name.clone(),
            cluster_id: record.cluster_id,
            applied_index: 0,
            feature: FEATURE_MIN,
            feature_version: Version(0),
            nodes_numbered: members.keys().last().map_or(0, |number| number.0),
            jobs_numbered: 0,
            members,
            tombstones: BTreeMap::new(),
            removed_uuids: BTreeMap::new(),
            map,
            settings,
            jobs: BTreeMap::new(),
            roles: BTreeMap::new(),
            tokens: BTreeMap::new(),
        }
    }

    /// Applies the command of the entry at `index`.
    ///
    /// # Panics
    /// If `index` does not rise: entries were applied out of order.
    pub fn apply(&mut self, index: u64, command: &Command) -> Outcome {
        assert!(index > self.applied_index, "entry {index} after {}", self.applied_index);
        self.applied_index = index;
        let needed = command.feature();
        if needed > self.feature {
            return Err(Refusal::Feature { needed, active: self.feature });
        }
        let at = Version(index);
        match command {
            Command::Join(join) => self.join(at, join),
            Command::UpdateMember { number, expected, node } => {
                self.update_member(at, *number, *expected, node)
            }
            Command::SetMemberState { number, expected, to } => {
                self.set_member_state(at, *number, *expected, *to)
            }
            Command::ReportDown { number, expected, down_since_ms } => {
                self.report_down(at, *number, *expected, *down_since_ms)
            }
            Command::RemoveMember { number, expected } => self.remove_member(at, *number, *expected),
            Command::SetSetting { setting, value, expected } => {
                self.set_setting(at, *setting, *value, *expected)
            }
            Command::RaiseFeature { to, expected } => self.raise_feature(at, *to, *expected),
            Command::StartChange(start) => self.start_change(at, start),
            Command::RecordConfiguration { shard, configuration_index, replicas } => {
                self.record_configuration(at, *shard, *configuration_index, replicas)
            }
            Command::PreferLeader { shard, expected, replica } => {
                self.prefer_leader(at, *shard, *expected, *replica)
            }
            Command::ReportProgress { job, expected, done } => {
                self.report_progress(at, *job, *expected, *done)
            }
            Command::CancelJob { job, expected } => self.cancel_job(at, *job, *expected),
            Command::FinishJob { job, expected, state, failure } => {
                self.finish_job(at, *job, *expected, (*state, failure))
            }
            Command::PutRole { name, expected, grants } => self.put_role(at, name, *expected, grants),
            Command::DeleteRole { name, expected } => self.delete_role(name, *expected),
            Command::PutToken { name, expected, digest, roles } => {
                self.put_token(at, name, *expected, (digest, roles))
            }
            Command::DeleteToken { name, expected } => self.delete_token(name, *expected),
        }
    }

    /// An entry of shard 0 that carries no command (the start of a term, a configuration).
    ///
    /// # Panics
    /// If `index` does not rise.
    pub fn pass(&mut self, index: u64) {
        assert!(index > self.applied_index, "entry {index} after {}", self.applied_index);
        self.applied_index = index;
    }

    fn set_setting(&mut self, at: Version, setting: Setting, value: u64, expected: Version) -> Outcome {
        check_version(expected, self.settings.version(setting))?;
        if !setting.allows(value) {
            return Err(Refusal::SettingValue { setting, value });
        }
        self.settings.set.insert(setting, (value, at));
        Ok(Effect::Changed)
    }

    fn raise_feature(&mut self, at: Version, to: u32, expected: Version) -> Outcome {
        check_version(expected, self.feature_version)?;
        if to < self.feature {
            return Err(Refusal::Invalid("the feature version never goes back"));
        }
        if to == self.feature {
            return Ok(Effect::Unchanged);
        }
        let members = self.members.values().filter(|member| member.state != MemberState::Retired);
        for node in members.map(|member| &member.node) {
            if to < node.feature_min || to > node.feature_max {
                let (lowest, highest) = (node.feature_min, node.feature_max);
                return Err(Refusal::VersionOutOfBounds { lowest, highest, active: to });
            }
        }
        self.feature = to;
        self.feature_version = at;
        Ok(Effect::Changed)
    }

    /// The cluster's name.
    pub fn cluster_name(&self) -> &str {
        &self.cluster_name
    }

    /// Tells this cluster from every other of its name.
    pub fn cluster_id(&self) -> ClusterId {
        self.cluster_id
    }

    /// The index of the last command applied.
    pub fn applied_index(&self) -> u64 {
        self.applied_index
    }

    /// The feature version in force, and when it was raised.
    pub fn feature(&self) -> (u32, Version) {
        (self.feature, self.feature_version)
    }

    /// All members, by number.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// One member.
    pub fn member(&self, number: NodeNumber) -> Option<&Member> {
        self.members.get(&number)
    }

    /// All that were members once, by number.
    pub fn tombstones(&self) -> impl Iterator<Item = &Tombstone> {
        self.tombstones.values()
    }

    /// The shard map.
    pub fn map(&self) -> &ShardMap {
        &self.map
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Jobs under way, and the last that ended, by number.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.jobs.values()
    }

    /// One job.
    pub fn job(&self, number: JobNumber) -> Option<&Job> {
        self.jobs.get(&number)
    }

    /// A role.
    pub fn role(&self, name: &str) -> Option<&AccessRole> {
        self.roles.get(name)
    }

    /// A token, by its name.
    pub fn token(&self, name: &str) -> Option<&Token> {
        self.tokens.get(name)
    }

    /// About how many bytes of memory the state takes: the map is nearly all of it.
    pub fn memory_bytes(&self) -> usize {
        let text = |node: &NodeDescription| node.node_id.len() + node.address.len() + node.zone.len();
        let members: usize =
            self.members.values().map(|member| size_of::<Member>() + text(&member.node)).sum();
        let jobs = self.jobs.len() * size_of::<Job>();
        self.map.memory_bytes() + members + jobs + self.tombstones.len() * size_of::<Tombstone>()
    }

    /// How many jobs have not ended.
    pub(crate) fn jobs_running(&self) -> usize {
        self.jobs.values().filter(|job| !job.state.has_ended()).count()
    }

    /// Forgets the oldest of the ended jobs beyond what is kept.
    pub(crate) fn forget_old_jobs(&mut self) {
        let ended: Vec<JobNumber> =
            self.jobs.values().filter(|job| job.state.has_ended()).map(|job| job.number).collect();
        for number in ended.iter().take(ended.len().saturating_sub(JOBS_ENDED_MAX)) {
            self.jobs.remove(number);
        }
    }

    /// What breaks an invariant, if anything does. A state that came from commands alone breaks none.
    pub fn fault(&self) -> Option<&'static str> {
        if let Err(fault) = ShardMap::new(self.map.epoch, self.map.shards.clone()) {
            return Some(fault);
        }
        let numbers: BTreeSet<NodeNumber> =
            self.members.keys().chain(self.tombstones.keys()).copied().collect();
        let distinct = numbers.len() == self.members.len() + self.tombstones.len();
        if !distinct || numbers.last().is_some_and(|last| last.0 > self.nodes_numbered) {
            return Some("node numbers are not distinct or above the last one given");
        }
        let alive = || self.members.values().filter(|member| member.state != MemberState::Retired);
        let uuids: BTreeSet<NodeUuid> = self.members.values().map(|member| member.node.node_uuid).collect();
        let names: BTreeSet<&str> = alive().map(|member| member.node.node_id.as_str()).collect();
        let addresses: BTreeSet<&str> = alive().map(|member| member.node.address.as_str()).collect();
        if uuids.len() != self.members.len() || uuids.iter().any(|uuid| self.removed_uuids.contains_key(uuid))
        {
            return Some("a data directory is a member twice, or again");
        }
        if names.len() != alive().count() || addresses.len() != alive().count() {
            return Some("two members share a name or an address");
        }
        if alive()
            .any(|member| self.feature < member.node.feature_min || self.feature > member.node.feature_max)
        {
            return Some("a member does not take part in the feature version");
        }
        if self
            .map
            .shards
            .iter()
            .flat_map(|shard| &shard.replicas)
            .any(|replica| self.member(replica.node()).is_none())
        {
            return Some("the map names who is no member");
        }
        if self.tokens.values().flat_map(|token| &token.roles).any(|role| !self.roles.contains_key(role)) {
            return Some("a token has a role that does not exist");
        }
        self.jobs_fault()
    }

    fn jobs_fault(&self) -> Option<&'static str> {
        let mut changed = 0;
        for job in self.jobs.values().filter(|job| !job.state.has_ended()) {
            match job.kind {
                JobKind::Change(change) => {
                    changed += 1;
                    if self.map.shard(change.shard).and_then(|shard| shard.job) != Some(job.number) {
                        return Some("a shard does not know the job that changes it");
                    }
                }
                JobKind::Drain(node) | JobKind::Decommission(node) => {
                    if self.member(node).is_none() {
                        return Some("a job empties who is no member");
                    }
                }
            }
        }
        if self.map.shards.iter().filter(|shard| shard.job.is_some()).count() != changed {
            return Some("a shard names a job that does not run");
        }
        let numbered = |number: &JobNumber| number.0 <= self.jobs_numbered;
        (!self.jobs.keys().all(numbered)).then_some("a job is above the last number given")
    }
}

/// Compare-and-set: refused unless the sender saw the object as it is.
pub(crate) fn check_version(expected: Version, current: Version) -> Result<(), Refusal> {
    if expected == current { Ok(()) } else { Err(Refusal::Version { expected, current }) }
}

/// A new job, running.
pub(crate) fn new_job(number: JobNumber, version: Version, kind: JobKind, total: u64) -> Job {
    Job { number, version, kind, state: JobState::Running, done: 0, total, failure: String::new() }
}

fn first_member(member: &crate::identity::Member) -> Member {
    Member {
        number: NodeNumber(member.number),
        version: Version(0),
        state: MemberState::Active,
        down_since_ms: 0,
        node: NodeDescription {
            node_id: member.node_id.clone(),
            node_uuid: member.node_uuid,
            address: member.address.clone(),
            zone: String::new(),
            weight: WEIGHT_DEFAULT,
            cores: 1,
            feature_min: FEATURE_MIN,
            feature_max: FEATURE_MIN,
        },
    }
}

/// Every member follows the meta group; the first three (or the first, of two) vote.
fn first_meta_shard(members: impl Iterator<Item = NodeNumber> + Clone) -> Shard {
    let voters = if members.clone().count() >= 3 { 3 } else { 1 };
    let replicas: Vec<Replica> = members
        .enumerate()
        .map(|(position, node)| Replica {
            id: replica_id(META_SHARD, node, 0),
            role: if position < voters { Role::Voter } else { Role::Learner },
        })
        .collect();
    let preferred_leader = replicas[0].id;
    first_replicas(0, replicas, preferred_leader)
}

fn first_shard(placement: &ShardPlacement, data_shards: u32) -> Shard {
    let id = |replica_id: u64| ReplicaId(replica_id);
    let mut replicas: Vec<Replica> = placement
        .replicas
        .iter()
        .map(|replica| Replica { id: id(replica.replica_id), role: Role::Voter })
        .collect();
    let preferred_leader = replicas[0].id;
    replicas.sort_unstable();
    first_replicas(equal_arc_start(ShardNumber(placement.shard), data_shards), replicas, preferred_leader)
}

fn first_replicas(arc_start: u64, replicas: Vec<Replica>, preferred_leader: ReplicaId) -> Shard {
    Shard {
        version: Version(0),
        configuration_index: 0,
        arc_start,
        generation_given: 0,
        generation_seen: 0,
        replicas,
        preferred_leader,
        job: None,
    }
}
