//! Whether enough owners were heard to know a name: those of today, and those of before until the names were brought in.
//!
//! After a change of layout a name may still lie with the owners before alone. Each owner says with every answer up to
//! which layout it has brought in what is its own now. Going from the newest layout back, each layout needs as many of its
//! owners heard as must meet every write acknowledged under it; it ends at a layout enough of whose owners have brought
//! in everything from before it.
//!
//! The rule holds for a name that was found as well as for one that was not, and for the clock round of a write: with an
//! earlier owner may lie a record with a later clock than anything that is known to today's owners (its writer's clock
//! was ahead), and what is written or returned without it would vanish behind it later.

use crate::format::NodeId;

/// Who holds a bucket's names (or all names) under one layout, and how many of them must be heard so that none of its
/// names can hide behind those that are not.
#[derive(Clone, Debug)]
pub struct NameGroup {
    pub layout: u32,
    pub owners: Vec<NodeId>,
    pub need: usize,
}

impl NameGroup {
    /// `replicas`: of each name, under that layout.
    pub fn new(layout: u32, owners: Vec<NodeId>, replicas: usize) -> Self {
        let need = owners.len() - owners.len().min(replicas) / 2;
        Self { layout, owners, need }
    }

    pub fn heard(&self, heard: &[(NodeId, u32)]) -> usize {
        heard.iter().filter(|(node, _)| self.owners.contains(node)).count()
    }

    /// Whether enough of those who were heard have brought in everything from the layouts before this one.
    pub fn is_synced(&self, heard: &[(NodeId, u32)]) -> bool {
        let synced = heard.iter().filter(|(node, synced)| self.owners.contains(node) && *synced >= self.layout);
        synced.count() >= self.need
    }
}

/// The first layout, from the newest back, of which too few owners were heard; none when what was heard is all there can
/// be. `groups`: of all layouts known, the newest first. `heard`: who answered, and up to which layout it has brought in.
pub fn uncovered<'a>(groups: &'a [NameGroup], heard: &[(NodeId, u32)]) -> Option<&'a NameGroup> {
    for group in groups {
        if group.heard(heard) < group.need {
            return Some(group);
        }
        if group.is_synced(heard) {
            return None;
        }
    }
    None
}
