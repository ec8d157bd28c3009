//! Keeps generated parts of the documentation equal to the code.
//!
//! A page marks such a part with `<!-- begin: NAME -->` and `<!-- end: NAME -->` on lines of their own. A test calls
//! [`assert_section`]; run with `JUMP_UPDATE_DOCS=1` it writes the part instead of comparing it.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// One page may have several sections, and tests run in parallel.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Compares a generated part of a page (its path relative to the repository) with what the code says.
///
/// # Panics
/// When they differ, or the page or its markers are missing. For tests.
#[track_caller]
pub fn assert_section(page: &str, section: &str, expected: &str) {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    // This crate lives two levels below the repository's root.
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(page);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{page}: {error}"));
    let replaced = replace_section(&text, section, expected).unwrap_or_else(|| {
        panic!("{page} lacks the markers <!-- begin: {section} --> and <!-- end: {section} -->")
    });
    if std::env::var_os("JUMP_UPDATE_DOCS").is_some() {
        std::fs::write(&path, replaced).unwrap_or_else(|error| panic!("{page}: {error}"));
        return;
    }
    assert!(
        replaced == text,
        "{page}, section {section}, differs from the code; run the tests with JUMP_UPDATE_DOCS=1 and look at the change"
    );
}

fn replace_section(text: &str, section: &str, expected: &str) -> Option<String> {
    let begin = format!("<!-- begin: {section} -->\n");
    let end = format!("<!-- end: {section} -->");
    let (before, rest) = text.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{begin}\n{}\n\n{end}{after}", expected.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_replaced_between_its_markers_only() {
        let page = "a\n<!-- begin: x -->\nold\n<!-- end: x -->\nb\n";
        let new = replace_section(page, "x", "new\n").expect("markers");
        assert_eq!(new, "a\n<!-- begin: x -->\n\nnew\n\n<!-- end: x -->\nb\n");
        assert_eq!(replace_section(&new, "x", "new").as_deref(), Some(new.as_str()));
        assert_eq!(replace_section(page, "y", "new"), None);
    }
}
