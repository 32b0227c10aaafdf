//! The commands: what the node does for whoever may open its control socket.
//!
//! One connection, one command, or many about small files ([`super::control`]). A command runs on one shard and may spread
//! its chunks over all; when its client hangs up it is cancelled, which leaves nothing but chunks without a name.
//!
//! | file | commands |
//! | --- | --- |
//! | [`put`] | put |
//! | [`small`] | put and get of small files, many at once |
//! | [`get`] | get, and fetching a chunk for a client that decrypts by itself |
//! | [`names`] | stat, remove, list, share |
//! | [`network`] | status, peers, ticket, key export |
//! | [`upkeep`] | verify, reclaim |
//!
//! [`requests`] takes what the client asks for off its connection; [`sessions`] counts the connections.
//!
//! A node that stops leaves nobody without a word, since a client whose node goes away in silence cannot know whether it
//! crashed. Its socket's file is removed first, so that nobody comes any more. Commands in work are cancelled and answered;
//! who waits for its client's next request says that the node stops instead, without a request, and closes. A client that
//! was about to ask reads that when its request does not go out ([`super::control::client`]).

mod get;
mod names;
mod network;
mod put;
mod requests;
mod sessions;
mod small;
mod upkeep;

pub use network::class;
pub use sessions::Sessions;
pub use small::SmallWork;

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use requests::{Received, Requests};

use super::control::{ControlEvent, ControlRequest};
use super::shard::{Shard, send_job};
use super::shared::Stopping;
use crate::crypto::keys::VaultKey;
use crate::io::{Buffer, SendSource, UnixListener, UnixStream, spawn};
use crate::limits::{ACCEPT_PAUSE, CLIENT_STALL_MAX, CONTROL_EVENTS_BYTES, LAST_REPORT_MAX, PROGRESS_INTERVAL};
use crate::node::names::NameError;
use crate::vault::ChunkError;

/// Exit codes, as the command line defines them.
pub mod code {
    pub const OTHER: u8 = 1;
    pub const USAGE: u8 = 2;
    pub const NOT_FOUND: u8 = 4;
    pub const NETWORK: u8 = 5;
    pub const INTEGRITY: u8 = 6;
    pub const KEY: u8 = 7;
    pub const SPACE: u8 = 8;
}

/// Why a command failed: what the client exits with, and one line that names the thing and the way out.
#[derive(Debug)]
pub struct Failure {
    pub code: u8,
    pub message: String,
}

impl Failure {
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The same, and says what it is about.
    fn about(self, label: &str) -> Self {
        Self::new(self.code, format!("{label}: {}", self.message))
    }
}

impl From<NameError> for Failure {
    fn from(error: NameError) -> Self {
        let code = match &error {
            NameError::TooFewOwners { .. } | NameError::NoSpace(_) => code::SPACE,
            NameError::EarlierOwnersSilent { .. }
            | NameError::LayoutUnknown { .. }
            | NameError::NotJoined
            | NameError::LayoutChanged => code::NETWORK,
            NameError::ClockAhead(_) | NameError::Here(_) | NameError::Taken | NameError::Contended => code::OTHER,
        };
        Self::new(code, error.to_string())
    }
}

impl From<ChunkError> for Failure {
    fn from(error: ChunkError) -> Self {
        let code = match &error {
            ChunkError::NotFound { .. } => code::NOT_FOUND,
            ChunkError::Damaged { .. } => code::INTEGRITY,
            ChunkError::TooFewNodes { .. } | ChunkError::NoSpace => code::SPACE,
            ChunkError::Network { .. } => code::NETWORK,
            ChunkError::Cancelled | ChunkError::Other { .. } => code::OTHER,
        };
        Self::new(code, error.to_string())
    }
}

impl From<crate::catalog::CatalogError> for Failure {
    fn from(error: crate::catalog::CatalogError) -> Self {
        let code = if matches!(error, crate::catalog::CatalogError::Full) { code::SPACE } else { code::OTHER };
        Self::new(code, error.to_string())
    }
}

