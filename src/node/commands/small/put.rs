//! `PutSmall`: the steps of a put ([`crate::node::commands::put`]) with many files together.
//!
//! | step | for all files at once |
//! | --- | --- |
//! | 1 | what `no_clobber` forbids is refused |
//! | 2 | each content is sealed: one chunk, its own root; nothing to seal of an empty file |
//! | 3 | chunks, and the references with their capsules, durable on W owners each: one commit |
//! | 4 | the names, each under a clock later than all that a quorum knows: one commit |
//! | 5 | the deaths of what they replaced |
//!
//! A name is written only when the chunk and the reference of that very file are durable; a file that fails at a step
//! is answered with its reason and takes no further one, and the others go on. A crash between two steps leaves for each
//! file what it leaves of a single put.
//!
//! On a node that is alone the names of all files are read by one question, while step 3 writes, and written by one commit.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use super::{alone, ended, in_task, node_stops, vault_key};
use crate::crypto::cipher::{ChunkKey, ScopeKey, seal_chunk, seal_chunks};
use crate::crypto::hash::SIDE_BY_SIDE;
use crate::crypto::keys::{NameStamp, VaultKey};
use crate::format::name::{Capsule, Name, NameBody, NameRecord};
use crate::format::{Address, BucketId, NameId, VersionId};
use crate::io::yield_now;
use crate::key_locks::KeyLock;
use crate::limits::{CHUNK_BYTES_MIN, SMALL_CHUNK_BYTES_MAX, SMALL_REQUESTS_GATHERED_MAX, SMALL_SEALED_BYTES_AT_ONCE};
use crate::node::commands::put::{Put, publish, read_earlier, reserve_death};
use crate::node::commands::{Failure, code};
use crate::node::control::{Bytes, SmallFile};
use crate::node::names::{NameError, WriteName, Written, later_clock};
use crate::node::shard::Shard;
use crate::node::{deaths, small};
use crate::store::{SmallChunk, SmallRecord};
use crate::vault::{ChunkError, PutResult};

/// A file on its way.
struct Item {
    put: Put,
    name: Name,
    bucket_id: BucketId,
    name_id: NameId,
    version: VersionId,
    contents: Vec<u8>,
    /// What it is to be, once it is sealed.
    result: PutResult,
}

impl Item {
    /// In a box, since it goes from list to list.
    fn new(shard: &Rc<Shard>, vault: &VaultKey, put: Put, contents: Vec<u8>) -> Result<Box<Self>, Failure> {
        let name = Name::new(&put.bucket, &put.key).map_err(|error| Failure::new(code::USAGE, error.to_string()))?;
        if contents.len() > SMALL_CHUNK_BYTES_MAX {
            let message = format!("{name} has {} bytes: at most {SMALL_CHUNK_BYTES_MAX} are small", contents.len());
            return Err(Failure::new(code::USAGE, message));
        }
        let (bucket_id, name_id) = vault.ids(name.bucket(), name.key());
        let version = shard.node.mint(bucket_id.slot());
        Ok(Box::new(Self { put, name, bucket_id, name_id, version, contents, result: PutResult::empty() }))
    }

    /// The chunk that the contents, `length` bytes of them, were made: its own root.
    fn sealed(
        &mut self,
        shard: &Rc<Shard>,
        vault: &VaultKey,
        length: usize,
        (root, root_key): (Address, ChunkKey),
    ) -> SmallChunk {
        let payload = std::mem::take(&mut self.contents);
        let capsule = Capsule {
            root_key: *root_key.as_bytes(),
            depth: 0,
            length: length as u64,
            metadata: self.put.metadata.clone(),
        };
        let sealed = vault.seal_capsule(&shard.node.network_id(), &self.version, &root, &capsule);
        self.result = PutResult { root, root_key, depth: 0, length: length as u64, bytes_new: 0, chunks: 1 };
        SmallChunk { address: root, version: self.version, flags: 0, payload, capsule: Some(sealed), is_first: true }
    }

    fn body(&self) -> NameBody {
        crate::node::commands::put::name_body(&self.name, &self.put, &self.result)
    }
}

