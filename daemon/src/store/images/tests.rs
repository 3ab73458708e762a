use std::time::Duration;

use hearth_oci::{OCI_INDEX_TYPE, OCI_MANIFEST_TYPE};
use hearth_pack::identity::{ContentHash, TreeDigest};

use super::*;
use crate::image::port::PackContent;
use crate::model::manifest::PartKind;

struct StoreFixture {
    store: StateStore,
    _directory: tempfile::TempDir,
}

fn fixture() -> StoreFixture {
    let directory = tempfile::tempdir().unwrap();
    StoreFixture {
        store: StateStore::open(&directory.path().join("state.db")).unwrap(),
        _directory: directory,
    }
}

fn digest(byte: u8) -> Digest {
    Digest::from_sha256([byte; 32])
}

fn name(text: &str) -> Repository {
    text.parse().unwrap()
}

fn tag(text: &str) -> Tag {
    text.parse().unwrap()
}

/// Returns image `byte` with blobs whose size in bytes is their own number.
fn image(byte: u8, blobs: &[u8]) -> NewManifest {
    let part =
        |blob: &u8| ManifestPart { digest: digest(*blob), size: u64::from(*blob), kind: PartKind::Blob };
    NewManifest {
        manifest: Descriptor::new(OCI_MANIFEST_TYPE, digest(byte), 500),
        parts: blobs.iter().map(part).collect(),
        subject: None,
        artifact_type: None,
    }
}

fn index(byte: u8, manifests: &[u8]) -> NewManifest {
    let part = |child: &u8| ManifestPart { digest: digest(*child), size: 500, kind: PartKind::Manifest };
    let manifest = Descriptor::new(OCI_INDEX_TYPE, digest(byte), 600);
    NewManifest { manifest, parts: manifests.iter().map(part).collect(), ..image(byte, &[]) }
}

impl StoreFixture {
    async fn put(&self, repository: &str, manifests: Vec<NewManifest>, tagged: Option<&str>) {
        self.store.put_manifests(&name(repository), manifests, tagged.map(tag)).await.unwrap();
    }

    /// Ages all records by two hours.
    async fn age(&self) {
        let age = |transaction: &Transaction<'_>| {
            let long_ago = now_ms() - 7_200_000;
            transaction.execute("UPDATE manifests SET touched_at = ?1", [long_ago])?;
            transaction.execute("UPDATE repository_blobs SET touched_at = ?1", [long_ago])?;
            Ok(())
        };
        self.store.transaction(age).await.unwrap();
    }

    async fn forget(&self) -> (u64, u64) {
        let before = Timestamp::now() - Duration::from_secs(3600);
        let forgotten = self.store.forget(before).await.unwrap();
        (forgotten.manifests, forgotten.links)
    }

    async fn live(&self) -> Vec<u8> {
        let mut live: Vec<u8> =
            self.store.live_digests().await.unwrap().iter().map(|digest| digest.as_bytes()[0]).collect();
        live.sort_unstable();
        live
    }
}

#[tokio::test]
async fn the_size_of_an_index_counts_each_blob_once() {
    let room = fixture();
    room.put("a", vec![image(101, &[1, 2]), image(102, &[2, 3]), index(110, &[101, 102])], Some("all")).await;
    let all = room.store.tag(&name("a"), &tag("all")).await.unwrap().unwrap();
    assert_eq!((all.manifest.digest, all.size_bytes), (digest(110), 1 + 2 + 3));
}

#[tokio::test]
async fn publishing_brings_an_image_whole_into_other_repositories() {
    let room = fixture();
    room.put("a", vec![image(101, &[1, 2]), index(110, &[101])], None).await;
    let signature = NewManifest { subject: Some(digest(101)), ..image(120, &[3]) };
    room.put("a", vec![signature], None).await;
    let tags = vec![(name("a"), tag("1")), (name("b/c"), tag("1")), (name("b/c"), tag("latest"))];
    let published = room.store.publish(&name("a"), &digest(110), tags.clone()).await.unwrap().unwrap();
    assert_eq!(published.len(), 3);
    assert!(published.iter().all(|image| image.manifest.digest == digest(110) && image.size_bytes == 3));
    for manifest in [101, 110, 120] {
        assert!(room.store.manifest(&name("b/c"), &digest(manifest)).await.unwrap().is_some());
    }
    for blob in [2, 3] {
        assert!(room.store.has_blob(&name("b/c"), &digest(blob)).await.unwrap());
    }
    assert_eq!(room.store.repositories(None, 10).await.unwrap(), [name("a"), name("b/c")]);
    // Publishing again is harmless, and a missing manifest gets no tag.
    room.store.publish(&name("a"), &digest(110), tags).await.unwrap().unwrap();
    let none = room.store.publish(&name("a"), &digest(99), vec![(name("z"), tag("1"))]).await.unwrap();
    assert_eq!(none, None);
    assert_eq!(room.store.tag(&name("z"), &tag("1")).await.unwrap(), None);
}

#[tokio::test]
async fn what_a_tag_reaches_is_not_forgotten() {
    let room = fixture();
    room.put("a", vec![image(101, &[1]), index(110, &[101])], Some("1")).await;
    let signature = NewManifest { subject: Some(digest(101)), ..image(120, &[2]) };
    room.put("a", vec![signature], None).await;
    room.age().await;
    assert_eq!(room.forget().await, (0, 0));
    room.store.remove_tag(&name("a"), &tag("1")).await.unwrap();
    room.age().await;
    assert_eq!(room.forget().await, (3, 2));
    assert_eq!(room.live().await, [0u8; 0]);
}

