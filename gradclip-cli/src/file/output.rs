//! Files that are written beside what they replace, and take its place when all of them are safely on disk.

use std::collections::HashSet;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Error, Result, bail, ensure};
use gradclip_measure::text;
use tempfile::NamedTempFile;

use super::signals::HeldSignals;

/// Of each write.
const BUFFER: usize = 1 << 20;
/// How the names of unfinished files begin.
const PREFIX: &str = ".gradclip-";

/// Where `-o` leads.
pub(crate) enum Output {
    File(Target),
    /// A folder, for what comes from several files.
    Folder(PathBuf),
}

impl Output {
    /// Fails where writing would, as far as that can be known before the input has been read.
    pub(crate) fn check(path: &Path, is_folder: bool) -> Result<Self> {
        if !is_folder {
            return Target::check(path).map(Self::File);
        }
        let about = || match fs::metadata(path) {
            Ok(about) => {
                ensure!(about.is_dir(), "several files need a folder, but it is not one");
                probe(path)
            }
            Err(error) if error.kind() == ErrorKind::NotFound && !path.is_symlink() => probe(parent(path)),
            Err(error) => Err(error.into()),
        };
        about().map(|_| Self::Folder(path.to_owned())).with_context(|| cannot_write(path))
    }

    /// The place of each of these files.
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
                        "{}: two names in {} lead to this file, and it can hold only one",
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

/// A file to be, and what it replaces.
pub(crate) struct Target {
    path: PathBuf,
    old: Option<Metadata>,
}

impl Target {
    pub(crate) fn check(path: &Path) -> Result<Self> {
        Self::find(path).with_context(|| cannot_write(path))
    }

    fn find(path: &Path) -> Result<Self> {
        let named = path.file_name().is_some() && !path.as_os_str().as_encoded_bytes().ends_with(b"/");
        ensure!(named, "it does not name a file");
        let target = match fs::symlink_metadata(path) {
            Ok(about) if about.is_symlink() => {
                // Behind the link, since the link itself would be replaced by a file.
                let path = fs::canonicalize(path).context("it is a symbolic link that leads nowhere")?;
                Self { old: Some(fs::metadata(&path)?), path }
            }
            Ok(about) => Self { path: path.to_owned(), old: Some(about) },
            Err(error) if error.kind() == ErrorKind::NotFound => Self { path: path.to_owned(), old: None },
            Err(error) => return Err(error.into()),
        };
        let new = probe(parent(&target.path))?;
        if let Some(old) = &target.old {
            ensure!(old.is_file(), "it is not a regular file");
            ensure!(!old.permissions().readonly(), "it is read-only");
            inherit_owner(&new, old)?;
        }
        Ok(target)
    }

    /// Puts a file of these bytes there.
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
            // Nobody may read what replaces a private file. A file that replaces none obeys the umask.
            #[cfg(unix)]
            if self.old.is_some() {
                use std::os::unix::fs::OpenOptionsExt as _;
                options.mode(0o600);
            }
            options.open(path).map(|file| BufWriter::with_capacity(BUFFER, file))
        };
        tempfile::Builder::new().prefix(PREFIX).make_in(parent(&self.path), create)
    }
}

/// Files that are being written. Those that have not taken their place are removed when this is dropped, also because of a
/// signal.
pub(crate) struct Writer {
    // The fields are dropped in this order: a signal that was held back ends the process.
    finished: Vec<(NamedTempFile<BufWriter<File>>, PathBuf)>,
    current: Option<(NamedTempFile<BufWriter<File>>, Target)>,
    rest: std::vec::IntoIter<Target>,
    _folder: Option<NewFolder>,
    signals: HeldSignals,
}

impl Writer {
    pub(crate) fn new(targets: Vec<Target>) -> Result<Self> {
        let signals = HeldSignals::hold().context("cannot handle signals")?;
        let folder = targets.first().map(|target| parent(&target.path).to_owned());
        let folder = folder.map(NewFolder::create).transpose()?.flatten();
        Ok(Self { finished: Vec::new(), current: None, rest: targets.into_iter(), _folder: folder, signals })
    }

