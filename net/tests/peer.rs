//! Links between nodes: reconnecting, dropping, deadlines, honest outcomes.

mod support;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use krita_net::{
    AcceptOptions, Accepted, ConnectOptions, ConnectionOptions, LinkEvent, PeerLink, PeerOptions, PeerPool,
    RequestError, accept,
};
use krita_proto::error::ErrorCode;
use krita_proto::frame::{Flags, FrameKind};
use krita_proto::v1;
use krita_runtime::{Clock, CoreId, Listener, Network, Spawn, TaskClass};
use support::{Link, World};

const ADDRESS: &str = "127.0.0.1:8080";

/// Frames that the other node received: kind and correlation.
type Received = Rc<RefCell<Vec<FrameKind>>>;

/// The other node: accepts `connections` one after another, answers Identify, refuses Form, is silent to
/// SnapshotBegin, ends the connection at SnapshotChunk; then listens no more.
fn serve(world: &World, connections: usize) -> Received {
    let received = Received::default();
    let (task, log) = (world.clone(), received.clone());
    world.spawn(TaskClass::Foreground, "server", async move {
        let world = task;
        let listener = world.listen(ADDRESS.parse().unwrap()).await.unwrap();
        for _ in 0..connections {
            let stream = listener.accept().await.unwrap();
            let accepted =
                accept(&world, stream, Bytes::new(), &AcceptOptions::new(None, CoreId(0), 1)).await;
            let Ok(Accepted::Here(mut incoming)) = accepted else { panic!("one core") };
            incoming.connection.accept(incoming.correlation, &v1::HelloReply::default()).unwrap();
            let (mut receiver, sender) = incoming.connection.split();
            while let Ok(frame) = receiver.receive().await {
                log.borrow_mut().push(frame.kind);
                match frame.kind {
                    FrameKind::Identify => {
                        sender.send(Flags::NONE, frame.correlation, &v1::IdentifyReply::default()).unwrap();
                    }
                    FrameKind::Form | FrameKind::Get => {
                        let code = ErrorCode::NotReady as u32;
                        let error = v1::Error { code, message: "not yet".into(), ..Default::default() };
                        assert_eq!(frame.flags.is_forwarded(), frame.kind == FrameKind::Get);
                        sender.send(Flags::NONE, frame.correlation, &error).unwrap();
                    }
                    FrameKind::SnapshotChunk => break,
                    _ => {}
                }
            }
        }
    });
    received
}

fn options(events: &Rc<RefCell<Vec<String>>>) -> PeerOptions {
    let connect = ConnectOptions {
        address: ADDRESS.into(),
        core: Some(0),
        tls: None,
        timeout: Duration::from_secs(1),
        connection: ConnectionOptions { outgoing_bytes_max: 10_000, ..Default::default() },
    };
    let hello = || v1::Hello { node: Some(v1::NodeIdentity::default()), ..Default::default() };
    let mut options = PeerOptions::new(connect, Rc::new(hello));
    let events = events.clone();
    options.on_event = Rc::new(move |event| {
        events.borrow_mut().push(match event {
            LinkEvent::Connected(_) => "connected".to_owned(),
            LinkEvent::Lost { problem } => problem,
        });
    });
    options
}

