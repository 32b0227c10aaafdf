//! `gabion ls`, `stat` and `rm`.

use serde_json::{Value, json};

use super::args::{ListArguments, RemoveArguments, TargetArguments};
use super::context::Context;
use super::exit::{Exit, Failure};
use super::target::{Prefix, Wanted, parse_name};
use super::units::{show_size, show_time};
use super::{get, interrupt, output};
use crate::format::ContentId;
use crate::format::name::BUCKET_DEFAULT;
use crate::limits::REMOVALS_MAX;
use crate::node::control::{ControlEvent, ControlRequest, Entry};

/// Asks page by page and hands every entry on, until the names or `limit` end or `on_entry` answers false. Returns how
/// many were handed on.
pub fn each_entry(
    context: &Context,
    bucket: Option<&str>,
    prefix: &str,
    limit: Option<u64>,
    on_entry: &mut dyn FnMut(Entry) -> Result<bool, Failure>,
) -> Result<u64, Failure> {
    let mut after = None;
    let mut count = 0;
    loop {
        let page = limit.map_or(u64::MAX, |limit| limit - count);
        if page == 0 {
            return Ok(count);
        }
        let request = ControlRequest::List {
            bucket: bucket.map(str::to_owned),
            prefix: prefix.to_owned(),
            after: after.take(),
            limit: page,
        };
        // A page is taken whole first: what is done with an entry may take long, and may list again.
        let (mut entries, mut more) = (Vec::new(), false);
        context.run(&request, None, |event| {
            match event {
                ControlEvent::Entry { entry } => entries.push(entry),
                ControlEvent::Listed { more: behind } => more = behind,
                _ => {}
            }
            Ok(())
        })?;
        let last = entries.last().map(|entry| (entry.bucket.clone(), entry.key.clone()));
        for entry in entries {
            count += 1;
            if !on_entry(entry)? {
                return Ok(count);
            }
        }
        match last {
            Some(last) if more => after = Some(last),
            _ => return Ok(count),
        }
    }
}

pub fn ls(context: &Context, arguments: &ListArguments) -> Result<(), Failure> {
    let place = match (&arguments.place, arguments.all) {
        (_, true) => None,
        (Some(place), false) => Some(Prefix::parse(place)?),
        (None, false) => Some(Prefix { bucket: BUCKET_DEFAULT.to_owned(), key: String::new() }),
    };
    let (bucket, prefix) = match &place {
        Some(place) => (Some(place.bucket.as_str()), place.key.as_str()),
        None => (None, ""),
    };
    each_entry(context, bucket, prefix, arguments.limit, &mut |entry| {
        print_entry(context, &entry)?;
        Ok(true)
    })?;
    Ok(())
}

fn print_entry(context: &Context, entry: &Entry) -> Result<(), Failure> {
    if context.json {
        return output::json(&entry_json(entry));
    }
    let arrow = match &entry.metadata.symlink_target {
        Some(target) => format!(" -> {}", String::from_utf8_lossy(target)),
        None => String::new(),
    };
    let name = output::one_line(&format!("{}/{}{arrow}", entry.bucket, entry.key));
    output::line(&format!("{:>14}  {}  {name}", entry.length, show_time(entry.stamp_ms)))
}

pub fn entry_json(entry: &Entry) -> Value {
    let metadata = &entry.metadata;
    let target = metadata.symlink_target.as_ref().map(|target| String::from_utf8_lossy(target).into_owned());
    json!({
        "bucket": entry.bucket,
        "key": entry.key,
        "content": ContentId(entry.content).to_string(),
        "bytes": entry.length,
        "mode": metadata.mode,
        "mtime_s": metadata.mtime_s,
        "mtime_ns": metadata.mtime_ns,
        "symlink_target": target,
        "content_type": metadata.content_type,
        "put_ms": entry.stamp_ms,
    })
}

pub fn stat(context: &Context, arguments: &TargetArguments) -> Result<(), Failure> {
    let wanted = Wanted::parse(&arguments.target)?;
    let entry = get::stat(context, &wanted)?;
    if context.json {
        return output::json(&entry_json(&entry));
    }
    let metadata = &entry.metadata;
    output::line(&format!("name      {}", output::one_line(&wanted.to_string())))?;
    output::line(&format!("content   {}", ContentId(entry.content)))?;
    output::line(&format!("length    {} bytes ({})", entry.length, show_size(entry.length)))?;
    if metadata.mode != 0 {
        output::line(&format!("mode      {:04o}", metadata.mode & 0o7777))?;
        let mtime = u64::try_from(metadata.mtime_s).unwrap_or(0);
        output::line(&format!("modified  {}", show_time(mtime.saturating_mul(1000))))?;
    }
    if entry.stamp_ms != 0 {
        output::line(&format!("put       {}", show_time(entry.stamp_ms)))?;
    }
    if let Some(target) = &metadata.symlink_target {
        output::line(&format!("link to   {}", output::one_line(&String::from_utf8_lossy(target))))?;
    }
    Ok(())
}