impl From<crate::store::StoreError> for Failure {
    fn from(error: crate::store::StoreError) -> Self {
        match error {
            crate::store::StoreError::NoSpace { .. } => Self::new(code::SPACE, error.to_string()),
            other => Self::new(code::OTHER, other.to_string()),
        }
    }
}

/// The client of one command.
pub struct Client {
    stream: UnixStream,
    /// Events that leave with the next one.
    held: RefCell<Vec<u8>>,
}

impl Client {
    fn new(stream: UnixStream) -> Self {
        Self { stream, held: RefCell::default() }
    }

    /// The first request, and the descriptor that came with it; none when the client has hung up.
    async fn first_request(
        &self,
        requests: &mut Requests,
        stopping: Stopping,
    ) -> Result<Option<(ControlRequest, Option<OwnedFd>)>, Failure> {
        let (received, descriptor) = unless_stopping(stopping, requests.first(&self.stream)).await?;
        Ok(asked(received)?.map(|request| (request, descriptor)))
    }

    /// The request that follows one that was answered, for as long as it takes; none when the client has hung up: it has all
    /// it wanted.
    async fn next_request(
        &self,
        requests: &mut Requests,
        stopping: Stopping,
    ) -> Result<Option<ControlRequest>, Failure> {
        asked(unless_stopping(stopping, requests.next(&self.stream)).await?)
    }

    /// Sends an event together with the next one: for what comes shortly before the end.
    fn send_with_next(&self, event: &ControlEvent) {
        self.held.borrow_mut().extend(event.encode());
    }

    /// Fails when the client has hung up; the command then stops at its next step.
    pub async fn send(&self, event: ControlEvent) -> Result<(), Failure> {
        self.send_bytes(event.encode()).await
    }

    /// The same for many events, as few sends as they need.
    pub async fn send_all(&self, events: impl Iterator<Item = ControlEvent>) -> Result<(), Failure> {
        let mut bytes = Vec::new();
        for event in events {
            bytes.extend(event.encode());
            if bytes.len() >= CONTROL_EVENTS_BYTES {
                self.send_bytes(std::mem::take(&mut bytes)).await?;
            }
        }
        if bytes.is_empty() { Ok(()) } else { self.send_bytes(bytes).await }
    }

    /// The same, however long the client takes nothing. Given up half-way it would leave a part of an event in the stream,
    /// so only [`UnixStream::cancel`], which ends the stream, ends it.
    async fn send_patiently(&self, event: ControlEvent) -> Result<(), Failure> {
        self.send_within(event.encode(), Duration::MAX).await
    }

    async fn send_bytes(&self, bytes: Vec<u8>) -> Result<(), Failure> {
        self.send_within(bytes, CLIENT_STALL_MAX).await
    }

    async fn send_within(&self, bytes: Vec<u8>, stall: Duration) -> Result<(), Failure> {
        let mut held = self.held.take();
        let bytes = if held.is_empty() {
            bytes
        } else {
            held.extend(bytes);
            held
        };
        self.stream
            .send_all(SendSource::Bytes(bytes), stall)
            .await
            .map_err(|error| Failure::new(code::OTHER, format!("the command has hung up: {error}")))
    }

    /// Returns once the client has closed its end (or sent what it must not).
    async fn hung_up(&self) {
        let (outcome, _) = self.stream.recv(Buffer::heap(1), 0..1).await;
        tracing::trace!(?outcome, "control connection ended");
    }
}

/// A receive that the node's stop cuts off may have taken something: it is the last one on its connection.
async fn unless_stopping<T>(stopping: Stopping, received: impl Future<Output = T>) -> Result<T, Failure> {
    tokio::select! {
        biased;
        () = stopping.wait() => Err(node_stops()),
        received = received => Ok(received),
    }
}

fn asked(received: Received) -> Result<Option<ControlRequest>, Failure> {
    match received {
        Ok(request) => request.map(Some).map_err(|error| Failure::new(code::OTHER, error.to_string())),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(Failure::new(code::OTHER, format!("the request did not arrive whole: {error}"))),
    }
}

