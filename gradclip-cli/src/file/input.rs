//! Several files that hold one set of gradients: given one by one, or by the index of a model in several files.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, Error, Result, bail, ensure};
use gradclip_measure::text::{self, quoted};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::header::{Header, TensorInfo};

/// No index is longer, so that no file can ask for all memory.
const MAX_INDEX: u64 = 100_000_000;

/// The files that the arguments name.
pub(crate) struct Inputs {
    paths: Vec<PathBuf>,
    index: Option<Index>,
}

/// The index of a model in several files: which tensor is in which.
struct Index {
    path: PathBuf,
    /// Written back unchanged.
    bytes: Vec<u8>,
    /// The files beside it, in order.
    files: Vec<String>,
    /// For each tensor, which of them.
    file_of: HashMap<String, usize>,
}

impl Inputs {
    /// Reads an index, if one is given, but none of the files of gradients.
    pub(crate) fn new(paths: &[PathBuf]) -> Result<Self> {
        let is_index = |path: &&PathBuf| {
            path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"))
        };
        let Some(path) = paths.iter().find(is_index) else {
            return Ok(Self { paths: paths.to_vec(), index: None });
        };
        let index = Index::read(path, paths.len()).with_context(|| cannot_read(path))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        Ok(Self { paths: index.files.iter().map(|file| folder.join(file)).collect(), index: Some(index) })
    }

    /// The files of gradients.
    pub(crate) fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Whether the output is a folder.
    pub(crate) fn are_several(&self) -> bool {
        self.paths.len() != 1 || self.index.is_some()
    }

    /// Reads and checks the headers of all files.
    pub(crate) fn open(self) -> Result<Files> {
        let Self { paths, index } = self;
        let open = |path: &PathBuf| Source::open(path).with_context(|| cannot_read(path));
        let files = paths.iter().map(open).collect::<Result<Vec<_>>>()?;
        // A tensor that is given twice would count twice.
        let mut file_of = HashMap::new();
        for (file, (source, entries)) in files.iter().enumerate() {
            for entry in entries {
                if let Some(other) = file_of.insert(&entry.name[..], file) {
                    let other: &Source = &files[other].0;
                    bail!(
                        "tensor {} is in {} and in {}, but it may be given only once",
                        quoted(&entry.name),
                        other.name(),
                        source.name()
                    );
                }
            }
        }
        if let Some(index) = &index {
            index.check(&file_of).with_context(|| cannot_read(&index.path))?;
        }
        let index = index.map(|index| (index.path, index.bytes));
        Ok(Files { files, index })
    }
}

impl Index {
    fn read(path: &Path, inputs: usize) -> Result<Self> {
        let (mut file, about) = open(path)?;
        ensure!(inputs == 1, "an index names all of its files, so no other file may be given with it");
        ensure!(
            about.len() <= MAX_INDEX,
            "it has {} bytes, but an index may have at most {MAX_INDEX}",
            about.len()
        );
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let IndexFile { weight_map: Some(WeightMap(weights)) } =
            serde_json::from_slice(&bytes).context("it is not the index of a sharded model")?
        else {
            bail!("it is not the index of a sharded model: it has no weight_map");
        };
        ensure!(!weights.is_empty(), "its weight_map is empty");
        let mut files: Vec<String> = weights.iter().map(|(_, file)| file.clone()).collect();
        files.sort();
        files.dedup();
        for file in &files {
            // A path would lead out of the folder, and out of that of the output.
            let is_name = Path::new(file).file_name() == Some(OsStr::new(file));
            ensure!(
                is_name,
                "its weight_map names {}, but it may name only files in its own folder, without a path",
                quoted(file)
            );
        }
        let mut file_of: HashMap<String, usize> = HashMap::with_capacity(weights.len());
        for (tensor, file) in weights {
            let file = files.binary_search(&file).unwrap_or_default();
            if let Some((tensor, _)) = file_of.get_key_value(&tensor[..]) {
                bail!("its weight_map has tensor {} twice", quoted(tensor));
            }
            file_of.insert(tensor, file);
        }
        Ok(Self { path: path.to_owned(), bytes, files, file_of })
    }

