//! Every limit of the system, in one place, with its unit at the end of its name: what is taken, held or done at once,
//! how often something is tried, how long it is waited for or left alone.
//!
//! What bounds nothing stands where it is used: the layout of bytes (but for sizes that limits relate to), parameters of
//! one algorithm, what something is estimated to take. The demo and the tests keep their own figures.
//!
//! A sum is derived from its parts; a relation that must hold between two limits is asserted when this file is
//! compiled. Nothing here is tuned per machine: what depends on the machine (threads, capacity, cache) is
//! configuration.

use std::ops::Range;
use std::time::Duration;

pub const KIB: usize = 1 << 10;
pub const MIB: usize = 1 << 20;
pub const GIB: u64 = 1 << 30;

// Chunks and trees

/// Shortest chunk: shorter plaintexts are zero-padded to this.
pub const CHUNK_BYTES_MIN: usize = 32;
/// Longest chunk, and the exact span of every leaf but the last.
pub const CHUNK_BYTES_MAX: usize = MIB;
/// Entries in a full inner node of a file tree.
pub const TREE_FANOUT: usize = 8192;
/// Bytes of one tree entry: address 32, key 32, span 8.
pub const TREE_ENTRY_BYTES: usize = 72;
/// A full inner node.
pub const TREE_NODE_BYTES_MAX: usize = TREE_FANOUT * TREE_ENTRY_BYTES;
/// Inner levels above the leaves: 1 MiB * 8192^4 is more than a u64 of bytes can say.
pub const TREE_DEPTH_MAX: u8 = 4;

// Buffers

/// The unit of direct I/O: every write to a segment is a multiple of it, at a multiple of it.
pub const BLOCK_BYTES: usize = 4 * KIB;
/// The block in front of a chunk's payload in a buffer: batch record and record header live in it.
pub const RECORD_HEAD_BYTES: usize = BLOCK_BYTES;
/// One pool buffer: room for a record head and the longest chunk, at its final place.
pub const BUFFER_BYTES: usize = RECORD_HEAD_BYTES + CHUNK_BYTES_MAX;
/// Buffers of each shard thread's pool.
pub const BUFFERS_PER_SHARD: usize = 40;
/// Of them, those that answers to peers may hold while they are sent.
pub const ANSWER_BUFFERS_PER_SHARD: usize = 12;
/// Of these, those of one peer, over all its connections to the shard.
pub const ANSWER_BUFFERS_PER_PEER: usize = 6;
/// Connections between one shard and one peer: the peer may have a shard for each core of a large machine, and each has a
/// connection of its own.
pub const CONNECTIONS_PER_PEER_MAX: usize = 128;

// Ring and kernel I/O

/// Entries of each shard thread's submission queue; a power of two, as the kernel would round it up anyway.
pub const RING_ENTRIES: u32 = 512;
/// Of the committer's, which has [`COMMITS_IN_FLIGHT_MAX`] batches under way and little else.
pub const COMMITTER_RING_ENTRIES: u32 = 64;
/// Where locked memory is short, a ring shrinks down to this many entries before it gives up.
pub const RING_ENTRIES_MIN: u32 = 64;
/// Buffers are registered only while a ring of this many entries would still fit into the limit on locked memory
/// (about 1.6 MiB): room for the rings of the other shard threads, and of the user's other processes.
pub const RING_RESERVE_ENTRIES: u32 = 16_384;
/// Hashing this much takes longer than a visit to the ring; computing for longer takes turns.
pub const TURN_BYTES_MIN: usize = 64 * KIB;
/// Hashing this much takes longer than handing it to another thread.
pub const COMPUTE_BYTES_MIN: usize = 64 * KIB;
/// What a thread that only computes asks to run for at a time: far longer than the 1 to 3 ms that others get.
pub const COMPUTE_SLICE: Duration = Duration::from_millis(10);
/// How much nicer such a thread is: it gets a quarter of a core that it shares with one of usual niceness.
pub const COMPUTE_NICENESS: i32 = 5;
/// Direct writes from this length on are submitted by the kernel's own threads, which may wait for the file's locks.
pub const WRITE_ELSEWHERE_BYTES_MIN: usize = 64 * KIB;
/// How long a new ring waits for locked memory: the kernel gives back that of a closed ring late, and others hold some
/// for a moment while they look for what fits.
pub const RING_MEMORY_WAIT_MAX: Duration = Duration::from_secs(3);
/// How often it looks.
pub const RING_MEMORY_LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// Completion entries for each submission entry: pending receives outlive the batch they were submitted in.
pub const RING_COMPLETIONS_PER_ENTRY: u32 = 4;
/// How long a closing ring waits for its cancelled operations before it leaks their memory instead.
pub const RING_DRAIN_MAX: Duration = Duration::from_secs(5);
/// How often it cancels meanwhile what is still under way.
pub const RING_DRAIN_INTERVAL: Duration = Duration::from_millis(1);
/// Longest single read or write handed to the kernel; it would cut at 2 GiB - 4 KiB.
pub const IO_BYTES_MAX: usize = 1 << 30;
/// Buffers that one ring can register.
pub const BUFFERS_REGISTERED_MAX: usize = 1024;
/// Connections that the kernel accepts ahead of us.
pub const LISTEN_BACKLOG: i32 = 1024;
/// Connections that a listener takes before everybody else on its thread has a turn.
pub const ACCEPTS_AT_ONCE_MAX: u32 = 64;
/// After a failed accept: no descriptors or no memory are left.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a node that starts waits for its port: the kernel takes a moment to take a killed process's ring apart.
pub const PORT_WAIT_MAX: Duration = Duration::from_secs(3);
/// How often it looks.
pub const PORT_LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// Up to this size a receive first takes what comes, so that waiting for a header costs no timer ticks.
pub const RECV_WHOLE_BYTES_MAX: usize = 4 * KIB;
/// Descriptors that one control message may carry.
pub const CONTROL_FDS_MAX: usize = 4;

