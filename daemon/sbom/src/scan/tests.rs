use proptest::prelude::*;

use super::*;

/// A file in memory.
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl FileContent for Bytes {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let rest = usize::try_from(at).ok().and_then(|at| self.0.get(at..)).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }
}

fn purls(files: &[(&str, &str)]) -> Vec<String> {
    let mut scan = PackageScan::default();
    for (path, content) in files {
        let role = FileRole::of(path.as_bytes(), 0o644).unwrap();
        scan.add(role, path.as_bytes(), &Bytes(content.as_bytes().to_vec())).unwrap();
    }
    scan.finish().packages().map(|package| package.purl.clone()).collect()
}

#[test]
fn each_database_yields_its_packages() {
    let debian = "ID=debian\nVERSION_ID=\"12\"\n";
    let status = "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.36-9+deb12u4\n\
                  Description: x\n Package: not-this\n\nPackage: gone\nStatus: deinstall ok config-files\nVersion: 1\n";
    assert_eq!(
        purls(&[("usr/lib/os-release", debian), ("var/lib/dpkg/status", status)]),
        ["pkg:deb/debian/libc6@2.36-9%2Bdeb12u4?arch=amd64&distro=debian-12"]
    );
    assert_eq!(
        purls(&[("var/lib/dpkg/status.d/base", "Package: base-files\nVersion: 1:12.4\nArchitecture: all\n")]),
        ["pkg:deb/debian/base-files@1:12.4?arch=all"]
    );
    let installed =
        "C:Q1=\nP:musl\nV:1.2.5-r0\nA:x86_64\nF:lib\nR:ld-musl-x86_64.so.1\n\nP:busybox\nV:1.36\np:other\n";
    assert_eq!(
        purls(&[("lib/apk/db/installed", installed)]),
        ["pkg:apk/alpine/busybox@1.36", "pkg:apk/alpine/musl@1.2.5-r0?arch=x86_64"]
    );
    assert_eq!(
        purls(&[
            (
                "usr/lib/python3/dist-packages/Foo_Bar-1.0.dist-info/METADATA",
                "Name: Foo_Bar\r\nVersion: 1.0\r\n\r\nVersion: 2"
            ),
            ("app/node_modules/@a/b/package.json", r#"{"name": "@a/b", "version": "3.0.0"}"#),
            ("app/Cargo.lock", "version = 4\n\n[[package]]\nname = \"serde\"\nversion = \"1.0.1\"\n"),
        ]),
        ["pkg:cargo/serde@1.0.1", "pkg:npm/%40a/b@3.0.0", "pkg:pypi/foo-bar@1.0"]
    );
}

#[test]
fn files_have_roles_by_their_places() {
    for (path, expected) in [
        ("app/package.json", None),
        ("node_modules/a/package.json", Some(FileRole::Npm)),
        ("node_modules/a/lib/package.json", None),
        ("var/lib/rpm/Packages", Some(FileRole::OldRpm)),
        ("home/rpmdb.sqlite", None),
        ("usr/bin/x", None),
        ("", None),
    ] {
        assert_eq!(FileRole::of(path.as_bytes(), 0o644), expected, "{path}");
    }
    assert_eq!(FileRole::of(b"usr/bin/x", 0o755), Some(FileRole::Program));
}

#[test]
fn a_program_that_a_package_owns_is_not_looked_into() {
    let mut scan = PackageScan::default();
    scan.add(FileRole::DpkgFiles, b"var/lib/dpkg/info/x.list", &Bytes(b"/.\n/bin/x\n".to_vec())).unwrap();
    scan.add_program(b"usr/bin/x", &Bytes(Vec::new())).unwrap();
    assert_eq!(scan.programs, 0);
    scan.add_program(b"usr/bin/y", &Bytes(Vec::new())).unwrap();
    assert_eq!(scan.programs, 1);
}

proptest! {
    #[test]
    fn no_bytes_make_a_reader_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..2000),
        text in "(P:|V:|Package:|Version:|Name:|\\[\\[package\\]\\]|name = |\"|:|\n|\t|\\{|\\}|é){0,60}",
        path in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        FileRole::of(&path, 0o755);
        let mut scan = PackageScan::default();
        for role in [
            FileRole::OsRelease, FileRole::Dpkg, FileRole::DpkgFiles, FileRole::Apk, FileRole::Rpm,
            FileRole::OldRpm, FileRole::Python, FileRole::Npm, FileRole::CargoLock,
        ] {
            scan.add(role, &path, &Bytes(bytes.clone())).unwrap();
            scan.add(role, &path, &Bytes(text.clone().into_bytes())).unwrap();
        }
        scan.add_program(&path, &Bytes(bytes)).unwrap();
        crate::spdx_document(&scan.finish(), &crate::SpdxSubject { name: "x", digest_hex: "0a", created: "t", tool: "t" });
    }
}
