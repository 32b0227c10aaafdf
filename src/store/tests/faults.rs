//! Failing and full disks, damaged files, newer formats: one fact a test.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::support::*;
use crate::format::segment::{SEGMENT_VERSION, SegmentClass};
use crate::limits::{BLOCK_BYTES, FREE_BYTES_RESERVE, RECORD_HEAD_BYTES};
use crate::store::segment::{header_block, name_of};
use crate::store::simulated::{Faults, SimulatedDisk};
use crate::store::{AppliedEvent, Hold, KeepAll, OpenReport, Removal, SmallRecord, StoreError, StoreOptions};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// Three bulk chunks in segment 1, three names in segment 2, and no clean end.
async fn cut_off(seed: u64) -> (SimulatedDisk, Vec<Vec<u8>>) {
    let disk = SimulatedDisk::new(seed);
    let store = opened(&disk).await.store;
    let chunks: Vec<_> = (0..3).map(|number| payload(number, 70_000)).collect();
    for chunk in &chunks {
        put(&store, chunk, &version(1)).await.unwrap();
    }
    for name in [b"one", b"two", b"six"] {
        store.append(SmallRecord::Name(name.repeat(100))).await.unwrap();
    }
    (disk.crash(seed), chunks)
}

/// The batch of the n-th chunk of `cut_off` starts here: a head block and 18 blocks of payload each.
fn batch(number: u64) -> u64 {
    BLOCK + number * 19 * BLOCK
}

fn names(told: &Told) -> usize {
    told.events.iter().filter(|event| matches!(event, AppliedEvent::Name { .. })).count()
}

#[test]
fn recovery_keeps_whole_records_below_and_above_the_watermark() {
    run(async {
        let (disk, chunks) = cut_off(1).await;
        let again = opened(&disk).await;
        // Rows A (the first ones) and B (the last, which no later batch vouches for).
        assert_eq!((again.report.chunks, names(&again.told), again.report.recovered_segments), (3, 3, 2));
        for chunk in &chunks {
            assert_eq!(get(&again.store, &address_of(chunk)).await.as_ref(), Some(chunk));
        }
    });
}

#[test]
fn recovery_counts_a_broken_name_below_the_watermark_as_damaged() {
    run(async {
        let (disk, _) = cut_off(2).await;
        disk.edit(&name_of(2), |bytes| bytes[BLOCK_BYTES + 64 + 64 + 10] ^= 1); // row C
        let again = opened(&disk).await;
        assert_eq!((names(&again.told), again.report.damaged_records, again.report.torn), (2, 1, 0));
    });
}

#[test]
fn recovery_quarantines_a_broken_small_chunk_below_the_watermark_and_asks_for_it_again() {
    run(async {
        let disk = SimulatedDisk::new(3);
        let store = opened(&disk).await.store;
        let (broken, after) = (payload(1, 1000), payload(2, 1000));
        put(&store, &broken, &version(1)).await.unwrap();
        put(&store, &after, &version(1)).await.unwrap();
        let disk = disk.crash(3);
        disk.edit(&name_of(1), |bytes| bytes[BLOCK_BYTES + 128 + 10] ^= 1); // row C
        let again = opened(&disk).await;
        assert_eq!(again.report.quarantined, [address_of(&broken)]);
        assert_eq!(get(&again.store, &address_of(&broken)).await, None);
        assert!(put(&again.store, &broken, &version(2)).await.unwrap(), "the chunk is wanted");
        assert_eq!(get(&again.store, &address_of(&broken)).await, Some(broken.clone()));
        assert_eq!(again.store.stats().quarantined, 0);
        again.store.close().await.unwrap();
        let third = opened(&disk).await;
        assert_eq!(get(&third.store, &address_of(&broken)).await, Some(broken.clone()));
        // The version that had brought the damaged copy refers to the new one.
        assert!(third.told.refers(&address_of(&broken), &version(1)));
    });
}

