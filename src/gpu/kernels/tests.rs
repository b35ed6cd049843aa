//! Every text that can be handed to a device is one that two independent compilers accept, and the structs in it lie
//! in memory as those on the Rust side do.

use std::io::Write as _;
use std::mem::offset_of;
use std::process::{Command, Stdio};

use naga::back::pipeline_constants::process_overrides;
use naga::back::{hlsl, msl, spv};
use naga::valid::{Capabilities, ValidationFlags, Validator};

use super::*;
use crate::gpu::clip_plan::{Bounds, Measure, Segment};
use crate::gpu::layout::Tile;
use crate::{CLIP_RECORD_WGSL, ClipRecord, NormHistory, StepCounts, TensorStats};

/// Every kernel, with numbers of slots that cover the generator: the edges, powers of two, what devices allow.
fn all() -> Vec<Kernel> {
    let norms = [NormType::L1, NormType::L2, NormType::Inf];
    let plain = norms.map(|norm_type| Finding::of(norm_type, false));
    let findings = [
        &plain[..],
        &norms.map(|norm_type| Finding::of(norm_type, true)),
        &[Finding::of(NormType::P(3.0), false)],
    ]
    .concat();
    let mut kernels = vec![Kernel::Supply, Kernel::Relative, Kernel::Adapt, Kernel::Count];
    for &finding in &findings {
        for (banks, wide) in [(1, false), (1, finding.reads_vectors()), (2, false), (16, false)] {
            let finalize = |leaves| Kernel::Finalize { finding, leaves, banks, wide };
            kernels.extend([Leaves::Record, Leaves::Stats].map(finalize));
        }
    }
    for slots in [1, 2, 4, 6, 8, 16, 30, 32, 64] {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for access in [Access::Vectors, Access::Elements] {
                let manner = Manner { access, dtype };
                let reads = |finding: &&Finding| access == Access::Elements || finding.reads_vectors();
                let partials = |&finding: &Finding| Kernel::Partials { finding, manner, slots };
                kernels.extend(findings.iter().filter(reads).map(partials));
                kernels.push(Kernel::Scale { segmented: true, manner, slots });
                kernels.push(Kernel::Clamp { segmented: true, manner, slots });
            }
        }
    }
    kernels
}

fn parse(kernel: Kernel) -> naga::Module {
    let source = kernel.source();
    naga::front::wgsl::parse_str(&source)
        .unwrap_or_else(|error| panic!("{kernel:?}: {}", error.emit_to_string(&source)))
}

#[test]
fn naga_accepts_every_kernel_without_any_optional_capability() {
    for kernel in all() {
        Validator::new(ValidationFlags::all(), Capabilities::empty())
            .validate(&parse(kernel))
            .unwrap_or_else(|error| panic!("{kernel:?}: {}", error.emit_to_string(&kernel.source())));
    }
}

/// What wgpu hands to Vulkan, Metal and DirectX 12, of which a machine has one at most.
#[test]
fn naga_translates_every_kernel_for_every_backend() {
    const MAIN: (naga::ShaderStage, &str) = (naga::ShaderStage::Compute, "main");
    let (for_vulkan, for_metal, for_directx) =
        (spv::Options::default(), msl::Options::default(), hlsl::Options::default());
    for kernel in all() {
        let module = parse(kernel);
        let info = Validator::new(ValidationFlags::all(), Capabilities::empty()).validate(&module).unwrap();
        let constants =
            kernel.constants().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let (module, info) = process_overrides(&module, &info, Some(MAIN), &constants).unwrap();

        let vulkan = spv::write_vec(&module, &info, &for_vulkan, None);
        assert!(vulkan.is_ok(), "{kernel:?}: {vulkan:?}");
        let metal = msl::write_string(&module, &info, &for_metal, &msl::PipelineOptions::default());
        assert!(metal.is_ok(), "{kernel:?}: {metal:?}");
        let (mut text, options) = (String::new(), hlsl::PipelineOptions::default());
        let directx = hlsl::Writer::new(&mut text, &for_directx, &options).write(&module, &info, None);
        assert!(directx.is_ok(), "{kernel:?}: {:?}", directx.err());
        // There it can be read how much one load takes.
        let reads_vectors = matches!(kernel.slots(), Some((_, Mode::ReadVectors | Mode::WriteVectors)));
        assert_eq!(text.contains("slot0_.Load4("), reads_vectors, "{kernel:?}");
    }
}

