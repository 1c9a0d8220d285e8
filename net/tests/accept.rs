//! The accept path: what speaks, which core it wants, and how it is turned away. TLS with real certificates.

mod support;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::io::{AsyncReadExt, AsyncWriteExt};
use krita_net::accept::{FirstBytes, classify};
use krita_net::certificates::{self, CertificateSet};
use krita_net::connect::{ConnectError, ConnectOptions, connect};
use krita_net::tls::client_config;
use krita_net::{
    AcceptError, AcceptFailure, AcceptOptions, Accepted, Connection, ConnectionOptions, Incoming,
    ReceiveError, TlsConfig, accept, server_name_for_core,
};
use krita_proto::error::ErrorCode;
use krita_proto::frame::{self, Flags, FrameKind, FrameReader, HELLO_BODY_BYTES_MAX};
use krita_proto::v1;
use krita_runtime::{CoreId, Listener, Network, Spawn, TaskClass};
use support::{Link, MemoryStream, World};

fn options(tls: Option<TlsConfig>) -> AcceptOptions {
    AcceptOptions::new(tls, CoreId(0), 4)
}

fn hello() -> v1::Hello {
    v1::Hello { protocol_version: 1, cluster_name: "test".into(), ..Default::default() }
}

fn node_hello() -> v1::Hello {
    v1::Hello { node: Some(v1::NodeIdentity::default()), ..hello() }
}

fn frame_bytes<M: frame::FrameMessage>(message: &M) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    frame::encode(&mut bytes, Flags::NONE, 9, message).unwrap();
    bytes.to_vec()
}

fn certificates() -> (CertificateSet, TlsConfig) {
    let set = certificates::generate(&["db1.example.org".into(), "192.0.2.7".into()]).unwrap();
    let tls = tls(&set);
    (set, tls)
}

fn tls(set: &CertificateSet) -> TlsConfig {
    TlsConfig::from_pem(set.ca_crt.as_bytes(), set.node_crt.as_bytes(), set.node_key.as_bytes()).unwrap()
}

fn here(accepted: Result<Accepted<World>, AcceptError>) -> Incoming<World> {
    match accepted.unwrap() {
        Accepted::Here(incoming) => *incoming,
        Accepted::Elsewhere { core, .. } => panic!("sent to {core}"),
        Accepted::Http(_) => panic!("taken for HTTP"),
    }
}

fn failure(accepted: Result<Accepted<World>, AcceptError>) -> AcceptFailure {
    match accepted {
        Ok(_) => panic!("accepted"),
        Err(error) => {
            assert!(error.to_string().contains("192.0.2.1"), "the log line names the peer: {error}");
            error.failure
        }
    }
}

/// Sends raw bytes to an accepting core and gives what it said before it closed.
fn say(with_tls: bool, words: &[u8]) -> (AcceptFailure, Vec<u8>) {
    let world = World::default();
    let tls = with_tls.then(|| certificates().1);
    world.block_on(async {
        let (mut near, far) = world.pair();
        near.write_all(words).await.unwrap();
        let (accepted, answer) =
            futures_util::future::join(accept(&world, far, Bytes::new(), &options(tls)), async {
                let mut answer = Vec::new();
                near.read_to_end(&mut answer).await.unwrap();
                drop(near);
                answer
            })
            .await;
        (failure(accepted), answer)
    })
}

fn error_in(answer: &[u8]) -> v1::Error {
    let mut reader = FrameReader::new(HELLO_BODY_BYTES_MAX);
    reader.feed(answer);
    let frame = reader.next_frame().unwrap().expect("an answer");
    assert_eq!(frame.correlation, 0);
    frame.decode().unwrap()
}

