//! The two files: what is written is read again, and nothing foreign, newer or damaged is ever touched.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use proptest::prelude::*;

use krita_runtime::Rng;

use super::*;

/// Small files in memory. The rest of a disk is not used here.
#[derive(Default)]
struct SmallFiles {
    files: RefCell<BTreeMap<PathBuf, Vec<u8>>>,
    random: std::cell::Cell<u64>,
}

impl Rng for SmallFiles {
    fn random_u64(&self) -> u64 {
        self.random.set(self.random.get() + 1);
        self.random.get().wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

#[derive(Clone)]
struct NoFile;

impl krita_runtime::File for NoFile {
    type Buffer = Vec<u8>;

    fn buffer(&self, length: usize) -> Vec<u8> {
        vec![0; length]
    }

    fn write_at(&self, _: Vec<u8>, _: u64) -> impl Future<Output = io::Result<()>> + 'static {
        std::future::ready(Err(io::ErrorKind::Unsupported.into()))
    }

    fn read_at(&self, _: u64, _: usize) -> impl Future<Output = io::Result<Bytes>> + 'static {
        std::future::ready(Err(io::ErrorKind::Unsupported.into()))
    }

    fn sync_data(&self) -> impl Future<Output = io::Result<()>> + 'static {
        std::future::ready(Err(io::ErrorKind::Unsupported.into()))
    }

    fn length(&self) -> impl Future<Output = io::Result<u64>> + 'static {
        std::future::ready(Err(io::ErrorKind::Unsupported.into()))
    }
}

impl Disk for SmallFiles {
    type File = NoFile;

