//! Layouts of the context and its Dockerfile: below a mount, in several mounts, under other names.

use std::fs;
use std::path::Path;

use integration_tests::sources::Tree;

use super::context::{COPY_ALL, Context, Packs, context};

fn sample(at: &Path) {
    Tree::new().file("a", "a").file("sub/b", "b").link("l", "sub/b").directory("vendor/old").write(at);
}

fn library(at: &Path) {
    Tree::new().file("lib", "lib").file_with_mode("bin/tool", "t", 0o755).link("rel", "bin/tool").write(at);
    fs::hard_link(at.join("lib"), at.join("again")).unwrap();
}

pub fn contexts() -> Vec<Context> {
    vec![
        context("context_below_a_mount", COPY_ALL, |at| {
            Tree::new()
                .file("outside", "o")
                .file("app/a", "a")
                .file("app/.dockerignore", "*.log\n")
                .write(at);
            Tree::new().file("app/x.log", "x").link("app/up", "../outside").write(at);
        })
        .found_at("app/Dockerfile")
        .at("/context/app"),
        context("context_deep_below_a_mount", COPY_ALL, |at| {
            Tree::new().file("p/q/r/a", "a").file("p/q/.dockerignore", "a\n").write(at);
        })
        .found_at("p/q/r/Dockerfile")
        .at("/context/p/q/r"),
        context("containerfile", COPY_ALL, sample).found_at("Containerfile"),
        context("containerfile_comes_first", COPY_ALL, |at| {
            sample(at);
            fs::write(at.join("Dockerfile"), "FROM nowhere.invalid/x\n").unwrap();
        })
        .found_at("Containerfile"),
        context("dockerfile_in_a_directory", COPY_ALL, sample)
            .dockerfile_at("docker/web.Dockerfile", "/context/docker/web.Dockerfile"),
        context("dockerfile_in_another_mount", "", |at| {
            sample(at);
            fs::write(at.join("Dockerfile"), "FROM nowhere.invalid/x\n").unwrap();
        })
        .mount("/recipes", |at| {
            Tree::new()
                .dockerfile("FROM scratch\nCOPY . /all/\nCOPY sub /s/\n")
                .file("not-copied", "n")
                .write(at);
        })
        .dockerfile_at("", "/recipes/Dockerfile"),
        context("a_mount_below_the_context", COPY_ALL, sample).mount("/context/lib", library),
        context("a_mount_over_a_directory", COPY_ALL, sample).mount("/context/vendor", library),
        context("a_mount_over_a_file", COPY_ALL, sample).mount("/context/a", library),
        context("a_mount_under_missing_parents", COPY_ALL, sample).mount("/context/x/y/z", library),
        context("a_mount_in_a_mount", COPY_ALL, sample)
            .mount("/context/vendor", library)
            .mount("/context/vendor/bin/deeper", |at| Tree::new().file("deep", "d").write(at)),
        context("a_mount_beside_the_context", COPY_ALL, sample).mount("/beside", library),
        context("ignore_rules_reach_into_mounts", COPY_ALL, |at| {
            sample(at);
            fs::write(at.join(".dockerignore"), "lib/bin\n**/again\n!lib/bin/tool\n").unwrap();
        })
        .mount("/context/lib", library)
        // The rules in a pack's directory are matched against that directory alone.
        .packs(Packs::SentOnly),
        context(
            "copy_from_a_nested_mount_only",
            "FROM scratch\nCOPY lib/bin /bin/\nCOPY lib/rel /rel\n",
            sample,
        )
        .mount("/context/lib", library),
    ]
}
