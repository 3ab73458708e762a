//! The environment of a service, from flags and files.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::Args;
use hearth_proto::v1::{EnvValue, env_value::Value};

use hearth_proto::value::{Assignment, parse_env_file};

use crate::cli::assignments::{resolve, variables};
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
            let origin = format!("--env-file {}", file.display());
            for assignment in read_file(file)? {
                if let Some((name, value)) = resolve(&origin, assignment, &variable)? {
                    all.insert(name, plain_value(value));
                }
            }
        }
        let mut given = BTreeMap::new();
        let mut add = |flag: &str, name: &str, value: EnvValue| match given.insert(name.to_owned(), value) {
            None => Ok(()),
            Some(_) => Err(Failure::usage(format!("{flag}: variable `{name}` is given twice"))),
        };
        for (name, value) in variables("--env", &self.env, &variable)? {
            add("--env", &name, plain_value(value))?;
        }
        for text in &self.env_secret {
            let Assignment { name, value } = Assignment::parse_variable(text)
                .map_err(|error| Failure::usage(format!("--env-secret `{text}`: {error}")))?;
            let secret = value.filter(|secret| !secret.is_empty()).ok_or_else(|| {
                Failure::usage(format!("--env-secret `{text}`: expected `NAME=SECRET`"))
                    .hint("SECRET is the name of a secret of the room: hearth secrets ls")
            })?;
            add("--env-secret", &name, EnvValue { value: Some(Value::Secret(secret)) })?;
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

fn read_file(path: &Path) -> Result<Vec<Assignment>, Failure> {
    let file_name = path.display();
    let wrong = |why: String| Failure::usage(format!("--env-file: {why}"));
    let mut content = Vec::new();
    let opened = std::fs::File::open(path);
    let read = opened.and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut content));
    read.map_err(|error| wrong(format!("cannot read `{file_name}`: {error}")))?;
    if content.len() as u64 > MAX_FILE_BYTES {
        return Err(wrong(format!("`{file_name}` is larger than {} KiB", MAX_FILE_BYTES >> 10)));
    }
    parse_env_file(&content).map_err(|(line, why)| {
        wrong(format!("{file_name}:{line}: {why}"))
            .hint("each line is NAME=value or NAME, empty, or begins with `#`")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::FailureKind;

    fn nothing(_: &str) -> Result<String, std::env::VarError> {
        Err(std::env::VarError::NotPresent)
    }

    #[test]
    fn an_error_of_a_file_says_file_and_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.env");
        std::fs::write(&path, "A=1\nexport B=2\n").unwrap();
        let args = EnvironmentArgs { env_file: vec![path.clone()], ..EnvironmentArgs::default() };
        let failure = args.read(nothing).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Usage);
        assert_eq!(
            failure.detail.message,
            format!("--env-file: {}:2: a name has no blanks in it", path.display())
        );
        let args = EnvironmentArgs { env_file: vec![dir.path().join("none")], ..EnvironmentArgs::default() };
        assert!(args.read(nothing).unwrap_err().detail.message.contains("cannot read"));
    }

    #[test]
    fn flags_come_over_files_and_each_kind_has_its_value() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "A=file\nB=file\nUSER\nNOT_SET_TOO\n").unwrap();
        let args = EnvironmentArgs {
            env: vec!["A=flag=1".into(), "HOME".into(), "EMPTY=".into(), "NOT_SET".into()],
            env_file: vec![file.path().to_owned()],
            env_secret: vec!["DB_PASSWORD=db-password".into()],
            env_token: Some("agentDefault".into()),
            identity: None,
        };
        let here = |name: &str| match name {
            "HOME" => Ok("/root".into()),
            "USER" => Ok("me".into()),
            name => nothing(name),
        };
        let read = args.read(here).unwrap();
        let value = |name: &str| read.get(name).and_then(|value| value.value.clone()).unwrap();
        assert_eq!(value("A"), Value::Plain("flag=1".into()));
        assert_eq!(value("B"), Value::Plain("file".into()));
        // A name alone has the caller's value, in a flag and in a file, and is left out if there is none.
        assert_eq!(value("HOME"), Value::Plain("/root".into()));
        assert_eq!(value("USER"), Value::Plain("me".into()));
        assert_eq!(value("EMPTY"), Value::Plain(String::new()));
        assert_eq!(value("DB_PASSWORD"), Value::Secret("db-password".into()));
        assert_eq!(value(TOKEN_VARIABLE), Value::TokenScope("agentDefault".into()));
        assert_eq!(read.len(), 7);
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
