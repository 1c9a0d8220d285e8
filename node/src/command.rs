//! The replicated command: the bytes that a shard's Raft log carries, and that the storage index points into.
//!
//! The leader of a shard turns a client's write into a [`WriteCommand`], with every `if_value` already resolved
//! to an `if_version`, and proposes its encoding. Every replica decodes the same bytes and applies them with
//! [`crate::machine::Machine`]. "The log is the store": a value is never copied out of the entry that carried
//! it, so a decoded put says where in the payload its value lies.
//!
//! All integers are little-endian.
//!
//! ```text
//! offset  size  field
//!      0     1  format version: 1
//!      1     1  kind: 1 = write; every other number is reserved
//!      2     8  log time of the leader, milliseconds since 1970
//!     10     8  request id: session; 0 = the write is not deduplicated
//!     18     8  request id: sequence
//!     26     8  request id: lowest unacknowledged sequence
//!     34     8  request id: register until, log time in milliseconds
//!     42     2  number of operations, 1 to 10,000
//!     44     -  operations, one behind the other
//!
//! operation:
//!      0     1  kind: 1 = put, 2 = delete
//!      1     1  condition: 0 = none, 1 = if_version
//!      2     8  if_version (0 = the key must be absent); without a condition zero
//!     10     2  key length, 1 to 4,096
//!     12     -  key
//!  then, for a put only:
//!      0     4  value length, 0 to 16 MiB
//!      4     4  checksum of (key, value)   \ the region that the
//!      8     -  value                      / storage index points to
//! ```
//!
//! A command holds no key twice, so the order of its operations has no meaning. An unknown format version, kind
//! or condition in a committed entry comes from a newer version of Krita: the replica must stop rather than
//! diverge (see [`CommandError::from_newer_version`]).

use bytes::{BufMut, Bytes, BytesMut};
use krita_engine::KeyRegion;
use krita_proto::routing::{
    BATCH_OPERATIONS_MAX, ENTRY_BYTES_MAX, KEY_BYTES_MAX, VALUE_BYTES_MAX, value_checksum,
};

/// The format that this version writes.
pub const FORMAT_VERSION: u8 = 1;

/// Most operations in one command.
pub const OPERATIONS_MAX: usize = BATCH_OPERATIONS_MAX;

const KIND_WRITE: u8 = 1;
const OPERATION_PUT: u8 = 1;
const OPERATION_DELETE: u8 = 2;
const CONDITION_NONE: u8 = 0;
const CONDITION_IF_VERSION: u8 = 1;

const HEADER_BYTES: usize = 1 + 1 + 8 + 4 * 8 + 2;
const OPERATION_HEADER_BYTES: usize = 1 + 1 + 8 + 2;
const VALUE_LENGTH_BYTES: usize = 4;
const CHECKSUM_BYTES: usize = 4;

const _: () = {
    assert!(HEADER_BYTES == 44 && OPERATION_HEADER_BYTES == 12, "the byte table above");
    assert!(KEY_BYTES_MAX <= u16::MAX as usize);
    assert!(OPERATIONS_MAX <= u16::MAX as usize);
    assert!(ENTRY_BYTES_MAX <= u32::MAX as usize, "offsets within a payload are u32");
    assert!(
        HEADER_BYTES
            + OPERATION_HEADER_BYTES
            + KEY_BYTES_MAX
            + VALUE_LENGTH_BYTES
            + CHECKSUM_BYTES
            + VALUE_BYTES_MAX
            <= ENTRY_BYTES_MAX,
        "the longest key fits beside the longest value"
    );
};

/// Makes a retried write apply once; see `RequestId` in `data.proto`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RequestId {
    /// Random, chosen by the client, one per shard and client; 0 = the write is not deduplicated.
    pub session: u64,
    /// Strictly increasing per session, from 1.
    pub sequence: u64,
    /// All sequences below this one have been answered; their results are forgotten.
    pub lowest_unacknowledged: u64,
    /// An unknown session is registered only up to this log time, in milliseconds; 0 = never.
    pub register_until_ms: u64,
}

/// What must hold of a key for the command to apply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Condition {
    /// Nothing.
    None,
    /// The key's version must be this; 0 = the key must be absent.
    IfVersion(u64),
}

