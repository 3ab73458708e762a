//! Floods of HTTP/2 frames that are cheap to send, against the API and the ingress.

use std::io;

use integration_tests::frames::{
    CONTINUATION, END_HEADERS, END_STREAM, HEADERS, Http2, PING, RST_STREAM, SETTINGS, block, encode,
};
use integration_tests::runner::Case;
use integration_tests::shared_cases;

use super::*;

pub fn cases() -> Vec<Case> {
    shared_cases![
        rapid_resets_end_the_connection,
        continuations_without_an_end_are_not_buffered,
        settings_and_pings_are_not_buffered,
        streams_beyond_the_limit_are_refused,
    ]
}

const CANCEL: [u8; 4] = [0, 0, 0, 8];

fn request(path: &str) -> Vec<u8> {
    block(&[(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "nobody.example")])
}

/// Runs an attack on both ports, and checks that other callers are not affected.
fn on_both_ports(daemon: &Daemon, attack: impl Fn(&mut Http2) -> io::Result<()> + Copy + Send + Sync) {
    for address in [daemon.listen(), daemon.ingress()] {
        let before = memory(daemon);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                let address = &address;
                scope.spawn(move || {
                    let mut client = Http2::connect(address).unwrap();
                    // An error means that the server has closed the connection, as it should.
                    let _ = attack(&mut client);
                    let _ = client.read_to_quiet(Duration::from_millis(200));
                });
            }
            others_are_answered(daemon);
        });
        grew_less_than(64 * MIB, daemon, before);
        others_are_answered(daemon);
    }
}

fn rapid_resets_end_the_connection(daemon: &Daemon) {
    for address in [daemon.listen(), daemon.ingress()] {
        let mut client = Http2::connect(&address).unwrap();
        let head = request("/metrics");
        let mut ended = false;
        for round in 0..200u32 {
            let mut frames = Vec::new();
            for stream in (0..100).map(|index| 2 * (100 * round + index) + 1) {
                frames.extend(encode(HEADERS, END_HEADERS | END_STREAM, stream, &head));
                frames.extend(encode(RST_STREAM, 0, stream, &CANCEL));
            }
            let sent = client.write(&frames);
            let read = client.read_to_quiet(Duration::from_millis(1));
            ended = sent.is_err() || read.is_err() || client.goaway;
            if ended {
                break;
            }
        }
        assert!(ended, "20,000 requests were begun and reset on one connection");
    }
    on_both_ports(daemon, |client| {
        let head = request("/metrics");
        for stream in (0..20_000).map(|index| 2 * index + 1) {
            client.frame(HEADERS, END_HEADERS | END_STREAM, stream, &head)?;
            client.frame(RST_STREAM, 0, stream, &CANCEL)?;
        }
        Ok(())
    });
}

fn continuations_without_an_end_are_not_buffered(daemon: &Daemon) {
    on_both_ports(daemon, |client| {
        client.frame(HEADERS, END_STREAM, 1, &request("/"))?;
        let fields = block(&[("x-flood", &"x".repeat(8000)), ("x-more", &"y".repeat(8000))]);
        for _ in 0..6_000 {
            client.frame(CONTINUATION, 0, 1, &fields)?;
        }
        Ok(())
    });
}

fn settings_and_pings_are_not_buffered(daemon: &Daemon) {
    // The client reads none of the server's responses.
    on_both_ports(daemon, |client| {
        let many = encode(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]).repeat(1000);
        (0..200).try_for_each(|_| client.write(&many))
    });
    on_both_ports(daemon, |client| {
        let many = encode(PING, 0, 0, &[7; 8]).repeat(1000);
        (0..200).try_for_each(|_| client.write(&many))
    });
}

fn streams_beyond_the_limit_are_refused(daemon: &Daemon) {
    on_both_ports(daemon, |client| {
        let head = block(&[
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/grpc.health.v1.Health/Watch"),
            (":authority", "nobody.example"),
            ("content-type", "application/grpc"),
        ]);
        for stream in (0..20_000).map(|index| 2 * index + 1) {
            client.frame(HEADERS, END_HEADERS, stream, &head)?;
        }
        Ok(())
    });
}
