//! What all files share: names, the common constants, checksums, and a reader that never panics on bytes from
//! a disk. `docs/disk_format.md` holds the tables; a test keeps the two equal.

use std::path::Path;

use krita_runtime::BLOCK_SIZE;
use twox_hash::XxHash3_64;

/// The version of every structure on disk.
pub(crate) const FORMAT_VERSION: u16 = 2;

/// Alignment of everything that is written, in bytes.
pub(crate) const BLOCK: u32 = BLOCK_SIZE as u32;
const _: () = assert!(BLOCK_SIZE == 4096, "the format's block does not follow the runtime's");

/// The seed of the manifest's checksums; every other file uses the nonce that the manifest holds.
pub(crate) const MANIFEST_SEED: u64 = 0x6b72_6974_616d_6631;

pub(crate) const SEGMENT_PREFIX: &str = "segment-";
pub(crate) const CHECKPOINT_PREFIX: &str = "checkpoint-";
pub(crate) const MANIFEST_PREFIX: &str = "manifest-";

/// The checksum of everything on disk but values: xxh3, 64 bits. The seed is a random number of this log's
/// own, so that nobody can craft a value that looks like a batch.
pub(crate) fn checksum(seed: u64, bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot_with_seed(seed, bytes)
}

/// `length` rounded up to whole blocks.
pub(crate) const fn padded(length: usize) -> usize {
    length.next_multiple_of(BLOCK_SIZE)
}

/// The number in a name such as `segment-7`.
pub(crate) fn number_after(path: &Path, prefix: &str) -> Option<u64> {
    let digits = path.file_name()?.to_str()?.strip_prefix(prefix)?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// Reads integers, little-endian, off the front of a slice.
#[derive(Clone)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub(crate) fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.bytes.split_at_checked(length)?;
        self.bytes = tail;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        Some(u8::from_le_bytes(self.array()?))
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.array()?))
    }

    /// A byte string behind its length (u32).
    pub(crate) fn string(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()?;
        self.take(usize::try_from(length).ok()?)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// Appends a byte string behind its length (u32).
pub(crate) fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&length_u32(bytes.len()).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// A length that our own bounds keep below 4 GiB.
pub(crate) fn length_u32(length: usize) -> u32 {
    u32::try_from(length).expect("every length on disk is bounded far below 4 GiB")
}
