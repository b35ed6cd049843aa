//! Every text that a device can get is accepted by naga, its bindings are those of the table, and its structs have the layout of
//! those in Rust. Every WGSL file keeps to the interface that its first lines state. Other compilers are in `compilers.rs`.

mod chains;
mod compilers;
mod minified;

use std::collections::BTreeSet;
use std::mem::offset_of;

use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};

use super::snippet::{PRODUCER, SNIPPETS};
use super::tables::{Bounds, ColumnTile, NormParams, PERCENTILE_STEPS_PER_PERCENT, Segment, Tile};
use super::*;
use crate::auto_clip;
use crate::loss_scale::{LOSS_SCALE_WGSL, LossScaleState};
use crate::stats::{STEP_COUNTS_WGSL, TENSOR_STATS_WGSL};
use crate::{AutoClip, CLIP_RECORD_WGSL, Clip, ClipRecord, NormHistory, StepCounts, TensorStats};

const DIALECTS: [Dialect; 2] = [Dialect::WebGpu, Dialect::CubeCl];

const NORMS: [NormType; 3] = [NormType::L1, NormType::L2, NormType::Inf];

fn reductions() -> Vec<Reduction> {
    let mut reductions: Vec<_> = [false, true]
        .into_iter()
        .flat_map(|counted| NORMS.map(|norm| Reduction::new(norm, counted)))
        .collect();
    let powers = [3.0, 0.5, 0.0, -1.5, 1e-30, f32::MAX, f32::NEG_INFINITY];
    reductions.extend(powers.map(|p| Reduction::new(NormType::P(p), false)));
    reductions
}

/// Every kernel that needs no optional feature, with numbers of slots that cover the generator: the small ones, powers of two, and what
/// devices allow.
fn all() -> Vec<Kernel> {
    let reductions = reductions();
    let mut kernels =
        vec![Kernel::SuppliedNorm, Kernel::Agc, Kernel::ZClip, Kernel::AutoClip, Kernel::Conclude];
    kernels.push(Kernel::NormsAndFactors);
    for &reduction in &reductions {
        let variants =
            [(1, false, false), (1, reduction.loads_vectors(), false), (2, false, false), (16, false, false)];
        for (banks, wide, resets) in
            variants.into_iter().chain([(1, false, true), (4, reduction.loads_vectors(), true)])
        {
            let finalize = |output| Kernel::Finalize { reduction, output, banks, wide, resets };
            kernels.extend(
                [Output::Record, Output::RecordAndFactor, Output::RecordAndState, Output::TensorStats]
                    .map(finalize),
            );
        }
    }
    for slots in [1, 2, 3, 4, 5, 6, 8, 16, 30, 32, 64].map(Slots::Separate) {
        kernels.extend(with_slots(slots, &reductions));
    }
    let vectors = [DType::F32, DType::F16, DType::BF16].map(|dtype| (Alignment::Vector, dtype));
    for (alignment, dtype) in vectors.into_iter().chain([(Alignment::Element, DType::F32)]) {
        let format = TileFormat { alignment, dtype };
        // It has no more windows than tiles.
        for slots in (1..=SMALL_CLIP_TILES as usize).map(Slots::Separate) {
            for reduction in NORMS.map(|norm| Reduction::new(norm, false)) {
                let small = |output| Kernel::SmallClip { reduction, output, format, slots };
                kernels.extend([Output::Record, Output::RecordAndState].map(small));
            }
        }
    }
    kernels
}

/// The kernels with slots, except small clips.
fn with_slots(slots: Slots, reductions: &[Reduction]) -> Vec<Kernel> {
    let mut kernels = Vec::new();
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let columns = |&reduction: &Reduction| Kernel::PartialsColumns { reduction, dtype, slots };
        kernels.extend(reductions.iter().map(columns));
        for alignment in [Alignment::Vector, Alignment::Element] {
            let format = TileFormat { alignment, dtype };
            let has_loads = |r: &&Reduction| alignment == Alignment::Element || r.loads_vectors();
            let partials = |&reduction: &Reduction| Kernel::Partials { reduction, format, slots };
            kernels.extend(reductions.iter().filter(has_loads).map(partials));
            kernels.push(Kernel::ScaleColumns { format, slots });
            for segmented in [false, true] {
                kernels.push(Kernel::Scale { segmented, format, slots });
                kernels.push(Kernel::Clamp { segmented, format, slots });
                kernels.push(Kernel::UnscaleClamp { segmented, format, slots });
            }
        }
    }
    kernels
}

