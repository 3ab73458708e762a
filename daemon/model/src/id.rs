//! Random ids of builds, packs, services and instances.

use std::fmt;
use std::str::FromStr;

/// Alphabet without `i`, `l`, `o` and `u`, so that ids read well aloud and in a terminal.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const LENGTH: usize = 12;

/// Declares an id type: twelve random letters and digits.
macro_rules! id {
    ($name:ident, $what:literal) => {
        #[doc = concat!("Id of a ", $what, ": twelve random letters and digits.")]
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            pub fn random() -> Self {
                let bits: u64 = rand::random();
                let letter = |i: usize| char::from(ALPHABET[(bits >> (5 * i)) as usize & 31]);
                Self((0..LENGTH).map(letter).collect())
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let valid = text.len() == LENGTH && text.bytes().all(|b| ALPHABET.contains(&b));
                if valid { Ok(Self(text.to_owned())) } else { Err(InvalidId { what: $what }) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not the id of a {what}: expected {LENGTH} letters and digits")]
pub struct InvalidId {
    what: &'static str,
}

id!(BuildId, "build");
id!(PackId, "pack");
id!(ServiceId, "service");
id!(InstanceId, "instance");
