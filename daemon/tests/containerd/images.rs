//! Images of the room as file systems of instances.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use hearth_pack::image::ConfigFlags;
use hearth_pack::layer::Compression;
use hearthd::deploy::port::{ContainerRuntime as _, InstanceImage, RuntimeError};
use hearthd::image::port::BlobStorage as _;
use hearthd::model::Digest;
use sha2::Digest as _;

use crate::fixture::Fixture;

fn flags(env: &str) -> ConfigFlags {
    ConfigFlags { env: vec![env.to_owned()], ..ConfigFlags::default() }
}

fn put(fixture: &Fixture, content: &[u8]) -> Digest {
    let digest = Digest::from_sha256(sha2::Sha256::digest(content).into());
    fixture.blobs.put(&digest, &mut &content[..]).unwrap();
    digest
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_runs_whatever_its_layers_are_compressed_with() {
    Fixture::run(async |fixture| {
        for (index, compression) in
            [Compression::Zstd, Compression::Gzip, Compression::None].into_iter().enumerate()
        {
            let text = format!("layer {index}\n");
            let image = fixture.image_of(compression, flags("A=1"), &[("file", 0o644, &text)]);
            fixture.runtime.prepare(&image).await.unwrap();
            let (exit, lines) = fixture.script(fixture.spec(&image, &[]), "cat /file").await;
            assert_eq!((exit.code, lines), (Some(0), vec![text.trim().to_owned()]));
        }
        // The content is in the room, and not stored a second time here.
        let content = fixture.dir.path().join("containerd/root/io.containerd.content.v1.content");
        let begun = Instant::now();
        loop {
            let held = walk(&content);
            if held < 100_000 || begun.elapsed() > Duration::from_secs(10) {
                assert!(held < 100_000, "{held} bytes");
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

fn walk(dir: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => walk(&entry.path()),
        Ok(found) => found.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_an_image_go_when_neither_a_wish_nor_an_instance_holds_them() {
    Fixture::run(async |fixture| {
        let kept = fixture.image(flags("A=1"), &[("one", 0o644, "1")]);
        let same_layers = fixture.image(flags("A=2"), &[("one", 0o644, "1")]);
        let used = fixture.image(flags("A=1"), &[("two", 0o644, "2")]);
        let gone = fixture.image(flags("A=1"), &[("three", 0o644, "3")]);
        for image in [&kept, &same_layers, &used, &gone] {
            fixture.runtime.prepare(image).await.unwrap();
        }
        assert_eq!(fixture.snapshots(), 3, "layers are shared");
        let spec = fixture.spec(&used, &["/bin/sleep", "1000"]);
        let id = spec.label.instance.clone();
        fixture.runtime.start(spec).await.unwrap();
        // Keeps one of two images that share a layer: the one that did not unpack it.
        let wanted = BTreeSet::from([same_layers.manifest]);
        fixture.runtime.keep_images(&wanted).await.unwrap();
        assert_eq!(fixture.snapshots(), 3, "one wanted, one in use, and the instance's own");
        let (exit, _) = fixture.script(fixture.spec(&same_layers, &[]), "cat /one").await;
        assert_eq!(exit.code, Some(0));
        fixture.runtime.remove(&id).await.unwrap();
        fixture.runtime.keep_images(&BTreeSet::new()).await.unwrap();
        fixture.no_snapshots().await;
        // A start restores what it needs.
        let (exit, _) = fixture.script(fixture.spec(&gone, &[]), "cat /three").await;
        assert_eq!(exit.code, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_not_what_it_says_is_refused() {
    Fixture::run(async |fixture| {
        let refused = async |manifest: Digest| {
            let image = InstanceImage { repository: "web".parse().unwrap(), manifest };
            match fixture.runtime.prepare(&image).await {
                Err(RuntimeError::UnusableImage(text) | RuntimeError::CorruptImage { reason: text, .. }) => {
                    println!("{text}");
                    text
                }
                other => panic!("{other:?}"),
            }
        };
        assert!(refused(Digest::from_sha256([7; 32])).await.contains("not in the room"));
        assert!(!refused(put(fixture, b"no json")).await.is_empty());
        let image = |architecture: &str, layer: &[u8], diff_ids: &str| {
            let digest = put(fixture, layer);
            let config = format!(
                r#"{{"os":"linux","architecture":"{architecture}","rootfs":{{"type":"layers","diff_ids":[{diff_ids}]}}}}"#
            );
            let config_digest = put(fixture, config.as_bytes());
            put(
                fixture,
                format!(
                    r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config_digest}",
                    "size":{}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{digest}","size":{}}}]}}"#,
                    config.len(),
                    layer.len()
                )
                .as_bytes(),
            )
        };
        let own = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let other = format!("\"{}\"", Digest::from_sha256([9; 32]));
        let broken = b"this is no archive";
        assert!(refused(image("s390x", broken, "")).await.contains("s390x"));
        assert!(refused(image(own, broken, "")).await.contains("1 layers"));
        assert!(refused(image(own, broken, &other)).await.contains("layer"));
        // An empty archive, under the digest of another.
        assert!(refused(image(own, &[0; 1024], &other)).await.contains("config says"));
        fixture.no_snapshots().await;
    })
    .await;
}
