//! The connections of one client: one per node and core, made when first needed, shared by all calls.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::transport::{Connector, Link};

type Place = (String, Option<u16>);

#[derive(Default)]
struct Slot {
    link: Option<Arc<Link>>,
    /// When connecting last failed, and why: whoever waited for that attempt shares its result.
    failure: Option<(Instant, Error)>,
}

/// All connections of a client.
pub(crate) struct Pool {
    connector: Connector,
    /// Bounded by the members of the cluster times their cores: see `retain`.
    slots: Mutex<BTreeMap<Place, Arc<tokio::sync::Mutex<Slot>>>>,
}

impl Pool {
    pub(crate) fn new(connector: Connector) -> Self {
        Self { connector, slots: Mutex::default() }
    }

    /// The connection to a core of a node, made if there is none. Many callers share one attempt to make it.
    pub(crate) async fn link(&self, address: &str, core: Option<u16>) -> Result<Arc<Link>> {
        let slot = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            slots.entry((address.to_owned(), core)).or_default().clone()
        };
        let began = Instant::now();
        let mut slot = slot.lock().await;
        if let Some(link) = slot.link.as_ref().filter(|link| link.is_open()) {
            return Ok(link.clone());
        }
        if let Some((_, error)) = slot.failure.as_ref().filter(|(at, _)| *at >= began) {
            return Err(error.clone());
        }
        match self.connector.connect(address, core).await {
            Ok(link) => {
                let link = Arc::new(link);
                *slot = Slot { link: Some(link.clone()), failure: None };
                Ok(link)
            }
            Err(error) => {
                *slot = Slot { link: None, failure: Some((Instant::now(), error.clone())) };
                Err(error)
            }
        }
    }

    /// Whether there is a connection to the node that is not meant for one of its cores.
    pub(crate) fn is_open(&self, address: &str) -> bool {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = slots.get(&(address.to_owned(), None)).cloned();
        drop(slots);
        // Whoever holds the slot is just connecting.
        slot.is_some_and(|slot| {
            let slot = slot.try_lock();
            slot.is_ok_and(|slot| slot.link.as_ref().is_some_and(|link| link.is_open()))
        })
    }

    /// Forgets the connections to nodes that are not wanted any more. Calls in flight on them go on.
    pub(crate) fn retain(&self, is_wanted: impl Fn(&str) -> bool) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|(address, _), _| is_wanted(address));
    }
}
