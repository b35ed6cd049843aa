//! Output files: written beside the files that they replace, and renamed over them once all are on disk.

use std::collections::HashSet;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Error, Result, bail, ensure};
use gradclip_measure::text;
use tempfile::NamedTempFile;

use super::signals::HeldSignals;

/// The buffer size of a writer, in bytes.
const BUFFER_BYTES: usize = 1 << 20;
/// The prefix of the names of unfinished files.
const PREFIX: &str = ".gradclip-";

/// The argument of `-o`.
pub(crate) enum Output {
    File(Target),
    /// A folder, for several input files.
    Folder(PathBuf),
}

impl Output {
    /// Checks, before any input is read, that the output can be written.
    pub(crate) fn check(path: &Path, is_folder: bool) -> Result<Self> {
        if !is_folder {
            return Target::check(path).map(Self::File);
        }
        let check = || match fs::metadata(path) {
            Ok(metadata) => {
                ensure!(
                    metadata.is_dir(),
                    "several input files need an output folder, but this is not a folder"
                );
                probe(path)
            }
            Err(error) if error.kind() == ErrorKind::NotFound && !path.is_symlink() => probe(parent(path)),
            Err(error) => Err(error.into()),
        };
        check().map(|_| Self::Folder(path.to_owned())).with_context(|| cannot_write(path))
    }

    /// Returns the target of each file name.
    pub(super) fn targets(self, names: &[&Path]) -> Result<Vec<Target>> {
        match self {
            Self::File(target) => Ok(vec![target]),
            Self::Folder(folder) if folder.exists() => {
                let targets = names.iter().map(|name| Target::check(&folder.join(name)));
                let targets = targets.collect::<Result<Vec<_>>>()?;
                let mut files = HashSet::new();
                for target in targets.iter().filter(|target| target.old.is_some()) {
                    let file = fs::canonicalize(&target.path).with_context(|| cannot_write(&target.path))?;
                    let file = files.replace(file);
                    ensure!(
                        file.is_none(),
                        "{}: two names in {} lead to this file",
                        cannot_write(&target.path),
                        text::path(&folder)
                    );
                }
                Ok(targets)
            }
            Self::Folder(folder) => {
                let target = |name: &&Path| Target { path: folder.join(name), old: None };
                Ok(names.iter().map(target).collect())
            }
        }
    }
}

/// The path of an output file, and the metadata of the file that it replaces.
pub(crate) struct Target {
    path: PathBuf,
    old: Option<Metadata>,
}

impl Target {
    /// Checks that a file at `path` can be written.
    pub(crate) fn check(path: &Path) -> Result<Self> {
        Self::find(path).with_context(|| cannot_write(path))
    }

    fn find(path: &Path) -> Result<Self> {
        let named = path.file_name().is_some() && !path.as_os_str().as_encoded_bytes().ends_with(b"/");
        ensure!(named, "the path does not name a file");
        let target = match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_symlink() => {
                // Links are resolved, because renaming would replace the link itself.
                let path =
                    fs::canonicalize(path).context("the path is a symbolic link that cannot be resolved")?;
                Self { old: Some(fs::metadata(&path)?), path }
            }
            Ok(metadata) => Self { path: path.to_owned(), old: Some(metadata) },
            Err(error) if error.kind() == ErrorKind::NotFound => Self { path: path.to_owned(), old: None },
            Err(error) => return Err(error.into()),
        };
        let new = probe(parent(&target.path))?;
        if let Some(old) = &target.old {
            ensure!(old.is_file(), "not a regular file");
            ensure!(!old.permissions().readonly(), "the file is read-only");
            inherit_owner(&new, old)?;
        }
        Ok(target)
    }

    /// Writes `bytes` to the target.
    pub(crate) fn replace(self, bytes: &[u8]) -> Result<()> {
        let mut writer = Writer::new(vec![self])?;
        writer.begin()?;
        writer.write(bytes)?;
        writer.end()?;
        writer.commit()
    }

    fn create(&self) -> io::Result<NamedTempFile<BufWriter<File>>> {
        let create = |path: &Path| {
            let mut options = OpenOptions::new();
            options.write(true).create_new(true);
            // A replacement stays private until it gets the old file's mode. A new file obeys the umask.
            #[cfg(unix)]
            if self.old.is_some() {
                use std::os::unix::fs::OpenOptionsExt as _;
                options.mode(0o600);
            }
            options.open(path).map(|file| BufWriter::with_capacity(BUFFER_BYTES, file))
        };
        tempfile::Builder::new().prefix(PREFIX).make_in(parent(&self.path), create)
    }
}

/// Writes the output files. Dropping it removes all files that have not been committed, also after a signal.
pub(crate) struct Writer {
    // The fields are dropped in this order: a pending signal ends the process last.
    finished: Vec<(NamedTempFile<BufWriter<File>>, PathBuf)>,
    current: Option<(NamedTempFile<BufWriter<File>>, Target)>,
    rest: std::vec::IntoIter<Target>,
    _folder: Option<NewFolder>,
    signals: HeldSignals,
}

