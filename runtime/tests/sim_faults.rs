//! The simulated disk's faults, asked for one by one and left to the seed: that each does what it says, that each is
//! counted when it made a difference, and that those that are off change nothing.

use std::io::ErrorKind;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use krita_runtime::sim::{
    AfterFailedSync, Damage, DiskFaultOptions, DiskOptions, HostId, Latency, ReadFault, SimFile, SimRuntime,
    Simulation, SimulationOptions, Statistics, WriteFault,
};
use krita_runtime::{BLOCK_SIZE, Disk, File, OpenOptions};

const FILE: &str = "/data/log";
const OTHER: &str = "/data/other";
const BLOCK: u64 = BLOCK_SIZE as u64;
const WRITING: OpenOptions = OpenOptions { write: true, create: true, durable_writes: true };
const CACHED: OpenOptions = OpenOptions { write: true, create: true, durable_writes: false };

fn world(seed: u64, faults: DiskFaultOptions) -> (Simulation, HostId) {
    let disk = DiskOptions { faults, ..DiskOptions::default() };
    let simulation = Simulation::new(seed, SimulationOptions { disk, ..SimulationOptions::default() });
    let host = simulation.add_host("node1");
    (simulation, host)
}

fn healthy(seed: u64) -> (Simulation, HostId) {
    world(seed, DiskFaultOptions::default())
}

async fn write(file: &SimFile, block: u64, blocks: usize, value: u8) -> std::io::Result<()> {
    let mut buffer = file.buffer(blocks * BLOCK_SIZE);
    buffer.fill(value);
    file.write_at(buffer, block * BLOCK).await
}

/// A file of durable blocks of `value`, its name durable too.
async fn create(runtime: &SimRuntime, path: &str, options: OpenOptions, blocks: usize, value: u8) -> SimFile {
    runtime.create_directory(Path::new("/data")).await.unwrap();
    let file = runtime.open(Path::new(path), options).await.unwrap();
    write(&file, 0, blocks, value).await.unwrap();
    file.sync_data().await.unwrap();
    runtime.sync_directory(Path::new("/data")).await.unwrap();
    runtime.sync_directory(Path::new("/")).await.unwrap();
    file
}

/// The first byte of each block of a file.
fn firsts(simulation: &Simulation, host: HostId, path: &str) -> Vec<u8> {
    simulation.disk(host).read(path).unwrap().chunks(BLOCK_SIZE).map(|block| block[0]).collect()
}

/// Two files of eight blocks, of ones and of twos, then `work` on the first; returns what happened.
fn run<F: Future<Output = ()> + 'static>(
    simulation: &Simulation,
    host: HostId,
    work: impl FnOnce(SimRuntime, SimFile) -> F + 'static,
) -> Statistics {
    simulation.block_on(host, |runtime| async move {
        create(&runtime, OTHER, WRITING, 8, 2).await;
        let file = create(&runtime, FILE, WRITING, 8, 1).await;
        work(runtime, file).await;
    });
    simulation.statistics()
}

#[test]
fn a_lost_write_is_acknowledged_and_counted_if_it_mattered() {
    let (simulation, host) = healthy(1);
    let disk = simulation.disk(host);
    let statistics = run(&simulation, host, move |_, file| async move {
        disk.strike_next_write(Some(Path::new(FILE)), WriteFault::Lost);
        disk.strike_next_write(Some(Path::new(FILE)), WriteFault::Lost);
        write(&file, 0, 1, 9).await.unwrap();
        write(&file, 1, 1, 1).await.unwrap();
        write(&file, 2, 1, 9).await.unwrap();
    });
    assert_eq!(statistics.forgotten_writes, 1, "the second wrote what was there");
    simulation.crash(host);
    assert_eq!(firsts(&simulation, host, FILE), [1, 1, 9, 1, 1, 1, 1, 1]);
}

