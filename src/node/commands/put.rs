//! `put`: the file's chunks to their owners, then the name to a majority, then the old version's death.
//!
//! Order, and what a crash after each step leaves behind:
//!
//! | step | left behind |
//! | --- | --- |
//! | 1. quorum read of the name: its clock, what it would replace | nothing |
//! | 2. chunks and their references, durable on W owners each | references of a version without a name |
//! | 3. the root's reference with its sealed capsule | the same |
//! | 4. the name record, durable on a majority of its owners | the new version, acknowledged or not, and the space of the old one |
//! | 5. the old version's death, signed and durable here, then sent until every node has it | - |
//!
//! Before step 4 (a small file: before all) the client is told that the name may be written from here on. A put whose client
//! has hung up before does not take that step; one that hangs up later cannot know.
//!
//! Success is reported after step 5 has become durable here. A small regular file takes the same steps, 2 and 3 in one
//! commit: see [`super::small`].

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use super::{Client, Failure, Watch, code, node_stops, small, vault_key};
use crate::crypto::cipher::ScopeKey;
use crate::crypto::keys::{NameStamp, VaultKey};
use crate::format::name::{Capsule, Metadata, Name, NameBody, NameRecord};
use crate::format::{BucketId, NameId, VersionId};
use crate::io::Buffer;
use crate::limits::{PUT_CHUNKS_IN_FLIGHT_PER_SHARD, SINGLE_SHARD_LEAVES_MAX};
use crate::node::chunks::ClusterSink;
use crate::node::control::ControlEvent;
use crate::node::deaths::Room;
use crate::node::names::WriteName;
use crate::node::shard::{Shard, send_job};
use crate::node::{deaths, names, owners};
use crate::vault::{FileStamp, Input, PutError, PutJob, PutOptions, PutResult};

pub struct Put {
    pub bucket: String,
    pub key: String,
    pub no_dedup: bool,
    pub no_clobber: bool,
    pub metadata: Metadata,
}

pub async fn run(shard: &Rc<Shard>, client: &Rc<Client>, put: Put, descriptor: Option<OwnedFd>) -> Result<(), Failure> {
    let name = Name::new(&put.bucket, &put.key).map_err(|error| Failure::new(code::USAGE, error.to_string()))?;
    let result = match descriptor.map(File::from) {
        Some(file) if is_small(&file, &put.metadata) => {
            let contents = read_small(&file).await.map_err(|error| put_failure(error, &put))?;
            client.send(ControlEvent::Naming).await?;
            small::put_one(shard, put, contents).await?
        }
        descriptor => put_whole(shard, client, &name, &put, descriptor).await?,
    };
    client.send_with_next(&ControlEvent::Stored {
        bucket: name.bucket().into(),
        key: name.key().into(),
        content: result.root,
        bytes: result.length,
        bytes_new: result.bytes_new,
    });
    Ok(())
}

async fn put_whole(
    shard: &Rc<Shard>,
    client: &Rc<Client>,
    name: &Name,
    put: &Put,
    descriptor: Option<File>,
) -> Result<PutResult, Failure> {
    let vault = vault_key(shard)?;
    let (bucket_id, name_id) = vault.ids(name.bucket(), name.key());
    let earlier = read_earlier(shard, put, name, &bucket_id, &name_id).await?;
    let _room = reserve_death(shard, earlier.as_ref())?;
    let version = shard.node.mint(bucket_id.slot());
    let result = match descriptor {
        Some(descriptor) => store_content(shard, client, &vault, put, version, descriptor.into()).await?,
        None => PutResult::empty(),
    };
    refer_root(shard, &vault, &result, &put.metadata, version).await?;
    let body = name_body(name, put, &result);
    client.send(ControlEvent::Naming).await?;
    publish(shard, &vault, (&bucket_id, &name_id), earlier.as_ref(), put.no_clobber, version, &body).await?;
    Ok(result)
}

/// Step 1: the quorum read, and what it forbids.
pub(super) async fn read_earlier(
    shard: &Rc<Shard>,
    put: &Put,
    name: &Name,
    bucket_id: &BucketId,
    name_id: &NameId,
) -> Result<Option<NameRecord>, Failure> {
    let earlier = names::read(shard, bucket_id, name_id).await?;
    if put.no_clobber && earlier.as_ref().is_some_and(|record| !record.tombstone) {
        Err(taken(name))
    } else {
        Ok(earlier)
    }
}

/// Room for the death of what a put replaces, if that is a file.
pub(super) fn reserve_death(shard: &Rc<Shard>, earlier: Option<&NameRecord>) -> Result<Option<Room>, Failure> {
    match earlier.is_some_and(|earlier| !earlier.tombstone) {
        true => deaths::reserve(shard, 1).map(Some),
        false => Ok(None),
    }
}

pub(super) fn taken(name: &Name) -> Failure {
    Failure::new(code::OTHER, format!("{name} exists already: remove it, or put without --no-clobber"))
}