#[test]
fn recovery_skips_a_torn_payload_above_the_watermark() {
    run(async {
        let (disk, chunks) = cut_off(4).await;
        disk.edit(&name_of(1), |bytes| bytes[(batch(2) + 2 * BLOCK) as usize] ^= 1); // row D
        let again = opened(&disk).await;
        assert_eq!((again.report.chunks, again.report.torn, again.report.quarantined.len()), (2, 1, 0));
        assert!(put(&again.store, &chunks[2], &version(1)).await.unwrap());
    });
}

#[test]
fn recovery_goes_on_behind_a_destroyed_header_below_the_watermark() {
    run(async {
        let (disk, chunks) = cut_off(5).await;
        let head = batch(1) as usize;
        disk.edit(&name_of(1), |bytes| bytes[head..head + BLOCK_BYTES].fill(0xaa)); // row E
        let again = opened(&disk).await;
        assert_eq!(again.report.chunks, 2);
        assert!(again.report.lost_blocks >= 1, "{:?}", again.report);
        assert_eq!(get(&again.store, &address_of(&chunks[2])).await.as_ref(), Some(&chunks[2]));
    });
}

#[test]
fn recovery_finds_a_chunk_whose_batch_record_is_torn() {
    run(async {
        let (disk, chunks) = cut_off(6).await;
        let head = batch(2) as usize;
        disk.edit(&name_of(1), |bytes| bytes[head..head + 512].fill(0xaa)); // row F, then B
        let again = opened(&disk).await;
        assert_eq!((again.report.chunks, again.report.lost_blocks), (3, 0));
        assert!(again.report.torn >= 1);
        assert_eq!(get(&again.store, &address_of(&chunks[2])).await.as_ref(), Some(&chunks[2]));
    });
}

#[test]
fn recovery_counts_a_write_that_vanished_below_the_watermark() {
    run(async {
        let (disk, _) = cut_off(7).await;
        let (from, to) = (batch(1) as usize, batch(2) as usize);
        disk.edit(&name_of(1), |bytes| bytes[from..to].fill(0)); // row G; behind the last record it is row H
        let again = opened(&disk).await;
        assert_eq!((again.report.chunks, again.report.lost_blocks, again.report.torn), (2, 19, 0));
    });
}

#[test]
fn recovery_reads_around_a_bad_sector() {
    run(async {
        let (disk, chunks) = cut_off(8).await;
        disk.make_unreadable(&name_of(1), batch(0)); // row I
        let again = opened(&disk).await;
        assert_eq!((again.report.chunks, again.report.lost_blocks, again.report.torn), (2, 19, 0));
        assert_eq!(get(&again.store, &address_of(&chunks[1])).await.as_ref(), Some(&chunks[1]));
    });
}

#[test]
fn recovery_counts_an_unreadable_block_as_lost_wherever_it_lies_and_finds_it_when_it_reads_again() {
    run(async {
        // The last batch, which no watermark covers: its header, or a piece of its payload.
        for at in [batch(2), batch(2) + 5 * BLOCK] {
            let (disk, chunks) = cut_off(25).await;
            disk.make_unreadable(&name_of(1), at); // row I
            let again = opened(&disk).await;
            let OpenReport { lost_blocks, torn, ref quarantined, .. } = again.report;
            assert!(lost_blocks > 0 || quarantined.len() == 1, "{:?}", again.report);
            // Nobody knows any more where its payload belongs once its header is gone.
            assert_eq!(torn, if at == batch(2) { 18 } else { 0 });
            assert_eq!(get(&again.store, &address_of(&chunks[2])).await, None);
            assert_eq!(get(&again.store, &address_of(&chunks[1])).await.as_ref(), Some(&chunks[1]));
            again.store.close().await.unwrap();
            disk.make_readable(&name_of(1));
            let third = opened(&disk).await;
            assert_eq!(get(&third.store, &address_of(&chunks[2])).await.as_ref(), Some(&chunks[2]));
            assert!(third.told.refers(&address_of(&chunks[2]), &version(1)));
        }
    });
}

