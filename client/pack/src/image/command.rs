/// Error in the text of an entrypoint or command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    #[error("`{given}` starts like a JSON list but is not a list of strings: {reason}")]
    Json { given: String, reason: String },
    #[error("`{given}`: a {quote} is not closed")]
    UnclosedQuote { given: String, quote: &'static str },
}

/// Parses an entrypoint or command. A JSON list of strings is used as it is. Any other text is split into words as a
/// POSIX shell does, with quotes and backslashes but without expansions or operators: `$HOME`, `*`, `&&` and `>` are
/// ordinary words. An empty text is an empty command.
pub fn parse_command(text: &str) -> Result<Vec<String>, CommandError> {
    if text.trim_start().starts_with('[') {
        return serde_json::from_str(text)
            .map_err(|error| CommandError::Json { given: text.to_owned(), reason: error.to_string() });
    }
    words(text).map_err(|quote| CommandError::UnclosedQuote { given: text.to_owned(), quote })
}

/// Splits a text into words. The error is the kind of quote that is not closed.
fn words(text: &str) -> Result<Vec<String>, &'static str> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match c {
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match rest.next().ok_or("single quote")? {
                        '\'' => break,
                        c => word.push(c),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match rest.next().ok_or("double quote")? {
                        '"' => break,
                        '\\' => match rest.next().ok_or("double quote")? {
                            '\n' => {}
                            c @ ('$' | '`' | '"' | '\\') => word.push(c),
                            c => word.extend(['\\', c]),
                        },
                        c => word.push(c),
                    }
                }
            }
            '\\' => match rest.next() {
                Some('\n') => {}
                escaped => word.get_or_insert_default().push(escaped.unwrap_or('\\')),
            },
            ' ' | '\t' | '\n' | '\r' => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}