/// Every kernel with an array of windows.
fn with_arrays() -> Vec<Kernel> {
    with_slots(Slots::Array(128), &reductions())
}

fn parse(kernel: Kernel, dialect: Dialect) -> naga::Module {
    parse_source(kernel, &kernel.source(dialect))
}

fn parse_source(kernel: Kernel, source: &str) -> naga::Module {
    naga::front::wgsl::parse_str(source)
        .unwrap_or_else(|error| panic!("{kernel:?}: {}", error.emit_to_string(source)))
}

fn validate(module: &naga::Module) -> ModuleInfo {
    validate_with(Capabilities::empty(), module)
}

fn validate_with(capabilities: Capabilities, module: &naga::Module) -> ModuleInfo {
    Validator::new(ValidationFlags::all(), capabilities)
        .validate(module)
        .unwrap_or_else(|error| panic!("{error:?}"))
}

#[test]
fn naga_accepts_every_kernel_without_any_optional_capability() {
    for kernel in all() {
        for dialect in DIALECTS {
            let module = parse(kernel, dialect);
            let info = validate(&module);
            let [entry] = module.entry_points.as_slice() else { panic!("{kernel:?}: one entry point") };
            assert_eq!(entry.name, "main");
            if dialect == Dialect::CubeCl {
                assert!(module.overrides.is_empty(), "{kernel:?} leaves constants to the pipeline");
                assert_eq!(entry.workgroup_size, [kernel.workgroup_size(dialect), 1, 1]);
                let is_wide = matches!(kernel, Kernel::Finalize { wide: true, .. });
                let size = if is_wide { WIDE_WORKGROUP_SIZE } else { WORKGROUP_SIZE };
                assert_eq!(entry.workgroup_size, [size, 1, 1], "{kernel:?}");
            }
            // Runtimes that derive the layout from the text see only the bindings that are used.
            for (handle, variable) in module.global_variables.iter() {
                assert!(
                    !info.get_entry_point(0)[handle].is_empty(),
                    "{kernel:?}: {:?} is unused",
                    variable.name
                );
            }
        }
    }
}

/// Tint leaves the zero of `var partial: Partial;` to the variable's initializer in SPIR-V, which `SwiftShader` evaluates once for
/// a function and not once for an iteration. Norms of more than 2048 partials were wrong.
#[test]
fn every_local_variable_has_a_value() {
    for kernel in all() {
        let source = kernel.source(Dialect::WebGpu);
        let without = source.lines().find(|line| line.trim().starts_with("var ") && !line.contains('='));
        assert_eq!(without, None, "{kernel:?}");
    }
}

/// The code for the shaders of callers is accepted as it stands, and all its names have the prefix.
#[test]
fn compilers_accept_every_producer() {
    for norm_type in [NormType::L1, NormType::L2, NormType::Inf] {
        for clip in [Clip::by_global_norm(1.0), Clip::by_norm(1.0).tensor_stats()]
            .map(|clip| clip.norm_type(norm_type))
        {
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let producer = Producer::new(clip, dtype).unwrap();
                assert_eq!(producer.elements(), 4096);
                for producer in [producer, producer.shape(64, 7)] {
                    let text = producer.wgsl().unwrap();
                    for name in Code::new(&text).declared() {
                        assert!(name.starts_with("gradclip_"), "{name}");
                    }
                    let caller = format!("{text}
                        @group(0) @binding(0) var<storage, read_write> partials: array<gradclip_Partial>;
                        @compute @workgroup_size(gradclip_WORKGROUP_SIZE)
                        fn main(@builtin(local_invocation_index) lane: u32) {{
                            let partial = gradclip_partial_of_run(lane, 5u, array<vec4<u32>, gradclip_VECTORS>());
                            if (lane == 0u) {{ partials[0] = partial; }}
                        }}");
                    let module = naga::front::wgsl::parse_str(&caller)
                        .unwrap_or_else(|error| panic!("{producer:?}: {}", error.emit_to_string(&caller)));
                    validate(&module);
                    compilers::tint_accepts(&format!("{producer:?}"), &caller);
                }
            }
        }
    }
}

/// The texts for the shaders of callers: file, text, and the prefixes of its names.
const EXPORTED: [(&str, &str, [&str; 3]); 4] = [
    ("lib/clip_record", CLIP_RECORD_WGSL, ["ClipRecord", "CLIP_RECORD_", "clip_record_"]),
    ("lib/tensor_stats", TENSOR_STATS_WGSL, ["TensorStats"; 3]),
    ("lib/step_counts", STEP_COUNTS_WGSL, ["StepCounts", "step_counts_", "step_counts_"]),
    ("lib/loss_scale", LOSS_SCALE_WGSL, ["LossScale"; 3]),
];

