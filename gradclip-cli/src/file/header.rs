//! Parses and validates the header of a `.safetensors` file.
//!
//! The header is parsed entry by entry: errors name the tensor and the values, and memory use stays proportional to the
//! header's length.

use std::collections::HashSet;
use std::fmt::{self, Display};
use std::fs::File;
use std::io::{self, Read as _};
use std::ops::Range;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use gradclip_measure::text::{WIDTH, quoted, shortened};
use safetensors::Dtype;
use serde::de::value::{Error as ValueError, StrDeserializer};
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error, IgnoredAny, IntoDeserializer, MapAccess, SeqAccess,
    Visitor,
};
use serde_json::error::Category;

/// The format's maximum header length. A corrupt length cannot allocate more.
const MAX_LEN: u64 = 100_000_000;
/// The maximum number of tensors: ten times that of the largest models.
const MAX_TENSORS: usize = 1 << 20;
/// The maximum number of dimensions of all shapes together.
const MAX_DIMENSIONS: usize = 1 << 22;
/// The bytes of the header's length field.
const LEN_BYTES: u64 = size_of::<u64>() as u64;
const METADATA: &str = "__metadata__";

/// A valid header: its tensors cover every byte of the data exactly once.
pub(super) struct Header {
    /// The offset of the data in the file, in bytes.
    pub(super) data: u64,
    /// The tensors, in the order of the data.
    pub(super) tensors: Vec<TensorInfo>,
}

/// The header's entry of a tensor.
pub(super) struct TensorInfo {
    pub(super) name: String,
    pub(super) dtype: Box<str>,
    pub(super) shape: Vec<u64>,
    /// The byte range, relative to the start of the data.
    pub(super) data_offsets: Range<u64>,
}

impl Header {
    /// Reads and validates the header of a file of `file_len` bytes.
    pub(super) fn read(file: &mut File, file_len: u64) -> Result<Self> {
        let mut start = Vec::with_capacity(SIGNATURE_BYTES);
        file.take(SIGNATURE_BYTES as u64).read_to_end(&mut start)?;
        let (header, data) = match Self::read_json(file, &start, file_len) {
            Ok(read) => read,
            Err(error) => match other_format(&start) {
                Some(format) => bail!("the file is not a .safetensors file but {format}"),
                None => return Err(error),
            },
        };
        let tensors = check(header, file_len - data)?;
        Ok(Self { data, tensors })
    }

    /// Returns the entries and the offset of the data.
    fn read_json(file: &mut File, start: &[u8], file_len: u64) -> Result<(Vec<TensorInfo>, u64)> {
        let (len, read) = start.split_first_chunk().with_context(|| {
            format!("not a .safetensors file: the file has {file_len} bytes, but the header's length alone takes {LEN_BYTES}")
        })?;
        let (len, rest) = (u64::from_le_bytes(*len), file_len.saturating_sub(LEN_BYTES));
        ensure!(
            len <= rest.min(MAX_LEN),
            "damaged, or not a .safetensors file: the first {LEN_BYTES} bytes announce a header of {len} bytes, but {rest} bytes follow, \
             and a header may have at most {MAX_LEN} bytes"
        );
        let json = super::zeros(usize::try_from(len)?);
        let mut json = json.with_context(|| format!("out of memory for the header ({len} bytes)"))?;
        let known = read.len().min(json.len());
        json[..known].copy_from_slice(&read[..known]);
        file.read_exact(&mut json[known..]).map_err(read_error)?;
        let entries: HeaderEntries = serde_json::from_slice(&json).map_err(json_error)?;
        Ok((entries.0, LEN_BYTES + len))
    }
}

/// The number of leading bytes that identify other formats.
const SIGNATURE_BYTES: usize = 64;

