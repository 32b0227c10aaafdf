//! A store on a simulated disk, and chunks to put into it.

use std::collections::HashMap;
use std::future::Future;

use tokio::sync::mpsc;

use crate::format::{Address, Incarnation, VersionId};
use crate::io::Buffer;
use crate::limits::{BUFFER_BYTES, RECORD_HEAD_BYTES};
use crate::store::Observer;
use crate::store::simulated::SimulatedDisk;
use crate::store::{
    Applied, AppliedEvent, Hold, OpenReport, ReadOutcome, Replayed, Store, StoreError, StoreOptions, open,
};

pub type Sim = Store<SimulatedDisk>;

/// Small segments, so that they fill, roll over and are sealed within a test.
pub fn options() -> StoreOptions {
    StoreOptions {
        segment_bytes_max: 2 << 20,
        segment_records_max: 64,
        step_bytes: 512 << 10,
        ..StoreOptions::new(1, Incarnation([1; 16]), 9)
    }
}

/// Runs a test on one thread; real time passes only where something is waited for that does not come.
pub fn run<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, future)
}

/// Owned copies of what recovery tells.
#[derive(Default, Debug, Clone)]
pub struct Told {
    pub events: Vec<AppliedEvent>,
    pub positions: HashMap<u64, u64>,
}

impl Told {
    pub fn take(&mut self, replayed: Replayed<'_>) {
        self.events.push(match replayed {
            Replayed::Chunk { address, version, flags } => AppliedEvent::Chunk { address, version, flags },
            Replayed::Reference { address, version, capsule } => {
                AppliedEvent::Reference { address, version, capsule: capsule.to_vec(), is_first: false }
            }
            Replayed::Name { payload } => AppliedEvent::Name { payload: payload.to_vec() },
            Replayed::Death { payload } => AppliedEvent::Death { payload: payload.to_vec() },
            Replayed::Document { payload } => AppliedEvent::Document { payload: payload.to_vec() },
            Replayed::Removed { address } => AppliedEvent::Removed { address },
            Replayed::Position { segment, offset } => {
                self.positions.insert(segment, offset);
                return;
            }
        });
    }

    pub fn refers(&self, address: &Address, version: &VersionId) -> bool {
        self.events.iter().any(|event| match event {
            AppliedEvent::Chunk { address: a, version: v, .. }
            | AppliedEvent::Reference { address: a, version: v, .. } => a == address && v == version,
            _ => false,
        })
    }
}

/// Hands what became durable to a channel.
pub fn observer(sender: mpsc::UnboundedSender<Applied>) -> Observer {
    std::rc::Rc::new(move |applied| {
        let _ = sender.send(applied);
    })
}

pub struct Opened {
    pub store: Sim,
    pub observed: mpsc::UnboundedReceiver<Applied>,
    pub report: OpenReport,
    pub told: Told,
}

pub async fn open_with(
    disk: &SimulatedDisk,
    options: StoreOptions,
    positions: &HashMap<u64, u64>,
) -> Result<Opened, StoreError> {
    let mut told = Told::default();
    let (shared, report) = open(disk, options, positions, &mut |replayed| told.take(replayed)).await?;
    let (sender, observed) = mpsc::unbounded_channel();
    let store = Store::attach(shared, disk.clone(), 0, observer(sender), |task| {
        tokio::task::spawn_local(task);
    });
    Ok(Opened { store, observed, report, told })
}

pub async fn opened(disk: &SimulatedDisk) -> Opened {
    open_with(disk, options(), &HashMap::new()).await.unwrap()
}

/// Bytes that follow from a number.
pub fn payload(number: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

pub fn address_of(payload: &[u8]) -> Address {
    Address(*blake3::hash(payload).as_bytes())
}

pub fn version(number: u8) -> VersionId {
    VersionId::new(7, 1000, [number; 8])
}

pub fn buffer_with(payload: &[u8]) -> Buffer {
    let mut buffer = Buffer::heap(BUFFER_BYTES);
    // Stale bytes of another use must not matter.
    buffer.as_mut_slice().fill(0xee);
    buffer.as_mut_slice()[RECORD_HEAD_BYTES..][..payload.len()].copy_from_slice(payload);
    buffer
}

/// True when it was written, false when it was held.
pub async fn put(store: &Sim, payload: &[u8], version: &VersionId) -> Result<bool, StoreError> {
    put_flagged(store, payload, version, 0).await
}

pub async fn put_flagged(store: &Sim, payload: &[u8], version: &VersionId, flags: u8) -> Result<bool, StoreError> {
    match store.hold(&address_of(payload), version).await? {
        Hold::Held => Ok(false),
        Hold::Absent(claim) => {
            let staged = store.stage(claim, buffer_with(payload), payload.len(), version, flags).await?;
            staged.commit().await?;
            Ok(true)
        }
    }
}

pub async fn get(store: &Sim, address: &Address) -> Option<Vec<u8>> {
    match store.read(address, Buffer::heap(BUFFER_BYTES)).await.unwrap() {
        ReadOutcome::Found { buffer, len, .. } => Some(buffer.as_slice()[RECORD_HEAD_BYTES..][..len].to_vec()),
        ReadOutcome::Absent { .. } | ReadOutcome::Damaged { .. } => None,
    }
}
