//! The command line: what a user types, and what he gets back.
//!
//! | file | what it does |
//! | --- | --- |
//! | [`args`] | options, help texts, examples |
//! | [`exit`] | exit codes |
//! | [`context`] | what every command has; the way to the node |
//! | [`target`], [`units`] | what the words on the command line mean |
//! | [`output`], [`progress`] | stdout for results, stderr for everything else |
//! | [`interrupt`] | Ctrl-C |
//! | [`serve`] | runs a node |
//! | [`put`], [`put_tree`], `put_small`, [`get`], [`get_tree`], `get_small`, [`get_link`], [`part`], [`parallel`] | files in and out |
//! | [`list`], [`node_commands`] | everything else |
//!
//! Rules: an error is one line, `gabion: …` on stderr (with `--json` one object), names the thing and the way out, and
//! decides the exit code. A command talks to its node by the control socket alone and never opens its files.

pub mod args;
pub mod context;
pub mod exit;
pub mod get;
pub mod get_link;
mod get_small;
pub mod get_tree;
pub mod interrupt;
pub mod list;
pub mod node_commands;
pub mod output;
pub mod parallel;
pub mod part;
pub mod progress;
pub mod put;
pub mod put_small;
mod put_tree;
pub mod serve;
pub mod target;
pub mod units;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

use args::{Arguments, Command, KeyCommand};
use context::Context;
use exit::Failure;
use progress::Display;

/// The whole program.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let words: Vec<OsString> = arguments.into_iter().collect();
    // Known before the line is understood, since an error in it is JSON as well.
    let as_json = words.iter().take_while(|word| *word != "--").any(|word| word == "--json");
    let result = match Arguments::try_parse_from(words) {
        Ok(arguments) => run(arguments),
        Err(error) => usage(&error),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::failure(&failure, as_json);
            ExitCode::from(failure.code)
        }
    }
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { node, common, command } = arguments;
    let bare = command.is_none() && node.listen.is_none();
    if bare && common.data_dir.is_none() && !common.json {
        return print_help();
    }
    let data_dir = crate::config::data_dir(common.data_dir).map_err(|error| Failure::usage(error.to_string()))?;
    match (command, node.listen) {
        (Some(_), Some(_)) => Err(Failure::usage("--listen runs a node, a command talks to one: give one of them")),
        (None, None) => {
            Err(Failure::usage("nothing to do: give a command, or --listen to run a node; see gabion --help"))
        }
        (None, Some(_)) => serve::run(node, data_dir, common.json),
        (Some(command), None) => {
            interrupt::listen();
            let context = Context { data_dir, json: common.json, display: Display::new(common.progress) };
            run_command(&context, &command)
        }
    }
}

fn run_command(context: &Context, command: &Command) -> Result<(), Failure> {
    match command {
        Command::Ticket(arguments) => node_commands::ticket(context, arguments),
        Command::Put(arguments) => put::run(context, arguments),
        Command::Get(arguments) => get::run(context, arguments),
        Command::Cat(arguments) => get::cat(context, arguments),
        Command::Stat(arguments) => list::stat(context, arguments),
        Command::Rm(arguments) => list::rm(context, arguments),
        Command::Ls(arguments) => list::ls(context, arguments),
        Command::Share(arguments) => node_commands::share(context, arguments),
        Command::Status => node_commands::status(context),
        Command::Peers => node_commands::peers(context),
        Command::Verify => node_commands::verify(context),
        Command::Reclaim => node_commands::reclaim(context),
        Command::Key(KeyCommand::Export) => node_commands::key_export(context),
        Command::Demo(arguments) => crate::demo::run(context, arguments),
    }
}

fn print_help() -> Result<(), Failure> {
    Arguments::command().print_help().map_err(|error| output::write_failure(&error))
}

/// What clap has to say: help and version on stdout, an error in one line.
fn usage(error: &clap::Error) -> Result<(), Failure> {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return error.print().map_err(|error| output::write_failure(&error));
    }
    Err(Failure::usage(usage_line(&error.to_string())))
}

/// The first paragraph and the tip of clap's error, and which help to read.
fn usage_line(text: &str) -> String {
    let paragraph: Vec<&str> = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
    let message = paragraph.join(" ");
    let message = message.strip_prefix("error: ").unwrap_or(&message);
    let tip = text.lines().find_map(|line| line.trim().strip_prefix("tip: "));
    let tip = tip.map(|tip| format!(" ({tip})")).unwrap_or_default();
    let usage = text.lines().find_map(|line| line.strip_prefix("Usage: ")).unwrap_or("gabion");
    let command: Vec<&str> = usage.split(' ').take_while(|word| word.starts_with(char::is_alphabetic)).collect();
    format!("{message}{tip}; see {} --help", command.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_help_text_has_an_example() {
        fn check(command: &clap::Command) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example"), "gabion {} --help shows no example", command.get_name());
            assert!(command.get_about().is_some(), "gabion {} says nothing about itself", command.get_name());
            command.get_subcommands().filter(|command| command.get_name() != "help").for_each(check);
        }
        let mut command = Arguments::command();
        command.build();
        check(&command);
    }

    #[test]
    fn a_usage_error_is_one_line_that_names_the_help() {
        let error = Arguments::try_parse_from(["gabion", "put"]).unwrap_err().to_string();
        assert_eq!(
            usage_line(&error),
            "the following required arguments were not provided: <PATH>; see gabion put --help"
        );
        let error = Arguments::try_parse_from(["gabion", "stats"]).unwrap_err().to_string();
        let line = usage_line(&error);
        assert!(line.contains("'stats'") && line.contains("stat") && line.ends_with("see gabion --help"), "{line}");
    }

    #[test]
    fn options_of_a_node_need_listen() {
        for option in [["--zone", "a"], ["--capacity", "1T"], ["--join", "gt1"], ["--threads", "2"]] {
            let words = ["gabion"].iter().chain(&option);
            assert!(Arguments::try_parse_from(words).is_err(), "{option:?}");
        }
        let words = "gabion --listen 0.0.0.0:3000 --join a --join b --replicas 2 --advertise h:1 --zone z --capacity 2T \
                     --cache 1G --threads 3 --data-dir /d";
        let arguments = Arguments::try_parse_from(words.split_whitespace()).unwrap();
        let node = arguments.node;
        assert_eq!((node.join.len(), node.replicas, node.capacity, node.cache), (2, 2, Some(2 << 40), 1 << 30));
    }

    #[test]
    fn wrong_values_are_usage_errors() {
        for line in [
            "gabion --listen nowhere",
            "gabion --listen 0.0.0.0:3000 --replicas 0",
            "gabion --listen 0.0.0.0:3000 --advertise 1::2:3",
            "gabion --listen 0.0.0.0:3000 --threads 0",
            "gabion get a --range 5-1",
            "gabion get a -r --range 1-5",
            "gabion ticket --expires never",
            "gabion --progress sometimes status",
            "gabion ls a --all",
            "gabion key",
        ] {
            assert!(Arguments::try_parse_from(line.split_whitespace()).is_err(), "{line}");
        }
    }
}
