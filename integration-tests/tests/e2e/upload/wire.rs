//! Hand-made uploads: messages that Hearth's own client would not send.

use std::fs;

use hearth_pack::FileKind;
use hearth_pack::identity::{ContentHash, HashedContent, TreeHasher, TreeNode};
use hearth_proto::v1::list_pack_request::Part;
use hearth_proto::v1::{
    BeginPackRequest, CommitPackRequest, ListPackRequest, ListPackResponse, Mount, PackEntries, PackEntry,
    PackEntryKind, PackPiece, PackResult, SendPackRequest, begin_pack_request::Destination,
    begin_pack_response::Answer, mount::Source, send_pack_request::Data,
};
use integration_tests::daemon::{Daemon, Options};
use integration_tests::grpc::{Api, block_on, detail, spec};
use integration_tests::sources::noise;
use integration_tests::wait::seconds;
use tonic::{Code, Status};

fn file(path: &str, content: &[u8]) -> PackEntry {
    let mut entry = PackEntry {
        path: path.as_bytes().to_vec().into(),
        mode: 0o644,
        size: content.len() as u64,
        content: ContentHash::of(content).as_bytes().to_vec().into(),
        ..Default::default()
    };
    entry.set_kind(PackEntryKind::File);
    entry
}

fn other(path: &str, kind: PackEntryKind, target: &str) -> PackEntry {
    let (path, target) = (path.as_bytes().to_vec().into(), target.as_bytes().to_vec().into());
    let mut entry = PackEntry { path, target, mode: 0o755, ..Default::default() };
    entry.set_kind(kind);
    entry
}

/// Returns the digest of a list, whether or not a walk could produce the list.
fn digest(entries: &[PackEntry]) -> String {
    let mut sum = TreeHasher::default();
    for entry in entries {
        let kind = match entry.kind() {
            PackEntryKind::Directory => FileKind::Directory,
            PackEntryKind::Symlink => FileKind::Symlink(&entry.target[..]),
            PackEntryKind::Hardlink => FileKind::HardLink(&entry.target[..]),
            _ => {
                let content = ContentHash::from_bytes(entry.content.as_ref().try_into().unwrap());
                FileKind::File(HashedContent { size: entry.size, hash: content })
            }
        };
        sum.node(&TreeNode { path: &entry.path, mode: entry.mode, kind, xattrs: &[] });
    }
    sum.finish().to_string()
}

async fn begin(api: &Api, tree: &str) -> Result<Answer, Status> {
    let destination = Some(Destination::Temporary(true));
    let request = BeginPackRequest { tree: tree.to_owned(), destination, ..Default::default() };
    Ok(api.packs().begin(request).await?.into_inner().answer.expect("an answer"))
}

async fn upload(api: &Api, tree: &str) -> String {
    match begin(api, tree).await.expect("begin") {
        Answer::UploadId(id) => id,
        Answer::Done(result) => panic!("the room has it: {result:?}"),
    }
}

async fn list(api: &Api, upload_id: &str, entries: Vec<PackEntry>) -> Result<ListPackResponse, Status> {
    let part = Some(Part::Entries(PackEntries { entries }));
    let message = ListPackRequest { upload_id: upload_id.to_owned(), part };
    Ok(api.packs().list(tokio_stream::once(message)).await?.into_inner())
}

async fn send(api: &Api, upload_id: &str, entry: u32, content: &[u8]) -> Result<(), Status> {
    let message = SendPackRequest {
        upload_id: upload_id.to_owned(),
        pieces: vec![PackPiece { entry, chunk: 0, size: content.len() as u32 }],
        data: Some(Data::Plain(content.to_vec().into())),
    };
    api.packs().send(tokio_stream::once(message)).await.map(|_| ())
}

async fn commit(api: &Api, upload_id: &str, proof: &[u8]) -> Result<PackResult, Status> {
    let request = CommitPackRequest { upload_id: upload_id.to_owned(), proof: proof.to_vec().into() };
    Ok(api.packs().commit(request).await?.into_inner().result.expect("a result"))
}