/// One change of one key, with its condition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Operation {
    /// The key: 1 to [`KEY_BYTES_MAX`] bytes.
    pub key: Bytes,
    /// Must hold, or nothing of the whole command is applied.
    pub condition: Condition,
    /// What to do.
    pub action: Action,
}

/// What an operation does to its key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Sets the value.
    Put(PutValue),
    /// Removes the key; an absent key stays absent.
    Delete,
}

/// A value, and where its bytes lie in the encoded command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PutValue {
    /// The value: 0 to [`VALUE_BYTES_MAX`] bytes.
    pub value: Bytes,
    /// The checksum of (key, value), made where the value entered the cluster.
    pub checksum: u32,
    payload_offset: u32,
}

impl PutValue {
    /// Where the region `[checksum u32][value]` begins in the encoded command, in bytes. Meaningful once the
    /// operation is part of a [`WriteCommand`].
    pub fn payload_offset(&self) -> u32 {
        self.payload_offset
    }

    /// The length of that region in bytes: the value's and four.
    pub fn payload_length(&self) -> u32 {
        // At most VALUE_BYTES_MAX + 4, which the constructor of WriteCommand has checked.
        (CHECKSUM_BYTES + self.value.len()) as u32
    }
}

impl Operation {
    /// Sets `key` to `value`; makes the checksum that stays with the value from here on.
    pub fn put(key: Bytes, value: Bytes, condition: Condition) -> Self {
        let checksum = value_checksum(&key, &value);
        Self { key, condition, action: Action::Put(PutValue { value, checksum, payload_offset: 0 }) }
    }

    /// Removes `key`.
    pub fn delete(key: Bytes, condition: Condition) -> Self {
        Self { key, condition, action: Action::Delete }
    }

    /// Bytes that this operation takes in the encoding.
    fn encoded_bytes(&self) -> usize {
        OPERATION_HEADER_BYTES
            + self.key.len()
            + match &self.action {
                Action::Put(put) => VALUE_LENGTH_BYTES + CHECKSUM_BYTES + put.value.len(),
                Action::Delete => 0,
            }
    }
}

/// Why bytes are no command, or operations cannot become one.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CommandError {
    /// A newer version of Krita wrote this.
    #[error("command format {0} is unknown to this version, which knows {FORMAT_VERSION}")]
    UnknownFormat(u8),
    /// A newer version of Krita wrote this.
    #[error("command kind {0} is unknown to this version")]
    UnknownKind(u8),
    /// A newer version of Krita wrote this.
    #[error("operation {operation} has kind {kind}, which is unknown to this version")]
    UnknownOperation {
        /// Which operation, from 0.
        operation: usize,
        /// The number found.
        kind: u8,
    },
    /// A newer version of Krita wrote this.
    #[error("operation {operation} has condition {condition}, which is unknown to this version")]
    UnknownCondition {
        /// Which operation, from 0.
        operation: usize,
        /// The number found.
        condition: u8,
    },
    /// The bytes end within a field.
    #[error("command ends early, in its {0}")]
    Truncated(&'static str),
    /// Bytes follow the last operation.
    #[error("{0} bytes follow the command's last operation")]
    TrailingBytes(usize),
    /// A field that must be zero is not.
    #[error("operation {0} has a version without a condition")]
    StrayVersion(usize),
    /// No operation, or too many.
    #[error("a command holds 1 to {OPERATIONS_MAX} operations, not {0}")]
    OperationCount(usize),
    /// An empty or an oversize key.
    #[error("operation {operation} has a key of {length} bytes; a key has 1 to {KEY_BYTES_MAX}")]
    KeyLength {
        /// Which operation, from 0.
        operation: usize,
        /// The key's length in bytes.
        length: usize,
    },
    /// An oversize value.
    #[error("operation {operation} has a value of {length} bytes; a value has at most {VALUE_BYTES_MAX}")]
    ValueLength {
        /// Which operation, from 0.
        operation: usize,
        /// The value's length in bytes.
        length: usize,
    },
    /// The whole command is too large for one entry.
    #[error("the write takes {0} bytes; one write takes at most {ENTRY_BYTES_MAX}")]
    EntryLength(usize),
    /// The same key twice.
    #[error("operation {operation} names a key that an earlier operation of the same write names")]
    KeyTwice {
        /// The later of the two operations, from 0.
        operation: usize,
    },
    /// A value is not what entered the cluster.
    #[error("operation {operation} carries a value that does not match its checksum")]
    Checksum {
        /// Which operation, from 0.
        operation: usize,
    },
}

