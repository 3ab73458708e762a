//! Matcher for the part of Go's regular expression syntax that an ignore pattern can use.
//!
//! Docker rewrites a pattern into an expression (`*` to `[^/]*`, `**/` to `(.*/)?`). Characters between `[` and `]`
//! or after `\`, and `^`, `|` and `{2}` keep their meaning in the expression. Groups cannot occur, because their
//! characters are escaped. An expression is therefore a choice of flat lists of steps. It is run over the path as a
//! set of states, so the time is linear in the length of the path for any pattern. Unicode classes (`\pL`) are
//! refused.

mod class;
mod repeat;

use std::iter::Peekable;
use std::str::Chars;

use class::CharClass;

#[derive(Debug, Clone)]
pub(super) struct PathRegex {
    /// Alternatives separated by `|`. Only the first is anchored at the start of the path, and only the last at its
    /// end.
    branches: Vec<Vec<RegexStep>>,
}

#[derive(Debug, Clone)]
enum RegexStep {
    One(CharClass),
    /// `x{0,1}`
    Maybe(CharClass),
    /// `.*`, `[^/]*`
    Many(CharClass),
    /// `(.*/)?`
    Directories,
    Start,
    End,
    WordBoundary(bool),
}

const BAD_ESCAPE: &str = "a `\\` before a letter or digit that has no meaning there";
const TOO_LONG: &str = "it repeats too much";

/// Maximum number of steps of an expression, more than any path has characters. Repeats are expanded.
const MAX_STEPS: usize = 5_000;

impl PathRegex {
    /// Parses the expression between the implied `^` and `$`.
    pub(super) fn parse(source: &str) -> Result<Self, &'static str> {
        let mut branches = vec![vec![RegexStep::Start]];
        let mut closed = true;
        let mut rest = source.chars().peekable();
        // True if the last element is already repeated.
        let mut repeated = false;
        while let Some(c) = rest.next() {
            let steps = branches.last_mut().ok_or(TOO_LONG)?;
            if c == '{'
                && let Some((least, most)) = repeat::bounds(&mut rest)?
            {
                if std::mem::replace(&mut repeated, true) {
                    return Err("a repeat follows a repeat");
                }
                repeat::repeat_last(steps, least, most)?;
                continue;
            }
            repeated = false;
            match c {
                '|' => branches.push(Vec::new()),
                '(' => {
                    // The only group that occurs is `(.*/)?`.
                    rest.by_ref().take(5).for_each(drop);
                    steps.push(RegexStep::Directories);
                    repeated = true;
                }
                '^' => steps.push(RegexStep::Start),
                '\\' => closed = escape(&mut rest, steps)?,
                c => {
                    let class = match c {
                        '.' => CharClass::not('\n'),
                        '[' => CharClass::parse(&mut rest)?,
                        c => CharClass::one(c),
                    };
                    repeated = rest.next_if_eq(&'*').is_some();
                    steps.push(if repeated { RegexStep::Many(class) } else { RegexStep::One(class) });
                }
            }
            if branches.iter().map(Vec::len).sum::<usize>() > MAX_STEPS {
                return Err(TOO_LONG);
            }
        }
        if closed && let Some(last) = branches.last_mut() {
            last.push(RegexStep::End);
        }
        Ok(Self { branches })
    }

    /// Returns the number of steps. A match may visit each of them for every character of a path.
    pub(super) fn steps(&self) -> usize {
        self.branches.iter().map(Vec::len).sum()
    }

    /// Reports whether `path` matches. A byte that is not UTF-8 counts as U+FFFD.
    pub(super) fn matches(&self, path: &[u8]) -> bool {
        self.branches.iter().any(|steps| found(steps, path))
    }
}

