//! The Vulkan loader that fails on demand: `vulkan_shim.c` in front of the real loader. The tests of the command use
//! it, too.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{env, fs};

use tempfile::TempDir;

/// The environment variable that holds the path of the folder of faults. Each file in it names a fault.
pub(crate) const FOLDER: &str = "FAULTS";

/// Begins a fault.
pub(crate) fn begin(fault: &str, folder: &Path) {
    fs::write(folder.join(fault), []).unwrap();
}

/// The compiled shim, and the real loader.
pub(crate) struct Loader {
    folder: TempDir,
    real: PathBuf,
}

impl Loader {
    /// Compiles the shim. `source` is the path of `vulkan_shim.c`.
    pub(crate) fn build(source: &str) -> Result<Self, String> {
        // Loads the real loader, so that the memory map has its path.
        assert!(
            !gradclip::adapters::enumerate().is_empty(),
            "no adapter; scripts/test installs a software adapter"
        );
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let mut paths = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..]));
        let real = paths.find(|path| path.contains("/libvulkan.so")).ok_or("there is no Vulkan adapter")?;
        let folder = tempfile::tempdir().unwrap();
        let compiler = env::var_os("CC").unwrap_or_else(|| "cc".into());
        let compiled = Command::new(&compiler)
            .args(["-shared", "-fPIC", source, "-ldl", "-o"])
            .arg(folder.path().join("libvulkan.so.1"))
            .output()
            .map_err(|error| {
                format!("{}, the C compiler that rustc links with: {error}", compiler.display())
            })?;
        if !compiled.status.success() {
            return Err(format!("{source}: {}", String::from_utf8_lossy(&compiled.stderr)));
        }
        Ok(Self { folder, real: real.into() })
    }

    /// Runs a command with the shim and with faults from the start.
    pub(crate) fn run(&self, mut command: Command, faults: &[&str]) -> Output {
        let folder = tempfile::tempdir().unwrap();
        for fault in faults {
            begin(fault, folder.path());
        }
        let path = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
        let first = self.folder.path().to_path_buf();
        let paths = env::join_paths([first].into_iter().chain(env::split_paths(&path))).unwrap();
        command.env("LD_LIBRARY_PATH", paths).env("REAL_VULKAN", &self.real);
        command.env(FOLDER, folder.path()).output().unwrap()
    }
}

/// Returns the status and the output, for a message.
pub(crate) fn description(output: &Output) -> String {
    let [stdout, stderr] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    format!("{}\n{stdout}{stderr}", output.status)
}
