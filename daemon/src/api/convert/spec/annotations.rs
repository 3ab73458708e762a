//! Validation of a build's annotations.

use hearth_proto::v1;

use super::super::super::error::ApiError;
use super::{MAX_PAIRS, MAX_TEXT};
use crate::model::AnnotationScope;
use crate::model::fault::ErrorCode;
use crate::model::image::{ImageAnnotation, Platform};

/// Validates annotations against the platforms of the build: none means the daemon's own.
pub(super) fn image_annotations(
    wire: Vec<v1::ImageAnnotation>,
    platforms: &[Platform],
) -> Result<Vec<ImageAnnotation>, ApiError> {
    let size = |annotation: &v1::ImageAnnotation| annotation.key.len() + annotation.value.len();
    if wire.len() > MAX_PAIRS || wire.iter().map(size).sum::<usize>() > MAX_TEXT {
        let message = format!("at most {MAX_PAIRS} annotations and {MAX_TEXT} bytes");
        return Err(ApiError::invalid("spec.annotations", ErrorCode::TooMany, message));
    }
    let mut annotations: Vec<ImageAnnotation> = Vec::with_capacity(wire.len());
    for (i, annotation) in wire.into_iter().enumerate() {
        let annotation = image_annotation(annotation, platforms).map_err(|(name, message)| {
            ApiError::invalid(format!("spec.annotations[{i}].{name}"), ErrorCode::InvalidAnnotation, message)
        })?;
        let place = |other: &&ImageAnnotation| {
            (other.scope, &other.platform, &other.key)
                == (annotation.scope, &annotation.platform, &annotation.key)
        };
        if annotations.iter().any(|other| place(&other)) {
            let message = format!("annotation `{}` is given twice for {}", annotation.key, annotation.scope);
            let field = format!("spec.annotations[{i}]");
            return Err(ApiError::invalid(field, ErrorCode::InvalidAnnotation, message));
        }
        annotations.push(annotation);
    }
    Ok(annotations)
}

/// Validates one annotation. The error has the name of the field and a message.
fn image_annotation(
    annotation: v1::ImageAnnotation,
    platforms: &[Platform],
) -> Result<ImageAnnotation, (&'static str, String)> {
    let v1::ImageAnnotation { scope, platform, key, value } = annotation;
    let scope = match scope.as_str() {
        "" => AnnotationScope::Manifest,
        text => text.parse().map_err(|error: crate::model::AnnotationError| ("scope", error.to_string()))?,
    };
    if key.is_empty() || key.contains(|c: char| c.is_whitespace() || c.is_control() || c == '=') {
        let key: String = key.chars().take(100).collect();
        return Err(("key", format!("`{key}` cannot be the key of an annotation")));
    }
    if !scope.has_platforms() && platforms.len() < 2 {
        let message = format!(
            "the image has no index, so `{key}` cannot be an annotation of its {scope}; build for several platforms"
        );
        return Err(("scope", message));
    }
    let platform = match platform.as_str() {
        "" => None,
        text => {
            let host = [Platform::host()];
            let built = if platforms.is_empty() { &host[..] } else { platforms };
            let wanted = Platform::parse_requested(text);
            let own = wanted.filter(|wanted| built.iter().any(|platform| platform.is_same(wanted)));
            let none = || {
                let text: String = text.chars().take(100).collect();
                ("platform", format!("the build makes no image for `{text}`"))
            };
            Some(own.ok_or_else(none)?)
        }
    };
    if platform.is_some() && !scope.has_platforms() {
        return Err(("platform", format!("an annotation of the {scope} has no platform")));
    }
    Ok(ImageAnnotation { scope, platform, key, value })
}

pub(super) fn to_wire(annotation: ImageAnnotation) -> v1::ImageAnnotation {
    v1::ImageAnnotation {
        scope: annotation.scope.to_string(),
        platform: annotation.platform.map(|own| own.as_str().to_owned()).unwrap_or_default(),
        key: annotation.key,
        value: annotation.value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_annotation_needs_a_place_that_the_image_has() {
        let both = ["linux/amd64", "linux/arm64"].map(|text| Platform::parse(text).unwrap());
        let check = |scope: &str, platform: &str, key: &str, platforms: &[Platform]| {
            let wire = v1::ImageAnnotation {
                scope: scope.to_owned(),
                platform: platform.to_owned(),
                key: key.to_owned(),
                value: "v".to_owned(),
            };
            image_annotation(wire, platforms).map_err(|(field, _)| field)
        };
        for (scope, platform) in [
            ("", ""),
            ("manifest", "linux/arm64/v8"),
            ("index", ""),
            ("manifest-descriptor", "linux/amd64"),
            ("index-descriptor", ""),
        ] {
            assert!(check(scope, platform, "a.b/c", &both).is_ok(), "{scope} {platform}");
        }
        for (scope, platform, key, platforms, field) in [
            ("", "", "", &both[..], "key"),
            ("", "", "a b", &both, "key"),
            ("layer", "", "a", &both, "scope"),
            ("index", "", "a", &both[..1], "scope"),
            ("index", "", "a", &[], "scope"),
            ("index", "linux/amd64", "a", &both, "platform"),
            ("manifest", "linux/s390x", "a", &both, "platform"),
        ] {
            assert_eq!(check(scope, platform, key, platforms), Err(field), "{scope} {platform} {key}");
        }
        assert!(check("manifest-descriptor", Platform::host().as_str(), "a", &[]).is_ok());
        let twice = vec![v1::ImageAnnotation { key: "a".to_owned(), ..Default::default() }; 2];
        assert!(image_annotations(twice, &both).is_err());
    }
}
