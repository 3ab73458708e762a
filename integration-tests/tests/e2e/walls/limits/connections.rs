//! Connections that send nothing, or next to nothing.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use integration_tests::daemon::Options;
use integration_tests::frames::{END_HEADERS, END_STREAM, HEADERS, Http2, block, connect_from};
use integration_tests::grpc::{Api, block_on, detail};
use integration_tests::lone_cases;
use integration_tests::runner::Case;
use integration_tests::shared_cases;

use super::*;

pub fn cases() -> Vec<Case> {
    let mut cases = shared_cases![
        one_peer_cannot_take_the_connections_of_others,
        silent_connections_of_many_peers_are_closed_for_others,
        silent_users_of_the_unix_socket_leave_it_to_others,
        connections_without_a_request_are_closed,
        a_connection_whose_request_head_drips_in_is_closed,
        a_request_beyond_the_limit_of_its_caller_is_refused,
    ];
    cases.extend(lone_cases![
        a_connection_beyond_the_limit_is_refused_in_its_own_protocol,
        the_default_limits_withstand_thousands_of_silent_connections,
    ]);
    cases
}

/// Opens connections from one address that send nothing. Connections that the daemon closes stay in the list.
fn open_silent(address: &str, source: [u8; 4], count: usize) -> Vec<TcpStream> {
    // The daemon may refuse a connection with a reset.
    (0..count).filter_map(|_| connect_from(source, address).ok()).collect()
}

fn is_open(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let read = (&mut &*stream).read(&mut [0; 64]);
    matches!(read, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

fn count_open(held: &[TcpStream]) -> usize {
    held.iter().filter(|stream| is_open(stream)).count()
}

fn one_peer_cannot_take_the_connections_of_others(daemon: &Daemon) {
    for address in [daemon.listen(), daemon.ingress()] {
        let held = open_silent(&address, [127, 0, 0, 2], 350);
        others_are_answered(daemon);
        // Connections that are closed to make room take a moment to end.
        assert!(soon(seconds(3), || count_open(&held) <= 100), "{} are open", count_open(&held));
    }
}

fn silent_connections_of_many_peers_are_closed_for_others(daemon: &Daemon) {
    for address in [daemon.listen(), daemon.ingress()] {
        let held: Vec<TcpStream> =
            (1..=45).flat_map(|peer| open_silent(&address, [127, 0, 1, peer], 10)).collect();
        others_are_answered(daemon);
        assert!(soon(seconds(3), || count_open(&held) <= 300), "{} are open", count_open(&held));
    }
}

fn silent_users_of_the_unix_socket_leave_it_to_others(daemon: &Daemon) {
    let held: Vec<_> = (0..200).filter_map(|_| UnixStream::connect(daemon.socket()).ok()).collect();
    others_are_answered(daemon);
    drop(held);
}

fn connections_without_a_request_are_closed(daemon: &Daemon) {
    let ports = [daemon.listen(), daemon.ingress()];
    let silent: Vec<TcpStream> = ports.iter().map(|address| TcpStream::connect(address).unwrap()).collect();
    let asked: Vec<Http2> = ports
        .iter()
        .map(|address| {
            let mut client = Http2::connect(address).unwrap();
            let fields =
                [(":method", "GET"), (":scheme", "http"), (":path", "/healthz"), (":authority", "a.example")];
            client.frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&fields)).unwrap();
            client
        })
        .collect();
    assert!(soon(seconds(20), || count_open(&silent) == 0), "silent connections are open");
    for mut client in asked {
        let end = Instant::now() + seconds(20);
        while !client.goaway && client.read_frame().is_ok() {
            assert!(Instant::now() < end, "an unused connection of HTTP/2 is open");
        }
        assert!(client.ended.contains(&1), "its request was answered before");
    }
}

fn a_connection_whose_request_head_drips_in_is_closed(daemon: &Daemon) {
    for address in [daemon.listen(), daemon.ingress()] {
        let mut dripping: Vec<TcpStream> = (0..50)
            .map(|_| {
                let mut stream = TcpStream::connect(&address).unwrap();
                stream.write_all(b"GET / HTTP/1.1\r\nhost: a.example\r\nx-slow: ").unwrap();
                stream
            })
            .collect();
        let ended = soon(seconds(30), || {
            std::thread::sleep(Duration::from_millis(200));
            dripping.retain_mut(|stream| stream.write_all(b"x").is_ok());
            dripping.is_empty()
        });
        assert!(ended, "{} are still served", dripping.len());
    }
}

