//! `gabion demo`: three nodes on this machine, one file on its way through them.
//!
//! The first node founds a network, the second joins with a ticket of the first, the third with a ticket that names the
//! first two. A file is stored at the third, read back there from the others alone, and on the first; checked, removed,
//! and its space given back. Nodes are real processes with directories of their own, under one temporary directory
//! that goes away at the end, as do the nodes: also after an error or Ctrl-C.

mod contents;
mod nodes;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::cli::args::DemoArguments;
use crate::cli::context::Context;
use crate::cli::exit::{Exit, Failure};
use crate::cli::get::{self, GetChoices};
use crate::cli::put::{self, PutChoices, Stored};
use crate::cli::target::Wanted;
use crate::cli::units::{show_duration, show_rate, show_size};
use crate::cli::{interrupt, output};
use crate::format::ContentId;
use crate::format::name::Name;
use crate::format::ticket::Ticket;
use crate::node::control::{ControlEvent, ControlRequest};
use nodes::{Node, Scratch};

/// How long a node may take until it serves, and until it knows all the others.
const READY_MAX: Duration = Duration::from_secs(30);
/// How long the tickets of the demo admit.
const TICKET_EXPIRES: Duration = Duration::from_secs(3600);

pub fn run(context: &Context, arguments: &DemoArguments) -> Result<(), Failure> {
    let [first, second, third] = *arguments.ports.as_slice() else {
        return Err(Failure::usage("the demo runs three nodes: give three ports, like --ports 7000,7001,7002"));
    };
    if first == second || second == third || first == third {
        return Err(Failure::usage("the demo's three ports must differ"));
    }
    let scratch = Scratch::make()?;
    let demo = Demo { context, scratch: &scratch };
    let result = demo.show([first, second, third], arguments);
    match result {
        Err(_) if interrupt::requested() => Err(Failure::interrupted("interrupted: the demo's nodes are stopped")),
        other => other,
    }
}

struct Demo<'a> {
    context: &'a Context,
    scratch: &'a Scratch,
}