/// Sends a list and its one content, both complete.
async fn send_all(api: &Api, entries: Vec<PackEntry>, content: &[u8]) -> PackResult {
    let id = upload(api, &digest(&entries)).await;
    let needs = list(api, &id, entries).await.expect("list");
    for entry in needs.missing {
        send(api, &id, entry, content).await.expect("send");
    }
    commit(api, &id, b"").await.expect("commit")
}

async fn participant(daemon: &Daemon, name: &str) -> Api {
    let token = daemon.mint(&["--name", name, "--scope", "full"]);
    Api::connect(&daemon.listen(), Some(token)).await
}

pub fn a_pack_of_another_participant_cannot_be_built_from(daemon: &Daemon) {
    let dockerfile = b"FROM scratch\nCOPY Dockerfile /\n";
    block_on(seconds(100), async {
        let (ann, bob) = (participant(daemon, "ann").await, participant(daemon, "bob").await);
        let result = send_all(&ann, vec![file("Dockerfile", dockerfile)], dockerfile).await;
        let build = |tag: &str| {
            let source = Some(Source::PackId(result.pack_id.clone()));
            let mut spec = spec(tag, "");
            spec.mounts = vec![Mount { source, target: "/context".to_owned(), ..Mount::default() }];
            spec
        };
        let refused = bob.submit(build("stolen:1")).await.unwrap_err();
        assert_eq!((refused.code(), detail(&refused).code.as_str()), (Code::NotFound, "pack_not_found"));
        let id = ann.submit(build("own:1")).await.expect("ann's own");
        ann.watch(&id, 0).await.expect("events");
        assert_eq!(daemon.image("own:1").file("Dockerfile").as_bytes(), dockerfile);
        // The pack is removed with its last build.
        let gone = ann.submit(build("own:2")).await.unwrap_err();
        assert_eq!(detail(&gone).code, "pack_not_found");

        // Sends the list alone, with the hash of content that bob does not have.
        let entries = vec![file("Dockerfile", dockerfile)];
        let id = upload(&bob, &digest(&entries)).await;
        let needs = list(&bob, &id, entries).await.expect("list");
        assert_eq!((needs.missing.len(), needs.prove.len(), needs.proof_key.len()), (0, 1, 32));
        for (proof, code) in
            [(&b""[..], "upload_incomplete"), (&[7; 32], "proof_failed"), (b"short", "invalid_proof")]
        {
            assert_eq!(detail(&commit(&bob, &id, proof).await.unwrap_err()).code, code);
        }
        let eve = participant(daemon, "eve").await;
        assert_eq!(detail(&commit(&eve, &id, b"").await.unwrap_err()).code, "upload_not_found");
        let key: [u8; 32] = needs.proof_key.as_ref().try_into().unwrap();
        let proof = blake3::keyed_hash(&key, dockerfile);
        commit(&bob, &id, proof.as_bytes()).await.expect("the right proof");
    });
}

pub fn whoever_commits_a_pack_may_write_its_archive(daemon: &Daemon) {
    let narrow = r#"{"containers": {"use_containers": true, "registry": {"write": ["*"], "pull": ["*"]}},
                     "storage": {"paths": [{"path": "mine"}]}}"#;
    let content = b"archived";
    let archive = daemon.room_files().join("theirs/pack.tar");
    block_on(seconds(60), async {
        let all = participant(daemon, "cal").await;
        let part = daemon.mint(&["--name", "cal", "--scope", narrow]);
        let part = Api::connect(&daemon.listen(), Some(part)).await;
        let entries = vec![file("f", content)];
        let request = BeginPackRequest {
            tree: digest(&entries),
            destination: Some(Destination::Tag("archived:1".to_owned())),
            room_path: "theirs/pack.tar".to_owned(),
            ..Default::default()
        };
        let begin = async |api: &Api| {
            let begun = api.packs().begin(request.clone()).await?.into_inner();
            Ok::<_, Status>(begun.answer.expect("an answer"))
        };
        assert_eq!(begin(&part).await.unwrap_err().code(), Code::PermissionDenied);
        let Answer::UploadId(id) = begin(&all).await.expect("begin") else { panic!("the room has it") };
        for entry in list(&all, &id, entries).await.expect("list").missing {
            send(&all, &id, entry, content).await.expect("send");
        }
        assert_eq!(commit(&part, &id, b"").await.unwrap_err().code(), Code::PermissionDenied);
        assert!(!archive.exists());
        // Nothing is lost: the room has the files, and a caller that may write the archive gets it.
        match begin(&all).await.expect("begin again") {
            Answer::Done(_) => {}
            Answer::UploadId(id) => {
                let needs = list(&all, &id, vec![file("f", content)]).await.expect("list again");
                assert!(needs.missing.is_empty(), "{needs:?}");
                commit(&all, &id, b"").await.expect("commit");
            }
        }
        assert!(archive.exists());
    });
}