#[test]
fn segment_that_cannot_be_read_is_neither_unlinked_nor_sealed_and_what_is_in_it_is_told_once_it_can_be() {
    run(async {
        let disk = SimulatedDisk::new(26);
        let store = opened(&disk).await.store;
        for name in [b"one", b"two", b"six"] {
            store.append(SmallRecord::Name(name.repeat(100))).await.unwrap();
        }
        let disk = disk.crash(26);
        let before = disk.edit(&name_of(1), |bytes| bytes.clone());
        for block in 1..4 {
            disk.make_unreadable(&name_of(1), block * BLOCK);
        }
        let again = opened(&disk).await;
        assert_eq!((names(&again.told), again.report.lost_blocks), (0, 3));
        assert!(disk.names().contains(&name_of(1)), "unlinked for a read error");
        again.store.close().await.unwrap();
        assert!(disk.edit(&name_of(1), |bytes| bytes.clone()) == before, "written to");
        disk.make_readable(&name_of(1));
        let third = open_with(&disk, options(), &again.told.positions).await.unwrap();
        assert_eq!(names(&third.told), 3);
    });
}

#[test]
fn segment_with_mended_records_stays_while_any_other_cannot_be_read() {
    run(async {
        let disk = SimulatedDisk::new(28);
        let store = opened(&disk).await.store;
        for name in [b"one", b"two", b"six"] {
            store.append(SmallRecord::Name(name.repeat(100))).await.unwrap();
        }
        store.close().await.unwrap();
        let again = opened(&disk).await;
        // Each name is alone in its batch, and each batch in its block.
        disk.edit(&name_of(1), |bytes| bytes[2 * BLOCK_BYTES + 128 + 10] ^= 1);
        let damaged = again.store.verify(&mut |_| ()).await.unwrap().damaged;
        assert_eq!(damaged.len(), 1);
        // Sound when it was verified, and unreadable when the segment is copied.
        disk.make_unreadable(&name_of(1), 3 * BLOCK);
        let mended = BTreeMap::from([(1, BTreeSet::from([damaged[0].offset]))]);
        again.store.retire_damaged(&mended, &KeepAll).await.unwrap();
        assert!(disk.names().contains(&name_of(1)), "unlinked with a name that nobody had mended");
        disk.make_readable(&name_of(1));
        again.store.retire_damaged(&BTreeMap::from([(1, BTreeSet::new())]), &KeepAll).await.unwrap();
        assert!(disk.names().contains(&name_of(1)), "nobody mended the damaged one");
        again.store.retire_damaged(&mended, &KeepAll).await.unwrap();
        assert!(!disk.names().contains(&name_of(1)));
        again.store.close().await.unwrap();
        let third = opened(&disk).await;
        let kept = |name: &[u8]| third.told.events.contains(&AppliedEvent::Name { payload: name.repeat(100) });
        assert_eq!([kept(b"one"), kept(b"two"), kept(b"six")], [true, false, true]);
    });
}

/// Three names in segment 1, each in a batch and a block of its own, and no clean end.
async fn three_names(seed: u64) -> SimulatedDisk {
    let disk = SimulatedDisk::new(seed);
    let store = opened(&disk).await.store;
    for name in [b"one", b"two", b"six"] {
        store.append(SmallRecord::Name(name.repeat(100))).await.unwrap();
    }
    disk.crash(seed)
}

/// Makes one block of segment 1 anything but a record.
fn destroy(disk: &SimulatedDisk, block: usize) {
    disk.edit(&name_of(1), |bytes| bytes[block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES].fill(0xaa));
}

#[test]
fn lost_block_of_small_records_is_reported_at_every_start_until_the_segment_is_whole() {
    run(async {
        let disk = three_names(30).await;
        let whole = disk.edit(&name_of(1), |bytes| bytes.clone());
        destroy(&disk, 2);
        let mut positions = HashMap::new();
        for round in 0..3 {
            let again = open_with(&disk, options(), &positions).await.unwrap();
            assert_eq!((again.report.lost_blocks, again.report.lost_untold), (1, 1), "start {round}");
            positions = again.told.positions;
            assert_eq!(positions.get(&1), Some(&(2 * BLOCK)), "not past what the catalog was never told");
            again.store.close().await.unwrap();
        }
        disk.edit(&name_of(1), |bytes| *bytes = whole);
        let again = open_with(&disk, options(), &positions).await.unwrap();
        assert_eq!((again.report.lost_blocks, again.report.recovered_segments), (0, 1));
        assert!(again.told.events.contains(&AppliedEvent::Name { payload: b"two".repeat(100) }));
    });
}

