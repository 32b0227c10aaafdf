//! `stat`, `rm`, `ls`, `share`: names and nothing else.

use std::collections::BTreeMap;
use std::rc::Rc;

use tokio::sync::{Semaphore, mpsc};

use super::get::{find, find_name};
use super::{Client, Failure, code, vault_key};
use crate::crypto::keys::{NameStamp, VaultKey};
use crate::format::link::Link;
use crate::format::name::{Name, NameBody, NameRecord};
use crate::limits::{LISTING_BYTES_MAX, LISTING_ENTRIES_SHORT, LISTINGS_MAX, NAME_REMOVALS_AT_ONCE, REMOVALS_MAX};
use crate::node::control::{ControlEvent, Entry, SecretText, Target};
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
    let _room = deaths::reserve(shard, 1)?;
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
    if keys.len() > REMOVALS_MAX {
        return Err(Failure::new(code::USAGE, format!("at most {REMOVALS_MAX} names are removed at once")));
    }
    let _room = deaths::reserve(shard, keys.len())?;
    let places = Rc::new(Semaphore::new(NAME_REMOVALS_AT_ONCE));
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

/// Gives a name to nobody.
async fn bury(shard: &Rc<Shard>, vault: &VaultKey, bucket: &str, key: &str) -> Result<Written, Failure> {
    let name = Name::new(bucket, key).map_err(|error| Failure::new(code::USAGE, error.to_string()))?;
    let (bucket_id, name_id) = vault.ids(bucket, key);
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

/// The first names after `after`, in order of bucket and key: `limit` of them, or as many as may be held. Names lie in
/// the order of their hashes, so a page is the smallest of all that match: memory is bounded by the page, and a page costs
/// one pass over the bucket. So pages are as long as memory allows, and most listings are one.
pub async fn list(
    shard: &Rc<Shard>,
    client: &Rc<Client>,
    bucket: Option<&str>,
    prefix: &str,
    after: Option<(String, String)>,
    limit: u64,
) -> Result<(), Failure> {
    let vault = vault_key(shard)?;
    // Refused only by a semaphore that was closed; this one never is.
    let _turn = if limit > LISTING_ENTRIES_SHORT { LISTINGS.acquire().await.ok() } else { None };
    let bucket_id = bucket.map(|bucket| vault.bucket_id(bucket));
    let network = shard.node.network_id();
    let mut unreadable = 0;
    let mut page = Page::new(limit.max(1), LISTING_BYTES_MAX);
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
        let is_behind = |after: &(String, String)| (&body.bucket, &body.key) > (&after.0, &after.1);
        if body.key.starts_with(prefix) && after.as_ref().is_none_or(is_behind) {
            page.offer(body, &record);
        }
        Ok(())
    };
    name_scan::scan(shard, bucket_id.as_ref(), &mut keep).await?;
    if unreadable > 0 {
        let message =
            format!("{unreadable} name records do not open and are not listed: sealed under another key, or edited");
        client.send(ControlEvent::Warning { message }).await?;
    }
    let more = page.more;
    let entries = page.entries.into_values().map(|entry| ControlEvent::Entry { entry });
    client.send_all(entries.chain([ControlEvent::Listed { more }])).await
}

static LISTINGS: Semaphore = Semaphore::const_new(LISTINGS_MAX);

/// The smallest entries of all that were offered.
struct Page {
    entries: BTreeMap<(String, String), Entry>,
    limit: u64,
    bytes: usize,
    bytes_max: usize,
    /// Something was offered that is not among them.
    more: bool,
}

impl Page {
    fn new(limit: u64, bytes_max: usize) -> Self {
        Self { entries: BTreeMap::new(), limit, bytes: 0, bytes_max, more: false }
    }

    fn offer(&mut self, body: NameBody, record: &NameRecord) {
        let place = (body.bucket.clone(), body.key.clone());
        // Once something did not fit, what lies behind the last does not either.
        if self.more && self.entries.last_key_value().is_some_and(|(last, _)| place > *last) {
            return;
        }
        let entry = entry(body, record);
        self.bytes += bytes_of(&entry);
        if let Some(known) = self.entries.insert(place, entry) {
            self.bytes -= bytes_of(&known);
        }
        // One always stays, however long: a page without any would say that there is nothing.
        while self.entries.len() as u64 > self.limit || self.bytes > self.bytes_max && self.entries.len() > 1 {
            let Some((_, last)) = self.entries.pop_last() else { break };
            self.bytes -= bytes_of(&last);
            self.more = true;
        }
    }
}

/// What an entry takes in memory: its strings (bucket and key twice), and what surrounds them.
fn bytes_of(entry: &Entry) -> usize {
    let metadata = &entry.metadata;
    let target = metadata.symlink_target.as_ref().map_or(0, Vec::len);
    let content_type = metadata.content_type.as_ref().map_or(0, String::len);
    2 * (entry.bucket.len() + entry.key.len()) + target + content_type + ENTRY_BYTES
}

/// An entry and its key in the tree, with some room for the allocator's.
const ENTRY_BYTES: usize = size_of::<Entry>() + 2 * size_of::<String>() + 64;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::name::Metadata;
    use crate::format::{Address, BucketId, NameId, Stamp, VaultId, VersionId};

    fn body(key: &str) -> NameBody {
        NameBody {
            bucket: "main".into(),
            key: key.into(),
            root: Address::ZERO,
            root_key: [0; 32],
            depth: 0,
            length: 0,
            metadata: Metadata::default(),
        }
    }

    fn record() -> NameRecord {
        NameRecord {
            tombstone: false,
            vault: VaultId::ZERO,
            key_generation: 0,
            bucket: BucketId::ZERO,
            name: NameId::ZERO,
            clock: Stamp::ZERO,
            version: VersionId::ZERO,
            nonce: [0; 24],
            sealed: Vec::new(),
        }
    }

    /// All pages, read as a client reads them.
    fn pages(keys: &[String], limit: u64, bytes_max: usize) -> Vec<Vec<String>> {
        let (mut pages, mut after): (Vec<Vec<String>>, Option<String>) = (Vec::new(), None);
        loop {
            let mut page = Page::new(limit, bytes_max);
            for key in keys.iter().filter(|key| after.as_ref().is_none_or(|after| *key > after)) {
                page.offer(body(key), &record());
            }
            let more = page.more;
            pages.push(page.entries.into_keys().map(|(_, key)| key).collect());
            after = pages.last().and_then(|page| page.last().cloned());
            if !more {
                return pages;
            }
        }
    }

    #[test]
    fn pages_hold_every_name_once_in_order_whatever_bounds_them() {
        let sorted: Vec<String> = (0..500).map(|number| format!("{number:04}")).collect();
        let mut keys = sorted.clone();
        keys.sort_by_key(|key| *blake3::hash(key.as_bytes()).as_bytes());
        let one = bytes_of(&entry(body("0000"), &record()));
        for (limit, bytes_max, count) in [(u64::MAX, usize::MAX, 1), (100, usize::MAX, 5), (u64::MAX, 50 * one, 10)] {
            let pages = pages(&keys, limit, bytes_max);
            assert_eq!(pages.len(), count, "limit {limit}, {bytes_max} bytes");
            assert_eq!(pages.concat(), sorted);
        }
        assert_eq!(pages(&keys, u64::MAX, 1).len(), 500, "a page holds at least one name");
    }
}
