//! Reads and writes manifests as YAML and JSON, including values that have two notations.

use std::fmt;

use hearth_pack::image::parse_command;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::ServiceManifest;
use crate::cli::token::check_scope;
use crate::error::Failure;
use hearth_proto::error_code::ErrorCode;

/// Reads a manifest. `name` is the file name in errors. JSON is accepted too, because it is a subset of
/// YAML.
pub(in crate::cli::services) fn read(name: &str, text: &str) -> Result<ServiceManifest, Failure> {
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| Failure::usage(format!("{name}: {error}")))
}

pub(in crate::cli::services) fn write(manifest: &ServiceManifest) -> Result<String, Failure> {
    serde_saphyr::to_string(manifest).map_err(|error| {
        Failure::failed(ErrorCode::Internal, format!("the manifest cannot be written: {error}"))
    })
}

/// A list of words, or a text that is split into words.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct ManifestCommand(pub(super) Vec<String>);

impl<'de> Deserialize<'de> for ManifestCommand {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct CommandVisitor;
        impl<'de> Visitor<'de> for CommandVisitor {
            type Value = ManifestCommand;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a command, or a list of its words")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ManifestCommand, E> {
                parse_command(text).map(ManifestCommand).map_err(E::custom)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut words: A) -> Result<ManifestCommand, A::Error> {
                let mut all = Vec::new();
                while let Some(word) = words.next_element()? {
                    all.push(word);
                }
                Ok(ManifestCommand(all))
            }
        }
        deserializer.deserialize_any(CommandVisitor)
    }
}

/// Scope of a token: a named scope or the `api` grant itself, stored in the notation of `--env-token`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TokenScope(pub(super) String);

impl Serialize for TokenScope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match serde_json::from_str::<Value>(&self.0) {
            Ok(grant @ Value::Object(_)) => grant.serialize(serializer),
            _ => serializer.serialize_str(&self.0),
        }
    }
}

impl<'de> Deserialize<'de> for TokenScope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ScopeVisitor;
        impl<'de> Visitor<'de> for ScopeVisitor {
            type Value = TokenScope;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`userDefault`, `agentDefault`, `full`, or the grants themselves")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<TokenScope, E> {
                check_scope(text).map_err(E::custom)?;
                Ok(TokenScope(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<TokenScope, A::Error> {
                let grant = Value::deserialize(MapAccessDeserializer::new(map))?;
                serde_json::to_string(&grant).map(TokenScope).map_err(A::Error::custom)
            }
        }
        deserializer.deserialize_any(ScopeVisitor)
    }
}
