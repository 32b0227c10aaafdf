use super::*;

const NOW_MS: u64 = 1_800_000_000_000;
const MEMORY_MS: u64 = REPLAY_MEMORY.as_millis() as u64;

fn load(directory: &Path, now_ms: u64) -> ReplayFilter {
    ReplayFilter::load(directory, now_ms).unwrap()
}

fn is_replayed(result: Result<(), ReplayRefused>) -> bool {
    matches!(result, Err(ReplayRefused::Replayed))
}

fn ephemeral(number: u64) -> [u8; 32] {
    *blake3::hash(&number.to_le_bytes()).as_bytes()
}

fn source(number: u32) -> Source {
    Source::V4(number.to_be_bytes())
}

#[test]
fn an_opening_is_admitted_once() {
    let directory = tempfile::tempdir().unwrap();
    let filter = load(directory.path(), NOW_MS);
    filter.admit(&[1; 32], source(1), NOW_MS).unwrap();
    filter.admit(&[2; 32], source(1), NOW_MS).unwrap();
    assert!(is_replayed(filter.admit(&[1; 32], source(1), NOW_MS)));
    assert!(is_replayed(filter.admit(&[1; 32], source(1), NOW_MS + MEMORY_MS)));
}

#[test]
fn an_opening_is_remembered_by_the_process_after_a_killed_one() {
    let directory = tempfile::tempdir().unwrap();
    let filter = load(directory.path(), NOW_MS);
    filter.admit(&[1; 32], source(1), NOW_MS).unwrap();
    // As after kill -9: nothing of the old process runs again.
    std::mem::forget(filter);
    let filter = load(directory.path(), NOW_MS + 1000);
    assert!(is_replayed(filter.admit(&[1; 32], source(1), NOW_MS + 1000)));
    filter.admit(&[2; 32], source(1), NOW_MS + 1000).unwrap();
    let filter = load(directory.path(), NOW_MS + 2000);
    assert!(is_replayed(filter.admit(&[1; 32], source(1), NOW_MS + 2000)));
    assert!(is_replayed(filter.admit(&[2; 32], source(1), NOW_MS + 2000)));
}

#[test]
fn the_entry_is_in_the_file_before_admission_returns() {
    let directory = tempfile::tempdir().unwrap();
    let filter = load(directory.path(), NOW_MS);
    filter.admit(&[7; 32], source(1), NOW_MS).unwrap();
    let bytes = std::fs::read(directory.path().join(REPLAY_FILE)).unwrap();
    assert_eq!(bytes, [&MAGIC[..], &NOW_MS.to_le_bytes(), &[7; 32]].concat());
}

#[test]
fn a_torn_last_entry_is_dropped_and_the_others_stay() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(REPLAY_FILE);
    let filter = load(directory.path(), NOW_MS);
    filter.admit(&[1; 32], source(1), NOW_MS).unwrap();
    filter.admit(&[2; 32], source(1), NOW_MS).unwrap();
    drop(filter);
    let bytes = std::fs::read(&path).unwrap();
    for cut in 1..size_of::<Entry>() {
        std::fs::write(&path, &bytes[..bytes.len() - cut]).unwrap();
        let filter = load(directory.path(), NOW_MS);
        assert!(is_replayed(filter.admit(&[1; 32], source(1), NOW_MS)));
        filter.admit(&[2; 32], source(1), NOW_MS).unwrap();
        let filter = load(directory.path(), NOW_MS);
        assert!(is_replayed(filter.admit(&[2; 32], source(1), NOW_MS)), "shifted after {cut} bytes were lost");
    }
}

#[test]
fn what_is_older_than_its_memory_is_forgotten_in_memory_and_file() {
    let directory = tempfile::tempdir().unwrap();
    let filter = load(directory.path(), NOW_MS);
    filter.admit(&[1; 32], source(1), NOW_MS).unwrap();
    filter.admit(&[2; 32], source(1), NOW_MS + MEMORY_MS + 1).unwrap();
    assert_eq!(filter.seen.lock().unwrap().ephemerals.len(), 1);
    drop(filter);
    drop(load(directory.path(), NOW_MS + MEMORY_MS + 1));
    let bytes = std::fs::read(directory.path().join(REPLAY_FILE)).unwrap();
    assert_eq!(bytes.len(), MAGIC.len() + size_of::<Entry>());
}

