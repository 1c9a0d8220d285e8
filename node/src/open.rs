//! Opening a core's logs and bringing its replicas to life.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use krita_engine::{CheckpointMeta, LogId, NewShard, RecoveredShard, ShardId, Store};
use krita_proto::v1;
use krita_raft::{
    Configuration, EntryKind, HardState, Index, Membership, Position, Raft, ReplicaId, Restored, Term,
    TermRun,
};
use krita_runtime::{Runtime, TaskClass};

use crate::cluster::{Cluster, META_LOG};
use crate::command;
use crate::config::Config;
use crate::core::{Core, NodeFailure, Serving};
use crate::emit::{LogWriter, OpenedLog};
use crate::lost_logs;
use crate::mending::Source;
use crate::meta::{META_SHARD, shard_of};
use crate::ownership::{self, meta_marker};
use crate::replica::{Replica, ReplicaParts, raft_time};
use crate::shard_machine::ShardMachine;
use crate::suspicion::Doubt;
use crate::wire;

/// How a log of this node is opened.
pub(crate) fn log_options(config: &Config, log: u16, logs_total: u16) -> krita_engine::Options {
    let mut options = krita_engine::Options::new(log_directory(config, log), LogId(log));
    options.segment_bytes = u32::try_from(config.segment_bytes).expect("bounded by the configuration");
    let share = |bytes: u64| usize::try_from(bytes / u64::from(logs_total.max(1))).unwrap_or(usize::MAX);
    options.value_cache_bytes = share(config.value_cache_bytes);
    options.memtable_bytes = share(config.memtable_bytes);
    options.block_cache_bytes = share(config.block_cache_bytes);
    options.filter_bytes = share(config.filter_bytes);
    options.reserve_bytes = config.disk_reserve_bytes;
    options.regions_of = Some(regions_of);
    options.checkpoint_after_bytes = config.checkpoint_after_bytes;
    // Small segments want small batches, and a batch must hold two pieces and a block.
    options.batch_bytes_max = options.batch_bytes_max.min(options.segment_bytes / 4);
    options.piece_bytes = options.piece_bytes.min(options.batch_bytes_max / 4);
    options
}

/// What an entry of the log puts, for the engine when it moves values.
fn regions_of(kind: u8, payload: &[u8]) -> Vec<krita_engine::KeyRegion> {
    match wire::kind_of(u32::from(kind)) {
        Some(EntryKind::Command) => command::regions_of(payload),
        Some(EntryKind::TermStart | EntryKind::Configuration) | None => Vec::new(),
    }
}

pub(crate) fn log_directory(config: &Config, log: u16) -> PathBuf {
    config.data_directory.join(format!("log-{log:03}"))
}

/// A shard of a log that was opened.
pub(crate) struct Opened {
    pub(crate) shard: RecoveredShard,
    /// This process has created it: no replica of that number has ever spoken to anybody.
    pub(crate) is_new: bool,
}

impl<R: Runtime> Core<R> {
    /// Opens the logs of this core, and starts its replicas and their background work.
    pub(crate) async fn open(self: &Rc<Self>, cluster: Arc<Cluster>) -> Result<(), NodeFailure> {
        let here = self.runtime.core();
        let mut logs = Vec::new();
        let mut replicas = BTreeMap::new();
        for log in (0..cluster.logs_total).filter(|log| cluster.core_of_log(*log) == here) {
            let (opened, recovered) = self.open_log(&cluster, log).await?;
            let store = opened.store.clone();
            for Opened { shard, is_new } in recovered {
                let behind = memberships_behind(&store, &shard).await?;
                let replica = self.restore(&cluster, &store, logs.len(), Opened { shard, is_new }, behind)?;
                if let Some(doubt) = &replica.doubt {
                    tracing::error!(shard = replica.shard, reason = doubt.reason, "this replica is suspect");
                    self.tell_lost(&replica);
                }
                replicas.insert(replica.shard, replica);
            }
            logs.push(LogWriter::new(opened));
        }
        tracing::info!(core = here.0, logs = logs.len(), shards = replicas.len(), "serving");
        self.recall_logs().await;
        self.peers.begin(&cluster);
        let notes = cluster.noted.of(|shard| cluster.core_of(shard) == Some(here));
        let departed = BTreeMap::new();
        *self.serving.borrow_mut() = Some(Serving { cluster, logs, replicas, notes, departed });
        // What another core's replica of shard 0 said before this core served, or what this one's knows from its disk.
        self.take_meta_state();
        self.publish_meta_state();
        self.publish_log_marks();
        *self.forming_status.borrow_mut() = ("serving".to_owned(), Vec::new());
        self.start_background();
        Ok(())
    }