// Segments

pub const SEGMENT_BYTES_MAX: u64 = GIB;
pub const SEGMENT_RECORDS_MAX: u32 = 65_536;
/// A segment grows by this much at a time, and never by more than 1/16 of the free space.
pub const SEGMENT_STEP_BYTES: u64 = 64 * MIB as u64;
/// Payloads from this size on start on a block boundary, in a bulk segment.
pub const BULK_PAYLOAD_BYTES_MIN: usize = 64 * KIB;
/// Longest batch of small records.
pub const BATCH_BYTES_MAX: usize = MIB;
/// Messages that wait for the committer of small records; whoever comes later waits to be heard.
pub const COMMITTER_QUEUE_MESSAGES: usize = 256;
/// Batches of small records under way: one is synced, one is written, and one may wait for a sync to end. With 1, 2 and 3 a put
/// of 100,000 small files took 1.04, 1 and 0.98 of the time, and 128 writers of single values all the same. On a journaling
/// ext4, where syncs wait for each other, 16 and 128 such writers got 1.1 to 1.3 times as much done with 1 as with 2 or 3.
pub const COMMITS_IN_FLIGHT_MAX: usize = 3;
/// Chunks whose first read each shard thread remembers, to read them through the page cache the second time.
pub const PLACES_TOUCHED_MAX: usize = 16_384;
/// Segments sealed since the last checkpoint that make a new one due: this many at least, and this share of all.
pub const CHECKPOINT_SEGMENTS_MIN: usize = 16;
pub const CHECKPOINT_SEGMENTS_SHARE: usize = 16;
/// How often the node looks whether one is due.
pub const CHECKPOINT_LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// Slots that a checkpoint may say one table of the index has: 1,024 tables with more are larger than any machine.
pub const CHECKPOINT_TABLE_SLOTS_MAX: u32 = 1 << 26;
/// Of them, those that room is made for before they are read.
pub const CHECKPOINT_TABLE_SLOTS_RESERVED_MAX: u32 = 1 << 20;
/// Slots that are read, hashed and taken over together; in tests few, so that there are several such pieces.
pub const CHECKPOINT_SLOTS_AT_ONCE: usize = if cfg!(test) { 3 } else { 4096 };
/// Read-only descriptors of segments that each shard thread keeps open.
pub const SEGMENT_READERS_PER_SHARD: usize = 128;
/// How often it is tried to record that a failed write is no chunk; each failure opens a new segment.
pub const DISOWN_ATTEMPTS_MAX: usize = 3;
/// More sealed segments of small records shorter than 1/16 of the longest are compacted into one.
pub const SMALL_SEGMENTS_SHORT_MAX: usize = 8;
/// How long reclaim waits for the space of removed chunks that somebody still reads; it comes back all the same, later.
pub const RELEASE_WAIT_MAX: Duration = Duration::from_secs(5);
/// How often the node reclaims by itself.
pub const RECLAIM_INTERVAL: Duration = Duration::from_secs(60);
/// Chunks without references that reclaim asks of the catalog at once.
pub const GARBAGE_PER_PAGE_MAX: usize = 1024;
/// Of them, those that it removes at a time.
pub const CHUNK_REMOVALS_AT_ONCE: usize = 64;
/// Damaged records of names, references, deaths and removals that one verification mends.
pub const RECORDS_MENDED_AT_ONCE: usize = 65_536;
/// Rows that mending what is lost asks of the catalog, and writes, in one go.
pub const MENDED_ROWS_PER_PAGE_MAX: usize = 256;
/// Versions, or chunks of one, that a look for missing chunks asks of the catalog at once.
pub const REFERENCES_PER_PAGE_MAX: usize = 1024;
/// Free space below which new writes are refused, so that removals and the catalog still have room.
pub const FREE_BYTES_RESERVE: u64 = 32 * MIB as u64;

// Wire

