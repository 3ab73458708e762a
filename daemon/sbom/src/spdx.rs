//! SPDX 2.3 document in JSON.

use serde_json::{Value, json};

use crate::package::{Package, PackageList};

/// Type of the in-toto predicate of an SPDX document.
pub const SPDX_PREDICATE_TYPE: &str = "https://spdx.dev/Document";

const DOCUMENT_ID: &str = "SPDXRef-DOCUMENT";
const IMAGE_ID: &str = "SPDXRef-Image";
const UNKNOWN: &str = "NOASSERTION";

/// The image that a document is about.
#[derive(Clone, Copy, Debug)]
pub struct SpdxSubject<'a> {
    pub name: &'a str,
    /// Hexadecimal digits of the SHA-256 digest of the image's manifest.
    pub digest_hex: &'a str,
    /// Time of the document, as `2026-01-31T12:00:00Z`.
    pub created: &'a str,
    /// Name and version of the program that makes it.
    pub tool: &'a str,
}

pub fn spdx_document(list: &PackageList, subject: &SpdxSubject<'_>) -> Value {
    let image = json!({
        "SPDXID": IMAGE_ID,
        "name": subject.name,
        "versionInfo": format!("sha256:{}", subject.digest_hex),
        "primaryPackagePurpose": "CONTAINER",
        "downloadLocation": UNKNOWN,
        "filesAnalyzed": false,
        "checksums": [{"algorithm": "SHA256", "checksumValue": subject.digest_hex}],
        "licenseConcluded": UNKNOWN,
        "licenseDeclared": UNKNOWN,
        "copyrightText": UNKNOWN,
    });
    let packages: Vec<Value> = std::iter::once(image)
        .chain(list.packages().zip(1..).map(|(one, number)| package(one, number)))
        .collect();
    let related = |from: &str, kind: &str, to: &str| json!({"spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": to});
    let contained =
        (1..=list.packages().len()).map(|number| related(IMAGE_ID, "CONTAINS", &package_id(number)));
    let relationships: Vec<Value> =
        std::iter::once(related(DOCUMENT_ID, "DESCRIBES", IMAGE_ID)).chain(contained).collect();
    let mut document = json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": DOCUMENT_ID,
        "name": subject.name,
        "documentNamespace": format!("https://spdx.org/spdxdocs/hearth-{}", subject.digest_hex),
        "creationInfo": {"created": subject.created, "creators": [format!("Tool: {}", subject.tool)]},
        "packages": packages,
        "relationships": relationships,
    });
    if !list.notes().is_empty() {
        document["comment"] = json!(list.notes().join("; "));
    }
    document
}

fn package(package: &Package, number: usize) -> Value {
    json!({
        "SPDXID": package_id(number),
        "name": package.name,
        "versionInfo": package.version,
        "downloadLocation": UNKNOWN,
        "filesAnalyzed": false,
        "licenseConcluded": UNKNOWN,
        "licenseDeclared": UNKNOWN,
        "copyrightText": UNKNOWN,
        "sourceInfo": format!("found in /{}", package.found_in),
        "externalRefs": [{
            "referenceCategory": "PACKAGE-MANAGER",
            "referenceType": "purl",
            "referenceLocator": package.purl,
        }],
    })
}

fn package_id(number: usize) -> String {
    format!("SPDXRef-Package-{number}")
}