#[test]
fn requests_are_answered_refused_lost_or_late_and_each_says_so() {
    let world = World::default();
    let received = serve(&world, 1);
    let events = Rc::default();
    world.block_on(async {
        world.sleep_a_moment().await;
        let link = PeerLink::start(&world, options(&events));
        let soon = || world.now() + Duration::from_secs(1);
        assert!(!link.is_connected());
        link.request(&v1::Identify {}, soon()).await.unwrap();
        assert!(link.state().connected);
        let refused = link.request(&v1::Form::default(), soon()).await;
        assert!(matches!(refused, Err(RequestError::Refused(error)) if error.message == "not yet"));
        let silent = link.request(&v1::SnapshotBegin::default(), soon()).await;
        assert_eq!(silent.unwrap_err(), RequestError::Timeout);
        let forwarded = link.forward(FrameKind::Get, &Bytes::new(), soon()).await.unwrap();
        assert_eq!(forwarded.decode::<v1::Error>().unwrap().code, ErrorCode::NotReady as u32);
        assert!(link.send_one_way(&v1::RaftBurst::default()));
        let lost = link.request(&v1::SnapshotChunk::default(), soon()).await;
        assert_eq!(lost.unwrap_err(), RequestError::Lost("closed by the other side".into()));
        // Known to be down: nothing waits, nothing is sent.
        let before = world.passed();
        let not_sent = link.request(&v1::Identify {}, soon()).await;
        assert!(matches!(not_sent, Err(RequestError::NotSent(_))), "{not_sent:?}");
        assert!(!link.send_one_way(&v1::RaftBurst::default()));
        assert_eq!((world.passed(), link.state().bursts_dropped), (before, 1));
        link.stop();
    });
    use FrameKind::*;
    assert_eq!(*received.borrow(), [Identify, Form, SnapshotBegin, Get, RaftBurst, SnapshotChunk]);
    assert_eq!(*events.borrow(), ["connected", "closed by the other side"]);
}

#[test]
fn a_link_comes_back_by_itself() {
    let world = World::default();
    let events = Rc::default();
    let link = PeerLink::start(&world, options(&events));
    world.block_on(async {
        world.sleep(Duration::from_secs(10)).await;
        assert_eq!(link.state().connections, 0);
        assert!(link.state().problem.contains("cannot connect"), "{:?}", link.state());
        serve(&world, 3);
        for _ in 0..3 {
            let up = world.now() + Duration::from_secs(2);
            while !link.is_connected() {
                assert!(world.now() < up, "the longest pause is a second");
                world.sleep(Duration::from_millis(10)).await;
            }
            let soon = world.now() + Duration::from_secs(1);
            link.request(&v1::SnapshotChunk::default(), soon).await.unwrap_err();
        }
        assert_eq!(link.state().connections, 3);
        link.stop();
        world.sleep(Duration::from_secs(5)).await;
        assert_eq!(link.state().problem, "the link is stopped");
        let soon = world.now() + Duration::from_secs(1);
        assert!(matches!(link.request(&v1::Identify {}, soon).await, Err(RequestError::NotSent(_))));
    });
    assert_eq!(events.borrow().len(), 6);
}

#[test]
fn bursts_to_a_slow_node_are_dropped_not_queued() {
    let world = World::with_link(Link { capacity: 1000, piece: usize::MAX });
    serve(&world, 1);
    let events = Rc::default();
    world.block_on(async {
        world.sleep_a_moment().await;
        let link = PeerLink::start(&world, options(&events));
        let soon = world.now() + Duration::from_secs(1);
        link.request(&v1::Identify {}, soon).await.unwrap();
        let burst = v1::RaftBurst { messages: vec![v1::RaftMessage::default(); 500], ..Default::default() };
        let sent = (0..100).filter(|_| link.send_one_way(&burst)).count();
        assert!((1..100).contains(&sent), "{sent}");
        assert!(link.queued_bytes() < 10_000 + 2_000);
        assert_eq!(link.state().bursts_dropped, 100 - sent as u64);
        link.stop();
    });
}

#[test]
fn a_foreign_answer_to_the_hello_is_a_problem_and_no_connection() {
    let world = World::default();
    serve(&world, 100);
    let events = Rc::default();
    let pool = PeerPool::new(&world);
    world.block_on(async {
        world.sleep_a_moment().await;
        let mut options = options(&events);
        options.check = Rc::new(|_| Err("another cluster".into()));
        let link = pool.get_or_start(2, 0, || options);
        world.sleep(Duration::from_secs(3)).await;
        assert!(!link.is_connected());
        let states = pool.states();
        assert_eq!((states.len(), states[0].0, &*states[0].1.problem), (1, (2, 0), "another cluster"));
        pool.remove(2, 0);
        assert!(pool.get(2, 0).is_none());
    });
    assert!(events.borrow().is_empty());
}
