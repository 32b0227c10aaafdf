use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::*;
use crate::format::tree::TreeEntry;

fn slice<'a>(bytes: &'a [u8], range: &Range<u64>) -> &'a [u8] {
    &bytes[range.start as usize..range.end as usize]
}

fn plain(file: &PutResult, range: Option<Range<u64>>, chunks: &Chunks) -> Got {
    let mut out = Vec::new();
    let (_, result) = plain_to(file, range, chunks, PlainOutput::Stream(&mut out));
    (out, result)
}

/// And what was fetched.
fn plain_to(
    file: &PutResult,
    range: Option<Range<u64>>,
    chunks: &Chunks,
    out: PlainOutput<'_>,
) -> (Vec<Address>, Result<GetResult, GetError>) {
    let root = Root { address: file.root, key: file.root_key.clone(), depth: file.depth, length: file.length };
    let mut fetched = Vec::new();
    let mut fetch = |address: &Address, _len: usize| {
        fetched.push(*address);
        let mut bytes = chunks.bytes(address).ok_or(ChunkError::NotFound { address: *address })?;
        chunks.lie.as_ref().map_or(Ok(()), |lie| lie(address, 0, &mut bytes))?;
        Ok(bytes)
    };
    let mut told = 0;
    let result = get_plain(&root, range, &mut fetch, out, &mut |done| told = done);
    if let Ok(result) = &result {
        assert_eq!(told, result.bytes_written + result.bytes_resumed, "the progress is not the whole");
    }
    (fetched, result)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn a_range_is_the_slice_of_the_file(
        a in 0u64..=4 * CHUNK as u64 + 99, b in 0u64..=4 * CHUNK as u64 + 99, edge in 0u64..6, near in 0u64..3,
    ) {
        use std::sync::OnceLock;
        static FILE: OnceLock<(Vec<u8>, Arc<Chunks>, PutResult)> = OnceLock::new();
        let (bytes, chunks, file) = FILE.get_or_init(|| {
            let bytes = content(4 * CHUNK + 99, 10);
            let (chunks, file) = stored(&bytes);
            (bytes, chunks, file)
        });
        // Edges of chunks are where mistakes are made.
        let b = if edge < 5 { (edge * CHUNK as u64 + near).saturating_sub(1) } else { b };
        let range = a.min(b)..a.max(b);
        let (got, result) = get_file(file, Some(range.clone()), chunks, WIDE);
        prop_assert_eq!(result.unwrap().bytes_written, range.end - range.start);
        prop_assert!(got == slice(bytes, &range));
        let (got, result) = get_stream(file, Some(range.clone()), chunks, CROWDED);
        prop_assert_eq!(result.unwrap().bytes_written, range.end - range.start);
        prop_assert!(got == slice(bytes, &range));
        let (got, result) = plain(file, Some(range.clone()), chunks);
        prop_assert_eq!(result.unwrap().bytes_written, range.end - range.start);
        prop_assert!(got == slice(bytes, &range));
    }
}

#[test]
fn a_range_fetches_only_the_chunks_it_touches() {
    let (chunks, file) = stored(&content(6 * CHUNK, 11));
    let chunk = CHUNK as u64;
    let (_, result) = get_file(&file, Some(2 * chunk - 1..3 * chunk), &chunks, WIDE);
    result.unwrap();
    let fetched = chunks.fetched();
    assert_eq!((fetched.len(), fetched[0]), (3, file.root));
}

#[test]
fn a_plain_get_is_the_same_get() {
    for size in [0, 1, 40, CHUNK + 1, 3 * CHUNK] {
        let bytes = content(size, 12);
        let (chunks, file) = stored(&bytes);
        let (got, result) = plain(&file, None, &chunks);
        assert_eq!((result.unwrap().bytes_written, got == bytes), (size as u64, true), "{size} bytes");
    }
}

/// All three ways to get; none may bring out a byte.
fn assert_refused(file: &PutResult, chunks: &Arc<Chunks>, expected: impl Fn(&GetError) -> bool, case: &str) {
    let (got, result) = get_stream(file, None, chunks, WIDE);
    let error = result.expect_err(case);
    assert!(expected(&error) && got.is_empty(), "{case}: {error}");
    let (got, result) = get_file(file, None, chunks, NARROW);
    assert!(got.is_empty() && result.is_err_and(|error| expected(&error)), "{case}");
    let (got, result) = plain(file, None, chunks);
    assert!(got.is_empty() && result.is_err_and(|error| expected(&error)), "{case}");
}

