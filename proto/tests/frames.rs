//! Properties of the frame codec: any cutting of the stream, any garbage, bounded memory.

use bytes::BytesMut;
use krita_proto::frame::{
    self, BODY_BYTES_MAX, Flags, Frame, FrameError, FrameKind, FrameReader, HEADER_BYTES,
    HELLO_BODY_BYTES_MAX,
};
use krita_proto::routing::VALUE_BYTES_MAX;
use krita_proto::v1;
use proptest::prelude::*;

/// What [`FrameReader`] promises to hold at most.
fn memory_bound(received: usize) -> usize {
    (2 * received).max(1024 * 1024 + HEADER_BYTES) + 4096
}

fn any_frame() -> impl Strategy<Value = (FrameKind, Flags, u64, Vec<u8>)> {
    let kind = proptest::sample::select(FrameKind::ALL);
    let flags = prop_oneof![Just(Flags::NONE), Just(Flags::FORWARDED)];
    let length = prop_oneof![8 => 0..200usize, 2 => 0..20_000usize, 1 => 60_000..200_000usize];
    let body = length.prop_flat_map(|length| proptest::collection::vec(any::<u8>(), length));
    (kind, flags, any::<u64>(), body)
}

/// Takes all frames; unknown kinds are counted in as errors.
fn take_all(reader: &mut FrameReader) -> Result<Vec<Frame>, FrameError> {
    let mut frames = Vec::new();
    loop {
        match reader.next_frame() {
            Ok(Some(frame)) => frames.push(frame),
            Ok(None) => return Ok(frames),
            Err(error) if error.recoverable().is_some() => {}
            Err(error) => return Err(error),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn frames_round_trip_in_any_chunking(
        frames in proptest::collection::vec(any_frame(), 1..12),
        pieces in proptest::collection::vec(1..70_000usize, 1..20),
    ) {
        let mut stream = BytesMut::new();
        for (kind, flags, correlation, body) in &frames {
            frame::encode_body(&mut stream, *kind, *flags, *correlation, body).unwrap();
        }
        let mut reader = FrameReader::new(BODY_BYTES_MAX);
        let mut taken = Vec::new();
        let mut rest = &stream[..];
        let mut pieces = pieces.iter().cycle();
        while !rest.is_empty() {
            let space = reader.space();
            prop_assert!(!space.is_empty());
            let length = space.len().min(rest.len()).min(*pieces.next().unwrap());
            space[..length].copy_from_slice(&rest[..length]);
            reader.advance(length);
            rest = &rest[length..];
            taken.extend(take_all(&mut reader).unwrap());
        }
        prop_assert_eq!(reader.pending_bytes(), 0);
        prop_assert_eq!(taken.len(), frames.len());
        for (taken, (kind, flags, correlation, body)) in taken.iter().zip(&frames) {
            prop_assert_eq!(taken.kind, *kind);
            prop_assert_eq!(taken.flags, *flags);
            prop_assert_eq!(taken.correlation, *correlation);
            prop_assert_eq!(&taken.body[..], &body[..]);
        }
    }

    #[test]
    fn garbage_never_panics_and_never_takes_memory(
        garbage in proptest::collection::vec(any::<u8>(), 0..4000),
        length in prop_oneof![any::<u32>(), 0..300u32, (1u32 << 20)..(20 << 20)],
        limit in prop_oneof![Just(HELLO_BODY_BYTES_MAX), Just(BODY_BYTES_MAX)],
    ) {
        for with_length in [false, true] {
            let mut reader = FrameReader::new(limit);
            if with_length {
                reader.feed(&length.to_le_bytes());
            }
            for piece in garbage.chunks(97) {
                reader.feed(piece);
                prop_assert!(reader.buffer_bytes() <= memory_bound(garbage.len() + 4));
                match take_all(&mut reader) {
                    Ok(frames) => for frame in frames {
                        // Whatever it is, decoding it is an answer.
                        let _ = frame.decode::<v1::Batch>();
                        let _ = frame.decode::<v1::Error>();
                    },
                    Err(error) => {
                        prop_assert_eq!(reader.next_frame(), Err(error), "out of step for good");
                    }
                }
            }
        }
    }

    #[test]
    fn any_body_decodes_or_fails_as_every_message(body in proptest::collection::vec(any::<u8>(), 0..300)) {
        let frame = |kind| Frame { kind, flags: Flags::NONE, correlation: 1, body: body.clone().into() };
        let _ = frame(FrameKind::Hello).decode::<v1::Hello>();
        let _ = frame(FrameKind::Put).decode::<v1::Put>();
        let _ = frame(FrameKind::Batch).decode::<v1::Batch>();
        let _ = frame(FrameKind::RaftBurst).decode::<v1::RaftBurst>();
        let _ = frame(FrameKind::Form).decode::<v1::Form>();
        prop_assert!(frame(FrameKind::Form).decode::<v1::Get>().is_err());
    }
}

#[test]
fn the_largest_value_takes_its_own_size_and_the_buffer_shrinks_after_it() {
    let put = v1::Put { key: "k".into(), value: vec![1; VALUE_BYTES_MAX].into(), ..Default::default() };
    let mut stream = BytesMut::new();
    frame::encode(&mut stream, Flags::NONE, 1, &put).unwrap();
    let frame_bytes = stream.len();
    frame::encode(&mut stream, Flags::NONE, 2, &v1::Get::default()).unwrap();
    let mut reader = FrameReader::new(BODY_BYTES_MAX);
    let mut received = 0;
    for piece in stream[..frame_bytes].chunks(50_000) {
        reader.feed(piece);
        received += piece.len();
        assert!(reader.buffer_bytes() <= memory_bound(received), "{received}");
    }
    assert!(reader.buffer_bytes() <= frame_bytes + 4096);
    assert!(reader.next_frame().unwrap().unwrap().decode::<v1::Put>().unwrap() == put);
    reader.feed(&stream[frame_bytes..]);
    assert_eq!(reader.next_frame().unwrap().unwrap().correlation, 2);
    assert!(reader.buffer_bytes() <= 64 * 1024);
}

#[test]
fn an_announced_frame_takes_memory_only_as_it_arrives() {
    let mut reader = FrameReader::new(BODY_BYTES_MAX);
    reader.feed(&(16 * 1024 * 1024u32).to_le_bytes());
    reader.feed(&[10, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    let _ = reader.space();
    assert!(reader.buffer_bytes() <= 1024 * 1024);
}

#[test]
fn each_fault_has_its_error() {
    let mut sound = BytesMut::new();
    frame::encode(&mut sound, Flags::NONE, 5, &v1::Get::default()).unwrap();
    let check = |change: &dyn Fn(&mut BytesMut), expected: &str| {
        let mut bytes = sound.clone();
        change(&mut bytes);
        let mut reader = FrameReader::new(HELLO_BODY_BYTES_MAX);
        reader.feed(&bytes);
        let error = reader.next_frame().unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        if let Some(correlation) = error.recoverable() {
            assert_eq!(correlation, 5);
            reader.feed(&sound);
            assert_eq!(reader.next_frame().unwrap().unwrap().kind, FrameKind::Get);
        }
    };
    check(&|bytes| bytes[0] = 11, "cannot hold its header");
    check(&|bytes| bytes[2] = 2, "exceeds the limit of 65536");
    check(&|bytes| bytes[7] = 1, "reserved");
    check(&|bytes| bytes[4] = 99, "kind 99");
    check(&|bytes| bytes[5] = 2, "flags 0x02");
}
