use std::fmt;
use std::str::FromStr;

/// Provenance that a build attaches to its image, as flags and requests write it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProvenanceMode {
    /// The content of [`Min`](Self::Min) as a referrer; the image itself stays as it is.
    #[default]
    Referrer,
    /// None.
    Off,
    /// Also in the index of the image: what went in, without values of arguments.
    Min,
    /// Also in the index of the image: with arguments, labels and the Dockerfile.
    Max,
}

impl ProvenanceMode {
    const ALL: [Self; 4] = [Self::Referrer, Self::Off, Self::Min, Self::Max];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Referrer => "",
            Self::Off => "false",
            Self::Min => "mode=min",
            Self::Max => "mode=max",
        }
    }
}

impl fmt::Display for ProvenanceMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("provenance is mode=min, mode=max, true (mode=min) or false, not `{0}`")]
pub struct ProvenanceModeError(String);

impl FromStr for ProvenanceMode {
    type Err = ProvenanceModeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "true" | "min" => return Ok(Self::Min),
            "max" => return Ok(Self::Max),
            _ => {}
        }
        let known = Self::ALL.into_iter().find(|one| one.as_str() == text);
        known.ok_or_else(|| ProvenanceModeError(text.chars().take(100).collect()))
    }
}

super::serde_as_text!(ProvenanceMode);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mode_is_written_as_it_is_parsed() {
        for one in ProvenanceMode::ALL {
            assert_eq!(one.as_str().parse(), Ok(one));
        }
        assert_eq!(("true".parse(), "max".parse()), (Ok(ProvenanceMode::Min), Ok(ProvenanceMode::Max)));
        for text in ["mode", "MAX", "mode=mid", "0"] {
            assert!(text.parse::<ProvenanceMode>().is_err(), "{text}");
        }
    }
}
