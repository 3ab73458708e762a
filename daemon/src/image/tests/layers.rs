//! Configs that do not match their layers, and layers that exceed the limits.

use std::sync::atomic::{AtomicUsize, Ordering};

use flate2::Compression;
use flate2::write::GzEncoder;
use hearth_oci::{OCI_INDEX_TYPE, OCI_MANIFEST_TYPE};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::*;
use crate::image::port::{LayerFacts, LayerFault};

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";

fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_sha256(Sha256::digest(bytes).into())
}

pub(super) fn tar(name: &str, content: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, name, content).unwrap();
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

impl ImageFixture {
    fn put(&self, media_type: &str, bytes: &[u8]) -> Descriptor {
        let digest = digest_of(bytes);
        self.blobs.put(&digest, &mut std::io::Cursor::new(bytes)).unwrap();
        Descriptor::new(media_type, digest, bytes.len() as u64)
    }

    /// Stores an image as any client can push it.
    fn image(&self, layers: &[(&str, &[u8])], diff_ids: &[Digest]) -> Descriptor {
        let layers: Vec<Descriptor> = layers.iter().map(|(kind, bytes)| self.put(kind, bytes)).collect();
        let config = json!({
            "os": "linux", "architecture": Platform::host().as_str().trim_start_matches("linux/"),
            "rootfs": {"type": "layers", "diff_ids": diff_ids}, "config": {},
        });
        self.image_of(&layers, &config)
    }

    fn image_of(&self, layers: &[Descriptor], config: &serde_json::Value) -> Descriptor {
        let config = self.put("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST_TYPE, "config": config, "layers": layers,
        });
        self.put(OCI_MANIFEST_TYPE, manifest.to_string().as_bytes())
    }

    async fn check(&self, image: &Descriptor) -> Result<(), ImageError> {
        self.images.check_layers(image, &PlatformSelection::All, Some("ann")).await
    }

    async fn refused(&self, image: &Descriptor) -> &'static str {
        self.check(image).await.unwrap_err().code().as_str()
    }
}

#[tokio::test]
async fn a_config_that_names_the_layers_of_another_image_is_refused() {
    let room = room();
    let (theirs, mine) = (tar("secret", b"of others"), tar("mine", b"x"));
    let honest = room.image(&[(GZIP, &gzip(&theirs))], &[digest_of(&theirs)]);
    room.check(&honest).await.unwrap();
    let thief = room.image(&[(GZIP, &gzip(&mine))], &[digest_of(&theirs)]);
    let error = room.check(&thief).await.unwrap_err();
    assert_eq!(error.code(), "layer_mismatch");
    let text = error.to_string();
    for named in [digest_of(&gzip(&mine)), digest_of(&theirs), digest_of(&mine)] {
        assert!(text.contains(&named.to_string()), "{text}");
    }
    // Also refused after its layers were inspected for another image.
    room.check(&room.image(&[(GZIP, &gzip(&mine))], &[digest_of(&mine)])).await.unwrap();
    assert_eq!(room.refused(&thief).await, "layer_mismatch");
    for diff_ids in [vec![], vec![digest_of(&mine); 2]] {
        assert_eq!(room.refused(&room.image(&[(GZIP, &gzip(&mine))], &diff_ids)).await, "layer_mismatch");
    }
}

#[tokio::test]
async fn each_compression_is_looked_into_and_a_tar_that_is_also_gzip_is_not_taken_for_either() {
    let room = room();
    let tar = tar("file", &vec![7; 300_000]);
    let two_members = [gzip(&tar[..1000]), gzip(&tar[1000..])].concat();
    let frames = |parts: &[&[u8]]| -> Vec<u8> {
        parts.iter().flat_map(|part| zstd::bulk::compress(part, 3).unwrap()).collect()
    };
    let zstd = frames(&[&tar]);
    let two_frames = frames(&[&tar[..1000], &tar[1000..]]);
    let of_zstd = "application/vnd.oci.image.layer.v1.tar+zstd";
    let of_docker = "application/vnd.docker.image.rootfs.diff.tar";
    let ways: [(&str, &[u8]); 6] = [
        (GZIP, &gzip(&tar)),
        (GZIP, &two_members),
        (of_zstd, &zstd),
        (of_zstd, &two_frames),
        (PLAIN, &tar),
        (of_docker, &gzip(&tar)),
    ];
    for (media_type, stored) in ways {
        room.check(&room.image(&[(media_type, stored)], &[digest_of(&tar)])).await.unwrap();
        // Bytes after the end belong to no file, and must not be there.
        let trailing = [stored, b"something else that nobody reads"].concat();
        let followed = room.image(&[(media_type, &trailing)], &[digest_of(&tar)]);
        assert!(room.check(&followed).await.is_err(), "{media_type}");
        let cut = room.image(&[(media_type, &stored[..stored.len() / 2])], &[digest_of(&tar)]);
        assert!(room.check(&cut).await.is_err(), "{media_type}");
    }
    // BuildKit would take these bytes for the tar itself.
    let two_faced = room.image(&[(PLAIN, &gzip(&tar))], &[digest_of(&tar)]);
    assert_eq!(room.refused(&two_faced).await, "layer_mismatch");
    let unknown = "application/vnd.oci.image.layer.v1.tar+encrypted";
    let unknown = room.image(&[(unknown, &gzip(&tar))], &[digest_of(&tar)]);
    assert_eq!(room.refused(&unknown).await, "layer_mismatch");
}

