//! Which log of this node owns which shard, held or not: a replica may come to any node at any time (`membership`);
//! and how a shard moves between logs when the number of cores grows.
//!
//! A node has at least as many logs as it ever had cores; core c owns the logs whose number is c modulo the number
//! of cores. With fewer cores than before a core opens several logs and nothing moves. With more, logs are added
//! and shards handed to them before the node serves:
//!
//! 1. the shard's checkpoint, log and hard state are copied into the new log, durably, with a higher generation;
//! 2. the ownership file is replaced, atomically: this is the moment of the handoff;
//! 3. the old log drops the shard.
//!
//! Shard 0, the meta group, is not in the file: every node has it in log 0, and it never moves.
//!
//! A crash before 2 leaves a copy that nobody owns, after it an original that nobody owns; either is dropped at the
//! next start, because a shard lives only where the ownership file says. So nothing stale revives.
//!
//! ```text
//! file `ownership`, little-endian
//! offset  size  field
//!      0     8  magic "KRITAOWN"
//!      8     4  format version: 1
//!     12     4  CRC-32 over bytes 16 to the end
//!     16     8  generation: rises with every handoff
//!     24     2  number of logs
//!     26     4  number of shards
//!     30     2  for each shard, from 1: its log; 0xffff: none yet (from a version whose replicas never moved)
//! ```

use std::io;
use std::path::{Path, PathBuf};

use krita_engine::{CheckpointMeta, EntryRecord, Index, OpenError, RecoveredShard, Store};
use krita_runtime::Runtime;

use crate::config::Config;
use crate::core::NodeFailure;
use crate::lost_logs;
use crate::open::log_options;
use crate::suspicion::forgetful_text;

/// The file that says which log owns which shard.
const OWNERSHIP_FILE: &str = "ownership";
const MAGIC: [u8; 8] = *b"KRITAOWN";
const FORMAT_VERSION: u32 = 1;
const HEADER_BYTES: usize = 30;
const NO_LOG: u16 = u16::MAX;
const FILE_BYTES_MAX: usize = 1 << 20;

/// Bytes copied at a time when a shard moves.
const COPY_BYTES_MAX: usize = 1 << 20;

/// Which log owns which shard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Ownership {
    pub(crate) generation: u64,
    pub(crate) logs_total: u16,
    /// By shard number less one.
    pub(crate) shard_logs: Vec<Option<u16>>,
}

/// One shard to hand from one log to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Handoff {
    shard: u32,
    from: u16,
    to: u16,
}

impl Ownership {
    /// The ownership of a node that starts with these shards on so many cores: those that it holds are spread evenly,
    /// and so are the others, should replicas of them come.
    pub(crate) fn new(has_replica: &[bool], cores: u16) -> Self {
        let shard_logs = vec![None; has_replica.len()];
        let mut ownership = Self { generation: 1, logs_total: cores, shard_logs };
        ownership.fill(has_replica);
        ownership
    }

    /// Gives every shard that has no log one. False: all had one.
    fn fill(&mut self, has_replica: &[bool]) -> bool {
        let (mut next, logs_total) = (0, self.logs_total);
        let mut is_changed = false;
        for held in [true, false] {
            let shards = self.shard_logs.iter_mut().zip(has_replica).filter(|(_, is_held)| **is_held == held);
            for (log, _) in shards.filter(|(log, _)| log.is_none()) {
                *log = Some(next % logs_total);
                next = (next + 1) % logs_total;
                is_changed = true;
            }
        }
        is_changed
    }

    /// The moves that give `logs` logs their even share, of the shards that are held here and of the others, as few as
    /// possible; none if there are enough logs already.
    fn handoffs(&self, logs: u16, has_replica: &[bool]) -> Vec<Handoff> {
        if logs <= self.logs_total {
            return Vec::new();
        }
        let of = |held: bool| self.handoffs_of(logs, |position| has_replica[position] == held);
        of(true).into_iter().chain(of(false)).collect()
    }