pub(super) type Outcome = Result<PutResult, Failure>;
pub(super) type Puts = Vec<(Put, Vec<u8>)>;
/// A file whose name is written, and what the name was before.
type Named = (usize, Box<Item>, NameRecord, Option<NameRecord>);

pub(super) async fn put_files(
    shard: &Rc<Shard>,
    bucket: &str,
    no_dedup: bool,
    no_clobber: bool,
    files: Vec<SmallFile>,
) -> Result<Vec<Outcome>, Failure> {
    let files = files
        .into_iter()
        .map(|SmallFile { key, metadata, contents: Bytes(contents) }| {
            (Put { bucket: bucket.to_owned(), key, no_dedup, no_clobber, metadata }, contents)
        })
        .collect();
    put_gathered(shard, files).await
}

/// One small file whose contents were read already.
pub async fn put_one(shard: &Rc<Shard>, put: Put, contents: Vec<u8>) -> Result<PutResult, Failure> {
    let outcome = put_gathered(shard, vec![(put, contents)]).await?.pop();
    outcome.unwrap_or_else(|| Err(Failure::new(code::OTHER, "no outcome of a put: a defect in gabion")))
}

/// Together with the requests of other connections.
async fn put_gathered(shard: &Rc<Shard>, files: Puts) -> Result<Vec<Outcome>, Failure> {
    if files.len() >= SMALL_REQUESTS_GATHERED_MAX / 2 {
        return put_all(shard, files).await;
    }
    let own = shard.clone();
    let run = move |requests: Vec<Puts>| {
        let shard = own.clone();
        async move { put_requests(&shard, requests).await }
    };
    shard.small.puts.join(files, run).await.unwrap_or_else(|| Err(node_stops()))
}

async fn put_requests(shard: &Rc<Shard>, requests: Vec<Puts>) -> Vec<Result<Vec<Outcome>, Failure>> {
    let counts: Vec<usize> = requests.iter().map(Vec::len).collect();
    let mut outcomes = match put_all(shard, requests.into_iter().flatten().collect()).await {
        Ok(outcomes) => outcomes.into_iter(),
        Err(Failure { code, message }) => {
            return counts.iter().map(|_| Err(Failure::new(code, message.clone()))).collect();
        }
    };
    counts.into_iter().map(|count| Ok(outcomes.by_ref().take(count).collect())).collect()
}

/// Runs all steps for all files; one outcome for each, in their order.
async fn put_all(shard: &Rc<Shard>, files: Puts) -> Result<Vec<Outcome>, Failure> {
    let vault = vault_key(shard)?;
    let mut batch = Batch::new(files.len());
    // A name that comes twice is put twice, one after the other.
    let (mut seen, mut again) = (HashSet::new(), Vec::new());
    for (at, (put, contents)) in files.into_iter().enumerate() {
        match Item::new(shard, &vault, put, contents) {
            Ok(item) if seen.insert((item.bucket_id, item.name_id)) => batch.items.push((at, item)),
            Ok(item) => again.push((at, item)),
            Err(failure) => batch.settle(at, Err(failure)),
        }
    }
    batch.run(shard, &vault).await;
    for item in again {
        batch.items.push(item);
        batch.run(shard, &vault).await;
    }
    Ok(batch.finish())
}

/// The next items from `place` on that are sealed without a pause, as many as are hashed side by side, and their bytes.
fn together(items: &mut [(usize, Box<Item>)], place: usize) -> Option<(Vec<&mut Item>, usize)> {
    let mut bytes = 0;
    let is_near = |item: &&mut Item| {
        bytes += item.contents.len();
        bytes <= SMALL_SEALED_BYTES_AT_ONCE
    };
    let near = items.get_mut(place..)?.iter_mut().map(|(_, item)| &mut **item);
    let near: Vec<&mut Item> = near.take(SIDE_BY_SIDE).take_while(is_near).collect();
    let bytes = near.iter().map(|item| item.contents.len()).sum();
    (!near.is_empty()).then_some((near, bytes))
}

