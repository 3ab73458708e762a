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
    include: ParentMatch,
    exclude: ParentMatch,
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
        let prefix = [path, b"/"].concat();
        let (mut include, mut exclude) = (ParentMatch::default(), ParentMatch::default());
        let mut hidden = false;
        if let Some(list) = &self.filter.includes {
            let parent = self.above.last().map(|dir| &dir.include).unwrap_or(&include);
            let (matched, below) = list.matches_under(path, parent);
            include = below;
            if !matched {
                if is_dir && self.filter.plain_includes && !leads_to(list, false, &prefix) {
                    return Visit::Prune;
                }
                hidden = true;
            }
        }
        if let Some(list) = &self.filter.excludes {
            let parent = self.above.last().map(|dir| &dir.exclude).unwrap_or(&exclude);
            let (matched, below) = list.matches_under(path, parent);
            exclude = below;
            if matched {
                if is_dir && self.filter.plain_exceptions && !leads_to(list, true, &prefix) {
                    return Visit::Prune;
                }
                hidden = true;
            }
        }
        let late = if hidden { Vec::new() } else { self.show_above() };
        let mut token = Some(token);
        if is_dir {
            if !hidden {
                token = None;
            }
            self.above.push(Above { prefix, include, exclude, token });
        }
        if hidden { Visit::Hide } else { Visit::Keep { late } }
    }

    /// Takes the directories above the last visited entry that are still hidden: for a caller
    /// that shows an entry which the patterns hide.
    pub fn show_above(&mut self) -> Vec<T> {
        self.above.iter_mut().filter_map(|dir| dir.token.take()).collect()
    }
}

/// Whether a pattern of the given kind could match something below the directory `prefix`.
fn leads_to(list: &Patterns, negated: bool, prefix: &[u8]) -> bool {
    list.iter().filter(|pattern| pattern.negated() == negated).any(|pattern| {
        let stem = pattern.stem().as_bytes();
        stem.starts_with(prefix) || (stem.len() + 1 == prefix.len() && prefix.starts_with(stem))
    })
}
