use std::os::unix::fs::FileExt;
use std::time::{Duration, SystemTime};

use super::*;
use crate::format::tree::depth_of;

const SIZES: [usize; 10] = [0, 1, 31, 32, 33, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 9 * CHUNK + 4321];

#[test]
fn every_size_comes_back_from_files_and_streams() {
    for (size, seed) in SIZES.into_iter().zip(0..) {
        let bytes = content(size, seed);
        for shape in [WIDE, NARROW, CROWDED] {
            let chunks = Chunks::new();
            let file = put_file(file_of(&bytes), &chunks, shape).unwrap();
            assert_eq!((file.length, file.depth), (size as u64, depth_of(size as u64)));
            assert_eq!(file.chunks, chunks.count() as u64);
            let again = put_stream(&bytes, &[70_001, 1, 4096, 333], &chunks, shape).unwrap();
            assert_eq!((again.root, again.bytes_new), (file.root, 0), "a stream of {size} bytes is the same file");
            assert_eq!(again.root_key.as_bytes(), file.root_key.as_bytes());
            for (got, result) in [get_file(&file, None, &chunks, shape), get_stream(&file, None, &chunks, shape)] {
                assert_eq!(result.unwrap(), GetResult { bytes_written: size as u64, bytes_resumed: 0 });
                assert!(got == bytes, "{size} bytes differ");
            }
        }
    }
}

/// Whoever changes one of these has changed the format: files stored before would not be found by their content.
#[test]
fn the_root_of_known_content_never_changes() {
    for (size, root, key) in [
        (5, "4ce63e2d79121368fc27688c591fe7ce1e9218abac0c2b2c5e7c24409dcef6bc", "0e1b57808b8f63d6"),
        (CHUNK, "3e2f4337e7c5199481ac2cb0541de57777c30f824a7a1dedf971c0a874664ae3", "5cfad1a061c388d0"),
        (CHUNK + 1, "a3bd901d49b254822e2ccb329ef1ad1dd2fb8dd41e6e29aada61abecc5fac9d8", "cda17194c2472f3c"),
    ] {
        let (_, file) = stored(&content(size, 99));
        let root_key = data_encoding::HEXLOWER.encode(&file.root_key.as_bytes()[..8]);
        assert_eq!((&*file.root.to_string(), &*root_key), (root, key), "{size} bytes");
    }
}

#[test]
fn the_empty_file_has_no_chunk() {
    let chunks = Chunks::new();
    for file in [put_file(file_of(&[]), &chunks, WIDE), put_stream(&[], &[1], &chunks, WIDE)] {
        let file = file.unwrap();
        assert_eq!((file.root, file.root_key.as_bytes(), file.depth), (Address::ZERO, &[0; 32], 0));
        assert_eq!((file.length, file.chunks, chunks.count()), (0, 0, 0));
    }
}

#[test]
fn bytes_new_counts_each_chunk_once() {
    let bytes = content(CHUNK, 1).repeat(3);
    let (chunks, file) = stored(&bytes);
    assert_eq!((file.chunks, chunks.count()), (4, 2));
    assert_eq!(file.bytes_new, (CHUNK + 3 * 72) as u64);
}

#[test]
fn progress_reaches_the_length() {
    let bytes = content(3 * CHUNK + 9, 2);
    let job = put_job(Input::of(file_of(&bytes).into()), 4);
    assert_eq!((job.leaf_count(), job.progress().bytes_total), (Some(4), Some(bytes.len() as u64)));
    let file = run_put(&job, &Chunks::new(), WIDE).unwrap();
    let progress = job.progress();
    assert_eq!((progress.bytes_done, progress.bytes_new), (bytes.len() as u64, file.bytes_new));
}

#[test]
fn stale_bytes_of_a_buffer_never_get_into_a_chunk() {
    let chunks = Chunks::new();
    let long = content(CHUNK, 3);
    on_shards(1, 1, async |_, pool| {
        // One buffer for all: the short file is sealed where the long one was.
        for bytes in [&long[..], b"short"] {
            let job = put_job(Input::of(file_of(bytes).into()), 1);
            run_put_on(&job, &chunks, 0, pool.clone()).await.unwrap().unwrap();
        }
        Some(())
    });
    let (lonely, file) = stored(b"short");
    assert_eq!(chunks.bytes(&file.root), lonely.bytes(&file.root));
    assert!(chunks.bytes(&file.root).is_some_and(|chunk| chunk.len() == 32));
}

/// Puts a file that `change` is done to while its third chunk is stored.
fn put_while(change: impl Fn(&File) + Send + Sync + 'static) -> Result<PutResult, PutError> {
    let file = file_of(&content(6 * CHUNK, 4));
    let other = file.try_clone().unwrap();
    let on_store: Hook = Box::new(move |number| {
        if number == 2 {
            change(&other);
        }
        Ok(())
    });
    put_file(file, &Arc::new(Chunks { on_store: Some(on_store), ..Chunks::default() }), NARROW)
}

#[test]
fn a_file_that_changes_meanwhile_is_refused() {
    put_while(|_| ()).unwrap();
    let changes: [fn(&File); 4] = [
        |file| file.set_len(5 * CHUNK as u64).unwrap(),
        |file| file.set_len(7 * CHUNK as u64).unwrap(),
        |file| file.write_all_at(b"more", 6 * CHUNK as u64).unwrap(),
        |file| {
            file.write_all_at(b"other", 0).unwrap();
            // The clock of a file steps; make sure that it has.
            file.set_modified(SystemTime::now() + Duration::from_secs(3)).unwrap();
        },
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let result = put_while(change);
        assert!(matches!(result, Err(PutError::Changed)), "change {number}: {result:?}");
    }
}

