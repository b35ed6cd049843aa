//! gradclip's shaders as kernels that CubeCL launches.
//!
//! The text is the core's own, file by file. CubeCL launches it under rules of its own, and this is where they are
//! met: all bindings are in one group, in the order of the arguments, and none may be left unused; a page of memory
//! holds many tensors, and wgpu refuses to bind it for reading and for writing in one dispatch, so that everything is
//! bound for writing; there are no uniform buffers and no pipeline constants.

use std::fmt::Write as _;

use burn::cubecl::ir::settings::{Dim3, KernelSettings};
use burn::cubecl::ir::{ElemType, Scope, UIntKind, metadata::Info};
use burn::cubecl::prelude::{AddressType, KernelDefinition, KernelId, KernelMetadata};
use burn::cubecl::{CubeKernel, ExecutionMode, PrecompiledSource};
use gradclip::NormType;

macro_rules! wgsl {
    ($($file:literal)+) => { concat!($(include_str!(concat!("../../../shaders/", $file, ".wgsl")), "\n"),+) };
}

/// The invocations of a workgroup: what every device allows.
pub(super) const WORKGROUP_SIZE: u32 = 256;

/// The bindings before the first slot.
const FIRST_SLOT: usize = 2;

/// The types of elements that the kernels take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Elements {
    F32,
    F16,
    BF16,
}

impl Elements {
    /// The bytes of one.
    pub(crate) const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    const fn files(self) -> &'static str {
        match self {
            Self::F32 => wgsl!("elements_f32"),
            Self::F16 => wgsl!("elements_f16"),
            Self::BF16 => wgsl!("elements_bf16"),
        }
    }

    const fn is_half(self) -> bool {
        self.size() == 2
    }
}

/// A norm, as far as the shaders tell one from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Norm {
    L1,
    L2,
    Inf,
    /// The bits of any other p.
    Power(u32),
}

impl Norm {
    fn of(norm_type: NormType) -> Self {
        match norm_type {
            NormType::L1 => Self::L1,
            NormType::L2 => Self::L2,
            NormType::Inf => Self::Inf,
            other => Self::Power(other.p().to_bits()),
        }
    }
}

/// How a gradient is read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Access {
    /// 16 bytes at a time: gradients that are a multiple of that.
    Vectors,
    /// Element by element: the others, whose binding ends within a vector.
    Elements,
}

/// What tiles of one dispatch have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Manner {
    pub(crate) elements: Elements,
    pub(crate) access: Access,
}

/// What the norm pass finds in a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Finding {
    norm: Norm,
    /// Whether zeros, and what is not finite, are counted besides.
    counted: bool,
}

impl Finding {
    pub(super) fn of(norm_type: NormType, counted: bool) -> Self {
        let norm = Norm::of(norm_type);
        // The plain kernels always count.
        Self { norm, counted: counted || matches!(norm, Norm::Power(_)) }
    }

    /// The bytes of a partial.
    pub(super) const fn partial_bytes(self) -> usize {
        match self {
            Self { norm: Norm::Power(_), .. } => 20,
            Self { counted: true, .. } => 16,
            Self { counted: false, .. } => 8,
        }
    }

    /// How the norm pass goes through gradients of this manner.
    pub(super) const fn manner(self, manner: Manner) -> Manner {
        match self.norm {
            Norm::Power(_) => Manner { access: Access::Elements, ..manner },
            Norm::L1 | Norm::L2 | Norm::Inf => manner,
        }
    }

    /// Whether the statistics ask which gradient a partial is of, if only for p = 0.
    pub(super) const fn stats_need_owners(self) -> bool {
        matches!(self.norm, Norm::Power(_))
    }

    const fn files(self) -> [&'static str; 2] {
        let partials = match self {
            Self { norm: Norm::Power(_), .. } => wgsl!("counts"),
            Self { counted: true, .. } => wgsl!("counts" "partial_counted"),
            Self { counted: false, .. } => wgsl!("counts" "partial"),
        };
        let norm = match self.norm {
            Norm::L1 => wgsl!("norm_l1"),
            Norm::L2 => wgsl!("norm_l2"),
            Norm::Inf => wgsl!("norm_inf"),
            Norm::Power(_) => wgsl!("norm_power"),
        };
        [partials, norm]
    }

    const fn finalize(self) -> &'static str {
        match self.norm {
            Norm::Power(_) => wgsl!("reduce_workgroup" "finalize_power"),
            Norm::L1 | Norm::L2 | Norm::Inf => wgsl!("reduce_workgroup" "finalize"),
        }
    }

    /// The declaration of p, where the text leaves it open.
    fn power(self) -> String {
        match self.norm {
            // -∞ is no constant. As f64, so that the number is that very f32.
            Norm::Power(p) => format!("const POWER: f32 = {:?};", f64::from(f32::from_bits(p).max(f32::MIN))),
            Norm::L1 | Norm::L2 | Norm::Inf => String::new(),
        }
    }
}

