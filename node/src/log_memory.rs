//! What this core remembers of the logs of other nodes: how far each said that it is durable.
//!
//! A log that lost its end may look whole: its last batches were never written although the device said so, or its
//! files were replaced. Who lost them cannot tell; but every burst carries how far the sender's logs are durable, so
//! peers know, and hold it against the log after a restart, in their hello. Acknowledgements travel in such bursts:
//! whoever relies on one remembers the batch that it rests on.
//!
//! Memory is kept lazily in a small file, so that it outlives most restarts of its own. It is a safeguard against disks
//! that lie, not a part of Raft: to lose it, or an old one, is harmless.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use krita_engine::LogMark;
use krita_proto::v1;
use krita_raft::Suspicion;
use krita_runtime::{CoreId, Mesh, Runtime};
use prost::Message;

use crate::config::Config;
use crate::core::Core;
use crate::mesh::CoreMessage;

/// How often memory goes to its file, if it has changed.
const KEEP_INTERVAL: Duration = Duration::from_secs(10);

/// Largest file that is read, and most logs of one node that are remembered.
const FILE_BYTES_MAX: usize = 1 << 20;
const LOGS_MAX: usize = 1024;

/// What is remembered of all nodes.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct LogMemory {
    nodes: BTreeMap<u32, Remembered>,
}

/// What is remembered of one node.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
struct Remembered {
    /// The boot in which it said so.
    boot_id: u64,
    logs: BTreeMap<u32, LogMark>,
    /// The boot of the node that was told of this last, and serves.
    told: Option<u64>,
}

impl LogMemory {
    /// A node says how far its logs are durable. In a new boot that counts, and takes the place of what it said in the
    /// one before, only once it was told of that; and not while it has yet to note what that means.
    pub(crate) fn note(&mut self, node_number: u32, boot_id: u64, marks: &[v1::LogMark]) {
        let Some(node) = self.nodes.get_mut(&node_number) else { return };
        if node.boot_id != boot_id {
            if node.told != Some(boot_id) {
                return;
            }
            node.boot_id = boot_id;
            node.logs.clear();
        }
        for mark in marks.iter().take(LOGS_MAX) {
            let said = LogMark { nonce: mark.nonce, sequence: mark.sequence };
            let known = node.logs.entry(mark.log).or_insert(said);
            if known.nonce != said.nonce || known.sequence < said.sequence {
                *known = said;
            }
        }
    }

    /// What to tell a node: in which boot it said what. `None`: nothing is remembered.
    pub(crate) fn tell(&self, node_number: u32) -> Option<v1::RememberedLogs> {
        let node = self.nodes.get(&node_number)?;
        let mark = |(log, mark): (&u32, &LogMark)| v1::LogMark {
            log: *log,
            nonce: mark.nonce,
            sequence: mark.sequence,
        };
        Some(v1::RememberedLogs {
            node_number,
            boot_id: node.boot_id,
            logs: node.logs.iter().map(mark).collect(),
        })
    }

    /// A node that serves was told: what it says in this boot counts from now on.
    pub(crate) fn was_told(&mut self, node_number: u32, boot_id: u64) {
        let fresh = || Remembered { boot_id, logs: BTreeMap::new(), told: None };
        self.nodes.entry(node_number).or_insert_with(fresh).told = Some(boot_id);
    }

    /// The content of its file: a CRC-32, then a `krita.v1.LogMemory`.
    fn encode(&self) -> Vec<u8> {
        let nodes = self.nodes.keys().filter_map(|node| self.tell(*node)).collect();
        let body = v1::LogMemory { nodes }.encode_to_vec();
        let mut file = crc32fast::hash(&body).to_le_bytes().to_vec();
        file.extend_from_slice(&body);
        file
    }

    fn decode(file: &[u8]) -> Option<Self> {
        let (checksum, body) = file.split_first_chunk::<4>()?;
        if crc32fast::hash(body).to_le_bytes() != *checksum {
            return None;
        }
        let mut memory = Self::default();
        for node in v1::LogMemory::decode(body).ok()?.nodes {
            memory.was_told(node.node_number, node.boot_id);
            memory.note(node.node_number, node.boot_id, &node.logs);
        }
        Some(memory)
    }
}

fn path(config: &Config, core: CoreId) -> PathBuf {
    config.data_directory.join(format!("peer-logs-{}", core.0))
}

/// Why a log must have lost something, if it must: a peer remembers more of it than was found.
fn objection(found: LogMark, remembered: LogMark, was_replaced: bool) -> Option<String> {
    if found.nonce != remembered.nonce {
        return (!was_replaced).then(|| "its files are not those that were there".to_owned());
    }
    (remembered.sequence > found.sequence).then(|| {
        format!(
            "it ends at batch {}, but batch {} was said to be durable",
            found.sequence, remembered.sequence
        )
    })
}

impl<R: Runtime> Core<R> {
    /// Takes up what an earlier process of this node remembered.
    pub(crate) async fn recall_logs(&self) {
        let path = path(&self.input.config, self.runtime.core());
        let Ok(file) = self.runtime.read_small_file(&path, FILE_BYTES_MAX).await else { return };
        match LogMemory::decode(&file) {
            Some(memory) => self.peers.set_memory(memory),
            None => {
                tracing::warn!(path = %path.display(), "what was remembered of the peers' logs is damaged")
            }
        }
    }

