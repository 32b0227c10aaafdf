//! How a command ends: its exit code, and one line that says why.
//!
//! | code | meaning |
//! | --- | --- |
//! | 0 | done |
//! | 1 | anything else went wrong |
//! | 2 | the command line is wrong |
//! | 3 | done in part; of a node: it runs, degraded |
//! | 4 | not found |
//! | 5 | network: no node, no peer, no answer |
//! | 6 | integrity: damaged data, and no good copy |
//! | 7 | key or admission: not allowed, a damaged ticket or link, a missing key |
//! | 8 | no space, or too few nodes |
//! | 130 | interrupted |

use crate::node::control::client::ClientError;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Done = 0,
    Other = 1,
    Usage = 2,
    Partial = 3,
    NotFound = 4,
    Network = 5,
    Integrity = 6,
    Key = 7,
    NoSpace = 8,
    Interrupted = 130,
}

impl Exit {
    pub fn code(self) -> u8 {
        self as u8
    }
}

/// A command that did not work. The message is one line and names the thing and the way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub code: u8,
    pub message: String,
}

impl Failure {
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { code: exit.code(), message: message.into() }
    }

    pub fn other(message: impl Into<String>) -> Self {
        Self::new(Exit::Other, message)
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Nothing more to say: the results already said it.
    pub fn silent(exit: Exit) -> Self {
        Self::new(exit, "")
    }

    pub fn interrupted(message: impl Into<String>) -> Self {
        Self::new(Exit::Interrupted, message)
    }

    pub fn is_network(&self) -> bool {
        self.code == Exit::Network.code()
    }

    /// The same failure, with the thing that it happened to in front, unless the node has said it already.
    pub fn at(mut self, thing: impl std::fmt::Display) -> Self {
        let prefix = format!("{thing}: ");
        if !self.message.starts_with(&prefix) {
            self.message.insert_str(0, &prefix);
        }
        self
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let code = match &error {
            ClientError::NoNode { .. } | ClientError::Lost { .. } | ClientError::Silent { .. } => Exit::Network.code(),
            ClientError::Refused { .. } => Exit::Key.code(),
            ClientError::Protocol { .. } => Exit::Other.code(),
            ClientError::Failed { code, .. } => *code,
        };
        Self { code, message: error.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_its_thing_once() {
        let message = |text: &str| Failure::other(text).at(format_args!("main/{}", "f20")).message;
        assert_eq!(message("it is damaged"), "main/f20: it is damaged");
        assert_eq!(message("main/f20: it is damaged"), "main/f20: it is damaged");
        assert_eq!(message("main/f2: it is damaged"), "main/f20: main/f2: it is damaged");
    }
}