pub const PREFACE_BYTES: usize = 16;
pub const OPENING_BYTES: usize = 80;
pub const FRAME_HEADER_BYTES: usize = 64;
/// A Noise message carries at most 65,535 bytes, 16 of them its tag.
pub const SEALED_BODY_BYTES_MAX: usize = 65_519;
/// One linked wait for a payload; any byte within it is progress.
pub const SOCKET_WAIT: Duration = Duration::from_millis(500);
/// A transfer that moves no byte for this long has stalled, and its reader moves on.
pub const STALL_MAX: Duration = Duration::from_secs(2);
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// Without any frame for this long a peer counts as gone.
pub const KEEPALIVE_MISSED_MAX: Duration = Duration::from_secs(4);
pub const CONNECT_MAX: Duration = Duration::from_secs(3);
/// How long a stranger may take for its opening.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
pub const SESSION_AGE_MAX: Duration = Duration::from_secs(24 * 3600);
pub const SESSION_FRAMES_MAX: u64 = 1 << 32;
/// Clocks of two nodes that talk may differ by this much.
pub const CLOCK_SKEW_MAX: Duration = Duration::from_secs(15 * 60);
/// An opening's ephemeral key is remembered this long, across restarts.
pub const REPLAY_MEMORY: Duration = Duration::from_secs(30 * 60);
/// Payloads in flight that one side allows the other to send unasked.
pub const PAYLOAD_CREDIT: u32 = 16;
pub const REQUESTS_IN_FLIGHT_MAX: usize = 256;
/// Of a peer that no layout has admitted; more are refused.
pub const REQUESTS_OF_STRANGER_MAX: usize = 4;
/// Bodies of answers that wait to leave on one connection; what comes beyond is refused.
pub const ANSWER_BODIES_QUEUED_BYTES_MAX: usize = MIB;
/// Connections that peers whom no layout has admitted may have to a node, and those of one invite.
pub const STRANGER_CONNECTIONS_MAX: usize = 128;
pub const STRANGER_CONNECTIONS_PER_INVITE_MAX: usize = 16;
/// Connections that have not yet finished their handshake, per node.
pub const HANDSHAKES_PENDING_MAX: usize = 1024;
/// What a connection's reader takes in one call while it looks for the next header: many small frames at once, and
/// at most this much of a payload that has to be copied to its place.
pub const READ_AHEAD_BYTES: usize = 4 * KIB;
/// Small frames that leave in one send. With one frame in each, `put -r` of 20,000 files of 4 KiB to two nodes takes 1.33
/// times the CPU time and 1.26 times as long (four alternated runs).
pub const SEND_COALESCED_BYTES_MAX: usize = 128 * KIB;
/// How long a reader waits for a pool buffer before it reads a payload away and refuses it.
pub const BUFFER_WAIT_MAX: Duration = Duration::from_secs(1);
/// What it reads away at a time.
pub const SCRATCH_BYTES: usize = 64 * KIB;
/// Characters of a peer's goodbye that are kept.
pub const GOODBYE_CHARS_MAX: usize = 500;
/// While payloads move, a request that waits behind them does not count as stalled; after this many it does.
pub const OVERTAKEN_PAYLOADS_MAX: u64 = 64;
/// Handshakes of nodes that were not admitted that one source (IPv4 address, IPv6 /64) may begin at once, and then each
/// second.
pub const HANDSHAKES_PER_SOURCE_BURST: u32 = 128;
pub const HANDSHAKES_PER_SOURCE_PER_SECOND: u32 = 16;
/// The same for all sources together.
pub const HANDSHAKES_BURST: u32 = 2048;
pub const HANDSHAKES_PER_SECOND: u32 = 1024;
/// Sources whose buckets are remembered; those beyond share one bucket.
pub const HANDSHAKE_SOURCES_MAX: usize = 4096;

// Cluster

