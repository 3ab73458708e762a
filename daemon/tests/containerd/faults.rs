//! Faults: processes that are killed at a bad moment.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hearth_pack::image::ConfigFlags;
use hearthd::containerd::namespace_of_state_dir;
use hearthd::deploy::port::{ContainerRuntime as _, InstanceState};
use hearthd::registry::blobs::BlobStore;
use rustix::process::Signal;

use crate::fixture::{Fixture, LIMIT, alive, kill, lines, managed_in, processes, signal};

#[tokio::test(flavor = "multi_thread")]
async fn instances_live_on_when_containerd_is_killed_and_are_taken_back() {
    Fixture::run(async |fixture| {
        let image = fixture.image(ConfigFlags::default(), &[]);
        let lasting = fixture.spec(&image, &["/bin/sh", "-c", "while :; do echo tick; sleep 0.02; done"]);
        let ending = fixture.spec(&image, &["/bin/sh", "-c", "sleep 0.6; echo done; exit 9"]);
        let (id, log) = (lasting.label.instance.clone(), lasting.log.clone());
        let (short, short_log) = (ending.label.instance.clone(), ending.log.clone());
        fixture.runtime.start(lasting).await.unwrap();
        fixture.runtime.start(ending).await.unwrap();
        let pid = fixture.pid(&id).await;
        let mut changes = fixture.runtime.changes();
        kill(fixture.containerd_pid());
        let killed = Instant::now();
        let before = lines(&log).len();
        tokio::time::sleep(Duration::from_millis(100)).await;
        fixture.ready().await;
        loop {
            match fixture.runtime.list().await {
                Ok(_) => break,
                Err(error) => println!("{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        println!("back after {:?}", killed.elapsed());
        tokio::time::timeout(LIMIT, changes.changed()).await.unwrap().unwrap();
        assert_eq!(fixture.pid(&id).await, pid, "the same process");
        assert!(alive(pid));
        assert!(lines(&log).len() > before, "its log went on");
        let exit = fixture.ended(&short).await;
        println!("{exit:?}");
        assert_eq!(lines(&short_log), ["done"]);
        assert!(matches!(exit.code, Some(9) | None), "{exit:?}");
        fixture.runtime.stop(&id, Duration::ZERO).await.unwrap();
        assert_eq!(fixture.ended(&id).await.code, Some(137));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_whose_shim_is_killed_is_reported_as_ended_and_can_be_removed() {
    Fixture::run(async |fixture| {
        let id = fixture.sleeping().await;
        let pid = fixture.pid(&id).await;
        let shims = processes(fixture.dir.path(), &["containerd-shim"]);
        assert_eq!(shims.len(), 1, "{shims:?}");
        kill(shims[0].split(' ').next().unwrap().parse().unwrap());
        let exit = fixture.ended(&id).await;
        println!("{exit:?}");
        fixture.runtime.remove(&id).await.unwrap();
        assert!(!alive(pid));
        assert_eq!(fixture.settled().await, Vec::<String>::new());
        assert_eq!(fixture.runtime.list().await.unwrap(), []);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_whose_shim_does_not_answer_is_not_taken_for_ended() {
    Fixture::run(async |fixture| {
        let id = fixture.sleeping().await;
        let pid = fixture.pid(&id).await;
        let shims = processes(fixture.dir.path(), &["containerd-shim"]);
        let shim = shims[0].split(' ').next().unwrap().parse().unwrap();
        assert_eq!(shims.len(), 1, "{shims:?}");
        signal(shim, Signal::STOP);
        // Waits until all of its threads have stopped.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let state = fixture.observed(&id).await.map(|observed| observed.state);
        signal(shim, Signal::CONT);
        assert_eq!(state, Some(InstanceState::Running { pid: 0 }), "containerd does not know its pid then");
        assert_eq!(fixture.pid(&id).await, pid);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_can_be_killed_at_once() {
    Fixture::run(async |fixture| {
        let id = fixture.sleeping().await;
        let pid = fixture.pid(&id).await;
        let shims = processes(fixture.dir.path(), &["containerd-shim"]);
        kill(fixture.containerd_pid());
        kill(shims[0].split(' ').next().unwrap().parse().unwrap());
        tokio::time::sleep(Duration::from_millis(100)).await;
        fixture.ready().await;
        let state = fixture.observed(&id).await.unwrap().state;
        println!("{state:?}");
        assert!(matches!(state, InstanceState::Exited(_)), "{state:?}");
        fixture.runtime.remove(&id).await.unwrap();
        assert!(!alive(pid));
        assert_eq!(fixture.settled().await, Vec::<String>::new());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_is_cut_short_anywhere_is_seen_and_can_be_removed() {
    Fixture::run(async |fixture| {
        let image = fixture.image(ConfigFlags::default(), &[]);
        fixture.runtime.prepare(&image).await.unwrap();
        let mut incomplete = 0;
        for step in 0..16 {
            let spec = fixture.spec(&image, &["/bin/sleep", "1000"]);
            let id = spec.label.instance.clone();
            // Simulates a killed daemon: nothing more of it runs.
            let cut =
                tokio::time::timeout(Duration::from_millis(step * 6), fixture.runtime.start(spec)).await;
            let seen = fixture.observed(&id).await.map(|observed| observed.state);
            println!("after {} ms: {} {seen:?}", step * 6, if cut.is_ok() { "started" } else { "cut" });
            incomplete += u32::from(seen == Some(InstanceState::Incomplete));
            let begun = Instant::now();
            loop {
                fixture.runtime.remove(&id).await.unwrap();
                // containerd may finish what it had started; the next reconciliation removes it again.
                if fixture.observed(&id).await.is_none() && fixture.leftovers().is_empty() {
                    break;
                }
                assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", fixture.leftovers());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        assert!(incomplete > 0, "some were seen half made");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_comes_back_finds_its_instances_and_another_ones_are_not_seen() {
    Fixture::run(async |fixture| {
        let id = fixture.sleeping().await;
        let pid = fixture.pid(&id).await;
        // Second daemon on the same machine.
        let other = tempfile::tempdir().unwrap();
        let blobs = Arc::new(BlobStore::open(&other.path().join("room")).unwrap());
        let namespace = namespace_of_state_dir(other.path()).unwrap();
        for _ in 0..2 {
            let (runtime, supervision) = managed_in(other.path(), &namespace, &blobs);
            let mut status = runtime.status();
            tokio::time::timeout(LIMIT, status.wait_for(|status| status.ready)).await.unwrap().unwrap();
            assert_eq!(runtime.list().await.unwrap(), []);
            drop(runtime);
            // It shuts down cleanly, and starts again.
            supervision.stop().await;
        }
        assert_eq!(processes(other.path(), &[""]), Vec::<String>::new());
        assert_eq!(fixture.pid(&id).await, pid);
    })
    .await;
}