/// Identifies formats that users mistake for `.safetensors` by the first bytes of a file.
fn other_format(start: &[u8]) -> Option<&'static str> {
    const FORMATS: [(&[u8], &str); 11] = [
        (b"version https://git-lfs", "a Git LFS pointer; `git lfs pull` fetches the file"),
        (b"PK\x03\x04", "a zip archive, as torch.save and numpy.savez write"),
        (b"\x80\x02", PICKLE),
        (b"\x80\x03", PICKLE),
        (b"\x80\x04", PICKLE),
        (b"\x80\x05", PICKLE),
        (b"\x93NUMPY", "a NumPy array"),
        (b"GGUF", "a GGUF file"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"\x1f\x8b", "compressed by gzip"),
        (b"\x28\xb5\x2f\xfd", "compressed by zstd"),
    ];
    const PICKLE: &str = "a Python pickle, as older versions of torch.save write";
    // A header's length can begin with the bytes of any signature. Its high bytes are 0, and `{` follows.
    if start.get(5..9) == Some(b"\0\0\0{") {
        return None;
    }
    if let Some((_, format)) = FORMATS.iter().find(|(signature, _)| start.starts_with(signature)) {
        return Some(format);
    }
    let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start().to_ascii_lowercase();
    let begins = |with: &str| text.starts_with(with.as_bytes());
    if begins("<!doctype html") || begins("<html") || begins("<head") {
        Some("an HTML page, as a failed download leaves behind")
    } else if begins("<?xml") {
        Some("an XML document")
    } else if begins("{") && !start.contains(&0) {
        Some("JSON; if it is the index of a sharded model, its name must end in .json")
    } else {
        None
    }
}

fn read_error(error: io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => anyhow!("the file was truncated while it was read"),
        _ => error.into(),
    }
}

fn json_error(error: serde_json::Error) -> anyhow::Error {
    let what = match error.classify() {
        Category::Data => "the header is damaged",
        Category::Io | Category::Syntax | Category::Eof => "the header is not valid JSON",
    };
    anyhow::Error::new(error).context(what)
}

/// Validates names, sizes and offsets, and sorts the tensors in the order of the data.
fn check(mut tensors: Vec<TensorInfo>, data: u64) -> Result<Vec<TensorInfo>> {
    ensure!(!tensors.is_empty(), "the file has no tensors");
    let mut names = HashSet::with_capacity(tensors.len());
    for tensor in &tensors {
        ensure!(names.insert(&tensor.name[..]), "the header has tensor {} twice", quoted(&tensor.name));
        tensor.check()?;
    }
    // Empty tensors may share an offset.
    tensors.sort_by(|a, b| {
        (a.data_offsets.start, a.data_offsets.end, &a.name).cmp(&(
            b.data_offsets.start,
            b.data_offsets.end,
            &b.name,
        ))
    });
    let mut end = 0;
    let mut before: Option<&TensorInfo> = None;
    for tensor in &tensors {
        let TensorInfo { name, data_offsets, .. } = tensor;
        let name = quoted(name);
        if data_offsets.start > end {
            bail!(
                "bytes {end} to {} of the data, before tensor {name}, belong to no tensor",
                data_offsets.start
            );
        }
        if let Some(before) = before.filter(|before| data_offsets.start < before.data_offsets.end) {
            bail!(
                "tensors {} and {name} overlap: their data_offsets are {} and {}",
                quoted(&before.name),
                before.offsets(),
                tensor.offsets()
            );
        }
        end = data_offsets.end;
        before = Some(tensor);
    }
    ensure!(end == data, "the header describes {end} bytes of tensors, but {data} bytes follow");
    Ok(tensors)
}

impl TensorInfo {
    /// Checks that the data offsets span the bytes that shape and dtype require.
    fn check(&self) -> Result<()> {
        let Self { name, dtype, shape, data_offsets } = self;
        let name = quoted(name);
        ensure!(
            data_offsets.start <= data_offsets.end,
            "tensor {name} ends before it begins: its data_offsets are {}",
            self.offsets()
        );
        // The size of an unknown dtype is unknown.
        let Ok(known) = known_dtype(dtype) else { return Ok(()) };
        let shown = shortened(&format!("{shape:?}"), WIDTH);
        let bits =
            shape.iter().try_fold(known.bitsize() as u64, |bits, dimension| bits.checked_mul(*dimension));
        // A dimension of 0 makes the tensor empty, even if the product of the others overflows.
        let bits = if shape.contains(&0) { Some(0) } else { bits };
        let bits =
            bits.with_context(|| format!("tensor {name}: the size of its shape {shown} overflows 64 bits"))?;
        let len = data_offsets.end - data_offsets.start;
        ensure!(
            bits.is_multiple_of(8) && bits / 8 == len,
            "tensor {name}: shape {shown} of {dtype} requires {} bytes, but data_offsets {} span {len} bytes",
            bits.div_ceil(8),
            self.offsets()
        );
        Ok(())
    }

