use super::*;
use crate::registry::blobs::BlobStore;

#[test]
fn an_archive_of_endless_small_blobs_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let blobs = BlobStore::open(directory.path()).unwrap();
    let digest = Digest::from_sha256([1; 32]);
    let one = StoredBlob { digest, size: 1, fresh: None };
    let mut keep = BlobSink { blobs: &blobs, arrived: &|_| (), stored: vec![one; MAX_BLOBS], full: false };
    let error = keep.blob(&digest, 1, &mut io::empty()).unwrap_err();
    assert!(error.to_string().contains("more than 10000 blobs"), "{error}");
}
