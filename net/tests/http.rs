//! HTTP connections within their bounds, in virtual time: what is served, and what ends a connection that takes more
//! than its share. Floods are written byte by byte here, since well-behaved clients do not make them.

mod support;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::io::{AsyncReadExt, AsyncWriteExt};
use krita_net::accept::accept;
use krita_net::http::{
    BodyError, BodySender, HeaderValue, HttpEnd, HttpOptions, HttpServer, HttpService, IncomingBody,
    OutgoingBody, Request, Response, StatusCode,
};
use krita_net::{AcceptOptions, Accepted};
use krita_runtime::{Clock, CoreId, Spawn, TaskClass, timeout};
use support::{MemoryStream, World};

/// Answers by path.
#[derive(Clone)]
struct Echo {
    world: World,
    answered: Rc<Cell<u32>>,
    senders: Rc<RefCell<Vec<BodySender>>>,
}

impl HttpService for Echo {
    fn call(&self, request: Request<IncomingBody>) -> impl Future<Output = Response<OutgoingBody>> + 'static {
        let this = self.clone();
        async move {
            let path = request.uri().path().to_owned();
            let body = match path.as_str() {
                "/large" => OutgoingBody::full(Bytes::from(vec![b'x'; 1 << 20])),
                "/slow" => {
                    this.world.sleep(Duration::from_secs(30)).await;
                    OutgoingBody::full("slow".into())
                }
                "/stream" => {
                    let (sender, body) = OutgoingBody::channel();
                    this.senders.borrow_mut().push(sender);
                    body
                }
                _ => match request.into_body().collect(64 * 1024).await {
                    Ok(bytes) => OutgoingBody::full(bytes),
                    Err(error) => {
                        let mut response = Response::new(OutgoingBody::full(error.to_string().into()));
                        *response.status_mut() = match error {
                            BodyError::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
                            BodyError::Timeout => StatusCode::REQUEST_TIMEOUT,
                            BodyError::Overloaded => StatusCode::TOO_MANY_REQUESTS,
                            BodyError::Broken(_) => StatusCode::BAD_REQUEST,
                        };
                        return response;
                    }
                },
            };
            this.answered.set(this.answered.get() + 1);
            Response::new(body)
        }
    }

    fn overloaded(&self, _: Option<&HeaderValue>) -> Response<OutgoingBody> {
        let mut response = Response::new(OutgoingBody::empty());
        *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
        response
    }
}

type End = Rc<RefCell<Option<Result<(), HttpEnd>>>>;

/// A server of the given bounds in a world of its own.
struct Bench {
    world: World,
    server: Rc<HttpServer<World, Echo>>,
    echo: Echo,
}

impl Bench {
    fn new(options: HttpOptions) -> Self {
        let world = World::default();
        let echo = Echo { world: world.clone(), answered: Rc::default(), senders: Rc::default() };
        let server = HttpServer::new(world.clone(), echo.clone(), options);
        Self { world, server, echo }
    }

    /// A new connection, and where its end will stand.
    fn connect(&self) -> (MemoryStream, End) {
        let (near, far) = self.world.pair();
        let end = End::default();
        let (world, server, note) = (self.world.clone(), self.server.clone(), end.clone());
        self.world.spawn(TaskClass::Foreground, "connection", async move {
            let options = AcceptOptions::new(None, CoreId(0), 1);
            if let Ok(Accepted::Http(connection)) = accept(&world, far, Bytes::new(), &options).await {
                let ended = server.serve(*connection).await;
                *note.borrow_mut() = Some(ended);
            }
        });
        (near, end)
    }
}

/// All that comes until the other side closes, or nothing more comes for a long time.
async fn read_all(world: &World, stream: &mut MemoryStream) -> Vec<u8> {
    let mut all = Vec::new();
    let mut scratch = [0; 4096];
    while let Ok(Ok(read)) = timeout(world, Duration::from_secs(3600), stream.read(&mut scratch)).await {
        if read == 0 {
            break;
        }
        all.extend_from_slice(&scratch[..read]);
    }
    all
}

