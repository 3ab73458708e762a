//! Adds to the error of a refused token where the token came from.

use crate::error::Failure;
use crate::rooms::{RoomEnvironment, RoomFlags};
use hearth_proto::error_code::ErrorCode;

/// Names the source of the token in the error of a token that the daemon did not accept, with the action that replaces
/// it. Other errors stay as they are.
pub(super) fn name_token_origin(
    mut failure: Failure,
    flags: &RoomFlags,
    environment: &RoomEnvironment,
) -> Failure {
    let is_refused_token = matches!(
        failure.detail.code.parse(),
        Ok(ErrorCode::TokenInvalid
            | ErrorCode::TokenExpired
            | ErrorCode::TokenRevoked
            | ErrorCode::TokenOtherRoom
            | ErrorCode::TokenForeignName
            | ErrorCode::TokenForeignDomain)
    );
    if !is_refused_token {
        return failure;
    }
    let variable = if environment.hearth_token.is_some() { "HEARTH_TOKEN" } else { "MESHAGENT_TOKEN" };
    let has_variable = environment.hearth_token.is_some() || environment.meshagent_token.is_some();
    let (origin, action) = match &flags.token_file {
        Some(file) => {
            (format!("--token-file {}", file.display()), "give another file with --token-file".to_owned())
        }
        None if has_variable => {
            (variable.to_owned(), format!("unset {variable}, or set it to a valid token"))
        }
        None => ("the rooms file".to_owned(), "put a new token there with `hearth room add`".to_owned()),
    };
    failure.detail.message = format!("the token of {origin}: {}", failure.detail.message);
    let hint = format!("{action}; `hearth token mint` on the daemon's machine makes one");
    failure.hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::FailureKind;

    #[test]
    fn a_refused_token_is_named_by_its_source() {
        let named = |code, flags: &RoomFlags, environment: &RoomEnvironment| {
            let failure = Failure::new(FailureKind::Denied, code, "it expired");
            name_token_origin(failure, flags, environment).detail
        };
        let by_file = RoomFlags { token_file: Some("a.token".into()), ..RoomFlags::default() };
        let by_variable = RoomEnvironment { hearth_token: Some("t".into()), ..RoomEnvironment::default() };
        let other = RoomEnvironment { meshagent_token: Some("t".into()), ..RoomEnvironment::default() };
        let (no_flag, nothing) = (RoomFlags::default(), RoomEnvironment::default());
        for (flags, environment, origin, action) in [
            (&by_file, &by_variable, "--token-file a.token", "give another file"),
            (&no_flag, &by_variable, "HEARTH_TOKEN", "unset HEARTH_TOKEN"),
            (&no_flag, &other, "MESHAGENT_TOKEN", "unset MESHAGENT_TOKEN"),
            (&no_flag, &nothing, "the rooms file", "hearth room add"),
        ] {
            let detail = named(ErrorCode::TokenExpired, flags, environment);
            assert_eq!(detail.message, format!("the token of {origin}: it expired"));
            assert!(detail.hint.contains(action), "{}", detail.hint);
        }
        assert_eq!(named(ErrorCode::Denied, &no_flag, &by_variable).message, "it expired");
    }
}
