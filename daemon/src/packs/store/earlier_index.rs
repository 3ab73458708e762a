//! Index files of earlier releases, which the database replaces: one beside each segment, with a row for each content
//! and for each additional owner. An incomplete or damaged row ends a file.
//!
//! ```text
//! row := hash:32 owner:16 start:u32 length:u32 inside:u32 size:u32 kind:u32 sum:8        (76 bytes)
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::OwnerKey;
use super::index::{ContentIndex, ContentKey, FrameContent, FrameLocation};
use super::segment;

const ROW_SIZE: usize = 76;
const EXTENSION: &str = "rows";
/// Kinds of a row: content that is one piece, content that is a recipe, and additional owner of a content.
pub(super) const PIECE: u32 = 1;
pub(super) const RECIPE: u32 = 2;
pub(super) const OWNER: u32 = 3;

pub(super) fn rows_path(directory: &Path, segment: u32) -> PathBuf {
    directory.join(format!("{segment:08}.{EXTENSION}"))
}

struct EarlierRow {
    owner: OwnerKey,
    frame: FrameLocation,
    content: FrameContent,
    kind: u32,
}

impl ContentIndex {
    /// Imports the index files in `directory` and removes them. A crash in between leaves the files and an empty
    /// database, or a complete one.
    pub(super) fn import(&mut self, directory: &Path) -> io::Result<()> {
        let segments = segment::numbers(directory, EXTENSION)?;
        let is_empty = self.segment_ends()?.is_empty();
        if is_empty && !segments.is_empty() {
            self.begin()?;
            // A content in two segments was moved to the later one.
            for segment in segments.iter().rev() {
                self.import_contents(&read(directory, *segment)?)?;
            }
            for segment in &segments {
                for rows in read(directory, *segment)?.chunk_by(|row, next| row.owner == next.owner) {
                    let keys: Vec<ContentKey> = rows.iter().map(|row| row.content.key).collect();
                    self.add_owner(&rows[0].owner, &keys)?;
                }
            }
            self.commit()?;
        }
        segments.iter().try_for_each(|segment| segment::remove_file(&rows_path(directory, *segment)))
    }

    fn import_contents(&self, rows: &[EarlierRow]) -> io::Result<()> {
        let contents: Vec<&EarlierRow> = rows.iter().filter(|row| row.kind != OWNER).collect();
        for rows in contents.chunk_by(|row, next| row.frame == next.frame && row.kind == next.kind) {
            let new: Vec<_> = rows.iter().map(|row| row.content).collect();
            self.insert(&rows[0].frame, &rows[0].owner, &new, rows[0].kind == RECIPE, 0)?;
        }
        Ok(())
    }
}

/// Reads the rows of a segment, up to the first damaged one.
fn read(directory: &Path, segment: u32) -> io::Result<Vec<EarlierRow>> {
    let bytes = fs::read(rows_path(directory, segment))?;
    Ok(bytes.chunks_exact(ROW_SIZE).map_while(|row| decode(segment, row.try_into().ok()?)).collect())
}

fn decode(segment: u32, bytes: &[u8; ROW_SIZE]) -> Option<EarlierRow> {
    if bytes[68..] != blake3::hash(&bytes[..68]).as_bytes()[..8] {
        return None;
    }
    let number = |index: usize| {
        let mut four = [0; 4];
        four.copy_from_slice(&bytes[48 + 4 * index..][..4]);
        u32::from_le_bytes(four)
    };
    let kind = number(4);
    let (mut key, mut owner) = ([0; 16], [0; 16]);
    key.copy_from_slice(&bytes[..16]);
    owner.copy_from_slice(&bytes[32..48]);
    (PIECE..=OWNER).contains(&kind).then_some(EarlierRow {
        owner: OwnerKey(owner),
        frame: FrameLocation { segment, start: number(0), length: number(1) },
        content: FrameContent { key: ContentKey(key), inside: number(2), size: number(3) },
        kind,
    })
}
