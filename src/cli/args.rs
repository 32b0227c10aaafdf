//! The command line, exactly as it is documented: options, help texts, examples.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::units::{parse_duration, parse_range, parse_size};
use crate::limits;

const MAIN_EXAMPLES: &str = "\
Examples:
  gabion --listen 0.0.0.0:3000                      start a node; the first one founds a network
  gabion ticket --member                            on that node: print a ticket for another machine
  gabion --listen 0.0.0.0:3000 --join gt1…          on the other machine: join with it
  gabion put film.mkv                               store a file as main/film.mkv
  gabion get film.mkv -o copy.mkv                   on any member: read it

A name is BUCKET/KEY; without a slash the bucket is `main`. Commands talk to the node that runs on --data-dir (or
GABION_DATA_DIR, or gabion under XDG_DATA_HOME) of this machine.

Exit codes: 0 ok, 1 other, 2 usage, 3 partial, 4 not found, 5 network, 6 integrity, 7 key or admission,
8 no space or too few nodes, 130 interrupted.";

/// Encrypted, content-addressed file storage that spans your machines.
///
/// With --listen it runs a node; with a command it talks to the node that runs on this machine.
#[derive(Debug, Parser)]
#[command(name = "gabion", version, after_help = MAIN_EXAMPLES, max_term_width = 110)]
pub struct Arguments {
    #[command(flatten)]
    pub node: NodeArguments,

