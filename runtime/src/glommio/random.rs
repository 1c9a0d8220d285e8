//! Random numbers of a core: the kernel's, fetched a page at a time.

use std::cell::RefCell;

/// How many numbers one system call brings.
const NUMBERS: usize = 64;

/// The kernel's random numbers, buffered. Every one is as unguessable as a fresh call's.
pub(crate) struct Source {
    buffer: RefCell<Buffer>,
}

struct Buffer {
    bytes: [u8; NUMBERS * 8],
    /// Numbers not yet handed out; `left <= NUMBERS`.
    left: usize,
}

impl Source {
    pub(crate) fn new() -> Self {
        Self { buffer: RefCell::new(Buffer { bytes: [0; NUMBERS * 8], left: 0 }) }
    }

    pub(crate) fn next(&self) -> u64 {
        let mut buffer = self.buffer.borrow_mut();
        if buffer.left == 0 {
            getrandom::fill(&mut buffer.bytes)
                .expect("the kernel's random source works once the system is up");
            buffer.left = NUMBERS;
        }
        buffer.left -= 1;
        let start = buffer.left * 8;
        let mut number = [0; 8];
        // A number handed out does not stay in memory.
        number.swap_with_slice(&mut buffer.bytes[start..start + 8]);
        u64::from_le_bytes(number)
    }
}