impl CommandError {
    /// Whether the bytes seem to come from a newer version of Krita rather than from damage. In a committed
    /// entry either stops the replica; the text for people differs.
    pub fn from_newer_version(&self) -> bool {
        match self {
            Self::UnknownFormat(_)
            | Self::UnknownKind(_)
            | Self::UnknownOperation { .. }
            | Self::UnknownCondition { .. } => true,
            Self::Truncated(_)
            | Self::TrailingBytes(_)
            | Self::StrayVersion(_)
            | Self::OperationCount(_)
            | Self::KeyLength { .. }
            | Self::ValueLength { .. }
            | Self::EntryLength(_)
            | Self::KeyTwice { .. }
            | Self::Checksum { .. } => false,
        }
    }
}

/// One write as the log carries it: valid within all limits, with no key twice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WriteCommand {
    log_time_ms: u64,
    request: RequestId,
    operations: Vec<Operation>,
}

impl WriteCommand {
    /// Builds a command and computes where each value will lie in its encoding.
    ///
    /// # Errors
    /// A limit that the operations break; nothing that a retry could mend.
    pub fn new(
        log_time_ms: u64,
        request: RequestId,
        mut operations: Vec<Operation>,
    ) -> Result<Self, CommandError> {
        check_limits(&operations)?;
        let mut position = HEADER_BYTES;
        for operation in &mut operations {
            let region = position + OPERATION_HEADER_BYTES + operation.key.len() + VALUE_LENGTH_BYTES;
            position += operation.encoded_bytes();
            if let Action::Put(put) = &mut operation.action {
                put.payload_offset = region as u32; // Within ENTRY_BYTES_MAX, as checked.
            }
        }
        Ok(Self { log_time_ms, request, operations })
    }

    /// The leader's log time, in milliseconds since 1970.
    pub fn log_time_ms(&self) -> u64 {
        self.log_time_ms
    }

    /// Who asks, and for the how-manieth time.
    pub fn request(&self) -> RequestId {
        self.request
    }

    /// The operations; no key occurs twice.
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// The command's bytes, in one allocation of exactly their length.
    pub fn encode(&self) -> Bytes {
        let length = HEADER_BYTES + self.operations.iter().map(Operation::encoded_bytes).sum::<usize>();
        let mut out = BytesMut::with_capacity(length);
        out.put_u8(FORMAT_VERSION);
        out.put_u8(KIND_WRITE);
        out.put_u64_le(self.log_time_ms);
        out.put_u64_le(self.request.session);
        out.put_u64_le(self.request.sequence);
        out.put_u64_le(self.request.lowest_unacknowledged);
        out.put_u64_le(self.request.register_until_ms);
        out.put_u16_le(self.operations.len() as u16);
        for operation in &self.operations {
            encode_operation(operation, &mut out);
        }
        assert_eq!(out.len(), length, "the sizes were computed first");
        out.freeze()
    }

    /// Reads a command. Keys and values are slices of `payload`; nothing is copied. Checks every limit, but not
    /// the values' checksums: see [`WriteCommand::verify_values`].
    ///
    /// # Errors
    /// Bytes that this version cannot apply; in a committed entry each of them stops the replica.
    pub fn decode(payload: &Bytes) -> Result<Self, CommandError> {
        let mut reader = Reader { payload, position: 0 };
        let format = reader.u8("format version")?;
        if format != FORMAT_VERSION {
            return Err(CommandError::UnknownFormat(format));
        }
        let kind = reader.u8("kind")?;
        if kind != KIND_WRITE {
            return Err(CommandError::UnknownKind(kind));
        }
        let log_time_ms = reader.u64("log time")?;
        let request = RequestId {
            session: reader.u64("session")?,
            sequence: reader.u64("sequence")?,
            lowest_unacknowledged: reader.u64("lowest unacknowledged sequence")?,
            register_until_ms: reader.u64("registration limit")?,
        };
        let count = usize::from(reader.u16("number of operations")?);
        // An operation takes at least its header: a made-up count reserves no more than the bytes allow.
        let capacity = count.min(payload.len() / OPERATION_HEADER_BYTES);
        let mut operations = Vec::with_capacity(capacity);
        for operation in 0..count {
            operations.push(decode_operation(&mut reader, operation)?);
        }
        let rest = payload.len() - reader.position;
        if rest != 0 {
            return Err(CommandError::TrailingBytes(rest));
        }
        check_limits(&operations)?;
        Ok(Self { log_time_ms, request, operations })
    }

