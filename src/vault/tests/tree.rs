use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};
use zeroize::Zeroizing;

use super::super::window::{Claim, Turnstile, Window};
use super::*;
use crate::format::tree::{TreeEntry, depth_of, full_span_bytes, leaf_count};
use crate::limits::{PUT_WINDOW_LEAVES, TREE_ENTRY_BYTES, TREE_FANOUT};

const MIB: u64 = CHUNK as u64;

/// Numbers for addresses, so that no data is needed.
fn entry(number: u64, span: u64) -> TreeEntry {
    let mut address = [0; 32];
    address[..8].copy_from_slice(&number.to_le_bytes());
    TreeEntry { address: Address(address), key: [number as u8; 32], span: span.into() }
}

/// A tree without data: nodes by address.
struct Skeleton {
    root: Root,
    nodes: HashMap<Address, Vec<u8>>,
}

fn skeleton(length: u64) -> Skeleton {
    let mut builder = TreeBuilder::new();
    let mut nodes = HashMap::new();
    let mut store = |node: Node| {
        let number = u64::MAX - nodes.len() as u64;
        let entry = TreeEntry { span: node.span.into(), ..entry(number, 1) };
        check_node(&node.plaintext, node.level, node.span).unwrap();
        nodes.insert(entry.address, node.plaintext.to_vec());
        (node.level, entry)
    };
    let mut add = |builder: &mut TreeBuilder, mut level: u8, mut entry: TreeEntry| {
        while let Some(node) = builder.push(level, entry) {
            (level, entry) = store(node);
        }
    };
    for leaf in 0..leaf_count(length) {
        add(&mut builder, 0, entry(leaf, (length - leaf * MIB).min(MIB)));
    }
    let mut late = HashMap::new();
    let (root, depth) = loop {
        match builder.finish() {
            Finish::Root { entry, depth } => break (entry, depth),
            Finish::Empty => break (entry(0, 0), 0),
            Finish::Seal(node) => {
                let number = u64::MAX / 2 - late.len() as u64;
                let entry = TreeEntry { span: node.span.into(), ..entry(number, 1) };
                late.insert(entry.address, node.plaintext.to_vec());
                add(&mut builder, node.level, entry);
            }
        }
    };
    assert_eq!(builder.length(), length);
    nodes.extend(late);
    Skeleton { root: Root { address: root.address, key: ChunkKey::from_bytes(root.key), depth, length }, nodes }
}

/// Numbers and spans of the leaves that a walk hands out, and how many nodes it asked for.
fn walk_all(tree: &Skeleton, range: Option<Range<u64>>) -> (Vec<(u64, usize)>, usize) {
    let mut walk = Walk::new(&tree.root, range).unwrap();
    let (mut leaves, mut nodes) = (Vec::new(), 0);
    loop {
        match walk.step().unwrap() {
            Step::Node(node) => {
                nodes += 1;
                let plaintext = tree.nodes[&node.address].clone();
                assert_eq!(plaintext.len(), node.len);
                walk.expand(&node, Zeroizing::new(plaintext)).unwrap();
            }
            Step::Leaves(run) => leaves.extend(run.map(|leaf| {
                let number = u64::from_le_bytes(*leaf.address.0.first_chunk().unwrap());
                assert_eq!(leaf.start, number * MIB);
                (number, leaf.span)
            })),
            Step::End => break,
        }
    }
    assert_eq!(leaves.len() as u64, walk.leaf_count());
    (leaves, nodes)
}

