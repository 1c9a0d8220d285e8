//! The simulated executor, clocks and mesh; and a small cluster under load, replayed.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use futures_util::io::{AsyncReadExt, AsyncWriteExt};
use krita_runtime::sim::{HostId, Latency, SimMesh, SimRuntime, SimStream, Simulation, SimulationOptions};
use krita_runtime::{
    BLOCK_SIZE, Clock, CoreId, Disk, File, Listener, Mesh, Network, Notify, OpenOptions, Rng, Runtime, Spawn,
    TaskClass,
};

type NoMesh = SimMesh<()>;

fn new(seed: u64) -> (Simulation, HostId) {
    let simulation = Simulation::new(seed, SimulationOptions::default());
    let host = simulation.add_host("node1");
    (simulation, host)
}

#[test]
fn the_order_of_tasks_is_the_seeds() {
    let order = |seed| {
        let (simulation, host) = new(seed);
        let order = Rc::new(RefCell::new(Vec::new()));
        for task in 0..8 {
            let order = order.clone();
            simulation.spawn_on(host, move |_| async move { order.borrow_mut().push(task) });
        }
        simulation.run_for(Duration::from_secs(1));
        order.take()
    };
    assert_eq!(order(1), order(1));
    assert_ne!(order(1), order(2));
    assert_eq!(order(3).len(), 8);
}

#[test]
fn sleeping_takes_the_time_it_says_on_a_clock_of_its_own() {
    let (simulation, host) = new(1);
    simulation.set_clock_drift(host, -100_000);
    let (first, slept) = simulation.block_on(host, |runtime| async move {
        let start = runtime.now();
        runtime.sleep(Duration::from_secs(9)).await;
        (start, runtime.now().since(start))
    });
    assert!((9_000..9_001).contains(&slept.as_millis()), "{slept:?}");
    assert!((10_000..10_001).contains(&simulation.now().as_millis()), "a slow clock needs more true time");
    simulation.crash(host);
    let second = simulation.block_on(host, |runtime| async move { runtime.now() });
    assert!(second.since(first) > Duration::from_secs(60) || first.since(second) > Duration::from_secs(60));
}

#[test]
fn wall_clocks_step() {
    let (simulation, host) = new(1);
    let read = |runtime: SimRuntime| async move { runtime.wall_clock().0 };
    let before = simulation.block_on(host, read);
    simulation.step_wall_clock(host, -3_600_000);
    let after = simulation.block_on(host, read);
    assert!(before.abs_diff(1_767_225_600_000) <= 2_000);
    assert!((3_599_000..=3_600_000).contains(&(before - after)));
}

#[test]
fn a_paused_host_stands_still_and_then_catches_up() {
    let (simulation, host) = new(1);
    let ticks = Rc::new(Cell::new(0));
    let count = ticks.clone();
    simulation.boot(host, 1, move |runtime, _: NoMesh| {
        let count = count.clone();
        async move {
            let start = runtime.now();
            loop {
                runtime.sleep(Duration::from_millis(10)).await;
                count.set(count.get() + 1);
                let late = runtime.now().since(start) > Duration::from_secs(5);
                assert!(!late || count.get() < 200, "it sees the time it lost");
            }
        }
    });
    simulation.run_for(Duration::from_secs(1));
    let before = ticks.get();
    assert!((90..=100).contains(&before), "{before}");
    simulation.pause(host);
    simulation.run_for(Duration::from_secs(10));
    assert_eq!(ticks.get(), before);
    simulation.resume(host);
    simulation.run_for(Duration::from_millis(5));
    assert_eq!(ticks.get(), before + 1);
}

#[test]
fn a_crash_drops_every_task_and_stale_wakers_do_nothing() {
    struct Dropped(Rc<Cell<u32>>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.set(self.0.get() + 1);
        }
    }
    let (simulation, host) = new(1);
    let (dropped, notify) = (Rc::new(Cell::new(0)), Notify::new());
    let (count, wait) = (dropped.clone(), notify.clone());
    simulation.boot(host, 2, move |runtime, _: NoMesh| {
        let (count, wait) = (count.clone(), wait.clone());
        async move {
            let guard = Dropped(count.clone());
            let inner = Dropped(count.clone());
            let again = runtime.clone();
            runtime.spawn(TaskClass::Background, "waiter", async move {
                let _inner = inner;
                wait.notified().await;
                again.sleep(Duration::from_secs(100)).await;
            });
            runtime.sleep(Duration::from_secs(100)).await;
            drop(guard);
        }
    });
    simulation.run_for(Duration::from_secs(1));
    assert!(simulation.is_running(host));
    simulation.crash(host);
    assert!(!simulation.is_running(host));
    assert_eq!(dropped.get(), 4);
    let polls = simulation.statistics().polls;
    notify.notify();
    simulation.run_for(Duration::from_secs(200));
    assert_eq!(simulation.statistics().polls, polls);
}