    fn handoffs_of(&self, logs: u16, is_meant: impl Fn(usize) -> bool) -> Vec<Handoff> {
        let mut owned: Vec<Vec<u32>> = vec![Vec::new(); usize::from(logs)];
        for (position, log) in self.shard_logs.iter().enumerate().filter(|(position, _)| is_meant(*position))
        {
            if let Some(log) = log {
                owned[usize::from(*log)].push(position as u32 + 1);
            }
        }
        let total: usize = owned.iter().map(Vec::len).sum();
        let fair = total / usize::from(logs);
        let mut moves = Vec::new();
        for to in self.logs_total..logs {
            while owned[usize::from(to)].len() < fair {
                let Some(from) = (0..self.logs_total).max_by_key(|log| owned[usize::from(*log)].len()) else {
                    break;
                };
                let Some(shard) = owned[usize::from(from)].pop() else { break };
                owned[usize::from(to)].push(shard);
                moves.push(Handoff { shard, from, to });
            }
        }
        moves
    }

    fn encode(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(HEADER_BYTES + 2 * self.shard_logs.len());
        body.extend_from_slice(&self.generation.to_le_bytes());
        body.extend_from_slice(&self.logs_total.to_le_bytes());
        body.extend_from_slice(&(self.shard_logs.len() as u32).to_le_bytes());
        for log in &self.shard_logs {
            body.extend_from_slice(&log.unwrap_or(NO_LOG).to_le_bytes());
        }
        let mut file = MAGIC.to_vec();
        file.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        file.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
        file.extend_from_slice(&body);
        file
    }

    fn decode(file: &[u8]) -> Result<Self, &'static str> {
        let (header, logs) = file.split_first_chunk::<HEADER_BYTES>().ok_or("it is too short")?;
        if header[..8] != MAGIC {
            return Err("it is not an ownership file");
        }
        if header[8..12] != FORMAT_VERSION.to_le_bytes() {
            return Err("it has a format that this version does not know");
        }
        if header[12..16] != crc32fast::hash(&file[16..]).to_le_bytes() {
            return Err("its checksum does not match");
        }
        let generation = u64::from_le_bytes(header[16..24].try_into().expect("8 bytes"));
        let logs_total = u16::from_le_bytes([header[24], header[25]]);
        let shards = u32::from_le_bytes(header[26..30].try_into().expect("4 bytes")) as usize;
        if logs.len() != shards * 2 || logs_total == 0 {
            return Err("its length does not fit its content");
        }
        let shard_logs: Vec<Option<u16>> = logs
            .chunks_exact(2)
            .map(|log| u16::from_le_bytes([log[0], log[1]]))
            .map(|log| (log != NO_LOG).then_some(log))
            .collect();
        if shard_logs.iter().flatten().any(|log| *log >= logs_total) {
            return Err("it names a log that does not exist");
        }
        Ok(Self { generation, logs_total, shard_logs })
    }
}

/// Whether a file exists.
pub(crate) async fn exists<R: Runtime>(runtime: &R, path: &Path) -> bool {
    !matches!(
        runtime.read_small_file(path, FILE_BYTES_MAX).await,
        Err(error) if error.kind() == io::ErrorKind::NotFound
    )
}

/// Notes durably that a log's shards have been created: from now on a log without them has lost them.
pub(crate) async fn mark_created<R: Runtime>(runtime: &R, marker: &Path) -> Result<(), NodeFailure> {
    runtime
        .replace_small_file(marker, b"the shards of this log have been created\n")
        .await
        .map_err(|error| NodeFailure(format!("{} cannot be written: {error}", marker.display())))
}

