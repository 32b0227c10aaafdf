//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, ValueEnum};
use gabion::cli::units::{parse_duration, parse_size};

use crate::content::Sizes;
use crate::operation::Via;

const EXAMPLES: &str = "\
Examples (after cargo build --release --workspace):
  loadgen put --spawn 1 --size 1M --duration 10s           new objects
  loadgen get --spawn 1 --size 64K --concurrency 32        whole objects, all alike popular
  loadgen mixed --spawn 1 --reads 95 --zipf 0.99           reads and overwrites, few objects popular
  loadgen mixed --spawn 1 --rate 500 --duration 30s        the same in an open loop, 500 operations a second
  loadgen ranges --spawn 1 --size 64M --range-size 1-64K   parts of files
  loadgen overwrite --spawn 3 --removes 20                 reads, overwrites and removals, through every node
  loadgen small --spawn 1 --objects 10000 --size 1-4K      many small objects: all put, then read
  loadgen small --spawn 1 --disable-keepalive              the same with a connection for each operation
  loadgen huge --spawn 1 --objects 2 --size 2G             few huge ones: all put, then read
  loadgen connections --spawn 1 --concurrency 500 --idle 500
  loadgen beside --spawn 1 --put 10G --rate 500            small gets alone, and while a long put runs
  loadgen peers --spawn 3 --size 256M                      one reader, chunks from all other nodes
  loadgen crowd --spawn 4 --size 256M                      one node has the file, three fetch it at once
  loadgen get --node ~/a --node ~/b --json --chart get.svg on nodes that run already, by their data directories
  loadgen --smoke                                          every scenario, small

Sizes are powers of 1,024 (64K, 1M, 2G) or a span (1-4K: evenly on a logarithmic scale). Objects are named
loadgen-SEED/object-N; on nodes that ran already they are removed in the end (--keep leaves them, --reuse takes them
up). Contents are a function of the seed: every byte that comes back is checked, none is kept.

Exit codes: 0 ok, 1 other, 2 usage, 3 objects could not be removed again, 4 an acknowledged object is not there,
5 network, 6 a wrong or missing byte, 130 interrupted (with a report of what was measured so far); failed operations
end with the code of the node's error.";

/// Options that only some scenarios heed; those that are not here mean something to all of them.
const SOME_HEED: [(&str, &[Scenario]); 11] = {
    use Scenario::{Beside, Connections, Crowd, Get, Huge, Mixed, Overwrite, Peers, Put, Ranges, Small};
    [
        ("objects", &[Get, Mixed, Ranges, Overwrite, Small, Huge, Connections, Beside, Peers]),
        ("duration", &[Put, Get, Mixed, Ranges, Overwrite, Small, Huge, Connections, Beside, Peers]),
        ("count", &[Put, Get, Mixed, Ranges, Overwrite, Small, Huge, Connections, Beside, Peers]),
        ("reads", &[Mixed, Overwrite]),
        ("removes", &[Overwrite]),
        ("zipf", &[Get, Mixed, Ranges, Overwrite, Connections, Beside]),
        ("range_size", &[Ranges]),
        ("put", &[Beside]),
        ("remote", &[Get, Mixed, Ranges, Overwrite, Small, Huge, Connections, Beside, Peers, Crowd]),
        ("read_back", &[Put, Mixed, Overwrite, Beside]),
        ("reuse", &[Get, Mixed, Ranges, Overwrite, Small, Huge, Connections, Beside, Peers, Crowd]),
    ]
};
/// What the smoke run heeds: the rest of a run is each scenario's own.
const SMOKE_HEEDS: [&str; 8] = ["smoke", "spawn", "replicas", "gabion", "dir", "seed", "progress", "interval_ms"];
/// Nodes that the smoke run needs.
pub const SMOKE_NODES_MIN: u8 = 3;
/// Of nodes that are started here, and of those that run already.
const SPAWNED_ONLY: [&str; 2] = ["replicas", "gabion"];
const ATTACHED_ONLY: [&str; 2] = ["keep", "reuse"];