#[test]
fn an_edited_link_brings_out_no_byte() {
    let (chunks, file) = stored(&content(3 * CHUNK + 50, 13));
    let is_tree = |error: &GetError| matches!(error, GetError::Tree(_));
    let is_damage = |error: &GetError| matches!(error, GetError::Chunk(ChunkError::Damaged { .. }));
    for depth in [0, 2, 3, 255] {
        assert_refused(&PutResult { depth, ..file.clone() }, &chunks, is_tree, "depth");
    }
    // The root then has another length than its chunk, or children of another span.
    assert_refused(&PutResult { length: 2 * CHUNK as u64 + 50, ..file.clone() }, &chunks, is_damage, "a leaf less");
    assert_refused(&PutResult { length: 5 * CHUNK as u64, ..file.clone() }, &chunks, is_damage, "a leaf more");
    for length in [file.length - 1, file.length + 1] {
        assert_refused(&PutResult { length, ..file.clone() }, &chunks, is_tree, "some bytes");
    }
    let root_key = ChunkKey::from_bytes([1; 32]);
    assert_refused(&PutResult { root_key, ..file.clone() }, &chunks, is_tree, "another key");
    let root = Address([9; 32]);
    let is_missing = |error: &GetError| matches!(error, GetError::Chunk(ChunkError::NotFound { .. }));
    assert_refused(&PutResult { root, ..file }, &chunks, is_missing, "another root");
}

#[test]
fn a_small_file_cannot_be_cut_by_its_length() {
    let is_refused = |error: &GetError| {
        matches!(error, GetError::Tree(TreeError::Padding { .. }) | GetError::Chunk(ChunkError::Damaged { .. }))
    };
    for size in [20, 31, 32, 33, 5000] {
        let (chunks, file) = stored(&vec![b'x'; size]);
        assert_refused(&PutResult { length: size as u64 - 1, ..file }, &chunks, is_refused, "cut");
    }
}

#[test]
fn a_forged_node_brings_out_no_byte() {
    let chunks = Chunks::new();
    let (address, key) = chunks.forge(0, &content(CHUNK, 14));
    let entry = |span: u64| TreeEntry { address, key: *key.as_bytes(), span: span.into() };
    let full = CHUNK as u64;
    let claimed = 3 * full;
    for (case, spans) in [
        ("too few", vec![full, full]),
        ("too many", vec![full; 4]),
        ("too short", vec![full, full, full - 1]),
        ("too long", vec![full, full, full + 1]),
        ("uneven", vec![full - 1, full + 1, full]),
        ("huge", vec![u64::MAX; 3]),
        ("nothing", vec![0; 3]),
    ] {
        let node: Vec<u8> = spans.iter().flat_map(|span| entry(*span).as_bytes().to_vec()).collect();
        let (root, root_key) = chunks.forge(1, &node);
        let file = PutResult { root, root_key, depth: 1, length: claimed, bytes_new: 0, chunks: 0 };
        let is_refused =
            |error: &GetError| matches!(error, GetError::Tree(_) | GetError::Chunk(ChunkError::Damaged { .. }));
        assert_refused(&file, &chunks, is_refused, case);
    }
}

#[test]
fn a_source_that_lies_at_first_is_asked_again() {
    let bytes = content(5 * CHUNK + 17, 15);
    let (honest, file) = stored(&bytes);
    let chunks = honest.with_lie(Box::new(|address, attempt, chunk| {
        match (attempt, address.0[1] % 2) {
            (0, 0) => chunk[0] ^= 1,
            (0, _) => *chunk.last_mut().unwrap() ^= 128,
            (1, _) => chunk.clear(),
            (2, _) => chunk.rotate_left(1),
            _ => {}
        }
        Ok(())
    }));
    for (got, result) in [get_file(&file, None, &chunks, WIDE), get_stream(&file, None, &chunks, WIDE)] {
        result.unwrap();
        assert!(got == bytes);
    }
    assert_eq!(chunks.damaged.load(Ordering::SeqCst), 2 * 3 * 7);
}