/// They require nothing, and all their names have a prefix: they enter the caller's scope.
#[test]
fn exported_texts_stand_alone() {
    for (path, text, prefixes) in EXPORTED {
        validate(&naga::front::wgsl::parse_str(text).unwrap());
        for name in Code::new(text).declared() {
            assert!(prefixes.iter().any(|prefix| name.starts_with(prefix)), "{path}: {name}");
        }
    }
}

/// Callers bind the parameters of a plan as its loss scale.
#[test]
fn the_parameters_begin_with_the_loss_scale() {
    let module = naga::front::wgsl::parse_str(LOSS_SCALE_WGSL).unwrap();
    let naga::TypeInner::Struct { members, span } = &module.types.iter().last().unwrap().1.inner else {
        panic!("a struct")
    };
    let offsets: Vec<_> = members.iter().map(|member| member.offset as usize).collect();
    assert_eq!(*span as usize, size_of::<LossScaleState>());
    assert_eq!(
        offsets,
        [
            offset_of!(NormParams, scale),
            offset_of!(NormParams, growth),
            offset_of!(NormParams, backoff),
            offset_of!(NormParams, scale_floor),
            offset_of!(NormParams, interval),
            offset_of!(NormParams, good_steps)
        ]
    );
    assert_eq!(offset_of!(LossScaleState, scale), 0);
    assert_eq!(offset_of!(LossScaleState, good_steps), 20);
}

#[test]
fn the_host_sets_every_constant_without_a_value() {
    for kernel in all() {
        let module = parse(kernel, Dialect::WebGpu);
        let open = module.overrides.iter().filter(|(_, constant)| constant.init.is_none());
        let mut open: Vec<_> = open.map(|(_, constant)| constant.name.as_deref().unwrap()).collect();
        let mut set: Vec<_> = kernel.pipeline_constants().into_iter().map(|(name, _)| name).collect();
        open.sort_unstable();
        set.sort_unstable();
        assert_eq!(open, set, "{kernel:?}");
    }
}

#[test]
fn the_text_declares_the_bindings_of_the_table() {
    for kernel in all() {
        for dialect in DIALECTS {
            let module = parse(kernel, dialect);
            let mut declared: Vec<_> = module
                .global_variables
                .iter()
                .filter_map(|(_, variable)| Some((variable.binding?, variable.name.clone()?, variable.space)))
                .collect();
            declared.sort_by_key(|(binding, ..)| binding.binding);
            let declared: Vec<_> =
                declared.into_iter().map(|(at, name, space)| (at.group, at.binding, name, space)).collect();
            let storage = |access| naga::AddressSpace::Storage { access: naga::StorageAccess::LOAD | access };
            let expected: Vec<_> = (0..)
                .zip(kernel.bindings())
                .map(|(index, Binding { buffer, ty })| {
                    let space = match (dialect, ty) {
                        (Dialect::CubeCl, _) | (_, BindingType::ReadWrite) => {
                            storage(naga::StorageAccess::STORE)
                        }
                        (_, BindingType::Uniform) => naga::AddressSpace::Uniform,
                        (_, BindingType::Read) => storage(naga::StorageAccess::empty()),
                    };
                    (0, index, buffer.name(), space)
                })
                .collect();
            assert_eq!(declared, expected, "{kernel:?}");
        }
    }
}

#[test]
fn slots_follow_the_tiles_and_one_other_buffer() {
    for kernel in all() {
        let Some((slots, _)) = kernel.slots() else { continue };
        let buffers: Vec<_> = kernel.bindings().into_iter().map(|binding| binding.buffer).collect();
        assert!(buffers.is_sorted(), "{kernel:?}");
        // A small clip has the buffers of three stages. A plan that has no room for them has these stages instead.
        let others = if matches!(kernel, Kernel::SmallClip { .. }) {
            buffers.len() - slots.count()
        } else {
            FIRST_SLOT as usize
        };
        let (first, rest) = buffers.split_at(others);
        assert!(matches!(first[0], Buffer::Tiles | Buffer::ColumnTiles), "{kernel:?}");
        assert_eq!(rest, (0..slots.count()).map(Buffer::Slot).collect::<Vec<_>>(), "{kernel:?}");
    }
}

