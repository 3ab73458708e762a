//! COPY and ADD of what is not in the context: reported before anything is sent, wherever BuildKit would fail, and
//! nowhere else.

use std::fs;

use integration_tests::buildctl::Buildctl;
use integration_tests::daemon::Daemon;
use integration_tests::process::Output;
use integration_tests::runner::Group;
use integration_tests::shared_cases;
use integration_tests::sources::{Tree, noise};

/// An image that sets `F=a`.
const WITH_ENV: &str = "room.meshagent.com/missing-sources/with-env:1";

pub fn group() -> Group {
    let cases = shared_cases![
        buildkit_fails_wherever_the_daemon_does_and_builds_where_it_should,
        the_error_names_the_pattern_that_excludes_a_source,
        a_build_after_one_of_a_missing_source_reads_only_the_change,
    ];
    // One of the cases counts the bytes that the daemon reads.
    Group::new("missing_sources", cases).in_sequence()
}

/// Expected end of a build.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Built,
    /// The daemon reports this path, and BuildKit would fail on it.
    Missing(&'static str),
    /// The daemon leaves the check to BuildKit, which fails.
    Failed,
}

use End::{Built, Failed, Missing};

/// A Dockerfile and its expected end. One without a FROM is placed below `FROM scratch`; a first line that begins with
/// `--` is options.
type Case = (&'static str, End);

fn context() -> Tree {
    Tree::new()
        .file(".dockerignore", "*.log\nlogs/*\ngone\n!gone/keep\nall\nDockerfile\n")
        .file("a", "a")
        .file("b", "b")
        .file("d/f", "f")
        .file("d/sub/g", "g")
        .file("sp ace", "")
        .file("hid.log", "")
        .file("logs/x.log", "")
        .file("gone/k", "")
        .file("gone/keep", "")
        .file("all/x", "")
        .file("A:b", "")
        .file("br[1]", "")
        .file("q\"q", "")
        .directory("empty")
        .link("ld", "d")
        .link("labs", "/d")
        .link("lout", "../../etc")
        .link("dangling", "nowhere")
}

const PATHS: &[Case] = &[
    ("COPY a /x", Built),
    ("COPY nope /x", Missing("nope")),
    ("ADD nope /x", Missing("nope")),
    ("ADD nope.tar.gz /x", Missing("nope.tar.gz")),
    ("COPY a nope /x/", Missing("nope")),
    ("COPY ./nope /x/", Missing("nope")),
    ("COPY /nope /x/", Missing("nope")),
    ("COPY ../a ../../b /x/", Built),
    ("COPY ../nope /x/", Missing("nope")),
    ("COPY a/ d/ d/. a/. /x/", Built),
    ("COPY nope/ /x/", Missing("nope")),
    ("COPY nope/. /x/", Missing("nope")),
    ("COPY a/f /x", Missing("a/f")),
    ("COPY d/nope/f /x", Missing("d/nope/f")),
    ("COPY d//f d/./sub/../f /x/", Built),
    ("COPY D/f /x", Missing("D/f")),
    ("COPY a/../b nope/../b /x/", Built),
    ("COPY . /x/", Built),
    ("COPY / /x/", Built),
    ("COPY empty /x/", Built),
    ("COPY a # nope", Failed),
    // Links
    ("COPY ld/f labs/f ld /x/", Built),
    ("COPY ld/nope /x", Failed),
    ("COPY lout/passwd /x", Failed),
    ("COPY dangling /x", Failed),
    ("COPY dangling/f /x", Failed),
    // Patterns
    ("COPY nope* n?pe [n]ope no*/f /x/", Built),
    ("COPY nope/a* /x/", Failed),
    ("COPY br[1] br[[]1] br\\[1] /x/", Built),
    // The ignore file
    ("COPY hid.log /x", Missing("hid.log")),
    ("COPY logs /x/", Built),
    ("COPY logs/x.log /x", Missing("logs/x.log")),
    ("COPY gone gone/keep /x/", Built),
    ("COPY gone/k /x", Missing("gone/k")),
    ("COPY all /x", Missing("all")),
    ("COPY all/x /x", Missing("all/x")),
    ("COPY Dockerfile /x", Missing("Dockerfile")),
    ("COPY .dockerignore /x", Built),
    // Quotes and escapes
    ("COPY \"a\" 'b' \\d/f q\\\"q /x/", Built),
    ("COPY \"nope\" /x", Missing("nope")),
    ("COPY n\\ope /x", Missing("nope")),
    ("COPY \"sp ace\" /x/", Failed),
    ("COPY [\"a\", \"sp ace\", \"\\\"b\\\"\", \"\\\\d/f\", \"/x/\"]", Built),
    ("COPY [\"sp nope\", \"/x\"]", Missing("sp nope")),
    ("COPY ['a', '/x']", Failed),
    ("COPY A:b /x", Built),
    ("COPY A:c /x", Failed),
    ("# escape=`\nFROM scratch\nCOPY n`ope /x", Missing("nope")),
    ("COPY a \\\n  # a remark\n  nope /x/", Missing("nope")),
    ("COPY a \\\n  # nope /x/\n  b /x/", Built),
    // Flags
    ("COPY --link --chmod=755 --chown=1:1 nope /x", Missing("nope")),
    ("COPY --link=false nope /x", Missing("nope")),
    ("COPY --exclude=nope nope /x", Missing("nope")),
    ("COPY --exclude=a a /x/", Built),
    ("ADD --unpack=true nope /x", Missing("nope")),
    ("ADD --keep-git-dir=true nope /x", Missing("nope")),
    ("COPY -- nope /x", Missing("nope")),
    ("COPY --parents ./d/./f a /x/", Built),
    ("COPY --parents nope /x/", Failed),
    ("COPY --from=scratch nope /x", Failed),
    ("COPY --bogus nope /x", Failed),
    ("COPY nope", Failed),
    // Other sources
    ("COPY <<EOF /x\nCOPY nope /x\nEOF", Built),
    ("COPY a <<EOF /x/\nCOPY nope /x\nEOF", Built),
    ("COPY nope <<EOF /x/\nhi\nEOF", Failed),
    ("COPY https://example.invalid/a /x", Failed),
];

const STAGES: &[Case] = &[
    ("FROM scratch\nCOPY nope /\nFROM scratch\nCOPY a /", Built),
    ("FROM scratch AS u\nCOPY nope /\nFROM scratch\nCOPY a /", Built),
    ("--target=w\nFROM scratch AS w\nCOPY a /\nFROM w\nCOPY nope /", Built),
    ("--target=W\nFROM scratch AS w\nCOPY nope /\nFROM scratch\nCOPY a /", Missing("nope")),
    ("--target=0\nFROM scratch AS w\nCOPY nope /", Failed),
    ("FROM scratch AS u\nCOPY nope /\nFROM u\nLABEL a=b", Missing("nope")),
    ("FROM scratch AS U\nCOPY nope /\nFROM u AS v\nFROM v\nCOPY a /", Missing("nope")),
    ("FROM scratch AS u\nCOPY nope /\nFROM scratch\nCOPY --from=U /a /", Missing("nope")),
    ("FROM scratch AS u\nCOPY nope /\nFROM scratch\nCOPY --from=0 /a /", Missing("nope")),
    ("FROM scratch AS u\nCOPY nope /\nFROM scratch\nCOPY --from=u /no* /", Missing("nope")),
    ("FROM scratch AS u\nCOPY nope /\nFROM scratch\nRUN --mount=from=u,target=/m [\"/a\"]", Missing("nope")),
    ("FROM scratch AS w\nCOPY --from=z a /\nFROM scratch AS z\nCOPY nope /", Missing("nope")),
    ("FROM scratch AS u\nCOPY nope /\nFROM scratch AS u\nCOPY a /\nFROM u", Built),
    ("FROM scratch AS u\nCOPY a /\nFROM scratch AS u\nCOPY nope /\nFROM u", Failed),
    ("FROM scratch AS u\nONBUILD COPY nope /\nCOPY a /", Built),
    ("FROM scratch AS u\nONBUILD COPY nope /\nFROM u", Failed),
    ("ARG S=u\nFROM scratch AS u\nCOPY nope /\nFROM $S", Missing("nope")),
    ("--build-arg=S=v\nARG S=u\nFROM scratch AS u\nCOPY nope /\nFROM scratch AS v\nCOPY a /\nFROM $S", Built),
    ("FROM scratch AS u\nRUN <<EOF\nCOPY nope /\nEOF\nFROM scratch\nCOPY a /", Built),
    ("WORKDIR /w\nRUN [\"/none\"]\nCOPY nope .", Missing("nope")),
    ("WHATEVER x\nCOPY nope /", Failed),
];

const VARIABLES: &[Case] = &[
    ("ENV F=a G=$F\nCOPY $F d$G/f /x/", Built),
    ("ENV F=nope\nCOPY $F /x", Missing("nope")),
    ("ENV F=a\nENV F=nope G=$F\nCOPY $G /x", Built),
    ("ENV F sp ace\nCOPY $F /x/", Built),
    ("ENV F=nope\nCOPY '$F' /x", Missing("$F")),
    ("ENV F=nope\nARG F=a\nCOPY $F /x", Built),
    ("ENV F=nope\nARG F\nCOPY $F /x", Missing("nope")),
    ("ARG F=nope\nFROM scratch\nENV F=a\nARG F\nCOPY $F /x", Missing("nope")),
    ("ARG F=a\nFROM scratch\nENV F=nope\nARG F\nCOPY $F /x", Built),
    ("FROM scratch AS u\nENV F=a\nARG F=nope\nFROM u\nCOPY $F /x", Built),
    ("FROM scratch AS u\nENV F=nope\nARG F=a\nFROM u\nCOPY $F /x", Missing("nope")),
    ("ENV F=a\nARG F=nope\nCOPY $F /x", Missing("nope")),
    ("ARG F=nope\nENV F=a\nCOPY $F /x", Built),
    ("ARG F=nope\nCOPY $F /x", Missing("nope")),
    ("ARG F=a G=${F}b\nCOPY $G /x", Missing("ab")),
    ("--build-arg=F=a\nARG F=nope\nCOPY $F /x", Built),
    ("--build-arg=F=nope\nARG F=a\nENV F=$F\nCOPY $F /x", Missing("nope")),
    ("--build-arg=F=nope\nCOPY $F/a /x", Built),
    ("ARG F=nope\nFROM scratch\nCOPY $F/a /x", Built),
    ("ARG F=nope\nFROM scratch\nARG F\nCOPY $F /x", Missing("nope")),
    ("ARG F=nope\nFROM scratch\nARG F=a\nCOPY $F /x", Built),
    ("ARG TARGETOS\nCOPY $TARGETOS /x", Failed),
    ("ARG F=nope F=a\nCOPY $F /x", Built),
    ("ARG F=no*\nCOPY $F /x", Built),
    ("FROM scratch AS u\nARG F=nope\nFROM u\nCOPY $F /x", Missing("nope")),
    ("FROM scratch AS u\nENV F=nope\nFROM u\nCOPY $F /x", Missing("nope")),
    ("FROM scratch AS u\nONBUILD ENV F=a\nENV F=nope\nFROM u\nCOPY $F /x", Built),
    ("FROM room.meshagent.com/missing-sources/with-env:1\nARG F=nope\nCOPY $F /x", Missing("nope")),
    ("FROM room.meshagent.com/missing-sources/with-env:1 AS u\nARG F=nope\nFROM u\nCOPY $F /x", Built),
    ("FROM room.meshagent.com/missing-sources/with-env:1 AS u\nARG G=nope\nFROM u\nCOPY $G /x", Failed),
    ("FROM room.meshagent.com/missing-sources/with-env:1\nENV F=nope\nCOPY $F /x", Missing("nope")),
    ("FROM room.meshagent.com/missing-sources/with-env:1\nARG G=nope\nCOPY $G /x", Missing("nope")),
    ("COPY ${F:-nope} /x", Failed),
];

fn buildkit_fails_wherever_the_daemon_does_and_builds_where_it_should(daemon: &Daemon) {
    daemon.put(
        "missing-sources/with-env",
        &Tree::new().dockerfile("FROM scratch\nENV F=a\nCOPY a /\n").file("a", "a"),
    );
    daemon.build_ok(WITH_ENV, "missing-sources/with-env", &[]);
    daemon.put("missing-sources/cases", &context());
    let mut wrong = Vec::new();
    for (text, expected) in PATHS.iter().chain(STAGES).chain(VARIABLES) {
        let (options, body) = match text.strip_prefix("--").and_then(|text| text.split_once('\n')) {
            Some((option, body)) => (vec![format!("--{option}")], body),
            None => (Vec::new(), *text),
        };
        let from = if body.contains("FROM ") { "" } else { "FROM scratch\n" };
        fs::write(daemon.room_files().join("missing-sources/cases/Dockerfile"), format!("{from}{body}\n"))
            .unwrap();
        let options: Vec<&str> = options.iter().map(String::as_str).chain(["--json"]).collect();
        let ours = ours(&daemon.build("missing-sources/case:1", "missing-sources/cases", &options));
        let theirs = buildkits(daemon, &options);
        let agrees = match (expected, &theirs) {
            (Built, Ok(())) => ours == Ok(()),
            (Failed, Err(_)) => matches!(&ours, Err((stage, ..)) if stage != "context"),
            (Missing(path), Err(error)) => {
                let message = format!("\"/{path}\": not found");
                let says_so = error.contains(&message) || error.contains(&format!("lstat /{path}: "));
                says_so
                    && matches!(&ours, Err((stage, code, told))
                        if stage == "context" && code == "copy_source_missing" && told.contains(&message))
            }
            _ => false,
        };
        if !agrees {
            wrong
                .push(format!("{text:?}: {expected:?} expected\n  hearth: {ours:?}\n  BuildKit: {theirs:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of them:\n{}", wrong.len(), wrong.join("\n"));
}

/// Returns stage, code and message of a failed build.
fn ours(output: &Output) -> Result<(), (String, String, String)> {
    if output.code == 0 {
        return Ok(());
    }
    let error = output.json()["error"].clone();
    let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
    Err((text("stage"), text("code"), text("message")))
}

/// Builds the same files with BuildKit's own client.
fn buildkits(daemon: &Daemon, options: &[&str]) -> Result<(), String> {
    let directory = daemon.room_files().join("missing-sources/cases");
    let image = format!("{}/missing-sources/with-env:1", daemon.listen());
    let mut attributes = vec![format!("context:{WITH_ENV}=docker-image://{image}")];
    attributes.extend(options.iter().filter_map(|option| match option.strip_prefix("--build-arg=") {
        Some(argument) => Some(format!("build-arg:{argument}")),
        None => option.strip_prefix("--target=").map(|target| format!("target={target}")),
    }));
    let archive = daemon.directory().join("presence.tar");
    let output = format!("type=oci,dest={}", archive.display());
    let built = Buildctl::of(daemon).build(&directory, &directory, &attributes, &output);
    let _ = fs::remove_file(archive);
    if built.code == 0 { Ok(()) } else { Err(built.stderr) }
}

fn the_error_names_the_pattern_that_excludes_a_source(daemon: &Daemon) {
    let tree = Tree::new()
        .file("web.Dockerfile", "FROM scratch\n\nCOPY --link \\\n  app.py secret.key /\n")
        .file("web.Dockerfile.dockerignore", "# keys\n*.key\n")
        .file(".dockerignore", "app.py\n")
        .file("app.py", "")
        .file("secret.key", "");
    daemon.put("missing-sources/hidden", &tree);
    let output = daemon.build(
        "missing-sources/hidden:1",
        "missing-sources/hidden",
        &["-f", "web.Dockerfile", "--json"],
    );
    let error = output.expect_code(1).json()["error"].clone();
    assert_eq!(error["message"], "line 3: \"/secret.key\": not found in the build context");
    assert_eq!(error["step"], "COPY app.py secret.key /");
    let hint = error["hint"].as_str().unwrap();
    assert!(hint.contains("`*.key` of `/context/web.Dockerfile.dockerignore`"), "{hint}");
    let range = error["dockerfile"].to_string();
    assert!(range.contains("app.py secret.key"), "{range}");
    let output =
        daemon.build("missing-sources/hidden:1", "missing-sources/hidden", &["-f", "web.Dockerfile"]);
    output.expect_code(1).says(&["secret.key", "*.key"]);
    // A pack does not have the file at all.
    let directory = daemon.room_files().join("missing-sources/hidden");
    let directory = directory.to_str().unwrap();
    let pack = |more: &[&str]| {
        daemon.hearth(&[&["build", "--tag", "missing-sources/hidden:1", directory], more].concat())
    };
    pack(&["-f", "web.Dockerfile"]).expect_code(1).says(&[
        "secret.key",
        "`*.key` of `/context/web.Dockerfile.dockerignore`",
        "`!secret.key`",
    ]);
    // What is certain is reported in the words of the command, before anything is sent.
    let unsent = |more: &[&str], code: i32, words: &[&str]| {
        let output = pack(more);
        output.expect_code(code).says(words);
        assert!(!output.stderr.contains("sent "), "{output}");
    };
    let missing = format!("neither `{directory}/Containerfile` nor `{directory}/Dockerfile` exists");
    unsent(&[], 1, &[&missing]);
    unsent(&["-f", "docker/web"], 1, &[&format!("`{directory}/docker/web` does not exist")]);
    unsent(&["-f", ""], 2, &["--dockerfile-path is empty"]);
    unsent(&["--context-path", "/other"], 2, &["`/other` is in none of the mounts", "`/context`"]);
    fs::write(daemon.room_files().join("missing-sources/hidden/Containerfile"), "").unwrap();
    unsent(&[], 1, &[&format!("`{directory}/Containerfile` is empty")]);
    fs::remove_file(daemon.room_files().join("missing-sources/hidden/Containerfile")).unwrap();
}

fn a_build_after_one_of_a_missing_source_reads_only_the_change(daemon: &Daemon) {
    const FILES: usize = 300;
    const SIZE: usize = 100_000;
    // The pushed image is small, because the daemon reads that as well.
    let good = "FROM scratch AS all\nCOPY . /all/\nFROM scratch\nCOPY --from=all /all/small /\n";
    let mut tree = Tree::new().dockerfile(good).file("small", "small");
    for number in 0..FILES {
        tree = tree.file(&format!("files/{number}"), noise(number as u64, SIZE));
    }
    daemon.put("missing-sources/large", &tree);
    let dockerfile = daemon.room_files().join("missing-sources/large/Dockerfile");
    daemon.build_ok("missing-sources/large:1", "missing-sources/large", &[]);
    // A recently changed file is read again, because its times cannot be relied on yet.
    std::thread::sleep(std::time::Duration::from_secs(1));
    daemon.build_ok("missing-sources/large:1", "missing-sources/large", &[]);
    for round in 0..3 {
        fs::write(&dockerfile, format!("{good}COPY nope{round} /\n")).unwrap();
        let before = bytes_read(daemon);
        let failed = daemon.build("missing-sources/large:1", "missing-sources/large", &[]);
        failed.expect_code(1).says(&[&format!("/nope{round}"), "not found"]);
        fs::write(&dockerfile, format!("{good}COPY --from=all /all/small /{round}\n")).unwrap();
        daemon.build_ok("missing-sources/large:1", "missing-sources/large", &[]);
        let read = bytes_read(daemon) - before;
        assert!(read < FILES * SIZE / 50, "{read} bytes of {} were read in round {round}", FILES * SIZE);
    }
}

/// Returns the bytes that the daemon has read, from files and sockets.
fn bytes_read(daemon: &Daemon) -> usize {
    let text = fs::read_to_string(format!("/proc/{}/io", daemon.pid())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("rchar:")).unwrap();
    line.trim().parse().unwrap()
}