    fn offsets(&self) -> String {
        format!("[{}, {}]", self.data_offsets.start, self.data_offsets.end)
    }
}

fn known_dtype(name: &str) -> Result<Dtype, ValueError> {
    let name: StrDeserializer<'_, ValueError> = name.into_deserializer();
    Dtype::deserialize(name)
}

/// All entries of a header, in header order.
struct HeaderEntries(Vec<TensorInfo>);

impl<'de> Deserialize<'de> for HeaderEntries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = HeaderEntries;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with an entry for each tensor")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<HeaderEntries, A::Error> {
        let mut entries = Vec::new();
        let mut has_metadata = false;
        let mut dimensions = MAX_DIMENSIONS;
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA {
                if has_metadata {
                    return Err(A::Error::duplicate_field(METADATA));
                }
                has_metadata = true;
                map.next_value_seed(Metadata).map_err(|error| within(METADATA, &error))?;
                continue;
            }
            if entries.len() == MAX_TENSORS {
                return Err(A::Error::custom(format_args!(
                    "more than the {MAX_TENSORS} tensors that are allowed"
                )));
            }
            let seed = TensorInfoSeed { dimensions };
            let (dtype, shape, data_offsets) = map
                .next_value_seed(seed)
                .map_err(|error| within(format_args!("tensor {}", quoted(&name)), &error))?;
            dimensions -= shape.len();
            entries.push(TensorInfo { name, dtype, shape, data_offsets });
        }
        Ok(HeaderEntries(entries))
    }
}

/// Prefixes an error with the part of the header that it is in.
fn within<E: Error>(part: impl Display, error: &E) -> E {
    E::custom(format_args!("{part}: {error}"))
}

/// Parses the fields of a tensor.
struct TensorInfoSeed {
    /// The maximum number of dimensions.
    dimensions: usize,
}

type TensorFields = (Box<str>, Vec<u64>, Range<u64>);