#[test]
fn lost_block_that_the_catalog_was_told_of_is_untold_to_the_one_that_is_built_anew() {
    run(async {
        let disk = three_names(31).await;
        destroy(&disk, 2);
        let positions = HashMap::from([(1, 4 * BLOCK)]);
        for _ in 0..2 {
            let again = open_with(&disk, options(), &positions).await.unwrap();
            assert_eq!((again.report.lost_blocks, again.report.lost_untold), (1, 0));
            assert_eq!(again.told.positions, positions);
            again.store.close().await.unwrap();
        }
        assert_eq!(opened(&disk).await.report.lost_untold, 1);
    });
}

#[test]
fn unreadable_block_that_the_catalog_was_told_of_stays_told() {
    run(async {
        let disk = three_names(35).await;
        disk.make_unreadable(&name_of(1), 2 * BLOCK);
        let mut positions = HashMap::from([(1, 4 * BLOCK)]);
        for _ in 0..2 {
            let again = open_with(&disk, options(), &positions).await.unwrap();
            assert_eq!((again.report.lost_small, again.report.lost_small_untold), (1, 0));
            positions = again.told.positions;
        }
    });
}

#[test]
fn what_the_catalog_was_told_of_is_lost_and_not_torn_though_no_batch_vouches_for_it() {
    run(async {
        let disk = three_names(32).await;
        destroy(&disk, 3);
        let again = open_with(&disk, options(), &HashMap::from([(1, 4 * BLOCK)])).await.unwrap();
        assert_eq!((again.report.lost_blocks, again.report.lost_untold, again.report.torn), (1, 0, 0));
        // Also where it was all that the segment held.
        let disk = SimulatedDisk::new(33);
        let store = opened(&disk).await.store;
        store.append(SmallRecord::Name(vec![1; 100])).await.unwrap();
        let disk = disk.crash(33);
        destroy(&disk, 1);
        let again = open_with(&disk, options(), &HashMap::from([(1, 2 * BLOCK)])).await.unwrap();
        assert_eq!((again.report.lost_blocks, again.report.segments), (1, 1));
        again.store.close().await.unwrap();
        assert!(disk.names().contains(&name_of(1)), "unlinked with the only evidence");
    });
}

#[test]
fn torn_places_do_not_become_lost_ones_while_a_segment_waits_to_be_sealed() {
    run(async {
        let disk = three_names(34).await;
        // The second batch is torn, the third came out whole: no watermark covers either of them.
        disk.edit(&name_of(1), |bytes| {
            bytes[2 * BLOCK_BYTES..3 * BLOCK_BYTES].fill(0xaa);
            bytes[3 * BLOCK_BYTES] ^= 1; // the batch record that would vouch for the first two
        });
        disk.set_free(0);
        let again = opened(&disk).await;
        assert_eq!((again.report.lost_blocks, again.report.recovered_segments), (0, 0));
        disk.set_free(1 << 40);
        let third = open_with(&disk, options(), &again.told.positions).await.unwrap();
        assert_eq!((third.report.lost_blocks, third.report.recovered_segments), (0, 1));
        assert_eq!(names(&third.told), 2);
    });
}

#[test]
fn segments_are_opened_on_a_full_disk_and_sealed_when_there_is_space() {
    run(async {
        let (disk, chunks) = cut_off(27).await;
        disk.set_free(0);
        let again = opened(&disk).await;
        assert_eq!((again.report.chunks, names(&again.told), again.report.recovered_segments), (3, 3, 0));
        assert_eq!(get(&again.store, &address_of(&chunks[2])).await.as_ref(), Some(&chunks[2]));
        disk.set_free(1 << 40);
        assert_eq!(again.store.remove(&address_of(&chunks[0]), async |_| false).await.unwrap(), Removal::Removed);
        again.store.close().await.unwrap();
        let third = opened(&disk).await;
        assert_eq!((third.report.chunks, third.report.lost_blocks), (2, 0));
        assert_eq!(get(&third.store, &address_of(&chunks[0])).await, None);
        assert_eq!(get(&third.store, &address_of(&chunks[1])).await.as_ref(), Some(&chunks[1]));
    });
}

