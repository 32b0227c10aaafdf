//! What this node answers its peers.
//!
//! Every request is checked against what a layout has admitted the asker as and, where it changes anything, against the layout that it
//! runs under: an owner refuses any other than its own newest, and the asker starts over.
//!
//! Who is in no layout known here has not been admitted: hello, roles and layout are all that is answered, a few at a time,
//! over one of few connections ([`super::strangers`]).
//!
//! | request | member asks | storage node asks |
//! | --- | --- | --- |
//! | hello, roles, layout | answered | answered |
//! | vault key | answered by members | refused |
//! | offer, store, store small, refer | answered | refused: only members introduce chunks |
//! | fetch, prove | answered | answered |
//! | names, capsules, deaths | answered by members (deaths by all) | refused, but for deaths |

use std::cell::{Cell, OnceCell};
use std::rc::Rc;
use std::sync::atomic::Ordering;

use super::membership::{self, Standing};
use super::shard::Shard;
use super::shared::lock;
use super::strangers::PlaceId;
use crate::catalog::CatalogError;
use crate::crypto::hash::{addresses_of, proof_of_holding};
use crate::crypto::identity::CheckedCertificate;
use crate::crypto::keys::VaultKey;
use crate::format::frame::{FrameKind, Status};
use crate::format::name::NameRecord;
use crate::format::record::FLAG_STAND_IN;
use crate::format::{Address, Malformed, Reader, VersionId, message};
use crate::io::{MappedRange, map, spawn};
use crate::limits::{
    BULK_PAYLOAD_BYTES_MIN, CHUNK_BYTES_MIN, NAME_RECORDS_PER_PAGE_MAX, RECORD_HEAD_BYTES, REQUESTS_IN_FLIGHT_MAX,
    REQUESTS_OF_STRANGER_MAX,
};
use crate::store::{Hold, PlaceGuard, ReadOutcome, SmallChunk, SmallRecord, StoreError};
use crate::wire::{CloseReason, Connection, Handler, PayloadSource, PeerInfo, Reply, Request};

/// Answers one connection's requests.
pub struct Serve {
    shard: Rc<Shard>,
    connection: OnceCell<Connection>,
    pub standing: Rc<Standing>,
    /// Of a peer that was not admitted when it connected.
    place: Cell<Option<PlaceId>>,
}

impl Serve {
    pub fn new(shard: Rc<Shard>) -> Self {
        Self { shard, connection: OnceCell::new(), standing: Rc::default(), place: Cell::new(None) }
    }

    /// Whether the connection may stay: who was admitted needs no place for it.
    fn find_place(&self, peer: &PeerInfo) -> bool {
        let (node, certificate) = (&self.shard.node, &peer.certificate);
        let mut strangers = lock(&node.strangers);
        // Looked at with the table in hand: a layout that comes now frees the place again.
        if peer.dialled || node.is_admitted(&certificate.node_id) {
            return true;
        }
        let invite = (node.layout_number() > 0).then_some(certificate.invite_id);
        self.place.set(strangers.take(certificate.node_id, invite));
        self.place.get().is_some()
    }
}

impl Handler for Serve {
    async fn handle(self: Rc<Self>, peer: Rc<PeerInfo>, request: Request) -> Reply {
        let is_member = self.shard.node.is_fellow_member(&peer.certificate);
        let is_admitted = self.shard.node.is_admitted(&peer.certificate.node_id);
        let outcome = match request.kind {
            FrameKind::Hello => self.hello(request),
            FrameKind::Roles => self.roles(&request).await,
            FrameKind::Layout => self.layout(&request),
            // A certificate alone is an application: its invite may have expired. The founder's layout is the answer.
            _ if !is_admitted => Err(Refusal::plain(Status::Forbidden)),
            FrameKind::Fetch => self.fetch(&peer, &request).await,
            FrameKind::Deaths => self.deaths(&request).await,
            FrameKind::Prove => self.prove(&request).await,
            _ if !is_member => Err(Refusal::plain(Status::Forbidden)),
            FrameKind::VaultKey => self.vault_key(),
            FrameKind::Offer => self.offer(&request).await,
            FrameKind::Store => self.store(request).await,
            FrameKind::StoreSmall => self.store_small(&request).await,
            FrameKind::Refer => self.refer(&request).await,
            FrameKind::Capsules => self.capsules(&request).await,
            FrameKind::NameRead => self.name_read(&request).await,
            FrameKind::NameWrite => self.name_write(&request).await,
            FrameKind::NameList => self.name_list(&request).await,
            FrameKind::Keepalive | FrameKind::Cancel | FrameKind::Answer | FrameKind::Goodbye => {
                Err(Refusal::plain(Status::Malformed))
            }
        };
        outcome.unwrap_or_else(Refusal::into_reply)
    }

