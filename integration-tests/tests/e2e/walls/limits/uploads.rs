//! Uploads that stall, that fill the disk, or that exceed one caller's limit.

use std::fs;

use hearth_proto::v1::{WriteBegin, WriteFileRequest, write_file_request::Message};
use integration_tests::daemon::BASE;
use integration_tests::frames::{DATA, END_STREAM, Http2};
use integration_tests::grpc::{Api, block_on, detail};
use integration_tests::lone_cases;
use integration_tests::process;
use integration_tests::runner::Case;
use integration_tests::shared_cases;
use integration_tests::sources::{Tree, noise};

use sha2::{Digest as _, Sha256};
use tonic::{Code, Status};

use super::*;

pub fn cases() -> Vec<Case> {
    let mut cases = shared_cases![
        silent_writes_hold_no_thread,
        silent_loads_hold_no_thread,
        readers_that_do_not_read_hold_no_thread,
        each_caller_has_its_own_quota,
        the_result_of_a_build_counts_towards_its_submitter,
        an_image_beyond_the_size_limit_is_refused,
        unfinished_uploads_are_listed_and_expire,
    ];
    cases.extend(lone_cases![uploads_leave_the_floor_of_free_space]);
    cases
}

const STORAGE: &str = r#"{"storage":{"paths":[{"path":"/"}]}}"#;

fn digest_of(content: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(content)))
}

fn framed(message: &impl prost::Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    let size = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0], size.as_slice(), &message].concat()
}

fn begin(path: &str) -> WriteFileRequest {
    let begin = WriteBegin { path: path.to_owned(), ..Default::default() };
    WriteFileRequest { message: Some(Message::Begin(begin)) }
}

/// Opens upload streams that send only their first message, several on each connection.
fn open_stalled_streams(
    daemon: &Daemon,
    token: &str,
    path: &str,
    first: &[u8],
    connections: u32,
    streams: u32,
) -> Vec<Http2> {
    (0..connections)
        .map(|_| {
            let mut client = Http2::connect(&daemon.listen()).unwrap();
            for stream in (0..streams).map(|index| 2 * index + 1) {
                client.call(stream, path, Some(token)).unwrap();
                client.send(stream, first).unwrap();
            }
            client
        })
        .collect()
}

/// Asserts that operations that need threads and the database work for other callers: storage, blobs, a build.
#[track_caller]
fn assert_others_can_work(daemon: &Daemon, name: &str) {
    let begun = Instant::now();
    daemon.base_image();
    let source = Tree::new().dockerfile(&format!("FROM {BASE}\nCOPY a /\n")).file("a", name);
    let directory = tempfile::tempdir_in(daemon.directory()).unwrap();
    source.write(directory.path());
    daemon.hearth_ok(&["storage", "put", directory.path().to_str().unwrap(), name]);
    daemon.build_ok(&format!("{name}:1"), name, &[]);
    let manifest = Request::new("GET", &format!("/v2/{name}/manifests/1"))
        .bearer(daemon.token())
        .header("accept", integration_tests::http::ANY_MANIFEST)
        .send(&daemon.listen());
    assert_eq!(manifest.status, 200);
    assert_eq!(daemon.status_of("/readyz"), Some(200));
    runner::note(&format!("work of another caller took {:?}", begun.elapsed()));
    assert!(begun.elapsed() < seconds(60), "{:?}", begun.elapsed());
}

fn silent_writes_hold_no_thread(daemon: &Daemon) {
    // One caller may not have 600 concurrent requests, so three callers have 200 each.
    let held: Vec<_> = (0..3)
        .flat_map(|number| {
            let token = daemon.mint(&["--name", &format!("silent-{number}"), "--scope", STORAGE]);
            open_stalled_streams(
                daemon,
                &token,
                "/hearth.v1.Storage/Write",
                &framed(&begin("silent/x")),
                2,
                100,
            )
        })
        .collect();
    assert_others_can_work(daemon, "writes");
    drop(held);
}

