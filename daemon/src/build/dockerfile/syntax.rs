//! Parser directives at the head of a Dockerfile, and the frontend that they ask for.

/// A frontend image that the Dockerfile or a build argument asks for and that the daemon does not run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the frontend `{image}` is not allowed here")]
pub struct FrontendRefused {
    pub image: String,
    /// Line of the Dockerfile, counted from 1; 0 when a build argument asked for it.
    pub line: u32,
}

/// Images that the built-in frontend replaces.
const BUILT_IN: [&str; 3] =
    ["docker/dockerfile", "docker.io/docker/dockerfile", "index.docker.io/docker/dockerfile"];

struct ParserDirective<'a> {
    key: String,
    value: &'a str,
}

/// Checks `BUILDKIT_SYNTAX` of the build arguments, which overrides the directive: `Ok` means that it can be left out.
pub fn settle_frontend_argument(value: &str) -> Result<(), FrontendRefused> {
    let image = value.trim().split(' ').next().unwrap_or_default();
    if is_built_in(image) { Ok(()) } else { Err(FrontendRefused { image: image.to_owned(), line: 0 }) }
}

/// Returns the Dockerfile without its `syntax` directive; the other lines keep their numbers. `None` when the text asks
/// for no frontend. BuildKit searches any bytes for directives, so a text that is not UTF-8 is searched too.
pub(super) fn settle_frontend(text: &str) -> Result<Option<String>, FrontendRefused> {
    let (mark, body) = match text.strip_prefix('\u{feff}') {
        Some(body) => ("\u{feff}", body),
        None => ("", text),
    };
    let (shebang, body) = match body.split_once('\n') {
        Some((first, rest)) if first.starts_with("#!") => (Some(first), rest),
        None if body.starts_with("#!") => return Ok(None),
        _ => (None, body),
    };
    let offset = u32::from(shebang.is_some());
    // The built-in frontend is only meant by directives in the Dockerfile's own comment style.
    let foreign = head(body, "//").into_iter().find(|directive| directive.key == "syntax");
    if let Some(directive) = foreign {
        return Err(FrontendRefused { image: image_of(directive.value).to_owned(), line: 1 + offset });
    }
    if body.trim_start().starts_with('{')
        && let Ok(serde_json::Value::Object(object)) = serde_json::from_str(body)
        && let Some(image) = object.get("syntax").and_then(serde_json::Value::as_str)
    {
        return Err(FrontendRefused { image: image_of(image).to_owned(), line: 1 + offset });
    }
    let directives = head(body, "#");
    if directives.iter().all(|directive| directive.key != "syntax") {
        return Ok(None);
    }
    // An ordinary comment ends the directives, so the replaced lines go below the directives that stay.
    let (mut kept, mut neutral) = (String::new(), String::new());
    let mut lines = body.split_inclusive('\n');
    for (index, directive) in (1u32..).zip(&directives) {
        let Some(line) = lines.next() else { break };
        if directive.key == "syntax" {
            let image = image_of(directive.value);
            if !is_built_in(image) {
                return Err(FrontendRefused { image: image.to_owned(), line: index + offset });
            }
            neutral.push_str("# built in: ");
            neutral.push_str(directive.value);
            neutral.push('\n');
        } else {
            kept.push_str(line.trim_end_matches(['\r', '\n']));
            kept.push('\n');
        }
    }
    let head: String = shebang.map(|line| format!("{line}\n")).unwrap_or_default();
    let rest: String = lines.collect();
    Ok(Some(format!("{mark}{head}{kept}{neutral}{rest}")))
}

/// Returns the directives at the head of a text: one per line, up to the first line that is not a directive.
fn head<'a>(text: &'a str, comment: &str) -> Vec<ParserDirective<'a>> {
    text.lines().map_while(|line| directive(line, comment)).collect()
}

fn directive<'a>(line: &'a str, comment: &str) -> Option<ParserDirective<'a>> {
    let (key, value) = line.strip_prefix(comment)?.trim_start().split_once('=')?;
    let key = key.trim_end().to_ascii_lowercase();
    let value = value.trim();
    (matches!(key.as_str(), "syntax" | "escape" | "check") && !value.is_empty())
        .then_some(ParserDirective { key, value })
}

/// Returns the escape character of a Dockerfile. `text` has no byte order mark.
pub(super) fn escape_character(text: &str) -> char {
    // Unlike the search for a frontend, the parser allows blanks before the `#`.
    let directives = text.lines().map_while(|line| directive(line.trim_start(), "#"));
    let value =
        directives.filter(|directive| directive.key == "escape").map(|directive| directive.value).next();
    if value == Some("`") { '`' } else { '\\' }
}

fn image_of(value: &str) -> &str {
    value.split(' ').next().unwrap_or(value)
}

/// Reports whether the image is `docker/dockerfile` with no tag, `latest`, `1` or `1.x`. A digest is ignored, since
/// nothing is fetched.
fn is_built_in(image: &str) -> bool {
    let name = image.split('@').next().unwrap_or(image);
    let (name, tag) = name.rsplit_once(':').unwrap_or((name, "latest"));
    let version = |tag: &str| {
        let mut parts = tag.split('.');
        parts.next() == Some("1")
            && parts.all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
    };
    BUILT_IN.contains(&name) && (tag == "latest" || version(tag))
}
