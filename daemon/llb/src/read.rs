//! Reading of definitions: `pb.Definition` in protobuf's encoding or JSON, or the lines of `buildctl debug dump-llb`.
//!
//! Everything is bounded: bytes, operations, inputs of one operation, and the length of a chain of operations.

use std::collections::{BTreeMap, HashMap};

use bollard_buildkit_proto::pb;
use prost::Message as _;
use serde_json::Value;

use crate::graph::{Graph, Operation, Output, digest_of};
use crate::{json, schema};

/// Maximum size of a definition in bytes, in each form.
pub const MAX_DEFINITION: usize = 4 << 20;
const MAX_OPERATIONS: usize = 4096;
/// Maximum number of operations of which each is an input of the next one.
const MAX_CHAIN: usize = 1024;
const MAX_INPUTS: usize = 256;
/// Maximum number of files whose lines operations come from.
const MAX_FILES: usize = 16;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LlbError {
    #[error("the definition has more than {MAX_DEFINITION} bytes")]
    TooLarge,
    #[error("the definition has more than {MAX_OPERATIONS} operations")]
    TooManyOperations,
    #[error("an operation has more than {MAX_INPUTS} inputs")]
    TooManyInputs,
    #[error("more than {MAX_CHAIN} operations depend on each other")]
    TooDeep,
    #[error("the definition is not LLB: {0}")]
    Malformed(String),
    /// A build may not use this.
    #[error("operation {number} ({name}): {reason}")]
    Refused {
        /// Number of the operation, from 1, in the order of the definition that is built.
        number: usize,
        name: String,
        reason: String,
    },
}

fn malformed(text: impl Into<String>) -> LlbError {
    LlbError::Malformed(text.into())
}

/// A definition whose operations are named by the digests that its producer gave them.
#[derive(Default)]
struct NamedOperations {
    operations: HashMap<String, pb::Op>,
    metadata: BTreeMap<String, pb::OpMetadata>,
    locations: BTreeMap<String, pb::Locations>,
    files: Vec<pb::SourceInfo>,
    last: Option<String>,
}

impl Graph {
    /// Reads a definition in any of its forms.
    pub fn read(bytes: &[u8]) -> Result<Self, LlbError> {
        if bytes.len() > MAX_DEFINITION {
            return Err(LlbError::TooLarge);
        }
        // No encoded definition begins with these bytes: `{` would be the start of a group.
        let is_json = bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
        if is_json { read_json(bytes)?.into_graph() } else { read_definition(bytes)?.into_graph() }
    }
}

fn read_definition(bytes: &[u8]) -> Result<NamedOperations, LlbError> {
    let definition = pb::Definition::decode(bytes).map_err(|error| malformed(error.to_string()))?;
    if definition.def.len() > MAX_OPERATIONS {
        return Err(LlbError::TooManyOperations);
    }
    let mut named = NamedOperations { metadata: definition.metadata, ..NamedOperations::default() };
    if let Some(source) = definition.source {
        (named.locations, named.files) = (source.locations, source.infos);
    }
    for bytes in &definition.def {
        let digest = digest_of(bytes);
        let op = pb::Op::decode(bytes.as_slice()).map_err(|error| malformed(error.to_string()))?;
        named.last = Some(digest.clone());
        named.operations.insert(digest, op);
    }
    Ok(named)
}

