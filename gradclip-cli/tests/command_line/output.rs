//! Output files: replacement, permissions and owner, and interrupted or failed runs.

use std::fs;
#[cfg(unix)]
use std::process::{Command, Stdio};

use crate::{SHIPPED, assert_fails, clip, files, folder_with};
#[cfg(unix)]
use crate::{clip_json, one_tensor};

#[test]
fn a_read_only_output_is_kept() {
    let (folder, out) = folder_with(b"old");
    let mut permissions = fs::metadata(&out).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&out, permissions).unwrap();
    let output = clip(SHIPPED.as_ref(), &["--max-norm", "1", "--json", "-o", out.to_str().unwrap()]);
    assert!(assert_fails(&output, "read-only").contains("read-only"));
    assert_eq!((fs::read(&out).unwrap(), files(&folder).len()), (b"old".to_vec(), 1));
}

/// A file size limit simulates a full disk. It also applies to `root`, which ignores permissions.
#[test]
#[cfg(unix)]
fn a_full_disk_keeps_the_old_file() {
    let (folder, out) = folder_with(b"old");
    let limited = r#"trap "" XFSZ; ulimit -f 8; exec "$@""#;
    let gradclip =
        [env!("CARGO_BIN_EXE_gradclip"), "clip", SHIPPED, "--max-norm=1", "--device=cpu", "--json", "-o"];
    let output = Command::new("sh").args(["-c", limited, "sh"]).args(gradclip).arg(&out).output().unwrap();
    assert!(assert_fails(&output, "full disk").contains("cannot write"));
    assert_eq!((fs::read(&out).unwrap(), files(&folder).len()), (b"old".to_vec(), 1));
}

/// Without the trap of the test above, `ulimit -f` sends SIGXFSZ, which ends a process by default.
#[test]
#[cfg(target_os = "linux")]
fn a_file_size_limit_leaves_no_unfinished_file() {
    let (folder, file) = folder_with(&one_tensor(&vec![3.0; 10_000]));
    let (out, plot) = (folder.path().join("out.safetensors"), folder.path().join("plot.svg"));
    for (option, to) in [("-o", &out), ("--plot", &plot)] {
        let args = [option.as_ref(), to.as_os_str(), file.as_os_str()];
        let output = prepared("ulimit -f 1", &args).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let message = str::from_utf8(&output.stderr).unwrap();
        assert!(message.contains("cannot write") && message.contains("File too large"), "{message}");
        assert_eq!(files(&folder), [&*file]);
    }
}

#[test]
#[cfg(unix)]
fn links_and_permissions_are_kept() {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    let (folder, file) = folder_with(&one_tensor(&[3.0, 4.0]));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    let link = folder.path().join("link");
    symlink(&file, &link).unwrap();
    clip_json(&file, &["--value", "1", "-o", link.to_str().unwrap()]);
    assert!(link.is_symlink(), "the link was replaced by a file");
    assert_eq!(fs::read(&file).unwrap(), one_tensor(&[1.0, 1.0]));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
}

