//! The real machine, on real io_uring: files, sockets, cores, limits.
#![cfg(feature = "glommio")]
#![allow(missing_docs)]

use std::cell::{Cell, RefCell};
use std::fs;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_channel::oneshot;
use futures_util::io::{AsyncReadExt, AsyncWriteExt};
use krita_runtime::glommio::{
    GlommioHandoff, GlommioMesh, GlommioRuntime, NodeOptions, Signal, block_on, preflight, signals, start,
};
use krita_runtime::{
    BLOCK_SIZE, Clock, CoreId, Disk, File, Listener, Mesh, Network, OpenOptions, Rng, Runtime, Spawn, Stream,
    TaskClass, timeout,
};

/// A fresh directory under the target directory, which is on a real disk, removed afterwards.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn options() -> NodeOptions {
    NodeOptions { ring_depth: 256, ..NodeOptions::default() }
}

fn two_cores() -> NodeOptions {
    NodeOptions { cores: 2, ..options() }
}

/// Runs a test on one core, and fails it if it hangs.
fn run<Fut: Future<Output = ()>>(test: impl FnOnce(GlommioRuntime) -> Fut) {
    block_on(options(), |runtime| async move {
        let limit = runtime.clone();
        timeout(&limit, Duration::from_secs(60), test(runtime)).await.expect("the test does not hang");
    })
    .unwrap();
}

const DURABLE: OpenOptions = OpenOptions { write: true, create: true, durable_writes: true };

fn filled<F: File>(file: &F, length: usize, seed: u8) -> F::Buffer {
    let mut buffer = file.buffer(length);
    for (index, byte) in buffer.iter_mut().enumerate() {
        *byte = pattern(seed, index);
    }
    buffer
}

fn pattern(seed: u8, index: usize) -> u8 {
    seed.wrapping_add((index % 251) as u8)
}

#[test]
fn a_file_returns_what_was_written_at_any_alignment() {
    let directory = Directory::new("round-trip");
    run(|runtime| async move {
        let path = directory.0.join("data");
        let file = runtime.open(&path, DURABLE).await.unwrap();
        file.write_at(filled(&file, 4 * BLOCK_SIZE, 7), 0).await.unwrap();
        file.write_at(filled(&file, BLOCK_SIZE, 9), 4 * BLOCK_SIZE as u64).await.unwrap();
        file.sync_data().await.unwrap();
        assert_eq!(file.length().await.unwrap(), 5 * BLOCK_SIZE as u64);

        let reader = runtime.open(&path, OpenOptions::default()).await.unwrap();
        for (position, length) in [(0, 1), (1, 10), (4095, 2), (4096, 4096), (100, 12_000), (0, 16_384)] {
            let bytes = reader.read_at(position, length).await.unwrap();
            let expected: Vec<u8> = (0..length).map(|index| pattern(7, position as usize + index)).collect();
            assert_eq!(bytes, expected, "{length} bytes at {position}");
        }
        let tail = reader.read_at(5 * BLOCK_SIZE as u64 - 3, 100).await.unwrap();
        assert_eq!(tail, [pattern(9, 4093), pattern(9, 4094), pattern(9, 4095)].as_slice());
        assert!(reader.read_at(5 * BLOCK_SIZE as u64, 1).await.unwrap().is_empty());
        assert!(reader.read_at(1 << 40, 4096).await.unwrap().is_empty());
        assert!(reader.read_at(10, 0).await.unwrap().is_empty());
    });
}

#[test]
fn a_file_whose_length_is_not_aligned_can_be_read() {
    let directory = Directory::new("unaligned");
    let path = directory.0.join("data");
    let content: Vec<u8> = (0..10_001).map(|index| pattern(3, index)).collect();
    fs::write(&path, &content).unwrap();
    run(|runtime| async move {
        let file = runtime.open(&path, OpenOptions::default()).await.unwrap();
        assert_eq!(file.length().await.unwrap(), 10_001);
        assert_eq!(file.read_at(0, 20_000).await.unwrap(), content);
        assert_eq!(file.read_at(9_000, 1_001).await.unwrap(), content[9_000..]);
        assert_eq!(file.read_at(9_000, 500).await.unwrap(), content[9_000..9_500]);
        assert_eq!(file.read_at(10_000, 5).await.unwrap(), content[10_000..]);
        assert!(file.read_at(10_001, 5).await.unwrap().is_empty());
    });
}

