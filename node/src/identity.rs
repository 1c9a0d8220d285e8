//! Who a node is and which cluster it belongs to: two small files at the top of the data directory.
//!
//! `identity` is written once, when the data directory is first used; its random uuid tells a node from a
//! wiped one with the same name. `cluster` holds the record of the cluster, from the moment the node accepted
//! it (see [`crate::forming`]). Both are replaced whole and durably, or not at all.
//!
//! ```text
//! offset  size  field, little-endian
//!      0     8  magic: "KRITAIDN" or "KRITACLU"
//!      8     4  format version: 1
//!     12     4  body length in bytes
//!     16     4  CRC-32 over bytes 0 to 15 and the body
//!     20     -  body
//!
//! body of identity: node uuid (16), then the node id (UTF-8)
//! body of cluster:  1: 0 (accepted) or 1 (formed), then a krita.v1.ClusterRecord; or
//!                   1: 2 (joined), the node's number (4), then the krita.v1.ClusterRecord that others formed
//! ```
//!
//! A file that is foreign, newer or damaged is an error that names it. Nothing here ever repairs, replaces or
//! removes such a file: it may be the only trace of what the node promised.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use krita_proto::v1;
use krita_runtime::{Disk, Rng};
use prost::Message;

/// The file that says who the node is.
pub const IDENTITY_FILE: &str = "identity";

/// The file that says which cluster it belongs to.
pub const CLUSTER_FILE: &str = "cluster";

/// Most members of a cluster record.
pub const MEMBERS_MAX: usize = 1024;

const FORMAT_VERSION: u32 = 1;

/// How the body of the cluster file of a node that joined begins.
const JOINED: u8 = 2;

const HEADER_BYTES: usize = 20;
const FILE_BYTES_MAX: usize = 1024 * 1024;
const IDENTITY_MAGIC: [u8; 8] = *b"KRITAIDN";
const CLUSTER_MAGIC: [u8; 8] = *b"KRITACLU";

/// 16 random bytes that name one data directory, for ever.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeUuid(pub [u8; 16]);

/// 16 random bytes that name one cluster, for ever.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub [u8; 16]);

impl NodeUuid {
    /// Reads it from a message.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// For a message.
    pub fn to_bytes(self) -> Bytes {
        Bytes::copy_from_slice(&self.0)
    }

    /// A new one, from unguessable random numbers.
    pub fn random(random: &impl Rng) -> Self {
        Self(random_uuid(random))
    }
}

impl ClusterId {
    /// Reads it from a message.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// For a message.
    pub fn to_bytes(self) -> Bytes {
        Bytes::copy_from_slice(&self.0)
    }

    /// A new one, from unguessable random numbers.
    pub fn random(random: &impl Rng) -> Self {
        Self(random_uuid(random))
    }
}

impl fmt::Display for NodeUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_uuid(&self.0, f)
    }
}

impl fmt::Debug for NodeUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_uuid(&self.0, f)
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_uuid(&self.0, f)
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_uuid(&self.0, f)
    }
}

/// A random uuid (RFC 9562, version 4).
fn random_uuid(random: &impl Rng) -> [u8; 16] {
    let (high, low) = (random.random_u64(), random.random_u64());
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&high.to_le_bytes());
    bytes[8..].copy_from_slice(&low.to_le_bytes());
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    bytes
}

fn write_uuid(bytes: &[u8; 16], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (position, byte) in bytes.iter().enumerate() {
        if matches!(position, 4 | 6 | 8 | 10) {
            f.write_str("-")?;
        }
        write!(f, "{byte:02x}")?;
    }
    Ok(())
}

/// Who a node is. Made once, with its data directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The node's name, as configured when the directory was made.
    pub node_id: String,
    /// Tells this data directory from every other.
    pub node_uuid: NodeUuid,
}

/// One member of a cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Given by the cluster, from 1.
    pub number: u32,
    /// The node's name.
    pub node_id: String,
    /// The data directory that may vote under this number; no other may.
    pub node_uuid: NodeUuid,
    /// Where others reach it.
    pub address: String,
}

/// What is fixed when a cluster is formed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterRecord {
    /// Guards against talking to the wrong cluster.
    pub cluster_name: String,
    /// Guards against a recreated cluster of the same name.
    pub cluster_id: ClusterId,
    /// Sorted by address, numbered from 1 in this order; uuids and addresses are distinct.
    pub members: Vec<Member>,
    /// Data shards, numbered from 1.
    pub shard_count: u32,
    /// Replicas of each shard; at most the number of members.
    pub replication_factor: u32,
}

