//! `docs/protocol.md` says what the code does: its tables and golden frames are read and compared.

use krita_proto::error::ERRORS;
use krita_proto::frame::{self, FrameKind, FrameReader, KindRole};
use krita_proto::routing;
use krita_proto::v1;

const DOCUMENT: &str = include_str!("../../docs/protocol.md");

/// The rows of the table below a heading, cells trimmed.
fn table(heading: &str) -> Vec<Vec<String>> {
    let (_, section) = DOCUMENT.split_once(&format!("\n## {heading}\n")).expect("the heading is there");
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with('|'));
    let cells = |row: &str| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    rows.skip(2).map(cells).collect()
}

#[test]
fn the_kinds_are_those_of_the_code() {
    let expected: Vec<Vec<String>> = FrameKind::ALL
        .iter()
        .map(|kind| {
            let answer = match kind.role() {
                KindRole::Request => kind.reply().unwrap().name(),
                KindRole::Reply => "is an answer",
                KindRole::OneWay => "none",
            };
            let from = if kind.is_between_nodes() { "nodes" } else { "all" };
            [&(*kind as u8).to_string(), kind.name(), answer, from].map(str::to_owned).to_vec()
        })
        .collect();
    let documented: Vec<_> = table("Kinds").into_iter().map(|row| row[..4].to_vec()).collect();
    assert_eq!(documented, expected);
}

#[test]
fn the_errors_are_those_of_the_code() {
    let expected: Vec<Vec<String>> = ERRORS
        .iter()
        .map(|row| {
            let retryable = if row.retryable { "yes" } else { "no" };
            vec![
                (row.code as u32).to_string(),
                row.name.to_owned(),
                row.grpc.to_string(),
                row.http.to_string(),
                row.exit.to_string(),
                retryable.to_owned(),
                row.advice.to_owned(),
            ]
        })
        .collect();
    assert_eq!(table("Errors"), expected);
}

#[test]
fn the_limits_are_those_of_the_code() {
    let expected = [
        ("KEY_BYTES_MAX", routing::KEY_BYTES_MAX),
        ("VALUE_BYTES_MAX", routing::VALUE_BYTES_MAX),
        ("ENTRY_BYTES_MAX", routing::ENTRY_BYTES_MAX),
        ("BATCH_OPERATIONS_MAX", routing::BATCH_OPERATIONS_MAX),
        ("SCAN_ITEMS_MAX", routing::SCAN_ITEMS_MAX),
        ("SCAN_ITEMS_DEFAULT", routing::SCAN_ITEMS_DEFAULT),
        ("PAGE_BYTES_MAX", routing::PAGE_BYTES_MAX),
        ("SHARDS_MAX", routing::SHARDS_MAX as usize),
        ("NAME_BYTES_MAX", routing::NAME_BYTES_MAX),
        ("TIMEOUT_MS_MAX", routing::TIMEOUT_MS_MAX as usize),
        ("BODY_BYTES_MAX", frame::BODY_BYTES_MAX),
        ("HELLO_BODY_BYTES_MAX", frame::HELLO_BODY_BYTES_MAX),
    ];
    let documented: Vec<_> =
        table("Limits").into_iter().map(|row| (row[0].clone(), row[1].replace(',', ""))).collect();
    let expected: Vec<_> =
        expected.into_iter().map(|(name, value)| (name.to_owned(), value.to_string())).collect();
    assert_eq!(documented, expected);
}

/// The hex blocks of the document, in order.
fn golden_frames() -> Vec<Vec<u8>> {
    let blocks = DOCUMENT.split("```hex\n").skip(1).map(|block| block.split("```").next().unwrap());
    blocks
        .map(|block| {
            let words = block.lines().flat_map(|line| line.split('#').next().unwrap().split_whitespace());
            words.map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
        })
        .collect()
}

fn check<M: frame::FrameMessage + PartialEq + std::fmt::Debug>(bytes: &[u8], correlation: u64, expected: &M) {
    let mut reader = FrameReader::new(frame::BODY_BYTES_MAX);
    reader.feed(bytes);
    let frame = reader.next_frame().unwrap().expect("it is whole");
    assert_eq!(reader.pending_bytes(), 0);
    assert_eq!((frame.correlation, &frame.decode::<M>().unwrap()), (correlation, expected));
    let mut encoded = bytes::BytesMut::new();
    frame::encode(&mut encoded, frame.flags, correlation, expected).unwrap();
    assert_eq!(encoded, bytes);
}

#[test]
fn the_golden_frames_are_what_they_say() {
    let frames = golden_frames();
    assert_eq!(frames.len(), 4);
    let hello = v1::Hello {
        protocol_version: 1,
        cluster_name: "mycluster".into(),
        token: "secret".into(),
        wanted_core_plus_one: 2,
        ..Default::default()
    };
    check(&frames[0], 1, &hello);
    let request_id = v1::RequestId {
        session: 0x1122_3344_5566_7788,
        sequence: 1,
        lowest_unacknowledged: 1,
        register_until_ms: 0,
    };
    let put = v1::Put {
        key: "colour".into(),
        value: "blue".into(),
        request_id: Some(request_id),
        ..Default::default()
    };
    check(&frames[1], 2, &put);
    let served_by = v1::ServedBy { shard: 17, node_number: 2, core: 1, epoch: 1 };
    check(&frames[2], 2, &v1::WriteReply { version: 300, existed: false, served_by: Some(served_by) });
    let error = v1::Error { code: 6, message: "node 3 leads shard 17".into(), ..Default::default() };
    check(&frames[3], 3, &error);
}
