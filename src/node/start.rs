//! Start-up and shutdown.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Instant;

use tokio::sync::{Notify, mpsc};

use super::cache::Cache;
use super::doubt::Doubt;
use super::peers::Peers;
use super::serve::Serve;
use super::shard::{Job, Shard};
use super::shared::{Shared, Stop};
use super::threads::Thread;
use super::{
    NodeError, Ready, bootstrap, checkpoints, chunks, commands, deaths, log, membership, mend_log, name_sync, names,
    reclaim, threads, wall_ms,
};
use crate::catalog::{Catalog, Clock};
use crate::cluster::{Layouts, PendingDeaths};
use crate::config::NodeConfig;
use crate::crypto::keyfile::KeyRing;
use crate::crypto::replay::ReplayFilter;
use crate::format::{Incarnation, Stamp};
use crate::io::{
    Ring, RingOptions, StopSignals, TcpListener, UnixListener, lock_directory, raise_fd_limit, restrict_new_files,
    spawn, thread_count_default,
};
use crate::key_locks::KeyLocks;
use crate::limits::{
    ACCEPT_PAUSE, CACHE_SHARE_OF_CAPACITY, LAST_REPORT_MAX, PORT_LOOK_INTERVAL, PORT_WAIT_MAX, SHUTDOWN_MAX,
};
use crate::node::control::SOCKET_NAME;
use crate::store::{self, RingDisk, StoreOptions};
use crate::wire::{Admission, Connection, Identity};

/// Version of the data directory as a whole; each file in it carries one of its own too.
const DATA_FORMAT: u32 = 1;
const FORMAT_FILE: &str = "format";
const FORMAT_WORDS: &str = "gabion data directory, format ";

/// Runs a node until it is told to stop.
pub fn run(config: NodeConfig, on_ready: impl FnOnce(&Ready)) -> Result<(), NodeError> {
    raise_fd_limit();
    restrict_new_files();
    let dir = config.data_dir.clone();
    prepare_directory(&dir)?;
    let unusable = |error: std::io::Error| NodeError::DataDir { path: dir.clone(), reason: error.to_string() };
    let _lock = lock_directory(&dir).map_err(unusable)?.ok_or_else(|| NodeError::Locked { path: dir.clone() })?;
    check_format(&dir)?;
    // What can fail without a network fails before one is founded.
    let mut ring = Ring::new(&RingOptions::default())?;
    check_port(config.listen)?;
    let (keys, founded) = keys(&config)?;
    if let Some(warning) = other_zone(config.zone.as_deref(), &keys.certificate().zone) {
        tracing::warn!("{warning}");
    }
    let threads = config.threads.unwrap_or_else(thread_count_default).max(1);
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..threads).map(|_| mpsc::unbounded_channel::<Job>()).unzip();
    let mut receivers = receivers.into_iter();
    let first_jobs = receivers.next().ok_or(NodeError::ThreadLost)?;
    ring.block_on(async {
        let listener = listen(config.listen)?;
        let node = open(config, keys, &listener, senders).await?;
        let committer = threads::start_committer(&node).await?;
        let others = threads::start_shards(&node, receivers)?;
        let shard = threads::attach(0, &node)?;
        let ready = Ready {
            node_id: node.id(),
            listen: node.listen,
            data_dir: node.config.data_dir.clone(),
            founded,
            member: node.is_member(),
        };
        let outcome = serve_first(&shard, listener, first_jobs, move || on_ready(&ready)).await;
        if outcome.is_err() {
            // It has not come to where it waits for the end.
            node.stop.begin();
            cut_off_after(SHUTDOWN_MAX);
        }
        let mut lost = Ok(());
        for thread in others {
            lost = lost.and(thread.ended().await);
        }
        finish_first(&shard, committer).await?;
        outcome.and(lost)
    })
}

fn prepare_directory(dir: &Path) -> Result<(), NodeError> {
    std::fs::create_dir_all(dir.join("segments"))
        .map_err(|error| NodeError::DataDir { path: dir.to_owned(), reason: error.to_string() })
}

/// Reads the format file, or writes it into a new directory.
fn check_format(dir: &Path) -> Result<(), NodeError> {
    let path = dir.join(FORMAT_FILE);
    let damaged = |reason: String| NodeError::DataDir { path: path.clone(), reason };
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let number = text.trim().strip_prefix(FORMAT_WORDS).and_then(|number| number.parse().ok());
            let found: u32 = number.ok_or_else(|| {
                damaged(format!("it should read `{FORMAT_WORDS}{DATA_FORMAT}`: restore it, or use another directory"))
            })?;
            if found > DATA_FORMAT {
                return Err(NodeError::NewerFormat { path, found, known: DATA_FORMAT });
            }
            Ok(())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            write_durably(dir, FORMAT_FILE, format!("{FORMAT_WORDS}{DATA_FORMAT}\n").as_bytes())
                .map_err(|error| damaged(error.to_string()))
        }
        Err(error) => Err(damaged(error.to_string())),
    }
}