#[test]
fn a_tree_has_the_shape_its_length_says() {
    let fanout = TREE_FANOUT as u64;
    for (length, depth, nodes) in [
        (0, 0, 0),
        (1, 0, 0),
        (MIB, 0, 0),
        (MIB + 1, 1, 1),
        (fanout * MIB, 1, 1),
        (fanout * MIB + 1, 2, 3),
        (9000 * MIB + 5, 2, 3),
        (2 * fanout * MIB, 2, 3),
        (3 * fanout * MIB - 1, 2, 4),
    ] {
        let tree = skeleton(length);
        assert_eq!((tree.root.depth, tree.nodes.len()), (depth, nodes), "{length} bytes");
        assert_eq!(depth, depth_of(length));
        let (leaves, visited) = walk_all(&tree, None);
        assert_eq!(visited, nodes);
        assert!(leaves.iter().map(|(number, _)| *number).eq(0..leaf_count(length)));
        assert_eq!(leaves.iter().map(|(_, span)| *span as u64).sum::<u64>(), length);
    }
}

#[test]
fn a_full_level_is_handed_out_with_its_last_child() {
    let mut builder = TreeBuilder::new();
    let full = full_span_bytes(1);
    for number in 0..TREE_FANOUT as u64 - 1 {
        assert!(builder.push(1, entry(number, full)).is_none());
    }
    let node = builder.push(1, entry(0, full)).unwrap();
    assert_eq!((node.level, node.span), (2, full_span_bytes(2)));
    assert_eq!(check_node(&node.plaintext, 2, node.span).unwrap().len(), TREE_FANOUT);
}

#[test]
#[should_panic(expected = "follows the file's last one")]
fn nothing_follows_a_short_leaf() {
    let mut builder = TreeBuilder::new();
    builder.push(0, entry(0, 5));
    builder.push(0, entry(1, MIB));
}

#[test]
fn a_range_visits_only_what_it_touches() {
    let tree = skeleton(20_000 * MIB + 77);
    let edge = TREE_FANOUT as u64 * MIB;
    let (leaves, nodes) = walk_all(&tree, Some(edge - 1..edge + 1));
    assert_eq!((leaves, nodes), (vec![(8191, CHUNK), (8192, CHUNK)], 3));
    let (leaves, nodes) = walk_all(&tree, Some(edge..edge + MIB));
    assert_eq!((leaves, nodes), (vec![(8192, CHUNK)], 2));
    let (leaves, nodes) = walk_all(&tree, Some(20_000 * MIB + 76..20_000 * MIB + 77));
    assert_eq!((leaves, nodes), (vec![(20_000, 77)], 2));
    assert_eq!(walk_all(&tree, Some(edge..edge)), (vec![], 0));
}

#[test]
fn a_range_outside_the_file_is_refused() {
    let root = skeleton(10).root;
    #[allow(clippy::reversed_empty_ranges)]
    for range in [0..11, 11..11, 5..4] {
        assert!(matches!(Walk::new(&root, Some(range)), Err(TreeError::Range { .. })));
    }
}

#[test]
fn a_depth_that_the_length_forbids_is_refused() {
    for (depth, length) in [(1, 5), (1, MIB), (0, MIB + 1), (2, MIB + 1), (1, 0), (5, u64::MAX), (200, 1)] {
        let root = Root { depth, length, ..skeleton(10).root };
        assert!(matches!(Walk::new(&root, None), Err(TreeError::Depth { .. })), "depth {depth}, {length} bytes");
    }
}

fn node_of(spans: &[u64]) -> Vec<u8> {
    spans.iter().flat_map(|span| entry(1, *span).as_bytes().to_vec()).collect()
}

#[test]
fn a_node_of_another_shape_is_refused() {
    let span = 2 * MIB + 5;
    assert_eq!(check_node(&node_of(&[MIB, MIB, 5]), 1, span).unwrap().len(), 3);
    for spans in [
        &[MIB, MIB][..],
        &[MIB, MIB, 5, 5],
        &[MIB, MIB, 6],
        &[MIB, MIB, 4],
        &[MIB, 5, MIB],
        &[MIB - 1, MIB, 6],
        &[MIB, MIB, 0],
        &[u64::MAX, MIB, MIB + 6],
        &[],
    ] {
        assert!(check_node(&node_of(spans), 1, span).is_err(), "{spans:?}");
    }
    // The right node in another place.
    let node = node_of(&[MIB, MIB, 5]);
    for (level, span) in [(0, span), (1, span + 1), (1, span - 1), (2, span), (5, span), (1, 0), (1, u64::MAX)] {
        assert!(check_node(&node, level, span).is_err(), "level {level}, {span} bytes");
    }
    let mut ragged = node.clone();
    ragged.pop();
    assert!(check_node(&ragged, 1, span).is_err());
}

