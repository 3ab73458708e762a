//! Tests of exec, from the client's stream to its answers.

use std::sync::atomic::Ordering;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use v1::exec_request::Message;
use v1::exec_response::Message as Answer;

use super::*;

type Input = mpsc::Sender<v1::ExecRequest>;

fn begin(program: &str) -> Message {
    let command = vec![program.to_owned()];
    Message::Begin(v1::ExecBegin { service: "web".to_owned(), command, ..v1::ExecBegin::default() })
}

async fn send(input: &Input, message: Message) {
    input.send(v1::ExecRequest { message: Some(message) }).await.unwrap();
}

async fn exec(
    client: &mut ServicesClient<Channel>,
    first: Message,
) -> Result<(Input, Streaming<v1::ExecResponse>), Status> {
    let (input, messages) = mpsc::channel(8);
    send(&input, first).await;
    let answers = client.exec(by(FULL, ReceiverStream::new(messages))).await?;
    Ok((input, answers.into_inner()))
}

/// A client whose connection can be broken, as if its machine had stopped.
async fn behind_a_line(server: SocketAddr) -> (ServicesClient<Channel>, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let line = task::spawn("line", async move {
        let (mut near, _) = listener.accept().await.unwrap();
        let mut far = tokio::net::TcpStream::connect(server).await.unwrap();
        tokio::io::copy_bidirectional(&mut near, &mut far).await.unwrap();
    });
    (ServicesClient::connect(format!("http://{address}")).await.unwrap(), line)
}

async fn next(answers: &mut Streaming<v1::ExecResponse>) -> Answer {
    let answer = tokio::time::timeout(LIMIT, answers.message()).await.expect("no answer comes");
    answer.unwrap().unwrap().message.unwrap()
}

/// Returns the output of the process, and its exit.
async fn rest(answers: &mut Streaming<v1::ExecResponse>) -> (String, Option<i32>) {
    let mut wrote = Vec::new();
    loop {
        match next(answers).await {
            Answer::Stdout(bytes) | Answer::Stderr(bytes) => wrote.extend_from_slice(&bytes),
            Answer::Exited(exit) => {
                assert!(answers.message().await.unwrap().is_none(), "something comes after the end");
                return (String::from_utf8(wrote).unwrap(), exit.code);
            }
        }
    }
}

#[tokio::test]
async fn what_goes_in_comes_out_and_the_exit_is_the_last() {
    let mut room = room().await;
    room.live(spec("1")).await;
    let (input, mut answers) = exec(&mut room.client, begin("cat")).await.unwrap();
    send(&input, Message::Stdin("hello".into())).await;
    assert_eq!(next(&mut answers).await, Answer::Stdout("hello".into()));
    send(&input, Message::Resize(v1::TerminalSize { columns: 80, rows: 24 })).await;
    assert_eq!(next(&mut answers).await, Answer::Stderr("80x24".into()));
    send(&input, Message::Signal(2)).await;
    assert_eq!(rest(&mut answers).await, (String::new(), Some(130)));
    // The end of the client's stream is the end of the process's input.
    let (input, mut answers) = exec(&mut room.client, begin("cat")).await.unwrap();
    send(&input, Message::Stdin("a".into())).await;
    send(&input, Message::Stdin("b".into())).await;
    drop(input);
    assert_eq!(rest(&mut answers).await, ("ab".to_owned(), Some(0)));
    let (input, mut answers) = exec(&mut room.client, begin("cat")).await.unwrap();
    send(&input, Message::StdinEnd(v1::ExecStdinEnd {})).await;
    assert_eq!(rest(&mut answers).await, (String::new(), Some(0)));
    assert_eq!(room.world.processes.running.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_client_that_goes_away_or_talks_nonsense_ends_its_process() {
    let mut room = room().await;
    room.live(spec("1")).await;
    let processes = Arc::clone(&room.world.processes);
    let none_runs = async || {
        let wait = async {
            while processes.running.load(Ordering::SeqCst) > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LIMIT, wait).await.expect("a process runs for nobody");
    };
    let (mut away, line) = behind_a_line(room.address).await;
    let (_input, _answers) = exec(&mut away, begin("cat")).await.unwrap();
    assert_eq!(processes.running.load(Ordering::SeqCst), 1);
    line.abort();
    none_runs().await;
    // The process was killed: it must not have seen the end of its input.
    assert_eq!(*processes.ends.lock(), [137]);
    let (input, mut answers) = exec(&mut room.client, begin("cat")).await.unwrap();
    send(&input, begin("cat")).await;
    let refused = tokio::time::timeout(LIMIT, answers.message()).await.unwrap().unwrap_err();
    assert_eq!(error_detail(&refused).unwrap().code, "invalid_message");
    none_runs().await;
    assert_eq!(*processes.ends.lock(), [137, 137]);
}

#[tokio::test]
async fn a_process_that_cannot_be_started_says_why() {
    let mut room = room().await;
    let code = async |room: &mut Room, first| {
        let refused = exec(&mut room.client, first).await.map(drop).unwrap_err();
        error_detail(&refused).unwrap().code
    };
    assert_eq!(code(&mut room, begin("cat")).await, "service_not_found");
    room.world.app("silent", FakeApp::Silent);
    room.live(spec("1")).await;
    assert_eq!(code(&mut room, begin("nope")).await, "command_not_found");
    assert_eq!(code(&mut room, Message::Signal(2)).await, "begin_missing");
    let nothing = Message::Begin(v1::ExecBegin { service: "web".to_owned(), ..v1::ExecBegin::default() });
    assert_eq!(code(&mut room, nothing).await, "invalid_command");
}
