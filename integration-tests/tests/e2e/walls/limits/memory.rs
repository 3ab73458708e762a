//! Messages that are sent and never finished: each is held up to the size limit of a message.

use integration_tests::frames::Http2;
use integration_tests::runner::Case;
use integration_tests::shared_cases;

use super::*;

pub fn cases() -> Vec<Case> {
    shared_cases![
        health_streams_without_a_token_are_not_buffered,
        streams_with_an_empty_token_are_not_buffered,
        uploads_that_stop_within_a_message_hold_a_share_only,
        requests_without_a_valid_token_are_refused_before_their_body,
    ]
}

/// Returns the prefix of a message and most of its content.
fn unfinished(size: usize) -> Vec<u8> {
    let prefix = u32::try_from(size).unwrap().to_be_bytes();
    [&[0], prefix.as_slice(), &vec![0; size - 1]].concat()
}

/// Opens streams, sends the message on each as far as permitted, and holds them.
fn hold(daemon: &Daemon, count: u32, path: &str, token: Option<&str>, message: &[u8]) -> Http2 {
    let mut client = Http2::connect(&daemon.listen()).unwrap();
    client.patience(seconds(1)).unwrap();
    for stream in (0..count).map(|index| 2 * index + 1) {
        // The daemon may refuse or stop reading: then the bytes sent so far are held.
        if client.call(stream, path, token).is_err() || client.send(stream, message).is_err() {
            break;
        }
    }
    client
}

fn health_streams_without_a_token_are_not_buffered(daemon: &Daemon) {
    let before = memory(daemon);
    let message = unfinished(4_000_000);
    let held: Vec<_> =
        (0..5).map(|_| hold(daemon, 50, "/grpc.health.v1.Health/Check", None, &message)).collect();
    let reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    let more = hold(daemon, 50, reflection, None, &message);
    grew_less_than(64 * MIB, daemon, before);
    others_are_answered(daemon);
    drop((held, more));
}

fn streams_with_an_empty_token_are_not_buffered(daemon: &Daemon) {
    let nothing = daemon.mint(&["--name", "nobody", "--scope", "{}"]);
    let before = memory(daemon);
    let mut held = Vec::new();
    for (path, size) in [
        ("/hearth.v1.Builds/Submit", 15_000_000),
        ("/hearth.v1.Builds/Submit", 4_000_000),
        ("/hearth.v1.Services/Deploy", 2_000_000),
        ("/hearth.v1.Images/Tag", 15_000_000),
    ] {
        held.push(hold(daemon, 25, path, Some(&nothing), &unfinished(size)));
    }
    // Half of the memory limit for incoming messages, and the memory of the connections themselves.
    grew_less_than(128 * MIB + 96 * MIB, daemon, before);
    others_are_answered(daemon);
}

fn uploads_that_stop_within_a_message_hold_a_share_only(daemon: &Daemon) {
    let writer = daemon.mint(&["--name", "writer", "--scope", r#"{"storage":{"paths":[{"path":"/w"}]}}"#]);
    let before = memory(daemon);
    let message = unfinished(4_000_000);
    let held: Vec<_> =
        (0..3).map(|_| hold(daemon, 50, "/hearth.v1.Storage/Write", Some(&writer), &message)).collect();
    grew_less_than(128 * MIB + 96 * MIB, daemon, before);
    others_are_answered(daemon);
    drop(held);
}

fn requests_without_a_valid_token_are_refused_before_their_body(daemon: &Daemon) {
    let mut client = Http2::connect(&daemon.listen()).unwrap();
    for (index, token) in [None, Some("not.a.token")].into_iter().enumerate() {
        let stream = 2 * index as u32 + 1;
        client.call(stream, "/hearth.v1.Storage/Write", token).unwrap();
        // No byte of the body has been sent.
        assert!(soon(seconds(10), || {
            client.ended.contains(&stream) || client.read_frame().is_ok() && client.ended.contains(&stream)
        }));
    }
}
