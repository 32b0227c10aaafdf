//! Membership carried out: the machine's dials, hellos and roles, the layouts, and the vault key for a new member.
//!
//! - A connection counts for membership once a hello has gone over it, in either direction; those that shards dial for
//!   data alone never say one.
//! - Everything here that touches a connection runs on the shard where it lives; the machine itself is shared.
//! - Layouts: whoever hears of a newer one fetches it from whom it heard of it, checks the authority's signature, makes it
//!   durable, and says hello to everybody again. The founder makes the next one when a certified node is known that
//!   the newest does not name.
//! - A hello is answered at once; what it leads to comes after, for each connection one hello at a time, and of those that
//!   come meanwhile the last alone.
//! - Who was not admitted is asked for a layout only when it says that it has a newer one, and then nobody who was waits
//!   for it ([`super::layout_turns`]). A node that knows no layout yet has admitted nobody, and asks whom it meets.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::serve::Serve;
use super::shard::{Shard, send_job};
use super::shared::{Shared, lock};
use super::start::write_durably;
use super::{NodeError, log, wall_ms};
use crate::cluster::membership::{ConnectionId, Known};
use crate::cluster::{ActiveLayout, MembershipAction, MembershipEvent};
use crate::crypto::identity::{sign_layout, verify_certificate, verify_layout, verify_role};
use crate::crypto::keys::VaultKey;
use crate::format::certificate::{Layout, LayoutEntry, NodeCertificate, Role};
use crate::format::frame::{FrameKind, Status};
use crate::format::message::{self, Hello};
use crate::format::{Address, Malformed, NodeId};
use crate::io::spawn;
use crate::limits::{
    ADDRESS_BOOK_PAUSE, DIAL_RETRY_MAX, DIAL_RETRY_MIN, LAYOUT_ASKED_MAX, LAYOUT_BYTES_MAX, LAYOUT_CATCH_UP_PAUSE,
    LAYOUT_HEAD_BYTES_RESERVE, LAYOUT_PART_BYTES_MIN, LAYOUTS_UNSYNCED_MAX, MEMBERSHIP_TICK_MAX, MEMBERSHIP_TICK_MIN,
    MISSED_LAYOUTS_PAUSE, ROLES_PER_MESSAGE_MAX, STALL_MAX,
};
use crate::wire::Connection;

pub const BOOK_FILE: &str = "address-book";
const LAYOUT_PREFIX: &str = "layout/";

/// What a connection is to membership.
#[derive(Default)]
pub struct Standing {
    connection: Cell<Option<ConnectionId>>,
    /// A hello of the peer is being looked into.
    hearing: Cell<bool>,
    /// The hello to look into next.
    latest: RefCell<Option<Vec<u8>>>,
}

