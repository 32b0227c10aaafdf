//! A catalog whose disk has no space: what waits, what is refused, and how it goes on.

use super::*;

/// A catalog on a disk whose free space the test sets.
fn open_on(directory: &Path) -> (Catalog, Positions, Arc<AtomicU64>) {
    let free = Arc::new(AtomicU64::new(1 << 40));
    let told = free.clone();
    let free_bytes = Arc::new(move || Ok(told.load(Ordering::SeqCst)));
    let (catalog, positions) =
        Catalog::open_within(directory, Arc::new(|| Duration::ZERO), free_bytes).expect("the catalog opens");
    (catalog, positions, free)
}

/// The next write of the database fails as on a full disk.
async fn fail_next_write(catalog: &Catalog) {
    let failing = catalog.thread.ask(|engine| {
        engine.rows.fail_next_write = true;
        Ok(())
    });
    failing.await.expect("an answer");
}

/// Tries to write what waits, with a database that opens again or does not.
async fn retry(catalog: &Catalog, opens: bool) {
    let tried = catalog.thread.ask_name(move |engine| {
        engine.rows.fail_opens = !opens;
        engine.rows.retry_now().map_err(|error| panic!("{error}"))
    });
    tried.await.expect("an answer");
}

#[test]
fn what_comes_while_the_database_does_not_open_for_want_of_space_is_applied_later() {
    let directory = directory();
    let (catalog, _, _) = open_on(directory.path());
    let (first, second) = (record(1, 1, 1, 1, false), record(1, 1, 2, 2, false));
    block_on(async {
        catalog.apply(applied(1, 1, vec![Event::Name(first.encode())])).expect("room");
        assert_eq!(catalog.name(&first.bucket, &first.name).await.expect("an answer"), Some(first.clone()));
        fail_next_write(&catalog).await;
        catalog.apply(applied(1, 2, vec![refers(1, 1)])).expect("room");
        catalog.counts().await.expect("an answer");
        retry(&catalog, false).await;
        catalog.apply(applied(1, 3, vec![refers(2, 2), Event::Name(second.encode())])).expect("room");
        // Neither from memory nor from anywhere else.
        let asked = catalog.name(&first.bucket, &first.name).await;
        assert!(matches!(asked, Err(CatalogError::Full)), "{asked:?}");
        retry(&catalog, true).await;
        catalog.counts().await.expect("an answer");
        assert_eq!(catalog.name(&first.bucket, &first.name).await.expect("an answer"), Some(second.clone()));
        assert_eq!(catalog.references(&address(1)).await.expect("an answer"), [version(1)]);
        assert_eq!(catalog.references(&address(2)).await.expect("an answer"), [version(2)]);
        catalog.close().await.expect("it closes");
    });
    drop(catalog);
    assert_eq!(open_on(directory.path()).1.get(&1), Some(&3));
}

/// A commit in the middle of what is applied finds that the database does not open any more.
#[test]
fn what_is_left_of_a_batch_when_the_database_closes_is_applied_later() {
    let directory = directory();
    let (catalog, _, _) = open_on(directory.path());
    let count = CATALOG_COMMIT_EVENTS_MAX as u64 + 500;
    let chunk = |number: u64| {
        let mut address = Address([0; 32]);
        address.0[..8].copy_from_slice(&number.to_le_bytes());
        address
    };
    block_on(async {
        fail_next_write(&catalog).await;
        catalog.apply(applied(1, 1, vec![refers(1, 1)])).expect("room");
        catalog.counts().await.expect("an answer");
        let closing = catalog.thread.ask(|engine| {
            engine.rows.fail_opens = true;
            engine.rows.forget_when_it_was_tried();
            Ok(())
        });
        closing.await.expect("an answer");
        let events =
            (0..count).map(|number| Event::Chunk { address: chunk(number), version: version(2), cached: false });
        catalog.apply(applied(1, 2, events.collect())).expect("room");
        let asked = catalog.counts().await;
        assert!(matches!(asked, Err(CatalogError::Full)), "{asked:?}");
        let opening = catalog.thread.ask_name(|engine| {
            engine.rows.fail_opens = false;
            engine.rows.retry_now().map_err(|error| panic!("{error}"))
        });
        opening.await.expect("an answer");
        assert_eq!(catalog.counts().await.expect("an answer").references, count + 1);
        assert!(catalog.is_referenced(&chunk(count - 1)).await.expect("an answer"));
        catalog.close().await.expect("it closes");
    });
    drop(catalog);
    assert_eq!(open_on(directory.path()).1.get(&1), Some(&2));
}

