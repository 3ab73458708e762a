//! Bytes of a file or a process that a command passes on to standard output. With `--json` they become a text
//! in the one document of the command.

use std::io::{self, Write as _};

use super::GlobalArgs;
use crate::error::Failure;
use crate::output;

/// Maximum size of a text in a JSON document, which is held in memory.
const MAX_TEXT_BYTES: usize = 16 << 20;

/// Bytes that are collected for a JSON document.
#[derive(Default)]
pub(super) struct CollectedText {
    bytes: Vec<u8>,
}

impl CollectedText {
    pub(super) fn push(&mut self, chunk: &[u8]) -> Result<(), Failure> {
        if self.bytes.len() + chunk.len() > MAX_TEXT_BYTES {
            let limit = output::size(MAX_TEXT_BYTES as u64);
            return Err(Failure::usage(format!(
                "the output is larger than {limit}, the most that --json prints"
            ))
            .hint("leave --json out: the output is then printed as it is"));
        }
        self.bytes.extend_from_slice(chunk);
        Ok(())
    }

    pub(super) fn into_text(self) -> Result<String, Failure> {
        String::from_utf8(self.bytes).map_err(|_| {
            Failure::usage("the output is not UTF-8 text, and --json prints text only")
                .hint("leave --json out: the output is then printed as it is")
        })
    }
}

/// Destination of the content of one file.
pub(super) struct ContentOutput {
    collected: Option<CollectedText>,
}

impl ContentOutput {
    pub(super) fn new(globals: &GlobalArgs) -> Self {
        Self { collected: globals.json.then(CollectedText::default) }
    }

    pub(super) fn write(&mut self, chunk: &[u8]) -> Result<(), Failure> {
        match &mut self.collected {
            Some(text) => text.push(chunk),
            None => Ok(io::stdout().lock().write_all(chunk)?),
        }
    }

    pub(super) fn finish(self) -> Result<(), Failure> {
        match self.collected {
            Some(text) => output::json(&serde_json::json!({"content": text.into_text()?})),
            None => Ok(io::stdout().lock().flush()?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_text_of_a_limited_size_has_a_place_in_a_document() {
        let mut text = CollectedText::default();
        text.push("ä".as_bytes()).unwrap();
        assert_eq!(text.into_text().unwrap(), "ä");
        let mut bytes = CollectedText::default();
        bytes.push(b"\xff").unwrap();
        assert!(bytes.into_text().unwrap_err().detail.message.contains("not UTF-8"));
        let mut large = CollectedText::default();
        large.push(&vec![b'a'; MAX_TEXT_BYTES]).unwrap();
        assert!(large.push(b"a").unwrap_err().detail.message.contains("larger than"));
    }
}