/// Makes the chunk of each item's contents, its own root; none of an empty file.
fn seal(shard: &Rc<Shard>, vault: &VaultKey, mut items: Vec<&mut Item>) -> Vec<Option<SmallChunk>> {
    let spans: Vec<usize> = items.iter().map(|item| item.contents.len()).collect();
    let (mut shared, mut own) = (Vec::with_capacity(items.len()), Vec::new());
    for (item, span) in items.iter_mut().zip(&spans).filter(|(_, span)| **span > 0) {
        item.contents.resize((*span).max(CHUNK_BYTES_MIN), 0);
        let chunk = item.contents.as_mut_slice();
        if item.put.no_dedup {
            own.push(seal_chunk(&ScopeKey::random(), 0, chunk, *span));
        } else {
            shared.push((chunk, *span));
        }
    }
    let (mut shared, mut own) = (seal_chunks(vault.scope(), 0, &mut shared).into_iter(), own.into_iter());
    let seal_one = |(item, span): (&mut Item, usize)| {
        let sealed = match (span, item.put.no_dedup) {
            (0, _) => None,
            (_, true) => own.next(),
            (_, false) => shared.next(),
        };
        sealed.map(|sealed| item.sealed(shard, vault, span, sealed))
    };
    items.into_iter().zip(spans).map(seal_one).collect()
}

/// Files that are at the same step, and the outcomes of those that are not any more.
struct Batch {
    items: Vec<(usize, Box<Item>)>,
    outcomes: Vec<Option<Outcome>>,
}

impl Batch {
    fn new(count: usize) -> Self {
        Self { items: Vec::with_capacity(count), outcomes: (0..count).map(|_| None).collect() }
    }

    fn settle(&mut self, at: usize, outcome: Outcome) {
        if let Some(place) = self.outcomes.get_mut(at) {
            *place = Some(outcome);
        }
    }