fn found(steps: &[RegexStep], path: &[u8]) -> bool {
    let anchored = matches!(steps.first(), Some(RegexStep::Start));
    let mut states = RegexStates::new(steps.len());
    let mut chars = path.utf8_chunks().flat_map(|chunk| {
        chunk.valid().chars().chain(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER))
    });
    let mut before = None;
    let mut next = chars.next();
    loop {
        states.at[0] |= before.is_none() || !anchored;
        states.close(steps, before, next);
        if states.at[steps.len()] {
            return true;
        }
        let Some(c) = next else { return false };
        if anchored && !states.any() {
            return false;
        }
        states.step(steps, c);
        before = Some(c);
        next = chars.next();
    }
}

/// Set of states: the steps that may come next, and the `(.*/)?` steps that have begun.
struct RegexStates {
    at: Vec<bool>,
    inside: Vec<bool>,
    spare: Vec<bool>,
}

impl RegexStates {
    fn new(steps: usize) -> Self {
        Self { at: vec![false; steps + 1], inside: vec![false; steps + 1], spare: vec![false; steps + 1] }
    }

    fn any(&self) -> bool {
        self.at.iter().chain(&self.inside).any(|&state| state)
    }

    /// Follows the steps that consume no character. They only lead forward, so one pass is enough.
    fn close(&mut self, steps: &[RegexStep], before: Option<char>, next: Option<char>) {
        let word = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
        for (index, step) in steps.iter().enumerate() {
            if !self.at[index] {
                continue;
            }
            let passes = match step {
                RegexStep::One(_) => false,
                RegexStep::Maybe(_) | RegexStep::Many(_) => true,
                RegexStep::Directories => {
                    self.inside[index] = true;
                    true
                }
                RegexStep::Start => before.is_none(),
                RegexStep::End => next.is_none(),
                RegexStep::WordBoundary(wanted) => (word(before) != word(next)) == *wanted,
            };
            self.at[index + 1] |= passes;
        }
    }

    fn step(&mut self, steps: &[RegexStep], c: char) {
        self.spare.fill(false);
        for (index, step) in steps.iter().enumerate() {
            match step {
                RegexStep::One(class) | RegexStep::Maybe(class) if self.at[index] && class.has(c) => {
                    self.spare[index + 1] = true;
                }
                RegexStep::Many(class) if self.at[index] && class.has(c) => self.spare[index] = true,
                RegexStep::Directories if self.inside[index] => {
                    self.inside[index] = c != '\n';
                    self.spare[index + 1] |= c == '/';
                }
                _ => {}
            }
        }
        std::mem::swap(&mut self.at, &mut self.spare);
    }
}

/// Parses the characters after a `\` outside of a class. Returns false if the escape swallowed the end of the
/// pattern.
fn escape(rest: &mut Peekable<Chars<'_>>, steps: &mut Vec<RegexStep>) -> Result<bool, &'static str> {
    let step = match rest.peek() {
        Some('A') => RegexStep::Start,
        Some('z') => RegexStep::End,
        Some('b') => RegexStep::WordBoundary(true),
        Some('B') => RegexStep::WordBoundary(false),
        Some('Q') => {
            rest.next();
            return Ok(quoted(rest, steps));
        }
        // The `\` escapes the implied final `$`.
        None => {
            steps.push(RegexStep::One(CharClass::one('$')));
            return Ok(false);
        }
        _ => {
            steps.push(RegexStep::One(class::escaped(rest)?));
            return Ok(true);
        }
    };
    rest.next();
    steps.push(step);
    Ok(true)
}

/// Parses `\Q...\E`. Without `\E` it extends over the end of the pattern and includes the implied final `$`.
fn quoted(rest: &mut Peekable<Chars<'_>>, steps: &mut Vec<RegexStep>) -> bool {
    let mut literal = |c| steps.push(RegexStep::One(CharClass::one(c)));
    while let Some(c) = rest.next() {
        if c == '\\' && rest.next_if_eq(&'E').is_some() {
            return true;
        }
        literal(c);
    }
    literal('$');
    false
}