#[test]
fn a_hello_is_taken_and_answered() {
    for piece in [1, 5, usize::MAX] {
        let world = World::with_link(Link { piece, capacity: 1 << 18 });
        world.block_on(async {
            let (mut near, far) = world.pair();
            // The first request does not wait for the answer to the hello.
            near.write_all(&frame_bytes(&hello())).await.unwrap();
            near.write_all(&frame_bytes(&v1::Get { key: "k".into(), ..Default::default() })).await.unwrap();
            let mut incoming = here(accept(&world, far, Bytes::new(), &options(None)).await);
            assert_eq!((incoming.hello, incoming.correlation), (hello(), 9));
            assert!(!incoming.connection.peer_is_node());
            incoming.connection.accept(9, &v1::HelloReply::default()).unwrap();
            assert_eq!(incoming.connection.receive().await.unwrap().kind, FrameKind::Get);
        });
    }
}

#[test]
fn first_bytes_are_told_apart_in_any_portion() {
    for (words, expected) in [
        (&[0x16, 3, 1, 2, 0, 1, 0, 1][..], FirstBytes::Tls),
        (b"GET / HTTP/1.1\r\n", FirstBytes::Http1),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", FirstBytes::Http2),
        (b"POST /v1 HTTP/1.1\r\n", FirstBytes::Http1),
        (&frame_bytes(&hello()), FirstBytes::Native),
        // A hello of 0x316 + 4 bytes begins like TLS for two bytes.
        (&[0x16, 3, 0, 0, 1, 0, 0, 0], FirstBytes::Native),
        (&[0x0c, 0, 1, 0, 1, 0, 0, 0], FirstBytes::Native),
        (&[12, 0, 0, 0, 1, 0, 1, 0], FirstBytes::Garbage),
        (&[11, 0, 0, 0, 1, 0, 0, 0], FirstBytes::Garbage),
        (b"SSH-2.0-OpenSSH_9.6\r\n", FirstBytes::Garbage),
        (&[0xff; 16], FirstBytes::Garbage),
        (b"GETX", FirstBytes::Garbage),
    ] {
        assert_eq!(classify(words), expected, "{words:?}");
        for length in 0..words.len() {
            let early = classify(&words[..length]);
            assert!(early == expected || early == FirstBytes::Undecided, "{early:?} of {words:?}");
        }
    }
}

#[test]
fn silence_ends_after_the_hello_limit() {
    let (_, tls) = certificates();
    for tls in [None, Some(tls)] {
        for words in [&b""[..], &[0x16], &frame_bytes(&hello())[..17]] {
            let world = World::default();
            world.block_on(async {
                let (mut near, far) = world.pair();
                near.write_all(words).await.unwrap();
                let with_tls = tls.is_some();
                let accepted = accept(&world, far, Bytes::new(), &options(tls.clone())).await;
                let failure = failure(accepted);
                if words.len() < 8 || !with_tls {
                    assert!(matches!(failure, AcceptFailure::Timeout), "{failure:?}");
                }
            });
            assert!(world.passed() <= Duration::from_secs(7), "{:?}", world.passed());
        }
    }
}

#[test]
fn garbage_is_closed_without_a_word() {
    for with_tls in [false, true] {
        let (failure, answer) = say(with_tls, b"\xff\xfe\xfd garbage garbage");
        assert!(matches!(failure, AcceptFailure::Garbage), "{failure:?}");
        assert_eq!(answer, b"");
    }
    let (failure, answer) = say(true, &[0x16, 3, 1, 0, 4, 9, 9, 9, 9, 9]);
    assert!(matches!(failure, AcceptFailure::Tls(_)), "{failure:?}");
    assert_eq!(answer.first(), Some(&0x15), "an alert");
}

#[test]
fn plain_text_to_a_tls_port_is_told_so() {
    let (failure, answer) = say(true, &frame_bytes(&hello()));
    assert!(matches!(failure, AcceptFailure::PlainText));
    assert_eq!(error_in(&answer).message, "this port requires TLS");
    let (failure, answer) = say(true, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(matches!(failure, AcceptFailure::Http));
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.ends_with("this port requires TLS\n"), "{answer}");
}

#[test]
fn tls_to_a_plain_port_gets_an_alert() {
    let (failure, answer) = say(false, &[0x16, 3, 1, 2, 0, 1, 0, 1]);
    assert!(matches!(failure, AcceptFailure::Encrypted));
    assert_eq!(answer, [0x15, 3, 3, 0, 2, 2, 40]);
}

