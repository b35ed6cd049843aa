//! The messages of the host and of the planner: numbers, and bytes for texts and buffers. `js/src/message.ts` is the other side.
//!
//! Nothing in a message has a name: both sides know its order. The length of a text is a number.

use gradclip::bytemuck::{self, Pod};

/// A message of the host, which is read in its order.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    numbers: &'a [f64],
    bytes: &'a [u8],
}

impl<'a> Request<'a> {
    pub(crate) const fn new(numbers: &'a [f64], bytes: &'a [u8]) -> Self {
        Self { numbers, bytes }
    }

    pub(crate) fn number(&mut self) -> f64 {
        let (number, rest) = self.numbers.split_first().expect("the host sends all numbers");
        self.numbers = rest;
        *number
    }

    pub(crate) fn f32(&mut self) -> f32 {
        self.number() as f32
    }

    pub(crate) fn u32(&mut self) -> u32 {
        self.number() as u32
    }

    pub(crate) fn u64(&mut self) -> u64 {
        self.number() as u64
    }

    pub(crate) fn usize(&mut self) -> usize {
        self.number() as usize
    }

    pub(crate) fn flag(&mut self) -> bool {
        self.number() != 0.0
    }

    /// Reads what may be absent: a flag, and the value if it is set.
    pub(crate) fn optional<T>(&mut self, read: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.flag().then(|| read(self))
    }

    /// Reads a list: its length, and the values.
    pub(crate) fn list<T>(&mut self, mut read: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.usize()).map(|_| read(self)).collect()
    }

    pub(crate) fn bytes(&mut self) -> &'a [u8] {
        let (bytes, rest) = self.bytes.split_at(self.usize());
        self.bytes = rest;
        bytes
    }

    /// Reads structs, as they are in memory.
    pub(crate) fn structs<T: Pod>(&mut self) -> Vec<T> {
        bytemuck::pod_collect_to_vec(self.bytes())
    }

    pub(crate) fn text(&mut self) -> &'a str {
        std::str::from_utf8(self.bytes()).expect("the host sends UTF-8")
    }
}

/// A message for the host.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) numbers: Vec<f64>,
    pub(crate) bytes: Vec<u8>,
}

impl Answer {
    pub(crate) fn number(&mut self, number: impl Into<f64>) {
        self.numbers.push(number.into());
    }

    /// Writes a size, which is less than 2^53.
    pub(crate) fn size(&mut self, size: u64) {
        self.numbers.push(size as f64);
    }

    pub(crate) fn index(&mut self, index: usize) {
        self.numbers.push(index as f64);
    }

    /// Writes an index that may be absent, which is then -1.
    pub(crate) fn optional(&mut self, index: Option<usize>) {
        self.numbers.push(index.map_or(-1.0, |index| index as f64));
    }

    /// Writes a list: its length, and the values.
    pub(crate) fn list<I: IntoIterator<IntoIter: ExactSizeIterator>>(
        &mut self,
        values: I,
        mut write: impl FnMut(&mut Self, I::Item),
    ) {
        let values = values.into_iter();
        self.index(values.len());
        values.for_each(|value| write(self, value));
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.index(bytes.len());
        self.bytes.extend_from_slice(bytes);
    }

    /// Writes structs, as they are in memory.
    pub(crate) fn structs<T: Pod>(&mut self, structs: &[T]) {
        self.bytes(bytemuck::cast_slice(structs));
    }

    pub(crate) fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }
}
