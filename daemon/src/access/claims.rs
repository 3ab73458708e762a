//! Claims of tokens, and the checks of their times.

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};

use super::{AccessError, MAX_TTL};

/// Tolerated clock skew of other token issuers, in seconds.
const MAX_CLOCK_SKEW_SECONDS: i64 = 300;

#[derive(Serialize, Deserialize)]
pub(super) struct TokenClaims {
    pub(super) name: String,
    #[serde(default)]
    pub(super) grants: Vec<TokenGrant>,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "numeric_date")]
    pub(super) exp: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "numeric_date")]
    pub(super) nbf: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "numeric_date")]
    pub(super) iat: Option<i64>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct TokenGrant {
    pub(super) name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) scope: Option<serde_json::Value>,
}

/// Deserializes a time in seconds since 1970, which may have a fraction (RFC 7519, section 2).
fn numeric_date<'de, D: Deserializer<'de>>(from: D) -> Result<Option<i64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum NumericDate {
        Whole(i64),
        Fraction(f64),
    }
    Ok(match Option::<NumericDate>::deserialize(from)? {
        None => None,
        Some(NumericDate::Whole(seconds)) => Some(seconds),
        #[expect(clippy::cast_possible_truncation, reason = "`as` saturates, and NaN is no JSON number")]
        Some(NumericDate::Fraction(seconds)) => Some(seconds.floor() as i64),
    })
}

impl TokenClaims {
    /// Checks that the token is valid at this moment.
    pub(super) fn check_times(&self, now: Timestamp) -> Result<(), AccessError> {
        let now = now.as_second();
        let Some(exp) = self.exp else {
            return Err(AccessError::Invalid("it says nothing of when it expires (`exp`)"));
        };
        if exp <= now {
            let at = Timestamp::from_second(exp).unwrap_or(Timestamp::MIN);
            return Err(AccessError::Expired { name: self.name.chars().take(200).collect(), at });
        }
        if exp - now > MAX_TTL.as_secs().cast_signed() + MAX_CLOCK_SKEW_SECONDS {
            return Err(AccessError::Invalid("it is good for longer than a year (`exp`)"));
        }
        if self.nbf.is_some_and(|nbf| nbf > now) {
            return Err(AccessError::Invalid("it is not good yet (`nbf`)"));
        }
        if self.iat.is_some_and(|iat| iat > now + MAX_CLOCK_SKEW_SECONDS) {
            return Err(AccessError::Invalid("it was made in the future (`iat`)"));
        }
        Ok(())
    }

    /// Returns the scope of the grant with this name: `None` without such a grant, `Some(None)` if it has no scope.
    pub(super) fn grant(&self, name: &str) -> Option<Option<&serde_json::Value>> {
        self.grants.iter().find(|grant| grant.name == name).map(|grant| grant.scope.as_ref())
    }

    /// Like [`grant`](Self::grant), for grants whose scope is text.
    pub(super) fn text_grant(&self, name: &str) -> Option<Option<&str>> {
        self.grant(name).map(|scope| scope.and_then(serde_json::Value::as_str))
    }
}