fn silent_loads_hold_no_thread(daemon: &Daemon) {
    use hearth_proto::v1::{
        LoadBegin, LoadImageRequest, load_begin::Destination, load_image_request::Message,
    };
    let begin =
        LoadBegin { destination: Some(Destination::Tag("silent:1".to_owned())), ..Default::default() };
    let first = framed(&LoadImageRequest { message: Some(Message::Begin(begin)) });
    let held: Vec<_> = (0..3)
        .flat_map(|number| {
            let token = daemon.mint(&["--name", &format!("loader-{number}"), "--scope", "agentDefault"]);
            open_stalled_streams(daemon, &token, "/hearth.v1.Images/Load", &first, 2, 100)
        })
        .collect();
    assert_others_can_work(daemon, "loads");
    drop(held);
}

fn readers_that_do_not_read_hold_no_thread(daemon: &Daemon) {
    fs::create_dir_all(daemon.room_files().join("large")).unwrap();
    fs::write(daemon.room_files().join("large/file"), noise(5, 20_000_000)).unwrap();
    let read = hearth_proto::v1::ReadFileRequest { path: "large/file".to_owned(), ..Default::default() };
    let before = memory(daemon);
    let held: Vec<_> = (0..3)
        .flat_map(|number| {
            let token = daemon.mint(&["--name", &format!("reader-{number}"), "--scope", STORAGE]);
            let mut clients =
                open_stalled_streams(daemon, &token, "/hearth.v1.Storage/Read", &framed(&read), 2, 100);
            // The requests are complete, so the daemon begins to answer, but the clients do not read.
            for client in &mut clients {
                (0..100).for_each(|index| client.frame(DATA, END_STREAM, 2 * index + 1, &[]).unwrap());
            }
            clients
        })
        .collect();
    assert_others_can_work(daemon, "reads");
    grew_less_than(500 * MIB, daemon, before);
    drop(held);
}

async fn write(api: &Api, path: &str, content: &[u8]) -> Result<(), Status> {
    let chunk = |chunk: &[u8]| WriteFileRequest { message: Some(Message::Chunk(chunk.to_vec().into())) };
    let messages: Vec<_> = std::iter::once(begin(path)).chain(content.chunks(1 << 20).map(chunk)).collect();
    api.storage().write(tokio_stream::iter(messages)).await.map(drop)
}

fn each_caller_has_its_own_quota(daemon: &Daemon) {
    let mint = |name: &str| daemon.mint(&["--name", name, "--scope", "agentDefault"]);
    let (greedy, modest) = (mint("greedy"), mint("modest"));
    block_on(seconds(60), async {
        let api = Api::connect(&daemon.listen(), Some(greedy.clone())).await;
        write(&api, "quota/first", &noise(1, 5_000_000)).await.unwrap();
        let refused = write(&api, "quota/second", &noise(2, 5_000_000)).await.unwrap_err();
        assert_eq!(
            (refused.code(), detail(&refused).code.as_str()),
            (Code::ResourceExhausted, "quota_exceeded")
        );
        let other = Api::connect(&daemon.listen(), Some(modest.clone())).await;
        write(&other, "quota/theirs", &noise(3, 5_000_000)).await.unwrap();
    });
    assert!(!daemon.room_files().join("quota/second").exists());
    // Pushes to the registry count against the same quota.
    let push = |token: &str, content: &[u8]| {
        let begun = Request::new("POST", "/v2/quota/blobs/uploads/").bearer(token).send(&daemon.listen());
        if begun.status != 202 {
            return begun;
        }
        let digest = digest_of(content);
        let location = begun.header("location").unwrap().to_owned();
        Request::new("PUT", &format!("{location}?digest={digest}"))
            .bearer(token)
            .body(content)
            .send(&daemon.listen())
    };
    let content = noise(4, 4_000_000);
    let refused = push(&greedy, &content);
    assert!(refused.status == 403 && refused.text().contains("quota_exceeded"), "{}", refused.text());
    assert_eq!(push(&modest, &noise(5, 1_000_000)).status, 201);
    // Removed content no longer counts.
    daemon.hearth_ok(&["storage", "rm", "quota/first"]);
    assert_eq!(push(&greedy, &content).status, 201);
    let usage = daemon.hearth_ok(&["system", "df", "--json"]).json();
    let of = |name: &str| {
        let callers = usage["callers"].as_array().unwrap();
        callers.iter().find(|caller| caller["caller"] == name).unwrap().clone()
    };
    assert_eq!(
        (of("greedy")["image_bytes"].as_u64(), of("greedy")["file_bytes"].as_u64()),
        (Some(4_000_000), Some(0))
    );
    assert_eq!(
        (of("modest")["image_bytes"].as_u64(), of("modest")["file_bytes"].as_u64()),
        (Some(1_000_000), Some(5_000_000))
    );
    // A caller that is not an administrator sees its own usage.
    let mut client = daemon.client();
    let own = process::run(client.env("HEARTH_TOKEN", &modest).args(["system", "df", "--json"]), seconds(60))
        .json();
    let names: Vec<_> =
        own["callers"].as_array().unwrap().iter().map(|caller| caller["caller"].clone()).collect();
    assert_eq!(names, ["modest"]);
    let shown = daemon.hearth_ok(&["system", "df"]);
    assert!(shown.stdout.contains("greedy") && shown.stdout.contains("IMAGES"), "{shown}");
}

