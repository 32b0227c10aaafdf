//! A fixed head followed by variable parts: how every body longer than one structure is read and written.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes that are not what their table says. `what` names the field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed: {what}")]
pub struct Malformed {
    pub what: &'static str,
}

impl Malformed {
    pub const fn new(what: &'static str) -> Self {
        Self { what }
    }
}

/// Takes structures and byte strings off the front; never panics, never allocates.
#[derive(Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    pub fn take<T: FromBytes + KnownLayout + Immutable + Unaligned>(
        &mut self,
        what: &'static str,
    ) -> Result<&'a T, Malformed> {
        let (value, rest) = T::ref_from_prefix(self.rest).map_err(|_| Malformed::new(what))?;
        self.rest = rest;
        Ok(value)
    }

    pub fn bytes(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], Malformed> {
        let (bytes, rest) = self.rest.split_at_checked(len).ok_or(Malformed::new(what))?;
        self.rest = rest;
        Ok(bytes)
    }

    pub fn u8(&mut self, what: &'static str) -> Result<u8, Malformed> {
        self.take::<u8>(what).copied()
    }

    pub fn u16(&mut self, what: &'static str) -> Result<u16, Malformed> {
        self.take::<zerocopy::little_endian::U16>(what).map(|value| value.get())
    }

    pub fn u32(&mut self, what: &'static str) -> Result<u32, Malformed> {
        self.take::<zerocopy::little_endian::U32>(what).map(|value| value.get())
    }

    pub fn u64(&mut self, what: &'static str) -> Result<u64, Malformed> {
        self.take::<zerocopy::little_endian::U64>(what).map(|value| value.get())
    }

    /// A u16 length, then that many bytes.
    pub fn short_bytes(&mut self, what: &'static str) -> Result<&'a [u8], Malformed> {
        let len = usize::from(self.u16(what)?);
        self.bytes(len, what)
    }

    /// A u32 length, then that many bytes.
    pub fn long_bytes(&mut self, what: &'static str) -> Result<&'a [u8], Malformed> {
        let len = self.u32(what)? as usize;
        self.bytes(len, what)
    }

    pub fn short_str(&mut self, what: &'static str) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.short_bytes(what)?).map_err(|_| Malformed::new(what))
    }

    pub fn rest(self) -> &'a [u8] {
        self.rest
    }

    pub fn end(self, what: &'static str) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed::new(what)) }
    }
}

/// The other direction. Lengths are the caller's promise: a byte string too long for its length field is cut off by
/// nothing and asserted against.
#[derive(Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub fn new() -> Self {
        Self::default()
    }

    /// With room for `bytes`: a writer of secrets that never grows leaves no copies behind.
    pub fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes) }
    }

    /// Goes on behind what is there.
    pub fn appending(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }

    pub fn put<T: IntoBytes + Immutable>(&mut self, value: &T) -> &mut Self {
        self.bytes.extend_from_slice(value.as_bytes());
        self
    }

    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&[value])
    }

    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub fn short_bytes(&mut self, bytes: &[u8]) -> &mut Self {
        assert!(bytes.len() <= usize::from(u16::MAX), "byte string too long for a 16-bit length");
        self.u16(bytes.len() as u16).bytes(bytes)
    }

    pub fn long_bytes(&mut self, bytes: &[u8]) -> &mut Self {
        assert!(u32::try_from(bytes.len()).is_ok(), "byte string too long for a 32-bit length");
        self.u32(bytes.len() as u32).bytes(bytes)
    }

    pub fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }
}
