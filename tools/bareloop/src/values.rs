//! Small values through a node's control socket, as programs on the node's machine store and read them.
//!
//! One thread drives all clients, as redis-benchmark does without pipelining: each has a connection of its own with one
//! request of one value under way. What is put is durable when its answer comes. A value is a sequence of numbers
//! derived from its own; each is checked when it comes back.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::Instant;

use gabion::format::name::Metadata;
use gabion::node::control::{
    Bytes, ControlEvent, ControlRequest, LENGTH_BYTES, SOCKET_NAME, SmallFetched, SmallFile, SmallStored, Target,
    message_len,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::task::JoinSet;

const BUCKET: &str = "values";
/// What one read of an answer takes at most.
const ANSWER_BYTES: usize = 16 << 10;

#[derive(Debug, Clone, Copy)]
pub enum What {
    Put,
    Get,
}

pub struct Load<'a> {
    pub directory: &'a Path,
    pub what: What,
    pub count: u64,
    pub bytes: usize,
    pub clients: usize,
}

impl Load<'_> {
    pub fn run(&self) -> Result<Value, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(told)?;
        let seconds = tokio::task::LocalSet::new().block_on(&runtime, self.drive())?;
        Ok(json!({
            "values": self.count,
            "bytes": self.bytes,
            "clients": self.clients,
            "seconds": seconds,
            "per_second": self.count as f64 / seconds,
        }))
    }

    async fn drive(&self) -> Result<f64, String> {
        let next = std::rc::Rc::new(Cell::new(0));
        let mut clients = JoinSet::new();
        let start = Instant::now();
        for _ in 0..self.clients {
            let (next, socket) = (next.clone(), self.directory.join(SOCKET_NAME));
            let (what, count, bytes) = (self.what, self.count, self.bytes);
            clients.spawn_local(async move {
                let mut client = Client::connect(socket, bytes).await?;
                while next.get() < count {
                    let number = next.replace(next.get() + 1);
                    let done = match what {
                        What::Put => client.put(number).await,
                        What::Get => client.get(number).await,
                    };
                    done.map_err(|message| format!("value {number}: {message}"))?;
                }
                Ok::<(), String>(())
            });
        }
        while let Some(ended) = clients.join_next().await {
            ended.map_err(told)??;
        }
        Ok(start.elapsed().as_secs_f64())
    }
}

struct Client {
    stream: BufReader<UnixStream>,
    value_bytes: usize,
}

impl Client {
    async fn connect(socket: PathBuf, value_bytes: usize) -> Result<Self, String> {
        let stream = UnixStream::connect(&socket).await.map_err(|error| format!("{}: {error}", socket.display()))?;
        Ok(Self { stream: BufReader::with_capacity(ANSWER_BYTES, stream), value_bytes })
    }

    /// The value of this number: a SplitMix64 sequence, <https://prng.di.unimi.it/splitmix64.c>.
    fn value(&self, number: u64) -> Vec<u8> {
        let mut state = number << 32;
        let mut bytes = Vec::with_capacity(self.value_bytes + 8);
        while bytes.len() < self.value_bytes {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = state;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            bytes.extend_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes());
        }
        bytes.truncate(self.value_bytes);
        bytes
    }

    async fn put(&mut self, number: u64) -> Result<(), String> {
        let file = SmallFile {
            key: number.to_string(),
            metadata: Metadata { mode: 0o100_644, ..Metadata::default() },
            contents: Bytes(self.value(number)),
        };
        let request = ControlRequest::PutSmall {
            bucket: BUCKET.to_owned(),
            no_dedup: false,
            no_clobber: false,
            files: vec![file],
        };
        match self.ask(&request).await? {
            ControlEvent::StoredSmall { outcomes } if matches!(outcomes.as_slice(), [SmallStored::Stored { .. }]) => {
                Ok(())
            }
            other => Err(format!("{other:?}")),
        }
    }

    async fn get(&mut self, number: u64) -> Result<(), String> {
        let target = Target::Name { bucket: BUCKET.to_owned(), key: number.to_string() };
        match self.ask(&ControlRequest::GetSmall { targets: vec![target], remote: false }).await? {
            ControlEvent::FetchedSmall { outcomes } => match outcomes.as_slice() {
                [SmallFetched::Contents { contents: Bytes(contents), .. }] if *contents == self.value(number) => Ok(()),
                [SmallFetched::Contents { .. }] => Err("WRONG BYTE".to_owned()),
                other => Err(format!("{other:?}")),
            },
            other => Err(format!("{other:?}")),
        }
    }

    async fn ask(&mut self, request: &ControlRequest) -> Result<ControlEvent, String> {
        self.stream.write_all(&request.encode()).await.map_err(told)?;
        let mut head = [0; LENGTH_BYTES];
        self.stream.read_exact(&mut head).await.map_err(told)?;
        let mut message = vec![0; message_len(head).map_err(told)?];
        self.stream.read_exact(&mut message).await.map_err(told)?;
        match ControlEvent::decode(&message).map_err(told)? {
            ControlEvent::Error { message, .. } => Err(message),
            event => Ok(event),
        }
    }
}

fn told(error: impl std::fmt::Display) -> String {
    error.to_string()
}
