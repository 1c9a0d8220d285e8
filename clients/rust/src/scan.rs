//! A scan over all shards, ordered by key, fetched page by page as it is read.

use std::collections::BTreeMap;
use std::sync::Arc;

use krita_proto::error::ErrorCode;
use krita_proto::routing::SCAN_ITEMS_MAX;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::cluster::{Cluster, in_parallel, unexpected, unpredictable};
use crate::core::batch::detached;
use crate::core::call::CallKind;
use crate::core::merge::{Fetch, Merge, Merged};
use crate::core::message::{Request, Response};
use crate::error::{Error, Result};
use crate::types::{ScanItem, ScanOptions, ShardVersion};
use crate::v1;

/// Items of one page where the caller names no number: two pages per shard are in memory at most.
const PAGE_KEYS: u32 = 512;
const PAGE_VALUES: u32 = 64;

/// Pages that are on their way at once.
const FETCHES_AT_ONCE: usize = 64;

/// Shards that are told at once that a scan has ended.
const RELEASES_AT_ONCE: usize = 32;

/// A running scan. Dropping it ends it.
pub struct Scan {
    cluster: Arc<Cluster>,
    options: ScanOptions,
    /// By which name the shards hold what it sees; 0 = none needs to: one page of each is enough.
    scan_id: u64,
    /// What was known of the shards' versions when it ended.
    versions: BTreeMap<u32, ShardVersion>,
    /// Where it runs, for what is left to do when it is dropped.
    runtime: Option<Handle>,
    /// Made by the first `next`: only then the number of shards must be known.
    merge: Option<Merge>,
    fetching: JoinSet<(u32, Result<v1::ScanReply>)>,
    waiting: Vec<Fetch>,
    returned: u64,
    has_ended: bool,
}

impl Scan {
    pub(crate) fn new(cluster: Arc<Cluster>, options: ScanOptions) -> Self {
        Self {
            cluster,
            options,
            scan_id: 0,
            versions: BTreeMap::new(),
            runtime: None,
            merge: None,
            fetching: JoinSet::new(),
            waiting: Vec::new(),
            returned: 0,
            has_ended: false,
        }
    }

    /// The next item in order of keys; `None` at the end. After an error the scan has ended; to resume, scan from
    /// the last key followed by a zero byte. May be dropped while it waits: nothing is lost.
    pub async fn next(&mut self) -> Option<Result<ScanItem>> {
        if self.has_ended || self.options.limit.is_some_and(|limit| self.returned >= limit) {
            self.stop();
            return None;
        }
        match self.advance().await {
            Ok(Some(item)) => {
                self.returned += 1;
                let value = detached(item.value);
                Some(Ok(ScanItem { key: detached(item.key), value, version: item.version }))
            }
            Ok(None) => {
                self.stop();
                None
            }
            Err(error) => {
                self.stop();
                Some(Err(error))
            }
        }
    }

    /// What each shard's items are as of, by shard; shards that have not answered yet are not in it. Fetching runs
    /// ahead of the items that [`Scan::next`] has given: [`ShardVersion::start`] says from which key on it holds.
    ///
    /// As long as none [is newer](ShardVersion::is_newer), each shard's part is a consistent snapshot.
    pub fn versions(&self) -> &BTreeMap<u32, ShardVersion> {
        self.merge.as_ref().map_or(&self.versions, Merge::versions)
    }

    fn stop(&mut self) {
        self.has_ended = true;
        self.fetching.abort_all();
        self.waiting.clear();
        let Some(merge) = self.merge.take() else { return };
        self.versions = merge.versions().clone();
        let open = merge.open_shards();
        if self.scan_id == 0 || open.is_empty() {
            return;
        }
        if let Some(runtime) = &self.runtime {
            runtime.spawn(release(self.cluster.clone(), self.scan_id, self.options.clone(), open));
        }
    }

    async fn advance(&mut self) -> Result<Option<v1::ScanItem>> {
        if self.merge.is_none() {
            let mut call = self.cluster.call(CallKind::Read, self.options.timeout);
            let shards = self.cluster.with_topology(&mut call, |topology| topology.shard_count()).await?;
            self.merge = Some(Merge::new(shards, &self.options.start));
            self.runtime = Handle::try_current().ok();
            let is_one_page =
                self.options.limit.is_some_and(|limit| limit <= u64::from(items_max(&self.options)));
            self.scan_id = if is_one_page { 0 } else { unpredictable()? };
        }
        loop {
            let Some(merge) = &mut self.merge else { return Ok(None) };
            let merged = merge.next_item();
            if merged == Merged::End {
                return Ok(None);
            }
            self.waiting.extend(merge.fetches());
            self.start_fetches();
            match merged {
                Merged::Item(item) => return Ok(Some(item)),
                Merged::Waiting | Merged::End => self.take_page().await?,
            }
        }
    }

    fn start_fetches(&mut self) {
        while self.fetching.len() < FETCHES_AT_ONCE
            && let Some(fetch) = self.waiting.pop()
        {
            let (cluster, options, scan_id) = (self.cluster.clone(), self.options.clone(), self.scan_id);
            self.fetching.spawn(fetch_page(cluster, options, scan_id, fetch));
        }
    }

    async fn take_page(&mut self) -> Result<()> {
        let Some(fetched) = self.fetching.join_next().await else {
            return Err(Error::new(ErrorCode::Internal, "the scan waits for a page that nobody fetches"));
        };
        let (shard, reply) =
            fetched.unwrap_or_else(|failure| std::panic::resume_unwind(failure.into_panic()));
        let merge = self.merge.as_mut().expect("a running scan merges");
        merge.page(shard, reply?).map_err(|error| Error::new(ErrorCode::Internal, error.to_string()))
    }
}

impl Drop for Scan {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Items of one page of a shard.
fn items_max(options: &ScanOptions) -> u32 {
    match options.page_items {
        0 if options.keys_only => PAGE_KEYS,
        0 => PAGE_VALUES,
        asked => asked.min(SCAN_ITEMS_MAX as u32),
    }
}

async fn fetch_page(
    cluster: Arc<Cluster>,
    options: ScanOptions,
    scan_id: u64,
    fetch: Fetch,
) -> (u32, Result<v1::ScanReply>) {
    let Fetch { shard, start, applied_index } = fetch;
    let request = Request::Scan(v1::Scan {
        shard,
        start,
        items_max: items_max(&options),
        end: options.end,
        keys_only: options.keys_only,
        scan_id,
        applied_index,
        consistency: options.consistency.to_wire(),
        ..v1::Scan::default()
    });
    let call = cluster.call(CallKind::Read, options.timeout);
    let reply = match cluster.run(call, CallKind::Read, shard, request).await {
        Ok(Response::Scan(reply)) => Ok(reply),
        Ok(other) => Err(unexpected(&other)),
        Err(error) => Err(error),
    };
    (shard, reply)
}

/// Lets the shards go of what they hold. What is not told goes by itself, later.
async fn release(cluster: Arc<Cluster>, scan_id: u64, options: ScanOptions, shards: Vec<u32>) {
    let (consistency, timeout) = (options.consistency.to_wire(), options.timeout);
    let release = move |cluster: Arc<Cluster>, shard: u32| async move {
        let request = v1::Scan { shard, scan_id, release: true, consistency, ..v1::Scan::default() };
        let call = cluster.call(CallKind::Read, timeout);
        drop(cluster.run(call, CallKind::Read, shard, Request::Scan(request)).await);
    };
    in_parallel(shards, RELEASES_AT_ONCE, release, &cluster).await;
}