impl<'de> DeserializeSeed<'de> for TensorInfoSeed {
    type Value = TensorFields;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<TensorFields, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TensorInfoSeed {
    type Value = TensorFields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TensorFields, A::Error> {
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        while let Some(key) = map.next_key::<String>()? {
            match &key[..] {
                "dtype" => set(&mut dtype, "dtype", || map.next_value::<Box<str>>())?,
                "shape" => {
                    let numbers = IntegerList { max_len: self.dimensions };
                    set(&mut shape, "shape", || map.next_value_seed(numbers))?;
                }
                "data_offsets" => {
                    set(&mut offsets, "data_offsets", || map.next_value_seed(IntegerList { max_len: 2 }))?;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        let missing = A::Error::missing_field;
        let dtype = dtype.ok_or_else(|| missing("dtype"))?;
        let shape = shape.ok_or_else(|| missing("shape"))?;
        match offsets.ok_or_else(|| missing("data_offsets"))?[..] {
            [start, end] => Ok((dtype, shape, start..end)),
            ref other => Err(A::Error::custom(format_args!(
                "data_offsets: the number of offsets is {}, but it must be 2",
                other.len()
            ))),
        }
    }
}

/// Sets a field from `value`. Fails if it is already set.
fn set<T, E: Error>(
    field: &mut Option<T>,
    name: &'static str,
    value: impl FnOnce() -> Result<T, E>,
) -> Result<(), E> {
    if field.is_some() {
        return Err(E::duplicate_field(name));
    }
    *field = Some(value().map_err(|error| within(name, &error))?);
    Ok(())
}

/// Parses a list of at most `max_len` integers.
struct IntegerList {
    max_len: usize,
}

impl<'de> DeserializeSeed<'de> for IntegerList {
    type Value = Vec<u64>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<u64>, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for IntegerList {
    type Value = Vec<u64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of integers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<u64>, A::Error> {
        let mut numbers = Vec::new();
        while let Some(number) = seq.next_element()? {
            if numbers.len() == self.max_len {
                let max_len = self.max_len;
                return Err(A::Error::custom(format_args!(
                    "more than the {max_len} numbers that are allowed"
                )));
            }
            numbers.push(number);
        }
        numbers.shrink_to_fit();
        Ok(numbers)
    }
}

/// Validates the metadata, which maps strings to strings, without keeping it.
struct Metadata;

impl<'de> DeserializeSeed<'de> for Metadata {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Metadata {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    /// Accepts `null`, as other readers do.
    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut keys = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            map.next_value::<String>().map_err(|error| within(quoted(&key), &error))?;
            if keys.len() == MAX_TENSORS {
                return Err(A::Error::custom(format_args!(
                    "more than the {MAX_TENSORS} entries that are allowed"
                )));
            }
            if let Some(key) = keys.replace(key) {
                return Err(A::Error::custom(format_args!("key {} appears twice", quoted(&key))));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use safetensors::tensor::Metadata as Reference;

    use super::*;

    fn entries(header: &[u8], data: u64) -> Result<Vec<TensorInfo>> {
        check(serde_json::from_slice::<HeaderEntries>(header)?.0, data)
    }

    /// Returns a header of BF16 tensors, and the size of its data.
    fn header(tensors: &[(String, Vec<u64>)]) -> (String, u64) {
        let mut at = 0;
        let entry = |(name, shape): &(String, Vec<u64>)| {
            let start = at;
            at += 2 * shape.iter().product::<u64>();
            let name = serde_json::to_string(name).unwrap();
            format!(r#"{name}:{{"dtype":"BF16","shape":{shape:?},"data_offsets":[{start},{at}]}}"#)
        };
        let entries: Vec<_> = tensors.iter().map(entry).collect();
        (format!(r#"{{{},"__metadata__":{{"step":"7"}}}}"#, entries.join(",")), at)
    }

    proptest! {
        #[test]
        fn valid_headers_are_accepted(
            tensors in prop::collection::btree_map(".{0,5}", prop::collection::vec(0_u64..4, 0..4), 1..9),
        ) {
            let tensors: Vec<_> = tensors.into_iter().collect();
            let (header, data) = header(&tensors);
            let mut found = entries(header.as_bytes(), data).unwrap();
            found.sort_by(|a, b| a.name.cmp(&b.name));
            let found: Vec<_> = found.into_iter().map(|entry| (entry.name, entry.shape)).collect();
            prop_assert_eq!(found, tensors);
        }

        /// The format's own reader, which is less strict, accepts every header that this parser accepts.
        #[test]
        fn damaged_headers_are_accepted_only_if_they_are_valid(
            place in any::<prop::sample::Index>(),
            len in 0_usize..3,
            with in prop::sample::select(vec!["", "0", "9", "-", "\"", ",", "[", "]", "{", "}", "w", "null", "\\u0000"]),
        ) {
            let tensors = [("v".to_owned(), vec![2, 3]), ("w".to_owned(), vec![]), ("x".to_owned(), vec![0])];
            let (mut header, data) = header(&tensors);
            let start = place.index(header.len());
            header.replace_range(start..header.len().min(start + len), with);
            if entries(header.as_bytes(), data).is_ok() {
                // The reference reader rejects unknown dtypes.
                if header.matches("\"BF16\"").count() == 3 {
                    let reference: Result<Reference, _> = serde_json::from_str(&header);
                    prop_assert!(reference.is_ok(), "{}: {:?}", header, reference);
                }
            }
        }
    }
}
