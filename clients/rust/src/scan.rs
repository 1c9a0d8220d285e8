//! A scan over all shards, ordered by key, fetched page by page as it is read.

use std::sync::Arc;

use krita_proto::error::ErrorCode;
use krita_proto::routing::SCAN_ITEMS_MAX;
use tokio::task::JoinSet;

use crate::cluster::{Cluster, unexpected};
use crate::core::batch::detached;
use crate::core::call::CallKind;
use crate::core::merge::{Fetch, Merge, Merged};
use crate::core::message::{Request, Response};
use crate::error::{Error, Result};
use crate::types::{ScanItem, ScanOptions};
use crate::v1;

/// Items of one page where the caller names no number: two pages per shard are in memory at most.
const PAGE_KEYS: u32 = 512;
const PAGE_VALUES: u32 = 64;

/// Pages that are on their way at once.
const FETCHES_AT_ONCE: usize = 64;

/// A running scan. Dropping it ends it.
pub struct Scan {
    cluster: Arc<Cluster>,
    options: ScanOptions,
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

    fn stop(&mut self) {
        self.has_ended = true;
        self.fetching.abort_all();
        self.waiting.clear();
        self.merge = None;
    }

    async fn advance(&mut self) -> Result<Option<v1::ScanItem>> {
        if self.merge.is_none() {
            let mut call = self.cluster.call(CallKind::Read, self.options.timeout);
            let shards = self.cluster.with_topology(&mut call, |topology| topology.shard_count()).await?;
            self.merge = Some(Merge::new(shards, &self.options.start));
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
            self.fetching.spawn(fetch_page(self.cluster.clone(), self.options.clone(), fetch));
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

async fn fetch_page(
    cluster: Arc<Cluster>,
    options: ScanOptions,
    fetch: Fetch,
) -> (u32, Result<v1::ScanReply>) {
    let Fetch { shard, start } = fetch;
    let items_max = match options.page_items {
        0 if options.keys_only => PAGE_KEYS,
        0 => PAGE_VALUES,
        asked => asked.min(SCAN_ITEMS_MAX as u32),
    };
    let request = Request::Scan(v1::Scan {
        shard,
        start,
        end: options.end,
        items_max,
        keys_only: options.keys_only,
        timeout_ms: 0,
    });
    let call = cluster.call(CallKind::Read, options.timeout);
    let reply = match cluster.run(call, CallKind::Read, shard, request).await {
        Ok(Response::Scan(reply)) => Ok(reply),
        Ok(other) => Err(unexpected(&other)),
        Err(error) => Err(error),
    };
    (shard, reply)
}