    fn is_admitted(&self, certificate: &CheckedCertificate) -> bool {
        self.shard.node.is_admitted(&certificate.node_id)
    }

    fn connected(&self, connection: &Connection) {
        if !self.find_place(connection.peer()) {
            tracing::debug!(peer = ?connection.peer().certificate.node_id, "no place for a node that was not admitted");
            let connection = connection.clone();
            spawn(async move { connection.close("too many nodes wait to be admitted").await });
            return;
        }
        self.shard.connections.add(connection.clone());
        // It is set once: a handler serves one connection.
        let _ = self.connection.set(connection.clone());
    }

    fn closed(&self, connection: &Connection, reason: &CloseReason) {
        tracing::debug!(peer = ?connection.peer().certificate.node_id, %reason, "connection closed");
        self.shard.connections.forget(connection);
        membership::on_closed(&self.shard, &self.standing);
        if let Some(place) = self.place.take() {
            lock(&self.shard.node.strangers).give_back(place);
        }
    }

    /// A chunk is offered before it is stored, and an offer of anybody else is refused: their payloads are a breach.
    fn takes_payload(&self, peer: &PeerInfo, kind: FrameKind) -> bool {
        kind == FrameKind::Store && self.shard.node.is_fellow_member(&peer.certificate)
    }

    /// A node that knows no layout has admitted nobody, and lets all those talk who may bring it one.
    fn requests_max(&self, peer: &PeerInfo) -> usize {
        let node = &self.shard.node;
        if node.is_admitted(&peer.certificate.node_id) || node.layout_number() == 0 {
            REQUESTS_IN_FLIGHT_MAX
        } else {
            REQUESTS_OF_STRANGER_MAX
        }
    }

