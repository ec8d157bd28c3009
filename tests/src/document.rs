//! Documents of which a part is generated: what stands between two marks.

use std::path::Path;

use anyhow::{Context as _, Result};

/// Puts `text` between the marks of `document`.
///
/// # Errors
/// When the document cannot be read or written, or has no marks.
pub fn publish(document: &Path, begin: &str, end: &str, text: &str) -> Result<()> {
    let old = std::fs::read_to_string(document).with_context(|| format!("reading {}", document.display()))?;
    let new =
        with(&old, begin, end, text).with_context(|| format!("{} has no {begin}", document.display()))?;
    std::fs::write(document, new).with_context(|| format!("writing {}", document.display()))
}

/// `old` with `text` between its marks; `None` when it has no marks.
pub fn with(old: &str, begin: &str, end: &str, text: &str) -> Option<String> {
    let (before, rest) = old.split_once(begin)?;
    let (_, after) = rest.split_once(end)?;
    Some(format!("{before}{begin}\n\n{}\n\n{end}{after}", text.trim()))
}