pub const PARTITIONS: usize = 65_536;
pub const REPLICAS_DEFAULT: u8 = 3;
pub const REPLICAS_MAX: u8 = 7;
pub const NODES_MAX: usize = 4096;
/// Nodes in no layout that a node remembers of those who come with one invite.
pub const CANDIDATES_PER_INVITE_MAX: usize = 64;
pub const ADDRESSES_PER_NODE_MAX: usize = 8;
/// Of tickets, that a node keeps until it knows a layout.
pub const BOOTSTRAP_ADDRESSES_MAX: usize = 64;
pub const LAYOUTS_ACTIVE_MAX: usize = 2;
/// Layouts before the active ones that a node still asks the owners of.
pub const LAYOUTS_EARLIER_MAX: usize = 32;
/// How long one peer may take for the layout that it is asked for, or for all those that are missing here together.
pub const LAYOUT_ASKED_MAX: Duration = Duration::from_secs(4);
/// Between two rounds of asking for those that are missing.
pub const MISSED_LAYOUTS_PAUSE: Duration = Duration::from_secs(1);
/// Who starts over because a peer runs under another layout, and finds no newer one, waits this long for the peer.
pub const LAYOUT_CATCH_UP_PAUSE: Duration = Duration::from_millis(100);
/// How often the write of a chunk or of a reference starts over because the layout changed under it.
pub const CHUNK_LAYOUT_RESTARTS_MAX: u32 = 16;
/// The same for a read or a write of a name.
pub const NAME_LAYOUT_RESTARTS_MAX: u32 = 8;
/// A layout's bytes are bounded by its nodes; this bounds them before anything is allocated.
pub const LAYOUT_BYTES_MAX: usize = DOCUMENT_VALUE_BYTES_MAX;
/// Of them, those that no node's entry takes: numbers, voters, settings and the signature need room.
pub const LAYOUT_HEAD_BYTES_RESERVE: usize = 4 * KIB;
/// Shortest part that a layout comes in: every one but the last fills a body.
pub const LAYOUT_PART_BYTES_MIN: usize = 32 * KIB;
/// Layouts that the founder makes ahead of the last one for which it has brought names in: those that names may still lie
/// under must be remembered.
pub const LAYOUTS_UNSYNCED_MAX: u32 = LAYOUTS_EARLIER_MAX as u32 / 2;
/// Nodes that a node keeps connections to unasked; others are dialled when they are needed.
pub const PEERS_DIALLED_UNASKED_MAX: usize = 256;
pub const DIAL_RETRY_MIN: Duration = Duration::from_millis(100);
pub const DIAL_RETRY_MAX: Duration = Duration::from_secs(30);
/// After a failed dial, callers on the data path get the same answer for this long.
pub const REDIAL_PAUSE: Duration = Duration::from_secs(1);
/// The membership's machine is asked at least this often.
pub const MEMBERSHIP_TICK_MAX: Duration = Duration::from_secs(5);
/// Between two looks at it when it was just fed.
pub const MEMBERSHIP_TICK_MIN: Duration = Duration::from_millis(20);
/// Between two writes of the address book.
pub const ADDRESS_BOOK_PAUSE: Duration = Duration::from_millis(250);
/// How long a peer may take to make durable what it is sent, be it a chunk, a reference, a name or a death, before it
/// counts as failed for this write: it may wait behind a disk.
pub const STORE_PATIENCE: Duration = Duration::from_secs(10);
/// Milliseconds between two attempts of one question to a peer that cannot answer now, at least and at most, by lot.
pub const ASK_PAUSE_MS: Range<u64> = 50..500;
/// A node that refuses so often has another trouble than a busy moment.
pub const ASK_PAUSES_MAX: u32 = 3;
/// Roles that one message carries.
pub const ROLES_PER_MESSAGE_MAX: usize = 32;
/// A read asks the next node when the first has not begun to answer within twice its usual time, within these bounds.
pub const HEDGE_MIN: Duration = Duration::from_millis(5);
pub const HEDGE_MAX: Duration = Duration::from_millis(250);
/// Nodes that one chunk is asked of at the same time, those not counted that were asked a stall ago.
pub const READS_AT_ONCE_MAX: usize = 2;
/// How often holders are asked that cannot answer at the moment, once nobody else is left to ask.
pub const BUSY_ROUNDS_MAX: u32 = 4;
/// Connections to one holder that may end by damage before a chunk counts as not to be had there.
pub const PAYLOAD_MISMATCHES_MAX: usize = 4;
/// Chunks of a get whose givers are known, in case they turn out wrong: more than a shard verifies at once for one job.
pub const CHUNKS_GIVEN_MAX: usize = 4 * BUFFERS_PER_SHARD;
/// What the node holds of a listing that it sorts; a longer one takes another pass over the names for each so much.
pub const LISTING_BYTES_MAX: usize = 32 * MIB;
/// Such listings at the same time; others wait.
pub const LISTINGS_MAX: usize = 2;
/// A listing whose page has no more entries than this waits for nobody.
pub const LISTING_ENTRIES_SHORT: u64 = 1000;
/// Name records that an owner reads for one page, before the limit of a body cuts it, and that are brought in at a time.
pub const NAME_RECORDS_PER_PAGE_MAX: usize = 256;
/// What deaths that wait for confirmations take in memory; beyond it no new one is signed.
pub const DEATHS_PENDING_BYTES_MAX: usize = 32 * MIB;
pub const DEATH_RETRY_MIN: Duration = Duration::from_secs(1);
pub const DEATH_RETRY_MAX: Duration = Duration::from_secs(60);
/// Without a death that is due, a look all the same.
pub const DEATH_LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// A round of sending takes at most this many, so that none starves.
pub const DEATHS_SENT_AT_ONCE_MAX: usize = 4096;
/// Nodes that an error names of those that have not confirmed.
pub const DEATH_NODES_NAMED_MAX: usize = 4;

// Names, versions, clocks

