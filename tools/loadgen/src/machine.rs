//! Where a run took place, without which its figures say little: machine, kernel, file system, version.

use std::fs;
use std::path::Path;
use std::process::Command;

use gabion::cli::units::show_size;
use serde_json::{Value, json};

use crate::nodes::Nodes;
use crate::output::remark;
use crate::report::known;

/// File systems that keep everything in memory.
const IN_MEMORY: [&str; 2] = ["tmpfs", "ramfs"];

/// What could not be found out is none.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    pub cores: Option<usize>,
    pub cpu: Option<String>,
    pub memory_bytes: Option<u64>,
    pub kernel: Option<String>,
    /// Of each node's data directory.
    pub file_systems: Vec<Option<String>>,
    /// What the program that runs as the first node says of itself.
    pub gabion: Option<String>,
}

impl Machine {
    pub fn of(nodes: &Nodes) -> Self {
        let read = |path| fs::read_to_string(path).ok();
        let memory_kib = || value(&read("/proc/meminfo")?, "MemTotal")?.split(' ').next()?.parse::<u64>().ok();
        Self {
            cores: std::thread::available_parallelism().ok().map(usize::from),
            cpu: read("/proc/cpuinfo").and_then(|text| value(&text, "model name")),
            memory_bytes: memory_kib().map(|kib| kib << 10),
            kernel: read("/proc/sys/kernel/osrelease").map(|text| text.trim().to_owned()),
            file_systems: nodes.all.iter().map(|node| file_system(&node.dir)).collect(),
            gabion: nodes.all.first().and_then(|node| node.process).and_then(version),
        }
    }

    pub fn text(&self) -> String {
        let mut file_systems: Vec<String> =
            self.file_systems.iter().map(|found| known(found.clone(), |it| it)).collect();
        file_systems.dedup();
        format!(
            "{} on {} cores of {}, {}, Linux {}, {}",
            self.gabion.as_deref().unwrap_or("gabion of unknown version"),
            known(self.cores, |cores| cores.to_string()),
            known(self.cpu.clone(), |cpu| cpu),
            known(self.memory_bytes, show_size),
            known(self.kernel.clone(), |kernel| kernel),
            file_systems.join(" and "),
        )
    }

    pub fn json(&self) -> Value {
        json!({
            "cores": self.cores,
            "cpu": self.cpu,
            "memory_bytes": self.memory_bytes,
            "kernel": self.kernel,
            "file_systems": self.file_systems,
            "gabion": self.gabion,
            "loadgen": env!("CARGO_PKG_VERSION"),
        })
    }
}

/// By the program's own word, also when the file that it was started from is gone.
fn version(process: u32) -> Option<String> {
    let output = Command::new(format!("/proc/{process}/exe")).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().next().map(str::to_owned)
}

/// The value of the first line `name : value`.
fn value(text: &str, name: &str) -> Option<String> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(rest.trim_start().strip_prefix(':')?.trim().to_owned())
}

/// Its type, as the kernel calls it.
pub fn file_system(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    mounted_at(&fs::read_to_string("/proc/self/mountinfo").ok()?, &path)
}

/// Of the mount points above `path` the longest, and of several mounts there the last, is the one that is seen.
fn mounted_at(mountinfo: &str, path: &Path) -> Option<String> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        Some((Path::new(mount.split(' ').nth(4)?), file_system.split(' ').next()?))
    });
    let above = mounts.filter(|(point, _)| path.starts_with(point));
    above.max_by_key(|(point, _)| point.components().count()).map(|(_, file_system)| file_system.to_owned())
}

/// Says that a disk is not what will be measured there.
pub fn warn_of_memory(dir: &Path) {
    if let Some(kind) = file_system(dir).filter(|kind| IN_MEMORY.contains(&kind.as_str())) {
        let dir = dir.display();
        remark(&format!("{dir} is on {kind}: what is measured there is memory and no disk; give --dir DIR"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_and_last_mount_above_a_path_counts() {
        let mountinfo = "22 1 252:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
                         23 22 0:21 / /tmp rw - ext4 /dev/vdb rw\n\
                         24 22 0:22 / /tmp rw shared:2 - tmpfs tmpfs rw\n\
                         25 24 0:23 / /tmp/a/b rw - xfs /dev/vdc rw\n";
        for (path, wanted) in [("/tmp/a", "tmpfs"), ("/tmp/a/b/c", "xfs"), ("/tmpfile", "ext4"), ("/", "ext4")] {
            assert_eq!(mounted_at(mountinfo, Path::new(path)).as_deref(), Some(wanted), "{path}");
        }
    }

    #[test]
    fn values_are_found_by_their_names() {
        let text = "processor\t: 0\nmodel name\t: A: B\nmodel name\t: C\n";
        assert_eq!(value(text, "model name").as_deref(), Some("A: B"));
        assert_eq!((value(text, "model"), value(text, "nothing")), (None, None));
        assert!(file_system(Path::new("/proc")).is_some_and(|kind| kind == "proc"));
    }
}
