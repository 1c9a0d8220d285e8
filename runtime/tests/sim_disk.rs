//! The simulated disk: what is durable when, and every way in which it can fail.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use krita_runtime::sim::{CrashOptions, SimFile, SimRuntime, Simulation, SimulationOptions, Survival};
use krita_runtime::{BLOCK_SIZE, Disk, File, OpenOptions, Spawn, TaskClass};

const FILE: &str = "/data/log";

fn options() -> OpenOptions {
    OpenOptions { write: true, create: true, durable_writes: false }
}

fn new(seed: u64) -> (Simulation, krita_runtime::sim::HostId) {
    let simulation = Simulation::new(seed, SimulationOptions::default());
    let host = simulation.add_host("node1");
    (simulation, host)
}

async fn write(file: &SimFile, block: u64, blocks: usize, value: u8) -> std::io::Result<()> {
    let mut buffer = file.buffer(blocks * BLOCK_SIZE);
    buffer.fill(value);
    file.write_at(buffer, block * BLOCK_SIZE as u64).await
}

/// A file of `blocks` durable blocks of `value`, its name durable too.
async fn create(runtime: &SimRuntime, options: OpenOptions, blocks: usize, value: u8) -> SimFile {
    runtime.create_directory(Path::new("/data")).await.unwrap();
    let file = runtime.open(Path::new(FILE), options).await.unwrap();
    if blocks > 0 {
        write(&file, 0, blocks, value).await.unwrap();
    }
    file.sync_data().await.unwrap();
    runtime.sync_directory(Path::new("/data")).await.unwrap();
    runtime.sync_directory(Path::new("/")).await.unwrap();
    file
}

fn survive(directory_changes: Survival, unsynced_sectors: Survival) -> CrashOptions {
    CrashOptions { directory_changes, unsynced_sectors, ..CrashOptions::default() }
}

#[test]
fn reads_see_writes_and_end_with_the_file() {
    let (simulation, host) = new(1);
    simulation.block_on(host, |runtime| async move {
        let file = create(&runtime, options(), 0, 0).await;
        write(&file, 1, 2, 7).await.unwrap();
        assert_eq!(file.length().await.unwrap(), 3 * BLOCK_SIZE as u64);
        let read = file.read_at(BLOCK_SIZE as u64 - 3, 10).await.unwrap();
        assert_eq!(&read[..], &[0, 0, 0, 7, 7, 7, 7, 7, 7, 7]);
        assert_eq!(file.read_at(3 * BLOCK_SIZE as u64 - 2, 10).await.unwrap().len(), 2);
        assert!(file.read_at(1 << 40, 10).await.unwrap().is_empty());
    });
    assert_eq!(simulation.disk(host).used_bytes(), 2 * BLOCK_SIZE as u64);
}

#[test]
fn misaligned_and_forbidden_writes_are_errors() {
    let (simulation, host) = new(1);
    simulation.block_on(host, |runtime| async move {
        let file = create(&runtime, options(), 1, 1).await;
        let outcome = file.write_at(file.buffer(BLOCK_SIZE), 512).await;
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::InvalidInput);
        let reader = runtime.open(Path::new(FILE), OpenOptions::default()).await.unwrap();
        assert_eq!(write(&reader, 0, 1, 1).await.unwrap_err().kind(), ErrorKind::PermissionDenied);
        let absent = runtime.open(Path::new("/data/none"), OpenOptions::default()).await;
        assert_eq!(absent.err().unwrap().kind(), ErrorKind::NotFound);
    });
}

#[test]
fn what_was_synced_survives_every_crash_and_what_was_not_tears() {
    let (mut torn, mut lost, mut kept) = (0, 0, 0);
    for seed in 0..200 {
        let (simulation, host) = new(seed);
        simulation.block_on(host, |runtime| async move {
            let file = create(&runtime, options(), 8, 1).await;
            write(&file, 4, 4, 2).await.unwrap();
        });
        simulation.crash(host);
        let content = simulation.disk(host).read(FILE).expect("its name was durable");
        assert_eq!(content.len(), 8 * BLOCK_SIZE);
        assert!(content[..4 * BLOCK_SIZE].iter().all(|byte| *byte == 1), "durable blocks stay");
        let sectors: Vec<u8> = content[4 * BLOCK_SIZE..].chunks(512).map(|sector| sector[0]).collect();
        for sector in content.chunks(512) {
            assert!(sector.iter().all(|byte| *byte == sector[0]), "a sector is never torn");
        }
        let new = sectors.iter().filter(|value| **value == 2).count();
        match new {
            0 => lost += 1,
            new if new == sectors.len() => kept += 1,
            _ => torn += 1,
        }
        let statistics = simulation.statistics();
        assert_eq!(statistics.torn_writes > 0, (1..sectors.len()).contains(&new));
        assert_eq!(statistics.lost_writes > 0, new == 0);
    }
    assert!(torn > 40 && lost > 20 && kept > 20, "torn {torn}, lost {lost}, kept {kept}");
}