/// How long an owner keeps a name for the put that has claimed it.
pub const NAME_CLAIM_MAX: Duration = Duration::from_secs(5);
/// Who claims gives up after this, and who grants does not grant later.
pub const NAME_CLAIM_ANSWER_MAX: Duration = Duration::from_millis(NAME_CLAIM_MAX.as_millis() as u64 / 2);
/// How often a put that must be the first claims a name again that others claim at the same time.
pub const NAME_CLAIM_RETRIES_MAX: u32 = 16;
/// Milliseconds between two attempts to claim, at least and at most, by lot.
pub const NAME_CLAIM_PAUSE_MS: Range<u64> = 10..100;
/// Such claims at a time, for the whole node.
pub const NAME_CLAIMS_MAX: usize = 16_384;
/// Replaced versions that a node looks after at a time because nobody may have declared them dead.
pub const WITNESSES_MAX: usize = 4096;
/// How long a witness leaves the signing to the writer that knows.
pub const WITNESS_PAUSE: Duration = Duration::from_secs(2);
/// How often a node looks whether it has to bring names in, even without a change.
pub const NAME_SYNC_LOOK_INTERVAL: Duration = Duration::from_secs(30);
/// The same after an attempt that met too few owners.
pub const NAME_SYNC_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// A node makes its clock's floor durable this far ahead, so that a restart never goes back.
pub const CLOCK_RESERVE: Duration = Duration::from_secs(10);
/// The same beyond stamps that are ahead of the wall clock: 6.5 million of them.
pub const CLOCK_RESERVE_AHEAD: Duration = Duration::from_millis(100);
pub const BUCKET_BYTES_MAX: usize = 63;
pub const KEY_BYTES_MAX: usize = 1024;
pub const CLOCK_AHEAD_MAX: Duration = Duration::from_secs(60);
/// An owner accepts a version's first name record only while the version is younger than this.
pub const VERSION_AGE_MAX: Duration = Duration::from_secs(24 * 3600);
/// A chunk without references waits this long, of the node's own uptime, for running reads.
pub const RECLAIM_GRACE: Duration = Duration::from_secs(15 * 60);

/// Longest symbolic link target (Linux' PATH_MAX without its NUL).
pub const SYMLINK_BYTES_MAX: usize = 4095;
pub const CONTENT_TYPE_BYTES_MAX: usize = 255;
/// A whole name record: head, sealed body with the longest bucket, key, link target and content type, tag.
pub const NAME_RECORD_BYTES_MAX: usize = 6 * KIB;
/// Versions that one signed death names.
pub const DEATH_VERSIONS_MAX: usize = 1024;

// Identity

pub const ZONE_BYTES_MAX: usize = 63;
/// Host name (253), colon, port (5).
pub const ADDRESS_BYTES_MAX: usize = 259;
pub const VOTERS_MAX: usize = 7;
/// Opaque settings that a layout carries.
pub const LAYOUT_SETTINGS_BYTES_MAX: usize = 4 * KIB;
/// Every certificate fits; in a handshake it is padded to this, so that the messages have one size.
pub const CERTIFICATE_BYTES_MAX: usize = 510;
/// The second Noise message: ephemeral 32, sealed static 48, sealed padded certificate.
pub const HANDSHAKE_SECOND_BYTES: usize = 32 + 48 + HANDSHAKE_PAYLOAD_BYTES + 16;
/// The third Noise message: sealed static 48, sealed padded certificate.
pub const HANDSHAKE_THIRD_BYTES: usize = 48 + HANDSHAKE_PAYLOAD_BYTES + 16;
/// Length 2, certificate, zeros.
pub const HANDSHAKE_PAYLOAD_BYTES: usize = 2 + CERTIFICATE_BYTES_MAX;
/// The network keys a node keeps: the newest and the one before.
pub const NETWORK_KEYS_MAX: usize = 2;
/// Openings remembered against replay; beyond it new ones are refused, so that memory stays bounded.
pub const REPLAY_ENTRIES_MAX: usize = 1 << 17;
/// Of them, those of one source (IPv4 address, IPv6 /64).
pub const REPLAY_ENTRIES_PER_SOURCE_MAX: usize = 4096;
/// Entries of their file beyond twice those that are remembered, at which it is written anew.
pub const REPLAY_FILE_SLACK_ENTRIES: usize = 1024;
/// No key file comes near it; a bigger one is not ours.
pub const KEY_FILE_BYTES_MAX: u64 = 4 * KIB as u64;

// Small objects

