//! Comma-separated fields, as Docker's flags have them (`id=npm,src=token`): a field that begins with a double quote
//! ends at the next one, so that it may contain commas (`id=npm,"src=a,b"`); `""` inside stands for one quote.

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldsError {
    #[error("a double quote is not closed")]
    Unclosed,
    #[error("a quoted field is followed by other text than a comma")]
    TextAfterQuote,
    #[error("a double quote inside a field; write the whole field in quotes, with `\"\"` for one")]
    QuoteInside,
}

/// Splits a text at the commas that are outside of quotes.
pub fn split_fields(text: &str) -> Result<Vec<String>, FieldsError> {
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let (field, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_field(quoted)?,
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                if rest[..end].contains('"') {
                    return Err(FieldsError::QuoteInside);
                }
                (rest[..end].to_owned(), &rest[end..])
            }
        };
        fields.push(field);
        match after.strip_prefix(',') {
            Some(after) => rest = after,
            None if after.is_empty() => return Ok(fields),
            None => return Err(FieldsError::TextAfterQuote),
        }
    }
}

/// Reads a field whose opening quote was read, and returns it with the text behind its closing quote.
fn quoted_field(text: &str) -> Result<(String, &str), FieldsError> {
    let mut field = String::new();
    let mut rest = text;
    loop {
        let (before, after) = rest.split_once('"').ok_or(FieldsError::Unclosed)?;
        field.push_str(before);
        match after.strip_prefix('"') {
            Some(after) => {
                field.push('"');
                rest = after;
            }
            None => return Ok((field, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_separate_fields_and_quotes_join_them() {
        for (text, fields) in [
            ("", &[""][..]),
            ("a", &["a"]),
            ("a,b", &["a", "b"]),
            ("a,,b,", &["a", "", "b", ""]),
            ("id=a,\"src=a,b\"", &["id=a", "src=a,b"]),
            ("\"src=a,b\",id=a", &["src=a,b", "id=a"]),
            ("\"a\"\"b\"", &["a\"b"]),
            ("a b, c", &["a b", " c"]),
        ] {
            assert_eq!(
                split_fields(text).as_deref(),
                Ok(&fields.iter().map(|field| (*field).to_owned()).collect::<Vec<_>>()[..]),
                "{text}"
            );
        }
        for (text, error) in [
            ("\"a", FieldsError::Unclosed),
            ("a,\"b\"\"", FieldsError::Unclosed),
            ("\"a\"b", FieldsError::TextAfterQuote),
            ("src=\"a,b\"", FieldsError::QuoteInside),
        ] {
            assert_eq!(split_fields(text), Err(error), "{text}");
        }
    }
}