#[test]
fn damaged_footer_entries_are_rebuilt_from_the_records() {
    run(async {
        let disk = SimulatedDisk::new(9);
        let store = opened(&disk).await.store;
        let chunk = payload(1, 70_000);
        put(&store, &chunk, &version(1)).await.unwrap();
        store.close().await.unwrap();
        // The entries are in the block before the last.
        disk.edit(&name_of(1), |bytes| {
            let at = bytes.len() - 2 * BLOCK_BYTES;
            bytes[at + 3] ^= 1;
        });
        disk.edit("index.checkpoint", |bytes| bytes[0] ^= 1);
        let again = opened(&disk).await;
        assert_eq!((again.report.recovered_segments, again.report.clean), (1, false));
        assert_eq!(get(&again.store, &address_of(&chunk)).await.as_ref(), Some(&chunk));
        drop(again);
        let third = opened(&disk).await;
        assert_eq!((third.report.recovered_segments, third.report.chunks), (0, 1));
    });
}

#[test]
fn file_without_a_sound_header_is_unlinked_only_when_it_never_held_anything() {
    run(async {
        let disk = SimulatedDisk::new(10);
        disk.plant(&name_of(7), vec![0; 3 * BLOCK_BYTES]);
        let mut torn_header =
            header_block(8, SegmentClass::Bulk, [1; 16], options().incarnation, 0).as_slice().to_vec();
        torn_header[4090] ^= 1;
        torn_header.resize(9 * BLOCK_BYTES, 0);
        disk.plant(&name_of(8), torn_header.clone());
        torn_header[2 * BLOCK_BYTES] = 1;
        disk.plant(&name_of(9), torn_header);
        disk.plant(&name_of(10), vec![]);
        let opened = opened(&disk).await;
        assert_eq!(opened.report.unreadable, [name_of(9)]);
        assert_eq!(disk.names(), [name_of(9)]);
        put(&opened.store, &payload(1, 70_000), &version(1)).await.unwrap();
        assert!(disk.names().contains(&name_of(11)), "ids go on behind the highest ever seen: {:?}", disk.names());
    });
}

#[test]
fn newer_format_is_an_error_that_says_what_to_do_and_changes_nothing() {
    run(async {
        let (disk, _) = cut_off(11).await;
        let mut header = header_block(9, SegmentClass::Bulk, [1; 16], options().incarnation, 0).as_slice().to_vec();
        header[8..10].copy_from_slice(&(SEGMENT_VERSION + 1).to_le_bytes());
        let crc = crc32fast::hash(&header[..4092]);
        header[4092..].copy_from_slice(&crc.to_le_bytes());
        disk.plant(&name_of(9), header);
        let before: Vec<_> = disk.names().iter().map(|name| disk.edit(name, |bytes| bytes.clone())).collect();
        let error = open_with(&disk, options(), &HashMap::new()).await.err().unwrap();
        let text = "segments/0000000000000009.seg was written by a newer gabion (format 2, this one knows 1): update this program";
        assert_eq!(error.to_string(), text);
        let after: Vec<_> = disk.names().iter().map(|name| disk.edit(name, |bytes| bytes.clone())).collect();
        assert!(before == after);
    });
}