#[test]
fn repeated_children_cannot_stand_for_more_than_the_parent_said() {
    // 8,192 times the same full child below a parent that was said to be smaller, or larger.
    let bomb = node_of(&[MIB; TREE_FANOUT]);
    assert!(check_node(&bomb, 1, full_span_bytes(1)).is_ok());
    assert!(check_node(&bomb, 1, full_span_bytes(1) - 1).is_err());
    assert!(check_node(&bomb, 2, full_span_bytes(2)).is_err());
    assert!(check_node(&node_of(&[full_span_bytes(1); TREE_FANOUT + 1]), 2, full_span_bytes(2)).is_err());
}

#[test]
fn the_window_holds_back_claims_that_run_ahead() {
    let mut window = Window::new(None);
    for leaf in 0..PUT_WINDOW_LEAVES {
        assert_eq!(window.claim(), Claim::Leaf(leaf));
    }
    assert_eq!(window.claim(), Claim::Later);
    for leaf in (1..PUT_WINDOW_LEAVES).rev() {
        assert!(!window.deposit(leaf, entry(leaf, MIB)));
    }
    assert!(window.collect().is_none() && window.claim() == Claim::Later);
    assert!(window.deposit(0, entry(0, MIB)));
    for leaf in 0..PUT_WINDOW_LEAVES {
        assert!(window.collect().unwrap() == entry(leaf, MIB));
    }
    assert_eq!(window.claim(), Claim::Leaf(PUT_WINDOW_LEAVES));
    window.end_at(PUT_WINDOW_LEAVES);
    assert!(window.claim() == Claim::End && window.is_complete());
}

#[test]
fn a_closed_turnstile_sends_everyone_away() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let turnstile = Arc::new(Turnstile::default());
        let waiting = tokio::spawn({
            let turnstile = Arc::clone(&turnstile);
            async move { (turnstile.wait(1).await, turnstile.wait(2).await) }
        });
        tokio::task::yield_now().await;
        assert!(turnstile.wait(0).await);
        turnstile.pass();
        tokio::task::yield_now().await;
        turnstile.close();
        assert_eq!(waiting.await.unwrap(), (true, false));
        assert!(!turnstile.wait(1).await);
    });
}

proptest! {
    #[test]
    fn no_bytes_make_a_check_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..4 * TREE_ENTRY_BYTES),
        level in any::<u8>(),
        span in any::<u64>(),
    ) {
        let _ = check_node(&bytes, level, span);
        let _ = check_node(&bytes, level % 5, (bytes.len() / TREE_ENTRY_BYTES) as u64 * MIB);
    }

    /// Whatever is changed in a node's spans or size, it is no longer the node that its parent meant.
    #[test]
    fn every_changed_span_is_refused(leaves in 1u64..50, tail in 1..=MIB, at in any::<prop::sample::Index>(), to in any::<u64>()) {
        let span = (leaves - 1) * MIB + tail;
        let spans: Vec<u64> = (0..leaves).map(|leaf| (span - leaf * MIB).min(MIB)).collect();
        let mut node = node_of(&spans);
        let at = at.index(spans.len());
        let (changed, _) = TreeEntry::mut_from_prefix(&mut node[at * TREE_ENTRY_BYTES..]).unwrap();
        changed.span = to.into();
        prop_assert_eq!(check_node(&node, 1, span).is_ok(), spans[at] == to);
    }
}
