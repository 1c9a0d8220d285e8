//! Whether a running node uses a data directory.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;

/// The file that a node locks in its data directory.
const LOCK_FILE: &str = "lock";

/// How far up from a file its data directory may be: the log's directory, then the node's.
const LEVELS: usize = 3;

/// Whether a running node uses `path` or what it lies in. The lock is asked for and given back at once, so that a node
/// may start at any time.
pub(super) fn is_in_use(path: &Path) -> io::Result<bool> {
    let path = path.canonicalize()?;
    for directory in path.ancestors().take(LEVELS) {
        let file = match File::open(directory.join(LOCK_FILE)) {
            Ok(file) => file,
            // A file is no directory.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                continue;
            }
            Err(error) => return Err(error),
        };
        match file.try_lock_shared() {
            Ok(()) => file.unlock()?,
            Err(TryLockError::WouldBlock) => return Ok(true),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Ok(false)
}
