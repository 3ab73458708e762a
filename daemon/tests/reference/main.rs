//! The generated pages of `docs/reference`: a test fails while a page differs from the code.
//! To write the pages again: `HEARTH_REGENERATE=1 cargo test -p hearthd --test reference`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod access;
mod configuration;
mod metrics;

use std::fs;
use std::path::{Path, PathBuf};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Fails if the page differs from `text`, after writing it where that is asked for.
fn assert_current(page: &str, text: &str) {
    let path = repository().join("docs/reference").join(page);
    if std::env::var_os("HEARTH_REGENERATE").is_some() {
        fs::write(&path, text).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == text,
        "docs/reference/{page} is stale: run HEARTH_REGENERATE=1 cargo test -p hearthd --test reference"
    );
}
