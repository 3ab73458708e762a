use std::collections::BTreeSet;

use super::*;

#[test]
fn every_code_has_a_text_form_of_its_own_that_leads_back_to_it() {
    let mut texts = BTreeSet::new();
    for code in ErrorCode::ALL {
        let text = code.as_str();
        assert!(texts.insert(text), "{text} is there twice");
        assert!(text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{text}");
        assert_eq!(text.parse(), Ok(*code));
    }
    assert_eq!("no_such_code".parse::<ErrorCode>(), Err(UnknownErrorCode));
}

#[test]
fn the_text_form_is_the_name_in_snake_case() {
    for code in ErrorCode::ALL {
        let mut text = String::new();
        for letter in format!("{code:?}").chars() {
            if letter.is_uppercase() && !text.is_empty() {
                text.push('_');
            }
            text.extend(letter.to_lowercase());
        }
        assert_eq!(code.as_str(), text);
    }
}

#[test]
fn an_explanation_is_one_or_two_sentences() {
    for code in ErrorCode::ALL {
        let explanation = code.entry().explanation;
        let sentences = explanation.matches(". ").count() + 1;
        assert!(explanation.ends_with('.') && sentences <= 2, "{code}: {explanation}");
        assert!(
            explanation.starts_with(|first: char| first.is_uppercase() || first == '`'),
            "{code}: {explanation}"
        );
        if let Some(hint) = code.entry().hint {
            assert!(!hint.is_empty(), "{code}: {hint}");
        }
    }
}

#[test]
fn a_code_of_another_version_survives_decoding() {
    for text in ["step_failed", "of_a_later_version"] {
        let code = RecordedErrorCode::from(text.to_owned());
        assert_eq!((code.as_str(), String::from(code.clone())), (text, text.to_owned()));
        assert_eq!(code.known().is_some(), text == "step_failed");
    }
}
