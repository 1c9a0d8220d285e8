//! The order of a scan over all shards: a merge of sorted pages within a bound of memory. Pure.
//!
//! The least key is known only while every shard that may have more keys has its next key in memory. So each shard
//! holds a page, and another is asked for when half of it has been used up and there is room. Where large values make
//! the pages exceed the bound, those whose keys come last are dropped but for their first key, which says when they are
//! needed again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use krita_proto::v1;

use super::{ScanRange, behind};

/// Most items of one page.
const ITEMS_MAX: usize = 1_000;

/// What an item is taken to need while none has been seen, with its key alone and with its value.
const KEY_BYTES_GUESS: usize = 64;
const ITEM_BYTES_GUESS: usize = 1024;

/// The next page of a shard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Fetch {
    pub(super) shard: u32,
    /// First key, inclusive.
    pub(super) start: Bytes,
    pub(super) items_max: u32,
    /// What the page before was of; 0 = there was none.
    pub(super) applied_index: u64,
}

/// What a merge can say.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Merged {
    /// The next item.
    Item(v1::ScanItem),
    /// A page must come first.
    Waiting,
    /// All shards have ended.
    End,
}

/// A page that cannot be the next one of its shard.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("shard {shard} sent a page that is not the one asked for: {reason}")]
pub(super) struct BadPage {
    shard: u32,
    reason: &'static str,
}

struct Cursor {
    items: VecDeque<v1::ScanItem>,
    /// Items of the page that came last.
    page_items: usize,
    /// Its first key in the order of heads: of its first item, or of the page that was dropped.
    head: Option<Bytes>,
    /// Where the next page starts; `None` = there is none.
    next_start: Option<Bytes>,
    is_fetching: bool,
    /// What the page that came last was of, and where that was told to begin.
    version: Option<Told>,
}

struct Told {
    applied_index: u64,
    start: Bytes,
}

/// The state of a merge.
pub(super) struct Merge {
    cursors: BTreeMap<u32, Cursor>,
    /// The head of every cursor that has one.
    heads: BTreeSet<(Bytes, u32)>,
    /// Cursors without a head that have not ended: while there is one, the least key is not known.
    missing: BTreeSet<u32>,
    /// Cursors whose next page would be worth having.
    wanted: BTreeSet<u32>,
    /// Bytes of all items in memory.
    bytes: usize,
    bytes_max: usize,
    items_seen: usize,
    bytes_seen: usize,
    bytes_guess: usize,
    /// An earlier scan began it.
    is_resumed: bool,
    /// What nobody has been told of the shards' versions.
    news: Vec<v1::ShardVersion>,
}

impl Merge {
    /// Over shards 1 to `shard_count`.
    pub(super) fn new(shard_count: u32, range: &ScanRange, bytes_max: usize) -> Self {
        let cursor = || Cursor {
            items: VecDeque::new(),
            page_items: 0,
            head: None,
            next_start: Some(range.start.clone()),
            is_fetching: false,
            version: None,
        };
        Self {
            cursors: (1..=shard_count).map(|shard| (shard, cursor())).collect(),
            heads: BTreeSet::new(),
            missing: (1..=shard_count).collect(),
            wanted: BTreeSet::new(),
            bytes: 0,
            bytes_max,
            items_seen: 0,
            bytes_seen: 0,
            is_resumed: range.scan.is_resumed,
            news: Vec::new(),
            bytes_guess: if range.keys_only { KEY_BYTES_GUESS } else { ITEM_BYTES_GUESS },
        }
    }

    /// Bytes of all items in memory.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The next item in order, if it is known.
    pub(super) fn next_item(&mut self) -> Merged {
        if !self.missing.is_empty() {
            return Merged::Waiting;
        }
        let Some((_, shard)) = self.heads.first() else { return Merged::End };
        let shard = *shard;
        let cursor = self.cursors.get_mut(&shard).expect("heads are of cursors");
        let Some(item) = cursor.items.pop_front() else {
            // The page was dropped and is needed now.
            return Merged::Waiting;
        };
        self.bytes -= size(&item);
        self.heads.pop_first();
        cursor.head = cursor.items.front().map(|first| first.key.clone());
        if let Some(head) = &cursor.head {
            self.heads.insert((head.clone(), shard));
        } else if cursor.next_start.is_some() {
            self.missing.insert(shard);
        }
        if cursor.next_start.is_some() && cursor.items.len() <= cursor.page_items / 2 {
            self.wanted.insert(shard);
        }
        Merged::Item(item)
    }