fn the_result_of_a_build_counts_towards_its_submitter(daemon: &Daemon) {
    let token = |name: &str| daemon.mint(&["--name", name, "--scope", "agentDefault"]);
    let build = |token: &str, name: &str, bytes: usize| {
        let source = Tree::new().dockerfile("FROM scratch\nCOPY a /\n");
        daemon.put(name, &source.file("a", noise(bytes as u64, bytes)));
        let (tag, mount) = (format!("{name}:1"), format!("{name}:/context"));
        let mut client = daemon.client();
        client.env("HEARTH_ADDR", format!("http://{}", daemon.listen())).env("HEARTH_TOKEN", token);
        process::run(client.args(["build", "--tag", &tag, "--mount-room-path", &mount]), seconds(120))
    };
    let (maker, other) = (token("maker"), token("other-maker"));
    build(&maker, "made-1", 5_000_000).expect_code(0);
    let usage = daemon.hearth_ok(&["system", "df", "--json"]).json();
    let callers = usage["callers"].as_array().unwrap();
    let images = callers.iter().find(|caller| caller["caller"] == "maker").unwrap()["image_bytes"].as_u64();
    assert!(images > Some(5_000_000), "{usage}");
    let refused = build(&maker, "made-2", 5_000_001);
    assert_ne!(refused.code, 0, "{refused}");
    refused.says(&["one caller may hold"]);
    assert!(daemon.tag_digest("made-2", "1").is_none());
    build(&other, "made-3", 5_000_002).expect_code(0);
}

fn an_image_beyond_the_size_limit_is_refused(daemon: &Daemon) {
    let token = daemon.mint(&["--name", "large", "--scope", "agentDefault"]);
    let push = |content: &[u8]| {
        let path = format!("/v2/large/blobs/uploads/?digest={}", digest_of(content));
        Request::new("POST", &path).bearer(&token).body(content).send(&daemon.listen())
    };
    let refused = push(&noise(40, 7_000_001));
    assert!(refused.status == 403 && refused.text().contains("one image may have"), "{}", refused.text());
    let layers = [noise(41, 3_600_000), noise(42, 3_600_000)];
    let config = b"{}".to_vec();
    for blob in layers.iter().chain([&config]) {
        push(blob).expect(201);
    }
    let descriptor = |kind: &str, content: &[u8]| serde_json::json!({"mediaType": kind, "digest": digest_of(content), "size": content.len()});
    let manifest = |layers: &[Vec<u8>]| {
        let kind = "application/vnd.oci.image.layer.v1.tar";
        let layers: Vec<_> = layers.iter().map(|layer| descriptor(kind, layer)).collect();
        serde_json::json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config), "layers": layers})
    };
    let put = |manifest: serde_json::Value| {
        Request::new("PUT", "/v2/large/manifests/1")
            .bearer(&token)
            .header("content-type", "application/vnd.oci.image.manifest.v1+json")
            .body(manifest.to_string())
            .send(&daemon.listen())
    };
    let refused = put(manifest(&layers));
    assert!(refused.status == 413 && refused.text().contains("image_too_large"), "{}", refused.text());
    put(manifest(&layers[..1])).expect(201);
}

