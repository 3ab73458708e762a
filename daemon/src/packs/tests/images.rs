use hearth_pack::image::ConfigFlags;
use hearth_pack::layer::{Compression, LayerOptions};

use super::super::ready::{PackImageDigests, PreparedImage};
use super::*;
use crate::image::port::ImageCatalog as _;
use crate::model::image::TaggedImage;

#[tokio::test]
async fn an_image_has_the_digest_of_a_pack_that_was_made_locally() {
    let room = room();
    let local = sample();
    let flags = hearth_pack::image::ConfigFlags {
        cmd: Some(vec!["sh".to_owned()]),
        env: vec!["A=b".to_owned()],
        ..Default::default()
    };
    for (number, compression) in
        [Compression::Zstd, Compression::Gzip, Compression::None].into_iter().enumerate()
    {
        for config in [hearth_pack::image::ConfigFlags::default(), flags.clone()] {
            let layer = hearth_pack::layer::LayerOptions { compression, mtime: number as u64, workers: None };
            let options = hearth_pack::PackOptions {
                layer: layer.clone(),
                config: config.clone(),
                ..Default::default()
            };
            let expected = hearth_pack::pack(local.directory.path(), &options, &mut |_| {}).unwrap();
            let mut to = destination("ann", Some("x/y:1"));
            to.image = PackImageOptions { layer, config, ..Default::default() };
            let (committed, _) = local.upload(&room.packs, to).await.unwrap();
            assert_eq!(committed.made.map(|made| made.digest), Some(expected.digest()), "{compression:?}");
            let image = committed.image.unwrap();
            assert_eq!(image.manifest.digest, expected.digest());
            assert_eq!(room.images.open_layers(&image.manifest).await.unwrap().len(), 1);
        }
    }
}

fn tagged(tag: &str) -> PackDestination {
    destination("ann", Some(tag))
}

async fn begin(room: &Room, local: &Local, to: PackDestination) -> PreparedPack {
    match room.packs.begin(local.hashed.digest, to).await.unwrap() {
        PackBeginOutcome::Done(ready) => *ready,
        PackBeginOutcome::Upload(_) => panic!("it asks for what it has"),
    }
}

fn is_stored(ready: &PreparedPack) -> bool {
    matches!(ready.image, Some(PreparedImage::Stored(_)))
}

fn archive(ready: &PreparedPack) -> Vec<u8> {
    let mut bytes = Vec::new();
    ready.image.as_ref().unwrap().write_archive(&mut bytes).unwrap();
    bytes
}

#[tokio::test]
async fn an_image_that_was_made_before_only_gets_its_name() {
    let mut room = room();
    let local = sample();
    let (first, _) = local.upload(&room.packs, tagged("x/y:1")).await.unwrap();
    let first = first.made.unwrap();
    for tag in ["x/y:1", "x/y:2", "elsewhere:1"] {
        room = room.restart();
        let ready = begin(&room, &local, tagged(tag)).await;
        assert!(is_stored(&ready), "{tag}");
        let options =
            hearth_pack::PackOptions { tag: Some(Reference::parse_tag(tag).unwrap()), ..Default::default() };
        let packed = hearth_pack::pack(local.directory.path(), &options, &mut |_| {}).unwrap();
        let mut expected = Vec::new();
        packed.write_archive(&mut expected).unwrap();
        assert!(archive(&ready) == expected, "the archive for {tag}");
        let again = room.packs.publish(ready).await.unwrap();
        let made = again.made.unwrap();
        assert_eq!(made, PackImageDigests { archive_bytes: expected.len() as u64, ..first }, "{tag}");
        let image = room.images.resolve(&Reference::parse_tag(tag).unwrap()).await.unwrap();
        assert_eq!(image.digest, first.digest);
        let image: TaggedImage = again.image.unwrap();
        room.images.verify(&image.repository, image.manifest.digest).await.unwrap();
    }
}

