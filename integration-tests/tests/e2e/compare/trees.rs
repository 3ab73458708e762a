//! Trees that are copied whole: kinds of entries, links and names.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::process::Command;

use integration_tests::process;
use integration_tests::sources::{Tree, noise};
use integration_tests::wait::seconds;

use super::context::{COPY_ALL, Context, Packs, Plant, context, set_time};

fn all(name: &'static str, plant: Plant) -> Context {
    context(name, COPY_ALL, plant)
}

pub fn plain() -> Vec<Context> {
    vec![
        all("plain_files", |at| {
            Tree::new().file("a", "a").file("b/c", "bc").file("b/d", "bd").file("e.txt", "e\n").write(at);
        }),
        all("only_a_dockerfile", |_| {}),
        all("empty_files", |at| Tree::new().file("a", "").file("b/a", "").file("b/b", "").write(at)),
        all("empty_directories", |at| {
            let tree = Tree::new().directory("e").directory("a/b/c/d").directory_with_mode("closed", 0o700);
            tree.directory_with_mode("open", 0o777).write(at);
        }),
        all("modes", |at| {
            let modes = [0o000, 0o111, 0o400, 0o444, 0o600, 0o640, 0o755, 0o777];
            let tree = modes.iter().fold(Tree::new(), |tree, mode| {
                let tree = tree.file_with_mode(&format!("f{mode:o}"), format!("{mode}"), *mode);
                tree.directory_with_mode(&format!("d{mode:o}"), *mode)
            });
            tree.write(at);
        }),
        all("setuid_setgid_sticky", |at| {
            let tree = Tree::new().file_with_mode("u", "u", 0o4755).file_with_mode("g", "g", 0o2755);
            let tree = tree.file_with_mode("ug", "x", 0o6711).file_with_mode("t", "t", 0o1644);
            tree.directory_with_mode("tmp", 0o1777).directory_with_mode("shared", 0o2775).write(at);
        }),
        all("owners", |at| {
            Tree::new().file("a", "a").directory("d").file("d/b", "b").link("l", "a").write(at);
            for path in ["a", "d", "d/b", "l"] {
                std::os::unix::fs::lchown(at.join(path), Some(1234), Some(4321)).unwrap();
            }
        }),
        all("deep_nesting", |at| {
            let deep: Vec<String> = (0..60).map(|level| format!("level-{level}")).collect();
            Tree::new().file(&format!("{}/bottom", deep.join("/")), "deep").write(at);
        }),
        all("many_files", |at| {
            for directory in 0..24 {
                let path = at.join(format!("d{directory}/sub"));
                fs::create_dir_all(&path).unwrap();
                for file in 0..50 {
                    fs::write(path.join(format!("f{file}")), format!("{directory} {file}")).unwrap();
                }
            }
        }),
        all("large_file", |at| Tree::new().file("large", noise(41, 5_000_001)).file("small", "s").write(at)),
        all("sparse_file", |at| {
            let mut file = File::create(at.join("sparse")).unwrap();
            file.write_all(b"head").unwrap();
            file.seek(SeekFrom::Start(9_000_000)).unwrap();
            file.write_all(b"tail").unwrap();
            file.set_len(12_000_000).unwrap();
            File::create(at.join("hole")).unwrap().set_len(3_000_000).unwrap();
        }),
        all("old_times", |at| {
            Tree::new().file("epoch", "0").file("one", "1").file("y2001", "2").directory("d").write(at);
            for (path, time) in [("epoch", 0), ("one", 1), ("y2001", 999_999_999), ("d", 86_400)] {
                set_time(&at.join(path), time);
            }
        }),
        all("before_1970", |at| {
            Tree::new().file("before", "b").write(at);
            set_time(&at.join("before"), -86_400);
        }),
        all("case_twins", |at| {
            Tree::new().file("readme", "1").file("README", "2").file("Readme/x", "3").write(at);
        }),
        all("attributes", |at| {
            Tree::new().file("a", "a").directory("d").write(at);
            for path in ["a", "d"] {
                let flags = rustix::fs::XattrFlags::empty();
                rustix::fs::setxattr(at.join(path), "user.note", b"kept?", flags).unwrap();
            }
        }),
        // A pack refuses these by contract; a context from a mount carries what BuildKit accepts.
        all("fifo", |at| {
            fs::write(at.join("file"), "f").unwrap();
            process::run(Command::new("mkfifo").arg(at.join("pipe")), seconds(5)).expect_code(0);
        })
        .packs(Packs::None),
        all("socket", |at| {
            fs::write(at.join("file"), "f").unwrap();
            // The path of a socket must be short: it is bound at a short path, then moved.
            let short = at.join("../s");
            drop(UnixListener::bind(&short).unwrap());
            fs::rename(short, at.join("socket")).unwrap();
        })
        .packs(Packs::None),
    ]
}

