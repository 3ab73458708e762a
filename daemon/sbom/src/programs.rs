//! Programs that say which modules they were made from: Go programs (`.go.buildinfo`, as `go version -m` shows it) and Rust
//! programs of `cargo auditable` (`.dep-v0`).

use std::io::{self, Read as _};

use flate2::read::ZlibDecoder;

use crate::elf::{Sections, bytes_at};
use crate::language::read_cargo_audit;
use crate::package::{Package, PackageList};
use crate::purl::purl;
use crate::scan::FileContent;

const MAX_SECTION_BYTES: u64 = 4 << 20;
/// Maximum size of the decompressed list of crates.
const MAX_CRATES_BYTES: u64 = 8 << 20;

const GO_MAGIC: &[u8] = b"\xff Go buildinf:";
const GO_HEADER_BYTES: usize = 32;
/// Flag of the header: the strings follow it (Go 1.18 and newer).
const GO_INLINE_FLAG: u8 = 2;
/// Bytes before and after the list of modules.
const GO_FRAME_BYTES: usize = 16;

pub(crate) fn read(file: &dyn FileContent, path: &str, list: &mut PackageList) -> io::Result<()> {
    let Some(sections) = Sections::read(file)? else { return Ok(()) };
    if let Some((at, length)) = sections.find(".go.buildinfo") {
        read_go(&bytes_at(file, at, length.min(MAX_SECTION_BYTES))?, path, list);
    }
    if let Some((at, length)) = sections.find(".dep-v0") {
        let packed = bytes_at(file, at, length.min(MAX_SECTION_BYTES))?;
        let mut crates = Vec::new();
        match ZlibDecoder::new(packed.as_slice()).take(MAX_CRATES_BYTES).read_to_end(&mut crates) {
            Ok(_) => read_cargo_audit(&crates, path, list),
            Err(_) => list.note(format!("the list of crates in `{path}` cannot be decompressed")),
        }
    }
    Ok(())
}

fn read_go(section: &[u8], path: &str, list: &mut PackageList) {
    let header = section.get(..GO_HEADER_BYTES).filter(|header| header.starts_with(GO_MAGIC));
    let Some(header) = header else { return };
    if header[15] & GO_INLINE_FLAG == 0 {
        return list.note(format!("`{path}` was made by a Go before 1.18, whose modules are not read"));
    }
    let Some((version, rest)) = sized_text(&section[GO_HEADER_BYTES..]) else { return };
    let version = String::from_utf8_lossy(version);
    let version = version.split(' ').next().unwrap_or_default().trim_start_matches("go").to_owned();
    add(("stdlib", &version), path, list);
    let Some((framed, _)) = sized_text(rest) else { return };
    let end = framed.len().saturating_sub(GO_FRAME_BYTES);
    let text = String::from_utf8_lossy(framed.get(GO_FRAME_BYTES..end).unwrap_or_default());
    // A line `=>` names what takes the place of the module before it.
    let mut module: Option<(&str, &str)> = None;
    for line in text.lines() {
        let mut words = line.split('\t');
        let (kind, named) = (words.next().unwrap_or_default(), (words.next(), words.next()));
        let named = named.0.zip(named.1.filter(|version| !version.is_empty()));
        match kind {
            "=>" => module = named.or(module),
            "mod" | "dep" => {
                module.take().into_iter().for_each(|module| add(module, path, list));
                module = named;
            }
            _ => {}
        }
    }
    module.into_iter().for_each(|module| add(module, path, list));
}

fn add((name, version): (&str, &str), path: &str, list: &mut PackageList) {
    // A program that was built in its own source tree has no version.
    if version == "(devel)" {
        return;
    }
    list.add(Package {
        name: name.to_owned(),
        version: version.to_owned(),
        purl: purl("golang", name, version),
        found_in: path.to_owned(),
    });
}

/// Splits a text with its length before it, as a varint, from the rest.
fn sized_text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut length: usize = 0;
    for (index, byte) in bytes.iter().enumerate().take(4) {
        length |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return bytes.get(index + 1..)?.split_at_checked(length);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::scan::tests::Bytes;

    /// Returns the section of a Go program with these modules.
    fn go_section(modules: &str) -> Vec<u8> {
        let mut section = GO_MAGIC.to_vec();
        section.extend([8, GO_INLINE_FLAG]);
        section.resize(GO_HEADER_BYTES, 0);
        let framed = format!("{}{modules}{}", "0".repeat(GO_FRAME_BYTES), "f".repeat(GO_FRAME_BYTES));
        for text in ["go1.26.1", &framed] {
            let length = text.len();
            section.extend([(length & 0x7f | 0x80) as u8, (length >> 7) as u8]);
            section.extend(text.as_bytes());
        }
        section
    }

    #[test]
    fn the_modules_of_a_go_program_are_listed_with_their_replacements() {
        let modules = "path\tcmd/x\nmod\texample.com/x\t(devel)\t\ndep\tgolang.org/x/net\tv0.1.0\th1:a=\n\
                       dep\tgithub.com/a/b\tv1.0.0\n=>\tgithub.com/c/b\tv1.0.1\th1:b=\nbuild\tGOOS=linux\n";
        let mut list = PackageList::default();
        read_go(&go_section(modules), "usr/bin/x", &mut list);
        let purls: Vec<&str> = list.packages().map(|package| package.purl.as_str()).collect();
        assert_eq!(
            purls,
            [
                "pkg:golang/github.com/c/b@v1.0.1",
                "pkg:golang/golang.org/x/net@v0.1.0",
                "pkg:golang/stdlib@1.26.1",
            ]
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_of_programs_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..4096),
            is_program in any::<bool>(),
            modules in ".{0,200}",
        ) {
            let mut list = PackageList::default();
            if is_program {
                for (at, byte) in crate::elf::MAGIC.iter().enumerate().take(bytes.len()) {
                    bytes[at] = *byte;
                }
                if bytes.len() > 64 {
                    bytes[40..48].copy_from_slice(&64u64.to_le_bytes());
                    bytes[58..60].copy_from_slice(&64u16.to_le_bytes());
                }
            }
            read(&Bytes(bytes.clone()), "x", &mut list).unwrap();
            read_go(&bytes, "x", &mut list);
            let mut section = go_section(&modules);
            section.truncate(section.len().saturating_sub(bytes.len() % 64));
            read_go(&section, "x", &mut list);
        }
    }
}