    /// Checks every value against the checksum that was made where it entered the cluster. A replica calls this
    /// on what a peer sent before it writes it.
    ///
    /// # Errors
    /// [`CommandError::Checksum`] for the first value that differs.
    pub fn verify_values(&self) -> Result<(), CommandError> {
        for (operation, entry) in self.operations.iter().enumerate() {
            match &entry.action {
                Action::Put(put) if value_checksum(&entry.key, &put.value) != put.checksum => {
                    return Err(CommandError::Checksum { operation });
                }
                Action::Put(_) | Action::Delete => {}
            }
        }
        Ok(())
    }
}

fn check_limits(operations: &[Operation]) -> Result<(), CommandError> {
    if operations.is_empty() || operations.len() > OPERATIONS_MAX {
        return Err(CommandError::OperationCount(operations.len()));
    }
    let mut length_sum = HEADER_BYTES;
    for (operation, entry) in operations.iter().enumerate() {
        let length = entry.key.len();
        if length == 0 || length > KEY_BYTES_MAX {
            return Err(CommandError::KeyLength { operation, length });
        }
        match &entry.action {
            Action::Put(put) if put.value.len() > VALUE_BYTES_MAX => {
                return Err(CommandError::ValueLength { operation, length: put.value.len() });
            }
            Action::Put(_) | Action::Delete => {}
        }
        length_sum += entry.encoded_bytes();
    }
    if length_sum > ENTRY_BYTES_MAX {
        return Err(CommandError::EntryLength(length_sum));
    }
    check_distinct(operations)
}

/// Sorts positions rather than operations: the order that the client gave is the order of the answers.
fn check_distinct(operations: &[Operation]) -> Result<(), CommandError> {
    if operations.len() == 1 {
        return Ok(());
    }
    let mut order: Vec<usize> = (0..operations.len()).collect();
    order.sort_by(|a, b| operations[*a].key.cmp(&operations[*b].key));
    match order.windows(2).find(|pair| operations[pair[0]].key == operations[pair[1]].key) {
        Some(pair) => Err(CommandError::KeyTwice { operation: pair[1] }),
        None => Ok(()),
    }
}

fn encode_operation(operation: &Operation, out: &mut BytesMut) {
    out.put_u8(match operation.action {
        Action::Put(_) => OPERATION_PUT,
        Action::Delete => OPERATION_DELETE,
    });
    let (condition, version) = match operation.condition {
        Condition::None => (CONDITION_NONE, 0),
        Condition::IfVersion(version) => (CONDITION_IF_VERSION, version),
    };
    out.put_u8(condition);
    out.put_u64_le(version);
    out.put_u16_le(operation.key.len() as u16);
    out.put_slice(&operation.key);
    match &operation.action {
        Action::Put(put) => {
            out.put_u32_le(put.value.len() as u32);
            debug_assert_eq!(out.len(), put.payload_offset as usize);
            out.put_u32_le(put.checksum);
            out.put_slice(&put.value);
        }
        Action::Delete => {}
    }
}

