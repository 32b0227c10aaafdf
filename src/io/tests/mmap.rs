use super::{LONG, on_ring, pattern, shared, tcp_pair};
use crate::io::{Buffer, File, OpenOptions, SendSource, map, spawn};
use crate::limits::MIB;

fn fresh() -> OpenOptions {
    OpenOptions { read: true, write: true, create_new: true, ..Default::default() }
}

/// Sends `source` to ourselves.
async fn received(source: SendSource) -> Vec<u8> {
    let len_bytes = source.len();
    let (near, far) = tcp_pair().await;
    let sender = spawn(async move { near.send_all(source, LONG).await.expect("sent") });
    let (result, buffer) = far.recv_exact(Buffer::heap(len_bytes), 0..len_bytes, LONG).await;
    result.expect("received");
    sender.await.expect("no panic");
    buffer.as_slice().to_vec()
}

#[test]
fn a_populated_range_is_sent_as_it_is_in_the_file() {
    let directory = tempfile::tempdir().expect("a directory");
    on_ring(async {
        let file = File::open(&directory.path().join("file"), &fresh()).await.expect("a file");
        let bytes = pattern(3 * MIB, 9);
        file.write_at(shared(&bytes), 0..3 * MIB, 0).await.expect("written");
        file.sync_all().await.expect("synced");
        // Neither the offset nor the length is a multiple of a page.
        let range = map(&file, 5_001, MIB + 7).expect("a mapping");
        range.populate().await.expect("populated");
        assert_eq!(range.len(), MIB + 7);
        assert!(received(SendSource::Mapped(range.clone(), 3..MIB)).await == bytes[5_004..5_001 + MIB]);
        let head = vec![42; 64];
        let both = received(SendSource::HeadAndMapped(head.clone(), range.slice(10..200_000), 5..100_000)).await;
        assert_eq!(both[..64], head);
        assert!(both[64..] == bytes[5_016..5_011 + 100_000]);
    });
}

#[test]
fn a_vanished_page_is_an_error_and_no_signal() {
    let directory = tempfile::tempdir().expect("a directory");
    on_ring(async {
        let file = File::open(&directory.path().join("file"), &fresh()).await.expect("a file");
        file.write_at(shared(&[1; 8192]), 0..8192, 0).await.expect("written");
        let range = map(&file, 0, 8192).expect("a mapping");
        file.set_len(0).expect("cut");
        assert!(range.populate().await.is_err());
        let (near, _far) = tcp_pair().await;
        let error = near.send_all(SendSource::Mapped(range, 0..8192), LONG).await.expect_err("nothing is there");
        assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
    });
}