#[test]
fn what_is_no_hello_is_refused_with_a_reason() {
    let (failure, answer) = say(false, &frame_bytes(&v1::Get::default()));
    assert!(matches!(failure, AcceptFailure::Hello(ReceiveError::Frame(_))), "{failure:?}");
    assert_eq!(error_in(&answer).message, "expected a frame of kind Hello, found Get");

    let (failure, answer) = say(false, &frame_bytes(&v1::Hello { protocol_version: 2, ..hello() }));
    assert!(matches!(failure, AcceptFailure::Version(2)));
    assert_eq!(error_in(&answer).code, ErrorCode::WrongCluster as u32);

    let oversize = v1::Hello { client: "x".repeat(HELLO_BODY_BYTES_MAX), ..hello() };
    let (failure, _) = say(false, &frame_bytes(&oversize));
    assert!(matches!(failure, AcceptFailure::Garbage), "{failure:?}");

    let mut undecodable = frame_bytes(&hello());
    let last = undecodable.len() - 1;
    undecodable[last] = 0xff;
    let (failure, answer) = say(false, &undecodable);
    assert!(matches!(failure, AcceptFailure::Hello(_)), "{failure:?}");
    assert_eq!(error_in(&answer).code, ErrorCode::InvalidArgument as u32);
}

#[test]
fn frames_of_nodes_end_a_clients_connection() {
    let world = World::default();
    world.block_on(async {
        let (mut near, far) = world.pair();
        near.write_all(&frame_bytes(&hello())).await.unwrap();
        near.write_all(&frame_bytes(&v1::Identify::default())).await.unwrap();
        let mut incoming = here(accept(&world, far, Bytes::new(), &options(None)).await);
        let refused = incoming.connection.receive().await;
        assert!(matches!(refused, Err(ReceiveError::NotANode(FrameKind::Identify))));
    });
}

#[test]
fn unknown_kinds_are_answered_and_the_next_frame_is_served() {
    let world = World::default();
    world.block_on(async {
        let (mut near, far) = world.pair();
        near.write_all(&frame_bytes(&hello())).await.unwrap();
        let mut incoming = here(accept(&world, far, Bytes::new(), &options(None)).await);
        let mut unknown = frame_bytes(&v1::Get::default());
        unknown[4] = 40;
        near.write_all(&unknown).await.unwrap();
        near.write_all(&frame_bytes(&v1::Get::default())).await.unwrap();
        assert_eq!(incoming.connection.receive().await.unwrap().kind, FrameKind::Get);
        let mut near = Connection::plain(&world, near, &ConnectionOptions::default());
        let answer = near.receive().await.unwrap();
        assert_eq!(answer.correlation, 9);
        assert_eq!(answer.decode::<v1::Error>().unwrap().code, ErrorCode::InvalidArgument as u32);
        // Garbage after the hello ends it, and says why.
        near.sender().send_body(FrameKind::Get, Flags::NONE, 1, &[0xff; 8]).unwrap();
        let frame = incoming.connection.receive().await.unwrap();
        assert!(frame.decode::<v1::Get>().is_err());
    });
}

/// A client's TLS stream without our own connect path.
async fn stock_client(
    near: MemoryStream,
    ca: &CertificateSet,
    name: &str,
) -> io::Result<futures_rustls::client::TlsStream<MemoryStream>> {
    let config = client_config(ca.ca_crt.as_bytes()).unwrap();
    let connector = futures_rustls::TlsConnector::from(config);
    connector.connect(name.to_owned().try_into().unwrap(), near).await
}

