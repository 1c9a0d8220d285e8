//! What all databases under test have in common: the requests of the load, their answers, and the executor that the
//! driver runs on. The loop in `worker` is written once, over [`Target`].

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;

/// What a read found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// The value.
    pub value: Bytes,
    /// Its version, where the database has versions; a swap needs it.
    pub version: u64,
}

/// One request of the load.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// Replaces a value.
    Put {
        /// Of this key.
        key: Bytes,
        /// By this.
        value: Bytes,
    },
    /// Reads a value, as fresh as the database's strictest reads are.
    Get {
        /// Of this key.
        key: Bytes,
    },
    /// Reads keys in order, with their values.
    Scan {
        /// From this key on.
        start: Bytes,
        /// So many.
        items: u32,
    },
    /// Replaces the values of different keys in one round trip.
    PutMany(Vec<(Bytes, Bytes)>),
    /// Reads different keys in one round trip.
    GetMany(Vec<Bytes>),
    /// Replaces a value if it is still the one that was found.
    Swap {
        /// Of this key.
        key: Bytes,
        /// What a read found; `None`: if there is none.
        found: Option<Found>,
        /// What shall be there.
        value: Bytes,
    },
}

/// A good answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// To a put, to many, or to a swap that happened.
    Done,
    /// To a swap: the value is another by now.
    NotSwapped,
    /// To a get.
    Value(Option<Found>),
    /// To a scan: keys and values in order.
    Items(Vec<(Bytes, Bytes)>),
    /// To many gets, in their order.
    Values(Vec<Option<Bytes>>),
}

/// A request that did not end well.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// A short name, under which such ends are counted.
    pub name: String,
    /// A write may have happened, or may yet.
    pub is_unknown: bool,
}

impl Problem {
    /// Nothing happened.
    pub fn refused(name: impl Into<String>) -> Self {
        Self { name: name.into(), is_unknown: false }
    }

    /// Nobody knows what happened.
    pub fn unknown(name: impl Into<String>) -> Self {
        Self { name: name.into(), is_unknown: true }
    }

    /// The database answered what was not asked: a bug of this program, or of the database.
    pub fn odd() -> Self {
        Self::unknown("UNEXPECTED_ANSWER")
    }
}

/// The connections of one thread to the database, and the executor they live on.
pub trait Target: 'static {
    /// Does one request. `worker` numbers the callers of this thread from 0; each has one request at a time, and a
    /// driver may give it a connection of its own.
    fn perform(&self, worker: u32, request: Request) -> impl Future<Output = Result<Answer, Problem>>;

    /// A pause on this executor.
    fn sleep(&self, duration: Duration) -> impl Future<Output = ()>;

    /// Starts a task on this thread.
    fn spawn(&self, task: impl Future<Output = ()> + 'static);
}
