//! Instructions of a Dockerfile that use its context.

use std::fs::{self, File};
use std::path::Path;

use integration_tests::sources::{Tree, noise};

use super::context::{Context, context};

fn sample(at: &Path) {
    Tree::new()
        .file("one.txt", "1")
        .file("two.txt", "2")
        .file("three.md", "3")
        .file_with_mode("run.sh", "#!/bin/sh\n", 0o755)
        .file("sub/a.md", "a")
        .file("sub/bb.md", "bb")
        .file("sub/deep/er/x.txt", "x")
        .file("sub/deep/y.md", "y")
        .directory("sub/empty")
        .link("sub/link", "a.md")
        .file("other/sub/a.md", "oa")
        .write(at);
}

/// Writes a tar with owners, a link and a hard link, for ADD to unpack.
fn with_tars(at: &Path) {
    sample(at);
    let entry = |kind, path: &str, mode, owner, content: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_path(path).unwrap();
        header.set_mode(mode);
        header.set_uid(owner);
        header.set_gid(owner);
        header.set_mtime(1_200_000_000);
        header.set_size(content.len() as u64);
        header
    };
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |kind, path: &str, mode, owner, content: &[u8], link: &str| {
        let mut header = entry(kind, path, mode, owner, content);
        if !link.is_empty() {
            header.set_link_name(link).unwrap();
        }
        header.set_cksum();
        tar.append(&header, content).unwrap();
    };
    add(tar::EntryType::Directory, "t/", 0o750, 7, b"", "");
    add(tar::EntryType::Regular, "t/f", 0o640, 1000, b"in a tar", "");
    add(tar::EntryType::Link, "t/again", 0o640, 1000, b"", "t/f");
    add(tar::EntryType::Symlink, "t/l", 0o777, 0, b"", "f");
    let plain = tar.into_inner().unwrap();
    fs::write(at.join("plain.tar"), &plain).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(
        File::create(at.join("packed.tar.gz")).unwrap(),
        flate2::Compression::fast(),
    );
    std::io::Write::write_all(&mut gzip, &plain).unwrap();
    gzip.finish().unwrap();
}

pub fn contexts() -> Vec<Context> {
    vec![
        context("copy_of_patterns", "FROM scratch\nCOPY *.txt sub/?.md /out/\nCOPY s*/deep /deep/\n", sample),
        context("copy_of_a_pattern_without_match", "FROM scratch\nCOPY no-*.txt /out/\n", sample),
        context("copy_of_what_is_missing", "FROM scratch\nCOPY not-there /out/\n", sample).refused(),
        context(
            "copy_with_owner_and_mode",
            "FROM scratch\nCOPY --chown=12:34 --chmod=640 sub /a/\nCOPY --chown=5 run.sh /b\nCOPY --chmod=4755 run.sh /c\n",
            sample,
        ),
        context(
            "copy_as_a_layer_of_its_own",
            "FROM scratch\nCOPY --link sub /a/b/\nCOPY --link one.txt /a/\n",
            sample,
        ),
        context(
            "copy_with_parents",
            "FROM scratch\nCOPY --parents sub/deep/er/x.txt ./other/./sub/*.md /p/\n",
            sample,
        ),
        context(
            "copy_with_exclusions",
            "FROM scratch\nCOPY --exclude=*.txt --exclude=sub/deep . /e/\nCOPY --exclude=**/*.md sub /f/\n",
            sample,
        ),
        context(
            "copy_that_renames",
            "FROM scratch\nCOPY one.txt /new/name\nCOPY sub /renamed\nCOPY sub/deep/ /d/\n",
            sample,
        ),
        context(
            "copy_over_what_was_copied",
            "FROM scratch\nCOPY sub /x/\nCOPY other/sub /x/\nCOPY two.txt /x/a.md\n",
            sample,
        ),
        context(
            "copy_into_a_workdir",
            "FROM scratch\nWORKDIR /srv/app\nCOPY one.txt ./\nCOPY sub ../lib/\n",
            sample,
        ),
        context(
            "copy_with_arguments",
            "FROM scratch\nARG WHAT=one\nARG TO\nCOPY ${WHAT}.txt ${TO}/\n",
            sample,
        )
        .option("build-arg:WHAT=two")
        .option("build-arg:TO=/target"),
        context(
            "copy_of_inline_text",
            "FROM scratch\nCOPY <<one.cfg <<two.cfg /etc/\na=1\none.cfg\nb=2\ntwo.cfg\nCOPY one.txt /\n",
            sample,
        ),
        context(
            "copy_of_a_list",
            "FROM scratch\nCOPY [\"one.txt\", \"with blank\", \"/to here/\"]\n",
            |at| {
                sample(at);
                fs::write(at.join("with blank"), "b").unwrap();
            },
        ),
        context(
            "add_of_a_tar",
            "FROM scratch\nADD plain.tar /t1/\nADD packed.tar.gz /t2/\nCOPY plain.tar /kept/\n",
            with_tars,
        )
        .times_of_its_own(),
        context(
            "add_of_files",
            "FROM scratch\nADD one.txt /a/\nADD sub /b/\nADD --chown=3:4 run.sh /c/\n",
            sample,
        ),
        context(
            "copy_between_stages",
            "FROM scratch AS first\nCOPY . /all/\nFROM scratch AS unused\nCOPY not-there /\n\
             FROM scratch\nCOPY --from=first /all/sub /s/\nCOPY --from=0 /all/one.txt /\nCOPY two.txt /\n",
            sample,
        ),
        context(
            "a_target_stage",
            "FROM scratch AS wanted\nCOPY one.txt /\nFROM scratch\nCOPY not-there /\n",
            sample,
        )
        .option("target=wanted"),
        context("a_binary_beside_text", "FROM scratch\nCOPY noise text /\n", |at| {
            Tree::new().file("noise", noise(5, 1_500_000)).file("text", "t\n".repeat(40_000)).write(at);
        }),
        context(
            "run_with_a_bind_mount",
            "FROM room.meshagent.com/busybox:test AS run\n\
             RUN --mount=type=bind,target=/src cd /src && find . | sort > /list && cat sub/a.md one.txt > /cat\n\
             RUN --mount=type=bind,source=sub,target=/src cd /src && find . -type f | sort > /sub\n\
             FROM scratch\nCOPY --from=run /list /cat /sub /\n",
            sample,
        ),
        context(
            "run_changes_what_was_copied",
            "FROM room.meshagent.com/busybox:test AS run\nCOPY . /w/\n\
             RUN cd /w && rm one.txt && echo new > two.txt && chmod 600 run.sh && mkdir -p made && ln -s ../sub made/l\n\
             FROM scratch\nCOPY --from=run /w /w\n",
            sample,
        ),
    ]
}