impl ClusterRecord {
    /// The member whose data directory this is.
    pub fn member_by_uuid(&self, node_uuid: NodeUuid) -> Option<&Member> {
        self.members.iter().find(|member| member.node_uuid == node_uuid)
    }

    /// The member at this address.
    pub fn member_by_address(&self, address: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.address == address)
    }

    /// The member with this number.
    pub fn member_by_number(&self, number: u32) -> Option<&Member> {
        self.members.iter().find(|member| member.number == number)
    }
}

/// A message holds no valid cluster record; says why.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("cluster record: {0}")]
pub struct InvalidRecord(pub &'static str);

impl From<&ClusterRecord> for v1::ClusterRecord {
    fn from(record: &ClusterRecord) -> Self {
        Self {
            cluster_name: record.cluster_name.clone(),
            cluster_id: record.cluster_id.to_bytes(),
            members: record.members.iter().map(v1::Member::from).collect(),
            shard_count: record.shard_count,
            replication_factor: record.replication_factor,
        }
    }
}

impl From<&Member> for v1::Member {
    fn from(member: &Member) -> Self {
        Self {
            node_number: member.number,
            node_id: member.node_id.clone(),
            node_uuid: member.node_uuid.to_bytes(),
            address: member.address.clone(),
        }
    }
}

impl TryFrom<&v1::ClusterRecord> for ClusterRecord {
    type Error = InvalidRecord;

    fn try_from(message: &v1::ClusterRecord) -> Result<Self, InvalidRecord> {
        let cluster_id =
            ClusterId::from_bytes(&message.cluster_id).ok_or(InvalidRecord("cluster id is not 16 bytes"))?;
        if message.cluster_name.is_empty() {
            return Err(InvalidRecord("cluster name is empty"));
        }
        if message.members.is_empty() || message.members.len() > MEMBERS_MAX {
            return Err(InvalidRecord("number of members out of range"));
        }
        let mut members = Vec::with_capacity(message.members.len());
        for (number, member) in (1..).zip(&message.members) {
            if member.node_number != number {
                return Err(InvalidRecord("members are not numbered from 1"));
            }
            let node_uuid =
                NodeUuid::from_bytes(&member.node_uuid).ok_or(InvalidRecord("node uuid is not 16 bytes"))?;
            let (node_id, address) = (member.node_id.clone(), member.address.clone());
            members.push(Member { number, node_id, node_uuid, address });
        }
        if members.windows(2).any(|pair| pair[0].address >= pair[1].address) {
            return Err(InvalidRecord("members are not sorted by distinct addresses"));
        }
        let mut uuids: Vec<_> = members.iter().map(|member| member.node_uuid).collect();
        uuids.sort_unstable();
        if uuids.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(InvalidRecord("two members have one uuid"));
        }
        if message.shard_count == 0 || message.shard_count > krita_proto::routing::SHARDS_MAX {
            return Err(InvalidRecord("number of shards out of range"));
        }
        let factor = message.replication_factor;
        if factor == 0 || factor as usize > members.len() {
            return Err(InvalidRecord("replication factor out of range"));
        }
        Ok(Self {
            cluster_name: message.cluster_name.clone(),
            cluster_id,
            members,
            shard_count: message.shard_count,
            replication_factor: factor,
        })
    }
}

/// What a node durably knows of its cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterState {
    /// The only record that this data directory will ever accept.
    pub record: ClusterRecord,
    /// Every member has accepted the record: it is final.
    pub formed: bool,
}

/// A cluster that others have formed, and that this node has joined.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Joined {
    /// This node's number in it; greater than any in the record.
    pub number: u32,
    /// How the cluster was formed. Does not name this node.
    pub record: ClusterRecord,
}

/// What the file of the cluster holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Belonging {
    /// The node is one of those that form the cluster.
    Founder(ClusterState),
    /// It came later.
    Joined(Joined),
}

/// Why the data directory cannot be used. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The disk failed, or refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not one of Krita's.
    #[error("{} is not a file of Krita's: name another data_directory, or move the file away", .0.display())]
    Foreign(PathBuf),
    /// A newer version of Krita wrote it.
    #[error(
        "{} has format {format}; this version knows {FORMAT_VERSION}: run the version that wrote it, or a newer one",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The format found.
        format: u32,
    },
    /// The file's bytes are not those that were written.
    #[error(
        "{} is damaged ({reason}): restore it from a copy; a new one would make this node a stranger to its cluster",
        path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: &'static str,
    },
    /// The directory belongs to another node.
    #[error(
        "{} was made for node_id \"{recorded}\", but node_id is \"{configured}\": correct node_id or data_directory",
        path.display()
    )]
    OtherNode {
        /// The identity file.
        path: PathBuf,
        /// Whose it is.
        recorded: String,
        /// Who asks.
        configured: String,
    },
    /// Not a fresh directory, but without identity.
    #[error(
        "{} holds \"{found}\" but no identity file: it is not a fresh data directory; restore its identity file or \
         name an empty directory",
        directory.display()
    )]
    NotFresh {
        /// The data directory.
        directory: PathBuf,
        /// One thing that it holds.
        found: String,
    },
}