impl Writer {
    /// Creates the output folder if needed, and holds back signals.
    pub(crate) fn new(targets: Vec<Target>) -> Result<Self> {
        let signals = HeldSignals::hold().context("cannot handle signals")?;
        let folder = targets.first().map(|target| parent(&target.path).to_owned());
        let folder = folder.map(NewFolder::create).transpose()?.flatten();
        Ok(Self { finished: Vec::new(), current: None, rest: targets.into_iter(), _folder: folder, signals })
    }

    /// Begins the next file.
    pub(super) fn begin(&mut self) -> Result<()> {
        let target = self.rest.next().context("all files have been written")?;
        let file = target.create().with_context(|| cannot_write(&target.path))?;
        self.current = Some((file, target));
        Ok(())
    }

    /// Appends to the current file.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.signals.check()?;
        let Some((file, target)) = &mut self.current else { bail!("no file has been begun") };
        file.write_all(bytes).with_context(|| cannot_write(&target.path))
    }

    /// Finishes the current file and waits until it is on disk.
    pub(super) fn end(&mut self) -> Result<()> {
        let Some((mut file, target)) = self.current.take() else { bail!("no file has been begun") };
        let mut finish = || {
            file.flush()?;
            let written = file.as_file().get_ref();
            if let Some(old) = &target.old {
                inherit_owner(written, old)?;
                // Set after the owner, because changing the owner clears mode bits.
                written.set_permissions(old.permissions())?;
            }
            written.sync_all()?;
            Ok::<_, Error>(())
        };
        finish().with_context(|| cannot_write(&target.path))?;
        self.finished.push((file, target.path));
        Ok(())
    }

    /// Renames all files to their targets.
    pub(super) fn commit(mut self) -> Result<()> {
        self.signals.check()?;
        let (all, mut folders) = (self.finished.len(), Vec::new());
        for (done, (file, path)) in self.finished.drain(..).enumerate() {
            let context = || {
                if done > 0 {
                    format!("{}, after {done} of {all} files were replaced", cannot_write(&path))
                } else {
                    cannot_write(&path)
                }
            };
            file.persist(&path).with_context(context)?;
            let folder = parent(&path).to_owned();
            if folders.last() != Some(&folder) {
                folders.push(folder);
            }
        }
        folders.iter().try_for_each(|folder| {
            sync(folder).with_context(|| {
                format!("the output is written, but folder {} cannot be synced to disk", text::path(folder))
            })
        })
    }
}

/// A new output folder. Dropping it removes the folder if it is empty.
struct NewFolder(PathBuf);

impl NewFolder {
    /// Creates the folder, or returns `None` if it exists.
    fn create(path: PathBuf) -> Result<Option<Self>> {
        match fs::create_dir(&path) {
            Ok(()) => Ok(Some(Self(path))),
            Err(_) if path.is_dir() => Ok(None),
            Err(error) => Err(error).with_context(|| cannot_write(&path)),
        }
    }
}

impl Drop for NewFolder {
    fn drop(&mut self) {
        // Fails if the folder is not empty, as intended.
        let _ = fs::remove_dir(&self.0);
    }
}

/// Syncs a folder to disk, where the system supports it.
fn sync(folder: &Path) -> io::Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        // Some file systems do not support it, and some folders are writable but not readable.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::InvalidInput | ErrorKind::PermissionDenied | ErrorKind::Unsupported
            ) =>
        {
            log::debug!("folder {} was not synced to disk: {error}", folder.display());
            Ok(())
        }
        synced => synced,
    }
}

/// Checks that files can be created in `folder`. The file has no name, so that an interrupted run leaves nothing
/// behind.
fn probe(folder: &Path) -> Result<File> {
    Ok(tempfile::tempfile_in(folder)?)
}

/// Gives a new file the owner of the file that it replaces. Fails if it cannot, or if the old file has several hard
/// links.
#[cfg(unix)]
fn inherit_owner(new: &File, old: &Metadata) -> Result<()> {
    use std::os::unix::fs::{MetadataExt as _, fchown};

    let links = old.nlink();
    ensure!(
        links <= 1,
        "the file has {links} hard links, and only one would be replaced; remove it first, or choose another output"
    );
    let (uid, gid) = (old.uid(), old.gid());
    let metadata = new.metadata()?;
    if (metadata.uid(), metadata.gid()) != (uid, gid) {
        let who = || {
            format!(
                "the file belongs to user {uid} and group {gid}, but a new file cannot be given that owner"
            )
        };
        fchown(new, Some(uid), Some(gid)).with_context(who)?;
    }
    Ok(())
}

#[cfg(not(unix))]
#[expect(clippy::unnecessary_wraps, reason = "it can fail on Unix")]
fn inherit_owner(_: &File, _: &Metadata) -> Result<()> {
    Ok(())
}

fn parent(path: &Path) -> &Path {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

fn cannot_write(path: &Path) -> String {
    format!("cannot write {}", text::path(path))
}
