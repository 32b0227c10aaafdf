//! `get`: finds what the target names, then streams it out of the fastest owners.
//!
//! A name is read by quorum; a content id by the sealed capsules that its root's owners hold; a link carries all it
//! needs. On a node without the vault key none of the three is decrypted: the command fetches the ciphertext of a link
//! chunk by chunk ([`fetch_chunks`]) and decrypts it in its own process.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::str::FromStr;
use std::sync::Arc;

use super::{Client, Failure, Requests, Watch, code, node_stops, small, vault_key};
use crate::crypto::cipher::ChunkKey;
use crate::crypto::hash::address_of;
use crate::crypto::keys::VaultKey;
use crate::format::link::Link;
use crate::format::name::{Metadata, Name, NameBody, NameRecord};
use crate::format::{Address, ContentId};
use crate::io::{Buffer, spawn};
use crate::limits::{
    CHUNK_BYTES_MAX, CHUNKS_IN_FLIGHT_PER_SHARD, CLIENT_FETCH_ATTEMPTS_MAX, PROGRESS_INTERVAL, RECORD_HEAD_BYTES,
    SINGLE_SHARD_LEAVES_MAX, SMALL_CHUNK_BYTES_MAX,
};
use crate::node::chunks::ClusterSource;
use crate::node::control::{Bytes, ControlEvent, ControlRequest, OUTPUT_CLOSED, OutputKind, Target};
use crate::node::shard::{Shard, send_job};
use crate::node::{names, owners};
use crate::vault::{ChunkError, ChunkSource, Fetched, GetError, GetJob, GetOptions, Output, write_whole};

pub struct Get {
    pub target: Target,
    pub range: Option<(u64, u64)>,
    pub remote: bool,
    pub resume: bool,
    pub output: OutputKind,
}

/// What a target turned out to be.
pub struct Found {
    pub bucket: String,
    pub key: String,
    pub root: Address,
    pub root_key: ChunkKey,
    pub depth: u8,
    pub length: u64,
    /// Nothing for a link: it carries none.
    pub metadata: Metadata,
    pub stamp_ms: u64,
}

impl Found {
    /// Of a length that `GetSmall` gives out.
    pub fn is_small(&self) -> bool {
        self.depth == 0 && self.length <= SMALL_CHUNK_BYTES_MAX as u64
    }

    fn from_body(body: NameBody, stamp_ms: u64) -> Self {
        Self {
            root: body.root,
            root_key: ChunkKey::from_bytes(body.root_key),
            depth: body.depth,
            length: body.length,
            metadata: body.metadata.clone(),
            bucket: body.bucket.clone(),
            key: body.key.clone(),
            stamp_ms,
        }
    }
}

pub async fn find(shard: &Rc<Shard>, target: &Target) -> Result<Found, Failure> {
    match target {
        Target::Name { bucket, key } => find_name(shard, bucket, key).await,
        Target::Content { address } => find_content(shard, address).await,
        Target::Link { text } => {
            let link =
                Link::from_str(text.as_str()).map_err(|error| Failure::new(code::KEY, format!("the link {error}")))?;
            if !shard.node.is_member() {
                return Err(Failure::new(
                    code::KEY,
                    "a storage node decrypts no link: the command does that by itself",
                ));
            }
            Ok(Found {
                bucket: String::new(),
                key: String::new(),
                root: link.root,
                root_key: ChunkKey::from_bytes(link.root_key),
                depth: link.depth,
                length: link.length,
                metadata: Metadata::default(),
                stamp_ms: 0,
            })
        }
    }
}

pub async fn find_name(shard: &Rc<Shard>, bucket: &str, key: &str) -> Result<Found, Failure> {
    let vault = vault_key(shard)?;
    let name = Name::new(bucket, key).map_err(|error| Failure::new(code::USAGE, error.to_string()))?;
    let (bucket_id, name_id) = vault.ids(bucket, key);
    let record = names::read(shard, &bucket_id, &name_id).await?;
    found_name(shard, &vault, &name, record)
}

/// What the record of a name says.
pub(super) fn found_name(
    shard: &Rc<Shard>,
    vault: &VaultKey,
    name: &Name,
    record: Option<NameRecord>,
) -> Result<Found, Failure> {
    let record = record.filter(|record| !record.tombstone).ok_or_else(|| {
        Failure::new(code::NOT_FOUND, format!("no file is named {name}: gabion ls shows what there is"))
    })?;
    let body = vault
        .open_name(&shard.node.network_id(), &record)
        .map_err(|error| Failure::new(code::INTEGRITY, format!("the record of {name} does not open: {error}")))?;
    Ok(Found::from_body(body, record.clock.millis()))
}