/// Reads until the text is there.
async fn read_until(stream: &mut MemoryStream, end: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    let mut scratch = [0; 4096];
    while !all.windows(end.len()).any(|window| window == end) {
        let read = stream.read(&mut scratch).await.unwrap();
        assert_ne!(read, 0, "closed after {:?}", String::from_utf8_lossy(&all));
        all.extend_from_slice(&scratch[..read]);
    }
    all
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Whether the end is the expected one.
fn ended(end: &End, expected: impl Fn(&HttpEnd) -> bool) {
    match &*end.borrow() {
        Some(Err(end)) => assert!(expected(end), "{end:?}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn requests_are_served_one_after_the_other_on_one_connection() {
    let bench = Bench::new(HttpOptions::default());
    bench.world.block_on(async {
        let (mut near, end) = bench.connect();
        for _ in 0..3 {
            near.write_all(b"POST /e HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello").await.unwrap();
            let answer = text(&read_until(&mut near, b"hello").await);
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("date: "), "{answer}");
        }
        near.close().await.unwrap();
        read_all(&bench.world, &mut near).await;
        assert!(matches!(*end.borrow(), Some(Ok(()))));
    });
    assert_eq!(bench.echo.answered.get(), 3);
}

#[test]
fn malformed_requests_are_answered_and_closed() {
    let cases: [(&[u8], &str); 5] = [
        (b"GET /\x01 HTTP/1.1\r\n\r\n", "400"),
        (b"GET / HTTP/9.9\r\n\r\n", "400"),
        (b"GET / HTTP/1.1\r\nbad header\r\n\r\n", "400"),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "400"),
        (b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n", "400"),
    ];
    for (words, status) in cases {
        let bench = Bench::new(HttpOptions::default());
        bench.world.block_on(async {
            let (mut near, _) = bench.connect();
            near.write_all(words).await.unwrap();
            let answer = text(&read_all(&bench.world, &mut near).await);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{words:?}: {answer}");
        });
        assert!(bench.world.passed() < Duration::from_secs(100), "{:?}", bench.world.passed());
    }
}

#[test]
fn headers_are_bounded_in_size_number_and_time() {
    let bench = Bench::new(HttpOptions::default());
    bench.world.block_on(async {
        let large = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(40 * 1024));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(200));
        for words in [large, many] {
            let (mut near, _) = bench.connect();
            near.write_all(words.as_bytes()).await.unwrap();
            let answer = text(&read_all(&bench.world, &mut near).await);
            assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
        }
        let before = bench.world.now();
        let (mut near, end) = bench.connect();
        let world = bench.world.clone();
        let (mut slow, loris) = bench.connect();
        bench.world.spawn(TaskClass::Foreground, "loris", async move {
            for byte in b"GET / HTTP/1.1\r\nhost: example.org\r\nx: y\r\n\r\n" {
                if slow.write_all(&[*byte]).await.is_err() {
                    return;
                }
                world.sleep(Duration::from_secs(1)).await;
            }
        });
        near.write_all(b"GET /").await.unwrap();
        let answer = read_all(&bench.world, &mut near).await;
        assert!(answer.is_empty(), "{answer:?}");
        assert!(bench.world.now().since(before) < Duration::from_secs(13));
        bench.world.sleep(Duration::from_secs(2)).await;
        ended(&end, |end| matches!(end, HttpEnd::SlowHeaders));
        bench.world.sleep(Duration::from_secs(5)).await;
        ended(&loris, |end| matches!(end, HttpEnd::SlowHeaders));
    });
}

