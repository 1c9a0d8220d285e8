//! What callers hand in and get back: operations, conditions, options, results.

use std::time::Duration;

use bytes::Bytes;
use krita_proto::v1;

/// When a write is applied.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Condition {
    /// Always.
    #[default]
    None,
    /// Only if the key's version is this; 0 = only if the key is absent.
    IfVersion(u64),
    /// Only if the key is present with this value.
    IfValue(Bytes),
}

/// How fresh a read must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Consistency {
    /// It sees every write that ended before it began.
    #[default]
    Linearizable,
    /// Linearizable; if the shard's leader cannot be reached, or no quorum confirms the read, for most of the call's
    /// time, as [`Consistency::Any`].
    Available,
    /// Whatever the replica that is asked has applied: no other is asked, any may answer, and it may be behind.
    Any,
}

impl Consistency {
    pub(crate) fn to_wire(self) -> i32 {
        let wire = match self {
            Self::Linearizable => v1::Consistency::Linearizable,
            Self::Available => v1::Consistency::Available,
            Self::Any => v1::Consistency::Any,
        };
        wire as i32
    }
}

/// What a read found, and how sure that is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Read {
    /// `None` = absent.
    pub entry: Option<Entry>,
    /// `None` = confirmed by a quorum. Else the last log entry of the key's shard that the answer takes into account.
    pub stale_at: Option<u64>,
}

/// What the items of one shard are as of, in a scan.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShardVersion {
    /// The last log entry of the shard that they take into account.
    pub applied_index: u64,
    /// From this key on.
    pub start: Bytes,
    /// Items of the shard before `start` are as of an earlier entry: what was held for the scan had gone.
    pub is_newer: bool,
    /// No quorum confirmed it.
    pub is_stale: bool,
}

/// Options of one read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReadOptions {
    /// How fresh the answer must be.
    pub consistency: Consistency,
    /// How long the call may take, retries included; `None` = the client's default.
    pub timeout: Option<Duration>,
}

/// Options of one write.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WriteOptions {
    /// When it is applied.
    pub condition: Condition,
    /// How long the call may take, retries included; `None` = the client's default.
    pub timeout: Option<Duration>,
}

/// A key's value and version.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The value.
    pub value: Bytes,
    /// The log index of the key's last change in its shard; strictly increasing.
    pub version: u64,
}

/// A put that was applied: durable on a majority.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Written {
    /// The key's version now.
    pub version: u64,
}

/// A delete that was applied: durable on a majority.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Deleted {
    /// The key was there.
    pub existed: bool,
    /// The log index of the change.
    pub version: u64,
}

/// One operation of a batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Set a key's value.
    Put {
        /// Which key.
        key: Bytes,
        /// Its value from now on.
        value: Bytes,
        /// When it is applied.
        condition: Condition,
    },
    /// Remove a key.
    Delete {
        /// Which key.
        key: Bytes,
        /// When it is applied.
        condition: Condition,
    },
    /// Read a key.
    Get {
        /// Which key.
        key: Bytes,
    },
}

impl Operation {
    /// An unconditional put.
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self::Put { key: key.into(), value: value.into(), condition: Condition::None }
    }

    /// An unconditional delete.
    pub fn delete(key: impl Into<Bytes>) -> Self {
        Self::Delete { key: key.into(), condition: Condition::None }
    }

    /// A read.
    pub fn get(key: impl Into<Bytes>) -> Self {
        Self::Get { key: key.into() }
    }

    /// Which key it is about.
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Put { key, .. } | Self::Delete { key, .. } | Self::Get { key } => key,
        }
    }

    /// Whether it changes anything.
    pub fn is_write(&self) -> bool {
        match self {
            Self::Put { .. } | Self::Delete { .. } => true,
            Self::Get { .. } => false,
        }
    }
}

/// What one operation of a batch did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OperationOutcome {
    /// The put was applied.
    Put(Written),
    /// The delete was applied.
    Deleted {
        /// The key was there.
        existed: bool,
    },
    /// What the get read; `None` = absent.
    Got(Option<Entry>),
}

/// Which keys a scan goes over, and how.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ScanOptions {
    /// First key, inclusive; empty = from the first key.
    pub start: Bytes,
    /// End of the range, exclusive; empty = to the last key.
    pub end: Bytes,
    /// Do not fetch values.
    pub keys_only: bool,
    /// Most items in all; `None` = all.
    pub limit: Option<u64>,
    /// Most items in one page of one shard; 0 = a default that keeps memory small.
    pub page_items: u32,
    /// How fresh each page must be.
    pub consistency: Consistency,
    /// How long fetching one page may take, retries included; `None` = the client's default.
    pub timeout: Option<Duration>,
}

impl ScanOptions {
    /// All keys that begin with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start = prefix.into();
        let end = prefix_end(&start);
        Self { start, end, ..Self::default() }
    }

    /// Keys without values.
    pub fn keys_only(mut self) -> Self {
        self.keys_only = true;
        self
    }

    /// At most this many items.
    pub fn limit(mut self, limit: u64) -> Self {
        self.limit = Some(limit);
        self
    }
}

/// The first key behind all that begin with `prefix`; empty = there is none.
fn prefix_end(prefix: &[u8]) -> Bytes {
    let Some(last) = prefix.iter().rposition(|byte| *byte != u8::MAX) else { return Bytes::new() };
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    end.into()
}

/// One key of a scan.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScanItem {
    /// The key.
    pub key: Bytes,
    /// The value; empty with `keys_only`.
    pub value: Bytes,
    /// The key's version.
    pub version: u64,
}

/// One member of the cluster as `health` found it. A member that does not answer is in the list, with the reason.
#[derive(Clone, PartialEq, Debug)]
pub struct MemberHealth {
    /// Given by the cluster; 0 = not known.
    pub node_number: u32,
    /// Its name; empty = not known.
    pub node_id: String,
    /// Where it was asked.
    pub address: String,
    /// What it said of itself.
    pub status: Result<v1::NodeStatusReply, crate::Error>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_one() {
        for (prefix, end) in
            [(&b""[..], &b""[..]), (b"a", b"b"), (b"a\xff", b"b"), (b"\xff\xff", b""), (b"a\x00", b"a\x01")]
        {
            assert_eq!(&prefix_end(prefix)[..], end, "{prefix:?}");
        }
    }
}
