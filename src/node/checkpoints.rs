//! Checkpoints of the index while the node runs, so that a start after a crash reads few footers.

use std::rc::Rc;

use super::shard::Shard;
use crate::io::spawn;
use crate::limits::CHECKPOINT_LOOK_INTERVAL;

pub fn start(shard: &Rc<Shard>) {
    let shard = shard.clone();
    spawn(async move {
        let stopping = shard.node.stopping();
        loop {
            tokio::select! {
                () = stopping.clone().wait() => return,
                () = tokio::time::sleep(CHECKPOINT_LOOK_INTERVAL) => {}
            }
            if !shard.store.checkpoint_is_due() {
                continue;
            }
            match shard.store.checkpoint().await {
                Ok(()) => tracing::debug!("the index is checkpointed"),
                Err(error) => tracing::warn!(%error, "no checkpoint: a start after a crash will take longer"),
            }
        }
    });
}