#[tokio::test]
async fn documents_that_others_read_as_something_else_are_refused() {
    let room = room();
    let (theirs, mine) = (tar("secret", b"of others"), tar("mine", b"x"));
    let layer = room.put(GZIP, &gzip(&mine));
    let config = json!({
        "os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [digest_of(&mine)]},
        "RootFS": {"type": "layers", "diff_ids": [digest_of(&theirs)]},
    });
    let image = room.image_of(std::slice::from_ref(&layer), &config);
    assert_eq!(room.refused(&image).await, "invalid_config");

    let config = json!({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": [digest_of(&mine)]}});
    let config = room.put("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    let manifest = |more: &str| {
        let base = json!({"schemaVersion": 2, "config": config, "layers": [layer]}).to_string();
        room.put(OCI_MANIFEST_TYPE, base.replacen('{', &format!("{{{more}"), 1).as_bytes())
    };
    room.check(&manifest("")).await.unwrap();
    for more in [r#""Layers": [],"#, r#""manifests": [],"#, r#""layers": [],"#] {
        assert_eq!(room.refused(&manifest(more)).await, "invalid_manifest", "{more}");
    }
    let mut elsewhere = serde_json::to_value(&layer).unwrap();
    elsewhere["urls"] = json!(["http://127.0.0.1:1/"]);
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [elsewhere]});
    let elsewhere = room.put(OCI_MANIFEST_TYPE, manifest.to_string().as_bytes());
    assert_eq!(room.refused(&elsewhere).await, "invalid_layer");
}

#[tokio::test]
async fn every_image_of_an_index_that_could_be_used_is_looked_at_and_artifacts_are_not() {
    let room = room();
    let (theirs, mine) = (tar("secret", b"of others"), tar("mine", b"x"));
    let honest = room.image(&[(GZIP, &gzip(&mine))], &[digest_of(&mine)]);
    let wrong = room.image(&[(GZIP, &gzip(&mine))], &[digest_of(&theirs)]);
    let statement = b"{\"_type\": \"https://in-toto.io/Statement/v0.1\"}";
    let attestation = room.image(&[("application/vnd.in-toto+json", statement)], &[digest_of(statement)]);
    let lying = room.image(&[("application/vnd.in-toto+json", statement)], &[digest_of(&theirs)]);
    let artifact = {
        let layer = room.put("application/vnd.in-toto+json", statement);
        let config = room.put("application/vnd.oci.empty.v1+json", b"{}");
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
        room.put(OCI_MANIFEST_TYPE, manifest.to_string().as_bytes())
    };
    let index = |children: &[(&Descriptor, &str)]| {
        let child = |(child, platform): &(&Descriptor, &str)| {
            let (os, architecture) = platform.split_once('/').unwrap();
            let mut json = serde_json::to_value(child).unwrap();
            json["platform"] = json!({"os": os, "architecture": architecture});
            json
        };
        let manifests: Vec<_> = children.iter().map(child).collect();
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX_TYPE, "manifests": manifests});
        room.put(OCI_INDEX_TYPE, index.to_string().as_bytes())
    };
    let host = Platform::host();
    let sound =
        index(&[(&honest, host.as_str()), (&attestation, "unknown/unknown"), (&artifact, "unknown/unknown")]);
    room.check(&sound).await.unwrap();
    let mixed = index(&[(&honest, host.as_str()), (&wrong, "linux/s390x")]);
    assert_eq!(room.refused(&mixed).await, "layer_mismatch");
    // The image for this machine is sound.
    room.images.check_layers(&mixed, &PlatformSelection::One(host), Some("ann")).await.unwrap();
    let lying = index(&[(&honest, "linux/amd64"), (&lying, "unknown/unknown")]);
    assert_eq!(room.refused(&lying).await, "layer_mismatch");
}

