use std::sync::Arc;

use hearth_pack::layer::{Compression, LayerOptions};

use sha2::{Digest as _, Sha256};

use super::super::base_layers::{TOC_DIGEST, as_buildkit_writes_it, has_form, with_root};
use super::*;
use crate::context::{LayerInspection, LayerLimits};
use crate::image::port::ImageCatalog as _;
use crate::image::{ImageDestination, ImageStore};
use crate::model::{Reference, Repository, RoomRegistries};
use crate::registry::blobs::BlobStore;
use crate::store::StateStore;

struct Fixture {
    _directory: tempfile::TempDir,
    images: ImageStore,
    blobs: BlobStore,
    store: StateStore,
}

fn fixture() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let blobs = BlobStore::open(&directory.path().join("registry")).unwrap();
    let store = StateStore::open(&directory.path().join("state.db")).unwrap();
    let images = ImageStore::new(
        RoomRegistries::default(),
        Arc::new(blobs.clone()),
        Arc::new(store.clone()),
        Arc::new(LayerInspection::new(LayerLimits::default())),
    );
    Fixture { _directory: directory, images, blobs, store }
}

impl Fixture {
    /// Loads an image with one file.
    async fn load(&self, name: &str, content: &str, compression: Compression) -> PinnedImage {
        let tree = tempfile::tempdir().unwrap();
        std::fs::write(tree.path().join("file"), content).unwrap();
        let options = hearth_pack::PackOptions {
            layer: LayerOptions { compression, ..LayerOptions::default() },
            ..hearth_pack::PackOptions::default()
        };
        let packed = hearth_pack::pack(tree.path(), &options, &mut |_| {}).unwrap();
        let mut archive = Vec::new();
        packed.write_archive(&mut archive).unwrap();
        let tag: Reference = Reference::parse_tag(name).unwrap();
        let repository = tag.repository.clone();
        let destination = ImageDestination::Tag(tag);
        let loaded = self.images.load(std::io::Cursor::new(archive), destination, "ann").await.unwrap();
        PinnedImage { repository, digest: loaded.manifest.digest }
    }

    fn manifest(&self, digest: Digest) -> oci::Manifest {
        let descriptor = Descriptor::new(oci::OCI_MANIFEST_TYPE, digest, 0);
        serde_json::from_slice(&read_json(&self.blobs, &descriptor).unwrap()).unwrap()
    }

    fn diff_ids(&self, image: &PinnedImage) -> Vec<Digest> {
        let config = self.manifest(image.digest).config;
        parse::<oci::ImageConfig>(&config, &read_json(&self.blobs, &config).unwrap()).unwrap().rootfs.diff_ids
    }

    fn put(&self, content: &[u8]) -> (Digest, u64) {
        let digest = Digest::from_sha256(Sha256::digest(content).into());
        self.blobs.put(&digest, &mut &*content).unwrap();
        (digest, content.len() as u64)
    }