    /// Checks that each tensor is in the file that the index names, and that there are no others.
    fn check(&self, found: &HashMap<&str, usize>) -> Result<()> {
        for (tensor, file) in &self.file_of {
            let file = &self.files[*file];
            match found.get(&tensor[..]).map(|&found| &self.files[found]) {
                None => bail!(
                    "its weight_map places tensor {} in {}, but no file has that tensor",
                    quoted(tensor),
                    quoted(file)
                ),
                Some(found) => ensure!(
                    found == file,
                    "its weight_map places tensor {} in {}, but the tensor is in {}",
                    quoted(tensor),
                    quoted(file),
                    quoted(found)
                ),
            }
        }
        for (&tensor, &file) in found {
            let is_listed = self.file_of.contains_key(tensor);
            ensure!(
                is_listed,
                "{} has tensor {}, but the weight_map does not list it",
                quoted(&self.files[file]),
                quoted(tensor)
            );
        }
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(expecting = "an object with a weight_map")]
struct IndexFile {
    weight_map: Option<WeightMap>,
}

/// In the order of the file, and with what is there twice.
struct WeightMap(Vec<(String, String)>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;

        impl<'de> Visitor<'de> for Pairs {
            type Value = WeightMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a weight_map from names of tensors to names of files")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
                let mut pairs = Vec::new();
                while let Some(tensor) = map.next_key::<String>()? {
                    let file = map.next_value().map_err(|error| {
                        A::Error::custom(format_args!("the file of {}: {error}", quoted(&tensor)))
                    })?;
                    pairs.push((tensor, file));
                }
                Ok(WeightMap(pairs))
            }
        }

        deserializer.deserialize_map(Pairs)
    }
}

/// Files whose headers have been read.
pub(crate) struct Files {
    pub(super) files: Vec<(Source, Vec<TensorInfo>)>,
    /// Where the index is, if there is one, and its bytes.
    pub(super) index: Option<(PathBuf, Vec<u8>)>,
}

impl Files {
    /// The names of all tensors, file by file, in the order of the data.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.files.iter().flat_map(|(_, entries)| entries.iter().map(|entry| &entry.name[..]))
    }
}

/// A file whose data is yet to be read.
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) file: File,
    len: u64,
    modified: Option<SystemTime>,
    /// Where the data begins.
    pub(super) data: u64,
}

impl Source {
    fn open(path: &Path) -> Result<(Self, Vec<TensorInfo>)> {
        let (mut file, about) = open(path)?;
        let Header { data, tensors } = Header::read(&mut file, about.len())?;
        let (len, modified) = (about.len(), about.modified().ok());
        Ok((Self { path: path.to_owned(), file, len, modified, data }, tensors))
    }

    fn name(&self) -> String {
        text::path(&self.path)
    }

    /// Fails if somebody has written to the file since it was opened.
    pub(super) fn check_unchanged(&self) -> Result<()> {
        let check = || {
            let about = self.file.metadata()?;
            let same = (about.len(), about.modified().ok()) == (self.len, self.modified);
            ensure!(same, "it was changed while it was read");
            Ok::<_, Error>(())
        };
        check().with_context(|| cannot_read(&self.path))
    }
}

fn open(path: &Path) -> Result<(File, fs::Metadata)> {
    // Before it is opened: a pipe would wait for somebody to write.
    ensure!(fs::metadata(path)?.is_file(), "it is not a regular file");
    let file = File::open(path)?;
    let about = file.metadata()?;
    Ok((file, about))
}

pub(super) fn cannot_read(path: &Path) -> String {
    format!("cannot read {}", text::path(path))
}