/// Drives real nodes and checks every byte that comes back
#[derive(Debug, Clone, Parser)]
#[command(name = "loadgen", version, after_help = EXAMPLES, max_term_width = 110)]
pub struct Arguments {
    /// What to do
    #[arg(value_enum, required_unless_present = "smoke")]
    pub scenario: Option<Scenario>,

    /// Every scenario once, small, on three nodes of its own
    #[arg(long, conflicts_with_all = ["scenario", "nodes"])]
    pub smoke: bool,

    #[command(flatten)]
    pub where_: WhereArguments,

    #[command(flatten)]
    pub load: LoadArguments,

    #[command(flatten)]
    pub output: OutputArguments,
}

impl Arguments {
    /// As clap does, and refuses every option that would be ignored.
    pub fn of(words: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Self, clap::Error> {
        let matches = Self::command().try_get_matches_from(words)?;
        let arguments = Self::from_arg_matches(&matches)?;
        match arguments.ignored(&matches).or_else(|| arguments.too_few()) {
            None => Ok(arguments),
            Some(message) => Err(Self::command().error(ErrorKind::ArgumentConflict, message)),
        }
    }

    /// Of nodes that read from each other one reads, and two must serve it.
    fn too_few(&self) -> Option<String> {
        let count = self.spawn().filter(|count| self.smoke && *count < SMOKE_NODES_MIN)?;
        Some(format!(
            "--smoke needs {SMOKE_NODES_MIN} nodes at least, one that reads and two that serve it: not {count}"
        ))
    }

    /// Which given option means nothing here, and why.
    fn ignored(&self, matches: &ArgMatches) -> Option<String> {
        let is_given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
        Self::command().get_arguments().find_map(|option| {
            let id = option.get_id().as_str();
            let why = option.get_long().filter(|_| is_given(id)).and_then(|_| self.why_ignored(id))?;
            Some(format!("--{} {why}", option.get_long().unwrap_or(id)))
        })
    }

    fn why_ignored(&self, id: &str) -> Option<String> {
        let Some(scenario) = self.scenario else {
            return (!SMOKE_HEEDS.contains(&id)).then(|| "means nothing to --smoke".to_owned());
        };
        if self.spawn().is_none() && SPAWNED_ONLY.contains(&id) {
            return Some("is for nodes that --spawn starts".to_owned());
        }
        if self.spawn().is_some() && ATTACHED_ONLY.contains(&id) {
            return Some("is for nodes that run already (--node): those that --spawn starts go in the end".to_owned());
        }
        let (_, heeding) = SOME_HEED.iter().find(|(option, _)| *option == id)?;
        if heeding.contains(&scenario) {
            return None;
        }
        let heeding: Vec<String> = heeding.iter().map(|scenario| scenario.name()).collect();
        Some(format!("means nothing to {}: it is for {}", scenario.name(), heeding.join(", ")))
    }

    fn spawn(&self) -> Option<u8> {
        self.where_.spawn
    }
}

#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Nodes")]
pub struct WhereArguments {
    /// Data directory of a node that runs already; may be repeated
    #[arg(long = "node", value_name = "DIR", required_unless_present_any = ["spawn", "smoke"])]
    pub nodes: Vec<PathBuf>,

    /// Start this many nodes of a new network in a temporary directory; both go in the end
    #[arg(long, value_name = "N", conflicts_with = "nodes", value_parser = clap::value_parser!(u8).range(1..=64))]
    pub spawn: Option<u8>,

    /// Copies of everything on the nodes that --spawn starts; when not given 2 at most, and 1 of a crowd's file
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    pub replicas: Option<u8>,

    /// The binary that --spawn starts; the one beside this program when not given
    #[arg(long, value_name = "PATH")]
    pub gabion: Option<PathBuf>,

    /// Where the temporary directory is made; TMPDIR when not given
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Load (what is not given is up to the scenario)")]
pub struct LoadArguments {
    /// Closed loop: operations at a time. Open loop: at most so many at a time
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub concurrency: Option<u32>,

    /// Open loop: begin this many operations a second, and count latency from when each was meant to begin
    #[arg(long, value_name = "PER_SECOND", value_parser = parse_rate)]
    pub rate: Option<f64>,

    /// End what is measured after this time; small, huge: the gets, all objects are put first; beside: the gets alone
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub duration: Option<Duration>,