#[test]
fn durable_writes_set_the_flags_that_make_them_so() {
    let directory = Directory::new("flags");
    run(|runtime| async move {
        let path = directory.0.join("data");
        let _file = runtime.open(&path, DURABLE).await.unwrap();
        let flags = fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(Result::ok)
            .find(|entry| fs::read_link(entry.path()).is_ok_and(|target| target == path))
            .map(|entry| fs::read_to_string(Path::new("/proc/self/fdinfo").join(entry.file_name())).unwrap())
            .expect("the file is open");
        let flags = flags.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim().to_owned();
        let flags = i32::from_str_radix(&flags, 8).unwrap();
        assert_eq!(flags & libc::O_DSYNC, libc::O_DSYNC, "{flags:o}");
        assert_eq!(flags & libc::O_DIRECT, libc::O_DIRECT, "{flags:o}");
    });
}

#[test]
fn a_write_whose_caller_goes_away_still_ends() {
    let directory = Directory::new("abandoned");
    run(|runtime| async move {
        let path = directory.0.join("data");
        let file = runtime.open(&path, DURABLE).await.unwrap();
        for position in 0..32 {
            let buffer = filled(&file, BLOCK_SIZE, position as u8);
            let mut write = Box::pin(file.write_at(buffer, position * BLOCK_SIZE as u64));
            // Polled once, so that it is on its way, then dropped.
            let poll = std::future::poll_fn(|context| std::task::Poll::Ready(write.as_mut().poll(context)));
            assert!(poll.await.is_pending());
        }
        drop(file);
        let reader = runtime.open(&path, OpenOptions::default()).await.unwrap();
        while reader.length().await.unwrap() < 32 * BLOCK_SIZE as u64 {
            runtime.sleep(Duration::from_millis(1)).await;
        }
        // The length may be ahead of an earlier block for a moment.
        for position in 0..32_u64 {
            let expected: Vec<u8> = (0..BLOCK_SIZE).map(|index| pattern(position as u8, index)).collect();
            while reader.read_at(position * BLOCK_SIZE as u64, BLOCK_SIZE).await.unwrap() != expected {
                runtime.sleep(Duration::from_millis(1)).await;
            }
        }
    });
}

