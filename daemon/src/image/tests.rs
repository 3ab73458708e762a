use std::io::Write as _;
use std::path::Path;

use super::port::BlobStorage as _;

use super::*;
use crate::context::{LayerInspection, LayerLimits};
use crate::model::id::PackId;
use crate::registry::blobs::BlobStore;
use crate::store::StateStore;

mod cache;
mod layers;
mod pull;
mod quota;
mod runnable;

struct ImageFixture {
    directory: tempfile::TempDir,
    images: ImageStore,
    blobs: BlobStore,
    store: StateStore,
}

fn room() -> ImageFixture {
    room_with(Arc::new(LayerInspection::new(LayerLimits::default())))
}

fn room_with(inspector: Arc<dyn LayerInspector>) -> ImageFixture {
    let directory = tempfile::tempdir().unwrap();
    let blobs = BlobStore::open(&directory.path().join("registry")).unwrap();
    let store = StateStore::open(&directory.path().join("state.db")).unwrap();
    let images = ImageStore::new(
        RoomRegistries::default(),
        Arc::new(blobs.clone()),
        Arc::new(store.clone()),
        inspector,
    );
    ImageFixture { directory, images, blobs, store }
}

/// Returns an archive with one file, as `hearth pack` creates it.
fn archive(content: &str) -> Vec<u8> {
    archive_with(content, &hearth_pack::PackOptions::default())
}

fn archive_with(content: &str, options: &hearth_pack::PackOptions) -> Vec<u8> {
    let tree = tempfile::tempdir().unwrap();
    std::fs::write(tree.path().join("file"), content).unwrap();
    let packed = hearth_pack::pack(tree.path(), options, &mut |_| {}).unwrap();
    let mut archive = Vec::new();
    packed.write_archive(&mut archive).unwrap();
    archive
}

fn count_blobs(path: &Path) -> usize {
    let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { count_blobs(&path) } else { 1 }).sum()
}

impl ImageFixture {
    fn blob_count(&self) -> usize {
        count_blobs(&self.directory.path().join("registry/blobs"))
    }

    async fn load(&self, archive: Vec<u8>, tag: &str) -> Result<LoadedImage, ImageError> {
        let tag = ImageDestination::Tag(Reference::parse_tag(tag).unwrap());
        self.images.load(std::io::Cursor::new(archive), tag, "ann").await
    }
}

#[tokio::test]
async fn a_loaded_archive_is_an_image_under_its_tag() {
    let room = room();
    let loaded = room.load(archive("x"), "a/b:1").await.unwrap();
    assert_eq!(loaded.reused_bytes, 0);
    let reference: Reference = "room.meshagent.com/a/b:1".parse().unwrap();
    assert_eq!(room.images.resolve(&reference).await.unwrap(), loaded.manifest);
    let inspected = room.images.inspect(&reference).await.unwrap();
    assert_eq!(inspected.layers.len(), 1);
    assert_eq!(inspected.size_bytes, loaded.size_bytes);
    assert!(inspected.platform.is_some());
    let layers = room.images.open_layers(&loaded.manifest).await.unwrap();
    assert_eq!(layers.len(), 1);
    let again = room.load(archive("x"), "other:1").await.unwrap();
    assert!(again.reused_bytes >= again.size_bytes, "{again:?}");
}

#[tokio::test]
async fn nothing_stays_of_an_archive_that_is_cut_off_or_damaged() {
    let room = room();
    let whole = archive("some content");
    for length in [0, 100, 512, 2000, whole.len() / 2] {
        let error = room.load(whole[..length].to_vec(), "a:1").await.unwrap_err();
        assert!(matches!(error, ImageError::Archive(_)), "{length}: {error}");
    }
    let mut damaged = whole.clone();
    let layer = damaged.windows(4).position(|bytes| bytes == [0x28, 0xb5, 0x2f, 0xfd]).unwrap();
    damaged[layer + 10] ^= 1;
    let error = room.load(damaged, "a:1").await.unwrap_err();
    assert_eq!(error.code(), "blob_mismatch", "{error}");
    assert_eq!(room.blob_count(), 0);
    assert!(room.images.resolve(&"a:1".parse().unwrap()).await.is_err());
    room.load(whole, "a:1").await.unwrap();
}

#[tokio::test]
async fn an_archive_opens_no_blob_that_it_does_not_bring() {
    let room = room();
    room.load(archive("the secret of another repository"), "theirs:1").await.unwrap();
    let whole = archive("the secret of another repository");
    // The same archive without its layer: the room has that blob, but this caller has not provided it.
    let mut thief = tar::Builder::new(Vec::new());
    for entry in tar::Archive::new(&*whole).entries().unwrap() {
        let mut entry = entry.unwrap();
        let header = entry.header().clone();
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
        if !content.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            thief.append(&header, &*content).unwrap();
        }
    }
    let error = room.load(thief.into_inner().unwrap(), "mine:1").await.unwrap_err();
    assert!(error.to_string().contains("sha256:"), "{error}");
    assert!(room.images.resolve(&"mine:1".parse().unwrap()).await.is_err());
}