impl Demo<'_> {
    fn show(&self, ports: [u16; 3], arguments: &DemoArguments) -> Result<(), Failure> {
        let file = self.file(arguments)?;
        let [first, second, third] = self.start(ports)?;
        let stored = self.put(&third, &file)?;
        let name = Wanted::Name(stored.name.clone());
        self.get_and_compare(&third, "the third node read it from the others alone", &name, &file, true)?;
        self.get_and_compare(&first, "the first node read it", &name, &file, false)?;
        for (node, which) in [(&first, "first"), (&second, "second"), (&third, "third")] {
            self.verify(node, which)?;
        }
        self.remove(&first, &third, &stored.name)?;
        self.step("three nodes, one file: done", Duration::ZERO, 0)
    }

    /// Prints a step with its time and rate.
    fn step(&self, text: &str, took: Duration, bytes: u64) -> Result<(), Failure> {
        if self.context.json {
            return output::json(&json!({ "step": text, "seconds": took.as_secs_f64(), "bytes": bytes }));
        }
        match (took.is_zero(), bytes) {
            (true, _) => output::line(text),
            (false, 0) => output::line(&format!("{:>9}  {text}", show_duration(took))),
            (false, _) => output::line(&format!(
                "{:>9}  {text}: {}, {}",
                show_duration(took),
                show_size(bytes),
                show_rate(bytes, took)
            )),
        }
    }

    fn file(&self, arguments: &DemoArguments) -> Result<PathBuf, Failure> {
        if let Some(file) = &arguments.file {
            // Found out now and not after three nodes have started.
            put::open_file(file)?;
            return Ok(file.clone());
        }
        let path = self.scratch.path().join("made-up.bin");
        let started = Instant::now();
        contents::make(&path, arguments.size)?;
        self.step("made up a file", started.elapsed(), arguments.size)?;
        Ok(path)
    }

    fn start(&self, ports: [u16; 3]) -> Result<[Node; 3], Failure> {
        let [first_port, second_port, third_port] = ports;
        let started = Instant::now();
        let first = Node::start(self.scratch, "first", first_port, None)?;
        first.wait(READY_MAX, 1)?;
        self.step(&format!("the first node founded a network on port {first_port}"), started.elapsed(), 0)?;

        let started = Instant::now();
        let mut ticket = self.ticket(&first)?;
        ticket.addresses = vec![first.address()];
        let second = Node::start(self.scratch, "second", second_port, Some(&ticket))?;
        second.wait(READY_MAX, 2)?;
        self.step(&format!("the second joined it on port {second_port}"), started.elapsed(), 0)?;

        let started = Instant::now();
        ticket.addresses = vec![first.address(), second.address()];
        let third = Node::start(self.scratch, "third", third_port, Some(&ticket))?;
        for node in [&third, &second, &first] {
            node.wait(READY_MAX, 3)?;
        }
        self.step(
            &format!("the third, told of the first two, joined on port {third_port}; each knows the others"),
            started.elapsed(),
            0,
        )?;
        Ok([first, second, third])
    }

    fn ticket(&self, node: &Node) -> Result<Ticket, Failure> {
        let request = ControlRequest::Ticket { member: true, zone: None, expires_s: TICKET_EXPIRES.as_secs() };
        let text = self.at(node).ask(&request, |event| match event {
            ControlEvent::Text { text } => Some(text),
            _ => None,
        })?;
        text.as_str().parse().map_err(|error| Failure::other(format!("the first node's ticket {error}")))
    }

    /// What a command given to this node would work with.
    fn at(&self, node: &Node) -> Context {
        Context { data_dir: node.data_dir().to_owned(), json: false, display: self.context.display.clone() }
    }

    fn put(&self, node: &Node, file: &Path) -> Result<Stored, Failure> {
        let source = put::open_file(file)?;
        let name = Name::new("main", "demo.bin").map_err(|error| Failure::other(error.to_string()))?;
        let choices = PutChoices { quiet: true, no_dedup: false, no_clobber: false };
        let started = Instant::now();
        let mut progress = self.context.display.start("put");
        let stored = put::store(&self.at(node), &name, &source, choices, &mut progress)?;
        drop(progress);
        let took = started.elapsed();
        self.step(&format!("stored at the third as {name}"), took, stored.bytes)?;
        self.step(&format!("           {}", ContentId(stored.content)), Duration::ZERO, 0)?;
        Ok(stored)
    }

    fn get_and_compare(
        &self,
        node: &Node,
        what: &str,
        name: &Wanted,
        original: &Path,
        remote: bool,
    ) -> Result<(), Failure> {
        let copy = self.scratch.path().join("copy.bin");
        let choices = GetChoices { range: None, remote };
        let started = Instant::now();
        let mut progress = self.context.display.start("get");
        let bytes = get::to_file(&self.at(node), name, &copy, choices, &mut progress)?.total();
        drop(progress);
        self.step(what, started.elapsed(), bytes)?;
        let started = Instant::now();
        if !contents::same(original, &copy)? {
            return Err(Failure::new(
                Exit::Integrity,
                format!("{name} came back with other bytes: a defect in gabion"),
            ));
        }
        self.step("the copy equals the original", started.elapsed(), bytes)?;
        fs::remove_file(&copy).map_err(|error| Failure::other(format!("{} stays: {error}", copy.display())))
    }

    fn verify(&self, node: &Node, which: &str) -> Result<(), Failure> {
        let started = Instant::now();
        let (bytes, left) = self.at(node).ask(&ControlRequest::Verify, |event| match event {
            ControlEvent::VerifyDone { bytes, left, .. } => Some((bytes, left)),
            _ => None,
        })?;
        if left > 0 {
            return Err(Failure::new(Exit::Integrity, format!("{left} chunks of the {which} node are damaged")));
        }
        self.step(&format!("verified all that the {which} node stores"), started.elapsed(), bytes)
    }

    fn remove(&self, first: &Node, third: &Node, name: &Name) -> Result<(), Failure> {
        let started = Instant::now();
        let request = ControlRequest::Remove { bucket: name.bucket().to_owned(), key: name.key().to_owned() };
        self.at(first).run(&request, None, |_| Ok(()))?;
        match get::stat(&self.at(third), &Wanted::Name(name.clone())) {
            Err(failure) if failure.code == Exit::NotFound.code() => {}
            Ok(_) => return Err(Failure::other(format!("{name} is still there after it was removed"))),
            Err(failure) => return Err(failure),
        }
        self.step("removed at the first node, gone at the third", started.elapsed(), 0)?;
        let started = Instant::now();
        let third = self.at(third);
        // The first node signs the death of what it has removed, and sends it to the others behind our back.
        while third.status()?.versions > 0 {
            if interrupt::requested() || started.elapsed() > READY_MAX {
                return Err(Failure::other("the third node was not told that the file is dead"));
            }
            std::thread::sleep(nodes::ASK_INTERVAL);
        }
        let bytes = third.ask(&ControlRequest::Reclaim, |event| match event {
            ControlEvent::Reclaimed { bytes, .. } => Some(bytes),
            _ => None,
        })?;
        self.step(&format!("the third node gave {} of disk space back", show_size(bytes)), started.elapsed(), 0)
    }
}