    fn payload_sent(&self, bytes: usize) {
        self.shard.node.traffic.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn payload_received(&self, bytes: usize) {
        self.shard.node.traffic.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Why a request is not answered with what it asked for.
struct Refusal {
    status: Status,
    body: Vec<u8>,
}

impl Refusal {
    fn plain(status: Status) -> Self {
        Self { status, body: Vec::new() }
    }

    fn into_reply(self) -> Reply {
        Reply { body: self.body, ..Reply::status(self.status) }
    }
}

impl From<Malformed> for Refusal {
    fn from(error: Malformed) -> Self {
        Self { status: Status::Malformed, body: error.to_string().into_bytes() }
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        tracing::warn!(%error, "a peer's request failed in the store");
        match error {
            StoreError::NoSpace { .. } => Self::plain(Status::NoSpace),
            _ => Self::plain(Status::Unavailable),
        }
    }
}

impl From<CatalogError> for Refusal {
    fn from(error: CatalogError) -> Self {
        tracing::warn!(%error, "a peer's request failed in the catalog");
        Self::plain(Status::Unavailable)
    }
}

fn answer(body: Vec<u8>) -> Result<Reply, Refusal> {
    Ok(Reply::ok(body))
}

/// An answer to each chunk of a frame as if it were taken, unless it must not be; which ones may, and their places.
fn judge(chunks: Vec<message::SmallChunk<'_>>, dead: &[VersionId]) -> (Vec<u8>, Vec<usize>, Vec<SmallChunk>) {
    let (mut answers, mut places, mut taken) = (Vec::with_capacity(chunks.len()), Vec::new(), Vec::new());
    let found = addresses_of(&chunks.iter().map(|chunk| chunk.bytes).collect::<Vec<_>>());
    for (message::SmallChunk { address, version, flags, bytes }, found) in chunks.into_iter().zip(found) {
        let is_sound = bytes.len() >= CHUNK_BYTES_MIN && flags & !FLAG_STAND_IN == 0 && found == address;
        let status = match (is_sound, dead.contains(&version)) {
            (false, _) => Status::Malformed,
            (true, true) => Status::Dead,
            (true, false) => {
                places.push(answers.len());
                taken.push(SmallChunk {
                    address,
                    version,
                    flags,
                    payload: bytes.to_vec(),
                    capsule: None,
                    is_first: false,
                });
                Status::Ok
            }
        };
        answers.push(status as u8);
    }
    (answers, places, taken)
}

/// Chunks and names.
impl Serve {
    /// An owner refuses every layout but its newest; the asker reads the number and starts over.
    fn check_layout(&self, request: &Request) -> Result<(), Refusal> {
        let newest = self.shard.node.layout_number();
        if newest == 0 {
            return Err(Refusal::plain(Status::Unavailable));
        }
        let asked = request.header.layout.get();
        if asked > newest
            && let Some(connection) = self.connection.get()
        {
            membership::catch_up(&self.shard, connection, asked);
        }
        if asked != newest {
            return Err(Refusal { status: Status::WrongLayout, body: newest.to_le_bytes().to_vec() });
        }
        Ok(())
    }

    async fn offer(&self, request: &Request) -> Result<Reply, Refusal> {
        self.check_layout(request)?;
        let (version, addresses) = message::decode_offer(&request.body)?;
        self.check_alive(&version).await?;
        let mut held = Vec::with_capacity(addresses.len());
        for address in &addresses {
            // The claim is dropped: the chunk's bytes, if they come, come with a request of their own.
            held.push(u8::from(matches!(self.shard.store.hold(address, &version).await?, Hold::Held)));
        }
        answer(held)
    }

    async fn check_alive(&self, version: &VersionId) -> Result<(), Refusal> {
        if self.shard.node.catalog.is_dead(version).await? { Err(Refusal::plain(Status::Dead)) } else { Ok(()) }
    }

    async fn store(&self, request: Request) -> Result<Reply, Refusal> {
        self.check_layout(&request)?;
        let (version, flags) = message::decode_store(&request.body)?;
        let payload = request.payload.ok_or(Malformed::new("store without a payload"))?;
        if payload.len < CHUNK_BYTES_MIN || flags & !FLAG_STAND_IN != 0 {
            return Err(Malformed::new("store: payload length or flags").into());
        }
        self.check_alive(&version).await?;
        if let Hold::Absent(claim) = self.shard.store.hold(&request.header.address, &version).await? {
            let staged = self.shard.store.stage(claim, payload.buffer, payload.len, &version, flags).await;
            let staged = staged.map_err(StoreError::from)?;
            staged.commit().await?;
        }
        answer(Vec::new())
    }

    /// Each chunk is judged and answered by itself; those that are taken become durable together.
    async fn store_small(&self, request: &Request) -> Result<Reply, Refusal> {
        self.check_layout(request)?;
        let chunks = message::decode_small_chunks(&request.body)?;
        let mut versions: Vec<VersionId> = chunks.iter().map(|chunk| chunk.version).collect();
        versions.dedup();
        let dead = self.shard.node.catalog.dead_among(versions).await?;
        let (mut answers, places, taken) = judge(chunks, &dead);
        let held = self.shard.store.hold_small(taken).await;
        for (at, outcome) in places.into_iter().zip(held) {
            if let Some(answer) = answers.get_mut(at) {
                *answer = match outcome {
                    Ok(true) => Status::Ok as u8,
                    Ok(false) => Status::Ok as u8 | message::SMALL_CHUNK_HELD,
                    Err(error) => Refusal::from(error).status as u8,
                };
            }
        }
        answer(answers)
    }

    async fn fetch(&self, peer: &PeerInfo, request: &Request) -> Result<Reply, Refusal> {
        let address = request.header.address;
        let refused = |_| Refusal::plain(Status::Unavailable);
        // Of the shard's answers, those that one peer may hold: who takes none must not hold them all.
        let own = self.shard.connections.answers(&peer.certificate.node_id).acquire_owned().await.map_err(refused)?;
        if let Some((mapped, guard)) = self.map_hot(&address).await {
            let range = 0..mapped.len();
            let payload = Some(PayloadSource::Mapped(mapped, range, Box::new((guard, own))));
            return Ok(Reply { status: Status::Ok, address, layout: 0, body: Vec::new(), payload });
        }
        let permit =
            self.shard.answers.clone().acquire_owned().await.map_err(|_| Refusal::plain(Status::Unavailable))?;
        let buffer = self.shard.pool.take().await;
        match self.shard.store.read(&address, buffer).await? {
            ReadOutcome::Found { buffer, len, guard, turn } => {
                turn.pass();
                let range = RECORD_HEAD_BYTES..RECORD_HEAD_BYTES + len;
                drop(guard); // the bytes are in our buffer: punching cannot reach them any more
                let payload = Some(PayloadSource::Shared(buffer.freeze(), range).guarded((own, permit)));
                Ok(Reply { status: Status::Ok, address, layout: 0, body: Vec::new(), payload })
            }
            ReadOutcome::Absent { .. } => Err(Refusal::plain(Status::NotFound)),
            ReadOutcome::Damaged { .. } => Err(Refusal::plain(Status::Damaged)),
        }
    }

    /// A sealed chunk that lies in the page cache is sent from there: no buffer, and one copy less. What is cold would be
    /// read by whichever thread touches its pages, and small chunks are not worth a mapping.
    async fn map_hot(&self, address: &Address) -> Option<(MappedRange, PlaceGuard)> {
        let located = self.shard.store.locate(address).filter(|located| located.len >= BULK_PAYLOAD_BYTES_MIN)?;
        let file = self.shard.store.reader(located.segment).await.ok()?;
        if !file.is_cached(located.offset, located.len) {
            return None;
        }
        let mapped = map(&file, located.offset, located.len).ok()?;
        Some((mapped, located.guard))
    }

    async fn prove(&self, request: &Request) -> Result<Reply, Refusal> {
        let mut reader = Reader::new(&request.body);
        let nonce: [u8; 32] = *reader.take("prove nonce")?;
        let (offset, length) = (reader.u32("prove offset")? as usize, reader.u32("prove length")? as usize);
        let buffer = self.shard.pool.take().await;
        let ReadOutcome::Found { buffer, len, turn: _turn, .. } =
            self.shard.store.read(&request.header.address, buffer).await?
        else {
            return Err(Refusal::plain(Status::NotFound));
        };
        let end = offset.checked_add(length).filter(|end| *end <= len).ok_or(Malformed::new("prove range"))?;
        let bytes = buffer.as_slice().get(RECORD_HEAD_BYTES + offset..RECORD_HEAD_BYTES + end).unwrap_or_default();
        answer(proof_of_holding(&nonce, bytes).to_vec())
    }

    async fn refer(&self, request: &Request) -> Result<Reply, Refusal> {
        self.check_layout(request)?;
        let (version, capsule) = message::decode_refer(&request.body)?;
        self.check_alive(&version).await?;
        let address = request.header.address;
        let record = SmallRecord::Reference { address, version, capsule: capsule.to_vec() };
        self.shard.store.append(record).await?;
        answer(Vec::new())
    }

    async fn capsules(&self, request: &Request) -> Result<Reply, Refusal> {
        let capsules = self.shard.node.catalog.capsules(&request.header.address).await?;
        if capsules.is_empty() {
            return Err(Refusal::plain(Status::NotFound));
        }
        answer(message::encode_capsules(&capsules))
    }

    async fn name_read(&self, request: &Request) -> Result<Reply, Refusal> {
        self.check_layout(request)?;
        let (bucket, name) = message::decode_name_read(&request.body)?;
        // Before the look-up: what it says of the answer must have been true when the answer was found.
        let layout = self.shard.node.names_synced();
        Ok(match self.shard.node.catalog.name(&bucket, &name).await? {
            Some(record) => Reply { layout, ..Reply::ok(record.encode()) },
            None => Reply { layout, ..Reply::status(Status::NotFound) },
        })
    }

    async fn name_write(&self, request: &Request) -> Result<Reply, Refusal> {
        self.check_layout(request)?;
        let (origin, record) = message::decode_name_write(&request.body)?;
        let outcome = super::names::accept(&self.shard, origin, record, request.header.layout.get())
            .await
            .map_err(Refusal::plain)?;
        answer(outcome.encode())
    }

    async fn name_list(&self, request: &Request) -> Result<Reply, Refusal> {
        self.check_layout(request)?;
        let (bucket, after) = message::decode_name_list(&request.body)?;
        let layout = self.shard.node.names_synced();
        let records = self.shard.node.catalog.names(bucket.as_ref(), after, NAME_RECORDS_PER_PAGE_MAX).await?;
        let encoded: Vec<Vec<u8>> = records.iter().map(NameRecord::encode).collect();
        Ok(Reply { layout, ..Reply::ok(message::encode_page(encoded.iter().map(Vec::as_slice)).0) })
    }
}

/// Membership and deaths.
impl Serve {
    fn hello(&self, request: Request) -> Result<Reply, Refusal> {
        let connection = self.connection.get().ok_or(Refusal::plain(Status::Unavailable))?;
        membership::on_hello(&self.shard, connection, self, request.body);
        answer(membership::own_hello(&self.shard))
    }

    async fn roles(&self, request: &Request) -> Result<Reply, Refusal> {
        let connection = self.connection.get().ok_or(Refusal::plain(Status::Unavailable))?;
        let items = message::decode_page(&request.body, "role")?;
        membership::on_roles(&self.shard, connection, items).await?;
        answer(Vec::new())
    }

    fn layout(&self, request: &Request) -> Result<Reply, Refusal> {
        let (number, offset) = message::decode_layout_request(&request.body)?;
        match self.shard.node.layout_bytes(number) {
            Some(bytes) => answer(message::encode_layout_part(&bytes, offset)),
            None => Err(Refusal::plain(Status::NotFound)),
        }
    }

    fn vault_key(&self) -> Result<Reply, Refusal> {
        let key = self.shard.node.vault_key().ok_or(Refusal::plain(Status::Unavailable))?;
        answer(message::encode_vault_key(VaultKey::GENERATION, key.as_bytes()))
    }

    async fn deaths(&self, request: &Request) -> Result<Reply, Refusal> {
        for bytes in message::decode_page(&request.body, "death")? {
            super::deaths::accept(&self.shard, bytes).await.map_err(Refusal::plain)?;
        }
        answer(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::hash::address_of;
    use crate::format::Address;

    #[test]
    fn a_dead_version_and_a_wrong_byte_say_nothing_about_their_neighbours() {
        let versions = [1, 2, 3].map(|number| VersionId::new(7, 1000, [number; 8]));
        let payloads: Vec<Vec<u8>> = (0..5).map(|number| vec![number; 100]).collect();
        let chunk = |at: usize, version: usize| message::SmallChunk {
            address: address_of(&payloads[at]),
            version: versions[version],
            flags: 0,
            bytes: &payloads[at],
        };
        let chunks = vec![
            chunk(0, 0),
            chunk(1, 1),
            message::SmallChunk { address: Address::ZERO, ..chunk(2, 0) },
            message::SmallChunk { flags: 0x40, ..chunk(3, 0) },
            chunk(4, 2),
        ];
        let (answers, places, taken) = judge(chunks, &versions[1..2]);
        let [ok, dead, malformed] = [Status::Ok, Status::Dead, Status::Malformed].map(|status| status as u8);
        assert_eq!(answers, [ok, dead, malformed, malformed, ok]);
        assert_eq!(places, [0, 4]);
        let addresses: Vec<Address> = taken.iter().map(|chunk| chunk.address).collect();
        assert_eq!(addresses, [address_of(&payloads[0]), address_of(&payloads[4])]);
    }
}