#[test]
fn first_failed_write_or_sync_latches_the_segment_and_the_next_opens_another() {
    run(async {
        for (seed, faults) in [
            (12, Faults { fail_write: Some(1), ..Faults::default() }),
            (13, Faults { fail_sync: Some(1), ..Faults::default() }),
        ] {
            let disk = SimulatedDisk::new(seed);
            let store = opened(&disk).await.store;
            let chunks: Vec<_> = (0..3).map(|number| payload(number, 70_000)).collect();
            put(&store, &chunks[0], &version(1)).await.unwrap();
            store.append(SmallRecord::Name(vec![1])).await.unwrap();
            disk.set_faults(faults);
            let error = put(&store, &chunks[1], &version(1)).await.unwrap_err();
            assert!(error.to_string().contains("segments/0000000000000001.seg"), "{error}");
            let before = disk.edit(&name_of(1), |bytes| bytes.clone());
            // Whoever comes next is not told that it is held.
            assert!(put(&store, &chunks[1], &version(1)).await.unwrap());
            put(&store, &chunks[2], &version(1)).await.unwrap();
            assert!(disk.edit(&name_of(1), |bytes| bytes.clone()) == before, "the failed segment takes no more writes");
            for chunk in &chunks {
                assert_eq!(get(&store, &address_of(chunk)).await.as_ref(), Some(chunk));
            }
            store.close().await.unwrap();
            let again = opened(&disk).await;
            assert_eq!(again.report.chunks, 3);
            for chunk in &chunks {
                assert_eq!(get(&again.store, &address_of(chunk)).await.as_ref(), Some(chunk));
            }
        }
    });
}

#[test]
fn failed_removal_does_not_undo_a_later_reference() {
    run(async {
        let disk = SimulatedDisk::new(14);
        let store = opened(&disk).await.store;
        let chunk = payload(1, 70_000);
        put(&store, &chunk, &version(1)).await.unwrap();
        store.append(SmallRecord::Name(vec![1])).await.unwrap();
        disk.set_faults(Faults { fail_sync: Some(1), ..Faults::default() });
        assert!(store.remove(&address_of(&chunk), async |_| false).await.is_err());
        // The removal may yet be replayed: the chunk is not held on the strength of what it names.
        assert!(put(&store, &chunk, &version(2)).await.unwrap());
        for seed in 0..20 {
            let again = opened(&disk.crash(seed)).await;
            assert_eq!(get(&again.store, &address_of(&chunk)).await.as_ref(), Some(&chunk), "seed {seed}");
        }
    });
}

#[test]
fn a_chunk_whose_segment_cannot_be_made_gives_its_buffer_back() {
    run(async {
        let disk = SimulatedDisk::new(17);
        let store = opened(&disk).await.store;
        let chunk = payload(1, 70_000);
        let address = address_of(&chunk);
        let claim = async || match store.hold(&address, &version(1)).await.unwrap() {
            Hold::Absent(claim) => claim,
            Hold::Held => panic!("nothing was stored yet"),
        };
        disk.set_faults(Faults { fail_sync: Some(1), ..Faults::default() });
        let refused = store.stage(claim().await, buffer_with(&chunk), chunk.len(), &version(1), 0).await.err().unwrap();
        assert!(matches!(refused.error, StoreError::Io { .. }), "{}", refused.error);
        assert_eq!(refused.buffer.as_slice()[RECORD_HEAD_BYTES..][..chunk.len()], chunk[..]);
        // Another owner may be sent it from there, and so may the next attempt.
        let staged = store.stage(claim().await, refused.buffer, chunk.len(), &version(1), 0).await.ok().unwrap();
        staged.commit().await.unwrap();
        assert_eq!(get(&store, &address).await.as_ref(), Some(&chunk));
    });
}

#[test]
fn full_disk_refuses_chunks_and_goes_on_reading_and_removing() {
    run(async {
        let disk = SimulatedDisk::new(15);
        let store = opened(&disk).await.store;
        let chunks: Vec<_> = [70_000, 5_000].iter().map(|len| payload(*len as u64, *len)).collect();
        for chunk in &chunks {
            put(&store, chunk, &version(1)).await.unwrap();
        }
        disk.set_free(FREE_BYTES_RESERVE - 1);
        assert!(!store.stats().writable);
        for len in [70_000, 5_000] {
            let error = put(&store, &payload(9, len), &version(1)).await.unwrap_err();
            assert!(matches!(error, StoreError::NoSpace { .. }), "{error}");
        }
        store.append(SmallRecord::Death(vec![1; 100])).await.unwrap();
        for chunk in &chunks {
            assert_eq!(get(&store, &address_of(chunk)).await.as_ref(), Some(chunk));
            assert_eq!(store.remove(&address_of(chunk), async |_| false).await.unwrap(), Removal::Removed);
        }
        store.seal_open(&KeepAll).await.unwrap();
        assert!(matches!(store.hold(&address_of(&chunks[0]), &version(1)).await.unwrap(), Hold::Absent(_)));
    });
}

