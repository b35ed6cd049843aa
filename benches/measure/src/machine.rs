//! The host machine: processor model, last-level cache and available memory.

use anyhow::{Context as _, Result};

/// Returns twice the size of the last-level cache in bytes.
///
/// Where the system does not report a cache size, the value is 256 MiB, which few machines exceed.
pub fn cold_bytes() -> usize {
    const UNKNOWN: usize = 128 << 20;
    let size = |index| {
        let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size");
        let text = std::fs::read_to_string(path).ok()?;
        crate::bytes::parse(text.trim()).ok()
    };
    2 * (0..5).filter_map(size).max().unwrap_or(UNKNOWN)
}

/// Returns the available main memory in bytes, or `None` where the system does not report it.
pub fn available_memory() -> Option<usize> {
    let about = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = about.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Returns the processor's model name, or `unknown processor` where the system does not report it.
pub fn cpu_model() -> String {
    let about = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = about.lines().find_map(|line| line.strip_prefix("model name"));
    let name =
        line.and_then(|line| line.split_once(':')).map_or("unknown processor", |(_, name)| name.trim());
    name.to_owned()
}

/// Checks that main memory can hold a set of `bytes` bytes and the copy that restores it.
pub fn ensure_memory(bytes: usize) -> Result<()> {
    let available = available_memory().unwrap_or(usize::MAX);
    (bytes <= available / 2).then_some(()).with_context(|| {
        format!("the set needs two copies of {bytes} bytes in main memory, but only {available} bytes are available")
    })
}
