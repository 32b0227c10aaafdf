//! The put that runs beside gets, and what it did to their latency.
//!
//! Its content costs the client next to nothing, or the client would be what the gets wait for: one block again and again,
//! with its number in front so that no two chunks are alike. It is under a key of its own, so that no earlier run has its
//! chunks. It is read back once all is measured, if it is not too long for that or everything is.

use std::io::{self, Read, Write};
use std::time::Duration;

use gabion::cli::units::{show_rate, show_size};
use serde_json::{Value, json};

use crate::content::{Content, Contents};
use crate::measure::{Durations, Kind};
use crate::operation::Feed;
use crate::report::{PhaseReport, RunReport, UNSUPPORTED, durations_json, show_micros};

/// As long as a chunk.
const BLOCK_BYTES: u64 = 1 << 20;

/// Which object is put, and how long it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PutBeside {
    pub number: u64,
    pub bytes: u64,
}

impl PutBeside {
    pub fn content(&self, contents: &Contents) -> Repeated {
        Repeated { content: contents.of(self.number, 1), bytes: self.bytes }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PutReport {
    pub bytes: u64,
    pub elapsed: Duration,
}

/// The beginning of a content, again and again.
pub struct Repeated {
    pub content: Content,
    pub bytes: u64,
}

impl Feed for Repeated {
    fn len_bytes(&self) -> u64 {
        self.bytes
    }

    fn feed(&self, out: &mut dyn Write, moved: &dyn Fn(u64)) -> io::Result<()> {
        let mut block = vec![0; BLOCK_BYTES as usize];
        self.content.fill(0, &mut block);
        for number in 0..self.bytes.div_ceil(BLOCK_BYTES) {
            if let Some(front) = block.first_chunk_mut() {
                *front = number.to_le_bytes();
            }
            let count = BLOCK_BYTES.min(self.bytes - number * BLOCK_BYTES);
            out.write_all(block.get(..count as usize).unwrap_or_default())?;
            moved(count);
        }
        Ok(())
    }
}

/// How what came compares with what was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compared {
    Same,
    /// Nothing more came from this byte on.
    Short(u64),
    /// From this byte on.
    Differs(u64),
}

impl Repeated {
    pub fn compare(&self, mut reader: impl Read, moved: &dyn Fn(u64)) -> io::Result<Compared> {
        let mut mirror = Mirror { reader: &mut reader, found: vec![0; BLOCK_BYTES as usize], right_upto: 0, end: None };
        let fed = self.feed(&mut mirror, moved);
        if let Some(end) = mirror.end {
            return Ok(end);
        }
        fed?;
        let excess = reader.take(1).read_to_end(&mut Vec::new())?;
        Ok(if excess == 0 { Compared::Same } else { Compared::Differs(self.bytes) })
    }
}

/// Takes what the reader brings too, and nothing else.
struct Mirror<'a> {
    reader: &'a mut dyn Read,
    found: Vec<u8>,
    right_upto: u64,
    end: Option<Compared>,
}