    /// Pushes an image whose layers are those of `parts`, as the builder does.
    async fn build(&self, parts: &[&PinnedImage]) -> PinnedImage {
        let diff_ids: Vec<Digest> = parts.iter().flat_map(|part| self.diff_ids(part)).collect();
        let root = oci::RootFs { kind: Some("layers".to_owned()), diff_ids };
        let config =
            with_root(br#"{"os":"linux","architecture":"amd64","config":{"Z":1,"A":"\u003c"}}"#, &root);
        let (config, size) = self.put(&config.unwrap());
        let config = Descriptor::new("application/vnd.oci.image.config.v1+json", config, size);
        let layers = parts.iter().flat_map(|part| self.manifest(part.digest).layers).collect();
        let mut manifest = oci::Manifest::new(config, layers);
        manifest.annotations.insert("note".to_owned(), "<a> & b".to_owned());
        let (digest, size) = self.put(&to_go_json(&manifest).unwrap());
        let top = Descriptor::new(oci::OCI_MANIFEST_TYPE, digest, size);
        let contents = ImageContents::read_and_touch(&self.blobs, &top).unwrap();
        let repository: Repository = "built".parse().unwrap();
        self.store.put_manifests(&repository, contents.manifests, None).await.unwrap();
        PinnedImage { repository, digest }
    }

    async fn restore(&self, built: &PinnedImage, base: &PinnedImage) -> BuiltImage {
        self.images.finish_built_image(built, on_base(base)).await.unwrap()
    }

    /// Pushes an index of images, as the builder does.
    async fn build_index(&self, images: &[(&str, &PinnedImage)]) -> PinnedImage {
        let entry = |(platform, image): &(&str, &PinnedImage)| {
            let size = self.blobs.size(&image.digest).unwrap().unwrap();
            let platform = Some(Platform::parse(platform).unwrap().to_declared());
            Descriptor { platform, ..Descriptor::new(oci::OCI_MANIFEST_TYPE, image.digest, size) }
        };
        let pushed = Descriptor::new(oci::OCI_INDEX_TYPE, images[0].1.digest, 0);
        let entries = images.iter().map(entry).collect();
        let top = compose_index(&self.blobs, &pushed, entries, BTreeMap::new()).unwrap();
        let contents = ImageContents::read_and_touch(&self.blobs, &top).unwrap();
        let repository: Repository = "built".parse().unwrap();
        self.store.put_manifests(&repository, contents.manifests, None).await.unwrap();
        PinnedImage { repository, digest: top.digest }
    }

    fn index(&self, digest: Digest) -> oci::OciIndex {
        let descriptor = Descriptor::new(oci::OCI_INDEX_TYPE, digest, 0);
        parse(&descriptor, &read_json(&self.blobs, &descriptor).unwrap()).unwrap()
    }
}

fn platform_base(platform: &str, image: &PinnedImage) -> PlatformBase {
    let base = BaseImage { image: image.clone(), platform: Platform::host() };
    PlatformBase { platform: Platform::parse(platform).unwrap(), base: Some(base) }
}

fn on_base(base: &PinnedImage) -> ImageForm {
    ImageForm {
        bases: vec![platform_base("linux/amd64", base)],
        compression: BuildCompression::Gzip,
        converted: false,
        annotations: Vec::new(),
    }
}

fn is_built(digest: Digest, base: Option<&PinnedImage>, has_other_compression: bool) -> BuiltImage {
    let bases = base.map(|base| platform_base("linux/amd64", base)).into_iter().collect();
    BuiltImage { digest, bases, has_other_compression }
}

#[tokio::test]
async fn layers_of_the_base_have_the_form_that_they_have_there() {
    let room = fixture();
    let (zstd, gzip) = (
        room.load("base:zstd", "base", Compression::Zstd).await,
        room.load("base:gz", "base", Compression::Gzip).await,
    );
    assert_eq!(room.diff_ids(&zstd), room.diff_ids(&gzip));
    let new = room.load("new:gz", "new", Compression::Gzip).await;
    let (on_zstd, on_gzip) = (room.build(&[&zstd, &new]).await, room.build(&[&gzip, &new]).await);
    for (built, base, expected) in [
        (&on_zstd, &gzip, &on_gzip),
        (&on_gzip, &gzip, &on_gzip),
        (&on_gzip, &zstd, &on_zstd),
        (&on_zstd, &zstd, &on_zstd),
    ] {
        let restored = room.restore(built, base).await;
        assert_eq!(restored, is_built(expected.digest, Some(base), false));
        room.images.verify(&built.repository, restored.digest).await.unwrap();
    }
}

#[tokio::test]
async fn a_new_layer_in_another_compression_is_told_and_layers_of_another_image_are_left() {
    let room = fixture();
    let base = room.load("base:gz", "base", Compression::Gzip).await;
    let new = room.load("new:zstd", "new", Compression::Zstd).await;
    let built = room.build(&[&base, &new]).await;
    assert_eq!(room.restore(&built, &base).await, is_built(built.digest, Some(&base), true));
    let other = room.load("other:gz", "other", Compression::Gzip).await;
    let restored = room.restore(&built, &other).await;
    assert_eq!(restored, is_built(built.digest, None, true), "it does not begin with that image");
    let form = ImageForm { bases: Vec::new(), compression: BuildCompression::Zstd, ..on_base(&base) };
    let zstd = room.images.finish_built_image(&built, form).await.unwrap();
    assert!(zstd.has_other_compression, "without a base, every layer is a new one");
}

#[tokio::test]
async fn a_config_names_the_layers_of_the_base_again_after_their_conversion() {
    let room = fixture();
    let base = room.load("base:gz", "base", Compression::Gzip).await;
    let converted = room.load("base:converted", "converted base", Compression::Gzip).await;
    let new = room.load("new:gz", "new", Compression::Gzip).await;
    let (built, expected) = (room.build(&[&converted, &new]).await, room.build(&[&base, &new]).await);
    let form = ImageForm { converted: true, ..on_base(&base) };
    let restored = room.images.finish_built_image(&built, form).await.unwrap();
    assert_eq!(restored.digest, expected.digest);
}

#[tokio::test]
async fn an_index_lists_the_restored_image_of_each_platform_in_the_same_order() {
    let room = fixture();
    let new = room.load("new:gz", "new", Compression::Gzip).await;
    let (gzip, zstd) = (
        room.load("base:gz", "base", Compression::Gzip).await,
        room.load("base:zstd", "base", Compression::Zstd).await,
    );
    let other = room.load("other:gz", "other", Compression::Gzip).await;
    let (on_gzip, on_zstd) = (room.build(&[&gzip, &new]).await, room.build(&[&zstd, &new]).await);
    let on_other = room.build(&[&other, &new]).await;
    let built = room.build_index(&[("linux/arm64", &on_zstd), ("linux/amd64", &on_other)]).await;
    let bases = vec![platform_base("linux/amd64", &other), platform_base("linux/arm64/v8", &gzip)];
    let form = ImageForm { bases, ..on_base(&gzip) };
    let finished = room.images.finish_built_image(&built, form.clone()).await.unwrap();
    assert_ne!(finished.digest, built.digest);
    assert_eq!(finished.bases.len(), 2);
    let index = room.index(finished.digest);
    let digests: Vec<Digest> = index.manifests.iter().map(|child| child.digest).collect();
    assert_eq!(digests, [on_gzip.digest, on_other.digest]);
    let platforms: Vec<_> = index.manifests.iter().map(|child| child.platform.clone().unwrap()).collect();
    assert_eq!(platforms.iter().map(ToString::to_string).collect::<Vec<_>>(), ["linux/arm64", "linux/amd64"]);
    room.images.verify(&built.repository, finished.digest).await.unwrap();
    // An index that needs no change is the one that was pushed.
    let built = room.build_index(&[("linux/arm64", &on_gzip), ("linux/amd64", &on_other)]).await;
    assert_eq!(room.images.finish_built_image(&built, form).await.unwrap().digest, built.digest);
    assert_eq!(built.digest, finished.digest);
}

#[tokio::test]
async fn annotations_stand_where_their_scope_says() {
    let room = fixture();
    let base = room.load("base:gz", "base", Compression::Gzip).await;
    let new = room.load("new:gz", "new", Compression::Gzip).await;
    let image = room.build(&[&base, &new]).await;
    let built = room.build_index(&[("linux/arm64", &image), ("linux/amd64", &image)]).await;
    let annotation = |scope, platform: Option<&str>, value: &str| ImageAnnotation {
        scope,
        platform: platform.map(|platform| Platform::parse(platform).unwrap()),
        key: "k".to_owned(),
        value: value.to_owned(),
    };
    let form = ImageForm {
        bases: vec![platform_base("linux/arm64", &base), platform_base("linux/amd64", &base)],
        annotations: vec![
            annotation(AnnotationScope::Manifest, Some("linux/arm64/v8"), "arm"),
            annotation(AnnotationScope::Manifest, None, "all"),
            annotation(AnnotationScope::ManifestDescriptor, Some("linux/amd64"), "entry"),
            annotation(AnnotationScope::Index, None, "index"),
            annotation(AnnotationScope::IndexDescriptor, None, "result"),
        ],
        ..on_base(&base)
    };
    let finished = room.images.finish_built_image(&built, form.clone()).await.unwrap();
    let index = room.index(finished.digest);
    assert_eq!(index.annotations, BTreeMap::from([("k".to_owned(), "index".to_owned())]));
    let entries: Vec<_> = index.manifests.iter().map(|child| child.annotations.get("k").cloned()).collect();
    assert_eq!(entries, [None, Some("entry".to_owned())]);
    let manifests = index.manifests.iter().map(|child| room.manifest(child.digest).annotations);
    assert_eq!(
        manifests
            .map(|annotations| (annotations["k"].clone(), annotations["note"].clone()))
            .collect::<Vec<_>>(),
        [("arm".to_owned(), "<a> & b".to_owned()), ("all".to_owned(), "<a> & b".to_owned())]
    );
    // The same again changes nothing.
    let again = PinnedImage { digest: finished.digest, ..built };
    assert_eq!(room.images.finish_built_image(&again, form).await.unwrap().digest, finished.digest);
}

#[test]
fn the_form_of_a_layer_is_told_by_its_media_type_and_its_table_of_contents() {
    let digest = Digest::from_sha256([7; 32]);
    let layer =
        |kind: &str| Descriptor::new(&format!("application/vnd.oci.image.layer.v1.{kind}"), digest, 1);
    let mut estargz = layer("tar+gzip");
    estargz.annotations.insert(TOC_DIGEST.to_owned(), digest.to_string());
    let forms = [layer("tar+gzip"), layer("tar+zstd"), estargz, layer("tar")];
    for (at, form) in forms.iter().enumerate() {
        let matching: Vec<_> =
            BuildCompression::ALL.into_iter().filter(|&compression| has_form(form, compression)).collect();
        assert_eq!(matching, [BuildCompression::ALL[at]], "{form:?}");
    }
}

#[test]
fn a_manifest_is_written_as_go_writes_it() {
    let digest = Digest::from_sha256([7; 32]);
    let mut layer = Descriptor::new("application/vnd.docker.image.rootfs.diff.tar.gzip", digest, 5);
    layer.annotations.insert("author".to_owned(), "x".to_owned());
    layer.annotations.insert(TOC_DIGEST.to_owned(), "toc".to_owned());
    let mut manifest =
        oci::Manifest::new(Descriptor::new("c", digest, 2), vec![as_buildkit_writes_it(&layer)]);
    manifest.annotations.insert("note".to_owned(), "<é>&".to_owned());
    let expected = format!(
        r#"{{
  "schemaVersion": 2,
  "mediaType": "application/vnd.oci.image.manifest.v1+json",
  "config": {{
    "mediaType": "c",
    "digest": "{digest}",
    "size": 2
  }},
  "layers": [
    {{
      "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
      "digest": "{digest}",
      "size": 5,
      "annotations": {{
        "containerd.io/snapshot/stargz/toc.digest": "toc"
      }}
    }}
  ],
  "annotations": {{
    "note": "\u003cé\u003e\u0026"
  }}
}}"#
    );
    assert_eq!(String::from_utf8(to_go_json(&manifest).unwrap()).unwrap(), expected);
}