    fn finish(self) -> Vec<Outcome> {
        let missing = || Err(Failure::new(code::OTHER, "no outcome of a put: a defect in gabion"));
        self.outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(missing)).collect()
    }

    fn fail_all(&mut self, failure: &Failure) {
        for (at, _) in std::mem::take(&mut self.items) {
            self.settle(at, Err(Failure::new(failure.code, failure.message.clone())));
        }
    }

    async fn run(&mut self, shard: &Rc<Shard>, vault: &VaultKey) {
        let Some(layout) = alone(shard) else {
            self.run_each(shard, vault).await;
            return;
        };
        if let Err(failure) = self.refuse_taken(shard).await {
            return self.fail_all(&failure);
        }
        // What the names are now is looked up while the contents are written.
        let names: Vec<_> = self.items.iter().map(|(_, item)| (item.bucket_id, item.name_id)).collect();
        let (looked, ()) = tokio::join!(look_up(shard, names), self.store_contents(shard, vault));
        if alone(shard) == Some(layout) {
            let named = match looked {
                Ok(looked) => self.name_alone(shard, vault, layout, looked).await,
                Err(failure) => Err(failure),
            };
            if let Err(failure) = named {
                self.fail_all(&failure);
            }
        } else {
            drop(looked);
            // Somebody has joined meanwhile: what is durable here is so under the layout of before, like that of any put
            // that ended a moment ago; the names are for today's owners.
            self.name_each(shard, vault).await;
        }
    }

    /// Step 1, on a node alone.
    async fn refuse_taken(&mut self, shard: &Rc<Shard>) -> Result<(), Failure> {
        if !self.items.iter().any(|(_, item)| item.put.no_clobber) {
            return Ok(());
        }
        let held = self.read_names(shard).await?;
        let items = std::mem::take(&mut self.items);
        for ((at, item), held) in items.into_iter().zip(held) {
            if item.put.no_clobber && held.is_some_and(|held| !held.tombstone) {
                self.settle(at, Err(crate::node::commands::put::taken(&item.name)));
            } else {
                self.items.push((at, item));
            }
        }
        Ok(())
    }

    async fn read_names(&self, shard: &Rc<Shard>) -> Result<Vec<Option<NameRecord>>, Failure> {
        let names = self.items.iter().map(|(_, item)| (item.bucket_id, item.name_id)).collect();
        Ok(shard.node.catalog.names_of(names).await?)
    }

    /// Steps 2 and 3.
    async fn store_contents(&mut self, shard: &Rc<Shard>, vault: &VaultKey) {
        let (mut roots, mut of) = (Vec::with_capacity(self.items.len()), Vec::with_capacity(self.items.len()));
        let mut sealed_bytes = 0;
        let mut place = 0;
        while let Some((items, bytes)) = together(&mut self.items, place) {
            if sealed_bytes + bytes > SMALL_SEALED_BYTES_AT_ONCE {
                // Other tasks of this thread, and its ring, get their turn.
                yield_now().await;
                sealed_bytes = 0;
            }
            sealed_bytes += bytes;
            let count = items.len();
            for (place, root) in (place..).zip(seal(shard, vault, items)) {
                if let Some(root) = root {
                    of.push((place, root.payload.len() as u64));
                    roots.push(root);
                }
            }
            place += count;
        }
        let mut failed = Vec::new();
        for ((place, bytes), outcome) in of.into_iter().zip(small::store_roots(shard, roots).await) {
            let Some((at, item)) = self.items.get_mut(place) else { continue };
            match outcome {
                Ok(stored) => item.result.bytes_new = if stored.new { bytes } else { 0 },
                Err(error) => failed.push((*at, Failure::from(error))),
            }
        }
        for (at, failure) in failed {
            self.items.retain(|(of, _)| *of != at);
            self.settle(at, Err(failure));
        }
    }

    /// Steps 4 and 5 on a node alone: it is the one owner of every name. From the look at what the names are until they
    /// are written nobody else writes them, so that each version that is replaced is seen by who replaces it.
    async fn name_alone(
        &mut self,
        shard: &Rc<Shard>,
        vault: &VaultKey,
        layout: u32,
        looked: LookedUp,
    ) -> Result<(), Failure> {
        let LookedUp { locked, mut earlier } = looked;
        let network = shard.node.network_id();
        let mut named: Vec<Named> = Vec::with_capacity(self.items.len());
        for (at, item) in std::mem::take(&mut self.items) {
            let earlier = earlier.remove(&(item.bucket_id, item.name_id)).flatten();
            if item.put.no_clobber && earlier.as_ref().is_some_and(|earlier| !earlier.tombstone) {
                self.settle(at, Err(NameError::Taken.into()));
                continue;
            }
            let after = earlier.as_ref().map_or(crate::format::Stamp::ZERO, |earlier| earlier.clock);
            match later_clock(shard, after).await {
                Ok(clock) => {
                    let stamp = NameStamp { clock, version: item.version, tombstone: false };
                    let ids = (item.bucket_id, item.name_id);
                    let record = vault.seal_name_of(&network, ids, stamp, &item.body());
                    named.push((at, item, record, earlier));
                }
                Err(error) => self.settle(at, Err(error.into())),
            }
        }
        let is_file = |earlier: &Option<NameRecord>| earlier.as_ref().is_some_and(|earlier| !earlier.tombstone);
        let replaced = named.iter().filter(|(.., earlier)| is_file(earlier)).count();
        let mut _room = None;
        if replaced > 0 {
            match deaths::reserve(shard, replaced) {
                Ok(room) => _room = Some(room),
                Err(failure) => {
                    let (refused, others): (Vec<_>, Vec<_>) =
                        named.into_iter().partition(|(.., earlier)| is_file(earlier));
                    for (at, ..) in refused {
                        self.settle(at, Err(Failure::new(failure.code, failure.message.clone())));
                    }
                    named = others;
                }
            }
        }
        let records = named.iter().map(|(_, _, record, _)| SmallRecord::Name(record.encode())).collect();
        if let Err(error) = shard.store.append_all(records).await {
            let failure = Failure::from(NameError::Here(error.to_string()));
            for (at, ..) in named {
                self.settle(at, Err(Failure::new(failure.code, failure.message.clone())));
            }
            return Ok(());
        }
        drop(locked);
        if alone(shard) != Some(layout) {
            // Somebody has joined meanwhile, and may have brought in the names of before without these.
            self.send_again(shard, named).await;
            return Ok(());
        }
        let mut replaced = Vec::new();
        let mut dying = Vec::new();
        for (at, item, record, earlier) in named {
            match earlier.filter(|earlier| !earlier.tombstone) {
                None => self.settle(at, Ok(item.result)),
                Some(earlier) => {
                    dying.push(Written {
                        order: record.order(),
                        holders: vec![shard.node.id()],
                        quorums: shard.node.layouts().name_quorums(&item.bucket_id),
                        replaced: vec![earlier.order()],
                    });
                    replaced.push((at, item.result));
                }
            }
        }
        let signed = deaths::sign_replaced(shard, &dying).await;
        for (at, result) in replaced {
            let outcome = signed.as_ref().map(|()| result);
            self.settle(at, outcome.map_err(|failure| Failure::new(failure.code, failure.message.clone())));
        }
        Ok(())
    }

    /// Step 4 once more, for records that are durable here, with today's owners.
    async fn send_again(&mut self, shard: &Rc<Shard>, named: Vec<Named>) {
        let running: Vec<_> = named
            .into_iter()
            .map(|(at, item, record, earlier)| {
                let shard = shard.clone();
                let sending = async move {
                    let (bucket, name, no_clobber) = (&item.bucket_id, &item.name_id, item.put.no_clobber);
                    let write = WriteName { bucket, name, earlier: earlier.as_ref(), no_clobber };
                    let written = write.send_again(&shard, record).await?;
                    deaths::sign_replaced(&shard, &[written]).await?;
                    Ok(item.result)
                };
                (at, in_task(sending))
            })
            .collect();
        for (at, sending) in running {
            self.settle(at, ended(sending).await);
        }
    }

    /// All steps of each file by itself, all files at once.
    async fn run_each(&mut self, shard: &Rc<Shard>, vault: &VaultKey) {
        self.each(|item| {
            let (shard, vault) = (shard.clone(), vault.clone());
            async move { put_by_quorum(&shard, &vault, item).await }
        })
        .await;
    }

    /// Steps 4 and 5 of each file by itself.
    async fn name_each(&mut self, shard: &Rc<Shard>, vault: &VaultKey) {
        self.each(|item| {
            let (shard, vault) = (shard.clone(), vault.clone());
            async move {
                let earlier = read_earlier(&shard, &item.put, &item.name, &item.bucket_id, &item.name_id).await?;
                let _room = reserve_death(&shard, earlier.as_ref())?;
                name_by_quorum(&shard, &vault, item, earlier).await
            }
        })
        .await;
    }

    async fn each<F: Future<Output = Outcome> + 'static>(&mut self, work: impl Fn(Box<Item>) -> F) {
        let items = std::mem::take(&mut self.items);
        let running: Vec<_> = items.into_iter().map(|(at, item)| (at, in_task(work(item)))).collect();
        for (at, task) in running {
            self.settle(at, ended(task).await);
        }
    }
}

