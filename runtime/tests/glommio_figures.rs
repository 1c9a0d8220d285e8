//! What the real machine costs, for people to read: `cargo test -p krita-runtime --test glommio_figures --
//! --ignored --nocapture --test-threads=1`. Nothing is asserted, since machines differ.
#![cfg(feature = "glommio")]
#![allow(missing_docs)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use futures_util::io::{AsyncReadExt, AsyncWriteExt};
use krita_runtime::glommio::{GlommioMesh, GlommioRuntime, NodeOptions, block_on, start};
use krita_runtime::{
    BLOCK_SIZE, Clock, CoreId, Disk, File, Listener, Mesh, Network, OpenOptions, Rng, Runtime, Spawn,
    TaskClass,
};

fn two_cores() -> NodeOptions {
    NodeOptions { cores: 2, ..NodeOptions::default() }
}

fn processor_time() -> Duration {
    let mut usage = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel fills the structure, which has room.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut usage) };
    Duration::new(usage.tv_sec.unsigned_abs(), u32::try_from(usage.tv_nsec).unwrap_or(0))
}

#[test]
#[ignore = "figures for people, not a check (issue 2)"]
fn an_idle_node() {
    let main = |runtime: GlommioRuntime, _: GlommioMesh<()>| async move {
        runtime.sleep(Duration::from_secs(1)).await;
        let (before, began) = (processor_time(), runtime.now());
        runtime.sleep(Duration::from_secs(8)).await;
        if runtime.core() == CoreId(0) {
            let share = (processor_time() - before).as_secs_f64() / runtime.now().since(began).as_secs_f64();
            println!("idle node of 2 cores: {:.3} % of one processor", share * 100.0);
        }
    };
    start(two_cores(), main).unwrap().join().unwrap();
}

#[test]
#[ignore = "figures for people, not a check (issue 2)"]
fn clock_random_pause_and_spawn() {
    block_on(NodeOptions::default(), |runtime| async move {
        let per_call = |name: &str, count: u32, began| {
            let each = runtime.now().since(began).as_secs_f64() * 1e9 / f64::from(count);
            println!("{name}: {each:.0} ns");
        };
        let began = runtime.now();
        for _ in 0..1_000_000 {
            std::hint::black_box(runtime.now());
        }
        per_call("now", 1_000_000, began);
        let began = runtime.now();
        for _ in 0..1_000_000 {
            std::hint::black_box(runtime.random_u64());
        }
        per_call("random_u64", 1_000_000, began);
        let began = runtime.now();
        for _ in 0..20_000 {
            runtime.pause().await;
        }
        per_call("pause, alone", 20_000, began);
        for _ in 0..1000 {
            let long = runtime.sleep(Duration::from_secs(600));
            runtime.spawn(TaskClass::Foreground, "sleeper", long);
        }
        runtime.sleep(Duration::from_millis(1)).await;
        let began = runtime.now();
        for _ in 0..2000 {
            runtime.pause().await;
        }
        per_call("pause, beside 1,000 timers", 2000, began);
        let began = runtime.now();
        for _ in 0..200 {
            runtime.sleep(Duration::from_micros(100)).await;
        }
        per_call("sleep of 100 us, beside 1,000 timers", 200, began);
        let began = runtime.now();
        for _ in 0..100_000 {
            runtime.spawn(TaskClass::Foreground, "empty", async {});
        }
        runtime.sleep(Duration::from_micros(1)).await;
        per_call("spawn and run", 100_000, began);
    })
    .unwrap();
}