    /// A page to ask for now, the most urgent first. Each is asked for once; answer with [`Merge::page`].
    pub(super) fn next_fetch(&mut self) -> Option<Fetch> {
        let is_free = |shard: &&u32| !self.cursors[shard].is_fetching;
        let missing = self.missing.iter().find(is_free).copied();
        let dropped = || {
            let (_, shard) = self.heads.first()?;
            let cursor = &self.cursors[shard];
            (cursor.items.is_empty() && !cursor.is_fetching).then_some(*shard)
        };
        let ahead = || {
            let has_room = self.bytes < self.bytes_max / 2;
            has_room.then(|| self.wanted.iter().find(is_free).copied()).flatten()
        };
        let shard = missing.or_else(dropped).or_else(ahead)?;
        self.wanted.remove(&shard);
        let items_max = self.page_items();
        let cursor = self.cursors.get_mut(&shard)?;
        let start = cursor.next_start.clone()?;
        cursor.is_fetching = true;
        let applied_index = cursor.version.as_ref().map_or(0, |told| told.applied_index);
        Some(Fetch { shard, start, items_max, applied_index })
    }

    /// So many that the pages of all shards fit half of the memory.
    fn page_items(&self) -> u32 {
        let each = self.bytes_max / 2 / self.cursors.len().max(1);
        let mean = match self.items_seen {
            0 => self.bytes_guess,
            seen => self.bytes_seen / seen,
        };
        (each / mean.max(1)).clamp(1, ITEMS_MAX) as u32
    }

    /// A page has come: the one that was asked for.
    pub(super) fn page(&mut self, shard: u32, reply: v1::ScanReply) -> Result<(), BadPage> {
        let bad = |reason| Err(BadPage { shard, reason });
        let Some(cursor) = self.cursors.get_mut(&shard).filter(|cursor| cursor.is_fetching) else {
            return bad("none was asked for");
        };
        let Some(start) = cursor.next_start.take() else { return bad("the shard had ended") };
        let is_sorted = reply.items.windows(2).all(|pair| pair[0].key < pair[1].key);
        if !is_sorted || reply.items.first().is_some_and(|first| first.key < start) {
            return bad("its keys are out of order");
        }
        cursor.is_fetching = false;
        let is_told = cursor.version.as_ref().is_some_and(|told| {
            // A page that was dropped is read again from a key before the one that was told.
            told.applied_index == reply.applied_index && told.start <= start
        });
        if !is_told {
            self.news.push(v1::ShardVersion {
                shard,
                applied_index: reply.applied_index,
                start: start.clone(),
                newer: !reply.held && (cursor.version.is_some() || self.is_resumed),
                stale: reply.stale,
            });
            cursor.version = Some(Told { applied_index: reply.applied_index, start: start.clone() });
        }
        cursor.page_items = reply.items.len();
        cursor.next_start = match reply.items.last() {
            Some(last) if reply.more => Some(behind(&last.key)),
            // Every key of the page went away while it was read.
            None if reply.more => Some(start),
            Some(_) | None => None,
        };
        let bytes = reply.items.iter().map(size).sum::<usize>();
        self.bytes += bytes;
        self.bytes_seen += bytes;
        self.items_seen += reply.items.len();
        cursor.items.extend(reply.items);
        let head = cursor.items.front().map(|first| first.key.clone());
        if head != cursor.head {
            // It had none, or the key of the dropped page has gone.
            if let Some(old) = cursor.head.take() {
                self.heads.remove(&(old, shard));
            }
            self.heads.extend(head.clone().map(|head| (head, shard)));
            cursor.head = head;
        }
        match cursor.head.is_none() && cursor.next_start.is_some() {
            true => self.missing.insert(shard),
            false => self.missing.remove(&shard),
        };
        self.drop_last_pages();
        Ok(())
    }

    /// What has become known of the shards' versions since this was asked last. A later word of a shard is what counts
    /// from its first key on.
    pub(super) fn take_news(&mut self) -> Vec<v1::ShardVersion> {
        std::mem::take(&mut self.news)
    }

    /// Drops pages, those that are needed last first, until the rest fits; never the one that is needed next.
    fn drop_last_pages(&mut self) {
        if self.bytes <= self.bytes_max {
            return;
        }
        for (head, shard) in self.heads.iter().skip(1).rev() {
            let cursor = self.cursors.get_mut(shard).expect("heads are of cursors");
            // One that is being fetched goes on where its page ends: dropping it would leave a hole.
            if cursor.is_fetching || cursor.items.is_empty() {
                continue;
            }
            self.bytes -= cursor.items.iter().map(size).sum::<usize>();
            cursor.items = VecDeque::new();
            cursor.next_start = Some(head.clone());
            self.wanted.remove(shard);
            if self.bytes <= self.bytes_max {
                return;
            }
        }
    }
}

