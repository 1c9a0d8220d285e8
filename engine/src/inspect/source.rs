//! Where the bytes come from: a file or an image in memory, read in pieces.

use std::collections::BTreeMap;
use std::io;

/// Bytes that are read at once, unless one structure needs more.
const WINDOW_BYTES: usize = 256 << 10;

/// A file's bytes, read in pieces. It is not changed meanwhile.
pub trait ReadAt {
    /// Its length in bytes.
    ///
    /// # Errors
    /// The machine's.
    fn length(&self) -> io::Result<u64>;

    /// Fills the front of `buffer` with what stands at `offset` and says with how many bytes: at least one, unless the
    /// file ends there.
    ///
    /// # Errors
    /// The machine's.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
}

/// A directory of such files.
pub trait Directory {
    /// The names in it, in any order.
    ///
    /// # Errors
    /// The machine's.
    fn names(&self) -> io::Result<Vec<String>>;

    /// Opens one for reading.
    ///
    /// # Errors
    /// The machine's; `NotFound` if there is no such file.
    fn open(&self, name: &str) -> io::Result<Box<dyn ReadAt + '_>>;
}

impl ReadAt for &[u8] {
    fn length(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..)).unwrap_or(&[]);
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }
}

impl ReadAt for Vec<u8> {
    fn length(&self) -> io::Result<u64> {
        self.as_slice().length()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.as_slice().read_at(offset, buffer)
    }
}

/// An image in memory: names and contents.
impl Directory for BTreeMap<String, Vec<u8>> {
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn ReadAt + '_>> {
        match self.get(name) {
            Some(bytes) => Ok(Box::new(bytes.as_slice())),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

/// Reads a file through a window.
pub(crate) struct Window<'a> {
    file: &'a dyn ReadAt,
    bytes: Vec<u8>,
    start: u64,
    length: u64,
}

impl<'a> Window<'a> {
    pub(crate) fn new(file: &'a dyn ReadAt) -> io::Result<Self> {
        Ok(Self { file, bytes: Vec::new(), start: 0, length: file.length()? })
    }

    /// The file's length.
    pub(crate) fn file_length(&self) -> u64 {
        self.length
    }

    /// `length` bytes at `offset`, fewer at the end of the file.
    pub(crate) fn get(&mut self, offset: u64, length: usize) -> io::Result<&[u8]> {
        let left = usize::try_from(self.length.saturating_sub(offset)).unwrap_or(usize::MAX);
        let length = length.min(left);
        let held = offset >= self.start && offset + length as u64 <= self.start + self.bytes.len() as u64;
        if !held {
            self.fill(offset, length.max(WINDOW_BYTES).min(left))?;
        }
        let from = usize::try_from(offset - self.start).unwrap_or(usize::MAX);
        let end = from.saturating_add(length).min(self.bytes.len());
        Ok(self.bytes.get(from..end).unwrap_or(&[]))
    }

    fn fill(&mut self, offset: u64, length: usize) -> io::Result<()> {
        self.start = offset;
        self.bytes.clear();
        self.bytes.resize(length, 0);
        let mut filled = 0;
        while filled < length {
            let read = self.file.read_at(offset + filled as u64, &mut self.bytes[filled..]);
            match read {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.bytes.clear();
                    return Err(error);
                }
            }
        }
        self.bytes.truncate(filled);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_gives_what_the_file_holds() {
        let bytes: Vec<u8> = (0..600_000_u32).map(|number| (number / 7) as u8).collect();
        let mut window = Window::new(&bytes).unwrap();
        for (offset, length) in
            [(0, 10), (262_140, 8), (5, 300_000), (599_990, 64), (600_000, 1), (700_000, 1)]
        {
            let end = bytes.len().min(offset + length);
            let expected = bytes.get(offset..end).unwrap_or(&[]);
            assert_eq!(window.get(offset as u64, length).unwrap(), expected, "{offset} {length}");
        }
    }
}
