//! Error codes of tokens and grants.

/// Adds the rows of this area, and passes all rows on to the next macro.
macro_rules! access_error_codes {
    ($next:ident $($rest:ident)*; $($seen:tt)*) => {
        $next! {
            $($rest)*; $($seen)*
            Access "Tokens and grants" {
                TokenMissing = "token_missing", Unauthenticated, No,
                    "The request carries no participant token, and it did not come from root or the daemon's own user over the unix socket. Give a token with `--token-file` or `HEARTH_TOKEN`.",
                    hint "make a token on the daemon's machine: hearth token mint";
                TokenInvalid = "token_invalid", Unauthenticated, No,
                    "The token is malformed, or its signature does not match the room's secret. Use a token of this room, made after the last rotation of its secret.",
                    hint "make a token on the daemon's machine: hearth token mint";
                TokenExpired = "token_expired", Unauthenticated, No,
                    "The token was valid until a time that has passed. Make a new one, with a longer `--ttl` if it should last longer.",
                    hint "make a token on the daemon's machine: hearth token mint";
                TokenRevoked = "token_revoked", Unauthenticated, No,
                    "The token, or the token with which it was made, was revoked. Ask an operator of the room for a new one.",
                    hint "make a token on the daemon's machine: hearth token mint";
                TokenOtherRoom = "token_other_room", Unauthenticated, No,
                    "The token is for another room than the one that was asked. Check `--room`, `--addr` and the token that goes with them.",
                    hint "make a token on the daemon's machine: hearth token mint";
                TokenForeignName = "token_foreign_name", Unauthenticated, No,
                    "The token uses a participant name that is reserved for tokens that the daemon makes itself. Use a token that `hearth token mint` made.",
                    hint "make a token on the daemon's machine: hearth token mint";
                TokenForeignDomain = "token_foreign_domain", Unauthenticated, No,
                    "The token names a trust domain that it may not name. Use a token that `hearth token mint` made.",
                    hint "make a token on the daemon's machine: hearth token mint";
                Denied = "denied", PermissionDenied, No,
                    "The token has no grant for this action on this object, or the daemon's user may not do it. Ask for a token with the grant; `docs/reference/access.md` lists what each method needs.";
                ImageDenied = "image_denied", PermissionDenied, No,
                    "A Dockerfile names an image that the token of the build may not pull. Use a token whose registry grant names the image.";
                NotOnThisMachine = "not_on_this_machine", PermissionDenied, No,
                    "The call is served to root and the daemon's own user on the daemon's machine only. Run the command there, through the unix socket.",
                    hint "run it there, through the daemon's unix socket: hearth --addr unix:///run/hearth/hearth.sock ...";
                InvalidScope = "invalid_scope", InvalidArgument, No,
                    "The scope of a token is not one of the names `userDefault`, `agentDefault` and `full`, and not a valid JSON object of grants. Correct the scope.",
                    hint "write userDefault, agentDefault, full or a JSON object";
                InvalidTtl = "invalid_ttl", InvalidArgument, No,
                    "The lifetime of a token is zero or longer than the maximum. Give a `--ttl` in the range that the message names.";
                InvalidGrace = "invalid_grace", InvalidArgument, No,
                    "A grace period is negative or longer than the maximum. Give one in the range that the message names.";
                TooManyRevocations = "too_many_revocations", ResourceExhausted, No,
                    "The list of revoked tokens is full. Rotating the room's secret makes all earlier tokens invalid and empties the list.",
                    hint "hearth token rotate --grace 0s ends all tokens at once";
                Unauthenticated = "unauthenticated", Unauthenticated, No,
                    "A proxy between client and daemon asks for credentials; the daemon itself did not answer. Check the address and the proxy.";
                PermissionDenied = "permission_denied", FailedPrecondition, No,
                    "The daemon's user may not read a file that the request needs, or a proxy refused the call. Make the file readable for the daemon, or mount a directory without it.";
            }
        }
    };
}
