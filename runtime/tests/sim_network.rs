//! The simulated network: streams in pieces, cut links, resets, listeners.

use std::cell::{Cell, RefCell};
use std::io::ErrorKind;
use std::rc::Rc;
use std::time::Duration;

use futures_util::io::{AsyncReadExt, AsyncWriteExt};
use krita_runtime::sim::{HostId, SimMesh, SimRuntime, SimStream, Simulation, SimulationOptions};
use krita_runtime::{Clock, Listener, Mesh, Network, Runtime, Spawn, Stream, TaskClass, timeout};

const LIMIT: Duration = Duration::from_secs(5);

type NoMesh = SimMesh<()>;

fn new(seed: u64) -> (Simulation, HostId, HostId) {
    let simulation = Simulation::new(seed, SimulationOptions::default());
    let server = simulation.add_host("server");
    let client = simulation.add_host("client");
    (simulation, server, client)
}

async fn echo(mut stream: SimStream) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
        if stream.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

/// Echoes on port 80 until the host dies.
async fn serve(runtime: SimRuntime) {
    let listener = runtime.listen("0.0.0.0:80".parse().unwrap()).await.unwrap();
    while let Ok(stream) = listener.accept().await {
        runtime.spawn(TaskClass::Foreground, "echo", echo(stream));
    }
}

fn boot_echo(simulation: &Simulation, server: HostId) {
    simulation.boot(server, 1, |runtime, _: NoMesh| serve(runtime));
    simulation.run_for(Duration::from_millis(1));
}

async fn exchange(stream: &mut SimStream, bytes: &[u8]) -> std::io::Result<()> {
    stream.write_all(bytes).await?;
    let mut answer = vec![0; bytes.len()];
    stream.read_exact(&mut answer).await?;
    assert_eq!(answer, bytes);
    Ok(())
}

#[test]
fn bytes_arrive_whole_in_order_and_in_pieces() {
    for seed in 0..10 {
        let (simulation, server, client) = new(seed);
        boot_echo(&simulation, server);
        simulation.block_on(client, |runtime| async move {
            let stream = runtime.connect("server:80", LIMIT).await.unwrap();
            assert_eq!(stream.peer_address(), Some("10.0.0.1:80".parse().unwrap()));
            let (mut reader, mut writer) = stream.split();
            let bytes: Vec<u8> = (0..3_000_000u32).map(|at| ((at * 7) >> 3) as u8).collect();
            let sent = bytes.clone();
            runtime.spawn(TaskClass::Foreground, "writer", async move {
                writer.write_all(&sent).await.unwrap();
                writer.close().await.unwrap();
            });
            let mut received = Vec::new();
            // The half-close goes through the echo and comes back as the end.
            reader.read_to_end(&mut received).await.unwrap();
            assert!(received == bytes);
        });
        let statistics = simulation.statistics();
        assert!(statistics.short_reads > 0 && statistics.short_writes > 0, "{statistics:?}");
    }
}

#[test]
fn a_full_window_blocks_the_writer() {
    let (simulation, server, client) = new(1);
    simulation.boot(server, 1, |runtime, _: NoMesh| async move {
        let listener = runtime.listen("0.0.0.0:80".parse().unwrap()).await.unwrap();
        let _unread = listener.accept().await.unwrap();
        runtime.sleep(Duration::from_secs(1000)).await;
    });
    simulation.run_for(Duration::from_millis(1));
    let written = simulation.block_on(client, |runtime| async move {
        let mut stream = runtime.connect("10.0.0.1:80", LIMIT).await.unwrap();
        let mut written = 0;
        while let Ok(length) = timeout(&runtime, LIMIT, stream.write(&[0; 4096])).await {
            written += length.unwrap();
        }
        written
    });
    assert!((16 << 10..=1 << 20).contains(&written), "{written}");
}

