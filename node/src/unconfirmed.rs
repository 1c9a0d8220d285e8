//! Reads that no quorum confirms now: pages of what is held for a scan, which was confirmed when it was taken; reads
//! of callers who take what any replica has applied; and those that fall back to that because no leader is reached.
//!
//! Whatever is answered without a quorum says so, with the log entry up to which it is.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use krita_proto::error::ErrorCode;
use krita_proto::frame::FrameKind;
use krita_proto::v1;
use krita_runtime::{Runtime, TaskClass};

use crate::core::Core;
use crate::doors::decode_failure;
use crate::failure::Failure;
use crate::metrics;
use crate::reads::{self, Confirmed, Read};
use crate::replica::{Replica, gets_of};
use crate::request::{Scan, ShardOperation, ShardRequest};
use crate::responder::Responder;

/// Between attempts to reach a leader.
const RETRY_INTERVAL: Duration = Duration::from_millis(25);

/// The log tells of reads that fell back no more often than this.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// How a request may be answered here without asking a quorum.
pub(crate) enum Unconfirmed {
    /// Not at all.
    No(ShardRequest),
    /// From what is held for the scan.
    Held(Scan),
    /// There was only something to let go of.
    Released,
    /// From what is applied here.
    Any(ShardOperation),
}

impl<R: Runtime> Core<R> {
    /// How this replica may answer the request without asking a quorum.
    pub(crate) fn answer_unconfirmed(&self, replica: &Replica<R>, request: ShardRequest) -> Unconfirmed {
        let takes_any = request.consistency == v1::Consistency::Any && request.is_read();
        if let ShardOperation::Scan(scan) = &request.operation
            && scan.scan_id != 0
        {
            let is_here = self.views.has(request.shard, scan, Wanted::Any);
            if scan.release && (is_here || replica.is_leader() || request.forwarded) {
                self.views.release(request.shard, scan.scan_id);
                return Unconfirmed::Released;
            }
            let is_held = self.views.has(request.shard, scan, Wanted::Confirmed);
            if is_held && !takes_any && replica.unreadable().is_none() {
                return Unconfirmed::Held(scan.clone());
            }
        }
        match takes_any && replica.unreadable().is_none() {
            true => Unconfirmed::Any(request.operation),
            false => Unconfirmed::No(request),
        }
    }

    /// Whether the read, if no leader confirms it, is answered by any replica.
    pub(crate) fn falls_back(&self, request: &ShardRequest) -> bool {
        let may = match request.consistency {
            v1::Consistency::Linearizable => self.reads_fall_back.get(),
            v1::Consistency::Available => true,
            v1::Consistency::Any => false,
        };
        may && !request.forwarded && request.is_read() && !request.is_release()
    }

    /// Tries to have the read confirmed for most of its time, and then takes what any replica has applied.
    pub(crate) fn read_or_fall_back(self: &Rc<Self>, request: ShardRequest, responder: Responder) {
        let core = self.clone();
        self.runtime.spawn(TaskClass::Foreground, "read-or-fall-back", async move {
            match core.confirmed_or_any(request).await {
                Ok((kind, body)) => responder.body(kind, body),
                Err(failure) => responder.fail(&failure),
            }
        });
    }

    async fn confirmed_or_any(self: &Rc<Self>, request: ShardRequest) -> Result<(FrameKind, Bytes), Failure> {
        let deadline = self.runtime.now() + request.timeout;
        let until = self.runtime.now() + request.timeout * 3 / 4;
        let confirmed = request.clone().with_consistency(v1::Consistency::Linearizable)?;
        let failure = loop {
            let left = until.since(self.runtime.now());
            let (kind, body) = self.answer_to(ShardRequest { timeout: left, ..confirmed.clone() }).await?;
            if kind != FrameKind::Error {
                return Ok((kind, body));
            }
            let failure = decode_failure(&body);
            if !failure.is_passing() && failure.code != ErrorCode::DeadlineExceeded {
                return Err(failure);
            }
            if self.runtime.now() + RETRY_INTERVAL >= until {
                break failure;
            }
            self.runtime.sleep(RETRY_INTERVAL).await;
        };
        self.note_fall_back(request.shard, &failure);
        let left = deadline.since(self.runtime.now()).max(RETRY_INTERVAL);
        let any = request.with_consistency(v1::Consistency::Any)?;
        self.answer_to(ShardRequest { timeout: left, ..any }).await
    }

    fn note_fall_back(&self, shard: u32, failure: &Failure) {
        metrics::count(&self.metrics.reads_fallen_back);
        let now = self.runtime.now();
        if self.fell_back_at.get().is_none_or(|last| now.since(last) >= LOG_INTERVAL) {
            self.fell_back_at.set(Some(now));
            tracing::warn!(shard, reason = failure.message, "a read is answered without a quorum");
        }
    }
}

/// Which views serve a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wanted {
    /// Those that a quorum confirmed when they were taken.
    Confirmed,
    Any,
}

impl<R: Runtime> Replica<R> {
    /// Why what is applied here cannot be read without asking anybody, if so.
    pub(crate) fn unreadable(&self) -> Option<Failure> {
        if let Some(reason) = &self.stopped {
            return Some(Failure::unavailable(reason.clone()));
        }
        let is_whole = !self.is_quarantined() && !self.hold_output && !self.belonging.is_leaving;
        (!is_whole).then(|| Failure::unavailable("this replica is being healed: ask another one"))
    }

    /// Answers a page of a scan from what is held for it: what was confirmed once stays so.
    pub(crate) fn serve_held(&self, scan: Scan, responder: Responder) {
        reads::serve(&self.source, self.served_by, Confirmed::Yes, Read::Scan { scan, responder });
    }

    /// Answers a read from what is applied here, whoever leads.
    pub(crate) fn serve_unconfirmed(&self, operation: ShardOperation, responder: Responder) {
        let confirmed = Confirmed::No { applied_index: self.applied.0 };
        let read = match operation {
            ShardOperation::Get { key } => Read::Get { key, responder },
            ShardOperation::Scan(scan) => Read::Scan { scan, responder },
            ShardOperation::Write(write) => {
                let gets = gets_of(&write, responder);
                return reads::complete_batch(&self.source, self.served_by, confirmed, gets);
            }
            ShardOperation::Verify
            | ShardOperation::Order(_)
            | ShardOperation::MetaRead { .. }
            | ShardOperation::MetaChange(_) => unreachable!("only reads of keys are answered by any replica"),
        };
        reads::serve(&self.source, self.served_by, confirmed, read);
    }
}
