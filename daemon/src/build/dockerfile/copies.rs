//! Estimate of the context paths that a Dockerfile uses.
//!
//! The estimate makes unchanged builds cheap: too many paths cost time, and a missing path is noticed when BuildKit
//! asks for it. Anything that is not a plain path therefore selects the whole context.

use crate::context::CopySelection;

use super::lines::Instruction;
use super::{Dockerfile, words};

impl Dockerfile {
    /// Returns the paths that instructions copy or mount from the context.
    pub fn context_selection(&self) -> CopySelection {
        let mut paths = Vec::new();
        for instruction in &self.instructions {
            let copied = match instruction.keyword.as_str() {
                "copy" | "add" if instruction.flag_values("from").next().is_none() => {
                    copied_paths(instruction, self.escape)
                }
                "run" => mounted(instruction),
                _ => Some(Vec::new()),
            };
            match copied {
                Some(copied) => paths.extend(copied),
                None => return CopySelection::default(),
            }
        }
        CopySelection::of(paths)
    }
}

/// Returns the source paths of a COPY or ADD, or `None` when they cannot be determined.
fn copied_paths(instruction: &Instruction, escape: char) -> Option<Vec<Vec<u8>>> {
    let rest = &instruction.rest;
    let mut words = match rest.starts_with('[') {
        true => serde_json::from_str(rest).ok()?,
        false => words::split_raw(rest, escape),
    };
    words.pop();
    let is_path =
        |word: &&String| !word.starts_with("<<") && !word.contains("://") && !word.starts_with("git@");
    words.iter().filter(is_path).map(|word| literal_prefix(word, escape)).collect()
}

fn mounted(instruction: &Instruction) -> Option<Vec<Vec<u8>>> {
    let mut paths = Vec::new();
    for value in instruction.flag_values("mount") {
        let (mut kind, mut source, mut from) = ("bind".to_owned(), String::new(), false);
        for field in words::csv_fields(value)? {
            let Some((key, value)) = field.split_once('=') else { continue };
            match key.to_ascii_lowercase().as_str() {
                "type" => value.clone_into(&mut kind),
                "source" | "src" => value.clone_into(&mut source),
                "from" => from = true,
                _ => {}
            }
        }
        if kind.contains('$') || (kind == "bind" && !from) {
            paths.push(literal_prefix(&source, '\\')?);
        }
    }
    Some(paths)
}

/// Returns the path up to its first wildcard, clean and relative, or `None` when it contains variables, quotes or
/// escapes.
fn literal_prefix(word: &str, escape: char) -> Option<Vec<u8>> {
    if word.contains(['$', '"', '\'', '\\', escape]) {
        return None;
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in word.split('/') {
        match part {
            "" | "." => {}
            ".." => _ = parts.pop(),
            part if part.contains(['*', '?', '[']) => break,
            part => parts.push(part),
        }
    }
    Some(parts.join("/").into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roots(dockerfile: &str) -> Option<Vec<String>> {
        let roots = Dockerfile::parse(dockerfile.into()).context_selection().roots?;
        Some(roots.into_iter().map(|root| String::from_utf8(root).unwrap()).collect())
    }

    #[test]
    fn what_is_copied_or_mounted_is_found() {
        let dockerfile = "FROM x\nCOPY --chmod=1 ./src/app /lib/*.so src/app/deep /dst/\nADD [\"b\", \"c/../d\", \"/x\"]\n\
             COPY --from=y etc /etc\nRUN --mount=source=m/n,target=/m --mount=type=cache,target=/c true\n\
             ADD https://example.com/f /f\nCOPY <<EOF /g\nCOPY . /\nEOF\nCOPY z\nRUN --mount=from=y,src=q,target=/q true\n";
        assert_eq!(roots(dockerfile).unwrap(), ["b", "d", "lib", "m/n", "src/app"]);
        assert_eq!(roots("FROM x\nRUN true\n").unwrap(), Vec::<String>::new());
    }

    #[test]
    fn whatever_is_not_plain_means_all() {
        for line in [
            "COPY . /x",
            "COPY a ../.. /x",
            "COPY * /x",
            "COPY a$B /x",
            "COPY \"a b\" /x",
            "COPY [\"a\" \"/x\"]",
            "COPY a\\ b /x",
            "RUN --mount=target=/x true",
            "RUN --mount=type=$T,target=/x true",
        ] {
            assert_eq!(roots(&format!("FROM x\nCOPY q /q\n{line}\n")), None, "{line}");
        }
    }
}
