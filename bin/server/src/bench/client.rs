//! One client of the load: a connection, one request in flight, and keys of its own.

use std::cell::RefCell;
use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use krita_net::{ConnectOptions, Connection};
use krita_proto::frame::{Flags, Frame, FrameKind};
use krita_proto::routing::shard_of;
use krita_proto::v1;
use krita_runtime::glommio::GlommioRuntime;
use krita_runtime::{Clock, Instant, Rng};
use kritaclient::ErrorCode;
use kritaclient::core::Moment;
use kritaclient::core::session::Sessions;

use super::arguments::Workload;
use super::values;
use crate::Failure;

/// How long the server may take for one request, in milliseconds.
const REQUEST_TIMEOUT_MS: u32 = 5_000;

/// Keys that each client reads back after a run that wrote.
const READ_BACK: usize = 50;

/// Slowest time that is told apart, in microseconds.
const SLOWEST_US: u64 = 60_000_000;

/// When what is done counts.
#[derive(Clone, Copy)]
pub(super) struct Window {
    pub(super) from: Instant,
    pub(super) until: Instant,
}

/// What happened within the window.
pub(super) struct Tally {
    /// Times of operations that went well, in microseconds.
    pub(super) times: Histogram<u64>,
    /// Other ends, by name.
    pub(super) errors: BTreeMap<&'static str, u64>,
    /// Reads that returned another value than was written, in or out of the window.
    pub(super) wrong: u64,
    /// Values that were read and checked, in or out of the window.
    pub(super) checked: u64,
}

impl Default for Tally {
    fn default() -> Self {
        let times = Histogram::new_with_bounds(1, SLOWEST_US, 3).expect("the bounds are in order");
        Self { times, errors: BTreeMap::new(), wrong: 0, checked: 0 }
    }
}

/// Keys of one client, with their shards and what is known of their values.
pub(super) struct Keys {
    keys: Vec<OwnKey>,
}

struct OwnKey {
    number: u32,
    shard: u32,
    /// The writing that a read must find; `None`: any.
    writing: Option<u64>,
}

impl Keys {
    pub(super) fn new(numbers: Vec<u32>, shard_count: u32) -> Self {
        let own =
            |number| OwnKey { number, shard: shard_of(&values::key(number), shard_count), writing: None };
        Self { keys: numbers.into_iter().map(own).collect() }
    }
}

/// What a client is to do.
pub(super) struct ClientInput {
    pub(super) connect: ConnectOptions,
    pub(super) cluster_name: String,
    pub(super) token: String,
    pub(super) keys: Keys,
    pub(super) workload: Workload,
    pub(super) value_bytes: u32,
    /// Where this client's time begins.
    pub(super) started: Instant,
}

/// A client that is connected.
pub(super) struct BenchClient {
    input: ClientInput,
    connection: Connection<GlommioRuntime>,
    sessions: Sessions,
    correlation: u64,
    writings: u64,
}

/// Connects a client.
pub(super) async fn connect(runtime: &GlommioRuntime, input: ClientInput) -> Result<BenchClient, Failure> {
    if input.keys.keys.is_empty() {
        return Err(Failure::new("there are fewer keys than clients: give more --keys"));
    }
    let hello = v1::Hello {
        cluster_name: input.cluster_name.clone(),
        token: input.token.clone(),
        client: concat!("krita-bench ", env!("CARGO_PKG_VERSION")).to_owned(),
        ..v1::Hello::default()
    };
    let (connection, reply) = krita_net::connect(runtime, &input.connect, hello)
        .await
        .map_err(|error| Failure::new(format!("cannot connect to {}: {error}", input.connect.address)))?;
    let mut sessions = Sessions::default();
    sessions.learn_log_time(reply.log_time_ms, moment(runtime, input.started));
    let writings = runtime.random_u64();
    Ok(BenchClient { input, connection, sessions, correlation: 1, writings })
}

fn moment(runtime: &GlommioRuntime, started: Instant) -> Moment {
    Moment(u64::try_from(runtime.now().since(started).as_millis()).unwrap_or(u64::MAX))
}

/// How one request ended.
enum End {
    Good,
    Error(ErrorCode),
    Wrong,
}

