//! What the system tells of this process, of a directory and of a device.

use std::fs::{self, File};
use std::io;
use std::os::linux::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Advice, fadvise};
use serde::{Deserialize, Serialize};

/// Lets this thread rest: stores that work in threads of their own do not tell when those have come to rest.
pub fn sleep(duration: Duration) {
    std::thread::sleep(duration);
}

/// What a process has read and written, by `/proc/self/io`: bytes that went through the block layer on its behalf,
/// whether by the page cache, by direct I/O or by io_uring.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct ProcessIo {
    /// Bytes fetched from a device.
    pub read_bytes: u64,
    /// Bytes that were or will be sent to a device, less those that were deleted before.
    pub write_bytes: u64,
}

/// See [`ProcessIo`].
pub fn process_io() -> io::Result<ProcessIo> {
    let text = fs::read_to_string("/proc/self/io")?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|number| number.trim().parse::<u64>().ok())
            .ok_or_else(|| io::Error::other(format!("/proc/self/io has no {name}")))
    };
    let write_bytes = field("write_bytes:")?.saturating_sub(field("cancelled_write_bytes:")?);
    Ok(ProcessIo { read_bytes: field("read_bytes:")?, write_bytes })
}

/// What the device has done that holds a directory, for all processes together, by `/sys`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct DeviceIo {
    /// Read requests completed.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
}

/// See [`DeviceIo`]. None where the file system is on no block device.
pub fn device_io(directory: &Path) -> io::Result<Option<DeviceIo>> {
    let device = fs::metadata(directory)?.st_dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let Ok(text) = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")) else {
        return Ok(None);
    };
    let fields: Vec<u64> = text.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    let [reads, _, sectors_read, _, _, _, sectors_written, ..] = fields[..] else { return Ok(None) };
    Ok(Some(DeviceIo { reads, read_bytes: sectors_read * 512, written_bytes: sectors_written * 512 }))
}

/// Resident memory of this process that is its own (`RssAnon` of `/proc/self/status`), in bytes: what was allocated
/// and touched, in Rust or C++ alike, but neither the program's text nor pages of files.
pub fn resident_bytes() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib =
        line.and_then(|line| line.trim().strip_suffix("kB")).and_then(|number| number.trim().parse().ok());
    kib.map(|kib: u64| kib * 1024).ok_or_else(|| io::Error::other("/proc/self/status has no RssAnon"))
}

/// Calls `visit` with every file below a directory. What goes meanwhile is left out.
fn each_file(directory: &Path, visit: &mut impl FnMut(&Path, &fs::Metadata)) -> io::Result<()> {
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if gone(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => each_file(&entry.path(), visit)?,
            Ok(metadata) => visit(&entry.path(), &metadata),
            Err(error) if gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Bytes that the file system has given to the files of a directory, holes left out.
pub fn disk_bytes(directory: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    each_file(directory, &mut |_, metadata| bytes += metadata.st_blocks() * 512)?;
    Ok(bytes)
}

/// Puts the files of a directory out of the page cache, as if the machine had just started.
pub fn forget_cached(directory: &Path) -> io::Result<()> {
    let mut failed = None;
    each_file(directory, &mut |path, _| {
        let forgotten = File::open(path).and_then(|file| {
            // Pages that are not written yet stay: write them first.
            file.sync_all()?;
            Ok(fadvise(&file, 0, None, Advice::DontNeed)?)
        });
        failed = failed.take().or(forgotten.err());
    })?;
    failed.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_is_told_what_it_wrote() {
        let directory = std::env::temp_dir().join(format!("krita-measure-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory for temporary files");
        let path = directory.join("file");
        fs::write(&path, vec![7; 1 << 20]).expect("it is writable");
        assert!(disk_bytes(&directory).is_ok_and(|bytes| bytes >= 1 << 20));
        assert!(forget_cached(&directory).is_ok());
        assert!(process_io().is_ok() && resident_bytes().is_ok_and(|bytes| bytes > 0));
        fs::remove_dir_all(&directory).expect("it goes again");
    }
}
