//! The memory limit of the container that the process runs in, and what the process takes of it.

use std::fs;
use std::path::Path;

/// Where a container finds its own control group, of either version.
const CONTROL_GROUP: &str = "/sys/fs/cgroup";

/// The limit's file in version 2 and in version 1 (`Documentation/admin-guide/cgroup-v2.rst` and
/// `cgroup-v1/memory.rst` of the kernel).
const LIMIT_FILES: [&str; 2] = ["memory.max", "memory/memory.limit_in_bytes"];

/// Version 1 states that there is no limit as the largest multiple of a page below 2⁶³.
const NO_LIMIT: u64 = 1 << 60;

/// The memory limit of this process' control group in bytes, or nothing if there is none. Beyond it
/// the kernel kills the process without a word.
#[must_use]
pub fn memory_limit() -> Option<u64> {
    limit_in(Path::new(CONTROL_GROUP))
}

fn limit_in(group: &Path) -> Option<u64> {
    LIMIT_FILES.iter().find_map(|file| {
        let text = fs::read_to_string(group.join(file)).ok()?;
        // Version 2 says "max" if there is no limit, which is not a number.
        text.trim().parse().ok().filter(|limit| *limit < NO_LIMIT)
    })
}

/// The memory of this process in bytes that the kernel cannot take back: what it has allocated, without
/// pages of files. Nothing where the system does not say so.
#[must_use]
pub fn allocated_memory() -> Option<u64> {
    allocated_in(&fs::read_to_string("/proc/self/status").ok()?)
}

fn allocated_in(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocated_memory_is_that_without_files() {
        let status = "VmRSS:\t   19072 kB\nRssAnon:\t    5412 kB\nRssFile:\t   13660 kB\n";
        assert_eq!(allocated_in(status), Some(5_412 * 1024));
        for other in ["", "RssAnon:\t", "RssAnon:\t 12", "VmRSS:\t 12 kB"] {
            assert_eq!(allocated_in(other), None, "{other}");
        }
        let allocated = allocated_memory().unwrap();
        assert!((1 << 16..1 << 32).contains(&allocated), "{allocated}");
    }

    #[test]
    fn limit_is_read_from_either_version_of_control_groups() {
        for (file, content, limit) in [
            ("memory.max", "134217728\n", Some(134_217_728)),
            ("memory.max", "max\n", None),
            ("memory/memory.limit_in_bytes", "134217728\n", Some(134_217_728)),
            ("memory/memory.limit_in_bytes", "9223372036854771712\n", None),
            ("memory.max", "", None),
            ("other", "134217728\n", None),
        ] {
            let group = tempfile::tempdir().unwrap();
            fs::create_dir(group.path().join("memory")).unwrap();
            fs::write(group.path().join(file), content).unwrap();
            assert_eq!(limit_in(group.path()), limit, "{file}: {content:?}");
        }
    }
}
