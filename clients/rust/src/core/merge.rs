//! The order of a scan over all shards: a merge of sorted pages, as lazy as it can be.
//!
//! The least key of all shards is known only while every shard that has more keys has one in memory. So each shard
//! holds at most one page and one more on its way, asked for when half of the page has been used up; an item goes out
//! as soon as no shard is missing.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use bytes::Bytes;
use krita_proto::v1;

use crate::types::ShardVersion;

/// The next page of a shard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fetch {
    /// Which shard.
    pub shard: u32,
    /// First key, inclusive.
    pub start: Bytes,
    /// What the page before was as of; 0 = there was none.
    pub applied_index: u64,
}

/// What a merge can say.
#[derive(Clone, PartialEq, Debug)]
pub enum Merged {
    /// The next item.
    Item(v1::ScanItem),
    /// A shard's page must come first.
    Waiting,
    /// All shards have ended.
    End,
}

/// A page that cannot be the next one of its shard.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("shard {shard} sent a page that is not the one asked for: {reason}")]
pub struct BadPage {
    shard: u32,
    reason: &'static str,
}

#[derive(Debug)]
struct Cursor {
    items: VecDeque<v1::ScanItem>,
    /// Items of the page that came last.
    page_items: usize,
    /// Where the next page starts; `None` = there is none.
    next_start: Option<Bytes>,
    is_fetching: bool,
}

impl Cursor {
    /// Nothing can be said of this shard's least key.
    fn is_missing(&self) -> bool {
        self.items.is_empty() && self.next_start.is_some()
    }
}

/// The state of a merge.
#[derive(Debug)]
pub struct Merge {
    cursors: BTreeMap<u32, Cursor>,
    /// The first key of every cursor that has one.
    heads: BinaryHeap<Reverse<(Bytes, u32)>>,
    /// How many cursors are missing.
    missing: usize,
    versions: BTreeMap<u32, ShardVersion>,
}

impl Merge {
    /// Over shards 1 to `shard_count`, from `start` on.
    pub fn new(shard_count: u32, start: &Bytes) -> Self {
        let cursors = (1..=shard_count).map(|shard| {
            let next_start = Some(start.clone());
            (shard, Cursor { items: VecDeque::new(), page_items: 0, next_start, is_fetching: false })
        });
        Self {
            cursors: cursors.collect(),
            heads: BinaryHeap::new(),
            missing: shard_count as usize,
            versions: BTreeMap::new(),
        }
    }

    /// The pages to ask for now. Each is asked for once; answer with [`Merge::page`].
    pub fn fetches(&mut self) -> Vec<Fetch> {
        let mut fetches = Vec::new();
        for (&shard, cursor) in &mut self.cursors {
            let Some(start) = &cursor.next_start else { continue };
            if !cursor.is_fetching && cursor.items.len() <= cursor.page_items / 2 {
                cursor.is_fetching = true;
                let applied_index = self.versions.get(&shard).map_or(0, |version| version.applied_index);
                fetches.push(Fetch { shard, start: start.clone(), applied_index });
            }
        }
        fetches
    }

    /// A page has come. `start` is the one that was asked for.
    pub fn page(&mut self, shard: u32, reply: v1::ScanReply) -> Result<(), BadPage> {
        let bad = |reason| Err(BadPage { shard, reason });
        let Some(cursor) = self.cursors.get_mut(&shard).filter(|cursor| cursor.is_fetching) else {
            return bad("none was asked for");
        };
        let Some(start) = &cursor.next_start else { return bad("the shard had ended") };
        let is_sorted = reply.items.windows(2).all(|pair| pair[0].key < pair[1].key);
        if !is_sorted || reply.items.first().is_some_and(|first| first.key < *start) {
            return bad("its keys are out of order");
        }
        let start = start.clone();
        let before = self.versions.get(&shard).map(|version| version.applied_index);
        if before != Some(reply.applied_index) {
            let version = ShardVersion {
                applied_index: reply.applied_index,
                start: start.clone(),
                is_newer: before.is_some(),
                is_stale: reply.stale,
            };
            self.versions.insert(shard, version);
        }
        let was_missing = cursor.is_missing();
        let was_empty = cursor.items.is_empty();
        cursor.is_fetching = false;
        cursor.page_items = reply.items.len();
        cursor.next_start = match reply.items.last() {
            Some(last) if reply.more => Some(successor(&last.key)),
            // Nothing of what the page went over is there any more.
            None if reply.more => Some(start),
            Some(_) | None => None,
        };
        cursor.items.extend(reply.items);
        if was_missing && !cursor.is_missing() {
            self.missing -= 1;
        }
        if was_empty && let Some(first) = cursor.items.front() {
            self.heads.push(Reverse((first.key.clone(), shard)));
        }
        Ok(())
    }

