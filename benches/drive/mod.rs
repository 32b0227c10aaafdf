//! Closed-loop load from the tasks of one ring.

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;

/// Runs `operation` for each number below `operations`, at most `in_flight` at once.
pub async fn drive<F, O>(operations: u64, in_flight: usize, operation: F)
where
    F: Fn(u64) -> O + 'static,
    O: Future<Output = ()>,
{
    let (next, operation) = (Rc::new(Cell::new(0)), Rc::new(operation));
    let workers: Vec<_> = (0..in_flight)
        .map(|_| {
            let (next, operation) = (next.clone(), operation.clone());
            gabion::io::spawn(async move {
                while next.get() < operations {
                    let number = next.replace(next.get() + 1);
                    operation(number).await;
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.unwrap();
    }
}