/// Reads protobuf's JSON of a definition, or one JSON object for each operation.
fn read_json(bytes: &[u8]) -> Result<NamedOperations, LlbError> {
    let mut named = NamedOperations::default();
    for value in serde_json::Deserializer::from_slice(bytes).into_iter::<Value>() {
        let value = value.map_err(|error| malformed(error.to_string()))?;
        let Value::Object(fields) = &value else { return Err(malformed("an operation is a JSON object")) };
        if named.operations.is_empty() && fields.contains_key("def") {
            let encoded = json::encode(&schema::DEFINITION, &value).map_err(malformed)?;
            return read_definition(&encoded);
        }
        if named.operations.len() >= MAX_OPERATIONS {
            return Err(LlbError::TooManyOperations);
        }
        let unknown = |name: &&String| !matches!(name.as_str(), "Op" | "Digest" | "OpMetadata" | "Lines");
        if let Some(name) = fields.keys().find(unknown) {
            return Err(malformed(format!("`{name}` is no field of an operation")));
        }
        let digest = fields.get("Digest").and_then(Value::as_str);
        let digest = digest.ok_or_else(|| malformed("an operation has no `Digest`"))?.to_owned();
        let op = json::encode(&schema::OP, fields.get("Op").unwrap_or(&Value::Null)).map_err(malformed)?;
        let op = pb::Op::decode(op.as_slice()).map_err(|error| malformed(error.to_string()))?;
        if let Some(metadata) = fields.get("OpMetadata") {
            let encoded = json::encode(&schema::OP_METADATA, metadata).map_err(malformed)?;
            let metadata = pb::OpMetadata::decode(encoded.as_slice());
            named.metadata.insert(digest.clone(), metadata.map_err(|error| malformed(error.to_string()))?);
        }
        named.last = Some(digest.clone());
        named.operations.insert(digest, op);
    }
    Ok(named)
}

impl NamedOperations {
    /// Orders the operations that the result needs.
    fn into_graph(mut self) -> Result<Graph, LlbError> {
        let last = self.last.take().ok_or_else(|| malformed("it has no operations"))?;
        let end = self.operations.remove(&last).ok_or_else(|| malformed("it has no operations"))?;
        let result = match (&end.op, end.inputs.as_slice()) {
            (None, [result]) => result.clone(),
            _ => return Err(malformed("its last operation does not name the result")),
        };
        let files = std::mem::take(&mut self.files).into_iter().take(MAX_FILES);
        let files = files.map(|file| pb::SourceInfo { definition: None, ..file }).collect();
        let mut graph = Graph { files, ..Graph::default() };
        // Position and length of the longest chain of each operation that is in the graph.
        let mut placed: HashMap<String, (usize, usize)> = HashMap::new();
        let mut open = vec![result.digest.clone()];
        while let Some(digest) = open.last().cloned() {
            if placed.contains_key(&digest) {
                open.pop();
                continue;
            }
            let op = self.operations.get(&digest);
            let op = op.ok_or_else(|| malformed(format!("operation `{}` is missing", shown(&digest))))?;
            if op.inputs.len() > MAX_INPUTS {
                return Err(LlbError::TooManyInputs);
            }
            let missing = op.inputs.iter().find(|input| !placed.contains_key(&input.digest));
            if let Some(missing) = missing {
                // An operation that is its own input makes the chain grow to the limit.
                if open.len() >= MAX_CHAIN {
                    return Err(LlbError::TooDeep);
                }
                open.push(missing.digest.clone());
                continue;
            }
            open.pop();
            let inputs: Vec<Output> = op
                .inputs
                .iter()
                .map(|input| Output { operation: placed[&input.digest].0, index: input.index })
                .collect();
            let chain = op.inputs.iter().map(|input| placed[&input.digest].1 + 1).max().unwrap_or(0);
            if chain >= MAX_CHAIN {
                return Err(LlbError::TooDeep);
            }
            graph.operations.push(Operation {
                op: pb::Op { inputs: Vec::new(), ..op.clone() },
                inputs,
                metadata: self.metadata.remove(&digest).unwrap_or_default(),
                locations: self.locations.remove(&digest).unwrap_or_default().locations,
            });
            placed.insert(digest, (graph.operations.len() - 1, chain));
        }
        let (operation, _) = placed[&result.digest];
        graph.result = Some(Output { operation, index: result.index });
        Ok(graph)
    }
}

fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(80).collect()
}
