//! A scan over all shards in the order of keys, in bounded memory: what gRPC and REST both stand on.
//!
//! [`Scanner::new`] takes a range; [`Scanner::next_page`] gives the items that follow, as many as are asked for. A
//! scanner holds nothing that another node would need: to resume, make a new one from the last key and a zero byte
//! ([`behind`]). [`end_of_prefix`] makes a range of a prefix. Dropping a scanner ends it.
//!
//! What a scan sees: each shard's part is that shard as of one log entry, which [`Page::versions`] states; it was
//! confirmed by the shard's leader when the scan first read it, and is never older than what had been answered before
//! the scan began. The shard is held still for that (see `views`), within bounds: if what was held is gone, the scan
//! goes on from the next key as of a later entry, and says so. Shards are read at different moments, so a key that is
//! there during the whole scan is found once, and what a single batch wrote to one shard is seen whole or not at all.

mod merge;

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use krita_proto::error::ErrorCode;
use krita_proto::routing::KEY_BYTES_MAX;
use krita_proto::v1;
use krita_runtime::{Runtime, TaskClass};

use self::merge::{Fetch, Merge, Merged};
use crate::core::Core;
use crate::failure::Failure;

/// What the pages of one scan may hold in memory. Beyond it those that are needed last are dropped, and fetched again.
const BYTES_MAX: usize = 8 << 20;

/// Pages that are on their way at once; each holds 1 MiB, or one item.
const FETCHES_AT_ONCE: usize = 8;
const FETCHES_AT_ONCE_KEYS_ONLY: usize = 32;

/// Shards that are told at once that a scan has ended.
const RELEASES_AT_ONCE: usize = 32;

/// Scans that one core runs at once.
const SCANS_MAX: u32 = 64;

/// What to scan.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ScanRange {
    /// First key, inclusive; empty = from the first key.
    pub(crate) start: Bytes,
    /// Exclusive; empty = to the last key.
    pub(crate) end: Bytes,
    /// No values.
    pub(crate) keys_only: bool,
    /// How long each page of a shard is waited for; 0 = the server's default.
    pub(crate) timeout_ms: u32,
    pub(crate) consistency: v1::Consistency,
    pub(crate) scan: ScanName,
}

/// By which name the shards hold what a scan sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ScanName {
    /// 0 = nothing is held.
    pub(crate) id: u64,
    /// Another request began it, on this node or any other.
    pub(crate) is_resumed: bool,
    /// Shards that have ended are held, too: the caller may stop anywhere, and go on with a cursor.
    pub(crate) keeps: bool,
}

impl ScanRange {
    /// All keys with their values, by a scan of no name.
    #[cfg(test)]
    pub(crate) fn all() -> Self {
        Self {
            start: Bytes::new(),
            end: Bytes::new(),
            keys_only: false,
            timeout_ms: 0,
            consistency: v1::Consistency::Linearizable,
            scan: ScanName { id: 0, is_resumed: false, keeps: false },
        }
    }
}

/// How much a caller wants at once. A page ends at what comes first; a single item may exceed the bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageSize {
    pub(crate) items_max: usize,
    /// Of keys and values.
    pub(crate) bytes_max: usize,
}

/// Items in order.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Page {
    pub(crate) items: Vec<v1::ScanItem>,
    /// There may be more behind them.
    pub(crate) more: bool,
    /// What has become known of the shards' versions since the page before; it may concern keys of later pages.
    pub(crate) versions: Vec<v1::ShardVersion>,
}

type Fetching = Pin<Box<dyn Future<Output = (u32, Result<v1::ScanReply, Failure>)>>>;

/// A running scan.
pub(crate) struct Scanner<R: Runtime> {
    core: Rc<Core<R>>,
    range: ScanRange,
    shard_count: u32,
    merge: Merge,
    fetching: FuturesUnordered<Fetching>,
    /// Looked at, but for the next page.
    next: Option<v1::ScanItem>,
    _running: Running<R>,
}

/// Counts towards the core's scans.
struct Running<R: Runtime>(Rc<Core<R>>);

impl<R: Runtime> Drop for Running<R> {
    fn drop(&mut self) {
        change(&self.0.scans, -1);
    }
}

fn change(scans: &Cell<u32>, by: i32) {
    scans.set(scans.get().saturating_add_signed(by));
}

