//! How the programs fail: one line that says what to do, and a documented exit code.

use core::fmt;
use std::process::ExitCode;

/// Exit codes of `jump` and `jumpctl`; stable for scripts. 0 is success; 2 is wrong usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Anything without a code of its own.
    Failed = 1,
    /// The command line cannot mean anything.
    Usage = 2,
    /// The device is not enrolled.
    NotEnrolled = 3,
    /// A privilege is missing.
    Permission = 4,
    /// Control refused: revoked, expired, unknown, used up, or not allowed.
    Refused = 5,
    /// Control cannot be reached.
    Unreachable = 6,
    /// `jump` already runs with this state directory.
    AlreadyRunning = 7,
    /// `jump` does not run with this state directory.
    NotRunning = 8,
    /// What was asked for does not exist.
    NotFound = 9,
}

impl Exit {
    /// The meaning of another process's exit code; what is unknown is a plain failure.
    pub fn from_code(code: Option<i32>) -> Self {
        let known = [
            Self::Usage,
            Self::NotEnrolled,
            Self::Permission,
            Self::Refused,
            Self::Unreachable,
            Self::AlreadyRunning,
            Self::NotRunning,
            Self::NotFound,
        ];
        known.into_iter().find(|exit| code == Some(*exit as i32)).unwrap_or(Self::Failed)
    }
}

/// A failure that a person can act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The process's exit code.
    pub exit: Exit,
    /// One line: what is wrong and what to do.
    pub text: String,
}

impl Failure {
    /// A failure with its code.
    pub fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self { exit, text: text.into() }
    }

    /// A failure without a code of its own.
    pub fn other(text: impl Into<String>) -> Self {
        Self::new(Exit::Failed, text)
    }

    /// `what` failed for the reasons that `error` and its sources give.
    pub fn because(exit: Exit, what: impl fmt::Display, error: &dyn std::error::Error) -> Self {
        Self::new(exit, format!("{what}: {}", chain(error)))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

/// An error and its sources on one line, repetitions left out.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    text.replace('\n', " ")
}

/// Prints a failure as `program: text` and gives its exit code.
pub fn exit_with(program: &str, result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{program}: {failure}");
            ExitCode::from(failure.exit as u8)
        }
    }
}
