//! Conversion between LLB messages and JSON, by their table of fields.
//!
//! Two forms of JSON are read: protobuf's own, and that of `buildctl debug dump-llb`, which is also written. Names are
//! compared without case and underscores, in which the two differ. A name that no field has is an error.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bollard_buildkit_proto::pb;
use prost::Message as _;
use prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint};
use serde_json::{Map, Value};

use crate::graph::Graph;
use crate::schema::{self, Field, Kind, Schema, Shape};

/// Maximum depth of messages, which no definition has without nested builds.
const MAX_DEPTH: usize = 16;
/// Maximum number of ranges of lines that are shown of one operation, and of lines of one range.
const MAX_RANGES: usize = 4;
const MAX_LINES: usize = 100;

/// Encodes the JSON of a message.
pub(crate) fn encode(schema: &Schema, value: &Value) -> Result<Vec<u8>, String> {
    encode_message(schema, value, 0)
}

fn encode_message(schema: &Schema, value: &Value, depth: usize) -> Result<Vec<u8>, String> {
    if depth > MAX_DEPTH {
        return Err("messages are nested too deeply".to_owned());
    }
    let mut out = Vec::new();
    let object = match value {
        Value::Null => return Ok(out),
        Value::Object(object) => object,
        _ => return Err("a message is a JSON object".to_owned()),
    };
    for (name, value) in object {
        let find = |name: &str| schema.fields.iter().find(|field| same(field.name, name));
        match value {
            Value::Object(members) if schema.fields.iter().any(|field| is_grouped(field, name)) => {
                for (member, value) in members {
                    let field = find(member).filter(|field| is_grouped(field, name));
                    encode_field(field.ok_or_else(|| unknown(member))?, value, depth, &mut out)?;
                }
            }
            value => encode_field(find(name).ok_or_else(|| unknown(name))?, value, depth, &mut out)?,
        }
    }
    Ok(out)
}

fn is_grouped(field: &Field, name: &str) -> bool {
    matches!(field.shape, Shape::Grouped(group) if group == name)
}

fn unknown(name: &str) -> String {
    let name: String = name.chars().filter(|c| !c.is_control()).take(60).collect();
    format!("`{name}` is no field that a definition may have")
}

fn same(field: &str, name: &str) -> bool {
    let plain = |text: &str| {
        text.bytes().filter(|byte| *byte != b'_').map(|byte| byte.to_ascii_lowercase()).collect::<Vec<u8>>()
    };
    plain(field) == plain(name)
}

fn encode_field(field: &Field, value: &Value, depth: usize, out: &mut Vec<u8>) -> Result<(), String> {
    match (field.shape, value) {
        (_, Value::Null) => Ok(()),
        (Shape::Single | Shape::Grouped(_), value) => encode_value(field.tag, field, value, depth, out),
        (Shape::Repeated, Value::Array(values)) => {
            values.iter().try_for_each(|value| encode_value(field.tag, field, value, depth, out))
        }
        (Shape::Map, Value::Object(entries)) => {
            for (key, value) in entries {
                let mut entry = Vec::new();
                put_bytes(1, key.as_bytes(), &mut entry);
                encode_value(2, field, value, depth, &mut entry)?;
                put_bytes(field.tag, &entry, out);
            }
            Ok(())
        }
        _ => Err(format!("`{}` has a value of another kind", field.name)),
    }
}

fn encode_value(
    tag: u32,
    field: &Field,
    value: &Value,
    depth: usize,
    out: &mut Vec<u8>,
) -> Result<(), String> {
    let wrong = || format!("`{}` has a value of another kind", field.name);
    match (field.kind, value) {
        (Kind::Bool, Value::Bool(set)) => put_varint(tag, u64::from(*set), out),
        (Kind::Signed, value) => put_varint(tag, signed(value).ok_or_else(wrong)?.cast_unsigned(), out),
        (Kind::Unsigned, value) => {
            put_varint(tag, u64::try_from(signed(value).ok_or_else(wrong)?).map_err(|_| wrong())?, out);
        }
        (Kind::Enum(names), Value::String(name)) => {
            let number = names.iter().position(|known| known == name).ok_or_else(wrong)?;
            put_varint(tag, number as u64, out);
        }
        (Kind::Enum(_), value) => {
            put_varint(tag, u64::try_from(signed(value).ok_or_else(wrong)?).map_err(|_| wrong())?, out);
        }
        (Kind::Text, Value::String(text)) => put_bytes(tag, text.as_bytes(), out),
        (Kind::Bytes, Value::String(text)) => {
            put_bytes(tag, &STANDARD.decode(text).map_err(|_| wrong())?, out);
        }
        (Kind::Message(schema), value) => put_bytes(tag, &encode_message(schema, value, depth + 1)?, out),
        _ => return Err(wrong()),
    }
    Ok(())
}

/// Returns a number, which protobuf's JSON also writes as text.
fn signed(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_str()?.parse().ok())
}

fn put_varint(tag: u32, value: u64, out: &mut Vec<u8>) {
    encode_key(tag, WireType::Varint, out);
    encode_varint(value, out);
}

