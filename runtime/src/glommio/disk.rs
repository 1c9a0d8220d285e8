//! Files on the real machine: data by direct I/O through the ring, metadata on the helper thread.
//!
//! Every data operation runs in a task of its own, so that a caller who goes away leaves it to its end: the
//! kernel keeps its buffer, and the file its descriptor. (Glommio would keep the buffer too, but it cancels the
//! operation, and then neither side knows what was written.)

use std::fs;
use std::io::{self, Write as _};
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Mutex;

use ::glommio::io::{DmaBuffer, DmaFile, OpenOptions as GlommioOpenOptions, ReadResult};
use bytes::{Bytes, BytesMut};

use super::{GlommioRuntime, helper};
use crate::{BLOCK_SIZE, Disk, File, OpenOptions};

/// The file that carries the lock of a directory.
const LOCK_FILE: &str = "lock";

/// What [`Disk::replace_small_file`] adds to the name of the file it writes first.
const TEMPORARY_SUFFIX: &str = ".new";

/// Locks held until the process ends, one descriptor each.
static LOCKS: Mutex<Vec<fs::File>> = Mutex::new(Vec::new());

/// An open file. Clones share the descriptor, which is closed when the last goes and no operation is left.
#[derive(Clone)]
pub struct GlommioFile {
    file: Rc<DmaFile>,
}

/// Memory aligned for direct I/O.
pub struct GlommioBuffer(DmaBuffer);

impl Deref for GlommioBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl DerefMut for GlommioBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.0.as_bytes_mut()
    }
}

impl File for GlommioFile {
    type Buffer = GlommioBuffer;

    fn buffer(&self, length: usize) -> GlommioBuffer {
        assert!(length > 0 && length.is_multiple_of(BLOCK_SIZE), "buffer of {length} bytes is not aligned");
        let buffer = self.file.alloc_dma_buffer(length);
        assert_eq!(buffer.len(), length, "a buffer has the length asked for");
        GlommioBuffer(buffer)
    }

    fn write_at(
        &self,
        buffer: GlommioBuffer,
        position: u64,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        assert!(position.is_multiple_of(BLOCK_SIZE as u64), "position {position} is not aligned");
        assert!(buffer.len().is_multiple_of(BLOCK_SIZE), "{} bytes are not aligned", buffer.len());
        let file = Rc::clone(&self.file);
        to_the_end(async move {
            let length = buffer.len();
            let written = file.write_at(buffer.0, position).await?;
            if written == length {
                Ok(())
            } else {
                let message = format!("short write at {position}: {written} of {length} bytes");
                Err(io::Error::new(io::ErrorKind::WriteZero, message))
            }
        })
    }

    fn read_at(&self, position: u64, length: usize) -> impl Future<Output = io::Result<Bytes>> + 'static {
        let file = Rc::clone(&self.file);
        to_the_end(async move { read_clamped(&file, position, length).await })
    }

    fn sync_data(&self) -> impl Future<Output = io::Result<()>> + 'static {
        let file = Rc::clone(&self.file);
        to_the_end(async move { Ok(file.fdatasync().await?) })
    }

    fn length(&self) -> impl Future<Output = io::Result<u64>> + 'static {
        std::future::ready(length_of(self.file.as_raw_fd()))
    }
}

/// Runs an operation as a task that survives whoever waits for it.
async fn to_the_end<T: 'static>(operation: impl Future<Output = io::Result<T>> + 'static) -> io::Result<T> {
    match ::glommio::spawn_local(operation).detach().await {
        Some(result) => result,
        None => Err(io::Error::other("the core ended during a file operation")),
    }
}

/// Reads aligned blocks around the range asked for, again and again while the file has more, and returns the
/// part asked for. The end of the file need not be aligned.
async fn read_clamped(file: &DmaFile, position: u64, length: usize) -> io::Result<Bytes> {
    let block = BLOCK_SIZE as u64;
    let end = position.checked_add(length as u64).ok_or(io::ErrorKind::InvalidInput)?;
    let mut collected = BytesMut::new();
    let mut next = position;
    while next < end {
        let start = next - next % block;
        let span = usize::try_from(end.next_multiple_of(block) - start).map_err(io::Error::other)?;
        let read = file.read_at_aligned(start, span).await?;
        let read_end = start + read.len() as u64;
        let part = within(&read, start, next, end);
        if next == position && (read_end >= end || read.is_empty()) {
            return Ok(Bytes::copy_from_slice(part));
        }
        collected.extend_from_slice(part);
        // Short, and without progress or at the end of the file: there is no more.
        if read_end <= next || read_end >= length_of(file.as_raw_fd())? {
            break;
        }
        next = read_end.min(end);
    }
    Ok(collected.freeze())
}

