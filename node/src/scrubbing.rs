//! Scrubbing: everything that is stored is read again and again, slowly, so that damage is found while other replicas
//! can still mend it.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use krita_engine::Store;
use krita_proto::v1;
use krita_runtime::{CoreId, Mesh, Notify, Runtime, timeout};

use crate::core::Core;
use crate::mesh::NodeRequest;

/// The least time from the end of one pass to the next, unless somebody asks for one.
const PAUSE: Duration = Duration::from_secs(60 * 60);

/// Bytes per second where scrubbing is otherwise turned off.
const SPEED_ON_DEMAND: u64 = 8 << 20;

/// The first pass does not begin before the node has come to rest.
const FIRST_PAUSE: Duration = Duration::from_secs(60);

impl<R: Runtime> Core<R> {
    /// Scrubs one log, pass after pass.
    pub(crate) async fn scrub_log(self: Rc<Self>, store: Store<R>, position: usize) {
        let config = &self.input.config;
        let logs = self.serving.borrow().as_ref().map_or(1, |serving| serving.cluster.logs_total.max(1));
        let bytes_per_second = config.scrub_bytes_per_second / u64::from(logs);
        let mut pause = FIRST_PAUSE;
        while !self.is_ending() {
            let wanted = self.scrub_wanted(position);
            // Turned off, it is done only when somebody asks.
            match bytes_per_second {
                0 => wanted.notified().await,
                _ => drop(timeout(&self.runtime, pause, wanted.notified()).await),
            }
            pause = PAUSE;
            if self.is_ending() {
                return;
            }
            self.set_scrubbing(position, true);
            let pace = if bytes_per_second == 0 { SPEED_ON_DEMAND } else { bytes_per_second };
            let damages = store.scrub(pace).await;
            self.set_scrubbing(position, false);
            match damages.len() {
                0 => tracing::info!(log = position, "scrubbed: all is well"),
                damages => tracing::error!(log = position, damages, "scrubbing found damage"),
            }
        }
    }

    /// Begins a pass on this core's logs now.
    pub(crate) fn begin_scrub(&self) -> v1::ScrubReply {
        let guard = self.serving.borrow();
        let logs = guard.as_ref().map(|serving| serving.logs.iter()).into_iter().flatten();
        logs.for_each(|log| log.scrub.wanted.notify());
        v1::ScrubReply {}
    }

    /// Begins a pass on all cores of this node.
    pub(crate) async fn begin_scrub_everywhere(self: &Rc<Self>) -> v1::ScrubReply {
        for core in (0..self.mesh.cores()).map(CoreId) {
            let begun: Option<v1::ScrubReply> = self.ask_core(core, NodeRequest::CoreScrub).await;
            if begun.is_none() {
                tracing::warn!(%core, "a core does not answer: it is not scrubbed");
            }
        }
        v1::ScrubReply {}
    }

    fn scrub_wanted(&self, position: usize) -> Notify {
        let guard = self.serving.borrow();
        let serving = guard.as_ref().expect("logs are scrubbed once they are open");
        serving.logs[position].scrub.wanted.clone()
    }

    fn set_scrubbing(&self, position: usize, is_running: bool) {
        if let Some(serving) = self.serving.borrow().as_ref() {
            serving.logs[position].scrub.is_running.set(is_running);
        }
    }
}

/// One log's scrubbing.
#[derive(Default)]
pub(crate) struct Scrub {
    pub(crate) wanted: Notify,
    pub(crate) is_running: Cell<bool>,
}