#[test]
fn a_client_is_served_over_tls_by_host_name_address_and_core() {
    let (set, tls) = certificates();
    let core = server_name_for_core(0);
    for name in ["db1.example.org", "192.0.2.7", "localhost", "127.0.0.1", "::1", &core] {
        let world = World::default();
        world.block_on(async {
            let (near, far) = world.pair();
            let client = async {
                let mut near = stock_client(near, &set, name).await.unwrap();
                near.write_all(&frame_bytes(&hello())).await.unwrap();
                near.flush().await.unwrap();
                let mut answer = [0; 16];
                near.read_exact(&mut answer).await.unwrap();
                assert_eq!(answer[4], FrameKind::HelloReply as u8);
                near
            };
            let server = async {
                let accepted = accept(&world, far, Bytes::new(), &options(Some(tls.clone()))).await;
                let mut incoming = here(accepted);
                assert!(!incoming.connection.peer_is_node(), "it has shown no certificate");
                incoming.connection.accept(incoming.correlation, &v1::HelloReply::default()).unwrap();
                incoming
            };
            futures_util::future::join(client, server).await;
        });
    }
}

#[test]
fn foreign_names_and_foreign_authorities_are_refused() {
    let (set, tls) = certificates();
    let (foreign, _) = certificates();
    for (ca, name) in
        [(&set, "elsewhere.example.org"), (&set, "node.krita.internal"), (&foreign, "localhost")]
    {
        let world = World::default();
        world.block_on(async {
            let (near, far) = world.pair();
            let client = stock_client(near, ca, name);
            let options = options(Some(tls.clone()));
            let server = accept(&world, far, Bytes::new(), &options);
            let (client, server) = futures_util::future::join(client, server).await;
            assert!(client.is_err(), "{name}");
            assert!(matches!(failure(server), AcceptFailure::Tls(_) | AcceptFailure::Closed));
        });
    }
}

#[test]
fn a_client_that_calls_itself_a_node_needs_a_nodes_certificate() {
    let (set, tls) = certificates();
    let world = World::default();
    world.block_on(async {
        let (near, far) = world.pair();
        let client = async {
            let mut near = stock_client(near, &set, "localhost").await.unwrap();
            near.write_all(&frame_bytes(&node_hello())).await.unwrap();
            near.flush().await.unwrap();
            let mut answer = Vec::new();
            near.read_to_end(&mut answer).await.unwrap();
            assert_eq!(error_in(&answer).code, ErrorCode::PermissionDenied as u32);
        };
        let options = options(Some(tls));
        let server = accept(&world, far, Bytes::new(), &options);
        let ((), server) = futures_util::future::join(client, server).await;
        assert!(matches!(failure(server), AcceptFailure::NotANode));
    });
}

/// Serves every connection: accepts the hello, hands over to other cores, answers gets.
fn serve(world: &World, address: &str, tls: Option<TlsConfig>) {
    let address: SocketAddr = address.parse().unwrap();
    let task = world.clone();
    world.spawn(TaskClass::Foreground, "server", async move {
        let world = task;
        let listener = world.listen(address).await.unwrap();
        loop {
            let mut stream = listener.accept().await.unwrap();
            let mut options = options(tls.clone());
            let mut received = Bytes::new();
            let mut incoming = loop {
                match accept(&world, stream, received, &options).await {
                    Ok(Accepted::Here(incoming)) => break incoming,
                    Ok(Accepted::Elsewhere { core, stream: moved, received: bytes }) => {
                        assert_ne!(core, options.core);
                        options.core = core;
                        stream = world.attach(world.detach(moved)).unwrap();
                        received = bytes;
                    }
                    Ok(Accepted::Http(_)) | Err(_) => return,
                }
            };
            let reply = v1::HelloReply { core: options.core.0.into(), cores: 4, ..Default::default() };
            incoming.connection.accept(incoming.correlation, &reply).unwrap();
            assert_eq!(incoming.connection.peer_is_node(), incoming.hello.node.is_some());
            let (mut receiver, sender) = incoming.connection.split();
            while let Ok(frame) = receiver.receive().await {
                sender.send(Flags::NONE, frame.correlation, &v1::GetReply::default()).unwrap();
            }
        }
    });
}

fn to(address: &str, core: Option<u16>, tls: Option<TlsConfig>) -> ConnectOptions {
    ConnectOptions {
        address: address.into(),
        core,
        tls,
        timeout: Duration::from_secs(3),
        connection: ConnectionOptions::default(),
    }
}

