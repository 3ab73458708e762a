//! Tests of routes that change while requests are in flight.

use std::sync::atomic::{AtomicBool, AtomicUsize};

use super::*;

const TINY: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Answers each request after a moment, for as long as the connection lasts.
async fn answers(mut stream: TcpStream, _: usize) {
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer).await {
            Ok(read) if read > 0 => seen.extend_from_slice(&buffer[..read]),
            _ => return,
        }
        if seen.ends_with(b"\r\n\r\n") {
            seen.clear();
            tokio::time::sleep(Duration::from_millis(3)).await;
            if stream.write_all(TINY).await.is_err() {
                return;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_instances_come_and_go() {
    let scene = Arc::new(Scene::new(Options::default()).await);
    let mut current = Instance::scripted(answers).await;
    scene.route(Some(current.address));
    let (over, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..16)
        .map(|number| {
            let (scene, over, asked) = (Arc::clone(&scene), Arc::clone(&over), Arc::clone(&asked));
            crate::task::spawn("client", async move {
                let mut kept = scene.connect().await;
                while !over.load(Ordering::SeqCst) {
                    if number % 2 == 0 {
                        kept.write_all(
                            b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 4\r\n\r\n\r\n\r\n",
                        )
                        .await
                        .unwrap();
                        let answer = read_until(&mut kept, "ok").await;
                        assert_eq!(status(&answer), "200", "{answer}");
                    } else {
                        let answer = scene.get("/").await;
                        assert_eq!(status(&answer), "200", "{answer}");
                    }
                    asked.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    for _ in 0..30 {
        let next = Instance::scripted(answers).await;
        scene.route(Some(next.address));
        let old = std::mem::replace(&mut current, next);
        assert_eq!(scene.ingress.drain(old.address, LONG).await, 0);
        old.kill().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    over.store(true, Ordering::SeqCst);
    for client in clients {
        client.await.unwrap();
    }
    assert!(asked.load(Ordering::SeqCst) > 300, "{asked:?}");
    assert_eq!(scene.ingress.backends().len(), 1, "nothing is left of the instances that went");
}

#[tokio::test]
async fn a_request_in_flight_stays_with_its_instance_and_the_drain_waits_for_it() {
    let scene = Scene::new(Options::default()).await;
    let answer = CancellationToken::new();
    let may_answer = answer.clone();
    let old = Instance::scripted(move |mut stream, _| {
        let may_answer = may_answer.clone();
        async move {
            read_until(&mut stream, "\r\n\r\n").await;
            may_answer.cancelled().await;
            stream.write_all(TINY).await.unwrap();
        }
    })
    .await;
    scene.route(Some(old.address));
    let asked = scene.get("/");
    let switched = async {
        scene.until_in_flight(1).await;
        scene.route(None);
        let drain = scene.ingress.drain(old.address, LONG);
        tokio::pin!(drain);
        let early = tokio::time::timeout(Duration::from_millis(200), &mut drain).await;
        assert!(early.is_err(), "it does not wait for the request");
        answer.cancel();
        assert_eq!(drain.await, 0);
    };
    let (answer, ()) = tokio::join!(asked, switched);
    assert_eq!(status(&answer), "200", "{answer}");
    assert_eq!(scene.ingress.drain(old.address, LONG).await, 0, "a drained one is forgotten");
}

#[tokio::test]
async fn what_outlives_the_drain_limit_is_cut_and_counted() {
    let scene = Scene::new(Options::default()).await;
    let old = Instance::scripted(|mut stream, _| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n").await.unwrap();
        tokio::time::sleep(LONG).await;
    })
    .await;
    scene.route(Some(old.address));
    let asked = scene.get("/");
    let cut = async {
        scene.until_in_flight(1).await;
        // The beginning of the answer has been sent by then.
        tokio::time::sleep(Duration::from_millis(200)).await;
        scene.route(None);
        assert_eq!(scene.ingress.drain(old.address, Duration::from_millis(100)).await, 1);
    };
    let (answer, ()) = tokio::join!(asked, cut);
    assert!(answer.contains("ok") && !answer.ends_with("0\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn an_instance_that_was_drained_can_be_routed_again() {
    let scene = Scene::new(Options::default()).await;
    let web = Instance::serving(echo).await;
    for _ in 0..3 {
        scene.route(Some(web.address));
        assert_eq!(status(&scene.get("/").await), "200");
        scene.route(None);
        assert_eq!(scene.ingress.drain(web.address, LONG).await, 0);
    }
}
