use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;

use super::{LONG, on_ring, pattern};
use crate::io::{Buffer, SendSource, UnixListener, UnixStream, connect_blocking, send_with_fds, spawn, yield_now};
use crate::limits::CONTROL_FDS_MAX;

#[test]
fn descriptors_travel_with_the_message() {
    let directory = tempfile::tempdir().expect("a directory");
    // Longer than a socket address can be.
    let deep = directory.path().join("d".repeat(120));
    std::fs::create_dir(&deep).expect("a directory");
    let path = deep.join("control");
    on_ring(async {
        // What an earlier run left behind does not stop the next.
        drop(UnixListener::bind(&path).expect("a listener"));
        let listener = UnixListener::bind(&path).expect("a listener");
        assert_eq!(std::fs::metadata(&path).expect("a socket").permissions().mode() & 0o777, 0o600);
        let client_path = path.clone();
        let client = std::thread::spawn(move || {
            let mut stream = connect_blocking(&client_path).expect("a connection");
            let mut file = tempfile::tempfile().expect("a file");
            file.write_all(b"of the client").expect("written");
            let (reader, mut writer) = std::io::pipe().expect("a pipe");
            writer.write_all(b"of the pipe").expect("written");
            send_with_fds(&stream, b"two files", &[file.as_fd(), reader.as_fd()]).expect("sent");
            send_with_fds(&stream, b"none", &[]).expect("sent");
            let mut answer = vec![0; 200_000];
            stream.read_exact(&mut answer).expect("an answer");
            answer
        });
        let stream = UnixStream::from_std(listener.accept().await.expect("a connection")).expect("a stream");
        let (result, buffer) = stream.recv_with_fds(Buffer::heap(100), 10..19).await;
        let (count, mut fds) = result.expect("a message");
        assert_eq!((count, fds.len()), (9, 2));
        assert_eq!(&buffer.as_slice()[10..19], b"two files");
        let mut text = [0; 11];
        std::fs::File::from(fds.pop().expect("the pipe")).read_exact(&mut text).expect("read");
        assert_eq!(&text, b"of the pipe");
        let file = std::fs::File::from(fds.pop().expect("the file"));
        let mut text = [0; 13];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut text, 0).expect("read");
        assert_eq!(&text, b"of the client");
        let (result, buffer) = stream.recv_with_fds(buffer, 0..4).await;
        assert_eq!(result.map(|(count, fds)| (count, fds.len())).expect("a message"), (4, 0));
        assert_eq!(&buffer.as_slice()[..4], b"none");
        let answer = pattern(200_000, 3);
        stream.send_all(SendSource::Bytes(answer.clone()), LONG).await.expect("sent");
        assert!(client.join().expect("no panic") == answer);
    });
}

#[test]
fn too_many_descriptors_are_refused_and_a_dropped_receive_closes_its_own() {
    let (near, far) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let many = vec![writer.as_fd(); CONTROL_FDS_MAX + 1];
    assert!(send_with_fds(&far, b"x", &many).is_err());
    assert!(send_with_fds(&far, b"", &[writer.as_fd()]).is_err());
    on_ring(async move {
        let stream = UnixStream::from_std(near).expect("a stream");
        let receiver = stream.clone();
        let task = spawn(async move {
            let _message = receiver.recv_with_fds(Buffer::heap(8), 0..8).await;
        });
        yield_now().await;
        yield_now().await;
        task.abort();
        send_with_fds(&far, b"x", &[writer.as_fd()]).expect("sent");
        drop(writer);
        // Ends only once every copy of the writing end is closed.
        let input = crate::io::File::from_fd(reader.into());
        let end = input.read(Buffer::heap(1), 0..1, std::future::pending());
        assert_eq!(tokio::time::timeout(LONG, end).await.expect("closed").0.expect("the end"), Some(0));
    });
}

#[test]
fn a_cancelled_listener_ends_its_accept() {
    let directory = tempfile::tempdir().expect("a directory");
    on_ring(async {
        let listener = std::rc::Rc::new(UnixListener::bind(&directory.path().join("control")).expect("a listener"));
        let acceptor = std::rc::Rc::clone(&listener);
        let task = spawn(async move { assert!(acceptor.accept().await.is_err()) });
        yield_now().await;
        yield_now().await;
        listener.cancel().await;
        tokio::time::timeout(LONG, task).await.expect("woken").expect("no panic");
    });
}
