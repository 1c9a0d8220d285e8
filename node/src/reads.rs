//! Reads: what waits for Raft's confirmation, and how it is answered from the store once it has it.
//!
//! A value in the cache is answered at once; one that is not is read by a task of its own, so that no other
//! request waits for the disk.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Waker};

use bytes::Bytes;
use futures_channel::oneshot;
use krita_engine::{PinnedView, ReadError, Slot};
use krita_proto::error::ErrorCode;
use krita_proto::routing::{ENTRY_BYTES_MAX, PAGE_BYTES_MAX};
use krita_proto::v1;
use krita_runtime::{Instant, Runtime, TaskClass};

use crate::failure::Failure;
use crate::mending::Source;
use crate::request::Scan;
use crate::responder::Responder;
use crate::unconfirmed::Wanted;

/// How often a value that moved while it was looked for is looked up again.
const STALE_RETRIES_MAX: usize = 16;

/// What a value takes in an answer beside its bytes, at most.
const FOUND_BYTES: u64 = 32;

/// A read that waits for its turn.
pub(crate) struct PendingRead {
    pub(crate) read: Read,
    pub(crate) deadline: Instant,
}

/// What is read.
pub(crate) enum Read {
    Get {
        key: Bytes,
        responder: Responder,
    },
    Scan {
        scan: Scan,
        responder: Responder,
    },
    /// Someone on this core wants to know when everything before has been applied.
    Barrier(oneshot::Sender<Result<(), Failure>>),
}

impl PendingRead {
    pub(crate) fn fail(self, failure: Failure) {
        match self.read {
            Read::Get { responder, .. } | Read::Scan { responder, .. } => responder.fail(&failure),
            // Whoever waits may have gone away: nothing to tell then.
            Read::Barrier(sender) => drop(sender.send(Err(failure))),
        }
    }
}

/// The results of a batch, but for its gets.
pub(crate) struct BatchGets {
    pub(crate) results: Vec<v1::OperationResult>,
    pub(crate) gets: Vec<(usize, Bytes)>,
    pub(crate) responder: Responder,
}

/// Whether a quorum has confirmed what is answered with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Confirmed {
    Yes,
    /// It is what this replica has applied, up to here.
    No {
        applied_index: u64,
    },
}

impl Confirmed {
    fn is_stale(self) -> bool {
        self != Self::Yes
    }

    /// What a stale answer states.
    fn applied_index(self) -> u64 {
        match self {
            Self::Yes => 0,
            Self::No { applied_index } => applied_index,
        }
    }
}

/// Answers a read from what is applied here now.
pub(crate) fn serve<R: Runtime>(
    source: &Rc<Source<R>>,
    served_by: v1::ServedBy,
    confirmed: Confirmed,
    read: Read,
) {
    let (runtime, source) = (&source.runtime, source.clone());
    match read {
        Read::Get { key, responder } => run(runtime, "get", async move {
            match value_of(&source, &key).await {
                Ok(Some((value, version))) => responder.message(&v1::GetReply {
                    found: true,
                    value,
                    version,
                    served_by: Some(served_by),
                    stale: confirmed.is_stale(),
                    applied_index: confirmed.applied_index(),
                }),
                Ok(None) => responder.message(&v1::GetReply {
                    served_by: Some(served_by),
                    stale: confirmed.is_stale(),
                    applied_index: confirmed.applied_index(),
                    ..Default::default()
                }),
                Err(failure) => responder.fail(&failure),
            }
        }),
        Read::Scan { scan, responder } => run(runtime, "scan", async move {
            match read_page(&source, &scan, confirmed).await {
                Ok(reply) => responder.message(&v1::ScanReply {
                    served_by: Some(served_by),
                    stale: confirmed.is_stale(),
                    ..reply
                }),
                Err(failure) => responder.fail(&failure),
            }
        }),
        Read::Barrier(sender) => drop(sender.send(Ok(()))),
    }
}