#[test]
fn bodies_are_bounded_in_size_and_time() {
    let bench = Bench::new(HttpOptions { body_bytes_max: 1000, ..HttpOptions::default() });
    bench.world.block_on(async {
        let (mut near, _) = bench.connect();
        near.write_all(b"PUT / HTTP/1.1\r\ncontent-length: 1001\r\n\r\n").await.unwrap();
        let answer = text(&read_all(&bench.world, &mut near).await);
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");

        let (mut near, _) = bench.connect();
        near.write_all(b"PUT / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
        for _ in 0..11 {
            near.write_all(format!("64\r\n{}\r\n", "z".repeat(100)).as_bytes()).await.unwrap();
        }
        let answer = text(&read_all(&bench.world, &mut near).await);
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");

        let before = bench.world.now();
        let (mut near, _) = bench.connect();
        near.write_all(b"PUT / HTTP/1.1\r\ncontent-length: 100\r\n\r\nslow").await.unwrap();
        let answer = text(&read_until(&mut near, b"in time").await);
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        assert!(bench.world.now().since(before) < Duration::from_secs(13));
    });
    assert_eq!(bench.server.incoming().used(), 0, "nothing is held");
}

#[test]
fn the_memory_for_bodies_is_shared_by_all_connections_of_a_core() {
    let bench = Bench::new(HttpOptions { core_incoming_bytes_max: 3000, ..HttpOptions::default() });
    bench.world.block_on(async {
        let (mut first, _) = bench.connect();
        first.write_all(b"PUT / HTTP/1.1\r\ncontent-length: 2000\r\n\r\nx").await.unwrap();
        bench.world.sleep(Duration::from_millis(1)).await;
        assert!(bench.server.incoming().used() >= 2000);
        let (mut second, _) = bench.connect();
        second.write_all(b"PUT / HTTP/1.1\r\ncontent-length: 2000\r\n\r\nx").await.unwrap();
        let answer = text(&read_until(&mut second, b"\r\n\r\n").await);
        assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
        first.write_all(&[b'x'; 1999]).await.unwrap();
        let answer = text(&read_until(&mut first, b"xxx").await);
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    });
}

#[test]
fn answers_that_nobody_takes_end_the_connection() {
    let bench = Bench::new(HttpOptions::default());
    bench.world.block_on(async {
        let (mut near, end) = bench.connect();
        near.write_all(b"GET /large HTTP/1.1\r\n\r\n").await.unwrap();
        bench.world.sleep(Duration::from_secs(130)).await;
        ended(&end, |end| matches!(end, HttpEnd::Stalled));
        drop(near);
    });
}

#[test]
fn idle_connections_end() {
    let bench = Bench::new(HttpOptions::default());
    bench.world.block_on(async {
        let (mut near, end) = bench.connect();
        near.write_all(b"GET /e HTTP/1.1\r\n\r\n").await.unwrap();
        let before = bench.world.now();
        read_all(&bench.world, &mut near).await;
        let passed = bench.world.now().since(before);
        assert!((74..80).contains(&passed.as_secs()), "{passed:?}");
        assert!(matches!(*end.borrow(), Some(Ok(()))), "{:?}", end.borrow());
    });
}

#[test]
fn a_body_that_its_maker_gives_up_is_no_whole_body() {
    let bench = Bench::new(HttpOptions::default());
    bench.world.block_on(async {
        let (mut near, _) = bench.connect();
        near.write_all(b"GET /stream HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        bench.world.sleep(Duration::from_millis(1)).await;
        let mut sender = bench.echo.senders.borrow_mut().pop().unwrap();
        sender.send("part".into()).await.unwrap();
        drop(sender);
        let answer = text(&read_all(&bench.world, &mut near).await);
        assert!(answer.ends_with("4\r\npart\r\n"), "no last chunk: {answer}");

        let (mut near, _) = bench.connect();
        near.write_all(b"GET /stream HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        bench.world.sleep(Duration::from_millis(1)).await;
        let mut sender = bench.echo.senders.borrow_mut().pop().unwrap();
        drop(near);
        assert!(sender.send(Bytes::from(vec![0; 1 << 20])).await.is_err(), "its reader has gone");
    });
}

#[test]
fn a_stop_ends_what_is_idle_at_once_and_lets_the_rest_finish() {
    let bench =
        Bench::new(HttpOptions { shutdown_timeout: Duration::from_secs(60), ..HttpOptions::default() });
    bench.world.block_on(async {
        let (mut idle, _) = bench.connect();
        idle.write_all(b"GET /e HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        read_until(&mut idle, b"\r\n\r\n").await;
        let (mut busy, _) = bench.connect();
        busy.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        bench.world.sleep(Duration::from_millis(1)).await;
        bench.server.close();
        let before = bench.world.now();
        assert_eq!(read_all(&bench.world, &mut idle).await, b"");
        assert!(bench.world.now().since(before) < Duration::from_secs(3));
        let answer = text(&read_all(&bench.world, &mut busy).await);
        assert!(answer.contains("connection: close") && answer.ends_with("slow"), "{answer}");
        bench.server.closed().await;
    });
}

/// HTTP/2, written by hand.
mod h2 {
    pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const RESET: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const CONTINUATION: u8 = 9;
    pub(crate) const END_STREAM: u8 = 1;
    pub(crate) const END_HEADERS: u8 = 4;

    pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(payload);
        frame
    }

    /// A GET, its header block without compression.
    pub(crate) fn get(stream: u32, path: &str) -> Vec<u8> {
        let mut block = vec![0x82, 0x86];
        for (name, value) in [(":path", path), (":authority", "x")] {
            block.push(0);
            block.push(name.len() as u8);
            block.extend_from_slice(name.as_bytes());
            block.push(value.len() as u8);
            block.extend_from_slice(value.as_bytes());
        }
        frame(HEADERS, END_STREAM | END_HEADERS, stream, &block)
    }

    /// The frames in some bytes: kind, flags, stream, payload.
    pub(crate) fn frames(mut bytes: &[u8]) -> Vec<(u8, u8, u32, Vec<u8>)> {
        let mut frames = Vec::new();
        while let [a, b, c, kind, flags, s0, s1, s2, s3, rest @ ..] = bytes {
            let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            let payload = &rest[..length.min(rest.len())];
            frames.push((*kind, *flags, u32::from_be_bytes([*s0, *s1, *s2, *s3]), payload.to_vec()));
            bytes = &rest[payload.len()..];
        }
        frames
    }
}

/// Says it all without reading, as floods do; ends when the other side has had enough.
async fn flood(stream: &mut MemoryStream, world: &World, words: Vec<u8>) {
    let (mut reader, mut writer) = futures_util::io::AsyncReadExt::split(stream);
    let write = async {
        let _ = writer.write_all(&words).await;
    };
    let read = async {
        let mut scratch = [0; 4096];
        while matches!(reader.read(&mut scratch).await, Ok(read) if read > 0) {}
    };
    let both = async { futures_util::future::join(write, read).await };
    let _ = timeout(world, Duration::from_secs(300), both).await;
}

#[test]
fn http2_is_served_and_says_goodbye() {
    let bench = Bench::new(HttpOptions::default());
    bench.world.block_on(async {
        let (mut near, end) = bench.connect();
        near.write_all(h2::PREFACE).await.unwrap();
        near.write_all(&h2::get(1, "/large")).await.unwrap();
        near.write_all(&h2::get(3, "/e")).await.unwrap();
        bench.world.sleep(Duration::from_millis(10)).await;
        bench.server.close();
        let frames = h2::frames(&read_all(&bench.world, &mut near).await);
        assert!(frames.iter().any(|(kind, _, stream, _)| (*kind, *stream) == (h2::HEADERS, 3)));
        let sent: usize = frames
            .iter()
            .filter(|(kind, _, stream, _)| (*kind, *stream) == (h2::DATA, 1))
            .map(|(.., payload)| payload.len())
            .sum();
        assert_eq!(sent, 65_535, "as much as the other side's window takes");
        assert!(frames.iter().any(|(kind, ..)| *kind == h2::GOAWAY));
        ended(&end, |end| matches!(end, HttpEnd::Closing));
    });
}

#[test]
fn rapid_resets_end_the_connection_and_no_other() {
    for pause in [false, true] {
        let bench = Bench::new(HttpOptions::default());
        bench.world.block_on(async {
            let (mut other, _) = bench.connect();
            let (mut near, end) = bench.connect();
            near.write_all(h2::PREFACE).await.unwrap();
            // At once, before the server looks; or one by one, so that each request is begun.
            let mut words = Vec::new();
            for number in 0..2_000u32 {
                let stream = 2 * number + 1;
                words.extend_from_slice(&h2::get(stream, "/slow"));
                words.extend_from_slice(&h2::frame(h2::RESET, 0, stream, &[0, 0, 0, 8]));
                if pause && near.write_all(&std::mem::take(&mut words)).await.is_err() {
                    break;
                }
                if pause {
                    bench.world.sleep(Duration::from_micros(10)).await;
                }
            }
            flood(&mut near, &bench.world, words).await;
            ended(&end, |end| matches!(end, HttpEnd::Resets | HttpEnd::Protocol(_)));
            other.write_all(b"GET /e HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            read_until(&mut other, b"\r\n\r\n").await;
        });
    }
}

#[test]
fn floods_of_frames_that_bring_nothing_end_the_connection() {
    let settings = h2::frame(h2::SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]);
    let ping = h2::frame(h2::PING, 0, 0, &[7; 8]);
    let mut continuation = h2::frame(h2::HEADERS, 0, 1, &[0x82]);
    continuation.extend_from_slice(&h2::frame(h2::CONTINUATION, 0, 1, &[0; 16]));
    let endless = h2::frame(h2::CONTINUATION, 0, 1, &[0, 1, b'a', 1, b'b']).repeat(100_000);
    let floods = [
        ("pings", ping.repeat(400_000)),
        ("settings", settings.repeat(400_000)),
        ("continuations", [continuation, endless].concat()),
        ("empty data", [h2::get(1, "/e"), h2::frame(h2::DATA, 0, 1, &[]).repeat(1_000_000)].concat()),
    ];
    for (name, words) in floods {
        let bench = Bench::new(HttpOptions::default());
        bench.world.block_on(async {
            let (mut near, end) = bench.connect();
            near.write_all(h2::PREFACE).await.unwrap();
            flood(&mut near, &bench.world, words).await;
            let end = end.borrow();
            assert!(matches!(&*end, Some(Err(HttpEnd::Chatter | HttpEnd::Protocol(_)))), "{name}: {end:?}");
        });
        assert!(bench.world.passed() < Duration::from_secs(10), "{name}: {:?}", bench.world.passed());
    }
}

#[test]
fn oversized_http2_headers_are_refused() {
    let bench = Bench::new(HttpOptions::default());
    bench.world.block_on(async {
        let (mut near, _) = bench.connect();
        near.write_all(h2::PREFACE).await.unwrap();
        let mut words = h2::frame(h2::HEADERS, h2::END_STREAM, 1, &[0x82, 0x86, 0x84]);
        for part in 0..10 {
            // A literal field of 8,000 bytes.
            let mut field = vec![0, 1, b'a', 0x7f, 0xc1, 0x3d];
            field.extend_from_slice(&[b'v'; 8000]);
            let flags = if part == 9 { h2::END_HEADERS } else { 0 };
            words.extend_from_slice(&h2::frame(h2::CONTINUATION, flags, 1, &field));
        }
        near.write_all(&words).await.unwrap();
        near.write_all(&h2::get(3, "/e")).await.unwrap();
        bench.world.sleep(Duration::from_secs(1)).await;
        near.close().await.unwrap();
        let frames = h2::frames(&read_all(&bench.world, &mut near).await);
        let refused = frames.iter().any(|(kind, _, stream, _)| match *kind {
            // An answer (431), a reset of the stream, or the end of the connection.
            h2::HEADERS => *stream == 1,
            h2::RESET => *stream == 1,
            h2::GOAWAY => true,
            _ => false,
        });
        assert!(refused, "{frames:?}");
    });
    assert!(bench.echo.answered.get() <= 1);
}