#[test]
fn a_durable_write_needs_no_sync() {
    for seed in 0..50 {
        let (simulation, host) = new(seed);
        simulation.block_on(host, |runtime| async move {
            let file = create(&runtime, OpenOptions { durable_writes: true, ..options() }, 1, 1).await;
            write(&file, 0, 4, 9).await.unwrap();
        });
        simulation.crash(host);
        assert_eq!(simulation.disk(host).read(FILE).unwrap(), vec![9; 4 * BLOCK_SIZE]);
    }
}

#[test]
fn a_write_in_flight_may_tear_even_if_it_would_have_been_durable() {
    let mut torn = 0;
    for seed in 0..100 {
        let (simulation, host) = new(seed);
        simulation.block_on(host, |runtime| async move {
            create(&runtime, OpenOptions { durable_writes: true, ..options() }, 8, 1).await;
        });
        simulation.disk(host).slow(Duration::from_secs(1));
        simulation.spawn_on(host, |runtime| async move {
            let file = runtime.open(Path::new(FILE), OpenOptions { durable_writes: true, ..options() });
            write(&file.await.unwrap(), 0, 8, 2).await.unwrap();
        });
        simulation.run_for(Duration::from_millis(1500));
        simulation.crash(host);
        let content = simulation.disk(host).read(FILE).unwrap();
        assert_eq!(content.len(), 8 * BLOCK_SIZE);
        torn += u32::from(content.contains(&1) && content.contains(&2));
    }
    assert!(torn > 20, "{torn}");
}

#[test]
fn names_survive_only_a_directory_sync() {
    let (mut lost, mut kept) = (0, 0);
    for seed in 0..100 {
        let (simulation, host) = new(seed);
        simulation.block_on(host, |runtime| async move {
            let file = create(&runtime, options(), 1, 1).await;
            file.sync_data().await.unwrap();
            let other = runtime.open(Path::new("/data/other"), options()).await.unwrap();
            write(&other, 0, 1, 3).await.unwrap();
            other.sync_data().await.unwrap();
        });
        simulation.crash(host);
        let disk = simulation.disk(host);
        assert!(disk.read(FILE).is_some());
        match disk.read("/data/other") {
            None => lost += 1,
            Some(content) => {
                assert_eq!(content, vec![3; BLOCK_SIZE], "its data was synced");
                kept += 1;
            }
        }
    }
    assert!(lost > 20 && kept > 20, "lost {lost}, kept {kept}");
}

#[test]
fn a_rename_is_atomic_and_a_removal_can_come_back() {
    for seed in 0..100 {
        let (simulation, host) = new(seed);
        simulation.block_on(host, |runtime| async move {
            create(&runtime, options(), 1, 1).await;
            let new = runtime.open(Path::new("/data/new"), options()).await.unwrap();
            write(&new, 0, 1, 2).await.unwrap();
            new.sync_data().await.unwrap();
            runtime.sync_directory(Path::new("/data")).await.unwrap();
            runtime.rename(Path::new("/data/new"), Path::new(FILE)).await.unwrap();
            let names = runtime.list_directory(Path::new("/data")).await.unwrap();
            assert_eq!(names, [Path::new("log")]);
        });
        simulation.crash(host);
        let disk = simulation.disk(host);
        match disk.files().len() {
            1 => assert_eq!(disk.read(FILE).unwrap(), vec![2; BLOCK_SIZE]),
            2 => {
                assert_eq!(disk.read(FILE).unwrap(), vec![1; BLOCK_SIZE]);
                assert_eq!(disk.read("/data/new").unwrap(), vec![2; BLOCK_SIZE]);
            }
            files => panic!("{files} files"),
        }
    }
}

#[test]
fn a_replaced_small_file_is_old_or_new_at_every_crash_point() {
    let (mut old, mut new) = (0, 0);
    for seed in 0..200 {
        let (simulation, host) = self::new(seed);
        simulation.block_on(host, |runtime| async move {
            create(&runtime, options(), 0, 0).await;
            runtime.replace_small_file(Path::new("/data/identity"), b"old").await.unwrap();
        });
        simulation.spawn_on(host, |runtime| async move {
            let content = vec![b'n'; 5000];
            runtime.replace_small_file(Path::new("/data/identity"), &content).await.unwrap();
        });
        let random = simulation.random();
        simulation.run_for(Duration::from_micros(random.between(0, 3_000)));
        simulation.crash(host);
        let content = simulation.block_on(host, |runtime| async move {
            runtime.read_small_file(Path::new("/data/identity"), 8192).await.unwrap()
        });
        match content.as_slice() {
            b"old" => old += 1,
            content => {
                assert_eq!(content, vec![b'n'; 5000]);
                new += 1;
            }
        }
    }
    assert!(old > 20 && new > 20, "old {old}, new {new}");
}