#[test]
fn a_source_that_only_lies_brings_out_no_wrong_byte() {
    let bytes = content(5 * CHUNK, 16);
    let (honest, file) = stored(&bytes);
    let leaf = blake_of_leaf(&bytes[3 * CHUNK..4 * CHUNK]);
    // It gives up in the end, or it never does.
    for patience in [2, u32::MAX] {
        let chunks = honest.with_lie(Box::new(move |address, attempt, chunk| {
            if *address == leaf {
                chunk[77] ^= 4;
                if attempt >= patience {
                    return Err(ChunkError::Damaged { address: *address });
                }
            }
            Ok(())
        }));
        let is_damage = |result: Result<GetResult, GetError>| matches!(result, Err(GetError::Chunk(ChunkError::Damaged { address })) if address == leaf);
        let (got, result) = get_stream(&file, None, &chunks, WIDE);
        assert!(is_damage(result) && bytes.starts_with(&got) && got.len() <= 3 * CHUNK);
        let (got, result) = get_file(&file, None, &chunks, WIDE);
        assert!(is_damage(result));
        // Leaves are there, or they are holes.
        for (piece, right) in got.chunks(CHUNK).zip(bytes.chunks(CHUNK)) {
            assert!(piece == right || piece.iter().all(|byte| *byte == 0));
        }
    }
}

fn blake_of_leaf(plaintext: &[u8]) -> Address {
    seal_chunk(&scope(), 0, &mut plaintext.to_vec(), plaintext.len()).0
}

/// Gets over what is in the file already; a plain get does it alike.
fn resume(file: &PutResult, there: &[u8], range: Option<Range<u64>>, chunks: &Arc<Chunks>) -> Got {
    let output = file_of(there);
    let fd = OwnedFd::from(output.try_clone().unwrap());
    let job = GetJob::new(GetOptions { resume: true, ..get_options(file, range.clone(), Output::File(fd), 4) });
    let fetched_before = chunks.fetched().len();
    let result = run_get(&job, chunks, WIDE);
    let output_plain = file_of(there);
    let (fetched, plainly) = plain_to(file, range, chunks, PlainOutput::File(&output_plain));
    assert_eq!(result.as_ref().unwrap(), plainly.as_ref().unwrap());
    assert_eq!(fetched.len(), chunks.fetched().len() - fetched_before);
    let got = all_of(output);
    assert!(got == all_of(output_plain));
    (got, result)
}

#[test]
fn resuming_keeps_what_is_right_and_mends_the_rest() {
    let bytes = content(6 * CHUNK + 10, 17);
    let (chunks, file) = stored(&bytes);
    let mut there = bytes.clone();
    there[2 * CHUNK + 5] ^= 1;
    there[5 * CHUNK..6 * CHUNK].fill(0);
    there.extend_from_slice(b"the tail of something longer");
    let (got, result) = resume(&file, &there, None, &chunks);
    let expected = GetResult { bytes_written: 2 * CHUNK as u64, bytes_resumed: 4 * CHUNK as u64 + 10 };
    assert_eq!((result.unwrap(), got == bytes), (expected, true));
    // The root and two leaves.
    assert_eq!(chunks.fetched().len(), 3);
}

#[test]
fn resuming_from_a_part_fetches_only_the_rest() {
    let bytes = content(6 * CHUNK + 10, 18);
    let (chunks, file) = stored(&bytes);
    let (got, result) = resume(&file, &bytes[..3 * CHUNK + 99], None, &chunks);
    assert_eq!((result.unwrap().bytes_resumed, got == bytes), (3 * CHUNK as u64, true));
    let (got, result) = resume(&file, &[], None, &chunks);
    assert_eq!((result.unwrap().bytes_resumed, got == bytes), (0, true));
    let range = CHUNK as u64 + 1..6 * CHUNK as u64 + 3;
    let right = slice(&bytes, &range).to_vec();
    let (got, result) = resume(&file, &right, Some(range), &chunks);
    assert_eq!((result.unwrap().bytes_resumed, got == right), (4 * CHUNK as u64, true));
}

#[test]
fn a_get_cuts_off_an_older_longer_content() {
    let bytes = content(100, 19);
    let (chunks, file) = stored(&bytes);
    let output = file_of(&[1; 5000]);
    let fd = OwnedFd::from(output.try_clone().unwrap());
    run_get(&GetJob::new(get_options(&file, None, Output::File(fd), 2)), &chunks, WIDE).unwrap();
    assert_eq!(all_of(output), bytes);
}

#[test]
fn a_closed_output_is_told_from_a_failing_one() {
    let (chunks, file) = stored(&content(4 * CHUNK, 20));
    let (reader, writer) = std::io::pipe().unwrap();
    let job = GetJob::new(get_options(&file, None, Output::Stream(writer.into()), 4));
    drop(reader);
    assert!(matches!(run_get(&job, &chunks, WIDE), Err(GetError::OutputClosed)));
    let full = File::options().write(true).open("/dev/full").unwrap();
    let job = GetJob::new(get_options(&file, None, Output::Stream(full.into()), 4));
    assert!(matches!(run_get(&job, &chunks, WIDE), Err(GetError::Output(_))));
}