/// Longest chunk that travels with others of its kind in one frame: with its head it fits a sealed body.
pub const SMALL_CHUNK_BYTES_MAX: usize = SEALED_BODY_BYTES_MAX - SMALL_CHUNK_HEAD_BYTES;
/// Bytes of a small chunk in a body, its own not counted: address 32, version 16, flags 1, length 2.
pub const SMALL_CHUNK_HEAD_BYTES: usize = 32 + 16 + 1 + 2;
/// Frames of small chunks that one shard has under way to one owner; what comes meanwhile goes into the next. With 1 a put of
/// 20,000 small files with a copy on each of two nodes took 1.19 times as long.
pub const SMALL_FRAMES_IN_FLIGHT_MAX: usize = 4;
/// Batches of small files that one shard puts at once: one waits for its chunks, one for its names, others are sealed.
pub const SMALL_PUTS_AT_ONCE_MAX: usize = 4;
/// Requests that such a batch takes, and questions for names that are asked together.
pub const SMALL_REQUESTS_GATHERED_MAX: usize = 128;
/// Requests whose chunks are read at the same time without making a buffer for each.
pub const SMALL_BUFFERS_PER_SHARD: usize = 16;
/// Contents that one shard seals before its other tasks, and its ring, get their turn: as long as one long chunk takes.
pub const SMALL_SEALED_BYTES_AT_ONCE: usize = 512 * KIB;
/// Names that one shard reads by quorum at once for requests of many small files.
pub const SMALL_NAMES_AT_ONCE_MAX: usize = 64;
/// Chunks that one shard fetches from other nodes at once for requests of many small files; each takes a buffer meanwhile.
pub const SMALL_FETCHES_AT_ONCE_MAX: usize = 12;
/// Names of one request to remove many: they share one death.
pub const REMOVALS_MAX: usize = 1000;
/// Of them, those that are written at a time.
pub const NAME_REMOVALS_AT_ONCE: usize = 64;
/// Small files in one request of the control socket.
pub const SMALL_FILES_MAX: usize = 256;
/// Their contents, keys and metadata together, as a command gathers them before it sends.
pub const SMALL_FILES_BYTES_MAX: usize = 640 * KIB;

/// Why one small file of many could not be put or got, in words; what is longer is cut.
pub const SMALL_FAILURE_BYTES_MAX: usize = 1280;

// Puts and gets

/// Buffers of a shard that its puts and gets may hold together: the others are for what they wait for, and for peers.
pub const JOB_BUFFERS_PER_SHARD: usize = BUFFERS_PER_SHARD * 3 / 5;
/// Of them, those that puts from streams and gets to streams may hold together, so that files never wait for a pipe. As
/// many streams may stand still on a shard before a further one waits.
pub const STREAM_BUFFERS_PER_SHARD: usize = JOB_BUFFERS_PER_SHARD / 2;
/// A get to a stream whose leaf is not written for this long gives back the buffers of the leaves that wait behind it,
/// and fetches them again when their turn comes.
pub const STREAM_STALL_MAX: Duration = Duration::from_millis(500);
/// Leaves of a get that one shard claims together: the turn to write to a stream changes threads that much more rarely.
pub const GET_LEAVES_AT_ONCE: usize = 4;
/// A put or a get of no more leaves is not worth waking the other shards for.
pub const SINGLE_SHARD_LEAVES_MAX: u64 = 4;
/// Leaves of one put that may be under way past the first one that is not yet stored, all shards together.
pub const PUT_WINDOW_LEAVES: u64 = 4096;
/// Expanded nodes of level 1 whose leaves wait for a worker: the one being read and the next.
pub const GET_RUNS_AHEAD_MAX: usize = 2;
/// Times that one chunk is asked for while it arrives damaged.
pub const FETCH_ATTEMPTS_MAX: u32 = 64;
/// The same for a client that decrypts by itself; each attempt asks another holder.
pub const CLIENT_FETCH_ATTEMPTS_MAX: u32 = 8;

// Catalog

pub const CATALOG_CACHE_BYTES_MAX: usize = 16 * MIB;
/// Names in memory, for whoever asks for them again: some 300,000.
pub const CATALOG_NAMES_CACHED_BYTES_MAX: usize = 96 * MIB;
/// The database keeps one table that fills and some that wait to be written.
pub const CATALOG_TABLE_BYTES_MAX: usize = 8 * MIB;
pub const CATALOG_TABLES_MAX: usize = 1 + CATALOG_TABLES_WAITING_MAX;
/// With so many that wait, it keeps its caller until there are fewer.
pub const CATALOG_TABLES_WAITING_MAX: usize = 4;
/// Its journals, beyond which it writes tables to be rid of them.
pub const CATALOG_JOURNAL_BYTES_MAX: u64 = 64 * MIB as u64;
/// Its files that are kept open.
pub const CATALOG_FILES_OPEN_MAX: usize = 64;
/// Events that wait for the catalog's thread; who brings more waits.
pub const CATALOG_EVENTS_QUEUED_MAX: usize = 65_536;
/// Events that one commit of the catalog covers.
pub const CATALOG_COMMIT_EVENTS_MAX: usize = 4096;
/// Events that it is handed at once when the store replays them.
pub const CATALOG_REPLAY_EVENTS_AT_ONCE: usize = 1024;
/// References of dead versions that one step drops.
pub const CATALOG_SWEEP_REFERENCES: usize = 1024;
/// Dead versions that wait for that and are known without a search.
pub const CATALOG_SWEEPS_REMEMBERED_MAX: usize = 65_536;
/// Rows that one look for garbage passes over.
pub const CATALOG_SCAN_ROWS_MAX: usize = 65_536;
/// With less free space than this the catalog is kept in memory instead of written: its database would fail half-way.
pub const CATALOG_FREE_BYTES_MIN: u64 = 8 * MIB as u64;
/// How long its threads may take to write tables before they count as failed, and how often that is looked at.
pub const CATALOG_TABLES_PATIENCE: Duration = Duration::from_secs(30);
pub const CATALOG_TABLES_LOOK_INTERVAL: Duration = Duration::from_millis(2);
/// How often it is tried again.
pub const CATALOG_RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Rows that wait for space, beyond which nothing is added that can be put off.
pub const CATALOG_WAITING_ROWS_MAX: usize = 131_072;
/// Damaged segments that a node remembers as such; it knows of others for as long as their files are there.
pub const DAMAGED_SEGMENTS_MAX: usize = 16_384;
pub const DOCUMENT_KEY_BYTES_MAX: usize = 256;
pub const DOCUMENT_VALUE_BYTES_MAX: usize = 256 * KIB;