#[tokio::test]
async fn what_holds_too_much_is_refused_also_when_it_is_one_layer_many_times_or_a_hole() {
    let limits = LayerLimits { ratio: 20, ratio_floor: 1 << 20, entries: 50, ..LayerLimits::default() };
    let room = room_with(Arc::new(LayerInspection::new(limits)));
    let check = async |layers: &[&[u8]]| {
        let stored: Vec<Vec<u8>> = layers.iter().map(|tar| gzip(tar)).collect();
        let named: Vec<(&str, &[u8])> = stored.iter().map(|stored| (GZIP, stored.as_slice())).collect();
        let diff_ids: Vec<Digest> = layers.iter().map(|tar| digest_of(tar)).collect();
        room.check(&room.image(&named, &diff_ids)).await.map_err(|error| error.code().as_str())
    };
    let zeros = tar("zeros", &vec![0; 900_000]);
    check(&[&zeros]).await.unwrap();
    assert_eq!(check(&[&zeros, &zeros]).await, Err("layer_too_large"));
    assert_eq!(check(&[&tar("zeros", &vec![0; 3 << 20])]).await, Err("layer_too_large"));
    let many = |count: usize| {
        let mut builder = tar::Builder::new(Vec::new());
        for number in 0..count {
            let mut header = tar::Header::new_gnu();
            header.set_size(0);
            header.set_mode(0o644);
            builder.append_data(&mut header, format!("{number}"), &b""[..]).unwrap();
        }
        builder.into_inner().unwrap()
    };
    check(&[&many(50)]).await.unwrap();
    assert_eq!(check(&[&many(51)]).await, Err("layer_too_large"));
    assert_eq!(check(&[&many(30), &many(31)]).await, Err("layer_too_large"));
    // 1 TiB of which nothing is stored: a Go program that unpacks it writes zeros.
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNUSparse);
    header.set_size(0);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_path("sparse").unwrap();
    header.as_gnu_mut().unwrap().set_real_size(1 << 40);
    header.set_cksum();
    let sparse = [header.as_bytes().as_slice(), &[0; 1024]].concat();
    assert_eq!(check(&[&sparse]).await, Err("layer_too_large"));
}

/// Inspector that counts inspections and is slow.
struct SlowInspector {
    passes: AtomicUsize,
    cancelled: AtomicUsize,
    limits: LayerLimits,
    real: LayerInspection,
}

impl LayerInspector for SlowInspector {
    fn limits(&self) -> &LayerLimits {
        &self.limits
    }

    fn inspect(
        &self,
        file: std::fs::File,
        cancelled: &std::sync::atomic::AtomicBool,
    ) -> Result<LayerFacts, LayerFault> {
        self.passes.fetch_add(1, Ordering::SeqCst);
        for _ in 0..60 {
            std::thread::sleep(std::time::Duration::from_millis(5));
            if cancelled.load(Ordering::SeqCst) {
                self.cancelled.fetch_add(1, Ordering::SeqCst);
                return Err(LayerFault::Cancelled);
            }
        }
        self.real.inspect(file, cancelled)
    }
}

fn slow(limits: LayerLimits) -> Arc<SlowInspector> {
    Arc::new(SlowInspector {
        passes: AtomicUsize::new(0),
        cancelled: AtomicUsize::new(0),
        limits,
        real: LayerInspection::new(limits),
    })
}

#[tokio::test]
async fn one_pass_serves_all_who_wait_and_the_next_daemon_and_is_cancelled_when_nobody_waits() {
    let inspector = slow(LayerLimits::default());
    let room = room_with(Arc::clone(&inspector) as _);
    let tar = tar("file", b"x");
    let image = room.image(&[(GZIP, &gzip(&tar))], &[digest_of(&tar)]);
    let given_up = tokio::time::timeout(std::time::Duration::from_millis(50), room.check(&image)).await;
    assert!(given_up.is_err());
    let many = futures::future::join_all((0..20).map(|_| room.check(&image))).await;
    assert!(many.into_iter().all(|checked| checked.is_ok()));
    assert_eq!(inspector.cancelled.load(Ordering::SeqCst), 1);
    assert_eq!(inspector.passes.load(Ordering::SeqCst), 2);
    // The verdict is stored in the background.
    let known = async || {
        let key = "1:34359738368:200:1073741824:1000000";
        room.store.layer_verdicts(vec![digest_of(&gzip(&tar))], key).await.unwrap().len()
    };
    for _ in 0..200 {
        if known().await == 1 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let again = |inspector: Arc<SlowInspector>| {
        let (blobs, store) = (Arc::new(room.blobs.clone()), Arc::new(room.store.clone()));
        ImageStore::new(RoomRegistries::default(), blobs, store, inspector)
    };
    again(Arc::clone(&inspector)).check_layers(&image, &PlatformSelection::All, Some("ann")).await.unwrap();
    assert_eq!(inspector.passes.load(Ordering::SeqCst), 2);
    // The verdict does not apply under other limits.
    let stricter = slow(LayerLimits { layer_bytes: 100, ..LayerLimits::default() });
    let error = again(Arc::clone(&stricter))
        .check_layers(&image, &PlatformSelection::All, Some("ann"))
        .await
        .unwrap_err();
    assert_eq!((error.code().as_str(), stricter.passes.load(Ordering::SeqCst)), ("layer_too_large", 1));
}