/// Names that nobody else writes, and what they are.
struct LookedUp {
    locked: Vec<KeyLock<NameId>>,
    earlier: HashMap<(BucketId, NameId), Option<NameRecord>>,
}

async fn look_up(shard: &Rc<Shard>, names: Vec<(BucketId, NameId)>) -> Result<LookedUp, Failure> {
    let locked = shard.node.name_locks.lock_all(names.iter().map(|(_, name)| *name)).await;
    let records = shard.node.catalog.names_of(names.clone()).await?;
    Ok(LookedUp { locked, earlier: names.into_iter().zip(records).collect() })
}

async fn put_by_quorum(shard: &Rc<Shard>, vault: &VaultKey, mut item: Box<Item>) -> Outcome {
    let earlier = read_earlier(shard, &item.put, &item.name, &item.bucket_id, &item.name_id).await?;
    let _room = reserve_death(shard, earlier.as_ref())?;
    if let Some(root) = seal(shard, vault, vec![&mut item]).pop().flatten() {
        let bytes = root.payload.len() as u64;
        let stored = small::store_roots(shard, vec![root]).await.pop().unwrap_or(Err(ChunkError::Cancelled))?;
        item.result.bytes_new = if stored.new { bytes } else { 0 };
    }
    name_by_quorum(shard, vault, item, earlier).await
}

async fn name_by_quorum(shard: &Rc<Shard>, vault: &VaultKey, item: Box<Item>, earlier: Option<NameRecord>) -> Outcome {
    let name = (&item.bucket_id, &item.name_id);
    publish(shard, vault, name, earlier.as_ref(), item.put.no_clobber, item.version, &item.body()).await?;
    Ok(item.result)
}