#[test]
fn tint_accepts_every_kernel() {
    if Command::new("tint").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        println!("NOT RUN: there is no tint on the PATH; only naga has seen the kernels");
        return;
    }
    let kernels = all().into_iter().map(|kernel| (format!("{kernel:?}"), kernel.source()));
    for (name, text) in kernels.chain([("CLIP_RECORD_WGSL".to_owned(), CLIP_RECORD_WGSL.to_owned())]) {
        let mut file = tempfile::Builder::new().suffix(".wgsl").tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let output = Command::new("tint").args(["--format", "wgsl"]).arg(file.path()).output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// The text for the shaders of others needs nothing else.
#[test]
fn the_record_is_declared_for_others() {
    let module = naga::front::wgsl::parse_str(CLIP_RECORD_WGSL).unwrap();
    Validator::new(ValidationFlags::all(), Capabilities::empty()).validate(&module).unwrap();
}

#[test]
fn rust_sets_every_number_that_a_shader_leaves_open() {
    for kernel in all() {
        let module = parse(kernel);
        let mut open: Vec<_> = module
            .overrides
            .iter()
            .filter(|(_, number)| number.init.is_none())
            .map(|(_, number)| number.name.as_deref().unwrap())
            .collect();
        let mut set: Vec<_> = kernel.constants().into_iter().map(|(name, _)| name).collect();
        open.sort_unstable();
        set.sort_unstable();
        assert_eq!(open, set, "{kernel:?}");
    }
}

#[test]
fn the_shader_binds_what_the_layout_offers() {
    for kernel in all() {
        let module = parse(kernel);
        let mut in_shader: Vec<_> = module
            .global_variables
            .iter()
            .filter_map(|(_, variable)| Some((variable.binding?.binding, variable.space)))
            .collect();
        in_shader.sort_by_key(|(binding, _)| *binding);
        let in_layout: Vec<_> = (0..)
            .zip(kernel.bindings())
            .map(|(binding, ty)| match ty {
                wgpu::BufferBindingType::Uniform => (binding, naga::AddressSpace::Uniform),
                wgpu::BufferBindingType::Storage { read_only } => {
                    let store =
                        if read_only { naga::StorageAccess::empty() } else { naga::StorageAccess::STORE };
                    (binding, naga::AddressSpace::Storage { access: naga::StorageAccess::LOAD | store })
                }
            })
            .collect();
        assert_eq!(in_shader, in_layout, "{kernel:?}");
    }
}

/// The names and offsets of a WGSL struct's members, and its size.
fn wgsl_layout(kernel: Kernel, name: &str) -> (Vec<(String, usize)>, usize) {
    let module = parse(kernel);
    let (_, ty) = module.types.iter().find(|(_, ty)| ty.name.as_deref() == Some(name)).unwrap();
    let naga::TypeInner::Struct { members, span } = &ty.inner else { panic!("{name} is a struct") };
    let members =
        members.iter().map(|member| (member.name.clone().unwrap(), member.offset as usize)).collect();
    (members, *span as usize)
}

macro_rules! assert_same_layout {
    ($kernel:expr, $name:ident { $($field:ident),+ }) => {
        let fields = vec![$((stringify!($field).to_owned(), offset_of!($name, $field))),+];
        assert_eq!(wgsl_layout($kernel, stringify!($name)), (fields, size_of::<$name>()));
    };
}

#[test]
fn structs_lie_in_memory_alike() {
    let manner = Manner { access: Access::Vectors, dtype: DType::F32 };
    let scale = Kernel::Scale { segmented: false, manner, slots: 1 };
    let finding = Finding::of(NormType::L2, false);
    let finalize = Kernel::Finalize { finding, leaves: Leaves::Record, banks: 1, wide: false };
    let stats = Kernel::Finalize { finding, leaves: Leaves::Stats, banks: 1, wide: false };
    assert_same_layout!(scale, Tile { slot, first, count, target_index });
    assert_same_layout!(finalize, Segment { first, count, max_norm });
    assert_same_layout!(
        finalize,
        Measure { epsilon, policy, inverse_scale, floor, rate, threshold, warm_up }
    );
    assert_same_layout!(stats, TensorStats { norm, max_magnitude, non_finite, zeros });
    assert_same_layout!(Kernel::Count, StepCounts { steps, clipped, non_finite, largest_norm });
    assert_same_layout!(Kernel::Adapt, NormHistory { steps, mean, deviation });
    assert_same_layout!(Kernel::Clamp { segmented: false, manner, slots: 1 }, Bounds { low, high });
    let (members, size) = wgsl_layout(scale, "ClipRecord");
    assert_eq!((members, size), (ClipRecord::layout(), size_of::<ClipRecord>()));
}

#[test]
fn partials_are_as_large_as_rust_thinks() {
    for kernel in all() {
        if let Kernel::Finalize { finding, wide, .. } = kernel {
            let (_, partial) = wgsl_layout(kernel, "Partial");
            assert_eq!(finding.partial_bytes(), partial, "{finding:?}");
            let (size, bytes) = if wide {
                (WIDE_WORKGROUP_SIZE, WIDE_WORKGROUP_BYTES)
            } else {
                (WORKGROUP_SIZE, WORKGROUP_BYTES)
            };
            assert!(partial * size as usize <= bytes as usize, "{finding:?}");
        }
    }
}

#[test]
fn bindings_are_what_the_device_is_asked_for() {
    let uniform = wgpu::BufferBindingType::Uniform;
    for kernel in all().into_iter().filter(|kernel| kernel.slots().is_none()) {
        let bindings = kernel.bindings();
        // Several banks are for devices that allow as many more.
        let more = match kernel {
            Kernel::Finalize { banks, .. } if banks > 1 => banks,
            _ => 0,
        };
        assert!(bindings.len() <= MOST_BINDINGS_WITHOUT_SLOTS as usize + more, "{kernel:?}");
        let storage = bindings.iter().filter(|binding| **binding != uniform).count();
        assert!(storage <= MOST_STORAGE_WITHOUT_SLOTS as usize + more, "{kernel:?}");
    }
}
