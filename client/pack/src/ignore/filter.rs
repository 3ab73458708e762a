//! Which entries of a tree a file sync shows: exclude and include patterns over a sorted list.

use super::{IgnoreError, ParentMatch, Patterns};

/// Exclude and include patterns, as BuildKit sends them together.
#[derive(Debug, Clone)]
pub struct Filter {
    includes: Option<Patterns>,
    excludes: Option<Patterns>,
    plain_includes: bool,
    plain_exceptions: bool,
}

/// What a walk does with an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Visit<T> {
    /// The entry is shown. Before it come these directories above it, outermost first: they were
    /// hidden so far, and something below one of them is shown now.
    Keep { late: Vec<T> },
    /// The entry is not shown; a directory must be looked into, for something in it may be.
    Hide,
    /// A directory that holds nothing to show.
    Prune,
}

impl<T> Visit<T> {
    pub fn is_kept(&self) -> bool {
        matches!(self, Self::Keep { .. })
    }
}

/// What the patterns say of an entry by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Show,
    /// As [`Visit::Hide`].
    Hide,
    /// As [`Visit::Prune`].
    Prune,
}

/// What a directory matched, for the entries in it. The default stands above the top.
#[derive(Debug, Clone, Default)]
pub(crate) struct Matched {
    include: ParentMatch,
    exclude: ParentMatch,
}

/// A walk under way: entries come parents first, each directory's content together.
#[derive(Debug)]
pub struct FilterWalk<'a, T> {
    filter: &'a Filter,
    above: Vec<Above<T>>,
}

#[derive(Debug)]
struct Above<T> {
    /// Path of the directory with a final `/`.
    prefix: Vec<u8>,
    matched: Matched,
    /// Taken when the directory is shown.
    token: Option<T>,
}

impl Filter {
    /// Empty lists filter nothing.
    pub fn new<I, E>(includes: I, excludes: E) -> Result<Self, IgnoreError>
    where
        I: IntoIterator,
        I::Item: AsRef<[u8]>,
        E: IntoIterator,
        E::Item: AsRef<[u8]>,
    {
        let mut includes = includes.into_iter().peekable();
        let mut excludes = excludes.into_iter().peekable();
        // A list of blank patterns is still a list: as includes it shows nothing.
        let includes = includes.peek().is_some().then(|| Patterns::from_list(includes)).transpose()?;
        let excludes = excludes.peek().is_some().then(|| Patterns::from_list(excludes)).transpose()?;
        Ok(Self::from_patterns(includes, excludes))
    }

    pub fn from_patterns(includes: Option<Patterns>, excludes: Option<Patterns>) -> Self {
        let plain = |list: &Option<Patterns>, negated: bool| {
            list.iter().flat_map(Patterns::iter).all(|p| p.negated() != negated || p.is_plain())
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

    /// Starts a walk. `T` is whatever the caller needs to find a directory again that is shown
    /// only once something in it is.
    pub fn walk<T>(&self) -> FilterWalk<'_, T> {
        FilterWalk { filter: self, above: Vec::new() }
    }

    /// Whether a directory may hold something that the include patterns show. Never wrongly no.
    pub fn may_show_below(&self, directory: &[u8]) -> bool {
        self.includes
            .as_ref()
            .is_none_or(|list| list.iter().any(|pattern| pattern.may_match_below(directory)))
    }

    /// Decides about an entry by what the directory that it is in matched: no other entry plays a part, so a
    /// tree may be gone through in any order.
    pub(crate) fn judge(&self, path: &[u8], is_dir: bool, above: &Matched) -> (Verdict, Matched) {
        let mut own = Matched::default();
        let mut verdict = Verdict::Show;
        if let Some(list) = &self.includes {
            let (matched, below) = list.matches_under(path, &above.include);
            own.include = below;
            if !matched {
                if is_dir && self.plain_includes && !leads_to(list, false, path) {
                    return (Verdict::Prune, own);
                }
                verdict = Verdict::Hide;
            }
        }
        if let Some(list) = &self.excludes {
            let (matched, below) = list.matches_under(path, &above.exclude);
            own.exclude = below;
            if matched {
                if is_dir && self.plain_exceptions && !leads_to(list, true, path) {
                    return (Verdict::Prune, own);
                }
                verdict = Verdict::Hide;
            }
        }
        (verdict, own)
    }

    /// Whether a single path may be opened, by the same patterns.
    pub fn allows(&self, path: &[u8]) -> bool {
        self.includes.as_ref().is_none_or(|list| list.matches(path))
            && !self.excludes.as_ref().is_some_and(|list| list.matches(path))
    }
}

impl<T> FilterWalk<'_, T> {
    /// Decides about the next entry. `path` is relative and clean.
    pub fn visit(&mut self, path: &[u8], is_dir: bool, token: T) -> Visit<T> {
        while self.above.last().is_some_and(|dir| !path.starts_with(&dir.prefix)) {
            self.above.pop();
        }
        let top = Matched::default();
        let above = self.above.last().map_or(&top, |dir| &dir.matched);
        let (verdict, matched) = self.filter.judge(path, is_dir, above);
        if verdict == Verdict::Prune {
            return Visit::Prune;
        }
        let hidden = verdict == Verdict::Hide;
        let late = if hidden { Vec::new() } else { self.show_above() };
        if is_dir {
            let prefix = [path, b"/"].concat();
            self.above.push(Above { prefix, matched, token: hidden.then_some(token) });
        }
        if hidden { Visit::Hide } else { Visit::Keep { late } }
    }

    /// Takes the directories above the last visited entry that are still hidden: for a caller
    /// that shows an entry which the patterns hide.
    pub fn show_above(&mut self) -> Vec<T> {
        self.above.iter_mut().filter_map(|dir| dir.token.take()).collect()
    }
}

/// Whether a pattern of the given kind could match something below the directory `path`.
fn leads_to(list: &Patterns, negated: bool, path: &[u8]) -> bool {
    list.iter().filter(|pattern| pattern.negated() == negated).any(|pattern| {
        let stem = pattern.stem().as_bytes();
        stem.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    })
}
