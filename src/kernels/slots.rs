//! Generates WGSL: the functions that access the slots of gradients, and the banks of partials.
//!
//! WGSL has no portable array of buffers, and no pointer to a buffer can be passed to a function. So a kernel with several
//! windows has a variable for each, and selects one with a `switch`. One load takes four vectors or four words behind
//! one `switch`, so that the loads are in flight together. A device that has wgpu's arrays of buffers can bind more windows
//! at once ([`Slots::Array`]).

use std::fmt::Write as _;

use super::{Alignment, TileFormat};
use crate::DType;

/// The binding of the first slot, after the tiles and one other buffer.
pub const FIRST_SLOT: u32 = 2;

/// Returns the number of slots of the kernel for `needed` windows, on a device that allows `max` slots: `needed` up to
/// 4, then the next power of two, so that sets with different numbers of buffers share few kernels.
#[must_use]
pub fn slot_count(needed: usize, max: usize) -> usize {
    if needed <= 4 { needed.min(max) } else { needed.next_power_of_two().min(max) }
}

/// The slots of a kernel: how it binds the windows of its gradients, and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slots {
    /// A binding for each window; at least 1. Every device allows some.
    Separate(usize),
    /// One binding for all windows: an array of buffers. A device needs wgpu's features for arrays of storage buffers whose index is
    /// not uniform.
    Array(usize),
}

impl Slots {
    /// Returns the number of windows.
    #[must_use]
    pub const fn count(self) -> usize {
        match self {
            Self::Separate(count) | Self::Array(count) => count,
        }
    }

    /// The directive that a text with these slots starts with.
    pub(super) const fn directive(self) -> &'static str {
        match self {
            Self::Separate(_) => "",
            Self::Array(_) => "enable wgpu_binding_array;\n",
        }
    }
}

/// How a kernel accesses its slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlotAccess {
    ReadVectors,
    ReadWords,
    WriteVectors,
    WriteWords,
    /// Words of two elements, which two workgroups may write at the same time.
    WriteAtomicWords,
}

impl SlotAccess {
    pub(super) const fn reading(alignment: Alignment) -> Self {
        match alignment {
            Alignment::Vector => Self::ReadVectors,
            Alignment::Element => Self::ReadWords,
        }
    }

    pub(super) const fn writing(format: TileFormat) -> Self {
        match (format.alignment, format.dtype) {
            (Alignment::Vector, _) => Self::WriteVectors,
            (Alignment::Element, DType::F32) => Self::WriteWords,
            (Alignment::Element, DType::F16 | DType::BF16) => Self::WriteAtomicWords,
        }
    }

    /// The size of one element of a slot's array, in bytes.
    pub(crate) const fn element_bytes(self) -> u64 {
        match self {
            Self::ReadVectors | Self::WriteVectors => 16,
            Self::ReadWords | Self::WriteWords | Self::WriteAtomicWords => 4,
        }
    }

    /// The WGSL type of a slot.
    pub(super) const fn element_type(self) -> &'static str {
        match self {
            Self::ReadVectors | Self::WriteVectors => "array<vec4<u32>>",
            Self::ReadWords | Self::WriteWords => "array<u32>",
            Self::WriteAtomicWords => "array<atomic<u32>>",
        }
    }

    const fn functions(self) -> &'static [Function] {
        match self {
            Self::ReadVectors => &[LOAD_VECTOR, LOAD_VECTORS],
            Self::ReadWords => &[LOAD_WORD, LOAD_WORDS],
            Self::WriteVectors => &[LOAD_VECTOR, LOAD_VECTORS, STORE_VECTOR, STORE_VECTORS],
            Self::WriteWords => &[LOAD_WORD, STORE_WORD],
            Self::WriteAtomicWords => &[LOAD_ATOMIC, COMPARE_EXCHANGE],
        }
    }
}

/// Generates the functions that access the slots.
///
/// In all of them, `at` counts words from the start of the window; for vectors it is a multiple of four. A store takes the old
/// value, and does not write an equal one.
pub(super) fn functions(slots: Slots, access: SlotAccess) -> String {
    let mut wgsl = String::new();
    if matches!(slots, Slots::Array(_)) {
        // An array of buffers needs structs.
        let _ = write!(wgsl, "\nstruct Window {{\n    contents: {},\n}}\n", access.element_type());
    }
    for Function { signature, before, case } in access.functions() {
        let _ = write!(wgsl, "\n{signature} {{\n    {before}\n");
        let Slots::Separate(slots) = slots else {
            let _ = writeln!(wgsl, "    {}\n}}", case.replace('$', "slots[slot].contents"));
            continue;
        };
        wgsl.push_str("    switch slot {\n");
        for slot in 0..slots {
            let label = label(slot, slots);
            let case = case.replace('$', &format!("slot{slot}"));
            let _ = writeln!(wgsl, "        {label}: {{ {case} }}");
        }
        wgsl.push_str("    }\n}\n");
    }
    wgsl
}