/// Reads the directory's identity; `None` if the directory is fresh. Changes nothing, so that it may be asked before
/// the lock is taken, which leaves a file behind.
///
/// # Errors
/// The directory is not this node's, or cannot be used.
pub async fn check_directory<R: Disk>(
    runtime: &R,
    directory: &Path,
    node_id: &str,
) -> Result<Option<Identity>, IdentityError> {
    let path = directory.join(IDENTITY_FILE);
    let Some(body) = read_checked(runtime, &path, &IDENTITY_MAGIC).await? else {
        refuse_unless_fresh(runtime, directory).await?;
        return Ok(None);
    };
    let identity = decode_identity(&body).map_err(|reason| corrupt(&path, reason))?;
    if identity.node_id != node_id {
        let (recorded, configured) = (identity.node_id, node_id.to_owned());
        return Err(IdentityError::OtherNode { path, recorded, configured });
    }
    Ok(Some(identity))
}

/// Reads the directory's identity, or makes it if the directory is fresh; durable on return. The caller holds
/// the directory's lock.
///
/// # Errors
/// The directory is not this node's, or cannot be used; then nothing was written.
pub async fn load_or_create_identity<R: Disk + Rng>(
    runtime: &R,
    directory: &Path,
    node_id: &str,
) -> Result<Identity, IdentityError> {
    if let Some(identity) = check_directory(runtime, directory, node_id).await? {
        return Ok(identity);
    }
    let path = directory.join(IDENTITY_FILE);
    let identity = Identity { node_id: node_id.to_owned(), node_uuid: NodeUuid::random(runtime) };
    write_checked(runtime, &path, &IDENTITY_MAGIC, &encode_identity(&identity)).await?;
    Ok(identity)
}

/// Reads what the directory knows of its cluster; `None` before it accepted a record or joined.
///
/// # Errors
/// The file cannot be used.
pub async fn load_cluster<R: Disk>(
    runtime: &R,
    directory: &Path,
) -> Result<Option<Belonging>, IdentityError> {
    let path = directory.join(CLUSTER_FILE);
    let Some(body) = read_checked(runtime, &path, &CLUSTER_MAGIC).await? else { return Ok(None) };
    decode_cluster(&body).map(Some).map_err(|reason| corrupt(&path, reason))
}

/// Replaces what the directory knows of its cluster; durable on return.
///
/// # Errors
/// The disk failed: the old or the new state is there, whole.
pub async fn store_cluster<R: Disk>(
    runtime: &R,
    directory: &Path,
    state: &ClusterState,
) -> Result<(), IdentityError> {
    write_checked(runtime, &directory.join(CLUSTER_FILE), &CLUSTER_MAGIC, &encode_cluster(state)).await
}

/// Notes that this node has joined a cluster; durable on return. The directory knows of no other.
///
/// # Errors
/// The disk failed: it is noted or it is not.
pub async fn store_joined<R: Disk>(
    runtime: &R,
    directory: &Path,
    joined: &Joined,
) -> Result<(), IdentityError> {
    write_checked(runtime, &directory.join(CLUSTER_FILE), &CLUSTER_MAGIC, &encode_joined(joined)).await
}

/// A new identity in a directory with data would give old logs a new owner.
async fn refuse_unless_fresh<R: Disk>(runtime: &R, directory: &Path) -> Result<(), IdentityError> {
    let names = runtime.list_directory(directory).await;
    let names = names.map_err(|source| IdentityError::Io { path: directory.to_owned(), source })?;
    for name in names {
        let name = name.file_name().unwrap_or(name.as_os_str()).to_string_lossy().into_owned();
        // What a first start that was killed early, the lock, or a new file system leaves behind.
        let harmless = name.starts_with(IDENTITY_FILE)
            || name.trim_start_matches('.').to_ascii_lowercase().starts_with("lock")
            || name == "lost+found";
        if !harmless {
            return Err(IdentityError::NotFresh { directory: directory.to_owned(), found: name });
        }
    }
    Ok(())
}

