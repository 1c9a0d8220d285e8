//! Real `kritad` processes that are pointed at a directory which is not theirs: refused by name, and left as it was.
//!
//! The commands must have been built with the profile of the tests; `cargo xtask test` does so.

#![allow(clippy::disallowed_methods, reason = "these tests look at real files")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use krita_tests::process::{Cluster, wait_until};

/// Longer than a start waits for a lock.
const REFUSED_MAX: Duration = Duration::from_secs(60);

/// Everything below a directory, with the content of files.
fn content(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                found.insert(path.clone(), Vec::new());
                directories.push(path);
            } else {
                found.insert(path.clone(), fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// Starts node 1 on `directory`, which it refuses; what it says. Nothing in there changes.
fn refused(cluster: &mut Cluster, directory: &Path) -> String {
    let own = cluster.data_directory(1).to_owned();
    let log = own.parent().expect("it lies in the node's folder").join("test.log");
    let said_before = fs::read_to_string(&log).unwrap().len();
    let before = content(directory);
    cluster.set_data_directory(1, directory.to_owned());
    cluster.start_node(1);
    let code = wait_until("the node gives up", REFUSED_MAX, || cluster.ended(1)).unwrap();
    cluster.set_data_directory(1, own);
    let said = fs::read_to_string(&log).unwrap().split_off(said_before);
    assert!(code.is_some_and(|code| code != 0), "it ends with an error: {code:?}: {said}");
    assert!(content(directory) == before, "{} is as it was", directory.display());
    said
}

#[test]
fn what_is_not_this_nodes_directory_is_refused_and_left_alone() {
    let mut cluster = Cluster::start(1);
    cluster.client(1, &["put", "key", "value"]).expect(0);
    assert_eq!(cluster.stop(1, Duration::from_secs(20)), Some(0));
    let own = cluster.data_directory(1).to_owned();

    let letters = own.with_file_name("letters");
    fs::create_dir(&letters).unwrap();
    fs::write(letters.join("mother.txt"), "dear mother").unwrap();
    let said = refused(&mut cluster, &letters);
    assert!(said.contains("mother.txt") && said.contains("letters"), "{said}");

    let newer = own.with_file_name("newer");
    fs::create_dir(&newer).unwrap();
    let mut identity = fs::read(own.join("identity")).unwrap();
    identity[8] = 99;
    fs::write(newer.join("identity"), &identity).unwrap();
    let said = refused(&mut cluster, &newer);
    assert!(said.contains("format 99"), "{said}");

    let garbled = own.with_file_name("garbled");
    fs::create_dir(&garbled).unwrap();
    identity[8] = 1;
    identity[25] ^= 1;
    fs::write(garbled.join("identity"), &identity).unwrap();
    let said = refused(&mut cluster, &garbled);
    assert!(said.contains("identity is damaged"), "{said}");

    // Its own directory still serves.
    cluster.start_node(1);
    cluster.await_health(Duration::from_secs(30));
    assert_eq!(cluster.client(1, &["get", "key"]).expect(0).text(), "value");
}

#[test]
fn a_directory_in_use_is_refused() {
    let mut cluster = Cluster::start(1);
    assert_eq!(cluster.stop(1, Duration::from_secs(20)), Some(0));
    let directory = cluster.data_directory(1).to_owned();
    let lock = fs::File::open(directory.join("lock")).unwrap();
    lock.lock().unwrap();
    let said = refused(&mut cluster, &directory);
    assert!(said.contains("another kritad uses it"), "{said}");
    lock.unlock().unwrap();
    cluster.start_node(1);
    cluster.await_health(Duration::from_secs(30));
}
