//! Krita by REST over HTTP/1.1. A connection carries one request at a time, so each worker has one of its own,
//! whatever number of connections was asked for.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use krita_proto::routing::CORE_DOMAIN;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{CONNECT_TIMEOUT, Reach, within};
use crate::Failure;
use crate::target::{Answer, Found, Problem, Request, Target};

type Sender = SendRequest<Full<Bytes>>;

/// One thread's connections, spread over the nodes, which forward what they do not lead.
pub struct KritaRest {
    reach: Reach,
    thread: usize,
    tls: Option<Arc<ClientConfig>>,
    /// By worker; empty while its request is under way, or after it broke.
    senders: RefCell<Vec<Option<Sender>>>,
}

impl KritaRest {
    /// Connects each worker.
    ///
    /// # Errors
    /// A node cannot be reached.
    pub async fn connect(reach: Reach, workers: u32, thread: usize) -> Result<Self, Failure> {
        let tls = match &reach.ca_pem {
            None => None,
            Some(ca_pem) => {
                let tls = krita_net::tls::client_config(ca_pem);
                let mut tls = (*tls.map_err(|error| Failure::new(error.to_string()))?).clone();
                tls.alpn_protocols = vec![b"http/1.1".to_vec()];
                Some(Arc::new(tls))
            }
        };
        let rest = Self { reach, thread, tls, senders: RefCell::default() };
        for worker in 0..workers {
            let sender = rest.open(worker).await.map_err(|reason| {
                let address = rest.reach.node(thread + worker as usize);
                Failure::new(format!("cannot connect to {address} by HTTP: {reason}"))
            })?;
            rest.senders.borrow_mut().push(Some(sender));
        }
        Ok(rest)
    }

    async fn open(&self, worker: u32) -> Result<Sender, String> {
        let address = self.reach.node(self.thread + worker as usize).to_owned();
        let connecting = async {
            let tcp = TcpStream::connect(&address).await.map_err(|error| error.to_string())?;
            tcp.set_nodelay(true).map_err(|error| error.to_string())?;
            match &self.tls {
                None => start(tcp).await,
                Some(tls) => {
                    let name = ServerName::try_from(format!("any.{CORE_DOMAIN}"));
                    let name = name.expect("a fixed domain is a name");
                    let connected = TlsConnector::from(tls.clone()).connect(name, tcp).await;
                    start(connected.map_err(|error| error.to_string())?).await
                }
            }
        };
        tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.unwrap_or(Err("no answer in time".to_owned()))
    }

    /// Sends one request over the worker's connection; status, version and body of the answer.
    async fn send(
        &self,
        worker: u32,
        request: http::request::Builder,
        body: Bytes,
    ) -> Result<(u16, u64, Bytes), Problem> {
        let taken = self.senders.borrow_mut().get_mut(worker as usize).and_then(Option::take);
        let mut sender = match taken.filter(|sender| !sender.is_closed()) {
            Some(sender) => sender,
            None => self.open(worker).await.map_err(|_| Problem::refused("NOT_CONNECTED"))?,
        };
        let mut request = request.header("host", self.reach.node(self.thread + worker as usize));
        if !self.reach.token.is_empty() {
            request = request.header("authorization", format!("Bearer {}", self.reach.token));
        }
        let request = request.body(Full::new(body)).map_err(|_| Problem::refused("NO_REQUEST"))?;
        sender.ready().await.map_err(|_| Problem::refused("NOT_CONNECTED"))?;
        let lost = |_| Problem::unknown("CONNECTION_LOST");
        let answer = sender.send_request(request).await.map_err(lost)?;
        let status = answer.status().as_u16();
        let etag = answer.headers().get("etag").and_then(|tag| tag.to_str().ok());
        let version = etag.and_then(|tag| tag.trim_matches('"').parse().ok()).unwrap_or(0);
        let body = answer.into_body().collect().await.map_err(lost)?.to_bytes();
        let mut senders = self.senders.borrow_mut();
        let place = worker as usize;
        if senders.len() <= place {
            senders.resize_with(place + 1, || None);
        }
        senders[place] = Some(sender);
        Ok((status, version, body))
    }

