//! `NAME=value` flags: variables, build arguments and labels. Their grammar is that of [`Assignment`].

use std::collections::BTreeMap;
use std::env::VarError;

use hearth_proto::value::{Assignment, AssignmentError};

use crate::error::Failure;
use crate::output;

/// Reads variables, `NAME=value` or `NAME`. A name alone has the value of the caller's environment, which
/// `variable` returns; a variable that is not set there is left out, and noted.
pub(super) fn variables(
    flag: &str,
    texts: &[String],
    variable: impl Fn(&str) -> Result<String, VarError>,
) -> Result<Vec<(String, String)>, Failure> {
    let mut all = Vec::with_capacity(texts.len());
    for text in texts {
        let parsed = Assignment::parse_variable(text).map_err(|error| wrong(flag, text, error))?;
        all.extend(resolve(flag, parsed, &variable)?);
    }
    Ok(all)
}

/// Returns the variable with its value, or `None` if it has none in the flag and none here.
pub(super) fn resolve(
    origin: &str,
    assignment: Assignment,
    variable: impl Fn(&str) -> Result<String, VarError>,
) -> Result<Option<(String, String)>, Failure> {
    let Assignment { name, value } = assignment;
    match value.map_or_else(|| variable(&name), Ok) {
        Ok(value) => Ok(Some((name, value))),
        Err(VarError::NotPresent) => {
            output::note(&format!("note: {origin}: the variable {name} is not set here, so it is left out"));
            Ok(None)
        }
        Err(VarError::NotUnicode(_)) => {
            Err(Failure::usage(format!("{origin}: the value of the variable {name} is not UTF-8")))
        }
    }
}

/// Reads labels, `KEY=VALUE`.
pub(super) fn labels(flag: &str, texts: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    texts.iter().map(|text| Assignment::parse_label(text).map_err(|error| wrong(flag, text, error))).collect()
}

fn wrong(flag: &str, text: &str, error: AssignmentError) -> Failure {
    Failure::usage(format!("{flag} `{text}`: {error}"))
}
