//! Property tests: arbitrary layers, damage and chunk boundaries.

use std::collections::BTreeMap;

use hearth_pack::identity::ContentHash;
use proptest::prelude::*;

use super::*;

fn entry() -> impl Strategy<Value = (u8, String, String)> {
    let name = prop::sample::select(vec![
        "a",
        "a/b",
        "a/b/c",
        "b",
        "b/../c",
        "/a",
        ".wh.a",
        "a/.wh..wh..opq",
        "a/.wh.b",
        ".",
        "..",
        "a//b",
        "l/x",
    ]);
    let target = prop::sample::select(vec!["a", "/etc", "../x", "a/b", "l"]);
    (0..6u8, name, target).prop_map(|(kind, name, target)| (kind, name.to_owned(), target.to_owned()))
}

proptest! {
    /// Whatever the entries are, the image is either refused or is a tree with plain names only.
    #[test]
    fn any_layers_are_refused_or_give_a_sound_tree(
        layers in prop::collection::vec(prop::collection::vec(entry(), 0..10), 1..4),
    ) {
        let tar = |entries: Vec<(u8, String, String)>| {
            entries.into_iter().fold(Tar::default(), |tar, (kind, name, target)| match kind {
                0 | 1 => tar.file(&name, &target),
                2 => tar.directory(&name),
                3 => tar.symlink(&name, &target),
                4 => tar.hard_link(&name, &target),
                _ => tar.raw(&Tar::header(EntryType::Fifo, name.as_bytes(), 0), b""),
            })
        };
        if let Ok(image) = image(layers.into_iter().map(tar).collect()) {
            for line in lines(&image) {
                let path = line.split(['=', '-']).next().unwrap();
                prop_assert!(!path.split('/').any(|name| name == ".." || name.starts_with(".wh.")), "{}", line);
            }
        }
    }

    /// Random damage to a valid tar never causes a panic or a read outside of it.
    #[test]
    fn a_damaged_tar_never_panics(at in 0..3072usize, byte: u8, cut in 0..4096usize) {
        let mut tar = Tar::default().pax(&[("path", "x")]).file("a", "1").file("b", "2").end();
        let place = at % tar.len();
        tar[place] = byte;
        tar.truncate(cut.max(1));
        if let Ok(image) = image_within(LayerLimits::default(), vec![tar]) {
            lines(&image);
        }
    }
}

/// One entry of a layer.
#[derive(Clone, Debug)]
enum Item {
    File(String),
    Directory,
    Symlink(String),
    HardLink(String),
    Whiteout,
    Opaque,
}

fn item() -> impl Strategy<Value = (String, Item)> {
    let name = || prop::sample::select(vec!["a", "b", "c", "A"]);
    let path = prop::collection::vec(name(), 1..4).prop_map(|names| names.join("/"));
    let target = prop::collection::vec(name(), 1..3).prop_map(|names| names.join("/"));
    (path, target, 0..9u8, any::<u8>()).prop_map(|(path, target, kind, content)| {
        let item = match kind {
            0..=2 => Item::File(content.to_string()),
            3 | 4 => Item::Directory,
            5 => Item::Symlink(target),
            6 => Item::HardLink(target),
            7 => Item::Whiteout,
            _ => Item::Opaque,
        };
        (path, item)
    })
}

fn tar(layer: &[(String, Item)]) -> Tar {
    layer.iter().fold(Tar::default(), |tar, (path, item)| match item {
        Item::File(content) => tar.file(path, content),
        Item::Directory => tar.directory(path),
        Item::Symlink(target) => tar.symlink(path, target),
        Item::HardLink(target) => tar.hard_link(path, target),
        Item::Whiteout => match path.rsplit_once('/') {
            Some((parent, name)) => tar.file(&format!("{parent}/.wh.{name}"), ""),
            None => tar.file(&format!(".wh.{path}"), ""),
        },
        Item::Opaque => tar.file(&format!("{path}/.wh..wh..opq"), ""),
    })
}

/// The image as a map from full paths; each name of a file with several has its own copy.
#[derive(Default)]
struct Reference(BTreeMap<String, String>);

const DIRECTORY: &str = "/";

impl Reference {
    fn remove_below(&mut self, path: &str) {
        let prefix = format!("{path}/");
        self.0.retain(|known, _| !known.starts_with(&prefix));
    }