    /// Begins the next file.
    pub(super) fn begin(&mut self) -> Result<()> {
        let target = self.rest.next().context("there is no further file to write")?;
        let file = target.create().with_context(|| cannot_write(&target.path))?;
        self.current = Some((file, target));
        Ok(())
    }

    /// Appends to the file that was begun.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.signals.check()?;
        let Some((file, target)) = &mut self.current else { bail!("no file has been begun") };
        file.write_all(bytes).with_context(|| cannot_write(&target.path))
    }

    /// Ends the file that was begun, and waits until it is on disk.
    pub(super) fn end(&mut self) -> Result<()> {
        let Some((mut file, target)) = self.current.take() else { bail!("no file has been begun") };
        let mut finish = || {
            file.flush()?;
            let written = file.as_file().get_ref();
            if let Some(old) = &target.old {
                inherit_owner(written, old)?;
                // After the owner: another owner takes some of the mode away.
                written.set_permissions(old.permissions())?;
            }
            written.sync_all()?;
            Ok::<_, Error>(())
        };
        finish().with_context(|| cannot_write(&target.path))?;
        self.finished.push((file, target.path));
        Ok(())
    }

    /// Puts all files into their places.
    pub(super) fn commit(mut self) -> Result<()> {
        self.signals.check()?;
        let (all, mut folders) = (self.finished.len(), Vec::new());
        for (done, (file, path)) in self.finished.drain(..).enumerate() {
            let place = || {
                if done > 0 {
                    format!("{}, after {done} of {all} files were replaced", cannot_write(&path))
                } else {
                    cannot_write(&path)
                }
            };
            file.persist(&path).with_context(place)?;
            let folder = parent(&path).to_owned();
            if folders.last() != Some(&folder) {
                folders.push(folder);
            }
        }
        folders.iter().try_for_each(|folder| {
            sync(folder).with_context(|| {
                format!(
                    "the output is written, but its folder {} cannot be synced to disk",
                    text::path(folder)
                )
            })
        })
    }
}

/// A folder for the output, removed unless something is in it.
struct NewFolder(PathBuf);

impl NewFolder {
    /// None if it exists.
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
        // If it is not empty it stays.
        let _ = fs::remove_dir(&self.0);
    }
}

/// Writes a directory entry to disk, where there is a way to.
fn sync(folder: &Path) -> io::Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        // Some file systems cannot, and some folders may be written but not read.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::InvalidInput | ErrorKind::PermissionDenied | ErrorKind::Unsupported
            ) =>
        {
            log::debug!("the folder {} was not synced to disk: {error}", folder.display());
            Ok(())
        }
        synced => synced,
    }
}

/// A file without a name, to see whether one can be made here; so that an interrupted run leaves nothing behind.
fn probe(folder: &Path) -> Result<File> {
    Ok(tempfile::tempfile_in(folder)?)
}

/// Gives a new file the owner of the one that it replaces, or fails; and fails if that has names that it would lose.
#[cfg(unix)]
fn inherit_owner(new: &File, old: &Metadata) -> Result<()> {
    use std::os::unix::fs::{MetadataExt as _, fchown};

    let links = old.nlink();
    ensure!(
        links <= 1,
        "it has {links} names (hard links), and only one would be replaced; remove it first, or write elsewhere"
    );
    let (uid, gid) = (old.uid(), old.gid());
    let about = new.metadata()?;
    if (about.uid(), about.gid()) != (uid, gid) {
        let who =
            || format!("it belongs to user {uid} and group {gid}, and a new file cannot be given to them");
        fchown(new, Some(uid), Some(gid)).with_context(who)?;
    }
    Ok(())
}

#[cfg(not(unix))]
#[expect(clippy::unnecessary_wraps, reason = "it can fail elsewhere")]
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