fn corrupt(path: &Path, reason: &'static str) -> IdentityError {
    IdentityError::Corrupt { path: path.to_owned(), reason }
}

fn encode_identity(identity: &Identity) -> Vec<u8> {
    let mut body = identity.node_uuid.0.to_vec();
    body.extend_from_slice(identity.node_id.as_bytes());
    body
}

fn decode_identity(body: &[u8]) -> Result<Identity, &'static str> {
    let (uuid, node_id) = body.split_first_chunk::<16>().ok_or("it ends within the uuid")?;
    let node_id = std::str::from_utf8(node_id).map_err(|_| "the node id is not text")?;
    Ok(Identity { node_id: node_id.to_owned(), node_uuid: NodeUuid(*uuid) })
}

fn encode_cluster(state: &ClusterState) -> Vec<u8> {
    let mut body = vec![u8::from(state.formed)];
    body.extend_from_slice(&v1::ClusterRecord::from(&state.record).encode_to_vec());
    body
}

fn encode_joined(joined: &Joined) -> Vec<u8> {
    let mut body = vec![JOINED];
    body.extend_from_slice(&joined.number.to_le_bytes());
    body.extend_from_slice(&v1::ClusterRecord::from(&joined.record).encode_to_vec());
    body
}

fn decode_cluster(body: &[u8]) -> Result<Belonging, &'static str> {
    match body {
        [formed @ (0 | 1), record @ ..] => {
            let record = decode_record(record)?;
            Ok(Belonging::Founder(ClusterState { record, formed: *formed == 1 }))
        }
        [JOINED, one, two, three, four, record @ ..] => {
            let (number, record) = (u32::from_le_bytes([*one, *two, *three, *four]), decode_record(record)?);
            if record.member_by_number(number).is_some() || number == 0 {
                return Err("the number of a node that joined is that of a founder");
            }
            Ok(Belonging::Joined(Joined { number, record }))
        }
        _ => Err("it says neither that the cluster is formed nor that it was joined"),
    }
}

fn decode_record(record: &[u8]) -> Result<ClusterRecord, &'static str> {
    let message = v1::ClusterRecord::decode(record).map_err(|_| "the record is not a ClusterRecord")?;
    ClusterRecord::try_from(&message).map_err(|invalid| invalid.0)
}

async fn write_checked<R: Disk>(
    runtime: &R,
    path: &Path,
    magic: &[u8; 8],
    body: &[u8],
) -> Result<(), IdentityError> {
    let content = seal(magic, body);
    assert!(content.len() <= FILE_BYTES_MAX, "members and names are bounded");
    let result = runtime.replace_small_file(path, &content).await;
    result.map_err(|source| IdentityError::Io { path: path.to_owned(), source })
}

async fn read_checked<R: Disk>(
    runtime: &R,
    path: &Path,
    magic: &[u8; 8],
) -> Result<Option<Vec<u8>>, IdentityError> {
    let content = match runtime.read_small_file(path, FILE_BYTES_MAX).await {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(IdentityError::Foreign(path.to_owned()));
        }
        Err(source) => return Err(IdentityError::Io { path: path.to_owned(), source }),
    };
    unseal(path, magic, &content).map(Some)
}

fn seal(magic: &[u8; 8], body: &[u8]) -> Vec<u8> {
    let mut content = Vec::with_capacity(HEADER_BYTES + body.len());
    content.extend_from_slice(magic);
    content.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    content.extend_from_slice(&(body.len() as u32).to_le_bytes());
    let checksum = checksum(&content, body);
    content.extend_from_slice(&checksum.to_le_bytes());
    content.extend_from_slice(body);
    content
}

fn unseal(path: &Path, magic: &[u8; 8], content: &[u8]) -> Result<Vec<u8>, IdentityError> {
    let Some((header, body)) = content.split_first_chunk::<HEADER_BYTES>() else {
        return Err(corrupt(path, "it ends within the header"));
    };
    if header[..8] != magic[..] {
        return Err(IdentityError::Foreign(path.to_owned()));
    }
    let field = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    // The format comes before the checksum, since a newer format may check itself otherwise.
    let format = field(8);
    if format != FORMAT_VERSION {
        return Err(IdentityError::Newer { path: path.to_owned(), format });
    }
    if field(12) as usize != body.len() {
        return Err(corrupt(path, "its length is not the recorded one"));
    }
    if field(16) != checksum(&header[..16], body) {
        return Err(corrupt(path, "its checksum does not match"));
    }
    Ok(body.to_vec())
}

fn checksum(header: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header);
    hasher.update(body);
    hasher.finalize()
}

#[cfg(test)]
mod tests;