#[test]
fn slot_counts_are_shared_by_sets_of_many_sizes() {
    assert_eq!([1, 2, 3, 4, 5, 17, 30].map(|needed| slot_count(needed, 30)), [1, 2, 3, 4, 8, 30, 30]);
    assert_eq!(slot_count(3, 2), 2);
}

/// The names and offsets of a WGSL struct's members, and its size.
fn wgsl_layout(kernel: Kernel, name: &str) -> (Vec<(String, usize)>, usize) {
    let module = parse(kernel, Dialect::WebGpu);
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
fn structs_have_the_same_layout_in_rust_and_wgsl() {
    let format = TileFormat { alignment: Alignment::Vector, dtype: DType::F32 };
    let scale = Kernel::Scale { segmented: false, format, slots: Slots::Separate(1) };
    let reduction = Reduction::new(NormType::L2, false);
    let finalize = |output| Kernel::Finalize { reduction, output, banks: 1, wide: false, resets: false };
    assert_same_layout!(scale, Tile { slot, first, count, target_index });
    assert_same_layout!(
        Kernel::ScaleColumns { format, slots: Slots::Separate(1) },
        ColumnTile { slot, first, count, target_index, slot_again, columns, extent, target_stride }
    );
    assert_same_layout!(finalize(Output::Record), Segment { first, count, max_norm });
    assert_same_layout!(
        finalize(Output::Record),
        NormParams {
            scale,
            growth,
            backoff,
            scale_floor,
            interval,
            good_steps,
            inverse_scale,
            epsilon,
            policy,
            floor,
            rate,
            threshold,
            warm_up,
            skip_above,
            max_consecutive_skips,
            percentile_steps,
            percentile_rest
        }
    );
    assert_same_layout!(
        finalize(Output::TensorStats),
        TensorStats { norm, max_magnitude, non_finite, zeros }
    );
    assert_same_layout!(
        Kernel::Conclude,
        StepCounts { steps, clipped, non_finite, skipped, consecutive_skips, largest_norm }
    );
    assert_same_layout!(Kernel::ZClip, NormHistory { steps, mean, deviation });
    assert_same_layout!(
        Kernel::Clamp { segmented: false, format, slots: Slots::Separate(1) },
        Bounds { low, high }
    );
    let (members, _) = wgsl_layout(
        Kernel::UnscaleClamp { segmented: false, format, slots: Slots::Separate(1) },
        "UnscaledBounds",
    );
    assert_eq!(members, [("inverse_scale".to_owned(), 0), ("bounds".to_owned(), 4)]);
    let (members, size) = wgsl_layout(scale, "ClipRecord");
    assert_eq!((members, size), (ClipRecord::layout(), size_of::<ClipRecord>()));
}

#[test]
fn partials_have_the_size_that_rust_allocates() {
    for kernel in all() {
        let (reduction, count, bytes) = match kernel {
            Kernel::Finalize { reduction, wide: true, .. } => {
                (reduction, WIDE_WORKGROUP_SIZE as usize, WIDE_WORKGROUP_BYTES)
            }
            Kernel::Finalize { reduction, .. } => (reduction, WORKGROUP_SIZE as usize, WORKGROUP_BYTES),
            Kernel::SmallClip { reduction, .. } => {
                (reduction, (WORKGROUP_SIZE + SMALL_CLIP_TILES) as usize, WORKGROUP_BYTES)
            }
            _ => continue,
        };
        let (_, partial) = wgsl_layout(kernel, "Partial");
        assert_eq!(reduction.partial_bytes(), partial, "{reduction:?}");
        assert!(partial * count <= bytes as usize, "{reduction:?}");
    }
}

#[test]
fn the_window_of_auto_clip_has_the_size_that_rust_allows() {
    let module = parse(Kernel::AutoClip, Dialect::WebGpu);
    let constant = |name: &str| {
        let (_, constant) =
            module.constants.iter().find(|(_, constant)| constant.name.as_deref() == Some(name)).unwrap();
        match module.global_expressions[constant.init] {
            naga::Expression::Literal(naga::Literal::U32(value)) => value,
            ref other => panic!("{name} is {other:?}"),
        }
    };
    assert_eq!(constant("MAX_WINDOW"), AutoClip::MAX_WINDOW);
    assert_eq!(constant("NORMS_PER_LANE") * WORKGROUP_SIZE, AutoClip::MAX_WINDOW);
    assert_eq!(constant("HEADER") as usize, auto_clip::HEADER_WORDS);
    assert_eq!(constant("HUNDRED_PERCENT") as f32, 100.0 * PERCENTILE_STEPS_PER_PERCENT);
    let shared = module.global_variables.iter().map(|(_, variable)| variable);
    let shared = shared.filter(|variable| variable.space == naga::AddressSpace::WorkGroup);
    let bytes: u32 = shared.map(|variable| module.types[variable.ty].inner.size(module.to_ctx())).sum();
    assert!((4 * AutoClip::MAX_WINDOW..=WORKGROUP_BYTES).contains(&bytes), "{bytes}");
}

#[test]
fn kernels_stay_within_the_limits_that_are_required_of_a_device() {
    for kernel in all().into_iter().filter(|kernel| kernel.slots().is_none()) {
        let bindings = kernel.bindings();
        // Several banks, and the separate factors, are only for devices that allow as many more.
        let more = match kernel {
            Kernel::Finalize { banks, output, .. } => {
                let banks = if banks > 1 { banks } else { 0 };
                banks
                    + match output {
                        Output::RecordAndFactor | Output::RecordAndState => 2,
                        Output::Record | Output::TensorStats => 0,
                    }
            }
            _ => 0,
        };
        assert!(bindings.len() <= MAX_BINDINGS_WITHOUT_SLOTS as usize + more, "{kernel:?}");
        let storage = bindings.iter().filter(|binding| binding.ty != BindingType::Uniform).count();
        assert!(storage <= MAX_STORAGE_WITHOUT_SLOTS as usize + more, "{kernel:?}");
    }
}

/// The code of a WGSL file, without comments, as words and signs.
struct Code<'a>(Vec<&'a str>);