fn size(item: &v1::ScanItem) -> usize {
    item.key.len() + item.value.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range() -> ScanRange {
        ScanRange::all()
    }

    /// What a shard would answer.
    fn answer(keys: &BTreeMap<Bytes, usize>, fetch: &Fetch) -> v1::ScanReply {
        let mut rest = keys.range(fetch.start.clone()..);
        let items = rest.by_ref().take(fetch.items_max as usize).map(|(key, length)| v1::ScanItem {
            key: key.clone(),
            value: vec![7; *length].into(),
            version: 1,
        });
        let items: Vec<_> = items.collect();
        let held = fetch.applied_index != 0;
        v1::ScanReply {
            more: items.len() == fetch.items_max as usize,
            items,
            applied_index: 7,
            held,
            ..Default::default()
        }
    }

    /// Scans all of it, answering up to `at_once` fetches in an order that `order` draws.
    fn scan(
        shards: &[BTreeMap<Bytes, usize>],
        bytes_max: usize,
        at_once: usize,
        mut order: u64,
    ) -> (Vec<Bytes>, usize) {
        let mut merge = Merge::new(shards.len() as u32, &range(), bytes_max);
        let mut flying: Vec<Fetch> = Vec::new();
        let mut found = Vec::new();
        let mut most = 0;
        loop {
            let merged = merge.next_item();
            while flying.len() < at_once
                && let Some(fetch) = merge.next_fetch()
            {
                flying.push(fetch);
            }
            match merged {
                Merged::Item(item) => found.push(item.key),
                Merged::End => return (found, most),
                Merged::Waiting => {
                    assert!(!flying.is_empty(), "it waits for a page that nobody fetches");
                    order = order.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let fetch = flying.swap_remove((order >> 33) as usize % flying.len());
                    let reply = answer(&shards[fetch.shard as usize - 1], &fetch);
                    merge.page(fetch.shard, reply).unwrap();
                    most = most.max(merge.bytes());
                }
            }
        }
    }

    proptest! {
        #[test]
        fn every_key_comes_once_and_in_order(
            keys in prop::collection::btree_map(prop::collection::vec(0u8..4, 1..6), (0usize..200, 0usize..5), 0..120),
            bytes_max in 1usize..20_000,
            at_once in 1usize..5,
            order: u64,
        ) {
            let mut shards = vec![BTreeMap::new(); 5];
            for (key, (length, shard)) in &keys {
                shards[*shard].insert(Bytes::from(key.clone()), *length);
            }
            let (found, _) = scan(&shards, bytes_max, at_once, order);
            let expected: Vec<Bytes> = keys.keys().map(|key| Bytes::from(key.clone())).collect();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn memory_stays_within_the_bound_and_one_item_however_large_values_are() {
        let shards: Vec<BTreeMap<Bytes, usize>> = (0u8..32)
            .map(|shard| (0u8..20).map(|key| (Bytes::from(vec![key, shard]), 10_000)).collect())
            .collect();
        let (found, most) = scan(&shards, 50_000, 4, 1);
        assert_eq!(found.len(), 32 * 20);
        // The page that is needed next, and those that were being fetched when others were dropped.
        assert!(most <= 50_000 + 5 * 4 * 10_002, "{most}");
    }

    #[test]
    fn a_page_that_was_not_asked_for_is_refused() {
        let mut merge = Merge::new(2, &range(), 1000);
        assert!(merge.page(1, v1::ScanReply::default()).is_err());
        let fetch = merge.next_fetch().unwrap();
        let item = |key: &'static [u8]| v1::ScanItem { key: key.into(), ..Default::default() };
        let reply = v1::ScanReply { items: vec![item(b"b"), item(b"a")], ..Default::default() };
        assert!(merge.page(fetch.shard, reply).is_err());
    }

    #[test]
    fn a_page_whose_keys_have_all_gone_is_asked_for_again() {
        let mut merge = Merge::new(1, &range(), 1000);
        let fetch = merge.next_fetch().unwrap();
        merge.page(1, v1::ScanReply { more: true, ..Default::default() }).unwrap();
        assert_eq!(merge.next_item(), Merged::Waiting);
        assert_eq!(merge.next_fetch().map(|again| again.start), Some(fetch.start));
    }

    #[test]
    fn a_shard_that_is_seen_as_of_a_later_entry_is_told_of_with_the_key_where_that_begins() {
        let mut merge = Merge::new(1, &range(), 1000);
        let item = |key: &'static [u8]| v1::ScanItem { key: key.into(), ..Default::default() };
        let page = |key, applied_index, held| v1::ScanReply {
            items: vec![item(key)],
            more: true,
            applied_index,
            held,
            ..Default::default()
        };
        let told = |merge: &mut Merge| {
            let news = merge.take_news().into_iter();
            news.map(|told| (told.start, told.applied_index, told.newer)).collect::<Vec<_>>()
        };
        assert_eq!(merge.next_fetch().map(|fetch| fetch.applied_index), Some(0));
        merge.page(1, page(b"a", 5, false)).unwrap();
        assert_eq!(told(&mut merge), [(Bytes::new(), 5, false)]);
        assert!(matches!(merge.next_item(), Merged::Item(_)));
        assert_eq!(merge.next_fetch().map(|fetch| fetch.applied_index), Some(5));
        merge.page(1, page(b"b", 5, true)).unwrap();
        assert_eq!(told(&mut merge), []);
        assert!(matches!(merge.next_item(), Merged::Item(_)));
        assert!(merge.next_fetch().is_some());
        merge.page(1, page(b"c", 9, false)).unwrap();
        assert_eq!(told(&mut merge), [(Bytes::from_static(b"b\0"), 9, true)]);
    }
}