#[test]
fn damaged_chunk_is_found_by_verification_never_served_and_wanted_across_restarts() {
    run(async {
        let disk = SimulatedDisk::new(16);
        let store = opened(&disk).await.store;
        let chunks: Vec<_> = (0..2).map(|number| payload(number, 70_000)).collect();
        for chunk in &chunks {
            put(&store, chunk, &version(1)).await.unwrap();
        }
        disk.edit(&name_of(1), |bytes| bytes[(batch(0) + 3 * BLOCK) as usize] ^= 1);
        let mut wrong = Vec::new();
        let report = store.verify(&mut |verified| wrong.extend((!verified.ok).then_some(verified.address))).await;
        assert_eq!(report.unwrap().damaged_chunks, 1);
        assert_eq!(wrong, [address_of(&chunks[0])]);
        assert_eq!((get(&store, &wrong[0]).await, store.contains(&wrong[0])), (None, false));
        // In both ways: after a crash, and after a clean end.
        let crashed = opened(&disk.crash(16)).await;
        assert_eq!(crashed.report.quarantined, wrong);
        store.close().await.unwrap();
        let again = opened(&disk).await;
        assert!(again.report.clean);
        assert_eq!(again.report.quarantined, wrong);
        assert!(put(&again.store, &chunks[0], &version(1)).await.unwrap());
        assert_eq!(get(&again.store, &wrong[0]).await.as_ref(), Some(&chunks[0]));
    });
}

#[test]
fn version_that_introduced_a_chunk_refers_to_its_replacement_though_the_header_was_lost() {
    run(async {
        for is_sealed in [true, false] {
            let disk = SimulatedDisk::new(29);
            let mut store = opened(&disk).await.store;
            let chunk = payload(1, 70_000);
            let address = address_of(&chunk);
            put(&store, &chunk, &version(1)).await.unwrap();
            if is_sealed {
                store.close().await.unwrap();
                store = opened(&disk).await.store;
            }
            // The record's header ends the block before its payload.
            disk.edit(&name_of(1), |bytes| bytes[2 * BLOCK_BYTES - 64] ^= 1);
            assert!(put(&store, &chunk, &version(2)).await.unwrap(), "the copy here is no good");
            assert_eq!(get(&store, &address).await.as_ref(), Some(&chunk));
            assert!(!put(&store, &chunk, &version(3)).await.unwrap(), "the new copy is held");
            // With a table, its entry says who referred first; without one, the record stays for who can read it again.
            assert_eq!(store.shared().index.candidates(&address).len(), if is_sealed { 1 } else { 2 });
            disk.edit(&name_of(1), |bytes| bytes[2 * BLOCK_BYTES - 64] ^= u8::from(!is_sealed));
            store.close().await.unwrap();
            let again = opened(&disk).await;
            assert!(again.told.refers(&address, &version(1)), "sealed: {is_sealed}");
            assert!(again.told.refers(&address, &version(2)));
            assert_eq!(get(&again.store, &address).await.as_ref(), Some(&chunk));
        }
    });
}

#[test]
fn damaged_chunk_that_is_held_is_not_replaced_by_a_cached_copy() {
    run(async {
        let disk = SimulatedDisk::new(24);
        let store = opened(&disk).await.store;
        let chunk = payload(1, 70_000);
        let address = address_of(&chunk);
        put(&store, &chunk, &version(1)).await.unwrap();
        disk.edit(&name_of(1), |bytes| bytes[(batch(0) + 2 * BLOCK) as usize] ^= 1);
        store.quarantine(&address).await;
        assert!(store.is_quarantined(&address));
        assert!(store.claim(&address).await.unwrap().is_none(), "it would count as sound, and may be evicted");
        assert!(matches!(store.hold(&address, &version(1)).await.unwrap(), Hold::Absent(_)), "asked for again");
    });
}

