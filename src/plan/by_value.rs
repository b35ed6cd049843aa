//! The plan of a clip by value.

use super::builder::Builder;
use super::gradient::Set;
use super::layout::Batch;
use super::segment_map::SegmentMap;
use super::usage::{COPY_DST, STORAGE};
use super::{Limits, Passes, PlanBuffer};
use crate::kernels::Kernel;
use crate::kernels::tables::Bounds;
use crate::operation::Operation;
use crate::{DType, Error};

/// The buffers of a plan, its passes, and the buffers that begin with the inverse loss scale, one for each element type.
type Planned = (Vec<PlanBuffer>, Passes, Option<[usize; 3]>);

/// Plans a clip by value. `operations` has one operation for each group; they differ only in their bounds.
pub(super) fn plan(operations: &[Operation], set: &Set, limits: Limits) -> Result<Planned, Error> {
    let bounds: Vec<_> = operations.iter().filter_map(Operation::bounds).collect();
    let inverse_scale = match operations.first() {
        Some(Operation::Clamp { inverse_scale, .. }) => *inverse_scale,
        _ => None,
    };
    let layout = SegmentMap::of_groups(bounds.len(), set).lay_out(limits, None)?;
    limits.check_scratch(size_of_val(&layout.tiles[..]) as u64)?;
    limits.check_workgroups(layout.largest_dispatch())?;
    let mut builder = Builder::new(limits, &layout.tiles);
    let (label, usage) = match inverse_scale {
        None => ("gradclip.bounds", STORAGE),
        Some(_) => ("gradclip.unscaled_bounds", STORAGE | COPY_DST),
    };
    let tables = [DType::F32, DType::F16, DType::BF16].map(|dtype| {
        // With an inverse loss scale, the table is that of `UnscaledBounds`.
        let mut table: Vec<f32> = inverse_scale.into_iter().collect();
        for &bounds in &bounds {
            let Bounds { low, high } = Bounds::new(bounds, dtype);
            table.extend([low, high]);
        }
        builder.kept(label, usage, &table)
    });
    let [f32, f16, bf16] = tables;
    let bounds_of = |_, batch: &Batch| match batch.format.dtype {
        DType::F32 => f32,
        DType::F16 => f16,
        DType::BF16 => bf16,
    };
    let segmented = bounds.len() > 1;
    let clamp = |&Batch { format, .. }: &Batch, slots| match inverse_scale {
        None => Kernel::Clamp { segmented, format, slots },
        Some(_) => Kernel::UnscaleClamp { segmented, format, slots },
    };
    let scale = builder.batches(&layout.apply, &bounds_of, &clamp);
    let passes = Passes::new(Vec::new(), Vec::new(), scale, None);
    Ok((builder.finish(), passes, inverse_scale.map(|_| tables)))
}
