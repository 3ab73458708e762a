//! Behaviour of the client when the connection breaks, tested against a scripted daemon.

use std::sync::Arc;
use std::time::Duration;

use hearth_proto::v1::deploy_event::Event;
use hearth_proto::v1::exec_request::Message;
use hearth_proto::v1::{
    ErrorDetail, ExecBegin, ExecStdinEnd, Exit, LogLine, ReadServiceLogsRequest, Service, TerminalSize,
    exec_response,
};
use tonic::Status;

use super::scripted::{DaemonScript, event, live, lost, remark, with_client};
use super::{ClientError, DeployWatch, ReconnectLimits, ServiceLogItem, WatchItem};

/// Everything that a watch returns: remarks, losses as `-`, and the end.
async fn collect_watched(mut watch: DeployWatch) -> Result<Vec<String>, ClientError> {
    let mut all = Vec::new();
    while let Some(watched) = watch.next().await? {
        all.push(match watched {
            WatchItem::Lost(_) => "-".to_owned(),
            WatchItem::Event(event) => match event.event.unwrap() {
                Event::Trouble(trouble) => trouble.message,
                Event::Live(_) => "live".to_owned(),
                other => format!("{other:?}"),
            },
        });
    }
    Ok(all)
}

#[tokio::test]
async fn a_deploy_is_reported_once_despite_reconnects() {
    let script = Arc::new(DaemonScript::default());
    let events = || vec![event(1, 10, remark("a")), event(2, 20, remark("b"))];
    let whole = || {
        let mut all = events();
        all.extend([event(3, 30, remark("c")), event(4, 40, live())]);
        all
    };
    let mut broken = events();
    broken.push(Err(lost()));
    // The second time the connection ends without an error.
    script.watches.lock().extend([broken, events(), whole()]);
    with_client(&script, |client| async move {
        assert_eq!(
            collect_watched(client.watch_deploy("web", 3)).await.unwrap(),
            ["a", "b", "-", "-", "c", "live"]
        );
    })
    .await;
    let asked = script.watched.lock();
    assert!(asked.iter().all(|asked| asked.service == "web" && asked.revision == 3));
    assert_eq!(asked.len(), 3);
}

#[tokio::test]
async fn numbers_that_restart_are_delivered_from_the_first_on() {
    let script = Arc::new(DaemonScript::default());
    let before = vec![event(1, 10, remark("a")), event(2, 20, remark("b")), Err(lost())];
    // A deploy that ended before this run of the daemon has only its last event.
    let after = vec![event(1, 5000, live())];
    script.watches.lock().extend([before, after]);
    with_client(&script, |client| async move {
        assert_eq!(collect_watched(client.watch_deploy("web", 3)).await.unwrap(), ["a", "b", "-", "live"]);
    })
    .await;
}

#[tokio::test]
async fn a_gap_a_lasting_error_and_a_daemon_that_stays_away_end_a_watch() {
    let script = Arc::new(DaemonScript::default());
    let detail =
        ErrorDetail { code: "not_found".into(), message: "no service".into(), ..ErrorDetail::default() };
    let gone = hearth_proto::status::status_with_detail(tonic::Code::NotFound, &detail);
    script.watches.lock().extend([vec![event(1, 10, remark("a")), event(3, 30, live())], vec![Err(gone)]]);
    with_client(&script, |client| async move {
        let gap = collect_watched(client.watch_deploy("web", 3)).await.unwrap_err();
        assert!(matches!(&gap, ClientError::Protocol(text) if text.contains("event 3")), "{gap}");
        let gone = collect_watched(client.watch_deploy("web", 3)).await.unwrap_err();
        assert!(matches!(&gone, ClientError::Failed(detail) if detail.code == "not_found"), "{gone}");
        let limits = ReconnectLimits {
            first_pause: Duration::from_millis(1),
            longest_pause: Duration::from_millis(5),
            give_up_after: Duration::from_millis(50),
        };
        let away = collect_watched(client.watch_deploy("web", 3).with_limits(limits)).await.unwrap_err();
        assert!(matches!(away, ClientError::Unreachable { .. }), "{away}");
    })
    .await;
}

fn line(nanos: i32, text: &str) -> Result<LogLine, Status> {
    let time = Some(prost_types::Timestamp { seconds: 1, nanos });
    Ok(LogLine { time, text: text.to_owned().into(), ..LogLine::default() })
}

#[tokio::test]
async fn a_followed_log_resumes_where_it_stopped() {
    let script = Arc::new(DaemonScript::default());
    script.logs.lock().extend([
        vec![line(1, "a"), line(2, "b"), Err(lost())],
        // The daemon shuts down.
        vec![line(2, "b"), line(2, "c"), line(3, "d")],
        // The service is removed.
        vec![line(3, "d"), line(4, "e")],
    ]);
    *script.service.lock() = Some(Service::default());
    let daemon = Arc::clone(&script);
    let request = ReadServiceLogsRequest {
        service: "web".into(),
        tail: Some(2),
        contains: "x".into(),
        follow: true,
        ..ReadServiceLogsRequest::default()
    };
    with_client(&script, |client| async move {
        let mut logs = client.service_logs(request);
        let mut seen = String::new();
        while let Some(read) = logs.next().await.unwrap() {
            match read {
                ServiceLogItem::Line { instance, line } => {
                    assert_eq!(instance, "m7xh7f3k9wq2");
                    seen.push_str(std::str::from_utf8(&line.text).unwrap());
                    if line.text == "e" {
                        *daemon.service.lock() = None;
                    }
                }
                ServiceLogItem::Lost(_) => seen.push('-'),
            }
        }
        assert_eq!(seen, "ab-cd-e");
    })
    .await;
    let asked = script.read.lock();
    assert_eq!((asked[0].tail, asked[0].since), (Some(2), None));
    assert_eq!((asked[1].tail, asked[1].since.map(|since| since.nanos)), (None, Some(2)));
    assert_eq!(asked[1].contains, "x");
}

#[tokio::test]
async fn a_process_gets_its_input_and_gives_its_output_and_its_exit_code() {
    use exec_response::Message as Answer;
    let script = Arc::new(DaemonScript::default());
    with_client(&script, |client| async move {
        let begin = ExecBegin { command: vec!["a".into(), "b".into(), "c".into()], ..ExecBegin::default() };
        let mut process = client.exec(begin).await.unwrap();
        for message in [
            Message::Stdin("in".into()),
            Message::Resize(TerminalSize { columns: 80, rows: 24 }),
            Message::Signal(2),
            Message::StdinEnd(ExecStdinEnd {}),
        ] {
            process.input.send(message).await.unwrap();
        }
        assert_eq!(process.next().await.unwrap(), Answer::Stdout("in".into()));
        assert_eq!(process.next().await.unwrap(), Answer::Stderr("80x24".into()));
        assert_eq!(process.next().await.unwrap(), Answer::Stderr("signal 2".into()));
        assert_eq!(process.next().await.unwrap(), Answer::Exited(Exit { code: Some(3), ..Exit::default() }));
    })
    .await;
}
