//! `Producer`: code for the shaders of callers that computes the partials of a gradient held in registers.

use std::collections::BTreeSet;

use super::dialect::{Constant, Dialect};
use super::{Reduction, VECTOR_BYTES, WORKGROUP_SIZE, elements, snippet};
use crate::operation::{ByNorm, Operation};
use crate::{Clip, DType, Error};

/// WGSL code that computes [`Partials`](crate::Partials) in the kernel that produces a gradient. No pass then reads the gradient
/// to measure it. Declare the partials with [`Gradient::partials`](crate::Gradient::partials).
///
/// [`wgsl`](Self::wgsl) is text to put before a shader. All its names begin with `gradclip_`; a shader module can hold only one
/// producer. The text declares `struct gradclip_Partial` and one function to call:
///
/// ```wgsl
/// // Returns the partial of a run of `count` elements to every invocation of the workgroup.
/// fn gradclip_partial_of_run(lane: u32, count: u32, vectors: array<vec4<u32>, gradclip_VECTORS>) -> gradclip_Partial
/// ```
///
/// All invocations of a workgroup must call it, in uniform control flow. `lane` is the `local_invocation_index`. A vector is 16
/// bytes, as stored in the buffer: the bits of four f32, or of eight f16 or bf16 elements. Vector `k` of invocation
/// `lane` is vector `lane + k * workgroup_size` of the run, so that neighbouring invocations store neighbouring vectors.
/// Elements past the end of the run are 0. One invocation stores the result at the index of the run.
///
/// The norm has the same bits as in the plan's own pass if the runs are as long as its tiles: `workgroup_size` is 256, and
/// [`elements`](Self::elements) equals [`kernels::tables::tile_elements`](crate::kernels::tables::tile_elements), which is 4096
/// for gradients with at most 2²³ elements together. Runs of any other length up to 2¹⁶ elements are as accurate.
///
/// ```
/// use gradclip::kernels::Producer;
/// use gradclip::{Clip, DType};
///
/// let producer = Producer::new(Clip::by_global_norm(1.0), DType::F32)?;
/// assert_eq!((producer.elements(), producer.partial_bytes()), (4096, 8));
/// let shader = producer.wgsl()?
///     + "
///     @group(0) @binding(0) var<storage, read_write> gradient: array<vec4<u32>>;
///     @group(0) @binding(1) var<storage, read_write> partials: array<gradclip_Partial>;
///
///     // One workgroup for each run.
///     @compute @workgroup_size(gradclip_WORKGROUP_SIZE)
///     fn backward(@builtin(workgroup_id) run: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
///         let length = arrayLength(&gradient); // in vectors
///         let first = run.x * gradclip_WORKGROUP_SIZE * gradclip_VECTORS;
///         var held: array<vec4<u32>, gradclip_VECTORS>;
///         for (var k = 0u; k < gradclip_VECTORS; k += 1u) {
///             let at = first + lane + k * gradclip_WORKGROUP_SIZE;
///             if (at < length) {
///                 held[k] = bitcast<vec4<u32>>(vec4<f32>(0.5)); // the gradient
///                 gradient[at] = held[k];
///             }
///         }
///         let count = 4u * (min(first + gradclip_WORKGROUP_SIZE * gradclip_VECTORS, length) - first);
///         let partial = gradclip_partial_of_run(lane, count, held);
///         if (lane == 0u) {
///             partials[run.x] = partial;
///         }
///     }";
/// # let adapter = gradclip::adapters::enumerate().into_iter().next().expect("an adapter: scripts/test installs a software one");
/// # let (device, queue) = pollster::block_on(adapter.request_device(&gradclip::wgpu::DeviceDescriptor::default()))?;
/// # let module = device.create_shader_module(gradclip::wgpu::ShaderModuleDescriptor {
/// #     label: None,
/// #     source: gradclip::wgpu::ShaderSource::Wgsl(shader.into()),
/// # });
/// # drop((module, queue));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Producer {
    reduction: Reduction,
    dtype: DType,
    workgroup_size: u32,
    vectors: u32,
}