impl<'a> Code<'a> {
    fn new(text: &'a str) -> Self {
        let mut tokens = Vec::new();
        for line in text.lines() {
            let mut rest = line.split("//").next().unwrap_or_default();
            while let Some(first) = rest.chars().next() {
                let is_word = |c: char| c.is_alphanumeric() || c == '_';
                let len = if is_word(first) {
                    rest.find(|c| !is_word(c)).unwrap_or(rest.len())
                } else {
                    first.len_utf8()
                };
                if !first.is_whitespace() {
                    tokens.push(&rest[..len]);
                }
                rest = &rest[len..];
            }
        }
        Self(tokens)
    }

    /// The names that the module scope declares.
    fn declared(&self) -> BTreeSet<&'a str> {
        let mut depth = 0;
        let mut names = BTreeSet::new();
        for (index, token) in self.0.iter().enumerate() {
            match *token {
                "{" => depth += 1,
                "}" => depth -= 1,
                "fn" | "struct" | "const" | "alias" if depth == 0 => {
                    names.insert(self.0[index + 1]);
                }
                // `var<workgroup> name`
                "var" if depth == 0 => {
                    names.insert(self.0[index + 4]);
                }
                _ => {}
            }
        }
        names
    }

    /// The names that may refer to the module scope: not members, and no declarations of locals, parameters or members.
    fn used(&self) -> BTreeSet<&'a str> {
        let at = |index: usize| self.0.get(index).copied().unwrap_or_default();
        let refers = |index: &usize| {
            let before = index.checked_sub(1).map_or("", at);
            !matches!(before, "let" | "var" | "." | "fn" | "struct" | "const") && at(index + 1) != ":"
        };
        (0..self.0.len()).filter(refers).map(at).collect()
    }
}

/// The generated functions (`slots.rs`).
const SLOT_FUNCTIONS: [&str; 9] = [
    "load_vector",
    "load_vectors",
    "load_word",
    "load_words",
    "load_atomic",
    "store_vector",
    "store_vectors",
    "store_word",
    "compare_exchange",
];

/// What a snippet calls the file with a name: its folder, or its own name in `lib/`.
fn role(path: &str) -> &str {
    match path.split_once('/') {
        Some(("lib", name)) => name,
        Some(("stages", _)) => "stage",
        Some((folder, _)) => folder,
        None => path,
    }
}

/// Every WGSL file.
fn every_file() -> impl Iterator<Item = &'static Snippet> {
    SNIPPETS.iter().chain([&PRODUCER])
}

/// The names that a snippet declares for others. The entry may continue on indented lines.
fn provides(snippet: &Snippet) -> BTreeSet<&'static str> {
    let mut lines = snippet.text.lines().map_while(|line| line.strip_prefix("//"));
    let Some(first) = lines.find_map(|line| line.strip_prefix(" provides: ")) else { return BTreeSet::new() };
    let more = lines.take_while(|line| line.starts_with("   "));
    let names = std::iter::once(first).chain(more).flat_map(|line| line.split(','));
    names.map(str::trim).filter(|name| !name.is_empty()).collect()
}

