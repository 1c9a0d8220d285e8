//! Files and folders of the machine, as the inspector reads them.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use krita_engine::inspect::{Directory, ReadAt};

/// A file that is open for reading.
pub(super) struct OpenFile {
    file: File,
    path: PathBuf,
}

impl OpenFile {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        // A pipe would be waited for.
        if !std::fs::metadata(path).map_err(|error| named(path, error))?.is_file() {
            let message = format!("{}: not a regular file", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let file = File::open(path).map_err(|error| named(path, error))?;
        Ok(Self { file, path: path.to_owned() })
    }
}

impl ReadAt for OpenFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata().map_err(|error| named(&self.path, error))?.len())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut file = &self.file;
        let read = file.seek(SeekFrom::Start(offset)).and_then(|_| file.read(buffer));
        read.map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => error,
            _ => named(&self.path, io::Error::new(error.kind(), format!("byte {offset}: {error}"))),
        })
    }
}

/// A folder.
pub(super) struct Folder(pub(super) PathBuf);

impl Directory for Folder {
    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.0).map_err(|error| named(&self.0, error))? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn ReadAt + '_>> {
        Ok(Box::new(OpenFile::open(&self.0.join(name))?))
    }
}

/// The error with the path in front.
pub(super) fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// The logs of `path`: itself, or, if it is a data directory, those in it.
pub(super) fn logs(path: &Path) -> io::Result<Vec<PathBuf>> {
    let names = Folder(path.to_owned()).names()?;
    let mut logs: Vec<PathBuf> = names
        .iter()
        .filter(|name| {
            let digits = name.strip_prefix("log-").unwrap_or("");
            !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
        })
        .map(|name| path.join(name))
        .filter(|path| path.is_dir())
        .collect();
    logs.sort();
    Ok(if logs.is_empty() { vec![path.to_owned()] } else { logs })
}