    #[command(flatten)]
    pub common: CommonArguments,

    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct CommonArguments {
    /// The node's directory: its keys, its data, its control socket [env: GABION_DATA_DIR]
    #[arg(long, value_name = "DIR", global = true)]
    pub data_dir: Option<PathBuf>,

    /// Print results as JSON, one object a line; errors too, on stderr
    #[arg(long, global = true)]
    pub json: bool,

    /// Show progress on stderr: on a terminal only, always, or never
    #[arg(long, value_name = "WHEN", default_value = "auto", hide_default_value = true, global = true)]
    pub progress: ProgressChoice,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProgressChoice {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of a node")]
pub struct NodeArguments {
    /// Run a node that listens here, for example 0.0.0.0:3000 or [::]:3000
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,

    /// Join a network with this ticket; `-` reads it from stdin, `@FILE` from a file [env: GABION_TICKET]
    #[arg(long, value_name = "TICKET", requires = "listen")]
    pub join: Vec<String>,

    /// Copies of everything, when this node founds a network
    #[arg(long, value_name = "N", requires = "listen", default_value_t = limits::REPLICAS_DEFAULT,
        value_parser = clap::value_parser!(u8).range(1..=limits::REPLICAS_MAX as i64))]
    pub replicas: u8,

    /// The address that other nodes dial, where it is not the one listened on
    #[arg(long, value_name = "HOST:PORT", requires = "listen", value_parser = parse_advertise)]
    pub advertise: Option<String>,

    /// Where this node stands: copies are spread over zones
    #[arg(long, value_name = "ZONE", requires = "listen")]
    pub zone: Option<String>,

    /// Space to offer, for example 500G or 2T; all that is free when not given. When it is used up new chunks are
    /// refused; reads and removals go on
    #[arg(long, value_name = "SIZE", requires = "listen", value_parser = parse_size)]
    pub capacity: Option<u64>,

    /// Space for copies of what was read from other nodes; at most a quarter of the capacity
    #[arg(long, value_name = "SIZE", requires = "listen", default_value = "10G", value_parser = parse_size)]
    pub cache: u64,

    /// Threads; one for each core when not given
    #[arg(long, value_name = "N", requires = "listen", value_parser = parse_threads)]
    pub threads: Option<usize>,

    /// What to log to stderr, for example info, debug or gabion::wire=trace [env: RUST_LOG]
    #[arg(long, value_name = "FILTER", requires = "listen")]
    pub log: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print a ticket: all that a new node needs to join this network
    #[command(after_help = "Examples:
  gabion ticket                                   for a storage node: keeps chunks that it cannot read
  gabion ticket --member --expires 1h > t         for a machine of your own
  gabion --listen 0.0.0.0:3000 --join @t          on that machine

A ticket is a secret: whoever has it can join until it expires. It admits many.")]
    Ticket(TicketArguments),

    /// Store a file, a directory tree or standard input
    #[command(after_help = "Examples:
  gabion put film.mkv                             as main/film.mkv
  gabion put -r photos --name backup/2026         as backup/2026/…
  tar c /etc | gabion put - --name backup/etc.tar

Prints the name, the content id, the bytes, and how many of them were new to the network. A symbolic link given as PATH
is followed; inside a tree (-r) links are kept as links, and sockets, pipes and devices are skipped with a warning.")]
    Put(PutArguments),

    /// Read a file, or a tree of them
    #[command(after_help = "Examples:
  gabion get film.mkv                             into ./film.mkv
  gabion get main/film.mkv -o /tmp/copy.mkv
  gabion get -r backup/2026 -o photos
  gabion get film.mkv --range 0-1023 -o -         the first KiB, to stdout
  gabion get @link -o film.mkv                    by the link in the file `link`

A file appears whole or not at all. A get that was interrupted goes on where it stopped when started again.
Permission bits and mtime are restored; set-uid and set-gid bits are not.")]
    Get(GetArguments),

    /// Write a file to standard output
    #[command(after_help = "Example:
  gabion cat backup/etc.tar | tar t")]
    Cat(CatArguments),

    /// Show what is known of a name, content id or link
    #[command(after_help = "Example:
  gabion stat main/film.mkv --json")]
    Stat(TargetArguments),

    /// Remove names
    #[command(after_help = "Examples:
  gabion rm film.mkv
  gabion rm -r backup/2026                        everything below it
  gabion rm -r backup/                            the whole bucket

Space comes back by itself after a grace period for running reads, or at once by `gabion reclaim`.")]
    Rm(RemoveArguments),

    /// List names
    #[command(after_help = "Examples:
  gabion ls                                       the bucket main
  gabion ls backup/2026                           what begins with 2026 in the bucket backup
  gabion ls backup/                               the whole bucket backup
  gabion ls --all --json

Prints the length in bytes, the time of the put and the name. A listing is no snapshot.")]
    Ls(ListArguments),

    /// Print a link to a file: whoever has it, on any node of this network, can read the file
    #[command(after_help = "Example:
  gabion share film.mkv > link; gabion get @link -o film.mkv")]
    Share(NameArguments),

    /// Show how the node is doing; exits 0 when ready, 3 when degraded, 5 when it does not answer
    #[command(after_help = "Example:
  gabion status --json")]
    Status,

    /// Show the other nodes of the network
    #[command(after_help = "Example:
  gabion peers")]
    Peers,

    /// Read everything that this node stores and check it; exits 6 while anything is left damaged
    #[command(after_help = "Example:
  gabion verify

What fails is replaced by a good copy from another node where there is one.")]
    Verify,

    /// Give the space of dead chunks back now, without the grace period
    #[command(after_help = "Example:
  gabion rm film.mkv && gabion reclaim

A get that is running on another node may fail by this.")]
    Reclaim,

    /// Keys of this node's network
    #[command(
        subcommand,
        after_help = "Example:
  gabion key export > keys-on-paper.txt"
    )]
    Key(KeyCommand),

    /// Show it all with three nodes on this machine: put, get, verify, remove
    #[command(after_help = "Examples:
  gabion demo
  gabion demo film.mkv --ports 7000,7001,7002")]
    Demo(DemoArguments),
}

#[derive(Debug, Clone, Args)]
pub struct TicketArguments {
    /// For a member, which can read; without it for a storage node, which cannot
    #[arg(long)]
    pub member: bool,

    /// The zone of whoever joins with it
    #[arg(long, value_name = "ZONE")]
    pub zone: Option<String>,

    /// How long it admits: 45s, 30m, 12h, 7d
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = parse_duration)]
    pub expires: Duration,
}

#[derive(Debug, Clone, Args)]
pub struct PutArguments {
    /// The file to store; `-` is standard input and needs --name
    #[arg(value_name = "PATH")]
    pub path: PathBuf,

    /// What to call it: BUCKET/KEY, or KEY in the bucket main
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// A directory and everything in it, as NAME/relative/path
    #[arg(short, long)]
    pub recursive: bool,

    /// Print the content id alone
    #[arg(short, long)]
    pub quiet: bool,