/// Returns contexts that are likely to go wrong when they are sent a second time.
pub fn twice() -> Vec<Context> {
    vec![
        all("twice_links", |at| {
            Tree::new().link("a", "b").link("d/up", "../d").link("gone", "no/where").file("b", "b").write(at);
        }),
        all("twice_hard_links", |at| {
            Tree::new().file("b/first", "linked").directory("a").directory("c").write(at);
            for name in ["a/second", "c/third", "z"] {
                fs::hard_link(at.join("b/first"), at.join(name)).unwrap();
            }
        }),
        all("twice_modes", |at| {
            let tree = Tree::new().file_with_mode("u", "u", 0o4755).directory_with_mode("tmp", 0o1777);
            tree.file("with blank", "").directory("empty/empty").write(at);
        }),
    ]
}

pub fn links() -> Vec<Context> {
    vec![
        all("dangling_links", |at| Tree::new().link("a", "nowhere").link("d/b", "../no/where").write(at)),
        all("absolute_links", |at| {
            Tree::new().link("etc", "/etc/passwd").link("root", "/").link("all", "/all/etc").write(at);
        }),
        all("looping_links", |at| {
            let tree = Tree::new().link("a", "b").link("b", "a").link("self", "self").link("up", "..");
            tree.link("here", ".").link("d/top", "../d").write(at);
        }),
        all("long_link_targets", |at| {
            Tree::new().link("l100", &"t".repeat(100)).link("l101", &"t".repeat(101)).write(at);
            symlink("d/".repeat(2000), at.join("l4000")).unwrap();
            symlink(OsStr::from_bytes(b"not-utf8-\xfe/\xff"), at.join("bytes")).unwrap();
        }),
        all("links_to_directories", |at| {
            Tree::new().file("d/x", "x").link("l", "d").link("m/l", "../d").link("slash", "d/").write(at);
        }),
        all("hard_link_pair", |at| {
            Tree::new().file("one", "linked").file("other", "linked").write(at);
            fs::hard_link(at.join("one"), at.join("two")).unwrap();
        }),
        all("hard_links_across_directories", |at| {
            Tree::new()
                .file("b/first", "linked")
                .directory("a")
                .directory("c")
                .file("c/apart", "x")
                .write(at);
            for name in ["a/second", "c/third", "z"] {
                fs::hard_link(at.join("b/first"), at.join(name)).unwrap();
            }
        }),
        all("hard_links_with_modes", |at| {
            Tree::new().file_with_mode("a", "x", 0o4755).file("empty", "").write(at);
            fs::hard_link(at.join("a"), at.join("b")).unwrap();
            fs::hard_link(at.join("empty"), at.join("empty-too")).unwrap();
        }),
        // The first name is not copied, so the second one must become a file of its own.
        context("hard_link_whose_first_name_stays_out", "FROM scratch\nCOPY b /b/\nCOPY c /c/\n", |at| {
            Tree::new().file("a/first", "linked").directory("b").directory("c").write(at);
            for name in ["b/second", "b/third", "c/fourth"] {
                fs::hard_link(at.join("a/first"), at.join(name)).unwrap();
            }
        }),
        all("hard_link_to_an_ignored_name", |at| {
            Tree::new().file("a/first", "linked").file(".dockerignore", "a\n").directory("b").write(at);
            fs::hard_link(at.join("a/first"), at.join("b/second")).unwrap();
            fs::hard_link(at.join("a/first"), at.join("b/third")).unwrap();
        }),
        all("hard_links_of_a_link", |at| {
            Tree::new().link("one", "target").write(at);
            let (from, to) = (at.join("one"), at.join("two"));
            rustix::fs::linkat(rustix::fs::CWD, &from, rustix::fs::CWD, &to, rustix::fs::AtFlags::empty())
                .unwrap();
        }),
        context("copy_of_a_link", "FROM scratch\nCOPY l /a\nCOPY l /d/\nCOPY dl /e\nCOPY dl /f/\n", |at| {
            Tree::new()
                .file("x", "x")
                .link("l", "x")
                .file("d/y", "y")
                .link("d/z", "y")
                .link("dl", "d")
                .write(at);
        }),
        context(
            "copy_through_a_directory_link",
            "FROM scratch\nCOPY dl/y /1\nCOPY dl/s /2/\nCOPY dl/* /3/\n",
            |at| {
                Tree::new().file("d/y", "y").file("d/s/t", "t").link("dl", "d").write(at);
            },
        ),
        context(
            "copy_through_chains",
            "FROM scratch\nCOPY a /1\nCOPY abs/y /2\nCOPY up/x /3\nCOPY s/in/y /4\n",
            |at| {
                let tree = Tree::new()
                    .file("x", "x")
                    .file("d/y", "y")
                    .link("a", "b")
                    .link("b", "c/e")
                    .link("c/e", "../x");
                tree.link("abs", "/d").link("up", "../../..").link("s/in", "../d").write(at);
            },
        ),
        context("copy_of_a_dangling_link", "FROM scratch\nCOPY gone /x\n", |at| {
            Tree::new().link("gone", "nowhere").write(at);
        })
        .refused(),
        context("copy_of_a_loop", "FROM scratch\nCOPY a/x /x\n", |at| {
            Tree::new().link("a", "b").link("b", "a").write(at);
        })
        .refused(),
    ]
}