    /// End it after this many operations
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// Objects to read from, put beforehand
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub objects: Option<u64>,

    /// Length of an object, or a span of lengths
    #[arg(long, value_name = "SIZE", value_parser = parse_sizes)]
    pub size: Option<Sizes>,

    /// mixed, overwrite: reads of 100 operations
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(0..=100))]
    pub reads: Option<u32>,

    /// overwrite: removals of 100 writes; an object is put again by its next write
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(0..=50))]
    pub removes: Option<u32>,

    /// Skew of the objects' popularity by Zipf's law: 0 for none, 0.99 as in YCSB
    #[arg(long, value_name = "SKEW", value_parser = parse_skew)]
    pub zipf: Option<f64>,

    /// ranges: bytes to read at once, or a span
    #[arg(long, value_name = "SIZE", value_parser = parse_sizes)]
    pub range_size: Option<Sizes>,

    /// beside: length of the put that runs beside the gets; one of 1G at most is read back, a longer one with --read-back
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub put: Option<u64>,

    /// Connections to each node's control socket that say nothing until the end, when each must still be answered
    #[arg(long, value_name = "N")]
    pub idle: Option<u32>,

    /// Read past what the asked node holds itself, where another node has it
    #[arg(long)]
    pub remote: bool,

    /// What a put that does not fit a pipe is read from; when not given a pipe, and a file for the put of `beside`
    #[arg(long, value_name = "KIND", value_enum)]
    pub via: Option<Via>,

    /// A connection and a descriptor for each operation on small objects too, as `gabion put` and `gabion get` have;
    /// otherwise, where no object is longer than 65,468 bytes, each worker keeps a connection to each node
    #[arg(long)]
    pub disable_keepalive: bool,

    /// Put every object under a key of its own, so that equal contents are stored twice
    #[arg(long)]
    pub no_dedup: bool,

    /// put, mixed, overwrite, beside: read everything in the end
    #[arg(long)]
    pub read_back: bool,

    /// Seed of contents, sizes and choices
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,

    /// Leave the objects on the nodes
    #[arg(long)]
    pub keep: bool,

    /// Take the objects as an earlier run with --keep and the same seed, sizes and number put them. After one that overwrote
    /// some (mixed, overwrite) right bytes would be called wrong
    #[arg(long)]
    pub reuse: bool,

    /// Stop after this many failed operations
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub failures_max: u64,
}

#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArguments {
    /// Print the report as one JSON object
    #[arg(long)]
    pub json: bool,

    /// Draw throughput over time and latency percentiles to this file
    #[arg(long, value_name = "FILE.svg")]
    pub chart: Option<PathBuf>,

    /// Live line on stderr: on a terminal only, always, or never
    #[arg(long, value_name = "WHEN", value_enum, default_value = "auto", hide_default_value = true)]
    pub progress: When,

    /// How often throughput, CPU and memory are sampled
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(50..=60_000))]
    pub interval_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum When {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// New objects
    Put,
    /// Whole objects
    Get,
    /// Reads and overwrites of objects of different popularity
    Mixed,
    /// Parts of objects
    Ranges,
    /// Reads, overwrites and removals
    Overwrite,
    /// Many small objects: all put, then read
    Small,
    /// Few huge objects: all put, then read
    Huge,
    /// Many connections to the control socket at once, and many that say nothing
    Connections,
    /// Small objects in an open loop: alone, then while a long put runs
    Beside,
    /// Whole objects past the asked node's own copies, from all other nodes
    Peers,
    /// One object on one node, receivers on all others that begin at the same moment
    Crowd,
}

impl Scenario {
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

fn parse_sizes(text: &str) -> Result<Sizes, String> {
    let Some((min, max)) = text.split_once('-') else { return parse_size(text).map(Sizes::exactly) };
    let sizes = Sizes { bytes_min: parse_size(min)?, bytes_max: parse_size(max)? };
    if sizes.bytes_min > sizes.bytes_max { Err(format!("the span `{text}` ends before it begins")) } else { Ok(sizes) }
}

fn parse_rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
    if (0.001..=1e7).contains(&rate) { Ok(rate) } else { Err("a rate is between 0.001 and 10,000,000".to_owned()) }
}