    async fn open(&self, _: &Path, _: krita_runtime::OpenOptions) -> io::Result<NoFile> {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn create_directory(&self, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn list_directory(&self, _: &Path) -> io::Result<Vec<PathBuf>> {
        Ok(self.files.borrow().keys().map(|path| path.file_name().unwrap_or_default().into()).collect())
    }

    async fn sync_directory(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    async fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn remove_file(&self, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn read_small_file(&self, path: &Path, length_max: usize) -> io::Result<Vec<u8>> {
        let files = self.files.borrow();
        let content = files.get(path).ok_or(io::ErrorKind::NotFound)?;
        if content.len() > length_max { Err(io::ErrorKind::InvalidData.into()) } else { Ok(content.clone()) }
    }

    async fn replace_small_file(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.files.borrow_mut().insert(path.to_owned(), content.to_vec());
        Ok(())
    }

    async fn lock_directory(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    async fn available_bytes(&self, _: &Path) -> io::Result<u64> {
        Ok(0)
    }
}

/// Nothing here ever waits.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("small files in memory never wait"),
    }
}

fn directory() -> PathBuf {
    PathBuf::from("/data")
}

fn load(disk: &SmallFiles, node_id: &str) -> Result<Identity, IdentityError> {
    now(load_or_create_identity(disk, &directory(), node_id))
}

fn state() -> ClusterState {
    let member = |number: u32| Member {
        number,
        node_id: format!("node{number}"),
        node_uuid: NodeUuid([number as u8; 16]),
        address: format!("127.0.0.1:808{number}"),
    };
    let record = ClusterRecord {
        cluster_name: "c".to_owned(),
        cluster_id: ClusterId([9; 16]),
        members: (1..=3).map(member).collect(),
        shard_count: 64,
        replication_factor: 3,
    };
    ClusterState { record, formed: false }
}

#[test]
fn an_identity_is_made_once() {
    let disk = SmallFiles::default();
    let made = load(&disk, "node1").expect("fresh");
    assert_eq!(load(&disk, "node1").expect("again"), made);
    assert_ne!(
        load(&SmallFiles { random: 7.into(), ..SmallFiles::default() }, "node1").expect("fresh"),
        made
    );
    let shown = made.node_uuid.to_string();
    assert_eq!((shown.len(), &shown[14..15]), (36, "4"), "{shown}");
    let error = load(&disk, "node2").expect_err("another's").to_string();
    assert!(error.contains("/data/identity was made for node_id \"node1\""), "{error}");
}

#[test]
fn a_directory_with_data_but_without_identity_is_left_alone() {
    for (name, fresh) in [
        ("lock", true),
        (".lock", true),
        ("identity.new", true),
        ("lost+found", true),
        ("cluster", false),
        ("log-0", false),
    ] {
        let disk = SmallFiles::default();
        disk.files.borrow_mut().insert(directory().join(name), vec![1]);
        let before = disk.files.borrow().clone();
        match load(&disk, "node1") {
            Ok(_) => assert!(fresh, "{name}"),
            Err(error) => {
                assert!(!fresh && error.to_string().contains(name), "{name}: {error}");
                assert_eq!(*disk.files.borrow(), before);
            }
        }
    }
}

#[test]
fn the_cluster_record_survives_and_its_change_to_formed_too() {
    let disk = SmallFiles::default();
    assert!(matches!(now(load_cluster(&disk, &directory())), Ok(None)));
    for formed in [false, true] {
        let state = ClusterState { formed, ..state() };
        now(store_cluster(&disk, &directory(), &state)).expect("stored");
        let stored = now(load_cluster(&disk, &directory())).expect("loaded");
        assert_eq!(stored, Some(Belonging::Founder(state)));
    }
}

#[test]
fn newer_and_foreign_files_are_told_apart_and_not_touched() {
    let read = |content: &[u8]| {
        let disk = SmallFiles::default();
        disk.files.borrow_mut().insert(directory().join(IDENTITY_FILE), content.to_vec());
        let error = load(&disk, "node1").expect_err("not ours");
        assert_eq!(disk.files.borrow()[&directory().join(IDENTITY_FILE)], content);
        assert!(error.to_string().contains("/data/identity"), "{error}");
        error
    };
    let disk = SmallFiles::default();
    load(&disk, "node1").expect("fresh");
    let good = disk.files.borrow()[&directory().join(IDENTITY_FILE)].clone();
    let mut newer = good.clone();
    newer[8] = 2;
    assert!(matches!(read(&newer), IdentityError::Newer { format: 2, .. }));
    assert!(matches!(read(b"some other program's file"), IdentityError::Foreign(_)));
    assert!(matches!(read(&seal(&CLUSTER_MAGIC, b"x")), IdentityError::Foreign(_)));
    assert!(matches!(read(&vec![0; FILE_BYTES_MAX + 1]), IdentityError::Foreign(_)));
    assert!(matches!(read(b""), IdentityError::Corrupt { .. }));
    assert!(matches!(read(&good[..good.len() - 1]), IdentityError::Corrupt { .. }));
    assert!(matches!(read(&seal(&IDENTITY_MAGIC, b"short")), IdentityError::Corrupt { .. }));
}

#[test]
fn records_from_messages_are_checked() {
    let good = v1::ClusterRecord::from(&state().record);
    assert_eq!(ClusterRecord::try_from(&good), Ok(state().record));
    let bad = |alter: fn(&mut v1::ClusterRecord)| {
        let mut message = good.clone();
        alter(&mut message);
        assert!(ClusterRecord::try_from(&message).is_err(), "{message:?}");
    };
    bad(|message| message.cluster_id = Bytes::from_static(b"short"));
    bad(|message| message.cluster_name.clear());
    bad(|message| message.members.clear());
    bad(|message| message.members.swap(0, 1));
    bad(|message| message.members[0].node_number = 2);
    bad(|message| message.members[0].node_uuid = Bytes::new());
    bad(|message| message.members[1].node_uuid = message.members[0].node_uuid.clone());
    bad(|message| message.members[1].address = message.members[0].address.clone());
    bad(|message| message.shard_count = 0);
    bad(|message| message.replication_factor = 4);
    bad(|message| message.replication_factor = 0);
}

proptest! {
    /// A flipped byte anywhere in either file is an error, and never a panic or another identity.
    #[test]
    fn damage_is_always_seen(at in any::<prop::sample::Index>(), change in 1..=255u8, cut in any::<bool>()) {
        let path = PathBuf::from("x");
        let identity = Identity { node_id: "node1".to_owned(), node_uuid: NodeUuid([3; 16]) };
        for (magic, body) in [(IDENTITY_MAGIC, encode_identity(&identity)), (CLUSTER_MAGIC, encode_cluster(&state()))] {
            let mut content = seal(&magic, &body);
            prop_assert_eq!(unseal(&path, &magic, &content).expect("whole"), body);
            let position = at.index(content.len());
            if cut {
                content.truncate(position);
            } else {
                content[position] ^= change;
            }
            prop_assert!(unseal(&path, &magic, &content).is_err());
        }
    }

    #[test]
    fn garbage_bodies_never_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode_identity(&body);
        let _ = decode_cluster(&body);
    }
}

#[test]
fn what_a_node_joined_survives_and_is_no_founders() {
    let disk = SmallFiles::default();
    let record = state().record;
    let founders = u32::try_from(record.members.len()).expect("few");
    let joined = Joined { number: founders + 4, record };
    now(store_joined(&disk, &directory(), &joined)).expect("stored");
    let stored = now(load_cluster(&disk, &directory())).expect("loaded");
    assert_eq!(stored, Some(Belonging::Joined(joined.clone())));
    for number in [0, 1, founders] {
        let body = encode_joined(&Joined { number, ..joined.clone() });
        assert!(decode_cluster(&body).is_err(), "number {number}");
    }
    assert!(decode_cluster(&encode_joined(&joined)[..4]).is_err(), "cut");
}
