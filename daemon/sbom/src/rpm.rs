//! rpm: `rpmdb.sqlite`, whose table `Packages` holds one header for each package. The older forms, Berkeley DB and NDB, are
//! not read.

use std::io::Write as _;

use rusqlite::{Connection, OpenFlags};

use crate::package::{Package, PackageList};
use crate::purl::Distribution;

const MAX_HEADER_BYTES: usize = 16 << 20;
const MAX_TAGS: usize = 4096;
const MAX_OWNED: usize = 1_000_000;
/// Size in bytes of an entry of the index of a header.
const ENTRY_BYTES: usize = 16;

const NAME: u32 = 1000;
const VERSION: u32 = 1001;
const RELEASE: u32 = 1002;
const EPOCH: u32 = 1003;
const ARCHITECTURE: u32 = 1022;
const DIRECTORY_INDEXES: u32 = 1116;
const BASE_NAMES: u32 = 1117;
const DIRECTORY_NAMES: u32 = 1118;

/// Reads a database, and returns the paths of the files that its packages own.
pub(crate) fn read(
    bytes: &[u8],
    path: &str,
    distribution: &Distribution,
    list: &mut PackageList,
) -> Vec<Vec<u8>> {
    match headers(bytes) {
        Ok(headers) => headers.iter().flat_map(|header| add(header, path, distribution, list)).collect(),
        Err(error) => {
            list.note(format!("the rpm database `{path}` cannot be read: {error}"));
            Vec::new()
        }
    }
}