impl Producer {
    /// Creates a producer for gradients of type `dtype` that `clip` measures. A workgroup has 256 invocations and holds 4096
    /// elements.
    ///
    /// # Errors
    ///
    /// Those of [`Clip::checked`]; [`Error::NormType`] if the norm type is neither L1, L2 nor infinity; [`Error::NeedsNorm`] if
    /// the clip measures no norm.
    pub fn new(clip: Clip, dtype: DType) -> Result<Self, Error> {
        let operation = clip.checked()?;
        let norm: &ByNorm = Operation::measured_norm(&operation)
            .ok_or(Error::NeedsNorm { what: "a producer", clip: clip.constructor() })?;
        let reduction = norm.reduction();
        if !reduction.has_producer() {
            return Err(Error::NormType { given: norm.norm_type });
        }
        let vectors = if dtype == DType::F32 { 4 } else { 2 };
        Ok(Self { reduction, dtype, workgroup_size: WORKGROUP_SIZE, vectors })
    }

    /// Sets the number of invocations of a workgroup, and the number of vectors that each invocation holds.
    #[must_use]
    pub const fn shape(self, workgroup_size: u32, vectors: u32) -> Self {
        Self { workgroup_size, vectors, ..self }
    }

    /// Returns the number of elements of a full run, which a workgroup holds.
    #[must_use]
    pub const fn elements(self) -> u64 {
        let vectors = self.workgroup_size as u64 * self.vectors as u64;
        vectors.saturating_mul(VECTOR_BYTES / self.dtype.size())
    }

    /// Returns the size of a partial, in bytes.
    #[must_use]
    pub const fn partial_bytes(self) -> u64 {
        self.reduction.partial_bytes() as u64
    }

    /// Returns the code.
    ///
    /// # Errors
    ///
    /// [`Error::Producer`] if `workgroup_size` is not a power of two up to 1024, or `vectors` is not 1 to 1024.
    pub fn wgsl(self) -> Result<String, Error> {
        let Self { reduction, dtype, workgroup_size, vectors } = self;
        let is_valid =
            workgroup_size.is_power_of_two() && workgroup_size <= 1024 && (1..=1024).contains(&vectors);
        if !is_valid {
            return Err(Error::Producer { workgroup_size, vectors });
        }
        let chosen = |folder: &str| match folder {
            "elements" => Some(elements(dtype)),
            "norms" => Some(reduction.norm_snippet()),
            "partials" => Some(reduction.partials_snippet()),
            _ => None,
        };
        let constants = [
            Constant::u32("WORKGROUP_SIZE", workgroup_size),
            Constant::u32("VECTORS", vectors),
            Constant::derived("STRIDE", "ELEMENTS_PER_VECTOR * WORKGROUP_SIZE"),
        ];
        // Not pipeline-overridable constants, which the caller would have to set.
        let mut text: String =
            constants.iter().map(|constant| Dialect::CubeCl.declare_constant(constant)).collect();
        for snippet in snippet::resolve(&snippet::PRODUCER, chosen) {
            let code = snippet.text.lines().filter(|line| !line.trim_start().starts_with("//"));
            code.for_each(|line| text.extend([line, "\n"]));
        }
        Ok(prefixed(&text))
    }
}

/// Puts `gradclip_` before all names that the text declares.
fn prefixed(text: &str) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let declared: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| {
            let keywords = ["fn ", "struct ", "const ", "alias ", "var<workgroup> "];
            let rest = keywords.iter().find_map(|keyword| line.strip_prefix(keyword))?;
            Some(&rest[..rest.find(|c| !is_word(c)).unwrap_or(rest.len())])
        })
        .collect();
    let mut prefixed = String::with_capacity(2 * text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let len = rest.find(|c| is_word(c) != is_word(first)).unwrap_or(rest.len());
        let (token, after) = rest.split_at(len);
        // A name after a dot is a member.
        if declared.contains(token) && !prefixed.ends_with('.') {
            prefixed.push_str("gradclip_");
        }
        prefixed.push_str(token);
        rest = after;
    }
    prefixed
}
