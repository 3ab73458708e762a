//! The environment of a service, from flags and files.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::Args;
use hearth_proto::v1::{EnvValue, env_value::Value};

use crate::cli::token::check_scope;
use crate::error::Failure;

/// Name of the variable that holds a participant token.
const TOKEN_VARIABLE: &str = "MESHAGENT_TOKEN";
/// Size limit of an environment file in bytes; larger than what the daemon accepts.
const MAX_FILE_BYTES: u64 = 1 << 20;

#[derive(Debug, Default, Args)]
pub(super) struct EnvironmentArgs {
    /// Variable, `NAME=value`; `NAME` alone takes its value from the environment of this command
    #[arg(long, short, value_name = "NAME=VALUE", help_heading = "Environment")]
    env: Vec<String>,
    /// File with a variable on each line, as `docker run --env-file` reads it
    #[arg(long, value_name = "FILE", help_heading = "Environment")]
    env_file: Vec<PathBuf>,
    /// Variable with the value of a secret of the room, `NAME=SECRET`
    #[arg(long, value_name = "NAME=SECRET", help_heading = "Environment")]
    env_secret: Vec<String>,
    /// Give the service a new participant token in MESHAGENT_TOKEN, with this scope: `userDefault`,
    /// `agentDefault`, `full` or JSON
    #[arg(long, visible_alias = "meshagent-token", value_name = "SCOPE", help_heading = "Environment")]
    env_token: Option<String>,
    /// Participant name in the tokens [default: the service's]
    #[arg(long, value_name = "NAME", help_heading = "Environment")]
    pub(super) identity: Option<String>,
}

impl EnvironmentArgs {
    /// Reads the variables: files first, in their order, then the flags, which override them. One name in
    /// two flags is an error.
    pub(super) fn read(
        &self,
        variable: impl Fn(&str) -> Result<String, std::env::VarError>,
    ) -> Result<BTreeMap<String, EnvValue>, Failure> {
        let mut all = BTreeMap::new();
        for file in &self.env_file {
            for (name, value) in read_file(file)? {
                all.insert(name, plain_value(value));
            }
        }
        let mut given = BTreeMap::new();
        let mut add = |flag: &str, name: &str, value: EnvValue| match given.insert(name.to_owned(), value) {
            None => Ok(()),
            Some(_) => Err(Failure::usage(format!("{flag}: variable `{name}` is given twice"))),
        };
        for text in &self.env {
            let (name, value) = match text.split_once('=') {
                Some((name, value)) => (name, value.to_owned()),
                None => {
                    let value = variable(text).map_err(|error| {
                        Failure::usage(format!("--env {text}: {error}"))
                            .hint("write NAME=value, or set the variable here")
                    })?;
                    (text.as_str(), value)
                }
            };
            check_name(name).map_err(|error| Failure::usage(format!("--env `{text}`: {error}")))?;
            add("--env", name, plain_value(value))?;
        }
        for text in &self.env_secret {
            let pair = text.split_once('=').filter(|(_, secret)| !secret.is_empty());
            let (name, secret) = pair.ok_or_else(|| {
                Failure::usage(format!("--env-secret `{text}`: expected `NAME=SECRET`"))
                    .hint("SECRET is the name of a secret of the room: hearth secrets ls")
            })?;
            check_name(name).map_err(|error| Failure::usage(format!("--env-secret `{text}`: {error}")))?;
            add("--env-secret", name, EnvValue { value: Some(Value::Secret(secret.to_owned())) })?;
        }
        if let Some(scope) = &self.env_token {
            check_scope(scope).map_err(|error| Failure::usage(format!("--env-token: {error}")))?;
            add("--env-token", TOKEN_VARIABLE, EnvValue { value: Some(Value::TokenScope(scope.clone())) })?;
        }
        all.append(&mut given);
        Ok(all)
    }
}

fn plain_value(value: String) -> EnvValue {
    EnvValue { value: Some(Value::Plain(value)) }
}

/// Checks what can be checked here; the daemon validates the rest of a name.
fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("there is no name before the `=`");
    }
    if name.contains(char::is_whitespace) {
        return Err("a name has no blanks in it");
    }
    Ok(())
}

fn read_file(path: &Path) -> Result<Vec<(String, String)>, Failure> {
    let file_name = path.display();
    let wrong = |why: String| Failure::usage(format!("--env-file: {why}"));
    let mut content = Vec::new();
    let opened = std::fs::File::open(path);
    let read = opened.and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut content));
    read.map_err(|error| wrong(format!("cannot read `{file_name}`: {error}")))?;
    if content.len() as u64 > MAX_FILE_BYTES {
        return Err(wrong(format!("`{file_name}` is larger than {} KiB", MAX_FILE_BYTES >> 10)));
    }
    parse_file(&content).map_err(|(line, why)| {
        wrong(format!("{file_name}:{line}: {why}")).hint("each line is NAME=value, empty, or begins with `#`")
    })
}

