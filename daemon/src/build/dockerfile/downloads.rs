//! Remote sources of ADD: files by URL, and git repositories.
//!
//! The distinction is that of BuildKit's `dfgitutil`: an HTTP URL is a repository only when its path ends with `.git`.

use super::DockerfileExcerpt;
use super::lines::{self, Instruction};
use super::variables::StageVariables;

/// A file that ADD fetches by its URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedDownload {
    pub url: String,
    /// Value of the `--checksum` flag.
    pub checksum: Option<String>,
    pub excerpt: DockerfileExcerpt,
}

/// A git repository that ADD fetches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedRepository {
    pub url: String,
    pub excerpt: DockerfileExcerpt,
}

/// Returns the files and repositories that one ADD fetches. A source with unknown variables is left out.
pub(super) fn remote_sources_of_add(
    instruction: &Instruction,
    variables: &StageVariables,
    escape: char,
    excerpt: &DockerfileExcerpt,
) -> (Vec<NamedDownload>, Vec<NamedRepository>) {
    let rest = &instruction.rest;
    let mut words: Vec<String> = match rest.starts_with('[') {
        true => serde_json::from_str(rest).unwrap_or_default(),
        false => lines::blank_separated(rest).map(str::to_owned).collect(),
    };
    // The last word is the destination.
    words.pop();
    let checksum = instruction.flag_values("checksum").last();
    let checksum = checksum.and_then(|text| variables.expand(text, escape)).filter(|text| !text.is_empty());
    let (mut downloads, mut repositories) = (Vec::new(), Vec::new());
    for url in words.iter().filter(|word| !word.starts_with("<<")) {
        let Some(url) = variables.expand(url, escape) else { continue };
        let excerpt = excerpt.clone();
        if is_repository(&url) {
            repositories.push(NamedRepository { url, excerpt });
        } else if is_http(&url) {
            downloads.push(NamedDownload { url, checksum: checksum.clone(), excerpt });
        }
    }
    (downloads, repositories)
}

fn is_http(url: &str) -> bool {
    url.starts_with("http://") || url.starts_with("https://")
}

fn is_repository(url: &str) -> bool {
    if url.starts_with("git://") || url.starts_with("ssh://") {
        return true;
    }
    if is_http(url) {
        let path = url.split(['?', '#']).next().unwrap_or_default();
        return path.ends_with(".git");
    }
    // The scp-like form `user@host:path`.
    let word = |text: &str| {
        !text.is_empty()
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
    };
    let parts = url.split_once('@').and_then(|(user, rest)| Some((user, rest.split_once(':')?.0)));
    parts.is_some_and(|(user, host)| word(user) && word(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_distinguished_from_repositories_as_in_buildkit() {
        let found = |line: &str| {
            let (instructions, escape) = lines::instructions(line);
            let excerpt = DockerfileExcerpt { start_line: 1, end_line: 1, text: String::new() };
            let (files, repositories) =
                remote_sources_of_add(&instructions[0], &StageVariables::for_scratch(), escape, &excerpt);
            let files: Vec<String> = files.into_iter().map(|file| file.url).collect();
            let repositories: Vec<String> = repositories.into_iter().map(|found| found.url).collect();
            (files.join(" "), repositories.join(" "))
        };
        for (line, file, repository) in [
            ("ADD https://e.example/a.tgz /x", "https://e.example/a.tgz", ""),
            ("ADD [\"https://e.example/a b\", \"/x\"]", "https://e.example/a b", ""),
            ("ADD https://e.example/a.git?x=.git /x", "", "https://e.example/a.git?x=.git"),
            ("ADD https://e.example/a?x=.git /x", "https://e.example/a?x=.git", ""),
            ("ADD https://e.example/a.git#main:sub /x", "", "https://e.example/a.git#main:sub"),
            ("ADD git@e.example:a/b.git /x", "", "git@e.example:a/b.git"),
            ("ADD git://e.example/a ssh://e.example/b /x", "", "git://e.example/a ssh://e.example/b"),
            ("ADD a github.com/a/b.git me@x ./git@x:y /x", "", ""),
            ("ADD --checksum=sha256:00 http://e.example/ /x", "http://e.example/", ""),
            ("ADD https://e.example/$NOT_SET.tgz /x", "", ""),
        ] {
            assert_eq!(found(line), (file.to_owned(), repository.to_owned()), "{line}");
        }
    }
}