async fn find_content(shard: &Rc<Shard>, root: &Address) -> Result<Found, Failure> {
    let vault = vault_key(shard)?;
    let not_found = || {
        let id = ContentId(*root);
        Failure::new(code::NOT_FOUND, format!("no living file has the content id {id}"))
    };
    if root.is_zero() {
        return Ok(Found {
            bucket: String::new(),
            key: String::new(),
            root: *root,
            root_key: ChunkKey::from_bytes([0; 32]),
            depth: 0,
            length: 0,
            metadata: Metadata::default(),
            stamp_ms: 0,
        });
    }
    let network = shard.node.network_id();
    let found = owners::find_capsule(shard, root, |(version, sealed)| {
        let capsule = vault.open_capsule(&network, version, root, sealed).ok()?;
        Some(Found {
            bucket: String::new(),
            key: String::new(),
            root: *root,
            root_key: ChunkKey::from_bytes(capsule.root_key),
            depth: capsule.depth,
            length: capsule.length,
            metadata: capsule.metadata.clone(),
            stamp_ms: u64::from(version.minted_s()) * 1000,
        })
    });
    found.await?.ok_or_else(not_found)
}

pub async fn run(shard: &Rc<Shard>, client: &Rc<Client>, get: Get, descriptor: Option<OwnedFd>) -> Result<(), Failure> {
    let found = find(shard, &get.target).await?;
    let link_root = matches!(get.target, Target::Link { .. }).then_some(found.root);
    let info = ControlEvent::Info { metadata: found.metadata.clone(), length: found.length, content: found.root };
    let label = match found.key.as_str() {
        "" => ContentId(found.root).to_string(),
        key => format!("{}/{key}", found.bucket),
    };
    let is_symlink = found.metadata.symlink_target.is_some();
    if is_symlink {
        client.send_with_next(&info);
        client.send_with_next(&ControlEvent::Fetched { bytes: 0, bytes_resumed: 0 });
        return Ok(());
    }
    let descriptor = descriptor.ok_or_else(|| Failure::new(code::OTHER, "get without an output descriptor"))?;
    let range = byte_range(get.range, found.length)?;
    let output = match get.output {
        OutputKind::File => Output::File(descriptor),
        OutputKind::Stream => Output::Stream(descriptor),
    };
    let failed = |error| match error {
        // What the stopping cuts off looks like a cancelled write, or a cancelled get.
        GetError::Output(_) | GetError::Cancelled if shard.node.is_stopping() => node_stops().about(&label),
        error => get_failure(error, link_root, get.remote).about(&label),
    };
    if found.is_small() && !get.resume {
        client.send_with_next(&info);
        let range = range.unwrap_or(0..found.length);
        let bytes = range.end - range.start;
        get_small(shard, client, found, range, output, get.remote).await.map_err(failed)?;
        client.send_with_next(&ControlEvent::Progress { done: bytes, total: Some(bytes), new: bytes });
        client.send_with_next(&ControlEvent::Fetched { bytes, bytes_resumed: 0 });
        return Ok(());
    }
    client.send(info).await?;
    let job = GetJob::new(GetOptions {
        root: found.root,
        root_key: found.root_key,
        depth: found.depth,
        length: found.length,
        range,
        output,
        resume: get.resume,
        width: CHUNKS_IN_FLIGHT_PER_SHARD,
    });
    let remote = get.remote;
    if job.leaf_count() > SINGLE_SHARD_LEAVES_MAX {
        for index in (0..shard.node.shards.len()).filter(|index| *index != shard.index) {
            let job = job.clone();
            send_job(&shard.node, index, move |shard| async move { work(&job, &shard, remote).await });
        }
    }
    let own = (job.clone(), shard.clone());
    spawn(async move { work(&own.0, &own.1, remote).await });
    let watch = watch(shard, client, &job);
    let source = Rc::new(ClusterSource::new(shard.clone(), remote));
    let outcome = job.walk(&shard.pool, &source).await;
    watch.stop().await;
    let result = outcome.map_err(failed)?;
    client.send_with_next(&progress_event(&job));
    client.send_with_next(&ControlEvent::Fetched { bytes: result.bytes_written, bytes_resumed: result.bytes_resumed });
    Ok(())
}

/// One chunk, read whole before any of it is written. Takes none of the buffers that long transfers share, so it waits for none
/// of them. What takes long after all, since its pipe is full or its owners are far, is given up with its client and with the
/// node; an operation that is under way then goes on by itself.
async fn get_small(
    shard: &Rc<Shard>,
    client: &Rc<Client>,
    found: Found,
    range: Range<u64>,
    output: Output,
    remote: bool,
) -> Result<(), GetError> {
    let (tell, told) = tokio::sync::oneshot::channel();
    let own = shard.clone();
    spawn(async move {
        let source = ClusterSource::new(own.clone(), remote);
        let written = match small::read_contents(&own, &source, &found).await {
            Ok(contents) => {
                let wanted = contents.get(range.start as usize..range.end as usize);
                write_whole(output, wanted.unwrap_or_default()).await
            }
            Err(error) => Err(error),
        };
        let _ = tell.send(written);
    });
    let hung_up = async {
        tokio::time::sleep(PROGRESS_INTERVAL).await;
        client.hung_up().await;
    };
    let stopping = shard.node.stopping();
    tokio::select! {
        biased;
        written = told => written.unwrap_or(Err(GetError::Worker)),
        () = hung_up => Err(GetError::Cancelled),
        () = stopping.wait() => Err(GetError::Cancelled),
    }
}