/// Long enough to be written past the page cache, with a last leaf that is no whole blocks.
fn long() -> (Vec<u8>, Arc<Chunks>, PutResult) {
    let bytes = content(DIRECT_OUTPUT_BYTES_MIN as usize + 3 * CHUNK / 2 + 77, 21);
    let (chunks, file) = stored(&bytes);
    (bytes, chunks, file)
}

#[test]
fn a_long_output_is_right_wherever_it_begins_and_whatever_it_held() {
    let (bytes, chunks, file) = long();
    let len = bytes.len() as u64;
    for range in [0..len, 4096..len - 77, CHUNK as u64..len - 1, 1..len - 1] {
        let (got, result) = get_file(&file, Some(range.clone()), &chunks, WIDE);
        assert_eq!(result.unwrap().bytes_written, range.end - range.start);
        assert!(got == slice(&bytes, &range), "{range:?}");
    }
    let mut there = bytes.clone();
    there[5 * CHUNK] ^= 1;
    there[len as usize - 1] ^= 1;
    there.extend_from_slice(b"the tail of something longer");
    let (got, result) = resume(&file, &there, None, &chunks);
    assert_eq!(result.unwrap().bytes_written, CHUNK as u64 + len % CHUNK as u64);
    assert!(got == bytes);
}

/// What is in the output after a get of which the leaves from `failing` on cannot be had; from none on, the root neither.
fn cut_off(output: File, failing: Option<usize>, (bytes, chunks, file): &(Vec<u8>, Arc<Chunks>, PutResult)) -> Vec<u8> {
    let mut wrong: Vec<Address> = bytes.chunks(CHUNK).skip(failing.unwrap_or(0)).map(blake_of_leaf).collect();
    wrong.extend(failing.is_none().then_some(file.root));
    let lie = move |address: &Address, _, _: &mut Vec<u8>| match wrong.contains(address) {
        true => Err(ChunkError::NotFound { address: *address }),
        false => Ok(()),
    };
    let fd = OwnedFd::from(output.try_clone().unwrap());
    let options = GetOptions { resume: true, ..get_options(file, None, Output::File(fd), 4) };
    let result = run_get(&GetJob::new(options), &chunks.with_lie(Box::new(lie)), WIDE);
    assert!(matches!(result, Err(GetError::Chunk(ChunkError::NotFound { .. }))));
    all_of(output)
}

#[test]
fn a_long_output_that_is_given_up_keeps_what_came_and_no_reserved_space() {
    let long = long();
    assert!(cut_off(file_of(&[]), Some(0), &long).is_empty());
    assert!(cut_off(file_of(&[]), None, &long).is_empty());
    let half = cut_off(file_of(&[]), Some(8), &long);
    assert!(half.len() <= 8 * CHUNK, "{} bytes", half.len());
    // Each leaf has come or has not.
    for (got, wanted) in half.chunks(CHUNK).zip(long.0.chunks(CHUNK)) {
        assert!(got == wanted || got.iter().all(|byte| *byte == 0));
    }
}

#[test]
fn what_was_there_stays_when_a_get_is_given_up() {
    let long = long();
    let there = &long.0[..10 * CHUNK + 5];
    assert!(cut_off(file_of(there), Some(8), &long) == there);
    assert!(cut_off(file_of(there), None, &long) == there);
    let bytes = content(10 * CHUNK, 22);
    let (chunks, file) = stored(&bytes);
    let short = (bytes, chunks, file);
    assert!(cut_off(file_of(&short.0[..8 * CHUNK]), None, &short) == short.0[..8 * CHUNK]);
}

#[test]
fn space_that_a_crash_left_reserved_is_neither_read_nor_kept() {
    let long = long();
    let (bytes, chunks, file) = &long;
    let crashed = || {
        let output = file_of(&bytes[..3 * CHUNK]);
        output.set_len(bytes.len() as u64).unwrap();
        output
    };
    assert!(cut_off(crashed(), None, &long) == bytes[..3 * CHUNK]);
    let output = crashed();
    let fd = OwnedFd::from(output.try_clone().unwrap());
    let job = GetJob::new(GetOptions { resume: true, ..get_options(file, None, Output::File(fd), 4) });
    let result = run_get(&job, chunks, WIDE).unwrap();
    assert_eq!(result.bytes_resumed, 3 * CHUNK as u64);
    assert!(all_of(output) == *bytes);
}
