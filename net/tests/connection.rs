//! Connections over in-memory streams: order, coalescing, bounds, time limits.

mod support;

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::io::{AsyncReadExt, AsyncWriteExt};
use krita_net::{Connection, ConnectionOptions, ReceiveError, SendError};
use krita_proto::frame::{self, BODY_BYTES_MAX, Flags, FrameKind};
use krita_proto::routing::VALUE_BYTES_MAX;
use krita_proto::v1;
use krita_runtime::{Clock, Spawn, TaskClass};
use support::{Link, MemoryStream, World};

fn get(key: &str) -> v1::Get {
    v1::Get { key: key.to_owned().into(), ..Default::default() }
}

fn connected(world: &World, options: &ConnectionOptions) -> (Connection<World>, Connection<World>) {
    let (left, right) = world.pair();
    (Connection::plain(world, left, options), Connection::plain(world, right, options))
}

#[test]
fn frames_arrive_in_order_however_the_stream_cuts_them() {
    for piece in [1, 2, 7, 16, 17, 4096, usize::MAX] {
        let world = World::with_link(Link { piece, capacity: 10_000 });
        let (left, right) = connected(&world, &ConnectionOptions::default());
        world.block_on(async {
            let (_keep, sender) = left.split();
            let (mut receiver, _) = right.split();
            for number in 0..500 {
                sender.send(Flags::NONE, number, &get(&format!("key {number}"))).unwrap();
            }
            for number in 0..500 {
                let frame = receiver.receive().await.unwrap();
                assert_eq!(frame.correlation, number);
                assert_eq!(frame.decode::<v1::Get>().unwrap(), get(&format!("key {number}")));
            }
            assert_eq!(receiver.bytes_read().get(), sender.bytes_written());
            assert_eq!(sender.queued_bytes(), 0);
        });
    }
}

#[test]
fn what_gathers_goes_out_in_one_write() {
    let world = World::default();
    let (left, right) = world.pair();
    let writes = right.writes_received();
    let left = Connection::plain(&world, left, &ConnectionOptions::default());
    let mut right = Connection::plain(&world, right, &ConnectionOptions::default());
    world.block_on(async {
        for number in 0..1000 {
            left.sender().send(Flags::NONE, number, &get("key")).unwrap();
        }
        for _ in 0..1000 {
            right.receive().await.unwrap();
        }
    });
    assert_eq!(writes(), 1);
}

#[test]
fn the_largest_value_goes_through_a_small_pipe() {
    let world = World::default();
    let (left, mut right) = connected(&world, &ConnectionOptions::default());
    let put = v1::Put { key: "k".into(), value: Bytes::from(vec![7; VALUE_BYTES_MAX]), ..Default::default() };
    world.block_on(async {
        left.sender().send(Flags::NONE, 1, &put).unwrap();
        let waiting = left.sender().clone();
        world.spawn(TaskClass::Foreground, "waits", async move {
            waiting.send_when_room(Flags::NONE, 2, &get("after")).await.unwrap();
        });
        assert!(right.receive().await.unwrap().decode::<v1::Put>().unwrap() == put);
        assert_eq!(right.receive().await.unwrap().correlation, 2);
        let body = vec![0; BODY_BYTES_MAX + 1];
        let refused = left.sender().send_body(FrameKind::Put, Flags::NONE, 3, &body);
        assert!(matches!(refused, Err(SendError::Frame(_))), "{refused:?}");
    });
}

#[test]
fn a_full_queue_says_so_and_wakes_who_waits_for_room() {
    let world = World::with_link(Link { capacity: 1000, piece: usize::MAX });
    let options = ConnectionOptions { outgoing_bytes_max: 10_000, ..Default::default() };
    let (left, mut right) = connected(&world, &options);
    world.block_on(async {
        let sender = left.sender().clone();
        let mut sent = 0;
        while sender.send(Flags::NONE, sent, &get("key")).is_ok() {
            sent += 1;
        }
        assert_eq!(sender.send(Flags::NONE, 0, &get("key")), Err(SendError::Full));
        assert!(sender.queued_bytes() < 10_000 + 64, "the bound holds but for one frame");
        let waiting = sender.clone();
        let last = sent;
        world.spawn(TaskClass::Foreground, "waits", async move {
            waiting.send_when_room(Flags::NONE, last, &get("key")).await.unwrap();
        });
        for number in 0..=last {
            assert_eq!(right.receive().await.unwrap().correlation, number);
        }
    });
}