/// A file that is whole after a crash, or not there.
pub fn write_durably(dir: &Path, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    let temporary = dir.join(format!("{name}.new"));
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, dir.join(name))?;
    std::fs::File::open(dir)?.sync_all()
}

/// The keys of this data directory; new ones when it has none: of the ticket's network, or of one founded now.
fn keys(config: &NodeConfig) -> Result<(KeyRing, bool), NodeError> {
    let dir = &config.data_dir;
    if let Some(keys) = KeyRing::load(dir)? {
        if config.join.iter().any(|ticket| ticket.network != keys.network()) {
            return Err(NodeError::OtherNetwork);
        }
        return Ok((keys, false));
    }
    let zone = config.zone.as_deref().unwrap_or_default();
    match config.join.first() {
        Some(ticket) => {
            // Before the keys: with them alone there would be nobody to turn to.
            bootstrap::keep(config)
                .map_err(|error| NodeError::DataDir { path: dir.clone(), reason: error.to_string() })?;
            Ok((KeyRing::join(dir, ticket, zone)?, false))
        }
        None => Ok((KeyRing::found(dir, zone)?, true)),
    }
}

/// A node's zone is settled when it joins, and by the invite where that names one: what to say where `--zone` does not count.
fn other_zone(wanted: Option<&str>, zone: &str) -> Option<String> {
    let wanted = wanted.filter(|wanted| *wanted != zone)?;
    let own = if zone.is_empty() { "none".to_owned() } else { format!("`{zone}`") };
    Some(format!("--zone {wanted} does not count: this node's zone is {own}, settled by its ticket when it joined"))
}

/// The shards' listeners share their port, and so another process of the same user could share it too without anybody
/// noticing. A listener that does not share finds out. The kernel takes a moment to take a killed process's ring apart,
/// and its sockets live until then: hence the patience.
fn check_port(address: SocketAddr) -> Result<(), NodeError> {
    let deadline = Instant::now() + PORT_WAIT_MAX;
    loop {
        match std::net::TcpListener::bind(address) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(PORT_LOOK_INTERVAL);
            }
            Err(error) => return Err(not_listening(address, &error)),
        }
    }
}

pub(super) fn listen(address: SocketAddr) -> Result<TcpListener, NodeError> {
    TcpListener::bind(address).map_err(|error| not_listening(address, &error))
}

fn not_listening(address: SocketAddr, error: &std::io::Error) -> NodeError {
    let reason = match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            "the port is in use: stop who uses it, or give --listen another port".to_owned()
        }
        _ => error.to_string(),
    };
    NodeError::Listen { address, reason }
}

const CATALOG_DIRECTORY: &str = "catalog";
const INCARNATION_FILE: &str = "incarnation";

/// One life of the store: random, written once; an emptied directory gets another.
fn incarnation(dir: &Path) -> Result<Incarnation, NodeError> {
    let path = dir.join(INCARNATION_FILE);
    let unusable = |reason: String| NodeError::DataDir { path: path.clone(), reason };
    match std::fs::read(&path) {
        Ok(bytes) => {
            let bytes = <[u8; 16]>::try_from(bytes.as_slice()).map_err(|_| unusable("it is damaged".into()))?;
            Ok(Incarnation(bytes))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let incarnation = Incarnation(rand::random());
            write_durably(dir, INCARNATION_FILE, &incarnation.0).map_err(|error| unusable(error.to_string()))?;
            Ok(incarnation)
        }
        Err(error) => Err(unusable(error.to_string())),
    }
}