// Node

/// Threads that a node may be told to run.
pub const THREADS_MAX: usize = 1024;
pub const SHUTDOWN_MAX: Duration = Duration::from_secs(10);
/// Chunks of one put or get that one shard works on at once. With 6, 12 and 20 (and 70 buffers) on each of two shards a cold
/// get of 4 GiB came at 2,173, 2,265 and 2,406 MiB/s, the middle of four, from a disk that reads 2,800.
pub const CHUNKS_IN_FLIGHT_PER_SHARD: usize = 12;
/// The same for a put: a chunk that is written and waits for its sync holds no buffer, so there are more of them. A quarter
/// of them made a put of 4 GiB no slower on a disk without a journal, whose syncs take 0.1 ms.
pub const PUT_CHUNKS_IN_FLIGHT_PER_SHARD: usize = 64;
/// What a pipe is made to hold that a long put reads or a long get writes; 64 KiB is what pipes hold else. 4 GiB from `cat` into
/// a put took 0.85 of the time, a cold get into `cat` 0.75 (three alternated runs), at about the same CPU time of the node. By
/// default the kernel lets 64 such pipes of a user who is not root be, and gives further ones two pages.
pub const PIPE_BYTES: usize = CHUNK_BYTES_MAX;
/// An output of at least this length is written past the page cache.
pub const DIRECT_OUTPUT_BYTES_MIN: u64 = 16 * MIB as u64;
/// At most one part in so many of the capacity is cache.
pub const CACHE_SHARE_OF_CAPACITY: u64 = 4;
/// Buffers that stay free for readers while copies are written to it.
pub const CACHE_BUFFERS_SPARE: usize = CHUNKS_IN_FLIGHT_PER_SHARD;
/// Chunks that are listed at once to count what earlier runs have cached.
pub const CHUNKS_PER_PAGE_MAX: usize = 4096;

// Control socket and commands

/// Longest message without its length: a whole chunk and its head.
pub const CONTROL_MESSAGE_BYTES_MAX: usize = CHUNK_BYTES_MAX + 64;
/// Of requests, what one receive takes: a small file of a few KiB fits.
pub const CONTROL_READ_BYTES: usize = 16 * KIB;
/// Events that leave together, and that one read of a command takes.
pub const CONTROL_EVENTS_BYTES: usize = 64 * KIB;
/// How often a running command is told how far it is.
pub const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// A client that takes no event for this long, or stops in the middle of a request, is gone. Progress may wait longer: a
/// client that is suspended (Ctrl-Z) takes none. Tests do not wait for so long.
pub const CLIENT_STALL_MAX: Duration = if cfg!(test) { Duration::from_millis(200) } else { Duration::from_secs(60) };
/// How long a node that stops waits for a client to take what is under way to it.
pub const LAST_REPORT_MAX: Duration = Duration::from_secs(1);
/// A node that says nothing for this long when it is asked for its status counts as not answering.
pub const STATUS_ANSWER_MAX: Duration = Duration::from_secs(10);
/// How often a command prints a plain line of progress.
pub const PROGRESS_LINE_INTERVAL: Duration = Duration::from_secs(1);
/// Longest secret that a command reads from a file or from stdin: more is not a ticket but a mistake.
pub const SECRET_BYTES_MAX: u64 = 64 * KIB as u64;
/// Files of one tree that a command has in work at once.
pub const TREE_FILES_AT_ONCE: usize = 16;
/// Small files that each of its workers takes at once. A batch costs a commit or a sync (with 40 files to one, getting a
/// tree took a tenth to a fifth longer), and a tree of some hundred files is to keep several workers busy.
pub const SMALL_FILES_PER_BATCH_MAX: usize = 128;
/// Files that a command has open beside such batches.
pub const OTHER_FILES_OPEN_MAX: usize = 128;
/// How often a get into a file is begun while its name changes under it.
pub const GET_ATTEMPTS_MAX: u32 = 5;
/// How long a part may stay locked before that is an error. The node that writes into it has the same open file and so
/// holds the same lock: after a get that failed or was interrupted it lets go a moment after the command did.
pub const PART_LOCK_WAIT_MAX: Duration = Duration::from_secs(2);
/// How often it is tried meanwhile.
pub const PART_LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(20);

