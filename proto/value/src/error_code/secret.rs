//! Error codes of the room's secrets.

/// Adds the rows of this area, and passes all rows on to the next macro.
macro_rules! secret_error_codes {
    ($next:ident $($rest:ident)*; $($seen:tt)*) => {
        $next! {
            $($rest)*; $($seen)*
            Secret "Secrets" {
                SecretNotFound = "secret_not_found", NotFound, No,
                    "The room has no secret with this name. Set it with `hearth secrets set`.";
                InvalidSecretName = "invalid_secret_name", InvalidArgument, No,
                    "The name of a secret is empty, too long, or has characters that it cannot have. Correct the name.";
                InvalidSecretValue = "invalid_secret_value", InvalidArgument, No,
                    "The value of a secret is not text, or has a NUL byte, which no environment variable can have. Store such content as a file of room storage.";
                SecretTooLarge = "secret_too_large", InvalidArgument, No,
                    "The value of a secret is larger than the maximum. Put it into a file of room storage, and mount that.",
                    hint "put it into a file of room storage, and mount that";
                TooManySecrets = "too_many_secrets", ResourceExhausted, No,
                    "The room has as many secrets as it may have. Remove some that are not needed.";
                SecretUnreadable = "secret_unreadable", FailedPrecondition, No,
                    "The value of a secret that a service needs could not be read. The message has the cause.";
                SecretDamaged = "secret_damaged", FailedPrecondition, No,
                    "The stored value of a secret was changed or damaged. Set the secret again.",
                    hint "set it again: hearth secrets set NAME";
                SecretKeyMissing = "secret_key_missing", FailedPrecondition, No,
                    "The room has secrets, and the file with their key is gone. Put the file back, or remove the secrets and set them again.",
                    hint "put the earlier key file back, or remove these secrets with `hearth secrets rm` and set them again";
                SecretKeyReplaced = "secret_key_replaced", FailedPrecondition, No,
                    "A secret was encrypted with another key than the one in the key file. Put the earlier file back, or set the secret again.",
                    hint "put the earlier key file back, or remove these secrets with `hearth secrets rm` and set them again";
                SecretKeyUnusable = "secret_key_unusable", FailedPrecondition, No,
                    "The file with the key of the room's secrets cannot be read, or is not a valid key. An operator repairs it.";
            }
        }
    };
}