/// Reads or makes the ownership of this node, and moves shards so that every core has its share. Runs on core 0,
/// alone, before any log is open.
pub(crate) async fn prepare<R: Runtime>(
    runtime: &R,
    config: &Config,
    has_replica: &[bool],
    cores: u16,
) -> Result<Ownership, NodeFailure> {
    let path = config.data_directory.join(OWNERSHIP_FILE);
    let bad = |what: &dyn std::fmt::Display| NodeFailure(format!("{}: {what}", path.display()));
    let mut ownership = match runtime.read_small_file(&path, FILE_BYTES_MAX).await {
        Ok(file) => Ownership::decode(&file).map_err(|error| bad(&error))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            refuse_orphan_logs(runtime, config, OWNERSHIP_FILE).await?;
            let ownership = Ownership::new(has_replica, cores);
            save(runtime, &path, &ownership).await?;
            ownership
        }
        Err(error) => return Err(bad(&error)),
    };
    let mut held = ownership.shard_logs.iter().zip(has_replica).filter(|(_, is_held)| **is_held);
    if ownership.shard_logs.len() != has_replica.len() || held.any(|(log, _)| log.is_none()) {
        return Err(bad(&"it does not name the shards that this node has"));
    }
    if ownership.fill(has_replica) {
        save(runtime, &path, &ownership).await?;
    }
    if cores > ownership.logs_total {
        hand_off(runtime, config, &path, &mut ownership, has_replica, cores).await?;
    }
    Ok(ownership)
}

/// The record of the cluster and the ownership are written before the first log is. Logs without the one or the other
/// (`missing`) have lost it. A new ownership might give a shard to a log that never had it: then the shard would be
/// dropped where it is.
pub(crate) async fn refuse_orphan_logs<R: Runtime>(
    runtime: &R,
    config: &Config,
    missing: &str,
) -> Result<(), NodeFailure> {
    let directory = &config.data_directory;
    let names = runtime.list_directory(directory).await;
    let names =
        names.map_err(|error| NodeFailure(format!("{} cannot be read: {error}", directory.display())))?;
    let is_log = |name: &&std::path::PathBuf| {
        name.file_name().is_some_and(|name| name.to_string_lossy().starts_with("log-"))
    };
    match names.iter().find(is_log) {
        None => Ok(()),
        Some(log) => Err(NodeFailure(format!(
            "{} holds {} but no file \"{missing}\", without which nobody knows whose that log is: restore the \
             file, or replace the node",
            directory.display(),
            log.display()
        ))),
    }
}

async fn save<R: Runtime>(runtime: &R, path: &Path, ownership: &Ownership) -> Result<(), NodeFailure> {
    runtime
        .replace_small_file(path, &ownership.encode())
        .await
        .map_err(|error| NodeFailure(format!("{} cannot be written: {error}", path.display())))
}

/// The file that says that the shards of a log have been created: a log without them has lost them since.
pub(crate) fn marker(config: &Config, log: u16) -> PathBuf {
    config.data_directory.join(format!("log-{log:03}.created"))
}

/// The file that says that shard 0 has been created in its log: a directory of a version that knew no shard 0 lacks it.
pub(crate) fn meta_marker(config: &Config) -> PathBuf {
    config.data_directory.join("meta.created")
}

/// Copies the shards, then publishes the new ownership. The old logs drop theirs when they are opened next. While a log
/// is damaged nothing moves: it is opened where it is, which heals it, and a later start hands its shards on.
async fn hand_off<R: Runtime>(
    runtime: &R,
    config: &Config,
    path: &Path,
    ownership: &mut Ownership,
    has_replica: &[bool],
    logs_total: u16,
) -> Result<(), NodeFailure> {
    let handoffs = ownership.handoffs(logs_total, has_replica);
    let is_held = |shard: u32| has_replica[shard as usize - 1];
    tracing::info!(
        from = ownership.logs_total,
        to = logs_total,
        shards = handoffs.len(),
        "more cores than logs: handing shards to new logs"
    );
    let generation = ownership.generation + 1;
    let sources = open_sources(runtime, config, ownership, has_replica, logs_total).await?;
    let Some(sources) = sources else { return Ok(()) };
    for to in ownership.logs_total..logs_total {
        let target = match open_target(runtime, config, to, logs_total).await? {
            Ok(target) => target,
            Err(damage) => {
                postpone(sources.into_iter().map(|(store, _)| store), &damage).await;
                return Ok(());
            }
        };
        let mut is_whole = true;
        for handoff in handoffs.iter().filter(|handoff| handoff.to == to && is_held(handoff.shard)) {
            let (source, shards) = &sources[usize::from(handoff.from)];
            let Some(shard) = shards.iter().find(|shard| shard.shard.0 == handoff.shard) else {
                // The very first start was cut short before the shards of that log were made: nothing to copy, and
                // the new log makes its own when it is opened.
                is_whole = false;
                continue;
            };
            let noted = lost_logs::note(runtime, config, handoff.from).await?;
            let doubt = shard.suspect.clone().or(noted.map(|reason| forgetful_text(&reason)));
            if let Err(error) = copy_shard(source, &target, shard, generation, doubt).await {
                let (shard, from) = (handoff.shard, handoff.from);
                let why = format!("shard {shard} cannot be handed from log {from} to log {to}: {error}");
                drop(error);
                postpone(sources.into_iter().map(|(store, _)| store).chain([target]), &why).await;
                return Ok(());
            }
        }
        if is_whole {
            mark_created(runtime, &marker(config, to)).await?;
        }
        target.close().await;
    }
    // The logs are about to be opened by the cores that own them: nothing here may touch their files by then.
    for (source, _) in sources {
        source.close().await;
    }
    for handoff in &handoffs {
        ownership.shard_logs[handoff.shard as usize - 1] = Some(handoff.to);
    }
    ownership.generation = generation;
    ownership.logs_total = logs_total;
    save(runtime, path, ownership).await
}