/// Which roles provide a name.
fn providers(name: &str) -> BTreeSet<&'static str> {
    let mut roles: BTreeSet<_> =
        every_file().filter(|s| provides(s).contains(name)).map(|s| role(s.path)).collect();
    if SLOT_FUNCTIONS.contains(&name) {
        roles.insert("slots");
    }
    if ["partial_at", "reset_partials"].contains(&name) {
        roles.insert("banks");
    }
    roles
}

#[test]
fn every_snippet_states_its_interface() {
    let faults: Vec<_> = every_file().flat_map(faults_of).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// The differences between the interface that a snippet states and its code.
fn faults_of(snippet: &Snippet) -> Vec<String> {
    let path = snippet.path;
    let mut faults = Vec::new();
    let mut compare = |what: &str, stated: &BTreeSet<&str>, actual: &BTreeSet<&str>| {
        if stated != actual {
            faults.push(format!("{path}: {what} {stated:?}, but the code says {actual:?}"));
        }
    };
    let (declared, used) = (Code::new(snippet.text).declared(), used_by(snippet));

    let dependents = every_file().filter(|other| other.requires().any(|name| name == role(path)));
    let used_by_others: BTreeSet<_> = dependents.flat_map(used_by).collect();
    let is_public = |name: &&str| {
        used_by_others.contains(name)
            || EXPORTED.iter().any(|(exported, ..)| *exported == path)
            || path == "lib/producer"
    };
    let interface: BTreeSet<_> = declared.iter().copied().filter(is_public).collect();
    compare("provides", &provides(snippet), &interface);

    let buffers = used.iter().copied().filter(|name| binding::NAMED.iter().any(|row| row.0 == *name));
    compare("binds", &snippet.binds().collect(), &buffers.collect());

    let is_foreign = |name: &&str| !declared.contains(name);
    let roles: BTreeSet<_> = used.iter().copied().filter(is_foreign).flat_map(providers).collect();
    compare("requires", &snippet.requires().collect(), &roles);

    let constants =
        ["WORKGROUP_SIZE", "STRIDE", "VECTORS", "TURNS", "SEGMENTED", "POWER", "SMALL_CLIP_TILES"];
    let constants = constants.into_iter().filter(|name| used.contains(name)).collect();
    compare("constants", &snippet.constants().collect(), &constants);
    faults
}

/// The names that a snippet uses: those in its code, and those in the types of the buffers that it binds.
fn used_by(snippet: &Snippet) -> BTreeSet<&'static str> {
    let buffers = binding::NAMED.iter().filter(|row| snippet.binds().any(|name| name == row.0));
    let types = buffers.map(|&(_, _, ty)| ty);
    types.flat_map(|ty| Code::new(ty).0).chain(Code::new(snippet.text).used()).collect()
}

/// The files of a folder are alternatives, so they provide the same names. Those of general p are alternatives of nothing: they
/// belong to the stages of general p.
#[test]
fn alternatives_provide_the_same_names() {
    for one in every_file().filter(|s| !["stage", "norms/power"].contains(&role(s.path))) {
        for other in every_file().filter(|s| role(s.path) == role(one.path)) {
            if one.path.ends_with("/power") || other.path.ends_with("/power") {
                continue;
            }
            assert_eq!(provides(one), provides(other), "{} and {}", one.path, other.path);
        }
    }
}

/// No file is forgotten in the table, and every file of the table is part of a kernel.
#[test]
fn the_table_has_every_file() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/shaders");
    let mut files = BTreeSet::new();
    for folder in std::fs::read_dir(root).unwrap() {
        let folder = folder.unwrap().path();
        for file in std::fs::read_dir(&folder).unwrap() {
            let path = file.unwrap().path().with_extension("");
            files.insert(path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/"));
        }
    }
    let table: BTreeSet<_> = every_file().map(|s| s.path.to_owned()).collect();
    assert_eq!(files, table);
    let used: BTreeSet<_> =
        all().into_iter().flat_map(Kernel::snippets).map(|snippet| snippet.path.to_owned()).collect();
    // Producers are no kernels.
    let exported = EXPORTED.map(|(path, ..)| path).into_iter().chain(["lib/producer"]).map(str::to_owned);
    assert_eq!(used.into_iter().chain(exported).collect::<BTreeSet<_>>(), table);
}