#[test]
fn a_write_lands_in_another_file_and_never_makes_it_longer() {
    let (simulation, host) = healthy(1);
    let disk = simulation.disk(host);
    let statistics = run(&simulation, host, move |_, file| async move {
        disk.strike_next_write(Some(Path::new(FILE)), WriteFault::MovedTo(OTHER.into(), 6));
        write(&file, 0, 4, 9).await.unwrap();
    });
    assert_eq!(statistics.misdirected_writes, 1);
    simulation.crash(host);
    assert_eq!(firsts(&simulation, host, FILE), [1; 8]);
    assert_eq!(firsts(&simulation, host, OTHER), [2, 2, 2, 2, 2, 2, 9, 9]);
}

#[test]
fn a_repeated_write_undoes_what_came_after_it() {
    let (simulation, host) = healthy(1);
    let disk = simulation.disk(host);
    let statistics = run(&simulation, host, move |_, file| async move {
        disk.strike_next_write(None, WriteFault::RepeatedAfter(Duration::from_secs(5)));
        disk.strike_next_write(None, WriteFault::RepeatedAt(OTHER.into(), 1));
        write(&file, 0, 2, 9).await.unwrap();
        write(&file, 1, 1, 8).await.unwrap();
    });
    assert_eq!(statistics.duplicated_writes, 1, "the late one is yet to come");
    assert_eq!(firsts(&simulation, host, FILE)[..3], [9, 8, 1]);
    assert_eq!(firsts(&simulation, host, OTHER)[..3], [2, 8, 2]);
    simulation.run_for(Duration::from_secs(6));
    assert_eq!(firsts(&simulation, host, FILE)[..3], [9, 9, 1]);
    assert_eq!(simulation.statistics().duplicated_writes, 2);
}

#[test]
fn damage_at_rest_hits_cache_and_platter_and_makes_nothing_durable() {
    let (simulation, host) = healthy(1);
    let disk = simulation.disk(host);
    let touched = disk.clone();
    simulation.block_on(host, |runtime| async move {
        let file = create(&runtime, FILE, CACHED, 4, 1).await;
        write(&file, 0, 1, 3).await.unwrap();
        touched.flip_byte(FILE, 17);
        touched.flip_bit(FILE, BLOCK + 1, 0);
        touched.zero_block(FILE, 2);
        touched.misplace_block((FILE, 1), (FILE, 3));
        assert_eq!(file.read_at(16, 3).await.unwrap()[..], [3, 0xfc, 3]);
        assert_eq!(file.read_at(BLOCK, 3).await.unwrap()[..], [1, 0, 1]);
        assert_eq!(file.read_at(2 * BLOCK, 1).await.unwrap()[..], [0]);
        assert_eq!(file.read_at(3 * BLOCK, 3).await.unwrap()[..], [1, 0, 1]);
    });
    let durable = disk.read_durable(FILE).unwrap();
    assert_eq!(durable[16..19], [1, 0xfe, 1], "the unflushed write is still that");
    assert_eq!(durable[2 * BLOCK_SIZE..][..2], [0, 0]);
    let statistics = simulation.statistics();
    let counted = (statistics.flipped_bits, statistics.zeroed_blocks, statistics.misplaced_blocks);
    assert_eq!(counted, (2, 1, 1));
    disk.zero_block(FILE, 2);
    assert_eq!(simulation.statistics().zeroed_blocks, 1, "it was zeros already");
    disk.truncate(FILE, BLOCK);
    disk.remove(FILE);
    let statistics = simulation.statistics();
    assert_eq!((statistics.truncated_files, statistics.deleted_files), (1, 1));
}