pub fn names() -> Vec<Context> {
    vec![
        all("blanks_and_unicode", |at| {
            let tree = Tree::new().file("with blank", "1").file(" lead", "2").file("trail ", "3");
            tree.file("ümlaut/日本語", "4").file("e\u{301}", "5").file("é", "6").file("🔥", "7").write(at);
        }),
        all("control_bytes", |at| {
            Tree::new()
                .file("new\nline", "1")
                .file("tab\t", "2")
                .file("\x01\x1b[0m", "3")
                .file("\r", "4")
                .write(at);
        }),
        all("bytes_that_are_not_utf8", |at| {
            let directory = at.join(OsStr::from_bytes(b"d-\xff"));
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join(OsStr::from_bytes(b"\xc3\x28")), "1").unwrap();
            fs::write(at.join(OsStr::from_bytes(b"\xfe")), "2").unwrap();
            fs::write(at.join(OsStr::from_bytes(b"\xff")), "3").unwrap();
            fs::hard_link(at.join(OsStr::from_bytes(b"\xff")), at.join("z")).unwrap();
        }),
        all("long_names", |at| {
            let (long, half) = ("n".repeat(255), "d".repeat(128));
            let path = format!("{half}/{half}/{half}/{long}");
            Tree::new()
                .file(&long, "1")
                .file(&path, "2")
                .file(&"m".repeat(100), "3")
                .file(&"k".repeat(101), "4")
                .write(at);
            fs::hard_link(at.join(&path), at.join("linked")).unwrap();
        }),
        all("shell_and_pattern_bytes", |at| {
            let names = [
                "-dash",
                "--",
                "dot.",
                "...",
                "a*b",
                "[a]",
                "q?",
                "back\\slash",
                "quote\"'",
                "$(x)",
                "#c",
                "!x",
                "%41",
                "a:b",
                "=",
                "~",
                "@",
            ];
            names.iter().fold(Tree::new(), |tree, name| tree.file(name, *name)).write(at);
        }),
        all("order_of_names", |at| {
            let names = ["a/x", "a-b/x", "a.b/x", "a0", "ab/x", "a b/x", "A/x", "a!/x", "a/x0"];
            names.iter().fold(Tree::new(), |tree, name| tree.file(name, *name)).write(at);
        }),
        all("nearly_whiteouts", |at| {
            Tree::new().file("wh.x", "1").file(".wh", "2").file("a.wh.b", "3").file("..wh.x", "4").write(at);
        }),
    ]
}
