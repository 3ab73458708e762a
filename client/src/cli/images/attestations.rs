//! `hearth images provenance` and `hearth images sbom`: print what a statement that is attached to an image says.

use hearth_oci::sha256;
use hearth_proto::error_code::ErrorCode;
use hearth_proto::value::{Digest, Reference};
use serde::Deserialize;
use serde_json::Value;

use super::super::{GlobalArgs, connect};
use crate::client::{Client, ClientError};
use crate::error::Failure;
use crate::output;

/// Maximum size of a statement in bytes, which is held in memory.
const MAX_STATEMENT_BYTES: u64 = 64 << 20;

/// A kind of statements.
pub(super) struct StatementKind {
    /// Beginning of the predicate types of all versions.
    prefix: &'static str,
    name: &'static str,
    hint: &'static str,
}

pub(super) const PROVENANCE: StatementKind = StatementKind {
    prefix: "https://slsa.dev/provenance/",
    name: "provenance",
    hint: "images that `hearth build` makes have it",
};

pub(super) const PACKAGES: StatementKind = StatementKind {
    prefix: "https://spdx.dev/Document",
    name: "list of packages",
    hint: "`hearth build --sbom` attaches one",
};

#[derive(Deserialize)]
struct Statement {
    predicate: Value,
}

/// Prints the newest statement of a kind about an image, as one JSON document.
pub(super) async fn print(
    image: &Reference,
    kind: &StatementKind,
    globals: &GlobalArgs,
) -> Result<(), Failure> {
    let room = connect(globals).await?;
    let all = room.list_attestations(&image.to_string()).await?;
    let Some(newest) = all.iter().find(|one| one.predicate_type.starts_with(kind.prefix)) else {
        let message = format!("image `{image}` has no {}", kind.name);
        return Err(Failure::failed(ErrorCode::AttestationNotFound, message).hint(kind.hint));
    };
    let digest = newest.digest.parse().map_err(|error| ClientError::Protocol(format!("{error}")))?;
    let bytes = read_statement(&room, image, digest).await?;
    let statement: Statement = serde_json::from_slice(&bytes)
        .map_err(|error| ClientError::Protocol(format!("statement {digest} is not valid: {error}")))?;
    output::json(&statement.predicate)
}

async fn read_statement(room: &Client, image: &Reference, digest: Digest) -> Result<Vec<u8>, Failure> {
    let mut content = room.read_blob(&image.to_string(), Some(&digest)).await?;
    let mut bytes = Vec::new();
    while let Some(chunk) = content.next().await? {
        if (bytes.len() + chunk.len()) as u64 > MAX_STATEMENT_BYTES {
            return Err(ClientError::Protocol(format!("statement {digest} is too large")).into());
        }
        bytes.extend_from_slice(&chunk);
    }
    if sha256(&bytes) != digest {
        return Err(ClientError::Protocol(format!("content of {digest} has another digest")).into());
    }
    Ok(bytes)
}