    /// Opens one log and makes its shards what the ownership says: new ones are created, foreign ones removed.
    async fn open_log(
        &self,
        cluster: &Cluster,
        log: u16,
    ) -> Result<(OpenedLog<R>, Vec<Opened>), NodeFailure> {
        let config = &self.input.config;
        let (store, recovered, is_set_aside) = lost_logs::open(&self.runtime, config, cluster, log).await?;
        let found = store.found_mark();
        let mut mine = BTreeMap::new();
        for shard in recovered {
            let number = shard.shard.0;
            let is_held = cluster.noted.held(number) == Some(ReplicaId(shard.replica.0));
            if cluster.log_of(number) == Some(log) && is_held {
                mine.insert(number, Opened { shard, is_new: false });
            } else {
                // Left over from a handoff to another log, which owns it now. Or from a replica that was removed, or
                // was being made and has not said a word.
                tracing::info!(log, shard = number, "removing what belongs elsewhere, or to nobody");
                store.remove_shard(shard.shard).await.map_err(|error| failure(log, &error))?;
            }
        }
        let missing: Vec<u32> = cluster.shards_of(log).filter(|shard| !mine.contains_key(shard)).collect();
        let marker = ownership::marker(config, log);
        let is_marked = ownership::exists(&self.runtime, &marker).await;
        let gains_meta = log == META_LOG && !ownership::exists(&self.runtime, &meta_marker(config)).await;
        let lacks_shards = missing.iter().any(|shard| *shard != META_SHARD.0 || !gains_meta);
        if !missing.is_empty() {
            if is_marked && lacks_shards {
                let reason = lost_logs::missing_reason(log, &missing);
                lost_logs::refuse_if_alone(cluster, log, &reason)?;
                tracing::error!(log, ?missing, "{reason}; their leaders fill them anew");
                lost_logs::make_note(&self.runtime, config, log, &reason).await?;
            }
            self.create_shards(cluster, log, &store, missing, &mut mine).await?;
        }
        if !is_marked {
            // Also if the shards were here: a start may have ended between creating them and this.
            ownership::mark_created(&self.runtime, &marker).await?;
        }
        if gains_meta {
            ownership::mark_created(&self.runtime, &meta_marker(config)).await?;
        }
        let shards = mine.values_mut().map(|opened| &mut opened.shard);
        lost_logs::act_on_note(&self.runtime, config, log, &store, shards).await?;
        let was_replaced = is_set_aside || (is_marked && lacks_shards);
        Ok((OpenedLog { store, number: log, found, was_replaced }, mine.into_values().collect()))
    }

    /// Creates the shards of a log at its very first opening, or those that were lost since: a replica that forgot
    /// what it acknowledged must not vote, which is noted before.
    async fn create_shards(
        &self,
        cluster: &Cluster,
        log: u16,
        store: &Store<R>,
        missing: Vec<u32>,
        mine: &mut BTreeMap<u32, Opened>,
    ) -> Result<(), NodeFailure> {
        let held = missing.iter().filter_map(|shard| cluster.noted.held(*shard));
        let fresh: Vec<NewShard> = held.filter_map(|replica| new_shard(cluster, replica)).collect();
        for shard in &fresh {
            mine.insert(shard.shard.0, Opened { shard: recovered_fresh(shard), is_new: true });
        }
        store.create_shards(fresh).await.map_err(|error| failure(log, &error))
    }

