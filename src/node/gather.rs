//! Work that is cheaper together: what comes while some is being done waits, and is done as one.
//!
//! ```text
//! item --(fewer than `runs_max` runs)--> run with all that waits --> each gets its own outcome
//!          |                                     |
//!          +-- else it waits <--- next run <-----+
//! ```
//! Nothing waits for company: a lone item is run at once, and runs grow by themselves with the load. A shard's own; runs
//! are tasks, so that one who gives up takes nobody else's work with it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use tokio::sync::oneshot;

use crate::io::spawn;

pub struct Gather<T, R> {
    waiting: RefCell<VecDeque<(T, oneshot::Sender<R>)>>,
    running: Cell<usize>,
    runs_max: usize,
    items_max: usize,
}

impl<T: 'static, R: 'static> Gather<T, R> {
    /// At most `runs_max` runs at a time, of at most `items_max` items each.
    pub fn new(runs_max: usize, items_max: usize) -> Rc<Self> {
        Rc::new(Self { waiting: RefCell::default(), running: Cell::new(0), runs_max, items_max })
    }

    /// Does `item` with others. `run` must give one outcome for each item, in their order; none comes back when the node
    /// stops in the middle of it.
    pub async fn join<F>(self: &Rc<Self>, item: T, run: impl Fn(Vec<T>) -> F + 'static) -> Option<R>
    where
        F: Future<Output = Vec<R>> + 'static,
    {
        let (tell, told) = oneshot::channel();
        self.waiting.borrow_mut().push_back((item, tell));
        if self.running.get() < self.runs_max {
            self.running.set(self.running.get() + 1);
            let gather = self.clone();
            spawn(async move {
                gather.run_waiting(run).await;
                gather.running.set(gather.running.get() - 1);
            });
        }
        told.await.ok()
    }

    async fn run_waiting<F: Future<Output = Vec<R>>>(&self, run: impl Fn(Vec<T>) -> F) {
        loop {
            let (items, tell): (Vec<T>, Vec<_>) = {
                let mut waiting = self.waiting.borrow_mut();
                let count = waiting.len().min(self.items_max);
                waiting.drain(..count).unzip()
            };
            if items.is_empty() {
                return;
            }
            for (tell, outcome) in tell.into_iter().zip(run(items).await) {
                let _ = tell.send(outcome);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_a_ring<F: Future>(future: F) -> F::Output {
        crate::io::Ring::new(&crate::io::RingOptions { entries: 8 }).unwrap().block_on(future)
    }

    #[test]
    fn what_comes_meanwhile_is_one_run_and_each_gets_its_own_outcome() {
        on_a_ring(async {
            let gather: Rc<Gather<u32, u32>> = Gather::new(1, 10);
            let runs: Rc<RefCell<Vec<Vec<u32>>>> = Rc::default();
            let (tell, told) = tokio::sync::mpsc::unbounded_channel();
            for item in 0..16 {
                let (gather, runs, tell) = (gather.clone(), runs.clone(), tell.clone());
                spawn(async move {
                    let run = move |items: Vec<u32>| {
                        runs.borrow_mut().push(items.clone());
                        async move {
                            crate::io::yield_now().await;
                            items.into_iter().map(|item| item * 2).collect()
                        }
                    };
                    tell.send((item, gather.join(item, run).await)).unwrap();
                });
            }
            drop(tell);
            let mut told = told;
            while let Some((item, outcome)) = told.recv().await {
                assert_eq!(outcome, Some(item * 2));
            }
            let runs = runs.borrow();
            assert_eq!(runs.concat(), (0..16).collect::<Vec<_>>());
            assert!(runs.len() <= 4 && runs.iter().all(|run| run.len() <= 10), "{runs:?}");
        });
    }

    #[test]
    fn who_gives_up_takes_nobody_along() {
        on_a_ring(async {
            let gather: Rc<Gather<u32, u32>> = Gather::new(1, 10);
            let run = |items: Vec<u32>| async move {
                crate::io::yield_now().await;
                items
            };
            let first = {
                let gather = gather.clone();
                spawn(async move {
                    gather.join(1, run).await;
                })
            };
            let second = gather.join(2, run);
            first.abort();
            assert_eq!(second.await, Some(2));
        });
    }
}
