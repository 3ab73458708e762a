//! The tree as people look at it: listings of any size, and single files.

use std::io::Read as _;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::browse::{Content, Seen};
use super::read::Verified;
use super::scan::absolute;
use super::{Layer, Tree, below};
use crate::context::ContextError;
use crate::context::error::text;

/// Content of one file, from its beginning to its end.
pub struct Reader {
    path: String,
    content: Whole,
}

enum Whole {
    /// An error when it changes before its end.
    File(Verified),
    Image(super::browse::ImageFile, u64),
}

/// What a walk calls: path from its top, what is there, and a link's target. False ends the walk.
pub type Visit<'v> = dyn FnMut(&[u8], &Seen, Option<&[u8]>) -> bool + 'v;

impl Tree {
    /// Shows what is at `path`: the entries of a directory, or the one file. With all below it when
    /// `recursive`; one directory on each level is in memory. Links are shown, never followed.
    pub fn show(
        &self,
        path: &[u8],
        seen: &Seen,
        recursive: bool,
        visit: &mut Visit<'_>,
    ) -> Result<(), ContextError> {
        if seen.attr.kind != FileType::Directory {
            self.visit(path, path, seen, visit)?;
            return Ok(());
        }
        let at = |path: &[u8], errno| ContextError::at(&absolute(path), errno);
        let mut levels = vec![(path.to_vec(), self.list(path).map_err(|errno| at(path, errno))?)];
        while let Some((directory, entries)) = levels.last_mut() {
            let Some((name, seen)) = entries.pop_first() else {
                levels.pop();
                continue;
            };
            let child = Self::child_path(directory, &name).map_err(|errno| at(directory, errno))?;
            if !self.visit(path, &child, &seen, visit)? {
                return Ok(());
            }
            if recursive && seen.attr.kind == FileType::Directory {
                let entries = self.list(&child).map_err(|errno| at(&child, errno))?;
                levels.push((child.into_vec(), entries));
            }
        }
        Ok(())
    }

    fn visit(&self, top: &[u8], path: &[u8], seen: &Seen, visit: &mut Visit<'_>) -> Result<bool, ContextError> {
        let target = match seen.attr.kind {
            FileType::Symlink => match self.link_target(path) {
                Ok(target) => Some(target),
                // No link any more, or gone, since the directory was read.
                Err(Errno::NOENT | Errno::INVAL) => return Ok(true),
                Err(errno) => return Err(ContextError::at(&absolute(path), errno)),
            },
            _ => None,
        };
        Ok(visit(below(top, path).unwrap_or(path), seen, target.as_deref()))
    }

    /// Opens the regular file at `path`; nothing else is ever opened.
    pub fn reader(&self, path: &[u8]) -> Result<Reader, ContextError> {
        let shown = text(&absolute(path));
        let failed = |errno| match errno {
            Errno::ISDIR => ContextError::NotAFile { path: shown.clone(), what: "no file" },
            errno => ContextError::at(&absolute(path), errno),
        };
        let (mount, inside) = self.covering(path).ok_or_else(|| failed(Errno::NOENT))?;
        let content = match self.layer(mount) {
            Layer::Directory(layer) => {
                let (file, stat) = layer.open_file(inside).map_err(failed)?;
                Whole::File(Verified::new(file, stat, shown.clone()))
            }
            _ => match self.content(path).map_err(failed)? {
                Content::Image(file) => Whole::Image(file, 0),
                Content::File(_) => return Err(failed(Errno::ISDIR)),
            },
        };
        Ok(Reader { path: shown, content })
    }
}

impl Reader {
    /// Fills the buffer, but at the end of the file.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ContextError> {
        let path = &self.path;
        let failed = |error: std::io::Error| match error.downcast::<ContextError>() {
            Ok(error) => error,
            Err(source) => ContextError::Io { path: path.clone(), source },
        };
        let mut done = 0;
        while done < buffer.len() {
            let count = match &mut self.content {
                Whole::File(file) => file.read(&mut buffer[done..]),
                Whole::Image(file, at) => file.read_at(&mut buffer[done..], *at).inspect(|count| *at += *count as u64),
            };
            match count.map_err(failed)? {
                0 => break,
                count => done += count,
            }
        }
        Ok(done)
    }
}
