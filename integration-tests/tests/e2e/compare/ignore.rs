//! Contexts with ignore files.

use std::fs;

use integration_tests::sources::Tree;

use super::context::{COPY_ALL, Context, Packs, context};

/// Returns a tree with an example of everything that the ignore files below mention.
fn sample() -> Tree {
    Tree::new()
        .file("a.txt", "a")
        .file("a.log", "l")
        .file("keep.log", "k")
        .file("README.md", "r")
        .file("docs/README.md", "dr")
        .file("docs/guide.md", "dg")
        .file("docs/api/index.md", "da")
        .file("src/main.go", "m")
        .file("src/lib/lib.go", "l")
        .file("src/lib/keep/kept.go", "k")
        .file("src/node_modules/m/index.js", "n")
        .file("node_modules/x/index.js", "n")
        .file("build/out", "o")
        .file("deep/build/out", "d")
        .file(".env", "e")
        .file(".git/config", "g")
        .directory("empty")
        .file("n1", "1")
        .file("nx", "x")
        .link("link", "src")
        .link("dangling", "gone")
}

macro_rules! ignored {
    ($name:literal, $ignore:literal) => {
        context($name, COPY_ALL, |at| sample().file(".dockerignore", &$ignore[..]).write(at))
    };
}

pub fn contexts() -> Vec<Context> {
    // A pack that is made before the build is an ordinary tree: rules that exclude the Dockerfile exclude it.
    let sent = Packs::SentOnly;
    vec![
        ignored!("ignore_plain", "# a comment\n\n*.log\nnode_modules\n.git\nempty\n"),
        ignored!("ignore_everywhere", "**/node_modules\n**/*.md\n**/build\n"),
        ignored!("ignore_negation", "*.log\n!keep.log\n*.md\n!README.md\n"),
        ignored!("ignore_parents_reincluded", "*\n!src/lib/keep/kept.go\n!docs/api\n").packs(sent),
        ignored!("ignore_directory_with_exception", "src\n!src/lib\nsrc/lib/keep\n"),
        ignored!("ignore_negation_everywhere", "**/*.go\n!src/lib/**\n!**/keep/*.go\n"),
        ignored!("ignore_order_matters", "!src\nsrc\n*.txt\n!a.txt\na.txt\n"),
        ignored!("ignore_crlf_and_mark", "\u{feff}*.log\r\nnode_modules\r\n!keep.log\r\n"),
        ignored!("ignore_anchors", "/a.txt\n./n1\ndocs/\nsrc/../.env\nbuild//out\n"),
        ignored!("ignore_classes", "n[0-9]\n[a-c].txt\n?x\n[^a].log\n"),
        ignored!("ignore_escapes", "\\*.log\na\\.txt\n  docs  \n #n1\n"),
        ignored!("ignore_everything", "*\n").packs(sent),
        ignored!("ignore_everything_but", "**\n!**/*.md\n").packs(sent),
        ignored!("ignore_the_dockerfile", "Dockerfile\n.dockerignore\n").packs(sent),
        ignored!("ignore_links", "link\nlink/lib\ndangling\n"),
        ignored!("ignore_dots", ".*\n!.env\n**/.*\n.\n..\n/\n"),
        ignored!("ignore_bad_pattern", "a.txt\n[a-\n").packs(sent).refused(),
        ignored!("ignore_no_utf8", b"caf\xe9\na.txt\n"),
        context("ignore_empty_file", COPY_ALL, |at| sample().file(".dockerignore", "").write(at)),
        context("ignore_file_is_a_directory", COPY_ALL, |at| {
            sample().file(".dockerignore/a.txt", "").write(at);
        })
        .packs(Packs::None),
        context("ignore_file_is_a_link", COPY_ALL, |at| {
            sample().file("rules", "*.log\ndocs\n").link(".dockerignore", "rules").write(at);
        })
        .packs(Packs::None),
        // The ignore file of the Dockerfile replaces the general one.
        context("ignore_of_the_dockerfile", COPY_ALL, |at| {
            sample()
                .file(".dockerignore", "*.md\n")
                .file("Dockerfile.dockerignore", "*.log\nsrc\n")
                .write(at);
        })
        .packs(Packs::SentOnly),
        context("ignore_of_another_dockerfile", COPY_ALL, |at| {
            let tree = sample().file("web.Dockerfile.dockerignore", "*.txt\ndeep\n");
            tree.file(".dockerignore", "*\n").file("Dockerfile", "FROM nowhere\n").write(at);
        })
        .dockerfile_at("web.Dockerfile", "/context/web.Dockerfile")
        .packs(Packs::None),
        context("ignore_of_the_dockerfile_is_empty", COPY_ALL, |at| {
            sample().file(".dockerignore", "*.md\n").file("Dockerfile.dockerignore", "").write(at);
        })
        .packs(Packs::SentOnly),
        context("ignore_with_follow_paths", "FROM scratch\nCOPY src docs/*.md link /out/\n", |at| {
            sample().file(".dockerignore", "**/README.md\nsrc/node_modules\n").write(at);
        }),
        context("ignored_source_of_copy", "FROM scratch\nCOPY a.txt /\n", |at| {
            sample().file(".dockerignore", "*.txt\n").write(at);
        })
        .refused(),
        context("ignore_file_larger_than_a_packet", COPY_ALL, |at| {
            let many: String = (0..3000).map(|n| format!("no/such/path-{n}\n")).collect();
            sample().write(at);
            fs::write(at.join(".dockerignore"), format!("{many}*.log\n")).unwrap();
        }),
    ]
}