/// What became of all the names of one `rm`.
#[derive(Default)]
struct Removed {
    done: u64,
    failures: Vec<Failure>,
}

/// Nothing goes unless every name given is one.
pub fn rm(context: &Context, arguments: &RemoveArguments) -> Result<(), Failure> {
    let mut removed = Removed::default();
    if arguments.recursive {
        for prefix in parse_all(&arguments.names, Prefix::parse)? {
            remove_tree(context, &prefix, &mut removed)?;
        }
    } else {
        for name in parse_all(&arguments.names, parse_name)? {
            remove_one(context, name.bucket(), name.key(), &mut removed)?;
        }
    }
    finish_rm(removed, context.json)
}

fn parse_all<T>(texts: &[String], parse: impl Fn(&str) -> Result<T, Failure>) -> Result<Vec<T>, Failure> {
    texts.iter().map(|text| parse(text)).collect()
}

fn remove_one(context: &Context, bucket: &str, key: &str, removed: &mut Removed) -> Result<(), Failure> {
    let request = ControlRequest::Remove { bucket: bucket.to_owned(), key: key.to_owned() };
    match context.run(&request, None, |_| Ok(())) {
        Ok(()) => removed.done += 1,
        Err(failure) if failure.code == Exit::Interrupted.code() => return Err(failure),
        Err(failure) => {
            removed.failures.push(failure);
            return Ok(());
        }
    }
    report_removed(context, bucket, key)
}

/// Everything below the name, and the name itself where there is one; a page of names at a time.
fn remove_tree(context: &Context, prefix: &Prefix, removed: &mut Removed) -> Result<(), Failure> {
    let before = removed.done + removed.failures.len() as u64;
    let mut keys = Vec::new();
    each_entry(context, Some(&prefix.bucket), &prefix.key, None, &mut |entry| {
        if entry.key == prefix.key || prefix.relative(&entry.key).is_some() {
            keys.push(entry.key);
        }
        if keys.len() >= REMOVALS_MAX {
            remove_many(context, &prefix.bucket, std::mem::take(&mut keys), removed)?;
        }
        Ok(true)
    })?;
    remove_many(context, &prefix.bucket, keys, removed)?;
    if removed.done + removed.failures.len() as u64 == before {
        let message = format!("there is nothing below {prefix}; see gabion ls {}/", prefix.bucket);
        removed.failures.push(Failure::new(Exit::NotFound, message));
    }
    Ok(())
}

fn remove_many(context: &Context, bucket: &str, keys: Vec<String>, removed: &mut Removed) -> Result<(), Failure> {
    if interrupt::requested() {
        return Err(Failure::interrupted("interrupted"));
    }
    if keys.is_empty() {
        return Ok(());
    }
    let request = ControlRequest::RemoveMany { bucket: bucket.to_owned(), keys };
    context.run(&request, None, |event| match event {
        ControlEvent::Removed { key, failure: None } => {
            removed.done += 1;
            report_removed(context, bucket, &key)
        }
        ControlEvent::Removed { failure: Some((code, message)), .. } => {
            removed.failures.push(Failure { code, message });
            Ok(())
        }
        _ => Ok(()),
    })
}

fn report_removed(context: &Context, bucket: &str, key: &str) -> Result<(), Failure> {
    let name = format!("{bucket}/{key}");
    if context.json {
        output::json(&json!({ "removed": name }))
    } else {
        output::line(&format!("removed {}", output::one_line(&name)))
    }
}

/// One failure alone keeps its own code; a mixture is partial.
fn finish_rm(removed: Removed, as_json: bool) -> Result<(), Failure> {
    let Removed { done, mut failures } = removed;
    match failures.len() {
        0 => Ok(()),
        1 if done == 0 => Err(failures.remove(0)),
        _ => {
            failures.iter().for_each(|failure| output::failure(failure, as_json));
            Err(Failure::silent(Exit::Partial))
        }
    }
}
