//! Mending with a real catalog over a simulated disk: what was lost is in the log again.

use super::*;
use crate::limits::BLOCK_BYTES;
use crate::node::reclaim::tests::{World, cut_off, damaged_world, dump, filled, run};

async fn close(world: World) {
    world.store.close().await.unwrap();
    world.catalog.close().await.unwrap();
}

#[test]
fn what_a_segment_without_its_header_held_is_in_the_log_again_before_it_may_be_removed() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let (disk, before) = filled(1, directory.path()).await;
        let segment = disk.names().into_iter().find(|name| name.starts_with("segments/")).unwrap();
        disk.edit(&segment, |bytes| bytes[8] ^= 1);
        let world = damaged_world(&disk, directory.path()).await;
        assert_eq!((world.report.unreadable.as_slice(), world.report.lost_blocks), ([segment.clone()].as_slice(), 0));
        rewrite_lost(&world.report, &world.catalog, &world.store).await.unwrap();
        close(world).await;
        disk.delete(&segment);
        let empty = tempfile::tempdir().unwrap();
        let rebuilt = damaged_world(&disk, empty.path()).await;
        assert_eq!(dump(&rebuilt.catalog).await, before);
    });
}

#[test]
fn what_lost_blocks_held_is_in_the_log_again_once_the_catalog_that_knew_it_was_asked() {
    run(async {
        for is_mended in [true, false] {
            let directory = tempfile::tempdir().unwrap();
            let (disk, before) = cut_off(2, directory.path()).await;
            let open = disk.names().into_iter().rfind(|name| name.starts_with("segments/")).unwrap();
            disk.edit(&open, |bytes| {
                let at = bytes.windows(200).position(|bytes| bytes == [205; 200]).unwrap() / BLOCK_BYTES * BLOCK_BYTES;
                bytes[at..at + BLOCK_BYTES].fill(0xaa);
            });
            let world = damaged_world(&disk, directory.path()).await;
            assert_eq!((world.report.lost_blocks, world.report.lost_untold), (1, 0));
            if is_mended {
                assert_eq!(rewrite_lost(&world.report, &world.catalog, &world.store).await.unwrap(), 1);
            }
            close(world).await;
            let empty = tempfile::tempdir().unwrap();
            let rebuilt = damaged_world(&disk, empty.path()).await;
            assert_eq!(rebuilt.report.lost_untold, 1, "the evidence stays");
            assert_eq!(dump(&rebuilt.catalog).await == before, is_mended);
        }
    });
}