/// Returns a command that runs a shell script and then clips a file.
#[cfg(unix)]
fn prepared(script: &str, args: &[&std::ffi::OsStr]) -> Command {
    let mut command = Command::new("sh");
    let gradclip = [env!("CARGO_BIN_EXE_gradclip"), "clip", "--max-norm=1", "--device=cpu", "--json"];
    command.args(["-c", &format!(r#"{script}; exec "$@""#), "sh"]).args(gradclip).args(args);
    command
}

/// Writes a sparse file of `elements` zeros, so that a run can be caught while it writes.
#[cfg(unix)]
fn long_file(path: &std::path::Path, elements: u64) {
    let header =
        format!(r#"{{"w":{{"dtype":"F32","shape":[{elements}],"data_offsets":[0,{}]}}}}"#, elements * 4);
    fs::write(path, crate::raw(&header, &[])).unwrap();
    let file = fs::OpenOptions::new().append(true).open(path).unwrap();
    file.set_len(8 + header.len() as u64 + elements * 4).unwrap();
}

/// Starts a run that replaces a private file, and waits until the unfinished file appears. Returns the process and that
/// file, or `None` if the run finished first.
#[cfg(unix)]
fn caught_writing(
    folder: &tempfile::TempDir,
    input: &std::path::Path,
    out: &std::path::Path,
) -> Option<(std::process::Child, std::path::PathBuf)> {
    caught_writing_after("umask 0", folder, input, out)
}

/// Does the same as [`caught_writing`], after running a shell script.
#[cfg(unix)]
fn caught_writing_after(
    script: &str,
    folder: &tempfile::TempDir,
    input: &std::path::Path,
    out: &std::path::Path,
) -> Option<(std::process::Child, std::path::PathBuf)> {
    use std::os::unix::fs::PermissionsExt as _;

    fs::write(out, b"old").unwrap();
    fs::set_permissions(out, fs::Permissions::from_mode(0o600)).unwrap();
    let args = ["-o".as_ref(), out.as_os_str(), input.as_os_str()];
    let mut child = prepared(script, &args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    while child.try_wait().unwrap().is_none() {
        if let Some(third) = files(folder).into_iter().find(|file| file != input && file != out) {
            return Some((child, third));
        }
    }
    None
}

#[test]
#[cfg(unix)]
fn an_interrupted_run_keeps_the_old_file() {
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::process::ExitStatusExt as _;

    let folder = tempfile::tempdir().unwrap();
    let [input, out] = ["in.safetensors", "out.safetensors"].map(|name| folder.path().join(name));
    let signals = [("INT", 2), ("TERM", 15), ("HUP", 1)];
    // The command inherits ignored signals.
    let obeyed = |(name, _): &(&str, i32)| !is_ignored(name) && (*name != "HUP" || cfg!(target_os = "linux"));
    for (name, signal) in signals.into_iter().filter(obeyed) {
        // Tries larger files until the signal arrives in time.
        let interrupted = (22..30).map(|log| 1 << log).any(|elements| {
            long_file(&input, elements);
            let Some((mut child, unfinished)) = caught_writing(&folder, &input, &out) else { return false };
            let mode = fs::metadata(&unfinished).map(|about| about.permissions().mode() & 0o777);
            assert!(
                mode.is_err() || mode.is_ok_and(|mode| mode == 0o600),
                "the unfinished file is readable by others"
            );
            assert!(
                Command::new("kill").args(["-s", name, &child.id().to_string()]).status().unwrap().success()
            );
            let status = child.wait().unwrap();
            assert_eq!(files(&folder), [&*input, &*out], "{name}: an unfinished file is left");
            if status.success() {
                return false;
            }
            assert_eq!(status.signal(), Some(signal), "{name}: {status}");
            true
        });
        assert!(interrupted, "{name}");
        assert_eq!(fs::read(&out).unwrap(), b"old", "{name}");
    }
}

/// Whether this process and its children ignore a signal, as under `nohup` or in the background of a script.
#[cfg(unix)]
fn is_ignored(signal: &str) -> bool {
    let script = format!(r#"trap "exit 1" {signal}; kill -s {signal} $$; exit 0"#);
    Command::new("sh").args(["-c", &script]).status().unwrap().success()
}

#[test]
#[cfg(target_os = "linux")]
fn an_ignored_signal_does_not_interrupt_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let [input, out] = ["in.safetensors", "out.safetensors"].map(|name| folder.path().join(name));
    let caught = (22..30).map(|log| 1 << log).any(|elements| {
        long_file(&input, elements);
        let ignoring = r#"trap "" INT HUP; umask 0"#;
        let Some((mut child, _)) = caught_writing_after(ignoring, &folder, &input, &out) else {
            return false;
        };
        for name in ["INT", "HUP"] {
            let _ = Command::new("kill").args(["-s", name, &child.id().to_string()]).status().unwrap();
        }
        let status = child.wait().unwrap();
        assert!(status.success(), "{status}");
        true
    });
    assert!(caught);
    assert_eq!(files(&folder), [&*input, &*out]);
}

/// Elements that were not measured must not be scaled.
#[test]
#[cfg(unix)]
fn an_input_that_changes_during_the_run_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let [input, out] = ["in.safetensors", "out.safetensors"].map(|name| folder.path().join(name));
    let caught = (22..30).map(|log| 1 << log).any(|elements| {
        long_file(&input, elements);
        let Some((child, _)) = caught_writing(&folder, &input, &out) else { return false };
        let writer = fs::OpenOptions::new().append(true).open(&input).unwrap();
        writer.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        let output = child.wait_with_output().unwrap();
        if output.status.success() {
            return false;
        }
        assert!(
            assert_fails(&output, "changed").contains("in.safetensors: the file changed while it was read")
        );
        true
    });
    assert!(caught);
    assert_eq!(files(&folder), [&*input, &*out]);
    assert_eq!(fs::read(&out).unwrap(), b"old");
}

#[test]
#[cfg(unix)]
fn a_failed_run_removes_its_output_folder() {
    let (folder, file) = folder_with(&one_tensor(&[3.0]));
    let (other, out) = (folder.path().join("other.safetensors"), folder.path().join("out"));
    fs::write(&other, crate::with_tensors(&[("v", &[4.0])])).unwrap();
    let args = ["-o".as_ref(), out.as_os_str(), file.as_os_str(), other.as_os_str()];
    let output = prepared(r#"trap "" XFSZ; ulimit -f 0"#, &args).output().unwrap();
    assert!(assert_fails(&output, "full disk").contains("cannot write"));
    assert_eq!(files(&folder), [file.clone(), other.clone()]);
    let output = prepared("true", &args).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(files(&folder), [file, other, out]);
}

#[test]
#[cfg(unix)]
fn a_new_file_obeys_the_umask() {
    use std::os::unix::fs::PermissionsExt as _;

    let (folder, file) = folder_with(&one_tensor(&[3.0]));
    for (umask, mode) in [("022", 0o644), ("077", 0o600)] {
        let out = folder.path().join(umask);
        let output = prepared(&format!("umask {umask}"), &["-o".as_ref(), out.as_os_str(), file.as_os_str()])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(fs::metadata(&out).unwrap().permissions().mode() & 0o777, mode, "{umask}");
    }
}

/// Only root can change the owner of a file, so the test needs root.
#[test]
#[cfg(unix)]
fn the_owner_is_kept() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};

    let (_folder, file) = folder_with(&one_tensor(&[3.0, 4.0]));
    if let Err(error) = chown(&file, Some(1234), Some(2345)) {
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
        return;
    }
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    clip_json(&file, &["--value", "1", "-o", file.to_str().unwrap()]);
    let about = fs::metadata(&file).unwrap();
    assert_eq!((about.uid(), about.gid(), about.mode() & 0o7777), (1234, 2345, 0o640));
    assert_eq!(fs::read(&file).unwrap(), one_tensor(&[1.0, 1.0]));
}

#[test]
#[cfg(unix)]
fn outputs_that_cannot_be_replaced_are_rejected() {
    use std::os::unix::fs::symlink;

    let (folder, file) = folder_with(&one_tensor(&[3.0]));
    let path = |name: &str| folder.path().join(name);
    symlink("nowhere", path("dangling")).unwrap();
    symlink("loop", path("loop")).unwrap();
    fs::write(path("one"), b"old").unwrap();
    fs::hard_link(path("one"), path("other")).unwrap();
    assert!(Command::new("mkfifo").arg(path("pipe")).status().unwrap().success());
    fs::write(path("flat"), b"old").unwrap();
    let before = files(&folder);
    let long = "x".repeat(300);
    let cases = [
        ("dangling", "symbolic link that cannot be resolved"),
        ("loop", "symbolic link that cannot be resolved"),
        ("one", "2 hard links"),
        ("pipe", "not a regular file"),
        ("new/", "does not name a file"),
        ("..", "does not name a file"),
        ("flat/new", "cannot write"),
        ("missing/new", "cannot write"),
        (&long, "cannot write"),
    ];
    for (name, words) in cases {
        // The missing input shows that the output is checked first.
        for file in [&file, &path("missing")] {
            let output = clip(file, &["--max-norm", "1", "--json", "-o", path(name).to_str().unwrap()]);
            let message = assert_fails(&output, name);
            assert!(message.contains(words) && message.contains("cannot write"), "{name}: {message}");
        }
        assert_eq!(files(&folder), before, "{name}");
    }
    assert_eq!(fs::read(path("other")).unwrap(), b"old");
}

/// Opening a pipe would block until a writer appears.
#[test]
#[cfg(unix)]
fn only_regular_files_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for input in [&*pipe, "/dev/null".as_ref(), folder.path()] {
        let message = assert_fails(&clip(input, &["--max-norm", "1"]), "input");
        assert!(message.contains("not a regular file"), "{message}");
    }
}