/// Steps 4 and 5: the name, then the deaths.
pub(super) async fn publish(
    shard: &Rc<Shard>,
    vault: &VaultKey,
    (bucket_id, name_id): (&BucketId, &NameId),
    earlier: Option<&NameRecord>,
    no_clobber: bool,
    version: VersionId,
    body: &NameBody,
) -> Result<(), Failure> {
    let network = shard.node.network_id();
    let seal = |clock| vault.seal_name(&network, NameStamp { clock, version, tombstone: false }, body);
    let write = WriteName { bucket: bucket_id, name: name_id, earlier, no_clobber };
    let written = write.run(shard, seal).await?;
    deaths::sign_replaced(shard, &[written]).await
}

/// Whether a put is one chunk of a regular file that fits where small ones go: then none of what a long put needs is set
/// up for it.
fn is_small(file: &File, metadata: &Metadata) -> bool {
    file.metadata().is_ok_and(|found| found.is_file() && small::takes(found.len(), metadata))
}

/// All of a small file, which must not change meanwhile.
async fn read_small(file: &File) -> Result<Vec<u8>, PutError> {
    let before = FileStamp::of(file)?;
    let len = before.len as usize;
    let own = crate::io::File::from_fd(file.as_fd().try_clone_to_owned()?);
    let (read, buffer) = own.read_at(Buffer::heap(len), 0..len, 0).await;
    if read? < len || FileStamp::of(file)? != before {
        return Err(PutError::Changed);
    }
    Ok(buffer.as_slice().get(..len).unwrap_or_default().to_vec())
}

/// Streams the content over all shards and reports progress; a client that hangs up cancels it.
async fn store_content(
    shard: &Rc<Shard>,
    client: &Rc<Client>,
    vault: &VaultKey,
    put: &Put,
    version: VersionId,
    descriptor: OwnedFd,
) -> Result<PutResult, Failure> {
    let input = Input::of(descriptor);
    let scope = if put.no_dedup { ScopeKey::random() } else { vault.scope().clone() };
    let job = PutJob::new(input, PutOptions { scope, version, width: PUT_CHUNKS_IN_FLIGHT_PER_SHARD });
    if job.leaf_count().is_none_or(|leaves| leaves > SINGLE_SHARD_LEAVES_MAX) {
        for index in (0..shard.node.shards.len()).filter(|index| *index != shard.index) {
            let job = job.clone();
            send_job(&shard.node, index, move |shard| async move { work(&job, &shard).await });
        }
    }
    let (own, sink) = ((job.clone(), shard.clone()), Rc::new(ClusterSink::new(shard.clone())));
    crate::io::spawn(async move { work(&own.0, &own.1).await });
    let watch = watch(shard, client, &job);
    let outcome = job.finish(&shard.pool, &sink).await;
    watch.stop().await;
    let result = outcome.map_err(|error| match error {
        // What the stopping cuts off looks like a cancelled put.
        PutError::Cancelled if shard.node.is_stopping() => node_stops().about(&format!("{}/{}", put.bucket, put.key)),
        error => put_failure(error, put),
    })?;
    client.send(progress_event(&job)).await?;
    Ok(result)
}

async fn work(job: &Arc<PutJob>, shard: &Rc<Shard>) {
    job.work(&shard.pool, &Rc::new(ClusterSink::new(shard.clone()))).await;
}

fn put_failure(error: PutError, put: &Put) -> Failure {
    match error {
        PutError::Chunk(error) => error.into(),
        other => Failure::new(code::OTHER, format!("{}/{}: {other}", put.bucket, put.key)),
    }
}

fn progress_event(job: &PutJob) -> ControlEvent {
    let progress = job.progress();
    ControlEvent::Progress { done: progress.bytes_done, total: progress.bytes_total, new: progress.bytes_new }
}

fn watch(shard: &Rc<Shard>, client: &Rc<Client>, job: &Arc<PutJob>) -> Watch {
    let (cancelled, reported) = (job.clone(), job.clone());
    Watch::start(shard.node.stopping(), client, move || cancelled.cancel(), move || progress_event(&reported))
}

/// Makes the root's reference carry the sealed capsule on its owners, so that a member can get by content id alone.
async fn refer_root(
    shard: &Rc<Shard>,
    vault: &VaultKey,
    result: &PutResult,
    metadata: &Metadata,
    version: VersionId,
) -> Result<(), Failure> {
    if result.root.is_zero() {
        return Ok(()); // the empty file has no chunk to refer to
    }
    let capsule = Capsule {
        root_key: *result.root_key.as_bytes(),
        depth: result.depth,
        length: result.length,
        metadata: metadata.clone(),
    };
    let sealed = vault.seal_capsule(&shard.node.network_id(), &version, &result.root, &capsule);
    owners::refer(shard, &result.root, &version, &sealed).await?;
    Ok(())
}

pub(super) fn name_body(name: &Name, put: &Put, result: &PutResult) -> NameBody {
    NameBody {
        bucket: name.bucket().into(),
        key: name.key().into(),
        root: result.root,
        root_key: *result.root_key.as_bytes(),
        depth: result.depth,
        length: result.length,
        metadata: put.metadata.clone(),
    }
}
