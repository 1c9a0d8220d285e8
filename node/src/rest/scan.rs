//! Keys in order over all shards: a page as JSON with the cursor of the next, or a stream of JSON lines.
//!
//! A cursor holds where the next page begins, the scan's name and a mark of the range that it belongs to: any node
//! takes it, at any time. What the shards hold under the name, so that all pages see each of them as of one log
//! entry, is bounded in time; without it the scan goes on as of later entries, and the page says so.

use std::rc::Rc;

use base64::Engine as _;
use bytes::Bytes;
use krita_net::http::{BodySender, OutgoingBody, ReaderGone, Response, StatusCode};
use krita_proto::routing::{KEY_BYTES_MAX, SCAN_ITEMS_DEFAULT, SCAN_ITEMS_MAX};
use krita_proto::v1;
use krita_runtime::{Runtime, TaskClass};
use serde::Serialize;
use serde_json::json;

use super::answer::{JSON, NDJSON};
use super::forms::Item;
use super::query::{BASE64_URL, Query};
use super::refusal::Refusal;
use super::{Call, answer, conditions};
use crate::core::Core;
use crate::scanning::{Page, PageSize, ScanName, ScanRange, Scanner, behind, end_of_prefix};

/// Keys and values of one page, in bytes, after which it ends early; a single item may exceed it.
const PAGE_BYTES_MAX: usize = 1024 * 1024;

/// Bytes of lines that are sent together.
const PIECE_BYTES: usize = 32 * 1024;

/// First byte of a cursor.
const CURSOR_VERSION: u8 = 2;

/// What is scanned.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Range {
    start: Bytes,
    /// Exclusive; empty = to the last key.
    end: Bytes,
    /// Binds a cursor to the query that it came from.
    mark: [u8; 4],
    /// The scan that a cursor names.
    resumed: Option<u64>,
}

impl Range {
    fn of(query: &Query) -> Result<Self, Refusal> {
        let [prefix, start, end] = ["prefix", "start", "end"].map(|name| query.key(name));
        let (prefix, start, end) = (prefix?, start?, end?);
        for (name, key) in [("prefix", &prefix), ("start", &start), ("end", &end)] {
            // One more than a key: what follows the longest key begins with it and a zero byte.
            if key.as_ref().is_some_and(|key| key.len() > KEY_BYTES_MAX + 1) {
                return Err(Refusal::invalid(format!("{name} is longer than a key can be")));
            }
        }
        let mut mark = crc32fast::Hasher::new();
        for key in [&prefix, &start, &end] {
            let length = key.as_ref().map_or(u32::MAX, |key| u32::try_from(key.len()).unwrap_or(u32::MAX));
            mark.update(&length.to_le_bytes());
            mark.update(key.as_deref().unwrap_or_default());
        }
        let prefix = prefix.unwrap_or_default();
        let start = start.unwrap_or_default().max(prefix.clone());
        // An empty end is none.
        let ends = [end.unwrap_or_default(), end_of_prefix(&prefix)];
        let end = ends.into_iter().filter(|end| !end.is_empty()).min().unwrap_or_default();
        let range = Self { start, end, mark: mark.finalize().to_le_bytes(), resumed: None };
        match query.text("cursor")? {
            None => Ok(range),
            Some(cursor) => range.continue_at(cursor),
        }
    }

    /// The cursor of the page that begins behind `last`.
    fn cursor_behind(&self, scan_id: u64, last: &[u8]) -> String {
        let mut bytes = vec![CURSOR_VERSION];
        bytes.extend_from_slice(&self.mark);
        bytes.extend_from_slice(&scan_id.to_le_bytes());
        bytes.extend_from_slice(last);
        BASE64_URL.encode(bytes)
    }

    fn continue_at(self, cursor: &str) -> Result<Self, Refusal> {
        let invalid = || Refusal::invalid("the cursor is none that a scan has given");
        let bytes = BASE64_URL.decode(cursor).map_err(|_| invalid())?;
        let rest = bytes.strip_prefix(&[CURSOR_VERSION]).ok_or_else(invalid)?;
        let (mark, rest) = rest.split_first_chunk::<4>().ok_or_else(invalid)?;
        let (scan_id, last) = rest.split_first_chunk::<8>().ok_or_else(invalid)?;
        if last.is_empty() || last.len() > KEY_BYTES_MAX {
            return Err(invalid());
        }
        if *mark != self.mark {
            return Err(Refusal::invalid(
                "the cursor belongs to another range: repeat the query that gave it",
            ));
        }
        Ok(Self { start: behind(last), resumed: Some(u64::from_le_bytes(*scan_id)), ..self })
    }
}

