//! `git` wrapper of a builder: it runs git with settings under which git fetches over http and https only, through the
//! daemon's proxy ([`crate::git_proxy`]).
//!
//! ```text
//! <dir>/git/.gitconfig    proxy with this builder's password, and the allowed transports
//! <dir>/git/bin/git       first `git` in the builder's PATH: runs the machine's git with these settings
//! ```
//!
//! Environment variables of the builder are not enough: BuildKit passes only the proxy variables on to git, and a
//! submodule may name any transport (`git://`, `ssh://`), which does not use the proxy.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::git_proxy::GitAccess;
use crate::supervise::program::find_executable;

fn home(dir: &Path) -> PathBuf {
    dir.join("git")
}

fn wrapper(dir: &Path) -> PathBuf {
    home(dir).join("bin/git")
}

/// Returns the `PATH` of the builder, with the wrapper first.
pub(super) fn search_path(dir: &Path) -> OsString {
    let mut path = home(dir).join("bin").into_os_string();
    if let Some(own) = std::env::var_os("PATH") {
        path.push(":");
        path.push(own);
    }
    path
}

/// Writes the wrapper and its settings. A builder without access to the proxy fetches nothing.
pub(super) fn prepare(dir: &Path, access: Option<&GitAccess>) -> io::Result<()> {
    if dir.as_os_str().as_bytes().contains(&b':') {
        // The path would be two entries of PATH, and the machine's own git would be found first.
        return Err(io::Error::other("the path of the state directory must not contain a colon"));
    }
    fs::create_dir_all(home(dir).join("bin"))?;
    let settings = home(dir).join(".gitconfig");
    write(&settings, 0o600, config(access).as_bytes())?;
    match find_executable(Path::new("git")) {
        Some(git) => write(&wrapper(dir), 0o700, &script(&git, dir, &settings)),
        None => match fs::remove_file(wrapper(dir)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
    }
}

fn config(access: Option<&GitAccess>) -> String {
    // BuildKit clones from its own copy with `file`; a submodule may not use it.
    let mut text = "[protocol]\n\tallow = never\n[protocol \"file\"]\n\tallow = user\n".to_owned();
    if let Some(access) = access {
        text.push_str("[protocol \"http\"]\n\tallow = always\n[protocol \"https\"]\n\tallow = always\n");
        text.push_str("[http]\n\tproxyAuthMethod = basic\n\tproxy = ");
        text.push_str(access.url());
        text.push('\n');
    }
    text
}

fn script(git: &Path, dir: &Path, settings: &Path) -> Vec<u8> {
    let mut script = b"#!/bin/sh\n".to_vec();
    script.extend(
        b"unset ALL_PROXY HTTP_PROXY HTTPS_PROXY NO_PROXY all_proxy http_proxy https_proxy no_proxy\n",
    );
    script.extend(b"HOME=");
    script.extend(quoted(&home(dir)));
    script.extend(b" GIT_CONFIG_GLOBAL=");
    script.extend(quoted(settings));
    script.extend(b" exec ");
    script.extend(quoted(git));
    script.extend(b" \"$@\"\n");
    script
}

/// Quotes a path as one word of a shell.
fn quoted(path: &Path) -> Vec<u8> {
    let mut word = vec![b'\''];
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'\'' => word.extend(b"'\\''"),
            byte => word.push(*byte),
        }
    }
    word.push(b'\'');
    word
}

fn write(path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    let mut new = path.to_owned().into_os_string();
    new.push(".new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
    file.write_all(content)?;
    drop(file);
    fs::rename(new, path)
}
