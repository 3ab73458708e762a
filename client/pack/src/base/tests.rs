use std::io::Write as _;

use hearth_oci::sha256;

use super::*;
use crate::{PackOptions, pack};

fn blob(content: &[u8]) -> Descriptor {
    Descriptor::new("application/vnd.oci.image.layer.v1.tar", sha256(content), content.len() as u64)
}

#[test]
fn a_cached_blob_is_verified_each_time_and_a_damaged_one_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let cache = BlobCache::open(directory.path()).unwrap();
    let known = blob(b"content");
    assert!(cache.get(&known).unwrap().is_none());
    cache.put(&known, &mut &b"content"[..]).unwrap();
    assert!(cache.get(&known).unwrap().is_some());
    let path = directory.path().join("sha256").join(known.digest.hex());
    std::fs::write(&path, b"c0ntent").unwrap();
    assert!(cache.get(&known).unwrap().is_none());
    assert!(!path.exists());
    for wrong in [&b"conten"[..], b"content and more", b"c0ntent"] {
        assert!(cache.put(&known, &mut &*wrong).is_err());
    }
    assert_eq!(std::fs::read_dir(directory.path().join("sha256")).unwrap().count(), 0);
}

#[test]
fn the_cache_keeps_what_was_used_last_within_its_bound() {
    let directory = tempfile::tempdir().unwrap();
    let cache = BlobCache::open(directory.path()).unwrap();
    let blobs: Vec<Vec<u8>> = (0..4u8).map(|byte| vec![byte; 1000]).collect();
    for content in &blobs {
        cache.put(&blob(content), &mut content.as_slice()).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    cache.get(&blob(&blobs[0])).unwrap().unwrap();
    cache.evict(2000).unwrap();
    let there: Vec<bool> = blobs.iter().map(|content| cache.get(&blob(content)).unwrap().is_some()).collect();
    assert_eq!(there, [true, false, false, true]);
}

#[test]
fn a_layer_that_is_not_what_the_config_says_is_refused() {
    let tree = tempfile::tempdir().unwrap();
    std::fs::write(tree.path().join("file"), "content").unwrap();
    let packed = pack(tree.path(), &PackOptions::default(), &mut |_| {}).unwrap();
    let layer = packed.manifest().layers[0].clone();
    let file = || {
        let mut file = tempfile::tempfile().unwrap();
        let mut content = Vec::new();
        packed.open_blob(&layer.digest).unwrap().read_to_end(&mut content).unwrap();
        file.write_all(&content).unwrap();
        HashMap::from([(layer.digest, file)])
    };
    let directory = tempfile::tempdir().unwrap();
    let cache = BlobCache::open(directory.path()).unwrap();
    let mut config = packed.config().clone();
    let bytes = serde_json::to_vec(&config).unwrap();
    BaseImage::from_files(&bytes, vec![layer.clone()], file(), Some(&cache)).unwrap();
    assert_eq!(cache.diff_id(&layer.digest), Some(packed.layer.diff_id));

    config.rootfs.diff_ids = vec![layer.digest];
    let bytes = serde_json::to_vec(&config).unwrap();
    // The result is the same with and without a cached DiffID.
    for known in [None, Some(&cache)] {
        let error = BaseImage::from_files(&bytes, vec![layer.clone()], file(), known).unwrap_err();
        assert!(matches!(error, BaseError::DiffId { .. }), "{error}");
    }
}
