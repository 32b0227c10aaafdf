//! A ticket: all that a new node needs to join, in text form `gt1…`. It is a secret: it holds the network key and the
//! private half of an invite (though no vault key: a member gets that in-session).
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 1 | format version |
//! | 1 | 1 | addresses, 0..=8 |
//! | 2 | 2 | reserved, zero |
//! | 4 | 4 | generation of the network key |
//! | 8 | 32 | network id |
//! | 40 | 32 | network key |
//! | 72 | 32 | seed of the invite's Ed25519 key |
//! | 104 | 2 + n | the invite certificate ([`super::certificate`]) behind a u16 length |
//! | | … | addresses, `host:port`, each behind a u16 length |
//! | | 8 | checksum over all of the above ([`super::id::checksum`]) |

use std::fmt;
use std::str::FromStr;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};
use zeroize::{Zeroize, Zeroizing};

use super::certificate::{InviteCertificate, address_count, read_addresses, write_addresses};
use super::cursor::{Malformed, Reader, Writer};
use super::id::{NetworkId, TextError, checksum, from_text, to_text, without_checksum};

pub const TICKET_PREFIX: &str = "gt1";
pub const TICKET_VERSION: u8 = 1;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct TicketHead {
    version: u8,
    addresses: u8,
    reserved: U16,
    network_key_generation: U32,
    network: NetworkId,
    network_key: [u8; 32],
    invite_seed: [u8; 32],
}

const _: () = assert!(size_of::<TicketHead>() == 104);

#[derive(Clone, PartialEq, Eq)]
pub struct Ticket {
    pub network: NetworkId,
    pub network_key_generation: u32,
    /// Secret.
    pub network_key: [u8; 32],
    /// Secret.
    pub invite_seed: [u8; 32],
    pub invite: InviteCertificate,
    /// `host:port` of nodes to dial.
    pub addresses: Vec<String>,
}

impl Ticket {
    fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut writer = Writer::with_capacity(4096);
        let mut head = TicketHead {
            version: TICKET_VERSION,
            addresses: address_count(&self.addresses),
            reserved: U16::ZERO,
            network_key_generation: self.network_key_generation.into(),
            network: self.network,
            network_key: self.network_key,
            invite_seed: self.invite_seed,
        };
        writer.put(&head).short_bytes(&self.invite.encode());
        head.network_key.zeroize();
        head.invite_seed.zeroize();
        write_addresses(&mut writer, &self.addresses);
        Zeroizing::new(writer.finish())
    }

    fn decode(body: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        let head = reader.take::<TicketHead>("ticket")?;
        if head.reserved.get() != 0 {
            return Err(Malformed::new("ticket's reserved bytes"));
        }
        let ticket = Self {
            network: head.network,
            network_key_generation: head.network_key_generation.get(),
            network_key: head.network_key,
            invite_seed: head.invite_seed,
            invite: InviteCertificate::decode(reader.short_bytes("ticket's invite")?)?,
            addresses: read_addresses(&mut reader, head.addresses)?,
        };
        reader.end("bytes after a ticket")?;
        Ok(ticket)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.network_key.zeroize();
        self.invite_seed.zeroize();
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket")
            .field("network", &self.network)
            .field("network_key_generation", &self.network_key_generation)
            .field("class", &self.invite.class)
            .field("zone", &self.invite.zone)
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

/// The whole ticket, secrets included: for handing on, never for a log.
impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = self.encode();
        let sum = checksum(TICKET_PREFIX, &bytes);
        bytes.extend_from_slice(&sum);
        f.write_str(&Zeroizing::new(to_text(TICKET_PREFIX, &bytes)))
    }
}

impl FromStr for Ticket {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        let bytes = Zeroizing::new(from_text(TICKET_PREFIX, text)?);
        let body = without_checksum(TICKET_PREFIX, &bytes)?;
        if let Some(&version) = body.first().filter(|version| **version != TICKET_VERSION) {
            return Err(TextError::Version { found: version.into(), known: TICKET_VERSION.into() });
        }
        Self::decode(body).map_err(|malformed| TextError::Field(malformed.what))
    }
}
