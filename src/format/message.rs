//! The bodies of frames: what a request says and what its answer says.
//!
//! A chunk's address stands in the frame header, its bytes are the frame's payload. All bodies are at most 65,519
//! bytes; what can be longer is asked for page by page.
//!
//! | kind | request body | answer body |
//! | --- | --- | --- |
//! | hello | [`Hello`]: incarnation 16, layout number 4, role as long bytes | the answerer's own hello |
//! | roles | pairs of long bytes {certificate, role} | - |
//! | layout | number 4 (0: the newest), offset 4 | total 4, then the layout's bytes from the offset on |
//! | vault key | - | generation 4, key 32 |
//! | offer | version 16, then addresses of 32 | one byte an address: 0 send it, 1 held |
//! | store | version 16, record flags 1 | - |
//! | store small | [`SmallChunk`]s: address 32, version 16, flags 1, short bytes | one byte a chunk: its status, and bit 7 when it was held already |
//! | fetch | - | - (payload) |
//! | prove | nonce 32, offset 4, length 4 | keyed hash 32 |
//! | name read | bucket 32, name 32 | the name record |
//! | name write | origin 1 ([`NameOrigin`]), the name record | [`NameWriteAnswer`]: outcome 1 (0 kept, 1 kept and displaced, 2 lost, 3 taken, 4 claimed), zero 7, clock 8, version 16 (zero when kept or claimed) |
//! | name list | bucket 32 (zero: all), bucket 32 and name 32 to start after | long bytes each a name record, by bucket and name |
//! | deaths | long bytes each a death | - |
//! | refer | version 16, capsule as short bytes | - |
//! | capsules | - | version 16, short bytes, … |

use super::cursor::{Malformed, Reader, Writer};
use super::id::{Address, BucketId, Incarnation, NameId, Stamp, VersionId};
use super::name::NameRecord;
use crate::limits::SEALED_BODY_BYTES_MAX;

pub struct Hello<'a> {
    pub incarnation: Incarnation,
    pub layout: u32,
    pub role: &'a [u8],
}

impl<'a> Hello<'a> {
    pub fn encode(&self) -> Vec<u8> {
        Writer::new().put(&self.incarnation).u32(self.layout).long_bytes(self.role).finish()
    }

    pub fn decode(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        let hello = Self {
            incarnation: *reader.take("hello incarnation")?,
            layout: reader.u32("hello layout")?,
            role: reader.long_bytes("hello role")?,
        };
        reader.end("hello: bytes after its end")?;
        Ok(hello)
    }
}

/// As many `items` as one body holds, each with its 32-bit length in front; returns how many went in.
pub fn encode_page<'a>(items: impl Iterator<Item = &'a [u8]>) -> (Vec<u8>, usize) {
    let mut writer = Writer::new();
    let (mut used, mut count) = (0, 0);
    for item in items {
        used += 4 + item.len();
        if used > SEALED_BODY_BYTES_MAX {
            break;
        }
        writer.long_bytes(item);
        count += 1;
    }
    (writer.finish(), count)
}

/// The items of a page.
pub fn decode_page<'a>(body: &'a [u8], what: &'static str) -> Result<Vec<&'a [u8]>, Malformed> {
    let mut reader = Reader::new(body);
    let mut items = Vec::new();
    while reader.remaining() > 0 {
        items.push(reader.long_bytes(what)?);
    }
    Ok(items)
}

pub fn encode_layout_request(number: u32, offset: u32) -> Vec<u8> {
    Writer::new().u32(number).u32(offset).finish()
}

pub fn decode_layout_request(body: &[u8]) -> Result<(u32, u32), Malformed> {
    let mut reader = Reader::new(body);
    let request = (reader.u32("layout number")?, reader.u32("layout offset")?);
    reader.end("layout request: bytes after its end")?;
    Ok(request)
}

/// One part of a layout's bytes.
pub fn encode_layout_part(layout: &[u8], offset: u32) -> Vec<u8> {
    let part = layout.get(offset as usize..).unwrap_or_default();
    let part = part.get(..SEALED_BODY_BYTES_MAX - 4).unwrap_or(part);
    Writer::new().u32(layout.len() as u32).bytes(part).finish()
}

pub fn decode_layout_part(body: &[u8]) -> Result<(u32, &[u8]), Malformed> {
    let mut reader = Reader::new(body);
    Ok((reader.u32("layout length")?, reader.rest()))
}

pub fn encode_vault_key(generation: u32, key: &[u8; 32]) -> Vec<u8> {
    Writer::new().u32(generation).put(key).finish()
}

pub fn decode_vault_key(body: &[u8]) -> Result<(u32, [u8; 32]), Malformed> {
    let mut reader = Reader::new(body);
    let key = (reader.u32("vault key generation")?, *reader.take("vault key")?);
    reader.end("vault key: bytes after its end")?;
    Ok(key)
}

pub fn encode_offer(version: &VersionId, addresses: &[Address]) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.put(version);
    for address in addresses {
        writer.put(address);
    }
    writer.finish()
}

