//! Holds `docs/disk_format.md` against the code: constants, magic bytes, and where every field stands.

use crate::batch::{BATCH_HEADER_BYTES, BATCH_MAGIC, BatchHeader, seal_header};
use crate::checkpoint::{CHECKPOINT_BLOCK_MAX, CHECKPOINT_HEADER_BYTES, CHECKPOINT_MAGIC};
use crate::format::{BLOCK, FORMAT_VERSION};
use crate::log::PIECE_BYTES_MIN;
use crate::manifest::{FRAME_HEADER_BYTES, FRAME_MAGIC};
use crate::packed::{PACKED_HEADER_BYTES, PACKED_ITEM_BYTES};
use crate::record::{
    HARD_STATE_BYTES, RECORD_ALIGNMENT, RECORD_HEADER_BYTES, RecordHeader, RecordKind, encode,
};
use crate::run::{BlockKind, FOOTER_BYTES, RUN_HEADER_BYTES, RUN_MAGIC};
use crate::segment::{SEGMENT_HEADER_BYTES, SEGMENT_MAGIC, SegmentHeader};
use crate::store::INLINE_BYTES_MAX;
use crate::types::{Index, LogId, ReplicaId, SegmentId, ShardId, Term, VALUE_CHECKSUM_BYTES};

const DOCUMENT: &str = include_str!("../../docs/disk_format.md");

/// The rows (offset, length, field) of the table below a heading.
fn table(heading: &str) -> Vec<(usize, usize, String)> {
    let (_, section) = DOCUMENT.split_once(&format!("### {heading}")).expect("the section is there");
    let section = section.split("\n#").next().unwrap_or_default();
    let rows = section.lines().filter_map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let offset = cells.get(1)?.parse().ok()?;
        Some((offset, cells.get(2)?.parse().ok()?, (*cells.get(3)?).to_owned()))
    });
    rows.collect()
}

/// The table covers `length` bytes without gaps, and each named field has its value there.
fn check(heading: &str, length: usize, bytes: &[u8], fields: &[(&str, u64)]) {
    let rows = table(heading);
    let mut next = 0;
    for (offset, length, field) in &rows {
        assert_eq!(*offset, next, "{heading}: {field} follows without a gap");
        next += length;
    }
    assert_eq!(next, length, "{heading}: the whole header is described");
    for (name, value) in fields {
        let row = rows.iter().find(|(_, _, field)| field == name);
        let (offset, length, _) = row.unwrap_or_else(|| panic!("{heading} has no field {name}"));
        let mut wide = [0; 8];
        wide[..*length].copy_from_slice(&bytes[*offset..offset + length]);
        assert_eq!(u64::from_le_bytes(wide), *value, "{heading}: {name}");
    }
}

#[test]
fn constants() {
    let constants = [
        ("FORMAT_VERSION", FORMAT_VERSION as usize),
        ("BLOCK", BLOCK as usize),
        ("SEGMENT_HEADER_BYTES", SEGMENT_HEADER_BYTES),
        ("BATCH_HEADER_BYTES", BATCH_HEADER_BYTES),
        ("RECORD_HEADER_BYTES", RECORD_HEADER_BYTES),
        ("RECORD_ALIGNMENT", RECORD_ALIGNMENT),
        ("HARD_STATE_BYTES", HARD_STATE_BYTES),
        ("FRAME_HEADER_BYTES", FRAME_HEADER_BYTES),
        ("CHECKPOINT_HEADER_BYTES", CHECKPOINT_HEADER_BYTES),
        ("CHECKPOINT_BLOCK_MAX", CHECKPOINT_BLOCK_MAX),
        ("RUN_HEADER_BYTES", RUN_HEADER_BYTES),
        ("FOOTER_BYTES", FOOTER_BYTES),
        ("PACKED_HEADER_BYTES", PACKED_HEADER_BYTES),
        ("PACKED_ITEM_BYTES", PACKED_ITEM_BYTES),
        ("INLINE_BYTES_MAX", INLINE_BYTES_MAX),
        ("VALUE_CHECKSUM_BYTES", VALUE_CHECKSUM_BYTES as usize),
        ("PIECE_BYTES_MIN", PIECE_BYTES_MIN),
    ];
    for (name, value) in constants {
        assert!(DOCUMENT.contains(&format!("| {name} | {value} |")), "{name} is {value}");
    }
    for magic in [&SEGMENT_MAGIC.to_le_bytes()[..], &BATCH_MAGIC.to_le_bytes()[..]]
        .into_iter()
        .chain([&FRAME_MAGIC.to_le_bytes()[..], &CHECKPOINT_MAGIC.to_le_bytes()[..]])
        .chain([&RUN_MAGIC.to_le_bytes()[..]])
    {
        let magic = String::from_utf8_lossy(magic);
        assert!(DOCUMENT.contains(&format!("| magic | `{magic}` |")), "{magic}");
    }
    for kind in RecordKind::ALL {
        let name = match kind {
            RecordKind::Entry => "entry",
            RecordKind::Truncate => "truncation",
            RecordKind::HardState => "hard state",
            RecordKind::Relocated => "relocated values",
        };
        assert!(DOCUMENT.contains(&format!("| {} | {name} |", kind.code())), "{name}");
    }
}