fn headers(bytes: &[u8]) -> Result<Vec<Vec<u8>>, Box<dyn std::error::Error>> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(bytes)?;
    let database = Connection::open_with_flags(file.path(), OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    // A view or virtual table of this name could compute for ever.
    database.execute_batch("PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON;")?;
    let plain = "SELECT count(*) FROM sqlite_schema WHERE name = 'Packages' AND type = 'table'
                 AND sql LIKE 'CREATE TABLE%' AND sql NOT LIKE '%GENERATED%' AND sql NOT LIKE '% AS (%'";
    if database.query_row(plain, [], |row| row.get::<_, i64>(0))? != 1 {
        return Err("it has no table of packages".into());
    }
    let mut statement = database.prepare("SELECT blob FROM Packages WHERE length(blob) <= ?1 LIMIT 50000")?;
    let rows = statement.query_map([MAX_HEADER_BYTES as i64], |row| row.get::<_, Vec<u8>>(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Adds the package of a header, and returns the paths of its files.
fn add(header: &[u8], path: &str, distribution: &Distribution, list: &mut PackageList) -> Vec<Vec<u8>> {
    let Some(header) = Header::parse(header) else {
        list.note(format!("a package in `{path}` has a damaged header"));
        return Vec::new();
    };
    let (name, version, release) = (header.text(NAME), header.text(VERSION), header.text(RELEASE));
    // Keys that sign packages are recorded as packages.
    if name == "gpg-pubkey" {
        return Vec::new();
    }
    let full = if release.is_empty() { version } else { format!("{version}-{release}") };
    let mut purl = distribution.purl("rpm", "rpm", &name, &full, &header.text(ARCHITECTURE));
    if let Some(epoch) = header.numbers(EPOCH).next() {
        purl = format!("{purl}{}epoch={epoch}", if purl.contains('?') { '&' } else { '?' });
    }
    list.add(Package { name, version: full, purl, found_in: path.to_owned() });
    header.files()
}

/// A header: big-endian counts, an index of tags, and the data that they refer to.
struct Header<'b> {
    index: &'b [u8],
    data: &'b [u8],
}

impl<'b> Header<'b> {
    fn parse(bytes: &'b [u8]) -> Option<Self> {
        let tags = usize::try_from(number(bytes, 0)?).ok().filter(|tags| *tags <= MAX_TAGS)?;
        let (index, data) = bytes.get(8..)?.split_at_checked(tags * ENTRY_BYTES)?;
        let length = usize::try_from(number(bytes, 4)?).ok()?;
        Some(Self { index, data: data.get(..length)? })
    }

    /// Returns the number of values of a tag, and the data from its first value on.
    fn value(&self, tag: u32) -> Option<(usize, &'b [u8])> {
        let entry = self.index.chunks_exact(ENTRY_BYTES).find(|entry| number(entry, 0) == Some(tag))?;
        let at = usize::try_from(number(entry, 8)?).ok()?;
        Some((usize::try_from(number(entry, 12)?).ok()?, self.data.get(at..)?))
    }

    fn texts(&self, tag: u32) -> impl Iterator<Item = &'b [u8]> {
        let (count, data) = self.value(tag).unwrap_or_default();
        data.split(|byte| *byte == 0).take(count.min(MAX_OWNED))
    }

    fn text(&self, tag: u32) -> String {
        self.texts(tag).next().map(|text| String::from_utf8_lossy(text).into_owned()).unwrap_or_default()
    }

    fn numbers(&self, tag: u32) -> impl Iterator<Item = u32> {
        let (count, data) = self.value(tag).unwrap_or_default();
        data.chunks_exact(4).take(count).filter_map(|bytes| number(bytes, 0))
    }

    fn files(&self) -> Vec<Vec<u8>> {
        let directories: Vec<&[u8]> = self.texts(DIRECTORY_NAMES).collect();
        let names = self.texts(BASE_NAMES).zip(self.numbers(DIRECTORY_INDEXES));
        let path = |(name, directory): (&[u8], u32)| {
            let directory = directories.get(usize::try_from(directory).ok()?)?;
            Some([directory.strip_prefix(b"/").unwrap_or(directory), name].concat())
        };
        names.filter_map(path).collect()
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(field.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(texts: &[(u32, &str)]) -> Vec<u8> {
        let (mut index, mut data) = (Vec::new(), Vec::new());
        for (tag, text) in texts {
            for value in [*tag, 6, data.len() as u32, 1] {
                index.extend(value.to_be_bytes());
            }
            data.extend(text.as_bytes());
            data.push(0);
        }
        let mut bytes = (texts.len() as u32).to_be_bytes().to_vec();
        bytes.extend((data.len() as u32).to_be_bytes());
        [bytes, index, data].concat()
    }

    fn database(create: &str, headers: &[Vec<u8>]) -> Vec<u8> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rpmdb.sqlite");
        let database = Connection::open(&path).unwrap();
        database.execute_batch(create).unwrap();
        for header in headers {
            database.execute("INSERT INTO Packages (blob) VALUES (?1)", [header]).unwrap();
        }
        drop(database);
        std::fs::read(path).unwrap()
    }

    const TABLE: &str =
        "CREATE TABLE 'Packages' (hnum INTEGER PRIMARY KEY AUTOINCREMENT, blob BLOB NOT NULL)";

    #[test]
    fn packages_of_an_rpm_database_are_listed() {
        let texts = [(NAME, "bash"), (VERSION, "5.2"), (RELEASE, "1.fc41"), (ARCHITECTURE, "x86_64")];
        let bytes = database(TABLE, &[header(&texts), header(&[(NAME, "gpg-pubkey"), (VERSION, "1")])]);
        let distribution = Distribution { id: "fedora".to_owned(), version: "41".to_owned() };
        let mut list = PackageList::default();
        read(&bytes, "rpmdb.sqlite", &distribution, &mut list);
        let purls: Vec<&str> = list.packages().map(|package| package.purl.as_str()).collect();
        assert_eq!(purls, ["pkg:rpm/fedora/bash@5.2-1.fc41?arch=x86_64&distro=fedora-41"]);
    }

    #[test]
    fn a_view_in_place_of_the_table_is_not_asked() {
        let endless =
            "CREATE VIEW Packages AS WITH RECURSIVE n (blob) AS (SELECT x'00' UNION ALL SELECT blob FROM n)
                       SELECT blob FROM n";
        let mut list = PackageList::default();
        read(&database(endless, &[]), "x", &Distribution::default(), &mut list);
        read(b"SQLite format 3\0 and no more", "y", &Distribution::default(), &mut list);
        assert_eq!((list.packages().len(), list.notes().len()), (0, 2));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_of_headers_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..600),
            tags in 0u32..20,
        ) {
            let mut list = PackageList::default();
            let distribution = Distribution::default();
            add(&bytes, "x", &distribution, &mut list);
            let sized = [&tags.to_be_bytes()[..], &(bytes.len() as u32 / 2).to_be_bytes(), &bytes].concat();
            add(&sized, "x", &distribution, &mut list);
        }
    }
}