impl<R: Runtime> Scanner<R> {
    /// Begins a scan; nothing is asked of any shard yet.
    ///
    /// # Errors
    /// A bound that is longer than a key can be; a node that does not serve yet, or has too many scans.
    pub(crate) fn new(core: &Rc<Core<R>>, range: ScanRange) -> Result<Self, Failure> {
        if range.start.len() > KEY_BYTES_MAX + 1 || range.end.len() > KEY_BYTES_MAX + 1 {
            return Err(Failure::invalid("a bound of the scan is longer than a key can be"));
        }
        let shard_count = core.serving.borrow().as_ref().map(|serving| serving.cluster.shard_count());
        let shard_count = shard_count.ok_or_else(|| core.not_serving())?;
        if core.scans.get() >= SCANS_MAX {
            return Err(Failure::overloaded("this core runs as many scans as it may"));
        }
        change(&core.scans, 1);
        let is_empty = !range.end.is_empty() && range.start >= range.end;
        let merge = Merge::new(if is_empty { 0 } else { shard_count }, &range, BYTES_MAX);
        Ok(Self {
            core: core.clone(),
            range,
            shard_count,
            merge,
            fetching: FuturesUnordered::new(),
            next: None,
            _running: Running(core.clone()),
        })
    }

    /// The items that follow. A page without `more` is the last; it may be empty.
    ///
    /// # Errors
    /// A shard that could not be read within the time limit. The scan has ended then; it can be resumed by another.
    pub(crate) async fn next_page(&mut self, size: PageSize) -> Result<Page, Failure> {
        let mut items = Vec::new();
        let mut bytes = 0;
        loop {
            let item = match self.next.take() {
                Some(item) => item,
                None => match self.next_item().await? {
                    Some(item) => item,
                    None => return Ok(Page { items, more: false, versions: self.merge.take_news() }),
                },
            };
            let length = item.key.len() + item.value.len();
            if !items.is_empty() && (items.len() >= size.items_max || bytes + length > size.bytes_max) {
                self.next = Some(item);
                return Ok(Page { items, more: true, versions: self.merge.take_news() });
            }
            bytes += length;
            items.push(item);
        }
    }

    /// Ends the scan for good: nobody will resume it, and the shards need hold nothing.
    pub(crate) fn release(self) {
        let Self { core, range, shard_count, .. } = self;
        if range.scan.id == 0 {
            return;
        }
        let runtime = core.runtime.clone();
        runtime.spawn(TaskClass::Foreground, "scan-release", async move {
            let releases = (1..=shard_count).map(|shard| {
                let request = v1::Scan { shard, scan_id: range.scan.id, release: true, ..Default::default() };
                let core = core.clone();
                // What is not released goes by itself, later.
                async move { drop(core.ask(&request).await) }
            });
            let mut releases = futures_util::stream::iter(releases).buffer_unordered(RELEASES_AT_ONCE);
            while releases.next().await.is_some() {}
        });
    }

    async fn next_item(&mut self) -> Result<Option<v1::ScanItem>, Failure> {
        loop {
            let merged = self.merge.next_item();
            self.start_fetches();
            match merged {
                Merged::Item(item) => return Ok(Some(item)),
                Merged::End => return Ok(None),
                Merged::Waiting => {}
            }
            let Some((shard, reply)) = self.fetching.next().await else {
                return Err(Failure::new(
                    ErrorCode::Internal,
                    "the scan waits for a page that nobody fetches",
                ));
            };
            self.merge
                .page(shard, reply?)
                .map_err(|error| Failure::new(ErrorCode::Internal, error.to_string()))?;
        }
    }

    fn start_fetches(&mut self) {
        let at_once = if self.range.keys_only { FETCHES_AT_ONCE_KEYS_ONLY } else { FETCHES_AT_ONCE };
        while self.fetching.len() < at_once
            && let Some(Fetch { shard, start, items_max, applied_index }) = self.merge.next_fetch()
        {
            let core = self.core.clone();
            let request = v1::Scan {
                shard,
                start,
                end: self.range.end.clone(),
                items_max,
                keys_only: self.range.keys_only,
                timeout_ms: self.range.timeout_ms,
                scan_id: self.range.scan.id,
                applied_index,
                keep: self.range.scan.keeps,
                release: false,
                consistency: self.range.consistency as i32,
            };
            self.fetching.push(Box::pin(async move { (shard, core.ask_retrying(&request).await) }));
        }
    }
}

/// The first key behind `key` in order.
pub(crate) fn behind(key: &[u8]) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.put_u8(0);
    next.freeze()
}

/// The first key behind all that begin with `prefix`; empty = there is none.
pub(crate) fn end_of_prefix(prefix: &[u8]) -> Bytes {
    let kept = prefix.iter().rposition(|byte| *byte != u8::MAX).map_or(0, |last| last + 1);
    let mut end = BytesMut::from(&prefix[..kept]);
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end.freeze()
}
