use super::fields::{FieldsError, split_fields};

/// Value of `--secret`: the id of a build secret, and where this machine has its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretFlag {
    pub id: String,
    pub source: SecretFlagSource,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretFlagSource {
    File(String),
    Variable(String),
    /// A secret of the room, which never leaves it.
    Room(String),
    /// Neither is named: the variable with the name of the id if it is set, else the file of that name.
    Unnamed,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretFlagError {
    #[error("{0}")]
    Fields(#[from] FieldsError),
    #[error("`{0}` is not understood")]
    Field(String),
    #[error("`{0}` is given twice")]
    Twice(&'static str),
    #[error("the id is missing")]
    NoId,
    #[error("`src`, `env` and `room` exclude one another")]
    TwoSources,
}

impl SecretFlag {
    pub const GRAMMAR: &str = "id=ID[,src=FILE|,env=VARIABLE|,room=SECRET]";

    /// Parses `id=ID,src=FILE`, `id=ID,env=VARIABLE`, `id=ID,room=SECRET` or `id=ID`, by the rules of
    /// `docker build --secret`: the fields may be in any order, and a field with a comma is written in double quotes.
    pub fn parse(text: &str) -> Result<Self, SecretFlagError> {
        let (mut id, mut file, mut variable, mut room, mut is_variable) = (None, None, None, None, false);
        for field in split_fields(text)? {
            let unknown = || SecretFlagError::Field(field.clone());
            let (key, value) = field.split_once('=').ok_or_else(unknown)?;
            let (name, place) = match key.to_ascii_lowercase().as_str() {
                "id" => ("id", &mut id),
                "src" | "source" => ("src", &mut file),
                "env" => ("env", &mut variable),
                "room" => ("room", &mut room),
                "type" if matches!(value, "file" | "env") => {
                    is_variable = value == "env";
                    continue;
                }
                _ => return Err(unknown()),
            };
            if value.is_empty() {
                return Err(unknown());
            }
            if place.replace(value.to_owned()).is_some() {
                return Err(SecretFlagError::Twice(name));
            }
        }
        let id = id.ok_or(SecretFlagError::NoId)?;
        let source = match (file, variable, room) {
            (Some(name), None, None) if is_variable => SecretFlagSource::Variable(name),
            (Some(path), None, None) => SecretFlagSource::File(path),
            (None, Some(name), None) => SecretFlagSource::Variable(name),
            (None, None, Some(name)) => SecretFlagSource::Room(name),
            (None, None, None) => SecretFlagSource::Unnamed,
            _ => return Err(SecretFlagError::TwoSources),
        };
        Ok(Self { id, source })
    }
}

#[cfg(test)]
mod tests {
    use super::SecretFlagSource::{File, Room, Unnamed, Variable};
    use super::*;

    #[test]
    fn a_secret_is_an_id_and_one_source() {
        for (text, id, source) in [
            ("id=a,src=/x", "a", File("/x".into())),
            ("source=/x,ID=a", "a", File("/x".into())),
            ("id=a,\"src=a,b\"", "a", File("a,b".into())),
            ("id=a,src=x=y", "a", File("x=y".into())),
            ("id=a,env=B", "a", Variable("B".into())),
            ("type=env,id=a,src=B", "a", Variable("B".into())),
            ("type=file,id=a,src=B", "a", File("B".into())),
            ("id=a,room=npm", "a", Room("npm".into())),
            ("id=a", "a", Unnamed),
        ] {
            assert_eq!(SecretFlag::parse(text), Ok(SecretFlag { id: id.into(), source }), "{text}");
        }
    }

    #[test]
    fn a_malformed_secret_says_which_part() {
        for (text, says) in [
            ("", "`` is not understood"),
            ("id=", "`id=` is not understood"),
            ("src=/x", "the id is missing"),
            ("id=a,id=b", "`id` is given twice"),
            ("id=a,src=x,env=y", "exclude one another"),
            ("id=a,nope=1", "`nope=1` is not understood"),
            ("id=a,type=ssh", "`type=ssh` is not understood"),
            ("id=a,src=\"a,b\"", "double quote inside a field"),
        ] {
            let error = SecretFlag::parse(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
