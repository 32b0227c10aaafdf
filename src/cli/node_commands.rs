//! `gabion ticket`, `share`, `status`, `peers`, `verify`, `reclaim` and `key export`: one question to the node each.

use std::time::Duration;

use serde_json::{Value, json};

use super::args::{NameArguments, TicketArguments};
use super::context::{Context, failure_of, unanswered};
use super::exit::{Exit, Failure};
use super::output;
use super::target::parse_name;
use super::units::{show_duration, show_size};
use crate::format::ContentId;
use crate::limits::STATUS_ANSWER_MAX;
use crate::node::control::{ControlEvent, ControlRequest, NodeClass, NodeState, PeerReport, SecretText, StatusReport};

pub fn ticket(context: &Context, arguments: &TicketArguments) -> Result<(), Failure> {
    if arguments.expires.is_zero() {
        return Err(Failure::usage("a ticket that expires at once admits nobody; give --expires 7d"));
    }
    let request = ControlRequest::Ticket {
        member: arguments.member,
        zone: arguments.zone.clone(),
        expires_s: arguments.expires.as_secs(),
    };
    print_secret(context, &request, "ticket")
}

pub fn share(context: &Context, arguments: &NameArguments) -> Result<(), Failure> {
    let name = parse_name(&arguments.name)?;
    let request = ControlRequest::Share { bucket: name.bucket().to_owned(), key: name.key().to_owned() };
    print_secret(context, &request, "link")
}

pub fn key_export(context: &Context) -> Result<(), Failure> {
    print_secret(context, &ControlRequest::KeyExport, "keys")
}

fn print_secret(context: &Context, request: &ControlRequest, what: &str) -> Result<(), Failure> {
    let text: SecretText = context.ask(request, |event| match event {
        ControlEvent::Text { text } => Some(text),
        _ => None,
    })?;
    if context.json { output::json(&json!({ what: text.as_str() })) } else { output::line(text.as_str().trim_end()) }
}

pub fn status(context: &Context) -> Result<(), Failure> {
    let report = ask_status(context)?;
    if context.json {
        output::json(&status_json(&report))?;
    } else {
        status_lines(&report).iter().try_for_each(|line| output::line(line))?;
    }
    match report.state {
        NodeState::Ready => Ok(()),
        NodeState::Degraded => Err(Failure::silent(Exit::Partial)),
    }
}

fn ask_status(context: &Context) -> Result<StatusReport, Failure> {
    let mut connection = context.connect()?;
    connection
        .client
        .set_answer_max(STATUS_ANSWER_MAX)
        .map_err(|error| Failure::other(format!("the connection to the node has no time limit: {error}")))?;
    connection.client.send(&ControlRequest::Status, None).map_err(failure_of)?;
    let mut report = None;
    loop {
        match connection.client.next_event().map_err(failure_of)? {
            ControlEvent::Done => return report.ok_or_else(unanswered),
            ControlEvent::Status { report: found } => report = Some(found),
            _ => {}
        }
    }
}

fn class_word(class: NodeClass) -> &'static str {
    match class {
        NodeClass::Member => "member",
        NodeClass::Storage => "storage",
    }
}

fn state_word(state: NodeState) -> &'static str {
    match state {
        NodeState::Ready => "ready",
        NodeState::Degraded => "degraded",
    }
}

fn status_json(report: &StatusReport) -> Value {
    json!({
        "state": state_word(report.state),
        "reasons": report.reasons,
        "node_id": report.node_id.to_string(),
        "class": class_word(report.class),
        "network_id": report.network_id.to_string(),
        "listen": report.listen,
        "layout": report.layout,
        "replicas": report.replicas,
        "nodes_known": report.nodes_known,
        "nodes_alive": report.nodes_alive,
        "chunks": report.chunks,
        "bytes_live": report.bytes_live,
        "bytes_disk": report.bytes_disk,
        "bytes_free": report.bytes_free,
        "capacity_bytes": report.capacity_bytes,
        "names": report.names,
        "versions": report.versions,
        "deaths_pending": report.deaths_pending,
        "cache_bytes": report.cache_bytes,
        "payload_bytes_sent": report.payload_bytes_sent,
        "payload_bytes_received": report.payload_bytes_received,
        "registered_buffers": report.registered_buffers,
        "rss_anon_bytes": report.rss_anon_bytes,
        "uptime_s": report.uptime_s,
    })
}