type OpenLog<R> = (Store<R>, Vec<RecoveredShard>);

/// All logs that there are, by number; none if one of them is damaged or lacks a shard that it had.
async fn open_sources<R: Runtime>(
    runtime: &R,
    config: &Config,
    ownership: &Ownership,
    has_replica: &[bool],
    logs_total: u16,
) -> Result<Option<Vec<OpenLog<R>>>, NodeFailure> {
    let mut sources: Vec<OpenLog<R>> = Vec::new();
    let mut damage = None;
    for log in 0..ownership.logs_total {
        match krita_engine::open(runtime.clone(), log_options(config, log, logs_total)).await {
            Ok((store, shards)) => {
                let was_made = exists(runtime, &marker(config, log)).await;
                let is_there = |number: u32| shards.iter().any(|shard| shard.shard.0 == number);
                let owned = (1..).zip(&ownership.shard_logs).filter(|(_, owner)| **owner == Some(log));
                let mut held = owned.map(|(shard, _)| shard).filter(|shard| has_replica[*shard as usize - 1]);
                let missing = held.find(|shard| was_made && !is_there(*shard));
                sources.push((store, shards));
                damage = missing.map(|shard| format!("log {log} does not hold shard {shard}"));
            }
            Err(OpenError::Corruption(corruption) | OpenError::ManifestLost(corruption)) => {
                damage = Some(corruption.to_string());
            }
            Err(error @ OpenError::Io { .. }) => damage = Some(error.to_string()),
            Err(error) => return Err(NodeFailure(format!("log {log} cannot be opened: {error}"))),
        }
        if damage.is_some() {
            break;
        }
    }
    let Some(damage) = damage else { return Ok(Some(sources)) };
    postpone(sources.into_iter().map(|(store, _)| store), &damage).await;
    Ok(None)
}

/// The new log, without what an earlier handoff that a crash cut short has left there: nobody owns that, and the
/// originals may have moved on. Or what is damaged in it.
async fn open_target<R: Runtime>(
    runtime: &R,
    config: &Config,
    log: u16,
    logs_total: u16,
) -> Result<Result<Store<R>, String>, NodeFailure> {
    let opened = krita_engine::open(runtime.clone(), log_options(config, log, logs_total)).await;
    let (target, leftovers) = match opened {
        Ok(opened) => opened,
        Err(OpenError::Corruption(corruption) | OpenError::ManifestLost(corruption)) => {
            return Ok(Err(corruption.to_string()));
        }
        Err(error @ OpenError::Io { .. }) => return Ok(Err(error.to_string())),
        Err(error) => return Err(NodeFailure(format!("log {log} cannot be opened: {error}"))),
    };
    for leftover in leftovers {
        target.remove_shard(leftover.shard).await.map_err(|error| {
            NodeFailure(format!("{} cannot be removed from log {log}: {error}", leftover.shard))
        })?;
    }
    Ok(Ok(target))
}