#[test]
fn a_file_that_is_not_as_long_as_was_said_is_refused() {
    for len in [9, 11] {
        let input = Input { fd: file_of(&[1; 10]).into(), kind: InputKind::Regular { len } };
        let result = run_put(&put_job(input, 2), &Chunks::new(), WIDE);
        assert!(matches!(result, Err(PutError::Changed)), "{result:?}");
    }
}

#[test]
fn an_input_that_cannot_be_read_is_an_error() {
    let (_reader, writer) = std::io::pipe().unwrap();
    let result = run_put(&put_job(Input::of(writer.into()), 2), &Chunks::new(), WIDE);
    assert!(matches!(result, Err(PutError::Input(_))), "{result:?}");
}

#[test]
fn the_first_error_of_a_sink_stops_the_put() {
    for failing in [0, 5, 20] {
        let on_store: Hook = Box::new(move |number| if number == failing { Err(ChunkError::NoSpace) } else { Ok(()) });
        let chunks = Arc::new(Chunks { on_store: Some(on_store), ..Chunks::default() });
        // The twentieth store is the root's.
        let result = put_file(file_of(&content(20 * CHUNK, 5)), &chunks, WIDE);
        assert!(matches!(result, Err(PutError::Chunk(ChunkError::NoSpace))), "{result:?}");
        assert!(chunks.stores.load(Ordering::SeqCst) <= failing + 1 + WIDE.shards * WIDE.width);
    }
}

#[test]
fn a_cancelled_put_begins_no_further_chunk() {
    let bytes = content(40 * CHUNK, 6);
    let job_cell: Arc<Mutex<Option<Arc<PutJob>>>> = Arc::default();
    let cancelled = Arc::clone(&job_cell);
    let on_store: Hook = Box::new(move |number| {
        if number == 7 {
            cancelled.lock().unwrap().as_ref().unwrap().cancel();
        }
        Ok(())
    });
    let chunks = Arc::new(Chunks { on_store: Some(on_store), ..Chunks::default() });
    let job = put_job(Input::of(file_of(&bytes).into()), WIDE.width);
    *job_cell.lock().unwrap() = Some(Arc::clone(&job));
    let result = run_put(&job, &chunks, WIDE);
    assert!(matches!(result, Err(PutError::Cancelled)), "{result:?}");
    assert!(chunks.stores.load(Ordering::SeqCst) <= 8 + WIDE.shards * WIDE.width);
}

#[test]
fn a_put_of_a_silent_stream_can_be_cancelled() {
    let (reader, writer) = std::io::pipe().unwrap();
    let writer = Mutex::new(Some(writer));
    let job = put_job(Input::of(reader.into()), 2);
    let chunks = Chunks::new();
    let result = on_shards(1, 2, async |_, pool| {
        let sink = Rc::new(Door(Arc::clone(&chunks)));
        let (worker_job, worker_pool, worker_sink) = (Arc::clone(&job), pool.clone(), Rc::clone(&sink));
        let worker = spawn(async move { worker_job.work(&worker_pool, &worker_sink).await });
        while pool.available() == 2 {
            yield_now().await;
        }
        job.cancel();
        let result = job.finish(&pool, &sink).await;
        // The lane that reads ends with the stream, and what came meanwhile goes nowhere.
        let mut writer = writer.lock().unwrap().take().unwrap();
        writer.write_all(b"too late").unwrap();
        drop(writer);
        worker.await.unwrap();
        Some(result)
    });
    assert!(matches!(result, Err(PutError::Cancelled)), "{result:?}");
    assert_eq!(chunks.count(), 0);
}

/// A chunk as the format describes it, written down once more: key from the plaintext, zeros up to 32 bytes, AES-256 in
/// counter mode with the standard counter, BLAKE3 of the result.
fn chunk_by_the_book(level: u8, plaintext: &[u8]) -> (Address, [u8; 32]) {
    use ctr::cipher::{KeyIvInit, StreamCipher};
    let level_key = blake3::derive_key(&format!("gabion v1 chunk key level {level}"), &[7; 32]);
    let key = *blake3::keyed_hash(&level_key, plaintext).as_bytes();
    let mut chunk = plaintext.to_vec();
    chunk.resize(plaintext.len().max(32), 0);
    ctr::Ctr128BE::<aes::Aes256>::new(&key.into(), &[0; 16].into()).apply_keystream(&mut chunk);
    (Address(*blake3::hash(&chunk).as_bytes()), key)
}

#[test]
fn a_stored_tree_is_what_the_format_says() {
    let bytes = content(3 * CHUNK + 7, 21);
    let (_, file) = stored(&bytes);
    let node: Vec<u8> = bytes
        .chunks(CHUNK)
        .flat_map(|leaf| {
            let (address, key) = chunk_by_the_book(0, leaf);
            [&address.0[..], &key, &(leaf.len() as u64).to_le_bytes()].concat()
        })
        .collect();
    let (root, key) = chunk_by_the_book(1, &node);
    assert_eq!((file.root, file.root_key.as_bytes()), (root, &key));
    let (_, tiny) = stored(b"tiny");
    let (root, key) = chunk_by_the_book(0, b"tiny");
    assert_eq!((tiny.root, tiny.root_key.as_bytes()), (root, &key));
}