    /// The next item in order, if it is known.
    pub fn next_item(&mut self) -> Merged {
        if self.missing > 0 {
            return Merged::Waiting;
        }
        let Some(Reverse((_, shard))) = self.heads.pop() else { return Merged::End };
        let cursor = self.cursors.get_mut(&shard).expect("only cursors have heads");
        let item = cursor.items.pop_front().expect("a head is an item");
        match cursor.items.front() {
            Some(next) => self.heads.push(Reverse((next.key.clone(), shard))),
            None if cursor.is_missing() => self.missing += 1,
            None => {}
        }
        Merged::Item(item)
    }

    /// What each shard that has answered is seen as of.
    pub fn versions(&self) -> &BTreeMap<u32, ShardVersion> {
        &self.versions
    }

    /// The shards that have not ended.
    pub fn open_shards(&self) -> Vec<u32> {
        let open = self.cursors.iter().filter(|(_, cursor)| cursor.next_start.is_some());
        open.map(|(shard, _)| *shard).collect()
    }

    /// Items in memory.
    pub fn buffered(&self) -> usize {
        self.cursors.values().map(|cursor| cursor.items.len()).sum()
    }
}

/// The least key that is greater.
fn successor(key: &[u8]) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn item(key: &[u8]) -> v1::ScanItem {
        v1::ScanItem { key: Bytes::copy_from_slice(key), value: Bytes::new(), version: 1 }
    }

    fn page_of(keys: &[Vec<u8>], start: &[u8], items_max: usize) -> v1::ScanReply {
        let from = keys.partition_point(|key| key.as_slice() < start);
        let rest = &keys[from..];
        let items = rest.iter().take(items_max).map(|key| item(key)).collect();
        v1::ScanReply { items, more: rest.len() > items_max, ..Default::default() }
    }

    proptest! {
        #[test]
        fn a_merge_is_the_sorted_union_in_bounded_memory(
            shards in prop::collection::vec(
                prop::collection::btree_set(prop::collection::vec(any::<u8>(), 1..4), 0..40),
                1..8,
            ),
            items_max in 1usize..7,
            start in prop::collection::vec(any::<u8>(), 0..3),
        ) {
            let shards: Vec<Vec<_>> = shards.into_iter().map(|keys| keys.into_iter().collect()).collect();
            let mut expected: Vec<_> = shards.iter().flatten().filter(|key| **key >= start).cloned().collect();
            expected.sort();
            let mut merge = Merge::new(shards.len() as u32, &Bytes::from(start));
            let mut got = Vec::new();
            loop {
                match merge.next_item() {
                    Merged::Item(item) => got.push(item.key.to_vec()),
                    Merged::Waiting => {
                        let fetches = merge.fetches();
                        prop_assert!(!fetches.is_empty(), "it waits for what it did not ask for");
                        for Fetch { shard, start, .. } in fetches {
                            merge.page(shard, page_of(&shards[shard as usize - 1], &start, items_max)).unwrap();
                        }
                    }
                    Merged::End => break,
                }
                prop_assert!(merge.buffered() <= shards.len() * items_max * 3 / 2 + shards.len());
            }
            prop_assert_eq!(got, expected);
        }
    }

    #[test]
    fn a_page_that_cannot_be_is_refused() {
        let mut merge = Merge::new(1, &Bytes::from("m"));
        let reply = |keys: &[&[u8]], more| v1::ScanReply {
            items: keys.iter().map(|key| item(key)).collect(),
            more,
            ..Default::default()
        };
        assert!(merge.page(1, reply(&[], false)).is_err(), "not asked for");
        assert_eq!(merge.fetches().len(), 1);
        assert!(merge.fetches().is_empty(), "asked once");
        for bad in [reply(&[b"a"], false), reply(&[b"n", b"m"], false)] {
            assert!(merge.page(1, bad).is_err());
        }
        assert_eq!(merge.next_item(), Merged::Waiting);
        merge.page(1, reply(&[], true)).unwrap();
        assert_eq!(merge.next_item(), Merged::Waiting, "all keys of the page have gone: it goes on");
        assert_eq!(merge.fetches().len(), 1);
        merge.page(1, reply(&[b"m"], false)).unwrap();
        assert_eq!(merge.next_item(), Merged::Item(item(b"m")));
        assert_eq!(merge.next_item(), Merged::End);
    }

    #[test]
    fn a_shard_that_is_seen_as_of_a_later_entry_says_from_which_key_on() {
        let mut merge = Merge::new(1, &Bytes::new());
        let page = |key: &[u8], applied_index| v1::ScanReply {
            items: vec![item(key)],
            more: true,
            applied_index,
            ..Default::default()
        };
        let mut seen = Vec::new();
        for (key, applied_index) in [(b"a", 5), (b"b", 5), (b"c", 9)] {
            merge.fetches();
            merge.page(1, page(key, applied_index)).unwrap();
            assert_eq!(merge.next_item(), Merged::Item(item(key)));
            let version = &merge.versions()[&1];
            seen.push((version.applied_index, version.start.to_vec(), version.is_newer));
        }
        assert_eq!(seen, [(5, vec![], false), (5, vec![], false), (9, b"b\0".to_vec(), true)]);
        assert_eq!((merge.open_shards(), merge.fetches()[0].applied_index), (vec![1], 9));
    }
}