#[test]
fn directories_are_made_listed_and_emptied() {
    let directory = Directory::new("directories");
    run(|runtime| async move {
        let deep = directory.0.join("a/b/c");
        runtime.create_directory(&deep).await.unwrap();
        runtime.create_directory(&deep).await.unwrap();
        for name in ["two", "one", "three"] {
            runtime.open(&deep.join(name), DURABLE).await.unwrap();
        }
        runtime.sync_directory(&deep).await.unwrap();
        runtime.rename(&deep.join("two"), &deep.join("one")).await.unwrap();
        let names = runtime.list_directory(&deep).await.unwrap();
        assert_eq!(names, ["one", "three"].map(PathBuf::from));
        runtime.remove_file(&deep.join("one")).await.unwrap();
        let kind = runtime.remove_file(&deep.join("one")).await.unwrap_err().kind();
        assert_eq!(kind, io::ErrorKind::NotFound);
        let missing = deep.join("missing");
        let kind = runtime.open(&missing, OpenOptions::default()).await.err().unwrap().kind();
        assert_eq!(kind, io::ErrorKind::NotFound);
        assert_eq!(runtime.list_directory(&missing).await.unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(runtime.available_bytes(&deep).await.unwrap() > 0);
    });
}

#[test]
fn a_small_file_is_replaced_whole() {
    let directory = Directory::new("small");
    run(|runtime| async move {
        let path = directory.0.join("identity");
        let kind = runtime.read_small_file(&path, 10).await.unwrap_err().kind();
        assert_eq!(kind, io::ErrorKind::NotFound);
        runtime.replace_small_file(&path, b"first").await.unwrap();
        runtime.replace_small_file(&path, b"second one").await.unwrap();
        assert_eq!(runtime.read_small_file(&path, 10).await.unwrap(), b"second one");
        let kind = runtime.read_small_file(&path, 9).await.unwrap_err().kind();
        assert_eq!(kind, io::ErrorKind::InvalidData);
        assert_eq!(runtime.list_directory(&directory.0).await.unwrap(), [PathBuf::from("identity")]);
    });
}

#[test]
fn a_directory_is_locked_once() {
    let directory = Directory::new("lock");
    run(|runtime| async move {
        runtime.lock_directory(&directory.0).await.unwrap();
        let kind = runtime.lock_directory(&directory.0).await.unwrap_err().kind();
        assert_eq!(kind, io::ErrorKind::WouldBlock);
        // From another process too.
        let status = Command::new("flock").arg("-n").arg(directory.0.join("lock")).arg("true").status();
        if let Ok(status) = status {
            assert!(!status.success());
        }
    });
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

#[test]
fn a_port_belongs_to_one_process() {
    let taken = TcpListener::bind(local(0)).unwrap();
    run(|runtime| async move {
        let kind = runtime.listen(taken.local_addr().unwrap()).await.err().unwrap().kind();
        assert_eq!(kind, io::ErrorKind::AddrInUse);
        let ours = runtime.listen(local(0)).await.unwrap();
        let other = runtime.listen(local(0)).await.unwrap();
        assert_ne!(ours.local_address(), other.local_address());
        // Neither a plain socket nor one that offers to share gets it.
        let kind = TcpListener::bind(ours.local_address()).unwrap_err().kind();
        assert_eq!(kind, io::ErrorKind::AddrInUse);
        let sharing = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        sharing.set_reuse_port(true).unwrap();
        assert_eq!(sharing.bind(&ours.local_address().into()).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        // It is free again when the listener is gone.
        let address = ours.local_address();
        drop(ours);
        TcpListener::bind(address).unwrap();
    });
}

/// What the two cores of the hand-off test tell each other.
enum Message {
    Listening(SocketAddr),
    Connection(GlommioHandoff),
    Done,
}

#[test]
fn connections_move_between_cores() {
    const CONNECTIONS: usize = 20;
    async fn main(runtime: GlommioRuntime, mesh: GlommioMesh<Message>) {
        if runtime.core() == CoreId(0) {
            let listener = runtime.listen(local(0)).await.unwrap();
            mesh.send(CoreId(1), Message::Listening(listener.local_address())).ok().unwrap();
            for _ in 0..CONNECTIONS {
                let mut stream = listener.accept().await.unwrap();
                assert!(stream.peer_address().is_some());
                let mut hello = [0; 5];
                stream.read_exact(&mut hello).await.unwrap();
                assert_eq!(&hello, b"hello");
                mesh.send(CoreId(1), Message::Connection(runtime.detach(stream))).ok().unwrap();
            }
            assert!(matches!(mesh.receive().await, Message::Done));
        } else {
            let Message::Listening(address) = mesh.receive().await else { panic!("the address comes first") };
            let client = runtime.clone();
            runtime.spawn(TaskClass::Foreground, "clients", async move {
                for _ in 0..CONNECTIONS {
                    let limit = Duration::from_secs(5);
                    let mut stream = client.connect(&address.to_string(), limit).await.unwrap();
                    stream.write_all(b"hello").await.unwrap();
                    let payload: Vec<u8> = (0..300_000).map(|index| pattern(1, index)).collect();
                    let (mut reading, mut writing) = stream.split();
                    let mut echoed = vec![0; payload.len()];
                    let (written, read) = futures_util::future::join(
                        writing.write_all(&payload),
                        reading.read_exact(&mut echoed),
                    )
                    .await;
                    written.unwrap();
                    read.unwrap();
                    assert_eq!(echoed, payload);
                    writing.close().await.unwrap();
                    assert_eq!(reading.read(&mut echoed).await.unwrap(), 0);
                }
            });
            for _ in 0..CONNECTIONS {
                let Message::Connection(handoff) = mesh.receive().await else { panic!("connections follow") };
                let mut stream = runtime.attach(handoff).unwrap();
                let mut buffer = vec![0; 64 << 10];
                loop {
                    let length = stream.read(&mut buffer).await.unwrap();
                    if length == 0 {
                        break;
                    }
                    stream.write_all(&buffer[..length]).await.unwrap();
                }
                stream.close().await.unwrap();
            }
            mesh.send(CoreId(0), Message::Done).ok().unwrap();
        }
    }
    start(two_cores(), main).unwrap().join().unwrap();
}

#[test]
fn all_cores_accept_on_one_socket() {
    let served: Arc<[AtomicU64; 2]> = Arc::default();
    let counters = Arc::clone(&served);
    let main = move |runtime: GlommioRuntime, mesh: GlommioMesh<SocketAddr>| {
        let served = Arc::clone(&counters);
        async move {
            let listener = runtime.listen(local(0)).await.unwrap();
            let other = CoreId(1 - runtime.core().0);
            mesh.send(other, listener.local_address()).unwrap();
            assert_eq!(mesh.receive().await, listener.local_address());
            let core = usize::from(runtime.core().0);
            let address = listener.local_address().to_string();
            let counters = Arc::clone(&served);
            runtime.spawn(TaskClass::Foreground, "accept", async move {
                loop {
                    let mut stream = listener.accept().await.unwrap();
                    counters[core].fetch_add(1, Ordering::Relaxed);
                    stream.write_all(&[1]).await.unwrap();
                }
            });
            for _ in 0..50 {
                let mut stream = runtime.connect(&address, Duration::from_secs(5)).await.unwrap();
                assert_eq!(stream.read(&mut [0; 4]).await.unwrap(), 1);
            }
            // A core that ends earlier would take its connections with it.
            mesh.send(other, local(1)).unwrap();
            mesh.receive().await;
        }
    };
    start(two_cores(), main).unwrap().join().unwrap();
    assert_eq!(served.iter().map(|count| count.load(Ordering::Relaxed)).sum::<u64>(), 100);
}

#[test]
fn connecting_fails_in_bounded_time() {
    run(|runtime| async move {
        let closed = TcpListener::bind(local(0)).unwrap().local_addr().unwrap().to_string();
        let kind = runtime.connect(&closed, Duration::from_secs(5)).await.err().unwrap().kind();
        assert_eq!(kind, io::ErrorKind::ConnectionRefused);
        // A backlog that is full swallows connections without an answer.
        let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        full.bind(&local(0).into()).unwrap();
        full.listen(0).unwrap();
        let address = full.local_addr().unwrap().as_socket().unwrap().to_string();
        let mut held = Vec::new();
        let error = loop {
            let before = runtime.now();
            match runtime.connect(&address, Duration::from_millis(200)).await {
                Ok(stream) => held.push(stream),
                Err(error) => {
                    let waited = runtime.now().since(before);
                    assert!(waited >= Duration::from_millis(200) && waited < Duration::from_secs(5));
                    break error;
                }
            }
            assert!(held.len() < 10);
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let error = runtime.connect("no-such-name.invalid:1", Duration::from_secs(10)).await.err();
        assert!(error.is_some());
        assert!(runtime.connect("no port", Duration::from_secs(10)).await.is_err());
    });
}

#[test]
fn names_are_resolved() {
    run(|runtime| async move {
        let listener = runtime.listen(local(0)).await.unwrap();
        let address = format!("localhost:{}", listener.local_address().port());
        runtime.connect(&address, Duration::from_secs(10)).await.unwrap();
        listener.accept().await.unwrap();
    });
}

#[test]
fn the_mesh_keeps_each_senders_order_and_gives_back_what_is_too_much() {
    const MESSAGES: u64 = 100_000;
    let options = NodeOptions { mesh_queue_length: 64, ..two_cores() };
    let main = |runtime: GlommioRuntime, mesh: GlommioMesh<u64>| async move {
        let other = CoreId(1 - runtime.core().0);
        let sender = mesh.clone();
        let pausing = runtime.clone();
        let (sent, all_sent) = oneshot::channel();
        runtime.spawn(TaskClass::Foreground, "sender", async move {
            let mut full = 0_u64;
            for number in 0..MESSAGES {
                let mut message = number;
                while let Err(back) = sender.send(other, message) {
                    full += 1;
                    message = back.0;
                    pausing.pause().await;
                }
            }
            assert!(full > 0, "a queue of 64 is full at times");
            sent.send(()).unwrap();
        });
        for expected in 0..MESSAGES {
            let received = match mesh.try_receive() {
                Some(received) => received,
                None => mesh.receive().await,
            };
            assert_eq!(received, expected);
        }
        // A core's tasks end with its main.
        all_sent.await.unwrap();
    };
    start(options, main).unwrap().join().unwrap();
}

#[test]
fn a_full_queue_gives_the_message_back() {
    let options = NodeOptions { mesh_queue_length: 2, ..options() };
    start(options, |runtime: GlommioRuntime, mesh: GlommioMesh<&'static str>| async move {
        assert_eq!(mesh.cores(), 1);
        mesh.send(runtime.core(), "one").unwrap();
        mesh.send(runtime.core(), "two").unwrap();
        assert_eq!(mesh.send(runtime.core(), "three").unwrap_err().0, "three");
        assert_eq!(mesh.receive().await, "one");
        assert_eq!(mesh.try_receive(), Some("two"));
        assert_eq!(mesh.try_receive(), None);
    })
    .unwrap()
    .join()
    .unwrap();
}

#[test]
fn time_passes_and_limits_hold() {
    run(|runtime| async move {
        let before = runtime.now();
        let never = timeout(&runtime, Duration::from_millis(50), std::future::pending::<()>()).await;
        assert!(never.is_err());
        let waited = runtime.now().since(before);
        assert!(waited >= Duration::from_millis(49) && waited < Duration::from_secs(2), "{waited:?}");
        timeout(&runtime, Duration::from_secs(5), runtime.sleep(Duration::from_millis(1))).await.unwrap();
        runtime.sleep(Duration::ZERO).await;
        assert!(timeout(&runtime, Duration::from_millis(1), runtime.sleep(Duration::MAX)).await.is_err());
        let year_2020 = 1_577_836_800_000;
        assert!(runtime.wall_clock().0 > year_2020);
        assert_ne!(runtime.random_u64(), runtime.random_u64());
    });
}

/// Glommio's own timers go wrong beyond 256: late by a quarter of a second, and spinning meanwhile.
#[test]
fn sleeps_are_exact_beside_thousands_of_others() {
    run(|runtime| async move {
        for number in 0..5000_u64 {
            let long = runtime.sleep(Duration::from_secs(60) + Duration::from_micros(number));
            runtime.spawn(TaskClass::Foreground, "sleeper", long);
        }
        let before = runtime.now();
        for _ in 0..100 {
            runtime.sleep(Duration::from_micros(100)).await;
            runtime.pause().await;
        }
        let took = runtime.now().since(before);
        assert!(took >= Duration::from_millis(10) && took < Duration::from_secs(5), "{took:?}");
        // Shorter ones overtake longer ones that were set before.
        let order = Rc::new(RefCell::new(Vec::new()));
        for milliseconds in [60, 20, 40, 1] {
            let (own, order) = (runtime.clone(), Rc::clone(&order));
            runtime.spawn(TaskClass::Foreground, "sleeper", async move {
                own.sleep(Duration::from_millis(milliseconds)).await;
                order.borrow_mut().push(milliseconds);
            });
        }
        while order.borrow().len() < 4 {
            runtime.sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(*order.borrow(), [1, 20, 40, 60]);
    });
}

#[test]
fn a_panic_is_told_with_its_core() {
    let main = |runtime: GlommioRuntime, _: GlommioMesh<()>| async move {
        if runtime.core() == CoreId(1) {
            runtime.spawn(TaskClass::Background, "doomed", async { panic!("as ordered") });
        }
        // The other core waits for ever.
        std::future::pending::<()>().await;
    };
    let error = start(two_cores(), main).unwrap().join().unwrap_err();
    assert_eq!(error.core, CoreId(1));
    assert!(error.to_string().contains("as ordered"), "{error}");
}

#[test]
fn a_stalled_core_is_noticed() {
    run(|runtime| async move {
        runtime.sleep(Duration::from_millis(300)).await;
        let before = runtime.health()[0];
        std::thread::sleep(Duration::from_millis(700));
        runtime.sleep(Duration::from_millis(300)).await;
        let after = runtime.health()[0];
        assert!(before.beats > 0);
        assert!(after.beats > before.beats);
        assert_eq!(after.stalls, before.stalls + 1);
        assert!(after.stall_longest >= Duration::from_millis(300), "{after:?}");
    });
}

#[test]
fn signals_arrive() {
    let signals = signals().unwrap();
    run(|runtime| async move {
        for (number, expected) in [(libc::SIGTERM, Signal::Terminate), (libc::SIGHUP, Signal::Hangup)] {
            assert_eq!(signals.try_next(), None);
            let mut kill = Command::new("kill");
            kill.arg(format!("-{number}")).arg(std::process::id().to_string());
            assert!(kill.status().unwrap().success());
            assert_eq!(timeout(&runtime, Duration::from_secs(5), signals.next()).await, Ok(expected));
        }
    });
}

#[test]
fn preflight_passes_here_and_says_what_is_missing_elsewhere() {
    const CHILD: &str = "KRITA_TEST_PREFLIGHT_CHILD";
    if std::env::var_os(CHILD).is_some() {
        match preflight(&NodeOptions::default()) {
            Ok(found) => println!("passed {found:?}"),
            Err(error) => println!("refused {error}"),
        }
        return;
    }
    let found = preflight(&two_cores()).unwrap();
    assert!(found.open_files >= 1024);
    assert!(found.memlock_needed >= 512 << 10);

    let refused = |limits: &str| {
        let own = std::env::current_exe().unwrap();
        let test = "preflight_passes_here_and_says_what_is_missing_elsewhere";
        let script = format!("{limits} && exec {} --exact {test} --nocapture", own.display());
        let output = Command::new("sh").arg("-c").arg(script).env(CHILD, "1").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let text = refused("ulimit -l 64");
    assert!(text.contains("refused") && text.contains("64 KiB") && text.contains("LimitMEMLOCK"), "{text}");
    let text = refused("ulimit -n 200");
    assert!(text.contains("refused") && text.contains("200 files") && text.contains("LimitNOFILE"), "{text}");
    let text = refused("ulimit -Sn 300");
    assert!(text.contains("passed"), "a soft limit is raised: {text}");
}

#[test]
fn many_tasks_of_both_classes_go_on_under_load() {
    let finished = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&finished);
    let main = move |runtime: GlommioRuntime, mesh: GlommioMesh<u64>| {
        let finished = Arc::clone(&counter);
        async move {
            let end = runtime.now() + Duration::from_secs(4);
            let other = CoreId(1 - runtime.core().0);
            let left = Rc::new(Cell::new(0_u64));
            let done = Rc::new(RefCell::new(None));
            for task in 0..200_u64 {
                let class = if task % 4 == 0 { TaskClass::Background } else { TaskClass::Foreground };
                let (own, left, done) = (runtime.clone(), Rc::clone(&left), Rc::clone(&done));
                let (mesh, finished) = (mesh.clone(), Arc::clone(&finished));
                left.set(left.get() + 1);
                runtime.spawn(class, "load", async move {
                    let mut rounds = 0;
                    while own.now() < end {
                        spin(&own, Duration::from_micros(20));
                        rounds += 1;
                        match (task + rounds) % 3 {
                            0 => own.pause().await,
                            1 => own.sleep(Duration::from_micros(own.random_u64() % 2000)).await,
                            _ => drop(mesh.send(other, rounds)),
                        }
                    }
                    finished.fetch_add(1, Ordering::Relaxed);
                    left.set(left.get() - 1);
                    if left.get() == 0
                        && let Some(done) = done.borrow_mut().take()
                    {
                        let done: oneshot::Sender<()> = done;
                        let _ = done.send(());
                    }
                });
            }
            let (sender, all_done) = oneshot::channel();
            *done.borrow_mut() = Some(sender);
            let receiver = mesh.clone();
            runtime.spawn(TaskClass::Foreground, "drain", async move {
                loop {
                    receiver.receive().await;
                }
            });
            all_done.await.unwrap();
            let health = runtime.health()[usize::from(runtime.core().0)];
            assert!(health.beats > 0);
        }
    };
    start(two_cores(), main).unwrap().join().unwrap();
    assert_eq!(finished.load(Ordering::Relaxed), 400);
}

fn spin(clock: &impl Clock, duration: Duration) {
    let end = clock.now() + duration;
    while clock.now() < end {
        std::hint::spin_loop();
    }
}
