//! How much memory this machine has, and can still give.

use std::path::Path;

/// Bytes that can be allocated without swapping: what the kernel calls available, or less where a control group is
/// limited. None where nobody says.
pub fn available_memory() -> Option<usize> {
    let group = limit(Path::new("/sys/fs/cgroup"));
    [meminfo("MemAvailable:"), group].into_iter().flatten().min()
}

/// All bytes of the machine. None where nobody says.
pub fn machine_memory() -> Option<usize> {
    meminfo("MemTotal:")
}

fn meminfo(key: &str) -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    kibibytes(&text, key).map(|kib| kib.saturating_mul(1024))
}

/// The number after `key` in lines such as `MemAvailable:   123 kB`.
fn kibibytes(text: &str, key: &str) -> Option<usize> {
    text.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse().ok())
}

/// What a control group's limit (`memory.max`, a number or `max`) leaves beside its processes' own pages.
fn limit(group: &Path) -> Option<usize> {
    let limit: usize = std::fs::read_to_string(group.join("memory.max")).ok()?.trim().parse().ok()?;
    let stat = std::fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let own = stat.lines().find_map(|line| line.strip_prefix("anon ")?.trim().parse().ok()).unwrap_or(0);
    Some(limit.saturating_sub(own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_number_and_a_groups_limit_are_read() {
        assert_eq!(kibibytes("MemTotal: 9 kB\nMemAvailable:    7 kB\n", "MemAvailable:"), Some(7));
        assert_eq!(kibibytes("MemTotal: 9 kB\n", "MemAvailable:"), None);
        let group = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(group.path().join(name), text).unwrap();
        write("memory.max", "max\n");
        assert_eq!(limit(group.path()), None);
        write("memory.max", "1000\n");
        assert_eq!(limit(group.path()), Some(1000));
        write("memory.stat", "file 5\nanon 300\n");
        assert_eq!(limit(group.path()), Some(700));
        assert!(available_memory().is_none_or(|bytes| bytes > 0));
        assert!(machine_memory().zip(available_memory()).is_none_or(|(all, left)| all >= left));
    }
}