impl Write for Mirror<'_> {
    fn write(&mut self, wanted: &[u8]) -> io::Result<usize> {
        let len = wanted.len().min(self.found.len());
        let count = self.reader.read(self.found.get_mut(..len).unwrap_or_default())?;
        let found = self.found.get(..count).unwrap_or_default();
        if wanted.get(..count) != Some(found) {
            let same = found.iter().zip(wanted).take_while(|(found, wanted)| found == wanted).count();
            self.end = Some(Compared::Differs(self.right_upto + same as u64));
        } else if count == 0 {
            self.end = Some(Compared::Short(self.right_upto));
        }
        self.right_upto += count as u64;
        // Any error will do: how it ended is said above.
        if self.end.is_none() { Ok(count) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The same gets without the put and with it.
struct Comparison<'a> {
    alone: &'a Durations,
    beside: &'a Durations,
    put: PutReport,
}

impl<'a> Comparison<'a> {
    /// None unless both were measured to the end.
    fn of(report: &'a RunReport) -> Option<Self> {
        let at = report.phases.iter().position(|phase| phase.put.is_some())?;
        let (alone, beside) = (report.phases.get(at.checked_sub(1)?)?, report.phases.get(at)?);
        let gets = |phase: &'a PhaseReport| phase.kinds.get(&Kind::Get).map(|totals| &totals.latency);
        Some(Self { put: beside.put?, alone: gets(alone)?, beside: gets(beside)? })
    }

    fn ratio_p99(&self) -> f64 {
        self.beside.micros_at(0.99) as f64 / self.alone.micros_at(0.99).max(1) as f64
    }
}

pub fn text(report: &RunReport) -> Option<String> {
    let found = Comparison::of(report)?;
    let line = |durations: &Durations| {
        let at = |quantile| {
            let mark = if durations.supports(quantile) { "" } else { UNSUPPORTED };
            format!("{}{mark}", show_micros(durations.micros_at(quantile)))
        };
        format!("p50 {}  p99 {}  p99.9 {}", at(0.5), at(0.99), at(0.999))
    };
    Some(format!(
        "gets alone:          {}\ngets beside the put: {}\np99 {:.2} times as long; put of {}: {}",
        line(found.alone),
        line(found.beside),
        found.ratio_p99(),
        show_size(found.put.bytes),
        show_rate(found.put.bytes, found.put.elapsed),
    ))
}

/// Null for a run without a put beside.
pub fn json(report: &RunReport) -> Value {
    let Some(found) = Comparison::of(report) else { return Value::Null };
    let seconds = found.put.elapsed.as_secs_f64().max(1e-6);
    json!({
        "alone_us": durations_json(found.alone),
        "beside_us": durations_json(found.beside),
        "ratio_p99": found.ratio_p99(),
        "put_bytes": found.put.bytes,
        "put_s": seconds,
        "put_bytes_per_s": found.put.bytes as f64 / seconds,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::{Contents, Sizes};
    use crate::report::tests::sample;

    #[test]
    fn no_two_chunks_of_the_put_are_alike() {
        let bytes = 3 * BLOCK_BYTES + 5;
        let content = Contents { seed: 1, sizes: Sizes::exactly(1) }.of(0, 1);
        let mut out = Vec::new();
        Repeated { content, bytes }.feed(&mut out, &|_| ()).unwrap();
        assert_eq!(out.len() as u64, bytes);
        let blocks: Vec<&[u8]> = out.chunks(BLOCK_BYTES as usize).collect();
        assert!(blocks[0] != blocks[1] && blocks[1] != blocks[2] && blocks[0][8..] == blocks[2][8..]);
    }

    #[test]
    fn one_byte_that_is_changed_lost_or_added_is_found_where_it_is() {
        let bytes = 2 * BLOCK_BYTES + 5;
        let put = PutBeside { number: 3, bytes }.content(&Contents { seed: 1, sizes: Sizes::exactly(1) });
        let mut right = Vec::new();
        put.feed(&mut right, &|_| ()).unwrap();
        let compare = |found: &[u8]| put.compare(found, &|_| ()).unwrap();
        assert_eq!(compare(&right), Compared::Same);
        for at in [0, 7, 8, BLOCK_BYTES - 1, BLOCK_BYTES, bytes - 1] {
            let mut found = right.clone();
            found[at as usize] ^= 1;
            assert_eq!(compare(&found), Compared::Differs(at));
            assert_eq!(compare(&right[..at as usize]), Compared::Short(at));
        }
        right.push(0);
        assert_eq!(compare(&right), Compared::Differs(bytes));
    }

    #[test]
    fn both_phases_are_compared_once_the_put_has_ended() {
        let mut report = sample();
        report.phases.push(report.phases[0].clone());
        assert_eq!((json(&report), text(&report)), (Value::Null, None));
        report.phases[1].put = Some(PutReport { bytes: 4 << 20, elapsed: Duration::from_secs(2) });
        // The put is read back.
        report.phases.push(PhaseReport::default());
        let found = json(&report);
        assert_eq!((&found["ratio_p99"], &found["put_bytes_per_s"]), (&json!(1.0), &json!(2_097_152.0)));
        assert!(text(&report).unwrap().contains("p99 1.00 times as long; put of 4.0 MiB: 2.0 MiB/s"));
    }
}
