//! `NAME=value`: environment variables, build arguments, labels, and the lines of environment files.

/// A name with a value, or a name alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    pub name: String,
    /// `None` for a text without `=`. What that means depends on the use: a variable takes the value that the
    /// caller's environment has, or is left out; a label needs one.
    pub value: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssignmentError {
    #[error("there is no name before the `=`")]
    NoName,
    #[error("expected `KEY=VALUE`")]
    NoValue,
    #[error("a name has no blanks in it")]
    Blank,
    #[error("it has a NUL byte")]
    Nul,
    #[error("the line is not UTF-8")]
    NotText,
}

impl Assignment {
    /// Parses `NAME=value` or `NAME`. The value is the text after the first `=`, including quotes and blanks.
    pub fn parse(text: &str) -> Result<Self, AssignmentError> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        if name.is_empty() {
            return Err(AssignmentError::NoName);
        }
        if text.contains('\0') {
            return Err(AssignmentError::Nul);
        }
        Ok(Self { name: name.to_owned(), value })
    }

    /// Parses an environment variable, whose name has no blanks.
    pub fn parse_variable(text: &str) -> Result<Self, AssignmentError> {
        let assignment = Self::parse(text)?;
        if assignment.name.contains(char::is_whitespace) {
            return Err(AssignmentError::Blank);
        }
        Ok(assignment)
    }

    /// Parses a label, `KEY=VALUE`.
    pub fn parse_label(text: &str) -> Result<(String, String), AssignmentError> {
        let Self { name, value } = Self::parse(text)?;
        Ok((name, value.ok_or(AssignmentError::NoValue)?))
    }
}

/// Parses an environment file by the rules of `docker run --env-file`: blanks before the name are skipped, empty lines
/// and lines that begin with `#` too. Errors carry the line number.
pub fn parse_env_file(content: &[u8]) -> Result<Vec<Assignment>, (usize, AssignmentError)> {
    let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content);
    let mut variables = Vec::new();
    for (number, line) in (1..).zip(content.split(|byte| *byte == b'\n')) {
        let line = std::str::from_utf8(line).map_err(|_| (number, AssignmentError::NotText))?;
        let line = line.strip_suffix('\r').unwrap_or(line).trim_start_matches([' ', '\t']);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        variables.push(Assignment::parse_variable(line).map_err(|error| (number, error))?);
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::AssignmentError::{Blank, NoName, NoValue, NotText, Nul};
    use super::*;

    /// Each text with its meaning as a variable.
    #[test]
    fn a_flag_and_a_line_of_a_file_have_one_grammar() {
        for (text, expected) in [
            ("A=1", Ok(("A", Some("1")))),
            ("A=", Ok(("A", Some("")))),
            ("A", Ok(("A", None))),
            ("A=b=c", Ok(("A", Some("b=c")))),
            ("A= 1 ", Ok(("A", Some(" 1 ")))),
            ("A=\"x y\" # no comment", Ok(("A", Some("\"x y\" # no comment")))),
            ("A='$HOME'\\n", Ok(("A", Some("'$HOME'\\n")))),
            ("a.b-c=ä", Ok(("a.b-c", Some("ä")))),
            ("=1", Err(NoName)),
            ("A B=1", Err(Blank)),
            ("export A=1", Err(Blank)),
            ("A =1", Err(Blank)),
            ("A=a\0b", Err(Nul)),
        ] {
            let expected = expected.map(|(name, value): (&str, Option<&str>)| Assignment {
                name: name.to_owned(),
                value: value.map(str::to_owned),
            });
            assert_eq!(Assignment::parse_variable(text), expected, "{text:?}");
            let of_line = parse_env_file(format!("# a comment\n \t{text}\r\n").as_bytes());
            assert_eq!(of_line, expected.map(|one| vec![one]).map_err(|error| (2, error)), "{text:?}");
        }
        assert_eq!(Assignment::parse_variable(""), Err(NoName));
    }

    #[test]
    fn a_label_has_a_key_and_a_value() {
        let label = |key: &str, value: &str| Ok((key.to_owned(), value.to_owned()));
        assert_eq!(Assignment::parse_label("key=a=b"), label("key", "a=b"));
        assert_eq!(Assignment::parse_label("key="), label("key", ""));
        assert_eq!(Assignment::parse_label("key"), Err(NoValue));
        assert_eq!(Assignment::parse_label("=x"), Err(NoName));
    }

    #[test]
    fn a_file_has_lines_comments_and_perhaps_a_byte_order_mark() {
        let names = |content: &[u8]| {
            parse_env_file(content).map(|all| all.into_iter().map(|one| one.name).collect::<Vec<_>>())
        };
        assert_eq!(names(b""), Ok(vec![]));
        assert_eq!(names("\u{feff}A=1\n\n   \n  # another\nB\nA=2".as_bytes()).unwrap(), ["A", "B", "A"]);
        assert_eq!(names(b"A=1\n\xff=2"), Err((2, NotText)));
        assert_eq!(names(b"\n\n  A B\n"), Err((3, Blank)));
    }
}