/// What a client is told whose command the node's stop cuts off.
fn node_stops() -> Failure {
    Failure::new(code::OTHER, "the node is stopping: start it again, then repeat the command")
}

/// What runs beside a long command: its progress reports, and the eye on its client. A client that hangs up cancels the
/// command, and so does the node's stop. A client that takes no reports does not: it may be suspended, and its command goes on
/// to its end and waits there for it.
struct Watch {
    client: Rc<Client>,
    stopping: Stopping,
    stop: Rc<tokio::sync::Notify>,
    stopped: tokio::sync::oneshot::Receiver<()>,
}

impl Watch {
    fn start(
        stopping: Stopping,
        client: &Rc<Client>,
        cancel: impl Fn() + 'static,
        event: impl Fn() -> ControlEvent + 'static,
    ) -> Self {
        let stop = Rc::new(tokio::sync::Notify::new());
        let (ended, stopped) = tokio::sync::oneshot::channel();
        let cancel = Rc::new(cancel);
        let hung_up = {
            let (client, cancel) = (client.clone(), cancel.clone());
            spawn(async move {
                client.hung_up().await;
                cancel();
            })
        };
        // Beside the reports, which may wait for the client.
        let stops = {
            let (stopping, cancel) = (stopping.clone(), cancel.clone());
            spawn(async move {
                stopping.wait().await;
                cancel();
            })
        };
        let (reporter, told) = (client.clone(), stop.clone());
        spawn(async move {
            loop {
                // Timers and notifications only: no ring operation is ever dropped half-way here.
                tokio::select! {
                    () = told.notified() => break,
                    () = tokio::time::sleep(PROGRESS_INTERVAL) => {}
                }
                if reporter.send_patiently(event()).await.is_err() {
                    cancel();
                    break;
                }
            }
            hung_up.abort();
            stops.abort();
            let _ = ended.send(());
        });
        Self { client: client.clone(), stopping, stop, stopped }
    }

    /// Ends the reports; nothing is sent behind the caller's back once this returns. Waits for a client that has yet to take
    /// the last one, unless the node stops.
    async fn stop(mut self) {
        self.stop.notify_one();
        let must_end = async {
            self.stopping.clone().wait().await;
            tokio::time::sleep(LAST_REPORT_MAX).await;
        };
        tokio::select! {
            _ = &mut self.stopped => return,
            () = must_end => {}
        }
        self.client.stream.cancel().await;
        let _ = self.stopped.await;
    }
}

