//! `gabion --listen …`: runs a node until it is told to stop.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use serde_json::json;
use tracing_subscriber::EnvFilter;

use super::args::NodeArguments;
use super::exit::Failure;
use super::output;
use super::target::parse_ticket;
use crate::config::{self, NodeConfig, TICKET_VARIABLE};
use crate::format::ticket::Ticket;
use crate::node::{self, Ready};

const LOG_DEFAULT: &str = "warn,gabion=info";

pub fn run(arguments: NodeArguments, data_dir: PathBuf, as_json: bool) -> Result<(), Failure> {
    start_log(arguments.log.as_deref())?;
    let config = node_config(arguments, data_dir)?;
    let on_ready = move |ready: &Ready| {
        // A closed stdout is no reason to stop serving.
        let _ = if as_json { print_json(ready) } else { print_help(ready) };
    };
    node::run(config, on_ready).map_err(|error| Failure { code: error.exit_code(), message: error.to_string() })
}

fn node_config(arguments: NodeArguments, data_dir: PathBuf) -> Result<NodeConfig, Failure> {
    let listen = arguments.listen.ok_or_else(|| Failure::usage("a node needs --listen ADDR, like 0.0.0.0:3000"))?;
    Ok(NodeConfig {
        listen,
        data_dir,
        join: tickets(&arguments.join)?,
        replicas: arguments.replicas,
        advertise: arguments.advertise,
        zone: arguments.zone,
        capacity: arguments.capacity,
        cache: arguments.cache,
        threads: arguments.threads,
    })
}

/// As given, else from the environment.
fn tickets(given: &[String]) -> Result<Vec<Ticket>, Failure> {
    if !given.is_empty() {
        return given.iter().map(|text| parse_ticket(text)).collect();
    }
    match std::env::var(TICKET_VARIABLE) {
        Ok(text) if !text.trim().is_empty() => {
            parse_ticket(text.trim()).map(|ticket| vec![ticket]).map_err(|failure| failure.at(TICKET_VARIABLE))
        }
        // Most likely the command that should have printed the ticket failed: founding a second network is no help then.
        Ok(_) => Err(Failure::usage(format!("{TICKET_VARIABLE} is set and empty: put a ticket into it, or unset it"))),
        Err(_) => Ok(Vec::new()),
    }
}

fn start_log(given: Option<&str>) -> Result<(), Failure> {
    let from_environment = std::env::var(EnvFilter::DEFAULT_ENV).ok().filter(|filter| !filter.is_empty());
    let filter = given.map(str::to_owned).or(from_environment).unwrap_or_else(|| LOG_DEFAULT.to_owned());
    let filter = EnvFilter::try_new(&filter)
        .map_err(|error| Failure::usage(format!("the log filter `{filter}`: {error}; write it like info or debug")))?;
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let colors = std::io::stderr().is_terminal() && !no_color;
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(filter)
        .with_ansi(colors)
        .try_init()
        .map_err(|error| Failure::other(format!("the log cannot be started: {error}")))
}

fn print_json(ready: &Ready) -> Result<(), Failure> {
    output::json(&json!({
        "node_id": ready.node_id.to_string(),
        "listen": ready.listen.to_string(),
        "data_dir": ready.data_dir.display().to_string(),
        "founded": ready.founded,
        "member": ready.member,
    }))
}

fn print_help(ready: &Ready) -> Result<(), Failure> {
    ready_lines(ready).iter().try_for_each(|line| output::line(line))
}

/// What to do next, so that it can be copied as it stands.
fn ready_lines(ready: &Ready) -> Vec<String> {
    let option = data_dir_option(&ready.data_dir);
    let founded = if ready.founded { ", the first of a new network" } else { "" };
    let mut lines = vec![
        format!("gabion node {} listens on {}{founded}", ready.node_id, ready.listen),
        format!("its data is in {}", ready.data_dir.display()),
        String::new(),
    ];
    if ready.member {
        lines.extend([
            "store a file and read it back:".to_owned(),
            format!("  gabion put{option} FILE"),
            format!("  gabion get{option} FILE -o COPY"),
            "join a second machine: print a ticket here, use it there".to_owned(),
            format!("  gabion ticket{option} --member"),
            "  gabion --listen 0.0.0.0:3000 --join TICKET".to_owned(),
        ]);
    } else {
        lines.extend([
            "this node keeps chunks that it cannot read; see how it is doing:".to_owned(),
            format!("  gabion status{option}"),
        ]);
    }
    lines
}

fn data_dir_option(data_dir: &Path) -> String {
    match config::data_dir(None) {
        Ok(default) if default == data_dir => String::new(),
        _ => format!(" --data-dir {}", shell_word(&data_dir.display().to_string())),
    }
}

/// Quoted where a shell would take it apart.
fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::NodeId;

    fn ready(data_dir: &str, member: bool) -> Ready {
        Ready {
            node_id: NodeId([7; 32]),
            listen: ([127, 0, 0, 1], 3000).into(),
            data_dir: data_dir.into(),
            founded: true,
            member,
        }
    }

    #[test]
    fn a_new_node_says_how_to_put_and_how_to_join() {
        let text = ready_lines(&ready("/nowhere/gabion's", true)).join("\n");
        for expected in
            ["gabion put --data-dir '/nowhere/gabion'\\''s' FILE", "ticket", "--join TICKET", "127.0.0.1:3000"]
        {
            assert!(text.contains(expected), "{expected} in {text}");
        }
    }

    #[test]
    fn a_storage_node_does_not_offer_to_put() {
        assert!(!ready_lines(&ready("/x", false)).join("\n").contains("gabion put"));
    }
}
