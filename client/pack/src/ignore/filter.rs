//! Filter for the entries of a tree in a file sync: exclude and include patterns over a sorted list.

use super::{IgnoreError, IgnorePatterns, ParentMatch};

/// Exclude and include patterns, as BuildKit sends them together.
#[derive(Debug, Clone)]
pub struct TreeFilter {
    includes: Option<IgnorePatterns>,
    excludes: Option<IgnorePatterns>,
    /// True if all include patterns are plain (see [`super::pattern::IgnorePattern::is_plain`]), so that a directory
    /// that leads to none of them can be pruned.
    plain_includes: bool,
    /// The same for the `!` patterns of the exclude list.
    plain_exceptions: bool,
}

/// Decision about an entry in a walk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VisitOutcome<T> {
    /// The entry is shown. `parents` holds its parent directories that were hidden so far, outermost first. They must
    /// be shown before the entry.
    Keep { parents: Vec<T> },
    /// The entry is not shown. A directory must still be walked, because entries in it may be shown.
    Hide,
    /// The directory has no entries to show.
    Prune,
}

impl<T> VisitOutcome<T> {
    pub fn is_kept(&self) -> bool {
        matches!(self, Self::Keep { .. })
    }
}

/// Decision about an entry without regard to other entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EntryVerdict {
    Show,
    /// Same as [`VisitOutcome::Hide`].
    Hide,
    /// Same as [`VisitOutcome::Prune`].
    Prune,
}

/// Pattern matches of a directory, which the evaluation of its entries needs. The default value is for entries at the
/// top level.
#[derive(Debug, Clone, Default)]
pub(crate) struct DirectoryMatch {
    include: ParentMatch,
    exclude: ParentMatch,
}

/// Filter state during a walk. Entries must come parents first, with each directory's content together.
#[derive(Debug)]
pub struct FilterWalk<'a, T> {
    filter: &'a TreeFilter,
    ancestors: Vec<Ancestor<T>>,
}

#[derive(Debug)]
struct Ancestor<T> {
    /// Path of the directory with a trailing `/`.
    prefix: Vec<u8>,
    matched: DirectoryMatch,
    /// Token that the caller gave for the directory. `None` once the directory is shown.
    token: Option<T>,
}

impl TreeFilter {
    /// Creates a filter. An empty list has no effect.
    pub fn new<I, E>(includes: I, excludes: E) -> Result<Self, IgnoreError>
    where
        I: IntoIterator,
        I::Item: AsRef<[u8]>,
        E: IntoIterator,
        E::Item: AsRef<[u8]>,
    {
        let mut includes = includes.into_iter().peekable();
        let mut excludes = excludes.into_iter().peekable();
        // A list that has only blank patterns is not an empty list: as an include list it shows nothing.
        let includes = includes.peek().is_some().then(|| IgnorePatterns::from_list(includes)).transpose()?;
        let excludes = excludes.peek().is_some().then(|| IgnorePatterns::from_list(excludes)).transpose()?;
        Ok(Self::from_patterns(includes, excludes))
    }

    pub fn from_patterns(includes: Option<IgnorePatterns>, excludes: Option<IgnorePatterns>) -> Self {
        let plain = |list: &Option<IgnorePatterns>, negated: bool| {
            list.iter().flat_map(IgnorePatterns::iter).all(|p| p.negated() != negated || p.is_plain())
        };
        Self {
            plain_includes: plain(&includes, false),
            plain_exceptions: plain(&excludes, true),
            includes,
            excludes,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.includes.is_none() && self.excludes.is_none()
    }

    /// Starts a walk. `T` is a token with which the caller identifies an entry; a directory that is shown only because
    /// something in it is shown is returned by its token.
    pub fn walk<T>(&self) -> FilterWalk<'_, T> {
        FilterWalk { filter: self, ancestors: Vec::new() }
    }

    /// Reports whether a directory may have entries that the include patterns show. There are no false negatives.
    pub fn may_show_below(&self, directory: &[u8]) -> bool {
        self.includes
            .as_ref()
            .is_none_or(|list| list.iter().any(|pattern| pattern.may_match_below(directory)))
    }

    /// Decides about an entry from the matches of its directory. No other entry affects the decision, so a tree can
    /// be walked in any order.
    pub(crate) fn evaluate(
        &self,
        path: &[u8],
        is_dir: bool,
        above: &DirectoryMatch,
    ) -> (EntryVerdict, DirectoryMatch) {
        let mut own = DirectoryMatch::default();
        let mut verdict = EntryVerdict::Show;
        if let Some(list) = &self.includes {
            let (matched, below) = list.matches_under(path, &above.include);
            own.include = below;
            if !matched {
                if is_dir && self.plain_includes && !leads_to(list, false, path) {
                    return (EntryVerdict::Prune, own);
                }
                verdict = EntryVerdict::Hide;
            }
        }
        if let Some(list) = &self.excludes {
            let (matched, below) = list.matches_under(path, &above.exclude);
            own.exclude = below;
            if matched {
                if is_dir && self.plain_exceptions && !leads_to(list, true, path) {
                    return (EntryVerdict::Prune, own);
                }
                verdict = EntryVerdict::Hide;
            }
        }
        (verdict, own)
    }

    /// Reports whether the patterns allow a single path to be opened.
    pub fn allows(&self, path: &[u8]) -> bool {
        self.includes.as_ref().is_none_or(|list| list.matches(path))
            && !self.excludes.as_ref().is_some_and(|list| list.matches(path))
    }
}

impl<T> FilterWalk<'_, T> {
    /// Decides about the next entry. `path` is relative and cleaned.
    pub fn visit(&mut self, path: &[u8], is_dir: bool, token: T) -> VisitOutcome<T> {
        while self.ancestors.last().is_some_and(|dir| !path.starts_with(&dir.prefix)) {
            self.ancestors.pop();
        }
        let top = DirectoryMatch::default();
        let above = self.ancestors.last().map_or(&top, |dir| &dir.matched);
        let (verdict, matched) = self.filter.evaluate(path, is_dir, above);
        if verdict == EntryVerdict::Prune {
            return VisitOutcome::Prune;
        }
        let hidden = verdict == EntryVerdict::Hide;
        let parents = if hidden { Vec::new() } else { self.show_above() };
        if is_dir {
            let prefix = [path, b"/"].concat();
            self.ancestors.push(Ancestor { prefix, matched, token: hidden.then_some(token) });
        }
        if hidden { VisitOutcome::Hide } else { VisitOutcome::Keep { parents } }
    }

    /// Takes the tokens of the hidden directories above the last visited entry, for a caller that shows an entry
    /// although the patterns hide it.
    pub fn show_above(&mut self) -> Vec<T> {
        self.ancestors.iter_mut().filter_map(|dir| dir.token.take()).collect()
    }
}

/// Reports whether a pattern of the given kind could match something below the directory `path`.
fn leads_to(list: &IgnorePatterns, negated: bool, path: &[u8]) -> bool {
    list.iter().filter(|pattern| pattern.negated() == negated).any(|pattern| {
        let stem = pattern.stem().as_bytes();
        stem.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    })
}