/// Starts uploads that do not continue, each on its own connection, so that the connections count as used.
fn uploads(daemon: &Daemon, count: usize, token: &str, path: &str) -> Vec<Http2> {
    let begin = hearth_proto::v1::WriteBegin { path: path.to_owned(), ..Default::default() };
    let message = hearth_proto::v1::write_file_request::Message::Begin(begin);
    let message = hearth_proto::v1::WriteFileRequest { message: Some(message) };
    let message = prost::Message::encode_to_vec(&message);
    let size = u32::try_from(message.len()).unwrap().to_be_bytes();
    let message = [&[0], size.as_slice(), &message].concat();
    (0..count)
        .filter_map(|_| {
            // A connection beyond the limit of the peer may be closed at any moment.
            let mut client = Http2::connect(&daemon.listen()).ok()?;
            client.call(1, "/hearth.v1.Storage/Write", Some(token)).ok()?;
            client.send(1, &message).ok()?;
            Some(client)
        })
        .collect()
}

fn a_connection_beyond_the_limit_is_refused_in_its_own_protocol() {
    let daemon = &Daemon::start(Options::room("walls_crowd").config("[connections]\napi_per_peer = 20\n"));
    let token = daemon.mint(&["--name", "busy", "--scope", "full"]);
    let mut held = uploads(daemon, 15, &token, "x/y");
    let refused_in_time = soon(seconds(30), || {
        // A connection on which no token was verified yet is closed in favour of the next one, so more than one try is needed.
        held.extend(uploads(daemon, 1, &token, "x/y"));
        std::thread::sleep(Duration::from_millis(100));
        let answer = Request::new("GET", "/healthz").try_send(&daemon.listen());
        answer.is_ok_and(|answer| {
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            answer.status == 429
                && text.contains("connections of this peer")
                && answer.header("retry-after").is_some()
        })
    });
    assert!(refused_in_time, "a connection beyond the limit of the peer was not refused");
    let refused = block_on(seconds(20), async {
        let api = Api::connect(&daemon.listen(), Some(token.clone())).await;
        api.system().get_info(hearth_proto::v1::GetInfoRequest {}).await.unwrap_err()
    });
    let detail = detail(&refused);
    assert_eq!((detail.code.as_str(), detail.retryable), ("too_many_connections", true), "{refused:?}");
    assert!(detail.retry_after_ms.is_some());
    // Other addresses and the socket are served meanwhile.
    let mut other = connect_from([127, 0, 0, 9], &daemon.listen()).unwrap();
    other.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    other.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    daemon.hearth_ok(&["builds", "list"]);
    drop(held);
}

fn a_request_beyond_the_limit_of_its_caller_is_refused(daemon: &Daemon) {
    let greedy = daemon.mint(&["--name", "greedy", "--scope", "full"]);
    let held = uploads(daemon, 45, &greedy, "g/y");
    let refused = soon(seconds(3), || {
        let status = block_on(seconds(20), async {
            let api = Api::connect(&daemon.listen(), Some(greedy.clone())).await;
            api.system().get_info(hearth_proto::v1::GetInfoRequest {}).await
        });
        status.is_err_and(|status| detail(&status).code == "too_many_requests")
    });
    assert!(refused, "the 41st request was accepted");
    let v2 = Request::new("GET", "/v2/").bearer(&greedy).send(&daemon.listen());
    assert_eq!(v2.status, 429);
    let other = Request::new("GET", "/v2/").bearer(daemon.token()).send(&daemon.listen());
    assert_eq!(other.status, 200, "another caller has requests of its own");
    drop(held);
}

fn the_default_limits_withstand_thousands_of_silent_connections() {
    let daemon = Daemon::start(Options::room("walls_silence"));
    let before = memory(&daemon);
    let mut held = Vec::new();
    for address in [daemon.listen(), daemon.ingress()] {
        for peer in 1..=8 {
            held.extend(open_silent(&address, [127, 0, 2, peer], 1000));
        }
        others_are_answered(&daemon);
    }
    runner::note(&format!("{} of {} are open", count_open(&held), held.len()));
    grew_less_than(400 * MIB, &daemon, before);
    // The connections end by themselves.
    assert!(soon(seconds(60), || count_open(&held) == 0), "{} are open", count_open(&held));
    others_are_answered(&daemon);
}
