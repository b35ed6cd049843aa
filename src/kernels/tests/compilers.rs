//! Every kernel through the compilers behind wgpu's backends, and through those of other WebGPU implementations: naga and Tint
//! for WGSL, spirv-val, glslang and DXC for what naga translates it to. A compiler that is not on the PATH is left out.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use naga::back::pipeline_constants::process_overrides;
use naga::back::{glsl, hlsl, msl, spv};
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::ModuleInfo;

use super::*;

const MAIN: (naga::ShaderStage, &str) = (naga::ShaderStage::Compute, "main");

/// What a kernel needs besides what every device has.
fn capabilities(kernel: Kernel) -> Capabilities {
    match kernel.slots() {
        Some((Slots::Array(_), _)) => {
            Capabilities::STORAGE_BUFFER_BINDING_ARRAY
                | Capabilities::STORAGE_BUFFER_BINDING_ARRAY_NON_UNIFORM_INDEXING
        }
        _ => Capabilities::empty(),
    }
}

/// A kernel as wgpu gives it to the writer of a backend: with the values of its constants.
fn with_constants(kernel: Kernel) -> (naga::Module, ModuleInfo) {
    with_constants_of(kernel, &kernel.source(Dialect::WebGpu))
}

/// As [`with_constants`], from a text of the kernel.
fn with_constants_of(kernel: Kernel, source: &str) -> (naga::Module, ModuleInfo) {
    let module = parse_source(kernel, source);
    let info = validate_with(capabilities(kernel), &module);
    let constants =
        kernel.pipeline_constants().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let (module, info) = process_overrides(&module, &info, Some(MAIN), &constants).unwrap();
    (module.into_owned(), info.into_owned())
}

/// The SPIR-V for Vulkan, with the options of wgpu on a device of Vulkan 1.0, and on one of 1.3 with robust buffer access.
fn spirv(kernel: Kernel, version: (u8, u8)) -> Vec<u32> {
    let (module, info) = with_constants(kernel);
    let (buffer, workgroup_memory) = if version < (1, 6) {
        (BoundsCheckPolicy::Restrict, spv::ZeroInitializeWorkgroupMemoryMode::Polyfill)
    } else {
        (BoundsCheckPolicy::Unchecked, spv::ZeroInitializeWorkgroupMemoryMode::Native)
    };
    let options = spv::Options {
        lang_version: version,
        bounds_check_policies: BoundsCheckPolicies {
            index: BoundsCheckPolicy::Restrict,
            buffer,
            ..BoundsCheckPolicies::default()
        },
        zero_initialize_workgroup_memory: workgroup_memory,
        ..spv::Options::default()
    };
    spv::write_vec(&module, &info, &options, None).unwrap_or_else(|error| panic!("{kernel:?}: {error}"))
}

/// The HLSL for DirectX 12.
fn hlsl(kernel: Kernel) -> String {
    let (module, info) = with_constants(kernel);
    let options = hlsl::Options {
        shader_model: hlsl::ShaderModel::V6_0,
        // The number of workgroups is such a constant there.
        special_constants_binding: Some(hlsl::BindTarget { space: 1, ..hlsl::BindTarget::default() }),
        ..hlsl::Options::default()
    };
    let (mut text, pipeline) = (String::new(), hlsl::PipelineOptions::default());
    hlsl::Writer::new(&mut text, &options, &pipeline)
        .write(&module, &info, None)
        .unwrap_or_else(|error| panic!("{kernel:?}: {error}"));
    text
}

/// The GLSL for OpenGL ES 3.1.
fn glsl(kernel: Kernel) -> String {
    let (module, info) = with_constants(kernel);
    // Uniform buffers and storage buffers are numbered apart.
    let (mut uniforms, mut storage) = (0.., 0..);
    let bindings = (0..).zip(kernel.bindings()).map(|(binding, Binding { ty, .. })| {
        let numbers = if ty == BindingType::Uniform { &mut uniforms } else { &mut storage };
        (naga::ResourceBinding { group: 0, binding }, numbers.next().expect("a number"))
    });
    let options = glsl::Options {
        version: glsl::Version::Embedded { version: 310, is_webgl: false },
        binding_map: bindings.collect(),
        ..glsl::Options::default()
    };
    let (stage, entry_point) = (MAIN.0, MAIN.1.to_owned());
    let pipeline = glsl::PipelineOptions { shader_stage: stage, entry_point, multiview: None };
    let mut text = String::new();
    glsl::Writer::new(&mut text, &module, &info, &options, &pipeline, BoundsCheckPolicies::default())
        .and_then(|mut writer| writer.write())
        .unwrap_or_else(|error| panic!("{kernel:?}: {error}"));
    text
}

/// The SPIR-V of a text of the kernel, without names.
pub(super) fn nameless_spirv(kernel: Kernel, source: &str) -> Vec<u32> {
    let (module, info) = with_constants_of(kernel, source);
    let options = spv::Options { flags: spv::WriterFlags::empty(), ..spv::Options::default() };
    spv::write_vec(&module, &info, &options, None).unwrap_or_else(|error| panic!("{kernel:?}: {error}"))
}