/// Parses an environment file by the rules of `docker run --env-file`: blanks before the name are
/// skipped, and the value is the text after the first `=`, including quotes and blanks. One difference:
/// a line without `=`, which Docker would fill from the caller's environment, is an error. Errors carry
/// the line number.
fn parse_file(content: &[u8]) -> Result<Vec<(String, String)>, (usize, String)> {
    let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content);
    let mut variables = Vec::new();
    for (number, line) in (1..).zip(content.split(|byte| *byte == b'\n')) {
        let wrong = |why: &str| (number, why.to_owned());
        let line = std::str::from_utf8(line).map_err(|_| wrong("the line is not UTF-8"))?;
        let line = line.strip_suffix('\r').unwrap_or(line).trim_start_matches([' ', '\t']);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((name, value)) = line.split_once('=') else {
            let excerpt: String = line.chars().take(100).collect();
            return Err((number, format!("`{excerpt}` has no `=`")));
        };
        check_name(name).map_err(wrong)?;
        if line.contains('\0') {
            return Err(wrong("the line has a NUL byte"));
        }
        variables.push((name.to_owned(), value.to_owned()));
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::FailureKind;

    fn nothing(_: &str) -> Result<String, std::env::VarError> {
        Err(std::env::VarError::NotPresent)
    }

    #[test]
    fn an_environment_file_is_read_as_docker_reads_it() {
        for (content, expected) in [
            ("", vec![]),
            ("A=1", vec![("A", "1")]),
            ("A=1\nB=2\n", vec![("A", "1"), ("B", "2")]),
            ("A=1\r\nB=2\r\n", vec![("A", "1"), ("B", "2")]),
            ("\u{feff}A=1", vec![("A", "1")]),
            ("# comment\n\n   \n  # another\nA=1", vec![("A", "1")]),
            (" \tA=1", vec![("A", "1")]),
            ("A=", vec![("A", "")]),
            ("A=b=c", vec![("A", "b=c")]),
            ("A= 1 ", vec![("A", " 1 ")]),
            ("A=\"x y\" # no comment", vec![("A", "\"x y\" # no comment")]),
            ("A='$HOME'\\n", vec![("A", "'$HOME'\\n")]),
            ("A=1\nA=2", vec![("A", "1"), ("A", "2")]),
            ("a.b-c=ä", vec![("a.b-c", "ä")]),
        ] {
            let expected: Vec<(String, String)> =
                expected.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            assert_eq!(parse_file(content.as_bytes()), Ok(expected), "{content:?}");
        }
    }

    #[test]
    fn a_wrong_line_is_named_by_its_number() {
        for (content, line, says) in [
            (&b"A=1\nHOME"[..], 2, "`HOME` has no `=`"),
            (b"\n\n  A B\n", 3, "`A B` has no `=`"),
            (b"=1", 1, "no name"),
            (b"A=1\nA B=2", 2, "blanks"),
            (b"export A=1", 1, "blanks"),
            (b"A =1", 1, "blanks"),
            (b"A=1\n\xff=2", 2, "UTF-8"),
            (b"A=a\0b", 1, "NUL"),
        ] {
            let (found, why) = parse_file(content).unwrap_err();
            assert!(found == line && why.contains(says), "{found}: {why}");
        }
    }

    #[test]
    fn an_error_of_a_file_says_file_and_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.env");
        std::fs::write(&path, "A=1\nSECRET_ALONE\n").unwrap();
        let args = EnvironmentArgs { env_file: vec![path.clone()], ..EnvironmentArgs::default() };
        let failure = args.read(nothing).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Usage);
        assert_eq!(
            failure.detail.message,
            format!("--env-file: {}:2: `SECRET_ALONE` has no `=`", path.display())
        );
        let args = EnvironmentArgs { env_file: vec![dir.path().join("none")], ..EnvironmentArgs::default() };
        assert!(args.read(nothing).unwrap_err().detail.message.contains("cannot read"));
    }

    #[test]
    fn flags_come_over_files_and_each_kind_has_its_value() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "A=file\nB=file").unwrap();
        let args = EnvironmentArgs {
            env: vec!["A=flag=1".into(), "HOME".into(), "EMPTY=".into()],
            env_file: vec![file.path().to_owned()],
            env_secret: vec!["DB_PASSWORD=db-password".into()],
            env_token: Some("agentDefault".into()),
            identity: None,
        };
        let read = args.read(|name| if name == "HOME" { Ok("/root".into()) } else { nothing(name) }).unwrap();
        let value = |name: &str| read.get(name).and_then(|value| value.value.clone()).unwrap();
        assert_eq!(value("A"), Value::Plain("flag=1".into()));
        assert_eq!(value("B"), Value::Plain("file".into()));
        assert_eq!(value("HOME"), Value::Plain("/root".into()));
        assert_eq!(value("EMPTY"), Value::Plain(String::new()));
        assert_eq!(value("DB_PASSWORD"), Value::Secret("db-password".into()));
        assert_eq!(value(TOKEN_VARIABLE), Value::TokenScope("agentDefault".into()));
        assert_eq!(read.len(), 6);
    }

    #[test]
    fn wrong_flags_are_usage_errors_that_name_the_flag() {
        let env = |text: &str| EnvironmentArgs { env: vec![text.into()], ..EnvironmentArgs::default() };
        let secret =
            |text: &str| EnvironmentArgs { env_secret: vec![text.into()], ..EnvironmentArgs::default() };
        let token =
            |text: &str| EnvironmentArgs { env_token: Some(text.into()), ..EnvironmentArgs::default() };
        let twice = EnvironmentArgs {
            env: vec!["A=1".into()],
            env_secret: vec!["A=s".into()],
            ..EnvironmentArgs::default()
        };
        for (args, says) in [
            (env("=1"), "--env `=1`: there is no name"),
            (env("A B=1"), "--env `A B=1`: a name has no blanks"),
            (env("NOT_SET"), "--env NOT_SET: environment variable not found"),
            (secret("A"), "--env-secret `A`: expected `NAME=SECRET`"),
            (secret("A="), "--env-secret `A=`: expected `NAME=SECRET`"),
            (secret("=s"), "--env-secret `=s`: there is no name"),
            (token("everything"), "--env-token: scope `everything` is none of"),
            (token("[1]"), "--env-token: scope `[1]` is none of"),
            (twice, "--env-secret: variable `A` is given twice"),
        ] {
            let failure = args.read(nothing).unwrap_err();
            assert_eq!(failure.kind, FailureKind::Usage);
            assert!(failure.detail.message.contains(says), "{}", failure.detail.message);
        }
    }
}