pub fn decode_offer(body: &[u8]) -> Result<(VersionId, Vec<Address>), Malformed> {
    let mut reader = Reader::new(body);
    let version = *reader.take("offer version")?;
    let mut addresses = Vec::with_capacity(reader.remaining() / Address::BYTES);
    while reader.remaining() > 0 {
        addresses.push(*reader.take("offer address")?);
    }
    Ok((version, addresses))
}

pub fn encode_store(version: &VersionId, flags: u8) -> Vec<u8> {
    Writer::new().put(version).u8(flags).finish()
}

pub fn decode_store(body: &[u8]) -> Result<(VersionId, u8), Malformed> {
    let mut reader = Reader::new(body);
    let store = (*reader.take("store version")?, reader.u8("store flags")?);
    reader.end("store: bytes after its end")?;
    Ok(store)
}

pub struct SmallChunk<'a> {
    pub address: Address,
    pub version: VersionId,
    pub flags: u8,
    pub bytes: &'a [u8],
}

/// In the answer to a small chunk: it was held already, and its bytes were not needed.
pub const SMALL_CHUNK_HELD: u8 = 1 << 7;

pub fn encode_small_chunk(writer: &mut Writer, chunk: &SmallChunk<'_>) {
    writer.put(&chunk.address).put(&chunk.version).u8(chunk.flags).short_bytes(chunk.bytes);
}

pub fn decode_small_chunks(body: &[u8]) -> Result<Vec<SmallChunk<'_>>, Malformed> {
    let mut reader = Reader::new(body);
    let mut chunks = Vec::new();
    while reader.remaining() > 0 {
        chunks.push(SmallChunk {
            address: *reader.take("small chunk address")?,
            version: *reader.take("small chunk version")?,
            flags: reader.u8("small chunk flags")?,
            bytes: reader.short_bytes("small chunk bytes")?,
        });
    }
    Ok(chunks)
}

pub fn encode_name_read(bucket: &BucketId, name: &NameId) -> Vec<u8> {
    Writer::new().put(bucket).put(name).finish()
}

pub fn decode_name_read(body: &[u8]) -> Result<(BucketId, NameId), Malformed> {
    let mut reader = Reader::new(body);
    let pair = (*reader.take("bucket id")?, *reader.take("name id")?);
    reader.end("name request: bytes after its end")?;
    Ok(pair)
}

/// Where a name record that is written comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameOrigin {
    /// Its version is being named: refused when the version is too old for that.
    Put = 0,
    /// A reader found it with another owner, which took it in time: however old it is by now.
    ReadElsewhere = 1,
    /// As a put, but refused where a file of another version has the name, and taken only under a claim of its version.
    New = 2,
    /// Nothing is written: the name is kept free for this record's version for a moment.
    Claim = 3,
    /// That version does not need it any more.
    Release = 4,
}

impl NameOrigin {
    fn parse(byte: u8) -> Option<Self> {
        use NameOrigin::*;
        [Put, ReadElsewhere, New, Claim, Release].into_iter().find(|origin| *origin as u8 == byte)
    }
}

pub fn encode_name_write(origin: NameOrigin, record: &NameRecord) -> Vec<u8> {
    let mut body = vec![origin as u8];
    body.extend(record.encode());
    body
}

pub fn decode_name_write(body: &[u8]) -> Result<(NameOrigin, NameRecord), Malformed> {
    let (first, record) = body.split_first().ok_or(Malformed::new("name write: origin"))?;
    let origin = NameOrigin::parse(*first).ok_or(Malformed::new("name write: origin"))?;
    Ok((origin, NameRecord::decode(record)?))
}

/// What an owner says of a name record that is durable with it, or that a later one has beaten there. It names what else
/// was given the name, so that somebody who may knows which version to declare dead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NameWriteAnswer {
    /// It is the latest here; no other file was in its place.
    Kept,
    /// It is the latest here and took the place of this one.
    Displaced(Stamp, VersionId),
    /// This later one (a tombstone also is) was here already, and stays.
    Lost(Stamp, VersionId),
    /// It had to be new, and this file has the name: nothing was written.
    Taken(Stamp, VersionId),
    /// It was to be claimed, and another version has the claim.
    Claimed,
}

impl NameWriteAnswer {
    pub fn encode(&self) -> Vec<u8> {
        let (outcome, clock, version) = match self {
            Self::Kept => (0, Stamp::ZERO, VersionId::ZERO),
            Self::Displaced(clock, version) => (1, *clock, *version),
            Self::Lost(clock, version) => (2, *clock, *version),
            Self::Taken(clock, version) => (3, *clock, *version),
            Self::Claimed => (4, Stamp::ZERO, VersionId::ZERO),
        };
        Writer::new().u8(outcome).bytes(&[0; 7]).put(&clock).put(&version).finish()
    }