/// A kernel, and how many slots it has for gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kernel {
    /// Tiles to partials. Binds the tiles, the partials and the slots.
    Partials { finding: Finding, manner: Manner, slots: usize },
    /// The partials of each segment to its record, its norm and its factor. Binds partials, measure, segments, owners, records,
    /// norms, factors.
    Records { finding: Finding },
    /// The partials of each gradient to its statistics. Binds partials, measure, segments, owners if it needs them, statistics.
    Stats { finding: Finding },
    /// Tiles times the factor of a record; that of their segment, if there are several. Binds the tiles, the records and the slots.
    Scale { segmented: bool, manner: Manner, slots: usize },
    /// Tiles to bounds; those of their segment, if there are several. Binds the tiles, the bounds and the slots.
    Clamp { segmented: bool, manner: Manner, slots: usize },
}

/// How many slots a kernel is made for that is to have `needed` of at most `allowed`: the same where they are few and
/// gradients large, else powers of two, so that models share kernels.
pub(super) fn slots_for(needed: usize, allowed: usize) -> usize {
    if needed <= 4 { needed } else { needed.next_power_of_two().min(allowed) }
}

impl Kernel {
    fn text(self) -> String {
        const COMMON: &str = wgsl!("workgroup" "float_bits");
        let mut text = COMMON.to_owned();
        match self {
            Self::Partials { finding, manner, slots } => {
                text.push_str(manner.elements.files());
                text.push_str(wgsl!("tile" "found"));
                text.extend(finding.files());
                if let Norm::Power(_) = finding.norm {
                    text.push_str(wgsl!("reduce_workgroup" "partials_power"));
                } else {
                    let half = manner.elements.is_half();
                    text.push_str(if half { wgsl!("sum_halves") } else { wgsl!("sum_f32") });
                    text.push_str(match manner.access {
                        Access::Vectors => wgsl!("access_vectors"),
                        Access::Elements => wgsl!("access_words"),
                    });
                    text.push_str(wgsl!("reduce_workgroup" "partials"));
                }
                let (element, functions): (_, &[_]) = match manner.access {
                    Access::Vectors => ("vec4<u32>", &[LOAD_VECTOR, LOAD_BLOCK]),
                    Access::Elements => ("u32", &[LOAD_WORD]),
                };
                declare_slots(&mut text, slots, element, functions);
            }
            Self::Records { finding } => {
                text.extend(finding.files());
                text.push_str(wgsl!("found" "segment" "record" "conclude" "leave_record"));
                text.push_str(finding.finalize());
                // Burn gets norms and factors as tensors of their own.
                text.push_str("@group(0) @binding(5) var<storage, read_write> norms: array<f32>;\n");
                text.push_str("@group(0) @binding(6) var<storage, read_write> factors: array<f32>;\n");
                text = text.replace(LEAVES_RECORD, LEAVES_RECORD_AND_MORE);
            }
            Self::Stats { finding } => {
                text.extend(finding.files());
                text.push_str(wgsl!("found" "segment" "tensor_stats" "leave_stats"));
                text.push_str(finding.finalize());
                if !finding.stats_need_owners() {
                    // A binding without use does not exist.
                    text = text.replace(OWNERS, "").replace(
                        "@binding(4) var<storage, read_write> stats",
                        "@binding(3) var<storage, read_write> stats",
                    );
                }
            }
            Self::Scale { manner, slots, .. } => {
                elementwise(&mut text, manner, slots, wgsl!("record" "scale"));
            }
            Self::Clamp { manner, slots, .. } => elementwise(&mut text, manner, slots, wgsl!("clamp")),
        }
        let segmented = match self {
            Self::Scale { segmented, .. } | Self::Clamp { segmented, .. } => u8::from(segmented),
            _ => 0,
        };
        let power = match self {
            Self::Partials { finding, .. } | Self::Records { finding } | Self::Stats { finding } => {
                finding.power()
            }
            Self::Scale { .. } | Self::Clamp { .. } => String::new(),
        };
        text.replace("var<storage, read>", "var<storage, read_write>")
            .replace("var<uniform>", "var<storage, read_write>")
            .replace(
                "override WORKGROUP_SIZE: u32;",
                &format!("const WORKGROUP_SIZE: u32 = {WORKGROUP_SIZE}u;"),
            )
            .replace("override SEGMENTED: u32;", &format!("const SEGMENTED: u32 = {segmented}u;"))
            .replace("override STRIDE", "const STRIDE")
            .replace(POWER, &power)
    }
}

const LEAVES_RECORD: &str = "records[index] = record;";
const LEAVES_RECORD_AND_MORE: &str = "records[index] = record;
    norms[index] = record.total_norm;
    factors[index] = record.factor;";
const POWER: &str = "override POWER: f32;";
const OWNERS: &str = "@group(0) @binding(3) var<storage, read> owners: array<u32>;";

