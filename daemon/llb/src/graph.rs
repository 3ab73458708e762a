//! Graph of operations, in an order in which each comes after its inputs.

use std::collections::BTreeMap;

use bollard_buildkit_proto::pb;
use prost::Message as _;
use sha2::{Digest as _, Sha256};

/// Output of an operation of a [`Graph`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Output {
    pub(crate) operation: usize,
    pub(crate) index: i64,
}

/// Operations and the one output that is the result.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    pub(crate) operations: Vec<Operation>,
    pub(crate) result: Option<Output>,
    /// Files whose lines the operations come from, such as a Dockerfile.
    pub(crate) files: Vec<pb::SourceInfo>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Operation {
    /// The operation, without its inputs.
    pub(crate) op: pb::Op,
    pub(crate) inputs: Vec<Output>,
    pub(crate) metadata: pb::OpMetadata,
    pub(crate) locations: Vec<pb::Location>,
}

/// An encoded operation.
pub(crate) struct EncodedOperation {
    pub(crate) digest: String,
    pub(crate) bytes: Vec<u8>,
}

impl Graph {
    /// Returns the encoded `pb.Definition`. Equal graphs have equal bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut definition = pb::Definition::default();
        let mut locations = BTreeMap::new();
        let encoded = self.encoded_operations();
        for (operation, encoded) in self.operations.iter().zip(encoded) {
            if definition.metadata.contains_key(&encoded.digest) {
                continue;
            }
            definition.def.push(encoded.bytes);
            definition.metadata.insert(encoded.digest.clone(), operation.metadata.clone());
            if !operation.locations.is_empty() {
                let of = pb::Locations { locations: operation.locations.clone() };
                locations.insert(encoded.digest, of);
            }
        }
        definition.def.extend(self.end().map(|end| end.encode_to_vec()));
        if !self.files.is_empty() {
            definition.source = Some(pb::Source { locations, infos: self.files.clone() });
        }
        definition.encode_to_vec()
    }

    /// Returns the digests of the operations, as BuildKit names them in its progress.
    pub fn digests(&self) -> Vec<String> {
        self.encoded_operations().into_iter().map(|encoded| encoded.digest).collect()
    }

    pub(crate) fn encoded_operations(&self) -> Vec<EncodedOperation> {
        let mut encoded: Vec<EncodedOperation> = Vec::with_capacity(self.operations.len());
        for operation in &self.operations {
            let input = |from: &Output| pb::Input {
                digest: encoded[from.operation].digest.clone(),
                index: from.index,
            };
            let op = pb::Op { inputs: operation.inputs.iter().map(input).collect(), ..operation.op.clone() };
            let bytes = op.encode_to_vec();
            encoded.push(EncodedOperation { digest: digest_of(&bytes), bytes });
        }
        encoded
    }

    /// Returns the last operation of a definition, which only names the result.
    pub(crate) fn end(&self) -> Option<pb::Op> {
        let result = self.result?;
        let digest = self.encoded_operations().into_iter().nth(result.operation)?.digest;
        Some(pb::Op { inputs: vec![pb::Input { digest, index: result.index }], ..pb::Op::default() })
    }

    pub(crate) fn push(&mut self, op: pb::op::Op, inputs: Vec<Output>) -> Output {
        self.operations.push(Operation {
            op: pb::Op { op: Some(op), ..pb::Op::default() },
            inputs,
            metadata: pb::OpMetadata::default(),
            locations: Vec::new(),
        });
        Output { operation: self.operations.len() - 1, index: 0 }
    }
}

pub(crate) fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}