/// Opens store and catalog, and builds what the threads share.
async fn open(
    config: NodeConfig,
    keys: KeyRing,
    listener: &TcpListener,
    shards: Vec<mpsc::UnboundedSender<Job>>,
) -> Result<Arc<Shared>, NodeError> {
    let dir = config.data_dir.clone();
    let listen =
        listener.local_addr().map_err(|source| NodeError::Io { what: "reading the listening address", source })?;
    let incarnation = incarnation(&dir)?;
    let (catalog, positions) = Catalog::open(&dir.join(CATALOG_DIRECTORY))?;
    let disk = RingDisk::new(&dir).map_err(|source| NodeError::Io { what: "opening the data directory", source })?;
    let options = StoreOptions { capacity_bytes: config.capacity, ..StoreOptions::new(shards.len(), incarnation, 0) };
    let mut replay = log::Replay::new(&catalog);
    let (store, report) = store::open(&disk, options, &positions, &mut |replayed| replay.apply(replayed)).await?;
    replay.finish().await?;
    reclaim::forget_gone(&catalog, &store, &positions, &report).await?;
    let doubt = Doubt::at_start(&catalog, &report, |segment| store.has_segment(segment)).await?;
    tracing::info!(
        segments = report.segments,
        chunks = report.chunks,
        quarantined = report.quarantined.len(),
        clean = report.clean,
        "store opened"
    );
    let floor = catalog.document(names::CLOCK_DOCUMENT).await?.and_then(|bytes| bytes.as_slice().try_into().ok());
    let floor = Stamp(u64::from_le_bytes(floor.unwrap_or_default()).into());
    let synced = catalog.document(name_sync::SYNCED_DOCUMENT).await?.and_then(|bytes| bytes.as_slice().try_into().ok());
    let synced = u32::from_le_bytes(synced.unwrap_or_default());
    let identity = Arc::new(Identity {
        keys: keys.node().clone(),
        certificate: keys.certificate().certificate().encode(),
        network: keys.network(),
        network_keys: keys.network_keys().to_vec(),
    });
    let replay_filter = ReplayFilter::load(&dir, wall_ms())
        .map_err(|error| NodeError::DataDir { path: dir.clone(), reason: error.to_string() })?;
    let certificate = keys.certificate().clone();
    // What was only read must not take the room of what is to be kept.
    let cache_bytes =
        config.capacity.map_or(config.cache, |capacity| config.cache.min(capacity / CACHE_SHARE_OF_CAPACITY));
    let cache = Cache::new(cache_bytes);
    let node = Arc::new(Shared {
        peers: Peers::new(&config, &certificate, keys.node(), incarnation, listen, bootstrap::addresses(&config)),
        config,
        listen,
        started: Instant::now(),
        identity,
        certificate,
        keys: RwLock::new(keys),
        incarnation,
        store,
        opened: report,
        lost_mended: AtomicBool::new(false),
        doubt: Mutex::new(doubt),
        catalog,
        layouts: RwLock::new(Layouts::new()),
        clock: Mutex::new(Clock::new(floor)),
        deaths: Mutex::new(PendingDeaths::default()),
        cache,
        traffic: Default::default(),
        admission: Admission::new(Instant::now()),
        replay: Arc::new(replay_filter),
        shards,
        stop: Stop::default(),
        deaths_changed: Notify::new(),
        book_changed: Notify::new(),
        strangers: Default::default(),
        layout_turns: Default::default(),
        book_file: Mutex::new(()),
        layout_change: tokio::sync::Mutex::new(()),
        names_synced: AtomicU32::new(synced),
        layout_changed: Notify::new(),
        name_locks: KeyLocks::new(),
        name_claims: Default::default(),
        witnessed: Default::default(),
        document_serial: AtomicU64::new(0),
    });
    membership::restore(&node).await?;
    refuse_lost_layout(&node)?;
    deaths::restore(&node).await?;
    Ok(node)
}

/// Whoever holds the authority founds layout 1 where there is none. On a node that has run before, its layout was lost with
/// a part of the log, and a second layout 1 would contradict the first. A node that was killed between making its keys and
/// founding has no record in any segment, and goes on.
fn refuse_lost_layout(node: &Arc<Shared>) -> Result<(), NodeError> {
    let opened = &node.opened;
    let has_run = opened.segments > 0
        || opened.lost_blocks > 0
        || !opened.unreadable.is_empty()
        || node.config.data_dir.join(membership::BOOK_FILE).exists();
    if has_run && node.layout_number() == 0 && node.key_ring().authority().is_some() {
        return Err(NodeError::LayoutLost { path: node.config.data_dir.clone() });
    }
    Ok(())
}

/// Jobs and accepted connections run from now on.
pub(super) fn start_shard(shard: &Rc<Shard>, listener: &Rc<TcpListener>, jobs: mpsc::UnboundedReceiver<Job>) {
    let (own, accepting, listener) = (shard.clone(), shard.clone(), listener.clone());
    spawn(async move { own.run_jobs(jobs).await });
    spawn(async move { accept(accepting, listener).await });
}

