//! Sealed form of a list in a file: its bytes, its digest, and a checksum over both. A list that was validated once
//! need not be validated entry by entry again.
//!
//! ```text
//! sealed := list digest:32 sum:32
//! ```

use super::{ListingReader, TreeListing};
use crate::identity::TreeDigest;

const DIGEST: usize = 32;
const SUM: usize = 32;

impl TreeListing {
    /// Returns the bytes that follow [`bytes`](Self::bytes) in a sealed list.
    pub fn seal(&self) -> [u8; DIGEST + SUM] {
        let mut seal = [0; DIGEST + SUM];
        let digest = self.digest.as_bytes();
        let sum = blake3::Hasher::new().update(&self.bytes).update(digest).finalize();
        seal[..DIGEST].copy_from_slice(digest);
        seal[DIGEST..].copy_from_slice(sum.as_bytes());
        seal
    }

    /// Reads a sealed list. Returns the bytes unchanged if they are damaged or not sealed. The seal does not
    /// authenticate: anybody who can write the file can seal it, so do not use this for lists from untrusted senders.
    pub fn unseal(mut bytes: Vec<u8>) -> Result<Self, Vec<u8>> {
        match opened(&bytes) {
            Some((digest, starts)) => {
                bytes.truncate(bytes.len() - DIGEST - SUM);
                Ok(Self { digest, bytes, starts })
            }
            None => Err(bytes),
        }
    }
}

fn opened(sealed: &[u8]) -> Option<(TreeDigest, Vec<u32>)> {
    let end = sealed.len().checked_sub(DIGEST + SUM)?;
    let (summed, sum) = sealed.split_at(end + DIGEST);
    if blake3::hash(summed) != blake3::Hash::from_slice(sum).ok()? {
        return None;
    }
    let (list, digest) = summed.split_at(end);
    let (mut starts, mut reader) = (Vec::new(), ListingReader { bytes: list, at: 0 });
    while reader.at < end {
        starts.push(u32::try_from(reader.at).ok()?);
        reader.entry().ok()?;
    }
    Some((TreeDigest::from_bytes(digest.try_into().ok()?), starts))
}