/// Kernels for compilers that take minutes for all of them. Some are left out unless the environment asks for them: those of other
/// numbers of slots differ only in the number of cases of a `switch`, and those of other exponents in a constant.
pub(super) fn most() -> Vec<Kernel> {
    let mut kernels = most_of(all());
    if !with_every_kernel() {
        kernels.retain(|kernel| kernel.slots().is_none_or(|(slots, _)| matches!(slots.count(), 1 | 3)));
    }
    kernels
}

/// Leaves out the kernels of most exponents.
fn most_of(mut kernels: Vec<Kernel>) -> Vec<Kernel> {
    let is_cubic = |(name, value)| name != "POWER" || value == 3.0;
    kernels.retain(|kernel| with_every_kernel() || kernel.pipeline_constants().into_iter().all(is_cubic));
    kernels
}

fn with_every_kernel() -> bool {
    std::env::var_os("GRADCLIP_EVERY_KERNEL").is_some()
}

/// Calls a function with every item, on all cores.
pub(super) fn for_each<T: Send>(items: Vec<T>, check: impl Fn(T) + Sync) {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let items = std::sync::Mutex::new(items.into_iter());
    let next = || items.lock().expect("no panic while it is locked").next();
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(item) = next() {
                    check(item);
                }
            });
        }
    });
}

/// Returns whether a program can be started.
pub(super) fn is_installed(program: &str) -> bool {
    let status = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if status.is_err() {
        println!("NOT RUN: there is no {program} on the PATH");
    }
    status.is_ok()
}

/// Gives a file with some contents to a compiler, which must not refuse it.
fn accepts(compiler: &str, arguments: &[&str], name: &str, extension: &str, contents: &[u8]) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join(Path::new("kernel").with_extension(extension));
    fs::write(&file, contents).unwrap();
    let output = Command::new(compiler).args(arguments).arg(&file).output().unwrap();
    let message = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{compiler}: {name}: {}", String::from_utf8_lossy(&message));
}

/// Gives a WGSL text to Tint, if there is one.
pub(super) fn tint_accepts(name: &str, text: &str) {
    if is_installed("tint") {
        accepts("tint", &["--format", "wgsl"], name, "wgsl", text.as_bytes());
    }
}

/// No machine of these tests has Metal or DirectX 12.
#[test]
fn naga_translates_every_kernel_for_metal_and_directx() {
    for_each(all(), |kernel| {
        let (module, info) = with_constants(kernel);
        let metal =
            msl::write_string(&module, &info, &msl::Options::default(), &msl::PipelineOptions::default());
        assert!(metal.is_ok(), "{kernel:?}: {metal:?}");
        let directx = hlsl(kernel);
        // HLSL shows the size of a load.
        let loads_vectors =
            matches!(kernel.slots(), Some((_, SlotAccess::ReadVectors | SlotAccess::WriteVectors)));
        assert_eq!(directx.contains("slot0_.Load4("), loads_vectors, "{kernel:?}");
        assert!(
            directx.contains("uint3(_NagaConstants.first_vertex"),
            "{kernel:?} knows the size of its grid"
        );
    });
}

#[test]
fn tint_accepts_every_kernel() {
    if !is_installed("tint") {
        return;
    }
    let kernels = all().into_iter().map(|kernel| (format!("{kernel:?}"), kernel.source(Dialect::WebGpu)));
    let exported = EXPORTED.map(|(path, text, _)| (path.to_owned(), text.to_owned()));
    for_each(kernels.chain(exported).collect(), |(name, text)| tint_accepts(&name, &text));
}

#[test]
fn every_kernel_is_valid_spirv() {
    let has_compiler = is_installed("spirv-val");
    for_each([most(), most_of(with_arrays())].concat(), |kernel| {
        for (version, environment) in [((1, 1), "vulkan1.1"), ((1, 6), "vulkan1.3")] {
            let words = spirv(kernel, version);
            if has_compiler {
                let arguments = ["--target-env", environment];
                accepts("spirv-val", &arguments, &format!("{kernel:?}"), "spv", bytemuck::cast_slice(&words));
            }
        }
    });
}

#[test]
fn every_kernel_is_valid_glsl() {
    let has_compiler = is_installed("glslangValidator");
    for_each(most(), |kernel| {
        let text = glsl(kernel);
        if has_compiler {
            accepts("glslangValidator", &[], &format!("{kernel:?}"), "comp", text.as_bytes());
        }
    });
}

#[test]
fn dxc_accepts_every_kernel() {
    if !is_installed("dxc") {
        return;
    }
    for_each(most(), |kernel| {
        let arguments = ["-T", "cs_6_0", "-E", "main"];
        accepts("dxc", &arguments, &format!("{kernel:?}"), "hlsl", hlsl(kernel).as_bytes());
    });
}