impl BenchClient {
    /// Works until the window ends, then reads some of its keys back.
    pub(super) async fn run(
        mut self,
        runtime: &GlommioRuntime,
        window: Window,
        tally: &RefCell<Tally>,
    ) -> Result<(), Failure> {
        let count = self.input.keys.keys.len() as u64;
        loop {
            let begun = runtime.now();
            if begun >= window.until {
                break;
            }
            let random = runtime.random_u64();
            let position = usize::try_from((random >> 1) % count).unwrap_or(0);
            let writes = match self.input.workload {
                Workload::Put => true,
                Workload::Get => false,
                Workload::Mixed => random & 1 == 0,
            };
            let end =
                if writes { self.put(runtime, position).await? } else { self.get(position, tally).await? };
            let ended = runtime.now();
            let counts = begun >= window.from && ended <= window.until;
            count_end(&mut tally.borrow_mut(), &end, counts, ended.since(begun));
        }
        if self.input.workload != Workload::Get {
            for position in 0..self.input.keys.keys.len().min(READ_BACK) {
                let end = self.get(position, tally).await?;
                count_end(&mut tally.borrow_mut(), &end, false, std::time::Duration::ZERO);
            }
        }
        Ok(())
    }

    async fn put(&mut self, runtime: &GlommioRuntime, position: usize) -> Result<End, Failure> {
        self.writings = self.writings.wrapping_add(1).max(1);
        let writing = self.writings;
        let now = moment(runtime, self.input.started);
        let key = &mut self.input.keys.keys[position];
        // Until it is answered, either value may be there.
        key.writing = None;
        let (number, shard) = (key.number, key.shard);
        let ticket = self
            .sessions
            .begin(shard, now, runtime.random_u64())
            .ok_or_else(|| Failure::new("a session is full although one request is in flight"))?;
        let put = v1::Put {
            key: values::key(number),
            value: values::value(number, writing, self.input.value_bytes),
            condition: None,
            request_id: Some(self.sessions.request_id(&ticket)),
            timeout_ms: REQUEST_TIMEOUT_MS,
        };
        self.correlation += 1;
        self.connection.sender().send(Flags::NONE, self.correlation, &put).map_err(lost)?;
        let frame = self.answer().await?;
        let end = if frame.kind == FrameKind::Error {
            let error: v1::Error = frame.decode().map_err(lost)?;
            if error.log_time_ms != 0 {
                self.sessions.refused(&ticket, error.log_time_ms, now);
            }
            End::Error(ErrorCode::from_number(error.code))
        } else {
            frame.decode::<v1::WriteReply>().map_err(lost)?;
            self.sessions.succeeded(&ticket);
            self.input.keys.keys[position].writing = Some(writing);
            End::Good
        };
        self.sessions.end(&ticket);
        Ok(end)
    }

    async fn get(&mut self, position: usize, tally: &RefCell<Tally>) -> Result<End, Failure> {
        let key = &self.input.keys.keys[position];
        let (number, expected) = (key.number, key.writing);
        let get = v1::Get { key: values::key(number), timeout_ms: REQUEST_TIMEOUT_MS };
        self.correlation += 1;
        self.connection.sender().send(Flags::NONE, self.correlation, &get).map_err(lost)?;
        let frame = self.answer().await?;
        if frame.kind == FrameKind::Error {
            let error: v1::Error = frame.decode().map_err(lost)?;
            return Ok(End::Error(ErrorCode::from_number(error.code)));
        }
        let reply: v1::GetReply = frame.decode().map_err(lost)?;
        tally.borrow_mut().checked += 1;
        let found =
            if reply.found { values::writing_of(number, &reply.value, self.input.value_bytes) } else { None };
        let is_right = found.is_some() && (expected.is_none() || found == expected);
        self.input.keys.keys[position].writing = found;
        Ok(if is_right { End::Good } else { End::Wrong })
    }

    async fn answer(&mut self) -> Result<Frame, Failure> {
        let frame = self.connection.receive().await.map_err(lost)?;
        if frame.correlation != self.correlation {
            return Err(Failure::new("the server answered what was not asked"));
        }
        Ok(frame)
    }
}

fn lost(error: impl std::fmt::Display) -> Failure {
    Failure::new(format!("a connection was lost: {error}"))
}

fn count_end(tally: &mut Tally, end: &End, counts: bool, took: std::time::Duration) {
    match end {
        End::Good if counts => {
            let microseconds = u64::try_from(took.as_micros()).unwrap_or(SLOWEST_US);
            tally.times.saturating_record(microseconds.max(1));
        }
        End::Good => {}
        End::Error(code) if counts => *tally.errors.entry(code.name()).or_default() += 1,
        End::Error(_) => {}
        End::Wrong => tally.wrong += 1,
    }
}
