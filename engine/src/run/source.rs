//! Reading checked blocks of a run's file.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use krita_runtime::{File, OpenOptions, Runtime, TaskClass};

use super::envelope::{Checked, check, claimed_bytes};
use super::{RunIdentity, RunRecord};
use crate::error::{Corruption, ReadError};
use crate::gate::detached;

/// Length of the reads of parts that are read whole: several of the longest blocks.
const WALK_BYTES: usize = 256 << 10;
/// Bytes of such parts that are worked on without a pause.
const SLICE_BYTES: usize = 16 << 10;

/// A run's file.
pub(super) struct Source<R: Runtime> {
    pub(super) runtime: R,
    file: R::File,
    pub(super) path: PathBuf,
    pub(super) identity: RunIdentity,
}

impl<R: Runtime> Source<R> {
    /// Opens the file, if it is there with the length that the record says.
    pub(super) async fn open(
        runtime: &R,
        directory: &Path,
        identity: RunIdentity,
        record: &RunRecord,
    ) -> Result<Self, ReadError> {
        let path = identity.path(directory);
        let file = match runtime.open(&path, OpenOptions::default()).await {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(corruption(&path, 0, "a run that the manifest names is missing"));
            }
            Err(error) => return Err(ReadError::Io { file: path, what: error.to_string() }),
        };
        let source = Self { runtime: runtime.clone(), file, path, identity };
        let length = source.file.length().await.map_err(|error| source.failed(&error))?;
        if length != record.length {
            let what =
                format!("the run has {length} bytes, not the {} that the manifest says", record.length);
            return Err(source.damaged(length.min(record.length), &what));
        }
        Ok(source)
    }

    pub(super) fn damaged(&self, offset: u64, what: &str) -> ReadError {
        corruption(&self.path, offset, what)
    }

    fn failed(&self, error: &io::Error) -> ReadError {
        ReadError::Io { file: self.path.clone(), what: error.to_string() }
    }

    /// Reads bytes, all of them. The caller may go away.
    pub(super) async fn read(
        &self,
        class: TaskClass,
        position: u64,
        length: usize,
    ) -> Result<Bytes, ReadError> {
        let read = self.file.read_at(position, length);
        let read = detached(&self.runtime, class, "run read", read).await.ok_or(ReadError::Closed)?;
        let bytes = read.map_err(|error| self.failed(&error))?;
        if bytes.len() == length {
            Ok(bytes)
        } else {
            Err(self.damaged(position + bytes.len() as u64, "the run is too short"))
        }
    }

    /// The block at `position` and at the front of `bytes`.
    pub(super) fn check<'a>(
        &self,
        bytes: &'a [u8],
        position: u64,
        seed: u64,
    ) -> Result<Checked<'a>, ReadError> {
        check(bytes, position, &self.identity, seed).ok_or_else(|| self.damaged(position, "an invalid block"))
    }

    /// Reads blocks one after the other; `each` gets every block with its position, and says what is wrong with it.
    pub(super) async fn walk(
        &self,
        walk: Walk,
        mut each: impl FnMut(u64, &Checked<'_>) -> Result<(), &'static str>,
    ) -> Result<(), ReadError> {
        let mut position = walk.start;
        while position < walk.end {
            let length = usize::try_from(walk.end - position).unwrap_or(usize::MAX).min(WALK_BYTES);
            let bytes = self.read(walk.class, position, length).await?;
            let (mut offset, mut paused) = (0, 0);
            // At least one block a read, or its check says what is wrong.
            while offset < bytes.len() {
                let rest = &bytes[offset..];
                let whole = claimed_bytes(rest).is_some_and(|claimed| claimed <= rest.len());
                if offset > 0 && !whole && length == WALK_BYTES {
                    break;
                }
                let here = position + offset as u64;
                let block = self.check(rest, here, walk.seed)?;
                each(here, &block).map_err(|what| self.damaged(here, what))?;
                offset += block.bytes.len();
                if offset - paused >= SLICE_BYTES {
                    paused = offset;
                    self.runtime.pause().await;
                }
            }
            position += offset as u64;
            match walk.bytes_per_second {
                None => self.runtime.pause().await,
                Some(rate) => self.runtime.sleep(duration_of(offset, rate)).await,
            }
        }
        Ok(())
    }
}

/// Which blocks are walked, and how.
pub(super) struct Walk {
    pub(super) class: TaskClass,
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) seed: u64,
    /// How fast at most; as fast as the disk if none.
    pub(super) bytes_per_second: Option<u64>,
}

/// How long reading `bytes` should take.
fn duration_of(bytes: usize, bytes_per_second: u64) -> Duration {
    let nanoseconds = (bytes as u64).saturating_mul(1_000_000_000) / bytes_per_second.max(1);
    Duration::from_nanos(nanoseconds)
}

fn corruption(path: &Path, offset: u64, what: &str) -> ReadError {
    Corruption { file: path.to_owned(), offset, what: what.to_owned(), sequences: None }.into()
}