#[test]
fn a_side_that_takes_nothing_is_given_up_after_the_stall_limit() {
    let world = World::with_link(Link { capacity: 1000, piece: usize::MAX });
    let (left, _right) = world.pair();
    let mut left = Connection::plain(&world, left, &ConnectionOptions::default());
    world.block_on(async {
        let sender = left.sender().clone();
        sender.send(Flags::NONE, 1, &v1::Get { key: vec![0; 4000].into(), ..Default::default() }).unwrap();
        assert!(matches!(left.receive().await, Err(ReceiveError::Ended(_))));
        assert!(matches!(sender.send(Flags::NONE, 2, &get("key")), Err(SendError::Closed(_))));
        sender.room().await;
        sender.closed().await;
        assert_eq!(sender.queued_bytes(), 0, "the memory is given back");
    });
    assert_eq!(world.passed(), Duration::from_secs(10));
}

#[test]
fn silence_ends_an_idle_connection_and_traffic_keeps_it() {
    let world = World::default();
    let options = ConnectionOptions { idle_timeout: Some(Duration::from_secs(60)), ..Default::default() };
    let (left, mut right) = connected(&world, &options);
    world.block_on(async {
        let sender = left.sender().clone();
        let clock = world.clone();
        world.spawn(TaskClass::Foreground, "sends", async move {
            for number in 0..5 {
                clock.sleep(Duration::from_secs(50)).await;
                sender.send(Flags::NONE, number, &get("key")).unwrap();
            }
        });
        for _ in 0..5 {
            right.receive().await.unwrap();
        }
        assert!(matches!(right.receive().await, Err(ReceiveError::Idle)));
        assert_eq!(world.passed(), Duration::from_secs(5 * 50 + 60));
    });
}

#[test]
fn half_a_frame_and_drops_of_it_end_the_connection() {
    let world = World::default();
    let (mut left, right) = world.pair();
    let mut right = Connection::plain(&world, right, &ConnectionOptions::default());
    world.block_on(async {
        let mut frame = BytesMut::new();
        frame::encode(&mut frame, Flags::NONE, 1, &get("a key of some length")).unwrap();
        let clock = world.clone();
        world.spawn(TaskClass::Foreground, "drips", async move {
            for byte in frame.iter() {
                if left.write_all(&[*byte]).await.is_err() {
                    return;
                }
                clock.sleep(Duration::from_secs(1)).await;
            }
        });
        assert!(matches!(right.receive().await, Err(ReceiveError::FrameTimeout)));
        assert_eq!(world.passed(), Duration::from_secs(10));
    });
}

#[test]
fn the_end_of_the_stream_is_told_from_the_middle_of_a_frame() {
    let world = World::default();
    world.block_on(async {
        let mut frame = BytesMut::new();
        frame::encode(&mut frame, Flags::NONE, 1, &get("key")).unwrap();
        for (length, whole) in [(frame.len(), true), (frame.len() - 1, false), (3, false)] {
            let (mut left, right) = world.pair();
            let mut right = Connection::plain(&world, right, &ConnectionOptions::default());
            left.write_all(&frame[..length]).await.unwrap();
            drop(left);
            if whole {
                right.receive().await.unwrap();
                assert!(matches!(right.receive().await, Err(ReceiveError::Closed)));
            } else {
                assert!(matches!(right.receive().await, Err(ReceiveError::Truncated)));
            }
        }
    });
}

#[test]
fn dropping_the_receiver_closes_after_the_last_words() {
    let world = World::default();
    let (left, mut right) = world.pair();
    let left = Connection::plain(&world, left, &ConnectionOptions::default());
    world.block_on(async {
        let (receiver, sender) = left.split();
        sender.send(Flags::NONE, 1, &get("last words")).unwrap();
        drop(receiver);
        assert!(!sender.is_open());
        assert_eq!(read_all(&mut right).await.len(), 16 + 2 + "last words".len());
    });
}

async fn read_all(stream: &mut MemoryStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    bytes
}