#[test]
fn connecting_fails_as_it_should() {
    let (simulation, server, client) = new(1);
    simulation.boot(server, 1, |runtime, _: NoMesh| async move {
        runtime.sleep(Duration::from_secs(1000)).await;
    });
    let connect = |address: &'static str| {
        let outcome = simulation.block_on(client, move |runtime| async move {
            let start = runtime.now();
            let outcome = runtime.connect(address, LIMIT).await;
            (outcome.map(drop), runtime.now().since(start))
        });
        (outcome.0.unwrap_err().kind(), outcome.1)
    };
    assert_eq!(connect("server:80").0, ErrorKind::ConnectionRefused);
    assert_eq!(connect("nowhere:80").0, ErrorKind::NotFound);
    assert_eq!(connect("server").0, ErrorKind::InvalidInput);
    let (kind, took) = connect("10.9.9.9:80");
    assert_eq!(kind, ErrorKind::TimedOut);
    assert!((LIMIT..LIMIT * 2).contains(&took), "{took:?}");
    simulation.network().partition(server, client);
    assert_eq!(connect("server:80").0, ErrorKind::TimedOut);
    simulation.network().heal_all();
    simulation.crash(server);
    assert_eq!(connect("server:80").0, ErrorKind::TimedOut);
}

#[test]
fn one_address_one_process() {
    let (simulation, server, client) = new(1);
    let accepted = Rc::new(RefCell::new(vec![0; 3]));
    let counts = accepted.clone();
    simulation.boot(server, 3, move |runtime, _: NoMesh| {
        let counts = counts.clone();
        async move {
            let listener = runtime.listen("10.0.0.1:80".parse().unwrap()).await.unwrap();
            let again = runtime.listen("0.0.0.0:80".parse().unwrap()).await;
            assert_eq!(again.err().unwrap().kind(), ErrorKind::AddrInUse);
            let _streams: Vec<SimStream> = loop {
                listener.accept().await.unwrap();
                counts.borrow_mut()[usize::from(runtime.core().0)] += 1;
            };
        }
    });
    simulation.block_on(server, |runtime| async move {
        let other = runtime.listen("10.0.0.1:80".parse().unwrap()).await;
        assert_eq!(other.err().unwrap().kind(), ErrorKind::AddrInUse);
        let foreign = runtime.listen("10.0.0.2:80".parse().unwrap()).await;
        assert_eq!(foreign.err().unwrap().kind(), ErrorKind::AddrNotAvailable);
        let any = runtime.listen("0.0.0.0:0".parse().unwrap()).await.unwrap();
        assert_ne!(any.local_address().port(), 0);
    });
    simulation.block_on(client, |runtime| async move {
        for _ in 0..60 {
            runtime.connect("server:80", LIMIT).await.unwrap();
        }
    });
    simulation.run_for(Duration::from_secs(1));
    assert_eq!(accepted.borrow().iter().sum::<i32>(), 60);
    assert!(accepted.borrow().iter().all(|count| *count > 5), "{accepted:?}");
    simulation.kill(server);
    simulation.block_on(server, |runtime| async move {
        runtime.listen("10.0.0.1:80".parse().unwrap()).await.expect("the port died with its process");
    });
}

#[test]
fn cores_that_ask_for_any_port_share_one() {
    let (simulation, server, _) = new(1);
    let ports = Rc::new(RefCell::new(Vec::new()));
    let sink = ports.clone();
    simulation.boot(server, 2, move |runtime, _: NoMesh| {
        let sink = sink.clone();
        async move {
            let first = runtime.listen("0.0.0.0:0".parse().unwrap()).await.unwrap();
            let second = runtime.listen("0.0.0.0:0".parse().unwrap()).await.unwrap();
            sink.borrow_mut().push([first, second].map(|listener| listener.local_address().port()));
        }
    });
    simulation.run_for(Duration::from_secs(1));
    let ports = ports.borrow();
    assert_eq!(ports[0], ports[1]);
    assert_ne!(ports[0][0], ports[0][1]);
}

#[test]
fn a_partition_holds_bytes_and_lets_them_go_when_healed() {
    let (simulation, server, client) = new(3);
    boot_echo(&simulation, server);
    let network = simulation.network();
    simulation.block_on(client, |runtime| async move {
        let mut stream = runtime.connect("server:80", LIMIT).await.unwrap();
        exchange(&mut stream, b"before").await.unwrap();
        network.partition(server, client);
        stream.write_all(b"during").await.unwrap();
        let mut answer = [0; 6];
        assert!(timeout(&runtime, LIMIT, stream.read_exact(&mut answer)).await.is_err());
        network.heal(client, server);
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"during");
    });
    assert_eq!(simulation.statistics().breaks, 0);
}