async fn work(job: &Arc<GetJob>, shard: &Rc<Shard>, remote: bool) {
    job.work(&shard.pool, &Rc::new(ClusterSource::new(shard.clone(), remote))).await;
}

/// Inclusive ends, as in HTTP, cut at the end of the file.
fn byte_range(range: Option<(u64, u64)>, length: u64) -> Result<Option<std::ops::Range<u64>>, Failure> {
    let Some((first, last)) = range else { return Ok(None) };
    if first > last || first >= length {
        return Err(Failure::new(
            code::USAGE,
            format!("the range {first}-{last} is outside of a file of {length} bytes"),
        ));
    }
    Ok(Some(first..last.saturating_add(1).min(length)))
}

/// `link_root`: of a link, which nobody was asked about before. `remote`: what is here was not looked at.
pub(super) fn get_failure(error: GetError, link_root: Option<Address>, remote: bool) -> Failure {
    let reason = error.to_string();
    let (code, way_out) = match error {
        GetError::Chunk(ChunkError::NotFound { address }) if link_root == Some(address) => {
            (code::NOT_FOUND, "; a link dies with the name that it was made of: ask for another one")
        }
        GetError::Chunk(ChunkError::NotFound { .. }) if remote => {
            (code::NETWORK, "; leave --remote out to read what this node holds itself")
        }
        // The file is known: a chunk that nobody has any more is damage, not a wrong name.
        GetError::Chunk(ChunkError::Damaged { .. } | ChunkError::NotFound { .. }) | GetError::Tree(_) => {
            (code::INTEGRITY, "; start the nodes that hold other copies, then gabion verify")
        }
        GetError::Chunk(error) => (Failure::from(error).code, ""),
        GetError::OutputClosed => (OUTPUT_CLOSED, ""),
        _ => (code::OTHER, ""),
    };
    Failure::new(code, format!("{reason}{way_out}"))
}

fn progress_event(job: &GetJob) -> ControlEvent {
    let progress = job.progress();
    ControlEvent::Progress { done: progress.bytes_done, total: progress.bytes_total, new: progress.bytes_new }
}

fn watch(shard: &Rc<Shard>, client: &Rc<Client>, job: &Arc<GetJob>) -> Watch {
    let (cancelled, reported) = (job.clone(), job.clone());
    Watch::start(shard.node.stopping(), client, move || cancelled.cancel(), move || progress_event(&reported))
}

/// Chunks for a client that checks and decrypts them itself, one after the other on one connection.
pub async fn fetch_chunks(
    shard: &Rc<Shard>,
    client: &Rc<Client>,
    requests: &mut Requests,
    first: (Address, u32, bool),
) -> Result<(), Failure> {
    let mut wanted = Some(first);
    while let Some((address, len, remote)) = wanted {
        let event = match fetch_chunk(shard, address, len as usize, remote).await {
            Ok(payload) => ControlEvent::Chunk { payload: Bytes(payload) },
            Err(error) => {
                let failure = Failure::from(error);
                ControlEvent::Error { code: failure.code, message: failure.message }
            }
        };
        client.send(event).await?;
        wanted = match client.next_request(requests, shard.node.stopping()).await? {
            Some(ControlRequest::FetchChunk { address, len, remote }) => Some((address, len, remote)),
            Some(_) => return Err(Failure::new(code::USAGE, "only chunks can be asked for on this connection")),
            None => None,
        };
    }
    Ok(())
}

async fn fetch_chunk(shard: &Rc<Shard>, address: Address, len: usize, remote: bool) -> Result<Vec<u8>, ChunkError> {
    if len > CHUNK_BYTES_MAX {
        return Err(ChunkError::Other { reason: format!("a chunk of {len} bytes: at most {CHUNK_BYTES_MAX}") });
    }
    let source = ClusterSource::new(shard.clone(), remote);
    for attempt in 0..CLIENT_FETCH_ATTEMPTS_MAX {
        let buffer: Buffer = shard.pool.take().await;
        let (buffer, is_checked) = match source.fetch(address, len, buffer, attempt).await? {
            Fetched::Checked(buffer) => (buffer, true),
            Fetched::Unchecked(buffer, _turn) => (buffer, false),
        };
        let payload = buffer.as_slice().get(RECORD_HEAD_BYTES..RECORD_HEAD_BYTES + len).unwrap_or_default();
        if is_checked || address_of(payload) == address {
            return Ok(payload.to_vec());
        }
        source.damaged(&address);
    }
    Err(ChunkError::Damaged { address })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_whose_root_nobody_has_is_not_found_and_any_other_hole_is_damage() {
        let (root, leaf) = (Address([1; 32]), Address([2; 32]));
        let code = |address, link_root| {
            let missing = GetError::Chunk(ChunkError::NotFound { address });
            get_failure(missing, link_root, false).code
        };
        assert_eq!(code(root, Some(root)), code::NOT_FOUND);
        assert_eq!(code(leaf, Some(root)), code::INTEGRITY);
        assert_eq!(code(root, None), code::INTEGRITY, "its name was found");
    }
}