    /// Brings a shard of a log to life.
    pub(crate) fn restore(
        &self,
        cluster: &Cluster,
        store: &Store<R>,
        log: usize,
        opened: Opened,
        memberships_behind: Vec<Membership>,
    ) -> Result<Replica<R>, NodeFailure> {
        let Opened { shard: recovered, is_new } = opened;
        let shard = recovered.shard.0;
        let bad = |what: &str| NodeFailure(format!("the checkpoint of shard {shard} holds no valid {what}"));
        let doubt = recovered.suspect.as_deref();
        let doubt = doubt.map(|reason| Doubt::restored(reason, recovered.state_damaged));
        // Where a snapshot is to replace the state, it need not make sense.
        let is_quarantined = doubt.as_ref().is_some_and(|doubt| doubt.is_quarantined);
        let membership = match Membership::decode(&recovered.checkpoint.configuration) {
            Some(membership) => membership,
            None if is_quarantined => first_membership(cluster, ReplicaId(recovered.replica.0)),
            None => return Err(bad("membership")),
        };
        let machine = match ShardMachine::decode(shard, &recovered.checkpoint.machine) {
            Ok(machine) => machine,
            Err(_) if is_quarantined => ShardMachine::first(cluster, shard),
            Err(_) => return Err(bad("state machine")),
        };
        let config =
            raft_config(&self.input.config, ReplicaId(recovered.replica.0), self.runtime.random_u64());
        let applied = Index(recovered.checkpoint.applied.0);
        let applied_term = Term(recovered.checkpoint.term.0);
        let restored = Restored {
            hard_state: HardState {
                term: Term(recovered.hard_state.term.0),
                vote: recovered.hard_state.vote.map(ReplicaId),
                commit: Index(recovered.hard_state.commit.0),
            },
            membership,
            memberships_behind,
            log_start: Position { index: applied, term: applied_term },
            terms: recovered
                .terms
                .iter()
                .map(|(first, term)| TermRun { first: Index(first.0), term: Term(term.0) })
                .collect(),
            last: Index(recovered.last_index.0),
            applied,
            // An empty hard state proves nothing: a heartbeat is answered, and a lease rests on that answer,
            // before the term that came with it is durable.
            may_have_run_before: !is_new,
            suspect: doubt.as_ref().map(Doubt::suspicion),
        };
        let raft = Raft::new(config, restored, raft_time(self.runtime.now()))
            .map_err(|error| NodeFailure(format!("shard {shard} cannot start: {error}")))?;
        Ok(Replica::new(ReplicaParts {
            shard,
            log,
            raft,
            machine,
            source: Source {
                runtime: self.runtime.clone(),
                store: store.clone(),
                shard: recovered.shard,
                peers: self.peers.clone(),
                others: RefCell::default(),
                counters: self.counters.clone(),
                views: self.views.clone(),
            },
            now: self.runtime.now(),
            served_by: v1::ServedBy {
                shard,
                node_number: cluster.node_number,
                core: u32::from(self.runtime.core().0),
                epoch: cluster.epoch(),
            },
            applied,
            applied_term,
            generation: recovered.checkpoint.generation,
            doubt,
            shard_count: cluster.shard_count(),
        }))
    }

    fn start_background(self: &Rc<Self>) {
        let core = self.clone();
        self.runtime.spawn(TaskClass::Foreground, "tick", core.tick());
        let core = self.clone();
        self.runtime.spawn(TaskClass::Background, "checkpoint", core.checkpoint_when_due());
        let core = self.clone();
        self.runtime.spawn(TaskClass::Foreground, "room", core.watch_room());
        let core = self.clone();
        self.runtime.spawn(TaskClass::Background, "memory", core.keep_memory());
        let core = self.clone();
        self.runtime.spawn(TaskClass::Background, "compare", core.compare_replicas());
        let core = self.clone();
        self.runtime.spawn(TaskClass::Background, "ask-membership", core.ask_whether_removed());
        if self.is_first() {
            let core = self.clone();
            self.runtime.spawn(TaskClass::Foreground, "lead", core.lead_meta_group());
            let core = self.clone();
            self.runtime.spawn(TaskClass::Background, "describe", core.describe_itself());
        }
        let guard = self.serving.borrow();
        let logs = guard.as_ref().map(|serving| serving.logs.iter()).into_iter().flatten();
        for (position, log) in logs.enumerate() {
            let damages = self.clone().watch_damages(log.store.clone());
            self.runtime.spawn(TaskClass::Background, "damages", damages);
            let scrub = self.clone().scrub_log(log.store.clone(), position);
            self.runtime.spawn(TaskClass::Background, "scrub", scrub);
        }
        drop(guard);
        let core = self.clone();
        self.runtime.spawn(TaskClass::Foreground, "balance", core.balance_leaders());
        // Replicas that may lead at once (a group of one) have something to do.
        let mut guard = self.serving.borrow_mut();
        if let Some(serving) = guard.as_mut() {
            for replica in serving.replicas.values_mut() {
                self.touch(replica);
            }
        }
    }
}

