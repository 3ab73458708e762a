//! Session ids and shared keys of a context. BuildKit takes an id for a version of one tree from one place,
//! so two places, two participants or two versions never have the same one.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hearth_overlay::attr::coarse_clock::freeze_change_time;
use hearth_pack::FileKind;
use hearth_pack::identity::{ContentHash, HashedContent, TreeNode};
use hearth_pack::listing::{ListingLimits, ListingWriter};

use super::*;
use crate::pack::{ContentPiece, PackContentSource};

/// Ids of a build's two sessions, and their shared keys.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Names {
    context: (String, String),
    dockerfile: (String, String),
}

async fn names(daemon: &Daemon, request: ContextRequest<Vec<u8>>) -> (Names, TreeIdentity) {
    let prepared = daemon.prepare(request).await.unwrap();
    let (identity, dockerfile) = (prepared.identity.clone(), prepared.dockerfile.clone());
    let files = prepared.into_files(dockerfile);
    let of = |name: &SessionName| (name.id.clone(), name.shared_key.clone());
    (Names { context: of(&files.context_session), dockerfile: of(&files.dockerfile_session) }, identity)
}

/// Asserts that no two requests have an id or a key in common, though all of them have the same files.
async fn all_differ(daemon: &Daemon, requests: Vec<(&str, ContextRequest<Vec<u8>>)>) {
    let (mut all, mut count) = (BTreeSet::new(), 0);
    let mut identities = Vec::new();
    for (what, request) in requests {
        let (Names { context, dockerfile }, identity) = names(daemon, request).await;
        for name in [context.0, context.1, dockerfile.0, dockerfile.1] {
            assert!(all.insert(name.clone()), "{what}: `{name}` is another's");
            count += 1;
        }
        identities.push((identity.digest, identity.times));
    }
    identities.dedup();
    assert_eq!(
        (all.len(), identities.len()),
        (count, 1),
        "the trees are not the same, so this proves nothing"
    );
}

fn same_files(at: &Path) {
    fs::create_dir_all(at).unwrap();
    for (name, content) in [("Dockerfile", "FROM x"), ("other", "FROM x"), ("f", "1")] {
        fs::write(at.join(name), content).unwrap();
        let file = fs::File::options().write(true).open(at.join(name)).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1000)).unwrap();
    }
}

#[tokio::test]
async fn the_same_files_in_two_places_have_sessions_of_their_own() {
    let daemon = Daemon::new();
    for place in ["room/one", "room/two", "project/one"] {
        same_files(&daemon.directory.path().join(place));
    }
    let one = || request(vec![room("one", "/context")]);
    let project = mount(BuildMountSource::Project("one".to_owned()), "/context");
    let (first, _) = names(&daemon, one()).await;
    assert_eq!(names(&daemon, one()).await.0, first, "the same place keeps its names");
    all_differ(
        &daemon,
        vec![
            ("one", one()),
            ("two", request(vec![room("two", "/context")])),
            ("a project's", request(vec![project])),
            ("another stage", ContextRequest { target: Some("s".to_owned()), ..one() }),
            ("another Dockerfile", at("/context/other", one())),
        ],
    )
    .await;
}

struct OneFile(Bytes);

impl PackContentSource for OneFile {
    fn pieces(&self, content: &ContentHash) -> std::io::Result<Option<Vec<ContentPiece>>> {
        Ok(Some(vec![ContentPiece { hash: *content, size: self.0.len() as u32 }]))
    }

    fn piece(&self, _: &ContentHash) -> std::io::Result<Option<Bytes>> {
        Ok(Some(self.0.clone()))
    }
}

/// Creates a pack of a tree with one file.
fn tree_pack(lineage: &str) -> ContextRequest<Vec<u8>> {
    let content = Bytes::from_static(b"FROM x");
    let mut writer = ListingWriter::new(ListingLimits::default());
    let kind = FileKind::File(HashedContent { size: content.len() as u64, hash: ContentHash::of(&content) });
    writer.push(&TreeNode { path: b"Dockerfile", mode: 0o644, kind, xattrs: &[] }).unwrap();
    let tree = PackTree::new(writer.finish().unwrap(), Arc::new(OneFile(content)));
    let pack = Some(OpenedPack { tree: Arc::new(tree), lineage: lineage.to_owned() });
    let source = BuildMountSource::Pack("0123456789ab".to_owned());
    request(vec![ContextMount { pack, ..mount(source, "/context") }])
}

#[tokio::test]
async fn packs_of_two_participants_with_the_same_files_have_sessions_of_their_own() {
    let daemon = Daemon::new();
    let packs = ["3 ann here", "3 bob here", "3 ann there", ""];
    all_differ(&daemon, packs.map(|lineage| (lineage, tree_pack(lineage))).into()).await;
    let (first, _) = names(&daemon, tree_pack("3 ann here")).await;
    assert_eq!(names(&daemon, tree_pack("3 ann here")).await.0, first);
}

#[tokio::test]
async fn a_change_under_the_transfer_that_no_stat_shows_retires_the_name() {
    let daemon = Daemon::new();
    daemon.file("app/Dockerfile", "FROM x").file("app/f", "1");
    let (path, modified) = (daemon.at("app/f"), SystemTime::UNIX_EPOCH + Duration::from_secs(1000));
    let write = |content: &str| {
        fs::write(&path, content).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    };
    write("1");
    // A clock that was set back leaves such a time: the next write may get the very same one.
    let _standing =
        freeze_change_time(&path, jiff::Timestamp::now().as_second().saturating_add(3600) * 1_000_000_000)
            .unwrap();
    let first = daemon.prepare(app()).await.unwrap();
    let id = first.session.id.clone();
    let files = first.into_files(Vec::new());
    files.watch.files_sent();
    assert_eq!(daemon.prepare(app()).await.unwrap().session.id, id, "nothing has changed yet");
    write("2");
    files.watch.files_sent();
    write("1");
    assert_ne!(daemon.prepare(app()).await.unwrap().session.id, id);
}