/// What a scan asks for.
struct Wanted {
    range: Range,
    scan: ScanName,
    keys_only: bool,
    limit: Option<usize>,
}

/// `GET /v1/scan`.
pub(crate) async fn scan<R: Runtime>(
    core: &Rc<Core<R>>,
    call: &Call<'_>,
) -> Result<Response<OutgoingBody>, Refusal> {
    let consistency = call.query.consistency()?;
    let form = conditions::negotiate(call.headers, &[JSON, NDJSON])?;
    let limit = call.query.number("limit", 1, SCAN_ITEMS_MAX as u32)?;
    let range = Range::of(&call.query)?;
    let wanted = Wanted {
        scan: ScanName {
            id: range.resumed.unwrap_or_else(|| core.runtime.random_u64()),
            is_resumed: range.resumed.is_some(),
            // Each page in JSON is a request of its own, and the caller asks for the next when it likes.
            keeps: form == JSON,
        },
        range,
        keys_only: call.query.switch("keys_only")?,
        limit: limit.map(|limit| limit as usize),
    };
    let scan = ScanRange {
        start: wanted.range.start.clone(),
        end: wanted.range.end.clone(),
        keys_only: wanted.keys_only,
        timeout_ms: call.query.timeout_ms()?,
        consistency,
        scan: wanted.scan,
    };
    let mut scanner = Scanner::new(core, scan)?;
    // The first page before the answer begins: what refuses the whole scan shall be its status.
    let first = scanner.next_page(wanted.page_size(0)).await?;
    if form == JSON {
        if !first.more {
            scanner.release();
        }
        return page(&core.runtime, &wanted, &first).await;
    }
    let (sender, body) = OutgoingBody::channel();
    let streaming = stream(core.clone(), scanner, wanted, first, sender);
    core.runtime.spawn(TaskClass::Foreground, "rest-scan", streaming);
    Ok(answer::with_body(StatusCode::OK, NDJSON, body))
}

impl Wanted {
    /// The next page, once `sent` items have been sent.
    fn page_size(&self, sent: usize) -> PageSize {
        let left = self.limit.map_or(SCAN_ITEMS_DEFAULT, |limit| limit.saturating_sub(sent));
        PageSize { items_max: left, bytes_max: PAGE_BYTES_MAX }
    }
}

/// A page around its items, which are written one by one before it.
#[derive(Serialize)]
struct PageEnd {
    cursor: Option<String>,
    versions: Vec<VersionForm>,
}

/// What the items of one shard are as of.
#[derive(Serialize)]
struct VersionForm {
    shard: u32,
    applied_index: u64,
    /// Items of earlier pages are as of an earlier entry.
    newer: bool,
    /// No quorum confirmed it.
    stale: bool,
}

impl VersionForm {
    fn of(version: &v1::ShardVersion) -> Self {
        let v1::ShardVersion { shard, applied_index, newer, stale, .. } = *version;
        Self { shard, applied_index, newer, stale }
    }
}

fn item_form(item: &v1::ScanItem, keys_only: bool) -> Item<'_> {
    Item::new(&item.key, (!keys_only).then_some(&item.value[..]), item.version)
}

/// The page as JSON. A large one is written piece by piece, so that others have their turn.
async fn page<R: Runtime>(
    runtime: &R,
    wanted: &Wanted,
    page: &Page,
) -> Result<Response<OutgoingBody>, Refusal> {
    let last = page.items.last().filter(|_| page.more);
    let end = PageEnd {
        cursor: last.map(|last| wanted.range.cursor_behind(wanted.scan.id, &last.key)),
        versions: page.versions.iter().map(VersionForm::of).collect(),
    };
    let mut json = br#"{"items":["#.to_vec();
    let mut rested = 0;
    for (place, item) in page.items.iter().enumerate() {
        if place > 0 {
            json.push(b',');
        }
        write_json(&mut json, &item_form(item, wanted.keys_only));
        if json.len() - rested >= PIECE_BYTES {
            rested = json.len();
            runtime.pause().await;
        }
    }
    json.extend_from_slice(b"],");
    let mut rest = Vec::new();
    write_json(&mut rest, &end);
    // An object with members: what follows its brace ends the page.
    json.extend_from_slice(&rest[1..]);
    json.push(b'\n');
    Ok(answer::bytes(StatusCode::OK, JSON, Bytes::from(json)))
}