/// Reads back what was learnt before the last stop.
pub async fn restore(node: &Arc<Shared>) -> Result<(), NodeError> {
    let mut documents = node.catalog.documents(LAYOUT_PREFIX.as_bytes()).await?;
    documents.sort();
    for (_, bytes) in documents {
        if let Err(reason) = adopt(node, &bytes) {
            tracing::warn!(%reason, "a layout in the log was not understood");
        }
    }
    // The layout names nodes whom a book that was not written does not know.
    if let Ok(newest) = node.layout() {
        // Nobody is connected yet: there is nothing to carry out.
        node.peers.admit(newest.layout());
    }
    match std::fs::read(node.config.data_dir.join(BOOK_FILE)) {
        Ok(book) => {
            if let Err(error) = node.peers.restore(&book) {
                tracing::warn!(%error, "the address book is damaged and was left out: tickets lead back");
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(%error, "the address book cannot be read"),
    }
    Ok(())
}

/// Keeps the address book. It is knowledge that can be learnt again: a failure is a warning.
pub fn save(node: &Shared) {
    let _one_at_a_time = lock(&node.book_file);
    if let Err(error) = write_durably(&node.config.data_dir, BOOK_FILE, &node.peers.encode()) {
        tracing::warn!(%error, "the address book was not written");
    }
}

/// Founds layout 1 where that is this node's to do, and begins to dial.
pub async fn start(shard: &Rc<Shard>) -> Result<(), NodeError> {
    propose_layout(shard).await;
    if shard.node.layout_number() > 0 {
        feed(shard, MembershipEvent::Joined);
    }
    let node = shard.node.clone();
    spawn(async move { keep_book(node).await });
    let node = shard.node.clone();
    spawn(async move { keep_learning(node).await });
    let shard = shard.clone();
    spawn(async move {
        let stopping = shard.node.stopping();
        loop {
            feed(&shard, MembershipEvent::Tick);
            let next = shard.node.peers.next_deadline();
            let pause =
                next.map_or(MEMBERSHIP_TICK_MAX, |at| at.saturating_sub(shard.node.uptime())).min(MEMBERSHIP_TICK_MAX);
            tokio::select! {
                () = stopping.clone().wait() => return,
                () = shard.node.peers.changed.notified() => tokio::time::sleep(MEMBERSHIP_TICK_MIN).await,
                () = tokio::time::sleep(pause) => {}
            }
        }
    });
    Ok(())
}

/// Writes the address book when it has changed, so that a node which is killed finds the others again.
async fn keep_book(node: Arc<Shared>) {
    let stopping = node.stopping();
    loop {
        tokio::select! {
            () = stopping.clone().wait() => return,
            () = node.book_changed.notified() => {}
        }
        let saved = node.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || save(&saved)).await {
            tracing::warn!(%error, "the address book was not written");
        }
        tokio::time::sleep(ADDRESS_BOOK_PAUSE).await;
    }
}

/// Feeds the machine and carries out what it wants.
fn feed(shard: &Rc<Shard>, event: MembershipEvent) {
    for action in shard.node.peers.handle(event, shard.node.uptime()) {
        carry_out(shard, action);
    }
}

fn carry_out(shard: &Rc<Shard>, action: MembershipAction) {
    let node = &shard.node;
    match action {
        MembershipAction::Dial { address, expect } => {
            // Dials live on shard 0, whoever fed the machine.
            send_job(node, 0, move |shard| async move { dial(&shard, address, expect).await });
        }
        MembershipAction::SendRoles { to: _, connection, known } => {
            let Some(home) = node.peers.home(connection) else { return };
            send_job(node, home, move |shard| async move { send_roles(&shard, connection, &known).await });
        }
        MembershipAction::Close { connection, reason } => {
            let Some(home) = node.peers.home(connection) else { return };
            send_job(node, home, move |shard| async move {
                if let Some(connection) = shard.connections.settled(connection) {
                    connection.close(reason).await;
                }
            });
        }
        MembershipAction::Alive(peer) => {
            tracing::info!(?peer, "connected");
            super::deaths::on_reachable(node, peer);
        }
        MembershipAction::Gone(peer) => tracing::info!(?peer, "gone"),
        MembershipAction::Save => node.book_changed.notify_one(),
    }
}

async fn dial(shard: &Rc<Shard>, address: String, expect: Option<NodeId>) {
    match super::connections::dial_at(shard, &address, expect).await {
        Ok((connection, serve)) => {
            settle(shard, &connection, &serve.standing, Some(address));
            greet(shard, &connection).await;
        }
        Err(error) => {
            tracing::info!(%address, %error, "cannot dial");
            feed(shard, MembershipEvent::DialFailed { address });
        }
    }
}

/// Says hello, and again while the connection is open and nothing has come of it: until then it counts on one side only.
async fn greet(shard: &Rc<Shard>, connection: &Connection) {
    let mut pause = DIAL_RETRY_MIN;
    while connection.is_open() {
        let hello = own_hello(shard);
        match connection.request(FrameKind::Hello, Address::ZERO, 0, hello, None, STALL_MAX).await {
            Ok(answer) if answer.status == Status::Ok => return heard(shard, connection, &answer.body).await,
            Ok(answer) => tracing::warn!(status = ?answer.status, "a hello was refused"),
            Err(error) => tracing::info!(%error, "a hello was not answered"),
        }
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(DIAL_RETRY_MAX);
    }
}

/// Counts a connection for membership.
fn settle(shard: &Rc<Shard>, connection: &Connection, standing: &Standing, dialled: Option<String>) {
    if standing.connection.get().is_some() {
        return;
    }
    let number = shard.node.peers.settle(shard.index);
    standing.connection.set(Some(number));
    shard.connections.settle(number, connection.clone());
    let certificate = connection.peer().certificate.certificate().clone();
    feed(
        shard,
        MembershipEvent::Connected {
            connection: number,
            certificate: Box::new(certificate),
            dialled,
            wall_ms: wall_ms(),
        },
    );
}

pub fn on_closed(shard: &Rc<Shard>, standing: &Standing) {
    if let Some(connection) = standing.connection.take() {
        shard.connections.unsettle(connection);
        shard.node.peers.unsettle(connection);
        feed(shard, MembershipEvent::Closed { connection });
    }
}

pub fn own_hello(shard: &Rc<Shard>) -> Vec<u8> {
    let node = &shard.node;
    Hello { incarnation: node.incarnation, layout: node.layout_number(), role: &node.peers.own_role().encode() }
        .encode()
}

/// A peer says hello: its connection counts from now on. What else it leads to may take a while, and the answer does not
/// wait for it.
pub fn on_hello(shard: &Rc<Shard>, connection: &Connection, serve: &Serve, hello: Vec<u8>) {
    settle(shard, connection, &serve.standing, None);
    let (shard, connection, standing) = (shard.clone(), connection.clone(), serve.standing.clone());
    standing.latest.replace(Some(hello));
    if standing.hearing.replace(true) {
        return;
    }
    spawn(async move {
        while let Some(hello) = standing.latest.take() {
            heard(&shard, &connection, &hello).await;
        }
        standing.hearing.set(false);
    });
}

/// What a hello tells, in either direction.
async fn heard(shard: &Rc<Shard>, connection: &Connection, body: &[u8]) {
    let certificate = &connection.peer().certificate;
    let (role, layout) = match Hello::decode(body).and_then(|hello| Ok((Role::decode(hello.role)?, hello.layout))) {
        Ok(heard) => heard,
        Err(error) => return tracing::warn!(%error, peer = ?certificate.node_id, "a hello was malformed"),
    };
    // First the layout: it says whether the peer may be remembered.
    if layout > shard.node.layout_number() {
        fetch_layout(shard, connection, layout).await;
    }
    learn(shard, connection, vec![(certificate.certificate().clone(), role)]).await;
    fetch_vault_key(shard, connection).await;
}

/// Roles a peer sent: pairs of certificate and role.
pub async fn on_roles(shard: &Rc<Shard>, connection: &Connection, items: Vec<&[u8]>) -> Result<(), Malformed> {
    let known = decode_roles(&items)?;
    learn(shard, connection, known).await;
    Ok(())
}

/// As many as one message carries: each costs three signatures to check.
fn decode_roles(items: &[&[u8]]) -> Result<Vec<(NodeCertificate, Role)>, Malformed> {
    if items.len() > 2 * ROLES_PER_MESSAGE_MAX {
        return Err(Malformed::new("more roles than one message carries"));
    }
    let decode = |pair: &[&[u8]]| {
        let [certificate, role] = pair else { return Err(Malformed::new("odd number of roles")) };
        Ok((NodeCertificate::decode(certificate)?, Role::decode(role)?))
    };
    items.chunks(2).map(decode).collect()
}

/// Of what somebody tells that was not admitted, its own newest role. The machine would drop the rest, after all
/// signatures were checked.
fn keep_own(from: &NodeId, heard: &mut Vec<(NodeCertificate, Role)>) {
    heard.retain(|(certificate, role)| certificate.node == *from && role.node == *from);
    heard.sort_by_key(|(_, role)| std::cmp::Reverse(role.serial));
    heard.truncate(1);
}

/// Checks what was heard, and tells the machine, which decides what of it is kept.
async fn learn(shard: &Rc<Shard>, connection: &Connection, mut heard: Vec<(NodeCertificate, Role)>) {
    let from = connection.peer().certificate.node_id;
    if shard.node.layout_number() > 0 && !shard.node.is_admitted(&from) {
        keep_own(&from, &mut heard);
    }
    let (network, wall_s) = (shard.node.network_id(), wall_ms() / 1000);
    let is_late = |certificate: &NodeCertificate| {
        !certificate.invite.admits(wall_s) && !shard.node.is_admitted(&certificate.node)
    };
    if shard.node.is_admitted(&from) && heard.iter().any(|(certificate, _)| is_late(certificate)) {
        // Admitted while this node was away, by a layout that it has missed? An honest peer sends no role of anybody else.
        fetch_layout(shard, connection, shard.node.layout_number() + 1).await;
    }
    let mut known = Vec::with_capacity(heard.len());
    for (certificate, role) in heard {
        let checked =
            verify_certificate(&certificate, &network).map(|_| ()).and_then(|()| verify_role(&role, &network));
        match checked {
            Ok(()) if role.node == certificate.node => known.push(Known { certificate, role }),
            Ok(()) => tracing::warn!(?from, "a role of another node than its certificate's was dropped"),
            Err(error) => tracing::warn!(?from, %error, "a role was dropped"),
        }
    }
    feed(shard, MembershipEvent::Roles { from, known, wall_s });
    propose_soon(&shard.node);
}

/// Something may be new: the founder looks whether the next layout is due.
pub fn propose_soon(node: &Arc<Shared>) {
    if node.key_ring().authority().is_some() {
        send_job(node, 0, |shard| async move { propose_layout(&shard).await });
    }
}

async fn send_roles(shard: &Rc<Shard>, number: ConnectionId, known: &[Known]) {
    let Some(connection) = shard.connections.settled(number) else { return };
    let encoded: Vec<[Vec<u8>; 2]> =
        known.iter().map(|known| [known.certificate.encode(), known.role.encode()]).collect();
    let mut pairs = encoded.as_slice();
    while !pairs.is_empty() {
        let (body, count) = message::encode_page(pairs.iter().flatten().map(Vec::as_slice));
        // A page may end between certificate and role: only whole pairs go.
        let whole = count / 2;
        let body = if count % 2 == 0 {
            body
        } else {
            message::encode_page(pairs.iter().take(whole).flatten().map(Vec::as_slice)).0
        };
        let answer = connection.request(FrameKind::Roles, Address::ZERO, 0, body, None, STALL_MAX).await;
        if let Err(error) = answer {
            return tracing::debug!(%error, "roles were not taken");
        }
        pairs = pairs.get(whole.max(1)..).unwrap_or_default();
    }
}

/// The founder's: makes the next layout when somebody is known whom the newest does not name.
async fn propose_layout(shard: &Rc<Shard>) {
    let node = &shard.node;
    let Some(next) = next_layout(node) else { return };
    let bytes = next.encode();
    if let Err(reason) = keep_layout(shard, &bytes).await {
        tracing::error!(%reason, "the next layout was not made");
    }
}

/// The next layout, signed; `None` when this node is not the one to make it or there is nothing to add.
fn next_layout(node: &Arc<Shared>) -> Option<Layout> {
    let ring = node.key_ring();
    let authority = ring.authority()?;
    let newest = node.layout().ok();
    if newest.as_ref().is_some_and(|newest| newest.number().saturating_sub(node.names_synced()) > LAYOUTS_UNSYNCED_MAX)
    {
        return None; // asked again once names were brought in
    }
    let now_s = wall_ms() / 1000;
    let mut next: Option<Layout> = None;
    for known in node.peers.known() {
        if newest.as_ref().is_some_and(|newest| newest.node(&known.role.node).is_some()) {
            continue;
        }
        let checked = match verify_certificate(&known.certificate, &node.network_id()) {
            Ok(checked) => checked,
            Err(_) => continue,
        };
        if let Err(error) = checked.is_admissible(now_s) {
            tracing::warn!(peer = ?known.role.node, %error, "a node was not admitted");
            continue;
        }
        let entry = LayoutEntry { certificate: known.certificate, role: known.role };
        match (&mut next, &newest) {
            (Some(next), _) => next.entries.push(entry),
            (None, Some(newest)) => next = Some(newest.next_with(entry)),
            (None, None) => next = Some(first_layout(node, entry)),
        }
    }
    let mut next = next?;
    let mut room = LAYOUT_BYTES_MAX.saturating_sub(LAYOUT_HEAD_BYTES_RESERVE);
    let is_kept = |entry: &LayoutEntry| newest.as_ref().is_some_and(|newest| newest.node(&entry.role.node).is_some());
    next.entries.sort_by_key(|entry| !is_kept(entry)); // who is there already stays, whoever else applies
    next.entries.retain(|entry| {
        let bytes = entry.certificate.encode().len() + entry.role.encode().len() + 4;
        let fits = bytes <= room;
        room = room.saturating_sub(if fits { bytes } else { 0 });
        fits
    });
    if newest.as_ref().is_some_and(|newest| newest.nodes().len() == next.entries.len()) {
        tracing::warn!(nodes = next.entries.len(), "the layout is full: no more nodes are admitted");
        return None;
    }
    next.entries.sort_by_key(|entry| entry.role.node);
    sign_layout(&mut next, authority);
    Some(next)
}

fn first_layout(node: &Arc<Shared>, entry: LayoutEntry) -> Layout {
    Layout {
        number: 1,
        replicas: node.config.replicas,
        voters: vec![node.id()],
        settings: Vec::new(),
        entries: vec![entry],
        signature: [0; 64],
    }
}

/// Makes a layout durable, active, and known to everybody connected.
async fn keep_layout(shard: &Rc<Shard>, bytes: &[u8]) -> Result<(), String> {
    let node = &shard.node;
    let layout = Layout::decode(bytes).map_err(|error| error.to_string())?;
    // Before its signatures are looked at: they cost far more than they can be worth for one that is not newer.
    if layout.number <= node.layout_number() {
        return Ok(());
    }
    verify_layout(&layout, &node.network_id()).map_err(|error| error.to_string())?;
    let _one_at_a_time = node.layout_change.lock().await;
    if layout.number <= node.layout_number() {
        return Ok(());
    }
    let key = format!("{LAYOUT_PREFIX}{:010}", layout.number);
    let document = log::document(node.document_serial(), key.as_bytes(), bytes);
    shard.store.append(document).await.map_err(|error| error.to_string())?;
    adopt(node, bytes)?;
    lock(&node.strangers).on_layout(|peer| node.is_admitted(peer));
    tracing::info!(number = layout.number, nodes = layout.entries.len(), "layout");
    node.peers.admit(&layout).into_iter().for_each(|action| carry_out(shard, action));
    super::bootstrap::forget(&node.config.data_dir);
    node.book_changed.notify_one();
    feed(shard, MembershipEvent::Joined);
    super::deaths::on_layout(node);
    node.layout_changed.notify_one();
    for index in 0..node.shards.len() {
        send_job(node, index, |shard| async move { say_hello_again(&shard).await });
    }
    Ok(())
}

/// Puts a layout into the table. The later number wins; an earlier one is remembered for reads.
fn adopt(node: &Arc<Shared>, bytes: &[u8]) -> Result<(), String> {
    let layout = Layout::decode(bytes).map_err(|error| error.to_string())?;
    verify_layout(&layout, &node.network_id()).map_err(|error| error.to_string())?;
    let layout = ActiveLayout::from_checked(layout);
    let mut layouts = node.layouts.write().unwrap_or_else(PoisonError::into_inner);
    if layouts.newest().is_none_or(|newest| newest.number() < layout.number()) {
        layouts.adopt(layout).map_err(|error| error.to_string())
    } else {
        layouts.remember(layout);
        Ok(())
    }
}

/// Tells every connected node that there is a newer layout here.
async fn say_hello_again(shard: &Rc<Shard>) {
    for connection in shard.connections.all_settled() {
        let (own, hello) = (shard.clone(), own_hello(shard));
        spawn(async move {
            let answer = connection.request(FrameKind::Hello, Address::ZERO, 0, hello, None, STALL_MAX).await;
            if let Ok(answer) = answer
                && answer.status == Status::Ok
            {
                heard(&own, &connection, &answer.body).await;
            }
        });
    }
}

/// Fetches the newest layout, unless `wanted` has come meanwhile, and, before it, those that this node has missed: older chunks lie by them.
async fn fetch_layout(shard: &Rc<Shard>, connection: &Connection, wanted: u32) {
    let node = &shard.node;
    let peer = connection.peer().certificate.node_id;
    let asked = {
        let _turn = node.layout_turns.take(peer, node.is_admitted(&peer)).await;
        // Who comes second mostly finds it there.
        if node.layout_number() >= wanted {
            return;
        }
        ask_layout(connection, 0, LAYOUT_ASKED_MAX).await
    };
    match asked {
        Ok(newest) => {
            if let Err(reason) = keep_layout(shard, &newest).await {
                return tracing::warn!(%reason, "a layout was refused");
            }
            learn_missed_from(shard, connection).await;
        }
        Err(reason) => tracing::info!(%reason, "no layout from a peer"),
    }
}

/// Asks everybody connected for the layouts that were before this node came, or while it was away, until none is missing.
/// Until they are known nothing is said of names that may lie by them, or of chunks that nobody else has.
async fn keep_learning(node: Arc<Shared>) {
    let stopping = node.stopping();
    loop {
        tokio::select! {
            () = stopping.clone().wait() => return,
            () = tokio::time::sleep(MISSED_LAYOUTS_PAUSE) => {}
        }
        if node.missed_layouts().is_empty() {
            continue;
        }
        // Connections live on any shard.
        for index in 0..node.shards.len() {
            send_job(&node, index, |shard| async move {
                for connection in shard.connections.all_settled() {
                    learn_missed_from(&shard, &connection).await;
                }
            });
        }
    }
}

/// Asks one peer for all that was missed, if it was admitted, for [`LAYOUT_ASKED_MAX`] together: others may be faster.
async fn learn_missed_from(shard: &Rc<Shard>, connection: &Connection) {
    let node = &shard.node;
    let peer = connection.peer().certificate.node_id;
    let mut patience = LAYOUT_ASKED_MAX;
    for missed in node.missed_layouts() {
        if !node.is_admitted(&peer) {
            return;
        }
        let asked = {
            let _turn = node.layout_turns.take(peer, true).await;
            if !node.missed_layouts().contains(&missed) {
                continue; // another peer had it
            }
            let begun = Instant::now();
            let asked = ask_layout(connection, missed, patience).await;
            patience = patience.saturating_sub(begun.elapsed());
            asked
        };
        match asked {
            Ok(bytes) => remember_layout(shard, missed, &bytes).await,
            Err(NoLayout::Refused(_)) => {}
            Err(NoLayout::Slow | NoLayout::Failed(_)) => return,
        }
    }
}

async fn remember_layout(shard: &Rc<Shard>, number: u32, bytes: &[u8]) {
    let Ok(layout) = Layout::decode(bytes) else { return };
    if layout.number != number || verify_layout(&layout, &shard.node.network_id()).is_err() {
        return;
    }
    let key = format!("{LAYOUT_PREFIX}{number:010}");
    let document = log::document(shard.node.document_serial(), key.as_bytes(), bytes);
    if let Err(error) = shard.store.append(document).await {
        return tracing::warn!(%error, "a layout was not kept");
    }
    shard.node.missed_layout(ActiveLayout::from_checked(layout));
}

/// Why a peer gave no layout.
#[derive(Debug, thiserror::Error)]
enum NoLayout {
    #[error("answered {0:?}")]
    Refused(Status),
    #[error("the layout came too slowly")]
    Slow,
    #[error("{0}")]
    Failed(String),
}

/// Others wait for the answer: a peer that drips is given up.
async fn ask_layout(connection: &Connection, number: u32, patience: Duration) -> Result<Vec<u8>, NoLayout> {
    timeout(patience, ask_layout_parts(connection, number)).await.unwrap_or(Err(NoLayout::Slow))
}

async fn ask_layout_parts(connection: &Connection, number: u32) -> Result<Vec<u8>, NoLayout> {
    let mut bytes = Vec::new();
    loop {
        let body = message::encode_layout_request(number, bytes.len() as u32);
        let answer = connection
            .request(FrameKind::Layout, Address::ZERO, 0, body, None, STALL_MAX)
            .await
            .map_err(|error| NoLayout::Failed(error.to_string()))?;
        if answer.status != Status::Ok {
            return Err(NoLayout::Refused(answer.status));
        }
        let (total, part) =
            message::decode_layout_part(&answer.body).map_err(|error| NoLayout::Failed(error.to_string()))?;
        let is_last = bytes.len() + part.len() >= total as usize;
        if total as usize > LAYOUT_BYTES_MAX || part.is_empty() || !is_last && part.len() < LAYOUT_PART_BYTES_MIN {
            return Err(NoLayout::Failed("the layout's length makes no sense".into()));
        }
        bytes.extend_from_slice(part);
        if bytes.len() >= total as usize {
            return Ok(bytes);
        }
    }
}

/// Asks every connected and admitted peer of this shard for a newer layout; pauses a little when there is none, since then it is the
/// other side that is behind and catches up.
pub async fn refresh_layout(shard: &Rc<Shard>) {
    let before = shard.node.layout_number();
    for connection in shard.connections.all() {
        let knows_none = shard.node.layout_number() == 0;
        if knows_none || shard.node.is_admitted(&connection.peer().certificate.node_id) {
            fetch_layout(shard, &connection, before + 1).await;
        }
    }
    if shard.node.layout_number() == before {
        tokio::time::sleep(LAYOUT_CATCH_UP_PAUSE).await;
    }
}

/// A peer runs under a newer layout than we know.
pub fn catch_up(shard: &Rc<Shard>, connection: &Connection, wanted: u32) {
    let (shard, connection) = (shard.clone(), connection.clone());
    spawn(async move { fetch_layout(&shard, &connection, wanted).await });
}

/// A member without the vault key asks the first other member that it meets and that a layout has admitted: whoever has
/// nothing but a certificate (its invite may have expired long ago) could hand it a key of its own, and read all that is
/// put under it. Once there is such a layout, every connection says hello again, and comes by here.
async fn fetch_vault_key(shard: &Rc<Shard>, connection: &Connection) {
    let node = &shard.node;
    if !node.is_member() || node.vault_key().is_some() || !node.is_fellow_member(&connection.peer().certificate) {
        return;
    }
    let answer = connection.request(FrameKind::VaultKey, Address::ZERO, 0, Vec::new(), None, STALL_MAX).await;
    let Ok(answer) = answer.inspect_err(|error| tracing::info!(%error, "no vault key from a peer")) else { return };
    if answer.status != Status::Ok {
        return tracing::info!(status = ?answer.status, "no vault key from a peer");
    }
    if !node.is_fellow_member(&connection.peer().certificate) {
        return tracing::warn!(peer = ?connection.peer().certificate.node_id, "a vault key of no admitted member was refused");
    }
    match message::decode_vault_key(&answer.body) {
        Ok((VaultKey::GENERATION, key)) => {
            if let Err(error) = node.keep_vault_key(VaultKey::from_bytes(key)) {
                tracing::error!(%error, "the vault key was not kept");
            }
        }
        Ok((generation, _)) => tracing::warn!(generation, "a vault key of an unknown generation"),
        Err(error) => tracing::warn!(%error, "a vault key was malformed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::certificate::{Class, InviteCertificate, RoleState, SIGNATURE_BYTES};
    use crate::format::{Incarnation, NetworkId, PlacementId};

    const UNSIGNED: [u8; SIGNATURE_BYTES] = [0; SIGNATURE_BYTES];

    fn pair(certified: u8, told: u8, serial: u64) -> (NodeCertificate, Role) {
        let certificate = NodeCertificate {
            class: Class::Member,
            network: NetworkId([9; 32]),
            node: NodeId([certified; 32]),
            handshake_key: [1; 32],
            placement: PlacementId([certified; 16]),
            capacity_limit: 0,
            zone: String::new(),
            invite: InviteCertificate::unsigned(Class::Member, "", 0, 0, [2; 32]),
            signature: UNSIGNED,
        };
        let role = Role {
            node: NodeId([told; 32]),
            incarnation: Incarnation([3; 16]),
            state: RoleState::Active,
            serial,
            capacity_bytes: 1,
            layout_confirmed: 0,
            layout_synced: 0,
            addresses: Vec::new(),
            signature: UNSIGNED,
        };
        (certificate, role)
    }

    #[test]
    fn a_message_carries_so_many_roles_and_no_more() {
        let (certificate, role) = pair(1, 1, 1);
        let (certificate, role) = (certificate.encode(), role.encode());
        let pairs = |count: usize| [certificate.as_slice(), role.as_slice()].repeat(count);
        assert_eq!(decode_roles(&pairs(ROLES_PER_MESSAGE_MAX)).map(|known| known.len()), Ok(ROLES_PER_MESSAGE_MAX));
        assert!(decode_roles(&pairs(ROLES_PER_MESSAGE_MAX + 1)).is_err());
        assert!(decode_roles(&pairs(2)[..3]).is_err(), "half a pair");
    }

    #[test]
    fn of_a_stranger_only_its_newest_role_is_worth_checking() {
        let mut heard = vec![pair(2, 2, 9), pair(1, 1, 3), pair(1, 2, 9), pair(1, 1, 5), pair(2, 1, 9)];
        keep_own(&NodeId([1; 32]), &mut heard);
        assert_eq!(heard, [pair(1, 1, 5)]);
        keep_own(&NodeId([7; 32]), &mut heard);
        assert!(heard.is_empty());
    }
}