/// Answers a batch whose writes have been applied, after its gets.
pub(crate) fn complete_batch<R: Runtime>(
    source: &Rc<Source<R>>,
    served_by: v1::ServedBy,
    confirmed: Confirmed,
    batch: BatchGets,
) {
    let (runtime, source) = (&source.runtime, source.clone());
    run(runtime, "batch", async move {
        let BatchGets { mut results, gets, responder } = batch;
        let has_writes = gets.len() < results.len();
        let keys: Vec<&[u8]> = gets.iter().map(|(_, key)| &key[..]).collect();
        let values = match values_of(&source, &keys).await {
            Ok(values) => values,
            // Whatever other code there is would say that the writes beside the gets were not applied.
            Err(failure) if has_writes => {
                let message =
                    format!("the batch's writes were applied, but not its gets: {}", failure.message);
                return responder.fail(&Failure::unknown_outcome(message));
            }
            Err(failure) => return responder.fail(&failure),
        };
        for ((position, _), found) in gets.iter().zip(values) {
            if let Some((value, version)) = found {
                results[*position] = v1::OperationResult { version, existed: true, value };
            }
        }
        responder.message(&v1::BatchReply {
            results,
            served_by: Some(served_by),
            stale: confirmed.is_stale(),
            applied_index: confirmed.applied_index(),
        });
    });
}

/// A key's value and its version; `None` if the key is absent.
type Found = Option<(Bytes, u64)>;

/// A key's value and version as the index has them now.
pub(crate) async fn value_of<R: Runtime>(source: &Rc<Source<R>>, key: &[u8]) -> Result<Found, Failure> {
    let mut values = values_of(source, &[key]).await?;
    Ok(values.pop().flatten())
}

/// The values and versions of keys, all as of one moment: as the index has them when this is first polled, or later
/// if one of them moved before it was read.
async fn values_of<R: Runtime>(source: &Rc<Source<R>>, keys: &[&[u8]]) -> Result<Vec<Found>, Failure> {
    'moment: for _ in 0..STALE_RETRIES_MAX {
        // Every slot before the first value: reading one may wait for the disk, and the shard goes on meanwhile.
        let slots: Vec<Option<Slot>> =
            source.store.get_many(source.shard, keys).await.map_err(|error| index_failure(&error))?;
        let bytes = slots.iter().flatten().map(|slot| slot.value_length() + FOUND_BYTES).sum::<u64>();
        if bytes > ENTRY_BYTES_MAX as u64 {
            return Err(Failure::invalid("the values that the batch gets do not fit one answer: get fewer"));
        }
        let mut values = Vec::with_capacity(keys.len());
        for (key, slot) in keys.iter().zip(slots) {
            let Some(slot) = slot else {
                values.push(None);
                continue;
            };
            match source.value(key, &slot).await {
                Ok(value) => values.push(Some((value, slot.version.0))),
                Err(ReadError::Stale) => continue 'moment,
                Err(error) => return Err(read_failure(&error)),
            }
        }
        return Ok(values);
    }
    Err(Failure::overloaded(
        "the keys change faster than they can be read, or a damaged value cannot be got from another replica now",
    ))
}

