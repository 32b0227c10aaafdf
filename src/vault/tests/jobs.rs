//! Several jobs at once, cancelled gets, and what stays in memory.

use super::*;

#[test]
fn streams_that_share_crowded_pools_all_get_through() {
    // More lanes than buffers on every shard, and every job waits for turns across shards.
    let files: Vec<_> = (0..6).map(|seed| content(12 * CHUNK + 1, 30 + seed)).collect();
    let chunks = Chunks::new();
    let stored: Vec<_> = files.iter().map(|bytes| put_file(file_of(bytes), &chunks, WIDE).unwrap()).collect();
    std::thread::scope(|threads| {
        let mut readers = Vec::new();
        let mut jobs = Vec::new();
        for file in &stored {
            let (mut reader, writer) = std::io::pipe().unwrap();
            readers.push(threads.spawn(move || {
                let mut bytes = Vec::new();
                reader.read_to_end(&mut bytes).unwrap();
                bytes
            }));
            jobs.push(GetJob::new(get_options(file, None, Output::Stream(writer.into()), 4)));
        }
        on_shards(3, 3, async |shard, pool| {
            let tasks: Vec<_> = jobs
                .iter()
                .map(|job| {
                    let (job, chunks, pool) = (Arc::clone(job), Arc::clone(&chunks), pool.clone());
                    spawn(async move {
                        if let Some(result) = run_get_on(&job, &chunks, shard, pool).await {
                            result.unwrap();
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
            Some(())
        });
        drop(jobs);
        for (reader, bytes) in readers.into_iter().zip(&files) {
            assert!(reader.join().unwrap() == *bytes);
        }
    });
}

#[test]
fn a_get_is_never_further_ahead_than_its_lanes() {
    // Nobody reads the pipe: what is fetched is what the lanes hold, and the node above.
    let (chunks, file) = stored(&content(60 * CHUNK, 40));
    let (reader, writer) = std::io::pipe().unwrap();
    let job = GetJob::new(get_options(&file, None, Output::Stream(writer.into()), WIDE.width));
    let lanes = WIDE.width * WIDE.shards;
    let reader = Mutex::new(Some(reader));
    let result = on_shards(WIDE.shards, WIDE.buffers, async |shard, pool| {
        if shard > 0 {
            return run_get_on(&job, &chunks, shard, pool).await;
        }
        let watched = spawn({
            let (job, chunks, reader) = (Arc::clone(&job), Arc::clone(&chunks), reader.lock().unwrap().take());
            async move {
                while chunks.fetched().len() < lanes + 1 {
                    yield_now().await;
                }
                for _ in 0..200 {
                    yield_now().await;
                    assert_eq!(chunks.fetched().len(), lanes + 1);
                }
                job.cancel();
                drop(reader);
            }
        });
        let result = run_get_on(&job, &chunks, shard, pool).await;
        watched.await.unwrap();
        result
    });
    assert!(matches!(result, Err(GetError::Cancelled)), "{result:?}");
    assert_eq!(chunks.fetched().len(), lanes + 1);
}

#[test]
fn a_get_that_was_cancelled_before_it_began_fetches_nothing() {
    let (chunks, file) = stored(&content(3 * CHUNK, 41));
    let output = tempfile::tempfile().unwrap();
    let job = GetJob::new(get_options(&file, None, Output::File(output.into()), 4));
    job.cancel();
    assert!(matches!(run_get(&job, &chunks, WIDE), Err(GetError::Cancelled)));
    assert!(chunks.fetched().is_empty());
}

#[test]
fn progress_of_a_get_reaches_the_range() {
    let (chunks, file) = stored(&content(3 * CHUNK, 42));
    let output = tempfile::tempfile().unwrap();
    let job = GetJob::new(get_options(&file, Some(5..CHUNK as u64 + 9), Output::File(output.into()), 4));
    assert_eq!(job.leaf_count(), 2);
    run_get(&job, &chunks, WIDE).unwrap();
    let done = CHUNK as u64 + 4;
    assert_eq!(job.progress(), Progress { bytes_done: done, bytes_total: Some(done), bytes_new: done });
}

#[test]
fn a_put_with_one_buffer_a_shard_gets_through() {
    let bytes = content(10 * CHUNK + 3, 43);
    let chunks = Chunks::new();
    let shape = Shape { shards: 2, buffers: 1, width: 8 };
    let file = put_file(file_of(&bytes), &chunks, shape).unwrap();
    assert_eq!(put_stream(&bytes, &[65_536, 3], &chunks, shape).unwrap().root, file.root);
    let (got, result) = get_stream(&file, None, &chunks, shape);
    result.unwrap();
    assert!(got == bytes);
}
