//! `hearth init`

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use clap::Args;
use hearth_pack::RARELY_PACKED;
use hearth_pack::walk::DOCKERFILE_NAMES;

use super::GlobalArgs;
use super::pack::check_directory;
use crate::error::Failure;
use crate::output;

/// Prepare a directory for its first build
///
/// Writes a small `.dockerignore`, unless there is one, and says the next command. Nothing else is changed, and no
/// room is needed.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth init
  hearth init ./my-app")]
pub(super) struct InitArgs {
    /// Directory with the files of the image
    #[arg(value_name = "PATH", default_value = ".")]
    path: PathBuf,
}

const IGNORE_FILE: &str = ".dockerignore";
/// Head of the ignore file.
const HEAD: &str = "\
# Paths that are not sent and not in the image, one pattern a line. `**/` means in any directory;
# a line that begins with `!` takes a path in again.
";
/// Patterns beside the directories that tools fill: secrets of this machine, and traces of tools.
const OTHERS: [&str; 4] = ["**/.env", "**/.DS_Store", "**/*.pyc", "**/*.swp"];

pub(super) fn run(args: &InitArgs, globals: &GlobalArgs) -> Result<(), Failure> {
    let path = &args.path;
    check_directory(path)?;
    let file = path.join(IGNORE_FILE);
    let written = write_new(&file, &ignore_patterns(path))?;
    let dockerfile = DOCKERFILE_NAMES.into_iter().find(|name| path.join(name).is_file());
    let next = format!("hearth up {}", shell_word(path));
    output::note(&match written {
        true => format!("wrote {}", file.display()),
        false => format!("{} is there already and stays as it is", file.display()),
    });
    output::note(&match dockerfile {
        Some(_) => format!("next: {next}"),
        None => format!("next: write {}, then {next}", path.join("Dockerfile").display()),
    });
    if !globals.json {
        return Ok(());
    }
    let written = written.then(|| file.display().to_string());
    output::json(&serde_json::json!({"written": written, "dockerfile": dockerfile, "next": next}))
}

/// Returns the content of the ignore file. `target` is what Cargo fills, and elsewhere often what an image needs.
fn ignore_patterns(directory: &Path) -> String {
    let is_cargo = directory.join("Cargo.toml").is_file();
    let directories = RARELY_PACKED.iter().filter(|name| **name != "target" || is_cargo);
    let lines = directories.map(|name| format!("**/{name}")).chain(OTHERS.map(str::to_owned));
    lines.fold(HEAD.to_owned(), |text, line| text + &line + "\n")
}

/// Writes a file unless the name is taken, be it by a link that leads nowhere.
fn write_new(path: &Path, content: &str) -> Result<bool, Failure> {
    match OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(mut file) => {
            file.write_all(content.as_bytes()).map_err(|error| Failure::local("write", path, &error))?;
            Ok(true)
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(Failure::local("write", path, &error)),
    }
}

/// Quotes a path for a POSIX shell where it needs quotes.
fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@%".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text;
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignore_file_is_written_once_and_never_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(IGNORE_FILE);
        assert!(write_new(&file, &ignore_patterns(directory.path())).unwrap());
        let written = std::fs::read_to_string(&file).unwrap();
        assert!(written.contains("\n**/node_modules\n") && !written.contains("target"), "{written}");
        assert!(!write_new(&file, "other").unwrap());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), written);
        std::fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("nowhere", &file).unwrap();
        assert!(!write_new(&file, "other").unwrap());
        std::fs::write(directory.path().join("Cargo.toml"), "").unwrap();
        assert!(ignore_patterns(directory.path()).contains("\n**/target\n"));
    }

    #[test]
    fn the_next_command_can_be_typed() {
        for (path, word) in
            [("./my-app", "./my-app"), ("a b", "'a b'"), ("it's", r"'it'\''s'"), ("$x", "'$x'")]
        {
            assert_eq!(shell_word(Path::new(path)), word);
        }
    }
}