#[test]
fn a_host_may_be_crashed_from_inside_itself() {
    let (simulation, host) = new(1);
    let script = simulation.clone();
    simulation.spawn_on(host, move |runtime| async move {
        script.crash(host);
        runtime.sleep(Duration::from_millis(1)).await;
        unreachable!("it is dead");
    });
    simulation.run_for(Duration::from_secs(1));
    assert_eq!(simulation.statistics().crashes, 1);
}

#[test]
fn a_core_ends_with_its_main_and_the_process_with_its_cores() {
    let (simulation, host) = new(1);
    simulation.boot(host, 2, |runtime, _: NoMesh| async move {
        let again = runtime.clone();
        runtime.spawn(TaskClass::Foreground, "detached", async move {
            again.sleep(Duration::from_secs(50)).await;
            unreachable!("its core has ended");
        });
        runtime.sleep(Duration::from_secs(1 + 9 * u64::from(runtime.core().0))).await;
    });
    simulation.run_for(Duration::from_secs(5));
    assert!(simulation.is_running(host));
    simulation.run_for(Duration::from_secs(100));
    assert!(!simulation.is_running(host));
}

#[test]
fn mesh_messages_keep_each_senders_order_and_queues_are_bounded() {
    let options = SimulationOptions { mesh_capacity: 100, ..SimulationOptions::default() };
    let simulation = Simulation::new(9, options);
    let host = simulation.add_host("node1");
    let received = Rc::new(RefCell::new(Vec::new()));
    let sink = received.clone();
    simulation.boot(host, 3, move |runtime, mesh: SimMesh<(u16, u32)>| {
        let sink = sink.clone();
        async move {
            assert_eq!(mesh.cores(), 3);
            if runtime.core() != CoreId(0) {
                for number in 0..1000 {
                    let mut message = (runtime.core().0, number);
                    while let Err(full) = mesh.send(CoreId(0), message) {
                        message = full.0;
                        runtime.sleep(Duration::from_micros(100)).await;
                    }
                }
                // The receiver's core outlives both.
                return runtime.sleep(Duration::from_secs(1)).await;
            }
            loop {
                let message = mesh.receive().await;
                sink.borrow_mut().push(message);
            }
        }
    });
    simulation.run_for(Duration::from_secs(5));
    let received = received.borrow();
    assert_eq!(received.len(), 2000);
    for sender in [1, 2] {
        let numbers = received.iter().filter(|message| message.0 == sender).map(|message| message.1);
        assert!(numbers.eq(0..1000));
    }
    assert!(!received.is_sorted(), "the senders interleave");
    assert!(simulation.statistics().mesh_refusals > 0);
}

#[test]
fn a_message_for_a_core_that_has_ended_comes_back() {
    let (simulation, host) = new(1);
    let refused = Rc::new(Cell::new(false));
    let seen = refused.clone();
    simulation.boot(host, 2, move |runtime, mesh: SimMesh<u8>| {
        let seen = seen.clone();
        async move {
            if runtime.core() == CoreId(0) {
                runtime.sleep(Duration::from_secs(1)).await;
                seen.set(mesh.send(CoreId(1), 7).is_err());
            }
        }
    });
    simulation.run_for(Duration::from_secs(2));
    assert!(refused.get());
}

#[test]
#[should_panic(expected = "livelock")]
fn spinning_without_time_is_a_livelock() {
    let options = SimulationOptions { poll_time: Latency::ZERO, ..SimulationOptions::default() };
    let simulation = Simulation::new(1, options);
    let host = simulation.add_host("node1");
    simulation.block_on(host, |runtime| async move {
        loop {
            runtime.pause().await;
        }
    });
}

#[test]
fn spinning_with_time_does_not_freeze_the_others() {
    let (simulation, host) = new(1);
    simulation.spawn_on(host, |runtime| async move {
        loop {
            runtime.pause().await;
        }
    });
    simulation.block_on(host, |runtime| async move {
        runtime.sleep(Duration::from_millis(100)).await;
    });
}

/// A node that writes what it is sent to its log, durably, and echoes it; frames reach core 1 over the mesh.
async fn node(runtime: SimRuntime, mesh: SimMesh<u64>) {
    let path = format!("/log{}", runtime.core().0);
    let options = OpenOptions { write: true, create: true, durable_writes: true };
    let file = runtime.open(Path::new(&path), options).await.unwrap();
    if runtime.core() == CoreId(1) {
        loop {
            let position = mesh.receive().await;
            let mut buffer = file.buffer(BLOCK_SIZE);
            buffer.fill(position as u8);
            file.write_at(buffer, position % 64 * BLOCK_SIZE as u64).await.unwrap();
        }
    }
    let listener = runtime.listen("0.0.0.0:8080".parse().unwrap()).await.unwrap();
    while let Ok(stream) = listener.accept().await {
        runtime.spawn(TaskClass::Foreground, "connection", connection(stream, mesh.clone()));
    }
}

