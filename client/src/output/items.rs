//! A JSON array on standard output whose elements are printed as they arrive, one on each line.
//!
//! ```text
//! [{"text":"first line"}
//! ,{"text":"second line"}
//! ,{"error":{"code":"unreachable","message":"..."}}
//! ]
//! ```
//!
//! The output of a command that follows a log is therefore one document, however the command ends:
//! [`crate::exit`] closes an array that is open, and a failure is its last element. The state is that of
//! the process, as standard output is.

use std::io;

use parking_lot::Mutex;
use serde::Serialize;

use super::line;
use crate::error::Failure;

/// True while an array has been begun and not closed.
static IS_OPEN: Mutex<bool> = Mutex::new(false);

/// Prints one element, which begins the array if it is the first one.
pub fn json_item(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(io::Error::from)?;
    item(&text)
}

fn item(text: &str) -> Result<(), Failure> {
    let mut is_open = IS_OPEN.lock();
    line(&format!("{}{text}", if *is_open { ',' } else { '[' }))?;
    *is_open = true;
    Ok(())
}

/// Ends the array of a command that succeeded. An array without elements is printed as such.
pub fn end_json_items() -> Result<(), Failure> {
    let was_open = std::mem::take(&mut *IS_OPEN.lock());
    line(if was_open { "]" } else { "[]" })
}

/// Ends an open array with the error of the command. Returns `false` when no array is open.
pub(crate) fn end_json_items_with(error: &impl Serialize) -> Result<bool, Failure> {
    if !*IS_OPEN.lock() {
        return Ok(false);
    }
    json_item(error)?;
    end_json_items()?;
    Ok(true)
}

/// Writes lines, each of which is a JSON value, as elements of the array.
#[derive(Default)]
pub struct JsonItemWriter {
    line: Vec<u8>,
}

impl io::Write for JsonItemWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(piece);
            if self.line.last() == Some(&b'\n') {
                let line = std::mem::take(&mut self.line);
                let text = String::from_utf8_lossy(&line);
                item(text.trim_end()).map_err(|failure| io::Error::other(failure.detail.message))?;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