/// Generates the function that resets the partials of a segment. If `resets` is false, it does nothing.
pub(super) fn reset_function(banks: usize, resets: bool) -> String {
    let mut wgsl = "\nfn reset_partials(segment: Segment, lane: u32) {\n".to_owned();
    if resets {
        // The barrier: other invocations may still read.
        wgsl.push_str(
            "    storageBarrier();\n    for (var at = lane; at < segment.count; at += WORKGROUP_SIZE) {\n        \
             reset_partial(segment.first + at);\n    }\n",
        );
    }
    wgsl.push_str("}\n");
    if !resets {
        return wgsl;
    }
    if banks == 1 {
        wgsl.push_str("\nfn reset_partial(index: u32) {\n    bank0[index] = Partial();\n}\n");
        return wgsl;
    }
    let _ = write!(
        wgsl,
        "\nfn reset_partial(index: u32) {{\n    let location = partial_locations[index];\n    \
         switch location % {banks}u {{\n"
    );
    for bank in 0..banks {
        let label = label(bank, banks);
        let _ = writeln!(wgsl, "        {label}: {{ bank{bank}[location / {banks}u] = Partial(); }}");
    }
    wgsl.push_str("    }\n}\n");
    wgsl
}

/// Generates the function that loads a partial from its bank.
pub(super) fn bank_function(banks: usize) -> String {
    if banks == 1 {
        return "\nfn partial_at(index: u32) -> Partial {\n    return memory_form(bank0[index]);\n}\n"
            .to_owned();
    }
    let mut wgsl = format!(
        "\nfn partial_at(index: u32) -> Partial {{\n    let location = partial_locations[index];\n    \
         switch location % {banks}u {{\n"
    );
    for bank in 0..banks {
        let label = label(bank, banks);
        let _ = writeln!(wgsl, "        {label}: {{ return memory_form(bank{bank}[location / {banks}u]); }}");
    }
    wgsl.push_str("    }\n}\n");
    wgsl
}

/// The label of a case; the last is the default, which a `switch` must have.
fn label(case: usize, cases: usize) -> String {
    if case + 1 == cases { "default".to_owned() } else { format!("case {case}u") }
}

/// A function that selects a slot.
struct Function {
    signature: &'static str,
    /// The code before the `switch`.
    before: &'static str,
    /// The code of a case; `$` is the variable of the slot.
    case: &'static str,
}

const LOAD_VECTOR: Function = Function {
    signature: "fn load_vector(slot: u32, at: u32) -> vec4<u32>",
    before: "let i = at / 4u;",
    case: "return $[i];",
};
const LOAD_WORD: Function =
    Function { signature: "fn load_word(slot: u32, at: u32) -> u32", before: "", case: "return $[at];" };
const LOAD_WORDS: Function = Function {
    signature: "fn load_words(slot: u32, at: vec4<u32>) -> vec4<u32>",
    before: "",
    case: "return vec4($[at.x], $[at.y], $[at.z], $[at.w]);",
};
const LOAD_ATOMIC: Function = Function {
    signature: "fn load_atomic(slot: u32, at: u32) -> u32",
    before: "",
    case: "return atomicLoad(&$[at]);",
};
const LOAD_VECTORS: Function = Function {
    signature: "fn load_vectors(slot: u32, at: u32, stride: u32) -> Block",
    before: "let i = vec4(at, at + stride, at + 2u * stride, at + 3u * stride) / 4u;",
    case: "return Block($[i.x], $[i.y], $[i.z], $[i.w]);",
};
const STORE_VECTOR: Function = Function {
    signature: "fn store_vector(slot: u32, at: u32, old: vec4<u32>, new_words: vec4<u32>)",
    before: "let i = at / 4u;\n    let is_new = any(new_words != old);",
    case: "if (is_new) { $[i] = new_words; }",
};
const STORE_WORD: Function = Function {
    signature: "fn store_word(slot: u32, at: u32, old: u32, new_word: u32)",
    before: "",
    case: "if (new_word != old) { $[at] = new_word; }",
};
const COMPARE_EXCHANGE: Function = Function {
    signature: "fn compare_exchange(slot: u32, at: u32, old: u32, new_word: u32) -> bool",
    before: "",
    case: "return atomicCompareExchangeWeak(&$[at], old, new_word).exchanged;",
};
const STORE_VECTORS: Function = Function {
    signature: "fn store_vectors(slot: u32, at: u32, stride: u32, old: Block, new_block: Block)",
    before: "let i = vec4(at, at + stride, at + 2u * stride, at + 3u * stride) / 4u;\n    \
             let is_new = vec4(any(new_block.v0 != old.v0), any(new_block.v1 != old.v1), \
             any(new_block.v2 != old.v2), any(new_block.v3 != old.v3));",
    case: "if (is_new.x) { $[i.x] = new_block.v0; } if (is_new.y) { $[i.y] = new_block.v1; } \
           if (is_new.z) { $[i.z] = new_block.v2; } if (is_new.w) { $[i.w] = new_block.v3; }",
};