/// Leaves every shard where it is. What a copy has come to is removed at the next attempt.
async fn postpone<R: Runtime>(stores: impl IntoIterator<Item = Store<R>>, why: &str) {
    tracing::warn!(why, "shards stay in the logs where they are, and move at a later start");
    for store in stores {
        store.close().await;
    }
}

/// Copies a shard with its checkpoint, its entries behind it, its hard state and what makes it suspect. Durable on
/// return.
async fn copy_shard<R: Runtime>(
    source: &Store<R>,
    target: &Store<R>,
    recovered: &RecoveredShard,
    generation: u64,
    doubt: Option<String>,
) -> Result<(), Box<dyn std::error::Error>> {
    let shard = recovered.shard;
    let mut items = source.snapshot_source(shard).await?;
    let meta = CheckpointMeta { generation, ..items.meta().clone() };
    let mut installer = target.snapshot_installer(shard, recovered.replica).await?;
    loop {
        let chunk = items.next(COPY_BYTES_MAX).await?;
        if chunk.is_empty() {
            break;
        }
        installer.add(chunk).await?;
    }
    let mut next = Index(meta.applied.0 + 1);
    while next <= recovered.last_index {
        let entries: Vec<EntryRecord> =
            source.read_entries(shard, next, recovered.last_index, COPY_BYTES_MAX).await?;
        next = entries.last().map(|entry| Index(entry.index.0 + 1)).ok_or("entries are missing")?;
        installer.entries(entries).await?;
    }
    installer.finish(meta, recovered.hard_state).await?;
    if let Some(doubt) = doubt {
        // Before the ownership names the copy: a replica that has forgotten must not be believed for having moved.
        target.mark_suspect(shard, &doubt).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ownership_survives_its_bytes_and_damage_is_seen() {
        let ownership = Ownership::new(&[true, false, true, true], 2);
        assert_eq!(ownership.shard_logs, [Some(0), Some(1), Some(1), Some(0)]);
        let file = ownership.encode();
        assert_eq!(Ownership::decode(&file), Ok(ownership));
        for position in 0..file.len() {
            let mut damaged = file.clone();
            damaged[position] ^= 1;
            assert!(Ownership::decode(&damaged).is_err(), "byte {position}");
            assert!(Ownership::decode(&file[..position]).is_err(), "cut at {position}");
        }
    }

    #[test]
    fn more_cores_get_their_share_and_fewer_move_nothing() {
        let held = [true; 64];
        let ownership = Ownership::new(&held, 2);
        assert!(ownership.handoffs(1, &held).is_empty());
        assert!(ownership.handoffs(2, &held).is_empty());
        let moves = ownership.handoffs(4, &held);
        assert_eq!(moves.len(), 32, "two new logs take a quarter each");
        assert!(moves.iter().all(|handoff| handoff.from < 2 && (2..4).contains(&handoff.to)));
        assert_eq!(moves.iter().filter(|handoff| handoff.to == 2).count(), 16);
        assert_eq!(moves.iter().filter(|handoff| handoff.from == 0).count(), 16);
    }

    #[test]
    fn shards_that_are_not_held_are_spread_by_themselves_and_filled_in_once() {
        let held: Vec<bool> = (0..64).map(|shard| shard % 2 == 0).collect();
        let mut ownership = Ownership::new(&held, 4);
        let count = |ownership: &Ownership, log, is_held| {
            let of_log = ownership.shard_logs.iter().zip(&held).filter(|(owner, _)| **owner == Some(log));
            of_log.filter(|(_, held)| **held == is_held).count()
        };
        for log in 0..4 {
            assert_eq!((count(&ownership, log, true), count(&ownership, log, false)), (8, 8));
        }
        assert!(!ownership.fill(&held));
        ownership.shard_logs[7] = None;
        assert!(ownership.fill(&held) && ownership.shard_logs[7].is_some());
        for handoff in ownership.handoffs(8, &held) {
            ownership.shard_logs[handoff.shard as usize - 1] = Some(handoff.to);
        }
        assert!((0..8).all(|log| count(&ownership, log, true) == 4));
    }
}