#[test]
fn the_wanted_core_serves_and_the_handoff_loses_no_byte() {
    let (_, tls) = certificates();
    for tls in [None, Some(tls)] {
        for piece in [1, 100, usize::MAX] {
            let world = World::with_link(Link { piece, capacity: 1 << 18 });
            serve(&world, "127.0.0.1:8080", tls.clone());
            world.block_on(async {
                world.sleep_a_moment().await;
                for (wanted, served) in [(None, 0), (Some(0), 0), (Some(3), 3), (Some(4), 0)] {
                    let options = to("127.0.0.1:8080", wanted, tls.clone());
                    let (mut connection, reply) = connect(&world, &options, node_hello()).await.unwrap();
                    assert_eq!((reply.core, reply.cores), (served, 4));
                    connection.sender().send(Flags::NONE, 77, &v1::Get::default()).unwrap();
                    assert_eq!(connection.receive().await.unwrap().correlation, 77);
                }
            });
        }
    }
}

#[test]
fn connecting_fails_with_the_reason() {
    let (_, ours) = certificates();
    let (_, foreign) = certificates();
    let world = World::default();
    serve(&world, "127.0.0.1:8080", Some(ours.clone()));
    serve(&world, "127.0.0.1:8081", Some(ours.clone()));
    serve(&world, "127.0.0.1:8082", None);
    world.block_on(async {
        world.sleep_a_moment().await;
        let refused = connect(&world, &to("127.0.0.1:8080", Some(1), None), node_hello()).await;
        assert_eq!(refused.err().unwrap().to_string(), "refused: this port requires TLS");
        let foreign = connect(&world, &to("127.0.0.1:8081", Some(1), Some(foreign)), node_hello()).await;
        assert!(matches!(foreign, Err(ConnectError::Tls(_))));
        let plain = connect(&world, &to("127.0.0.1:8082", None, Some(ours.clone())), node_hello()).await;
        let text = plain.err().unwrap().to_string();
        assert!(text.contains("HandshakeFailure"), "{text}");
        let nobody = connect(&world, &to("127.0.0.1:9", None, None), node_hello()).await;
        assert!(matches!(nobody, Err(ConnectError::Io(_))));
        let _silent = world.listen("127.0.0.1:8083".parse().unwrap()).await.unwrap();
        for tls in [None, Some(ours)] {
            let silent = connect(&world, &to("127.0.0.1:8083", None, tls), node_hello()).await;
            assert!(matches!(silent, Err(ConnectError::Timeout)));
        }
    });
}

#[test]
fn a_certificate_of_a_foreign_authority_is_refused_by_the_server() {
    let (set, tls_of_server) = certificates();
    let (foreign, _) = certificates();
    // Trusts the server, but shows a certificate of another authority.
    let mixed =
        TlsConfig::from_pem(set.ca_crt.as_bytes(), foreign.node_crt.as_bytes(), foreign.node_key.as_bytes());
    let world = World::default();
    serve(&world, "127.0.0.1:8080", Some(tls_of_server));
    world.block_on(async {
        world.sleep_a_moment().await;
        let refused =
            connect(&world, &to("127.0.0.1:8080", Some(0), Some(mixed.unwrap())), node_hello()).await;
        let text = refused.err().unwrap().to_string();
        assert!(text.contains("UnknownCA") || text.contains("DecryptError"), "{text}");
    });
}

#[test]
fn unusable_certificate_files_name_the_file() {
    let (set, _) = certificates();
    let (other, _) = certificates();
    let load = |ca: &str, crt: &str, key: &str| {
        TlsConfig::from_pem(ca.as_bytes(), crt.as_bytes(), key.as_bytes()).err().unwrap().to_string()
    };
    assert!(load("", &set.node_crt, &set.node_key).contains("ca.crt"));
    assert!(load(&set.ca_crt, "nonsense", &set.node_key).contains("node.crt"));
    assert!(load(&set.ca_crt, &set.node_crt, "").contains("node.key"));
    assert!(load(&set.ca_crt, &set.node_crt, &other.node_key).contains("cannot be used"));
    assert!(Arc::strong_count(&client_config(set.ca_crt.as_bytes()).unwrap()) == 1);
}
