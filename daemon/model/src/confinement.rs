//! Per-service deviations from the default confinement: stricter isolation, or added capabilities.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceConfinement {
    /// True if the service and the other services of the room cannot connect to each other.
    pub isolated: bool,
    /// Capabilities that its processes have in addition to the default set.
    #[serde(default)]
    pub capabilities: BTreeSet<AddedCapability>,
}

/// Linux capability that services do not have by default, and that a deploy can request if the operator allows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum AddedCapability {
    /// Allows raw and packet sockets.
    NetRaw,
    /// Allows the creation of device nodes. Opening them is still denied.
    Mknod,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a capability that a service can be given; there are NET_RAW and MKNOD")]
pub struct AddedCapabilityError(String);

impl AddedCapability {
    /// Returns the name without the kernel's prefix `CAP_`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NetRaw => "NET_RAW",
            Self::Mknod => "MKNOD",
        }
    }
}

impl fmt::Display for AddedCapability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for AddedCapability {
    type Err = AddedCapabilityError;

    /// Parses a name in any case, with or without `CAP_`.
    fn from_str(text: &str) -> Result<Self, AddedCapabilityError> {
        let upper = text.to_ascii_uppercase();
        match upper.strip_prefix("CAP_").unwrap_or(&upper) {
            "NET_RAW" => Ok(Self::NetRaw),
            "MKNOD" => Ok(Self::Mknod),
            _ => Err(AddedCapabilityError(text.chars().take(40).collect())),
        }
    }
}

impl TryFrom<String> for AddedCapability {
    type Error = AddedCapabilityError;

    fn try_from(text: String) -> Result<Self, AddedCapabilityError> {
        text.parse()
    }
}

impl From<AddedCapability> for String {
    fn from(capability: AddedCapability) -> Self {
        capability.name().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capability_is_one_of_two_and_written_in_one_way() {
        for text in ["NET_RAW", "net_raw", "CAP_NET_RAW", "cap_net_raw"] {
            assert_eq!(text.parse::<AddedCapability>().unwrap().to_string(), "NET_RAW");
        }
        for text in ["", "CAP_", "SYS_ADMIN", "CAP_CAP_MKNOD", "ALL", "NET_RAW,MKNOD"] {
            assert!(text.parse::<AddedCapability>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_stored_confinement_reads_back_and_an_older_one_is_the_default() {
        let confinement =
            ServiceConfinement { isolated: true, capabilities: BTreeSet::from([AddedCapability::Mknod]) };
        let text = serde_json::to_string(&confinement).unwrap();
        assert_eq!(text, r#"{"isolated":true,"capabilities":["MKNOD"]}"#);
        assert_eq!(serde_json::from_str::<ServiceConfinement>(&text).unwrap(), confinement);
    }
}