fn status_lines(report: &StatusReport) -> Vec<String> {
    let mut lines = vec![format!("state     {}", state_word(report.state))];
    lines.extend(report.reasons.iter().map(|reason| format!("          {}", output::one_line(reason))));
    lines.extend([
        format!("node      {} ({})", report.node_id, class_word(report.class)),
        format!("network   {}", report.network_id),
        format!("listens   {}", report.listen),
        format!("layout    {}, {} copies", report.layout, report.replicas),
        format!("nodes     {} alive of {}", report.nodes_alive, report.nodes_known),
        format!("names     {} ({} versions, {} deaths pending)", report.names, report.versions, report.deaths_pending),
        format!(
            "chunks    {}: {} live, {} on disk{}, {} free",
            report.chunks,
            show_size(report.bytes_live),
            show_size(report.bytes_disk),
            report.capacity_bytes.map(|bytes| format!(" of {} offered", show_size(bytes))).unwrap_or_default(),
            show_size(report.bytes_free)
        ),
        format!("cache     {}", show_size(report.cache_bytes)),
        format!(
            "traffic   {} sent to other nodes, {} received",
            show_size(report.payload_bytes_sent),
            show_size(report.payload_bytes_received)
        ),
        format!(
            "memory    {} anonymous, {} registered buffers",
            show_size(report.rss_anon_bytes),
            report.registered_buffers
        ),
        format!("up        {}", show_duration(Duration::from_secs(report.uptime_s))),
    ]);
    lines
}

pub fn peers(context: &Context) -> Result<(), Failure> {
    context.run(&ControlRequest::Peers, None, |event| match event {
        ControlEvent::Peer { report } if context.json => output::json(&peer_json(&report)),
        ControlEvent::Peer { report } => output::line(&peer_line(&report)),
        _ => Ok(()),
    })
}

fn peer_json(report: &PeerReport) -> Value {
    json!({
        "node_id": report.node_id.to_string(),
        "class": class_word(report.class),
        "zone": report.zone,
        "addresses": report.addresses,
        "alive": report.alive,
        "last_seen_s": report.last_seen_s,
        "rtt_us": report.rtt_us,
        "capacity_bytes": report.capacity_bytes,
        "certificate": report.certificate,
    })
}

fn peer_line(report: &PeerReport) -> String {
    let seen = match (report.alive, report.last_seen_s) {
        (true, _) => "alive".to_owned(),
        (false, Some(ago)) => format!("silent for {}", show_duration(Duration::from_secs(ago))),
        (false, None) => "never seen".to_owned(),
    };
    let rtt = report.rtt_us.map(|rtt| format!("  {:.1} ms", rtt as f64 / 1000.0)).unwrap_or_default();
    let zone = if report.zone.is_empty() { "-" } else { &report.zone };
    output::one_line(&format!(
        "{}  {}  zone {zone}  {}  {}  {seen}{rtt}  {}",
        report.node_id,
        class_word(report.class),
        report.addresses.join(","),
        show_size(report.capacity_bytes),
        report.certificate
    ))
}

pub fn verify(context: &Context) -> Result<(), Failure> {
    let mut progress = context.display.start("verify");
    let mut left = None;
    context.run(&ControlRequest::Verify, None, |event| match event {
        ControlEvent::Verified { done, total } => {
            progress.update(done, Some(total));
            Ok(())
        }
        ControlEvent::Damaged { address, mended, message } => context.display.suspend(|| {
            let chunk = ContentId(address).to_string();
            if context.json {
                output::json(&json!({ "damaged": chunk, "mended": mended, "message": message }))
            } else {
                let outcome = if mended { "mended" } else { "LEFT DAMAGED" };
                output::line(&format!("{outcome}  {chunk}  {}", output::one_line(&message)))
            }
        }),
        ControlEvent::VerifyDone { chunks, bytes, damaged, mended, left: found } => {
            left = Some(found);
            context.display.suspend(|| {
                if context.json {
                    output::json(&json!({
                        "chunks": chunks, "bytes": bytes, "damaged": damaged, "mended": mended, "left": found,
                    }))
                } else {
                    output::line(&format!(
                        "{chunks} chunks  {bytes} bytes  {damaged} damaged  {mended} mended  {found} left damaged"
                    ))
                }
            })
        }
        _ => Ok(()),
    })?;
    match left {
        None => Err(unanswered()),
        Some(0) => Ok(()),
        Some(_) => Err(Failure::silent(Exit::Integrity)),
    }
}

pub fn reclaim(context: &Context) -> Result<(), Failure> {
    let reclaimed = context.ask(&ControlRequest::Reclaim, |event| match event {
        ControlEvent::Reclaimed { bytes, chunks, segments } => Some((bytes, chunks, segments)),
        _ => None,
    });
    let (bytes, chunks, segments) = reclaimed?;
    if context.json {
        output::json(&json!({ "bytes": bytes, "chunks": chunks, "segments": segments }))
    } else {
        output::line(&format!("{bytes} bytes given back: {chunks} chunks, {segments} whole segments"))
    }
}