async fn is_waiting(catalog: &Catalog) -> bool {
    catalog.thread.ask(|engine| Ok(engine.rows.is_waiting())).await.expect("an answer")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Without space, or with a write that fails for want of it: every question is answered as if it had been written, and
    /// once there is space it is, without a restart.
    #[test]
    fn full_disk_changes_no_answer(
        before in prop::collection::vec(any_event(), 0..20),
        during in prop::collection::vec(any_event(), 1..20),
        after in prop::collection::vec(any_event(), 0..10),
        fails in any::<bool>(),
        is_killed in any::<bool>(),
    ) {
        let all: Vec<Event> = [before.clone(), during.clone(), after.clone()].concat();
        let directory = directory();
        let (catalog, _, free) = open_on(directory.path());
        block_on(async {
            catalog.apply(applied(1, 1, before.clone())).expect("room");
            catalog.counts().await.expect("an answer");
            if fails { fail_next_write(&catalog).await } else { free.store(0, Ordering::SeqCst) }
            for event in &during {
                catalog.apply(applied(1, 2, vec![event.clone()])).expect("room");
            }
            catalog.counts().await.expect("an answer");
            prop_assert!(is_waiting(&catalog).await, "nothing was written");
            let seen = see(&catalog).await.expect("answers");
            prop_assert_eq!(&seen, &expected(&all[..before.len() + during.len()]));
            if !is_killed {
                free.store(1 << 40, Ordering::SeqCst);
                catalog.apply(applied(1, 3, after.clone())).expect("room");
                catalog.close().await.expect("it closes, and writes before");
            }
            Ok(())
        })?;
        drop(catalog);
        let (catalog, positions, _) = open_on(directory.path());
        if is_killed {
            prop_assert!(positions.get(&1).is_none_or(|at| *at <= 1), "{:?}", positions);
            catalog.apply(applied(1, 2, during)).expect("room");
            catalog.apply(applied(1, 3, after)).expect("room");
        } else {
            prop_assert_eq!(positions.get(&1), Some(&3));
        }
        prop_assert_eq!(&block_on(see(&catalog)).expect("answers"), &expected(&all));
    }
}

#[test]
fn full_disk_refuses_the_log_once_memory_is_full_and_goes_on_by_itself_when_there_is_space() {
    let directory = directory();
    let (catalog, _, free) = open_on(directory.path());
    block_on(async {
        free.store(0, Ordering::SeqCst);
        for batch in 0..=CATALOG_EVENTS_QUEUED_MAX as u64 / 1024 {
            let events = (0..1024).map(|number| refers((number % 250) as u8, 1)).collect();
            catalog.apply_now(applied(1, batch + 1, events));
        }
        assert!(matches!(catalog.room().await, Err(CatalogError::Full)));
        let refused = catalog.apply(applied(1, 99, vec![refers(1, 1)]));
        assert!(matches!(refused, Err(CatalogError::Full)), "a replay would wait for ever");
        assert!(catalog.is_referenced(&address(7)).await.expect("an answer"));
        free.store(1 << 40, Ordering::SeqCst);
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while catalog.room().await.is_err() {
            assert!(std::time::Instant::now() < deadline, "there is space, and it is not written");
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(!is_waiting(&catalog).await);
    });
}

/// What waits for space is too much to go on sweeping. Garbage is what gives space back, so it is told all the same.
#[test]
fn full_disk_keeps_no_garbage_back() {
    let directory = directory();
    let (catalog, _, free) = open_on(directory.path());
    block_on(async {
        catalog.apply(applied(1, 1, vec![refers(1, 1), death(&[1])])).expect("room");
        catalog.settled().await.expect("there is space");
        free.store(0, Ordering::SeqCst);
        let references = (0..CATALOG_WAITING_ROWS_MAX as u32 / 2).map(|number| Event::Chunk {
            address: many(number),
            version: version(2),
            cached: false,
        });
        catalog.apply_now(applied(1, 2, references.collect()));
        catalog.apply_now(applied(1, 3, vec![death(&[2])]));
        assert!(matches!(catalog.settled().await, Err(CatalogError::Full)));
        assert_eq!(catalog.garbage(10, Duration::ZERO).await.expect("an answer"), [address(1)]);
    });
}

#[test]
fn full_disk_at_the_end_is_no_failure() {
    let directory = directory();
    let (catalog, _, free) = open_on(directory.path());
    block_on(async {
        free.store(0, Ordering::SeqCst);
        catalog.apply(applied(1, 64, vec![refers(1, 1)])).expect("room");
        catalog.close().await.expect("what was not written is in the log");
    });
}
