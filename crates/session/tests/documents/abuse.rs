//! `docs/abuse-cases.md`: a table that cannot say more than the tests show.

use crate::{document, is_test_name, quoted};

/// One row: number, abuse, expected, tests, result.
fn rows(text: &str) -> Vec<Vec<&str>> {
    text.lines()
        .filter(|line| line.starts_with("| ") && line.as_bytes().get(2).is_some_and(u8::is_ascii_digit))
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect()
}

#[test]
fn there_are_at_least_thirty_abuse_cases_in_their_order_and_each_row_is_whole() {
    let text = document("abuse-cases.md");
    let rows = rows(&text);
    assert!(rows.len() >= 30, "{} cases", rows.len());
    for (at, row) in rows.iter().enumerate() {
        assert_eq!(row.len(), 5, "case {}: {row:?}", at + 1);
        assert_eq!(row[0], (at + 1).to_string());
    }
}

#[test]
fn a_case_that_holds_names_its_tests_and_one_that_does_not_says_what_is_missing() {
    let text = document("abuse-cases.md");
    let mut counts = [0; 3];
    for row in rows(&text) {
        let tests = quoted(row[3]).filter(|quoted| is_test_name(quoted)).count();
        let (at, fine) = match row[4] {
            "holds" => (0, tests > 0),
            partly if partly.starts_with("partly: ") => (1, tests > 0),
            open if open.starts_with("open: ") => (2, true),
            other => panic!("case {}: {other:?} is no result", row[0]),
        };
        assert!(fine, "case {} names no test", row[0]);
        counts[at] += 1;
    }
    let [hold, partly, open] = counts;
    let said = format!("Counts: {} cases, {hold} hold, {partly} partly, {open} open.", hold + partly + open);
    assert!(text.contains(&said), "the counts are: {said}");
}