#[test]
fn quarantine_spares_a_chunk_that_is_whole_when_read_again() {
    run(async {
        let disk = SimulatedDisk::new(17);
        let store = opened(&disk).await.store;
        let chunk = payload(1, 70_000);
        put(&store, &chunk, &version(1)).await.unwrap();
        store.quarantine(&address_of(&chunk)).await;
        assert_eq!(get(&store, &address_of(&chunk)).await.as_ref(), Some(&chunk));
        disk.edit(&name_of(1), |bytes| bytes[(batch(0) + 2 * BLOCK) as usize] ^= 1);
        store.quarantine(&address_of(&chunk)).await;
        assert_eq!(get(&store, &address_of(&chunk)).await, None);
    });
}

#[test]
fn index_is_rebuilt_from_footers_when_the_checkpoint_is_damaged_or_gone() {
    run(async {
        for damage in 0..3 {
            let disk = SimulatedDisk::new(18 + damage);
            let store = opened(&disk).await.store;
            let chunks: Vec<_> = (0..50).map(|number| payload(number, 60_000 + 200 * number as usize)).collect();
            for chunk in &chunks {
                put(&store, chunk, &version(1)).await.unwrap();
            }
            for chunk in chunks.iter().skip(25) {
                store.remove(&address_of(chunk), async |_| false).await.unwrap();
            }
            store.checkpoint().await.unwrap();
            store.close().await.unwrap();
            match damage {
                0 => disk.edit("index.checkpoint", |bytes| {
                    let middle = bytes.len() / 2;
                    bytes[middle] ^= 1;
                }),
                1 => disk.edit("index.checkpoint", |bytes| bytes.truncate(100)),
                _ => {}
            }
            let options = StoreOptions { seed: 5, ..options() };
            let again = open_with(&disk, options, &HashMap::new()).await.unwrap();
            assert_eq!((again.report.clean, again.report.chunks), (damage == 2, 25), "damage {damage}");
            for (number, chunk) in chunks.iter().enumerate() {
                let expected = (number < 25).then_some(chunk);
                assert_eq!(get(&again.store, &address_of(chunk)).await.as_ref(), expected, "chunk {number}");
            }
        }
    });
}

#[test]
fn removal_in_an_open_segment_survives_a_checkpoint_that_covers_only_its_record() {
    run(async {
        let disk = SimulatedDisk::new(22);
        let store = opened(&disk).await.store;
        let (dead, live) = (payload(1, 70_000), payload(2, 70_000));
        put(&store, &dead, &version(1)).await.unwrap();
        put(&store, &live, &version(1)).await.unwrap();
        store.remove(&address_of(&dead), async |_| false).await.unwrap();
        // The small segment rolls over and is sealed; the bulk segment stays open.
        for number in 0..200 {
            store.append(SmallRecord::Name(vec![number])).await.unwrap();
        }
        store.checkpoint().await.unwrap();
        let again = opened(&disk.crash(22)).await;
        assert_eq!(get(&again.store, &address_of(&dead)).await, None);
        assert_eq!(get(&again.store, &address_of(&live)).await, Some(live));
    });
}

#[test]
fn checkpoint_is_due_when_many_segments_were_sealed_since_the_last() {
    run(async {
        let disk = SimulatedDisk::new(23);
        let store = opened(&disk).await.store;
        let mut appended = 0_u32;
        while !store.checkpoint_is_due() {
            assert!(appended < 10_000, "no checkpoint is ever due");
            store.append(SmallRecord::Name(appended.to_le_bytes().to_vec())).await.unwrap();
            appended += 1;
        }
        store.checkpoint().await.unwrap();
        assert!(!store.checkpoint_is_due(), "right after one");
        let again = opened(&disk.crash(23)).await;
        assert!(!again.store.checkpoint_is_due(), "after a crash: it covers all but the last segments");
    });
}
