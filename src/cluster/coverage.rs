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

    /// A layout that was there and is not known here: who owned what under it is to be learnt first, and until then
    /// nothing is known of what may lie there.
    pub fn unknown(layout: u32) -> Self {
        Self { layout, owners: Vec::new(), need: usize::MAX }
    }

    pub fn is_unknown(&self) -> bool {
        self.need == usize::MAX
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

/// These groups, the newest first, with an unknown one wherever a layout is missing between them or before the last.
pub fn without_gaps(known: impl Iterator<Item = NameGroup>) -> Vec<NameGroup> {
    let missing_after = |groups: &[NameGroup]| groups.last().map(|last| last.layout - 1).filter(|number| *number > 0);
    let mut groups = Vec::new();
    for group in known {
        let missing = missing_after(&groups).filter(|missing| *missing > group.layout);
        groups.extend(missing.map(NameGroup::unknown));
        groups.push(group);
    }
    let missing = missing_after(&groups);
    groups.extend(missing.map(NameGroup::unknown));
    groups
}

/// The first layout, from the newest back, of which too few owners were heard; none when what was heard is all there can
/// be. `groups`: of all layouts down to the first, the newest first; unknown ones stand in for those that are missing. `heard`: who answered, and up to which layout it has brought in.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u8) -> NodeId {
        NodeId([number; 32])
    }

    fn group(layout: u32, owners: &[u8]) -> NameGroup {
        NameGroup::new(layout, owners.iter().map(|number| node(*number)).collect(), 3)
    }

    fn layouts(groups: &[NameGroup]) -> Vec<(u32, bool)> {
        groups.iter().map(|group| (group.layout, group.is_unknown())).collect()
    }

    #[test]
    fn a_layout_that_is_missing_leaves_an_unknown_group() {
        let groups = without_gaps([group(5, &[1]), group(3, &[1]), group(1, &[1])].into_iter());
        assert_eq!(layouts(&groups), [(5, false), (4, true), (3, false), (2, true), (1, false)]);
        let groups = without_gaps([group(5, &[1]), group(4, &[1])].into_iter());
        assert_eq!(layouts(&groups), [(5, false), (4, false), (3, true)]);
        assert_eq!(layouts(&without_gaps([group(1, &[1])].into_iter())), [(1, false)]);
        assert!(without_gaps(std::iter::empty()).is_empty());
    }

    #[test]
    fn who_has_just_joined_does_not_know_that_a_name_is_absent_before_it_knows_the_layouts_before() {
        let groups = without_gaps([group(2, &[1, 2])].into_iter());
        let unknown = uncovered(&groups, &[(node(2), 0)]).map(|group| (group.layout, group.is_unknown()));
        assert_eq!(unknown, Some((1, true)), "the joiner asks itself");
        // Enough of the newest owners have brought in all there was: what was before does not matter.
        assert!(uncovered(&groups, &[(node(1), 2)]).is_none());
        // To bring names in, the joiner looks at the layouts before only: there is none that it knows.
        let (_, before) = groups.split_first().unwrap();
        assert!(uncovered(before, &[]).is_some());
    }
}