/// Sends the items of all pages as lines, and then a line that says how the scan ended: a stream without one was cut.
async fn stream<R: Runtime>(
    core: Rc<Core<R>>,
    mut scanner: Scanner<R>,
    wanted: Wanted,
    first: Page,
    mut sender: BodySender,
) {
    let mut page = first;
    let mut sent: usize = 0;
    let mut last = None;
    let mut versions = Vec::new();
    let end = loop {
        if send_items(&page, wanted.keys_only, &mut sender).await.is_err() {
            return;
        }
        sent += page.items.len();
        versions.extend(page.versions.iter().map(VersionForm::of));
        last = page.items.pop().map(|item| item.key).or(last);
        let cursor = last.as_ref().map(|last| wanted.range.cursor_behind(wanted.scan.id, last));
        if !page.more {
            break json!({ "end": { "items": sent, "cursor": null, "versions": versions } });
        }
        if wanted.limit.is_some_and(|limit| sent >= limit) {
            break json!({ "end": { "items": sent, "cursor": cursor, "versions": versions } });
        }
        core.runtime.pause().await;
        page = match scanner.next_page(wanted.page_size(sent)).await {
            Ok(page) => page,
            Err(failure) => {
                let error = Refusal::from(failure).to_json();
                break json!({ "end": { "items": sent, "cursor": cursor, "versions": versions, "error": error } });
            }
        };
    };
    let mut line = Vec::new();
    write_line(&mut line, &end);
    if sender.send(Bytes::from(line)).await.is_ok() {
        sender.finish(None);
    }
}

async fn send_items(page: &Page, keys_only: bool, sender: &mut BodySender) -> Result<(), ReaderGone> {
    let mut piece = Vec::new();
    for item in &page.items {
        write_line(&mut piece, &item_form(item, keys_only));
        if piece.len() >= PIECE_BYTES {
            sender.send(Bytes::from(std::mem::take(&mut piece))).await?;
        }
    }
    sender.send(Bytes::from(piece)).await
}

fn write_line<T: Serialize>(out: &mut Vec<u8>, form: &T) {
    write_json(out, form);
    out.push(b'\n');
}

fn write_json<T: Serialize>(out: &mut Vec<u8>, form: &T) {
    serde_json::to_writer(out, form).expect("forms with names for keys are JSON, and memory takes it");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rest::routes::{Endpoint, operation_of};

    fn range(query: &str) -> Result<Range, Refusal> {
        Range::of(&Query::parse(Some(query), operation_of(Endpoint::Scan)).unwrap())
    }

    #[test]
    fn a_prefix_is_a_range() {
        let bounds = |query: &str| range(query).map(|range| (range.start, range.end)).unwrap();
        assert_eq!(bounds("prefix=ab"), (Bytes::from("ab"), Bytes::from("ac")));
        assert_eq!(bounds("prefix=a%FF%FF"), (Bytes::from_static(b"a\xff\xff"), Bytes::from("b")));
        assert_eq!(bounds("prefix=%FF"), (Bytes::from_static(b"\xff"), Bytes::new()));
        assert_eq!(bounds("prefix="), (Bytes::new(), Bytes::new()));
        assert_eq!(bounds("start=a&end=b"), (Bytes::from("a"), Bytes::from("b")));
        assert_eq!(bounds("prefix=ab&start=a&end=abc"), (Bytes::from("ab"), Bytes::from("abc")));
        assert_eq!(bounds("prefix=ab&start=abc&end=b"), (Bytes::from("abc"), Bytes::from("ac")));
        assert!(range(&format!("start={}", "a".repeat(KEY_BYTES_MAX + 2))).is_err());
    }

    #[test]
    fn a_cursor_continues_its_own_range_alone() {
        let cursor = range("prefix=ab").unwrap().cursor_behind(7, b"abc");
        let resumed = range(&format!("prefix=ab&cursor={cursor}")).unwrap();
        assert_eq!((&resumed.start[..], resumed.resumed), (&b"abc\0"[..], Some(7)));
        let elsewhere = range(&format!("prefix=ac&cursor={cursor}")).unwrap_err();
        assert!(elsewhere.failure.message.contains("another range"));
        assert!(range(&format!("start=ab&cursor={cursor}")).is_err());
        for bad in ["", "A", "AQ", "AQAAAAA", "%FF", "!", "AgAAAABh"] {
            assert!(range(&format!("prefix=ab&cursor={bad}")).is_err(), "{bad}");
        }
    }
}