/// The bytes `from..to` of the file, as far as a read that began at `start` brought them.
fn within(read: &ReadResult, start: u64, from: u64, to: u64) -> &[u8] {
    let brought = read.len() as u64;
    let first = (from - start).min(brought);
    let last = (to - start).min(brought);
    // Both fit: they are at most the length of a slice.
    &read[first as usize..last as usize]
}

/// The length of an open file, by its descriptor: a path may name another file by now. Answered from memory.
fn length_of(descriptor: RawFd) -> io::Result<u64> {
    let mut status = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the kernel fills the structure, which has room, and keeps no reference to it.
    if unsafe { libc::fstat(descriptor, status.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fstat succeeded, so the structure is filled.
    let status = unsafe { status.assume_init() };
    u64::try_from(status.st_size).map_err(io::Error::other)
}

impl Disk for GlommioRuntime {
    type File = GlommioFile;

    async fn open(&self, path: &Path, options: OpenOptions) -> io::Result<GlommioFile> {
        let mut glommio = GlommioOpenOptions::new();
        glommio.read(true).write(options.write || options.create).create(options.create);
        if options.durable_writes {
            glommio.custom_flags(libc::O_DSYNC);
        }
        let path = path.to_path_buf();
        // In a task of its own: an open that is cancelled half-way would lose its descriptor.
        to_the_end(async move { Ok(GlommioFile { file: Rc::new(glommio.dma_open(&path).await?) }) }).await
    }

    async fn create_directory(&self, path: &Path) -> io::Result<()> {
        let path = path.to_path_buf();
        helper::files(move || fs::create_dir_all(path)).await
    }

    async fn list_directory(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let path = path.to_path_buf();
        helper::files(move || {
            let mut names = fs::read_dir(path)?
                .map(|entry| Ok(PathBuf::from(entry?.file_name())))
                .collect::<io::Result<Vec<_>>>()?;
            names.sort_unstable();
            Ok(names)
        })
        .await
    }

    async fn sync_directory(&self, path: &Path) -> io::Result<()> {
        let path = path.to_path_buf();
        helper::files(move || sync_directory(&path)).await
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (from.to_path_buf(), to.to_path_buf());
        helper::files(move || fs::rename(from, to)).await
    }

    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        let path = path.to_path_buf();
        helper::files(move || fs::remove_file(path)).await
    }

    async fn read_small_file(&self, path: &Path, length_max: usize) -> io::Result<Vec<u8>> {
        let path = path.to_path_buf();
        helper::files(move || read_small_file(&path, length_max)).await
    }

    async fn replace_small_file(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let (path, content) = (path.to_path_buf(), content.to_vec());
        helper::files(move || replace_small_file(&path, &content)).await
    }

    async fn lock_directory(&self, path: &Path) -> io::Result<()> {
        let path = path.to_path_buf();
        helper::files(move || lock_directory(&path)).await
    }

    async fn available_bytes(&self, path: &Path) -> io::Result<u64> {
        let path = path.to_path_buf();
        helper::files(move || available_bytes(&path)).await
    }
}

/// A full flush: `fdatasync`, which is all that glommio offers, may leave out a change to a directory that did
/// not change its size.
fn sync_directory(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}

fn read_small_file(path: &Path, length_max: usize) -> io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut content = Vec::new();
    let limit = u64::try_from(length_max).unwrap_or(u64::MAX).saturating_add(1);
    fs::File::open(path)?.take(limit).read_to_end(&mut content)?;
    if content.len() > length_max {
        let message = format!("{} is longer than {length_max} bytes", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(content)
}

fn replace_small_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(TEMPORARY_SUFFIX);
    let mut file = fs::File::create(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(parent) if parent != Path::new("") => sync_directory(parent),
        Some(_) | None => sync_directory(Path::new(".")),
    }
}

fn lock_directory(path: &Path) -> io::Result<()> {
    let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(path.join(LOCK_FILE))?;
    // SAFETY: flock takes a descriptor, which `file` keeps open, and no memory.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
        return Err(io::Error::last_os_error());
    }
    LOCKS.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(file);
    Ok(())
}

fn available_bytes(path: &Path) -> io::Result<u64> {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let mut status = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path ends in a zero byte; the kernel fills the structure, which has room.
    if unsafe { libc::statvfs(path.as_ptr(), status.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: statvfs succeeded, so the structure is filled.
    let status = unsafe { status.assume_init() };
    Ok(status.f_bavail.saturating_mul(status.f_frsize))
}