#[test]
fn a_clock_set_back_forgets_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let filter = load(directory.path(), NOW_MS);
    filter.admit(&[1; 32], source(1), NOW_MS).unwrap();
    assert!(is_replayed(filter.admit(&[1; 32], source(1), NOW_MS - 10 * MEMORY_MS)));
    let filter = load(directory.path(), NOW_MS - 10 * MEMORY_MS);
    assert!(is_replayed(filter.admit(&[1; 32], source(1), NOW_MS)));
}

#[test]
fn the_file_does_not_grow_with_the_years() {
    let directory = tempfile::tempdir().unwrap();
    let filter = load(directory.path(), NOW_MS);
    let mut longest = 0;
    for number in 0..10_000 {
        // 18 a minute: 540 are remembered at any time.
        filter.admit(&ephemeral(number), source(1), NOW_MS + number * 3333).unwrap();
        longest = longest.max(std::fs::metadata(directory.path().join(REPLAY_FILE)).unwrap().len());
    }
    assert!(longest < 3000 * 40, "{longest} bytes");
    let last = NOW_MS + 9_999 * 3333;
    let filter = load(directory.path(), last);
    assert!((9_500..10_000).all(|number| is_replayed(filter.admit(&ephemeral(number), source(1), last))));
}

#[test]
fn a_flood_is_refused_and_does_not_push_anything_out() {
    let directory = tempfile::tempdir().unwrap();
    let filter = load(directory.path(), NOW_MS);
    for number in 0..REPLAY_ENTRIES_MAX as u32 {
        let source = source(number / REPLAY_ENTRIES_PER_SOURCE_MAX as u32 + 100);
        filter.admit(&ephemeral(number.into()), source, NOW_MS).unwrap();
    }
    assert!(matches!(filter.admit(&[1; 32], source(1), NOW_MS), Err(ReplayRefused::Full)));
    assert!(is_replayed(filter.admit(&ephemeral(0), source(1), NOW_MS)));
    filter.admit(&[1; 32], source(1), NOW_MS + MEMORY_MS + 1).unwrap();
}

#[test]
fn a_flood_from_one_source_is_refused_there_alone() {
    let directory = tempfile::tempdir().unwrap();
    let filter = load(directory.path(), NOW_MS);
    filter.admit(&[1; 32], source(2), NOW_MS - 1).unwrap();
    for number in 0..REPLAY_ENTRIES_PER_SOURCE_MAX as u64 {
        filter.admit(&ephemeral(number), source(1), NOW_MS).unwrap();
    }
    assert!(matches!(filter.admit(&[2; 32], source(1), NOW_MS), Err(ReplayRefused::SourceFull)));
    filter.admit(&[3; 32], source(2), NOW_MS).unwrap();
    assert_eq!(filter.seen.lock().unwrap().shares[&source(2)], 2);
    // The one of the other source is forgotten first, and frees nothing of the flooder.
    let later = NOW_MS + MEMORY_MS;
    assert!(matches!(filter.admit(&[2; 32], source(1), later), Err(ReplayRefused::SourceFull)));
    assert_eq!(filter.seen.lock().unwrap().shares[&source(2)], 1);
    filter.admit(&[2; 32], source(1), later + 1).unwrap();
    assert_eq!(filter.seen.lock().unwrap().shares.len(), 1, "none is kept of who has none left");
}

#[test]
fn shares_are_right_while_entries_of_the_process_before_are_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let filter = load(directory.path(), NOW_MS);
    filter.admit(&[1; 32], source(1), NOW_MS).unwrap();
    drop(filter);
    let filter = load(directory.path(), NOW_MS);
    filter.admit(&[2; 32], source(1), NOW_MS + 10).unwrap();
    filter.admit(&[3; 32], source(1), NOW_MS + MEMORY_MS + 1).unwrap();
    assert_eq!(filter.seen.lock().unwrap().shares[&source(1)], 2);
    filter.admit(&[4; 32], source(1), NOW_MS + MEMORY_MS + 11).unwrap();
    assert_eq!(filter.seen.lock().unwrap().shares[&source(1)], 2);
}

#[test]
fn a_foreign_file_is_not_overwritten() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(REPLAY_FILE);
    std::fs::write(&path, b"somebody's notes").unwrap();
    let error = ReplayFilter::load(directory.path(), NOW_MS).unwrap_err();
    assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"somebody's notes");
}
