//! Recovery of segments that were never sealed, whatever a failing disk has made of them: every acknowledged record that
//! the damage does not touch is found, and nothing that was not written is ever told or served.

use std::ops::Range;

use proptest::prelude::*;

use super::support::*;
use crate::limits::BLOCK_BYTES;
use crate::store::segment::name_of;
use crate::store::simulated::SimulatedDisk;
use crate::store::{AppliedEvent, SmallRecord};

const HEADER: usize = crate::format::record::RECORD_HEADER_BYTES;

/// `at` and `len` in thousandths of what lies behind the header block.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Flip { at: usize },
    Zeros { at: usize, len: usize },
    Noise { at: usize, len: usize },
    Unreadable { at: usize },
}

fn any_damage() -> impl Strategy<Value = (u64, Damage)> {
    let damage = prop_oneof![
        (0usize..1000).prop_map(|at| Damage::Flip { at }),
        (0usize..1000, 1usize..400).prop_map(|(at, len)| Damage::Zeros { at, len }),
        (0usize..1000, 1usize..400).prop_map(|(at, len)| Damage::Noise { at, len }),
        (0usize..1000).prop_map(|at| Damage::Unreadable { at }),
    ];
    (1u64..3, damage)
}

/// One acknowledged record, and the bytes of its segment that it needs.
struct Written {
    bytes: Vec<u8>,
    is_chunk: bool,
    segment: u64,
    range: Range<usize>,
}

/// Does the damage; which bytes it touches.
fn damage(disk: &SimulatedDisk, segment: u64, used: usize, damage: Damage) -> Range<usize> {
    let name = name_of(segment);
    let place = |at: usize| BLOCK_BYTES + at * (used - BLOCK_BYTES) / 1000;
    let end = |at: usize, len: usize| (place(at) + 1 + len * (used - BLOCK_BYTES) / 1000).min(used);
    match damage {
        Damage::Flip { at } => {
            disk.edit(&name, |bytes| bytes[place(at)] ^= 4);
            place(at)..place(at) + 1
        }
        Damage::Zeros { at, len } => {
            disk.edit(&name, |bytes| bytes[place(at)..end(at, len)].fill(0));
            place(at)..end(at, len)
        }
        Damage::Noise { at, len } => {
            let noise = payload(at as u64, end(at, len) - place(at));
            disk.edit(&name, |bytes| bytes[place(at)..end(at, len)].copy_from_slice(&noise));
            place(at)..end(at, len)
        }
        Damage::Unreadable { at } => {
            let block = place(at) / BLOCK_BYTES * BLOCK_BYTES;
            disk.make_unreadable(&name, block as u64);
            block..block + BLOCK_BYTES
        }
    }
}

/// Chunks of both classes and names, acknowledged and never sealed; where each lies, and how long the two segments are.
async fn written(seed: u64, lens: &[usize]) -> (SimulatedDisk, Vec<Written>, [usize; 2]) {
    let disk = SimulatedDisk::new(seed);
    let store = opened(&disk).await.store;
    // The first bulk chunk's segment is number 1, that of small records number 2.
    put(&store, &payload(1000, 70_000), &version(1)).await.unwrap();
    store.append(SmallRecord::Name(payload(2000, 100))).await.unwrap();
    let mut all = vec![(payload(1000, 70_000), true), (payload(2000, 100), false)];
    for (number, len) in lens.iter().enumerate() {
        let bytes = payload(number as u64, *len);
        let is_chunk = number % 3 > 0;
        match is_chunk {
            true => drop(put(&store, &bytes, &version(1)).await.unwrap()),
            false => store.append(SmallRecord::Name(bytes.clone())).await.unwrap(),
        }
        all.push((bytes, is_chunk));
    }
    let disk = disk.crash(seed);
    let files = [1, 2].map(|segment| disk.edit(&name_of(segment), |bytes| bytes.clone()));
    let mut written = Vec::new();
    for (bytes, is_chunk) in all {
        let place = files.iter().zip(1..).find_map(|(file, segment)| {
            let at = (0..file.len()).step_by(HEADER).find(|at| file[*at..].starts_with(&bytes))?;
            Some((segment, at - HEADER..at + bytes.len()))
        });
        let (segment, range) = place.expect("what was acknowledged is in a segment");
        written.push(Written { bytes, is_chunk, segment, range });
    }
    let used = [1, 2].map(|segment| {
        let ends = written.iter().filter(|record| record.segment == segment).map(|record| record.range.end);
        ends.max().unwrap_or(0).next_multiple_of(BLOCK_BYTES)
    });
    (disk, written, used)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn recovery_finds_whatever_the_damage_does_not_touch_and_nothing_wrong(
        seed in any::<u64>(),
        lens in prop::collection::vec(prop_oneof![Just(64usize), 100usize..6_000, 66_000usize..100_000], 1..8),
        damages in prop::collection::vec(any_damage(), 0..5),
    ) {
        // A name is as long as a batch allows at most.
        let lens: Vec<usize> =
            lens.iter().enumerate().map(|(number, len)| if number % 3 == 0 { len % 6_000 + 64 } else { *len }).collect();
        run(async {
            let (disk, written, used) = written(seed, &lens).await;
            let mut touched = Vec::new();
            for (segment, kind) in damages {
                let used = used[segment as usize - 1];
                touched.push((segment, damage(&disk, segment, used, kind)));
            }
            // As recovered, and as opened again afterwards.
            for round in 0..2 {
                let again = opened(&disk).await;
                for record in &written {
                    let is_touched = touched.iter().any(|(segment, range)| {
                        *segment == record.segment && range.start < record.range.end && record.range.start < range.end
                    });
                    let found = match record.is_chunk {
                        // Whoever reads checks it: what does not match its address is served to nobody.
                        true => {
                            let address = address_of(&record.bytes);
                            get(&again.store, &address).await.filter(|found| address_of(found) == address)
                        }
                        false => {
                            let event = AppliedEvent::Name { payload: record.bytes.clone() };
                            again.told.events.contains(&event).then(|| record.bytes.clone())
                        }
                    };
                    prop_assert!(found.is_some() || is_touched, "round {}: lost {:?}", round, record.range);
                    prop_assert!(found.is_none_or(|found| found == record.bytes), "wrong bytes");
                }
                let known = |payload: &Vec<u8>| written.iter().any(|record| record.bytes == *payload);
                for event in &again.told.events {
                    if let AppliedEvent::Name { payload } = event {
                        prop_assert!(known(payload), "a name that nobody wrote");
                    }
                }
                if round == 0 {
                    again.store.close().await.unwrap();
                }
            }
            Ok(())
        })?;
    }
}
