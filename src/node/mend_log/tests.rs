//! Mending with a real catalog over a simulated disk: what was lost is in the log again.

use std::cell::Cell;

use super::*;
use crate::limits::BLOCK_BYTES;
use crate::node::reclaim::tests::{World, cut_off, damaged_world, dump, filled, run};

/// Where the references stand, as a node would see it that has just started, and has mended what it can.
async fn settled(world: &World, serial: u64) -> Doubt {
    let is_whole = |segment| world.shared.has_segment(segment);
    let doubt = Mutex::new(Doubt::at_start(&world.catalog, &world.report, is_whole).await.unwrap());
    let next = Cell::new(10 * serial);
    let serial = || next.replace(next.get() + 1);
    settle(&doubt, &world.report, &world.catalog, &world.store, serial).await.unwrap();
    doubt.into_inner().unwrap()
}

async fn close(world: World) {
    world.store.close().await.unwrap();
    world.catalog.close().await.unwrap();
}

#[test]
fn what_a_segment_without_its_header_held_is_in_the_log_again_before_it_may_be_removed() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let (disk, _) = filled(1, directory.path()).await;
        let segment = disk.names().into_iter().find(|name| name.starts_with("segments/")).unwrap();
        disk.edit(&segment, |bytes| bytes[8] ^= 1);
        let world = damaged_world(&disk, directory.path()).await;
        assert_eq!((world.report.unreadable.as_slice(), world.report.lost_blocks), ([segment.clone()].as_slice(), 0));
        settled(&world, 1).await;
        let known = dump(&world.catalog).await;
        close(world).await;
        disk.delete(&segment);
        let empty = tempfile::tempdir().unwrap();
        let rebuilt = damaged_world(&disk, empty.path()).await;
        assert_eq!(dump(&rebuilt.catalog).await, known);
    });
}

#[test]
fn what_lost_blocks_held_is_in_the_log_again_once_the_catalog_that_knew_it_was_asked() {
    run(async {
        for is_mended in [true, false] {
            let directory = tempfile::tempdir().unwrap();
            let (disk, _) = cut_off(2, directory.path()).await;
            let open = disk.names().into_iter().rfind(|name| name.starts_with("segments/")).unwrap();
            disk.edit(&open, |bytes| {
                let at = bytes.windows(200).position(|bytes| bytes == [205; 200]).unwrap() / BLOCK_BYTES * BLOCK_BYTES;
                bytes[at..at + BLOCK_BYTES].fill(0xaa);
            });
            let world = damaged_world(&disk, directory.path()).await;
            assert_eq!((world.report.lost_blocks, world.report.lost_untold), (1, 0));
            if is_mended {
                assert!(settled(&world, 1).await.references_are_whole());
            }
            let known = dump(&world.catalog).await;
            close(world).await;
            let empty = tempfile::tempdir().unwrap();
            let rebuilt = damaged_world(&disk, empty.path()).await;
            assert_eq!(rebuilt.report.lost_untold, 1, "the evidence stays");
            assert_eq!(dump(&rebuilt.catalog).await == known, is_mended);
        }
    });
}

#[test]
fn references_are_whole_again_only_once_what_the_damaged_segment_held_is_known_to_stand_elsewhere() {
    run(async {
        // Told: the catalog that knew the segment mends. Else the one that is built without it never heard of it.
        for is_told in [true, false] {
            let directory = tempfile::tempdir().unwrap();
            let (disk, _) = filled(3, directory.path()).await;
            let segment = disk.names().into_iter().find(|name| name.starts_with("segments/")).unwrap();
            let header = disk.edit(&segment, |bytes| bytes[8..9].to_vec());
            disk.edit(&segment, |bytes| bytes[8] ^= 1);
            let (one, two, three) = (tempfile::tempdir(), tempfile::tempdir(), tempfile::tempdir());
            let (one, two, three) = (one.unwrap(), two.unwrap(), three.unwrap());
            let first = damaged_world(&disk, if is_told { directory.path() } else { one.path() }).await;
            assert_eq!(first.report.damaged_segments.len(), 1);
            assert_eq!(first.report.damaged_segments[0].is_untold, !is_told);
            let doubt = settled(&first, 1).await;
            assert_eq!((doubt.references_are_whole(), doubt.is_settled(&segment)), (is_told, is_told));
            assert_eq!(doubt.reason().is_none(), is_told);
            close(first).await;
            // The same of a catalog that is built anew, and of one built after somebody has removed the file.
            let again = damaged_world(&disk, two.path()).await;
            assert_eq!(settled(&again, 2).await.references_are_whole(), is_told);
            close(again).await;
            let bytes = disk.edit(&segment, |bytes| bytes.clone());
            disk.delete(&segment);
            let gone = damaged_world(&disk, three.path()).await;
            assert!(gone.report.damaged_segments.is_empty());
            assert_eq!(settled(&gone, 3).await.references_are_whole(), is_told);
            // Restored, it is read, and nothing is in doubt.
            close(gone).await;
            disk.plant(&segment, bytes);
            disk.edit(&segment, |bytes| bytes[8..9].copy_from_slice(&header));
            let whole = damaged_world(&disk, three.path()).await;
            assert!(settled(&whole, 4).await.references_are_whole());
            assert_eq!(whole.report.unreadable.len(), 0);
        }
    });
}

#[test]
fn block_that_no_catalog_was_told_of_keeps_references_in_doubt_until_its_segment_is_whole() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let (disk, _) = cut_off(4, directory.path()).await;
        let open = disk.names().into_iter().rfind(|name| name.starts_with("segments/")).unwrap();
        let whole = disk.edit(&open, |bytes| bytes.clone());
        disk.edit(&open, |bytes| {
            let at = bytes.windows(200).position(|bytes| bytes == [205; 200]).unwrap() / BLOCK_BYTES * BLOCK_BYTES;
            bytes[at..at + BLOCK_BYTES].fill(0xaa);
        });
        let empty = tempfile::tempdir().unwrap();
        for serial in 1..4 {
            let world = damaged_world(&disk, empty.path()).await;
            assert_eq!((world.report.lost_small, world.report.lost_small_untold), (1, 1));
            assert!(!settled(&world, serial).await.references_are_whole());
            close(world).await;
        }
        disk.edit(&open, |bytes| *bytes = whole);
        let world = damaged_world(&disk, empty.path()).await;
        assert!(settled(&world, 5).await.references_are_whole());
    });
}
