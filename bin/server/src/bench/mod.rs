//! `krita-bench`: a closed loop of clients over the native protocol, and what it cost the servers.
//!
//! Each client has one connection, to a core that leads shards, and one request in flight; its keys are its own, so
//! that every value it reads must be the one that it wrote last. All clients run on one core of this process, on the
//! same runtime as the servers: it is seldom the limit, and the last column tells what the servers spent.

mod arguments;
mod client;
mod cpu;
mod report;
mod values;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use futures_channel::oneshot;
use krita_net::{ConnectOptions, ConnectionOptions, TlsConfig};
use krita_runtime::glommio::{GlommioRuntime, NodeOptions, block_on, preflight};
use krita_runtime::{Clock, Spawn, TaskClass};
use kritaclient::Options;
use kritaclient::blocking::Client;
use kritaclient::core::Moment;
use kritaclient::core::topology::{Target, Topology};

pub use arguments::BenchArguments;
use arguments::{Output, Workload};
use client::{ClientInput, Keys, Tally};
use cpu::ProcessorTime;
use report::Row;

use crate::Failure;

/// How long clients run before anything counts.
const WARM_UP: Duration = Duration::from_secs(1);

/// How long connecting may take: with many clients the handshakes queue up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// Keys that are loaded at once.
const LOAD_BATCH: usize = 20_000;

/// Measures and prints.
///
/// # Errors
/// The cluster cannot be reached, or answered a read with another value than was written.
pub fn run(arguments: &BenchArguments) -> Result<(), Failure> {
    let options = NodeOptions::default();
    preflight(&options).map_err(|error| Failure::new(error.to_string()))?;
    let cluster = Cluster::find(arguments)?;
    cluster.load(arguments)?;
    let pids = arguments.server_pids()?;
    let mut rows = Vec::new();
    for clients in &arguments.clients {
        let targets = cluster.leaders()?;
        let phase = Phase { arguments, cluster: &cluster, targets, clients: *clients, pids: &pids };
        let row = block_on(options.clone(), async |runtime| phase.measure(runtime).await)
            .map_err(|error| Failure::new(error.to_string()))??;
        if arguments.output == Output::Text {
            report::text(&row, rows.is_empty(), arguments);
        }
        rows.push(row);
    }
    if arguments.output == Output::Json {
        report::json(&rows, arguments);
    }
    match rows.iter().map(|row| row.tally.wrong).sum::<u64>() {
        0 => Ok(()),
        wrong => Err(Failure::new(format!("{wrong} reads returned another value than was written last"))),
    }
}

/// The cluster to measure, and how to reach it.
struct Cluster {
    client: Client,
    tls: Option<TlsConfig>,
    token: String,
}

/// A core that leads shards, and the keys of those shards.
struct Leader {
    target: Target,
    keys: Vec<u32>,
}

impl Cluster {
    fn find(arguments: &BenchArguments) -> Result<Self, Failure> {
        let said = |error: kritaclient::Error| Failure::new(format!("{error}\n{}", error.advice()));
        let token = arguments.token()?;
        let address = format!("{}:{}", arguments.host, arguments.port);
        let options = Options::new(&arguments.cluster_name, [address]).token(&token);
        let (options, tls) = match arguments.certificates()? {
            None => (options.insecure(), None),
            Some(folder) => {
                let tls = arguments.tls(&folder)?;
                (options.certificates(&folder).map_err(said)?, Some(tls))
            }
        };
        Ok(Self { client: Client::connect(options).map_err(said)?, tls, token })
    }

    /// Puts every key once, so that reads find something and writes replace something.
    fn load(&self, arguments: &BenchArguments) -> Result<(), Failure> {
        let keys: Vec<u32> = (0..arguments.keys).collect();
        for chunk in keys.chunks(LOAD_BATCH) {
            let pairs = chunk
                .iter()
                .map(|key| (values::key(*key), values::value(*key, values::LOADED, arguments.value_bytes)));
            for result in self.client.put_many(pairs.collect()) {
                result.map_err(|error| Failure::new(format!("cannot load the keys: {error}")))?;
            }
        }
        Ok(())
    }

