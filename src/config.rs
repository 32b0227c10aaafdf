//! What a node is told when it starts, and where its directory is.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::format::ticket::Ticket;

/// The variable that names the data directory where `--data-dir` does not.
pub const DATA_DIR_VARIABLE: &str = "GABION_DATA_DIR";
/// The variable that holds a ticket, since arguments show in `ps`.
pub const TICKET_VARIABLE: &str = "GABION_TICKET";

/// The command line of a node, checked.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    pub listen: SocketAddr,
    /// Absolute.
    pub data_dir: PathBuf,
    pub join: Vec<Ticket>,
    /// Counts when a network is founded, and travels in its layouts.
    pub replicas: u8,
    /// `host:port` that others dial, where it is not what `listen` says.
    pub advertise: Option<String>,
    pub zone: Option<String>,
    /// Bytes that the records of the store may take; all that is free when absent.
    pub capacity: Option<u64>,
    /// Bytes of the cache.
    pub cache: u64,
    /// One a core when absent.
    pub threads: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DataDirError {
    #[error("no data directory: neither XDG_DATA_HOME nor HOME is set; give --data-dir DIR")]
    Homeless,
    #[error("the current directory cannot be read ({0}); give an absolute --data-dir DIR")]
    Here(String),
}

/// The data directory: as given, else from the environment, else the default; always absolute.
pub fn data_dir(given: Option<PathBuf>) -> Result<PathBuf, DataDirError> {
    let dir = given.or_else(|| directory_variable(DATA_DIR_VARIABLE)).map_or_else(default_data_dir, Ok)?;
    std::path::absolute(&dir).map_err(|error| DataDirError::Here(error.to_string()))
}

fn default_data_dir() -> Result<PathBuf, DataDirError> {
    let base = directory_variable("XDG_DATA_HOME").filter(|base| base.is_absolute());
    let base = base.or_else(|| directory_variable("HOME").map(|home| home.join(".local/share")));
    base.map(|base| base.join("gabion")).ok_or(DataDirError::Homeless)
}

fn directory_variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}
