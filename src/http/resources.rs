//! What the process takes of its machine, and what room its data directory has: gauges that are read when somebody
//! asks. What cannot be read keeps its last value.

use std::fs;
use std::path::Path;

use metrics::gauge;

use crate::state::space;

/// Reads the gauges. Blocks: a file system may be slow to answer.
pub fn publish(data_dir: &Path) {
    if let Some(bytes) = resident_memory() {
        gauge!("process_resident_memory_bytes").set(bytes as f64);
    }
    if let Some(files) = open_files() {
        gauge!("process_open_fds").set(files as f64);
    }
    if let Some(space) = space::of(data_dir) {
        gauge!("millrace_data_dir_size_bytes").set(space.size as f64);
        gauge!("millrace_data_dir_available_bytes").set(space.available as f64);
    }
}

/// In bytes.
fn resident_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

fn open_files() -> Option<usize> {
    // One of them is the folder that is being read.
    Some(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_process_takes_is_known() {
        assert!(resident_memory().is_some_and(|bytes| bytes > 1 << 20));
        assert!(open_files().is_some_and(|files| files >= 3));
    }
}
