//! The node: what turns the decisions of the layers below into I/O.

pub mod control;

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::config::NodeConfig;
use crate::format::NodeId;

/// What a node says of itself once it serves.
#[derive(Debug, Clone)]
pub struct Ready {
    pub node_id: NodeId,
    /// As bound: with the port that was chosen when 0 was asked for.
    pub listen: SocketAddr,
    pub data_dir: PathBuf,
    /// Whether it has just founded a network.
    pub founded: bool,
    pub member: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct NodeError {
    pub code: u8,
    pub message: String,
}

impl NodeError {
    pub fn exit_code(&self) -> u8 {
        self.code
    }
}

/// Runs a node until it is told to stop.
pub fn run(config: NodeConfig, on_ready: impl FnOnce(&Ready)) -> Result<(), NodeError> {
    let _ = on_ready;
    Err(NodeError { code: 1, message: format!("there is no node yet to run on {}", config.data_dir.display()) })
}
