//! Every text that can be made is WGSL that naga accepts, with the bindings that are handed to it: CubeCL's device
//! thread is a bad place to learn otherwise.

use std::mem::offset_of;

use gradclip::{DType, NormType};

use super::super::layout::Tile;
use super::super::tables::{Measure, Segment};
use super::*;

fn kernels() -> Vec<Launchable> {
    let mut kernels = Vec::new();
    let mut findings = Vec::new();
    let powers = [3.0, 0.5, 0.0, -1.5, 1e-30, f32::MAX, f32::NEG_INFINITY].map(NormType::P);
    for norm in [NormType::L1, NormType::L2, NormType::Inf].into_iter().chain(powers) {
        findings.extend([false, true].map(|counted| Finding::of(norm, counted)));
    }
    for &finding in &findings {
        kernels.extend([Leaves::Record, Leaves::Stats].map(|leaves| Kernel::Finalize {
            finding,
            leaves,
            banks: 1,
            wide: false,
        }));
    }
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for access in [Access::Vectors, Access::Elements] {
            let manner = Manner { access, dtype };
            for slots in [1, 2, 3, 5, 32] {
                kernels.extend(findings.iter().map(|finding| Kernel::Partials {
                    finding: *finding,
                    manner: to_measure(*finding, manner),
                    slots,
                }));
                for segmented in [false, true] {
                    kernels.push(Kernel::Scale { segmented, manner, slots });
                    kernels.push(Kernel::Clamp { segmented, manner, slots });
                }
            }
        }
    }
    kernels.into_iter().map(Launchable).collect()
}

#[test]
fn every_text_is_wgsl_and_uses_the_bindings_that_it_is_given() {
    for kernel in kernels() {
        let text = kernel.text();
        let module = naga::front::wgsl::parse_str(&text)
            .unwrap_or_else(|error| panic!("{kernel:?}: {}", error.emit_to_string(&text)));
        let info = naga::valid::Validator::new(
            naga::valid::ValidationFlags::all(),
            naga::valid::Capabilities::empty(),
        )
        .validate(&module)
        .unwrap_or_else(|error| panic!("{kernel:?}: {error:?}"));
        assert!(module.overrides.is_empty(), "{kernel:?} leaves constants to the pipeline");
        let [entry] = module.entry_points.as_slice() else { panic!("{kernel:?}: one entry point") };
        assert_eq!(entry.name, "main");
        assert_eq!(entry.workgroup_size, [WORKGROUP_SIZE, 1, 1]);

        // The layout is made from what the entry point uses: all that is bound, and nothing else.
        let mut bindings = Vec::new();
        for (handle, variable) in module.global_variables.iter() {
            let Some(binding) = &variable.binding else { continue };
            assert!(
                !info.get_entry_point(0)[handle].is_empty(),
                "{kernel:?} has no use for {:?}",
                variable.name
            );
            let writable = naga::AddressSpace::Storage {
                access: naga::StorageAccess::LOAD | naga::StorageAccess::STORE,
            };
            assert_eq!(variable.space, writable, "{kernel:?}: {:?}", variable.name);
            assert_eq!(binding.group, 0);
            bindings.push(binding.binding);
        }
        bindings.sort_unstable();
        let expected = match kernel.0 {
            Kernel::Partials { slots, .. } | Kernel::Scale { slots, .. } | Kernel::Clamp { slots, .. } => {
                2 + slots
            }
            Kernel::Finalize { leaves: Leaves::Record, .. } => 7,
            Kernel::Finalize { finding, .. } => 4 + usize::from(stats_need_owners(finding)),
            other => panic!("{other:?} is not launched"),
        };
        assert_eq!(bindings, (0..u32::try_from(expected).unwrap()).collect::<Vec<_>>(), "{kernel:?}");
    }
}

/// The names and offsets of a WGSL struct's members, and its size.
fn in_wgsl(kernel: Kernel, name: &str) -> (Vec<(String, usize)>, usize) {
    let module = naga::front::wgsl::parse_str(&Launchable(kernel).text()).unwrap();
    let (_, ty) = module.types.iter().find(|(_, ty)| ty.name.as_deref() == Some(name)).unwrap();
    let naga::TypeInner::Struct { members, span } = &ty.inner else { panic!("{name} is a struct") };
    let members = members.iter().map(|member| (member.name.clone().unwrap(), member.offset as usize));
    (members.collect(), *span as usize)
}

macro_rules! assert_same_layout {
    ($kernel:expr, $name:ident { $($field:ident),+ }) => {
        let (members, size) = in_wgsl($kernel, stringify!($name));
        let fields = [$((stringify!($field).to_owned(), offset_of!($name, $field))),+];
        assert_eq!((&members[..fields.len()], size), (&fields[..], size_of::<$name>()));
    };
}

#[test]
fn structs_lie_in_memory_as_the_kernels_read_them() {
    let finding = Finding::of(NormType::L2, false);
    let manner = Manner { access: Access::Vectors, dtype: DType::F32 };
    let partials = Kernel::Partials { finding, manner, slots: 1 };
    let records = Kernel::Finalize { finding, leaves: Leaves::Record, banks: 1, wide: false };
    assert_same_layout!(partials, Tile { slot, first, count, target_index });
    assert_same_layout!(records, Segment { first, count, max_norm });
    assert_same_layout!(records, Measure { epsilon, policy, inverse_scale });
}

#[test]
fn the_texts_of_the_core_still_hold_what_is_replaced_in_them() {
    assert!(include_str!("../../../../shaders/leave_record.wgsl").contains(LEAVES_RECORD));
    assert!(include_str!("../../../../shaders/segment.wgsl").contains(OWNERS));
    assert!(include_str!("../../../../shaders/leave_stats.wgsl").contains(STATS));
}

#[test]
fn many_slots_are_powers_of_two_or_all_that_there_are() {
    assert_eq!([1, 2, 3, 5, 17, 30].map(|needed| slots_for(needed, 30)), [1, 2, 3, 8, 30, 30]);
}