fn parse_skew(text: &str) -> Result<f64, String> {
    let skew = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
    if (0.0..=10.0).contains(&skew) { Ok(skew) } else { Err("a skew is between 0 and 10".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_its_examples_parse() {
        Arguments::command().debug_assert();
        let examples = EXAMPLES.lines().filter_map(|line| line.strip_prefix("  loadgen "));
        let mut count = 0;
        for example in examples {
            let words = example.split("   ").next().unwrap_or_default().split_whitespace();
            let words = words.take_while(|word| *word != "on");
            Arguments::of(std::iter::once("loadgen").chain(words)).unwrap();
            count += 1;
        }
        assert!(count > 10);
    }

    #[test]
    fn a_scenario_needs_nodes_and_the_smoke_run_neither() {
        let parse =
            |line: &str| Arguments::try_parse_from(line.split_whitespace()).map(|_| ()).map_err(|e| e.exit_code());
        assert_eq!(parse("loadgen --smoke"), Ok(()));
        for wrong in [
            "loadgen",
            "loadgen get",
            "loadgen --spawn 1",
            "loadgen get --spawn 1 --node /x",
            "loadgen nosuch --spawn 1",
        ] {
            assert_eq!(parse(wrong), Err(2), "{wrong}");
        }
    }

    #[test]
    fn an_option_that_would_be_ignored_is_refused_by_its_name() {
        for (line, named) in [
            ("get --spawn 1 --reads 50", Some("--reads means nothing to get: it is for mixed, overwrite")),
            ("small --spawn 1 --zipf 0.99", Some("--zipf")),
            ("put --spawn 1 --objects 5", Some("--objects")),
            ("crowd --spawn 3 --duration 5s", Some("--duration")),
            ("get --spawn 1 --range-size 4K", Some("--range-size means nothing to get: it is for ranges")),
            ("get --spawn 1 --put 1G", Some("--put")),
            ("get --spawn 1 --keep", Some("--keep is for nodes that run already")),
            ("get --node /x --replicas 2", Some("--replicas is for nodes that --spawn starts")),
            ("--smoke --json", Some("--json means nothing to --smoke")),
            ("--smoke --size 1M", Some("--size")),
            ("--smoke --spawn 2", Some("--smoke needs 3 nodes at least")),
            ("--smoke --spawn 3 --seed 5 --dir /x", None),
            ("mixed --spawn 1 --reads 50 --zipf 0.99 --json", None),
            ("get --node /x --keep --reuse", None),
        ] {
            let refused = Arguments::of(std::iter::once("loadgen").chain(line.split_whitespace())).err();
            assert_eq!(refused.as_ref().map(clap::Error::exit_code), named.map(|_| 2), "{line}");
            let message = refused.map(|error| error.to_string()).unwrap_or_default();
            assert!(message.contains(named.unwrap_or_default()), "{line}: {message}");
        }
    }

    #[test]
    fn the_options_that_only_some_heed_are_options() {
        let command = Arguments::command();
        let known: Vec<&str> = command.get_arguments().map(|option| option.get_id().as_str()).collect();
        let all = SOME_HEED.iter().map(|(id, _)| id).chain(&SMOKE_HEEDS).chain(&SPAWNED_ONLY).chain(&ATTACHED_ONLY);
        all.for_each(|id| assert!(known.contains(id), "{id}"));
    }

    #[test]
    fn the_help_says_how_long_a_small_object_may_be() {
        let help = Arguments::command().render_long_help().to_string();
        let longest = gabion::limits::SMALL_CHUNK_BYTES_MAX;
        let longest = format!("{},{:03}", longest / 1000, longest % 1000);
        assert!(help.contains(&format!("longer than {longest} bytes")), "{longest}");
    }

    #[test]
    fn sizes_are_one_or_a_span() {
        assert_eq!(parse_sizes("64K"), Ok(Sizes::exactly(65_536)));
        assert_eq!(parse_sizes("1-4K"), Ok(Sizes { bytes_min: 1, bytes_max: 4096 }));
        assert!(parse_sizes("4K-1").is_err() && parse_sizes("-").is_err());
    }
}
