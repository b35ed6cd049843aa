//! The WGSL that is generated: the bindings of the gradients, and those of the partials.
//!
//! WGSL has no portable array of buffers, and a pointer to one cannot be handed to a function. So a shader that sees
//! several windows declares a variable for each and chooses with a `switch`. A load takes four vectors behind one
//! `switch`, so that the loads are in flight together.

use std::fmt::Write as _;

/// The binding of the first slot; before it come the tiles and what the stage reads or writes besides.
pub(super) const FIRST_SLOT: u32 = 2;

/// How many slots a kernel is made for that is to have at least `needed` of at most `allowed`: powers of two, so that
/// sets of buffers that vary in number share few kernels.
pub(super) fn slots_for(needed: usize, allowed: usize) -> usize {
    needed.next_power_of_two().min(allowed)
}

/// How the shader of a pass sees its windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    ReadVectors,
    ReadWords,
    WriteVectors,
    WriteWords,
    /// Words that two invocations may change a half of each.
    Atomics,
}

impl Mode {
    /// The size of what a window is an array of.
    pub(super) const fn element_bytes(self) -> u64 {
        match self {
            Self::ReadVectors | Self::WriteVectors => 16,
            Self::ReadWords | Self::WriteWords | Self::Atomics => 4,
        }
    }
}

/// Declares `slots` windows and the functions that read them and, if the mode says so, write them.
///
/// In all of them `at` counts words from the start of the window, and for vectors is a multiple of four. A store takes
/// what was there before, and leaves out what would not change.
pub(super) fn declare(slots: usize, mode: Mode) -> String {
    let (access, element, functions): (_, _, &[Function]) = match mode {
        Mode::ReadVectors => ("read", "vec4<u32>", &[LOAD_VECTOR, LOAD_BLOCK]),
        Mode::ReadWords => ("read", "u32", &[LOAD_WORD]),
        Mode::WriteVectors => {
            ("read_write", "vec4<u32>", &[LOAD_VECTOR, LOAD_BLOCK, STORE_VECTOR, STORE_BLOCK])
        }
        Mode::WriteWords => ("read_write", "u32", &[LOAD_WORD, STORE_WORD]),
        Mode::Atomics => ("read_write", "atomic<u32>", &[LOAD_ATOMIC, EXCHANGE]),
    };
    let mut wgsl = String::new();
    for slot in 0..slots {
        let binding = FIRST_SLOT as usize + slot;
        let _ = writeln!(
            wgsl,
            "@group(0) @binding({binding}) var<storage, {access}> slot{slot}: array<{element}>;"
        );
    }
    for Function { signature, before, case } in functions {
        let _ = write!(wgsl, "\n{signature} {{\n    {before}\n    switch slot {{\n");
        for slot in 0..slots {
            let label = label(slot, slots);
            let case = case.replace('$', &format!("slot{slot}"));
            let _ = writeln!(wgsl, "        {label}: {{ {case} }}");
        }
        wgsl.push_str("    }\n}\n");
    }
    wgsl
}

/// The binding after those of a kernel that leaves records: the places of partials, and then all banks but the first.
const PLACES: usize = 5;

/// Declares the banks that partials are in, and the function that reads one. With several banks a table says where each
/// partial is: in bank `place % banks`, at `place / banks`.
pub(super) fn declare_banks(banks: usize) -> String {
    let bank = |bank: usize| {
        let binding = if bank == 0 { 0 } else { PLACES + bank };
        format!("@group(0) @binding({binding}) var<storage, read> bank{bank}: array<Partial>;\n")
    };
    let mut wgsl: String = (0..banks).map(bank).collect();
    if banks == 1 {
        wgsl.push_str("\nfn partial_at(index: u32) -> Partial {\n    return bank0[index];\n}\n");
        return wgsl;
    }
    let _ = write!(
        wgsl,
        "@group(0) @binding({PLACES}) var<storage, read> places: array<u32>;\n\n\
         fn partial_at(index: u32) -> Partial {{\n    let place = places[index];\n    switch place % {banks}u {{\n"
    );
    for bank in 0..banks {
        let label = label(bank, banks);
        let _ = writeln!(wgsl, "        {label}: {{ return bank{bank}[place / {banks}u]; }}");
    }
    wgsl.push_str("    }\n}\n");
    wgsl
}

/// The label of a case: the last is what a `switch` must have.
fn label(case: usize, cases: usize) -> String {
    if case + 1 == cases { "default".to_owned() } else { format!("case {case}u") }
}

/// A function that chooses among the slots.
struct Function {
    signature: &'static str,
    /// What does not depend on the slot.
    before: &'static str,
    /// What it does in one case; `$` is the slot's variable.
    case: &'static str,
}

const LOAD_VECTOR: Function = Function {
    signature: "fn load(slot: u32, at: u32) -> vec4<u32>",
    before: "let i = at / 4u;",
    case: "return $[i];",
};
const LOAD_WORD: Function =
    Function { signature: "fn load_word(slot: u32, at: u32) -> u32", before: "", case: "return $[at];" };
const LOAD_ATOMIC: Function = Function {
    signature: "fn load_atomic(slot: u32, at: u32) -> u32",
    before: "",
    case: "return atomicLoad(&$[at]);",
};
const LOAD_BLOCK: Function = Function {
    signature: "fn load_block(slot: u32, at: u32, stride: u32) -> Block",
    before: "let i = vec4(at, at + stride, at + 2u * stride, at + 3u * stride) / 4u;",
    case: "return Block($[i.x], $[i.y], $[i.z], $[i.w]);",
};
const STORE_VECTOR: Function = Function {
    signature: "fn store(slot: u32, at: u32, old: vec4<u32>, new_words: vec4<u32>)",
    before: "let i = at / 4u;\n    let is_new = any(new_words != old);",
    case: "if (is_new) { $[i] = new_words; }",
};
const STORE_WORD: Function = Function {
    signature: "fn store_word(slot: u32, at: u32, old: u32, new_word: u32)",
    before: "",
    case: "if (new_word != old) { $[at] = new_word; }",
};
const EXCHANGE: Function = Function {
    signature: "fn exchange(slot: u32, at: u32, old: u32, new_word: u32) -> bool",
    before: "",
    case: "return atomicCompareExchangeWeak(&$[at], old, new_word).exchanged;",
};
const STORE_BLOCK: Function = Function {
    signature: "fn store_block(slot: u32, at: u32, stride: u32, old: Block, new_block: Block)",
    before: "let i = vec4(at, at + stride, at + 2u * stride, at + 3u * stride) / 4u;\n    \
             let is_new = vec4(any(new_block.v0 != old.v0), any(new_block.v1 != old.v1), \
             any(new_block.v2 != old.v2), any(new_block.v3 != old.v3));",
    case: "if (is_new.x) { $[i.x] = new_block.v0; } if (is_new.y) { $[i.y] = new_block.v1; } \
           if (is_new.z) { $[i.z] = new_block.v2; } if (is_new.w) { $[i.w] = new_block.v3; }",
};
