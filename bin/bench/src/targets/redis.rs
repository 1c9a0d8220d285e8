//! redis, by RESP. One node; requests of one connection are pipelined by the client library.

use std::future::Future;
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncConnectionConfig, Client, RedisError, Script, ToRedisArgs, Value, cmd, pipe};
use bytes::Bytes;

use super::{CONNECT_TIMEOUT, REQUEST_TIMEOUT, Reach};
use crate::Failure;
use crate::target::{Answer, Found, Problem, Request, Target};

/// Redis has no compare-and-swap of its own: what its users do is a script, which runs alone.
const SWAP: &str = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('SET', KEYS[1], ARGV[2]) return 1 end \
                    return 0";

/// One thread's connections to redis.
pub struct Redis {
    connections: Vec<MultiplexedConnection>,
    swap: Script,
}

impl Redis {
    /// Connects. Plain text only.
    ///
    /// # Errors
    /// The server cannot be reached.
    pub async fn connect(reach: &Reach, connections: u32, thread: usize) -> Result<Self, Failure> {
        let mut opened = Vec::new();
        for number in 0..connections as usize {
            let address = reach.node(thread + number);
            let failed =
                |error: RedisError| Failure::new(format!("cannot connect to redis at {address}: {error}"));
            let client = Client::open(format!("redis://{address}/")).map_err(failed)?;
            let config = AsyncConnectionConfig::new()
                .set_connection_timeout(Some(CONNECT_TIMEOUT))
                .set_response_timeout(Some(REQUEST_TIMEOUT));
            opened.push(client.get_multiplexed_async_connection_with_config(&config).await.map_err(failed)?);
        }
        Ok(Self { connections: opened, swap: Script::new(SWAP) })
    }
}

fn problem(error: RedisError) -> Problem {
    let name = error.code().map_or_else(|| format!("{:?}", error.kind()), str::to_owned);
    Problem { name, is_unknown: error.is_timeout() || error.is_io_error() || error.is_connection_dropped() }
}

/// Bytes as an argument of a command.
fn argument(bytes: &Bytes) -> impl ToRedisArgs + '_ {
    &bytes[..]
}

fn bulk(value: Value) -> Result<Option<Bytes>, Problem> {
    match value {
        Value::Nil => Ok(None),
        Value::BulkString(bytes) => Ok(Some(bytes.into())),
        _ => Err(Problem::odd()),
    }
}

impl Target for Redis {
    async fn perform(&self, worker: u32, request: Request) -> Result<Answer, Problem> {
        let mut connection = self.connections[worker as usize % self.connections.len()].clone();
        let connection = &mut connection;
        match request {
            Request::Put { key, value } => {
                let set = cmd("SET").arg(argument(&key)).arg(argument(&value)).query_async(connection).await;
                set.map(|(): ()| Answer::Done).map_err(problem)
            }
            Request::Get { key } => {
                let found = cmd("GET").arg(argument(&key)).query_async(connection).await.map_err(problem)?;
                Ok(Answer::Value(bulk(found)?.map(|value| Found { value, version: 0 })))
            }
            Request::Scan { .. } => Err(Problem::refused("NO_ORDERED_SCAN")),
            Request::PutMany(pairs) => {
                let mut set = cmd("MSET");
                for (key, value) in &pairs {
                    set.arg(argument(key)).arg(argument(value));
                }
                set.query_async(connection).await.map(|(): ()| Answer::Done).map_err(problem)
            }
            Request::GetMany(keys) => {
                let mut gets = pipe();
                for key in &keys {
                    gets.cmd("GET").arg(argument(key));
                }
                let values: Vec<Value> = gets.query_async(connection).await.map_err(problem)?;
                Ok(Answer::Values(values.into_iter().map(bulk).collect::<Result<_, _>>()?))
            }
            Request::Swap { key, found, value } => {
                let before = found.map(|found| found.value).unwrap_or_default();
                let mut call = self.swap.key(argument(&key));
                call.arg(argument(&before)).arg(argument(&value));
                let swapped: i64 = call.invoke_async(connection).await.map_err(problem)?;
                Ok(if swapped == 1 { Answer::Done } else { Answer::NotSwapped })
            }
        }
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        tokio::task::spawn_local(task);
    }
}
