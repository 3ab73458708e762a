//! Packages of a tree of files, such as an image, read from the databases of package managers, and the SPDX document that
//! lists them.
//!
//! ```text
//! every file of the tree -- PackageScan::kind_of --> database, or possible program --> PackageScan::add
//!   after all files: programs that no package owns --> PackageScan::add_program --> PackageList --> SPDX 2.3
//! ```
//!
//! All content is untrusted: sizes and counts are bounded, and what cannot be read is named in the document.

mod apk;
mod dpkg;
mod elf;
mod language;
mod lines;
mod package;
mod programs;
mod purl;
mod rpm;
mod scan;
mod spdx;

pub use package::{Package, PackageList};
pub use scan::{FileContent, FileRole, PackageScan};
pub use spdx::{SPDX_PREDICATE_TYPE, SpdxSubject, spdx_document};
