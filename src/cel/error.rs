//! What can be wrong with an expression, and with its evaluation.

use std::fmt;

/// Something wrong at a place of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Offset in characters.
    pub at: usize,
    pub message: String,
}

/// Why an expression does not compile. `Display` is as upstream prints it, with the line and a mark below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompileError {
    source: String,
    problems: Vec<Problem>,
}

impl CompileError {
    /// Problems that are told of; more of them help nobody.
    const PROBLEMS_MAX: usize = 32;

    pub fn new(source: &str, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| problem.at);
        problems.dedup();
        problems.truncate(Self::PROBLEMS_MAX);
        Self { source: source.to_owned(), problems }
    }

    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl std::error::Error for CompileError {}

impl fmt::Display for CompileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            let (mut line, mut column) = (1, 0);
            for c in self.source.chars().take(problem.at) {
                if c == '\n' {
                    line += 1;
                    column = 0;
                } else {
                    column += 1;
                }
            }
            write!(f, "ERROR: <input>:{line}:{}: {}", column + 1, problem.message)?;
            if let Some(text) = self.source.lines().nth(line - 1) {
                write!(f, "\n | {}\n | {}^", text.replace('\t', " "), ".".repeat(column))?;
            }
        }
        Ok(())
    }
}

/// Why an evaluation has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    #[error("no such key: {0}")]
    NoSuchKey(String),
    #[error("no such overload")]
    NoSuchOverload,
    #[error("operation cancelled: actual cost limit exceeded")]
    OutOfBudget,
    #[error("{0}")]
    Other(String),
}

impl EvalError {
    pub fn other(text: impl Into<String>) -> Self {
        Self::Other(text.into())
    }
}