#[test]
fn small_files_have_a_bound() {
    let (simulation, host) = new(1);
    simulation.block_on(host, |runtime| async move {
        let path = Path::new("/small");
        runtime.replace_small_file(path, b"hello").await.unwrap();
        assert_eq!(runtime.read_small_file(path, 5).await.unwrap(), b"hello");
        assert_eq!(runtime.read_small_file(path, 4).await.unwrap_err().kind(), ErrorKind::InvalidData);
        runtime.remove_file(path).await.unwrap();
        assert_eq!(runtime.read_small_file(path, 5).await.unwrap_err().kind(), ErrorKind::NotFound);
    });
}

#[test]
fn a_lock_dies_with_its_process() {
    let (simulation, host) = new(1);
    let lock = |simulation: &Simulation| {
        simulation.block_on(host, |runtime| async move {
            runtime.create_directory(Path::new("/data")).await.unwrap();
            runtime.lock_directory(Path::new("/data")).await
        })
    };
    assert!(lock(&simulation).is_ok());
    assert_eq!(lock(&simulation).unwrap_err().kind(), ErrorKind::WouldBlock);
    simulation.kill(host);
    assert!(lock(&simulation).is_ok());
    simulation.crash(host);
    assert!(lock(&simulation).is_ok());
}

#[test]
fn a_kill_keeps_what_was_written() {
    let (simulation, host) = new(1);
    simulation.block_on(host, |runtime| async move {
        let file = create(&runtime, options(), 1, 1).await;
        write(&file, 0, 1, 2).await.unwrap();
    });
    simulation.kill(host);
    assert_eq!(simulation.disk(host).read(FILE).unwrap(), vec![2; BLOCK_SIZE]);
    assert_eq!(simulation.disk(host).read_durable(FILE).unwrap(), vec![1; BLOCK_SIZE]);
}

#[test]
fn a_full_disk_refuses_growth_and_takes_overwrites() {
    let (simulation, host) = new(1);
    simulation.disk(host).set_capacity(Some(4 * BLOCK_SIZE as u64));
    simulation.block_on(host, |runtime| async move {
        let file = create(&runtime, options(), 3, 1).await;
        assert_eq!(runtime.available_bytes(Path::new("/data")).await.unwrap(), BLOCK_SIZE as u64);
        assert_eq!(write(&file, 3, 2, 1).await.unwrap_err().kind(), ErrorKind::StorageFull);
        write(&file, 0, 3, 2).await.unwrap();
        runtime.remove_file(Path::new(FILE)).await.unwrap();
        // An open file keeps its space; a removed one that nobody has open and no crash can bring back, none.
        drop(file);
        runtime.sync_directory(Path::new("/data")).await.unwrap();
        assert_eq!(runtime.available_bytes(Path::new("/data")).await.unwrap(), 4 * BLOCK_SIZE as u64);
    });
}

#[test]
fn errors_come_when_asked_for() {
    let (simulation, host) = new(1);
    let disk = simulation.disk(host);
    simulation.block_on(host, |runtime| async move {
        let file = create(&runtime, options(), 2, 1).await;
        let input_output =
            |outcome: std::io::Result<()>| assert_eq!(outcome.unwrap_err().raw_os_error(), Some(5));
        disk.fail_writes(1);
        input_output(write(&file, 0, 1, 2).await);
        write(&file, 0, 1, 2).await.unwrap();
        disk.fail_syncs(1);
        input_output(file.sync_data().await);
        disk.fail_reads(1);
        input_output(file.read_at(0, 10).await.map(drop));
        disk.fail_all(true);
        input_output(file.length().await.map(drop));
        input_output(runtime.sync_directory(Path::new("/data")).await);
        disk.fail_all(false);
        file.sync_data().await.unwrap();
    });
    assert_eq!(simulation.statistics().disk_errors, 5);
}

#[test]
fn a_failed_sync_is_not_mended_by_the_next() {
    let mut lost = 0;
    for seed in 0..100 {
        let (simulation, host) = new(seed);
        let disk = simulation.disk(host);
        disk.set_crash_options(survive(Survival::All, Survival::All));
        simulation.block_on(host, |runtime| async move {
            let file = create(&runtime, options(), 1, 1).await;
            write(&file, 0, 1, 2).await.unwrap();
            disk.fail_syncs(1);
            assert!(file.sync_data().await.is_err());
            file.sync_data().await.unwrap();
            assert_eq!(file.read_at(0, 1).await.unwrap()[0], 2, "the cache goes on showing it");
        });
        simulation.crash(host);
        lost += u32::from(simulation.disk(host).read(FILE).unwrap()[0] == 1);
    }
    assert!((20..80).contains(&lost), "{lost}");
}

