//! Segment files: made once, full of zeros, then used over and over, one life after another.
//!
//! ```text
//!   made ──▶ spare ──▶ in use ──▶ dead ──┐      a life's number (SegmentId) is given when the file goes
//!              ▲       (SegmentId n)     │      into use, and stands in its header block
//!              └─────────────────────────┘
//! ```

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use krita_runtime::{File, OpenOptions, Runtime};

use crate::format::{BLOCK, FORMAT_VERSION, Reader, SEGMENT_PREFIX, checksum};
use crate::types::{LogId, SegmentId};

/// Length of the part of a segment's first block that says something.
pub(crate) const SEGMENT_HEADER_BYTES: usize = 48;
/// "KRITASEG".
pub(crate) const SEGMENT_MAGIC: u64 = u64::from_le_bytes(*b"KRITASEG");
/// Where the first batch of a segment starts.
pub(crate) const SEGMENT_BODY: u32 = BLOCK;

/// The first block of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SegmentHeader {
    pub(crate) log: LogId,
    /// The number in the file's name.
    pub(crate) file: u32,
    /// 0: spare, never used.
    pub(crate) segment: SegmentId,
    /// The number of the first batch, and the checksum of the one before it, which is in the segment before.
    pub(crate) first_sequence: u64,
    pub(crate) previous: u64,
}

impl SegmentHeader {
    /// Writes the header block.
    pub(crate) fn encode(&self, block: &mut [u8], nonce: u64) {
        block.fill(0);
        block[8..16].copy_from_slice(&SEGMENT_MAGIC.to_le_bytes());
        block[16..18].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        block[18..20].copy_from_slice(&self.log.0.to_le_bytes());
        block[20..24].copy_from_slice(&self.file.to_le_bytes());
        block[24..32].copy_from_slice(&self.segment.0.to_le_bytes());
        block[32..40].copy_from_slice(&self.first_sequence.to_le_bytes());
        block[40..48].copy_from_slice(&self.previous.to_le_bytes());
        let sum = checksum(nonce, &block[8..SEGMENT_HEADER_BYTES]);
        block[..8].copy_from_slice(&sum.to_le_bytes());
    }

    /// The version of a header that is whole, and of another version than this one's.
    pub(crate) fn other_version(block: &[u8], nonce: u64) -> Option<u16> {
        let mut reader = Reader::new(block);
        let (sum, magic, version) = (reader.u64()?, reader.u64()?, reader.u16()?);
        let whole = checksum(nonce, block.get(8..SEGMENT_HEADER_BYTES)?) == sum;
        (magic == SEGMENT_MAGIC && version != FORMAT_VERSION && whole).then_some(version)
    }

    /// Reads a header block; none if it is torn, damaged or never was one.
    pub(crate) fn decode(block: &[u8], nonce: u64) -> Option<Self> {
        let mut reader = Reader::new(block);
        let sum = reader.u64()?;
        let (magic, version) = (reader.u64()?, reader.u16()?);
        if magic != SEGMENT_MAGIC || checksum(nonce, block.get(8..SEGMENT_HEADER_BYTES)?) != sum {
            return None;
        }
        let header = Self {
            log: LogId(reader.u16()?),
            file: reader.u32()?,
            segment: SegmentId(reader.u64()?),
            first_sequence: reader.u64()?,
            previous: reader.u64()?,
        };
        (version == FORMAT_VERSION).then_some(header)
    }
}

/// A segment file that is open for reading and durable writing.
pub(crate) struct SegmentFile<R: Runtime> {
    pub(crate) number: u32,
    pub(crate) file: R::File,
}

impl<R: Runtime> Clone for SegmentFile<R> {
    fn clone(&self) -> Self {
        Self { number: self.number, file: self.file.clone() }
    }
}

/// All segments of a log.
pub(crate) struct Segments<R: Runtime> {
    /// Lives that may still be needed, the one being written included.
    pub(crate) used: BTreeMap<SegmentId, SegmentFile<R>>,
    /// Files ready for a new life.
    pub(crate) spare: VecDeque<SegmentFile<R>>,
    /// The number for the next new file; above all present ones.
    pub(crate) next_file: u32,
}

impl<R: Runtime> Segments<R> {
    pub(crate) fn path(directory: &Path, number: u32) -> PathBuf {
        directory.join(format!("{SEGMENT_PREFIX}{number}"))
    }
}

/// How a segment file is opened for its lives.
pub(crate) const SEGMENT_OPEN: OpenOptions = OpenOptions { write: true, create: false, durable_writes: true };

/// Makes a segment file: all zeros, then the header of a spare. Durable on return, its name included. The
/// header comes last: a file with a valid header is whole.
pub(crate) async fn make<R: Runtime>(
    runtime: &R,
    directory: &Path,
    length: u32,
    header: SegmentHeader,
    nonce: u64,
) -> std::io::Result<SegmentFile<R>> {
    const SLICE: u32 = 1 << 20;
    let path = Segments::<R>::path(directory, header.file);
    let file = runtime.open(&path, OpenOptions { write: true, create: true, durable_writes: false }).await?;
    let mut position = 0;
    while position < length {
        let slice = SLICE.min(length - position);
        let mut buffer = file.buffer(slice as usize);
        buffer.fill(0);
        file.write_at(buffer, u64::from(position)).await?;
        position += slice;
        runtime.pause().await;
    }
    file.sync_data().await?;
    let mut block = file.buffer(BLOCK as usize);
    header.encode(&mut block, nonce);
    file.write_at(block, 0).await?;
    file.sync_data().await?;
    runtime.sync_directory(directory).await?;
    let file = runtime.open(&path, SEGMENT_OPEN).await?;
    Ok(SegmentFile { number: header.file, file })
}

/// Who holds which segments back from being used again, by count.
#[derive(Clone, Default)]
pub(crate) struct Pins {
    counts: Rc<RefCell<BTreeMap<SegmentId, u64>>>,
}

impl Pins {
    /// Holds `segments` until the pin is dropped.
    pub(crate) fn pin(&self, segments: impl IntoIterator<Item = SegmentId>) -> Pin {
        let mut pin = Pin { pins: self.clone(), segments: BTreeSet::new() };
        for segment in segments {
            pin.add(segment);
        }
        pin
    }

    pub(crate) fn is_pinned(&self, segment: SegmentId) -> bool {
        self.counts.borrow().contains_key(&segment)
    }
}

/// Segments held back.
pub(crate) struct Pin {
    pins: Pins,
    segments: BTreeSet<SegmentId>,
}

impl Pin {
    /// Holds one more; each once per pin.
    pub(crate) fn add(&mut self, segment: SegmentId) {
        if self.segments.insert(segment) {
            *self.pins.counts.borrow_mut().entry(segment).or_default() += 1;
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut counts = self.pins.counts.borrow_mut();
        for segment in &self.segments {
            let count = counts.get_mut(segment).expect("pinned segments are counted");
            *count -= 1;
            if *count == 0 {
                counts.remove(segment);
            }
        }
    }
}