    /// Keeps what is remembered in a file, lazily.
    pub(crate) async fn keep_memory(self: Rc<Self>) {
        let path = path(&self.input.config, self.runtime.core());
        let mut kept = LogMemory::default();
        while !self.is_ending() {
            self.runtime.sleep(KEEP_INTERVAL).await;
            let memory = self.peers.memory();
            if memory != kept && !self.is_ending() {
                match self.runtime.replace_small_file(&path, &memory.encode()).await {
                    Ok(()) => kept = memory,
                    Err(error) => {
                        tracing::warn!(path = %path.display(), %error, "memory of logs was not kept")
                    }
                }
            }
        }
    }

    /// Tells the peers, with all that leaves from now on, how far this core's logs are durable.
    pub(crate) fn publish_log_marks(&self) {
        let guard = self.serving.borrow();
        let logs = guard.as_ref().map(|serving| serving.logs.iter()).into_iter().flatten();
        let marks = logs.map(|log| {
            let mark = log.store.log_mark();
            v1::LogMark { log: u32::from(log.number), nonce: mark.nonce, sequence: mark.sequence }
        });
        self.peers.set_log_marks(marks.collect());
    }

    /// A peer says what it remembers of this node's logs. Must be heard before anything else that it says.
    pub(crate) fn on_remembered(self: &Rc<Self>, from: u32, remembered: &v1::RememberedLogs) {
        if remembered.boot_id == self.input.boot_id {
            return;
        }
        let mut elsewhere: BTreeMap<CoreId, Vec<v1::LogMark>> = BTreeMap::new();
        for mark in &remembered.logs {
            let Some(owner) = self.core_of_log(mark.log) else { continue };
            match owner == self.runtime.core() {
                true => self.hold_against(from, mark),
                false => elsewhere.entry(owner).or_default().push(*mark),
            }
        }
        for (core, logs) in elsewhere.into_iter().filter(|(core, _)| core.0 < self.mesh.cores()) {
            let remembered = Box::new(v1::RememberedLogs { logs, ..remembered.clone() });
            self.send_to_core(core, CoreMessage::Remembered { from, remembered });
        }
    }

    fn core_of_log(&self, log: u32) -> Option<CoreId> {
        let log = u16::try_from(log).ok()?;
        let guard = self.serving.borrow();
        let cluster = &guard.as_ref()?.cluster;
        (log < cluster.logs_total).then(|| cluster.core_of_log(log))
    }

    fn hold_against(self: &Rc<Self>, from: u32, mark: &v1::LogMark) {
        let remembered = LogMark { nonce: mark.nonce, sequence: mark.sequence };
        let mut guard = self.serving.borrow_mut();
        let Some(serving) = guard.as_mut() else { return };
        let position = serving.logs.iter().position(|log| u32::from(log.number) == mark.log);
        let Some((position, log)) = position.map(|position| (position, &serving.logs[position])) else {
            return;
        };
        let Some(what) = objection(log.found, remembered, log.was_replaced) else { return };
        let reason = format!("log {} lost its end: {what}, node {from} remembers", mark.log);
        let of_this_log = serving.replicas.values_mut().filter(|replica| replica.log == position);
        // Several peers remember, and each says so at every connection; once in a life is enough, healed or not.
        for replica in of_this_log.filter(|replica| !replica.was_doubted) {
            self.suspect_replica(replica, Suspicion::Forgetful, &reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(log: u32, nonce: u64, sequence: u64) -> v1::LogMark {
        v1::LogMark { log, nonce, sequence }
    }

    #[test]
    fn memory_rises_within_a_boot_and_is_told_before_the_next_one_counts() {
        let mut memory = LogMemory::default();
        memory.note(2, 7, &[mark(0, 1, 5)]);
        assert_eq!(memory.tell(2), None, "of a boot that has not been met");
        memory.was_told(2, 7);
        memory.note(2, 7, &[mark(0, 1, 5), mark(1, 9, 3)]);
        memory.note(2, 7, &[mark(0, 1, 4), mark(1, 9, 8)]);
        let told = memory.tell(2).expect("remembered");
        assert_eq!((told.boot_id, told.logs), (7, vec![mark(0, 1, 5), mark(1, 9, 8)]));
        // It restarts: what it says now does not wipe out what it said before, until it was told.
        memory.note(2, 8, &[mark(0, 1, 2)]);
        assert_eq!(memory.tell(2).expect("remembered").logs[0], mark(0, 1, 5));
        memory.was_told(2, 8);
        assert_eq!(memory.tell(2).expect("remembered").logs[0], mark(0, 1, 5), "it may restart at once");
        memory.note(2, 8, &[mark(0, 1, 2)]);
        assert_eq!(memory.tell(2).expect("remembered").logs, [mark(0, 1, 2)]);
    }

    #[test]
    fn memory_survives_its_file_and_damage_is_seen() {
        let mut memory = LogMemory::default();
        memory.was_told(3, 11);
        memory.note(3, 11, &[mark(0, 1, 5), mark(4, 2, 6)]);
        let file = memory.encode();
        assert_eq!(LogMemory::decode(&file), Some(memory));
        for position in 0..file.len() {
            let mut damaged = file.clone();
            damaged[position] ^= 1;
            assert_eq!(LogMemory::decode(&damaged), None, "byte {position}");
        }
        assert_eq!(LogMemory::decode(&[]), None);
    }

    #[test]
    fn a_log_that_ends_early_or_was_replaced_is_objected_to() {
        let at = |nonce, sequence| LogMark { nonce, sequence };
        assert_eq!(objection(at(1, 9), at(1, 9), false), None);
        assert_eq!(objection(at(1, 9), at(1, 8), false), None);
        assert!(objection(at(1, 9), at(1, 10), false).is_some());
        assert!(objection(at(2, 9), at(1, 1), false).is_some());
        assert_eq!(objection(at(2, 9), at(1, 1), true), None, "this node knows");
    }
}
