//! Who owns what, who is there, and when an operation has succeeded: decisions without I/O.
//!
//! Every part is a plain state machine: events and a clock value go in, actions come out, random numbers come from a
//! seeded generator that it owns. None opens a socket, reads a clock or waits, so a simulator can run a thousand nodes
//! of the very code that ships. Times are [`std::time::Duration`]s since any fixed moment of the node's own uptime.
//!
//! | file | what it decides |
//! | --- | --- |
//! | [`placement`] | partition -> owners, by weighted rendezvous hashing |
//! | [`layout`] | the numbered table of nodes, quorum sizes, which owners to ask under which layout |
//! | [`membership`] | the address book: whom to dial and when, which of two connections stays, what to pass on |
//! | [`chunks`] | when a chunk's write has succeeded, whom to read a chunk from |
//! | [`names`] | quorum reads and writes of names |
//! | [`claims`] | which of several puts may give a name that only the first may have |
//! | [`coverage`] | whether owners of before have to be heard too |
//! | [`deaths`] | when a death may be signed, and that it reaches every node |
//!
//! Nothing here checks a signature: what comes in as a certificate, role, layout or death has been checked at the edge.

pub mod chunks;
pub mod claims;
pub mod coverage;
pub mod deaths;
pub mod layout;
pub mod membership;
pub mod names;
pub mod placement;

#[cfg(test)]
mod tests;

pub use chunks::{Latencies, ReadPlan, ReadStep, WriteProgress, WriteQuorum};
pub use deaths::{DeathId, PendingDeaths};
pub use layout::{ActiveLayout, LayoutNode, Layouts, Owners, Quorum};
pub use membership::{Membership, MembershipAction, MembershipEvent};
pub use names::{NameClaim, NameRead, NameWrite};
pub use placement::{Candidate, PlacementTable};
