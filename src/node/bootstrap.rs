//! The addresses of a ticket, kept on disk until the node knows a layout: whom it dials when it is started again without the
//! ticket, and has reached nobody before.
//!
//! A text file, one address a line. It holds no secret, and is only a hint: a line that is no address is left out.

use std::path::Path;

use crate::config::NodeConfig;
use crate::limits::{ADDRESS_BYTES_MAX, BOOTSTRAP_ADDRESSES_MAX};
use crate::node::start::write_durably;

const FILE: &str = "bootstrap";

/// Keeps the addresses of the tickets that this node was started with.
pub fn keep(config: &NodeConfig) -> std::io::Result<()> {
    let lines: String = of_tickets(config).into_iter().map(|address| address + "\n").collect();
    write_durably(&config.data_dir, FILE, lines.as_bytes())
}

/// The layout leads to everybody.
pub fn forget(data_dir: &Path) {
    match std::fs::remove_file(data_dir.join(FILE)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(%error, "the addresses of the ticket were not removed");
        }
        _ => {}
    }
}

/// Whom to dial while nobody is known: of the tickets given now, else of the one that the node joined with.
pub fn addresses(config: &NodeConfig) -> Vec<String> {
    let given = of_tickets(config);
    if !given.is_empty() {
        return given;
    }
    match std::fs::read_to_string(config.data_dir.join(FILE)) {
        Ok(lines) => parse(&lines),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            tracing::warn!(%error, "the addresses of the ticket cannot be read: start the node with --join TICKET");
            Vec::new()
        }
    }
}

fn of_tickets(config: &NodeConfig) -> Vec<String> {
    config.join.iter().flat_map(|ticket| ticket.addresses.iter().cloned()).take(BOOTSTRAP_ADDRESSES_MAX).collect()
}

fn parse(lines: &str) -> Vec<String> {
    let is_address = |line: &&str| !line.is_empty() && line.len() <= ADDRESS_BYTES_MAX && line.contains(':');
    lines.lines().map(str::trim).filter(is_address).take(BOOTSTRAP_ADDRESSES_MAX).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_are_no_addresses_are_left_out() {
        let long = format!("{}:1\n", "a".repeat(ADDRESS_BYTES_MAX));
        assert_eq!(parse(&format!("10.0.0.1:3000\n\nnothing\n{long} host:1 \n")), ["10.0.0.1:3000", "host:1"]);
        assert_eq!(parse(&"a:1\n".repeat(1000)).len(), BOOTSTRAP_ADDRESSES_MAX);
    }
}
