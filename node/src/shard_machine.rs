//! The replicated machine of any shard: that of keys ([`crate::machine`]), or that of the meta group.

use std::sync::Arc;

use bytes::Bytes;

use crate::cluster::Cluster;
use crate::command::RequestId;
use crate::machine::{MACHINE_BYTES_MAX, Machine, Outcome};
use crate::meta::replicated::{META_MACHINE_BYTES_MAX, MetaMachine};
use crate::meta::{META_SHARD, MetaState};

/// What committed entries of a shard are applied to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum ShardMachine {
    /// A data shard's.
    Keys(Machine),
    /// Shard 0's.
    Meta(MetaMachine),
}

/// Bytes that are not the machine of the shard.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct ShardMachineError(String);

impl ShardMachine {
    /// The machine that a shard's replicas begin with when the cluster is formed.
    pub(crate) fn first(cluster: &Cluster, shard: u32) -> Self {
        match shard == META_SHARD.0 {
            true => Self::Meta(MetaMachine::new(cluster.genesis.clone())),
            false => Self::Keys(Machine::new()),
        }
    }

    /// Reads what [`ShardMachine::encode`] wrote for this shard.
    ///
    /// # Errors
    /// Anything else.
    pub(crate) fn decode(shard: u32, bytes: &[u8]) -> Result<Self, ShardMachineError> {
        match shard == META_SHARD.0 {
            true => MetaMachine::decode(bytes).map(Self::Meta).map_err(|error| error.to_string()),
            false => Machine::decode(bytes).map(Self::Keys).map_err(|error| error.to_string()),
        }
        .map_err(ShardMachineError)
    }

    /// The machine's part of a checkpoint or snapshot, at most [`machine_bytes_max`].
    pub(crate) fn encode(&self) -> Bytes {
        match self {
            Self::Keys(machine) => machine.encode(),
            Self::Meta(machine) => machine.encode(),
        }
    }

    /// Equal on equal replicas at the same index.
    pub(crate) fn state_hash(&self) -> u64 {
        match self {
            Self::Keys(machine) => machine.state_hash(),
            Self::Meta(machine) => machine.state_hash(),
        }
    }

    /// The highest log time of all commands applied; 0 where they carry none.
    pub(crate) fn log_time_ms(&self) -> u64 {
        match self {
            Self::Keys(machine) => machine.log_time_ms(),
            Self::Meta(_) => 0,
        }
    }

    /// The outcome that a write had when it was applied, if that is still remembered.
    pub(crate) fn remembered(&self, request: RequestId) -> Option<Outcome> {
        match self {
            Self::Keys(machine) => machine.remembered(request),
            Self::Meta(_) => None,
        }
    }

    /// Shard 0's state as of the last entry applied.
    pub(crate) fn meta_state(&self) -> Option<&Arc<MetaState>> {
        match self {
            Self::Keys(_) => None,
            Self::Meta(machine) => Some(machine.state()),
        }
    }
}

/// Most bytes of the encoded machine of a shard.
pub(crate) fn machine_bytes_max(shard: u32) -> usize {
    if shard == META_SHARD.0 { META_MACHINE_BYTES_MAX } else { MACHINE_BYTES_MAX }
}