#[test]
fn reads_of_a_range_fail_once_until_written_or_for_ever() {
    let (simulation, host) = healthy(1);
    let disk = simulation.disk(host);
    let statistics = run(&simulation, host, move |runtime, file| async move {
        let fails = |block: u64| {
            let file = file.clone();
            async move { file.read_at(block * BLOCK, 1).await.is_err_and(|error| error.raw_os_error() == Some(5)) }
        };
        disk.fail_reads_of(FILE, 0..1, ReadFault::Once);
        disk.fail_reads_of(FILE, BLOCK..2 * BLOCK, ReadFault::UntilWritten);
        disk.fail_reads_of(FILE, 2 * BLOCK..4 * BLOCK, ReadFault::Forever);
        assert!(runtime.read_small_file(Path::new(FILE), 1 << 20).await.is_err(), "it reads all of it");
        assert!(!fails(0).await && fails(1).await && fails(2).await && fails(3).await && !fails(4).await);
        write(&file, 1, 2, 7).await.unwrap();
        assert!(!fails(1).await && fails(2).await);
        disk.mend_reads_of(FILE);
        assert!(!fails(2).await);
        disk.fail_reads_of(FILE, BLOCK..2 * BLOCK, ReadFault::UntilWritten);
    });
    assert_eq!(statistics.failed_reads, 5);
    simulation.crash(host);
    let outcome = simulation.block_on(host, |runtime| async move {
        runtime.open(Path::new(FILE), OpenOptions::default()).await.unwrap().read_at(BLOCK, 1).await
    });
    assert!(outcome.is_err(), "a bad block outlives a crash");
}

#[test]
fn what_a_failed_flush_covered_is_kept_forgotten_or_reverted() {
    let cases = [
        (AfterFailedSync::Kept, 9, 9),
        (AfterFailedSync::Forgotten, 9, 1),
        (AfterFailedSync::Reverted, 1, 1),
    ];
    for (after, seen, durable) in cases {
        let (simulation, host) = healthy(1);
        let disk = simulation.disk(host);
        simulation.block_on(host, |runtime| async move {
            let file = create(&runtime, FILE, CACHED, 2, 1).await;
            write(&file, 0, 1, 9).await.unwrap();
            disk.after_failed_syncs(after);
            disk.fail_syncs(1);
            assert!(file.sync_data().await.is_err());
            assert_eq!(file.read_at(0, 1).await.unwrap()[0], seen, "{after:?}");
            file.sync_data().await.unwrap();
        });
        let platter = simulation.disk(host).read_durable(FILE).unwrap();
        assert_eq!(platter[0], durable, "{after:?}");
        assert_eq!(simulation.statistics().failed_syncs, 1);
        assert_eq!(simulation.disk(host).used_bytes(), 2 * BLOCK);
    }
}

#[test]
fn a_full_disk_takes_no_new_file_and_says_what_is_left() {
    let (simulation, host) = healthy(1);
    let disk = simulation.disk(host);
    let statistics = run(&simulation, host, move |runtime, file| async move {
        let is_full = |error: std::io::Error| error.kind() == ErrorKind::StorageFull;
        disk.set_capacity(Some(17 * BLOCK));
        assert_eq!(runtime.available_bytes(Path::new("/data")).await.unwrap(), BLOCK);
        assert!(is_full(write(&file, 7, 3, 3).await.unwrap_err()));
        write(&file, 8, 1, 3).await.unwrap();
        assert_eq!(disk.available_bytes(), 0);
        assert!(is_full(runtime.open(Path::new("/data/new"), WRITING).await.err().unwrap()));
        assert!(is_full(runtime.replace_small_file(Path::new("/data/id"), b"x").await.unwrap_err()));
        assert!(is_full(runtime.create_directory(Path::new("/data/new")).await.unwrap_err()));
        write(&file, 0, 9, 4).await.unwrap();
        disk.set_capacity(Some(BLOCK));
        write(&file, 0, 9, 5).await.unwrap();
        assert_eq!(runtime.available_bytes(Path::new(FILE)).await.unwrap(), 0);
    });
    assert_eq!(statistics.full_disk_refusals, 4);
}