fn unfinished_uploads_are_listed_and_expire(daemon: &Daemon) {
    let idle = daemon.mint(&["--name", "idle", "--scope", "agentDefault"]);
    let begun = Request::new("POST", "/v2/idle/blobs/uploads/").bearer(&idle).send(&daemon.listen());
    let location = begun.header("location").unwrap().to_owned();
    let patched =
        Request::new("PATCH", &location).bearer(&idle).body(noise(6, 300_000)).send(&daemon.listen());
    assert_eq!(patched.status, 202);
    let held =
        open_stalled_streams(daemon, &idle, "/hearth.v1.Storage/Write", &framed(&begin("idle/x")), 1, 1);
    let uploads = || {
        let usage = daemon.hearth_ok(&["system", "df", "--json"]).json();
        let all = usage["uploads"].as_array().unwrap().clone();
        all.into_iter().filter(|upload| upload["caller"] == "idle").collect::<Vec<_>>()
    };
    let listed = uploads();
    let shown = |kind: &str, name: &str, bytes: u64| {
        listed.iter().any(|one| one["kind"] == kind && one["name"] == name && one["bytes"] == bytes)
    };
    assert!(shown("blob", "idle", 300_000) && shown("file", "idle/x", 0), "{listed:?}");
    // This daemon's idle limits for both kinds of upload are a few seconds.
    assert!(soon(seconds(40), || uploads().is_empty()), "{:?}", uploads());
    assert_eq!(Request::new("GET", &location).bearer(&idle).send(&daemon.listen()).status, 404);
    assert_eq!(fs::read_dir(daemon.state().join("registry/uploads")).unwrap().count(), 0);
    drop(held);
}

fn uploads_leave_the_floor_of_free_space() {
    // More than half of the state directory's file system must stay free.
    let config =
        "[uploads]\nmin_free_bytes = 60000000\n[builds]\nmin_free_bytes = 0\n[packs]\nmin_free_bytes = 0\n";
    let daemon = Daemon::start(Options::room("walls_floor").config(config).state_size("100m"));
    let free = || rustix::fs::statvfs(daemon.state()).map(|disk| disk.f_bavail * disk.f_frsize).unwrap();
    let token = daemon.token().to_owned();
    let (mut stored, mut last) = (0, String::new());
    for number in 0..20u64 {
        let content = noise(number, 3_000_000);
        let digest = digest_of(&content);
        let path = format!("/v2/floor/blobs/uploads/?digest={digest}");
        let pushed = Request::new("POST", &path).bearer(&token).body(content).send(&daemon.listen());
        if pushed.status != 201 {
            last = format!("{} {}", pushed.status, pushed.text());
            break;
        }
        stored += 1;
    }
    assert!(stored > 0 && last.starts_with("507"), "{stored} were stored, then {last}");
    assert!(free() > 55_000_000, "{} bytes are free", free());
    block_on(seconds(60), async {
        let api = Api::connect(&daemon.listen(), Some(token)).await;
        let refused = write(&api, "floor/file", &noise(30, 6_000_000)).await.unwrap_err();
        assert_eq!(detail(&refused).code, "no_space", "{refused:?}");
    });
    let (tree, archive) = (daemon.directory().join("tree"), daemon.directory().join("archive.tar"));
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("noise"), noise(31, 8_000_000)).unwrap();
    daemon.hearth_ok(&["pack", tree.to_str().unwrap(), "-o", archive.to_str().unwrap()]);
    let load = daemon.hearth(&["images", "load", archive.to_str().unwrap(), "--tag", "floor:1"]);
    assert_eq!(load.code, 1, "{load}");
    load.says(&["free"]);
    assert!(free() > 55_000_000, "{} bytes are free", free());
}