    async fn json(
        &self,
        worker: u32,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> Result<Value, Problem> {
        let request = http::Request::builder().method(method).uri(path);
        let request = request.header("accept", "application/json");
        let request = match body {
            Some(_) => request.header("content-type", "application/json"),
            None => request,
        };
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        match self.send(worker, request, body).await? {
            (200, _, body) => serde_json::from_slice(&body).map_err(|_| Problem::odd()),
            (status, _, _) => Err(problem(status)),
        }
    }

    async fn perform_unbounded(&self, worker: u32, request: Request) -> Result<Answer, Problem> {
        match request {
            Request::Put { key, value } => {
                let put = http::Request::builder().method("PUT").uri(path(&key));
                match self.send(worker, put, value).await? {
                    (200..=299, ..) => Ok(Answer::Done),
                    (status, ..) => Err(problem(status)),
                }
            }
            Request::Swap { key, found, value } => {
                let put = http::Request::builder().method("PUT").uri(path(&key));
                let put = match found {
                    Some(found) => put.header("if-match", format!("\"{}\"", found.version)),
                    None => put.header("if-none-match", "*"),
                };
                match self.send(worker, put, value).await? {
                    (200..=299, ..) => Ok(Answer::Done),
                    (412, ..) => Ok(Answer::NotSwapped),
                    (status, ..) => Err(problem(status)),
                }
            }
            Request::Get { key } => {
                let get = http::Request::builder().method("GET").uri(path(&key));
                match self.send(worker, get, Bytes::new()).await? {
                    (200, version, value) => Ok(Answer::Value(Some(Found { value, version }))),
                    (404, ..) => Ok(Answer::Value(None)),
                    (status, ..) => Err(problem(status)),
                }
            }
            Request::Scan { start, items } => {
                let start = URL_SAFE_NO_PAD.encode(&start);
                let path = format!("/v1/scan?key_encoding=base64url&start={start}&limit={items}");
                let page = self.json(worker, "GET", &path, None).await?;
                let items = page.get("items").and_then(Value::as_array).ok_or_else(Problem::odd)?;
                let pair =
                    |item: &Value| Some((bytes(item.get("key_base64"))?, bytes(item.get("value_base64"))?));
                let pairs: Option<Vec<_>> = items.iter().map(pair).collect();
                pairs.map(Answer::Items).ok_or_else(Problem::odd)
            }
            Request::PutMany(pairs) => {
                let put = |(key, value): &(Bytes, Bytes)| {
                    let (key, value) = (STANDARD.encode(key), STANDARD.encode(value));
                    json!({ "put": { "key_base64": key, "value_base64": value } })
                };
                let operations: Vec<Value> = pairs.iter().map(put).collect();
                let body = json!({ "operations": operations });
                self.json(worker, "POST", "/v1/batch", Some(body)).await.map(|_| Answer::Done)
            }
            Request::GetMany(keys) => {
                let get = |key: &Bytes| json!({ "get": { "key_base64": STANDARD.encode(key) } });
                let body = json!({ "operations": keys.iter().map(get).collect::<Vec<Value>>() });
                let answer = self.json(worker, "POST", "/v1/batch", Some(body)).await?;
                let results = answer.get("results").and_then(Value::as_array).ok_or_else(Problem::odd)?;
                Ok(Answer::Values(results.iter().map(|result| bytes(result.get("value_base64"))).collect()))
            }
        }
    }
}

/// Speaks HTTP/1.1 over a stream, in a task of its own.
async fn start<S: AsyncRead + AsyncWrite + Unpin + 'static>(stream: S) -> Result<Sender, String> {
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    tokio::task::spawn_local(async move {
        // Whoever has a request on it hears of its end.
        let _ended = connection.await;
    });
    Ok(sender)
}

/// The path of a key: its letters and digits as they are, all else in percent.
fn path(key: &[u8]) -> String {
    let mut path = "/v1/kv/".to_owned();
    for byte in key {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => path.push(char::from(*byte)),
            other => {
                // Writing to a string does not fail.
                let _infallible = write!(path, "%{other:02X}");
            }
        }
    }
    path
}

fn bytes(value: Option<&Value>) -> Option<Bytes> {
    STANDARD.decode(value?.as_str()?).ok().map(Bytes::from)
}

fn problem(status: u16) -> Problem {
    // 520 is UNKNOWN_OUTCOME, 500 INTERNAL, 207 a batch that was done in part.
    Problem { name: format!("HTTP_{status}"), is_unknown: matches!(status, 520 | 500 | 207) }
}

impl Target for KritaRest {
    async fn perform(&self, worker: u32, request: Request) -> Result<Answer, Problem> {
        within(self.perform_unbounded(worker, request)).await
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        tokio::task::spawn_local(task);
    }
}