#[test]
fn lying_lost_and_misdirected_writes() {
    let (simulation, host) = new(1);
    let disk = simulation.disk(host);
    disk.set_crash_options(survive(Survival::All, Survival::Nothing));
    simulation.block_on(host, |runtime| async move {
        let file = create(&runtime, options(), 4, 1).await;
        disk.lose_next_write();
        write(&file, 0, 1, 2).await.unwrap();
        assert_eq!(file.read_at(0, 1).await.unwrap()[0], 1);
        disk.misdirect_next_write(2);
        write(&file, 1, 1, 3).await.unwrap();
        assert_eq!(file.read_at(BLOCK_SIZE as u64, 1).await.unwrap()[0], 1);
        assert_eq!(file.read_at(3 * BLOCK_SIZE as u64, 1).await.unwrap()[0], 3);
        file.sync_data().await.unwrap();
        disk.lie_about_syncs(true);
        write(&file, 0, 4, 4).await.unwrap();
        file.sync_data().await.unwrap();
        disk.lie_about_syncs(false);
    });
    simulation.crash(host);
    let firsts: Vec<u8> =
        simulation.disk(host).read(FILE).unwrap().chunks(BLOCK_SIZE).map(|block| block[0]).collect();
    assert_eq!(firsts, [1, 1, 1, 3]);
}

#[test]
fn rot_and_truncation_outlive_a_crash() {
    let (simulation, host) = new(1);
    simulation.block_on(host, |runtime| async move {
        create(&runtime, options(), 3, 1).await;
    });
    let disk = simulation.disk(host);
    disk.flip_bit(FILE, 5000, 7);
    disk.overwrite(FILE, 10, b"rot");
    disk.truncate(FILE, 6000);
    simulation.crash(host);
    let mut expected = vec![1; 6000];
    expected[5000] = 0x81;
    expected[10..13].copy_from_slice(b"rot");
    assert_eq!(disk.read(FILE).unwrap(), expected);
    disk.remove(FILE);
    simulation.crash(host);
    assert_eq!(disk.read(FILE), None);
}

#[test]
fn a_hung_disk_completes_nothing_until_it_is_freed() {
    let (simulation, host) = new(1);
    let disk = simulation.disk(host);
    let done = std::rc::Rc::new(std::cell::Cell::new(false));
    let finished = done.clone();
    disk.hang();
    simulation.spawn_on(host, |runtime| async move {
        create(&runtime, options(), 1, 1).await;
        finished.set(true);
    });
    simulation.run_for(Duration::from_secs(60));
    assert!(!done.get() && disk.files().is_empty());
    disk.unhang();
    assert!(simulation.run_until(Duration::from_secs(1), || done.get()));
}

#[test]
fn dropped_operations_are_counted() {
    let (simulation, host) = new(1);
    simulation.block_on(host, |runtime| async move {
        let file = create(&runtime, options(), 1, 1).await;
        let limit = Duration::from_nanos(10);
        let outcome = krita_runtime::timeout(&runtime, limit, write(&file, 0, 1, 2)).await;
        assert_eq!(outcome.err(), Some(krita_runtime::Elapsed));
    });
    assert_eq!(simulation.statistics().dropped_operations, 1);
}

#[test]
fn writes_overlap_and_a_sync_covers_what_was_complete_when_it_began() {
    let (simulation, host) = new(5);
    simulation.block_on(host, |runtime| async move {
        let file = create(&runtime, options(), 64, 1).await;
        let (sender, receiver) = futures_channel::oneshot::channel();
        let mut sender = Some(sender);
        let finished = std::rc::Rc::new(std::cell::Cell::new(0));
        for block in 0..64 {
            let (file, finished) = (file.clone(), finished.clone());
            let sender = if block == 63 { sender.take() } else { None };
            let again = runtime.clone();
            runtime.spawn(TaskClass::Background, "writer", async move {
                write(&file, block, 1, 2).await.unwrap();
                finished.set(finished.get() + 1);
                if let Some(sender) = sender {
                    while finished.get() < 64 {
                        again.pause().await;
                    }
                    sender.send(()).unwrap();
                }
            });
        }
        receiver.await.unwrap();
        file.sync_data().await.unwrap();
    });
    simulation.crash(host);
    assert_eq!(simulation.disk(host).read(FILE).unwrap(), vec![2; 64 * BLOCK_SIZE]);
}
