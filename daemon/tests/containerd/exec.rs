//! Additional processes in an instance (exec).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hearthd::deploy::port::{
    ContainerRuntime as _, ExecInput, ExecOutput, ExecSpec, ExecStreams, RuntimeError, TerminalSize,
};
use hearthd::model::fault::ErrorCode;
use hearthd::model::id::InstanceId;
use tokio::time::timeout;

use crate::fixture::{Fixture, LIMIT};

fn spec(command: &[&str]) -> ExecSpec {
    ExecSpec {
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        env: BTreeMap::from([("MODE".to_owned(), "exec".to_owned())]),
        confidential: BTreeMap::new(),
        workdir: None,
        terminal: None,
    }
}

/// Standard output, standard error and exit code.
async fn finish(mut exec: ExecStreams) -> (String, String, Option<i32>) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        match timeout(LIMIT, exec.output.recv()).await.unwrap().unwrap() {
            ExecOutput::Stdout(bytes) => out.extend_from_slice(&bytes),
            ExecOutput::Stderr(bytes) => err.extend_from_slice(&bytes),
            ExecOutput::Exited(exit) => {
                assert!(exec.output.recv().await.is_none(), "the exit is the last");
                let text = |bytes| String::from_utf8(bytes).unwrap();
                return (text(out), text(err), exit.code);
            }
            ExecOutput::Lost(why) => panic!("{why}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn output_input_and_exit_code_of_a_process_are_its_own() {
    Fixture::run(async |fixture| {
        let id = fixture.sleeping().await;
        let exec = async |spec| fixture.runtime.exec(&id, spec).await;
        let begun = Instant::now();
        let short =
            exec(spec(&["/bin/sh", "-c", "echo out $MODE $HOSTNAME; echo err >&2; exit 4"])).await.unwrap();
        let finished = finish(short).await;
        println!("a short process: {:?}", begun.elapsed());
        assert_eq!(finished, ("out exec web\n".to_owned(), "err\n".to_owned(), Some(4)));

        let copy = exec(spec(&["/bin/cat"])).await.unwrap();
        for _ in 0..64 {
            copy.input.send(ExecInput::Stdin(Bytes::from_static(&[b'x'; 1000]))).await.unwrap();
        }
        copy.input.send(ExecInput::StdinEnd).await.unwrap();
        let (out, _, code) = finish(copy).await;
        assert_eq!((out.len(), code), (64_000, Some(0)));

        // Large output that is read slowly: nothing is lost, and little is buffered.
        let big = exec(spec(&["/bin/sh", "-c", "yes 0123456 | head -n 250000"])).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(finish(big).await.0.len(), 2_000_000);

        let signalled = exec(spec(&["/bin/sleep", "100"])).await.unwrap();
        signalled.input.send(ExecInput::Signal(15)).await.unwrap();
        assert_eq!(finish(signalled).await.2, Some(143));
        assert!(matches!(
            exec(spec(&["/nope"])).await.map(|_| ()),
            Err(RuntimeError::StartFailed { code: ErrorCode::CommandNotFound, .. })
        ),);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_has_a_size_that_can_change() {
    Fixture::run(async |fixture| {
        let id = fixture.sleeping().await;
        let mut shell = spec(&["/bin/sh", "-c", "stty size; read b; stty size; exit 2"]);
        shell.terminal = Some(TerminalSize { columns: 100, rows: 30 });
        let exec = fixture.runtime.exec(&id, shell).await.unwrap();
        // The first check precedes anything else that could set it.
        tokio::time::sleep(Duration::from_millis(300)).await;
        exec.input.send(ExecInput::Resize(TerminalSize { columns: 120, rows: 40 })).await.unwrap();
        exec.input.send(ExecInput::Stdin(Bytes::from_static(b"\n"))).await.unwrap();
        let (out, err, code) = finish(exec).await;
        assert_eq!((err.as_str(), code), ("", Some(2)));
        assert!(out.contains("30 100") && out.contains("40 120"), "{out}");
        // A session without input is not hung up.
        let mut blind = spec(&["/bin/sh", "-c", "sleep 1; echo still; exit 3"]);
        blind.terminal = Some(TerminalSize { columns: 80, rows: 24 });
        let exec = fixture.runtime.exec(&id, blind).await.unwrap();
        exec.input.send(ExecInput::StdinEnd).await.unwrap();
        assert_eq!(finish(exec).await, ("still\r\n".to_owned(), String::new(), Some(3)));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_ends_when_its_caller_goes_away() {
    Fixture::run(async |fixture| {
        let id = fixture.sleeping().await;
        drop(fixture.runtime.exec(&id, spec(&["/bin/sleep", "777"])).await.unwrap());
        let count = async || {
            let list = spec(&["/bin/sh", "-c", "grep -l 777 /proc/[0-9]*/cmdline | grep -v self"]);
            let (out, ..) = finish(fixture.runtime.exec(&id, list).await.unwrap()).await;
            // The searching processes contain the name too.
            out.lines().count()
        };
        let begun = Instant::now();
        loop {
            let alone = count().await;
            if alone <= 2 {
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(5), "{alone} processes");
        }
        fixture.runtime.stop(&id, Duration::ZERO).await.unwrap();
        assert!(matches!(
            fixture.runtime.exec(&id, spec(&["/bin/true"])).await.map(|_| ()),
            Err(RuntimeError::NotRunning(_))
        ));
        let nobody = InstanceId::random();
        assert!(matches!(
            fixture.runtime.exec(&nobody, spec(&["/bin/true"])).await.map(|_| ()),
            Err(RuntimeError::NotFound(_))
        ));
    })
    .await;
}