async fn accept(shard: Rc<Shard>, listener: Rc<TcpListener>) {
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                let shard = shard.clone();
                spawn(async move {
                    let handler = Rc::new(Serve::new(shard.clone()));
                    let node = &shard.node;
                    let pool = shard.pool.clone();
                    let accepted = Connection::accept(
                        stream,
                        address,
                        &node.identity,
                        &node.admission,
                        &node.replay,
                        pool,
                        handler,
                    );
                    // The handshake has logged what is worth it: anybody can be refused as often as he likes.
                    if let Err(refused) = accepted.await {
                        tracing::debug!(%address, %refused, "connection refused");
                    }
                });
            }
            Err(_) if shard.node.is_stopping() => return,
            // Of this machine: no peer can cause it by what it does with its own connection.
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

pub(super) async fn stop_shard(shard: &Rc<Shard>, listener: &Rc<TcpListener>) {
    listener.cancel().await;
    // Those that are cancelled may have peers to tell.
    if tokio::time::timeout(LAST_REPORT_MAX, shard.sessions.ended()).await.is_err() {
        tracing::debug!(shard.index, "commands did not end in time");
    }
    shard.connections.close_all("the node stops").await;
}

/// Shard 0: what a shard does, and the work that is there once per node.
async fn serve_first(
    shard: &Rc<Shard>,
    listener: TcpListener,
    jobs: mpsc::UnboundedReceiver<Job>,
    on_ready: impl FnOnce(),
) -> Result<(), NodeError> {
    let listener = Rc::new(listener);
    let mut signals = StopSignals::new().map_err(|source| NodeError::Io { what: "catching signals", source })?;
    let socket = shard.node.config.data_dir.join(SOCKET_NAME);
    let control = Rc::new(
        UnixListener::bind(&socket).map_err(|source| NodeError::Io { what: "binding the control socket", source })?,
    );
    start_shard(shard, &listener, jobs);
    let (served, accepting) = (shard.clone(), control.clone());
    spawn(async move { commands::serve(served, accepting).await });
    membership::start(shard).await?;
    deaths::start(shard);
    name_sync::start(shard);
    mend_then_reclaim(shard);
    checkpoints::start(shard);
    chunks::recount_cache(shard);
    on_ready();
    let stopping = shard.node.stopping();
    tokio::select! {
        signal = signals.next() => tracing::info!(signal, "stopping"),
        () = stopping.wait() => {}
    }
    // Whoever is told that the node stops finds no socket any more.
    remove_socket(&socket);
    shard.node.stop.begin();
    cut_off_after(SHUTDOWN_MAX);
    control.cancel().await;
    commands::turn_away(shard, &control);
    stop_shard(shard, &listener).await;
    // Those who had the socket's path already.
    commands::turn_away(shard, &control);
    Ok(())
}

/// What opening the store found lost is written again from the catalog while that still knows it. Nothing is reclaimed
/// before; the node serves meanwhile.
fn mend_then_reclaim(shard: &Rc<Shard>) {
    let shard = shard.clone();
    spawn(async move {
        match mend_log::mend_lost(&shard).await {
            Ok(0) => {}
            Ok(blocks) => tracing::warn!(blocks, "what lost blocks of the log may have held is written again"),
            Err(failure) => tracing::error!(reason = %failure.message, "the log is not mended yet: gabion verify"),
        }
        reclaim::start(&shard);
    });
}

/// Closes the store behind the others and ends the catalog.
async fn finish_first(shard: &Rc<Shard>, committer: Thread) -> Result<(), NodeError> {
    membership::save(&shard.node);
    let closed = shard.store.close().await;
    // Why it ended before its time says more than that it is not there.
    committer.ended().await?;
    closed?;
    shard.node.catalog.close().await?;
    Ok(())
}

fn remove_socket(socket: &PathBuf) {
    if let Err(error) = std::fs::remove_file(socket) {
        tracing::debug!(%error, "the control socket was gone already");
    }
}

/// Whatever hangs, the process ends: nothing that was acknowledged depends on what comes after.
fn cut_off_after(limit: std::time::Duration) {
    std::thread::spawn(move || {
        std::thread::sleep(limit);
        tracing::warn!("shutdown took longer than {} s: cut off", limit.as_secs());
        std::process::exit(0);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_that_does_not_count_is_warned_of() {
        assert_eq!(other_zone(None, "z-1"), None);
        assert_eq!(other_zone(Some("cellar"), "cellar"), None);
        let warning = other_zone(Some("attic"), "z-1").unwrap();
        assert!(warning.contains("attic") && warning.contains("z-1"), "{warning}");
        assert!(other_zone(Some("attic"), "").unwrap().contains("none"));
    }
}
