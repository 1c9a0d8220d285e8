//! Directories that are not this log's, or not this version's, are refused by name and left as they are.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{DIRECTORY, World, options, put, write_and_apply};
use krita_engine::{LogId, OpenError, Options, open};
use krita_runtime::{Disk, File, OpenOptions};
use twox_hash::XxHash3_64;

/// All files below the log's directory.
fn files(world: &World) -> BTreeMap<PathBuf, Vec<u8>> {
    let disk = world.simulation.disk(world.host);
    let files = disk.files().into_iter().filter(|path| path.starts_with(DIRECTORY));
    files.map(|path| (path.clone(), disk.read(&path).unwrap())).collect()
}

/// Opening fails, and changes nothing; what is said.
fn refused(world: &World, options: Options) -> String {
    let before = files(world);
    let opened = world.simulation.block_on(world.host, |runtime| open(runtime, options));
    let error = match opened {
        Ok(_) => panic!("it opens"),
        Err(error @ (OpenError::Mismatch { .. } | OpenError::ManifestLost(_))) => error,
        Err(error) => panic!("another error: {error}"),
    };
    assert!(files(world) == before, "nothing is changed");
    error.to_string()
}

fn world_with_log() -> World {
    let world = World::new(1);
    let store = world.with_shard();
    world.run(async move { write_and_apply(&store, 1, &[put("k", "v")]).await });
    world.simulation.crash(world.host);
    world
}

/// Makes the manifest's frames those of another version, each with a right checksum.
fn write_as_version(world: &World, manifest: &Path, version: u16) {
    let mut bytes = world.read(manifest);
    for block in (0..bytes.len()).step_by(4096) {
        if &bytes[block + 8..block + 12] != b"KMAN" {
            continue;
        }
        let length = u32::from_le_bytes(bytes[block + 52..block + 56].try_into().unwrap()) as usize;
        bytes[block + 12..block + 14].copy_from_slice(&version.to_le_bytes());
        let seed = u64::from_be_bytes(*b"kritamf1");
        let sum = XxHash3_64::oneshot_with_seed(seed, &bytes[block + 8..block + length]);
        bytes[block..block + 8].copy_from_slice(&sum.to_le_bytes());
    }
    world.simulation.disk(world.host).overwrite(manifest, 0, &bytes);
}

#[test]
fn another_log_is_refused() {
    let world = world_with_log();
    let said = refused(&world, Options { log: LogId(5), ..options() });
    assert!(said.contains("log0") && said.contains("log5"), "{said}");
}

#[test]
fn another_format_version_is_refused_by_name() {
    let world = world_with_log();
    let manifest = world.files("manifest-").remove(0);
    let own = u16::from_le_bytes(world.read(&manifest)[12..14].try_into().unwrap());
    for version in [own + 1, own - 1, 999] {
        write_as_version(&world, &manifest, version);
        let said = refused(&world, options());
        assert!(said.contains(&format!("version {version}")) && said.contains(&own.to_string()), "{said}");
    }
}

#[test]
fn segments_without_their_manifest_are_no_new_log() {
    let world = world_with_log();
    for manifest in world.files("manifest-") {
        world.simulation.block_on(world.host, |runtime| async move {
            runtime.remove_file(&manifest).await.unwrap();
            runtime.sync_directory(Path::new(DIRECTORY)).await.unwrap();
        });
    }
    refused(&world, options());
}

#[test]
fn a_directory_of_something_else_is_refused() {
    let world = World::new(1);
    world.simulation.block_on(world.host, |runtime| async move {
        runtime.create_directory(Path::new(DIRECTORY)).await.unwrap();
        let path = Path::new(DIRECTORY).join("letters.txt");
        let open = OpenOptions { write: true, create: true, durable_writes: false };
        let file = runtime.open(&path, open).await.unwrap();
        let mut buffer = file.buffer(4096);
        buffer.fill(b'a');
        file.write_at(buffer, 0).await.unwrap();
        file.sync_data().await.unwrap();
        runtime.sync_directory(Path::new(DIRECTORY)).await.unwrap();
    });
    let said = refused(&world, options());
    assert!(said.contains("letters.txt"), "{said}");
}
