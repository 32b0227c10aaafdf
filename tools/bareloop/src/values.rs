//! Small values through a node's control socket, as programs on the node's machine store and read them.
//!
//! A value is its number, then bytes derived from it. It is handed over in a pipe, which holds it whole, so that
//! nothing but the node touches a disk; each command has a connection of its own.

use std::io::{PipeReader, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use gabion::format::name::Metadata;
use gabion::node::control::client::Client;
use gabion::node::control::{ControlRequest, OutputKind, Target};
use serde_json::{Value, json};

/// What a pipe takes before its writer must wait.
const VALUE_BYTES_MAX: usize = 64 << 10;
const BUCKET: &str = "values";

pub struct Load<'a> {
    pub directory: &'a Path,
    pub count: u64,
    pub bytes: usize,
    pub clients: usize,
}

impl Load<'_> {
    pub fn put(&self) -> Result<Value, String> {
        self.each(|number| self.put_one(number))
    }

    pub fn get(&self) -> Result<Value, String> {
        self.each(|number| self.get_one(number))
    }

    fn each(&self, work: impl Fn(u64) -> Result<(), String> + Sync) -> Result<Value, String> {
        if self.bytes > VALUE_BYTES_MAX {
            return Err(format!("a value has at most {VALUE_BYTES_MAX} bytes, not {}", self.bytes));
        }
        let next = AtomicU64::new(0);
        let client = || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= self.count {
                    return Ok(());
                }
                if let Err(message) = work(number) {
                    // The others need not go on.
                    next.store(self.count, Ordering::Relaxed);
                    return Err(format!("value {number}: {message}"));
                }
            }
        };
        let start = Instant::now();
        let results: Vec<Result<(), String>> = std::thread::scope(|scope| {
            let running: Vec<_> = (0..self.clients).map(|_| scope.spawn(client)).collect();
            running
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| Err("a thread panicked".to_owned())))
                .collect()
        });
        let seconds = start.elapsed().as_secs_f64();
        results.into_iter().collect::<Result<Vec<()>, String>>()?;
        Ok(json!({
            "values": self.count,
            "bytes": self.bytes,
            "clients": self.clients,
            "seconds": seconds,
            "per_second": self.count as f64 / seconds,
        }))
    }

    fn value(&self, number: u64) -> Vec<u8> {
        let mut bytes = vec![0; self.bytes];
        blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    fn put_one(&self, number: u64) -> Result<(), String> {
        let (reader, mut writer) = std::io::pipe().map_err(|error| error.to_string())?;
        writer.write_all(&self.value(number)).map_err(|error| error.to_string())?;
        drop(writer);
        let request = ControlRequest::Put {
            bucket: BUCKET.to_owned(),
            key: number.to_string(),
            no_dedup: false,
            no_clobber: false,
            metadata: Metadata { mode: 0o100_644, ..Metadata::default() },
            length_hint: Some(self.bytes as u64),
        };
        let mut client = self.connect()?;
        client.run(&request, Some(reader.as_fd()), |_| ()).map_err(|error| error.to_string())
    }

    fn get_one(&self, number: u64) -> Result<(), String> {
        let (mut reader, writer) = std::io::pipe().map_err(|error| error.to_string())?;
        let request = ControlRequest::Get {
            target: Target::Name { bucket: BUCKET.to_owned(), key: number.to_string() },
            range: None,
            remote: false,
            resume: false,
            output: OutputKind::Stream,
        };
        let mut client = self.connect()?;
        client.run(&request, Some(writer.as_fd()), |_| ()).map_err(|error| error.to_string())?;
        drop(writer);
        self.check(number, &mut reader)
    }

    fn check(&self, number: u64, reader: &mut PipeReader) -> Result<(), String> {
        let mut bytes = Vec::with_capacity(self.bytes);
        reader.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
        if bytes == self.value(number) { Ok(()) } else { Err("WRONG BYTE".to_owned()) }
    }

    fn connect(&self) -> Result<Client, String> {
        Client::connect(self.directory).map_err(|error| error.to_string())
    }
}