pub fn a_list_that_no_walk_can_give_is_refused(daemon: &Daemon) {
    use PackEntryKind::{Directory, Hardlink, Symlink};
    let lists = [
        vec![file("../escape", b"x")],
        vec![file("/etc/passwd", b"x")],
        vec![other("d", Directory, ""), file("d/../../x", b"x")],
        vec![file("a", b"x"), file("a", b"x")],
        vec![file("b", b"x"), file("a", b"x")],
        vec![file("a", b"x"), file("a/b", b"x")],
        vec![other("l", Symlink, "/etc"), file("l/passwd", b"x")],
        vec![file("no/parent", b"x")],
        vec![other("h", Hardlink, "/etc/passwd")],
        vec![other("h", Hardlink, "../../etc/passwd")],
        vec![other("h", Hardlink, "not-there")],
        vec![other("l", Symlink, "")],
        vec![PackEntry { mode: 0o100_644, ..file("f", b"x") }],
        vec![PackEntry { kind: 0, ..file("f", b"x") }],
        vec![PackEntry { kind: 99, ..file("f", b"x") }],
        vec![PackEntry { content: b"short"[..].into(), ..file("f", b"x") }],
    ];
    block_on(seconds(60), async {
        let mut api = participant(daemon, "lister-0").await;
        for (number, entries) in lists.into_iter().enumerate() {
            if number % 8 == 7 {
                // The number of uploads of one participant is limited.
                api = participant(daemon, &format!("lister-{number}")).await;
            }
            let id = upload(&api, &format!("blake3:{number:064x}")).await;
            let refused = list(&api, &id, entries.clone()).await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{entries:?}: {refused:?}");
            assert!(matches!(detail(&refused).code.as_str(), "invalid_list" | "invalid_hash"), "{refused:?}");
            // No list was sent, so there is nothing to commit.
            assert_eq!(detail(&commit(&api, &id, b"").await.unwrap_err()).code, "wrong_order");
            list(&api, &id, Vec::new()).await.unwrap_err();
        }
        let bomb = zstd::bulk::compress(&vec![0; 256 << 20], 1).unwrap();
        let api = participant(daemon, "lister").await;
        let id = upload(&api, &format!("blake3:{}", "b".repeat(64))).await;
        let message = ListPackRequest { upload_id: id, part: Some(Part::EntriesZstd(bomb.into())) };
        let refused = api.packs().list(tokio_stream::once(message)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    });
}

pub fn a_lie_about_content_or_tree_leaves_nothing(daemon: &Daemon) {
    block_on(seconds(60), async {
        let api = participant(daemon, "liar").await;
        let entries = vec![file("f", b"what it says")];
        let id = upload(&api, &format!("blake3:{}", "a".repeat(64))).await;
        let refused = list(&api, &id, entries.clone()).await.unwrap_err();
        assert_eq!(detail(&refused).code, "tree_mismatch");
        let id = upload(&api, &digest(&entries)).await;
        assert_eq!(list(&api, &id, entries.clone()).await.expect("list").missing, [0]);
        let refused = send(&api, &id, 0, b"another text").await.unwrap_err();
        assert_eq!(detail(&refused).code, "content_mismatch");
        assert!(refused.message().contains("`f`"), "{refused:?}");
        assert_eq!(detail(&commit(&api, &id, b"").await.unwrap_err()).code, "upload_incomplete");
        // Nothing of the failed upload is kept for the next one.
        let id = upload(&api, &digest(&entries)).await;
        assert_eq!(list(&api, &id, entries).await.expect("list").missing, [0]);
    });
}

pub fn a_call_without_its_upload_says_so(daemon: &Daemon) {
    block_on(seconds(30), async {
        let api = Api::of(daemon).await;
        let nobody = "0".repeat(32);
        assert_eq!(detail(&commit(&api, &nobody, b"").await.unwrap_err()).code, "upload_not_found");
        assert_eq!(detail(&send(&api, &nobody, 0, b"").await.unwrap_err()).code, "upload_not_found");
        assert_eq!(detail(&list(&api, &nobody, Vec::new()).await.unwrap_err()).code, "upload_not_found");
        let nothing = tokio_stream::iter(Vec::<SendPackRequest>::new());
        assert_eq!(detail(&api.packs().send(nothing).await.unwrap_err()).code, "upload_missing");
        assert_eq!(detail(&begin(&api, "sha256:00").await.unwrap_err()).code, "invalid_tree");
        let stranger = Api::connect(&daemon.listen(), None).await;
        let refused = begin(&stranger, &format!("blake3:{}", "0".repeat(64))).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
    });
}

pub fn a_daemon_killed_between_upload_and_commit_has_what_arrived() {
    let daemon = Daemon::start(Options::room("upload-killed"));
    let content = noise(3, 500_000);
    let entries = vec![file("f", &content), file("g", b"small")];
    block_on(seconds(60), async {
        let api = Api::of(&daemon).await;
        let id = upload(&api, &digest(&entries)).await;
        assert_eq!(list(&api, &id, entries.clone()).await.expect("list").missing, [0, 1]);
        send(&api, &id, 0, &content).await.expect("send");
    });
    daemon.kill9();
    daemon.restart();
    let pack = block_on(seconds(60), async {
        let api = Api::of(&daemon).await;
        let id = upload(&api, &digest(&entries)).await;
        assert_eq!(list(&api, &id, entries.clone()).await.expect("list").missing, [1]);
        send(&api, &id, 1, b"small").await.expect("send");
        commit(&api, &id, b"").await.expect("commit")
    });
    // A pack that was acknowledged survives a kill, too.
    daemon.kill9();
    daemon.restart();
    block_on(seconds(60), async {
        let api = Api::of(&daemon).await;
        assert!(matches!(begin(&api, &digest(&entries)).await, Ok(Answer::Done(_))));
        let mut spec = spec("survivor:1", "");
        let source = Some(Source::PackId(pack.pack_id));
        spec.mounts = vec![Mount { source, target: "/context".to_owned(), ..Mount::default() }];
        // The pack has no Dockerfile, which the build reports after it has read the pack.
        let id = api.submit(spec).await.expect("submit");
        let events = api.watch(&id, 0).await.expect("events");
        assert!(format!("{events:?}").contains("dockerfile_not_found"), "{events:?}");
    });
    assert_eq!(daemon.retire(), Vec::<String>::new());
}

pub fn a_list_of_a_million_entries_takes_bounded_memory() {
    let daemon = Daemon::start(Options::room("upload-million"));
    let peak = || {
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    };
    let before = peak();
    block_on(seconds(240), async {
        let api = Api::of(&daemon).await;
        let mut sum = TreeHasher::default();
        let one = ContentHash::of(b"x");
        let name = |number: u32| format!("some-file-{number:07}");
        for number in 0..1_000_000 {
            let kind = FileKind::File(HashedContent { size: 1, hash: one });
            sum.node(&TreeNode { path: name(number).as_bytes(), mode: 0o644, kind, xattrs: &[] });
        }
        let id = upload(&api, &sum.finish().to_string()).await;
        let parts = (0..1000u32).map(move |part| {
            let entries = (part * 1000..(part + 1) * 1000).map(|number| file(&name(number), b"x")).collect();
            ListPackRequest { upload_id: id.clone(), part: Some(Part::Entries(PackEntries { entries })) }
        });
        let answer = api.packs().list(tokio_stream::iter(parts)).await.expect("list").into_inner();
        assert_eq!(answer.missing, [0], "one content is asked for once");
    });
    let grown = peak() - before;
    assert!(grown < 500, "{grown} MiB for a million entries");
    assert_eq!(daemon.retire(), Vec::<String>::new());
}
