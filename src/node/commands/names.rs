//! `stat`, `rm`, `ls`, `share`: names and nothing else.

use std::collections::BTreeMap;
use std::rc::Rc;

use tokio::sync::{Semaphore, mpsc};

use super::get::{find, find_name};
use super::{Client, Failure, code, vault_key};
use crate::crypto::keys::{NameStamp, VaultKey};
use crate::format::link::Link;
use crate::format::name::{Name, NameBody, NameRecord};
use crate::node::control::{ControlEvent, Entry, LIST_PAGE_MAX, SecretText, Target};
use crate::node::names::{NameError, WriteName, Written};
use crate::node::shard::Shard;
use crate::node::{deaths, name_scan, names};

pub async fn stat(shard: &Rc<Shard>, client: &Rc<Client>, target: Target) -> Result<(), Failure> {
    let found = find(shard, &target).await?;
    let entry = Entry {
        bucket: found.bucket,
        key: found.key,
        content: found.root,
        length: found.length,
        metadata: found.metadata,
        stamp_ms: found.stamp_ms,
    };
    client.send(ControlEvent::Entry { entry }).await
}

/// Writes a tombstone with a later clock to a majority, then signs the death of what it replaced.
pub async fn remove(shard: &Rc<Shard>, bucket: &str, key: &str) -> Result<(), Failure> {
    let vault = vault_key(shard)?;
    let _room = deaths::reserve(shard)?;
    let written = bury(shard, &vault, bucket, key).await?;
    deaths::sign_replaced(shard, &[written]).await
}

/// The same for many names, several at a time. All that they held is declared dead in one document; a stop of the node
/// before that leaks the space of names that are removed already.
pub async fn remove_many(
    shard: &Rc<Shard>,
    client: &Rc<Client>,
    bucket: &str,
    keys: Vec<String>,
) -> Result<(), Failure> {
    let vault = Rc::new(vault_key(shard)?);
    if keys.len() > LIST_PAGE_MAX as usize {
        return Err(Failure::new(code::USAGE, format!("at most {LIST_PAGE_MAX} names are removed at once")));
    }
    let _room = deaths::reserve(shard)?;
    let places = Rc::new(Semaphore::new(REMOVALS_AT_ONCE));
    let (tell, mut told) = mpsc::unbounded_channel();
    for key in keys {
        let (shard, vault, bucket) = (shard.clone(), vault.clone(), bucket.to_owned());
        let (places, tell) = (places.clone(), tell.clone());
        crate::io::spawn(async move {
            let _place = places.acquire().await;
            let outcome = bury(&shard, &vault, &bucket, &key).await;
            let _ = tell.send((key, outcome));
        });
    }
    drop(tell);
    let (mut done, mut written) = (Vec::new(), Vec::new());
    while let Some((key, outcome)) = told.recv().await {
        done.push((key, outcome.map(|outcome| written.push(outcome)).err()));
    }
    let signed = deaths::sign_replaced(shard, &written).await;
    for (key, failure) in done {
        let failure = failure.map(|failure| (failure.code, failure.message));
        client.send(ControlEvent::Removed { key, failure }).await?;
    }
    signed
}

/// Names of one request that are written at a time.
const REMOVALS_AT_ONCE: usize = 64;

/// Gives a name to nobody.
async fn bury(shard: &Rc<Shard>, vault: &VaultKey, bucket: &str, key: &str) -> Result<Written, Failure> {
    let name = Name::new(bucket, key).map_err(|error| Failure::new(code::USAGE, error.to_string()))?;
    let (bucket_id, name_id) = (vault.bucket_id(bucket), vault.name_id(bucket, key));
    let earlier = names::read(shard, &bucket_id, &name_id)
        .await?
        .filter(|record| !record.tombstone)
        .ok_or_else(|| Failure::new(code::NOT_FOUND, format!("no file is named {name}: nothing to remove")))?;
    let version = shard.node.mint(bucket_id.slot());
    let (network, body) = (shard.node.network_id(), NameBody::tombstone(&name));
    let seal = |clock| vault.seal_name(&network, NameStamp { clock, version, tombstone: true }, &body);
    let write = WriteName { bucket: &bucket_id, name: &name_id, earlier: Some(&earlier), no_clobber: false };
    Ok(write.run(shard, seal).await?)
}

/// The first `limit` names after `after`, in order of bucket and key. Names lie in the order of their hashes, so a page
/// is the smallest `limit` of all that match: memory is bounded by the page, and a page costs one pass over the bucket.
pub async fn list(
    shard: &Rc<Shard>,
    client: &Rc<Client>,
    bucket: Option<&str>,
    prefix: &str,
    after: Option<(String, String)>,
    limit: u32,
) -> Result<(), Failure> {
    let vault = vault_key(shard)?;
    let limit = limit.clamp(1, LIST_PAGE_MAX) as usize;
    let bucket_id = bucket.map(|bucket| vault.bucket_id(bucket));
    let network = shard.node.network_id();
    let mut unreadable = 0;
    let mut page: BTreeMap<(String, String), Entry> = BTreeMap::new();
    let mut keep = async |record: NameRecord| -> Result<(), NameError> {
        if record.tombstone {
            return Ok(());
        }
        let body = match vault.open_name(&network, &record) {
            Ok(body) => body,
            Err(error) => {
                tracing::warn!(%error, name = ?record.name, "a name record does not open and is not listed");
                unreadable += 1;
                return Ok(());
            }
        };
        let place = (body.bucket.clone(), body.key.clone());
        let is_wanted = body.key.starts_with(prefix) && after.as_ref().is_none_or(|after| place > *after);
        if !is_wanted || page.len() == limit && page.last_key_value().is_some_and(|(last, _)| place > *last) {
            return Ok(());
        }
        page.insert(place, entry(body, &record));
        if page.len() > limit {
            page.pop_last();
        }
        Ok(())
    };
    name_scan::scan(shard, bucket_id.as_ref(), &mut keep).await?;
    if unreadable > 0 {
        let message =
            format!("{unreadable} name records do not open and are not listed: sealed under another key, or edited");
        client.send(ControlEvent::Warning { message }).await?;
    }
    for entry in page.into_values() {
        client.send(ControlEvent::Entry { entry }).await?;
    }
    Ok(())
}

fn entry(body: NameBody, record: &NameRecord) -> Entry {
    Entry {
        bucket: body.bucket.clone(),
        key: body.key.clone(),
        content: body.root,
        length: body.length,
        metadata: body.metadata.clone(),
        stamp_ms: record.clock.millis(),
    }
}

pub async fn share(shard: &Rc<Shard>, client: &Rc<Client>, bucket: &str, key: &str) -> Result<(), Failure> {
    let found = find_name(shard, bucket, key).await?;
    let link =
        Link { root: found.root, root_key: *found.root_key.as_bytes(), depth: found.depth, length: found.length };
    client.send(ControlEvent::Text { text: SecretText::new(link.to_string()) }).await
}