#[tokio::test]
async fn an_image_with_missing_content_is_made_again() {
    let room = room();
    let local = sample();
    let (first, _) = local.upload(&room.packs, tagged("x:1")).await.unwrap();
    let (made, image) = (first.made.unwrap(), first.image.unwrap());

    room.store.remove_manifest(&image.repository, &made.digest).await.unwrap();
    assert!(room.images.resolve(&Reference::parse_tag("x:1").unwrap()).await.is_err());
    let ready = begin(&room, &local, tagged("x:1")).await;
    assert!(!is_stored(&ready), "its manifest is forgotten");
    room.packs.publish(ready).await.unwrap();
    assert!(is_stored(&begin(&room, &local, tagged("x:1")).await));

    let layer = room.images.open_layers(&image.manifest).await.unwrap().remove(0).layer;
    let hex = layer.digest.hex();
    let mut pending = vec![room.directory.path().join("registry")];
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.to_str().unwrap().contains(&hex) {
            std::fs::remove_file(path).unwrap();
        }
    }
    let ready = begin(&room, &local, tagged("x:1")).await;
    assert!(!is_stored(&ready), "its layer is lost");
    let again = room.packs.publish(ready).await.unwrap();
    assert_eq!(again.made.as_ref(), Some(&made));
    assert_eq!(room.images.open_layers(&image.manifest).await.unwrap()[0].layer, layer);
}

#[tokio::test]
async fn an_image_that_outlives_its_tree_is_still_the_answer() {
    let room = room();
    let local = sample();
    local.upload(&room.packs, tagged("x:1")).await.unwrap();
    room.packs.run_sweep(EVERYTHING_OLD).await.unwrap();
    assert!(room.packs.tree("ann", local.hashed.digest).await.is_err());
    assert!(is_stored(&begin(&room, &local, tagged("x:2")).await));
    // A pack for builds needs the tree.
    upload_id(local.begin(&room.packs, "ann").await);
}

#[tokio::test]
async fn an_image_answers_only_who_made_it_and_only_in_its_own_way() {
    let room = room();
    let local = sample();
    local.upload(&room.packs, tagged("x:1")).await.unwrap();
    let bob = room.packs.begin(local.hashed.digest, destination("bob", Some("x:1"))).await.unwrap();
    upload_id(bob);
    let ways = ways();
    for image in &ways {
        let ready = begin(&room, &local, PackDestination { image: image.clone(), ..tagged("x:1") }).await;
        assert!(!is_stored(&ready), "{image:?}");
        room.packs.publish(ready).await.unwrap();
    }
    for image in ways {
        let ready = begin(&room, &local, PackDestination { image: image.clone(), ..tagged("x:1") }).await;
        assert!(is_stored(&ready), "{image:?}");
    }
}

/// Returns image options that differ from the default and from each other.
fn ways() -> Vec<PackImageOptions> {
    let config = |config: ConfigFlags| PackImageOptions { config, ..Default::default() };
    let layer = |compression, mtime| PackImageOptions {
        layer: LayerOptions { compression, mtime, workers: None },
        ..Default::default()
    };
    let word = || "/a".to_owned();
    let platform = |arch: &str| PackImageOptions { platform: arch.parse().unwrap(), ..Default::default() };
    vec![
        layer(Compression::Gzip, 0),
        layer(Compression::None, 0),
        layer(Compression::Zstd, 1),
        platform("arm64"),
        platform("arm/v7"),
        config(ConfigFlags { entrypoint: Some(vec![word()]), ..Default::default() }),
        config(ConfigFlags { cmd: Some(vec![word()]), ..Default::default() }),
        config(ConfigFlags { cmd: Some(vec!["/a /a".to_owned()]), ..Default::default() }),
        config(ConfigFlags { cmd: Some(vec![word(), word()]), ..Default::default() }),
        config(ConfigFlags { env: vec!["A=1".to_owned(), "B=1".to_owned()], ..Default::default() }),
        config(ConfigFlags { env: vec!["B=1".to_owned(), "A=1".to_owned()], ..Default::default() }),
        config(ConfigFlags { labels: vec!["A=1".to_owned()], ..Default::default() }),
        config(ConfigFlags { expose: vec!["80".to_owned()], ..Default::default() }),
        config(ConfigFlags { volumes: vec![word()], ..Default::default() }),
        config(ConfigFlags { workdir: Some(word()), ..Default::default() }),
        config(ConfigFlags { user: Some(word()), ..Default::default() }),
    ]
}