#[tokio::test]
async fn a_tag_of_the_room_can_be_added_moved_and_removed() {
    let room = room();
    let one = room.load(archive("1"), "a:1").await.unwrap().manifest;
    let two = room.load(archive("2"), "a:2").await.unwrap().manifest;
    let reference = |text: &str| text.parse::<Reference>().unwrap();
    room.images.tag(&reference("a:1"), &reference("b/c:stable")).await.unwrap();
    assert_eq!(room.images.resolve(&reference("b/c:stable")).await.unwrap(), one);
    room.images.tag(&reference("a:2"), &reference("b/c:stable")).await.unwrap();
    assert_eq!(room.images.resolve(&reference("b/c:stable")).await.unwrap(), two);
    let listed = room.images.list(TagQuery { limit: 10, ..TagQuery::default() }).await.unwrap();
    assert_eq!(listed.len(), 3);
    room.images.remove(&reference("b/c:stable")).await.unwrap();
    let error = room.images.remove(&reference("b/c:stable")).await.unwrap_err();
    assert_eq!(error.code(), "image_not_found");
    assert_eq!(
        room.images.resolve(&reference("example.com/a:1")).await.unwrap_err().code(),
        "foreign_registry"
    );
}

#[tokio::test]
async fn a_pack_is_its_owners_and_goes_with_its_last_build() {
    let room = room();
    let destination = ImageDestination::Pack { owner: "ann".to_owned() };
    let loaded = room.images.load(std::io::Cursor::new(archive("p")), destination, "ann").await.unwrap();
    let id = loaded.pack.unwrap();
    assert!(room.images.hold_pack(&id, "bob").await.is_err());
    assert!(room.images.hold_pack(&PackId::random(), "ann").await.is_err());
    room.images.hold_pack(&id, "ann").await.unwrap();
    room.images.hold_pack(&id, "ann").await.unwrap();
    room.images.release_pack(&id).await.unwrap();
    room.images.pack(&id, "ann").await.unwrap();
    room.images.release_pack(&id).await.unwrap();
    assert_eq!(room.images.pack(&id, "ann").await.unwrap_err().code(), "pack_not_found");
}

#[tokio::test]
async fn the_sweep_frees_what_nothing_names_and_nothing_else() {
    let room = room();
    room.load(archive("kept"), "kept:1").await.unwrap();
    room.load(archive("dropped"), "dropped:1").await.unwrap();
    let destination = ImageDestination::Pack { owner: "ann".to_owned() };
    let pack = room.images.load(std::io::Cursor::new(archive("pack")), destination, "ann").await.unwrap();
    room.images.hold_pack(pack.pack.as_ref().unwrap(), "ann").await.unwrap();
    room.images.remove(&"dropped:1".parse().unwrap()).await.unwrap();
    let mut stray = room.blobs.spool().unwrap();
    stray.write(b"stray").unwrap();
    drop(stray);
    let early = room.images.collect_garbage().await.unwrap();
    assert_eq!((early.blobs, early.manifests), (0, 0), "what is young stays");
    let hours = Duration::from_secs(7200);
    let report = room
        .images
        .collect_before(
            jiff::Timestamp::now() + hours,
            std::time::SystemTime::now() + hours,
            Duration::from_secs(3600),
        )
        .await
        .unwrap();
    assert_eq!((report.packs, report.manifests, report.blobs), (0, 1, 3), "{report:?}");
    assert!(room.images.inspect(&"kept:1".parse().unwrap()).await.is_ok());
    assert!(room.images.open_layers(&pack.manifest).await.is_ok());
    assert!(room.blobs.size(&pack.manifest.digest).unwrap().is_some());
}

use std::time::Duration;

#[test]
fn a_file_that_only_looks_like_an_archive_is_refused() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let room = room();
        let mut noise = Vec::new();
        noise.write_all(&[7; 4096]).unwrap();
        assert!(room.load(noise, "a:1").await.is_err());
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(2);
        header.set_cksum();
        tar.append_data(&mut header, "index.json", &b"{}"[..]).unwrap();
        let error = room.load(tar.into_inner().unwrap(), "a:1").await.unwrap_err();
        assert!(matches!(error, ImageError::ImageCount { count: 0 } | ImageError::Archive(_)), "{error}");
    });
}