#[test]
fn a_long_partition_breaks_the_end_that_sent_and_hangs_the_other() {
    let (simulation, server, client) = new(3);
    let network = simulation.network();
    let outcome = Rc::new(RefCell::new(None));
    let server_saw = outcome.clone();
    simulation.boot(server, 1, move |runtime, _: NoMesh| {
        let server_saw = server_saw.clone();
        async move {
            let listener = runtime.listen("0.0.0.0:80".parse().unwrap()).await.unwrap();
            let mut stream = listener.accept().await.unwrap();
            let read = stream.read(&mut [0; 10]).await.map_err(|error| error.kind());
            *server_saw.borrow_mut() = Some(read);
        }
    });
    simulation.run_for(Duration::from_millis(1));
    simulation.block_on(client, move |runtime| async move {
        let mut stream = runtime.connect("server:80", LIMIT).await.unwrap();
        network.isolate(server);
        network.rejoin(server);
        network.isolate(server);
        stream.write_all(b"lost").await.unwrap();
        let error = stream.read(&mut [0; 10]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    });
    assert_eq!(simulation.statistics().breaks, 1);
    simulation.run_for(Duration::from_secs(600));
    assert_eq!(*outcome.borrow(), None, "nobody has told the server");
}

#[test]
fn a_one_way_partition_lets_the_other_way_through() {
    let (simulation, server, client) = new(4);
    let network = simulation.network();
    let heard = Rc::new(Cell::new(false));
    let server_heard = heard.clone();
    simulation.boot(server, 1, move |runtime, _: NoMesh| {
        let heard = server_heard.clone();
        async move {
            let listener = runtime.listen("0.0.0.0:80".parse().unwrap()).await.unwrap();
            let mut stream = listener.accept().await.unwrap();
            let mut bytes = [0; 5];
            stream.read_exact(&mut bytes).await.unwrap();
            heard.set(true);
            stream.write_all(b"reply").await.unwrap();
            runtime.sleep(Duration::from_secs(100)).await;
        }
    });
    simulation.run_for(Duration::from_millis(1));
    let saw_heard = heard.clone();
    simulation.block_on(client, move |runtime| async move {
        let mut stream = runtime.connect("server:80", LIMIT).await.unwrap();
        network.partition_one_way(server, client);
        stream.write_all(b"hello").await.unwrap();
        assert!(timeout(&runtime, Duration::from_secs(2), stream.read(&mut [0; 5])).await.is_err());
        assert!(saw_heard.get());
        network.heal(server, client);
        let mut bytes = [0; 5];
        stream.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"reply");
    });
}

#[test]
fn resets_cut_frames_in_the_middle() {
    let mut partial = 0;
    for seed in 0..50 {
        let (simulation, server, client) = new(seed);
        simulation.network().set_reset_chance(0.3);
        let got = Rc::new(RefCell::new(Vec::new()));
        let server_got = got.clone();
        simulation.boot(server, 1, move |runtime, _: NoMesh| {
            let got = server_got.clone();
            async move {
                let listener = runtime.listen("0.0.0.0:80".parse().unwrap()).await.unwrap();
                let mut stream = listener.accept().await.unwrap();
                let error = loop {
                    let mut frame = [0; 1000];
                    match stream.read(&mut frame).await {
                        Ok(length) => got.borrow_mut().extend_from_slice(&frame[..length]),
                        Err(error) => break error,
                    }
                };
                assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            }
        });
        simulation.run_for(Duration::from_millis(1));
        simulation.block_on(client, |runtime| async move {
            let mut stream = runtime.connect("server:80", LIMIT).await.unwrap();
            let error = loop {
                if let Err(error) = stream.write_all(&[5; 1000]).await {
                    break error;
                }
                runtime.sleep(Duration::from_millis(1)).await;
            };
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        });
        simulation.run_for(Duration::from_secs(2));
        assert!(!simulation.is_running(server), "its main has ended");
        partial += u32::from(!got.borrow().len().is_multiple_of(1000));
    }
    assert!(partial > 20, "{partial}");
}