    /// Under a random key: shares no chunk with any other put
    #[arg(long)]
    pub no_dedup: bool,

    /// Fail when the name exists
    #[arg(long)]
    pub no_clobber: bool,
}

#[derive(Debug, Clone, Args)]
pub struct GetArguments {
    /// A name, a content id (gc1…) or a link (gl1…, `-` for stdin, `@FILE`)
    #[arg(value_name = "NAME|CONTENT-ID|LINK")]
    pub target: String,

    /// Where to write it; `-` is standard output. Without it: the last part of the name, in this directory
    #[arg(short, long, value_name = "PATH")]
    pub output: Option<PathBuf>,

    /// Everything below NAME, into the directory PATH
    #[arg(short, long, conflicts_with = "range")]
    pub recursive: bool,

    /// First and last byte, inclusive as in HTTP: 0-1023
    #[arg(long, value_name = "A-B", value_parser = parse_range)]
    pub range: Option<(u64, u64)>,

    /// Read from other nodes even what is here
    #[arg(long)]
    pub remote: bool,
}

#[derive(Debug, Clone, Args)]
pub struct CatArguments {
    /// A name, a content id (gc1…) or a link (gl1…, `-` for stdin, `@FILE`)
    #[arg(value_name = "NAME|CONTENT-ID|LINK")]
    pub target: String,

    /// First and last byte, inclusive as in HTTP: 0-1023
    #[arg(long, value_name = "A-B", value_parser = parse_range)]
    pub range: Option<(u64, u64)>,

    /// Read from other nodes even what is here
    #[arg(long)]
    pub remote: bool,
}

#[derive(Debug, Clone, Args)]
pub struct TargetArguments {
    /// A name, a content id (gc1…) or a link (gl1…, `-` for stdin, `@FILE`)
    #[arg(value_name = "NAME|CONTENT-ID|LINK")]
    pub target: String,
}

#[derive(Debug, Clone, Args)]
pub struct NameArguments {
    /// BUCKET/KEY, or KEY in the bucket main
    #[arg(value_name = "NAME")]
    pub name: String,
}

#[derive(Debug, Clone, Args)]
pub struct RemoveArguments {
    /// BUCKET/KEY, or KEY in the bucket main
    #[arg(value_name = "NAME", required = true)]
    pub names: Vec<String>,

    /// Everything below each NAME too
    #[arg(short, long)]
    pub recursive: bool,
}

#[derive(Debug, Clone, Args)]
pub struct ListArguments {
    /// BUCKET/, or BUCKET/PREFIX, or PREFIX in the bucket main
    #[arg(value_name = "BUCKET/PREFIX", conflicts_with = "all")]
    pub place: Option<String>,

    /// All buckets
    #[arg(long)]
    pub all: bool,

    /// At most this many
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,
}

#[derive(Debug, Clone, Subcommand)]
pub enum KeyCommand {
    /// Print the keys without which a network whose last member is gone cannot be read again
    #[command(after_help = "Example:
  gabion key export > keys-on-paper.txt

Whoever has them can read and change everything: keep them offline.")]
    Export,
}

#[derive(Debug, Clone, Args)]
pub struct DemoArguments {
    /// The file to send around; made up when not given
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// Ports of the three nodes
    #[arg(long, value_name = "A,B,C", value_delimiter = ',', num_args = 1, default_value = "3000,4000,5000")]
    pub ports: Vec<u16>,

    /// Size of the made-up file
    #[arg(long, value_name = "SIZE", default_value = "256M", conflicts_with = "file", value_parser = parse_size)]
    pub size: u64,
}

fn parse_advertise(text: &str) -> Result<String, String> {
    let wrong = || format!("`{text}` is not HOST:PORT; write it like nas.example:3000 or [2001:db8::1]:3000");
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let port: u16 = port.parse().map_err(|_| wrong())?;
    if host.is_empty() || port == 0 || (host.contains(':') && !bracketed) || host.contains(char::is_whitespace) {
        return Err(wrong());
    }
    Ok(text.to_owned())
}

fn parse_threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(threads @ 1..=limits::THREADS_MAX) => Ok(threads),
        _ => Err(format!("between 1 and {}", limits::THREADS_MAX)),
    }
}
