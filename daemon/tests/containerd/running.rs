//! Lifecycle of an instance: what it sees, what it may use, how it exits.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use hearth_pack::image::ConfigFlags;
use hearthd::deploy::port::{BindMount, ContainerRuntime as _, InstanceState, RuntimeError};
use hearthd::instance_log::read::{ExcerptQuery, read_excerpt};
use hearthd::model::id::InstanceId;
use hearthd::model::secret::Secret;
use hearthd::model::service::ResourceLimits;

use crate::fixture::{Fixture, LIMIT, alive, lines};

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102::/srv:/bin/false\n";
const GROUP: &str = "root:x:0:\nweb:x:102:\nlog:x:20:web\n";

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_sees_what_its_image_and_its_service_say() {
    Fixture::run(async |fixture| {
        let config = ConfigFlags {
            user: Some("web".into()),
            env: vec!["MODE=cold".into(), "KEPT=1".into()],
            workdir: Some("/srv/app".into()),
            ..ConfigFlags::default()
        };
        let image = fixture.image(config, &[("etc/passwd", 0o644, PASSWD), ("etc/group", 0o644, GROUP)]);
        let mut spec = fixture.spec(&image, &[]);
        spec.env = BTreeMap::from([("MODE".into(), Secret::new("hot".into()))]);
        spec.limits = ResourceLimits { memory_bytes: Some(64 << 20), cpu_millis: Some(500) };
        let storage = fixture.dir.path().join("storage");
        fs::create_dir(&storage).unwrap();
        fs::write(storage.join("file"), "from the room\n").unwrap();
        std::os::unix::fs::chown(&storage, Some(101), None).unwrap();
        let mount = |target: &str, read_only| BindMount {
            source: storage.clone(),
            target: target.parse().unwrap(),
            read_only,
            fill: false,
        };
        spec.mounts = vec![mount("/data/ro", true), mount("/data", false)];
        fs::create_dir(storage.join("ro")).unwrap();
        let (exit, lines) = fixture
            .script(
                spec,
                "id; pwd; echo $MODE $KEPT $HOSTNAME $HOME; cat /etc/hosts /etc/resolv.conf /etc/hostname; \
                 cat /data/file; echo back > /data/new; echo no > /data/ro/new; \
                 grep -E 'NoNewPrivs|Seccomp:|CapEff' /proc/self/status; ls /sys/class/net; \
                 ls /proc/self/ns/net -l; cat /proc/kcore | head -c 1; echo x > /sys/x; echo x > /proc/sys/kernel/domainname; \
                 stat -c %a /dev/shm; echo x > /dev/shm/x && cat /dev/shm/x; cat /sys/fs/cgroup/memory*/memory.limit_in_bytes \
                 /sys/fs/cgroup/memory.max; printf end >&2; exit 5",
            )
            .await;
        println!("{lines:#?}");
        assert_eq!((exit.code, exit.out_of_memory), (Some(5), false));
        let has = |text: &str| assert!(lines.iter().any(|line| line.contains(text)), "{text}");
        has("uid=101(web) gid=102(web) groups=20(log),102(web)");
        assert_eq!(lines.iter().filter(|line| *line == "/srv/app").count(), 1);
        has("hot 1 web /srv");
        has("10.9.8.7 other");
        has("nameserver 10.9.8.1");
        assert!(lines.contains(&"web".to_owned()));
        has("from the room");
        has("/data/ro/new: Read-only file system");
        has("NoNewPrivs:\t1");
        has("Seccomp:\t2");
        // A user other than root has none of the capabilities that root would have here.
        has("CapEff:\t0000000000000000");
        assert_eq!(lines.iter().filter(|line| *line == "lo").count(), 1, "an own network");
        has("/sys/x: Read-only file system");
        has("67108864");
        assert_eq!(lines.last().unwrap(), "end", "a last line needs no newline");
        assert_eq!(fs::read_to_string(storage.join("new")).unwrap(), "back\n");
        assert!(!storage.join("ro/new").exists());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_directory_begins_with_what_the_image_has_there() {
    Fixture::run(async |fixture| {
        let image = fixture.image(ConfigFlags::default(), &[("var/data/inner/file", 0o640, "of the image\n")]);
        let empty = |name: &str| {
            let source = fixture.dir.path().join(name);
            fs::create_dir(&source).unwrap();
            fs::set_permissions(&source, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
            source
        };
        let mut spec = fixture.spec(&image, &[]);
        let mount = |name: &str, target: &str| BindMount {
            source: empty(name),
            target: target.parse().unwrap(),
            read_only: false,
            fill: true,
        };
        spec.mounts = vec![mount("volume", "/var/data"), mount("fresh", "/fresh")];
        let script = "cat /var/data/inner/file; stat -c %a /var/data/inner/file /fresh; echo changed > /var/data/inner/file";
        let (exit, lines) = fixture.script(spec, script).await;
        assert_eq!((exit.code, lines), (Some(0), ["of the image", "640", "777"].map(str::to_owned).to_vec()));
        // The image itself is unchanged.
        let (_, lines) = fixture.script(fixture.spec(&image, &[]), "cat /var/data/inner/file").await;
        assert_eq!(lines, ["of the image"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_target_behind_a_link_of_the_image_stays_inside() {
    Fixture::run(async |fixture| {
        let outside = fixture.dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        let link = format!("-> {}", outside.display());
        let up = format!("-> ../../../../../../../..{}", outside.display());
        let image = fixture.image(ConfigFlags::default(), &[("out", 0, &link), ("up", 0, &up)]);
        let storage = fixture.dir.path().join("storage");
        fs::create_dir(&storage).unwrap();
        for target in ["/out/inner", "/up/inner2", "/out"] {
            let mut spec = fixture.spec(&image, &[]);
            let target = target.parse().unwrap();
            spec.mounts = vec![BindMount { source: storage.clone(), target, read_only: false, fill: false }];
            let (exit, lines) = fixture.script(spec, "echo hello").await;
            assert_eq!((exit.code, lines), (Some(0), vec!["hello".to_owned()]));
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "nothing was made outside");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_sends_sigterm_first_and_kills_after_the_limit() {
    Fixture::run(async |fixture| {
        let image = fixture.image(ConfigFlags::default(), &[]);
        let polite = fixture
            .spec(&image, &["/bin/sh", "-c", "trap 'echo bye; exit 3' TERM; while :; do sleep 0.05; done"]);
        let deaf = fixture.spec(&image, &["/bin/sh", "-c", "trap '' TERM; while :; do sleep 0.05; done"]);
        let log = polite.log.clone();
        let ids = [polite.label.instance.clone(), deaf.label.instance.clone()];
        let label = polite.label.clone();
        for spec in [polite, deaf] {
            fixture.runtime.start(spec).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        let pid = fixture.pid(&ids[0]).await;
        assert!(alive(pid));
        assert_eq!(fixture.observed(&ids[0]).await.unwrap().label, label);

        fixture.runtime.stop(&ids[0], LIMIT).await.unwrap();
        assert_eq!(fixture.ended(&ids[0]).await.code, Some(3));
        assert_eq!(lines(&log), ["bye"]);
        let begun = Instant::now();
        fixture.runtime.stop(&ids[1], Duration::from_millis(300)).await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(5));
        assert_eq!(fixture.ended(&ids[1]).await.code, Some(137));
        // Every operation can be repeated.
        fixture.runtime.stop(&ids[1], LIMIT).await.unwrap();
        for id in &ids {
            fixture.runtime.remove(id).await.unwrap();
            fixture.runtime.remove(id).await.unwrap();
        }
        assert_eq!(fixture.runtime.list().await.unwrap(), []);
        assert!(matches!(fixture.runtime.stop(&ids[0], LIMIT).await, Err(RuntimeError::NotFound(_))));
        fixture.runtime.remove(&InstanceId::random()).await.unwrap();
        assert_eq!(lines(&log), ["bye"], "the log stays");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_runs_out_of_memory_is_reported_as_such() {
    Fixture::run(async |fixture| {
        let image = fixture.image(ConfigFlags::default(), &[]);
        let mut spec = fixture.spec(&image, &[]);
        spec.limits.memory_bytes = Some(24 << 20);
        // One line without an end, held in memory.
        let (exit, _) = fixture.script(spec, "exec head -c 200000000 /dev/zero | exec grep x").await;
        println!("{exit:?}");
        assert!(exit.out_of_memory);
        let (exit, _) = fixture.script(fixture.spec(&image, &[]), "kill -9 $$").await;
        assert_eq!(
            (exit.code, exit.out_of_memory),
            (Some(0), false),
            "the first process is not killed from inside"
        );
        let (exit, _) = fixture.script(fixture.spec(&image, &[]), "exit 137").await;
        assert_eq!((exit.code, exit.out_of_memory), (Some(137), false));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fails_says_why_and_leaves_nothing() {
    Fixture::run(async |fixture| {
        let plain =
            fixture.image(ConfigFlags::default(), &[("etc/plain", 0o644, "text"), ("run.sh", 0o755, "text")]);
        let nobody =
            fixture.image(ConfigFlags { user: Some("nobody".into()), ..ConfigFlags::default() }, &[]);
        let in_file = fixture
            .image(ConfigFlags { workdir: Some("/bin/busybox".into()), ..ConfigFlags::default() }, &[]);
        let mut unmounted = fixture.spec(&plain, &["/bin/true"]);
        let source = fixture.dir.path().join("missing");
        unmounted.mounts =
            vec![BindMount { source, target: "/data".parse().unwrap(), read_only: true, fill: false }];
        for (spec, expected) in [
            (fixture.spec(&plain, &["nope"]), "command_not_found"),
            (fixture.spec(&plain, &["/nope"]), "command_not_found"),
            (fixture.spec(&plain, &["/etc/plain"]), "not_executable"),
            (fixture.spec(&plain, &["/bin"]), "not_executable"),
            (fixture.spec(&nobody, &["/bin/true"]), "user_not_found"),
            (fixture.spec(&in_file, &["/bin/true"]), "workdir_invalid"),
            (unmounted, "mount_failed"),
            (fixture.spec(&plain, &[]), "no_command"),
        ] {
            let error = fixture.runtime.start(spec).await.unwrap_err();
            println!("{error}");
            let RuntimeError::StartFailed { code, .. } = error else { panic!("{error:?}") };
            assert_eq!(code, expected);
            assert_eq!(fixture.runtime.list().await.unwrap(), []);
            assert_eq!(fixture.settled().await, Vec::<String>::new());
        }
        // The kernel reads the file only when it runs, so this is an exit, not a failed start.
        let spec = fixture.spec(&plain, &["/run.sh"]);
        let (id, log) = (spec.label.instance.clone(), spec.log.clone());
        match fixture.runtime.start(spec).await {
            Ok(()) => println!("{:?} {:?}", fixture.ended(&id).await, lines(&log)),
            Err(error) => println!("{error:?}"),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_output_neither_fills_the_disk_nor_holds_the_instance_up() {
    Fixture::run(async |fixture| {
        let image = fixture.image(ConfigFlags::default(), &[]);
        let spec = fixture.spec(&image, &[]);
        let log = spec.log.clone();
        let begun = Instant::now();
        let (exit, _) = fixture
            .script(spec, "yes 0123456789012345678901234567890123456789 | head -n 2000000; echo last")
            .await;
        println!("82 MB of log in {:?}", begun.elapsed());
        assert_eq!(exit.code, Some(0));
        let bytes: u64 =
            fs::read_dir(&log).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
        assert!(bytes <= (16 << 20) + 4096, "{bytes}");
        let tail = read_excerpt(&log, &ExcerptQuery { tail: Some(1), ..ExcerptQuery::default() }).unwrap();
        assert_eq!(tail.lines[0].text, b"last");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn starting_and_stopping_take_little_time() {
    Fixture::run(async |fixture| {
        let image = fixture.image(ConfigFlags::default(), &[]);
        let begun = Instant::now();
        fixture.runtime.prepare(&image).await.unwrap();
        println!("prepare: {:?}", begun.elapsed());
        let begun = Instant::now();
        fixture.runtime.prepare(&image).await.unwrap();
        println!("prepare again: {:?}", begun.elapsed());
        let mut times: [Vec<Duration>; 4] = Default::default();
        for _ in 0..10 {
            let spec = fixture.spec(&image, &["/bin/sleep", "1000"]);
            let id = spec.label.instance.clone();
            let mut take = |index: usize, begun: Instant| times[index].push(begun.elapsed());
            let begun = Instant::now();
            fixture.runtime.start(spec).await.unwrap();
            take(0, begun);
            let begun = Instant::now();
            assert!(matches!(fixture.observed(&id).await.unwrap().state, InstanceState::Running { .. }));
            take(1, begun);
            let begun = Instant::now();
            fixture.runtime.stop(&id, Duration::ZERO).await.unwrap();
            take(2, begun);
            let begun = Instant::now();
            fixture.runtime.remove(&id).await.unwrap();
            take(3, begun);
        }
        for (name, times) in ["start", "list", "stop", "remove"].iter().zip(&mut times) {
            times.sort();
            println!("{name}: p50 {:?}, worst {:?}", times[5], times[9]);
        }
    })
    .await;
}