fn elementwise(text: &mut String, manner: Manner, slots: usize, operation: &str) {
    text.push_str(manner.elements.files());
    text.push_str(operation);
    let half = manner.elements.is_half();
    text.push_str(match (manner.access, half) {
        (Access::Vectors, false) => wgsl!("tile" "each_f32" "each_vector"),
        (Access::Vectors, true) => wgsl!("tile" "each_halves" "each_vector"),
        (Access::Elements, false) => wgsl!("tile" "each_word"),
        (Access::Elements, true) => wgsl!("tile" "each_half"),
    });
    let (element, functions): (_, &[_]) = match (manner.access, half) {
        (Access::Vectors, _) => ("vec4<u32>", &[LOAD_VECTOR, LOAD_BLOCK, STORE_VECTOR, STORE_BLOCK]),
        (Access::Elements, false) => ("u32", &[LOAD_WORD, STORE_WORD]),
        (Access::Elements, true) => ("atomic<u32>", &[LOAD_ATOMIC, EXCHANGE]),
    };
    declare_slots(text, slots, element, functions);
}

/// A signature, and what it does in one case of a `switch`; `$` is the slot's variable.
type Function = (&'static str, &'static str);

fn declare_slots(text: &mut String, slots: usize, element: &str, functions: &[Function]) {
    for slot in 0..slots {
        let binding = FIRST_SLOT + slot;
        let _ = writeln!(
            text,
            "@group(0) @binding({binding}) var<storage, read_write> slot{slot}: array<{element}>;"
        );
    }
    for (signature, body) in functions {
        let _ = write!(text, "\n{signature} {{\n    switch slot {{\n");
        for slot in 0..slots {
            let label = if slot + 1 == slots { "default".to_owned() } else { format!("case {slot}u") };
            let _ = writeln!(text, "        {label}: {{ {} }}", body.replace('$', &format!("slot{slot}")));
        }
        text.push_str("    }\n}\n");
    }
}

const LOAD_VECTOR: Function = ("fn load(slot: u32, at: u32) -> vec4<u32>", "return $[at / 4u];");
const LOAD_WORD: Function = ("fn load_word(slot: u32, at: u32) -> u32", "return $[at];");
const LOAD_ATOMIC: Function = ("fn load_atomic(slot: u32, at: u32) -> u32", "return atomicLoad(&$[at]);");
const LOAD_BLOCK: Function = (
    "fn load_block(slot: u32, at: u32, stride: u32) -> Block",
    "return Block($[at / 4u], $[(at + stride) / 4u], $[(at + 2u * stride) / 4u], $[(at + 3u * stride) / 4u]);",
);
const STORE_VECTOR: Function = (
    "fn store(slot: u32, at: u32, old: vec4<u32>, new_words: vec4<u32>)",
    "if (any(new_words != old)) { $[at / 4u] = new_words; }",
);
const STORE_WORD: Function = (
    "fn store_word(slot: u32, at: u32, old: u32, new_word: u32)",
    "if (new_word != old) { $[at] = new_word; }",
);
const EXCHANGE: Function = (
    "fn exchange(slot: u32, at: u32, old: u32, new_word: u32) -> bool",
    "return atomicCompareExchangeWeak(&$[at], old, new_word).exchanged;",
);
const STORE_BLOCK: Function = (
    "fn store_block(slot: u32, at: u32, stride: u32, old: Block, new_block: Block)",
    "if (any(new_block.v0 != old.v0)) { $[at / 4u] = new_block.v0; } \
     if (any(new_block.v1 != old.v1)) { $[(at + stride) / 4u] = new_block.v1; } \
     if (any(new_block.v2 != old.v2)) { $[(at + 2u * stride) / 4u] = new_block.v2; } \
     if (any(new_block.v3 != old.v3)) { $[(at + 3u * stride) / 4u] = new_block.v3; }",
);

impl KernelMetadata for Kernel {
    /// The text follows from the value, so the value names the kernel.
    fn id(&self) -> KernelId {
        KernelId::new::<Self>()
            .info(*self)
            .cube_dim(Dim3::new_1d(WORKGROUP_SIZE))
            // Every loop of these shaders ends by itself.
            .mode(ExecutionMode::Unchecked)
    }

    fn address_type(&self) -> ElemType {
        ElemType::UInt(UIntKind::U32)
    }
}

impl CubeKernel for Kernel {
    /// There is nothing but the text; this only says how large a workgroup is.
    fn define(&self) -> KernelDefinition {
        let settings =
            KernelSettings::new(Dim3::new_1d(WORKGROUP_SIZE), ExecutionMode::Unchecked, AddressType::U32);
        KernelDefinition { body: Scope::root(settings.clone()), settings, info: Info::default() }
    }

    fn source(&self) -> Option<PrecompiledSource> {
        Some(PrecompiledSource { source: self.text(), entrypoint_name: "main".to_owned(), lang: "wgsl" })
    }
}

#[cfg(test)]
mod tests;
