//! Commands that change objects one after the other, such as `hearth images rm A B`.

use serde::Serialize;
use serde_json::{Map, Value};

use super::GlobalArgs;
use crate::error::Failure;
use crate::output;

/// Changes each object, and notes each as text when it is done. With `--json` one document has all of them,
/// such as `{"removed": [...]}`; a failure ends the command and adds its `error` to what was done before.
/// `change` returns the JSON form of the object and its note.
pub(super) async fn change_each<T, V: Serialize>(
    verb: &str,
    objects: &[T],
    globals: &GlobalArgs,
    change: impl AsyncFn(&T) -> Result<(V, String), Failure>,
) -> Result<(), Failure> {
    let mut changed = Vec::new();
    let mut outcome = Ok(());
    for object in objects {
        match change(object).await {
            Ok((view, note)) => {
                output::note(&note);
                changed.push(serde_json::to_value(view).unwrap_or_default());
            }
            Err(failure) => {
                outcome = Err(failure);
                break;
            }
        }
    }
    let document = Map::from_iter([(verb.to_owned(), Value::Array(changed))]);
    match outcome {
        Ok(()) if globals.json => output::json(&document),
        Ok(()) => Ok(()),
        Err(failure) => Err(failure.partial(&document)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth_proto::error_code::ErrorCode;

    #[tokio::test]
    async fn a_failure_carries_what_was_done_before_it() {
        let change = async |name: &&str| match *name {
            "bad" => Err(Failure::failed(ErrorCode::NotFound, "it is not there")),
            name => Ok((name.to_owned(), format!("removed {name}"))),
        };
        let failed = change_each("removed", &["a", "bad", "b"], &GlobalArgs::default(), change).await;
        assert_eq!(Value::Object(failed.unwrap_err().partial), serde_json::json!({"removed": ["a"]}));
    }
}