    /// Returns `None` when a hard link has no target.
    fn apply(&mut self, layer: &[(String, Item)]) -> Option<()> {
        for (path, item) in layer {
            match item {
                Item::Whiteout => {
                    self.0.remove(path);
                    self.remove_below(path);
                }
                Item::Opaque => self.remove_below(path),
                _ => {}
            }
        }
        for (path, item) in layer {
            let line = match item {
                Item::File(content) => format!("={content}"),
                Item::Directory => DIRECTORY.to_owned(),
                Item::Symlink(target) => format!("->{target}"),
                Item::HardLink(target) => self.0.get(target).filter(|line| *line != DIRECTORY)?.clone(),
                Item::Whiteout | Item::Opaque => continue,
            };
            for (at, _) in path.match_indices('/') {
                self.0.insert(path[..at].to_owned(), DIRECTORY.to_owned());
            }
            if line != DIRECTORY {
                self.remove_below(path);
            }
            self.0.insert(path.clone(), line);
        }
        Some(())
    }
}

proptest! {
    #[test]
    fn merged_layers_are_what_a_map_says(
        layers in prop::collection::vec(prop::collection::vec(item(), 0..12), 1..5),
    ) {
        let mut reference = Reference::default();
        let applied = layers.iter().try_for_each(|layer| reference.apply(layer));
        match image(layers.iter().map(|layer| tar(layer)).collect()) {
            Err(LayerError::LinkTarget { .. }) => prop_assert_eq!(applied, None),
            Err(error) => prop_assert!(false, "{}", error),
            Ok(image) => {
                prop_assert_eq!(applied, Some(()));
                let mut expected: Vec<String> =
                    reference.0.iter().map(|(path, line)| format!("{path}{line}")).collect();
                let mut got = lines(&image);
                expected.sort();
                got.sort();
                prop_assert_eq!(got, expected);
                // The hashes match the content that is read.
                for path in reference.0.keys() {
                    let node = image.lookup(0, path.as_bytes()).unwrap();
                    if let Some(mut content) = image.open(node) {
                        let mut bytes = Vec::new();
                        content.read_to_end(&mut bytes).unwrap();
                        prop_assert_eq!(image.content_hash(node), ContentHash::of(&bytes));
                    }
                }
            }
        }
    }

    /// Whatever the chunk boundaries, the entries are the same, and encoding and decoding them changes
    /// nothing.
    #[test]
    fn cuts_and_the_index_change_no_entry(
        layer in prop::collection::vec(item(), 0..8),
        cuts in prop::collection::vec(1..1500usize, 1..12),
    ) {
        use super::super::tar_parser::TarParser;
        use super::super::entries::{EntryReader, EntryWriter};
        let bytes = tar(&layer).pax(&[("SCHILY.xattr.user.a", "b"), ("mtime", "-1.5")]).file("last", "x").end();
        let parse = |pieces: Vec<&[u8]>| {
            let mut parser = TarParser::new();
            let mut entries = Vec::new();
            for piece in pieces {
                parser.feed(piece, &mut |entry| { entries.push(entry); Ok(()) }).unwrap();
            }
            parser.finish().unwrap();
            entries
        };
        let whole = parse(vec![&bytes]);
        prop_assert_eq!(whole.len(), layer.len() + 1);
        let (mut pieces, mut rest) = (Vec::new(), &bytes[..]);
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, after) = rest.split_at((*cut).min(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        prop_assert_eq!(&parse(pieces), &whole);
        let mut writer = EntryWriter::default();
        whole.iter().for_each(|entry| writer.push(entry.clone()));
        let read: Vec<_> = EntryReader::new(&writer.bytes).collect::<Result<_, _>>().unwrap();
        prop_assert_eq!(read, whole);
    }

    #[test]
    fn nothing_that_is_no_layer_makes_a_reader_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..3000), kind in 0..4u8) {
        use super::super::probe;
        let start: &[u8] = match kind {
            0 => &[],
            1 => &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0],
            2 => &[0x28, 0xb5, 0x2f, 0xfd],
            _ => &[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0],
        };
        let _ = probe::tar(&bytes);
        let _ = probe::index(&bytes);
        bytes.splice(..0, start.iter().copied());
        let _ = probe::layer(&bytes);
    }
}