const _: () = assert!(RING_ENTRIES.is_power_of_two() && RING_ENTRIES_MIN.is_power_of_two());
const _: () = assert!(COMMITTER_RING_ENTRIES >= RING_ENTRIES_MIN && COMMITTER_RING_ENTRIES.is_power_of_two());
const _: () = assert!(BUFFERS_PER_SHARD <= BUFFERS_REGISTERED_MAX);
const _: () =
    assert!(ANSWER_BUFFERS_PER_PEER < ANSWER_BUFFERS_PER_SHARD && ANSWER_BUFFERS_PER_SHARD < BUFFERS_PER_SHARD);
const _: () = assert!(BUFFER_BYTES.is_multiple_of(BLOCK_BYTES));
const _: () = assert!(TREE_NODE_BYTES_MAX <= CHUNK_BYTES_MAX);
const _: () = assert!(OPENING_BYTES == PREFACE_BYTES + 64);
const _: () = assert!(REPLAY_ENTRIES_PER_SOURCE_MAX * 16 <= REPLAY_ENTRIES_MAX);
const _: () = assert!(SEALED_BODY_BYTES_MAX + 16 == 65_535);
const _: () = assert!(SEGMENT_BYTES_MAX.is_multiple_of(BLOCK_BYTES as u64));
const _: () = assert!(PUT_WINDOW_LEAVES >= 64 * CHUNKS_IN_FLIGHT_PER_SHARD as u64);
const _: () = assert!(JOB_BUFFERS_PER_SHARD >= 2 * CHUNKS_IN_FLIGHT_PER_SHARD);
const _: () = assert!(2 * CHUNKS_IN_FLIGHT_PER_SHARD < BUFFERS_PER_SHARD);
const _: () = assert!(
    STREAM_BUFFERS_PER_SHARD >= CHUNKS_IN_FLIGHT_PER_SHARD
        && JOB_BUFFERS_PER_SHARD - STREAM_BUFFERS_PER_SHARD >= CHUNKS_IN_FLIGHT_PER_SHARD
);
const _: () = assert!(KEEPALIVE_MISSED_MAX.as_secs() < 5 && STALL_MAX.as_millis() > SOCKET_WAIT.as_millis());
const _: () = assert!(SEND_COALESCED_BYTES_MAX >= FRAME_HEADER_BYTES + SEALED_BODY_BYTES_MAX + 32);
const _: () = assert!(ANSWER_BODIES_QUEUED_BYTES_MAX >= SEALED_BODY_BYTES_MAX);
const _: () = assert!(REQUESTS_OF_STRANGER_MAX < REQUESTS_IN_FLIGHT_MAX);
const _: () = assert!(STRANGER_CONNECTIONS_PER_INVITE_MAX < STRANGER_CONNECTIONS_MAX);
const _: () = assert!(BUFFER_WAIT_MAX.as_millis() < STALL_MAX.as_millis());
const _: () =
    assert!((PAYLOAD_CREDIT as usize) < REQUESTS_IN_FLIGHT_MAX && HANDSHAKES_PENDING_MAX <= HANDSHAKES_BURST as usize);
const _: () = assert!(CATALOG_TABLE_BYTES_MAX * CATALOG_TABLES_MAX <= 40 * MIB);
const _: () = assert!(2 * CATALOG_FREE_BYTES_MIN <= FREE_BYTES_RESERVE);
const _: () = assert!(2 * CLOCK_RESERVE.as_secs() < CLOCK_AHEAD_MAX.as_secs());
const _: () = assert!(SMALL_CHUNK_BYTES_MAX < BULK_PAYLOAD_BYTES_MIN);
const _: () = assert!(SMALL_FILES_BYTES_MAX + SMALL_CHUNK_BYTES_MAX + 8 * KIB < CONTROL_MESSAGE_BYTES_MAX);
const _: () =
    assert!(SMALL_FILES_BYTES_MAX + SMALL_FILES_MAX * (SMALL_FAILURE_BYTES_MAX + 128) < CONTROL_MESSAGE_BYTES_MAX);
const _: () = assert!(DOCUMENT_VALUE_BYTES_MAX + DOCUMENT_KEY_BYTES_MAX + BLOCK_BYTES < BATCH_BYTES_MAX);
const _: () = assert!(SMALL_FILES_PER_BATCH_MAX <= SMALL_FILES_MAX);