    pub fn decode(body: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        let outcome = reader.u8("name write's outcome")?;
        if reader.take::<[u8; 7]>("name write's zeros")? != &[0; 7] {
            return Err(Malformed::new("name write's zeros"));
        }
        let (clock, version) = (*reader.take::<Stamp>("name write's clock")?, *reader.take("name write's version")?);
        reader.end("name write's answer: bytes after its end")?;
        match outcome {
            0 if clock == Stamp::ZERO && version == VersionId::ZERO => Ok(Self::Kept),
            1 => Ok(Self::Displaced(clock, version)),
            2 => Ok(Self::Lost(clock, version)),
            3 => Ok(Self::Taken(clock, version)),
            4 if clock == Stamp::ZERO && version == VersionId::ZERO => Ok(Self::Claimed),
            _ => Err(Malformed::new("name write's outcome")),
        }
    }
}

/// A page of a bucket (`None`: of all), from behind `after` on.
pub fn encode_name_list(bucket: Option<&BucketId>, after: Option<&(BucketId, NameId)>) -> Vec<u8> {
    let (after_bucket, after_name) = after.copied().unwrap_or((BucketId::ZERO, NameId::ZERO));
    Writer::new().put(bucket.unwrap_or(&BucketId::ZERO)).put(&after_bucket).put(&after_name).finish()
}

#[expect(clippy::type_complexity, reason = "what it says is what it is")]
pub fn decode_name_list(body: &[u8]) -> Result<(Option<BucketId>, Option<(BucketId, NameId)>), Malformed> {
    let mut reader = Reader::new(body);
    let bucket = *reader.take::<BucketId>("list bucket")?;
    let after = (*reader.take::<BucketId>("list bucket to go on after")?, *reader.take::<NameId>("list name")?);
    reader.end("name list: bytes after its end")?;
    let is_start = after.0.is_zero() && after.1.is_zero();
    Ok(((!bucket.is_zero()).then_some(bucket), (!is_start).then_some(after)))
}

pub fn encode_refer(version: &VersionId, capsule: &[u8]) -> Vec<u8> {
    Writer::new().put(version).short_bytes(capsule).finish()
}

pub fn decode_refer(body: &[u8]) -> Result<(VersionId, &[u8]), Malformed> {
    let mut reader = Reader::new(body);
    let refer = (*reader.take("refer version")?, reader.short_bytes("refer capsule")?);
    reader.end("refer: bytes after its end")?;
    Ok(refer)
}

pub fn encode_capsules(capsules: &[(VersionId, Vec<u8>)]) -> Vec<u8> {
    let mut writer = Writer::new();
    let mut used = 0;
    for (version, capsule) in capsules {
        used += 18 + capsule.len();
        if used > SEALED_BODY_BYTES_MAX {
            break;
        }
        writer.put(version).short_bytes(capsule);
    }
    writer.finish()
}

pub fn decode_capsules(body: &[u8]) -> Result<Vec<(VersionId, Vec<u8>)>, Malformed> {
    let mut reader = Reader::new(body);
    let mut capsules = Vec::new();
    while reader.remaining() > 0 {
        capsules.push((*reader.take("capsule version")?, reader.short_bytes("capsule")?.to_vec()));
    }
    Ok(capsules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_write_begins_with_where_it_comes_from() {
        let record = NameRecord {
            tombstone: false,
            vault: crate::format::VaultId([0; 16]),
            key_generation: 1,
            clock: Stamp::new(5, 0),
            bucket: BucketId([7; 32]),
            name: NameId([8; 32]),
            version: VersionId::new(1, 2, [3; 8]),
            nonce: [0; 24],
            sealed: vec![1; 64],
        };
        use NameOrigin::*;
        for (origin, first) in [(Put, 0), (ReadElsewhere, 1), (New, 2), (Claim, 3), (Release, 4)] {
            let body = encode_name_write(origin, &record);
            assert_eq!(body.first(), Some(&first));
            assert_eq!(decode_name_write(&body), Ok((origin, record.clone())));
            assert!(decode_name_write(&[&[5], body.get(1..).unwrap_or_default()].concat()).is_err());
        }
        assert!(decode_name_write(&[]).is_err());
    }

    #[test]
    fn a_name_write_is_answered_in_these_bytes() {
        let (clock, version) = (Stamp::new(0x0102_0304_0506, 0x0708), VersionId::new(1, 2, [3; 8]));
        let displaced = NameWriteAnswer::Displaced(clock, version);
        let bytes = displaced.encode();
        assert_eq!(bytes[..16], [1, 0, 0, 0, 0, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!((bytes.len(), &bytes[24..]), (32, &[3; 8][..]));
        let (lost, taken) = (NameWriteAnswer::Lost(clock, version), NameWriteAnswer::Taken(clock, version));
        for answer in [NameWriteAnswer::Kept, displaced, lost, taken, NameWriteAnswer::Claimed] {
            assert_eq!(NameWriteAnswer::decode(&answer.encode()), Ok(answer));
        }
        for at in 0..8 {
            let mut wrong = bytes.clone();
            wrong[at] = 5;
            assert!(NameWriteAnswer::decode(&wrong).is_err(), "byte {at}");
        }
        let kept_something = [&[0; 8][..], &bytes[8..]].concat();
        assert!(NameWriteAnswer::decode(&kept_something).is_err());
        assert!(NameWriteAnswer::decode(&bytes[..31]).is_err());
    }
}