/// One page of a scan: from what is held for it, or from the shard as it is now, which is then held for the next one.
async fn read_page<R: Runtime>(
    source: &Rc<Source<R>>,
    scan: &Scan,
    confirmed: Confirmed,
) -> Result<v1::ScanReply, Failure> {
    let (shard, now) = (source.shard.0, source.runtime.now());
    let wanted = if confirmed.is_stale() { Wanted::Any } else { Wanted::Confirmed };
    if let Some(view) = source.views.find(shard, scan, wanted, now) {
        match page_of(source, &view, scan).await {
            Ok(page) => {
                if !page.more && !scan.keep {
                    source.views.release(shard, scan.scan_id);
                }
                return Ok(v1::ScanReply { held: true, ..page });
            }
            // Whatever is wrong with it, a later state of the shard may be well.
            Err(_) => source.views.release(shard, scan.scan_id),
        }
    }
    for _ in 0..STALE_RETRIES_MAX {
        let view = Rc::new(source.store.pinned(source.shard).map_err(|error| index_failure(&error))?);
        match page_of(source, &view, scan).await {
            Ok(page) => {
                if scan.scan_id != 0 && (page.more || scan.keep) {
                    source.views.hold(source, scan, view, !confirmed.is_stale());
                }
                return Ok(page);
            }
            // A damaged value that no peer gives now: its key may have another one by the next look.
            Err(PageError::Value(ReadError::Stale)) => {}
            Err(PageError::Value(error)) => return Err(read_failure(&error)),
            Err(PageError::Index(error)) => return Err(index_failure(&error)),
        }
    }
    Err(Failure::overloaded("a damaged value cannot be got from another replica now"))
}

/// Why a view gives no page.
enum PageError {
    Index(ReadError),
    Value(ReadError),
}

/// One page of a view. It ends before it would hold more than [`PAGE_BYTES_MAX`] bytes, but not without an item.
async fn page_of<R: Runtime>(
    source: &Rc<Source<R>>,
    view: &PinnedView<R>,
    scan: &Scan,
) -> Result<v1::ScanReply, PageError> {
    let end = (!scan.end.is_empty()).then_some(&scan.end[..]);
    let slots = view.scan(&scan.start, end, scan.items_max).await.map_err(PageError::Index)?;
    let mut more = slots.len() == scan.items_max;
    let mut items = Vec::with_capacity(slots.len());
    let mut bytes = 0;
    for (key, slot) in slots {
        let value = match scan.keys_only {
            true => Bytes::new(),
            false => source.value(&key, &slot).await.map_err(PageError::Value)?,
        };
        bytes += key.len() + value.len();
        if bytes > PAGE_BYTES_MAX && !items.is_empty() {
            // Not one more, large as it may be: the page must fit a frame.
            more = true;
            break;
        }
        items.push(v1::ScanItem { key, value, version: slot.version.0 });
    }
    let applied_index = view.applied().0;
    Ok(v1::ScanReply { items, more, served_by: None, applied_index, held: false, stale: false })
}

/// An error of the index as a caller sees it. A damaged index makes the replica give up its leadership.
fn index_failure(error: &ReadError) -> Failure {
    match error {
        ReadError::Corruption(corruption) => {
            tracing::error!(%corruption, "corruption found in the index by a read");
            Failure::unavailable("the index of this replica is damaged; another replica will lead")
        }
        ReadError::Io { .. } => {
            tracing::error!(%error, "the index cannot be read");
            Failure::unavailable("the index of this replica cannot be read; another replica will lead")
        }
        other => read_failure(other),
    }
}

/// A read error as a caller sees it.
pub(crate) fn read_failure(error: &ReadError) -> Failure {
    match error {
        ReadError::Corruption(corruption) => {
            tracing::error!(%corruption, "corruption found by a read");
            Failure::new(
                ErrorCode::Corruption,
                "the value failed its checksum here, and no replica has another copy",
            )
        }
        ReadError::Stale => Failure::overloaded("the value moved while it was read"),
        ReadError::Closed => Failure::not_ready("the node is stopping"),
        ReadError::Io { .. } | ReadError::UnknownShard(_) | ReadError::Compacted { .. } => {
            Failure::new(ErrorCode::Internal, error.to_string())
        }
    }
}

/// Runs a future at once as far as it goes; what then still waits becomes a task. Nothing is cancelled.
fn run<R: Runtime>(runtime: &R, name: &'static str, future: impl Future<Output = ()> + 'static) {
    let mut future: Pin<Box<dyn Future<Output = ()>>> = Box::pin(future);
    if future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
        runtime.spawn(TaskClass::Foreground, name, future);
    }
}
