//! Checks of the paths of a build before a room is contacted: the context is in the mounts, and a directory that is to
//! be sent has the Dockerfile.
//!
//! Only what is certain is refused. Symbolic links are left to the room, because they are followed inside the mounts.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use hearth_pack::walk::DOCKERFILE_NAMES;
use hearth_proto::error_code::ErrorCode;
use hearth_proto::value::{BuildMount, MountTarget};

use super::options::BuildOptions;
use super::request::LocalPack;
use crate::error::Failure;

/// Checks the context path and the Dockerfile of a build.
pub(super) fn check(
    options: &BuildOptions,
    mounts: &[BuildMount],
    pack: Option<&LocalPack>,
) -> Result<(), Failure> {
    let mut targets: Vec<&MountTarget> = mounts.iter().map(|mount| &mount.target).collect();
    targets.extend(pack.map(|pack| &pack.target));
    let context = match (&options.context_path, targets.as_slice()) {
        (Some(path), _) => path.parse::<MountTarget>().map_err(|error| {
            Failure::usage(format!("--context-path: {error}"))
                .hint("the path is one inside the mounts, such as /context or a directory below it")
        })?,
        (None, [target]) => (*target).clone(),
        (None, _) => {
            return Err(Failure::usage(
                "with more than one mount, --context-path says where COPY reads from",
            )
            .hint("such as --context-path /context"));
        }
    };
    let has_files = targets
        .iter()
        .any(|target| target.relative(&context).is_some() || context.relative(target).is_some());
    if !has_files {
        return Err(outside("--context-path", &context, &targets));
    }
    let dockerfiles = match options.dockerfile_path.as_deref() {
        Some("") => {
            return Err(Failure::usage("--dockerfile-path is empty")
                .hint("name the Dockerfile, or leave the flag out for Containerfile, then Dockerfile"));
        }
        Some(path) => {
            let parsed = if path.starts_with('/') { path.parse() } else { context.join(path) };
            let parsed = parsed.map_err(|error| Failure::usage(format!("--dockerfile-path: {error}")))?;
            if !targets.iter().any(|target| target.relative(&parsed).is_some()) {
                return Err(outside("--dockerfile-path", &parsed, &targets));
            }
            vec![parsed]
        }
        None => DOCKERFILE_NAMES.iter().filter_map(|name| context.join(name).ok()).collect(),
    };
    pack.map_or(Ok(()), |pack| check_sent_dockerfile(options, pack, &targets, &dockerfiles))
}

fn outside(flag: &str, path: &MountTarget, targets: &[&MountTarget]) -> Failure {
    let targets: Vec<String> = targets.iter().map(|target| format!("`{target}`")).collect();
    Failure::usage(format!("{flag}: `{path}` is in none of the mounts"))
        .hint(format!("the files of this build are at {}", targets.join(" and ")))
}

/// Checks that one of `dockerfiles` exists if all of them lie in the directory that is to be sent.
fn check_sent_dockerfile(
    options: &BuildOptions,
    pack: &LocalPack,
    targets: &[&MountTarget],
    dockerfiles: &[MountTarget],
) -> Result<(), Failure> {
    let mut missing = Vec::new();
    for path in dockerfiles {
        // The innermost mount has the file.
        let mount = targets.iter().filter(|target| target.relative(path).is_some());
        let mount = mount.max_by_key(|target| target.as_str().len());
        let Some(below) = pack.target.relative(path).filter(|_| mount == Some(&&pack.target)) else {
            return Ok(());
        };
        match local_file(&pack.path, below) {
            LocalFile::Empty(file) => {
                let message = format!("`{}` is empty", file.display());
                return Err(Failure::failed(ErrorCode::DockerfileParseError, message)
                    .hint("a Dockerfile begins with FROM"));
            }
            LocalFile::Directory(file) => {
                let message = format!("`{}` is a directory", file.display());
                return Err(Failure::failed(ErrorCode::NotAFile, message)
                    .hint("name the Dockerfile in it with `--dockerfile-path`"));
            }
            LocalFile::Missing(file) => missing.push(file),
            LocalFile::Present => return Ok(()),
        }
    }
    let names: Vec<String> = missing.iter().map(|file| format!("`{}`", file.display())).collect();
    let verb = if names.len() == 1 { "does not exist" } else { "exists" };
    let subject = if names.len() == 1 { names.concat() } else { format!("neither {}", names.join(" nor ")) };
    let failure = Failure::failed(ErrorCode::DockerfileNotFound, format!("{subject} {verb}"));
    Err(match options.dockerfile_path.as_deref().and_then(|path| path_in_context(path, &pack.path)) {
        Some(path) => failure.hint(format!(
            "the path of a Dockerfile is relative to the context: `--dockerfile-path {}`",
            path.display()
        )),
        None => failure.hint("name it with `--dockerfile-path`, or give the directory that has it"),
    })
}

/// A path in the directory that is to be sent.
enum LocalFile {
    Empty(PathBuf),
    Directory(PathBuf),
    Missing(PathBuf),
    /// A file, or a path that the room decides about.
    Present,
}