#[test]
#[ignore = "figures for people, not a check (issue 2)"]
fn mesh_round_trips() {
    let main = |runtime: GlommioRuntime, mesh: GlommioMesh<u32>| async move {
        const ROUNDS: u32 = 20_000;
        const WINDOW: u32 = 256;
        if runtime.core() == CoreId(1) {
            for _ in 0..ROUNDS + ROUNDS * WINDOW / 16 {
                let message = mesh.receive().await;
                mesh.send(CoreId(0), message).unwrap();
            }
            return;
        }
        let began = runtime.now();
        for round in 0..ROUNDS {
            mesh.send(CoreId(1), round).unwrap();
            mesh.receive().await;
        }
        let each = runtime.now().since(began).as_secs_f64() * 1e6 / f64::from(ROUNDS);
        println!("mesh, one outstanding: {each:.1} us a round trip");
        let total = ROUNDS * WINDOW / 16;
        let began = runtime.now();
        for round in 0..WINDOW {
            mesh.send(CoreId(1), round).unwrap();
        }
        for received in 0..total {
            mesh.receive().await;
            if received + WINDOW < total {
                mesh.send(CoreId(1), received).unwrap();
            }
        }
        let rate = f64::from(total) / runtime.now().since(began).as_secs_f64();
        println!("mesh, {WINDOW} outstanding: {:.2} M round trips/s", rate / 1e6);
    };
    start(two_cores(), main).unwrap().join().unwrap();
}

#[test]
#[ignore = "figures for people, not a check (issue 2)"]
fn durable_writes() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("figures");
    let file_path = path.clone();
    block_on(NodeOptions::default(), |runtime| async move {
        let durable = OpenOptions { write: true, create: true, durable_writes: true };
        let file = runtime.open(&file_path, durable).await.unwrap();
        let mut zeroes = file.buffer(16 << 20);
        zeroes.fill(0);
        file.write_at(zeroes, 0).await.unwrap();
        for _ in 0..3 {
            let began = runtime.now();
            let mut writes = 0;
            while runtime.now().since(began) < Duration::from_secs(2) {
                let mut buffer = file.buffer(BLOCK_SIZE);
                buffer.fill(1);
                file.write_at(buffer, (writes % 4096) * BLOCK_SIZE as u64).await.unwrap();
                writes += 1;
            }
            println!("O_DSYNC, 4 KiB, zero-filled file: {} writes/s", writes / 2);
        }
    })
    .unwrap();
    fs::remove_file(path).unwrap();
}

/// Round trips on one core while `work` slices of 100 us run there, each followed by a pause.
#[test]
#[ignore = "figures for people, not a check (issue 2)"]
fn round_trips_beside_work() {
    for work in [None, Some(TaskClass::Background), Some(TaskClass::Foreground)] {
        block_on(NodeOptions::default(), |runtime| async move {
            let listener = runtime.listen(([127, 0, 0, 1], 0).into()).await.unwrap();
            let address = listener.local_address().to_string();
            runtime.spawn(TaskClass::Foreground, "echo", async move {
                let mut stream = listener.accept().await.unwrap();
                let mut byte = [0; 64];
                while let Ok(length @ 1..) = stream.read(&mut byte).await {
                    stream.write_all(&byte[..length]).await.unwrap();
                }
            });
            let slices = std::rc::Rc::new(std::cell::Cell::new(0_u32));
            if let Some(class) = work {
                let (own, slices) = (runtime.clone(), std::rc::Rc::clone(&slices));
                runtime.spawn(class, "work", async move {
                    loop {
                        let end = own.now() + Duration::from_micros(100);
                        while own.now() < end {
                            std::hint::spin_loop();
                        }
                        slices.set(slices.get() + 1);
                        own.pause().await;
                    }
                });
            }
            let mut stream = runtime.connect(&address, Duration::from_secs(1)).await.unwrap();
            let began = runtime.now();
            let mut rounds = 0;
            while runtime.now().since(began) < Duration::from_secs(3) {
                stream.write_all(b"ping").await.unwrap();
                stream.read_exact(&mut [0; 4]).await.unwrap();
                rounds += 1;
            }
            let took = runtime.now().since(began).as_secs_f64();
            println!(
                "beside {work:?}: {:.0} us a round trip, work got {:.0} % of the core",
                took * 1e6 / f64::from(rounds),
                f64::from(slices.get()) * 0.0001 / took * 100.0
            );
        })
        .unwrap();
    }
}
