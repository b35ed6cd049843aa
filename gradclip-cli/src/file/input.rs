//! Input files: one set of gradients, given as files or as the index of a sharded model.

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

/// The maximum size of an index in bytes, which bounds its memory.
const MAX_INDEX_BYTES: u64 = 100_000_000;

/// The input files that the arguments name.
pub(crate) struct Inputs {
    paths: Vec<PathBuf>,
    index: Option<ShardIndex>,
}

/// The index of a sharded model, which maps tensors to files.
struct ShardIndex {
    path: PathBuf,
    /// The bytes of the index, which are copied to the output.
    bytes: Vec<u8>,
    /// The names of the shards, sorted.
    files: Vec<String>,
    /// The index into `files` for each tensor.
    file_of: HashMap<String, usize>,
}

impl Inputs {
    /// Reads the index, if one is given, but no gradient file.
    pub(crate) fn new(paths: &[PathBuf]) -> Result<Self> {
        let is_index = |path: &&PathBuf| {
            path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"))
        };
        let Some(path) = paths.iter().find(is_index) else {
            return Ok(Self { paths: paths.to_vec(), index: None });
        };
        let index = ShardIndex::read(path, paths.len()).with_context(|| cannot_read(path))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        Ok(Self { paths: index.files.iter().map(|file| folder.join(file)).collect(), index: Some(index) })
    }

    /// Returns the paths of the gradient files.
    pub(crate) fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Whether the output is a folder: there are several files, or an index.
    pub(crate) fn need_folder(&self) -> bool {
        self.paths.len() != 1 || self.index.is_some()
    }

    /// Reads and validates the headers of all files.
    pub(crate) fn open(self) -> Result<Files> {
        let Self { paths, index } = self;
        let open = |path: &PathBuf| Source::open(path).with_context(|| cannot_read(path));
        let files = paths.iter().map(open).collect::<Result<Vec<_>>>()?;
        // A duplicate tensor would count twice in the norm.
        let mut file_of = HashMap::new();
        for (file, (source, entries)) in files.iter().enumerate() {
            for entry in entries {
                if let Some(other) = file_of.insert(&entry.name[..], file) {
                    let other: &Source = &files[other].0;
                    bail!(
                        "tensor {} is in both {} and {}, but may appear only once",
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

impl ShardIndex {
    fn read(path: &Path, inputs: usize) -> Result<Self> {
        let (mut file, metadata) = open(path)?;
        ensure!(inputs == 1, "an index names all its files, so no other input is allowed with it");
        ensure!(
            metadata.len() <= MAX_INDEX_BYTES,
            "the index has {} bytes, but at most {MAX_INDEX_BYTES} are allowed",
            metadata.len()
        );
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let IndexFile { weight_map: Some(WeightMap(weights)) } =
            serde_json::from_slice(&bytes).context("not the index of a sharded model")?
        else {
            bail!("not the index of a sharded model: there is no weight_map");
        };
        ensure!(!weights.is_empty(), "the weight_map is empty");
        let mut files: Vec<String> = weights.iter().map(|(_, file)| file.clone()).collect();
        files.sort();
        files.dedup();
        for file in &files {
            // A path could lead out of the input and output folders.
            let is_name = Path::new(file).file_name() == Some(OsStr::new(file));
            ensure!(
                is_name,
                "the weight_map names {}, but it may name only files in the folder of the index, without a path",
                quoted(file)
            );
        }
        let mut file_of: HashMap<String, usize> = HashMap::with_capacity(weights.len());
        for (tensor, file) in weights {
            let file = files.binary_search(&file).unwrap_or_default();
            if let Some((tensor, _)) = file_of.get_key_value(&tensor[..]) {
                bail!("the weight_map has tensor {} twice", quoted(tensor));
            }
            file_of.insert(tensor, file);
        }
        Ok(Self { path: path.to_owned(), bytes, files, file_of })
    }

    /// Checks that the files hold exactly the tensors of the index, each in the named file.
    fn check(&self, file_of_found: &HashMap<&str, usize>) -> Result<()> {
        for (tensor, file) in &self.file_of {
            let file = &self.files[*file];
            match file_of_found.get(&tensor[..]).map(|&file_of_found| &self.files[file_of_found]) {
                None => bail!(
                    "the weight_map places tensor {} in {}, but no file has that tensor",
                    quoted(tensor),
                    quoted(file)
                ),
                Some(file_of_found) => ensure!(
                    file_of_found == file,
                    "the weight_map places tensor {} in {}, but the tensor is in {}",
                    quoted(tensor),
                    quoted(file),
                    quoted(file_of_found)
                ),
            }
        }
        for (&tensor, &file) in file_of_found {
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

/// The entries of a weight map in file order, including duplicates.
struct WeightMap(Vec<(String, String)>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;

        impl<'de> Visitor<'de> for Pairs {
            type Value = WeightMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a weight_map from tensor names to file names")
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

/// The input files with their parsed headers.
pub(crate) struct Files {
    pub(super) files: Vec<(Source, Vec<TensorInfo>)>,
    /// The path and bytes of the index, if there is one.
    pub(super) index: Option<(PathBuf, Vec<u8>)>,
}

impl Files {
    /// Returns the names of all tensors, file by file, in the order of the data.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.files.iter().flat_map(|(_, entries)| entries.iter().map(|entry| &entry.name[..]))
    }
}

/// An open gradient file.
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) file: File,
    len: u64,
    modified: Option<SystemTime>,
    /// The offset of the data, in bytes.
    pub(super) data: u64,
}

impl Source {
    fn open(path: &Path) -> Result<(Self, Vec<TensorInfo>)> {
        let (mut file, metadata) = open(path)?;
        let Header { data, tensors } = Header::read(&mut file, metadata.len())?;
        let (len, modified) = (metadata.len(), metadata.modified().ok());
        Ok((Self { path: path.to_owned(), file, len, modified, data }, tensors))
    }

    fn name(&self) -> String {
        text::path(&self.path)
    }

    /// Fails if the file has changed since it was opened.
    pub(super) fn check_unchanged(&self) -> Result<()> {
        let check = || {
            let metadata = self.file.metadata()?;
            let same = (metadata.len(), metadata.modified().ok()) == (self.len, self.modified);
            ensure!(same, "the file changed while it was read");
            Ok::<_, Error>(())
        };
        check().with_context(|| cannot_read(&self.path))
    }
}

fn open(path: &Path) -> Result<(File, fs::Metadata)> {
    // Checked before opening, because opening a pipe blocks until another process writes to it.
    ensure!(fs::metadata(path)?.is_file(), "not a regular file");
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    Ok((file, metadata))
}

pub(super) fn cannot_read(path: &Path) -> String {
    format!("cannot read {}", text::path(path))
}
