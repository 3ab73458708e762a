//! Checks that the sources of COPY and ADD exist in the context, before any of it is sent.
//!
//! BuildKit detects a missing source only after the whole context has been sent, and a build that fails there keeps
//! BuildKit from reusing the received files, so the next build sends everything again. A file that is certainly
//! missing therefore fails the build here, in BuildKit's words. Targets of symbolic links and other unclear cases are
//! left to BuildKit: a build that it could run must never fail here.

use std::io::Read as _;

use hearth_pack::ignore::IgnorePatterns;

use super::dockerfile::{ContextCopy, CopySource};
use crate::context::{ContextFiles, FileKind, FileTree, MAX_DOCKERFILE};
use crate::model::MountTarget;
use crate::model::fault::{ErrorCode, Fault, FaultStage};

/// Maximum number of names in a hint.
const MAX_SIMILAR_NAMES: usize = 3;
/// Maximum length of a name that is compared with others, in bytes.
const MAX_COMPARED_BYTES: usize = 64;

/// First words of a hint that proposes other names.
const SIMILAR: &str = "did you mean";

/// Returns the fault of a build with a source that is not among the files. Blocking.
pub(super) fn missing_source_fault(
    files: &ContextFiles,
    copied: &[ContextCopy],
    dockerfile: &MountTarget,
) -> Option<Fault> {
    let tree = &*files.context;
    for instruction in copied {
        for source in &instruction.sources {
            let hint = match presence_of(tree, source.path.as_bytes()) {
                SourcePresence::Unjudged => continue,
                SourcePresence::Hidden => match hidden_hint(files, source, dockerfile) {
                    Some(hint) => hint,
                    // The ignore file does not exclude it.
                    None => continue,
                },
                SourcePresence::Missing { known } => {
                    let missing = missing_hint(tree, source, known);
                    // A pack has no files that its ignore file excludes.
                    match hidden_hint(files, source, dockerfile) {
                        Some(hidden) if missing.starts_with(SIMILAR) => format!("{hidden}; or {missing}"),
                        Some(hidden) => hidden,
                        None => missing,
                    }
                }
            };
            let message = format!(
                "line {}: \"/{}\": not found in the build context",
                instruction.excerpt.start_line, source.path
            );
            let mut fault = Fault::new(FaultStage::Context, ErrorCode::CopySourceMissing, message).hint(hint);
            fault.step = Some(instruction.step.clone());
            fault.dockerfile = Some(instruction.excerpt.range(dockerfile));
            return Some(fault);
        }
    }
    None
}

enum SourcePresence {
    /// The source exists, or BuildKit has to decide.
    Unjudged,
    /// The source will not be sent: it exists but is excluded, or is in a directory that was not listed.
    Hidden,
    /// The path exists only up to this length.
    Missing { known: usize },
}

fn presence_of(tree: &dyn FileTree, path: &[u8]) -> SourcePresence {
    let mut known = 0;
    let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    for end in slashes.chain([path.len()]) {
        let Some(index) = tree.find(&path[..end]) else { return SourcePresence::Missing { known } };
        let is_last = end == path.len();
        match tree.entry(index).kind {
            FileKind::Symlink(_) => return SourcePresence::Unjudged,
            FileKind::Directory => {}
            _ if !is_last => return SourcePresence::Missing { known: end },
            _ => {}
        }
        if (is_last && !tree.is_covered(index)) || !tree.is_listed(index) {
            return SourcePresence::Hidden;
        }
        known = end;
    }
    SourcePresence::Unjudged
}

/// Returns `None` when no ignore pattern excludes the source.
fn hidden_hint(files: &ContextFiles, source: &CopySource, dockerfile: &MountTarget) -> Option<String> {
    let own = format!("{}.dockerignore", files.dockerfile_name);
    let (text, name) = match read(&*files.dockerfile, own.as_bytes()) {
        Some(text) => (text, format!("{dockerfile}.dockerignore")),
        None => (read(&*files.context, b".dockerignore")?, ".dockerignore".to_owned()),
    };
    let patterns = IgnorePatterns::parse_file(&text).ok()?;
    let pattern = patterns.matching(source.path.as_bytes())?;
    let path = &source.path;
    Some(format!(
        "the pattern `{pattern}` of `{name}` leaves `{path}` out; take the pattern away, or add `!{path}` below it"
    ))
}

/// Returns `None` when the file does not exist or cannot be read.
fn read(tree: &dyn FileTree, path: &[u8]) -> Option<Vec<u8>> {
    let index = tree.find(path)?;
    if !matches!(tree.entry(index).kind, FileKind::File(()) | FileKind::HardLink(_)) {
        return None;
    }
    let mut text = Vec::new();
    tree.open(index).ok()?.take(MAX_DOCKERFILE).read_to_end(&mut text).ok()?;
    Some(text)
}

fn missing_hint(tree: &dyn FileTree, source: &CopySource, known: usize) -> String {
    let path = source.path.as_bytes();
    let (parent, below) = path.split_at(known);
    let below = below.strip_prefix(b"/").unwrap_or(below);
    let name = below.split(|&byte| byte == b'/').next().unwrap_or_default();
    let path_text = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
    if let Some(index) = tree.find(parent)
        && tree.entry(index).kind != FileKind::Directory
    {
        return format!("`{}` is not a directory", path_text(parent));
    }
    let similar = similar(tree, parent, name);
    if !similar.is_empty() {
        let names: Vec<String> = similar.iter().map(|path| format!("`{}`", path_text(path))).collect();
        return format!("{SIMILAR} {}?", names.join(" or "));
    }
    if source.written.split('/').any(|part| part == "..") {
        return format!(
            "`{}` cannot lead out of the context, where it is `{}`; mount what it should be, or give another context path",
            source.written, source.path
        );
    }
    match parent {
        b"" => format!("there is no `{}` in the context; add it, or correct the path", path_text(name)),
        parent => {
            format!(
                "there is no `{}` in `{}`; add it, or correct the path",
                path_text(name),
                path_text(parent)
            )
        }
    }
}

/// Returns paths in a directory with names similar to `name`, the most similar first.
fn similar<'t>(tree: &'t dyn FileTree, directory: &[u8], name: &[u8]) -> Vec<&'t [u8]> {
    let (first, prefix) = match tree.find(directory) {
        Some(index) => (index + 1, [directory, b"/"].concat()),
        None => (0, Vec::new()),
    };
    let most = match name.len() {
        0..=3 => 1,
        4..=MAX_COMPARED_BYTES => 2,
        _ => return Vec::new(),
    };
    let mut found: Vec<(usize, &[u8])> = Vec::new();
    for index in first..tree.len() {
        let path = tree.entry(index).path;
        let Some(other) = path.strip_prefix(prefix.as_slice()) else { break };
        if other.contains(&b'/') || !tree.is_covered(index) || other.len().abs_diff(name.len()) > most {
            continue;
        }
        let distance = distance(name, other);
        if distance <= most && distance < name.len() {
            found.push((distance, path));
        }
    }
    found.sort();
    found.truncate(MAX_SIMILAR_NAMES);
    found.into_iter().map(|(_, path)| path).collect()
}

/// Edit distance in bytes, ignoring letter case.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(!x.eq_ignore_ascii_case(y));
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests;