#[test]
fn a_slow_disk_is_slower_by_its_factor_and_a_hang_ends() {
    let duration = |factor: u32| {
        let (simulation, host) = healthy(3);
        let disk = simulation.disk(host);
        disk.slow_by(factor);
        run(&simulation, host, |_, _| async {});
        simulation.now()
    };
    assert!(duration(10) > 8 * duration(1), "{:?} and {:?}", duration(10), duration(1));

    let (simulation, host) = healthy(3);
    let disk = simulation.disk(host);
    disk.hang_for(Duration::from_secs(20));
    let statistics = run(&simulation, host, |_, _| async {});
    assert!((20..21).contains(&simulation.now().as_secs()));
    assert_eq!(statistics.hangs, 1);
    // The end of one hang is not that of the next.
    disk.hang_for(Duration::from_secs(2));
    disk.unhang();
    simulation.run_for(Duration::from_secs(1));
    disk.hang_for(Duration::from_secs(20));
    let before = simulation.now();
    simulation.block_on(host, |runtime| async move {
        runtime.list_directory(Path::new("/data")).await.unwrap();
    });
    assert!(simulation.now() - before > Duration::from_secs(19));
}

#[test]
fn names_of_a_read_only_directory_do_not_change_and_its_files_do() {
    let (simulation, host) = healthy(1);
    let disk = simulation.disk(host);
    let statistics = run(&simulation, host, move |runtime, file| async move {
        let (here, new) = (Path::new(FILE), Path::new("/data/new"));
        let denied = |error: std::io::Error| error.kind() == ErrorKind::PermissionDenied;
        disk.set_read_only("/data", true);
        assert!(denied(runtime.open(new, WRITING).await.err().unwrap()));
        assert!(denied(runtime.rename(here, new).await.unwrap_err()));
        assert!(denied(runtime.remove_file(here).await.unwrap_err()));
        assert!(denied(runtime.replace_small_file(new, b"x").await.unwrap_err()));
        assert!(denied(runtime.create_directory(new).await.unwrap_err()));
        write(&file, 0, 1, 9).await.unwrap();
        runtime.open(here, WRITING).await.unwrap();
        runtime.create_directory(Path::new("/data")).await.unwrap();
        disk.set_read_only("/data", false);
        runtime.open(new, WRITING).await.unwrap();
    });
    assert_eq!(statistics.read_only_refusals, 5);
}

#[test]
fn a_read_only_file_system_refuses_every_change_until_the_power_goes() {
    let (simulation, host) = healthy(1);
    let disk = simulation.disk(host);
    run(&simulation, host, move |runtime, file| async move {
        let refused = |error: std::io::Error| error.kind() == ErrorKind::ReadOnlyFilesystem;
        disk.remount_read_only(true);
        assert!(refused(write(&file, 0, 1, 9).await.unwrap_err()));
        assert!(refused(file.sync_data().await.unwrap_err()));
        assert!(refused(runtime.sync_directory(Path::new("/data")).await.unwrap_err()));
        assert!(refused(runtime.open(Path::new(FILE), WRITING).await.err().unwrap()));
        assert!(refused(runtime.remove_file(Path::new(FILE)).await.unwrap_err()));
        assert_eq!(file.read_at(0, 1).await.unwrap()[0], 1);
    });
    simulation.crash(host);
    run(&simulation, host, |_, file| async move { write(&file, 0, 1, 9).await.unwrap() });
}