fn put_bytes(tag: u32, bytes: &[u8], out: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// Decodes a message that this crate has encoded. Fields that are not in the table are left out.
fn decode(schema: &Schema, mut bytes: &[u8]) -> Map<String, Value> {
    let mut object = Map::new();
    while !bytes.is_empty() {
        let Ok((tag, wire)) = decode_key(&mut bytes) else { break };
        let Ok(number) = decode_varint(&mut bytes) else { break };
        let content = if wire == WireType::LengthDelimited {
            let length = usize::try_from(number).unwrap_or(usize::MAX).min(bytes.len());
            let (content, rest) = bytes.split_at(length);
            bytes = rest;
            content
        } else {
            &[]
        };
        let Some(field) = schema.fields.iter().find(|field| field.tag == tag) else { continue };
        match field.shape {
            Shape::Single => {
                object.insert(field.name.to_owned(), value_of(field.kind, number, content));
            }
            Shape::Grouped(group) => {
                let group = object.entry(group).or_insert_with(|| Value::Object(Map::new()));
                if let Value::Object(group) = group {
                    group.insert(field.name.to_owned(), value_of(field.kind, number, content));
                }
            }
            Shape::Repeated => {
                let list = object.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
                if let Value::Array(list) = list {
                    if wire == WireType::LengthDelimited && matches!(field.kind, Kind::Signed) {
                        let mut packed = content;
                        while let Ok(number) = decode_varint(&mut packed) {
                            list.push(value_of(field.kind, number, &[]));
                        }
                    } else {
                        list.push(value_of(field.kind, number, content));
                    }
                }
            }
            Shape::Map => {
                let map = object.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
                if let Value::Object(map) = map {
                    let (key, value) = map_entry(field.kind, content);
                    map.insert(key, value);
                }
            }
        }
    }
    object
}

fn map_entry(kind: Kind, mut entry: &[u8]) -> (String, Value) {
    let (mut key, mut value) = (String::new(), value_of(kind, 0, &[]));
    while let (Ok((tag, wire)), Ok(number)) = (decode_key(&mut entry), decode_varint(&mut entry)) {
        let length = usize::try_from(number).unwrap_or(usize::MAX).min(entry.len());
        let (content, rest) = entry.split_at(if wire == WireType::LengthDelimited { length } else { 0 });
        entry = rest;
        if tag == 1 {
            key = String::from_utf8_lossy(content).into_owned();
        } else {
            value = value_of(kind, number, content);
        }
    }
    (key, value)
}

fn value_of(kind: Kind, number: u64, content: &[u8]) -> Value {
    match kind {
        Kind::Bool => Value::Bool(number != 0),
        Kind::Signed => Value::from(number.cast_signed()),
        Kind::Unsigned | Kind::Enum(_) => Value::from(number),
        Kind::Text => Value::String(String::from_utf8_lossy(content).into_owned()),
        Kind::Bytes => Value::String(STANDARD.encode(content)),
        Kind::Message(schema) => Value::Object(decode(schema, content)),
    }
}

impl Graph {
    /// Returns one JSON object for each operation, as `buildctl debug dump-llb` prints them, with the lines of the file
    /// that an operation comes from as `Lines`.
    pub fn to_json(&self) -> Vec<Value> {
        let encoded = self.encoded_operations();
        let described = self.operations.iter().zip(encoded).map(|(operation, encoded)| {
            let mut object = op_json(&encoded.digest, &encoded.bytes);
            let metadata = decode(&schema::OP_METADATA, &operation.metadata.encode_to_vec());
            object.insert("OpMetadata".to_owned(), Value::Object(metadata));
            let lines = self.lines_of(&operation.locations);
            if !lines.is_empty() {
                object.insert("Lines".to_owned(), Value::Array(lines));
            }
            Value::Object(object)
        });
        let end = self.end().map(|op| op.encode_to_vec());
        let end = end.map(|bytes| Value::Object(op_json(&crate::graph::digest_of(&bytes), &bytes)));
        described.collect::<Vec<_>>().into_iter().chain(end).collect()
    }

    fn lines_of(&self, locations: &[pb::Location]) -> Vec<Value> {
        let mut lines = Vec::new();
        for location in locations {
            let file = usize::try_from(location.source_index).ok().and_then(|index| self.files.get(index));
            for range in location.ranges.iter().take(MAX_RANGES) {
                let (Some(file), Some(start), Some(end)) = (file, range.start, range.end) else { continue };
                let line = |position: pb::Position| usize::try_from(position.line).unwrap_or(0);
                let (start, end) = (line(start).max(1), line(end));
                let count = (end + 1).saturating_sub(start).min(MAX_LINES);
                let text: Vec<_> =
                    file.data.split(|byte| *byte == b'\n').skip(start - 1).take(count).collect();
                let text = String::from_utf8_lossy(&text.join(&b'\n')).into_owned();
                lines.push(serde_json::json!({
                    "file": file.filename, "start": start, "end": end, "text": text,
                }));
            }
        }
        lines
    }
}

fn op_json(digest: &str, bytes: &[u8]) -> Map<String, Value> {
    let mut op = decode(&schema::OP, bytes);
    // BuildKit writes the group of the operation even when it is empty.
    op.entry("Op").or_insert_with(|| Value::Object(Map::new()));
    let mut object = Map::new();
    object.insert("Op".to_owned(), Value::Object(op));
    object.insert("Digest".to_owned(), Value::String(digest.to_owned()));
    object
}