#[test]
fn a_test_can_reset_what_it_likes() {
    let (simulation, server, client) = new(1);
    boot_echo(&simulation, server);
    let network = simulation.network();
    simulation.block_on(client, move |runtime| async move {
        let mut stream = runtime.connect("server:80", LIMIT).await.unwrap();
        exchange(&mut stream, b"hello").await.unwrap();
        assert_eq!(network.reset_connections(client, server), 1);
        assert_eq!(exchange(&mut stream, b"hello").await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    });
    assert_eq!(simulation.statistics().resets, 2);
}

#[test]
fn a_crash_of_the_peer_is_a_reset_or_silence() {
    let (mut resets, mut silences) = (0, 0);
    for seed in 0..40 {
        let (simulation, server, client) = new(seed);
        boot_echo(&simulation, server);
        let script = simulation.clone();
        simulation.block_on(client, move |runtime| async move {
            let mut stream = runtime.connect("server:80", LIMIT).await.unwrap();
            exchange(&mut stream, b"hello").await.unwrap();
            script.crash(server);
            match timeout(&runtime, LIMIT, stream.read(&mut [0; 5])).await {
                Ok(outcome) => assert_eq!(outcome.unwrap_err().kind(), ErrorKind::ConnectionReset),
                Err(_) => {
                    script.boot(server, 1, |runtime, _: NoMesh| serve(runtime));
                    // The new kernel does not know the connection.
                    let error = exchange(&mut stream, b"hello").await.unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
                    let mut stream = runtime.connect("server:80", LIMIT).await.unwrap();
                    exchange(&mut stream, b"hello").await.unwrap();
                }
            }
        });
        match simulation.is_running(server) {
            true => silences += 1,
            false => resets += 1,
        }
    }
    assert!(resets > 5 && silences > 5, "resets {resets}, silences {silences}");
}

#[test]
fn a_kill_closes_what_was_open() {
    let (simulation, server, client) = new(2);
    boot_echo(&simulation, server);
    let script = simulation.clone();
    simulation.block_on(client, move |runtime| async move {
        let mut stream = runtime.connect("server:80", LIMIT).await.unwrap();
        exchange(&mut stream, b"hello").await.unwrap();
        script.kill(server);
        assert_eq!(stream.read(&mut [0; 5]).await.unwrap(), 0);
        assert_eq!(exchange(&mut stream, b"hello").await.unwrap_err().kind(), ErrorKind::UnexpectedEof);
    });
}

#[test]
fn a_stream_moves_between_cores() {
    let (simulation, server, client) = new(2);
    simulation.boot(server, 2, |runtime, mesh: SimMesh<krita_runtime::sim::SimHandoff>| async move {
        if runtime.core().0 == 1 {
            loop {
                let stream = runtime.attach(mesh.receive().await).unwrap();
                runtime.spawn(TaskClass::Foreground, "echo", echo(stream));
            }
        }
        let listener = runtime.listen("0.0.0.0:80".parse().unwrap()).await.unwrap();
        loop {
            let mut stream = listener.accept().await.unwrap();
            let mut first = [0; 1];
            stream.read_exact(&mut first).await.unwrap();
            let handoff = runtime.detach(stream);
            match first[0] {
                b'm' => assert!(mesh.send(krita_runtime::CoreId(1), handoff).is_ok()),
                _ => drop(handoff),
            }
        }
    });
    simulation.run_for(Duration::from_millis(1));
    simulation.block_on(client, |runtime| async move {
        let mut stream = runtime.connect("server:80", LIMIT).await.unwrap();
        stream.write_all(b"m").await.unwrap();
        exchange(&mut stream, b"hello").await.unwrap();
        let mut stream = runtime.connect("server:80", LIMIT).await.unwrap();
        stream.write_all(b"d").await.unwrap();
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0, "a dropped handoff closes");
    });
}

#[test]
fn a_dropped_listener_and_unread_bytes_reset() {
    let (simulation, server, client) = new(2);
    simulation.boot(server, 1, |runtime, _: NoMesh| async move {
        let listener = runtime.listen("0.0.0.0:80".parse().unwrap()).await.unwrap();
        let stream = listener.accept().await.unwrap();
        runtime.sleep(Duration::from_secs(1)).await;
        drop(listener);
        drop(stream);
        runtime.sleep(Duration::from_secs(100)).await;
    });
    simulation.run_for(Duration::from_millis(1));
    simulation.block_on(client, |runtime| async move {
        let mut stream = runtime.connect("server:80", LIMIT).await.unwrap();
        stream.write_all(b"unread").await.unwrap();
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        let refused = runtime.connect("server:80", LIMIT).await;
        assert_eq!(refused.err().unwrap().kind(), ErrorKind::ConnectionRefused);
    });
}