#[test]
fn a_killed_process_keeps_its_lock_until_its_writes_have_landed() {
    let (simulation, host) = healthy(1);
    let disk = simulation.disk(host);
    run(&simulation, host, |runtime, _| async move {
        runtime.lock_directory(Path::new("/data")).await.unwrap();
    });
    disk.hang();
    simulation.spawn_on(host, |runtime| async move {
        let file = runtime.open(Path::new(FILE), WRITING).await.unwrap();
        write(&file, 0, 8, 9).await.unwrap();
    });
    simulation.run_for(Duration::from_millis(10));
    simulation.kill(host);
    disk.unhang();
    simulation.run_for(Duration::from_millis(10));
    let lock = || {
        let attempt = |runtime: SimRuntime| async move { runtime.lock_directory(Path::new("/data")).await };
        simulation.block_on(host, attempt)
    };
    assert!(lock().is_ok(), "what it had asked of the disk has ended");
    simulation.kill(host);

    for seed in 0..20 {
        let (simulation, host) = healthy(seed);
        let disk = simulation.disk(host);
        run(&simulation, host, |runtime, _| async move {
            runtime.lock_directory(Path::new("/data")).await.unwrap();
        });
        disk.slow(Duration::from_secs(2));
        simulation.spawn_on(host, |runtime| async move {
            let file = runtime.open(Path::new(FILE), WRITING).await.unwrap();
            write(&file, 0, 8, 9).await.unwrap();
        });
        simulation.run_for(Duration::from_secs(3));
        simulation.kill(host);
        disk.slow(Duration::ZERO);
        let attempt = |runtime: SimRuntime| async move { runtime.lock_directory(Path::new("/data")).await };
        let outcome = simulation.block_on(host, attempt);
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::WouldBlock, "its write is in flight");
        assert!(!firsts(&simulation, host, FILE).contains(&9));
        simulation.run_for(Duration::from_secs(3));
        simulation.block_on(host, attempt).unwrap();
        let content = firsts(&simulation, host, FILE);
        assert!(content == [9; 8] || content == [1; 8], "landed whole or dropped whole");
    }
}

/// Reads and writes for a while, taking failures as they come.
async fn work(runtime: SimRuntime, file: SimFile) {
    for round in 0..400_u64 {
        let value = 3 + (round % 200) as u8;
        let _ = write(&file, round % 8, 1, value).await;
        let _ = file.read_at(round % 5 * BLOCK, BLOCK_SIZE).await;
        let _ = file.sync_data().await;
        let _ = runtime.open(Path::new(OTHER), OpenOptions::default()).await;
    }
}

/// Runs [`work`] under these chances, three seeds of it; checks that it replays; returns the sum of a counter.
fn by_chance(faults: &DiskFaultOptions, counter: impl Fn(&Statistics) -> u64) -> u64 {
    let seed = |seed: u64| {
        let (simulation, host) = world(seed, DiskFaultOptions::default());
        let (disk, faults) = (simulation.disk(host), faults.clone());
        let statistics = run(&simulation, host, move |runtime, file| async move {
            disk.set_faults(faults);
            work(runtime, file).await;
        });
        (statistics, simulation.trace_hash())
    };
    (0..3)
        .map(|number| {
            let (statistics, trace) = seed(number);
            assert_eq!((statistics, trace), seed(number), "the same seed, the same run");
            counter(&statistics)
        })
        .sum()
}

#[test]
fn each_fault_comes_by_chance_about_as_often_as_it_should() {
    let none = DiskFaultOptions::default;
    let rare = |faults: DiskFaultOptions, counter: &dyn Fn(&Statistics) -> u64| by_chance(&faults, counter);
    // 1,200 writes, 1,200 reads, 1,200 flushes, 4,800 operations in three seeds.
    let counts = [
        rare(DiskFaultOptions { lost_write: 0.1, ..none() }, &|counts| counts.forgotten_writes),
        rare(DiskFaultOptions { misdirected_write: 0.1, ..none() }, &|counts| counts.misdirected_writes),
        rare(DiskFaultOptions { duplicated_write: 0.1, ..none() }, &|counts| counts.duplicated_writes),
        rare(DiskFaultOptions { failed_write: 0.1, ..none() }, &|counts| counts.failed_writes),
        rare(DiskFaultOptions { failed_sync: 0.1, ..none() }, &|counts| counts.failed_syncs),
        rare(DiskFaultOptions { failed_read: 0.1, ..none() }, &|counts| counts.failed_reads),
        rare(DiskFaultOptions { unreadable_block: 0.1, ..none() }, &|counts| counts.failed_reads),
        rare(DiskFaultOptions { flipped_bit: 0.025, ..none() }, &|counts| counts.flipped_bits),
        rare(DiskFaultOptions { zeroed_block: 0.025, ..none() }, &|counts| counts.zeroed_blocks),
        rare(DiskFaultOptions { misplaced_block: 0.025, ..none() }, &|counts| counts.misplaced_blocks),
    ];
    for (number, count) in counts.into_iter().enumerate() {
        assert!((40..240).contains(&count), "fault {number} came {count} times: {counts:?}");
    }
}

