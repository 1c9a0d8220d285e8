//! The range of a scan, and the cursor that continues it: a version, a mark of the range, the scan's name, and the last
//! key that was given. Any node takes it, at any time; what the shards hold under the name is bounded in time, and
//! without it the scan goes on as of later entries.

use bytes::{BufMut as _, Bytes, BytesMut};
use krita_proto::routing::KEY_BYTES_MAX;
use krita_proto::v1;

use crate::failure::Failure;
use crate::scanning::{ScanName, ScanRange, behind, end_of_prefix};

/// First byte of a cursor.
const VERSION: u8 = 2;

/// Binds a cursor to the range that it came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Mark([u8; 4]);

impl Mark {
    fn of(scan: &v1::KeyScan) -> Self {
        let mut mark = crc32fast::Hasher::new();
        for bound in [&scan.start, &scan.end, &scan.prefix] {
            mark.update(&(bound.len() as u64).to_le_bytes());
            mark.update(bound);
        }
        Self(mark.finalize().to_le_bytes())
    }

    /// The cursor of what follows behind `last`.
    pub(super) fn cursor_behind(self, scan_id: u64, last: &[u8]) -> Bytes {
        let mut cursor = BytesMut::with_capacity(1 + self.0.len() + 8 + last.len());
        cursor.put_u8(VERSION);
        cursor.extend_from_slice(&self.0);
        cursor.put_u64_le(scan_id);
        cursor.extend_from_slice(last);
        cursor.freeze()
    }
}

/// What is to be scanned, and the mark for cursors into it. A scan that no cursor names gets the name `new_id`.
pub(super) fn range(scan: &v1::KeyScan, new_id: u64) -> Result<(ScanRange, Mark), Failure> {
    for bound in [&scan.start, &scan.end, &scan.prefix] {
        if bound.len() > KEY_BYTES_MAX + 1 {
            return Err(Failure::invalid("a bound of the scan is longer than a key can be"));
        }
    }
    let mark = Mark::of(scan);
    let mut start = scan.start.clone().max(scan.prefix.clone());
    let prefix_end = end_of_prefix(&scan.prefix);
    let end = match (scan.end.is_empty(), prefix_end.is_empty()) {
        (true, _) => prefix_end,
        (false, true) => scan.end.clone(),
        (false, false) => scan.end.clone().min(prefix_end),
    };
    // A stream without a limit runs through: what has ended need not be held. One that breaks off has lost that.
    let mut name = ScanName { id: new_id, is_resumed: false, keeps: scan.limit > 0 };
    if !scan.cursor.is_empty() {
        let (scan_id, last) = parse(&scan.cursor, mark)?;
        start = start.max(behind(last));
        name = ScanName { id: scan_id, is_resumed: true, ..name };
    }
    let consistency = v1::Consistency::try_from(scan.consistency)
        .map_err(|_| Failure::invalid("the consistency is not known to this node"))?;
    let (keys_only, timeout_ms) = (scan.keys_only, scan.timeout_ms);
    Ok((ScanRange { start, end, keys_only, timeout_ms, consistency, scan: name }, mark))
}

fn parse(cursor: &[u8], mark: Mark) -> Result<(u64, &[u8]), Failure> {
    let invalid = || Failure::invalid("the cursor is none that a scan has given");
    let rest = cursor.strip_prefix(&[VERSION]).ok_or_else(invalid)?;
    let (theirs, rest) = rest.split_first_chunk::<4>().ok_or_else(invalid)?;
    let (scan_id, last) = rest.split_first_chunk::<8>().ok_or_else(invalid)?;
    if last.is_empty() || last.len() > KEY_BYTES_MAX {
        return Err(invalid());
    }
    if *theirs != mark.0 {
        return Err(Failure::invalid("the cursor belongs to another range: repeat the scan that gave it"));
    }
    Ok((u64::from_le_bytes(*scan_id), last))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(start: &'static str, end: &'static str, prefix: &'static str) -> (Bytes, Bytes) {
        let scan =
            v1::KeyScan { start: start.into(), end: end.into(), prefix: prefix.into(), ..Default::default() };
        let (range, _) = range(&scan, 0).unwrap();
        (range.start, range.end)
    }

    #[test]
    fn a_prefix_narrows_a_range() {
        assert_eq!(bounds("", "", ""), ("".into(), "".into()));
        assert_eq!(bounds("", "", "ab"), ("ab".into(), "ac".into()));
        assert_eq!(bounds("abc", "", "ab"), ("abc".into(), "ac".into()));
        assert_eq!(bounds("a", "abx", "ab"), ("ab".into(), "abx".into()));
        assert_eq!(bounds("a", "b", "ab"), ("ab".into(), "ac".into()));
    }

    #[test]
    fn a_cursor_continues_its_own_range_alone() {
        let scan = v1::KeyScan { prefix: "ab".into(), ..Default::default() };
        let (_, mark) = range(&scan, 0).unwrap();
        let cursor = mark.cursor_behind(9, b"abc");
        let again = v1::KeyScan { cursor: cursor.clone(), keys_only: true, ..scan.clone() };
        let resumed = range(&again, 4).unwrap().0;
        assert_eq!(resumed.start, b"abc\0"[..]);
        assert_eq!(resumed.scan, ScanName { id: 9, is_resumed: true, keeps: false });
        assert!(range(&v1::KeyScan { prefix: "ac".into(), ..again }, 0).is_err());
        for length in 1..cursor.len() {
            let cut = v1::KeyScan { cursor: cursor.slice(..length), ..scan.clone() };
            assert!(range(&cut, 0).is_err() || length > 13, "{length}");
        }
        let foreign = v1::KeyScan { cursor: "\u{2}000000000000key".into(), ..scan };
        assert!(range(&foreign, 0).is_err());
    }
}