#[tokio::test]
async fn what_was_looked_up_lately_is_not_forgotten() {
    let room = fixture();
    for (manifest, blob) in [(101, 1), (102, 2), (103, 3)] {
        room.put("a", vec![image(manifest, &[blob])], None).await;
    }
    room.store.link_blob(&name("a"), &digest(4)).await.unwrap();
    room.store.link_blob(&name("a"), &digest(5)).await.unwrap();
    room.age().await;
    assert!(room.store.manifest(&name("a"), &digest(101)).await.unwrap().is_some());
    let asked = ManifestPart { digest: digest(102), size: 500, kind: PartKind::Manifest };
    assert_eq!(room.store.missing(&name("a"), vec![asked]).await.unwrap(), []);
    assert!(room.store.has_blob(&name("a"), &digest(4)).await.unwrap());
    assert_eq!(room.forget().await, (1, 2));
    assert_eq!(room.live().await, [1, 2, 4, 101, 102]);
}

#[tokio::test]
async fn the_same_content_lives_as_long_as_one_repository_has_it() {
    let room = fixture();
    room.put("a", vec![image(101, &[1])], None).await;
    room.put("b", vec![image(101, &[1])], Some("1")).await;
    room.age().await;
    assert_eq!(room.forget().await, (1, 1));
    assert_eq!(room.live().await, [1, 101]);
    assert!(!room.store.has_blob(&name("a"), &digest(1)).await.unwrap());
    assert!(room.store.has_blob(&name("b"), &digest(1)).await.unwrap());
}

#[tokio::test]
async fn a_moved_tag_leaves_time_to_those_who_work_with_the_old_image() {
    let room = fixture();
    room.put("a", vec![image(101, &[1])], Some("1")).await;
    room.age().await;
    let resolved = room.store.tag(&name("a"), &tag("1")).await.unwrap().unwrap();
    room.put("a", vec![image(102, &[2])], Some("1")).await;
    assert_eq!(room.forget().await, (0, 0));
    assert!(room.store.manifest(&name("a"), &resolved.manifest.digest).await.unwrap().is_some());
}

#[tokio::test]
async fn packs_come_back_as_they_were_put() {
    let room = fixture();
    let tree = TreeDigest::from_bytes([5; 32]);
    for content in [
        PackContent::Image(image(101, &[]).manifest),
        PackContent::Tree { tree, lineage: "from here".to_owned() },
    ] {
        let (id, created_at) = (PackId::random(), Timestamp::now());
        let pack = PackRecord { id, content, owner: "ann".to_owned(), created_at };
        room.store.put_pack(pack.clone()).await.unwrap();
        assert_eq!(room.store.pack(&pack.id).await.unwrap(), Some(pack.clone()));
        assert_eq!(room.store.packs().await.unwrap(), std::slice::from_ref(&pack));
        room.store.remove_pack(&pack.id).await.unwrap();
        assert_eq!(room.store.pack(&pack.id).await.unwrap(), None);
    }
}

#[tokio::test]
async fn what_an_image_was_made_of_is_known_for_as_long_as_the_image() {
    let room = fixture();
    let origin = |owner: &str, tree: u8, way: u8| ImageOrigin {
        owner: owner.to_owned(),
        tree: TreeDigest::from_bytes([tree; 32]),
        recipe: ContentHash::from_bytes([way; 32]),
    };
    let made_of = async |origin: ImageOrigin| room.store.find_by_origin(origin).await.unwrap();
    room.store.put_origin(&name("x"), &digest(101), origin("ann", 1, 1)).await.unwrap();
    assert_eq!(made_of(origin("ann", 1, 1)).await, [], "of an image that is not there, nothing is noted");
    room.put("x", vec![image(101, &[1])], Some("1")).await;
    room.put("y", vec![image(101, &[1])], None).await;
    for (repository, owner) in [("x", "ann"), ("y", "ann"), ("x", "bob")] {
        room.store.put_origin(&name(repository), &digest(101), origin(owner, 1, 1)).await.unwrap();
    }
    assert_eq!(made_of(origin("ann", 1, 1)).await, [(name("x"), digest(101)), (name("y"), digest(101))]);
    for other in [origin("eve", 1, 1), origin("ann", 2, 1), origin("ann", 1, 2)] {
        assert_eq!(made_of(other).await, []);
    }
    room.age().await;
    assert_eq!(room.forget().await.0, 1);
    assert_eq!(made_of(origin("ann", 1, 1)).await, [(name("x"), digest(101))]);
    // For each image and owner only the last origin is kept, so that records do not pile up.
    room.store.put_origin(&name("x"), &digest(101), origin("ann", 3, 3)).await.unwrap();
    assert_eq!(made_of(origin("ann", 1, 1)).await, []);
    assert_eq!(made_of(origin("ann", 3, 3)).await, [(name("x"), digest(101))]);
    room.store.remove_manifest(&name("x"), &digest(101)).await.unwrap();
    assert_eq!(made_of(origin("ann", 3, 3)).await, []);
    assert_eq!(made_of(origin("bob", 1, 1)).await, []);
}