/// Accepts commands until the listener is cancelled; they go round over the shards.
pub async fn serve(shard: Rc<Shard>, listener: Rc<UnixListener>) {
    let next = AtomicUsize::new(0);
    loop {
        match listener.accept().await {
            Ok(stream) => {
                let index = next.fetch_add(1, Ordering::Relaxed);
                send_job(&shard.node, index, move |shard| run_session(shard, stream));
            }
            Err(error) if shard.node.is_stopping() => {
                tracing::debug!(%error, "control socket closed");
                return;
            }
            Err(error) => {
                tracing::warn!(%error, "control socket: accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Tells those that nobody has accepted that the node stops. Who comes later than this finds no node.
pub fn turn_away(shard: &Rc<Shard>, listener: &UnixListener) {
    loop {
        match listener.accept_waiting() {
            Ok(Some(stream)) => drop(spawn(run_session(shard.clone(), stream))),
            Ok(None) => return,
            Err(error) => return tracing::debug!(%error, "who waits at the control socket is not told of the stop"),
        }
    }
}

/// One connection, which counts from the call on.
fn run_session(shard: Rc<Shard>, stream: StdUnixStream) -> impl Future<Output = ()> {
    let session = shard.sessions.begin();
    async move {
        let _session = session;
        let stream = match UnixStream::from_std(stream) {
            Ok(stream) => stream,
            Err(error) => return tracing::warn!(%error, "control connection"),
        };
        let client = Rc::new(Client::new(stream));
        let last = match run(&shard, &client).await {
            Ok(Some(last)) => last,
            Ok(None) => ControlEvent::Done,
            Err(failure) => ControlEvent::Error { code: failure.code, message: failure.message },
        };
        if client.send(last).await.is_err() {
            tracing::debug!("the command hung up before its end");
        }
    }
}

/// Runs one command; an event given back takes the place of `Done`.
async fn run(shard: &Rc<Shard>, client: &Rc<Client>) -> Result<Option<ControlEvent>, Failure> {
    let mut requests = Requests::new();
    let first = client.first_request(&mut requests, shard.node.stopping()).await?;
    let Some((request, descriptor)) = first else { return Ok(None) };
    match request {
        ControlRequest::Put { bucket, key, no_dedup, no_clobber, metadata, length_hint: _ } => {
            let put = put::Put { bucket, key, no_dedup, no_clobber, metadata };
            put::run(shard, client, put, descriptor).await.map_err(|failure| own_reason(shard, failure))?;
        }
        ControlRequest::Get { target, range, remote, resume, output } => {
            let get = get::Get { target, range, remote, resume, output };
            get::run(shard, client, get, descriptor).await?;
        }
        ControlRequest::FetchChunk { address, len, remote } => {
            get::fetch_chunks(shard, client, &mut requests, (address, len, remote)).await?;
            return Ok(None);
        }
        request @ (ControlRequest::PutSmall { .. } | ControlRequest::GetSmall { .. }) => {
            small::serve(shard, client, &mut requests, request).await?;
        }
        ControlRequest::Stat { target } => names::stat(shard, client, target).await?,
        ControlRequest::Remove { bucket, key } => names::remove(shard, &bucket, &key).await?,
        ControlRequest::RemoveMany { bucket, keys } => names::remove_many(shard, client, &bucket, keys).await?,
        ControlRequest::List { bucket, prefix, after, limit } => {
            names::list(shard, client, bucket.as_deref(), &prefix, after, limit).await?;
        }
        ControlRequest::Share { bucket, key } => names::share(shard, client, &bucket, &key).await?,
        ControlRequest::Status => network::status(shard, client).await?,
        ControlRequest::Peers => network::peers(shard, client).await?,
        ControlRequest::Ticket { member, zone, expires_s } => {
            network::ticket(shard, client, member, zone, expires_s).await?;
        }
        ControlRequest::KeyExport => network::key_export(shard, client).await?,
        ControlRequest::Verify => upkeep::verify(shard, client).await?,
        ControlRequest::Reclaim => upkeep::reclaim(shard, client).await?,
    }
    Ok(None)
}

/// A put that found no space, on a node that has none itself: that one it can say more about.
fn own_reason(shard: &Rc<Shard>, failure: Failure) -> Failure {
    match shard.store.room() {
        Err(error) if failure.code == code::SPACE => {
            Failure::new(code::SPACE, format!("{}; here {error}", failure.message))
        }
        _ => failure,
    }
}

/// The vault key, or the error of a node that must not have one.
fn vault_key(shard: &Rc<Shard>) -> Result<VaultKey, Failure> {
    if let Some(key) = shard.node.vault_key() {
        return Ok(key);
    }
    Err(Failure::new(
        code::KEY,
        if shard.node.is_member() {
            "this node has not received the vault key yet: wait until it has reached another member"
        } else {
            "this is a storage node and holds no vault key: use a member node, or a link (gabion share)"
        },
    ))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::{Read, Write};

    use super::*;
    use crate::io::{Ring, RingOptions};
    use crate::node::control::{LENGTH_BYTES, message_len};
    use crate::node::shared::Stop;

    const LONG: Duration = Duration::from_secs(20);

    /// Reports until the client's socket is full, and then for longer than a client may take nothing else.
    async fn reports_that_nobody_takes(stop: &Stop, client: &Rc<Client>) -> (Watch, Rc<Cell<bool>>, Rc<Cell<u64>>) {
        let (is_cancelled, reports) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(0)));
        let (cancelled, made) = (is_cancelled.clone(), reports.clone());
        let event = move || {
            made.set(made.get() + 1);
            ControlEvent::Warning { message: made.get().to_string().repeat(200_000) }
        };
        let watch = Watch::start(stop.stopping(), client, move || cancelled.set(true), event);
        while reports.get() == 0 {
            tokio::time::sleep(PROGRESS_INTERVAL).await;
        }
        tokio::time::sleep(4 * CLIENT_STALL_MAX).await;
        (watch, is_cancelled, reports)
    }

    fn on_ring(test: impl AsyncFnOnce(Rc<Client>, StdUnixStream)) {
        let (near, far) = StdUnixStream::pair().unwrap();
        Ring::new(&RingOptions::default()).unwrap().block_on(async {
            test(Rc::new(Client::new(UnixStream::from_std(near).unwrap())), far).await;
        });
    }

    fn next_event(stream: &mut StdUnixStream) -> ControlEvent {
        let mut head = [0; LENGTH_BYTES];
        stream.read_exact(&mut head).unwrap();
        let mut message = vec![0; message_len(head).unwrap()];
        stream.read_exact(&mut message).unwrap();
        ControlEvent::decode(&message).unwrap()
    }

    #[test]
    fn a_client_that_is_waited_for_is_told_that_the_node_stops() {
        for asks in [false, true] {
            on_ring(async |client, mut far| {
                let stop = Stop::default();
                let (waiting, stopping) = (client.clone(), stop.stopping());
                let (told, outcome) = tokio::sync::oneshot::channel();
                spawn(async move {
                    let _ = told.send(waiting.next_request(&mut Requests::new(), stopping).await);
                });
                crate::io::yield_now().await;
                stop.begin();
                if asks {
                    far.write_all(&ControlRequest::Status.encode()).unwrap();
                }
                let failure = tokio::time::timeout(LONG, outcome).await.unwrap().unwrap().unwrap_err();
                assert!(failure.message.starts_with("the node is stopping"), "{}", failure.message);
            });
        }
    }

    #[test]
    fn a_client_that_hangs_up_asks_nothing_more() {
        on_ring(async |client, far| {
            drop(far);
            let next = client.next_request(&mut Requests::new(), Stop::default().stopping()).await;
            assert_eq!(next.unwrap(), None);
        });
    }

    #[test]
    fn a_suspended_client_is_not_gone_and_gets_whole_events_later() {
        on_ring(async |client, mut far| {
            let stop = Stop::default();
            let (watch, is_cancelled, reports) = reports_that_nobody_takes(&stop, &client).await;
            assert!(!is_cancelled.get());
            let reader = std::thread::spawn(move || {
                let events = std::iter::from_fn(|| match next_event(&mut far) {
                    ControlEvent::Done => None,
                    ControlEvent::Warning { message } => Some(message.len()),
                    other => panic!("{other:?}"),
                });
                events.collect::<Vec<_>>()
            });
            tokio::time::timeout(LONG, watch.stop()).await.unwrap();
            client.send(ControlEvent::Done).await.unwrap();
            let events = reader.join().unwrap();
            assert_eq!(events.len() as u64, reports.get());
            assert!(!is_cancelled.get());
        });
    }

    #[test]
    fn a_node_that_stops_cancels_at_once_and_waits_for_no_suspended_client() {
        on_ring(async |client, far| {
            let stop = Stop::default();
            let (watch, is_cancelled, _) = reports_that_nobody_takes(&stop, &client).await;
            stop.begin();
            let cancelled = async {
                while !is_cancelled.get() {
                    crate::io::yield_now().await;
                }
            };
            tokio::time::timeout(LONG, cancelled).await.unwrap();
            tokio::time::timeout(LONG, watch.stop()).await.unwrap();
            drop(far);
        });
    }

    #[test]
    fn a_client_that_hangs_up_cancels_though_it_took_no_reports() {
        on_ring(async |client, far| {
            let (watch, is_cancelled, _) = reports_that_nobody_takes(&Stop::default(), &client).await;
            drop(far);
            tokio::time::timeout(LONG, watch.stop()).await.unwrap();
            assert!(is_cancelled.get());
        });
    }
}