#[test]
fn kinds_of_run_blocks() {
    for kind in BlockKind::ALL {
        let name = match kind {
            BlockKind::Data => "data",
            BlockKind::Large => "large",
            BlockKind::Segments => "segments",
            BlockKind::Filter => "filter",
            BlockKind::Index => "index",
            BlockKind::Footer => "footer",
        };
        let told = format!("{} {name}", kind.code());
        let row = DOCUMENT.lines().find(|line| line.contains("| kind | 1 data"));
        assert!(row.is_some_and(|row| row.contains(&told)), "{told}");
    }
}

#[test]
fn headers() {
    let segment = SegmentHeader {
        log: LogId(0x11),
        file: 0x22,
        segment: SegmentId(0x33),
        first_sequence: 0x44,
        previous: 0x55,
    };
    let mut bytes = vec![0; BLOCK as usize];
    segment.encode(&mut bytes, 9);
    let version = ("version", u64::from(FORMAT_VERSION));
    let expected = [("log", 0x11), ("file", 0x22), ("segment", 0x33), ("first_sequence", 0x44)];
    check("Segment header", SEGMENT_HEADER_BYTES, &bytes, &expected);
    check("Segment header", SEGMENT_HEADER_BYTES, &bytes, &[("previous", 0x55), version]);
    assert_eq!(SegmentHeader::decode(&bytes, 9), Some(segment));
    assert_eq!(SegmentHeader::decode(&bytes, 8), None, "another log's nonce");

    let batch = BatchHeader {
        log: LogId(0x11),
        segment: SegmentId(0x33),
        offset: 0x66,
        length: 64,
        sequence: 0x77,
        previous: 0x55,
        records: 0x12,
        flags: 1,
    };
    let sum = seal_header(&mut bytes, &batch, 9);
    let expected = [("checksum", sum), ("log", 0x11), ("segment", 0x33), ("offset", 0x66), ("length", 64)];
    check("Batch header", BATCH_HEADER_BYTES, &bytes, &expected);
    let expected = [("sequence", 0x77), ("previous", 0x55), ("records", 0x12), ("flags", 1), version];
    check("Batch header", BATCH_HEADER_BYTES, &bytes, &expected);

    let record = RecordHeader {
        kind: RecordKind::Entry,
        entry_kind: 2,
        log: LogId(0x11),
        shard: ShardId(0x13),
        replica: ReplicaId(0x14),
        term: Term(0x15),
        index: Index(0x16),
        length: 3,
        piece_offset: 5,
        total: 8,
        offset: 0x66,
        segment: SegmentId(0x33),
    };
    let mut bytes = vec![0; 72];
    encode(&mut bytes, &record, b"abc", 9);
    let expected = [("kind", 1), ("entry_kind", 2), ("log", 0x11), ("shard", 0x13), ("replica", 0x14)];
    check("Record header", RECORD_HEADER_BYTES, &bytes, &expected);
    let expected = [("term", 0x15), ("index", 0x16), ("length", 3), ("piece_offset", 5), ("total", 8)];
    check("Record header", RECORD_HEADER_BYTES, &bytes, &expected);
    check("Record header", RECORD_HEADER_BYTES, &bytes, &[("offset", 0x66), ("segment", 0x33)]);

    check("Manifest frame header", FRAME_HEADER_BYTES, &[0; 64], &[]);
    check("Checkpoint block header", CHECKPOINT_HEADER_BYTES, &[0; 64], &[]);
    check("Run block header", RUN_HEADER_BYTES, &[0; 64], &[]);
    check("Run footer", FOOTER_BYTES, &[0; 72], &[]);
}