fn decode_operation(reader: &mut Reader<'_>, operation: usize) -> Result<Operation, CommandError> {
    let kind = reader.u8("operation kind")?;
    let condition = reader.u8("condition")?;
    let version = reader.u64("condition's version")?;
    let condition = match condition {
        CONDITION_NONE if version != 0 => return Err(CommandError::StrayVersion(operation)),
        CONDITION_NONE => Condition::None,
        CONDITION_IF_VERSION => Condition::IfVersion(version),
        condition => return Err(CommandError::UnknownCondition { operation, condition }),
    };
    let key_length = usize::from(reader.u16("key length")?);
    let key = reader.slice(key_length, "key")?;
    let action = match kind {
        OPERATION_PUT => {
            let length = reader.u32("value length")? as usize;
            let payload_offset =
                u32::try_from(reader.position).map_err(|_| CommandError::EntryLength(reader.position))?;
            let checksum = reader.u32("checksum")?;
            Action::Put(PutValue { value: reader.slice(length, "value")?, checksum, payload_offset })
        }
        OPERATION_DELETE => Action::Delete,
        kind => return Err(CommandError::UnknownOperation { operation, kind }),
    };
    Ok(Operation { key, condition, action })
}

/// Which keys a command's payload puts, and where: without decoding it whole, for whoever looks through many. Of bytes
/// that are no command, what could be read before that showed; never a place outside of them.
pub fn regions_of(payload: &[u8]) -> Vec<KeyRegion> {
    let mut regions = Vec::new();
    if payload.len() > ENTRY_BYTES_MAX || payload.get(..2) != Some(&[FORMAT_VERSION, KIND_WRITE]) {
        return regions;
    }
    let count = payload.get(HEADER_BYTES - 2..HEADER_BYTES).and_then(|bytes| bytes.try_into().ok());
    let mut position = HEADER_BYTES;
    for _ in 0..count.map_or(0, u16::from_le_bytes) {
        let Some((region, end)) = region_at(payload, position) else { break };
        regions.extend(region);
        position = end;
    }
    regions
}

/// The operation at `position`: what it puts, if it does, and where it ends. `None`: there is none.
fn region_at(payload: &[u8], position: usize) -> Option<(Option<KeyRegion>, usize)> {
    let header = payload.get(position..position + OPERATION_HEADER_BYTES)?;
    let key = position + OPERATION_HEADER_BYTES;
    let key_length = usize::from(u16::from_le_bytes([header[10], header[11]]));
    let after_key = key + key_length;
    payload.get(key..after_key)?;
    match header[0] {
        OPERATION_DELETE => Some((None, after_key)),
        OPERATION_PUT => {
            let length = payload.get(after_key..after_key + VALUE_LENGTH_BYTES)?.try_into().ok()?;
            let offset = after_key + VALUE_LENGTH_BYTES;
            let end = offset + CHECKSUM_BYTES + u32::from_le_bytes(length) as usize;
            payload.get(offset..end)?;
            // All within the payload, whose length is bounded.
            let region = KeyRegion {
                key_offset: key as u32,
                key_length: key_length as u32,
                offset: offset as u32,
                length: (end - offset) as u32,
            };
            Some((Some(region), end))
        }
        _ => None,
    }
}

/// Takes fields off the front of a payload, each with the name that an error gives it.
struct Reader<'a> {
    payload: &'a Bytes,
    position: usize,
}

impl Reader<'_> {
    fn slice(&mut self, length: usize, field: &'static str) -> Result<Bytes, CommandError> {
        let end = self.position.checked_add(length).ok_or(CommandError::Truncated(field))?;
        if end > self.payload.len() {
            return Err(CommandError::Truncated(field));
        }
        let slice = self.payload.slice(self.position..end);
        self.position = end;
        Ok(slice)
    }

    fn array<const LENGTH: usize>(&mut self, field: &'static str) -> Result<[u8; LENGTH], CommandError> {
        let rest = self.payload.get(self.position..).unwrap_or_default();
        let array = rest.first_chunk::<LENGTH>().ok_or(CommandError::Truncated(field))?;
        self.position += LENGTH;
        Ok(*array)
    }

    fn u8(&mut self, field: &'static str) -> Result<u8, CommandError> {
        Ok(self.array::<1>(field)?[0])
    }

    fn u16(&mut self, field: &'static str) -> Result<u16, CommandError> {
        Ok(u16::from_le_bytes(self.array(field)?))
    }

    fn u32(&mut self, field: &'static str) -> Result<u32, CommandError> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    fn u64(&mut self, field: &'static str) -> Result<u64, CommandError> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }
}

#[cfg(test)]
mod tests;
