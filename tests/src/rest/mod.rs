//! A small HTTP/1.1 client over TLS for tests: it sends exactly what it is told, also what no library would.

#![allow(clippy::disallowed_methods, reason = "it speaks to real processes")]

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;

use crate::process::Cluster;

/// Longer than any request of a test takes.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// An answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// Its status.
    pub status: u16,
    /// Names in lower case, in order.
    pub headers: Vec<(String, String)>,
    /// The whole body.
    pub body: Vec<u8>,
}

impl Response {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// If it is none.
    #[track_caller]
    pub fn json(&self) -> Value {
        let text = String::from_utf8_lossy(&self.body);
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Fails the test unless the status is this one.
    ///
    /// # Panics
    /// If it is another.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{:?} {}", self.headers, String::from_utf8_lossy(&self.body));
        self
    }

    /// The version that `ETag` names.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn version(&self) -> u64 {
        let tag = self.header("etag").expect("an entity tag");
        tag.trim_matches('"').parse().expect("a version")
    }
}

/// Where to send requests, and as whom.
#[derive(Clone, Debug)]
pub struct Rest {
    port: u16,
    token: String,
    tls: Arc<rustls::ClientConfig>,
}

impl Rest {
    /// One node of a cluster, as its administrator.
    ///
    /// # Panics
    /// If the certificates are gone.
    pub fn of(cluster: &Cluster, node: u16) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        let authority = CertificateDer::from_pem_file(cluster.certificates().join("ca.crt"));
        roots.add(authority.expect("the demo has made ca.crt")).expect("it is a certificate");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("ring knows TLS 1.3");
        let mut tls = builder.with_root_certificates(roots).with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self { port: cluster.port(node), token: cluster.token().to_owned(), tls: Arc::new(tls) }
    }

    /// The same with another token; an empty one is not sent.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: token.to_owned(), ..self.clone() }
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// If the node does not take it.
    pub fn connect(&self) -> io::Result<Connection> {
        let socket = TcpStream::connect(("127.0.0.1", self.port))?;
        socket.set_read_timeout(Some(ANSWER_MAX))?;
        socket.set_write_timeout(Some(ANSWER_MAX))?;
        socket.set_nodelay(true)?;
        let name = ServerName::try_from("127.0.0.1").expect("an address is a name");
        let session = rustls::ClientConnection::new(self.tls.clone(), name).map_err(io::Error::other)?;
        let stream = BufReader::new(rustls::StreamOwned::new(session, socket));
        Ok(Connection { stream, token: self.token.clone() })
    }

    /// Sends one request on a connection of its own.
    ///
    /// # Panics
    /// If it is not answered.
    #[track_caller]
    pub fn call(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        let answered =
            self.connect().and_then(|mut connection| connection.call(method, target, headers, body));
        answered.unwrap_or_else(|error| panic!("{method} {target}: {error}"))
    }

    /// `GET`.
    ///
    /// # Panics
    /// If it is not answered.
    #[track_caller]
    pub fn get(&self, target: &str) -> Response {
        self.call("GET", target, &[], b"")
    }

    /// `PUT` of bytes.
    ///
    /// # Panics
    /// If it is not answered.
    #[track_caller]
    pub fn put(&self, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        self.call("PUT", target, headers, body)
    }
}

/// One connection; requests follow each other.
pub struct Connection {
    stream: BufReader<rustls::StreamOwned<rustls::ClientConnection, TcpStream>>,
    token: String,
}

impl Connection {
    /// Sends a request and reads its answer.
    ///
    /// # Errors
    /// If the connection ends before the answer does.
    pub fn call(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Response> {
        let mut head =
            format!("{method} {target} HTTP/1.1\r\nHost: krita\r\nContent-Length: {}\r\n", body.len());
        if !self.token.is_empty() {
            head.push_str(&format!("Authorization: Bearer {}\r\n", self.token));
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        let mut request = head.into_bytes();
        request.extend_from_slice(body);
        // The node may answer and close before it has read all: its answer counts then.
        let sent = self.send(&request);
        self.receive(method == "HEAD").map_err(|error| sent.err().unwrap_or(error))
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// If the connection has ended.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)?;
        self.stream.get_mut().flush()
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// If the connection ends before the answer does.
    pub fn receive(&mut self, head_alone: bool) -> io::Result<Response> {
        let status_line = self.line()?;
        let status = status_line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("no status: {status_line:?}")))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut response = Response { status, headers, body: Vec::new() };
        if head_alone || status == 304 {
            return Ok(response);
        }
        if response.header("transfer-encoding") == Some("chunked") {
            loop {
                let line = self.line()?;
                let length = usize::from_str_radix(&line, 16).map_err(io::Error::other)?;
                let mut chunk = vec![0; length];
                self.stream.read_exact(&mut chunk)?;
                self.line()?;
                if length == 0 {
                    return Ok(response);
                }
                response.body.extend_from_slice(&chunk);
            }
        }
        let length = response.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        response.body = vec![0; length];
        self.stream.read_exact(&mut response.body)?;
        Ok(response)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }
}
