//! Decompressed frames, the latest few: neighbours in a tree mostly lie in one frame.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use super::MAX_PIECE;
use super::rows::Place;

/// 32 MiB at worst.
const KEPT: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Frames(Mutex<Vec<(Key, Bytes)>>);

/// Segment and where the frame begins. Segments are never written over and their numbers never used again.
type Key = (u32, u32);

impl Frames {
    pub(super) fn get(&self, segment: u32, file: &File, place: &Place) -> io::Result<Bytes> {
        let key = (segment, place.frame);
        {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(at) = kept.iter().position(|(known, _)| *known == key) {
                let found = kept.remove(at);
                let bytes = found.1.clone();
                kept.push(found);
                return Ok(bytes);
            }
        }
        let mut frame = vec![0; place.length as usize];
        file.read_exact_at(&mut frame, place.frame.into())?;
        let bytes = Bytes::from(zstd::bulk::decompress(&frame, MAX_PIECE as usize)?);
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            kept.remove(0);
        }
        kept.push((key, bytes.clone()));
        Ok(bytes)
    }
}