    /// Which core of which node leads which keys now.
    fn leaders(&self) -> Result<BTreeMap<u32, Target>, Failure> {
        let failed = |error: String| Failure::new(format!("cannot learn the shard map: {error}"));
        let status = self.client.cluster_status().map_err(|error| failed(error.to_string()))?;
        let topology = Topology::new(&status).map_err(|error| failed(error.to_string()))?;
        let shards = 1..=topology.shard_count();
        let found = shards.filter_map(|shard| Some((shard, topology.target(shard, None, 0, Moment(0))?)));
        Ok(found.collect())
    }
}

/// One number of clients.
struct Phase<'a> {
    arguments: &'a BenchArguments,
    cluster: &'a Cluster,
    targets: BTreeMap<u32, Target>,
    clients: u32,
    pids: &'a [u32],
}

impl Phase<'_> {
    /// Keys by the core that leads them.
    fn by_leader(&self) -> Vec<Leader> {
        let shard_count = u32::try_from(self.targets.len()).unwrap_or(u32::MAX);
        let mut leaders: BTreeMap<&Target, Vec<u32>> = BTreeMap::new();
        for key in 0..self.arguments.keys {
            let shard = krita_proto::routing::shard_of(&values::key(key), shard_count);
            if let Some(target) = self.targets.get(&shard) {
                leaders.entry(target).or_default().push(key);
            }
        }
        leaders.into_iter().map(|(target, keys)| Leader { target: target.clone(), keys }).collect()
    }

    /// What each client gets: a core, and its share of the keys that the core leads.
    fn shares(&self, runtime: &GlommioRuntime) -> Vec<ClientInput> {
        let leaders = self.by_leader();
        let shard_count = u32::try_from(self.targets.len()).unwrap_or(u32::MAX);
        let count = leaders.len();
        let clients = self.clients as usize;
        let share = |number: usize| {
            let leader = &leaders[number % count];
            let (position, of) = (number / count, clients.div_ceil(count));
            let keys: Vec<u32> = leader.keys.iter().skip(position).step_by(of).copied().collect();
            ClientInput {
                connect: ConnectOptions {
                    address: leader.target.address.clone(),
                    core: leader.target.core,
                    tls: self.cluster.tls.clone(),
                    timeout: CONNECT_TIMEOUT,
                    connection: ConnectionOptions::default(),
                },
                cluster_name: self.arguments.cluster_name.clone(),
                token: self.cluster.token.clone(),
                keys: Keys::new(keys, shard_count),
                workload: self.arguments.workload,
                value_bytes: self.arguments.value_bytes,
                started: runtime.now(),
            }
        };
        (0..clients).map(share).collect()
    }

    async fn measure(&self, runtime: GlommioRuntime) -> Result<Row, Failure> {
        let shares = self.shares(&runtime);
        let mut connected = Vec::new();
        for share in shares {
            connected.push(client::connect(&runtime, share).await?);
        }
        let window = client::Window {
            from: runtime.now() + WARM_UP,
            until: runtime.now() + WARM_UP + Duration::from_secs(u64::from(self.arguments.seconds)),
        };
        let tally = Rc::new(RefCell::new(Tally::default()));
        let mut ends = Vec::new();
        for client in connected {
            let (ended, end) = oneshot::channel();
            let (tally, runtime_of_client) = (tally.clone(), runtime.clone());
            runtime.spawn(TaskClass::Foreground, "bench-client", async move {
                let result = client.run(&runtime_of_client, window, &tally).await;
                // The receiver waits for all clients.
                let _waiting = ended.send(result);
            });
            ends.push(end);
        }
        runtime.sleep(window.from.since(runtime.now())).await;
        let before = ProcessorTime::of(self.pids);
        runtime.sleep(window.until.since(runtime.now())).await;
        let after = ProcessorTime::of(self.pids);
        for end in ends {
            end.await.map_err(|_| Failure::new("a client ended without a result"))??;
        }
        let seconds = f64::from(self.arguments.seconds);
        let tally = Rc::try_unwrap(tally).map_err(|_| Failure::new("a client still runs"))?.into_inner();
        Ok(Row { clients: self.clients, seconds, tally, server_time: before.zip(after).map(|(a, b)| b - a) })
    }
}

impl Workload {
    /// Its name, as typed.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Mixed => "mixed",
        }
    }
}