#[test]
fn some_faults_come_once_and_for_all() {
    let none = DiskFaultOptions::default;
    let hang_time = Latency::millis(1_000, 2_000);
    assert!(by_chance(&DiskFaultOptions { hang: 0.01, hang_time, ..none() }, |counts| counts.hangs) > 20);
    let truncating = DiskFaultOptions { truncated_file: 0.01, ..none() };
    assert!(by_chance(&truncating, |counts| counts.truncated_files) > 20);
    let deleting = DiskFaultOptions { deleted_file: 0.01, ..none() };
    assert_eq!(by_chance(&deleting, |counts| counts.deleted_files), 6, "both files of each seed");
    let aborting = DiskFaultOptions { failed_sync: 0.01, read_only_after_failure: 1.0, ..none() };
    assert_eq!(by_chance(&aborting, |counts| counts.failed_syncs), 3, "one in each seed");
    assert!(by_chance(&aborting, |counts| counts.read_only_refusals) > 500);
}

#[test]
fn spared_files_are_not_hit() {
    let faults = DiskFaultOptions {
        lost_write: 0.5,
        misdirected_write: 0.5,
        failed_read: 0.5,
        flipped_bit: 0.5,
        zeroed_block: 0.5,
        misplaced_block: 0.5,
        truncated_file: 0.1,
        spares: |path| path.ends_with("log"),
        ..DiskFaultOptions::default()
    };
    let (simulation, host) = healthy(5);
    let disk = simulation.disk(host);
    let changed = disk.clone();
    run(&simulation, host, move |runtime, file| async move {
        changed.set_faults(faults);
        work(runtime, file).await;
    });
    let expected: Vec<u8> = (392..400_u64).map(|round| 3 + (round % 200) as u8).collect();
    assert_eq!(firsts(&simulation, host, FILE), expected);
    assert_ne!(disk.read(OTHER).unwrap(), vec![2; 8 * BLOCK_SIZE]);
}

#[test]
fn damage_somewhere_says_where() {
    for seed in 0..20 {
        for damage in Damage::ALL {
            let (simulation, host) = healthy(seed);
            run(&simulation, host, |_, _| async {});
            let disk = simulation.disk(host);
            let before = [FILE, OTHER].map(|path| disk.read(path));
            let damaged = disk.damage_at_random(damage);
            let after = [FILE, OTHER].map(|path| disk.read(path));
            // A block given the content of one like it is not damaged.
            assert_eq!(damaged.is_some(), before != after, "{damage:?}");
            let Some(damaged) = damaged else { continue };
            assert_eq!(damaged.damage, damage);
            let changed = if before[0] == after[0] { OTHER } else { FILE };
            assert_eq!(damaged.path, Path::new(changed));
        }
    }
    let (simulation, host) = healthy(1);
    assert_eq!(simulation.disk(host).damage_at_random(Damage::FlippedBit), None, "there is nothing");
}

#[test]
fn faults_that_are_off_change_nothing() {
    let trace = |touch: bool| {
        let (simulation, host) = healthy(9);
        if touch {
            simulation.disk(host).set_faults(DiskFaultOptions {
                flipped_bit: 0.3,
                misdirected_write: 0.3,
                ..DiskFaultOptions::default()
            });
        }
        let seen = Rc::new(std::cell::Cell::new(0));
        let kept = seen.clone();
        run(&simulation, host, move |runtime, file| async move {
            work(runtime, file).await;
            kept.set(1);
        });
        assert_eq!(seen.get(), 1);
        (simulation.now(), simulation.trace_hash())
    };
    assert_eq!(trace(false), trace(true), "what is drawn for faults is drawn aside");
}