async fn connection(mut stream: SimStream, mesh: SimMesh<u64>) {
    let mut frame = [0; 256];
    while stream.read_exact(&mut frame).await.is_ok() {
        // A full queue drops the write: this is a load, not a database.
        let _ = mesh.send(CoreId(1), u64::from(frame[0]));
        if stream.write_all(&frame).await.is_err() {
            return;
        }
    }
}

async fn client(runtime: SimRuntime, server: String, done: Rc<Cell<u64>>) {
    loop {
        let Ok(mut stream) = runtime.connect(&server, Duration::from_secs(1)).await else {
            runtime.sleep(Duration::from_millis(50)).await;
            continue;
        };
        let mut frame = [runtime.random_u64() as u8; 256];
        loop {
            let exchanged = async {
                stream.write_all(&frame).await?;
                stream.read_exact(&mut frame).await
            };
            match krita_runtime::timeout(&runtime, Duration::from_secs(2), exchanged).await {
                Ok(Ok(())) => done.set(done.get() + 1),
                Ok(Err(_)) | Err(_) => break,
            }
        }
    }
}

/// Three nodes of two cores, four clients each, one crash, one partition.
fn cluster(seed: u64, seconds: u64) -> (u64, u64, Simulation) {
    let simulation = Simulation::new(seed, SimulationOptions::default());
    let hosts: Vec<HostId> = (1..=3).map(|node| simulation.add_host(&format!("node{node}"))).collect();
    let clients = simulation.add_host("clients");
    let done = Rc::new(Cell::new(0));
    for (at, host) in hosts.iter().enumerate() {
        simulation.boot(*host, 2, node);
        for _ in 0..4 {
            let (server, done) = (format!("node{}:8080", at + 1), done.clone());
            simulation.spawn_on(clients, |runtime| client(runtime, server, done));
        }
    }
    let quarter = Duration::from_secs(seconds) / 4;
    simulation.run_for(quarter);
    simulation.crash(hosts[0]);
    simulation.network().partition(hosts[1], clients);
    simulation.run_for(quarter);
    simulation.boot(hosts[0], 2, node);
    simulation.network().heal_all();
    simulation.run_for(quarter * 2);
    (simulation.trace_hash(), done.get(), simulation)
}

#[test]
fn a_seed_replays_its_run_and_others_differ() {
    let (first, done, simulation) = cluster(11, 8);
    let (again, done_again, replay) = cluster(11, 8);
    let (other, ..) = cluster(12, 8);
    assert_eq!((first, done), (again, done_again));
    assert_eq!(simulation.statistics(), replay.statistics());
    assert_ne!(first, other);
    assert!(done > 1000, "{done}");
    let files = |simulation: &Simulation| simulation.disk(HostId(2)).read("/log1");
    assert_eq!(files(&simulation), files(&replay));
}

#[test]
fn a_world_that_ends_leaves_nothing_behind() {
    let held = Rc::new(());
    let (simulation, host) = new(1);
    let (script, inside) = (simulation.clone(), held.clone());
    simulation.spawn_on(host, move |runtime| async move {
        runtime.sleep(Duration::from_secs(1000)).await;
        drop((script, inside));
    });
    simulation.run_for(Duration::from_secs(1));
    assert_eq!(Rc::strong_count(&held), 2);
    drop(simulation);
    assert_eq!(Rc::strong_count(&held), 1);
}

#[test]
fn a_minute_of_load_takes_seconds() {
    let (_, done, simulation) = cluster(5, 60);
    println!("{done} exchanges, trace {:x}, {:?}", simulation.trace_hash(), simulation.statistics());
    assert!(done > 50_000, "{done}");
}

#[test]
fn a_notification_is_kept_for_a_later_wait_but_only_one() {
    let (simulation, host) = new(1);
    simulation.block_on(host, |runtime| async move {
        let notify = Notify::new();
        notify.notify();
        notify.notify();
        notify.notified().await;
        let limit = Duration::from_secs(1);
        assert!(krita_runtime::timeout(&runtime, limit, notify.notified()).await.is_err());
        let (later, again) = (notify.clone(), runtime.clone());
        runtime.spawn(TaskClass::Background, "notifier", async move {
            again.sleep(Duration::from_millis(500)).await;
            later.notify();
        });
        let start = runtime.now();
        krita_runtime::timeout(&runtime, limit, notify.notified()).await.unwrap();
        assert!((500..510).contains(&runtime.now().since(start).as_millis()));
    });
}
