//! Ledger file: one line of JSON for each change, rewritten as a whole from time to time.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{KeptContent, KeptEntry, is_disk_full};

#[derive(Debug)]
pub(super) struct LedgerJournal {
    path: PathBuf,
    file: File,
}

#[derive(Serialize, Deserialize)]
struct JournalLine {
    content: KeptContent,
    /// Charge of the content; `None` if it was removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<KeptEntry>,
}

impl LedgerJournal {
    pub(super) fn open(path: &Path) -> io::Result<(Self, HashMap<KeptContent, KeptEntry>)> {
        let mut kept = HashMap::new();
        let file = OpenOptions::new().create(true).read(true).append(true).mode(0o600).open(path)?;
        for line in BufReader::new(&file).split(b'\n') {
            match serde_json::from_slice::<JournalLine>(&line?) {
                Ok(JournalLine { content, kept: Some(now) }) => drop(kept.insert(content, now)),
                Ok(JournalLine { content, kept: None }) => drop(kept.remove(&content)),
                // A killed daemon may leave an incomplete last line.
                Err(error) => {
                    tracing::warn!(%error, path = %path.display(), "skipped an unreadable line of the disk ledger");
                }
            }
        }
        let mut journal = Self { path: path.to_owned(), file };
        match journal.rewrite(&kept) {
            Err(error) if is_disk_full(&error) => {
                tracing::warn!(%error, "failed to rewrite the disk ledger on a full disk; the next comparison does it");
            }
            rewritten => rewritten?,
        }
        Ok((journal, kept))
    }

    pub(super) fn note(&mut self, content: &KeptContent, kept: Option<&KeptEntry>) -> io::Result<()> {
        self.file.write_all(&line(content, kept)?)
    }

    pub(super) fn rewrite(&mut self, kept: &HashMap<KeptContent, KeptEntry>) -> io::Result<()> {
        let draft = self.path.with_extension("new");
        let file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&draft)?;
        let mut writer = BufWriter::new(file);
        for (content, kept) in kept {
            writer.write_all(&line(content, Some(kept))?)?;
        }
        writer.into_inner().map_err(io::IntoInnerError::into_error)?.sync_data()?;
        fs::rename(&draft, &self.path)?;
        self.file = OpenOptions::new().append(true).open(&self.path)?;
        Ok(())
    }
}

fn line(content: &KeptContent, kept: Option<&KeptEntry>) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(&JournalLine { content: content.clone(), kept: kept.cloned() })?;
    line.push(b'\n');
    Ok(line)
}
