//! Source policy of a solve: BuildKit fetches only what the daemon has brought into the room.
//!
//! The last rule that matches a source decides. The first rule denies everything; the following rules allow the
//! context, the Dockerfile, and each image by its digest in the room's registry. The last rules convert each image
//! name of the Dockerfile to that digest, after which BuildKit evaluates the rules again. A name without a rule stays
//! denied.

use std::collections::HashMap;

use bollard_buildkit_proto::moby::buildkit::v1::sourcepolicy::{
    MatchType, Policy, PolicyAction, Rule, Selector, Update,
};

use crate::build::port::{PinnedImageSource, SolveRequest};

/// Text in BuildKit's errors about a source that a rule denies.
const DENIED: &str = "denied by policy";

pub(super) fn source_policy(request: &SolveRequest) -> Policy {
    let all = |action: PolicyAction, expression: &str| Rule {
        action: action.into(),
        selector: Some(Selector {
            identifier: expression.to_owned(),
            match_type: MatchType::Regex.into(),
            constraints: Vec::new(),
        }),
        updates: None,
    };
    let place = |image: &PinnedImageSource| {
        format!("docker-image://{}/{}@{}", request.registry, image.repository, image.digest)
    };
    // The regular expression matches every text.
    let mut rules = vec![all(PolicyAction::Deny, "^")];
    rules.extend(["local://context", "local://dockerfile"].map(|name| rule(PolicyAction::Allow, name, None)));
    rules.extend(request.images.iter().map(|image| rule(PolicyAction::Allow, &place(image), None)));
    rules.extend(request.images.iter().map(|image| {
        let name = format!("docker-image://{}", image.name);
        let updates = Update { identifier: place(image), attrs: HashMap::new() };
        rule(PolicyAction::Convert, &name, Some(updates))
    }));
    for repository in &request.repositories {
        // Any reference or subdirectory of the repository is allowed.
        rules.push(all(PolicyAction::Allow, &format!("^git://{}(#.*)?$", escaped(repository))));
    }
    rules.extend(request.downloads.iter().map(|file| rule(PolicyAction::Allow, &file.offer_url, None)));
    rules.extend(request.downloads.iter().map(|file| {
        let attrs = HashMap::from([("http.checksum".to_owned(), file.digest.to_string())]);
        rule(PolicyAction::Convert, &file.url, Some(Update { identifier: file.offer_url.clone(), attrs }))
    }));
    Policy { version: 1, rules }
}

/// Returns a regular expression that matches only this text.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii_punctuation() && !matches!(c, '/' | '_' | '-') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// Returns a rule for one source with exactly this identifier.
fn rule(action: PolicyAction, identifier: &str, updates: Option<Update>) -> Rule {
    let selector = Selector {
        identifier: identifier.to_owned(),
        match_type: MatchType::Exact.into(),
        constraints: Vec::new(),
    };
    Rule { action: action.into(), selector: Some(selector), updates }
}

/// Returns the denied source named in an error: `source "docker-image://x" denied by policy`.
pub(super) fn denied_source(message: &str) -> Option<&str> {
    let (before, _) = message.split_once(DENIED)?;
    let before = before.trim_end().strip_suffix('"')?;
    let source = before.rsplit_once("source \"")?.1;
    Some(source.strip_prefix("docker-image://").unwrap_or(source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_denied_source_is_found_in_buildkits_words() {
        let message = "failed to load: could not resolve image due to policy: source \"docker-image://docker.io/library/x:1\" \
                       denied by policy: source denied by policy";
        assert_eq!(denied_source(message), Some("docker.io/library/x:1"));
        assert_eq!(
            denied_source("source \"https://e.example/x\" denied by policy"),
            Some("https://e.example/x")
        );
        for message in ["", "denied by policy", "source denied by policy", "source \"x\" is gone"] {
            assert_eq!(denied_source(message), None, "{message}");
        }
    }
}