fn local_file(directory: &Path, below: &str) -> LocalFile {
    let mut path = directory.to_owned();
    let mut parts = below.split('/').peekable();
    while let Some(part) = parts.next() {
        path.push(part);
        let is_last = parts.peek().is_none();
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() && is_last => return LocalFile::Directory(path),
            Ok(found) if found.is_file() && is_last && found.len() == 0 => return LocalFile::Empty(path),
            Ok(found) if found.is_dir() => {}
            Ok(found) if found.is_file() && !is_last => return LocalFile::Missing(directory.join(below)),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return LocalFile::Missing(directory.join(below));
            }
            // A link, a special file, or an error that the scan reports.
            Ok(_) | Err(_) => return LocalFile::Present,
        }
    }
    LocalFile::Present
}

/// Returns a path relative to `directory` if `given` names a file in it from the working directory.
fn path_in_context(given: &str, directory: &Path) -> Option<PathBuf> {
    let file = fs::canonicalize(given).ok().filter(|file| file.is_file())?;
    file.strip_prefix(fs::canonicalize(directory).ok()?).ok().map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use hearth_proto::value::BuildMountKind;

    use super::*;

    struct Case {
        directory: tempfile::TempDir,
        options: BuildOptions,
        mounts: Vec<BuildMount>,
    }

    impl Case {
        fn with(files: &[(&str, &str)]) -> Self {
            let directory = tempfile::tempdir().unwrap();
            for (name, text) in files {
                let path = directory.path().join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            Self { directory, options: BuildOptions::default(), mounts: Vec::new() }
        }

        fn dockerfile(mut self, path: &str) -> Self {
            self.options.dockerfile_path = Some(path.to_owned());
            self
        }

        fn context(mut self, path: &str) -> Self {
            self.options.context_path = Some(path.to_owned());
            self
        }

        fn mount(mut self, text: &str) -> Self {
            self.mounts.push(BuildMount::parse(BuildMountKind::Room, text).unwrap());
            self
        }

        /// Returns the code and the message, with `DIR` for the directory.
        fn outcome(&self) -> Option<(ErrorCode, String)> {
            let target = "/context".parse().unwrap();
            let pack = LocalPack { path: self.directory.path().to_owned(), target };
            let failure = check(&self.options, &self.mounts, Some(&pack)).err()?;
            let text = crate::exit::error_text(&failure);
            let directory = self.directory.path().to_str().unwrap();
            Some((failure.detail.code.parse().unwrap(), text.replace(directory, "DIR")))
        }
    }

    #[test]
    fn a_pack_without_a_dockerfile_is_refused_in_the_words_of_its_paths() {
        let refused = |case: Case, code: ErrorCode, words: &str| {
            let (found, text) = case.outcome().unwrap();
            assert!(found == code && text.contains(words), "{found:?} {text}");
        };
        use ErrorCode::{DockerfileNotFound, DockerfileParseError, NotAFile, Usage};
        let none = || Case::with(&[("a", "a")]);
        refused(none(), DockerfileNotFound, "neither `DIR/Containerfile` nor `DIR/Dockerfile` exists");
        refused(none().dockerfile("docker/web"), DockerfileNotFound, "`DIR/docker/web` does not exist");
        refused(none().dockerfile("a/b"), DockerfileNotFound, "`DIR/a/b` does not exist");
        refused(none().dockerfile("/context/b"), DockerfileNotFound, "`DIR/b` does not exist");
        refused(none().context("/context/sub"), DockerfileNotFound, "`DIR/sub/Dockerfile`");
        refused(Case::with(&[("Dockerfile", "")]), DockerfileParseError, "`DIR/Dockerfile` is empty");
        refused(Case::with(&[("d/x", "x")]).dockerfile("d"), NotAFile, "`DIR/d` is a directory");
        refused(none().dockerfile(""), Usage, "--dockerfile-path is empty");
        refused(none().context("/other"), Usage, "`/other` is in none of the mounts");
        refused(none().context("/other"), Usage, "at `/context`");
        refused(
            none().dockerfile("/other/Dockerfile"),
            Usage,
            "`/other/Dockerfile` is in none of the mounts",
        );
        let named = Case::with(&[("Dockerfile.web", "FROM scratch")]);
        let given = named.directory.path().join("Dockerfile.web");
        assert_eq!(
            path_in_context(given.to_str().unwrap(), named.directory.path()),
            Some("Dockerfile.web".into())
        );
    }

    #[test]
    fn what_another_mount_or_a_link_may_have_is_left_to_the_room() {
        for case in [
            Case::with(&[("Dockerfile", "FROM scratch")]),
            Case::with(&[("Containerfile", "FROM scratch")]),
            Case::with(&[("a", "a")]).mount("x:/other").context("/other"),
            Case::with(&[("a", "a")]).mount("x:/context/docker").context("/context").dockerfile("docker/web"),
            Case::with(&[("a", "a")]).mount("x:/other").context("/context").dockerfile("/other/Dockerfile"),
            Case::with(&[("sub/Dockerfile", "FROM scratch")])
                .context("/")
                .dockerfile("context/sub/Dockerfile"),
        ] {
            assert_eq!(case.outcome(), None);
        }
        let linked = Case::with(&[("real", "FROM scratch")]);
        std::os::unix::fs::symlink("/real", linked.directory.path().join("Dockerfile")).unwrap();
        assert_eq!(linked.outcome(), None);
    }
}
