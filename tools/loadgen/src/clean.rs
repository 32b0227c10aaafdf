//! Removes what a run put, from nodes that somebody else goes on using.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use gabion::cli::exit::Exit;
use gabion::node::control::ControlRequest;
use gabion::node::control::client::ClientError;

use crate::nodes::Node;
use crate::operation::{Subject, key};

/// Removals at a time.
const CLEANERS: usize = 16;

/// Removes every object that may exist; how many are left.
pub fn remove_all(subject: &Subject, nodes: &[Node]) -> u64 {
    let numbers = subject.ledger.leftovers();
    let (next, left) = (AtomicUsize::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..CLEANERS {
            scope.spawn(|| {
                while let Some(number) = numbers.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if !nodes.iter().any(|node| is_removed(subject, node, *number)) {
                        left.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    left.into_inner()
}

fn is_removed(subject: &Subject, node: &Node, number: u64) -> bool {
    let request = ControlRequest::Remove { bucket: subject.bucket.clone(), key: key(number) };
    match node.connect().and_then(|mut client| client.run(&request, None, |_| ())) {
        Ok(()) => true,
        Err(ClientError::Failed { code, .. }) => code == Exit::NotFound.code(),
        Err(_) => false,
    }
}