/// What the configuration entries behind a shard's checkpoint set. They are few; the rest of the log is not read for
/// them.
async fn memberships_behind<R: Runtime>(
    store: &Store<R>,
    recovered: &RecoveredShard,
) -> Result<Vec<Membership>, NodeFailure> {
    let mut memberships = Vec::new();
    if recovered.state_damaged {
        // A snapshot replaces the log, and all that it sets.
        return Ok(memberships);
    }
    let kind = wire::kind_number(EntryKind::Configuration);
    let indexes = store.entries_of_kind(recovered.shard, kind);
    for index in indexes.into_iter().filter(|index| *index > recovered.checkpoint.applied) {
        let bad = |what: &str| {
            NodeFailure(format!("entry {} of shard {} sets the members: {what}", index.0, recovered.shard.0))
        };
        let entries = store.read_entries(recovered.shard, index, index, 0).await;
        let entries = entries.map_err(|error| bad(&error.to_string()))?;
        let entry = entries.first().ok_or_else(|| bad("it cannot be read"))?;
        let configuration = Configuration::decode(&entry.payload).ok_or_else(|| bad("it does not decode"))?;
        let set_by = Position { index: Index(index.0), term: Term(entry.term.0) };
        memberships.push(Membership { configuration, set_by });
    }
    Ok(memberships)
}

fn failure(log: u16, error: &krita_engine::LogError) -> NodeFailure {
    NodeFailure(format!("log {log}: {error}"))
}

/// A replica as it begins; `None`: there is no such shard.
pub(crate) fn new_shard(cluster: &Cluster, replica: ReplicaId) -> Option<NewShard> {
    let shard = shard_of(replica).0;
    cluster.log_of(shard)?;
    Some(NewShard {
        shard: ShardId(shard),
        replica: krita_engine::ReplicaId(replica.0),
        meta: CheckpointMeta {
            configuration: first_membership(cluster, replica).encode().into(),
            machine: ShardMachine::first(cluster, shard).encode(),
            generation: 1,
            ..CheckpointMeta::default()
        },
        hard_state: krita_engine::HardState::default(),
    })
}

/// What a replica knows of its group when it begins: all, if it is one of those that the group was made with; one that
/// came later knows nothing.
fn first_membership(cluster: &Cluster, replica: ReplicaId) -> Membership {
    let founders = cluster.first_configuration(shard_of(replica).0);
    match founders.filter(|founders| founders.is_member(replica)) {
        Some(founders) => Membership::first(founders),
        None => Membership::default(),
    }
}

/// A shard that was just created, as a start would find it.
pub(crate) fn recovered_fresh(shard: &NewShard) -> RecoveredShard {
    RecoveredShard {
        shard: shard.shard,
        replica: shard.replica,
        hard_state: shard.hard_state,
        checkpoint: shard.meta.clone(),
        terms: Vec::new(),
        last_index: shard.meta.applied,
        suspect: None,
        state_damaged: false,
    }
}

/// Raft's settings from the node's.
fn raft_config(config: &Config, id: ReplicaId, random: u64) -> krita_raft::Config {
    krita_raft::Config {
        election_timeout: config.election_timeout,
        heartbeat_interval: config.heartbeat_interval,
        lease: config.lease(),
        clock_drift_max: config.clock_drift_max(),
        jitter_seed: random,
        boot: random,
        ..krita_raft::Config::new(id)
    }
}

/// The data of a checkpoint as of what a replica has applied.
pub(crate) fn checkpoint_meta<R: Runtime>(replica: &Replica<R>) -> CheckpointMeta {
    let configuration: Bytes = replica.raft.applied_membership().encode().into();
    CheckpointMeta {
        applied: krita_engine::Index(replica.applied.0),
        term: krita_engine::Term(replica.applied_term.0),
        configuration,
        machine: replica.machine.encode(),
        generation: replica.generation,
    }
}
