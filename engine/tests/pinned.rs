//! A shard held still: what is written, checkpointed and compacted behind a view does not change what it sees, and
//! what it holds is free again once it is dropped.

mod common;

use bytes::Bytes;
use common::*;
use krita_engine::{Index, Options};

const KEYS: u64 = 40;
const VALUE_BYTES: usize = 2 << 10;

fn key(number: u64) -> String {
    format!("key-{number:03}")
}

/// Writes every key once, and has what is due checkpointed; the index of the last entry.
async fn overwrite(store: &SimStore, mut index: u64, filling: u8) -> u64 {
    for number in 0..KEYS {
        index += 1;
        write_and_apply(store, index, &[put(&key(number), vec![filling; VALUE_BYTES])]).await;
        if store.checkpoint_due().is_some() {
            checkpoint(store).await;
        }
    }
    index
}

#[test]
fn a_view_sees_the_same_whatever_becomes_of_the_shard_and_holds_nothing_once_it_is_gone() {
    for_seeds("pinned", 8, |seed| {
        let world = World::new(seed);
        let store = create(&world, Options { compaction_factor: 1.0, ..options() });
        world.run(async move {
            let mut index = overwrite(&store, 0, 1).await;
            let view = store.pinned(SHARD).unwrap();
            assert_eq!((view.applied(), view.bytes_held()), (Index(KEYS), 0));
            for round in 2..12 {
                index = overwrite(&store, index, round).await;
                // A page at a time, as a scan reads it.
                let mut start = Bytes::new();
                let mut seen = 0;
                loop {
                    let page = view.scan(&start, None, 7).await.unwrap();
                    let Some((last, _)) = page.last() else { break };
                    start = [last, &b"\0"[..]].concat().into();
                    for (key, slot) in &page {
                        assert!(slot.version <= Index(KEYS), "the value of then");
                        let value = store.value(SHARD, key, slot).await.unwrap();
                        assert_eq!(value, vec![1; VALUE_BYTES], "round {round}");
                        seen += 1;
                    }
                }
                assert_eq!(seen, KEYS);
            }
            assert!(view.bytes_held() > 0, "the memtables that it sees are runs by now");
            let held = store.statistics().segments;
            drop(view);
            for round in 12..40 {
                index = overwrite(&store, index, round).await;
            }
            let free = store.statistics().segments;
            assert!(free <= held, "{held} segments with the view, {free} without");
            assert_eq!(content(&store, SHARD).await.len() as u64, KEYS);
        });
    });
}
